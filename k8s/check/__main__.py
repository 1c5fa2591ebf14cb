"""Render and check manifests: `python -m k8s.check [FOLDER ...]`.

Prints each folder with its objects, and every finding once, with all the places it is in; ends with 0 where there is none, 1 where there are some, 2 on misuse.
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
from k8s.check.report import distinct, report
from k8s.check.repository import Repository
from k8s.check.rule import Finding
from k8s.check.suite import RULES, bundles, crds_folder, findings, folders_of, source_errors

__all__ = ["main"]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _count(number: int) -> str:
    return f"{number or 'no'} finding{'s' if number != 1 else ''}"


def _check(folders: list[Path], repository: Repository) -> int:
    """Check, and print what was found; returns how much that is."""
    found = [Finding("strict-yaml", "k8s", where, message) for where, message in source_errors(REPOSITORY / "k8s")]
    seen = []
    for bundle in bundles(folders, repository):
        wrong = findings(bundle)
        kinds = Counter(str(document.get("kind")) for document in bundle.documents)
        _say(f"{bundle.name}: {sum(kinds.values())} objects of {len(kinds)} kinds, {_count(len(distinct(wrong)))}")
        found += wrong
        seen.append(bundle)
    # a part of the manifests does not tell which objects there are
    everything = seen if folders == [REPOSITORY / "k8s"] else None
    found += [Finding("documentation", "k8s", where, message) for where, message in documentation_errors(repository, everything)]
    for line in report(found, {bundle.name: folders_of(bundle) for bundle in seen}, REPOSITORY):
        _say(line)
    return len(distinct(found))


def _say_what_was_not_checked(repository: Repository) -> None:
    _say(f"checked by small schemas of our own, as their definitions are not at hand: {', '.join(KINDS)}")
    if crds_folder() is None:
        _say(
            "SKIPPED: KUBERAY_CRDS is not set, so of RayCluster, RayJob and RayService only the names and types of KubeRay's own fields were checked; "
            f"it names a folder with the definitions of KubeRay {repository.versions['kuberay']}, as ray.io_rayclusters.yaml, from its release "
            "or from `kubectl get crd rayclusters.ray.io -o yaml`"
        )


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
        repository = Repository(REPOSITORY)
        _say(f"rendered with {kubectl()}; {len(RULES)} rules")
        count = _check(options.folders or [REPOSITORY / "k8s"], repository)
        _say_what_was_not_checked(repository)
    except GrunError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    _say(_count(count))
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
