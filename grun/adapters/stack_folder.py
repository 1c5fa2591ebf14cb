"""An adapter stack on disk: `stack.json`, and below `adapters/` one adapter folder a member, in order.

    stack.json
    adapters/01-first_request/     adapter_config.json, adapter.safetensors
    adapters/02-second_request/    ...

`stack.json` names every member with the digest of its adapter, so the digest of that one file is the identity of the
whole. Everything is checked before anything is used: names, links, order, digests, cards, certificates, and that all
members were made for one base, in one precision and with one way to build prompts.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from grun.adapters.folder import (
    ADAPTER_CONFIG,
    ADAPTER_TENSORS,
    AdapterCard,
    check_adapter,
    digest_adapter,
    load_adapter,
    read_card,
)
from grun.adapters.placing import put_folder
from grun.config import CompositionConfig, Config
from grun.config.base import NAME_PATTERN
from grun.errors import AdapterError
from grun.interventions import AdapterStack, StackMember
from grun.lm import BaseInfo, FrozenLM
from grun.reading import cut, parse_json, read_text, reason_of, shown
from grun.writing import partial_folder

__all__ = [
    "ADAPTERS",
    "STACK_CARD",
    "StackCard",
    "StackedAdapter",
    "check_stack",
    "digest_stack",
    "load_stack",
    "member_folders",
    "read_stack_card",
    "save_stack",
]

STACK_CARD, ADAPTERS = "stack.json", "adapters"

_MAX_CARD = 2**22
"""Bytes; some ten thousand members."""

_SHARED = ("base_digest", "base_dtype", "base_pad_token", "hidden_size", "num_layers", "prompt")
"""What the cards of all members have to agree on: they act on one base, on one prompt."""


class StackedAdapter(Config):
    """A member, as `stack.json` names it."""

    request_id: Annotated[str, Field(pattern=NAME_PATTERN)]
    """The request that it answers; part of its folder's name."""
    adapter_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of its adapter (:func:`grun.adapters.digest_adapter`)."""


class StackCard(Config):
    """What `stack.json` holds."""

    format_version: Literal[1] = 1
    """Version of this layout."""
    composition: CompositionConfig
    """How the members' edits become one."""
    members: tuple[StackedAdapter, ...] = Field(min_length=1)
    """The members, in order."""
    base_digest: str
    """SHA-256 over the base's weights and tokenizer; the stack loads on no other base."""

    @model_validator(mode="after")
    def _each_request_once(self) -> Self:
        ids = [member.request_id for member in self.members]
        twice = sorted(request_id for request_id, count in Counter(ids).items() if count > 1)
        if twice:
            raise ValueError(f"a request must be in a stack once, got {twice} twice; leave one of each out")
        return self

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The requests that it answers, in order."""
        return tuple(member.request_id for member in self.members)


def save_stack(members: Sequence[tuple[str, Path]], composition: CompositionConfig, folder: Path) -> Path:
    """Write a stack folder from adapter folders, whole or not at all; an older stack of the same name is replaced.

    Args:
        members: request id and adapter folder of each, in order; they may lie in the stack that is replaced.

    Raises:
        AdapterError: no member, one twice, a folder that is no adapter or of another request, adapters that do not belong
            on one base, or the folder cannot be written.
    """
    if not members:
        raise AdapterError("a stack must have a member, got none; stack an adapter, or serve the base itself")
    cards = [_read_member(request_id, source) for request_id, source in members]
    _check_together([request_id for request_id, _source in members], cards)
    card = _make_card(members, composition, cards[0].base_digest)
    try:
        with partial_folder(folder) as partial:
            (partial / ADAPTERS).mkdir()
            for (_request_id, source), target in zip(members, member_folders(partial, card), strict=True):
                target.mkdir()
                for name in (ADAPTER_CONFIG, ADAPTER_TENSORS):
                    shutil.copyfile(source / name, target / name)
            (partial / STACK_CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
            read_stack_card(partial)  # what was copied is what was read
            put_folder(partial, folder, kind="a stack", names=(STACK_CARD, ADAPTERS))
    except OSError as error:
        raise AdapterError(
            f"a stack folder must be writable, got {str(folder)!r} ({error.strerror}); choose another place"
        ) from None
    return folder


def _make_card(members: Sequence[tuple[str, Path]], composition: CompositionConfig, base_digest: str) -> StackCard:
    try:
        return StackCard(
            composition=composition,
            members=tuple(
                StackedAdapter(request_id=request_id, adapter_digest=digest_adapter(source)) for request_id, source in members
            ),
            base_digest=base_digest,
        )
    except ValidationError as error:
        raise AdapterError(f"a stack must be of named requests: {_detail(error)}") from None


def member_folders(folder: Path, card: StackCard) -> list[Path]:
    """The adapter folders of a stack folder's members, in order."""
    return [folder / ADAPTERS / f"{number:02d}-{member.request_id}" for number, member in enumerate(card.members, start=1)]


def read_stack_card(folder: Path) -> StackCard:
    """Read `stack.json` and check everything that lies in the folder, short of the tensors' shapes.

    Raises:
        AdapterError: not a stack folder, damaged, of a layout that this version does not know, with something missing, added,
            linked or out of order, or with members that do not belong on one base.
    """
    card, _cards = _read(folder)
    return card


def _read(folder: Path) -> tuple[StackCard, list[AdapterCard]]:
    """The card of a stack and those of its members, checked."""
    _check_names(folder, [STACK_CARD, ADAPTERS], "a stack")
    try:
        card = StackCard.model_validate(parse_json(read_text(folder / STACK_CARD, limit=_MAX_CARD, owned=True)))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"`{STACK_CARD}` must be as this version writes it, got {str(folder)!r}: {_detail(error)}; fetch the stack again"
        ) from None
    paths = member_folders(folder, card)
    _check_names(folder / ADAPTERS, [path.name for path in paths], f"the adapters that `{STACK_CARD}` names, in its order")
    cards = []
    for member, path in zip(card.members, paths, strict=True):
        _check_names(path, [ADAPTER_CONFIG, ADAPTER_TENSORS], "an adapter")
        cards.append(_read_member(member.request_id, path))
        digest = digest_adapter(path)
        if digest != member.adapter_digest:
            raise AdapterError(
                f"the adapter of {member.request_id!r} must be the one that was stacked, got another in {str(path)!r} "
                f"(digest {digest[:12]}, expected {member.adapter_digest[:12]}); fetch the stack again"
            )
    _check_together(card.request_ids, cards)
    if cards[0].base_digest != card.base_digest:
        raise AdapterError(
            f"`{STACK_CARD}` must name the base of its adapters, got digest {card.base_digest[:12]} for adapters of "
            f"{cards[0].base_digest[:12]} in {str(folder)!r}; fetch the stack again"
        )
    return card, cards


def digest_stack(folder: Path) -> str:
    """SHA-256 of `stack.json`, which names the digest of everything else: the identity of a stack.

    Raises:
        AdapterError: as :func:`read_stack_card`; a digest of what does not belong together says nothing.
    """
    read_stack_card(folder)
    return hashlib.sha256((folder / STACK_CARD).read_bytes()).hexdigest()


def check_stack(folder: Path, base: BaseInfo, *, hidden_size: int, num_layers: int) -> StackCard:
    """Check everything that loading checks, from files alone: a base need not be in memory to be refused.

    Raises:
        AdapterError: damaged, for another base, or with tensors of another shape.
    """
    card = read_stack_card(folder)
    for path in member_folders(folder, card):
        check_adapter(path, base, hidden_size=hidden_size, num_layers=num_layers)
    return card


def load_stack(folder: Path, lm: FrozenLM) -> tuple[AdapterStack, StackCard]:
    """Load a stack onto the base it belongs to.

    Raises:
        AdapterError: damaged, for another base, or with tensors of another shape.
    """
    card = read_stack_card(folder)
    members = []
    for member, path in zip(card.members, member_folders(folder, card), strict=True):
        adapter, adapter_card = load_adapter(path, lm)
        members.append(StackMember(member.request_id, adapter, adapter_card.adapter.gate_threshold))
    return AdapterStack(members, card.composition).to(lm.device).eval(), card


def _read_member(request_id: str, folder: Path) -> AdapterCard:
    card = read_card(folder)
    if card.request_ids and request_id not in card.request_ids:
        raise AdapterError(
            f"a request must be answered by its own adapter, got that of {list(card.request_ids)} for {request_id!r} in "
            f"{str(folder)!r}; name the adapter that was trained for it"
        )
    return card


def _check_together(request_ids: Sequence[str], cards: Sequence[AdapterCard]) -> None:
    """Refuse members that cannot act on one prompt of one base."""
    for (first_id, first), (second_id, second) in pairwise(zip(request_ids, cards, strict=True)):
        for name in _SHARED:
            one, other = getattr(first, name), getattr(second, name)
            if one != other:
                shown = [repr(value[:12]) if name == "base_digest" else repr(value) for value in (one, other)]
                raise AdapterError(
                    f"the adapters of a stack must agree on `{name}`, got {shown[0]} for {first_id!r} and {shown[1]} for "
                    f"{second_id!r}; train all of them on one base, with one way to build prompts"
                )


def _check_names(folder: Path, names: Sequence[str], what: str) -> None:
    """Refuse a folder that is a link, or that holds anything else than these, or one of these as a link."""
    if folder.is_symlink() or not folder.is_dir():
        raise AdapterError(f"{what} must be in a folder of its own, got {str(folder)!r}; check the path")
    present = sorted(path.name for path in folder.iterdir())
    if present != sorted(names):
        missing, added = sorted(set(names) - set(present)), sorted(set(present) - set(names))
        raise AdapterError(
            f"{str(folder)!r} must hold exactly {what}, {shown(sorted(names))}; missing: {shown(missing)}, not ours: {shown(added)}; fetch the stack again"
        )
    links = [name for name in present if (folder / name).is_symlink()]
    if links:
        raise AdapterError(f"a stack must hold its own files, got links {shown(links)} in {str(folder)!r}; fetch the stack again")


def _detail(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{cut('.'.join(map(str, e['loc']))) or 'the card'}: {cut(e['msg'])}" for e in error.errors()[:5])
    return reason_of(error)
