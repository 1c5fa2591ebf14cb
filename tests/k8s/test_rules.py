"""Every rule speaks of its mistake, alone; the real manifests give none of them anything to say."""

import copy
from collections.abc import Mapping

import pytest

from k8s.check.bundle import Bundle
from k8s.check.render import REPOSITORY
from k8s.check.repository import Repository
from k8s.check.suite import RULES, crds_folder, findings
from tests.k8s.seeds import SEEDS, Draft, Seed


class _Changed(Repository):
    """The repository with other versions."""

    def __init__(self, versions: Mapping[str, str]) -> None:
        super().__init__(REPOSITORY)
        self.versions = versions


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed.rule}")
def test_a_rule_speaks_of_its_mistake_alone(seed: Seed, rendered: dict[str, Bundle]) -> None:
    if seed.rule == "ray-schema" and not seed.without_crds and crds_folder() is None:
        pytest.skip("KUBERAY_CRDS is not set: nothing was checked against KubeRay's definitions")
    bundle = rendered[seed.bundle]
    draft = Draft(copy.deepcopy(bundle.documents), dict(bundle.repository.versions))
    seed.edit(draft)
    repository = bundle.repository if draft.versions == bundle.repository.versions else _Changed(draft.versions)
    crds = None if seed.without_crds else bundle.crds
    changed = Bundle(bundle.name, draft.documents, repository, bundle.around, crds, bundle.is_complete)
    found = findings(changed)
    assert {finding.rule for finding in found} == {seed.rule}, [str(finding) for finding in found]
    assert all(", got " in finding.message and "; " in finding.message for finding in found)


def test_every_rule_has_a_seeded_mistake() -> None:
    assert {rule.name for rule in RULES} == {seed.rule for seed in SEEDS}
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.why for rule in RULES)


def test_the_manifests_have_no_mistakes(rendered: dict[str, Bundle]) -> None:
    assert {"base", "overlays/local-cpu", "overlays/gpu"} <= rendered.keys()
    assert [str(finding) for bundle in rendered.values() for finding in findings(bundle)] == []
