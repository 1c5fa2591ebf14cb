"""The hub of the warm slots, without a cluster: who gets which trial, and what becomes of it when a slot crashes."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from pipelines import slots
from pipelines.slots import TrialHub


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_HUB_POLL_SECONDS", 0.01)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


async def take(hub: TrialHub, slot: int) -> str | None:
    """The id of the next trial of a slot; None where there is none."""
    trial = await hub.next(slot)
    return trial["trial_id"] if trial else None


async def submit(hub: TrialHub, *trials: str) -> None:
    for trial in trials:
        await hub.submit(trial, {"name": trial}, f"folder/{trial}")


def test_trials_are_given_out_in_order_each_to_one_slot() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await submit(hub, "a", "b")
        assert await hub.next(0) == {"trial_id": "a", "recipe": {"name": "a"}, "folder": "folder/a"}
        assert await take(hub, 1) == "b"
        assert await hub.next(0) == {}
        await hub.close()
        assert await hub.next(0) is None

    run(story())


def test_reports_arrive_in_order_and_once() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await submit(hub, "a", "b")
        await take(hub, 0)
        for step in (1, 2):
            await hub.report("a", {"step": step})
        assert await hub.events("a") == ([{"step": 1}, {"step": 2}], False, None)
        assert await hub.events("b") == ([], False, None)
        await hub.report("a", {"step": 3})
        await hub.done(0, "a")
        assert await hub.events("a") == ([{"step": 3}], True, None)

    run(story())


def test_who_waits_is_woken_by_news() -> None:
    async def story() -> None:
        slots._HUB_POLL_SECONDS = 60.0
        hub = TrialHub(max_crashes=1)
        waiting = asyncio.create_task(hub.next(0))
        await asyncio.sleep(0)
        await submit(hub, "a")
        assert (await asyncio.wait_for(waiting, 5))["trial_id"] == "a"  # type: ignore[index]

    run(story())


def test_a_trial_whose_slot_crashed_comes_first_and_to_whoever_asks() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await submit(hub, "a", "b", "c")
        assert [await take(hub, 0), await take(hub, 1)] == ["a", "b"]
        await hub.started(0)
        assert await take(hub, 1) == "a"
        assert await hub.events("a") == ([], False, None)

    run(story())


def test_a_trial_that_crashes_too_often_is_given_up_and_the_slot_goes_on() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await submit(hub, "a", "b")
        for _ in range(2):
            assert await take(hub, 0) == "a"
            await hub.started(0)
        events, is_done, failure = await hub.events("a")
        assert (events, is_done) == ([], True)
        assert failure == "training must survive with at most 1 restart(s), got one more crash"
        assert await take(hub, 0) == "b"

    run(story())


def test_a_slot_that_crashed_after_its_trial_was_done_gives_nothing_back() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await submit(hub, "a")
        await take(hub, 0)
        await hub.done(0, "a")
        await hub.started(0)
        assert await hub.next(0) == {}

    run(story())


def test_a_slot_that_never_gets_as_far_as_a_trial_fails_them() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await submit(hub, "a")
        for _ in range(3):
            await hub.started(0)
        assert await hub.events("a") == ([], False, None)
        await hub.started(0)
        _events, is_done, failure = await hub.events("a")
        assert is_done
        assert failure is not None
        assert "a slot must be able to start, got 3 crashes of slot 0 before it took a trial" in failure

    run(story())


def test_a_reason_that_the_user_can_mend_reaches_every_trial() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await submit(hub, "a")
        await hub.refuse("the cache is damaged")
        await submit(hub, "b")
        for trial in ("a", "b"):
            assert await hub.events(trial) == ([], True, "the cache is damaged")

    run(story())


def test_a_trial_that_tune_runs_again_keeps_its_place_on_a_slot_that_lives() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await submit(hub, "a")
        await take(hub, 0)
        await submit(hub, "a")
        assert await hub.next(1) == {}
        await hub.report("a", {"step": 5})
        assert await hub.events("a") == ([{"step": 5}], False, None)

    run(story())


def test_at_a_rung_workers_wait_until_their_report_was_judged() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await hub.submit("a", {}, "folder/a", (4,))
        await take(hub, 0)
        await hub.report("a", {"step": 2})
        waiting = asyncio.create_task(hub.report("a", {"step": 5}))
        await asyncio.sleep(0)
        assert await hub.events("a") == ([{"step": 2}, {"step": 5}], False, None)
        assert not waiting.done()
        await hub.events("a")  # who asks for the next has seen to the last
        await waiting
        await hub.report("a", {"step": 8})

    run(story())


def test_a_report_that_tune_lost_is_judged_once_its_trial_has_read_it_again() -> None:
    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await hub.submit("a", {}, "folder/a", (4,))
        await take(hub, 0)
        waiting = asyncio.create_task(hub.report("a", {"step": 4}))
        await asyncio.sleep(0)
        await hub.submit("a", {}, "folder/a", (4,))
        assert not waiting.done()
        assert await hub.events("a") == ([], False, None)
        await waiting

    run(story())


def test_nobody_waits_for_a_verdict_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_VERDICT_SECONDS", 0.0)

    async def story() -> None:
        hub = TrialHub(max_crashes=1)
        await hub.submit("a", {}, "folder/a", (4,))
        await take(hub, 0)
        await hub.report("a", {"step": 4})

    run(story())
