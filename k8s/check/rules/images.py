"""Images and versions: one Ray, one Python, one image for everything that speaks Ray."""

import re

from k8s.check.bundle import Bundle, is_ours
from k8s.check.rule import Wrong, table

__all__ = ["RULES"]

_REFERENCE = re.compile(r"(?P<name>[^@]+?)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]*))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z")


def image_is_pinned(bundle: Bundle) -> Wrong:
    """What `latest` means changes behind one's back; a tag of ours is a version, a digest is better still."""
    for where, _, container in bundle.containers if bundle.is_complete else ():
        image = str(container.get("image"))
        found = _REFERENCE.match(image)
        if not found or not (found["digest"] or found["tag"]) or found["tag"] == "latest":
            yield (
                where,
                f"an image must have a tag other than latest, or a digest, got {image!r}; set it in the kustomization's `images`",
            )


def image_is_known(bundle: Bundle) -> Wrong:
    """An image is the one that the Containerfile builds, or of a version that `k8s/versions.yaml` decides."""
    versions = bundle.repository.versions
    for where, _, container in bundle.containers:
        found = _REFERENCE.match(str(container.get("image")))
        if not found:
            continue
        name, tag = found["name"].rpartition("/")[2], found["tag"] or ""
        wanted = versions["image"] if is_ours(container) else versions.get(name)
        if wanted is None:
            yield where, f"an image must be ours or stand in k8s/versions.yaml, got {container['image']!r}; add its version there"
        elif tag and tag != wanted and not tag.startswith(f"{wanted}-"):
            yield where, f"an image must be of the version {wanted} of k8s/versions.yaml, got tag {tag!r}; make them one"


def image_is_one(bundle: Bundle) -> Wrong:
    """Head, workers, submitter and whoever talks to them run the same Ray and Python only if they run the same image."""
    ours = {container["image"] for _, _, container in bundle.containers if is_ours(container)}
    for where, pod, container in bundle.containers:
        if is_ours(container) and len(ours) > 1 and container["image"] != min(ours):
            yield (
                where,
                f"everything must run one build of our image, got {container['image']!r} beside {min(ours)!r}; use `images` of the kustomization",
            )
        if pod.role != "pod" and not is_ours(container):
            yield where, f"a pod of Ray must run our image, got {container.get('image')!r}; name {min(ours, default='it')}"


def ray_version(bundle: Bundle) -> Wrong:
    """KubeRay decides by rayVersion what it may use; it has to be the Ray that is in the image, and in the lock."""
    wanted = bundle.version("ray")
    for cluster in bundle.clusters:
        if cluster.spec.get("rayVersion") != wanted:
            yield (
                cluster.owner,
                f"rayVersion must be {wanted!r}, as in k8s/versions.yaml, got {cluster.spec.get('rayVersion')!r}; make them one",
            )


def versions_agree(bundle: Bundle) -> Wrong:
    """`k8s/versions.yaml` says what the project's own files say."""
    repository = bundle.repository
    found = {name: repository.locked.get(name) for name in ("ray", "mlflow")} | {
        "image": repository.project["project"]["version"]
    }
    for name, version in found.items():
        if repository.versions.get(name) != version:
            yield (
                "k8s/versions.yaml",
                f"{name} must be {version}, as the lock and pyproject.toml have it, got {repository.versions.get(name)!r}; make them one",
            )


RULES = table(image_is_pinned, image_is_known, image_is_one, ray_version, versions_agree)
