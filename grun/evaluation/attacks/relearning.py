"""Relearning: fine-tune on a quarter of what was forgotten, and see whether the rest comes back.

The quarter is chosen by content digest; what is measured is everything else. The original base and adapter are not
touched: copies are trained.
"""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from grun.data.records import Record
from grun.evaluation.attacks.bench import Attacked, Bench
from grun.interventions import Adapter
from grun.lm import FrozenLM, FullPass, freeze

__all__ = ["STEPS", "relearn_adapter", "relearn_base", "relearnt"]

STEPS = 20
BATCH_SIZE = 16
BASE_LEARNING_RATE = 1e-4
ADAPTER_LEARNING_RATE = 1e-3
_SHARE = 4
"""One record of this many is relearnt."""


def relearnt(records: Iterable[Record]) -> tuple[Record, ...]:
    """The quarter that is trained on, at least one record."""
    ordered = sorted(records, key=lambda record: record.digest)
    return tuple(ordered[::_SHARE])


def relearn_base(bench: Bench) -> Attacked:
    """Fine-tune a copy of the base under the adapter, and leave the adapter on."""
    model = copy.deepcopy(bench.lm.model)
    lm = freeze(model, bench.lm.tokenizer, bench.lm.info)
    model.requires_grad_(True)
    _train(bench, lm, bench.adapter, list(model.parameters()), BASE_LEARNING_RATE)
    model.requires_grad_(False)
    return _measured(bench, lm=lm)


def relearn_adapter(bench: Bench) -> Attacked:
    """Fine-tune a copy of the adapter on the frozen base; gates are soft meanwhile, as in training."""
    adapter = copy.deepcopy(bench.adapter)
    _train(bench, bench.lm, adapter, list(adapter.parameters()), ADAPTER_LEARNING_RATE)
    return _measured(bench, adapter=adapter)


def _measured(bench: Bench, *, lm: FrozenLM | None = None, adapter: Adapter | None = None) -> Attacked:
    trained = {record.digest for record in relearnt(bench.known)}
    others = [record for record in bench.forget if record.digest not in trained]
    reason = "there are too few records to relearn some and to ask for others"
    return Attacked(bench.plain(others), bench.plain(bench.ordinary), lm=lm, adapter=adapter, reasons=(reason,))


def _train(bench: Bench, lm: FrozenLM, adapter: Adapter, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
    """Plain cross-entropy of the true answers, AdamW, batches in the order of the digests."""
    examples = [bench.encoder.encode(record) for record in relearnt(bench.known)]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    base = FullPass(lm)
    for step in range(STEPS):
        batch = [examples[(step * BATCH_SIZE + index) % len(examples)] for index in range(min(BATCH_SIZE, len(examples)))]
        loss = base.answers(batch, adapter).nll.mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
