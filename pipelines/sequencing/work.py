"""What a worker of a ledger has in hand: the recipe, the records that all requests share, the stores, and the lease it writes under."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.config import Recipe
from grun.ledger import Action, Details, Ledger, RequestState
from pipelines.lease import Lease
from pipelines.ledger_store import LedgerStore
from pipelines.prepared import Prepared
from pipelines.registry import Registry
from pipelines.tracking import Tracker

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """One worker's work on one ledger, for the time of its lease."""

    recipe: Recipe
    shared: Prepared
    """The universe, and the base that all requests share."""
    tracker: Tracker
    registry: Registry
    store: LedgerStore
    lease: Lease

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is now."""
        return self.store.read()

    def state(self, request_id: str) -> RequestState:
        """A request as it is now."""
        return self.ledger.state(request_id)

    def record(self, action: Action, request_id: str, *, reason: str = "", details: Details | None = None) -> None:
        """Write down what was done; refused if the lease was lost in the meantime."""
        self.store.append(action, request_id, reason=reason, details=details, lease=self.lease)

    @property
    def model(self) -> str:
        """The registered model whose versions are this ledger's stacks."""
        return self.recipe.ledger_model

    def folder(self, *parts: str) -> Path:
        """A folder of this ledger in the output folder."""
        return self.recipe.output.absolute().joinpath("ledgers", self.recipe.ledger.name, *parts)

    def run_key(self, *parts: Any) -> str:
        """Identity of an MLflow run of this ledger, by which a command that is given again finds it."""
        return "/".join(map(str, (self.store.model_name, *parts)))
