"""A report on disk: one JSON file, written whole, read strictly."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import ValidationError

from grun.config.base import Config
from grun.errors import DataError
from grun.evaluation.scores import write_atomically
from grun.reading import cut

__all__ = ["ReportFile"]


class ReportFile(Config):
    """What every report can do: be saved, and be read again."""

    called: ClassVar[str] = "a report"
    """What it is, as messages say it."""

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically.

        Raises:
            DataError: the folder cannot be written to.
        """
        write_atomically(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is missing or is not such a report.
        """
        try:
            return cls.model_validate_json(cls.upgraded(path.read_bytes()), strict=True)
        except OSError as error:
            raise DataError(f"a report must be a readable file, got {str(path)!r} ({error.strerror}); check the path") from None
        except ValidationError as error:
            [first, *_] = error.errors(include_url=False)
            field = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"{str(path)!r} is not {cls.called}: {cut(field)}: {cut(first['msg'])}; evaluate again") from None

    @classmethod
    def upgraded(cls, content: bytes) -> bytes:
        """An older layout as the one of now; anything else as it is."""
        return content
