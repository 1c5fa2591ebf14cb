"""Volumes of a pod as folders and mounts, made in the pod's own mount namespace."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.k8s.nodes.environment import field_value, quantity, resource_value
from tests.k8s.nodes.manifests import Documents, UnsupportedError

__all__ = ["Volumes"]

_FILE_MODE = 0o644


@dataclass(frozen=True)
class Volumes:
    """Makes the volumes of one pod.

    Claims lie in a folder of the cluster, so that every pod that mounts one sees the same files, on every "node".
    """

    documents: Documents
    namespace: str
    folder: Path
    """Of this pod."""
    claims: Path
    """Folder of all claims."""
    fields: Mapping[str, Any]
    """Of the pod, for downward references."""
    containers: Mapping[str, Mapping[str, Any]]
    fs_group: int | None

    def make(self, volume: Mapping[str, Any]) -> tuple[Path, list[str]]:
        """Make a volume; return its folder, and the shell commands that the pod's namespace needs for it."""
        kinds = [kind for kind in volume if kind != "name"]
        kind = kinds[0] if kinds else "emptyDir"
        makers: dict[str, Callable[[Path, Mapping[str, Any]], list[str]]] = {
            "emptyDir": self._empty,
            "persistentVolumeClaim": self._claim,
            "configMap": self._files,
            "secret": self._files,
            "projected": self._files,
            "downwardAPI": self._files,
        }
        if kind not in makers:
            raise UnsupportedError(f"a volume must be one of {sorted(makers)}, got {kind!r}")
        folder = self.folder / str(volume["name"])
        if kind == "persistentVolumeClaim":
            folder = self.claims / self.namespace / volume[kind]["claimName"]
            self._must_be_claimed(volume[kind]["claimName"])
        folder.mkdir(parents=True, exist_ok=True)
        wanted = volume.get(kind) or {}
        return folder, makers[kind](folder, {kind: wanted} if kind in ("configMap", "secret", "downwardAPI") else wanted)

    def _must_be_claimed(self, name: str) -> None:
        if self.documents.get("PersistentVolumeClaim", self.namespace, name) is None and not self._templated(name):
            raise LookupError(f"PersistentVolumeClaim {self.namespace}/{name} must be rendered, or given beside the manifests")

    def _templated(self, name: str) -> bool:
        """Whether a StatefulSet makes the claim: `<template>-<set>-<ordinal>`."""
        sets = self.documents.kind("StatefulSet", self.namespace)
        templates = ((s, t) for s in sets for t in s["spec"].get("volumeClaimTemplates") or ())
        return any(name == f"{t['metadata']['name']}-{s['metadata']['name']}-0" for s, t in templates)

    def _empty(self, folder: Path, source: Mapping[str, Any]) -> list[str]:
        # any user of the pod may write, and the group of the volume owns what is made in it
        commands = [f"chmod {'2777' if self.fs_group is not None else '0777'} {folder}"]
        if self.fs_group is not None:
            commands.insert(0, f"chgrp {self.fs_group} {folder}")
        if source.get("medium") == "Memory":
            size = f",size={int(quantity(source['sizeLimit']))}" if "sizeLimit" in source else ""
            return [f"mount -t tmpfs -o nosuid,nodev,mode=0777{size} tmpfs {folder}", *commands]
        if source.get("medium"):
            raise UnsupportedError(f"an emptyDir lies on disk or in Memory, got {source['medium']!r}")
        return commands

    def _claim(self, folder: Path, source: Mapping[str, Any]) -> list[str]:
        if self.fs_group is None or source.get("readOnly"):
            return []
        return [f"chgrp -R {self.fs_group} {folder}", f"chmod -R g+rwX {folder}", f"chmod g+s {folder}"]

    def _files(self, folder: Path, source: Mapping[str, Any]) -> list[str]:
        """Write the files of a ConfigMap, a Secret, the downward API or several of them."""
        sources = source.get("sources") or [source]
        default = (source if "sources" in source else next(iter(source.values()))).get("defaultMode", _FILE_MODE)
        for one in sources:
            for path, (content, mode) in self._contents(one).items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                target.chmod(mode if mode is not None else default)
                if self.fs_group is not None:
                    # a kubelet lets the group read what its owner reads, as the owner is root
                    shutil.chown(target, group=self.fs_group)
                    target.chmod(target.stat().st_mode | 0o040)
        folder.chmod(0o755)
        return []

    def _contents(self, source: Mapping[str, Any]) -> dict[str, tuple[bytes, int | None]]:
        [(kind, wanted)] = source.items()
        items = wanted.get("items")
        if kind == "downwardAPI":
            return {item["path"]: (self._downward(item).encode(), item.get("mode")) for item in items or ()}
        if kind not in ("configMap", "secret"):
            raise UnsupportedError(f"projected volumes hold configMap, secret and downwardAPI here, got {kind!r}")
        name = wanted.get("name") or wanted.get("secretName")
        label = "ConfigMap" if kind == "configMap" else "Secret"
        data = self.documents.data(label, self.namespace, name, optional=wanted.get("optional", False))
        if items is None:
            return {key: (value, None) for key, value in data.items()}
        absent = [item["key"] for item in items if item["key"] not in data]
        if absent and not wanted.get("optional"):
            raise LookupError(f"{label} {self.namespace}/{name} must hold the keys {absent}, got {sorted(data)}")
        return {item["path"]: (data[item["key"]], item.get("mode")) for item in items if item["key"] in data}

    def _downward(self, item: Mapping[str, Any]) -> str:
        if "fieldRef" in item:
            return field_value(item["fieldRef"]["fieldPath"], self.fields)
        return resource_value(item["resourceFieldRef"], self.containers, os.devnull)
