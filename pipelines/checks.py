"""Checks that come before any work: does the adapter fit the base, does every row fit the context."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig

from grun.config import Recipe
from grun.data.prompts import PromptEncoder
from grun.data.records import Record
from grun.errors import ModelError
from grun.interventions import check_fits
from grun.lm import load_tokenizer, resolve_folder
from grun.lm.frozen import context_of
from grun.objectives import read_layer
from pipelines.prepared import Prepared

__all__ = ["check_base", "check_rows"]


def check_base(recipe: Recipe) -> None:
    """Refuse an adapter or objective that does not fit the base; reads a configuration, never weights.

    Raises:
        ConfigError: a layer outside the model, a rank above the hidden size, a read layer that gives no gradient.
        ModelError: the base is missing, or its tokenizer cannot pad.
    """
    taught = recipe.model.taught
    hidden_size, num_layers = taught.hidden_size, taught.num_layers
    for path in (recipe.model.path, recipe.model.retain_path):
        if path is None:
            continue
        folder = resolve_folder(path, recipe.model.revision if path == recipe.model.path else None)
        load_tokenizer(folder, recipe.model.pad_token)
        if path == recipe.model.path:
            hidden_size, num_layers = _shape(folder)
    layers = check_fits(recipe.adapter, hidden_size=hidden_size, num_layers=num_layers)
    read_layer(recipe.objective, layers, num_layers=num_layers)


def _shape(folder: Path) -> tuple[int, int]:
    try:
        text = AutoConfig.from_pretrained(folder).get_text_config()
        return int(text.hidden_size), int(text.num_hidden_layers)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ModelError(
            f"a base model must have a valid config.json, got {str(folder)!r}: {first_line}; download it again"
        ) from None


def check_rows(recipe: Recipe, prepared: Prepared) -> None:
    """Tokenise every record with the base's own tokenizer.

    Raises:
        DataError: a prompt that does not fit the context, or is not a prefix of prompt and answer.
    """
    folder = resolve_folder(prepared.base, recipe.model.revision)
    config = AutoConfig.from_pretrained(folder)
    encoder = PromptEncoder(load_tokenizer(folder, recipe.model.pad_token), recipe.prompt, context=context_of(config))
    splits = prepared.splits
    sets: Sequence[Sequence[Record]] = (splits.forget, splits.retain, splits.holdout, *splits.utility.values())
    for records in sets:
        for record in records:
            encoder.encode(record)
