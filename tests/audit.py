"""The audit of dependencies: `python -m tests.audit`, by `make audit`.

Always, without a network: the environment holds exactly what the lock names, in these versions. Besides it may hold torch with what
torch itself needs, which is installed apart from the lock as its builds differ; pip and its like; and this project.

Where pip-audit's service answers: no version of the lock has a known vulnerability. Where not, that is said, and is no failure:
nothing was looked up, and whoever reads the last line knows.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["NotLookedUpError", "apart_from_the_lock", "compare", "look_up", "main", "read_lock"]

LOCK = Path(__file__).parents[1] / "requirements.lock"
PROJECT = "grun-pipelines"
_ROOTS = ("torch", "pip", "setuptools", "wheel", PROJECT)
"""What may be there without being in the lock; of torch, with what it needs."""
_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^]]*\])?==(?P<version>[^\s;]+)\s*(;\s*(?P<marker>.+?))?\s*(#.*)?")
_TIMEOUT = 180


class NotLookedUpError(Exception):
    """Known vulnerabilities were not looked up; with the reason."""


def read_lock(text: str) -> dict[str, str]:
    """Versions by name of what a lock asks for on this machine.

    Raises:
        ValueError: a line pins no version.
    """
    pinned: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        met = _LINE.fullmatch(line)
        if met is None:
            raise ValueError(
                f"every line of the lock must pin a version, `name==version`, got {line!r} in line {number}; lock it again"
            )
        if met["marker"] is None or Marker(met["marker"]).evaluate():
            pinned[canonicalize_name(met["name"])] = met["version"]
    return pinned


def apart_from_the_lock(roots: Iterable[str] = _ROOTS) -> set[str]:
    """Names of some distributions and of all that these need, as far as they are installed; of the project only its own."""
    found: set[str] = set()
    left: list[str] = [canonicalize_name(root) for root in roots]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            own = distribution(name)
        except PackageNotFoundError:
            continue
        found.add(name)
        left += [] if name == PROJECT else _needs(own)
    return found


def _needs(own: Distribution) -> list[str]:
    wanted = map(Requirement, own.requires or ())
    return [canonicalize_name(one.name) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def compare(pinned: Mapping[str, str], installed: Mapping[str, str], apart: set[str]) -> list[str]:
    """Say in a line each where an environment is not what its lock names."""
    lines = []
    for name in sorted(pinned.keys() | installed.keys()):
        wanted, found = pinned.get(name), installed.get(name)
        if wanted is None and name not in apart:
            lines.append(
                f"{name} {found} is installed and not in the lock: add it to pyproject.toml and lock again, or uninstall it"
            )
        elif wanted is not None and found is None:
            lines.append(f"{name} {wanted} is in the lock and not installed: run `make setup`")
        elif wanted is not None and wanted != found:
            lines.append(f"{name} must be {wanted} by the lock, got {found}: run `make setup`, or lock again")
    return lines


def look_up(lock: Path) -> list[str]:
    """Ask pip-audit's service for known vulnerabilities of what is in the lock.

    Returns:
        a line for each, with the versions that mend it.

    Raises:
        NotLookedUpError: there was nobody to ask, or some distributions were skipped; a mirror without advisories skips all of them,
            and pip-audit calls that a success.
    """
    if find_spec("pip_audit") is None:
        raise NotLookedUpError("pip-audit is not installed")
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise NotLookedUpError(f"its service did not answer within {_TIMEOUT} s") from None
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError):
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise NotLookedUpError(f"pip-audit ended with {done.returncode}: {said[:200]}") from None
    found = [
        f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'no version yet'}"
        for one in answers
        for known in one.get("vulns", ())
    ]
    skipped = [one["name"] for one in answers if "skip_reason" in one]
    if skipped and not found:
        raise NotLookedUpError(
            f"the service knew nothing of {len(skipped)} of {len(answers)} distributions ({', '.join(skipped[:3])}, ...)"
        )
    return found


def main(lock: Path = LOCK) -> int:
    """Run both; 1 where either finds something."""
    pinned = read_lock(lock.read_text(encoding="utf-8"))
    installed: dict[str, str] = {canonicalize_name(str(one.metadata["Name"])): one.version for one in distributions()}
    wrong = compare(pinned, installed, apart_from_the_lock())
    print("\n".join(wrong) if wrong else f"the environment holds the {len(pinned)} distributions of the lock, in its versions")
    try:
        vulnerable = look_up(lock)
    except NotLookedUpError as reason:
        print(f"known vulnerabilities were NOT looked up: {reason}")
        return int(bool(wrong))
    print("\n".join(vulnerable) if vulnerable else "pip-audit knows of no vulnerability in the versions of the lock")
    return int(bool(wrong or vulnerable))


if __name__ == "__main__":
    sys.exit(main())
