"""The table of attacks. A new one is a function from the bench to what it asks, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from grun.data.wrappers import EVALUATION_FAMILIES
from grun.errors import ConfigError, near_miss
from grun.evaluation.attacks.adapter_off import adapter_off
from grun.evaluation.attacks.bench import Attacked, Bench, Skipped, measure
from grun.evaluation.attacks.best_of import SAMPLES, TEMPERATURE, best_of
from grun.evaluation.attacks.clues import chain_of_clues
from grun.evaluation.attacks.partial_answer import partial_answer
from grun.evaluation.attacks.prompt_forms import format_shift, paraphrase
from grun.evaluation.attacks.quantised import quantised
from grun.evaluation.attacks.relearning import STEPS, relearn_adapter, relearn_base
from grun.evaluation.attacks.result import AttackResult

__all__ = ["ATTACKS", "Attack", "run_attack", "select_attacks"]


@dataclass(frozen=True)
class Attack:
    """A way to get at what was to be forgotten."""

    family: str
    description: str
    """What is done, in a sentence for the reader of a report."""
    target: Literal["prompts", "model"]
    function: Callable[[Bench], Attacked]


ATTACKS: dict[str, Attack] = {
    "paraphrase": Attack("paraphrase", "the question in other words", "prompts", paraphrase),
    **{
        f"format/{name}": Attack("format", family.description, "prompts", format_shift(name))
        for name, family in EVALUATION_FAMILIES.items()
    },
    "partial_answer": Attack(
        "partial_answer", "the first half of the answer is given; only the rest counts", "prompts", partial_answer
    ),
    "best_of_n": Attack(
        "best_of_n", f"the best of {SAMPLES} samples at temperature {TEMPERATURE:g}, by ROUGE-L recall", "prompts", best_of
    ),
    "chain_of_clues": Attack(
        "chain_of_clues", "up to three other answers about the same subject come first", "prompts", chain_of_clues
    ),
    "quantised/int8": Attack("quantised", "the base quantised to 8 bits under the adapter", "model", quantised("int8")),
    "quantised/int4": Attack("quantised", "the base quantised to 4 bits under the adapter", "model", quantised("int4")),
    "relearning/base": Attack(
        "relearning",
        f"the base fine-tuned {STEPS} steps on a quarter of the forget set, asked for the rest",
        "model",
        relearn_base,
    ),
    "relearning/adapter": Attack(
        "relearning",
        f"the adapter fine-tuned {STEPS} steps on a quarter of the forget set, asked for the rest",
        "model",
        relearn_adapter,
    ),
    "adapter_off": Attack("adapter_off", "the adapter switched off: the weights still know", "model", adapter_off),
}
"""Every attack, by name."""


def select_attacks(text: str) -> tuple[str, ...]:
    """Names of attacks from `all`, `none`, or names and families with commas between them; each once, in the order of the table.

    Raises:
        ConfigError: a word is neither a name nor a family.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    families = {attack.family for attack in ATTACKS.values()}
    known = ["all", "none", *ATTACKS, *sorted(families)]
    for word in words:
        if word not in known:
            raise ConfigError(
                f"`--attacks` takes `all`, `none`, or names and families of attacks, got {word!r}{near_miss(word, known)}; known are "
                f"{', '.join(dict.fromkeys(known))}"
            )
    if not words or (len(words) > 1 and "none" in words):
        raise ConfigError(f"`--attacks` takes `all`, `none`, or names and families of attacks, got {text!r}; name some")
    return tuple(name for name, attack in ATTACKS.items() if "all" in words or name in words or attack.family in words)


def run_attack(name: str, bench: Bench, *, keep_text: bool = False) -> AttackResult | Skipped:
    """Try one attack.

    Args:
        keep_text: whether the worst leak may be quoted.
    """
    attack = ATTACKS[name]
    return measure(name, attack.family, attack.description, attack.target, attack.function(bench), bench, keep_text=keep_text)
