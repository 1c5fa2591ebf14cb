"""The engine: one thread that owns the base, reads prompts in batches and continues all of them together.

Between two steps it lets rows go that ended or whose client left, and takes in those that wait: as many as there is
room for, once they fill it or the first of them has waited for the window. What was read under one version of the
champion is continued whatever the champion is by then: only reading a prompt involves adapters at all.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

import torch
from torch import Tensor

from grun.errors import AdapterError
from grun.lm.decoding import Decoding, prefill
from pipelines.serving.loading import Served, read_gates
from pipelines.serving.metrics import Metrics
from pipelines.serving.refusals import RefusedError
from pipelines.serving.rows import Event, Generation, Row
from pipelines.serving.sampling import NO_TOKEN, choose
from pipelines.serving.troubles import Troubles

__all__ = ["Engine"]


class Engine:
    """Generates for whoever submits rows.

    Args:
        batch_size: rows that are continued together.
        window_seconds: how long a row may wait for others.
        max_waiting: rows that may wait.
    """

    def __init__(self, *, batch_size: int, window_seconds: float, max_waiting: int, metrics: Metrics) -> None:
        self._batch_size, self._window, self._max_waiting = batch_size, window_seconds, max_waiting
        self._metrics = metrics
        self._troubles = Troubles()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, Row]] = deque()
        self._swaps: deque[tuple[Served, Future[None]]] = deque()
        self._closing = False
        self._served: Served | None = None
        # the thread's own
        self._rows: list[Row] = []
        self._decoding: Decoding | None = None
        self._last: Tensor | None = None
        self._outbox: list[tuple[Generation, Event]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def served(self) -> Served | None:
        """The version that answers new requests; None before the first."""
        return self._served

    @property
    def is_alive(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive()

    def swap(self, served: Served) -> None:
        """Try a version on a prompt, and let it answer from then on; returns when it does.

        Raises:
            AdapterError: its answer is not finite; the version before goes on.
        """
        done: Future[None] = Future()
        with self._changed:
            self._swaps.append((served, done))
            self._changed.notify()
        done.result()

    @property
    def room(self) -> int:
        """Answers that may be under way."""
        return self._max_waiting + self._batch_size

    def check_room(self, count: int) -> None:
        """Refuse a request for more answers than there ever is room for; before anything is made for each of them.

        Raises:
            RefusedError: 400.
        """
        if count > self.room:
            raise RefusedError(
                400, f"a request must ask for at most {self.room} answers (prompts times `n`), got {count}; send several requests"
            )

    def submit(self, rows: Sequence[Row]) -> None:
        """Generate for the rows of one request, all or none of them.

        Raises:
            RefusedError: 400 where they never have room, 429 where they have none now.
        """
        self.check_room(len(rows))
        with self._changed:
            taken = len(self._waiting) + len(self._rows)
            if taken + len(rows) > self.room:
                raise RefusedError(
                    429,
                    f"at most {self.room} answers may be under way, got {len(rows)} more than the {taken} that are; try again later",
                    "rate_limit_error",
                    code="queue_full",
                    headers={"Retry-After": "1"},
                )
            now = time.monotonic()
            self._waiting.extend((now, row) for row in rows)
            self._changed.notify()

    def close(self) -> None:
        """End the thread; rows that are left get an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._turn():
            pass
        rest = [*self._rows, *(row for _since, row in self._waiting)]
        self._fail(rest, RefusedError(503, "the server is stopping; try again", "server_error", code="stopping"))

    def _turn(self) -> bool:
        """Swap, let go, take in, and go one step; False when it is time to end."""
        with self._changed:
            while not (self._closing or self._swaps or self._rows or self._waiting):
                self._changed.wait()
            if self._closing:
                return False
            swaps, self._swaps = self._swaps, deque()
        for served, done in swaps:
            self._swap(served, done)
        self._let_go([row for row in self._rows if row.generation.left])
        for rows in self._admitted():
            self._guarded(rows, "reading", partial(self._read, rows))
        if self._rows:
            self._guarded(self._rows, "continuing", self._step)
        self._metrics.rows(waiting=len(self._waiting), decoding=len(self._rows))
        return True

    def _swap(self, served: Served, done: "Future[None]") -> None:
        try:
            read = prefill(served.model, [[served.model.lm.pad_id]])
            logits = read.decoding.step(read.logits.argmax(-1))
            if not bool(read.logits.isfinite().all() and logits.isfinite().all()):
                raise AdapterError(
                    f"a served version must answer in finite numbers, got others from version {served.version} of {served.name}; "
                    "register it again"
                )
        except Exception as error:  # noqa: BLE001 - whoever asked for the swap is told
            done.set_exception(error)
            return
        self._served = served
        done.set_result(None)

    def _admitted(self) -> Iterable[list[Row]]:
        """Take rows that are due from the queue, in order; those of different versions are read apart."""
        with self._changed:
            while self._waiting and not self._rows:  # nothing to do meanwhile
                due = self._waiting[0][0] + self._window - time.monotonic()
                if due <= 0 or len(self._waiting) >= self._batch_size or self._closing or self._swaps:
                    break
                self._changed.wait(due)
            room = self._batch_size - len(self._rows)
            if not self._waiting or not room:
                return []
            if len(self._waiting) < room and time.monotonic() < self._waiting[0][0] + self._window:
                return []
            rows = [self._waiting.popleft()[1] for _ in range(min(room, len(self._waiting)))]
        groups: dict[int, list[Row]] = {}
        for row in rows:
            generation = row.generation
            if generation.left:
                continue
            generation.served = generation.served or self._served
            groups.setdefault(id(generation.served), []).append(row)
        return groups.values()

    def _read(self, rows: list[Row]) -> None:
        """Read the prompts of rows under their version, and let them join."""
        served = rows[0].generation.served
        assert served is not None, "rows are submitted once there is a champion"
        read = prefill(served.model, [row.prompt for row in rows])
        tokens = choose(read.logits, [row.chooser for row in rows])
        readings = read_gates(served, read.gate_logits)
        for index, row in enumerate(rows):
            row.open(served.model.lm.tokenizer)
            row.gates = readings[index] if readings else ()
        self._metrics.read(len(rows), readings)
        if self._decoding is None:
            self._decoding, self._last = read.decoding, tokens
        else:
            assert self._last is not None
            self._decoding.join(read.decoding)
            self._last = torch.cat([self._last, tokens])
        self._rows += rows
        self._take(rows, tokens.tolist(), served)

    def _step(self) -> None:
        assert self._decoding is not None
        assert self._last is not None
        logits = self._decoding.step(self._last)
        self._last = choose(logits, [row.chooser for row in self._rows])
        served = self._rows[0].generation.served
        assert served is not None
        self._metrics.stepped(len(self._rows))
        self._take(list(self._rows), self._last.tolist(), served)

    def _take(self, rows: list[Row], tokens: list[int], served: Served) -> None:
        """Hand each row its token; rows that end with it, or have none, leave."""
        ends = served.model.ends  # the base's, and so everybody's
        ended: list[Row] = []
        failed: list[Row] = []
        for row, token in zip(rows, tokens, strict=True):
            if token == NO_TOKEN:
                failed.append(row)
                continue
            event = row.push(token, ends)
            if event is not None:
                self._outbox.append((row.generation, event))
                if event.finish_reason is not None:
                    ended.append(row)
        self._let_go([*ended, *failed])
        if failed:
            self._troubles.tell("numbers that are not finite", _size(failed, "choosing tokens of"))
            self._fail(failed, _failed())
        else:
            self._send()

    def _let_go(self, rows: list[Row]) -> None:
        if not rows:
            return
        gone = set(map(id, rows))
        kept = [index for index, row in enumerate(self._rows) if id(row) not in gone]
        self._rows = [self._rows[index] for index in kept]
        if not kept:
            self._decoding = self._last = None
            return
        assert self._decoding is not None
        assert self._last is not None
        self._decoding.keep(kept)
        self._last = self._last[kept]

    def _guarded(self, rows: list[Row], doing: str, action: Callable[[], None]) -> None:
        """Do something for rows; if it fails, they get an error and the others go on."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - out of memory, most likely: the server outlives it
            self._troubles.tell(type(error).__name__, _size(rows, doing))  # neither message nor traceback, which may hold text
            if any(row in self._rows for row in rows) and self._decoding is not None:
                rows = list(self._rows)  # the batch is in an unknown state
                self._rows, self._decoding, self._last = [], None, None
            self._fail(rows, _failed())

    def _fail(self, rows: Iterable[Row], refusal: RefusedError) -> None:
        self._outbox += [(row.generation, Event(row.choice, error=refusal)) for row in rows]
        self._send()

    def _send(self) -> None:
        """Hand all events over to the loops that wait for them, one call each."""
        outbox, self._outbox = self._outbox, []
        for loop in {id(generation.loop): generation.loop for generation, _event in outbox}.values():
            mine = [(generation, event) for generation, event in outbox if generation.loop is loop]
            try:
                loop.call_soon_threadsafe(_deliver, mine)
            except RuntimeError:  # the loop is closed: nobody waits there
                continue


def _failed() -> RefusedError:
    return RefusedError(500, "generating the answer failed; try again", "server_error", code="generation_failed")


def _size(rows: Sequence[Row], doing: str) -> str:
    """What is done for rows, in numbers."""
    return f"{doing} {len(rows)} answer(s), the longest of {max(len(row.prompt) + row.num_tokens for row in rows)} tokens"


def _deliver(events: Sequence[tuple[Generation, Event]]) -> None:
    for generation, event in events:
        generation.events.put_nowait(event)
