"""Reading what others wrote: bounded before it is in memory, and without the corners of JSON and YAML that mean two things or cost the earth.

    JSON    no key twice, no NaN or Infinity, no half surrogate pairs, no bottomless nesting, no number of a thousand digits
    YAML    the same, and no anchors: ten lines of aliases can stand for a billion values
    files   a plain file of at most so many bytes, and no link to one where it comes with a folder of its own

What is wrong is a :class:`MalformedError` with words for a message; readers say whose file it is and what to do. Words about texts
hold none of the text, which may be what is to be forgotten.
"""

import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Hashable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "DoubleKeyError",
    "MalformedError",
    "check_tensor_file",
    "check_text",
    "cut",
    "digest_file",
    "named",
    "open_plain",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_text",
    "reason_of",
    "shown",
    "visible",
]

_MAX_DEPTH = 100
_MAX_BITS = 1024
"""Integers beyond it fit no float, and no count of ours comes near."""

_MAX_TENSOR_HEADER = 2**20
"""Bytes; a stack of layers takes some hundred each."""

_MAX_SHOWN = 200

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_ALLOWED = "\n\t\u200c\u200d"  # joiners belong into the words of several scripts


class MalformedError(ValueError):
    """A text is not what it has to be; the message says why."""


class DoubleKeyError(MalformedError):
    """A key comes twice in one object. The message names it, and so holds some of the text: keys are not forgotten."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def shown(value: object, limit: int = _MAX_SHOWN) -> str:
    """A value in a message: its repr, cut where it would bury the message."""
    return cut(repr(value), limit)


def cut(text: str, limit: int = _MAX_SHOWN) -> str:
    """A text in a message, cut where it would bury the message."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def visible(text: str) -> str:
    """Show characters that cannot be seen, that steer a terminal or turn the direction of writing, by their code point."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"\u27e8U+{ord(c):04X}\u27e9" if c not in _ALLOWED and unicodedata.category(c) in _INVISIBLE else c for c in text
    )


def named(name: object) -> str:
    """A name of somebody else's in a message, in one line and not too long."""
    return f"`{shown(str(name), 80)[1:-1]}`"


def reason_of(error: Exception) -> str:
    """What the system or a parser said of a file, in one line."""
    return cut(getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__)


def check_text(text: str) -> str:
    """Return a text, if it is one: half a surrogate pair is none, and has no bytes in UTF-8.

    Raises:
        MalformedError: it has such a half.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedError("half a surrogate pair, which is no character") from None
    return text


def read_bytes(path: Path, *, limit: int, owned: bool = False) -> bytes:
    """Read a file, unless it is larger than it can be.

    Args:
        limit: the most bytes that it may have.
        owned: whether it has to lie where it is found: a link would bring in a file of somebody else's.

    Raises:
        OSError: it cannot be read.
        MalformedError: it is too large, or no plain file.
    """
    with open_plain(path, owned=owned) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise MalformedError(f"{size} bytes, and at most {limit} make sense here")
        return file.read(limit)


def open_plain(path: Path, *, owned: bool = False) -> BufferedReader:
    """Open a plain file to read its bytes.

    Args:
        owned: as for :func:`read_bytes`.

    Raises:
        OSError: it cannot be opened.
        MalformedError: it is no plain file.
    """
    try:
        # without O_NONBLOCK, opening a pipe waits for whoever writes it, for ever
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if owned else 0))
    except ValueError as error:  # a zero byte in the path
        raise MalformedError(str(error)) from None
    kind = os.fstat(handle).st_mode
    if not stat.S_ISREG(kind):
        os.close(handle)
        raise MalformedError("a directory" if stat.S_ISDIR(kind) else "no plain file")
    return os.fdopen(handle, "rb")


def read_text(path: Path, *, limit: int, owned: bool = False) -> str:
    """Read a file of UTF-8; as :func:`read_bytes`.

    Raises:
        OSError: it cannot be read.
        MalformedError: it is too large, no plain file, or not UTF-8.
    """
    try:
        return read_bytes(path, limit=limit, owned=owned).decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"byte {error.start} is not UTF-8") from None


def digest_file(path: Path, *, owned: bool = False) -> str:
    """SHA-256 of a file of any size.

    Raises:
        OSError: it cannot be read.
        MalformedError: it is no plain file.
    """
    with open_plain(path, owned=owned) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_tensor_file(path: Path, *, owned: bool = False) -> None:
    """Look at the header of a safetensors file before a library parses it: its length comes from the file.

    Raises:
        OSError: it cannot be read.
        MalformedError: the header is longer than the file, or than headers of ours.
    """
    with open_plain(path, owned=owned) as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    if length > min(_MAX_TENSOR_HEADER, size - 8):
        raise MalformedError(f"a header of {length} bytes in a file of {size}, where at most {_MAX_TENSOR_HEADER} make sense")


def parse_json(text: str | bytes) -> Any:
    """Decode JSON; bytes are UTF-8.

    Raises:
        MalformedError: it is no JSON, or JSON that no reader of ours takes.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")  # `json` would take UTF-16 and UTF-32 as well
        values = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_number)
        _check_tree(values, _MAX_DEPTH)
    except RecursionError:
        raise MalformedError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise MalformedError(f"byte {error.start} is not UTF-8") from None
    except MalformedError:
        raise
    except json.JSONDecodeError as error:
        raise MalformedError(reason_of(error)) from None
    except ValueError:  # Python reads none so long
        raise MalformedError("an integer of thousands of digits") from None
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        key = str(_twice(name for name, _value in pairs))
        raise DoubleKeyError(f"the key {shown(key, 60)} twice in one object", key)
    return values


def _twice(names: Iterable[str]) -> str | None:
    """The first name that comes twice."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _no_constant(name: str) -> Any:
    raise MalformedError(f"{name}, which is no JSON number")


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise MalformedError("a number beyond what a float holds")
    return value


def _check_tree(values: Any, depth: int) -> None:
    """Refuse half surrogate pairs, endless numbers and bottomless nesting."""
    if isinstance(values, str):
        check_text(values)
    elif isinstance(values, int):
        if values.bit_length() > _MAX_BITS:
            raise MalformedError(f"an integer of {values.bit_length()} bits, and none has more than {_MAX_BITS}")
    elif isinstance(values, dict | list):
        if depth == 0:
            raise MalformedError("nested too deeply")
        for part in (*values, *values.values()) if isinstance(values, dict) else values:
            _check_tree(part, depth - 1)


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""With libyaml, which is an order of magnitude faster, where PyYAML was built with it."""


class _Loader(_SafeLoader):  # type: ignore[misc] # chosen above
    """PyYAML's safe loader without double keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping, unless a key comes twice."""
        names = [child.value for child, _value in getattr(node, "value", ()) if isinstance(child, yaml.ScalarNode)]
        if (twice := _twice(names)) is not None:
            raise MalformedError(f"the key {shown(twice, 60)} twice in line {node.start_mark.line + 1} and below; leave one")
        values: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return values


def _check_events(text: str) -> None:
    """Refuse anchors, aliases and bottomless nesting before anything is built."""
    depth = 0
    event: Any
    for event in yaml.parse(text, _SafeLoader):
        if getattr(event, "anchor", None) is not None:
            raise MalformedError(f"an anchor or alias in line {event.start_mark.line + 1}; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise MalformedError("nested too deeply")


def parse_yaml(text: str) -> Any:
    """Decode one YAML document of plain values.

    Raises:
        MalformedError: it is no YAML, or YAML that no reader of ours takes.
    """
    try:
        _check_events(text)
        values = yaml.load(text, _Loader)  # noqa: S506 - a safe loader, made safer
        _check_tree(values, _MAX_DEPTH)
    except MalformedError:
        raise
    except RecursionError:
        raise MalformedError("nested too deeply") from None
    except Exception as error:  # noqa: BLE001 - `!!int x` and its like end in whatever Python makes of them
        raise MalformedError(f"{type(error).__name__}: {reason_of(error)}") from None
    return values
