"""The commands that k8s/README.md tells people to give: files that they name exist, and so do the objects."""

import re
from collections.abc import Iterator

from k8s.check.repository import Repository

__all__ = ["documentation_errors"]

_BLOCK = re.compile(r"^```(?:sh|bash|console|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PATH = re.compile(
    r"(?<![\w./:<-])((?:k8s|pipelines|tests|requirements|docs|grun)/[\w./-]*[\w/]|Containerfile|Makefile|requirements\.lock)"
)
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def documentation_errors(repository: Repository) -> Iterator[tuple[str, str]]:
    """Place and message for every path in a shell block, and every link, that leads to nothing."""
    for document in sorted((repository.root / "k8s").rglob("*.md")):
        text, name = document.read_text(encoding="utf-8"), str(document.relative_to(repository.root))
        for block in _BLOCK.findall(text):
            for path in sorted(set(_PATH.findall(block))):
                if not (repository.root / path).exists():
                    yield name, f"a command must name files that are there, got {path!r}; correct it"
        for link in sorted(set(_LINK.findall(text))):
            if not (document.parent / link).exists():
                yield name, f"a link must lead to a file, got {link!r}; correct it"
