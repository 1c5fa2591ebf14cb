"""Forget, retain and holdout sets: deterministic by content hash, disjoint or refused.

Which records are held out depends on their text alone: not on the order of the file, not on a random state, so
the same data give the same splits on every machine and a new record never moves an old one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from grun.config import DataConfig, HubData, JsonlData, RequestConfig, TestbedData, TofuData
from grun.data.records import Record, digest_records, parse_record, read_jsonl
from grun.data.testbed import build_testbed
from grun.errors import DataError
from grun.requests import Source, UnlearningRequest

__all__ = ["Splits", "check_splits", "hash_fraction", "in_part", "make_request", "read_splits", "sources", "with_environment"]


@dataclass(frozen=True)
class Splits:
    """The records of one request."""

    forget: tuple[Record, ...]
    """To be forgotten; training sees the questions, never the paraphrased ones."""
    retain: tuple[Record, ...]
    """To be kept; training may see them."""
    holdout: tuple[Record, ...]
    """Ordinary records that training never sees."""
    utility: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    """The sets over which model utility is taken, by name."""
    nonmembers: tuple[Record, ...] = ()
    """Records like those to forget that neither base nor adapter ever saw, for membership inference; none where the source has none.

    The holdout set cannot stand in for them: a base that was taught the whole data set knows its holdout records too.
    """
    environment: tuple[Record, ...] = ()
    """Records that have nothing to do with the request, for the regulariser of ILU; empty without a file of them."""


def hash_fraction(digest: str) -> float:
    """Map a record digest to [0, 1), uniformly and for good."""
    return int(digest[:13], 16) / 16**13


def in_part(digest: str, part: str) -> bool:
    """Whether a record belongs to the `validation` or `test` half (or to `all`), by content."""
    # other digits than `hash_fraction` reads, so that the halves are independent of the holdout choice
    is_validation = int(digest[-1], 16) % 2 == 0
    return part == "all" or (part == "validation") == is_validation


def read_splits(config: DataConfig) -> Splits:
    """Read the records of a request and split them.

    Raises:
        DataError: a file or record is bad, a set is empty, or forget shares records with retain or holdout.
    """
    match config:
        case TestbedData():
            bed = build_testbed(config)
            splits = Splits(bed.forget, bed.retain, bed.holdout, bed.utility, bed.nonmembers)
        case TofuData():
            splits = _read_tofu(config)
        case JsonlData():
            root = Path(config.path)
            if not root.is_dir():
                raise DataError(f"`data.path` must be a folder, got {config.path!r}; check the path")
            holdout = read_jsonl(root / config.holdout) if config.holdout else None
            splits = _held_out(read_jsonl(root / config.forget), read_jsonl(root / config.retain), holdout, config.holdout_frac)
            splits = replace(splits, nonmembers=read_jsonl(root / config.nonmembers) if config.nonmembers else ())
        case HubData():
            holdout = _read_hub(config, config.holdout) if config.holdout else None
            splits = _held_out(_read_hub(config, config.forget), _read_hub(config, config.retain), holdout, config.holdout_frac)
            splits = replace(splits, nonmembers=_read_hub(config, config.nonmembers) if config.nonmembers else ())
    check_splits(splits)
    return splits


def with_environment(splits: Splits, path: str | None) -> Splits:
    """Return the splits with the records of an environment file, where one is named.

    Raises:
        DataError: the file or a record is bad, or it shares records with what is forgotten or never trained on.
    """
    if path is None:
        return splits
    environment = read_jsonl(Path(path))
    untouched = {"forget": splits.forget, "holdout": splits.holdout, "nonmembers": splits.nonmembers}
    _refuse_overlap("environment", environment, untouched)
    return replace(splits, environment=environment)


def _held_out(
    forget: Sequence[Record], retain: Sequence[Record], holdout: Sequence[Record] | None, holdout_frac: float
) -> Splits:
    """Move `holdout_frac` of the retain records to the holdout set where the source names none."""
    kept = tuple(retain)
    if holdout is None:
        holdout = tuple(record for record in retain if hash_fraction(record.digest) < holdout_frac)
        kept = tuple(record for record in retain if hash_fraction(record.digest) >= holdout_frac)
    return Splits(tuple(forget), kept, tuple(holdout), {"retain": kept, "ordinary": tuple(holdout)})


def _read_tofu(config: TofuData) -> Splits:
    """The published sets; the perturbed files carry the paraphrases and wrong answers of the same rows."""
    root = Path(config.path)
    if not root.is_dir():
        raise DataError(f"`data.path` must be the folder of the TOFU files, got {config.path!r}; check the path")
    if not (root / f"{config.forget}_perturbed.json").is_file():
        raise DataError(
            f"a TOFU folder must hold `{config.forget}_perturbed.json` and its like, got {config.path!r} without it; for files of your own "
            "(forget.jsonl, retain.jsonl) set `--data.kind jsonl`"
        )
    retain = read_jsonl(root / f"retain{100 - int(config.forget[-2:]):02d}.json")
    splits = _held_out(read_jsonl(root / f"{config.forget}_perturbed.json"), retain, None, config.holdout_frac)
    names = {"retain": "retain_perturbed", "real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}
    utility = {name: read_jsonl(root / f"{file}.json") for name, file in names.items()}
    never_taught = root / f"holdout{config.forget[-2:]}.json"
    nonmembers = read_jsonl(never_taught) if never_taught.is_file() else ()
    return Splits(splits.forget, splits.retain, splits.holdout, utility, nonmembers)


def _read_hub(config: HubData, name: str) -> tuple[Record, ...]:
    import datasets  # heavy, and only this source needs it

    try:
        rows = datasets.load_dataset(config.path, name, split=config.split, revision=config.revision)
    except Exception as error:  # noqa: BLE001 - the library raises a dozen unrelated types for "not there"
        raise DataError(
            f"`data.path` must name a data set that the Hub or its local cache has, got {config.path!r} ({name!r}, "
            f"split {config.split!r}): {type(error).__name__}: {error}; check the name, or download it and use `--data.kind tofu` or `jsonl`"
        ) from None
    return tuple(parse_record(dict(row), where=f"{config.path}/{name}:{number}") for number, row in enumerate(rows, start=1))


def check_splits(splits: Splits) -> None:
    """Refuse splits that nothing can be trained or judged on.

    Raises:
        DataError: a set is empty, or forget shares records with retain or holdout.
    """
    for name in ("forget", "retain", "holdout"):
        if not getattr(splits, name):
            remedy = "raise `data.holdout_frac`" if name == "holdout" else "name a file that holds records"
            raise DataError(f"the {name} set must hold at least one record, got none; {remedy}")
    kept = {"retain": splits.retain, "holdout": splits.holdout}
    _refuse_overlap("forget", splits.forget, kept | {f"utility set {name}": rows for name, rows in splits.utility.items()})
    _refuse_overlap("holdout", splits.holdout, {"retain": splits.retain})
    taught = {"forget": splits.forget, **kept} | {f"utility set {name}": rows for name, rows in splits.utility.items()}
    _refuse_overlap("nonmembers", splits.nonmembers, taught)


def _refuse_overlap(name: str, records: Sequence[Record], others: Mapping[str, Sequence[Record]]) -> None:
    digests = {record.digest for record in records}
    for other, rows in others.items():
        shared = [record for record in rows if record.digest in digests]
        if shared:
            row = next(number for number, record in enumerate(records, start=1) if record.digest == shared[0].digest)
            raise DataError(
                f"{name} and {other} must not overlap, got {len(shared)} shared record(s), the first being row {row} of the {name} set "
                f"(digest {shared[0].digest[:12]}); "
                "remove them from one of the two"
            )


def make_request(request: RequestConfig, data: DataConfig, splits: Splits) -> UnlearningRequest:
    """Pin a request to the contents of its sets."""
    return UnlearningRequest(id=request.id, reason=request.reason, **sources(data, splits))


def sources(data: DataConfig, splits: Splits) -> dict[str, Source]:
    """Where the forget, retain and holdout sets come from, and what they hold."""
    location = getattr(data, "path", None) or f"seed {getattr(data, 'seed', 0)}"

    def source(name: str, records: tuple[Record, ...]) -> Source:
        place = f"{location}#{getattr(data, name, None) or name}"
        return Source(kind=data.kind, location=place, num_records=len(records), digest=digest_records(records))

    return {name: source(name, getattr(splits, name)) for name in ("forget", "retain", "holdout")}
