"""Objectives: from what a model said about answers, and what its gates said, to a loss. They never see a model."""

from grun.objectives.base import (
    AnswerSource,
    AnswerTokens,
    EnvironmentGradient,
    Needs,
    ObjectiveInputs,
    ObjectiveOutput,
    Term,
    Totals,
)
from grun.objectives.reading import read_layer
from grun.objectives.weighted_sum import FORGET_TERMS, RETAIN_TERMS, Objective, build_objective

__all__ = [
    "FORGET_TERMS",
    "RETAIN_TERMS",
    "AnswerSource",
    "AnswerTokens",
    "EnvironmentGradient",
    "Needs",
    "Objective",
    "ObjectiveInputs",
    "ObjectiveOutput",
    "Term",
    "Totals",
    "build_objective",
    "read_layer",
]
