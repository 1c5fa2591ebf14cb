"""What a machine needs to run pods as namespaces, and running commands in them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from grun.errors import ConfigError
from k8s.check.render import kubectl

__all__ = ["find_postgres", "in_namespaces", "missing", "require", "run"]

_COMMANDS = {
    "ip": "iproute2",
    "nft": "nftables",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "pivot_root": "util-linux",
}


def find_postgres() -> Path | None:
    """Folder of Debian's PostgreSQL server programs, newest version first; None where there are none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return folders[-1].parent if folders else None


def missing(*, renders: bool = False, postgres: bool = False) -> list[str]:
    """What this machine lacks, each with its remedy.

    Args:
        renders: whether manifests have to be rendered.
        postgres: whether a PostgreSQL server runs in the pods.
    """
    if not sys.platform.startswith("linux"):
        return ["Linux (namespaces are its own)"]
    lacking = []
    if os.geteuid() != 0:
        lacking.append("root (namespaces, mounts and packet filters need it)")
    packages = {name: package for name, package in _COMMANDS.items() if shutil.which(name, path=_path()) is None}
    lacking += [f"`{name}` (apt-get install {package})" for name, package in packages.items()]
    if renders:
        try:
            kubectl()
        except ConfigError as error:
            lacking.append(str(error))
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="utf-8"):
        lacking.append("overlay file systems (modprobe overlay)")
    if postgres and find_postgres() is None:
        lacking.append("a PostgreSQL server (apt-get install postgresql)")
    if Path(sys.prefix).resolve().is_relative_to("/tmp"):
        lacking.append("a checkout outside /tmp (pods have one of their own, in which its Python would not be)")
    return lacking


def require(*, renders: bool = False, postgres: bool = False) -> None:
    """Skip a test that cannot run here, and say what is missing; in CI (`CI=true`) that is a failure."""
    lacking = missing(renders=renders, postgres=postgres)
    if lacking:
        reason = f"pods as namespaces need {', '.join(lacking)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def in_namespaces(pid: int, kinds: Sequence[str], command: Sequence[str]) -> list[str]:
    """The command, run in namespaces (`net`, `mount`, ...) of a process."""
    return ["nsenter", f"--target={pid}", *(f"--{kind}" for kind in kinds), "--", *command]


def run(command: Sequence[str], *, text: str | None = None, timeout: float = 60) -> str:
    """Run a command that has to succeed; return what it printed."""
    environment = {**os.environ, "PATH": _path()}
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr.strip()}\n{text or ''}")
    return done.stdout
