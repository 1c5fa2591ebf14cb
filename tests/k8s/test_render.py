"""Rendering: with the machine's kubectl or the repository's own, strictly, and components on top of something."""

import os
import re
import shutil
from pathlib import Path

import pytest

from grun.errors import ConfigError
from k8s.check import render as module
from k8s.check.render import is_component, kubectl, kustomizations, render, render_component

pytestmark = pytest.mark.usefixtures("needs_kubectl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "extra").mkdir()
    (tmp_path / "base/kustomization.yaml").write_text("namespace: space\nresources: [a.yaml]\nimages: [{name: i, newTag: t}]\n")
    (tmp_path / "base/a.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}]}\n"
    )
    kind = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nlabels: [{pairs: {a: b}}]\n"
    (tmp_path / "extra/kustomization.yaml").write_text(kind)
    return tmp_path


def test_renders_what_kustomize_prints(folder: Path) -> None:
    expected = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "space"},
        "spec": {"containers": [{"name": "c", "image": "i:t"}]},
    }
    assert render(folder / "base") == [expected]
    assert kustomizations(folder) == [folder / "base", folder / "extra"]


def test_a_component_is_rendered_on_top_of_something(folder: Path) -> None:
    assert is_component(folder / "extra")
    assert not is_component(folder / "base")
    assert render_component(folder / "extra", folder / "base")[0]["metadata"]["labels"] == {"a": "b"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("a.yaml", "kind: [", "Kustomize must accept"), ("kustomization.yaml", None, "must hold a kustomization")],
)
def test_a_folder_that_cannot_be_rendered_is_named(folder: Path, name: str, text: str | None, message: str) -> None:
    path = folder / "base" / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        render(folder / "base")


def test_a_refusal_is_one_line_without_the_log_and_names_the_patches(folder: Path) -> None:
    path = folder / "base/kustomization.yaml"
    path.write_text("resources: [a.yaml]\npatches: [{path: wrong.yaml, target: {kind: Pod}}]\n")
    (folder / "base/wrong.yaml").write_text("- {op: replace, path: /spec/volumes/1, value: x}\n")
    with pytest.raises(ConfigError) as error:
        render(folder / "base")
    message = str(error.value)
    assert message.startswith(f"Kustomize must accept {folder}/base, got: ")
    assert "/spec/volumes/1" in message
    assert message.endswith("; mend the kustomization or what it patches with (wrong.yaml)")
    assert not re.search(r"command failed|run\.go|\n|got: (?:E\d|error)", message)


def test_without_kubectl_on_path_the_repositorys_own_is_taken_or_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kubectl()
    kubectl.cache_clear()
    old = tmp_path / "bin/kubectl"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\necho \'{"clientVersion": {"gitVersion": "v1.27.1"}}\'\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}{os.pathsep}/bin-that-is-not")
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    with pytest.raises(ConfigError, match="make kubectl"):
        render(folder / "base")
    (tmp_path / ".tools").mkdir()
    shutil.copy(real, tmp_path / ".tools/kubectl")
    assert render(folder / "base")[0]["kind"] == "Pod"
    assert kubectl() == str(tmp_path / ".tools/kubectl")
    kubectl.cache_clear()
