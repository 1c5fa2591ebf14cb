"""What the adapter of a request trains on: the ledger's records, its own, and those of the other requests.

The recipe's `data` are the universe: what the base knows, whoever asks for what. A base that is taught is taught all of it once, so
that every request of a ledger has the same base; there is no retain-only twin, which would be another one for each request.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from grun.config import Recipe
from grun.data.records import Record
from grun.data.sequence import distinct, request_splits
from grun.data.splits import sources
from grun.ledger import Ledger, RequestState
from grun.requests import UnlearningRequest
from pipelines.prepared import Prepared, plan, prepared_folder
from pipelines.vault import Vault

__all__ = ["Records", "asked_for", "common_rows", "ledger_recipe", "request_prepared", "universe"]

Records = Mapping[str, tuple[Record, ...]]
"""Records to forget by request id."""


def ledger_recipe(recipe: Recipe) -> Recipe:
    """The recipe of a ledger as all its requests share it: without a twin."""
    return recipe.replace({"model": {"retain_twin": False}})


def universe(recipe: Recipe) -> Prepared:
    """Read and split the ledger's records and say which base knows them; nothing is written.

    Raises:
        DataError: the data are not what they should be.
    """
    return replace(plan(recipe), retain_only=None)


def common_rows(shared: Prepared) -> Prepared:
    """What every request of a ledger runs in training but for its own forget rows: cached once for all of them."""
    splits = shared.splits
    return replace(shared, splits=replace(splits, forget=(), retain=distinct([*splits.forget, *splits.retain])))


def asked_for(recipe: Recipe, ledger: Ledger, *, at: int | None = None, also: Collection[str] = ()) -> Records:
    """Read the records of every request that was neither revoked nor purged, checked against their digests.

    Args:
        at: as the ledger was after this entry; None: as it is. A text that was purged since is not there either way.
        also: requests that count although they are revoked: those about to be reinstated.

    Raises:
        DataError: a text is missing or was changed.
    """
    earlier = ledger if at is None else Ledger.read(ledger.entries[:at])
    vault = Vault.of(recipe)
    open_requests = [state for state in earlier.states.values() if state.status != "revoked" or state.id in also]
    return {state.id: vault.read(state) for state in open_requests if not ledger.state(state.id).purged}


def request_prepared(recipe: Recipe, shared: Prepared, state: RequestState, records: Records) -> Prepared:
    """Say what the adapter of a request trains on and where it will be; nothing is written.

    Args:
        shared: the universe.
        records: of this request and of all others.

    Raises:
        DataError: nothing would be left to keep or to hold out.
    """
    others = [rows for request_id, rows in records.items() if request_id != state.id]
    splits = request_splits(shared.splits, records[state.id], others)
    found = sources(recipe.data, splits)
    request = UnlearningRequest(
        id=state.id, reason=state.reason, forget=state.forget, retain=found["retain"], holdout=found["holdout"]
    )
    # all records together are the same for every request, and ids are those of one ledger alone
    folder = prepared_folder(recipe, f"{state.id}-{state.forget.digest[:8]}", splits)
    return replace(shared, folder=folder, request=request, splits=splits)
