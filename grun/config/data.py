"""Where the records to forget, to keep and never to train on come from."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveInt, Tag

from grun.config.base import Config, InsidePath, PathOrUri

__all__ = ["DataConfig", "HubData", "JsonlData", "PromptConfig", "TestbedData", "TofuData"]


class _SplitOptions(Config):
    holdout_frac: float = Field(default=0.1, gt=0, lt=1)
    """Share of the retain records, chosen by content hash, that training never sees (where the source names no holdout set)."""


class TestbedData(_SplitOptions):
    """Fictitious people of our own invention; needs no file and no network."""

    __test__ = False  # no test, whatever pytest makes of the name

    kind: Literal["testbed"] = "testbed"
    seed: NonNegativeInt = 0
    """Seed of the invented people; another seed gives other people."""
    num_people: int = Field(default=60, ge=12, le=200)
    """How many people are invented, ten facts each."""
    num_forget: PositiveInt = 6
    """How many of them ask to be forgotten."""


class TofuData(_SplitOptions):
    """A folder in the layout of the published TOFU data set (one JSON object a line).

    Where it holds a file `holdout01.json`, `holdout05.json` or `holdout10.json` for the forget split, those are the non-members:
    records like the others that no model was ever taught, for membership inference.
    """

    kind: Literal["tofu"] = "tofu"
    path: PathOrUri
    """The folder that holds `forget05.json`, `retain95.json` and the `_perturbed` files; or its URI (`s3://bucket/folder`)."""
    forget: Literal["forget01", "forget05", "forget10"] = "forget05"
    """Which TOFU split is forgotten; the retain split is the complement."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read, as far as they are there."""
        kept, held_out = f"retain{100 - int(self.forget[-2:]):02d}", f"holdout{self.forget[-2:]}"
        perturbed = ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
        return tuple(f"{name}.json" for name in (f"{self.forget}_perturbed", kept, *perturbed, held_out))


class JsonlData(_SplitOptions):
    """A folder of JSON Lines files with `question`/`answer` or `text` records."""

    kind: Literal["jsonl"] = "jsonl"
    path: PathOrUri
    """The folder that holds the files named below; or its URI (`s3://bucket/folder`)."""
    forget: InsidePath = "forget.jsonl"
    """File of the records to forget, inside the folder."""
    retain: InsidePath = "retain.jsonl"
    """File of the records to keep, inside the folder."""
    holdout: InsidePath | None = None
    """File of records that are never trained on; unset: `holdout_frac` of the retain records."""
    nonmembers: InsidePath | None = None
    """File of records like those to forget that neither base nor adapter ever saw, for membership inference."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read."""
        return tuple(name for name in (self.forget, self.retain, self.holdout, self.nonmembers) if name is not None)


class HubData(_SplitOptions):
    """A data set on the Hugging Face Hub (or in its local cache), one configuration per split."""

    kind: Literal["hub"] = "hub"
    path: str
    """Name of the data set, for instance `locuslab/TOFU`."""
    revision: str | None = None
    """Commit or tag of the data set; set it for a reproducible request."""
    split: str = "train"
    """Split that is read from each configuration."""
    forget: str = "forget05"
    """Configuration with the records to forget."""
    retain: str = "retain95"
    """Configuration with the records to keep."""
    holdout: str | None = None
    """Configuration that is never trained on; unset: `holdout_frac` of the retain records."""
    nonmembers: str | None = None
    """Configuration that neither base nor adapter ever saw, for membership inference (for `locuslab/TOFU`: `holdout05`)."""


def _kind(value: Any) -> str:
    """`data.path` alone is enough: without a kind, a path means a TOFU folder and no path the embedded testbed."""
    if not isinstance(value, dict):
        return str(getattr(value, "kind", "testbed"))
    return str(value.get("kind") or ("tofu" if "path" in value else "testbed"))


DataConfig = Annotated[
    Annotated[TestbedData, Tag("testbed")]
    | Annotated[TofuData, Tag("tofu")]
    | Annotated[JsonlData, Tag("jsonl")]
    | Annotated[HubData, Tag("hub")],
    Discriminator(_kind),
]
"""One of the four sources, told apart by `kind`."""


class PromptConfig(Config):
    """How a record becomes token ids."""

    template: Literal["qa", "chat"] = "qa"
    """`qa`: "Question: ...\\nAnswer: ..."; `chat`: the tokenizer's own chat template."""
    chat_date: str = "26 Jul 2024"
    """Date that chat templates print, pinned because today's date would change every prompt."""
    max_length: PositiveInt | None = None
    """Longest prompt plus answer in tokens; unset: the context of the base model. Text records are cut here."""
    text_prompt_frac: float = Field(default=0.8, gt=0, lt=1)
    """Share of a plain-text record that is its prompt; the rest is its answer."""
