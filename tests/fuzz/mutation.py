"""From a seed to a case: bytes that are nearly right, in the way of their format.

Half of the cases keep the format whole and put one wrong value into it, as a parser stops at the first wrong byte; the others are
changed byte by byte. Every draw comes from the random state that is given, so a case is repeated by its number.
"""

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import yaml

from tests.fuzz.readers import Format

__all__ = ["mutate"]

NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**12, 10**400, 0.0, -0.0, 1e308, 5e-324, 0.5)
TEXTS = (
    "",
    " ",
    "a\0b",
    "\ud800",
    "\U0001f600",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "r1/../r1",
    "\x1b[31m",
    "<script>",
    "{{ x }}",
    "%s%n",
    "<|end|>",
    "x" * 2000,
    "\u202e",
    "0" * 64,
    "2026-11-25T03:00:00Z",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "F32",
    "float16",
    "none",
)
WORDS: tuple[bytes, ...] = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"null",
    b"true",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\0",
)
WORDS += (
    b'{"a":1,"a":2}',
    b"[" * 20000,
    b"9" * 5000,
    b"\r\n",
    b"\n",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"&a [*a]",
    b"&a ",
    b"*a",
    b"<<: ",
    b"? ",
)
WORDS += (
    b"!!python/object/apply:os.system [true]",
    b"!!int x",
    b"!!timestamp x",
    b"!!binary x",
    b"!!set {a}",
    b"---\n",
    b": ",
    b"- ",
)
OPCODES = b"(.012FIJKLMNPQRSTUVXabcdeghijlopqrstu}]\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8e\x90\x93\x94\x95"

Tree = Any


def mutate(seeds: Sequence[bytes], format: Format, random: Random) -> bytes:
    """Make a case out of the seeds of a reader."""
    seed = random.choice(seeds)
    if random.random() < 0.6:
        try:
            return _STRUCTURED[format](seed, random)
        except Exception:  # noqa: BLE001 - a seed that is broken already, in whatever way
            pass
    return _bytes(seed, random, seeds)


def _bytes(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Change, drop, repeat, insert, or go on with another seed."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        place = random.randrange(len(changed) + 1)
        end = min(len(changed), place + random.choice((1, 1, 2, 8, 64)))
        match random.randrange(7):
            case 0 if place < len(changed):
                changed[place] ^= 1 << random.randrange(8)
            case 1:
                del changed[place:end]
            case 2:
                changed[place:place] = changed[place:end]
            case 3:
                changed[place:end] = random.choice(WORDS)
            case 4:
                changed[place:place] = random.choice(WORDS)
            case 5 if others:
                other = random.choice(others)
                changed[place:] = other[random.randrange(len(other) + 1) :]
            case 6:
                del changed[place:]
            case _:
                changed[place:end] = random.randbytes(end - place)
    return bytes(changed)


def _value(random: Random) -> Tree:
    """A value that somebody might not have thought of."""
    simple: list[Callable[[], Tree]] = [
        lambda: random.choice(NUMBERS),
        lambda: random.choice(TEXTS),
        lambda: random.choice((None, True, False, float("nan"), float("inf"))),
        list,
        dict,
        lambda: [random.choice(NUMBERS)] * random.choice((1, 3, 300)),
        lambda: {random.choice(TEXTS): random.choice(NUMBERS)},
        lambda: _nested(random.choice((20, 90, 300))),
    ]
    return random.choice(simple)()


def _nested(depth: int) -> Tree:
    tree: Tree = 0
    for _ in range(depth):
        tree = [tree]
    return tree


def _places(tree: Tree, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    if not isinstance(tree, dict | list) or depth > 50:
        return []
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    return [(tree, key) for key in keys] + [place for key in keys for place in _places(tree[key], depth + 1)]


def _tree(tree: Tree, random: Random) -> Tree:
    """Change a tree at a few places."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = _places(tree)
        if not places:
            return _value(random)
        container, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[random.choice((*TEXTS, f"{key} ", str(key).upper()))] = container[key]
            case 1 | 2:
                other, name = random.choice(places)
                container[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
            case 3 if isinstance(container[key], int | float) and not isinstance(container[key], bool):
                container[key] += random.choice((1, -1, 0.5))
            case _:
                container[key] = _value(random)
    return tree


def _dump(tree: Tree, random: Random) -> bytes:
    text = json.dumps(tree, ensure_ascii=random.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _json(seed: bytes, random: Random) -> bytes:
    return _dump(_tree(json.loads(seed), random), random)


def _jsonl(seed: bytes, random: Random) -> bytes:
    lines = seed.split(b"\n")
    number = random.randrange(len(lines))
    lines[number] = _json(lines[number], random)
    if random.random() < 0.1:
        random.shuffle(lines)
    return b"\n".join(lines)


def _yaml(seed: bytes, random: Random) -> bytes:
    if b"&" in seed:
        raise ValueError("a tree that holds itself has no end of places")
    tree = _tree(yaml.safe_load(seed), random)
    if random.random() < 0.5:
        return _dump(tree, random)  # nearly all JSON is YAML
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def _safetensors(seed: bytes, random: Random) -> bytes:
    (length,) = struct.unpack("<Q", seed[:8])
    header, data = json.loads(seed[8 : 8 + length]), seed[8 + length :]
    match random.randrange(4):
        case 0:
            names = [name for name in header if name != "__metadata__"]
            tensor = header[random.choice(names)]
            tensor["dtype"] = random.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F4", "X"))
            if random.random() < 0.5:
                tensor["shape"] = random.choice(
                    ([], [0], [1] * 100, [1] * 5000, [2**62, 4], [2**32, 2**32], tensor["shape"][::-1], [-1])
                )
        case 1:
            data = _bytes(data, random)
        case 2:
            width = 4 * random.randrange(max(1, len(data) // 4))
            data = data[:width] + struct.pack("<f", random.choice((float("nan"), float("inf"), 1e38, 0.0))) + data[width + 4 :]
        case _:
            header = _tree(header, random)
    content = _dump(header, random)
    length = random.choice((len(content),) * 8 + (0, 2**62, 2**27, len(content) - 1))
    return struct.pack("<Q", length) + content + data


def _zip(seed: bytes, random: Random) -> bytes:
    again, packed = io.BytesIO(), zipfile.ZIP_DEFLATED if random.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    name = random.choice([*members, *(name for name in members if name.endswith("data.pkl"))])
    content = bytearray(members[name])
    for _ in range(random.choice((1, 1, 2, 5))):
        place = random.randrange(max(1, len(content)))
        match random.randrange(5):
            case 0:
                content[place : place + 1] = bytes([random.choice(OPCODES)])
            case 1:
                content[place:place] = b"J" + struct.pack("<i", random.choice((0, -1, 2**31 - 1, 2**20)))
            case 2:
                content[place : place + 1] = bytes([random.randrange(256)])
            case 3:
                del content[place : place + random.choice((1, 4))]
            case _:
                content[:] = _bytes(bytes(content), random)
    members[name] = bytes(content)
    with zipfile.ZipFile(again, "w", packed) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data, packed)
    return again.getvalue()


def _ledger(seed: bytes, random: Random) -> bytes:
    """Change an entry and seal it, and all that follow, as somebody would who writes a chain anew."""
    entries = [json.loads(line) for line in seed.splitlines()]
    number = random.randrange(len(entries))
    entries[number] = _tree(entries[number], random)
    if random.random() < 0.2:
        random.shuffle(entries)
    lines, previous = [], "0" * 64
    for sequence, entry in enumerate(entries, start=1):
        if isinstance(entry, dict):
            if random.random() < 0.98:
                entry |= {"previous": previous, "sequence": sequence}
            content = {name: value for name, value in entry.items() if name != "digest"}
            entry["digest"] = previous = hashlib.sha256(_canonical(content)).hexdigest()
        lines.append(_canonical(entry))
    return b"".join(line + b"\n" for line in lines)


def _canonical(values: Tree) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _http(seed: bytes, random: Random) -> bytes:
    lines = seed.split(b"\n", 3)
    number = random.randrange(len(lines))
    lines[number] = _bytes(
        lines[number], random, [b"/v1/models/../x", b"Bearer \xff", b"-1", b"9" * 5000, b"\xc2\xb2", b"/v1/models/%00"]
    )
    return b"\n".join(lines)


_STRUCTURED: dict[Format, Callable[[bytes, Random], bytes]] = {
    "json": _json,
    "jsonl": _jsonl,
    "yaml": _yaml,
    "safetensors": _safetensors,
    "zip": _zip,
    "ledger": _ledger,
    "http": _http,
}
