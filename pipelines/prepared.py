"""Prepared data and models: from a recipe to splits on shared storage, a pinned request, and a base to freeze.

    <output>/prepared/<request id>-<digest>/   request.json, forget.jsonl, retain.jsonl, holdout.jsonl, utility/<name>.jsonl,
                                               nonmembers.jsonl where there are any,
                                               environment.jsonl where the objective names a file of its own
    <output>/models/<digest>/                  a taught base, or its retain-only twin

Both are named by the digest of what decides them, so preparing twice costs nothing and workers read exactly the
records that the request names.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from grun.config import Recipe
from grun.data.records import Record, digest_records, read_jsonl, to_json
from grun.data.sequence import distinct
from grun.data.splits import Splits, make_request, with_environment
from grun.errors import ConfigError, DataError
from grun.reading import parse_json, read_text, reason_of
from grun.requests import UnlearningRequest
from pipelines.fetched_data import fetched_splits

__all__ = ["Lesson", "Prepared", "plan", "prepared_folder", "prepared_root", "read_prepared", "write_prepared"]


_MAX_REQUEST = 2**20
"""Bytes of `request.json`."""


@dataclass(frozen=True)
class Lesson:
    """A small model that has to be taught."""

    title: str
    folder: Path
    records: tuple[Record, ...]

    @property
    def is_done(self) -> bool:
        """Whether the model is there already."""
        return (self.folder / "config.json").is_file()


@dataclass(frozen=True)
class Prepared:
    """What every later step starts from."""

    folder: Path
    request: UnlearningRequest
    splits: Splits
    base: str
    """Folder or hub name of the base model."""
    retain_only: str | None
    """Folder or hub name of the model that never saw the forget set; or a name for its logs, whose rows are scored already."""
    lessons: tuple[Lesson, ...] = ()
    """Models that `prepare` teaches."""
    vocabulary: tuple[Record, ...] = ()
    """Records whose words the taught tokenizer knows; the same for the base and its twin."""


def prepared_root(recipe: Recipe) -> Path:
    """Where the prepared data of an output folder are."""
    return recipe.output.absolute() / "prepared"


def plan(recipe: Recipe) -> Prepared:
    """Read and split the records and say where everything will be; nothing is written.

    Raises:
        DataError: the data are not what they should be.
        StorageError: data named by URI cannot be reached.
        ConfigError: both a retain-only model and its logs are named.
    """
    invariance = recipe.objective.invariance
    splits = with_environment(fetched_splits(recipe.data), invariance.path if invariance else None)
    request = make_request(recipe.request, recipe.data, splits)
    folder = prepared_folder(recipe, recipe.request.id, splits)
    retain_only = _retain_only(recipe)
    if recipe.model.path is not None:
        return Prepared(folder, request, splits, _located(recipe.model.path), retain_only)
    # non-members are taught to nobody
    kept = distinct([*splits.retain, *splits.holdout, *_utility(splits)])
    everything = distinct([*splits.forget, *kept])
    lessons = [Lesson("base", _taught_folder(recipe, everything, everything), everything)]
    has_twin = recipe.model.retain_twin and recipe.evaluation.retain_logs is None
    if has_twin:
        lessons.append(Lesson("retain-only twin", _taught_folder(recipe, kept, everything), kept))
    return Prepared(
        folder,
        request,
        splits,
        base=str(lessons[0].folder),
        retain_only=str(lessons[1].folder) if has_twin else retain_only,
        lessons=tuple(lessons),
        vocabulary=everything,
    )


def prepared_folder(recipe: Recipe, request_id: str, splits: Splits) -> Path:
    """Where the splits of a request are written: by the digest of all their records."""
    digest = digest_records(
        [*splits.forget, *splits.retain, *splits.holdout, *_utility(splits), *splits.nonmembers, *splits.environment]
    )
    return prepared_root(recipe) / f"{request_id}-{digest[:12]}"


def _utility(splits: Splits) -> list[Record]:
    return [record for rows in splits.utility.values() for record in rows]


def _retain_only(recipe: Recipe) -> str | None:
    """The retain-only model or logs that a recipe names."""
    logs = recipe.evaluation.retain_logs
    if logs is None:
        return _located(recipe.model.retain_path)
    if recipe.model.retain_path is not None:
        raise ConfigError(
            f"a retain-only model and its logs stand in for one another, got both `model.retain_path` {recipe.model.retain_path!r} and "
            f"`evaluation.retain_logs` {logs!r}; name one"
        )
    return _logs_name(logs)


@overload
def _located(model: str) -> str: ...
@overload
def _located(model: None) -> None: ...
def _located(model: str | None) -> str | None:
    """A folder by its absolute path, as workers run elsewhere; the name of a hub model as it is."""
    return str(Path(model).absolute()) if model is not None and Path(model).is_dir() else model


def _taught_folder(recipe: Recipe, records: Sequence[Record], vocabulary: Sequence[Record]) -> Path:
    from grun.lm.teach import taught_folder_name  # loads transformers, which a pretrained base needs only later

    return recipe.output.absolute() / "models" / taught_folder_name(recipe.model.taught, recipe.prompt, records, vocabulary)


def write_prepared(prepared: Prepared) -> None:
    """Write the splits and the request, whole or not at all."""
    if (prepared.folder / "request.json").is_file():
        _write(prepared.folder / "request.json", prepared.request.model_dump_json(indent=2))
        return
    partial = prepared.folder.with_name(f".{prepared.folder.name}.partial-{os.getpid()}")
    (partial / "utility").mkdir(parents=True)
    partial.chmod(0o700)  # it holds what is to be forgotten, in plain text
    sets: Mapping[str, Sequence[Record]] = {
        "forget": prepared.splits.forget,
        "retain": prepared.splits.retain,
        "holdout": prepared.splits.holdout,
        **{f"utility/{name}": rows for name, rows in prepared.splits.utility.items()},
        **({"nonmembers": prepared.splits.nonmembers} if prepared.splits.nonmembers else {}),
        **({"environment": prepared.splits.environment} if prepared.splits.environment else {}),
    }
    for name, records in sets.items():
        _write(partial / f"{name}.jsonl", "".join(json.dumps(to_json(r), ensure_ascii=False) + "\n" for r in records))
    _write(partial / "request.json", prepared.request.model_dump_json(indent=2))
    try:
        partial.replace(prepared.folder)
    except OSError:  # another process prepared the same request first
        shutil.rmtree(partial)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_prepared(folder: Path) -> tuple[UnlearningRequest, Splits]:
    """Read what :func:`write_prepared` wrote and check it against the request's digests.

    Raises:
        DataError: a set is missing, or not what the request was made about.
    """
    try:
        request = UnlearningRequest.model_validate(parse_json(read_text(folder / "request.json", limit=_MAX_REQUEST)))
    except (OSError, ValueError) as error:
        raise DataError(
            f"prepared data must have a request.json as it was written, got {str(folder)!r} ({reason_of(error)}); delete the folder"
        ) from None
    utility = {path.stem: read_jsonl(path) for path in sorted((folder / "utility").glob("*.jsonl"))}
    sets = {name: read_jsonl(folder / f"{name}.jsonl") for name in ("forget", "retain", "holdout")}
    for name, digest in request.data_digests.items():
        if digest_records(sets[name]) != digest:
            raise DataError(
                f"prepared data must be what the request was made about, got another {name} set in {str(folder)!r}; delete the folder"
            )
    never_taught, environment = (
        read_jsonl(path) if path.is_file() else () for path in (folder / "nonmembers.jsonl", folder / "environment.jsonl")
    )
    return request, Splits(sets["forget"], sets["retain"], sets["holdout"], utility, never_taught, environment)


def _logs_name(path: str) -> str:
    """What logs are called in the place of a retain-only model: by their content.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return f"retain_logs {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
    except OSError as error:
        raise DataError(
            f"`evaluation.retain_logs` must be a readable file, got {path!r} ({error.strerror}); check the path"
        ) from None
