"""The base of every section of a recipe: frozen, closed, documented by the docstring under each field."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from grun.errors import ConfigError, near_miss
from grun.reading import cut, shown

__all__ = [
    "MODEL_PATTERN",
    "NAME_PATTERN",
    "Config",
    "Count",
    "InsidePath",
    "PathOrUri",
    "StorageUri",
    "explain",
    "field_names",
    "is_uri",
    "rule_of",
]


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
"""What names of runs, requests and ledgers are made of: they become parts of file, run and model names."""

MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,199}$"
"""What names of registered models are made of: MLflow takes no more of them, and the server names folders after them."""

_IN_WORDS: Mapping[str, str] = {
    NAME_PATTERN: "must be 1 to 63 letters, digits, `_`, `.` or `-`, the first a letter or digit",
    MODEL_PATTERN: "must be 1 to 200 letters, digits, `_`, `.`, `-` or spaces, the first a letter or digit",
}

_RULES: Mapping[str, str] = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), "must be a mapping of fields"),
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "union_tag_not_found": "must say its `kind`",
}
"""By pydantic's word for the error, where its message would name a class or a type that no recipe and no client knows."""

_MAX_FINDINGS, _MAX_RULE = 20, 500
"""How much of what is wrong a message names, and characters of each rule."""


class Config(BaseModel):
    """A section of a recipe. Unknown keys are refused, values cannot be changed after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


Count = Annotated[int, Field(ge=0, le=2**53)]
"""How many there are of something, as far as JSON and what reckons with it agree on integers."""


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"must be a name inside the data folder, without `..` or a leading `/`, got {value!r}")
    return value


InsidePath = Annotated[str, AfterValidator(_inside)]
"""A relative file name that cannot leave the folder it is resolved in."""


def is_uri(text: str) -> bool:
    """Whether a text names a place on shared storage (`s3://bucket/folder`) and not a local path."""
    return "://" in text


def _uri(value: str) -> str:
    # credentials in a URI would be stored with the recipe, in requests and in MLflow
    hidden = re.sub(r"//[^/@]*@", "//***@", value)
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s]+", value):
        raise ValueError(
            f"must be a URI such as `s3://bucket/folder` or `file:///folder`, got {hidden!r}; write the scheme and the place"
        )
    parts = urlsplit(value)
    if "@" in parts.netloc or re.search(r"(?i)(secret|password|token|access_key)", parts.query):
        raise ValueError(
            f"must be a URI without credentials, got {hidden.split('?')[0]!r} with some; leave them to the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, or the node's own role)"
        )
    return value


StorageUri = Annotated[str, AfterValidator(_uri)]
"""A folder on shared storage, by any URI that pyarrow's file systems know, without credentials."""

PathOrUri = Annotated[str, AfterValidator(lambda value: _uri(value) if is_uri(value) else value)]
"""A local path, or a folder on shared storage."""


def field_names(annotation: Any) -> set[str]:
    """Return the field names of a section, or of every member of a union of sections."""
    if _is_section(annotation):
        return set(annotation.model_fields)
    return set().union(*(field_names(arg) for arg in get_args(annotation)), set())


def _annotation_at(root: type[BaseModel], path: tuple[Any, ...]) -> Any:
    """Follow an error location through the schema; the tag of a union leads to its member of that kind."""
    annotation: Any = root
    for part in path:
        members = [annotation, *get_args(annotation)]
        models = [m for m in (*members, *(arg for member in members for arg in get_args(member))) if _is_section(m)]
        for model in models:
            if part in model.model_fields:
                annotation = model.model_fields[part].annotation
                break
            if "kind" in model.model_fields and model.model_fields["kind"].default == part:
                annotation = model
                break
    return annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def rule_of(item: ErrorDetails) -> str:
    """What a value must be, in our words and not in pydantic's."""
    if (words := _RULES.get(item["type"])) is not None:
        return words
    if item["type"] == "string_pattern_mismatch" and (words := _IN_WORDS.get(item["ctx"]["pattern"])) is not None:
        return words
    message = re.sub(r" after validation, not \d+$", "", item["msg"].removeprefix("Value error, "))
    return re.sub(r"^(Input|List|String|Tuple|Value) should ", "must ", message)


def explain(error: ValidationError, root: type[BaseModel], *, where: str, what: str = "recipe") -> ConfigError:
    """Turn a validation error into one message: the path, the rule, the value, and the near miss of an unknown key."""
    lines = []
    for item in error.errors(include_url=False):
        location = item["loc"]
        path = cut(".".join(str(part) for part in location))
        if item["type"] == "extra_forbidden":
            known = field_names(_annotation_at(root, location[:-1]))
            parent = ".".join(str(part) for part in location[:-1]) or "the top level"
            lines.append(f"unknown key `{cut(str(location[-1]))}` in {parent}{near_miss(str(location[-1]), known)}")
            continue
        value = item.get("input")
        got = "" if isinstance(value, Mapping) else f", got {shown(value)}"
        message = cut(rule_of(item), _MAX_RULE)
        lines.append(f"`{path}`: {message}{'' if 'got' in message else got}" if path else message)
    left = len(lines) - _MAX_FINDINGS
    more = [f"and {left} more"] if left > 0 else []
    return ConfigError(f"{where} is not a valid {what}: " + "; ".join([*lines[:_MAX_FINDINGS], *more]))
