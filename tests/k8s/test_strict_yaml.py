"""YAML that readers of 1.1 and 1.2 disagree on is refused, with the line."""

import pytest

from grun.errors import ConfigError
from k8s.check.strict_yaml import load


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}", r"sample:2: a key must stand once .* got 'c'"),
        ("a: 1\n---\na: 1\na: 2", r"sample:4: a key must stand once"),
        ("rayVersion: 2.60", r"sample:1: a number must keep its digits .* got '2.60'; quote it"),
        ("version: 1e3", r"plain text must be text to every reader, got '1e3'"),
        ("namespace: n", r"got 'n'"),
        ("on: 1", r"a key must be text|must mean the same"),
        ("enabled: yes", r"got 'yes'; quote it"),
        ("enabled: True", r"got 'True'"),
        ("mode: 0644", r"got '0644'"),
        ("mode: 0x1f", r"got '0x1f'"),
        ("size: 1_000", r"got '1_000'"),
        ("1: one", r"a key must be text, got '1'"),
        ("- a", r"a document must be a mapping, got a list"),
        ("a: [", r"sample:"),
        ("a: !!python/object:os.system x", r"sample:1"),
    ],
)
def test_refuses_what_is_ambiguous(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text, where="sample")


def test_reads_what_everybody_reads_alike() -> None:
    text = 'a: {number: 12, share: 0.5, yes: "on", date: 2026-11-28, time: 12:30, off_: true, none: null, version: "2.60"}\n---\n'
    expected = {
        "number": 12,
        "share": 0.5,
        "yes": "on",
        "date": "2026-11-28",
        "time": "12:30",
        "off_": True,
        "none": None,
        "version": "2.60",
    }
    with pytest.raises(ConfigError, match="yes"):
        load(text, where="sample")
    assert load(text.replace("yes", "'yes'"), where="sample") == [{"a": expected}]
