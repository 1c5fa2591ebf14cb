"""Who is at work, as others are to read it."""

import getpass
import os
import re
import socket

__all__ = ["is_gone", "owner", "process_owner"]


def owner() -> str:
    """The user of this process and its machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def process_owner() -> str:
    """The same with the process, of which there may be several."""
    return f"{owner()}:{os.getpid()}"


def is_gone(name: str) -> bool:
    """Whether a name is that of a process of this machine which is no more; of others, and of other machines, nobody can tell here."""
    parts = re.fullmatch(r".+@(?P<host>.+):(?P<pid>\d+)", name)
    if parts is None or parts["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(parts["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it is somebody else's, or no number of a process
        return False
    return False
