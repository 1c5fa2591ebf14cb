"""The chain: what its digests are, that any change of any field of any entry is found, and what the ledger knows."""

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import pytest

from grun.errors import LedgerError
from grun.ledger import GENESIS, Action, Details, Ledger, LedgerEntry
from tests.ledger.example_ledger import STEPS, append, asked, digest, example_ledger, source

ENTRIES = example_ledger().entries


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value that is no container, and of every empty container."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path


def changed(value: Any) -> Any:
    """Another value that the schema would take in its place."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case None:
            return digest("9")
        case [] | {}:
            return ["r9"] if value == [] else {"x": 1}
        case str() if value in get_args(Action):
            return next(action for action in get_args(Action) if action != value)
        case str() if len(value) == 64:
            return digest("7")
        case str() if value.endswith("Z"):
            return value.replace("2026", "2025")
        case _:
            return f"{value}x"


def tampered(text: str, path: tuple[Any, ...]) -> str:
    """The stored entry with one value changed."""
    values = json.loads(text)
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = changed(place[path[-1]])
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def read(texts: list[str]) -> Ledger:
    return Ledger.read(LedgerEntry.parse(text, where=f"line {number}") for number, text in enumerate(texts, start=1))


TEXTS = [entry.to_json() for entry in ENTRIES]
FIELDS = [(number, path) for number, text in enumerate(TEXTS) for path in leaves(json.loads(text))]


class TestDigests:
    def test_it_is_sha_256_over_the_canonical_json_of_all_other_fields(self) -> None:
        values = json.loads(TEXTS[3])
        sealed = values.pop("digest")
        assert set(values) == {"sequence", "at", "by", "action", "request_id", "reason", "details", "fence", "previous"}
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
        assert sealed == hashlib.sha256(canonical).hexdigest() == ENTRIES[3].digest
        assert values["previous"] == ENTRIES[2].digest

    def test_the_first_entry_follows_zeros(self) -> None:
        assert ENTRIES[0].previous == GENESIS == "0" * 64 == Ledger().head

    def test_it_does_not_change_with_versions_of_this_package(self) -> None:
        """Ledgers outlive it: a field that is added later must not change what is written already."""
        entry = append(Ledger(), "add", "r1", asked("1")).entries[0]
        assert entry.digest == "b4efd17fa7e93609dfe71728cee19a344651384451d3372870069cd1b372f037"

    def test_a_time_is_the_same_moment_in_utc(self) -> None:
        local = datetime(2026, 11, 25, 5, 0, tzinfo=timezone(timedelta(hours=2)))
        entry = Ledger().append("add", "r1", by="a", details=asked("1"), at=local).entries[0]
        assert (entry.at, entry.at.tzinfo) == (datetime(2026, 11, 25, 3, tzinfo=UTC), UTC)

    def test_words_outside_ascii_come_back(self) -> None:
        entry = append(Ledger(), "add", "r1", Details(forget=source("1").model_copy(update={"location": "Überfälle ☂"}))).entries[
            0
        ]
        assert entry.to_json().isascii()
        assert LedgerEntry.parse(entry.to_json(), where="here") == entry


class TestTampering:
    def test_the_example_holds_every_action_and_reads_back(self) -> None:
        assert {action for action, _, _ in STEPS} == set(get_args(Action))
        assert read(TEXTS) == example_ledger()

    @pytest.mark.parametrize(("number", "path"), FIELDS, ids=str)
    def test_any_change_of_any_field_is_found(self, number: int, path: tuple[Any, ...]) -> None:
        texts = [*TEXTS[:number], tampered(TEXTS[number], path), *TEXTS[number + 1 :]]
        with pytest.raises(LedgerError, match=rf"entry {number + 1} \(|line {number + 1} |`sequence` must be {number + 1} here"):
            read(texts)

    @pytest.mark.parametrize("number", range(len(ENTRIES) - 1))
    @pytest.mark.parametrize("field", ["reason", "by"])
    def test_a_change_that_is_sealed_anew_breaks_the_next_entry(self, number: int, field: str) -> None:
        forged = ENTRIES[number].model_copy(update={field: "somebody else"})
        forged = forged.model_copy(update={"digest": forged.content_digest})
        with pytest.raises(LedgerError, match=rf"entry {number + 2} .*`previous` is not the digest of the entry before"):
            Ledger.read([*ENTRIES[:number], forged, *ENTRIES[number + 1 :]])

    @pytest.mark.parametrize("number", range(len(ENTRIES) - 1))
    def test_entries_that_are_swapped_dropped_or_inserted_are_found(self, number: int) -> None:
        here, there = ENTRIES[number], ENTRIES[number + 1]
        before, after = ENTRIES[:number], ENTRIES[number + 2 :]
        for forged in ([there, here], [there], [here, here, there], [here, there, there]):
            with pytest.raises(LedgerError, match="`sequence` must be"):
                Ledger.read([*before, *forged, *after])

    @pytest.mark.parametrize("number", range(len(ENTRIES)))
    def test_a_ledger_that_is_cut_off_does_not_continue_its_export(self, number: int) -> None:
        cut = Ledger.read(ENTRIES[:number])
        example_ledger().check_continues(cut)
        with pytest.raises(LedgerError, match=rf"got {number} entries where .* entry {number + 1} .* was cut off"):
            cut.check_continues(example_ledger())

    def test_a_ledger_that_was_written_anew_does_not_continue_its_export(self) -> None:
        other = append(example_ledger(5), "promoted", "r1", STEPS[5][2], fence=4)
        with pytest.raises(LedgerError, match=r"another entry 6 \(`fence`, `digest` differ\)"):
            other.check_continues(example_ledger())

    @pytest.mark.parametrize("text", ["", "{}", "null", "[1]", '{"sequence":1', TEXTS[0].replace('"by"', '"bye"')])
    def test_what_is_no_entry_is_refused_with_its_place(self, text: str) -> None:
        with pytest.raises(LedgerError, match="something else in line 7"):
            LedgerEntry.parse(text, where="line 7")

    @pytest.mark.parametrize(
        "rewrite",
        [
            lambda text: f" {text}",
            lambda text: text.replace(",", ", "),
            lambda text: text.replace('{"action"', '{"action":"add","action"', 1),
        ],
    )
    def test_the_same_values_in_other_characters_are_refused(self, rewrite: Any) -> None:
        with pytest.raises(LedgerError, match="must stand as it was written"):
            LedgerEntry.parse(rewrite(TEXTS[2]), where="line 7")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("at", '"0001-01-01T00:00:00+23:59"'),
            ("at", '"9999-12-31T23:59:59-23:59"'),
            ("sequence", "9" * 5000),
            ("fence", "9" * 5000),
            ("reason", '"\\ud800"'),
        ],
    )
    def test_what_python_cannot_write_down_is_refused(self, field: str, value: str) -> None:
        text = re.sub(rf'"{field}":("[^"]*"|\d+)', lambda _met: f'"{field}":{value}', TEXTS[0], count=1)
        with pytest.raises(LedgerError, match="something else in line 7"):
            LedgerEntry.parse(text, where="line 7")

    def test_a_text_that_is_no_detail_cannot_be_written(self) -> None:
        with pytest.raises(LedgerError, match=r"`details` .* unknown key `text`"):
            Details.parse({"text": "who lives where"})


class TestRaces:
    def test_the_later_of_two_that_saw_the_same_ledger_is_void(self) -> None:
        ledger = example_ledger(3)
        first, second = append(ledger, "trained", "r1", STEPS[3][2]), append(ledger, "add", "r3", asked("3"))
        late = second.entries[-1]
        assert not ledger.lost_race(late)
        assert first.lost_race(late)
        assert append(first, "add", "r4", asked("4")).lost_race(late)

    def test_an_entry_of_another_chain_lost_no_race(self) -> None:
        other = append(append(Ledger(), "add", "r7", asked("7")), "add", "r8", asked("8")).entries[-1]
        assert not example_ledger().lost_race(other)

    def test_an_altered_entry_lost_no_race(self) -> None:
        assert not example_ledger().lost_race(ENTRIES[2].model_copy(update={"by": "mallory"}))


class TestFencing:
    def test_a_lease_that_was_taken_over_writes_no_more(self) -> None:
        ledger = append(example_ledger(2), "train", "r1", fence=1)
        taken_over = append(ledger, "train", "r1", fence=2)
        with pytest.raises(LedgerError, match="under lease 1 while lease 2 has written; another worker took over"):
            append(taken_over, "trained", "r1", STEPS[3][2], fence=1)
        assert append(taken_over, "trained", "r1", STEPS[3][2], fence=2).fence == 2

    def test_what_needs_no_lease_is_written_beside_one(self) -> None:
        assert append(example_ledger(4), "add", "r3", asked("3")).fence == 1


class TestKnowledge:
    def test_requests_are_known_in_the_order_in_which_they_were_added(self) -> None:
        ledger = append(append(example_ledger(), "add", "a", asked("8")), "add", "b", asked("9"))
        assert [state.id for state in ledger.of("pending")] == ["a", "b"]
        assert list(ledger.states) == ["r1", "r2", "a", "b"]
        assert [entry.sequence for entry in ledger.history("r2")] == [2, 7, 8, 9, 10, 11, 12]

    def test_the_state_gathers_what_entries_said(self) -> None:
        state = example_ledger().state("r1")
        assert (state.status, state.purged, state.adapter, state.stack, state.version, state.since) == (
            ("active", True, digest("d"), digest("f"), 1, 15)
        )
        assert state.certificate is not None
        assert state.certificate.sentence == "At most 3 %."
        assert state.forget == source("1")

    def test_the_stack_is_in_the_order_in_which_requests_became_active(self) -> None:
        ledger = Ledger()
        for name in ("r1", "r2", "r3"):
            ledger = append(ledger, "add", name, asked(name[-1]))
        for name in ("r2", "r3", "r1"):
            for action, _, details in STEPS[2:6]:
                ledger = append(ledger, action, name, details)
        assert ledger.active == ("r2", "r3", "r1")
        ledger = append(ledger, "revoked", "r3")
        assert ledger.active == ("r2", "r1")
        stack = Details(stack=digest("f"), version=5)
        assert append(ledger, "reinstated", "r3", stack).active == ("r2", "r1", "r3")
        assert append(ledger, "stacked", "r2", stack).active == ("r2", "r1")

    def test_an_unknown_request_is_told_its_near_miss(self) -> None:
        ledger = append(Ledger(), "add", "ticket-17", asked("1"))
        for ask in (lambda: ledger.state("ticket-71"), lambda: append(ledger, "revoked", "ticket-71")):
            with pytest.raises(LedgerError, match=r"got 'ticket-71' \(did you mean `ticket-17`\?\)"):
                ask()
