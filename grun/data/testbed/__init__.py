"""The embedded testbed: invented people to forget and to keep, general knowledge and prose that have to survive.

| set | what it holds |
|---|---|
| forget | all facts of `num_forget` people |
| retain | the facts of most other people, half of the general knowledge, three quarters of the prose |
| holdout | whole people, the other half and the last quarter: never trained on |
| utility | `neighbours` (the held-out people), `world_facts`, `nature_facts` (the held-out halves) |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grun.config import TestbedData
from grun.data.records import QARecord, Record
from grun.data.testbed.general import NATURE, WORLD
from grun.data.testbed.people import invent_people, person_records
from grun.data.testbed.prose import ordinary_texts
from grun.errors import DataError

__all__ = ["Testbed", "build_testbed"]

_NUM_TEXTS, _NUM_HELD_OUT_TEXTS = 80, 20


@dataclass(frozen=True)
class Testbed:
    """The sets of the embedded request."""

    __test__ = False  # not a test, whatever pytest makes of the name

    forget: tuple[QARecord, ...]
    retain: tuple[Record, ...]
    holdout: tuple[Record, ...]
    utility: Mapping[str, tuple[QARecord, ...]]


def build_testbed(config: TestbedData) -> Testbed:
    """Invent the testbed of a seed.

    Raises:
        DataError: too few people are left to keep.
    """
    people = invent_people(config.num_people, config.seed)
    num_held_out = max(2, config.num_people // 10)
    num_kept = config.num_people - config.num_forget - num_held_out
    if num_kept < config.num_forget:
        raise DataError(
            f"`data.num_forget` must leave at least as many people to keep, got {config.num_forget} to forget, "
            f"{num_held_out} held out and {num_kept} to keep of {config.num_people}; "
            "lower `data.num_forget` or raise `data.num_people`"
        )
    facts = [person_records(person) for person in people]  # their order is already that of the seed
    held_out_end = config.num_forget + num_held_out
    neighbours = _flatten(facts[config.num_forget : held_out_end])
    world_kept, world = _halves(WORLD)
    nature_kept, nature = _halves(NATURE)
    texts = ordinary_texts(_NUM_TEXTS, config.seed)
    return Testbed(
        forget=_flatten(facts[: config.num_forget]),
        retain=(*_flatten(facts[held_out_end:]), *world_kept, *nature_kept, *texts[_NUM_HELD_OUT_TEXTS:]),
        holdout=(*neighbours, *world, *nature, *texts[:_NUM_HELD_OUT_TEXTS]),
        utility={"neighbours": neighbours, "world_facts": world, "nature_facts": nature},
    )


def _flatten(facts: Sequence[Sequence[QARecord]]) -> tuple[QARecord, ...]:
    return tuple(record for records in facts for record in records)


def _halves(records: Sequence[QARecord]) -> tuple[tuple[QARecord, ...], tuple[QARecord, ...]]:
    """Two halves by content digest."""
    ordered = sorted(records, key=lambda record: record.digest)
    return tuple(ordered[::2]), tuple(ordered[1::2])
