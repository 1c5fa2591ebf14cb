"""Make every lock anew from pyproject.toml: `make locks`, or `python requirements/lock.py UV [option of uv pip compile ...]`.

    requirements.lock         what a machine to develop on needs, without torch
    requirements/image.lock   what the image needs, without torch; wheels, with hashes
    requirements/source.lock  the two packages of it that have no wheels: their own code runs while they are installed
    requirements/cuda.lock    torch for NVIDIA GPUs, and the packages of CUDA that it names

What is locked stays as it is, unless `--upgrade` or `--upgrade-package NAME` says otherwise; every lock has the same versions.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
SOURCES = ("deepspeed", "rouge-score")
"""Packages without wheels; the image refuses to build where there is another one."""
CUDA = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")
"""Torch and what it brings for GPUs: its builds differ from machine to machine, and the CPU's needs none of the rest."""

_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==[^\n]*\n(?:    [^\n]*\n)*", re.MULTILINE)


def entries(lock: str) -> dict[str, str]:
    """The packages of a lock with the lines that belong to each."""
    return {match["name"]: match[0] for match in _ENTRY.finditer(lock)}


def _compile(uv: str, output: Path, options: Sequence[str]) -> str:
    """Run uv; what `output` has already is kept where it can be."""
    base = [
        uv,
        "pip",
        "compile",
        "pyproject.toml",
        "--quiet",
        "--no-header",
        "--python-version",
        "3.11",
        "--output-file",
        str(output),
    ]
    subprocess.run([*base, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return output.read_text(encoding="utf-8")


def _write(name: str, packages: Iterable[str]) -> None:
    (FOLDER / name).write_text("".join(packages), encoding="utf-8")


def main(uv: str, *options: str) -> None:
    """Write all of them."""
    development, image = ROOT / "requirements.lock", FOLDER / ".image.lock"
    _compile(uv, development, ["--extra", "dev", "--extra", "server", *options])
    hashed = ["--extra", "server", "--no-annotate", "--generate-hashes", "--python-platform", "x86_64-manylinux_2_28"]
    try:
        found = entries(_compile(uv, image, [*hashed, "--constraint", str(development)]))
    finally:
        image.unlink(missing_ok=True)
    cuda = {name for name in found if CUDA.fullmatch(name)}
    _write("cuda.lock", (found[name] for name in sorted(cuda)))
    _write("source.lock", (found[name] for name in SOURCES))
    _write("image.lock", (text for name, text in found.items() if name not in cuda and name not in SOURCES))
    text = development.read_text(encoding="utf-8")
    development.write_text("".join(text for name, text in entries(text).items() if not CUDA.fullmatch(name)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
