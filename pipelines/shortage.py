"""Memory that ran out: told apart from other errors, and put into words that say what to lower.

There is no one class for it: Python has its own, torch has one for GPUs and none for the CPU, the system an error number.
"""

import errno

__all__ = ["REMEDY_OF_WORKERS", "is_shortage", "shortage_message"]

_SIGNS = ("can't allocate memory", "DefaultCPUAllocator", "not enough memory", "out of memory", "std::bad_alloc", "ALLOC_FAILED")

REMEDY_OF_WORKERS = (
    "lower `train.batch_size`, or raise `train.num_workers`, among whom the batch is divided (and the base too, with the `deepspeed` "
    "engine); `model.dtype: bfloat16` halves what a base of float32 takes"
)


def is_shortage(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def shortage_message(who: str, error: BaseException, remedy: str) -> str:
    """Rule, value and remedy."""
    said = str(error).strip().splitlines()
    # torch puts the place in its source first: `[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: ...`
    what = said[0].rpartition("DefaultCPUAllocator: ")[2] if said else ""
    return f"{who} must have the memory that its work takes, got {type(error).__name__}: {what[:200]}; {remedy}"
