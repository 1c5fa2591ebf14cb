"""YAML as Kubernetes means it: what readers of YAML 1.1 and 1.2 disagree on is refused.

`rayVersion: 2.60` is the number 2.6, `on` is true to some, `0644` is 420, and of two equal keys the last one wins, silently.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from grun.errors import ConfigError

__all__ = ["Document", "load", "load_any"]

Document = dict[str, Any]
"""An object of Kubernetes, as read."""

_TRAPS = {
    "tag:yaml.org,2002:bool": re.compile(r"(?:true|false)\Z"),
    "tag:yaml.org,2002:int": re.compile(r"-?(?:0|[1-9][0-9]*)\Z"),
}
_MERGE = "tag:yaml.org,2002:merge"
_STRINGS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
_NOT_TEXT = re.compile(r"(?:[yYnN]|[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|0o[0-7]+)\Z")
"""What YAML 1.1 as Go reads it, or YAML 1.2, takes for a boolean or a number, and PyYAML for text."""
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?\Z")


class _Loader(yaml.CSafeLoader):
    """A safe loader that refuses duplicate keys and ambiguous scalars, and knows no timestamps."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # `<<` may stand beside what it brings
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refusal(key_node, "a key must be text", key_node.value, "quote it")
            if key in keys:
                raise _refusal(key_node, "a key must stand once in its mapping", key, "remove one of the two")
            keys.add(key)
        return super().construct_mapping(node, deep=deep)

    def unambiguous(self, node: yaml.ScalarNode) -> Any:
        """Construct a boolean or a number whose spelling means the same to every reader."""
        text, tag = node.value, node.tag
        if _SEXAGESIMAL.match(text):
            return text
        if tag == "tag:yaml.org,2002:float":
            value = self.construct_yaml_float(node)
            if repr(value) != text:
                raise _refusal(node, "a number must keep its digits when it is read", text, "quote it, if it is a version")
            return value
        if not _TRAPS[tag].match(text):
            raise _refusal(
                node,
                "a plain scalar must mean the same in YAML 1.1 and 1.2",
                text,
                "quote it, or write true, false or a decimal number",
            )
        return text == "true" if tag.endswith("bool") else int(text)

    def plain_text(self, node: yaml.ScalarNode) -> str:
        """Construct text that no reader takes for a number or a boolean."""
        if not node.style and _NOT_TEXT.match(node.value):
            raise _refusal(node, "plain text must be text to every reader", node.value, "quote it")
        return str(node.value)

    def as_written(self, node: yaml.ScalarNode) -> Any:
        """Keep text that YAML 1.1 alone takes for something else, as a date."""
        return node.value


def _refusal(node: yaml.Node, rule: str, value: Any, remedy: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, f"{rule}, got {value!r}; {remedy}", node.start_mark)


for _tag in (*_TRAPS, "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _Loader.unambiguous)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.plain_text)
for _tag in _STRINGS:
    _Loader.add_constructor(_tag, _Loader.as_written)


def load(text: str, *, where: str | Path) -> list[Document]:
    """Read all documents of a YAML stream; empty ones are left out.

    Raises:
        ConfigError: the text is not YAML, a key stands twice, a scalar is ambiguous, or a document is no mapping.
    """
    documents = load_any(text, where=where)
    for document in documents:
        if not isinstance(document, dict):
            raise ConfigError(f"{where}: a document must be a mapping, got a {type(document).__name__}; check the indentation")
    return documents


def load_any(text: str, *, where: str | Path) -> list[Any]:
    """Read all documents of a YAML stream, lists of patches as well.

    Raises:
        ConfigError: the text is not YAML, a key stands twice, or a scalar is ambiguous.
    """
    try:
        return [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else str(where)
        raise ConfigError(f"{place}: {getattr(error, 'problem', None) or ' '.join(str(error).split())}") from None
