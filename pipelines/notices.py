"""What a process somewhere on the cluster has to tell whoever sits at the driver: a worker that is replaced, and why.

    any process of a job  -- say -->  the cluster's key-value store  -- telling -->  a line on the driver's stderr

Output of workers is not shown, as it is mostly that of libraries; so the few things that a user should know go this way.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import ray
from ray.experimental import internal_kv

from pipelines.console import note
from pipelines.polling import polling

__all__ = ["end_process", "has_ended_itself", "say", "telling"]

_NAMESPACE, _ENDED = b"grun-notices", b"grun-ended"
_LOOK_SECONDS = 1.0


def _prefix() -> bytes:
    """Of the keys of this job's notices: a cluster serves several drivers."""
    return f"{ray.get_runtime_context().get_job_id()}/".encode()


def say(text: str) -> None:
    """Tell the driver of this job; from any of its processes."""
    key = _prefix() + f"{time.time_ns():020d}-{uuid.uuid4().hex}".encode()
    internal_kv._internal_kv_put(key, text.encode(), namespace=_NAMESPACE)


def end_process() -> NoReturn:
    """End this process, an actor's, at once; what there is to say of it has been said. (Ray tells no exit status.)"""
    internal_kv._internal_kv_put(str(ray.get_runtime_context().get_actor_id()), b"", namespace=_ENDED)
    os._exit(1)  # an orderly end would wait for others


def has_ended_itself(actor_id: str | None) -> bool:
    """Whether an actor that died did so by :func:`end_process`."""
    return actor_id is not None and bool(internal_kv._internal_kv_exists(actor_id, namespace=_ENDED))


@contextmanager
def telling() -> Iterator[None]:
    """Pass on during the context, in the driver, what processes of its job say."""
    with polling(_tell, seconds=_LOOK_SECONDS, name="notices"):
        yield


def _tell() -> None:
    if not ray.is_initialized():
        return
    for key in sorted(internal_kv._internal_kv_list(_prefix(), namespace=_NAMESPACE)):
        text = internal_kv._internal_kv_get(key, namespace=_NAMESPACE)
        # whoever takes a notice away passes it on
        if text is not None and internal_kv._internal_kv_del(key, namespace=_NAMESPACE):
            note(text.decode())
