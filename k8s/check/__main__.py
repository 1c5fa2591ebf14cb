"""Render and check manifests: `python -m k8s.check [FOLDER ...]`.

Prints each folder with its objects, and every finding; ends with 0 where there is none, 1 where there are some, 2 on misuse.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from grun.errors import GrunError
from k8s.check.documentation import documentation_errors
from k8s.check.other_kinds import KINDS
from k8s.check.render import REPOSITORY, kubectl
from k8s.check.repository import Repository
from k8s.check.rule import Finding
from k8s.check.suite import RULES, bundles, crds_folder, findings, source_errors

__all__ = ["main"]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _check(folders: list[Path]) -> list[Finding]:
    repository = Repository(REPOSITORY)
    found = [Finding("strict-yaml", "k8s", where, message) for where, message in source_errors(REPOSITORY / "k8s")]
    seen = []
    for bundle in bundles(folders, repository):
        wrong = findings(bundle)
        kinds = Counter(str(document.get("kind")) for document in bundle.documents)
        _say(f"{bundle.name}: {sum(kinds.values())} objects of {len(kinds)} kinds, {len(wrong)} findings")
        found += wrong
        seen.append(bundle)
    # a part of the manifests does not tell which objects there are
    everything = seen if folders == [REPOSITORY / "k8s"] else None
    found += [Finding("documentation", "k8s", where, message) for where, message in documentation_errors(repository, everything)]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Check the folders that are named, or all of `k8s`."""
    parser = argparse.ArgumentParser(prog="python -m k8s.check", description="Render and check manifests, without a cluster.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folder with kustomizations [default: k8s]")
    parser.add_argument("--rules", action="store_true", help="list the rules, with the reason for each")
    options = parser.parse_args(argv)
    if options.rules:
        for rule in RULES:
            _say(f"{rule.name}\n    {rule.why}")
        return 0
    try:
        _say(f"rendered with {kubectl()}; {len(RULES)} rules")
        found = _check(options.folders or [REPOSITORY / "k8s"])
        _say(f"checked by small schemas of our own, as their definitions are not at hand: {', '.join(KINDS)}")
        if crds_folder() is None:
            _say(
                "SKIPPED: KUBERAY_CRDS is not set, so RayCluster, RayJob and RayService were not checked against KubeRay's definitions"
            )
    except GrunError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for finding in found:
        _say(str(finding))
    _say(f"{len(found)} findings" if found else "no findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
