"""Train the adapter of one request, and keep it by its digest.

<output>/runs/<request>-<digest>/                     the training run, continued when the command is given again
<output>/ledgers/<ledger>/adapters/<request>-<digest> the adapter, which stacks are made of
"""

import hashlib
import shutil
import time
from pathlib import Path

from grun.adapters import digest_adapter, read_card
from grun.config import Recipe
from grun.errors import CacheError, ClusterError, DiskError, GrunError, StorageError, TrackingError
from grun.ledger import CertificateDetails, Details, Ledger, RequestState
from grun.writing import whole_folder
from pipelines.certifying import check_calibration
from pipelines.checks import check_answers, check_base, check_full_precision, check_rows, check_storage
from pipelines.console import check_writable, note
from pipelines.entry import ERROR_FILE
from pipelines.prepared import Prepared, write_prepared
from pipelines.sequencing.data import asked_for, common_rows, request_prepared
from pipelines.sequencing.work import Work
from pipelines.train import run_folder, trained

__all__ = ["check_request", "kept_adapter", "next_request", "next_to_train", "train_request"]

_OF_THE_MACHINE = (CacheError, ClusterError, DiskError, StorageError, TrackingError)
"""Errors that say nothing about a request: they can be mended, and the same command goes on."""


def next_request(ledger: Ledger) -> RequestState | None:
    """The request that is worked on next: one that was left half done, else the one that was added first; None: there is none."""
    return next(iter((*ledger.of("training", "trained"), *ledger.of("pending"))), None)


def next_to_train(ledger: Ledger) -> RequestState | None:
    """The request that is trained next, likewise."""
    return next(iter((*ledger.of("training"), *ledger.of("pending"))), None)


def check_request(recipe: Recipe, shared: Prepared, ledger: Ledger, state: RequestState) -> Prepared:
    """Check everything about a request's training that can be checked without a cluster, and say what it trains on.

    Raises:
        GrunError: the first thing that is wrong; nothing has been written.
    """
    check_writable(recipe.output)
    check_full_precision(recipe)
    check_storage(recipe)
    check_base(recipe)
    records = asked_for(recipe, ledger, at=_began(ledger, state))
    prepared = request_prepared(recipe, shared, state, records)
    check_answers(recipe, prepared.splits)
    check_calibration(recipe, prepared, recipe.adapter.gate_threshold)
    if all(lesson.is_done for lesson in prepared.lessons):
        check_rows(recipe, prepared)
    return prepared


def _began(ledger: Ledger, state: RequestState) -> int | None:
    """Number of the entry that the current training began with, as what others asked for later must not change it; None: not begun."""
    begun = [entry.sequence for entry in ledger.history(state.id) if entry.action == "train"]
    return begun[-1] if begun and state.status == "training" else None


def train_request(work: Work, request_id: str) -> None:
    """Train a request's adapter and record it; continues where a worker that vanished stopped. Needs a connected cluster.

    Raises:
        GrunError: what went wrong; where the training itself failed, the ledger says so.
    """
    start = time.monotonic()
    if work.state(request_id).status != "training":
        work.record("train", request_id)
    ledger = work.ledger
    state = ledger.state(request_id)
    began = _began(ledger, state)
    prepared = check_request(work.recipe, work.shared, ledger, state)
    write_prepared(prepared)
    recipe = _run_recipe(work, state, prepared, began)
    try:
        with trained(recipe, prepared, work.tracker, common=common_rows(work.shared)) as (run_id, outcome):
            adapter = _keep(work, request_id, outcome.adapter)
    except GrunError as error:
        # a worker found something wrong with the request; where workers merely died, or what they stand on failed them, the same command
        # goes on from their last checkpoint
        if (run_folder(recipe) / ERROR_FILE).is_file() and not isinstance(error, _OF_THE_MACHINE):
            work.record("failed", request_id, reason=str(error))
        raise
    card = read_card(adapter)
    counts = {name: len(getattr(prepared.splits, name)) for name in ("forget", "retain", "holdout")}
    work.record(
        "trained",
        request_id,
        details=Details(
            data=prepared.request.data_digests,
            counts={**counts, "steps": outcome.steps},
            base=card.base_digest,
            adapter=digest_adapter(adapter),
            run_id=run_id,
            certificate=None if card.certificate is None else CertificateDetails.of(card.certificate),
            seconds={
                "whole": round(time.monotonic() - start, 3),
                **({} if outcome.wall_seconds is None else {"training": outcome.wall_seconds}),
            },
        ),
    )
    note(f"trained the adapter of {request_id} in {time.monotonic() - start:.0f} s")


def _run_recipe(work: Work, state: RequestState, prepared: Prepared, began: int | None) -> Recipe:
    """The recipe of a training run, named by the attempt and by what it trains on: whoever continues it finds it."""
    identity = "/".join([work.store.model_name, state.id, str(began), prepared.folder.name])
    name = f"{state.id[:40]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return work.recipe.replace({"name": name, "request": {"id": state.id, "reason": state.reason}})


def _keep(work: Work, request_id: str, adapter: Path) -> Path:
    """Keep a copy of an adapter under its digest, whole or not at all."""
    target = kept_adapter(work, request_id, digest_adapter(adapter))
    if target.is_dir():
        return target
    with whole_folder(target) as partial:
        shutil.copytree(adapter, partial, dirs_exist_ok=True)
    return target


def kept_adapter(work: Work, request_id: str, digest: str) -> Path:
    """Where the adapter of a request is kept."""
    return work.folder("adapters", f"{request_id}-{digest[:12]}")
