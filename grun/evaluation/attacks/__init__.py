"""Attacks: ways in which somebody may get at what was to be forgotten, and what each of them gets."""

from grun.evaluation.attacks.result import AttackResult, Leak

__all__ = ["AttackResult", "Leak"]
