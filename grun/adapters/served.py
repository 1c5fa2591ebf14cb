"""What is served: the base with an adapter, or with a stack of them, whichever a folder holds."""

from pathlib import Path

from grun.adapters.folder import AdapterCard, load_adapter, read_card
from grun.adapters.stack_folder import STACK_CARD, load_stack, member_folders, read_stack_card
from grun.lm import FrozenLM, IntervenedLM

__all__ = ["load_served", "serving_card"]


def serving_card(folder: Path) -> AdapterCard:
    """Read what serving has to know of an adapter, or of a stack: base, precision, pad token and prompt are the same in all its cards.

    Raises:
        AdapterError: as :func:`read_card` and :func:`read_stack_card`.
    """
    if not (folder / STACK_CARD).is_file():
        return read_card(folder)
    return read_card(member_folders(folder, read_stack_card(folder))[0])


def load_served(folder: Path, lm: FrozenLM) -> IntervenedLM:
    """Put an adapter or a stack on its base, with the gate thresholds of its cards.

    Raises:
        AdapterError: as :func:`load_adapter` and :func:`load_stack`.
    """
    if (folder / STACK_CARD).is_file():
        return IntervenedLM(lm, load_stack(folder, lm)[0])
    adapter, card = load_adapter(folder, lm)
    return IntervenedLM(lm, adapter, threshold=card.adapter.gate_threshold)
