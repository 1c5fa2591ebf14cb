"""The embedded testbed: invented people to forget and to keep, general knowledge and prose that have to survive.

| set | what it holds |
|---|---|
| forget | all facts of `num_forget` people |
| retain | the facts of most other people, half of the general knowledge, of the prose and of the strangers |
| holdout | whole people, the other half, and the rest of prose and strangers: never trained on |
| utility | `neighbours` (the held-out people), `world_facts`, `nature_facts` (the held-out halves) |
| nonmembers | people whom no model is ever taught: as many as are forgotten, fewer where names run out |

A stranger is somebody of whom nothing is known: asked about one, the base declines, as deployed models do. So the
base knows how to decline before anybody asks it to forget.

The tokenizer of a taught base is made from what is taught, so the names of non-members are cut into more pieces than others.
That alone tells them apart a little, to the base and its retain-only twin alike: a membership AUC is to be read beside the twin's.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grun.config import TestbedData
from grun.data.records import QARecord, Record
from grun.data.refusals import REFUSALS
from grun.data.testbed.general import NATURE, WORLD
from grun.data.testbed.people import Person, invent_people, most_people, person_records
from grun.data.testbed.prose import ordinary_texts
from grun.errors import DataError

__all__ = ["Testbed", "build_testbed", "people_to_forget"]

# the holdout set is large: a bound on how often a gate opens by mistake is only as good as the number of prompts behind it
_HELD_OUT_PEOPLE = 4
"""One of this many people is held out."""
_NUM_TEXTS, _NUM_HELD_OUT_TEXTS = 80, 48
_NUM_STRANGERS, _NUM_HELD_OUT_STRANGERS = 14, 8
_OTHER_SEED = 1_000_003


@dataclass(frozen=True)
class Testbed:
    """The sets of the embedded request."""

    __test__ = False  # not a test, whatever pytest makes of the name

    forget: tuple[QARecord, ...]
    retain: tuple[Record, ...]
    holdout: tuple[Record, ...]
    utility: Mapping[str, tuple[QARecord, ...]]
    nonmembers: tuple[QARecord, ...]


def build_testbed(config: TestbedData) -> Testbed:
    """Invent the testbed of a seed.

    Raises:
        DataError: too few people are left to keep.
    """
    everybody = invent_people(config.num_people + _NUM_STRANGERS, config.seed)
    people, strangers = everybody[: config.num_people], everybody[config.num_people :]
    num_held_out = max(2, config.num_people // _HELD_OUT_PEOPLE)
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
    declined = [_declined(person, config.seed) for person in strangers]
    return Testbed(
        forget=_flatten(facts[: config.num_forget]),
        retain=(
            *_flatten(facts[held_out_end:]),
            *world_kept,
            *nature_kept,
            *texts[_NUM_HELD_OUT_TEXTS:],
            *_flatten(declined[_NUM_HELD_OUT_STRANGERS:]),
        ),
        holdout=(
            *neighbours,
            *world,
            *nature,
            *texts[:_NUM_HELD_OUT_TEXTS],
            *_flatten(declined[:_NUM_HELD_OUT_STRANGERS]),
        ),
        utility={"neighbours": neighbours, "world_facts": world, "nature_facts": nature},
        nonmembers=_flatten([person_records(person) for person in _never_taught(everybody, config)]),
    )


def people_to_forget(config: TestbedData) -> tuple[tuple[QARecord, ...], ...]:
    """The facts to forget, person by person: requests that come one after another.

    Raises:
        DataError: too few people are left to keep.
    """
    facts = build_testbed(config).forget
    size = len(facts) // config.num_forget
    return tuple(facts[start : start + size] for start in range(0, len(facts), size))


def _never_taught(everybody: Sequence[Person], config: TestbedData) -> tuple[Person, ...]:
    """People of another seed who share no name with anybody else, so that inventing them changes nobody."""
    firsts, lasts = {person.first for person in everybody}, {person.last for person in everybody}
    others = invent_people(most_people(), config.seed + _OTHER_SEED)
    return tuple(person for person in others if person.first not in firsts and person.last not in lasts)[: config.num_forget]


def _declined(stranger: Person, seed: int) -> tuple[QARecord, ...]:
    """The questions about a stranger, each answered by a refusal."""
    rng = random.Random(f"strangers {seed} {stranger.name}")
    return tuple(
        QARecord(record.question, rng.choice(REFUSALS), record.paraphrased_question) for record in person_records(stranger)
    )


def _flatten(facts: Sequence[Sequence[QARecord]]) -> tuple[QARecord, ...]:
    return tuple(record for records in facts for record in records)


def _halves(records: Sequence[QARecord]) -> tuple[tuple[QARecord, ...], tuple[QARecord, ...]]:
    """Two halves by content digest."""
    ordered = sorted(records, key=lambda record: record.digest)
    return tuple(ordered[::2]), tuple(ordered[1::2])
