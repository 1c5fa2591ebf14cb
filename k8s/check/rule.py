"""A rule: a small function from a bundle to what is wrong in it."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from k8s.check.bundle import Bundle

__all__ = ["Finding", "Rule", "Wrong", "table"]

Wrong = Iterator[tuple[str, str]]
"""Where, and "rule, value, remedy", of everything that a rule finds."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    rule: str
    bundle: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.bundle}: {self.where}: {self.message} [{self.rule}]"


@dataclass(frozen=True)
class Rule:
    """A rule by its name, with the reason for it."""

    name: str
    why: str
    check: Callable[[Bundle], Wrong]

    def findings(self, bundle: Bundle) -> list[Finding]:
        """What the rule finds in a bundle."""
        return [Finding(self.name, bundle.name, where, message) for where, message in self.check(bundle)]


def table(*functions: Callable[[Bundle], Wrong]) -> tuple[Rule, ...]:
    """Rules of functions: a function's name is the rule's, its docstring the reason."""
    return tuple(Rule(function.__name__.replace("_", "-"), inspect.getdoc(function) or "", function) for function in functions)
