"""Requests one after another: what each adapter of a ledger trains on, from one universe of records.

    universe = what is known and not forgotten by anybody, in the splits that the recipe's data give

    forget_r  = the records of request r
    retain_r  = the universe's records that may be trained on, and those of every other request: its gate must stay closed on
                both; but for forget_r
    holdout_r = the universe's held-out records, but for what anybody asked to forget; utility sets likewise

Where other requests ask for records of the universe, retain_r is the universe without forget_r, and as large for the
hundredth request as for the first: whatever is trained, cached or taught depends on r alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from grun.data.records import QARecord, Record
from grun.data.splits import Splits, check_splits

__all__ = ["distinct", "request_splits", "without"]


def request_splits(universe: Splits, forget: Sequence[Record], others: Iterable[Sequence[Record]]) -> Splits:
    """Return the splits of one request among others.

    Args:
        universe: the splits of the ledger's data; its forget set is known like everything else, whether anybody asks for it or not.
        forget: the records of this request.
        others: the records of each other request; one that this request asks for as well is this request's.

    Raises:
        DataError: a set is empty: the request asks for everything that there is to keep or to hold out.
    """
    own = {record.digest for record in forget}
    elsewhere = [record for records in others for record in records]
    kept = distinct([*universe.forget, *universe.retain, *elsewhere])
    splits = replace(
        without(universe, [*forget, *elsewhere]),
        forget=distinct(forget),
        retain=tuple(record for record in kept if record.digest not in own),
    )
    check_splits(splits)
    return splits


def without(universe: Splits, asked_for: Iterable[Record]) -> Splits:
    """Return the universe without what anybody asked to forget: what is left in each set is ordinary."""
    gone = {record.digest for record in asked_for}

    def untouched(records: Iterable[Record]) -> tuple[Record, ...]:
        return tuple(record for record in records if record.digest not in gone)

    utility = {name: untouched(records) for name, records in universe.utility.items()}
    return Splits(
        forget=untouched(universe.forget),
        retain=untouched(universe.retain),
        holdout=untouched(universe.holdout),
        utility={name: records for name, records in utility.items() if records},
        nonmembers=untouched(universe.nonmembers),
        environment=untouched(universe.environment),
    )


def distinct(records: Iterable[Record]) -> tuple[Record, ...]:
    """Each record once, in the version that knows a paraphrase."""
    found: dict[str, Record] = {}
    for record in records:
        known = found.get(record.digest)
        if known is None or (isinstance(known, QARecord) and known.paraphrased_question is None):
            found[record.digest] = record
    return tuple(found.values())
