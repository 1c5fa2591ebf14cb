"""The real manifests, rendered once."""

from pathlib import Path

import pytest

from grun.errors import ConfigError
from k8s.check.bundle import Bundle
from k8s.check.render import REPOSITORY, kubectl
from k8s.check.repository import Repository
from k8s.check.suite import bundles


@pytest.fixture(scope="session")
def needs_kubectl() -> None:
    """Skip, and say so, where nothing can be rendered."""
    try:
        kubectl()
    except ConfigError as error:
        pytest.skip(f"nothing of the manifests was rendered or checked: {error}")


@pytest.fixture(scope="session")
def rendered(needs_kubectl: None) -> dict[str, Bundle]:
    """Every folder of the repository that can be rendered, by its path below k8s."""
    found = bundles([REPOSITORY / "k8s"], Repository(REPOSITORY))
    return {str(Path(bundle.name).relative_to("k8s")): bundle for bundle in found}
