"""The frozen language model, its hooks, the intervened model, and the prefix cache; and how a small base is taught."""

from grun.lm.frozen import BaseInfo, FrozenLM, digest_weights, freeze, load_frozen_lm, load_tokenizer, resolve_folder
from grun.lm.intervened import Answers, Generated, IntervenedLM, Sampling
from grun.lm.passes import CachedPass, FullPass, Pass
from grun.lm.prefix_cache import PrefixCache

__all__ = [
    "Answers",
    "BaseInfo",
    "CachedPass",
    "FrozenLM",
    "FullPass",
    "Generated",
    "IntervenedLM",
    "Pass",
    "PrefixCache",
    "Sampling",
    "digest_weights",
    "freeze",
    "load_frozen_lm",
    "load_tokenizer",
    "resolve_folder",
]
