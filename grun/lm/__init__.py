"""The frozen language model and its variants, hooks, the intervened model, the prefix cache; and how a small base is taught."""

from grun.lm.frozen import BaseInfo, FrozenLM, digest_weights, freeze, load_frozen_lm, load_tokenizer, resolve_folder
from grun.lm.intervened import Answers, Generated, IntervenedLM, Sampling
from grun.lm.passes import CachedPass, FullPass, Pass
from grun.lm.prefix_cache import PrefixCache
from grun.lm.variants import base_variant, variant_of

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
    "base_variant",
    "digest_weights",
    "freeze",
    "load_frozen_lm",
    "load_tokenizer",
    "resolve_folder",
    "variant_of",
]
