"""The certificate beside an adapter: verified on load, kept by a higher threshold, dropped by a lower one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grun.adapters import AdapterCard, check_adapter, copy_adapter, load_adapter, read_card, save_adapter
from grun.certificate import Certificate, OpenCount
from grun.config import AdapterConfig, LinearGateConfig
from grun.errors import AdapterError
from grun.evaluation.calibration import OrdinaryGates, certify
from grun.interventions import Adapter
from grun.lm import FrozenLM

CONFIG = "adapter_config.json"
THRESHOLD = 0.6


def gates(num_open: int, num_records: int, digest: str) -> OrdinaryGates:
    return OrdinaryGates(np.where(np.arange(num_records) < num_open, 0.9, 0.1).astype(np.float32), digest * 64)


def certificate_for(folder: Path, *, num_open: int = 1) -> Certificate:
    """Of 172 and 164 records, as many open as is said, and none in the check."""
    card = read_card(folder)
    assert card.adapter.layers is not None
    return certify(
        gates(num_open, 172, "c"),
        gates(0, 164, "k"),
        alpha=0.03,
        delta=0.05,
        threshold=THRESHOLD,
        layers=card.adapter.layers,
        base_digest=card.base_digest,
        tensors_sha256=card.tensors_sha256,
    )


@pytest.fixture
def plain(tmp_path: Path, lm: FrozenLM, adapter: Adapter) -> Path:
    """An adapter without a certificate."""
    card = AdapterCard(
        adapter=AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig()),
        hidden_size=lm.hidden_size,
        num_layers=lm.num_layers,
        base_name=lm.info.name,
        base_digest=lm.info.digest,
    )
    return save_adapter(adapter, card, tmp_path / "plain")


@pytest.fixture
def certified(plain: Path, tmp_path: Path) -> Path:
    """The same, with one that holds."""
    return copy_adapter(plain, tmp_path / "certified", gate_threshold=THRESHOLD, certificate=certificate_for(plain))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / CONFIG).read_text())
    values.pop("sha256", None)  # whoever means it does not leave the seal broken
    change(values)
    (folder / CONFIG).write_text(json.dumps(values))


def test_a_certificate_travels_with_its_adapter(certified: Path, plain: Path, lm: FrozenLM) -> None:
    _adapter, card = load_adapter(certified, lm)
    assert card.certificate == certificate_for(plain)
    assert card.adapter.gate_threshold == THRESHOLD
    assert card.certificate is not None
    assert json.loads((certified / CONFIG).read_text())["certificate"]["sentence"] == card.certificate.sentence


def test_an_adapter_may_be_its_own_target(plain: Path) -> None:
    certificate = certificate_for(plain)
    assert copy_adapter(plain, plain, gate_threshold=THRESHOLD, certificate=certificate) == plain
    assert read_card(plain).certificate == certificate
    assert sorted(path.name for path in plain.parent.iterdir()) == ["plain"]


def test_an_adapter_from_before_certificates_loads(plain: Path, lm: FrozenLM) -> None:
    edit(plain, lambda values: values.pop("certificate"))
    assert load_adapter(plain, lm)[1].certificate is None


def test_one_that_does_not_hold_loads_and_says_so(plain: Path, tmp_path: Path) -> None:
    certificate = certificate_for(plain, num_open=2)
    assert not certificate.holds
    folder = copy_adapter(plain, tmp_path / "other", gate_threshold=THRESHOLD, certificate=certificate)
    read = read_card(folder).certificate
    assert read == certificate
    assert read is not None
    assert read.sentence.startswith("No promise: ")


@pytest.mark.parametrize(
    ("threshold", "kept"), [(THRESHOLD, True), (0.7, True), (1.0, True), (0.59, False), (0.0, False), (None, False)]
)
def test_a_higher_threshold_keeps_it_and_a_lower_one_or_none_drops_it(
    certified: Path, tmp_path: Path, threshold: float | None, kept: bool
) -> None:
    before = read_card(certified).certificate
    card = read_card(copy_adapter(certified, tmp_path / "copy", gate_threshold=threshold))
    assert card.adapter.gate_threshold == threshold
    assert card.certificate == (before if kept else None)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "alpha": (lambda c: c.update(alpha=0.02), r"say what follows from its counts, got `holds` True instead of False"),
    "larger alpha": (lambda c: c.update(alpha=0.031), r"follows from its counts, got `sentence` .At most 0\.03 "),
    "delta": (lambda c: c.update(delta=0.06), r"bound its own counts, got 0\.0272.* where 1 of 172 at confidence 0\.94 give 0\.0"),
    "records": (lambda c: c["calibration"].update(num_records=173), r"where 1 of 173 .* in `calibration`"),
    "open": (lambda c: c["calibration"].update(num_open=0), r"where 0 of 172 .* in `calibration`"),
    "more open than there are": (lambda c: c["check"].update(num_open=165), r"at most all records as open, got 165 of 164 in `check`"),
    "more records than can be reckoned with": (
        lambda c: c["check"].update(num_records=3 * 10**30), r"'num_records'.: Input should be less than or equal to 9007199254740992;"
    ),
    "check": (lambda c: c["check"].update(num_records=400), r"where 0 of 400 .* in `check`"),
    "bound": (lambda c: c["check"].update(upper_bound=0.018), r"got 0\.018 where 0 of 164"),
    "bound, a little": (lambda c: c["check"].update(upper_bound=c["check"]["upper_bound"] - 1e-9), r"where 0 of 164"),
    "prompts": (lambda c: c["calibration"].update(digest="e" * 64), r"got `digest` "),
    "prompts of the check": (lambda c: c["check"].update(digest="e" * 64), r"got `digest` "),
    "one set twice": (lambda c: c["check"].update(digest="c" * 64), r"rest on two sets of prompts, got one digest for both"),
    "tensors": (lambda c: c.update(tensors_sha256="e" * 64), r"got tensors eeeeeeeeeeee where the adapter has [0-9a-f]{12};"),
    "base": (lambda c: c.update(base_digest="e" * 64), r"got base eeeeeeeeeeee where the adapter has dddddddddddd;"),
    "layers": (lambda c: c.update(thresholds={"1": 0.6}), r"got layers \[1\] where the adapter has \[1, 3\]"),
    "other layers": (lambda c: c.update(thresholds={"1": 0.6, "2": 0.6}), r"got layers \[1, 2\] where the adapter has \[1, 3\]"),
    "threshold above": (lambda c: c["thresholds"].update({"3": 0.61}), r"threshold or a lower one, got 0\.61 where the adapter has 0\.6;"),
    "threshold below": (lambda c: c["thresholds"].update({"3": 0.5}), r"got `digest` "),
    "holds": (lambda c: c.update(holds=False), r"got `holds` False instead of True"),
    "sentence": (lambda c: c.update(sentence="No prompt is ever touched."), r"got `sentence` 'No prompt is ever touched\.' instead"),
    "digest": (lambda c: c.update(digest="e" * 64), r"got `digest` eeeeeeeeeeee instead of"),
    "version": (lambda c: c.update(format_version=2), r"must be as this version writes it, got .*format_version"),
    "a field more": (lambda c: c.update(comment="x"), r"must be as this version writes it, got .*Extra inputs"),
    "a field less": (lambda c: c.pop("check"), r"must be as this version writes it, got .*Field required"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_was_changed_is_refused(certified: Path, lm: FrozenLM, what: str) -> None:
    change, message = CHANGES[what]
    edit(certified, lambda values: change(values["certificate"]))
    with pytest.raises(AdapterError, match=message):
        load_adapter(certified, lm)
    with pytest.raises(AdapterError, match=message):
        check_adapter(certified, lm.info, hidden_size=lm.hidden_size, num_layers=lm.num_layers)


def test_every_field_of_a_certificate_is_among_those() -> None:
    """A field that is added is one that somebody may change."""
    tried = {
        "alpha",
        "delta",
        "thresholds",
        "calibration",
        "check",
        "base_digest",
        "tensors_sha256",
        "holds",
        "sentence",
        "digest",
    }
    assert set(Certificate.model_fields) == tried | {"format_version"}
    assert set(OpenCount.model_fields) == {"num_records", "num_open", "upper_bound", "digest"}


def test_a_lower_threshold_than_the_certificates_is_refused_on_load(certified: Path, lm: FrozenLM) -> None:
    edit(certified, lambda values: values["adapter"].update(gate_threshold=0.1))
    with pytest.raises(
        AdapterError, match=r"speak for the adapter's gate threshold or a lower one, got 0\.6 where the adapter has 0\.1"
    ):
        load_adapter(certified, lm)
    edit(certified, lambda values: values["adapter"].update(gate_threshold=None))
    with pytest.raises(AdapterError, match=r"where the adapter has None"):
        load_adapter(certified, lm)


def test_a_certificate_of_another_adapter_is_not_written(certified: Path, lm: FrozenLM, adapter: Adapter, tmp_path: Path) -> None:
    adapter.at(1).intervention.learned_source.bias.data.add_(1)
    with pytest.raises(AdapterError, match=r"a certificate must be about the adapter it lies with, got tensors"):
        save_adapter(adapter, read_card(certified), tmp_path / "retrained")
    assert not (tmp_path / "retrained").exists()
    assert not list(tmp_path.glob(".*"))
