"""A request to forget: who asks for what, and the digests that pin the data it was made about."""

from typing import Annotated

from pydantic import Field

from grun.config.base import Config

__all__ = ["Source", "UnlearningRequest"]


class Source(Config):
    """One set of records, by place and content. The text itself stays where the operator keeps it."""

    kind: str
    """Reader: testbed, tofu, jsonl or hub."""
    location: str
    """Folder, data set or seed that the records were read from, and the name inside it."""
    num_records: Annotated[int, Field(ge=0, lt=2**63)]
    """How many records it held."""
    digest: str
    """SHA-256 over the contents, independent of row order."""


class UnlearningRequest(Config):
    """What an adapter answers for."""

    id: str
    """Identifier of the request."""
    reason: str
    """Why it was made."""
    forget: Source
    """What is to be forgotten."""
    retain: Source
    """What is to be kept and may be trained on."""
    holdout: Source
    """What is never trained on."""

    @property
    def data_digests(self) -> dict[str, str]:
        """Content digest of each set, by name."""
        return {"forget": self.forget.digest, "retain": self.retain.digest, "holdout": self.holdout.digest}
