"""Search spaces. A new one is a file with a `SPACE` and a line in this table."""

from grun.errors import ConfigError, near_miss
from tune_spaces import gate_threshold, joint, layer_positions, reft_rank
from tune_spaces.space import Space, apply_point, choice

__all__ = ["SPACES", "Space", "apply_point", "choice", "find_space"]

SPACES: dict[str, Space] = {module.SPACE.name: module.SPACE for module in (gate_threshold, layer_positions, reft_rank, joint)}


def find_space(name: str) -> Space:
    """Return a space by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SPACES:
        raise ConfigError(f"`sweep.space` must be one of {sorted(SPACES)}, got {name!r}{near_miss(name, SPACES)}")
    return SPACES[name]
