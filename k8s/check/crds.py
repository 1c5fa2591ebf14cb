"""Objects of custom kinds against their CustomResourceDefinitions, as a server would check them, and more strictly.

A server removes unknown fields in silence, so here they are errors. Defaults are filled in first, as fields may be required *and* have one. JSON Schema
has no words for lists that are maps or sets, nor for rules in CEL: both are checked apart. Rules about `oldSelf` are about
changes and are left out.
"""

import copy
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import yaml
from celpy.adapter import json_to_cel

from grun.errors import ConfigError
from k8s.check.schemas import told

__all__ = ["CustomKind", "custom_kind"]

Schema = dict[str, Any]
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_METADATA: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "generateName": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _LABELS,
        "annotations": _LABELS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
    },
}
_KEPT = (
    "type",
    "properties",
    "items",
    "required",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)
_LOGIC = ("anyOf", "oneOf", "allOf")


class CustomKind:
    """A kind of one version of a CustomResourceDefinition."""

    def __init__(self, schema: Schema) -> None:
        """Read the `openAPIV3Schema` of a version."""
        self._schema = schema
        strict = _strict(schema)
        strict["properties"] |= {"metadata": _METADATA, "apiVersion": {"type": "string"}, "kind": {"type": "string"}}
        self._validator = jsonschema.Draft202012Validator(strict)

    def errors(self, document: Mapping[str, Any]) -> Iterator[str]:
        """Everything that is wrong with an object, as "path: message"."""
        filled = {key: value for key, value in document.items() if key != "status"}
        filled = _with_defaults(self._schema, filled)
        wrong = [told(error) for error in self._validator.iter_errors(filled)]
        yield from wrong
        if not wrong:  # rules may count on the types
            yield from _beyond(self._schema, filled, "")


@functools.cache
def _definition(path: Path) -> dict[str, Any]:
    definition: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return definition


@functools.cache
def custom_kind(folder: Path, api_version: str, kind: str) -> CustomKind | None:
    """Find a kind among the definitions of a folder; None where none of them defines it.

    Raises:
        ConfigError: the folder holds no definitions.
    """
    group, _, version = api_version.partition("/")
    paths = sorted(folder.glob(f"{group}_*.yaml"))
    if not paths:
        raise ConfigError(
            f"KUBERAY_CRDS must be a folder of CustomResourceDefinitions called {group}_....yaml, got {str(folder)!r}; "
            "name them so, or unset it to go without"
        )
    for path in paths:
        # files are large and named after what they define
        if path.name.startswith(f"{group}_{kind.lower()}") and _definition(path)["spec"]["names"]["kind"] == kind:
            for served in _definition(path)["spec"]["versions"]:
                if served["name"] == version and served["served"]:
                    return CustomKind(served["schema"]["openAPIV3Schema"])
    return None


def _strict(schema: Schema) -> Schema:
    """The same in JSON Schema, with no room for fields that nobody defined."""
    strict: Schema = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        strict["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(schema["additionalProperties"])
    if "items" in schema:
        strict["items"] = _strict(schema["items"])
    if schema.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    else:
        strict |= {key: schema[key] for key in _LOGIC if key in schema}
    if schema.get("nullable") and "type" in strict:
        kinds = strict["type"] if isinstance(strict["type"], list) else [strict["type"]]
        strict["type"] = [*kinds, "null"]
    return strict


def _with_defaults(schema: Schema, value: Any) -> Any:
    if isinstance(value, Mapping):
        filled = dict(value)
        for name, part in schema.get("properties", {}).items():
            if name not in filled and "default" in part:
                filled[name] = copy.deepcopy(part["default"])
            if name in filled:
                filled[name] = _with_defaults(part, filled[name])
        if isinstance(schema.get("additionalProperties"), dict):
            return {name: _with_defaults(schema["additionalProperties"], part) for name, part in filled.items()}
        return filled
    if isinstance(value, list) and "items" in schema:
        return [_with_defaults(schema["items"], part) for part in value]
    return value


def _beyond(schema: Schema, value: Any, path: str) -> Iterator[str]:
    """What JSON Schema cannot say: unique keys of lists, and rules in CEL."""
    for rule in schema.get("x-kubernetes-validations") or []:
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{path.lstrip('.') or 'the object'}: {rule.get('message', rule['rule'])}"
    if isinstance(value, Mapping):
        for name, part in value.items():
            below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(below, dict):
                yield from _beyond(below, part, f"{path}.{name}")
    elif isinstance(value, list):
        yield from _repeated(schema, value, path)
        for index, part in enumerate(value):
            yield from _beyond(schema.get("items", {}), part, f"{path}[{index}]")


def _repeated(schema: Schema, value: list[Any], path: str) -> Iterator[str]:
    kind = schema.get("x-kubernetes-list-type")
    if kind not in ("map", "set"):
        return
    fields = schema.get("x-kubernetes-list-map-keys") or []
    keys = [repr([part.get(field) for field in fields] if kind == "map" else part) for part in value]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"{path.lstrip('.')}: entries must differ in {', '.join(fields) or 'value'}, got {key} twice"


@functools.cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _holds(rule: str, value: Any) -> bool:
    return bool(_program(rule).evaluate({"self": json_to_cel(value)}))
