"""ReFT ranks: how many directions the edit may use."""

from tune_spaces.space import Space, choice

__all__ = ["RANKS", "SPACE"]

RANKS = (1, 2, 4, 8, 16)

SPACE = Space(name="reft_rank", title="the rank of LoReFT", dimensions={"adapter.rank": choice(*RANKS)})
