"""Follow a spool that grows, and ship it to MLflow beside the work that fills it; what MLflow did not take is made up for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from grun.errors import TrackingError
from pipelines.console import note
from pipelines.patience import Patience
from pipelines.polling import polling
from pipelines.tracking import Tracker

__all__ = ["Spool", "shipping"]

_READ_BYTES = 2**20


class Spool:
    """A spool, how far it was shipped, and how many of its lines were counted.

    Args:
        path: need not exist yet.
    """

    def __init__(self, tracker: Tracker, path: Path) -> None:
        self.path = path
        self._tracker = tracker
        self._shipped = self._counted = 0

    def ship(self, run_id: str) -> None:
        """Ship what is new, all of it; what was taken before an outage is not sent again.

        Raises:
            TrackingError: MLflow is away, or refuses.
        """
        while (end := self._tracker.ship_spool(run_id, self.path, offset=self._shipped)) > self._shipped:
            self._shipped = end

    def new_lines(self) -> int:
        """How many lines were written since the last call, shipped or not."""
        count = 0
        try:
            with self.path.open("rb") as spool:
                spool.seek(self._counted)
                while block := spool.read(_READ_BYTES):
                    self._counted += len(block)
                    count += block.count(b"\n")
        except FileNotFoundError:
            return 0
        return count


@contextmanager
def shipping(ship: Callable[[], None], patience: Patience, *, seconds: float, name: str, kept_in: Path) -> Iterator[None]:
    """Ship every so many seconds while the context runs, and at its end all that is left.

    During the work an outage is said once, and nobody waits for it: the next round is the next try. At the end of work that went
    well this waits for MLflow as long as it may, since nobody comes after it. Where the work did not go well, that is the news, and
    what is left is left to the command that goes on.

    Args:
        kept_in: where what is shipped lies.

    Raises:
        TrackingError: at the end MLflow was still away, or refused.
    """
    is_away = False

    def look() -> None:
        nonlocal is_away
        try:
            with patience.hasty():
                ship()
        except TrackingError as error:
            if not is_away:
                note(f"MLflow does not take what is recorded ({error}); it is kept in {kept_in}, and work goes on")
            is_away = True
        else:
            if is_away:
                note("MLflow takes what is recorded again")
            is_away = False

    with polling(look, seconds=seconds, name=name):
        yield
    ship()
