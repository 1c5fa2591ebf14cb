"""The file system of a container: an image's root, volumes on it, `/proc`, `/dev`, and the pod's `/etc/hosts`.

Everything is shell commands, run as root in a mount namespace of the container's own before its first process starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

__all__ = ["Mount", "root_commands"]

_MACHINE = "/.machine"
"""Where the machine's root lies until all mounts are made."""

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_SHARED_MEMORY = "64m"
"""What a container runtime gives where no volume is mounted at `/dev/shm`."""


@dataclass(frozen=True)
class Mount:
    """A folder or a file of the machine at a path of the container."""

    source: Path
    target: str
    read_only: bool = False


def root_commands(stage: Path, mounts: Sequence[Mount], opened: Sequence[Path], *, read_only: bool) -> list[str]:
    """The commands that make the container's root and change to it.

    Args:
        stage: an empty folder.
        mounts: what is laid over the image.
        opened: folders that any user of the image has to be able to enter, whatever the machine says.
        read_only: whether the root is; what is mounted on it is not, unless it says so itself.
    """
    root = stage / "root"
    layers = f"lowerdir=/,upperdir={stage}/upper,workdir={stage}/work"
    commands = [
        f"mount -t tmpfs -o mode=0755 tmpfs {stage}",
        f"mkdir {stage}/upper {stage}/work {root}",
        f"mount -t overlay -o {layers} overlay {root}",
        f"mkdir {root}{_MACHINE}",
        f"cd {root}",
        f"pivot_root . .{_MACHINE}",
        "cd /",
        *(f"chmod a+rx {quote(str(folder))}" for folder in opened),
        # what lies in the machine's own is not of the image
        "mount -t tmpfs -o mode=1777 tmpfs /tmp",
        "mount -t proc proc /proc",
        f"mount --rbind {_MACHINE}/sys /sys",
        *_device_commands(),
    ]
    # a mount on a path below another's comes after it; links are followed inside the image, and so never lead out of it
    for mount in sorted(mounts, key=lambda mount: mount.target.count("/")):
        commands += _mount_commands(mount)
    commands += [f"umount -l {_MACHINE}", f"rmdir {_MACHINE}"]
    return [*commands, *(["mount -o remount,ro /"] if read_only else [])]


def _device_commands() -> list[str]:
    commands = ["mount -t tmpfs -o mode=0755 tmpfs /dev", "mkdir /dev/shm /dev/pts"]
    commands.append(f"mount -t tmpfs -o nosuid,nodev,mode=1777,size={_SHARED_MEMORY} tmpfs /dev/shm")
    commands.append("mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts")
    for name in _DEVICES:
        commands += [f"touch /dev/{name}", f"mount --bind {_MACHINE}/dev/{name} /dev/{name}"]
    links = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
    return [*commands, *(f"ln -s {target} /dev/{name}" for name, target in links.items()), "ln -s pts/ptmx /dev/ptmx"]


def _mount_commands(mount: Mount) -> list[str]:
    target = quote(mount.target)
    if mount.source.is_dir():
        commands = [f"mkdir -p {target}"]
    else:
        # over a link a file would be mounted where it points to
        commands = [f'mkdir -p "$(dirname {target})"', f"if [ -L {target} ]; then rm {target}; fi", f"touch {target}"]
    commands.append(f"mount --bind {quote(f'{_MACHINE}{mount.source}')} {target}")
    if mount.read_only:
        commands.append(f"mount -o remount,bind,ro {target}")
    return commands
