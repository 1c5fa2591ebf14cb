"""The vault: the text to be forgotten, where the operator says, referenced everywhere else by its digest.

    <vault>/<ledger name>/<request id>/forget.jsonl

Folders and files are readable by their owner alone. A copy is written whole or not at all, and checked whenever it is read.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from grun.config import Recipe
from grun.data.records import Record, digest_records, read_jsonl, to_json
from grun.errors import DataError
from grun.ledger import RequestState

__all__ = ["Vault"]

FORGET_FILE = "forget.jsonl"


class Vault:
    """The texts of one ledger.

    Args:
        folder: Folder of the ledger in the vault; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, recipe: Recipe) -> "Vault":
        """The vault of the ledger that a recipe names."""
        return cls(recipe.vault.absolute() / recipe.ledger.name)

    def path(self, request_id: str) -> Path:
        """Folder of a request's text, there or not."""
        return self.folder / request_id

    def holds(self, request_id: str) -> bool:
        """Whether there is a copy of a request's text."""
        return self.path(request_id).is_dir()

    @property
    def requests(self) -> list[str]:
        """Ids of all requests that there is a copy of."""
        return sorted(path.name for path in self.folder.glob("[!.]*") if path.is_dir())

    def write(self, request_id: str, records: Sequence[Record]) -> None:
        """Keep the records of a request; the same ones may come again.

        Raises:
            DataError: there are other records under this id, or the folder cannot be written.
        """
        folder = self.path(request_id)
        partial = folder.with_name(f".{request_id}.partial-{os.getpid()}")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o700)
            _write_private(
                partial / FORGET_FILE, "".join(json.dumps(to_json(record), ensure_ascii=False) + "\n" for record in records)
            )
            if not folder.is_dir():
                partial.rename(folder)
                return
        except OSError as error:
            if not folder.is_dir():  # else another process was first
                raise DataError(
                    f"the vault must be a folder that can be written to, got {str(self.folder)!r} ({error.strerror}); set `ledger.vault`"
                ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if digest_records(read_jsonl(folder / FORGET_FILE)) != digest_records(records):
            raise DataError(
                f"a request's copy in the vault is written once, got other records for {request_id!r} than those in {str(folder)!r}; "
                "give the new request an id of its own, or delete that folder if it was left behind by an `add` that did not end"
            )

    def read(self, state: RequestState) -> tuple[Record, ...]:
        """Read the records of a request.

        Raises:
            DataError: there is no copy, or it is not what was asked to be forgotten.
        """
        path = self.path(state.id) / FORGET_FILE
        if not path.is_file():
            reason = "its text was purged" if state.purged else "no copy of its text"
            raise DataError(
                f"a request's records must be in the vault, got {state.id!r} and {reason} in {str(self.folder)!r}; set `ledger.vault` to "
                "where they are, or `add` the same records under the same id once more"
            )
        records = read_jsonl(path)
        if digest_records(records) != state.forget.digest:
            raise DataError(
                f"a request's copy in the vault must be what was asked to be forgotten, got other records for {state.id!r} in {str(path)!r} "
                f"(the ledger says {state.forget.digest[:12]}); restore it, and find out who changed it"
            )
        return records

    def remove(self, request_id: str) -> bool:
        """Delete the copy of a request's text, and what an `add` that was killed has left of it; return whether there was any."""
        found = [path for path in (self.path(request_id), *self.folder.glob(f".{request_id}.partial-*")) if path.is_dir()]
        for path in found:
            shutil.rmtree(path)
        return bool(found)


def _write_private(path: Path, text: str) -> None:
    """Write a file for its owner's eyes, and wait until it is on the disk: the ledger will say that it is there."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
