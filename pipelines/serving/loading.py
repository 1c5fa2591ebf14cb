"""A version of the champion in memory: its adapters on the base, and how prompts reach them."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from grun.adapters import digest_adapter, digest_stack, load_served, read_card, serving_card
from grun.adapters.stack_folder import STACK_CARD
from grun.config import ModelConfig
from grun.interventions import Adapter, AdapterStack
from grun.lm import FrozenLM, IntervenedLM, load_frozen_lm, variant_of
from grun.lm.decoding import check_decodable
from pipelines.serving.prompts import PromptReader

__all__ = ["GateReading", "Served", "digest_files", "load_base", "load_version", "read_gates"]

_SOFT_GATE_OPENS_AT = 0.5


@dataclass(frozen=True)
class Served:
    """One version, as it answers."""

    name: str
    """Registered model."""
    version: int
    digest: str
    """Of all its files."""
    model: IntervenedLM
    reader: PromptReader
    request_ids: tuple[str, ...]
    """The requests that it answers for, in order."""
    columns: tuple[tuple[str, int], ...]
    """Request id and block of each column of gate logits."""
    thresholds: tuple[float | None, ...]
    """Gate threshold of each column; None where the gate is soft."""

    @property
    def fingerprint(self) -> str:
        """Version and digest in a word."""
        return f"{self.name}-v{self.version}-{self.digest[:12]}"


@dataclass(frozen=True)
class GateReading:
    """What one gate said about one prompt."""

    request_id: str
    layer: int
    value: float
    """In 0..1."""
    open: bool
    """Whether it reached its threshold; of a soft gate, whether it is more open than closed."""


def read_gates(served: Served, logits: Tensor | None) -> list[tuple[GateReading, ...]]:
    """Readings of each row of gate logits (B, L)."""
    if logits is None:
        return []
    values = logits.float().sigmoid().tolist()
    return [
        tuple(
            GateReading(request_id, layer, value, value >= (_SOFT_GATE_OPENS_AT if threshold is None else threshold))
            for (request_id, layer), threshold, value in zip(served.columns, served.thresholds, row, strict=True)
        )
        for row in values
    ]


def digest_files(folder: Path) -> str:
    """SHA-256 of an adapter, or of a stack of them.

    Raises:
        AdapterError: it is neither, or damaged.
    """
    if (folder / STACK_CARD).is_file():
        return digest_stack(folder)
    read_card(folder)
    return digest_adapter(folder)


def load_base(folder: Path, config: ModelConfig, *, use_gpu: bool) -> FrozenLM:
    """Load the base that an adapter or a stack names, or the copy of it that the recipe names, stored as the recipe says.

    Raises:
        AdapterError: the adapter or stack is damaged.
        ModelError: the base is not there, or cannot be served.
    """
    card = serving_card(folder)
    lm = load_frozen_lm(
        config.path or card.base_name,
        revision=config.revision if config.path else card.base_revision,
        dtype=card.base_dtype,
        pad_token=card.base_pad_token,
        device="cuda" if use_gpu else "cpu",
    )
    check_decodable(lm)
    return lm if config.variant is None else variant_of(lm, config.variant)


def load_version(name: str, version: int, folder: Path, lm: FrozenLM) -> Served:
    """Load a version onto the base; everything about it is checked before it is used.

    Raises:
        AdapterError: damaged, or for another base.
    """
    card, model = serving_card(folder), load_served(folder, lm)
    columns: tuple[tuple[str, int], ...]
    thresholds: tuple[float | None, ...]
    if isinstance(model.adapter, AdapterStack):
        stack = model.adapter
        request_ids, columns, thresholds = stack.request_ids, stack.columns, stack.thresholds
    else:
        assert isinstance(model.adapter, Adapter)
        request_ids = card.request_ids
        columns = tuple((",".join(request_ids), layer) for layer in model.adapter.gated_layers)
        thresholds = (model.threshold,) * len(columns)
    reader = PromptReader(lm.tokenizer, card.prompt, context=lm.context)
    return Served(name, version, digest_files(folder), model, reader, request_ids, columns, thresholds)
