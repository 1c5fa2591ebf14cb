"""The image, its locks and the one place where versions are decided agree with each other."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from requirements.lock import entries

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "Containerfile").read_text(encoding="utf-8")
LOCKS = ("image.lock", "source.lock", "cuda.lock")


def versions() -> dict[str, str]:
    """k8s/versions.yaml."""
    loaded: dict[str, str] = yaml.safe_load((ROOT / "k8s" / "versions.yaml").read_text(encoding="utf-8"))
    return loaded


def locked(path: str) -> dict[str, str]:
    """Versions by package."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Containerfile, continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", CONTAINERFILE, flags=re.MULTILINE))
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def test_versions_are_texts() -> None:
    assert all(isinstance(value, str) for value in versions().values()), "2.60 without quotes is a number, and another version"


@pytest.mark.parametrize(
    ("package", "path"), [("ray", "requirements.lock"), ("mlflow", "requirements.lock"), ("torch", "requirements/cuda.lock")]
)
def test_locks_have_the_decided_versions(package: str, path: str) -> None:
    decided = versions()[package]
    assert locked(path)[package] == decided
    assert re.search(rf'"{package}(\[[a-z,]+\])?=={re.escape(decided)}"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_image_and_development_have_the_same_packages() -> None:
    development, image = locked("requirements.lock"), locked("requirements/image.lock") | locked("requirements/source.lock")
    assert {name: version for name, version in image.items() if development.get(name) != version} == {}
    assert not image.keys() & locked("requirements/cuda.lock").keys()
    assert {"psycopg2-binary", "boto3", "flask-wtf"} <= image.keys(), "MLflow's server is run from this image"
    assert not {"moto", "hypothesis", "mypy", "kubernetes-validate"} & image.keys(), "what only tests need is not shipped"


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_hash_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    packages = entries(text)
    assert "".join(packages.values()) == text
    assert [package for package, entry in packages.items() if "--hash=sha256:" not in entry] == []
    assert "://" not in text


def test_the_containerfile_names_the_decided_versions() -> None:
    decided = versions()
    arguments = dict(found.split("=", 1) for found in instructions("ARG") if "=" in found)
    assert arguments["PYTHON_VERSION"] == decided["python"]
    assert arguments["RAY_VERSION"] == decided["ray"]
    assert arguments["TORCH"] == f'"torch=={decided["torch"]}"'
    assert project()["project"]["version"] == decided["image"]
    assert project()["tool"]["mypy"]["python_version"] == decided["python"]


def test_every_stage_begins_with_a_pinned_base_or_another_stage() -> None:
    stages: set[str] = set()
    for origin in instructions("FROM"):
        image, _, name = origin.partition(" AS ")
        assert image in stages | {"${BASE_IMAGE}"}, f"a base must be given from outside, by digest, got {image!r}"
        stages.add(name)
    assert "BASE_IMAGE" in instructions("ARG"), "no default: whoever builds decides, and pins it"


def test_the_image_runs_as_nobody_who_may_write_its_code() -> None:
    assert instructions("USER")[-1] == "1000:1000"
    last = CONTAINERFILE[CONTAINERFILE.rindex("\nFROM ") :]
    assert "COPY --from=builder /app /app" in last
    assert "--chown" not in CONTAINERFILE
    assert not re.search(r"\b(gcc|g\+\+|build-essential|ninja|nvcc)\b", "\n".join(instructions("RUN"))), "nothing is compiled"


def test_packages_are_installed_by_hash() -> None:
    installs = [command for run in instructions("RUN") for command in re.findall(r"pip install ([^;&]*)", run)]
    unpinned = [command for command in installs if "--require-hashes" not in command]
    # our own code, and a torch without hash, which the build takes only when it is told to
    assert len(installs) == 6
    assert [command.split()[-1] for command in unpinned] == ["torch.txt", "/app"]
    assert re.search(r"cpu,\*,yes\) pip install \"\$@\" --requirement torch.txt", CONTAINERFILE)


def test_the_context_of_the_build_is_what_it_copies() -> None:
    others = [path.name for pattern in ("*.dockerignore", "*.containerignore") for path in ROOT.glob(pattern)]
    assert others == [".dockerignore"], "the one name that docker, podman and buildah all read; a second file would go before it"
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*", "secrets in build/ and the environment in .venv are not sent"
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {word.rstrip("/") for copy in instructions("COPY") if "--from" not in copy for word in copy.split()[:-1]}
    assert kept == copied


def test_hadolint_finds_nothing() -> None:
    found = subprocess.run(
        [Path(sys.executable).parent / "hadolint", ROOT / "Containerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")


STAND_IN = """#!/bin/bash
# ray job VERB ...: what this Ray would say
echo "$2" >>"$LOG"
case $2 in
  list) if [[ -e $LOG.away ]]; then rm "$LOG.away"; echo "cannot connect" >&2; exit 1; fi ;;
  status) [[ -e $LOG.submitted ]] || exit 1; echo "Job 'sweep-1' $BECOMES" ;;
  submit) touch "$LOG.submitted"; exit "$SUBMIT" ;;
  logs) exit 0 ;;
esac
"""


def submit(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run submit.sh with a stand-in for `ray`, and for `sleep`, in front of everything."""
    for name, text in (("ray", STAND_IN), ("sleep", "#!/bin/bash\n")):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(folder / "log"), **variables}
    command = ["bash", str(ROOT / "k8s" / "settings" / "submit.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("becomes", "status", "expected"),
    [("succeeded", 0, 0), ("failed", 1, 1), ("was stopped", 0, 1), ("is RUNNING", 0, 1), ("failed", 0, 1), ("succeeded", 1, 1)],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_submitter_succeeds_only_where_the_job_did(
    tmp_path: Path, becomes: str, status: int, expected: int, again: bool
) -> None:
    if again:
        (tmp_path / "log.submitted").touch()
        expected = 0 if becomes == "succeeded" else 1
    ended = submit(tmp_path, "http://head:8265", "sweep-1", "python", "sweep.py", BECOMES=becomes, SUBMIT=str(status))
    assert ended.returncode == expected
    verbs = (tmp_path / "log").read_text(encoding="utf-8").split()
    assert verbs[:3] == ["list", "status", "logs" if again else "submit"], "a job that is there is followed, not given again"
    assert ("is followed" in ended.stderr) == again


def test_a_submitter_says_what_it_waits_for(tmp_path: Path) -> None:
    (tmp_path / "log.away").touch()
    ended = submit(tmp_path, "http://head:8265", "sweep-1", "python", "sweep.py", BECOMES="succeeded", SUBMIT="0")
    assert ended.returncode == 0
    assert re.fullmatch(r"waiting .* http://head:8265; .*: cannot connect\n", ended.stderr)


@pytest.mark.parametrize("arguments", [[], ["http://head:8265", "sweep-1"]])
def test_a_submitter_says_how_it_is_used(tmp_path: Path, arguments: list[str]) -> None:
    ended = submit(tmp_path, *arguments)
    assert (ended.returncode, ended.stderr) == (2, f"usage: submit.sh ADDRESS ID COMMAND...; got {len(arguments)} argument(s)\n")
    assert not (tmp_path / "log").exists()


def test_a_submitter_without_ray_does_not_wait(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    command = [bash, str(ROOT / "k8s" / "settings" / "submit.sh"), "http://head:8265", "sweep-1", "true"]
    ended = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.startswith("`ray` must be on PATH, got none;")


def manifests() -> str:
    """All YAML of k8s/, one file after another."""
    return "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "k8s").rglob("*.yaml")) if path.name != "versions.yaml"
    )


@pytest.mark.parametrize(
    ("what", "pattern", "key", "at_least"),
    [
        ("Ray", r'rayVersion: "?([^"\s]+)"?', "ray", 3),
        ("our image", r"name: grun-pipelines, newName: \S+, newTag: ([0-9.]+)", "image", 2),
        ("PostgreSQL", r"name: postgres, newTag: ([0-9.]+)", "postgres", 1),
        ("SeaweedFS", r'name: chrislusf/seaweedfs, newTag: "?([0-9.]+)', "seaweedfs", 1),
        ("the Pod Security Standard", r"enforce-version: v([0-9.]+)", "kubernetes", 1),
    ],
)
def test_manifests_name_the_decided_versions(what: str, pattern: str, key: str, at_least: int) -> None:
    found = re.findall(pattern, manifests())
    assert len(found) >= at_least, what
    assert set(found) == {versions()[key]}, what


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("ray", r"(?<!Kube)Ray ([0-9]+\.[0-9]+\.[0-9]+)"),
        ("kuberay", r"KubeRay ([0-9]+\.[0-9]+\.[0-9]+)|--version ([0-9.]+)"),
        ("torch", r"torch==([0-9.]+)"),
        ("kubernetes", r"kindest/node:v([0-9]+\.[0-9]+)|--kubernetes-version v([0-9]+\.[0-9]+)"),
    ],
)
def test_the_readme_names_the_decided_versions(key: str, pattern: str) -> None:
    text = (ROOT / "k8s" / "README.md").read_text(encoding="utf-8")
    found = {"".join(match.groups(default="")) for match in re.finditer(pattern, text)}
    assert found == {versions()[key]}
