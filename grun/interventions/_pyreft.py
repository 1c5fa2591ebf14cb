"""The two classes we take from pyreft, imported without the line that its dependency prints to stdout."""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):
    from pyreft.interventions import LoreftIntervention, LowRankRotateLayer

__all__ = ["LoreftIntervention", "LowRankRotateLayer"]
