"""Which block's output the terms on hidden states read.

A block before the last intervened one would leave the later interventions without a gradient: nothing that it
outputs depends on them. So that is refused.
"""

from collections.abc import Sequence

from grun.config import ObjectiveConfig, RetainHiddenConfig, RmuConfig
from grun.errors import ConfigError

__all__ = ["read_layer"]


def read_layer(config: ObjectiveConfig, layers: Sequence[int], *, num_layers: int) -> int | None:
    """Return the block whose output is read, or None if no term reads hidden states.

    Args:
        layers: the intervened blocks.
        num_layers: how many blocks the base has.

    Raises:
        ConfigError: a block before the last intervened one or outside the model, or two terms that read different blocks.
    """
    last = max(layers)
    read: dict[str, int] = {}
    for side, term in (("forget", config.forget), ("retain", config.retain)):
        if isinstance(term, RmuConfig | RetainHiddenConfig):
            layer = last if term.read_layer is None else term.read_layer
            read[f"objective.{side}.read_layer"] = layer
    for name, layer in read.items():
        if not last <= layer < num_layers:
            raise ConfigError(
                f"`{name}` must lie in {last}..{num_layers - 1}, from the last intervened block to the last of this base, "
                f"got {layer}; an earlier block gives later interventions no gradient: name another, or leave it out"
            )
    if len(set(read.values())) > 1:
        got = ", ".join(f"`{name}` {layer}" for name, layer in read.items())
        raise ConfigError(f"the forget and the retain term must read the same block, got {got}; set both to one block")
    return next(iter(read.values()), None)
