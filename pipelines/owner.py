"""Who is at work, as others are to read it."""

import getpass
import os
import socket

__all__ = ["owner", "process_owner"]


def owner() -> str:
    """The user of this process and its machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def process_owner() -> str:
    """The same with the process, of which there may be several."""
    return f"{owner()}:{os.getpid()}"
