"""Compared systems: what unlearning is usually done with. They change the base itself, by LoRA or in all its weights.

An adapter of ours leaves the base as it is and can be taken off again; these cannot promise that. They are here to be
measured on the same rows, with the same terms, and are never registered or served.
"""

from grun.compared.base import ChangedBase
from grun.compared.full import full_fine_tuning
from grun.compared.lora import LoraSettings, lora
from grun.compared.train import train_changed

__all__ = ["ChangedBase", "LoraSettings", "full_fine_tuning", "lora", "train_changed"]
