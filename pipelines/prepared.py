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
from grun.writing import whole_folder, write_text
from pipelines.console import note
from pipelines.fetched_data import fetched_splits

__all__ = ["Lesson", "Prepared", "plan", "prepared_folder", "prepared_root", "read_prepared", "write_prepared"]


_REQUEST = "request.json"

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
        """Whether the model is there already, as it was taught."""
        from grun.lm.teach import is_taught  # loads transformers, which a pretrained base needs only later

        return is_taught(self.folder)


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
    return prepared_root(recipe) / f"{request_id}-{_digest(splits)}"


def _digest(splits: Splits) -> str:
    everything = [*splits.forget, *splits.retain, *splits.holdout, *_utility(splits), *splits.nonmembers, *splits.environment]
    return digest_records(everything)[:12]


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
    if prepared.folder.is_dir():
        try:
            read_prepared(prepared.folder)
            write_text(prepared.folder / _REQUEST, prepared.request.model_dump_json(indent=2))
            return
        except DataError as error:
            note(f"{error}: it is written anew")
            shutil.rmtree(prepared.folder)
    sets: Mapping[str, Sequence[Record]] = {
        "forget": prepared.splits.forget,
        "retain": prepared.splits.retain,
        "holdout": prepared.splits.holdout,
        **{f"utility/{name}": rows for name, rows in prepared.splits.utility.items()},
        **({"nonmembers": prepared.splits.nonmembers} if prepared.splits.nonmembers else {}),
        **({"environment": prepared.splits.environment} if prepared.splits.environment else {}),
    }
    with whole_folder(prepared.folder) as partial:
        partial.chmod(0o700)  # it holds what is to be forgotten, in plain text
        (partial / "utility").mkdir()
        for name, records in sets.items():
            lines = "".join(json.dumps(to_json(r), ensure_ascii=False) + "\n" for r in records)
            (partial / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (partial / _REQUEST).write_text(prepared.request.model_dump_json(indent=2), encoding="utf-8")


def read_prepared(folder: Path) -> tuple[UnlearningRequest, Splits]:
    """Read what :func:`write_prepared` wrote and check it against the request's digests, and the folder's name, which has all sets'.

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
    splits = Splits(sets["forget"], sets["retain"], sets["holdout"], utility, never_taught, environment)
    if folder.name.rpartition("-")[2] != _digest(splits):
        raise DataError(
            f"prepared data must be what their folder is named by, got other records in {str(folder)!r}; delete the folder"
        )
    return request, splits


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
