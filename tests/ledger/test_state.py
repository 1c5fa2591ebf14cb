"""What may be done with a request: every action in every status, by a table of its own."""

from typing import get_args

import pytest

from grun.errors import LedgerError
from grun.ledger import Action, Details, Ledger
from tests.ledger.example_ledger import STACKED, TRAINED, append, asked, digest

WITH_STACK = Details(stack=digest("f"), version=1)

LIFE: dict[str, list[tuple[Action, Details | None]]] = {
    "pending": [],
    "training": [("train", None)],
    "trained": [("train", None), ("trained", TRAINED)],
    "stacked": [("train", None), ("trained", TRAINED), ("stacked", STACKED)],
    "active": [("train", None), ("trained", TRAINED), ("stacked", STACKED), ("promoted", STACKED)],
    "failed": [("train", None), ("failed", None)],
    "declined": [("train", None), ("trained", TRAINED), ("stacked", STACKED), ("declined", None)],
    "withdrawn": [("revoked", None)],
    "revoked": [("train", None), ("trained", TRAINED), ("stacked", STACKED), ("promoted", STACKED), ("revoked", None)],
    "purged": [("train", None), ("trained", TRAINED), ("stacked", STACKED), ("promoted", STACKED), ("purged", None)],
    "revoked and purged": [
        ("train", None),
        ("trained", TRAINED),
        ("stacked", STACKED),
        ("promoted", STACKED),
        ("revoked", None),
        ("purged", None),
    ],
    "withdrawn and purged": [("revoked", None), ("purged", None)],
}
"""How a request got to where it is."""

ALLOWED: dict[str, dict[str, str]] = {
    "pending": {"train": "training", "revoked": "revoked"},
    "training": {"train": "training", "trained": "trained", "failed": "failed"},
    "trained": {"stacked": "trained", "declined": "failed", "failed": "failed", "revoked": "revoked"},
    "stacked": {"stacked": "trained", "promoted": "active", "declined": "failed", "failed": "failed", "revoked": "revoked"},
    "active": {"stacked": "active", "declined": "active", "revoked": "revoked", "purged": "active"},
    "failed": {"train": "training", "revoked": "revoked"},
    "declined": {"train": "training", "stacked": "trained", "declined": "failed", "revoked": "revoked"},
    "withdrawn": {"reinstated": "pending", "purged": "revoked"},
    "revoked": {"stacked": "revoked", "declined": "revoked", "reinstated": "active", "purged": "revoked"},
    "purged": {"stacked": "active", "declined": "active", "revoked": "revoked"},
    "revoked and purged": {"stacked": "revoked", "declined": "revoked", "reinstated": "active"},
    "withdrawn and purged": {},
}
"""Status after each action that is allowed."""

DETAILS: dict[str, Details] = {"trained": TRAINED, "stacked": STACKED, "promoted": STACKED, "reinstated": WITH_STACK}


def lived(name: str) -> Ledger:
    ledger = append(Ledger(), "add", "r1", asked("1"))
    for action, details in LIFE[name]:
        ledger = append(ledger, action, "r1", details)
    return ledger


@pytest.mark.parametrize("action", [action for action in get_args(Action) if action != "add"])
@pytest.mark.parametrize("name", LIFE)
def test_every_action_in_every_status(name: str, action: Action) -> None:
    ledger = lived(name)
    details = DETAILS.get(action)
    if action in ALLOWED[name]:
        assert append(ledger, action, "r1", details).state("r1").status == ALLOWED[name][action]
        return
    with pytest.raises(
        LedgerError, match=rf"needs a request that is .*, got 'r1', which is {ledger.state('r1').status}.*; allowed now: "
    ):
        append(ledger, action, "r1", details)


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(LedgerError) as refused:
        append(lived("revoked"), "revoked", "r1")
    assert str(refused.value) == (
        "`revoke` needs a request that is pending or trained or active or failed, got 'r1', which is revoked (entry 6); allowed now: "
        "reinstate, purge"
    )
    with pytest.raises(LedgerError, match=r"which is training, without an adapter .*; allowed now: train$"):
        append(lived("training"), "purged", "r1")
    with pytest.raises(LedgerError, match=r"which is revoked, purged of its text, without an adapter .*; allowed now: nothing"):
        append(lived("withdrawn and purged"), "reinstated", "r1")


def test_a_request_with_an_adapter_is_reinstated_to_be_stacked_again() -> None:
    ledger = append(lived("revoked"), "reinstated", "r1")
    assert ledger.state("r1").status == "trained"
    assert ledger.active == ()


@pytest.mark.parametrize("name", ["declined", "revoked"])
def test_an_earlier_stack_does_not_promote_what_came_after_it(name: str) -> None:
    again: list[Action] = ["train", "trained"] if name == "declined" else ["reinstated"]
    ledger = lived(name)
    for action in again:
        ledger = append(ledger, action, "r1", TRAINED if action == "trained" else None)
    with pytest.raises(LedgerError, match="`promoted` needs a request that is trained and has a stack"):
        append(ledger, "promoted", "r1", STACKED)


@pytest.mark.parametrize("name", LIFE)
def test_an_id_is_added_once(name: str) -> None:
    remedies = {
        "withdrawn": "reinstate it, or add it under another id",
        "revoked": "reinstate it, or add it under another id",
        "revoked and purged": "reinstate it, or add it under another id",
        "withdrawn and purged": "its text was purged: add it under another id",
    }
    remedy = remedies.get(name, "there is nothing left to do")
    with pytest.raises(LedgerError, match=rf"got the same records again for 'r1'.*; {remedy}"):
        append(lived(name), "add", "r1", asked("1"))
    with pytest.raises(LedgerError, match=r"got other records for 'r1'.*an id of its own"):
        append(lived(name), "add", "r1", asked("2"))


@pytest.mark.parametrize("name", LIFE)
def test_records_are_asked_for_once_unless_the_request_was_revoked(name: str) -> None:
    ledger = lived(name)
    if ledger.state("r1").status == "revoked":
        assert append(ledger, "add", "r2", asked("1")).state("r2").status == "pending"
        return
    with pytest.raises(LedgerError, match="got 'r2' with those of 'r1'"):
        append(ledger, "add", "r2", asked("1"))


@pytest.mark.parametrize(
    ("action", "details", "missing"),
    [
        ("trained", Details(), "`adapter`"),
        ("stacked", Details(stack=digest("f")), "`version`"),
        ("stacked", Details(), "`stack`, `version`"),
    ],
)
def test_an_entry_says_what_it_was_made_about(action: Action, details: Details, missing: str) -> None:
    with pytest.raises(LedgerError, match=f"`{action}` must say {missing}, got 'r1' without"):
        append(lived("training" if action == "trained" else "trained"), action, "r1", details)


def test_a_request_says_what_it_is_about() -> None:
    with pytest.raises(LedgerError, match=r"without `details.forget`"):
        append(Ledger(), "add", "r1")


@pytest.mark.parametrize("field", ["request_id", "by"])
def test_a_name_has_to_be_one(field: str) -> None:
    values = {"request_id": "r1", "by": "alice"} | {field: ""}
    with pytest.raises(LedgerError, match=f"the entry is not a valid ledger entry: `{field}`"):
        Ledger().append("add", values["request_id"], by=values["by"], details=asked("1"))
