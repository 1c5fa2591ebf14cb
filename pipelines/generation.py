"""Answer prompts with an adapter, or a stack of them, on its base: what the registered model does through `mlflow.pyfunc`."""

from collections.abc import Sequence
from pathlib import Path

from grun.adapters import load_served, serving_card
from grun.data.prompts import PromptEncoder
from grun.lm import load_frozen_lm

__all__ = ["answer_with_adapter"]

_BATCH_SIZE = 32


def answer_with_adapter(adapter_folder: Path, base_path: str, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """Answer questions greedily with an adapter or a stack, with its own template and gate thresholds.

    Raises:
        AdapterError: the adapter or stack is damaged or for another base.
        ModelError: the base is not there.
    """
    card = serving_card(adapter_folder)
    lm = load_frozen_lm(base_path, revision=card.base_revision, dtype=card.base_dtype, pad_token=card.base_pad_token)
    encoder = PromptEncoder(lm.tokenizer, card.prompt, context=lm.context)
    model = load_served(adapter_folder, lm)
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        ids = [encoder.prompt_ids(prompt) for prompt in prompts[start : start + _BATCH_SIZE]]
        answers += model.generate(ids, max_new_tokens=max_new_tokens).texts
    return answers
