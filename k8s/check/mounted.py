"""What lies at a path of a container: a file of the image, a key of a ConfigMap or Secret, or something that a volume brings."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from k8s.check.bundle import Bundle
from k8s.check.pod import Container, Pod

__all__ = ["exists_at", "mount_of", "text_at"]


def mount_of(container: Container, path: str) -> Mapping[str, Any] | None:
    """The mount that a path lies in; None where it is the image's."""
    inside = [mount for mount in container.get("volumeMounts") or [] if PurePosixPath(path).is_relative_to(mount["mountPath"])]
    return max(inside, key=lambda mount: len(mount["mountPath"]), default=None)


def _config(bundle: Bundle, pod: Pod, container: Container, path: str) -> tuple[Mapping[str, Any], str] | None:
    """The ConfigMap volume at a path, and the path in it; None where there is another volume or none."""
    mount = mount_of(container, path)
    volumes = [volume for volume in pod.spec.get("volumes") or [] if mount and volume["name"] == mount["name"]]
    if not mount or not volumes or "configMap" not in volumes[0]:
        return None
    inside = str(PurePosixPath(path).relative_to(mount["mountPath"]))
    inside = (
        str(PurePosixPath(mount["subPath"]) / inside)
        if mount.get("subPath") and inside != "."
        else mount.get("subPath") or inside
    )
    volume = volumes[0]["configMap"]
    key = next(
        (item["key"] for item in volume.get("items") or [] if item["path"] == inside), None if volume.get("items") else inside
    )
    document = bundle.find("ConfigMap", volume["name"], pod.namespace) or {}
    return document.get("data") or {}, str(key)


def text_at(bundle: Bundle, pod: Pod, container: Container, path: str) -> str | None:
    """The text of a file of the image or of a ConfigMap; None where there is none, or only a volume could say."""
    config = _config(bundle, pod, container, path)
    if config:
        data, key = config
        return data.get(key)
    file = bundle.repository.file(path) if mount_of(container, path) is None else None
    return file.read_text(encoding="utf-8") if file else None


def exists_at(bundle: Bundle, pod: Pod, container: Container, path: str) -> bool:
    """Whether a file is there, as far as manifests and repository can say: what other volumes hold is not known here."""
    is_known = mount_of(container, path) is None or _config(bundle, pod, container, path) is not None
    return not is_known or text_at(bundle, pod, container, path) is not None
