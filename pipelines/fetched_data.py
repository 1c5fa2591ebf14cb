"""Records named by URI: fetched into a private folder that is gone when they have been read.

What is kept of them is what is kept of any records: the prepared folder of the request, and the vault of a ledger, both below
`output` and readable by their owner alone.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from grun.config import DataConfig, JsonlData, TofuData, is_uri
from grun.config.base import StorageUri
from grun.data.records import Record, read_jsonl
from grun.data.splits import Splits, read_splits
from grun.errors import ConfigError, DataError
from pipelines.storage import Storage

__all__ = ["fetched_records", "fetched_splits"]


def fetched_splits(data: DataConfig) -> Splits:
    """Read and split the records of a request, wherever they are.

    Raises:
        DataError: the records are not what they should be.
        StorageError: the place of them cannot be reached.
    """
    if not isinstance(data, JsonlData | TofuData) or not is_uri(data.path):
        return read_splits(data)
    with _fetched(data.path, data.files, "data.path") as folder:
        return read_splits(data.model_copy(update={"path": str(folder)}))


def fetched_records(path: str) -> tuple[Record, ...]:
    """Read one file of records, local or by URI.

    Raises:
        ConfigError: the URI is none, or holds credentials.
        DataError, StorageError: as for :func:`fetched_splits`.
    """
    if not is_uri(path):
        return read_jsonl(Path(path))
    try:
        TypeAdapter(StorageUri).validate_python(path)
    except ValidationError as error:
        raise ConfigError(f"`--forget` {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    place, mark, query = path.partition("?")
    parent, _, name = place.rpartition("/")
    with _fetched(f"{parent}{mark}{query}", [name], "--forget") as folder:
        return read_jsonl(folder / name)


@contextmanager
def _fetched(uri: StorageUri, names: Iterable[str], setting: str) -> Iterator[Path]:
    """Some files below a URI, those that are there, in a folder that its owner alone can read."""
    storage = Storage.open(uri, setting)
    with tempfile.TemporaryDirectory(prefix="grun-data-") as name:
        folder = Path(name)
        found = [_fetch(storage, name, folder / name) for name in names]
        if not any(found):
            raise DataError(
                f"`{setting}` must name a place that holds records, got {uri!r} without {' or '.join(dict.fromkeys(names))}; check the "
                "address, and that it may be read"
            )
        try:
            yield folder
        except DataError as error:  # people know the place, and not the copy
            raise DataError(str(error).replace(str(folder), uri.rstrip("/"))) from None


def _fetch(storage: Storage, name: str, target: Path) -> bool:
    """Copy a file, and say whether it is there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.writelines(storage.blocks(name))
    except FileNotFoundError:
        target.unlink()
        return False
    return True
