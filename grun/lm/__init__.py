"""The frozen language model, its hooks, and the intervened model; and how a small base is taught."""

from grun.lm.frozen import BaseInfo, FrozenLM, digest_weights, freeze, load_frozen_lm, load_tokenizer, resolve_folder
from grun.lm.intervened import Answers, Generated, IntervenedLM

__all__ = [
    "Answers",
    "BaseInfo",
    "FrozenLM",
    "Generated",
    "IntervenedLM",
    "digest_weights",
    "freeze",
    "load_frozen_lm",
    "load_tokenizer",
    "resolve_folder",
]
