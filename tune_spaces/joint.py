"""The joint space: placement, rank, gate kind, learning rate and the weight of the gate term together."""

from ray import tune

from tune_spaces.layer_positions import PLACEMENTS
from tune_spaces.reft_rank import RANKS
from tune_spaces.space import Space, choice

__all__ = ["SPACE"]

SPACE = Space(
    name="joint",
    title="placement, rank, gate kind, learning rate and gate weight together",
    dimensions={
        "adapter.relative_depths": choice(*PLACEMENTS),
        "adapter.rank": choice(*RANKS),
        "adapter.gate.kind": choice("linear", "mlp_3"),
        "train.learning_rate": tune.loguniform(3e-4, 3e-3),
        "objective.gate_weight": tune.loguniform(1.0, 30.0),
    },
)
