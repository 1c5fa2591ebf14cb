"""Run an adapter inside pyreft, on the same base and with the same numbers.

pyreft and the library under it, pyvene, attach interventions by component, unit and unit location; an adapter is one
intervention per edited block at component `block_output`, unit `pos`, one location: the last prompt token. Source:
Wu et al. 2024, arXiv:2404.03592, and pyreft 0.1.0. Nothing is copied: parameters are shared with the adapter.

Two traps of pyvene: every call of a `ReftModel` first removes all hooks of the base model, not only its own; and with
`intervene_on_prompt=True`, which `generate` needs, it edits the prefill only, exactly as we do.

Shapes: B sequences, D hidden size, L edited blocks.
"""

from typing import Any

import pyreft
import pyvene
from torch import Tensor

from grun.errors import AdapterError
from grun.interventions import Adapter, GatedIntervention
from grun.lm import FrozenLM

__all__ = ["last_prompt_locations", "to_pyreft"]


class _PyreftIntervention(
    pyvene.SourcelessIntervention,  # type: ignore[misc] # pyvene ships no types
    pyvene.TrainableIntervention,  # type: ignore[misc]
    pyvene.DistributedRepresentationIntervention,  # type: ignore[misc]
):
    """A gated intervention behind pyvene's interface."""

    def __init__(self, gated: GatedIntervention, threshold: float | None) -> None:
        super().__init__(embed_dim=gated.intervention.hidden_size, keep_last_dim=True)
        self.gated = gated
        self.threshold = threshold

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None) -> Tensor:  # noqa: ARG002 - pyvene's interface
        """Edit base (B, 1, D)."""
        edited = self.gated(base.flatten(0, 1), threshold=self.threshold)
        hidden: Tensor = edited.hidden.view_as(base)
        return hidden


def to_pyreft(adapter: Adapter, lm: FrozenLM, *, threshold: float | None) -> pyreft.ReftModel:
    """Put an adapter's interventions into pyreft, around the very same base model.

    Call it with `unit_locations` from :func:`last_prompt_locations`.

    Args:
        threshold: gate threshold; None leaves gates soft, as in training.

    Raises:
        AdapterError: the adapter is for another hidden size, or for more blocks than the base has.
    """
    if adapter.hidden_size != lm.hidden_size:
        raise AdapterError(
            f"an adapter must have the hidden size of its base, got {adapter.hidden_size} for a base of {lm.hidden_size}; "
            "use the base it was trained on"
        )
    if adapter.layers[-1] >= lm.num_layers:
        raise AdapterError(
            f"an adapter's blocks must lie in 0..{lm.num_layers - 1}, the blocks of this base, got {list(adapter.layers)}; "
            "use the base it was trained on"
        )
    representations = [
        {
            "layer": layer,
            "component": _component(lm, layer),
            "unit": "pos",
            "max_number_of_units": 1,
            "low_rank_dimension": gated.intervention.rank,
            "intervention": _PyreftIntervention(gated, threshold),
        }
        for layer, gated in adapter
    ]
    return pyreft.get_reft_model(lm.model, pyreft.ReftConfig(representations=representations))


def last_prompt_locations(last_prompt: Tensor, num_layers: int) -> dict[str, tuple[None, list[list[list[int]]]]]:
    """Return pyreft's `unit_locations` for the last prompt token of each row.

    Args:
        last_prompt: (B,) index of each row's last prompt token; for `generate`, where prompts are padded on the left,
            the padded length minus one in every row.
        num_layers: number L of edited blocks.
    """
    return {"sources->base": (None, [[[position] for position in last_prompt.tolist()]] * num_layers)}


def _component(lm: FrozenLM, layer: int) -> str:
    """`block_output` where pyvene knows the architecture, elsewhere the path of the block, which it also takes."""
    if type(lm.model) in pyvene.type_to_module_mapping:
        return "block_output"
    path = next(name for name, module in lm.model.named_modules() if module is lm.blocks[layer])
    return f"{path}.output"
