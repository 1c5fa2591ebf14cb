"""Layer positions: where the interventions sit, as fractions of the depth, so that one space fits every model.

The paper's placement is blocks 20, 25 and 31 of 32: the last, the 7th-to-last and the 12th-to-last (arXiv:2502.17823).
"""

from tune_spaces.space import Space, choice

__all__ = ["PLACEMENTS", "SPACE"]

PLACEMENTS: tuple[list[float], ...] = (
    [20 / 32, 25 / 32, 31 / 32],
    [12 / 32, 16 / 32, 20 / 32],
    [16 / 32, 20 / 32],
    [16 / 32, 24 / 32],
    [12 / 32],
    [16 / 32],
    [20 / 32],
)

SPACE = Space(
    name="layer_positions",
    title="which decoder blocks are edited, as relative depths",
    dimensions={"adapter.relative_depths": choice(*PLACEMENTS)},
)
