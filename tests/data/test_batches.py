"""Batches: where everything lies after padding, and which rows meet in which step."""

from collections import Counter
from itertools import combinations, pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grun.data.batches import PairedSampler, collate, length_buckets
from grun.data.prompts import Example

LONG = Example("long", (11, 12, 13, 14, 15), 3)
SHORT = Example("short", (21, 22, 23), 1)


def test_right_padding_by_hand() -> None:
    batch = collate([LONG, SHORT], pad_id=9, side="right")
    assert batch.input_ids.tolist() == [[11, 12, 13, 14, 15], [21, 22, 23, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.last_prompt.tolist() == [2, 0]
    assert batch.predicts.nonzero().tolist() == [[0, 2], [0, 3], [1, 0], [1, 1]]
    assert batch.targets.tolist() == [14, 15, 22, 23]
    assert batch.row.tolist() == [0, 0, 1, 1]
    assert batch.position_ids[batch.attention_mask.bool()].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.num_rows == 2


def test_left_padding_by_hand() -> None:
    batch = collate([LONG, SHORT], pad_id=9, side="left")
    assert batch.input_ids.tolist() == [[11, 12, 13, 14, 15], [9, 9, 21, 22, 23]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.last_prompt.tolist() == [2, 2]
    assert batch.predicts.nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    assert batch.targets.tolist() == [14, 15, 22, 23]
    assert batch.row.tolist() == [0, 0, 1, 1]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]


def test_right_is_the_default_and_a_token_equal_to_the_padding_is_no_padding() -> None:
    batch = collate([SHORT, LONG], pad_id=23)
    assert batch.input_ids.tolist() == [[21, 22, 23, 23, 23], [11, 12, 13, 14, 15]]
    assert batch.attention_mask.sum(-1).tolist() == [3, 5]
    assert batch.targets.tolist() == [22, 23, 14, 15]


def test_moving_a_batch_moves_everything() -> None:
    moved = collate([LONG, SHORT], pad_id=9).to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values()} == {"meta"}


ids = st.lists(st.integers(0, 99), min_size=2, max_size=9).map(tuple)
examples = ids.flatmap(lambda ids: st.integers(1, len(ids) - 1).map(lambda prompt: Example("", ids, prompt)))


@given(st.lists(examples, min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_padding_neither_adds_nor_loses_a_token(rows: list[Example], side: Literal["left", "right"]) -> None:
    batch = collate(rows, pad_id=0, side=side)
    for index, example in enumerate(rows):
        real = batch.attention_mask[index].bool()
        assert tuple(batch.input_ids[index][real].tolist()) == example.ids
        assert batch.position_ids[index][real].tolist() == list(range(len(example.ids)))
        assert tuple(batch.targets[batch.row == index].tolist()) == example.ids[example.num_prompt_tokens :]
        assert batch.position_ids[index, batch.last_prompt[index]] == example.num_prompt_tokens - 1


def rows_of(name: str, count: int) -> list[Example]:
    """Rows that differ in the number of their answer tokens."""
    return [Example(f"{name}{index}", tuple(range(index + 3)), 2) for index in range(count)]


def sampler(
    num_forget: int = 7,
    num_retain: int = 40,
    *,
    batch_size: int = 3,
    seed: int = 0,
    pairing: Literal["resample", "fixed"] = "resample",
) -> PairedSampler:
    return PairedSampler(
        rows_of("f", num_forget),
        rows_of("r", num_retain),
        batch_size=batch_size,
        seed=seed,
        pairing=pairing,
        preferred=rows_of("p", num_forget),
        environment=rows_of("e", 30),
    )


def partners(of: PairedSampler, epoch: int) -> dict[int, int]:
    return dict(of.pairs(epoch))


@pytest.mark.parametrize("pairing", ["resample", "fixed"])
def test_every_forget_row_once_an_epoch_in_a_new_order(pairing: Literal["resample", "fixed"]) -> None:
    epochs = [[forget for forget, _ in sampler(20, pairing=pairing).pairs(epoch)] for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_partners_are_drawn_anew_every_epoch() -> None:
    resampling = sampler(20)
    assert all(partners(resampling, epoch) != partners(resampling, epoch + 1) for epoch in range(5))
    met = {retain for epoch in range(40) for _, retain in resampling.pairs(epoch)}
    assert met == set(range(40)), "in the long run every retain row is trained on"


def test_fixed_partners_stay() -> None:
    faithful = sampler(20, pairing="fixed")
    assert all(partners(faithful, epoch) == partners(faithful, 0) for epoch in range(1, 6))
    assert len(set(partners(faithful, 0).values())) > 1


def test_seed_decides_order_and_partners() -> None:
    assert sampler(20, seed=1).pairs(0) == sampler(20, seed=1).pairs(0)
    for pairing in ("resample", "fixed"):
        first, second = (sampler(20, seed=seed, pairing="fixed" if pairing == "fixed" else "resample") for seed in (1, 2))
        assert [row for row, _ in first.pairs(0)] != [row for row, _ in second.pairs(0)]
        assert partners(first, 0) != partners(second, 0)
    # neighbouring seeds and epochs are not the same draw under another name
    assert sampler(20, seed=1).pairs(0) != sampler(20, seed=0).pairs(1)


def test_order_and_partners_are_unrelated() -> None:
    """The permutation must not decide the partners: row i does not always meet the same retain row as its rank does."""
    pairs = sampler(20, 20).pairs(0)
    assert [retain for _, retain in pairs] != [forget for forget, _ in pairs]


def test_batch_is_a_function_of_the_step() -> None:
    forwards, backwards = sampler(), sampler()
    steps = range(12)
    expected = [forwards.batch(step) for step in steps]
    torch.rand(3)
    assert [backwards.batch(step) for step in reversed(steps)] == expected[::-1]


def test_last_batch_is_filled_from_the_beginning_of_its_epoch() -> None:
    seven_by_three = sampler(7, batch_size=3)
    assert seven_by_three.steps_per_epoch == 3
    order = [f"f{forget}" for forget, _ in seven_by_three.pairs(1)]
    epoch = [[example.digest for example in seven_by_three.batch(step).forget] for step in (3, 4, 5)]
    assert epoch == [order[:3], order[3:6], [order[6], order[0], order[1]]]


def test_batch_wider_than_the_forget_set() -> None:
    two_by_five = sampler(2, batch_size=5)
    assert two_by_five.steps_per_epoch == 1
    batch = two_by_five.batch(0)
    assert sorted(Counter(example.digest for example in batch.forget).values()) == [2, 3]
    assert batch.forget_rows == 5


def test_rows_stay_with_their_partners() -> None:
    paired = sampler()
    known = {f"f{forget}": f"r{retain}" for forget, retain in paired.pairs(0)}
    for step in range(paired.steps_per_epoch):
        batch = paired.batch(step)
        assert [known[example.digest] for example in batch.forget] == [example.digest for example in batch.retain]
        assert [example.digest for example in batch.preferred] == [example.digest.replace("f", "p") for example in batch.forget]


def test_rows_of_the_environment_are_drawn_like_partners_and_unrelated_to_them() -> None:
    def drawn(of: PairedSampler, epoch: int) -> list[str]:
        steps = range(epoch * of.steps_per_epoch, (epoch + 1) * of.steps_per_epoch)
        return [example.digest for step in steps for example in of.batch(step).environment][: len(of.forget)]

    resampled, fixed = sampler(30, 30), sampler(30, 30, pairing="fixed")
    assert drawn(resampled, 0) != drawn(resampled, 1)
    assert drawn(resampled, 1) == drawn(sampler(30, 30), 1)
    assert drawn(resampled, 1) != drawn(sampler(30, 30, seed=1), 1)
    assert drawn(fixed, 0) == drawn(fixed, 3)
    for each in (resampled, fixed):
        assert sum(row == f"e{retain}" for row, (_, retain) in zip(drawn(each, 1), each.pairs(1), strict=True)) < 10


def test_without_preferred_answers_and_environment_there_are_none() -> None:
    batch = PairedSampler(rows_of("f", 3), rows_of("r", 3), batch_size=2, seed=0, pairing="fixed").batch(0)
    assert (batch.preferred, batch.preferred_tokens, batch.environment, batch.environment_tokens) == ((), 0, (), 0)


@given(
    num_forget=st.integers(1, 12),
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 8),
    step=st.integers(0, 30),
    pairing=st.sampled_from(["resample", "fixed"]),
)
def test_shares_of_any_number_of_workers_make_up_the_global_batch(
    num_forget: int, batch_size: int, world_size: int, step: int, pairing: Literal["resample", "fixed"]
) -> None:
    paired = sampler(num_forget, batch_size=batch_size, pairing=pairing)
    whole = paired.batch(step)
    shares = [paired.batch(step, rank=rank, world_size=world_size) for rank in range(world_size)]
    for name in ("forget", "retain", "preferred", "environment"):
        assert Counter(row for share in shares for row in getattr(share, name)) == Counter(getattr(whole, name))
        rows = [len(getattr(share, name)) for share in shares]
        assert max(rows) - min(rows) <= 1
    for share in (whole, *shares):
        assert share.forget_rows == share.retain_rows == batch_size
        assert share.forget_tokens == sum(example.num_answer_tokens for example in whole.forget)
        assert share.retain_tokens == sum(example.num_answer_tokens for example in whole.retain)
        assert share.preferred_tokens == sum(example.num_answer_tokens for example in whole.preferred)
        assert share.environment_tokens == sum(example.num_answer_tokens for example in whole.environment)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 4))
def test_length_buckets_take_the_fewest_padded_tokens_there_can_be(lengths: list[int], num_buckets: int) -> None:
    buckets = length_buckets(lengths, num_buckets)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(lengths)))
    assert len(buckets) == min(num_buckets, len(lengths))
    cost = sum(len(bucket) * max(lengths[index] for index in bucket) for bucket in buckets)
    ordered = sorted(lengths)
    cuts = combinations(range(1, len(ordered)), len(buckets) - 1)
    every = (pairwise((0, *cut, len(ordered))) for cut in cuts)
    assert cost == min(sum((end - start) * ordered[end - 1] for start, end in parts) for parts in every)
