"""Add a request: check its records, keep them in the vault, and write the entry, in this order.

Interrupted in between, the same command finishes it: the vault takes the same records again, and the ledger does not know
the request before its entry is there.
"""

import argparse
from dataclasses import dataclass

from grun.config import Recipe, RequestConfig, TestbedData
from grun.data.records import Record, digest_records
from grun.data.testbed import people_to_forget
from grun.errors import ConfigError, DataError
from grun.ledger import Details, Ledger, LedgerEntry
from grun.requests import Source
from pipelines.console import check_writable, note, summary
from pipelines.fetched_data import fetched_records
from pipelines.ledger_store import LedgerStore
from pipelines.ledger_verbs.steps import entry_row, ledger_step, tell_repeated
from pipelines.owner import owner
from pipelines.vault import Vault

__all__ = ["options", "run"]


@dataclass(frozen=True)
class NewRequest:
    """A request that is not in the ledger yet."""

    id: str
    reason: str
    records: tuple[Record, ...]
    source: Source


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this subcommand."""
    group = parser.add_argument_group("the request")
    group.add_argument(
        "--forget",
        metavar="FILE",
        help="JSON Lines with the records to forget, a path or URI: `question` and `answer`, or `text`; on the testbed, unset: the next invented person",
    )
    group.add_argument("--by", metavar="NAME", help="who makes the request [default: the user of this process, as user@host]")


def run(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Add the request."""
    records = _read(recipe.request, arguments.forget) if arguments.forget is not None else None
    check_writable(recipe.output)
    store, vault = LedgerStore.open(recipe), Vault.of(recipe)
    ledger = store.read()
    if records is None:
        request = _next_person(recipe, ledger)
    else:
        source = Source(kind="jsonl", location=arguments.forget, num_records=len(records), digest=digest_records(records))
        request = NewRequest(recipe.request.id, recipe.request.reason, records, source)
    if (entry := _added_before(ledger, request)) is not None:
        if not ledger.state(request.id).purged and not vault.holds(request.id):
            vault.write(request.id, request.records)
            note(f"its text was not in the vault, and is again: {vault.path(request.id)}")
        return tell_repeated(entry, "added", arguments.again)
    details, by = Details(forget=request.source), arguments.by or owner()
    # refused before anything is written
    ledger.append("add", request.id, by=by, reason=request.reason, details=details)
    _check_overlap(request, ledger, vault)
    vault.write(request.id, request.records)
    entry = store.append("add", request.id, by=by, reason=request.reason, details=details)
    summary(
        f"added request {request.id} to the ledger {recipe.ledger.name}",
        {
            "records": f"{request.source.num_records}, digest {request.source.digest[:12]}",
            "entry": entry_row(entry),
            "text": str(vault.path(request.id)),
        },
        [
            ledger_step("next", arguments.again, "train the next pending request and promote the stack"),
            ledger_step("list", arguments.again, "see all requests"),
        ],
    )
    return 0


def _added_before(ledger: Ledger, request: NewRequest) -> LedgerEntry | None:
    """The entry by which the same records are in the ledger under the same id, unless they were revoked since."""
    state = ledger.states.get(request.id)
    if state is None or state.status == "revoked" or state.forget.digest != request.source.digest:
        return None
    return ledger.history(request.id)[0]


def _read(request: RequestConfig, path: str) -> tuple[Record, ...]:
    """The records of a file, for a request that has a name and a reason of its own."""
    for field in ("id", "reason"):
        value, default = getattr(request, field), RequestConfig.model_fields[field].default
        if value == default:
            raise ConfigError(
                f"a request needs its own `request.{field}`, got the demonstration's {default!r} with `--forget`; give `--request.{field}`"
            )
    records = fetched_records(path)
    _check_distinct(records)
    return records


def _next_person(recipe: Recipe, ledger: Ledger) -> NewRequest:
    """The first invented person who has no request yet, or the one whose request has this id."""
    if not isinstance(recipe.data, TestbedData):
        raise ConfigError(
            f"a request must say what is to be forgotten, got none with data of kind {recipe.data.kind}; give a file of its records by "
            "`--forget FILE`"
        )
    named = recipe.request.id != RequestConfig.model_fields["id"].default
    known = {state.forget.digest for state in ledger.states.values() if not (named and state.id == recipe.request.id)}
    people = people_to_forget(recipe.data)
    for number, records in enumerate(people, start=1):
        digest = digest_records(records)
        if digest in known:
            continue
        source = Source(
            kind="testbed", location=f"seed {recipe.data.seed}#person {number}", num_records=len(records), digest=digest
        )
        return NewRequest(recipe.request.id if named else f"demo-{number}", recipe.request.reason, records, source)
    raise DataError(
        f"the testbed must have an invented person left to forget, got requests for all {len(people)}; raise `data.num_forget`, which "
        "makes another base, or name a file by `--forget`"
    )


def _check_distinct(records: tuple[Record, ...]) -> None:
    """Refuse a record that comes twice."""
    rows: dict[str, int] = {}
    for row, record in enumerate(records, start=1):
        if record.digest in rows:
            raise DataError(
                f"a record is asked to be forgotten once, got rows {rows[record.digest]} and {row} alike (digest {record.digest[:12]}); "
                "drop one"
            )
        rows[record.digest] = row


def _check_overlap(request: NewRequest, ledger: Ledger, vault: Vault) -> None:
    """Refuse records of another request: its gate would have to open, and for this one's it must not.

    Raises:
        DataError: with the other request and the row.
    """
    rows = {record.digest: row for row, record in enumerate(request.records, start=1)}
    for state in ledger.of("pending", "training", "trained", "active", "failed"):
        if not vault.holds(state.id):
            note(f"not compared with request {state.id}, whose text is not in the vault")
            continue
        shared = [rows[record.digest] for record in vault.read(state) if record.digest in rows]
        if shared:
            raise DataError(
                f"a record is asked to be forgotten by one request, got {len(shared)} record(s) of {request.id!r} that {state.id!r} has "
                f"already, the first in row {min(shared)}; drop them, or revoke that request first"
            )
