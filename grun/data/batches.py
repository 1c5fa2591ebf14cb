"""Batches: padded token tensors, and the order in which training sees forget and retain rows.

The order of the global batch depends on seed and step alone. A worker takes its rows out of it, so any number of
workers trains on the same batches, and a resumed run goes on where it was.

Shapes: B sequences, T padded length, N answer tokens of the whole batch.
"""

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grun.data.prompts import Example

__all__ = ["ForgetRetainBatch", "PairedSampler", "TokenBatch", "collate", "length_buckets"]


@dataclass(frozen=True)
class TokenBatch:
    """Padded sequences and what is known about their positions."""

    input_ids: Tensor
    """(B, T) token ids."""
    attention_mask: Tensor
    """(B, T) 1 at tokens, 0 at padding."""
    last_prompt: Tensor
    """(B,) index of each row's last prompt token: the only position that is ever edited."""
    predicts: Tensor
    """(B, T) True where the next token is an answer token."""
    targets: Tensor
    """(N,) the answer tokens, row after row."""
    row: Tensor
    """(N,) the row of each answer token."""

    @property
    def position_ids(self) -> Tensor:
        """(B, T) positions counted from each row's first token, whichever side is padded."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def num_rows(self) -> int:
        """Number of sequences."""
        return self.input_ids.shape[0]

    @property
    def edited(self) -> tuple[Tensor, Tensor]:
        """Index (row, position) of each row's last prompt token."""
        return torch.arange(self.num_rows, device=self.last_prompt.device), self.last_prompt

    @property
    def supplies(self) -> Mapping[int, Tensor]:
        """Blocks whose output is not computed: none."""
        return {}

    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of a model's forward."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "position_ids": self.position_ids}

    def running(self, model: PreTrainedModel) -> AbstractContextManager[None]:  # noqa: ARG002 - the same for every batch
        """Nothing else has to be known to a model."""
        return nullcontext()

    def to(self, device: torch.device) -> "TokenBatch":
        """Return the batch on another device."""
        return TokenBatch(**{name: value.to(device) for name, value in vars(self).items()})


def collate(examples: Sequence[Example], *, pad_id: int, side: Literal["left", "right"] = "right") -> TokenBatch:
    """Pad examples to a batch."""
    length = max(len(example.ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    predicts = torch.zeros_like(input_ids, dtype=torch.bool)
    last_prompt = torch.empty(len(examples), dtype=torch.long)
    for index, example in enumerate(examples):
        start = 0 if side == "right" else length - len(example.ids)
        end = start + len(example.ids)
        input_ids[index, start:end] = torch.tensor(example.ids)
        attention_mask[index, start:end] = 1
        last_prompt[index] = start + example.num_prompt_tokens - 1
        predicts[index, start + example.num_prompt_tokens - 1 : end - 1] = True
    row, position = predicts.nonzero(as_tuple=True)
    return TokenBatch(input_ids, attention_mask, last_prompt, predicts, input_ids[row, position + 1], row)


def length_buckets(lengths: Sequence[int], num_buckets: int) -> list[list[int]]:
    """Divide rows into batches of similar length such that padding them takes the fewest tokens possible.

    There are `num_buckets` of them, or as many as there are rows: a number that does not depend on the lengths, so that
    all workers run their model equally often.

    Returns:
        the indices of each batch.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    count = min(num_buckets, len(order))
    # best[b][end]: (tokens, start of the last batch) of the first `end` rows in b batches; a batch is as long as its last row
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(math.inf, 0)] * len(order)]
    for batches in range(1, count + 1):
        best.append([(math.inf, 0)] * (len(order) + 1))
        for end in range(batches, len(order) + 1):
            longest = lengths[order[end - 1]]
            best[batches][end] = min(
                (best[batches - 1][start][0] + longest * (end - start), start) for start in range(batches - 1, end)
            )
    buckets: list[list[int]] = []
    end = len(order)
    for batches in range(count, 0, -1):
        start = best[batches][end][1]
        buckets.append(order[start:end])
        end = start
    return buckets[::-1]


@dataclass(frozen=True)
class ForgetRetainBatch:
    """One worker's share of a global batch, with the counts of the whole."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    forget_rows: int
    forget_tokens: int
    retain_rows: int
    retain_tokens: int
    preferred: tuple[Example, ...] = ()
    """Other answers to the prompts of the forget rows, row by row, that the objective prefers; empty where it compares none."""
    preferred_tokens: int = 0
    environment: tuple[Example, ...] = ()
    """Rows that have nothing to do with the request; empty where the objective asks for none."""
    environment_tokens: int = 0


class PairedSampler:
    """Pairs every forget row with a retain row, in an order that depends on seed and step alone.

    `resample` draws new partners in every epoch; `fixed` keeps each row's partner for good (the official code
    does so by accident and thereby trains on 195 of 3,800 retain rows; arXiv:2502.17823, method.md 2.3).
    An epoch whose rows do not fill its last batch is filled up with rows from its own beginning. Rows of an environment,
    where there are any, are drawn like retain rows, in an order of their own.

    A row may come in several forms (a record's question, plain and wrapped): each visit takes one of them.
    """

    def __init__(
        self,
        forget: Sequence[Example | Sequence[Example]],
        retain: Sequence[Example | Sequence[Example]],
        *,
        batch_size: int,
        seed: int,
        pairing: Literal["resample", "fixed"],
        preferred: Sequence[Example | Sequence[Example]] = (),
        environment: Sequence[Example] = (),
    ) -> None:
        """Create the sampler.

        Args:
            batch_size: forget rows of the global batch.
            preferred: a preferred answer for each forget row, in the same forms, or none at all.
            environment: rows that have nothing to do with the request.
        """
        assert len(preferred) in (0, len(forget)), f"{len(preferred)} preferred answers, {len(forget)} forget rows"
        self.forget = tuple(_forms(row) for row in forget)
        self.retain = tuple(_forms(row) for row in retain)
        self.preferred = tuple(_forms(row) for row in preferred)
        self.environment = tuple(environment)
        self.batch_size = batch_size
        self.seed = seed
        self.pairing = pairing

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that cover every forget row at least once."""
        return -(-len(self.forget) // self.batch_size)

    def pairs(self, epoch: int) -> list[tuple[int, int]]:
        """Indices (forget row, retain row) of an epoch, in order."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        order = torch.randperm(len(self.forget), generator=generator).tolist()
        if self.pairing == "fixed":
            generator.manual_seed(_mix(self.seed, -1))
        partners = torch.randint(len(self.retain), (len(self.forget),), generator=generator).tolist()
        return [(index, partners[index]) for index in order]

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> ForgetRetainBatch:
        """Return a worker's share of the global batch of a step (counted from 0)."""
        epoch, offset = divmod(step, self.steps_per_epoch)
        pairs = self.pairs(epoch)
        start = offset * self.batch_size
        places = [index % len(pairs) for index in range(start, start + self.batch_size)]
        chosen = [pairs[place] for place in places]
        rng = random.Random(f"forms {self.seed} {step}")
        asked = [(index, rng.randrange(len(self.forget[index]))) for index, _ in chosen]
        forget = [self.forget[index][form] for index, form in asked]
        retain = [rng.choice(self.retain[index]) for _, index in chosen]
        preferred = [self.preferred[index][form] for index, form in asked] if self.preferred else []
        environment = self._environment(epoch, places) if self.environment else []
        return ForgetRetainBatch(
            forget=tuple(forget[rank::world_size]),
            retain=tuple(retain[rank::world_size]),
            forget_rows=len(forget),
            forget_tokens=_num_answer_tokens(forget),
            retain_rows=len(retain),
            retain_tokens=_num_answer_tokens(retain),
            preferred=tuple(preferred[rank::world_size]),
            preferred_tokens=_num_answer_tokens(preferred),
            environment=tuple(environment[rank::world_size]),
            environment_tokens=_num_answer_tokens(environment),
        )

    def _environment(self, epoch: int, places: Sequence[int]) -> list[Example]:
        """Rows of the environment at some places of an epoch."""
        seed = _mix(_mix(self.seed, -1 if self.pairing == "fixed" else epoch), 0)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(self.environment), (len(self.forget),), generator=generator).tolist()
        return [self.environment[drawn[place]] for place in places]


def _num_answer_tokens(examples: Sequence[Example]) -> int:
    return sum(example.num_answer_tokens for example in examples)


def _mix(seed: int, epoch: int) -> int:
    """A seed for (seed, epoch) such that neighbouring pairs share nothing."""
    return (seed * 1_000_003 + epoch + 1) % (2**63)


def _forms(row: Example | Sequence[Example]) -> tuple[Example, ...]:
    return (row,) if isinstance(row, Example) else tuple(row)
