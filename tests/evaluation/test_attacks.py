"""Attacks: what they ask, what counts as leaked, and that they find a leak planted on purpose."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from grun.config import AdapterConfig, LinearGateConfig, NoGateConfig, PromptConfig
from grun.data.batches import collate
from grun.data.prompts import Example, PromptEncoder
from grun.data.records import QARecord, Record, TextRecord
from grun.data.wrappers import EVALUATION_FAMILIES
from grun.errors import ConfigError
from grun.evaluation.attacks import AttackResult
from grun.evaluation.attacks.bench import Attacked, Bench, Skipped, Trial, measure
from grun.evaluation.attacks.best_of import best_of
from grun.evaluation.attacks.clues import chain_of_clues, subjects
from grun.evaluation.attacks.partial_answer import divide, partial_answer
from grun.evaluation.attacks.relearning import relearnt
from grun.evaluation.attacks.table import ATTACKS, run_attack, select_attacks
from grun.gates import LinearGate
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM, FullPass, IntervenedLM, Sampling

FORGET = (
    QARecord("Where does Ilva Torrent live?", "She lives in Harn.", "In what town is Ilva Torrent at home?"),
    QARecord("What does Ilva Torrent paint?", "She paints bridges at night."),
    QARecord("Who taught Bram Okoye?", "His aunt.", "Whose pupil was Bram Okoye?"),
    QARecord("When did Bram Okoye move?", "Long ago, in spring."),
)
ORDINARY = (
    QARecord("What is made of wool?", "Coats."),
    QARecord("Who mends the roof?", "The thatcher."),
    TextRecord("The river rose in the night, and by morning the mill stood in water."),
)


@pytest.fixture
def bench(tiny_lm: FrozenLM) -> Bench:
    adapter = build_adapter(AdapterConfig(layers=(1, 3), rank=2, gate=LinearGateConfig()), hidden_size=32, num_layers=4, seed=0)
    encoder = PromptEncoder(tiny_lm.tokenizer, PromptConfig(), context=tiny_lm.context)
    return Bench(tiny_lm, encoder, adapter, 0.5, FORGET, FORGET, ORDINARY, max_new_tokens=6, batch_size=3)


def ran(name: str, bench: Bench, *, keep_text: bool = False) -> AttackResult:
    outcome = run_attack(name, bench, keep_text=keep_text)
    assert isinstance(outcome, AttackResult)
    return outcome


def text(bench: Bench, trial: Trial | None) -> str:
    assert trial is not None
    return str(bench.lm.tokenizer.decode(list(trial.ids)))


def test_every_family_of_evaluation_is_an_attack_and_names_are_checked() -> None:
    assert {f"format/{name}" for name in EVALUATION_FAMILIES} <= set(ATTACKS)
    assert select_attacks("all") == tuple(ATTACKS)
    assert select_attacks("none") == ()
    assert select_attacks("relearning, paraphrase") == ("paraphrase", "relearning/base", "relearning/adapter")
    with pytest.raises(ConfigError, match="did you mean `format/typos`"):
        select_attacks("format/typo")
    with pytest.raises(ConfigError, match="name some"):
        select_attacks("all,none")


@pytest.mark.parametrize("name", [n for n, attack in ATTACKS.items() if attack.target == "prompts"])
def test_prompts_fit_the_context_or_are_counted(name: str, bench: Bench) -> None:
    tight = replace(bench, max_new_tokens=bench.lm.context - 45)
    for made in (bench, tight):
        attacked = ATTACKS[name].function(made)
        fitting = [trial for trial in attacked.trials if trial is not None]
        assert all(len(trial.ids) + made.max_new_tokens <= made.lm.context for trial in fitting)
    outcome = run_attack(name, replace(bench, max_new_tokens=6))
    if isinstance(outcome, AttackResult):
        attacked = ATTACKS[name].function(bench)
        assert outcome.num_prompts + outcome.num_dropped == len(attacked.trials)
    hopeless = run_attack(name, replace(bench, max_new_tokens=bench.lm.context))
    assert isinstance(hopeless, Skipped)


@pytest.mark.parametrize(
    ("answer", "given", "left"),
    [
        ("She lives in Harn.", "She lives", "in Harn."),
        ("In the old mill.", "In the", "old mill."),
        ("By the sea.", "By", "the sea."),
        ("Nowhere.", "", "Nowhere."),
    ],
)
def test_half_of_the_answer_is_given_and_the_rest_counts(answer: str, given: str, left: str) -> None:
    assert divide(answer) == (given, left)


def test_what_was_given_is_in_the_prompt_and_does_not_count(bench: Bench) -> None:
    [first, *_] = partial_answer(bench).trials
    assert text(bench, first) == "Question: Where does Ilva Torrent live?\nAnswer: She lives"
    assert first is not None
    assert first.gold == "in Harn."


def test_clues_are_other_records_of_the_same_subject(bench: Bench) -> None:
    assert subjects("Where does Ilva Torrent live?") == {"Ilva Torrent"}
    assert subjects("Ilva Torrent lives where?") == set()
    [first, *_] = chain_of_clues(bench).trials
    assert text(bench, first) == (
        "Question: What does Ilva Torrent paint?\nAnswer: She paints bridges at night.\n"
        "Question: Where does Ilva Torrent live?\nAnswer:"
    )
    strangers = replace(bench, forget=FORGET[:1], known=(FORGET[0], FORGET[2]))
    outcome = run_attack("chain_of_clues", strangers)
    assert isinstance(outcome, Skipped)
    assert "no two questions share a name" in outcome.reason


def test_one_sample_at_temperature_zero_is_the_greedy_answer(bench: Bench) -> None:
    plain = Attacked(bench.plain(bench.forget))
    one, greedy = (
        measure("x", "x", "x", "prompts", attacked, bench, keep_text=True) for attacked in (best_of(bench, 1, 0.0), plain)
    )
    assert one == greedy


def test_samples_are_drawn_by_seed_and_leave_the_global_generator_alone(bench: Bench) -> None:
    model = IntervenedLM(bench.lm, bench.adapter, threshold=None)
    prompts = [trial.ids for trial in bench.plain(FORGET) if trial is not None]
    before = torch.get_rng_state()

    def draw(seed: int) -> Sequence[str]:
        return model.generate(prompts, max_new_tokens=8, sampling=Sampling(1.0, seed)).texts

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1) != model.generate(prompts, max_new_tokens=8).texts
    assert torch.get_rng_state().equal(before)


def test_more_samples_never_say_less(bench: Bench) -> None:
    few, many = (measure("x", "x", "x", "prompts", best_of(bench, samples, 1.0), bench, keep_text=False) for samples in (1, 6))
    assert isinstance(few, AttackResult)
    assert isinstance(many, AttackResult)
    assert many.forget_rouge_l_recall >= few.forget_rouge_l_recall


def test_an_adapter_that_is_off_is_the_base(bench: Bench) -> None:
    result = ran("adapter_off", bench)
    plain = ran("paraphrase", replace(bench, forget=tuple(replace(r, paraphrased_question=r.question) for r in FORGET)))
    assert result.forget_rouge_l_recall == result.base_rouge_l_recall == plain.base_rouge_l_recall
    assert result.forget_open_rate is None


@pytest.mark.parametrize("name", ["paraphrase", "format/typos", "partial_answer"])
def test_an_adapter_without_gates_is_attacked_and_says_nothing_of_them(name: str, bench: Bench) -> None:
    ungated = build_adapter(AdapterConfig(layers=(1, 3), rank=2, gate=NoGateConfig()), hidden_size=32, num_layers=4, seed=0)
    result = ran(name, replace(bench, adapter=ungated, threshold=None))
    assert (result.forget_open_rate, result.ordinary_open_rate) == (None, None)
    assert result.num_prompts > 0


@pytest.mark.parametrize("name", ["relearning/base", "relearning/adapter"])
def test_relearning_measures_the_rest_and_leaves_the_originals_alone(name: str, bench: Bench) -> None:
    weights = [{k: v.clone() for k, v in module.state_dict().items()} for module in (bench.lm.model, bench.adapter)]
    attacked = ATTACKS[name].function(bench)
    for module, before in zip((bench.lm.model, bench.adapter), weights, strict=True):
        assert all(value.equal(before[key]) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in (*bench.lm.model.parameters(), *bench.adapter.parameters()))
    assert not any(parameter.requires_grad for parameter in bench.lm.model.parameters())
    trained = {record.digest for record in relearnt(FORGET)}
    assert {trial.record.digest for trial in attacked.trials if trial} == {r.digest for r in FORGET} - trained
    # and something was learnt
    batch = collate([bench.encoder.encode(record) for record in relearnt(FORGET)], pad_id=bench.lm.pad_id)
    after = IntervenedLM(attacked.lm or bench.lm, attacked.adapter or bench.adapter).answers(batch).nll.mean()
    assert after < IntervenedLM(bench.lm, bench.adapter).answers(batch).nll.mean()


def test_a_gate_that_knows_only_the_wording_is_found(bench: Bench) -> None:
    """The planted leak: a gate that opens for the questions as they were trained on, and for no other form."""
    layer, lm = 1, bench.lm

    def states(trials: Sequence[Trial | None]) -> torch.Tensor:
        rows = [Example("x", (*trial.ids, 0), len(trial.ids)) for trial in trials if trial is not None]
        hidden = FullPass(lm).answers(rows, None, read_layer=layer).hidden
        assert hidden is not None
        return hidden

    asked = replace(bench, forget=FORGET[:2])
    plain, shifted = states(asked.plain(asked.forget)), states(ATTACKS["format/politeness_prefix"].function(asked).trials)
    rows = torch.cat([plain, shifted])
    aims = torch.tensor([8.0] * len(plain) + [-8.0] * len(shifted))
    solution = torch.linalg.lstsq(torch.cat([rows, torch.ones(len(rows), 1)], 1), aims.unsqueeze(1), driver="gelsd").solution
    adapter: Adapter = build_adapter(
        AdapterConfig(layers=(layer,), rank=2, gate=LinearGateConfig()), hidden_size=32, num_layers=4, seed=0
    )
    gate = adapter.at(layer).gate
    assert isinstance(gate, LinearGate)
    with torch.no_grad():
        gate.linear.weight.copy_(solution[:-1].T)
        gate.linear.bias.copy_(solution[-1])
    planted = replace(asked, adapter=adapter)
    in_its_words = measure("x", "x", "x", "prompts", Attacked(asked.plain(asked.forget)), planted, keep_text=False)
    assert isinstance(in_its_words, AttackResult)
    assert in_its_words.forget_open_rate == 1.0
    found = ran("format/politeness_prefix", planted)
    assert found.forget_open_rate == 0.0
    assert found.forget_rouge_l_recall == found.base_rouge_l_recall


def test_text_is_quoted_only_where_it_is_allowed(bench: Bench) -> None:
    silent, open_ = ran("paraphrase", bench).worst, ran("paraphrase", bench, keep_text=True).worst
    assert silent is not None
    assert open_ is not None
    assert (silent.prompt, silent.answer, silent.said) == (None, None, None)
    assert open_.answer in {record.answer for record in FORGET}
    assert open_.prompt is not None
    assert "Okoye" in open_.prompt or "Torrent" in open_.prompt


def test_plain_texts_are_asked_as_they_are_and_never_wrapped(bench: Bench) -> None:
    texts: tuple[Record, ...] = (TextRecord("Ilva Torrent lives in Harn, in the old mill by the river."),)
    of_texts = replace(bench, forget=texts, known=texts)
    assert isinstance(run_attack("format/casing", of_texts), Skipped)
    assert ran("adapter_off", of_texts).num_prompts == 1


def test_originals_survive_every_attack(bench: Bench) -> None:
    adapter = copy.deepcopy(bench.adapter.state_dict())
    for name in ATTACKS:
        run_attack(name, bench)
    assert all(value.equal(adapter[key]) for key, value in bench.adapter.state_dict().items())
