"""The engine: what it says is what each prompt gets alone, whoever else is served, comes, or leaves."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grun.adapters import save_stack
from grun.config import SumConfig
from grun.errors import AdapterError
from grun.lm import FrozenLM
from grun.lm.decoding import prefill
from pipelines.serving import engine as engine_module
from pipelines.serving.engine import Engine
from pipelines.serving.loading import Served, load_version
from pipelines.serving.metrics import Metrics
from pipelines.serving.refusals import RefusedError
from pipelines.serving.rows import Event, Generation, Row
from pipelines.serving.sampling import Chooser, choose
from tests.pipelines.serving.shelf import write_adapter

QUESTIONS = ("Where does Ilva Torrent live?", "Who?", "What does she paint, and who taught her to do so?", "Why Harn?")
Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def versions(base: FrozenLM, tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    """Three versions that answer differently."""
    folder = tmp_path_factory.mktemp("versions")
    return [load_version("m", seed, write_adapter(folder / f"{seed}", base, f"r{seed}", seed), base) for seed in (1, 2, 3)]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def make(metrics: Metrics) -> Iterator[Make]:
    engines: list[Engine] = []

    def one(*versions: Served, batch_size: int = 8, max_waiting: int = 64) -> Engine:
        engines.append(Engine(batch_size=batch_size, window_seconds=0, max_waiting=max_waiting, metrics=metrics))
        for served in versions:
            engines[-1].swap(served)
        return engines[-1]

    yield one
    for engine in engines:
        engine.close()


def row(
    generation: Generation, prompt: Sequence[int], tokens: int = 12, *, choice: int = 0, stops: Sequence[str] = (), **chooser: Any
) -> Row:
    return Row(generation, choice, prompt, tokens, Chooser(**{"temperature": 0.0, "top_p": 1.0, "seed": 0, **chooser}), stops)


async def told(generation: Generation, count: int = 1) -> list[Event]:
    """Events until `count` choices ended."""
    events: list[Event] = []
    while sum(event.finish_reason is not None or event.error is not None for event in events) < count:
        events.append(await generation.events.get())
    return events


async def ask(engine: Engine, prompt: Sequence[int], tokens: int = 12, **options: Any) -> Event:
    generation = Generation(asyncio.get_running_loop(), streams=False)
    engine.submit([row(generation, prompt, tokens, **options)])
    [event] = await told(generation)
    return event


def alone(served: Served, prompt: Sequence[int], tokens: int = 12) -> str:
    return served.model.generate([prompt], max_new_tokens=tokens).texts[0]


def test_one_greedy_answer_is_that_of_generate(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine = make(versions[0])
        for question in QUESTIONS:
            prompt = versions[0].reader.written(question)
            event = await ask(engine, prompt, 20)
            assert event.text.strip() == alone(versions[0], prompt, 20)
            assert event.finish_reason == "length" or event.num_tokens <= 20

    asyncio.run(scenario())


def test_a_batch_says_what_each_gets_alone_however_many_there_is_room_for(make: Make, versions: list[Served]) -> None:
    async def scenario(batch_size: int) -> None:
        engine = make(versions[0], batch_size=batch_size)
        prompts = [versions[0].reader.written(question) for question in QUESTIONS]
        lengths = [17, 1, 9, 30]
        events = await asyncio.gather(*(ask(engine, p, n) for p, n in zip(prompts, lengths, strict=True)))
        assert [e.text.strip() for e in events] == [alone(versions[0], p, n) for p, n in zip(prompts, lengths, strict=True)]

    for batch_size in (1, 3, 8):
        asyncio.run(scenario(batch_size))


def test_text_comes_in_pieces_to_those_who_stream(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine, prompt = make(versions[0]), versions[0].reader.written(QUESTIONS[0])
        generation = Generation(asyncio.get_running_loop(), streams=True)
        engine.submit([row(generation, prompt)])
        events = await told(generation)
        whole = await ask(engine, prompt)
        assert "".join(event.text for event in events) == whole.text
        assert len(events) > 3
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].num_tokens == whole.num_tokens

    asyncio.run(scenario())


def test_a_stop_string_ends_one_row_and_no_other(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine, prompt = make(versions[0]), versions[0].reader.written(QUESTIONS[0])
        whole = (await ask(engine, prompt, 24)).text
        stop = whole[6:8]
        generation = Generation(asyncio.get_running_loop(), streams=False)
        engine.submit([row(generation, prompt, 24, stops=[stop]), row(generation, prompt, 24, choice=1)])
        stopped, other = sorted(await told(generation, 2), key=lambda event: event.choice)
        assert stopped.text == whole.split(stop)[0]
        assert (stopped.finish_reason, other.finish_reason) == ("stop", "length")
        assert stopped.num_tokens < other.num_tokens == 24
        assert other.text == whole

    asyncio.run(scenario())


def test_the_end_of_text_ends_a_row_and_is_none_of_it(make: Make, versions: list[Served], base: FrozenLM) -> None:
    async def scenario() -> None:
        engine, prompt = make(versions[0]), versions[0].reader.written(QUESTIONS[0])
        read = prefill(versions[0].model, [prompt])
        tokens = [read.logits.argmax(-1)]
        for _ in range(5):
            tokens.append(read.decoding.step(tokens[-1]).argmax(-1))
        said = [int(token) for token in tokens]
        config = base.model.generation_config
        assert config is not None
        end, config.eos_token_id = config.eos_token_id, [1, said[-1]]
        try:
            event = await ask(engine, prompt)
        finally:
            config.eos_token_id = end
        before = said[: said.index(said[-1])]
        assert (event.finish_reason, event.num_tokens) == ("stop", len(before) + 1)
        assert event.text == base.tokenizer.decode([*prompt, *before])[len(str(base.tokenizer.decode(prompt))) :]

    asyncio.run(scenario())


def test_a_seed_gives_the_same_answer_whoever_shares_the_batch(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine = make(versions[0])
        prompts = [versions[0].reader.written(question) for question in QUESTIONS]
        drawn = await ask(engine, prompts[0], temperature=1.0, seed=5)
        others = [ask(engine, prompt, 6, temperature=1.5, seed=9) for prompt in prompts]
        again, *_ = await asyncio.gather(ask(engine, prompts[0], temperature=1.0, seed=5), *others)
        other = await ask(engine, prompts[0], temperature=1.0, seed=6)
        assert drawn.text == again.text
        assert drawn.text != other.text

    asyncio.run(scenario())


def test_a_swap_changes_new_requests_and_none_that_is_under_way(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine = make(versions[0], batch_size=2)
        prompt = versions[0].reader.written(QUESTIONS[0])
        old = Generation(asyncio.get_running_loop(), streams=True)
        # four answers of one request, two at a time: the later two are read after the swap
        engine.submit([row(old, prompt, 60, choice=choice) for choice in range(4)])
        first = await old.events.get()
        await asyncio.to_thread(engine.swap, versions[1])
        assert engine.served is versions[1]
        new = await ask(engine, prompt, 60)
        texts = dict.fromkeys(range(4), "")
        for event in [first, *await told(old, 4)]:
            texts[event.choice] += event.text
        assert {text.strip() for text in texts.values()} == {alone(versions[0], prompt, 60)}
        assert old.served is versions[0]
        assert new.text.strip() == alone(versions[1], prompt, 60)
        assert alone(versions[0], prompt, 60) != alone(versions[1], prompt, 60)

    asyncio.run(scenario())


def test_a_version_that_answers_in_no_numbers_is_not_put_to_work(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine = make(versions[0])
        kept = [weights.detach().clone() for weights in learned(versions[1])]
        try:
            for weights in learned(versions[1]):
                torch.nn.init.constant_(weights, float("inf"))
            with pytest.raises(AdapterError, match="must answer in finite numbers"):
                await asyncio.to_thread(engine.swap, versions[1])
        finally:
            for weights, before in zip(learned(versions[1]), kept, strict=True):
                weights.data.copy_(before)
        assert engine.served is versions[0]
        prompt = versions[0].reader.written(QUESTIONS[0])
        assert (await ask(engine, prompt)).text.strip() == alone(versions[0], prompt)

    asyncio.run(scenario())


def learned(served: Served) -> list[torch.nn.Parameter]:
    adapter: Any = served.model.adapter
    return [weights for name, weights in adapter.named_parameters() if "learned_source" in name]


def test_who_leaves_is_dropped_and_the_others_go_on(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine = make(versions[0], batch_size=2)
        prompt, other = (versions[0].reader.written(question) for question in QUESTIONS[:2])
        gone = Generation(asyncio.get_running_loop(), streams=True)
        engine.submit([row(gone, prompt, 100)])
        await gone.events.get()
        stays = asyncio.create_task(ask(engine, other, 40))
        waits = asyncio.create_task(ask(engine, other, 40))  # for the place of the one that leaves
        await asyncio.sleep(0)
        gone.left = True
        assert (await stays).text.strip() == (await waits).text.strip() == alone(versions[0], other, 40)
        said = gone.events.qsize()
        assert said < 90
        assert not any(gone.events.get_nowait().finish_reason for _ in range(said))

    asyncio.run(scenario())


def test_who_leaves_while_waiting_is_never_read(make: Make, versions: list[Served], metrics: Metrics) -> None:
    async def scenario() -> None:
        engine, prompt = make(versions[0], batch_size=1), versions[0].reader.written(QUESTIONS[0])
        first, gone = (Generation(asyncio.get_running_loop(), streams=True) for _ in range(2))
        engine.submit([row(first, prompt, 60)])
        await first.events.get()
        engine.submit([row(gone, prompt)])
        gone.left = True
        await ask(engine, prompt)
        assert gone.events.empty()

    asyncio.run(scenario())
    assert "grun_prompts_read_total 2.0" in metrics.page().decode()


def test_a_request_beyond_the_room_is_turned_away(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine = make(versions[0], batch_size=1, max_waiting=2)
        prompt = versions[0].reader.written(QUESTIONS[0])
        generation = Generation(asyncio.get_running_loop(), streams=False)
        engine.submit([row(generation, prompt, 60, choice=choice) for choice in range(3)])
        with pytest.raises(RefusedError, match="at most 3 answers may be under way, got 1 more than the 3") as caught:
            engine.submit([row(generation, prompt)])
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
        with pytest.raises(RefusedError, match="at most 3 answers") as caught:
            engine.submit([row(generation, prompt)] * 4)
        assert caught.value.status == 400
        await told(generation, 3)
        assert (await ask(engine, prompt)).finish_reason

    asyncio.run(scenario())


def test_a_failure_ends_those_it_hits_and_not_the_engine(
    make: Make, versions: list[Served], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        engine, prompt = make(versions[0]), versions[0].reader.written(QUESTIONS[0])
        # token ids that no reader lets through: the base itself fails on them
        event = await ask(engine, [10**6])
        assert event.error is not None
        assert event.error.status == 500
        assert (await ask(engine, prompt)).text.strip() == alone(versions[0], prompt)

    asyncio.run(scenario())
    assert "generating failed by IndexError, reading 1 answer(s), the longest of 1 tokens" in caplog.text


@pytest.mark.parametrize("after", [0, 3])
def test_a_row_without_numbers_ends_alone(
    make: Make, versions: list[Served], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    """When its prompt is read, or later: who shares the batch goes on, to the same answer."""
    left = after

    def choose_broken(logits: torch.Tensor, choosers: Sequence[Chooser]) -> torch.Tensor:
        nonlocal left
        broken = [chooser.seed == 666 for chooser in choosers]
        left -= any(broken)
        return choose(logits.masked_fill(torch.tensor(broken)[:, None], float("nan")) if left < 0 else logits, choosers)

    monkeypatch.setattr(engine_module, "choose", choose_broken)

    async def scenario() -> None:
        engine, prompts = make(versions[0]), [versions[0].reader.written(question) for question in QUESTIONS[:3]]
        generations = [Generation(asyncio.get_running_loop(), streams=False) for _ in prompts]
        rows = [row(generation, prompt) for generation, prompt in zip(generations, prompts, strict=True)]
        rows[1].chooser = Chooser(1.0, 1.0, seed=666)
        with engine._changed:  # all of them in one batch
            for one in rows:
                engine.submit([one])
        first, broken, last = [(await told(generation))[0] for generation in generations]
        assert broken.error is not None
        assert (broken.error.status, broken.error.code) == (500, "generation_failed")
        assert [event.text.strip() for event in (first, last)] == [alone(versions[0], prompts[0]), alone(versions[0], prompts[2])]
        assert (await ask(engine, prompts[1])).text.strip() == alone(versions[0], prompts[1])

    asyncio.run(scenario())
    tokens = len(versions[0].reader.written(QUESTIONS[1])) + after
    said = f"generating failed by numbers that are not finite, choosing tokens of 1 answer(s), the longest of {tokens} tokens"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_closing_leaves_nobody_waiting(make: Make, versions: list[Served]) -> None:
    async def scenario() -> None:
        engine = make(versions[0], batch_size=1)
        prompt = versions[0].reader.written(QUESTIONS[0])
        generation = Generation(asyncio.get_running_loop(), streams=False)
        engine.submit([row(generation, prompt, 100, choice=choice) for choice in range(2)])
        await asyncio.to_thread(engine.close)
        assert not engine.is_alive
        events = await told(generation, 2)
        assert all(event.error is None or event.error.status == 503 for event in events)
        assert any(event.error for event in events)

    asyncio.run(scenario())


def test_gates_are_reported_by_request_and_block_and_counted(
    make: Make, base: FrozenLM, tmp_path: Path, metrics: Metrics
) -> None:
    async def scenario() -> None:
        kinds: dict[str, dict[str, float]] = {"open": {}, "shut": {"gates": -30}, "high": {"gates": 3, "threshold": 1.0}}
        members = [
            (name, write_adapter(tmp_path / name, base, name, seed, **kind)) for seed, (name, kind) in enumerate(kinds.items())
        ]
        served = load_version("m", 1, save_stack(members, SumConfig(), tmp_path / "stack"), base)
        engine = make(served)
        event = await ask(engine, served.reader.written(QUESTIONS[0]))
        said = {(gate.request_id, gate.layer): (gate.value > 0.5, gate.open) for gate in event.gates}
        assert [(gate.layer, gate.request_id) for gate in event.gates] == [(layer, name) for layer in (1, 3) for name in kinds]
        for layer in (1, 3):
            assert said["open", layer] == (True, True)
            assert said["shut", layer] == (False, False)
        assert said["high", 1] == (True, False), "it is measured by its own threshold"

    asyncio.run(scenario())
    page = metrics.page().decode()
    assert 'grun_gate_open_total{request_id="open"} 1.0' in page
    assert 'grun_gate_open_total{request_id="shut"}' not in page
