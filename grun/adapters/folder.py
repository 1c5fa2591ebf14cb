"""An adapter on disk: `adapter_config.json` and `adapter.safetensors`, nothing else, no pickle.

The configuration says what it is (layers, rank, gate, threshold), which base it belongs to and what it answers for;
loading checks all of it, the digest of the tensors, and the certificate if there is one, before anything is used.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from grun import __version__
from grun.adapters.certified import check_certificate
from grun.adapters.placing import put_folder
from grun.certificate import Certificate
from grun.config import AdapterConfig, Config, PromptConfig
from grun.errors import AdapterError, ConfigError
from grun.interventions import Adapter, build_adapter
from grun.lm import BaseInfo, FrozenLM
from grun.reading import MalformedError, check_tensor_file, cut, digest_file, read_text, reason_of, shown
from grun.writing import partial_folder, seal, unseal

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_TENSORS",
    "AdapterCard",
    "check_adapter",
    "copy_adapter",
    "digest_adapter",
    "load_adapter",
    "read_card",
    "save_adapter",
]

ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter.safetensors"

_ORTHONORMAL_WITHIN = 1e-4
_MAX_CONFIG = 2**20
"""Bytes of a configuration."""
_MAX_FINDINGS, _MAX_DETAIL = 5, 1000
"""How much of what is wrong a message names."""


class AdapterCard(Config):
    """What `adapter_config.json` holds."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    adapter: AdapterConfig
    """Layers (resolved), rank, gate and gate threshold."""
    hidden_size: PositiveInt
    """Width of the base's residual stream."""
    num_layers: PositiveInt
    """Number of decoder blocks of the base."""
    base_name: str
    """Path or hub name of the base it was trained on."""
    base_revision: str | None = None
    """Hub revision of the base."""
    base_digest: str
    """SHA-256 over the base's weights and tokenizer; the adapter loads on no other base."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision the base had in training."""
    base_pad_token: str | None = None
    """Pad token that was named for a tokenizer without one."""
    request_ids: tuple[str, ...] = ()
    """The unlearning requests that it answers for."""
    data_digests: dict[str, str] = Field(default_factory=dict)
    """Content digests of forget, retain and holdout set."""
    prompt: PromptConfig = PromptConfig()
    """How prompts were built in training; a gate knows no other."""
    steps: NonNegativeInt = 0
    """Optimizer steps it was trained for."""
    code_version: str = __version__
    """Version of this package."""
    tensors_sha256: str = ""
    """SHA-256 of `adapter.safetensors`."""
    certificate: Certificate | None = None
    """What is promised about ordinary prompts; null where nothing is."""

    @property
    def base(self) -> BaseInfo:
        """The base it belongs to."""
        return BaseInfo(self.base_name, self.base_revision, self.base_digest)


def save_adapter(adapter: Adapter, card: AdapterCard, folder: Path) -> Path:
    """Write an adapter folder, whole or not at all; an older one of the same name is replaced.

    Raises:
        AdapterError: the folder cannot be written, or the card's certificate is of something else.
        DiskError: its disk is full, or the like.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
    return _write(folder, card, save(tensors))


def _write(folder: Path, card: AdapterCard, tensors: bytes) -> Path:
    whole = card.model_copy(update={"tensors_sha256": hashlib.sha256(tensors).hexdigest()})
    _check_certificate(whole)
    try:
        with partial_folder(folder) as partial:
            (partial / ADAPTER_TENSORS).write_bytes(tensors)
            (partial / ADAPTER_CONFIG).write_text(seal(whole.model_dump(mode="json")) + "\n", encoding="utf-8")
            put_folder(partial, folder, kind="an adapter", names=(ADAPTER_CONFIG, ADAPTER_TENSORS))
    except OSError as error:
        raise AdapterError(
            f"an adapter folder must be writable, got {str(folder)!r} ({error.strerror}); choose another `output`"
        ) from None
    return folder


def read_card(folder: Path) -> AdapterCard:
    """Read and check `adapter_config.json` with its certificate, and the presence and digest of the tensors.

    Raises:
        AdapterError: not an adapter folder, damaged, of a layout that this version does not know, or with a certificate of
            something else.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if names != sorted([ADAPTER_CONFIG, ADAPTER_TENSORS]):
        raise AdapterError(
            f"an adapter is a folder of exactly `{ADAPTER_CONFIG}` and `{ADAPTER_TENSORS}`, got {str(folder)!r} with {shown(names)}; check the path"
        )
    card = _read_config(folder)
    try:
        digest = digest_file(folder / ADAPTER_TENSORS, owned=True)
    except (OSError, MalformedError) as error:
        raise AdapterError(
            f"`{ADAPTER_TENSORS}` must be a readable file of its own, got {str(folder)!r} ({reason_of(error)}); fetch the adapter again"
        ) from None
    if digest != card.tensors_sha256:
        raise AdapterError(
            f"`{ADAPTER_TENSORS}` must be as it was written, got other bytes in {str(folder)!r} "
            f"(SHA-256 {digest[:12]}, expected {card.tensors_sha256[:12]}); fetch the adapter again"
        )
    _check_certificate(card)
    return card


def _read_config(folder: Path) -> AdapterCard:
    try:
        return AdapterCard.model_validate(unseal(read_text(folder / ADAPTER_CONFIG, limit=_MAX_CONFIG, owned=True)))
    except (OSError, ValueError) as error:  # ValueError: of the file, of JSON, of the schema
        detail = (
            "; ".join(f"{shown(e['loc'])}: {cut(e['msg'])}" for e in error.errors()[:_MAX_FINDINGS])
            if isinstance(error, ValidationError)
            else reason_of(error)
        )
        raise AdapterError(
            f"`{ADAPTER_CONFIG}` must be as this version writes it, got {str(folder)!r}: {detail}; export it again"
        ) from None


def _check_certificate(card: AdapterCard) -> None:
    if card.certificate is not None:
        check_certificate(
            card.certificate,
            layers=card.adapter.layers or (),
            gate_threshold=card.adapter.gate_threshold,
            base_digest=card.base_digest,
            tensors_sha256=card.tensors_sha256,
        )


def copy_adapter(source: Path, target: Path, *, gate_threshold: float | None, certificate: Certificate | None = None) -> Path:
    """Copy an adapter folder with another gate threshold: the one thing about it that is decided after training.

    Args:
        target: may be the source itself, which is then replaced.
        certificate: the one of this threshold; None keeps the source's own as long as it speaks for the threshold.

    Raises:
        AdapterError: the source is no adapter, the target cannot be written, or the certificate is of something else.
    """
    card = read_card(source)
    changed = AdapterConfig.model_validate({**card.adapter.model_dump(), "gate_threshold": gate_threshold})
    kept = card.certificate if card.certificate is not None and card.certificate.covers(gate_threshold) else None
    copied = card.model_copy(update={"adapter": changed, "certificate": certificate or kept})
    return _write(target, copied, (source / ADAPTER_TENSORS).read_bytes())


def digest_adapter(folder: Path) -> str:
    """SHA-256 over both files: the identity of an adapter."""
    parts = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (ADAPTER_CONFIG, ADAPTER_TENSORS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check_adapter(folder: Path, base: BaseInfo, *, hidden_size: int, num_layers: int) -> AdapterCard:
    """Check everything that loading checks, from files alone: a base need not be in memory to be refused.

    Raises:
        AdapterError: damaged, for another base, or with tensors of another shape.
    """
    card = read_card(folder)
    _check_belongs(card, base, hidden_size, num_layers)
    _read_tensors(folder, card)
    return card


def load_adapter(folder: Path, lm: FrozenLM) -> tuple[Adapter, AdapterCard]:
    """Load an adapter onto the base it belongs to.

    Raises:
        AdapterError: damaged, for another base, or with tensors of another shape.
    """
    card = read_card(folder)
    _check_belongs(card, lm.info, lm.hidden_size, lm.num_layers)
    return _read_tensors(folder, card).to(lm.device).eval(), card


def _check_belongs(card: AdapterCard, base: BaseInfo, hidden_size: int, num_layers: int) -> None:
    if card.base_digest != base.digest:
        raise AdapterError(
            f"an adapter loads only on the base it was trained on, got one for {card.base_name!r} (digest {card.base_digest[:12]}) "
            f"and the base {base.name!r} (digest {base.digest[:12]}); name that base by `model.path`"
        )
    if (card.hidden_size, card.num_layers) != (hidden_size, num_layers):
        raise AdapterError(
            f"an adapter must be of its base's shape, got {card.num_layers} blocks of width {card.hidden_size} for a base of "
            f"{num_layers} blocks of width {hidden_size}; its configuration is damaged, fetch it again"
        )


def _read_tensors(folder: Path, card: AdapterCard) -> Adapter:
    """Build the adapter that the card describes, with the folder's tensors in it."""
    try:
        check_tensor_file(folder / ADAPTER_TENSORS, owned=True)
        adapter = build_adapter(card.adapter, hidden_size=card.hidden_size, num_layers=card.num_layers, seed=0)
        tensors = load_file(folder / ADAPTER_TENSORS)
        _check_types(adapter, tensors, folder)
        adapter.load_state_dict(tensors)
    except (ConfigError, SafetensorError, RuntimeError, OSError, ValueError) as error:
        detail = " ".join(str(error).split())[:_MAX_DETAIL]
        raise AdapterError(
            f"`{ADAPTER_TENSORS}` must hold the tensors its configuration names, got {str(folder)!r}: {detail}; fetch the adapter again"
        ) from None
    _check_sound(adapter, folder)
    return adapter


def _check_types(adapter: Adapter, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse numbers that loading would turn into others: of complex ones it would take a half."""
    other = [name for name, own in adapter.state_dict().items() if name in tensors and tensors[name].dtype != own.dtype]
    if other:
        raise AdapterError(f"an adapter must be in float32, got {shown(other)} otherwise in {str(folder)!r}; fetch it again")


@torch.no_grad()
def _check_sound(adapter: Adapter, folder: Path) -> None:
    """Refuse numbers that no training of ours leaves behind: they would load, and then do something else."""
    unsound = [name for name, p in adapter.named_parameters() if not bool(p.isfinite().all())]
    for layer, gated in adapter:
        basis = gated.intervention.basis
        if float((basis.T @ basis - torch.eye(basis.shape[1])).abs().max()) > _ORTHONORMAL_WITHIN:
            unsound.append(f"the basis of layer {layer}")
    if unsound:
        raise AdapterError(
            f"an adapter must be finite and with an orthonormal basis, got {shown(unsound)} otherwise in {str(folder)!r}; fetch it again"
        )
