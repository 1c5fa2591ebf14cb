"""Images, and what stands in for them: this machine's programs, with what a Containerfile says of variables and folder."""

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.k8s.nodes.filesystem import Mount
from tests.k8s.nodes.machine import find_postgres

__all__ = ["Image", "postgres_image", "project_image", "read_containerfile", "seaweedfs_image"]

ROOT = Path(__file__).parents[3]
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """What a container starts from, where its manifest says nothing else."""

    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = "/"
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    user: str = "0"
    mounts: Sequence[Mount] = ()
    opened: Sequence[Path] = ()
    """Folders that any user can enter in the image."""


def read_containerfile(text: str) -> Image:
    """The settings of a Containerfile's last stage: ENV, WORKDIR, USER, ENTRYPOINT and CMD, with those of stages it stands on."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    stages: dict[str, Image] = {}
    image, name = Image(), ""
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stages[name] = image
            base, _, name = rest.partition(" AS ")
            image = stages.get(base.strip(), Image())
        elif word == "ENV":
            pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
            image = replace(image, environment={**image.environment, **pairs})
        elif word == "WORKDIR":
            image = replace(image, working_dir=rest.strip())
        elif word == "USER":
            image = replace(image, user=rest.strip())
        elif word == "ENTRYPOINT":
            image = replace(image, entrypoint=_arguments(rest))
        elif word == "CMD":
            image = replace(image, command=_arguments(rest))
    return image


def _arguments(rest: str) -> tuple[str, ...]:
    """Of the form that is a JSON list, which starts a program without a shell."""
    return tuple(json.loads(rest))


def seaweedfs_image(app: Image) -> Image:
    """The image of an S3-compatible store: moto's server, behind the name of the program that the manifests start."""
    program = Mount(Path(__file__).with_name("weed.sh"), "/usr/bin/weed", read_only=True)
    return Image(environment=app.environment, working_dir="/data", mounts=(*app.mounts, program), opened=app.opened)


def project_image(containerfile: Path | None, accounts: Path) -> Image:
    """The project's image: the repository at `/app`, this interpreter's environment first on the path.

    Args:
        containerfile: says variables, folder and user; None: those of a plain one.
        accounts: a file that lies at `/etc/passwd`.
    """
    image = (
        read_containerfile(containerfile.read_text(encoding="utf-8"))
        if containerfile
        else Image(working_dir="/app", user="1000:1000")
    )
    environment = {
        **image.environment,
        "PATH": f"{Path(sys.executable).parent}:{_SYSTEM_PATH}",
        # an environment that other checkouts share may have another one installed
        "PYTHONPATH": "/app",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
    }
    return replace(
        image,
        environment=environment,
        mounts=(Mount(ROOT, "/app", read_only=True), Mount(accounts, "/etc/passwd", read_only=True)),
        opened=_closed_folders(Path(sys.executable), Path(sys.executable).resolve(), Path(sys.prefix).resolve()),
    )


def _closed_folders(*paths: Path) -> tuple[Path, ...]:
    """Folders on the way to some files that not everybody can enter, as a home directory is."""
    folders = {parent for path in paths for parent in path.parents}
    return tuple(sorted(folder for folder in folders if folder.stat().st_mode & 0o005 != 0o005))


def postgres_image(accounts: Path) -> Image:
    """The image of a PostgreSQL server: Debian's programs, behind an entry point that does what the official one's promises."""
    folder = find_postgres()
    entrypoint = Path(__file__).with_name("postgres_entrypoint.sh")
    return Image(
        environment={"PATH": f"{folder}:{_SYSTEM_PATH}", "LANG": "C.UTF-8", "PGDATA": "/var/lib/postgresql/data"},
        entrypoint=("sh", "/usr/local/bin/docker-entrypoint.sh"),
        command=("postgres",),
        mounts=(
            Mount(entrypoint, "/usr/local/bin/docker-entrypoint.sh", read_only=True),
            Mount(accounts, "/etc/passwd", read_only=True),
        ),
    )
