"""Findings as they are printed: each once, with the places and the bundles it is in, as one slip is seen from many sides."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from k8s.check.rule import Finding
from k8s.check.sources import files_of

__all__ = ["distinct", "report"]

_FEW = 3


def distinct(found: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Findings by what they say: those of one rule with the same words belong together."""
    together: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        together.setdefault((finding.rule, finding.message), []).append(finding)
    return together


def report(found: Iterable[Finding], folders: Mapping[str, list[Path]], root: Path) -> Iterator[str]:
    """Lines for findings, in their order.

    Args:
        folders: of the name of a bundle, the folders that it is put together from.
        root: what files are named from.
    """
    for group in distinct(found).values():
        first = group[0]
        yield str(first)
        places = [place for place in dict.fromkeys(finding.where for finding in group) if place != first.where]
        bundles = [name for name in dict.fromkeys(finding.bundle for finding in group) if name != first.bundle]
        files = files_of(first.where.split()[0], folders.get(first.bundle, []))
        if files:
            yield f"    written in {', '.join(str(file).removeprefix(f'{root}/') for file in files)}"
        if places:
            more = f" and {len(places) - _FEW} more" if len(places) > _FEW else ""
            yield f"    also at {'; '.join(places[:_FEW])}{more}"
        if bundles:
            yield f"    also in {', '.join(bundles)}"
