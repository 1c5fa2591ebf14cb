"""The MLflow flavour of an adapter, or of a stack of adapters: small files and a folder, no code, no pickle.

    MLmodel              flavours `grun` and `python_function`
    adapter/             adapter_config.json, adapter.safetensors
    or stack/            stack.json, adapters/
    requirements.txt     what the loader needs
    python_env.yaml      the Python it was saved with

The frozen base is named by path, revision and digest and never copied; the loader is this module, out of the
installed package. The flavour records the SHA-256 of both adapter files, or of `stack.json`, which names the digest of
every adapter; and :func:`load_adapter_folder` refuses a model folder that holds anything else than what was saved. Digests that lie beside the files find damage; who may
write the artifacts may write both, so the registry keeps the digests once more in its database.

`mlflow.pyfunc.load_model` on such a model answers prompts. It runs the `loader_module` that the MLmodel file names,
so load only models that you trust that way, or take the files with :func:`load_adapter_folder`.

Source: MLflow 3.17, "custom flavors".
"""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import yaml

from grun.errors import AdapterError
from grun.reading import MalformedError, parse_yaml, read_text, reason_of, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import Model

    from grun.lm import BaseInfo

__all__ = [
    "ADAPTER_FILES",
    "FLAVOR_NAME",
    "AdapterModel",
    "adapter_digests",
    "digests_of",
    "load_adapter_folder",
    "load_model",
    "log_model",
    "save_model",
]

FLAVOR_NAME = "grun"
ADAPTER_FILES = ("adapter_config.json", "adapter.safetensors")

_FORMAT_VERSION = 1
_MAX_MODEL_FILE = 2**20
"""Bytes."""
_ADAPTER, _STACK = "adapter", "stack"
_STACK_CARD = "stack.json"
_KEY_TAG = "grun.key"
_MODEL_FILE, _REQUIREMENTS, _PYTHON_ENV = "MLmodel", "requirements.txt", "python_env.yaml"
_BESIDE = {_MODEL_FILE, _REQUIREMENTS, _PYTHON_ENV}
_WRITTEN_BY_MLFLOW = {"registered_model_meta"}  # beside every model that MLflow itself downloads from a registry
_LOADER_PACKAGES = ("grun-pipelines", "mlflow", "pyreft", "safetensors", "torch", "transformers")
_MAX_NEW_TOKENS = 64


def adapter_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of an adapter folder, by name.

    Raises:
        AdapterError: the folder does not hold exactly the two files, or one of them is a link.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise AdapterError(f"an adapter must be a folder, got {str(folder)!r}; save it again")
    _refuse_others(folder, set(ADAPTER_FILES), set())
    digests = {}
    for name in ADAPTER_FILES:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise AdapterError(f"an adapter must hold plain files, got {str(path)!r}, which is none; save it again")
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 by file of what says what is in a folder: both files of an adapter, or the one that names all of a stack's.

    Raises:
        AdapterError: the folder is neither an adapter nor a stack, or something in it is not as it says.
    """
    if not (folder / _STACK_CARD).is_file():
        return adapter_digests(folder)
    from grun.adapters import digest_stack  # loads torch, which those who only store an adapter do without

    return {_STACK_CARD: digest_stack(folder)}


def save_model(path: str | Path, mlflow_model: "Model | None" = None, *, adapter_folder: Path, base: "BaseInfo") -> None:
    """Write a model folder.

    Args:
        path: Folder to make.
        mlflow_model: Metadata to write to, when MLflow made it.
        adapter_folder: An adapter, or a stack.
        base: The frozen model that it belongs to.

    Raises:
        AdapterError: `adapter_folder` is neither.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # importing pyfunc warns of MLflow's own type hints
        from mlflow.pyfunc import add_to_model
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    digests = digests_of(adapter_folder)
    target = Path(path)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copytree(adapter_folder, target / _folder_name(digests), copy_function=shutil.copyfile)
    (target / _REQUIREMENTS).write_text("".join(f"{line}\n" for line in _requirements()), encoding="utf-8")
    environment = {"python": python_version(), "build_dependencies": ["pip"], "dependencies": [f"-r {_REQUIREMENTS}"]}
    (target / _PYTHON_ENV).write_text(yaml.safe_dump(environment, sort_keys=False), encoding="utf-8")

    model = Model() if mlflow_model is None else mlflow_model
    text = Schema([ColSpec(DataType.string)])
    model.signature = ModelSignature(inputs=text, outputs=text)
    model.add_flavor(
        FLAVOR_NAME,
        format_version=_FORMAT_VERSION,
        sha256=digests,
        base_name=base.name,
        base_revision=base.revision,
        base_digest=base.digest,
    )
    # MLflow lets a user override only keys that are present here.
    defaults = {"base_path": base.name, "max_new_tokens": _MAX_NEW_TOKENS}
    add_to_model(  # type: ignore[no-untyped-call]
        model, loader_module=__name__, python_env=_PYTHON_ENV, model_config=defaults
    )
    model.save(str(target / _MODEL_FILE))


def log_model(
    client: "MlflowClient",
    run_id: str,
    *,
    adapter_folder: Path,
    base: "BaseInfo",
    tags: Mapping[str, str] | None = None,
) -> str:
    """Save a model below a run and return the id of MLflow's logged model (`m-...`). One that did not get to its end is gone on with.

    Raises:
        AdapterError: `adapter_folder` is neither an adapter nor a stack; then nothing was logged.
        mlflow.MlflowException: the store refuses; then the logged model says FAILED.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    digests = digests_of(adapter_folder)
    run = client.get_run(run_id)
    logged = _begun_before(client, run, digests) or client.create_logged_model(
        run.info.experiment_id,
        _folder_name(digests),
        run_id,
        tags={**(tags or {}), _KEY_TAG: _key(digests)},
        params=run.data.params,
        model_type=FLAVOR_NAME,
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            model = Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                run_id=run_id,
                model_id=logged.model_id,
            )
            folder = Path(scratch) / "model"
            save_model(folder, model, adapter_folder=adapter_folder, base=base)
            client.log_model_artifacts(logged.model_id, str(folder))
        if run.outputs is None or logged.model_id not in (output.model_id for output in run.outputs.model_outputs):
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except BaseException:
        with suppress(MlflowException):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _begun_before(client: "MlflowClient", run: "Run", digests: Mapping[str, str]) -> "LoggedModel | None":
    """The model of the same files that this run made already; of several that a server made of one, the first stays."""
    query = f"source_run_id = '{run.info.run_id}' AND tags.`{_KEY_TAG}` = '{_key(digests)}'"
    order = [{"field_name": "creation_timestamp", "ascending": True}]
    found = client.search_logged_models([run.info.experiment_id], query, order_by=order)
    for superfluous in found[1:]:
        client.delete_logged_model(superfluous.model_id)
    return found[0] if found else None


def _key(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def load_adapter_folder(model_path: Path) -> Path:
    """Check a model folder and return its adapter or stack folder.

    Raises:
        AdapterError: a file is missing, added, a link, or not the one that was saved; or the format is not known.
    """
    config = _flavor_config(model_path)
    name = _folder_name(config.get("sha256"))
    _refuse_others(model_path, {*_BESIDE, name}, _WRITTEN_BY_MLFLOW)
    folder = model_path / name
    digests = digests_of(folder)
    if digests != config.get("sha256"):
        raise AdapterError(
            f"the files of an adapter must be the ones that were saved, got {digests} where {str(model_path)!r} records "
            f"{shown(config.get('sha256'))}; take it from the registry again, and if that does not help, register it again"
        )
    return folder


class AdapterModel:
    """The base with an adapter or a stack, as a function from prompts to answers.

    Args:
        adapter_folder: An adapter or a stack, checked.
        base_path: Hub name or folder of the base.
        max_new_tokens: Longest answer in tokens.
    """

    def __init__(self, adapter_folder: Path, base_path: str, max_new_tokens: int) -> None:
        self.adapter_folder = adapter_folder
        self.base_path = base_path
        self.max_new_tokens = max_new_tokens

    def predict(self, model_input: Any) -> list[str]:
        """Answer prompts: a text, a sequence of them, a pandas Series, or a DataFrame with one column."""
        from pipelines.generation import answer_with_adapter

        return answer_with_adapter(self.adapter_folder, self.base_path, _prompts(model_input), self.max_new_tokens)


def load_model(model_path: str | Path, *, base_path: str | None = None, max_new_tokens: int = _MAX_NEW_TOKENS) -> AdapterModel:
    """Load a model folder, with the base that it records or another copy of it; cards and certificates are verified.

    Raises:
        AdapterError: as :func:`load_adapter_folder` and :func:`grun.adapters.serving_card`.
    """
    from grun.adapters import serving_card  # loads torch, which those who only store a model do without

    folder = load_adapter_folder(Path(model_path))
    serving_card(folder)
    return AdapterModel(folder, base_path or _flavor_config(Path(model_path))["base_name"], max_new_tokens)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> AdapterModel:
    """What `mlflow.pyfunc.load_model` calls."""
    return load_model(path, **(model_config or {}))


def _folder_name(digests: object) -> str:
    """Name of the folder that holds what has these digests; of a stack, its card is among them."""
    return _STACK if isinstance(digests, Mapping) and _STACK_CARD in digests else _ADAPTER


def _flavor_config(model_path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(read_text(model_path / _MODEL_FILE, limit=_MAX_MODEL_FILE))
        config = content["flavors"][FLAVOR_NAME]
        known = config["format_version"] == _FORMAT_VERSION
    except (OSError, MalformedError, KeyError, TypeError) as error:
        raise AdapterError(
            f"a model must be a folder with an {_MODEL_FILE} file of the flavour `{FLAVOR_NAME}`, got {str(model_path)!r} "
            f"({type(error).__name__}: {reason_of(error)}); name a model that `sweep` or `train` registered"
        ) from None
    if not known:
        raise AdapterError(
            f"the model's format must be {_FORMAT_VERSION}, got {shown(config['format_version'])} in {str(model_path)!r}; "
            "update this package"
        )
    assert isinstance(config, dict)
    return config


def _refuse_others(folder: Path, needed: set[str], tolerated: set[str]) -> None:
    present = {path.name for path in folder.iterdir()}
    missing, added = needed - present, present - needed - tolerated
    if missing or added:
        raise AdapterError(
            f"{str(folder)!r} must hold exactly {sorted(needed)}, got {shown(sorted(present))}; "
            f"missing: {sorted(missing)}, not ours: {shown(sorted(added))}; take it from where it was saved again"
        )


def _requirements() -> Iterable[str]:
    for package in _LOADER_PACKAGES:
        try:
            yield f"{package}=={version(package).split('+')[0]}"
        except PackageNotFoundError:  # a package run from its source tree has no version to name
            yield package


def _prompts(model_input: Any) -> list[str]:
    if isinstance(model_input, str):
        return [model_input]
    column = model_input.iloc[:, 0] if hasattr(model_input, "columns") else model_input
    return [str(prompt) for prompt in column]
