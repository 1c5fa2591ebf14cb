"""Custom kinds against their definitions: what a server checks, and what it would drop in silence."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from grun.errors import ConfigError
from k8s.check.crds import CustomKind, custom_kind
from k8s.check.ray_kinds import SPECS
from k8s.check.suite import crds_folder
from tests.k8s import sample

TEXT = {"type": "string"}
SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["size", "least"],
    "properties": {
        "size": {"anyOf": [{"type": "integer"}, TEXT], "pattern": "^[0-9]+(Gi)?$", "x-kubernetes-int-or-string": True},
        "least": {"type": "integer", "default": 1, "minimum": 0},
        "note": {"type": "string", "nullable": True},
        "free": {"type": "object", "additionalProperties": TEXT},
        "any": {"type": "object", "properties": {"a": TEXT}, "x-kubernetes-preserve-unknown-fields": True},
        "ports": {
            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": TEXT, "port": {"type": "integer", "default": 80}}},
        },
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": TEXT},
    },
    "x-kubernetes-validations": [
        {"rule": "!has(self.ports) || self.least > 0", "message": "ports need one"},
        {"rule": "self.least == oldSelf.least", "message": "immutable"},
    ],
}  # fmt: skip
KIND = CustomKind({"type": "object", "properties": {"spec": SPEC, "metadata": {"type": "object"}}})


def errors(**spec: Any) -> list[str]:
    return list(KIND.errors({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n"}, "spec": {"size": "2Gi", **spec}}))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"size": 2},
        {"note": None},
        {"free": {"x": "y"}},
        {"any": {"b": 1}},
        {"ports": [{"name": "a"}, {"name": "b"}]},
        {"tags": ["a", "b"]},
    ],
)
def test_takes_what_a_server_takes(spec: dict[str, Any]) -> None:
    assert errors(**spec) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"sise": 1}, "spec: unknown field 'sise' \\(did you mean 'size'\\?\\)"),
        ({"other": 1}, "spec: unknown field 'other'$"),
        ({"size": "2Mi"}, "spec.size: .* does not match"),
        ({"size": 2.5}, "spec.size"),
        ({"least": "1"}, "spec.least: '1' is not of type 'integer'"),
        ({"least": -1}, "spec.least: -1 is less than"),
        ({"free": {"x": 1}}, "spec.free.x"),
        ({"least": None}, "spec.least"),
        ({"ports": [{"name": "a"}, {"name": "a"}]}, r"spec.ports: entries must differ in name, got \['a'\] twice"),
        ({"tags": ["a", "a"]}, "spec.tags: entries must differ in value"),
        ({"ports": [{"name": "a"}], "least": 0}, "spec: ports need one"),
    ],
)
def test_finds_what_is_wrong(spec: dict[str, Any], message: str) -> None:
    found = errors(**spec)
    assert len(found) == 1
    assert re.search(message, found[0])


def test_metadata_is_strict_too() -> None:
    assert list(KIND.errors({"apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n", "label": {}}, "spec": {"size": 1}}))


def test_a_folder_without_definitions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rayjobs.yaml").write_text("kind: CustomResourceDefinition\n")
    with pytest.raises(ConfigError, match=r"KUBERAY_CRDS must be a folder of CustomResourceDefinitions called ray.io_"):
        custom_kind(tmp_path, "ray.io/v1", "RayJob")


def test_our_own_schemas_have_kuberays_fields() -> None:
    folder = crds_folder()
    if folder is None:
        pytest.skip("KUBERAY_CRDS is not set: our own schemas were not compared with KubeRay's definitions")
    for kind, spec in SPECS.items():
        definition = yaml.load((folder / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=yaml.CSafeLoader)
        versions = {version["name"]: version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"]}
        _same_fields(spec, versions["v1"]["properties"]["spec"], kind)


def _same_fields(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> None:
    if "type" in ours:
        assert ours["type"] == theirs.get("type"), path
    if "properties" in ours:
        assert ours["properties"].keys() == theirs["properties"].keys(), path
        for name, part in ours["properties"].items():
            _same_fields(part, theirs["properties"][name], f"{path}.{name}")
        # theirs may be required and have a default
        assert set(ours["required"]) <= set(theirs.get("required") or []), path
    if "items" in ours:
        _same_fields(ours["items"], theirs["items"], f"{path}[]")


def test_kuberays_own_definitions() -> None:
    folder = crds_folder()
    if folder is None:
        pytest.skip("KUBERAY_CRDS is not set: nothing was checked against KubeRay's definitions")
    assert custom_kind(folder, "ray.io/v2", "RayJob") is None
    assert custom_kind(folder, "ray.io/v1", "RayJobs") is None
    for document in (sample.cluster(), sample.job(), sample.service()):
        kind = custom_kind(folder, document["apiVersion"], document["kind"])
        assert kind is not None
        assert list(kind.errors(document)) == []
    wrong = sample.job(deletionStrategy={"deletionRules": [{"policy": "DeleteSelf", "condition": {}}]})
    kind = custom_kind(folder, "ray.io/v1", "RayJob")
    assert kind is not None
    assert any("requires either the JobStatus or" in error for error in kind.errors(wrong))
