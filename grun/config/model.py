"""Which base model is frozen, and the small one that is taught when none is named."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from grun.config.base import Config

__all__ = ["BaseVariant", "ModelConfig", "TaughtModelConfig", "VariantKind"]

VariantKind = Literal["int8", "int4", "nf4", "lowrank_nf4"]
"""How a deployed base stores the linear layers of its blocks."""


class TaughtModelConfig(Config):
    """A small Llama-shaped model with its own tokenizer, taught the data set by `prepare`."""

    hidden_size: PositiveInt = 128
    """Width of the residual stream."""
    num_layers: PositiveInt = 8
    """Number of decoder blocks."""
    num_heads: PositiveInt = 4
    """Attention heads; must divide `hidden_size`."""
    vocab_size: int = Field(default=2048, ge=300)
    """Size of the byte-level BPE vocabulary, trained on the same records."""
    context: PositiveInt = 256
    """Longest sequence in tokens."""
    epochs: PositiveInt = 18
    """Passes over the records."""
    batch_size: PositiveInt = 32
    """Sequences per optimizer step."""
    learning_rate: PositiveFloat = 3e-3
    """Peak AdamW learning rate; a tenth of the steps warm up, the rest decays to zero along a cosine."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW weight decay."""
    seed: NonNegativeInt = 0
    """Seed of weights and order."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"`num_heads` must divide `hidden_size` into heads of even width, got {self.hidden_size=}, {self.num_heads=}"
            )
        return self


@dataclass(frozen=True)
class BaseVariant:
    """A base as it is deployed. See :mod:`grun.lm.quantised` and :mod:`grun.lm.decomposition` for what each kind does."""

    kind: VariantKind
    """The format of the weights."""
    rank: int | None = None
    """Rank of the low-rank part; None: a 64th of a matrix' smaller side, as ReALLM's 64 for a width of 4096."""
    rounds: int = 40
    """Alternations between low-rank and quantised part."""

    @property
    def name(self) -> str:
        """What reports call it: the format, and what made it."""
        rank = "side/64" if self.rank is None else self.rank
        names: dict[VariantKind, str] = {
            "int8": "int8 (torchao, weight only, one scale a row)",
            "int4": "int4 (torchao, weight only, groups of 32)",
            "nf4": "nf4 (blocks of 64)",
            "lowrank_nf4": f"lowrank_nf4 (rank {rank}, {self.rounds} rounds, blocks of 64)",
        }
        return names[self.kind]

    def rank_for(self, rows: int, columns: int) -> int:
        """Rank of the low-rank part of a matrix."""
        return max(1, min(rows, columns) // 64) if self.rank is None else self.rank


class ModelConfig(Config):
    """The frozen base model."""

    path: str | None = None
    """Folder or hub name of any Hugging Face decoder-only model; unset: `prepare` teaches the small model of `taught`."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    pad_token: str | None = None
    """Token used for padding, where the tokenizer names none (Llama 3 ships `<|finetune_right_pad_id|>` for this)."""
    retain_path: str | None = None
    """Model of the same shape that never saw the forget set, for forget quality; unset with a taught base: taught as well."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen weights; adapters always train in float32."""
    quantization: Literal["none", "int8", "int4"] = "none"
    """Weights of 8 or 4 bits by torchao, on CPU and GPU; an adapter of the full-precision base is scored on them."""
    decomposition: Literal["none", "nf4", "lowrank_nf4"] = "none"
    """ReALLM's low-rank part and 4-bit NormalFloat, or NormalFloat alone; an adapter of the full-precision base is scored on it."""
    decomposition_rank: PositiveInt | None = None
    """Rank of the low-rank part; unset: a 64th of a matrix' smaller side, as ReALLM's 64 for a width of 4096."""
    decomposition_rounds: PositiveInt = 40
    """Alternations between low-rank and quantised part."""
    retain_twin: bool = True
    """Whether `prepare` also teaches the retain-only twin that forget quality needs."""
    taught: TaughtModelConfig = TaughtModelConfig()
    """The small model that is taught when `path` is unset."""

    @model_validator(mode="after")
    def _stored_in_one_format(self) -> Self:
        if self.quantization != "none" and self.decomposition != "none":
            raise ValueError(
                f"a base is stored in one format, got {self.quantization=} and {self.decomposition=}; set one of them to `none`"
            )
        return self

    @property
    def variant(self) -> BaseVariant | None:
        """How the base is stored; None: as it is on disk."""
        if self.quantization != "none":
            return BaseVariant(kind=self.quantization)
        if self.decomposition == "nf4":
            return BaseVariant(kind="nf4")
        if self.decomposition == "lowrank_nf4":
            return BaseVariant(kind="lowrank_nf4", rank=self.decomposition_rank, rounds=self.decomposition_rounds)
        return None

    @property
    def full_precision(self) -> Self:
        """The same base as it is on disk, on which adapters are trained."""
        return self.model_copy(update={"quantization": "none", "decomposition": "none"})
