"""Look at something again and again beside the work, and once more when the work is done."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["polling"]


@contextmanager
def polling(look: Callable[[], None], *, seconds: float, name: str) -> Iterator[None]:
    """Call `look` in a thread of its own every so many seconds while the context runs, and a last time at its end.

    Args:
        name: name of the thread.
    """
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(seconds):
            look()
        look()

    thread = threading.Thread(target=follow, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
