"""Checks that come before any work: does the adapter fit the base, does every row fit the context, does the server answer."""

from pathlib import Path
from urllib.parse import urlsplit

from grun.adapters import check_adapter, read_card
from grun.config import Recipe, TrackingConfig
from grun.data.prompts import PromptEncoder
from grun.data.splits import Splits
from grun.errors import ConfigError
from grun.evaluation.multiple_choice import encode_question
from grun.evaluation.requirements import check_required, missing_metrics
from grun.evaluation.sets import evaluation_sets
from grun.interventions import check_fits
from grun.lm import BaseInfo, load_tokenizer, resolve_folder
from grun.lm.frozen import check_weights, context_of, digest_weights, load_config, read_shape
from grun.objectives import read_layer
from grun.training import forget_answers, preferred_answers, training_rows
from pipelines.console import note
from pipelines.mlflow_store import Store
from pipelines.prepared import Prepared
from pipelines.retain_logs import check_logs
from pipelines.scoring import questions_of
from pipelines.shared_caches import SharedCaches

__all__ = [
    "check_answers",
    "check_base",
    "check_full_precision",
    "check_metrics",
    "check_rows",
    "check_saved_adapter",
    "check_storage",
    "check_tracking",
    "note_missing_metrics",
]


def check_base(recipe: Recipe) -> None:
    """Refuse an adapter or objective that does not fit the base; reads configurations and headers, never weights.

    Raises:
        ConfigError: a layer outside the model, a rank above the hidden size, a read layer that gives no gradient.
        ModelError: the base is missing or damaged, or its tokenizer cannot pad.
    """
    taught = recipe.model.taught
    hidden_size, num_layers = taught.hidden_size, taught.num_layers
    for path in (recipe.model.path, recipe.model.retain_path):
        if path is None:
            continue
        folder = resolve_folder(path, recipe.model.revision if path == recipe.model.path else None)
        load_config(folder)
        check_weights(folder)
        load_tokenizer(folder, recipe.model.pad_token)
        if path == recipe.model.path:
            shape = read_shape(folder)
            hidden_size, num_layers = shape.hidden_size, shape.num_layers
    layers = check_fits(recipe.adapter, hidden_size=hidden_size, num_layers=num_layers)
    read_layer(recipe.objective, layers, num_layers=num_layers)


def check_answers(recipe: Recipe, splits: Splits) -> None:
    """Refuse records that lack the answers that the objective teaches.

    Raises:
        DataError: alternative answers are asked for, and a record brings none.
    """
    forget_answers(recipe, splits)
    preferred_answers(recipe, splits)


def check_full_precision(recipe: Recipe) -> None:
    """Refuse to train, or promote, on a base in another format than it has on disk.

    Raises:
        ConfigError: with the command that scores an adapter on such a base.
    """
    for field in ("quantization", "decomposition"):
        if (value := getattr(recipe.model, field)) != "none":
            raise ConfigError(
                f"an adapter must be trained and promoted on the full-precision base, got `model.{field}: {value}`; "
                f"leave it out here, and score the adapter on that base: `evaluate.py --model.{field} {value}`"
            )


def check_rows(recipe: Recipe, prepared: Prepared) -> None:
    """Tokenise with the base's own tokenizer everything that training and evaluation will: wordings, wrong answers, refusals.

    Raises:
        DataError: a row that does not fit the context, or whose prompt is not a prefix of prompt and answer.
    """
    folder = resolve_folder(prepared.base, recipe.model.revision)
    tokenizer = load_tokenizer(folder, recipe.model.pad_token)
    encoder = PromptEncoder(tokenizer, recipe.prompt, context=context_of(load_config(folder)))
    splits = prepared.splits
    training_rows(recipe, splits, encoder)
    for evaluated in evaluation_sets(splits):
        for prompt in evaluated.prompts:
            for wording in prompt.answers:
                prompt.encode(encoder, answer=wording)
    for question in questions_of(recipe):
        encode_question(question, encoder)


def check_metrics(recipe: Recipe, prepared: Prepared) -> None:
    """Refuse retain-only logs and questions that cannot be used, and a required metric that there will not be.

    Raises:
        DataError: what is wrong about the logs or the questions.
        ConfigError: the metrics, and how to get them.
    """
    check_logs(recipe, prepared)
    questions = questions_of(recipe)
    check_required(
        recipe.evaluation.require,
        evaluation_sets(prepared.splits),
        retain_only=prepared.retain_only is not None,
        multiple_choice=bool(questions),
    )


def note_missing_metrics(prepared: Prepared) -> None:
    """Say before any training which metrics there will not be, and how to get them."""
    missing = missing_metrics(
        evaluation_sets(prepared.splits),
        retain_only=prepared.retain_only is not None,
        multiple_choice=True,  # whoever wants them names a file; nobody misses them
    )
    by_remedy: dict[str, list[str]] = {}
    for name, remedy in missing.items():
        by_remedy.setdefault(remedy, []).append(name)
    if by_remedy:
        note("the report will lack " + "; and ".join(f"{', '.join(names)}: {remedy}" for remedy, names in by_remedy.items()))


def check_saved_adapter(recipe: Recipe, prepared: Prepared, folder: Path) -> None:
    """Refuse an adapter folder that is damaged or for another base; a base that is still to be taught is not compared.

    Raises:
        AdapterError: with what is wrong about it.
    """
    if not all(lesson.is_done for lesson in prepared.lessons):
        read_card(folder)
        return
    base = resolve_folder(prepared.base, recipe.model.revision)
    shape = read_shape(base)
    check_adapter(
        folder,
        BaseInfo(prepared.base, recipe.model.revision, digest_weights(base)),
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
    )


def check_storage(recipe: Recipe) -> None:
    """Refuse shared storage of caches that this process cannot write to, read and delete from.

    Raises:
        StorageError: with the address and the reason.
    """
    shared = SharedCaches.of(recipe)
    if shared is not None and recipe.cache.mode != "off":
        shared.storage.check()


def check_tracking(config: TrackingConfig) -> None:
    """Refuse a tracking server that does not answer; a database is opened, and made, only when there is something to record.

    Raises:
        TrackingError: with the address and the reason.
    """
    if config.uri is not None and urlsplit(config.uri).scheme in ("http", "https"):
        Store(config.uri)
