"""Which base model is frozen, and the small one that is taught when none is named."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from grun.config.base import Config

__all__ = ["ModelConfig", "TaughtModelConfig"]


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
    retain_twin: bool = True
    """Whether `prepare` also teaches the retain-only twin that forget quality needs."""
    taught: TaughtModelConfig = TaughtModelConfig()
    """The small model that is taught when `path` is unset."""
