"""A stack on disk: what comes back, and everything that is refused."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grun.adapters import (
    AdapterCard,
    check_stack,
    copy_adapter,
    digest_adapter,
    digest_stack,
    load_served,
    load_stack,
    member_folders,
    read_stack_card,
    save_adapter,
    save_stack,
    serving_card,
)
from grun.certificate import Certificate
from grun.config import AdapterConfig, LinearGateConfig, MaxGateConfig, PromptConfig, ScaledConfig, SumConfig
from grun.errors import AdapterError, DiskError
from grun.evaluation.calibration import certify
from grun.interventions import build_adapter
from grun.lm import BaseInfo, FrozenLM, IntervenedLM
from tests.adapters.test_certificate import gates

CARD, CONFIG, TENSORS = "stack.json", "adapter_config.json", "adapter.safetensors"
MakeAdapter = Callable[..., tuple[str, Path]]


@pytest.fixture
def make(tmp_path: Path, lm: FrozenLM) -> MakeAdapter:
    """Writes the adapter of a request, and returns both."""

    def write(
        request_id: str, seed: int = 0, *, threshold: float | None = 0.5, layers: Sequence[int] = (1, 3), **card: Any
    ) -> Any:
        config = AdapterConfig(layers=tuple(layers), rank=2, gate=LinearGateConfig(), gate_threshold=threshold)
        adapter = build_adapter(config, hidden_size=lm.hidden_size, num_layers=lm.num_layers, seed=seed)
        shape = {"hidden_size": lm.hidden_size, "num_layers": lm.num_layers}
        base = {"base_name": lm.info.name, "base_digest": lm.info.digest, "request_ids": (request_id,)}
        values = AdapterCard.model_validate({"adapter": config, **shape, **base, **card})
        return request_id, save_adapter(adapter, values, tmp_path / "trained" / request_id)

    return write


@pytest.fixture
def members(make: MakeAdapter) -> list[tuple[str, Path]]:
    return [make("first", 1), make("second", 2, threshold=None, layers=(0, 3)), make("third", 3, threshold=0.25)]


@pytest.fixture
def stack(members: list[tuple[str, Path]], tmp_path: Path) -> Path:
    return save_stack(members, ScaledConfig(a=0.5, b=0.25), tmp_path / "stack")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_stack_holds_its_card_and_its_adapters_and_nothing_else(stack: Path, members: list[tuple[str, Path]]) -> None:
    adapters = {
        f"adapters/{number:02d}-{request_id}/{name}": (source / name).read_bytes()
        for number, (request_id, source) in enumerate(members, start=1)
        for name in (CONFIG, TENSORS)
    }
    written = files_of(stack)
    assert json.loads(written.pop(CARD)) == {
        "format_version": 1,
        "composition": {"kind": "scaled", "a": 0.5, "b": 0.25},
        "members": [{"request_id": request_id, "adapter_digest": digest_adapter(source)} for request_id, source in members],
        "base_digest": "d" * 64,
    }
    assert written == adapters
    assert sorted(path.name for path in stack.parent.iterdir()) == ["stack", "trained"]


def test_a_stack_comes_back_bit_for_bit_in_its_order(stack: Path, members: list[tuple[str, Path]], lm: FrozenLM) -> None:
    loaded, card = load_stack(stack, lm)
    assert card == read_stack_card(stack) == check_stack(stack, lm.info, hidden_size=lm.hidden_size, num_layers=lm.num_layers)
    assert loaded.request_ids == card.request_ids == ("first", "second", "third")
    assert [member.threshold for member in loaded.members] == [0.5, None, 0.25]
    assert loaded.composition == card.composition == ScaledConfig(a=0.5, b=0.25)
    assert not loaded.training
    for number, layers in enumerate([(1, 3), (0, 3), (1, 3)], start=1):
        expected = build_adapter(
            AdapterConfig(layers=layers, rank=2, gate=LinearGateConfig()),
            hidden_size=lm.hidden_size,
            num_layers=lm.num_layers,
            seed=number,
        ).state_dict()
        state = loaded.members[number - 1].adapter.state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert [path.parent.parent for path in member_folders(stack, card)] == [stack] * len(members)


def test_what_is_served_is_an_adapter_or_a_stack(stack: Path, members: list[tuple[str, Path]], lm: FrozenLM) -> None:
    prompts = [(5, 9, 11), (17, 3)]
    served = load_served(stack, lm)
    assert served.generate(prompts, max_new_tokens=4) is not None
    assert served.adapter is not None
    assert served.adapter.layers == (0, 1, 3)
    assert serving_card(stack).prompt == PromptConfig()
    _request_id, folder = members[2]
    alone = load_served(folder, lm)
    assert (alone.threshold, serving_card(folder).request_ids) == (0.25, ("third",))
    one = load_served(save_stack(members[2:], SumConfig(), stack.parent / "one"), lm)
    assert one.generate(prompts, max_new_tokens=4).texts == alone.generate(prompts, max_new_tokens=4).texts


def test_one_more_is_stacked_out_of_the_stack_itself(stack: Path, make: MakeAdapter, lm: FrozenLM) -> None:
    """Version N + 1 is version N plus one: the same files, and a new card."""
    card, before = read_stack_card(stack), files_of(stack)
    kept = list(zip(card.request_ids, member_folders(stack, card), strict=True))
    save_stack([*kept, make("fourth", 4)], card.composition, stack)
    after = files_of(stack)
    assert load_stack(stack, lm)[0].request_ids == ("first", "second", "third", "fourth")
    assert all(after[name] == content for name, content in before.items() if name != CARD)
    assert sorted(path.name for path in stack.parent.iterdir()) == ["stack", "trained"]


def test_the_digest_tells_members_order_and_composition_apart(members: list[tuple[str, Path]], tmp_path: Path) -> None:
    def digest(chosen: Sequence[tuple[str, Path]], composition: Any) -> str:
        return digest_stack(save_stack(chosen, composition, tmp_path / "stack"))

    same = digest(members, SumConfig())
    assert digest(members, SumConfig()) == same
    others = [digest(members[::-1], SumConfig()), digest(members[:2], SumConfig()), digest(members, MaxGateConfig())]
    copy_adapter(members[0][1], members[0][1], gate_threshold=0.75)
    assert len({same, *others, digest(members, SumConfig())}) == 5


def edit_card(stack: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((stack / CARD).read_text())
    change(values)
    (stack / CARD).write_text(json.dumps(values))


def edit_adapter(stack: Path, change: Callable[[dict[str, Any]], object], name: str = "01-first") -> None:
    path = stack / "adapters" / name / CONFIG
    values = json.loads(path.read_text())
    values.pop("sha256")  # whoever means it does not leave the seal broken
    change(values)
    path.write_text(json.dumps(values))


def flip_a_byte(stack: Path) -> None:
    path = stack / "adapters" / "02-second" / TENSORS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap_adapters(stack: Path) -> None:
    """Both are whole, but each stands in the other's place."""
    one, other, between = (stack / "adapters" / name for name in ("01-first", "03-third", "between"))
    one.rename(between)
    other.rename(one)
    between.rename(other)


def swap_names_only(stack: Path) -> None:
    edit_card(stack, lambda card: card["members"].reverse())


def link(path: Path) -> None:
    """The same content, in another place."""
    [root] = [parent for parent in path.parents if (parent / "trained").is_dir()]
    path.rename(root / "elsewhere")
    path.symlink_to(root / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "`adapter.safetensors` must be as it was written"),
        (swap_adapters, "must be answered by its own adapter, got that of ['third'] for 'first'"),
        (swap_names_only, "must hold exactly the adapters that `stack.json` names, in its order"),
        (lambda s: edit_adapter(s, lambda card: card["adapter"].update(gate_threshold=0.1)), "must be the one that was stacked"),
        (lambda s: (s / "adapters" / "01-first" / TENSORS).unlink(), "missing: ['adapter.safetensors']"),
        (lambda s: shutil.rmtree(s / "adapters" / "02-second"), "missing: ['02-second']"),
        (lambda s: shutil.copytree(s / "adapters" / "01-first", s / "adapters" / "04-first"), "not ours: ['04-first']"),
        (lambda s: (s / "notes.txt").write_text(""), "not ours: ['notes.txt']"),
        (lambda s: (s / "adapters" / "01-first" / "more.pt").write_text(""), "not ours: ['more.pt']"),
        (lambda s: (s / CARD).unlink(), "missing: ['stack.json']"),
        (lambda s: (s / CARD).write_text("{"), "`stack.json` must be as this version writes it"),
        (lambda s: (s / CARD).write_bytes(b"\xff"), "`stack.json` must be as this version writes it"),
        (lambda s: (s / CARD).write_text("[" * 100_000), "`stack.json` must be as this version writes it"),
        (lambda s: edit_card(s, lambda card: card.update(format_version=2)), "format_version: Input should be 1"),
        (lambda s: edit_card(s, lambda card: card.update(more=1)), "more: Extra inputs are not permitted"),
        (lambda s: edit_card(s, lambda card: card["composition"].update(kind="mean")), "composition"),
        (lambda s: edit_card(s, lambda card: card["members"].clear()), "members: Tuple should have at least 1 item"),
        (lambda s: edit_card(s, lambda card: card["members"].append(card["members"][0])), "in a stack once, got ['first'] twice"),
        (lambda s: edit_card(s, lambda card: card["members"][0].update(request_id="../../first")), "members.0.request_id"),
        (
            lambda s: edit_card(s, lambda card: card["members"][0].update(adapter_digest="0" * 64)),
            "must be the one that was stacked",
        ),
        (lambda s: edit_card(s, lambda card: card.update(base_digest="e" * 64)), "must name the base of its adapters"),
        (lambda s: link(s / CARD), "must hold its own files, got links ['stack.json']"),
        (lambda s: link(s / "adapters"), "must hold its own files, got links ['adapters']"),
        (lambda s: link(s / "adapters" / "01-first"), "must hold its own files, got links ['01-first']"),
        (lambda s: link(s / "adapters" / "01-first" / TENSORS), "must hold its own files, got links ['adapter.safetensors']"),
        (link, "must be in a folder of its own"),
        (shutil.rmtree, "must be in a folder of its own"),
    ],
)
def test_a_stack_that_is_not_what_was_saved_is_refused(
    stack: Path, lm: FrozenLM, damage: Callable[[Path], object], message: str
) -> None:
    damage(stack)
    for read in (lambda: load_stack(stack, lm), lambda: read_stack_card(stack), lambda: digest_stack(stack)):
        with pytest.raises(AdapterError, match=re.escape(message)):
            read()


def test_a_certificate_that_is_not_of_its_adapter_is_refused(make: MakeAdapter, stack: Path, tmp_path: Path) -> None:
    def certificate(folder: Path) -> Certificate:
        digest = json.loads((folder / CONFIG).read_text())["tensors_sha256"]
        ordinary = gates(1, 172, "c"), gates(0, 164, "k")
        return certify(
            *ordinary, alpha=0.03, delta=0.05, threshold=0.6, layers=(1, 3), base_digest="d" * 64, tensors_sha256=digest
        )

    (_, one), (_, other) = make("one", 5), make("other", 6)
    certified = copy_adapter(one, tmp_path / "certified", gate_threshold=0.6, certificate=certificate(one))
    saved = save_stack([("one", certified)], SumConfig(), tmp_path / "saved")
    assert serving_card(saved).certificate == certificate(one)
    foreign = certificate(other).model_dump(mode="json")
    edit_adapter(saved, lambda card: card.update(certificate=foreign), "01-one")
    with pytest.raises(AdapterError, match="a certificate must be about the adapter it lies with"):
        read_stack_card(saved)


def test_only_what_belongs_together_is_stacked(make: MakeAdapter, tmp_path: Path, members: list[tuple[str, Path]]) -> None:
    target = tmp_path / "new"
    refused: list[tuple[list[tuple[str, Path]], str]] = [
        ([], "a stack must have a member, got none"),
        ([*members, members[0]], "a request must be in a stack once, got ['first'] twice"),
        ([("second", members[0][1])], "must be answered by its own adapter, got that of ['first'] for 'second'"),
        ([("../out", make("x", request_ids=())[1])], "request_id: String should match pattern"),
        ([members[0], ("gone", tmp_path / "gone")], "an adapter is a folder of exactly"),
        ([members[0], make("alien", base_digest="e" * 64)], "must agree on `base_digest`, got 'dddddddddddd' for 'first'"),
        (
            [members[0], make("half", base_dtype="bfloat16")],
            "must agree on `base_dtype`, got 'float32' for 'first' and 'bfloat16'",
        ),
        ([members[0], make("chatty", prompt=PromptConfig(template="chat"))], "must agree on `prompt`"),
        ([members[0], make("padded", base_pad_token="<pad>")], "must agree on `base_pad_token`"),
    ]
    for chosen, message in refused:
        with pytest.raises(AdapterError, match=re.escape(message)):
            save_stack(chosen, SumConfig(), target)
    assert not target.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trained"]


def test_a_stack_for_another_base_is_refused(stack: Path, lm: FrozenLM) -> None:
    other = BaseInfo("another", None, "a" * 64)
    with pytest.raises(AdapterError, match="loads only on the base it was trained on"):
        check_stack(stack, other, hidden_size=lm.hidden_size, num_layers=lm.num_layers)
    with pytest.raises(AdapterError, match="must be of its base's shape"):
        check_stack(stack, lm.info, hidden_size=2 * lm.hidden_size, num_layers=lm.num_layers)


def test_a_failed_save_leaves_nothing_and_spares_the_older_stack(
    stack: Path, members: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(stack)
    copy, copied = shutil.copyfile, []

    def disk_full(source: Path, target: Path) -> object:
        copied.append(source)
        if len(copied) == 3:
            raise OSError(28, "No space left on device")
        return copy(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", disk_full)
        with pytest.raises(DiskError, match=r"which has no room left \(No space left on device"):
            save_stack(members[:2], SumConfig(), stack)

    def damaged(source: Path, target: Path) -> object:
        target.write_bytes(source.read_bytes()[:-1])
        return target

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", damaged)
        with pytest.raises(AdapterError):
            save_stack(members[:2], SumConfig(), stack)
    assert files_of(stack) == before
    assert sorted(path.name for path in stack.parent.iterdir()) == ["stack", "trained"]


def test_only_a_stack_is_replaced_by_a_stack(stack: Path, members: list[tuple[str, Path]]) -> None:
    _request_id, adapter = members[0]
    with pytest.raises(AdapterError, match="only a stack may be replaced by a stack"):
        save_stack(members, SumConfig(), adapter)
    assert set(files_of(adapter)) == {CONFIG, TENSORS}


def test_more_than_99_members_keep_their_order(make: MakeAdapter, tmp_path: Path, lm: FrozenLM) -> None:
    _, folder = make("any", request_ids=())
    ids = [f"r{number}" for number in range(101)]
    stack = save_stack([(request_id, folder) for request_id in ids], SumConfig(), tmp_path / "many")
    assert list(load_stack(stack, lm)[0].request_ids) == ids
    assert IntervenedLM(lm, load_stack(stack, lm)[0]).generate([(5, 9)], max_new_tokens=2).texts
