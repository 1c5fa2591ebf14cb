"""The prefix cache: what a frozen base computes again and again, computed once and kept in files.

    <folder>/cache.json                  the spec, the shards, and how far cached and full passes were apart on a probe
    <folder>/shard-00000.safetensors     keys.<l>, values.<l> of prefixes; states.<l> and nll of suffixes; read by memory map
    <folder>/shard-00000.json            digest of that file, and which rows it holds; written last, so a shard is whole or absent

The edit touches the last prompt token, and only from the shallowest edited block on. So before that token every block
is a constant, and before that block every token is. A prompt's prefix is stored once, however many answers follow it.

Keys and values are kept of every block above the *shallowest* cut, and states of every block at which somebody may cut:
an adapter that starts deeper reads a part of the same files. So one cache serves every placement of a sweep.

A cache is named by the digest of its spec. Opening one that was made for something else, or that is damaged, is an error.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from grun.config.base import Config
from grun.data.prompts import Example
from grun.errors import CacheError
from grun.reading import MalformedError, check_tensor_file, parse_json, read_text, reason_of, shown

__all__ = [
    "CACHE_FILE",
    "CacheProbe",
    "CacheSpec",
    "CacheState",
    "CachedRow",
    "PrefixCache",
    "ShardIndex",
    "check_spec",
    "file_digest",
    "make_spec",
    "prompt_digest",
    "read_probe",
    "read_spec",
    "read_state",
    "sequence_digest",
    "shard_path",
]

CACHE_FILE = "cache.json"

CACHE_VERSION = 1
"""Raised by whoever changes what is stored, so that caches of the old kind are not taken for new ones."""


_MAX_STATE, _MAX_INDEX = 2**20, 2**28
"""Bytes of `cache.json`, and of the index of a file."""


class CacheSpec(Config):
    """Everything that decides what a cache holds."""

    version: int = CACHE_VERSION
    """Layout of the files."""
    base_digest: str
    """Digest of the base: weights, configuration and tokenizer."""
    dtype: Literal["float32", "bfloat16"]
    """Precision of the base, and of all that is stored."""
    template: str
    """Digest of the prompt section of the recipe."""
    cut: NonNegativeInt
    """Shallowest block at which anybody cuts; keys and values are kept of the blocks above it."""
    state_layers: tuple[NonNegativeInt, ...]
    """Blocks whose unedited output at the suffix is kept: every cut, and those that an objective reads of the reference."""
    num_layers: PositiveInt
    """Blocks of the base."""
    data_digest: str
    """Digest of all token sequences, in any order."""
    num_sequences: PositiveInt
    """Prompts with an answer."""
    prefix_tokens: NonNegativeInt
    """Tokens of all prefixes together, each prompt counted once."""
    answer_tokens: PositiveInt
    """Tokens of all answers together."""

    @property
    def digest(self) -> str:
        """Name of the cache."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class CacheProbe(Config):
    """How far a cached and a full pass over the same rows were apart when the cache was built."""

    loss_difference: NonNegativeFloat
    """Absolute difference of the losses, in nats."""
    gradient_rel_error: NonNegativeFloat
    """Norm of the difference of the adapter's gradients, as a share of the full pass's."""

    def agrees(self, dtype: str) -> bool:
        """Whether the two are the same computation, up to rounding in the base's precision."""
        return self.gradient_rel_error <= {"float32": 1e-4, "bfloat16": 5e-2}[dtype]


class CacheState(Config):
    """What `cache.json` holds: a cache is finished when it is there."""

    spec: CacheSpec
    """What the cache is."""
    probe: CacheProbe
    """How it did on its probe."""


class ShardIndex(Config):
    """What one file of a cache holds."""

    sha256: str
    """Digest of the file."""
    num_bytes: PositiveInt
    """Size of the file."""
    prompts: tuple[tuple[str, NonNegativeInt], ...]
    """Digest of each prompt, and the length of its prefix in tokens."""
    sequences: tuple[tuple[str, NonNegativeInt, PositiveInt], ...]
    """Digest of each prompt with answer, the index of its prompt, and the length of its answer in tokens."""

    @model_validator(mode="after")
    def _prompts_are_there(self) -> Self:
        highest = max((prompt for _digest, prompt, _length in self.sequences), default=-1)
        if highest >= len(self.prompts):
            raise ValueError(f"a sequence must have a prompt of the file, got number {highest} of {len(self.prompts)}")
        return self


def prompt_digest(ids: Sequence[int]) -> str:
    """Digest of a prompt's token ids."""
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).hexdigest()


def sequence_digest(example: Example) -> str:
    """Digest of a prompt with its answer: the token ids, and where the one ends and the other begins."""
    return prompt_digest((example.num_prompt_tokens, *example.ids))


def make_spec(
    examples: Sequence[Example],
    *,
    base_digest: str,
    dtype: Literal["float32", "bfloat16"],
    template: Mapping[str, Any],
    cuts: Sequence[int],
    reference_layers: Sequence[int] = (),
    num_layers: int,
) -> CacheSpec:
    """Describe the cache of some examples.

    Args:
        examples: prompts with answers; repeated ones count once.
        template: the prompt section of the recipe.
        cuts: the blocks at which adapters start.
        reference_layers: blocks whose unedited output an objective reads.
    """
    unique = {sequence_digest(example): example for example in examples}
    prompts = {example.prompt_ids for example in unique.values()}
    return CacheSpec(
        base_digest=base_digest,
        dtype=dtype,
        template=hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest(),
        cut=min(cuts),
        state_layers=tuple(sorted({*cuts, *reference_layers})),
        num_layers=num_layers,
        data_digest=hashlib.sha256("\n".join(sorted(unique)).encode()).hexdigest(),
        num_sequences=len(unique),
        prefix_tokens=sum(len(prompt) - 1 for prompt in prompts),
        answer_tokens=sum(example.num_answer_tokens for example in unique.values()),
    )


def shard_path(folder: Path, number: int) -> Path:
    """The tensor file of a shard; its index is beside it, with the suffix `.json`."""
    return folder / f"shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class CachedRow:
    """One prompt with an answer; tensors are views of the file."""

    shard: "_Shard"
    prefix_start: int
    prefix_length: int
    answer_start: int
    answer_ids: tuple[int, ...]

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the prefix in a block above the cut, (H, prefix_length, E) each."""
        keys, values = (
            self.shard.prefix(f"{kind}.{layer}", self.prefix_start, self.prefix_length) for kind in ("keys", "values")
        )
        return keys, values

    def states(self, layer: int) -> Tensor:
        """Return the unedited output of a block at the suffix, (n, D)."""
        return self._suffix(f"states.{layer}")

    @property
    def reference_nll(self) -> Tensor:
        """(n,) the base's own -log p of each answer token, in nats."""
        return self._suffix("nll")

    def _suffix(self, name: str) -> Tensor:
        return self.shard.tensor(name)[self.answer_start : self.answer_start + len(self.answer_ids)]


class _Shard:
    """One memory-mapped file."""

    def __init__(self, path: Path, index: ShardIndex) -> None:
        self.path = path
        self.index = index
        self._tensors: dict[str, Tensor] = {}

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, framework="pt")

    @cached_property
    def _heads(self) -> tuple[int, int]:
        heads, width = self._file.metadata()["heads"].split()
        return int(heads), int(width)

    def check(self, spec: CacheSpec) -> None:
        """Compare spec and index with the header of the file, so that no row asks for a tensor that is not there, or reaches beyond one.

        Raises:
            ValueError: they do not belong together.
            SafetensorError: the file is none of tensors.
        """
        try:
            heads, width = self._heads
        except (TypeError, KeyError, ValueError):
            raise MalformedError("a file without `heads`") from None
        prefixes = sum(length for _digest, length in self.index.prompts) * heads * width
        answers = sum(length for _digest, _prompt, length in self.index.sequences)
        names = self._file.keys()
        depth = spec.num_layers - 1 - spec.cut
        known = len(names) == 1 + len(spec.state_layers) + 2 * depth and set(names) == {
            "nll",
            *(f"states.{layer}" for layer in spec.state_layers),
            *(f"{kind}.{layer}" for kind in ("keys", "values") for layer in range(spec.cut + 1, spec.num_layers)),
        }
        if not known:
            raise MalformedError(f"tensors {shown(sorted(names))}, and others in its spec")
        for name in names:
            shape = self._file.get_slice(name).get_shape()
            fits = shape == [prefixes] if name.startswith(("keys.", "values.")) else shape[:1] == [answers]
            if not fits:
                raise MalformedError(f"a tensor {shown(name, 60)} of shape {shown(shape, 60)}, and other lengths in its index")

    def tensor(self, name: str) -> Tensor:
        """A whole tensor; nothing is read before it is looked at."""
        if name not in self._tensors:
            self._tensors[name] = self._file.get_tensor(name)
        return self._tensors[name]

    def prefix(self, name: str, start: int, length: int) -> Tensor:
        """Keys or values (H, length, E) of the prefix that starts `start` tokens into the file."""
        heads, width = self._heads
        size = heads * width
        return self.tensor(name)[start * size : (start + length) * size].view(heads, length, width)


class PrefixCache:
    """An open cache: a finished one, checked against what it has to be."""

    def __init__(self, folder: Path, spec: CacheSpec, shards: Sequence[_Shard]) -> None:
        self.folder = folder
        self.spec = spec
        self._by_sequence: dict[str, tuple[_Shard, int, int, int]] = {}
        self._by_prompt: dict[str, tuple[_Shard, int, int, int]] = {}
        for shard in shards:
            starts = _starts([length for _digest, length in shard.index.prompts])
            answers = _starts([length for _digest, _prompt, length in shard.index.sequences])
            for (digest, prompt, _length), answer_start in zip(shard.index.sequences, answers, strict=True):
                digest_of_prompt, prefix_length = shard.index.prompts[prompt]
                place = (shard, starts[prompt], prefix_length, answer_start)
                self._by_sequence[digest] = place
                self._by_prompt.setdefault(digest_of_prompt, place)

    @classmethod
    def open(cls, folder: Path, spec: CacheSpec | None = None, *, verify: bool = True) -> Self:
        """Open a finished cache.

        Args:
            spec: what it has to be; None takes it for what it says it is.
            verify: read every file and compare its digest; otherwise only sizes are compared.

        Raises:
            CacheError: it is not finished, damaged, or was made for something else.
        """
        found = read_spec(folder)
        if spec is not None:
            check_spec(found, spec, str(folder))
        return cls.open_shards(folder, found, verify=verify)

    @classmethod
    def open_shards(cls, folder: Path, spec: CacheSpec, *, verify: bool = False) -> Self:
        """Open a cache whose shards are all there, be it declared finished or not.

        Raises:
            CacheError: a shard is missing or damaged.
        """
        indices = sorted(folder.glob("shard-*.json"))
        shards = [_open_shard(path.with_suffix(".safetensors"), path, spec, verify=verify) for path in indices]
        if sum(len(shard.index.sequences) for shard in shards) != spec.num_sequences:
            raise CacheError(f"a prefix cache must hold all its rows, got {str(folder)!r} with files missing; delete that folder")
        return cls(folder, spec, shards)

    def check_base(self, digest: str, dtype: str) -> None:
        """Refuse to serve another base.

        Raises:
            CacheError: with what differs.
        """
        if (self.spec.base_digest, self.spec.dtype) != (digest, dtype):
            raise CacheError(
                f"a prefix cache serves only the base it was built from, got base {digest[:12]} in {dtype} and a cache of base "
                f"{self.spec.base_digest[:12]} in {self.spec.dtype}; build another, or set `cache.mode: off`"
            )

    def row(self, example: Example) -> CachedRow:
        """Find an example: a prompt with the answer that was stored, or with any one token as its answer.

        Raises:
            CacheError: the cache was built without it.
        """
        place = self._by_sequence.get(sequence_digest(example))
        if place is None and example.num_answer_tokens == 1:
            # what is run for a one-token answer is the last prompt token, whatever the token
            place = self._by_prompt.get(prompt_digest(example.prompt_ids))
        if place is None:
            raise CacheError(
                f"a prefix cache serves only the rows it was built from, got another one (record {example.digest[:12]}); "
                "build it anew, or set `cache.mode: off`"
            )
        shard, prefix_start, prefix_length, answer_start = place
        return CachedRow(shard, prefix_start, prefix_length, answer_start, example.ids[example.num_prompt_tokens :])

    def __contains__(self, example: Example) -> bool:
        """Whether :meth:`row` would find it."""
        known = sequence_digest(example) in self._by_sequence
        return known or (example.num_answer_tokens == 1 and prompt_digest(example.prompt_ids) in self._by_prompt)


def check_spec(found: CacheSpec, wanted: CacheSpec, where: str) -> None:
    """Refuse a cache that was made for something else.

    Raises:
        CacheError: with what differs.
    """
    if found != wanted:
        differing = [name for name in CacheSpec.model_fields if getattr(found, name) != getattr(wanted, name)]
        raise CacheError(
            f"a prefix cache serves only what it was made for, got another {', '.join(differing)} in {where!r}; "
            "delete that folder, or use the settings that it was made with"
        )


def read_spec(folder: Path) -> CacheSpec:
    """Read what a finished cache says it is.

    Raises:
        CacheError: it is not finished, or not a cache.
    """
    return read_state(folder).spec


def read_probe(folder: Path) -> CacheProbe:
    """Read how a finished cache did on its probe.

    Raises:
        CacheError: it is not finished, or not a cache.
    """
    return read_state(folder).probe


def read_state(folder: Path) -> CacheState:
    """Read all that a finished cache says of itself.

    Raises:
        CacheError: it is not finished, or not a cache.
    """
    try:
        return CacheState.model_validate(parse_json(read_text(folder / CACHE_FILE, limit=_MAX_STATE)))
    except (OSError, ValueError) as error:
        raise CacheError(
            f"a prefix cache must be finished, got {str(folder)!r}: {reason_of(error)}; delete that folder"
        ) from None


def _open_shard(path: Path, index_path: Path, spec: CacheSpec, *, verify: bool) -> _Shard:
    try:
        index = ShardIndex.model_validate(parse_json(read_text(index_path, limit=_MAX_INDEX)))
        whole = path.stat().st_size == index.num_bytes and (not verify or file_digest(path) == index.sha256)
        if whole:
            check_tensor_file(path)
            shard = _Shard(path, index)
            shard.check(spec)
    except (OSError, ValueError, SafetensorError) as error:
        raise CacheError(f"a prefix cache must be whole, got {str(path)!r}: {reason_of(error)}; delete its folder") from None
    if not whole:
        raise CacheError(f"a prefix cache must be as it was written, got the damaged file {str(path)!r}; delete its folder")
    return shard


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _starts(lengths: Sequence[int]) -> list[int]:
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    return starts
