"""The splits of one request among others: nothing is lost, nothing is on both sides, and nothing grows."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.config import TestbedData
from grun.data.records import QARecord, Record
from grun.data.sequence import distinct, request_splits
from grun.data.splits import Splits, read_splits
from grun.errors import DataError


def records(topic: str, num: int) -> tuple[QARecord, ...]:
    return tuple(QARecord(f"Who keeps {topic} {n}?", f"Ilva keeps {topic} {n}.") for n in range(num))


KNOWN, KEPT, HELD = records("bridge", 6), records("lock", 8), records("gate", 9)
UNIVERSE = Splits(KNOWN, KEPT, HELD, {"neighbours": HELD[:4], "facts": HELD[4:6]}, records("ferry", 3), records("tower", 2))


def test_others_are_to_be_kept_closed_on_and_what_nobody_asked_for_is_kept() -> None:
    splits = request_splits(UNIVERSE, KNOWN[:2], [KNOWN[2:3], records("elsewhere", 2)])
    assert splits.forget == KNOWN[:2]
    assert set(splits.retain) == {*KNOWN[2:], *KEPT, *records("elsewhere", 2)}
    assert splits.holdout == HELD
    assert splits.utility == UNIVERSE.utility


def test_what_anybody_asks_to_forget_is_neither_held_out_nor_useful() -> None:
    splits = request_splits(UNIVERSE, HELD[:1], [(*HELD[4:6], HELD[8])])
    assert splits.holdout == (*HELD[1:4], *HELD[6:8])
    assert splits.utility == {"neighbours": HELD[1:4]}, "a set that is asked for as a whole is gone"
    assert set(splits.retain) == {*KNOWN, *KEPT, *HELD[4:6], HELD[8]}


def test_a_record_that_two_requests_ask_for_is_forgotten_by_each() -> None:
    splits = request_splits(UNIVERSE, KNOWN[:2], [KNOWN[1:3]])
    assert splits.forget == KNOWN[:2]
    assert KNOWN[1] not in splits.retain
    assert KNOWN[2] in splits.retain


def test_the_version_with_a_paraphrase_is_the_one_that_is_kept() -> None:
    paraphrased = replace(KNOWN[3], paraphrased_question="By whom is bridge 3 kept?")
    splits = request_splits(UNIVERSE, KNOWN[:1], [[paraphrased]])
    assert paraphrased in splits.retain
    assert KNOWN[3] not in splits.retain
    assert distinct([KNOWN[3], paraphrased, KNOWN[3]]) == (paraphrased,)


@pytest.mark.parametrize(
    ("forget", "empty"), [((*KNOWN, *KEPT), "retain"), (HELD, "holdout"), ((), "forget")], ids=["retain", "holdout", "forget"]
)
def test_a_request_for_everything_is_refused(forget: tuple[Record, ...], empty: str) -> None:
    with pytest.raises(DataError, match=f"the {empty} set must hold at least one record"):
        request_splits(UNIVERSE, forget, [])


@given(st.lists(st.integers(0, 5), unique=True, min_size=2))
def test_retain_is_the_universe_without_the_request_however_many_there_are(order: list[int]) -> None:
    """What the last of several trains on depends neither on how many came before it nor on their order."""
    last, *before = order
    alone = request_splits(UNIVERSE, [KNOWN[last]], [])
    among = request_splits(UNIVERSE, [KNOWN[last]], [[KNOWN[index]] for index in before])
    assert set(among.retain) == set(alone.retain)
    assert len(among.retain) == len(KNOWN) + len(KEPT) - 1


def test_people_of_the_testbed_in_sequence() -> None:
    universe = read_splits(TestbedData())
    people = [universe.forget[start : start + 10] for start in range(0, 60, 10)]
    for person in people:
        splits = request_splits(universe, person, [other for other in people if other != person])
        assert (len(splits.forget), len(splits.retain)) == (10, len(universe.retain) + 50)
        assert splits.holdout == universe.holdout
