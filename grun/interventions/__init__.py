"""Interventions: what is done to a hidden state. LoReFT, a gate around it, and the adapter that holds them; and stacks of adapters."""

from grun.interventions.adapter import Adapter, build_adapter, check_fits
from grun.interventions.composition import COMPOSITIONS
from grun.interventions.edits import Edits
from grun.interventions.gated import Change, Edited, GatedIntervention
from grun.interventions.loreft import LoReFT
from grun.interventions.stack import AdapterStack, StackMember

__all__ = [
    "COMPOSITIONS",
    "Adapter",
    "AdapterStack",
    "Change",
    "Edited",
    "Edits",
    "GatedIntervention",
    "LoReFT",
    "StackMember",
    "build_adapter",
    "check_fits",
]
