"""The promotion lease against a real SQLite store: one holder, whatever happens to it; of processes, see `tests/faults`."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from mlflow.exceptions import MlflowException

from grun.errors import PromotionBusyError, PromotionError, TrackingError
from pipelines.lease import Lease, check_lease, hold_lease
from pipelines.mlflow_store import Store

# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 deprecates; the warning is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def locks(store: Store, name: str) -> list[str]:
    return [model.name for model in store.client.search_registered_models(f"name LIKE 'lock.{name}%'")]


def test_a_lease_lasts_as_long_as_its_block(store: Store, name: str) -> None:
    before = datetime.now(UTC)
    with hold_lease(store, name, "alice", 60) as lease:
        check_lease(store, lease)
        assert timedelta(seconds=60) <= lease.expires_at - before < timedelta(seconds=120)
        with pytest.raises(PromotionBusyError, match=r"'bob' while 'alice' holds its lock until .* wait for them"):
            hold_lease(store, name, "bob", 60).__enter__()
        with hold_lease(store, f"{name}-another", "bob", 60):
            pass
    assert locks(store, name) == []
    with pytest.raises(PromotionError, match="one that 'alice' lost"):
        check_lease(store, lease)


def test_one_owner_does_not_hold_two_leases(store: Store, name: str) -> None:
    with hold_lease(store, name, "alice", 60), pytest.raises(PromotionBusyError, match="'alice' while 'alice'"):
        hold_lease(store, name, "alice", 60).__enter__()


def test_the_lock_is_released_when_the_block_fails(store: Store, name: str) -> None:
    def fail() -> None:
        with hold_lease(store, name, "alice", 60):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()


def test_a_lock_that_a_dead_promoter_left_is_taken_over_by_one(store: Store, name: str) -> None:
    dead = hold_lease(store, name, "dead", 0)
    dead.__enter__()
    start, done = Barrier(4), Barrier(4)
    entered: list[str] = []

    def attempt(owner: str) -> None:
        start.wait(timeout=60)
        try:
            with hold_lease(store, name, owner, 600):
                entered.append(owner)
                done.wait(timeout=60)
        except PromotionBusyError:
            done.wait(timeout=60)
        except BaseException:
            done.abort()
            raise

    with ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(attempt, owner) for owner in "abcd"]
    assert [outcome.exception() for outcome in outcomes] == [None] * 4
    assert len(entered) == 1
    (trace,) = locks(store, name)
    assert trace.startswith(f"lock.{name}.expired.")


def test_who_read_the_expired_lock_cannot_take_the_new_one_away(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower of two that take over renames after the faster one has made its own lock."""
    hold_lease(store, name, "dead", 0).__enter__()
    rename = store.client.rename_registered_model
    faster = hold_lease(store, name, "faster", 600)

    def late(old: str, new: str) -> None:
        monkeypatch.setattr(store.client, "rename_registered_model", rename)
        faster.__enter__()
        rename(old, new)

    monkeypatch.setattr(store.client, "rename_registered_model", late)
    with pytest.raises(PromotionBusyError, match="'faster' holds"):
        hold_lease(store, name, "slower", 600).__enter__()
    faster.__exit__(None, None, None)


def test_a_lock_that_cannot_be_moved_aside_is_not_waited_for(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise MlflowException("read-only")

    hold_lease(store, name, "dead", 0).__enter__()
    monkeypatch.setattr(store.client, "rename_registered_model", refuse)
    with pytest.raises(TrackingError, match="take over an expired promotion lock, got MlflowException: read-only"):
        hold_lease(store, name, "alice", 60).__enter__()


def test_a_lock_without_a_holder_is_named_for_deletion(store: Store, name: str) -> None:
    store.client.create_registered_model(f"lock.{name}")
    with pytest.raises(PromotionBusyError, match=f"delete the registered model `lock.{name}`"):
        hold_lease(store, name, "alice", 60).__enter__()


def test_an_expired_lease_is_not_released_under_its_successor(store: Store, name: str) -> None:
    with hold_lease(store, name, "slow", 0) as lost:
        successor = hold_lease(store, name, "quick", 600)
        lease = successor.__enter__()
        with pytest.raises(PromotionError, match="one that 'slow' lost"):
            check_lease(store, lost)
    check_lease(store, lease)
    successor.__exit__(None, None, None)


def test_a_lease_of_ones_own_making_is_no_lease(store: Store, name: str) -> None:
    with hold_lease(store, name, "alice", 60) as lease, pytest.raises(PromotionError, match="needs its promotion lock"):
        check_lease(store, Lease(name, "alice", "0" * 32, lease.expires_at))


def test_a_lock_that_cannot_be_released_does_not_undo_the_work(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_: str) -> None:
        raise ConnectionError("the store is away")

    with hold_lease(store, name, "alice", 60):
        monkeypatch.setattr(store.client, "delete_registered_model", away)
    assert "could not be released" in caplog.text
    assert "the store is away" in caplog.text
    assert locks(store, name) == [f"lock.{name}"]
