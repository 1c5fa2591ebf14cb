"""Interventions: what is done to a hidden state. LoReFT, a gate around it, and the adapter that holds them."""

from grun.interventions.adapter import Adapter, build_adapter, check_fits
from grun.interventions.gated import Edited, GatedIntervention
from grun.interventions.loreft import LoReFT

__all__ = ["Adapter", "Edited", "GatedIntervention", "LoReFT", "build_adapter", "check_fits"]
