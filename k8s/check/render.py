"""What Kustomize makes of a folder.

`kubectl` is taken from PATH where it is new enough, else from `.tools`, where `make kubectl` puts it.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from grun.errors import ConfigError
from k8s.check.strict_yaml import Document, load

__all__ = ["FILES", "REPOSITORY", "is_component", "kubectl", "kustomizations", "render", "render_component"]

REPOSITORY = Path(__file__).resolve().parents[2]
"""Root of the repository."""
_LEAST = (1, 28)
"""The first `kubectl` with which all commands of k8s/README.md work; what it renders is the same from 1.27 (Kustomize 5.0.1) to 1.34."""
_LOG = re.compile(r'^[EWI]\d{4} .*?\] |^"command failed" err=|^(?:error|Error): ', re.MULTILINE)
"""What `kubectl` puts before its message."""
FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
"""What a kustomization may be called."""


def _version(binary: str) -> tuple[int, int] | None:
    """Version of a `kubectl`; None where it cannot be asked. Its Kustomize comes with it: 5.0 with 1.27 and later."""
    try:
        done = subprocess.run(
            [binary, "version", "--client", "-o", "json"], capture_output=True, text=True, timeout=60, check=True
        )
        found = re.match(r"v(\d+)\.(\d+)", json.loads(done.stdout)["clientVersion"]["gitVersion"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
    return (int(found.group(1)), int(found.group(2))) if found else None


@functools.cache
def kubectl() -> str:
    """The `kubectl` that renders.

    Raises:
        ConfigError: there is none, or only an old one.
    """
    for candidate in (shutil.which("kubectl"), str(REPOSITORY / ".tools" / "kubectl")):
        if candidate and (_version(candidate) or (0, 0)) >= _LEAST:
            return candidate
    raise ConfigError(
        f"rendering needs `kubectl` {'.'.join(map(str, _LEAST))} or later, got none on PATH and none in .tools; run `make kubectl`"
    )


def kustomizations(root: Path) -> list[Path]:
    """Folders at and below `root` that hold a kustomization, sorted."""
    return sorted({path.parent for name in FILES for path in root.rglob(name)})


def is_component(folder: Path) -> bool:
    """Whether the kustomization of a folder is a component, which something else has to stand on."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in FILES if (folder / name).is_file()]
    return any(document.get("kind") == "Component" for text in texts for document in load(text, where=folder))


def render(folder: Path) -> list[Document]:
    """Return the documents that `kubectl kustomize FOLDER` prints.

    Raises:
        ConfigError: the folder holds no kustomization, Kustomize refuses it, or what comes out is ambiguous YAML.
    """
    if not any((folder / name).is_file() for name in FILES):
        raise ConfigError(
            f"a folder to render must hold a kustomization.yaml, got {str(folder)!r}; name an overlay, as k8s/overlays/local-cpu"
        )
    # no server is asked, so none may be named either
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "KUBECONFIG": os.devnull},
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"Kustomize must accept {_short(folder)}, got: {_reason(done.stderr)}; mend {_suspects(folder)}")
    return load(done.stdout, where=folder)


def _short(folder: Path) -> str:
    """A path as a user names it: from the root of the repository."""
    return str(folder).removeprefix(f"{REPOSITORY}/")


def _reason(stderr: str) -> str:
    """What `kubectl` says, on one line, without what its log puts around it."""
    text = stderr.strip()
    for _ in range(2):  # a prefix of the log, and the name of its field
        text = _LOG.sub("", text)
    text = " ".join(text.split()).replace(f"{REPOSITORY}/", "")
    return text.removeprefix("<").removesuffix(">").strip().strip('"').replace('\\"', '"')


def _suspects(folder: Path) -> str:
    """The kustomization and the files of its patches: Kustomize does not always say which of them it means."""
    documents = [
        doc
        for name in FILES
        if (folder / name).is_file()
        for doc in load((folder / name).read_text(encoding="utf-8"), where=folder)
    ]
    patches = [str(patch["path"]) for document in documents for patch in document.get("patches") or [] if "path" in patch]
    return f"the kustomization or what it patches with ({', '.join(patches)})" if patches else "the kustomization"


def render_component(component: Path, below: Path) -> list[Document]:
    """Return the documents of a component on top of the kustomization `below`."""
    # outside the manifests, so that nobody else finds it
    with tempfile.TemporaryDirectory(prefix="kustomization-") as temporary:
        folder = Path(temporary).resolve()
        stack = {
            "resources": [os.path.relpath(below.resolve(), folder)],
            "components": [os.path.relpath(component.resolve(), folder)],
        }
        text = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **stack}
        (folder / FILES[0]).write_text(json.dumps(text), encoding="utf-8")  # JSON is YAML
        return render(folder)
