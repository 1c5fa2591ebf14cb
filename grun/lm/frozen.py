"""The frozen language model: load any Hugging Face decoder-only model, freeze it, find its blocks.

A base is identified by the digest of its weights and tokenizer files, not by its path: an adapter trained on one copy
loads on any other copy, and on nothing else.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from grun.errors import ModelError
from grun.lm.blocks import block_list, upper_class, upper_view
from grun.reading import cut as shortened

__all__ = [
    "BaseInfo",
    "BaseShape",
    "FrozenLM",
    "check_weights",
    "count_parameters",
    "digest_weights",
    "freeze",
    "load_frozen_lm",
    "load_tokenizer",
    "read_shape",
    "resolve_folder",
]

hf_logging.disable_progress_bar()  # a bar per shard and process would drown ours

_IDENTITY_FILES = (
    "*.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class BaseInfo:
    """Which base model this is."""

    name: str
    """Path or hub name it was loaded by."""
    revision: str | None
    """Hub revision."""
    digest: str
    """SHA-256 over weights, configuration and tokenizer, as they are on disk."""
    variant: str | None = None
    """How its weights are stored in memory, where not as they are on disk; see :class:`grun.config.BaseVariant`."""


@dataclass(frozen=True)
class FrozenLM:
    """A base model whose weights never change."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: Sequence[nn.Module]
    """Decoder blocks, shallowest first."""
    info: BaseInfo
    cut: int | None = None
    """Block whose output is supplied from a prefix cache: it and those below it are skipped. None: the model is whole."""

    @property
    def hidden_size(self) -> int:
        """Width D of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return context_of(self.model.config)

    @property
    def pad_id(self) -> int:
        """Token id used for padding."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return pad

    @property
    def head(self) -> nn.Module:
        """The language-model head."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def above(self, cut: int) -> "FrozenLM":
        """Return this base with blocks 0..cut skipped, sharing everything else with it."""
        model = upper_view(self.model, cut)
        return replace(self, model=model, blocks=tuple(block_list(model)), cut=cut)


@dataclass(frozen=True)
class BaseShape:
    """The sizes of a base, known from its configuration alone."""

    hidden_size: int
    """Width D of the residual stream."""
    num_layers: int
    """Number of decoder blocks."""
    key_value_size: int
    """Numbers in the key of one token in one block: key heads times their width."""
    layer_parameters: int
    """About how many parameters a block has."""


def read_shape(folder: Path) -> BaseShape:
    """Read the sizes of a base.

    Raises:
        ModelError: as :func:`load_config`.
    """
    text = load_config(folder).get_text_config()
    width, heads = int(text.hidden_size), int(text.num_attention_heads)
    head_size = int(getattr(text, "head_dim", None) or width // heads)
    inner = int(getattr(text, "intermediate_size", None) or 4 * width)
    return BaseShape(
        hidden_size=width,
        num_layers=int(text.num_hidden_layers),
        key_value_size=int(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        layer_parameters=4 * width**2 + 3 * width * inner,
    )


def context_of(config: Any) -> int:
    """Longest sequence of a model configuration in tokens."""
    return int(config.get_text_config().max_position_embeddings)


def resolve_folder(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a model: the path itself, or the snapshot of a hub model.

    Raises:
        ModelError: neither a folder with a model nor a name that the hub or its local cache answers to.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"`model.path` must be a Hugging Face model folder, got {name!r} without a config.json; check the path"
            )
        return folder
    if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ModelError(f"`model.path` must be an existing model folder, got {name!r}, which is not there; check the path")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision))
    except Exception as error:  # noqa: BLE001 - offline, not found, gated: a dozen unrelated types
        raise ModelError(
            f"`model.path` must be a model folder or a hub model that can be reached, got {name!r} ({type(error).__name__}); "
            "check the name, or download the model and give its folder"
        ) from None


def digest_weights(folder: Path) -> str:
    """SHA-256 over the files that decide what the model computes, by name and content."""
    files = sorted({path for pattern in _IDENTITY_FILES for path in folder.glob(pattern)})
    # hashing gigabytes takes a while; size and time tell whether it has to be done again
    return _digest_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=8)
def _digest_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, _size, _time in files:
        if path.name == "config.json":
            # keys that only record how the file was written
            values = json.loads(path.read_text(encoding="utf-8"))
            decides = {k: v for k, v in values.items() if k not in ("_name_or_path", "transformers_version")}
            part = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
        else:
            with path.open("rb") as file:
                part = hashlib.file_digest(file, "sha256")
        whole.update(f"{path.name} {part.hexdigest()}\n".encode())
    return whole.hexdigest()


def count_parameters(folder: Path) -> int:
    """How many parameters a base has, from the headers of its files; a head that shares the embedding is not counted twice."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
    return total


def check_weights(folder: Path) -> None:
    """Refuse weights whose files are cut off or damaged; reads their headers alone, so that it is known before anything starts.

    Raises:
        ModelError: with the first such file.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"a base model must have whole safetensors, got {str(path)!r}: {_first_line(error)}; download it again"
            ) from None


def load_tokenizer(folder: Path, pad_token: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can pad.

    Raises:
        ModelError: no tokenizer, or one without a pad token where none is given.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # noqa: BLE001 - a damaged file ends in whatever its parsers make of it
        raise ModelError(
            f"a base model must come with its tokenizer, got {str(folder)!r}: {_first_line(error)}; add the tokenizer's files"
        ) from None
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ModelError(
                f"`model.pad_token` must be in the tokenizer's vocabulary, got {pad_token!r}; name an existing token"
            )
        tokenizer.pad_token = pad_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer must have a pad token, got one without ({str(folder)!r}); set `model.pad_token`, "
            "for instance to its end-of-text token, which padding never shows to the model"
        )
    return tokenizer


def freeze(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, info: BaseInfo) -> FrozenLM:
    """Freeze a model that is already in memory."""
    model.requires_grad_(False)
    model.eval()
    return FrozenLM(model, tokenizer, tuple(block_list(model)), info)


def load_frozen_lm(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    pad_token: str | None = None,
    device: torch.device | str | None = "cpu",
    cut: int | None = None,
) -> FrozenLM:
    """Load and freeze a base model.

    Args:
        dtype: `float32` or `bfloat16`.
        cut: blocks 0..cut, and the embedding where the head does not share it, are never read; what block `cut` would put
            out has to come from a prefix cache.
        device: where the model goes; None leaves it where loading put it, as a sharding engine wants.

    Raises:
        ModelError: the folder is missing, damaged or not a causal language model.
    """
    folder = resolve_folder(name, revision)
    config = load_config(folder)
    tokenizer = load_tokenizer(folder, pad_token)
    model = _read_weights(folder, name, config, getattr(torch, dtype), cut)
    if device is not None:
        nn.Module.to(model, device)
    return replace(freeze(model, tokenizer, BaseInfo(name, revision, digest_weights(folder))), cut=cut)


def _read_weights(folder: Path, name: str, config: Any, dtype: torch.dtype, cut: int | None) -> PreTrainedModel:
    """Read safetensors; what is missing from them would be drawn at random, so nothing may be missing."""
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"`model.path` must hold a causal language model, got {name!r}: no safetensors, and pickles are not read; "
            "check or download it again"
        )
    verbosity = hf_logging.get_verbosity()
    try:
        if cut is not None:
            hf_logging.set_verbosity_error()  # or every skipped weight is listed as unexpected
        loaded: Any = _model_class(config, cut).from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"`model.path` must hold a causal language model, got {name!r}: {_first_line(error)}; check or download it again"
        ) from error
    finally:
        hf_logging.set_verbosity(verbosity)
    model, report = loaded
    lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lacking:
        raise ModelError(
            f"`model.path` must hold a causal language model, got {name!r}: {len(lacking)} weights are not in its safetensors, "
            f"among them {lacking[:3]}; check or download it again"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _model_class(config: Any, cut: int | None) -> Any:
    if cut is None:
        return AutoModelForCausalLM
    return upper_class(cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING)[type(config)], config, cut)


def load_config(folder: Path) -> Any:
    """Load the configuration of a decoder-only model.

    Raises:
        ModelError: missing, damaged, or of another kind of model.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # noqa: BLE001 - a damaged file ends in whatever its parsers make of it
        raise ModelError(
            f"a base model must have a valid config.json, got {str(folder)!r}: {_first_line(error)}; download it again"
        ) from None
    reads_both_ways = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if config.is_encoder_decoder or reads_both_ways:
        raise ModelError(
            f"a base model must be decoder-only, got {str(folder)!r} of type {config.model_type!r}; "
            "its last prompt token would not be the only one that decides the answer: name a causal language model"
        )
    return config


def _first_line(error: BaseException) -> str:
    return shortened(str(error).strip().split("\n")[0]) or type(error).__name__
