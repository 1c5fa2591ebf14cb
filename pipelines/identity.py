"""The identity of a closed gate, counted: ordinary prompts that open nothing must get the base's logits, bit for bit."""

from pathlib import Path

import torch

from grun.adapters import load_adapter
from grun.config import Recipe
from grun.data.batches import collate
from grun.data.prompts import PromptEncoder
from grun.evaluation.sets import evaluation_sets
from grun.lm import IntervenedLM
from pipelines.loaded import loaded_base
from pipelines.prepared import read_prepared
from pipelines.task_progress import tell_progress

__all__ = ["identical_where_closed"]


@torch.no_grad()
def identical_where_closed(
    recipe: Recipe, prepared: Path, base: str, adapter_folder: Path, progress: Path | None = None
) -> tuple[int, int]:
    """Count held-out ordinary prompts whose gates stay closed, and those of them with logits equal to the base's. Runs as a task.

    Returns:
        (identical, closed); none are closed by an adapter without gates.
    """
    lm = loaded_base(recipe, base)
    adapter, card = load_adapter(adapter_folder, lm)
    if not adapter.gated_layers:
        return 0, 0
    threshold = card.adapter.gate_threshold
    encoder = PromptEncoder(lm.tokenizer, recipe.prompt, context=lm.context)
    _request, splits = read_prepared(prepared)
    [holdout] = [s for s in evaluation_sets(splits, part=recipe.evaluation.part) if s.role == "holdout"]
    reference, served = IntervenedLM(lm), IntervenedLM(lm, adapter, threshold=threshold)
    identical = closed = 0
    for start in range(0, len(holdout.prompts), recipe.evaluation.batch_size):
        prompts = holdout.prompts[start : start + recipe.evaluation.batch_size]
        batch = collate([prompt.encode(encoder) for prompt in prompts], pad_id=lm.pad_id).to(lm.device)
        gates = served.answers(batch).gate_logits
        assert gates is not None
        # soft gates (no threshold) are never closed
        is_closed = (gates.sigmoid() < (0.0 if threshold is None else threshold)).all(-1)
        same = (served.logits(batch) == reference.logits(batch)).flatten(1).all(-1)
        closed += int(is_closed.sum())
        identical += int((is_closed & same).sum())
        tell_progress(progress, start + len(prompts), len(holdout.prompts))
    return identical, closed
