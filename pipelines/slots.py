"""Warm slots: a few long-lived Ray Train runs whose workers take one trial after another from Ray Tune.

    trial (Tune)  -- submit -->  TrialHub  -- next -->  slot workers: pristine state, train, report
                  <-- events --            <-- report, done --

Starting workers costs some ten seconds of processes and imports; a slot pays that once. What a trial leaves behind is the
same as ever, in its own folder. A slot whose workers crashed is started again by Ray, and the hub gives the trial that was
on it to whoever asks next; it goes on from its last checkpoint. A trial that crashed too often is reported as failed.
A cluster that grows gets more slots.
"""

import asyncio
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray

from grun.config import Recipe
from grun.errors import TrainingError
from pipelines.console import note
from pipelines.ending import is_interrupted
from pipelines.entry import ERROR_FILE, REPORTS_FILE, run_slot
from pipelines.journal import read_entries
from pipelines.last_word import forget_error
from pipelines.polling import polling
from pipelines.prepared import Prepared
from pipelines.trainer import fit_workers, has_ended, worker_config

__all__ = ["TrialHub", "open_slots", "train_on_slot"]

_HUB_POLL_SECONDS = 5.0
"""How long a question to the hub waits for news; then it is asked again, so that nobody waits for ever on a dead peer."""

_VERDICT_SECONDS = 60.0
"""How long workers wait at a rung for what becomes of their trial; Tune may have lost it for good."""

_CLOSE_SECONDS = 30.0

_LOOK_SECONDS = 5.0
"""Between looks at the slots."""

_MAX_LOSSES = 10
"""Times that a slot is opened again after its controller was lost; then something is wrong that does not pass."""


def _on_head() -> dict[str, Any]:
    """What a sweep cannot lose stays on the head, beside its driver: any other node may go while it runs, and be replaced.

    It goes with its driver: what is not detached ends with the job, and so do the placement groups of its runs.
    """
    return {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}


_MAX_EMPTY_STARTS = 3
"""Starts of a slot in a row that end before it takes a trial: then it is broken, and its trials fail with the reason."""


@dataclass
class SlotTrial:
    """A trial on its way through the hub."""

    trial_id: str
    recipe: dict[str, Any]
    folder: str
    rungs: tuple[int, ...] = ()
    """Steps at which workers wait for the verdict on their report."""
    crashes: int = 0
    events: deque[dict[str, Any]] = field(default_factory=deque)
    """Reports that Tune has not fetched yet."""
    step: int = 0
    """Of the last report."""
    num_reports: int = 0
    num_fetched: int = 0
    num_judged: int = 0
    is_done: bool = False
    failure: str | None = None
    """Why it was given up, where no worker could say so itself."""


class TrialHub:
    """The one place that knows which trial waits, which is on which slot, and what was reported. An asynchronous Ray actor."""

    def __init__(self, max_crashes: int) -> None:
        self.max_crashes = max_crashes
        self.trials: dict[str, SlotTrial] = {}
        self.waiting: deque[str] = deque()
        self.on_slot: dict[int, str] = {}
        self.empty_starts: dict[int, int] = {}
        self.is_closed = False
        self.refusal: str | None = None
        self.news = asyncio.Condition()

    async def submit(self, trial_id: str, recipe: dict[str, Any], folder: str, rungs: tuple[int, ...] = ()) -> None:
        """Put a trial in line; one that Tune runs again after a failure starts anew here."""
        async with self.news:
            if trial_id in self.on_slot.values():  # Tune lost its process, the slot did not: leave it to it
                trial = self.trials[trial_id]
                trial.events.clear()  # whoever submits it reads them in its folder
                trial.num_fetched = trial.num_reports
                return
            self.trials[trial_id] = SlotTrial(trial_id, recipe, folder, rungs)
            if self.refusal is not None:
                self._give_up(self.trials[trial_id], self.refusal)
            elif trial_id not in self.waiting:
                self.waiting.append(trial_id)
            self.news.notify_all()

    async def refuse(self, reason: str) -> None:
        """No slot can serve, and the user can mend why: what waits, and what comes, fails with the reason."""
        async with self.news:
            self.refusal = reason
            self._give_up_waiting(reason)

    async def started(self, slot: int) -> None:
        """A slot's workers have started, for the first time or after a crash: the trial that was on it goes back in line."""
        async with self.news:
            lost = self.on_slot.pop(slot, None)
            if lost is None:
                self.empty_starts[slot] = self.empty_starts.get(slot, 0) + 1
            elif not self.trials[lost].is_done:
                trial = self.trials[lost]
                trial.crashes += 1
                if trial.crashes > self.max_crashes:
                    self._give_up(trial, f"training must survive with at most {self.max_crashes} restart(s), got one more crash")
                else:
                    self.waiting.appendleft(lost)
            if self.empty_starts.get(slot, 0) > _MAX_EMPTY_STARTS:
                self._give_up_waiting(
                    f"a slot must be able to start, got {_MAX_EMPTY_STARTS} crashes of slot {slot} before it took a trial"
                )
            self.news.notify_all()

    def _give_up_waiting(self, failure: str) -> None:
        for trial_id in self.waiting:
            self._give_up(self.trials[trial_id], failure)
        self.waiting.clear()
        self.news.notify_all()

    def _give_up(self, trial: SlotTrial, failure: str) -> None:
        trial.failure, trial.is_done = failure, True

    async def next(self, slot: int) -> dict[str, Any] | None:
        """The next trial for a slot: {"trial_id", "recipe", "folder"}; {} where there is none yet, None where there will be none."""
        async with self.news:
            if not self.waiting and not self.is_closed:
                await self._wait()
            if self.is_closed:
                return None
            if not self.waiting:
                return {}
            trial = self.trials[self.waiting.popleft()]
            self.on_slot[slot] = trial.trial_id
            self.empty_starts[slot] = 0
            return {"trial_id": trial.trial_id, "recipe": trial.recipe, "folder": trial.folder}

    async def report(self, trial_id: str, metrics: dict[str, Any]) -> None:
        """A report of a trial's workers. At a rung they wait here until it was judged, so that a trial ends where it is told to."""
        async with self.news:
            trial = self.trials[trial_id]
            trial.events.append(metrics)
            trial.num_reports += 1
            number, before, trial.step = trial.num_reports, trial.step, metrics["step"]
            self.news.notify_all()
            if not any(before < rung <= trial.step for rung in trial.rungs):
                return
            now = asyncio.get_running_loop().time
            until = now() + _VERDICT_SECONDS
            while trial.num_judged < number and now() < until and not self.is_closed:
                await self._wait()

    async def done(self, slot: int, trial_id: str) -> None:
        """A trial has ended; how, stands in its folder."""
        async with self.news:
            self.on_slot.pop(slot, None)
            self.trials[trial_id].is_done = True
            self.news.notify_all()

    async def events(self, trial_id: str) -> tuple[list[dict[str, Any]], bool, str | None]:
        """What is new of a trial: its reports, whether it has ended, and why it was given up."""
        async with self.news:
            trial = self.trials[trial_id]
            if trial.num_judged < trial.num_fetched:  # who asks for more has passed on what came before
                trial.num_judged = trial.num_fetched
                self.news.notify_all()
            if not trial.events and not trial.is_done:
                await self._wait()
            events = list(trial.events)
            trial.events.clear()
            trial.num_fetched = trial.num_reports
            return events, trial.is_done, trial.failure

    async def close(self) -> None:
        """Send the slots home."""
        async with self.news:
            self.is_closed = True
            self.news.notify_all()

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self.news.wait(), _HUB_POLL_SECONDS)
        except TimeoutError:
            return


def train_on_slot(
    hub_name: str, trial_id: str, recipe: Recipe, folder: Path, *, rungs: tuple[int, ...] = ()
) -> Iterator[dict[str, Any]]:
    """Give a trial to the slots and yield its reports until it has ended, each once; how it ended then stands in its folder.

    Those of an earlier attempt come first: whoever made it may have died before it passed them on.

    Args:
        rungs: steps at which its workers wait until their report was taken, and the next one asked for.

    Raises:
        TrainingError: it was given up.
    """
    step = 0

    def unseen(reports: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        nonlocal step
        for report in reports:
            if report["step"] > step:
                step = report["step"]
                yield report

    yield from unseen(read_entries(folder / REPORTS_FILE))
    if has_ended(folder):
        return
    forget_error(folder)
    hub: Any = ray.get_actor(hub_name)
    ray.get(hub.submit.remote(trial_id, recipe.model_dump(mode="json"), str(folder), rungs))
    # a slot that goes on with it may have reported since; from here on the hub has them
    yield from unseen(read_entries(folder / REPORTS_FILE))
    while True:
        events, is_done, failure = ray.get(hub.events.remote(trial_id))
        yield from unseen(events)
        if failure is not None and not (folder / ERROR_FILE).is_file():
            raise TrainingError(f"{failure}; the last checkpoint is kept, and the same command continues from it")
        if is_done:
            return


@contextmanager
def open_slots(
    recipe: Recipe,
    prepared: Prepared,
    cache: Path | None,
    folder: Path,
    num_slots: int,
    *,
    wanted: Callable[[], int] | None = None,
) -> Iterator[str]:
    """Start slots for the time of the context.

    Args:
        folder: of the sweep, on storage that every node sees.
        wanted: how many slots there should be by now, asked every few seconds: a node that joins is used. Slots never become
            fewer; what a node that left was training goes back in line.

    Yields:
        the name of the hub.
    """
    name = f"grun-hub-{uuid.uuid4().hex}"
    hub = cast(Any, ray.remote(TrialHub)).options(name=name, max_concurrency=1000, **_on_head()).remote(recipe.train.max_failures)
    ray.get(hub.__ray_ready__.remote())  # before that nobody finds it by its name
    config = {**worker_config(recipe, prepared, cache), "every_cut": True, "hub": name}
    slots = _Slots(hub, config, recipe, folder / "slots")
    shutil.rmtree(slots.storage, ignore_errors=True)  # of a command that was killed
    try:
        slots.open(num_slots)
        with polling(partial(slots.look, wanted), seconds=_LOOK_SECONDS, name="slots"):
            yield name
        ray.get(hub.close.remote())
        slots.close()
    finally:
        slots.end()
        ray.kill(hub)


@dataclass
class _Slot:
    """A slot that is open."""

    holder: Any
    """The actor that leads it."""
    run: Any
    """Of the holder; ends when the slot's Ray Train run has."""
    losses: int = 0

    @property
    def error(self) -> BaseException | None:
        """What took it down; None while it is up, and where it was sent home."""
        ended, _going_on = ray.wait([self.run], timeout=0)
        try:
            ray.get(ended)
        except Exception as error:  # noqa: BLE001 - whatever ended it, the slot is down
            return error
        return None


class _Slots:
    """The slots that are open, each led by an actor of its own."""

    def __init__(self, hub: Any, config: Mapping[str, Any], recipe: Recipe, storage: Path) -> None:
        self.config = config
        self.recipe = recipe
        self.storage = storage
        self.hub = hub
        self.slots: list[_Slot] = []

    def open(self, total: int) -> None:
        """Open slots until there are so many."""
        while len(self.slots) < total:
            self.slots.append(self._start(len(self.slots)))

    def look(self, wanted: Callable[[], int] | None) -> None:
        """Mend what is broken, and open what is wanted by now."""
        if is_interrupted():  # then everything ends
            return
        self.mend()
        if wanted is not None:
            self.open(wanted())

    def mend(self) -> None:
        """Open those again whose holder or controller was killed; what one was training goes back in line when its workers start."""
        for number, slot in enumerate(self.slots):
            if (error := slot.error) is None:
                continue
            slot.losses += 1
            if slot.losses > _MAX_LOSSES:
                reason = f"a slot must stay up, got slot {number} down for the {slot.losses}th time: {error}"
                ray.get(self.hub.refuse.remote(reason))
                continue
            note(f"slot {number} lost the process that leads its workers, which was killed or crashed, and is opened again")
            ray.kill(slot.holder)
            self.slots[number] = self._start(number, slot.losses)

    def close(self) -> None:
        """Wait until they have gone home, a while."""
        ray.wait([slot.run for slot in self.slots], num_returns=len(self.slots), timeout=_CLOSE_SECONDS)

    def end(self) -> None:
        """End what is left of them."""
        # killing an actor is safe at any time; cancelling a task that is about to end can take the whole process down (Ray 2.60)
        for slot in self.slots:
            ray.kill(slot.holder)
        shutil.rmtree(self.storage, ignore_errors=True)

    def _start(self, number: int, losses: int = 0) -> _Slot:
        holder = cast(Any, ray.remote(_SlotHolder)).options(**_on_head()).remote()
        # the hub's name makes the runs of a continued sweep new ones: what a slot held is in the folders of its trials
        name = f"{self.config['hub']}-{number}-{losses}"
        run = holder.hold.remote({**self.config, "slot": number}, self.recipe, name, self.storage / str(number))
        return _Slot(holder, run, losses)


class _SlotHolder:
    """Holds one Ray Train run open. An actor without a CPU: it only waits, and the run's controller is on its node."""

    def hold(self, config: Mapping[str, Any], recipe: Recipe, name: str, storage: Path) -> None:
        """Return when the hub has closed."""
        what = f"slot {config['slot']}"
        fit_workers(run_slot, config, recipe, name=name, storage=storage, max_failures=-1, what=what)
