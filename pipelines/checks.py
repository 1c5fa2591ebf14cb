"""Checks that come before any work: does the adapter fit the base, does every row fit the context."""

from collections.abc import Sequence

from grun.config import Recipe
from grun.data.prompts import PromptEncoder
from grun.data.records import Record
from grun.interventions import check_fits
from grun.lm import load_tokenizer, resolve_folder
from grun.lm.frozen import context_of, load_config
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
        load_config(folder)
        load_tokenizer(folder, recipe.model.pad_token)
        if path == recipe.model.path:
            text = load_config(folder).get_text_config()
            hidden_size, num_layers = int(text.hidden_size), int(text.num_hidden_layers)
    layers = check_fits(recipe.adapter, hidden_size=hidden_size, num_layers=num_layers)
    read_layer(recipe.objective, layers, num_layers=num_layers)


def check_rows(recipe: Recipe, prepared: Prepared) -> None:
    """Tokenise every record with the base's own tokenizer.

    Raises:
        DataError: a prompt that does not fit the context, or is not a prefix of prompt and answer.
    """
    folder = resolve_folder(prepared.base, recipe.model.revision)
    tokenizer = load_tokenizer(folder, recipe.model.pad_token)
    encoder = PromptEncoder(tokenizer, recipe.prompt, context=context_of(load_config(folder)))
    splits = prepared.splits
    sets: Sequence[Sequence[Record]] = (splits.forget, splits.retain, splits.holdout, *splits.utility.values())
    for records in sets:
        for record in records:
            encoder.encode(record)
