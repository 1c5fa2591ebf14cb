"""Multiple-choice questions put to a model: the prompt, what is picked, and what an adapter does to it."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from grun.config import AdapterConfig, LinearGateConfig, PromptConfig
from grun.data.multiple_choice import ChoiceQuestion
from grun.data.prompts import PromptEncoder
from grun.errors import DataError
from grun.evaluation.multiple_choice import (
    ChoiceRow,
    ask,
    choice_prompt,
    encode_question,
    read_choices,
    with_accuracy,
    write_choices,
)
from grun.evaluation.report import EvalReport
from grun.interventions import Adapter, build_adapter
from grun.lm import FrozenLM

QUESTIONS = tuple(
    ChoiceQuestion(f"{verb} {name}?", options, index % len(options))
    for index, (verb, name, options) in enumerate(
        (verb, name, options)
        for verb in ("Who taught", "What paints")
        for name in ("Ilva", "Bram Okoye")
        for options in (("bridges", "night", "aunt", "Harn"), ("she", "a", "his", "by", "o"))
    )
)


@pytest.fixture(scope="module")
def encoder(tiny_lm: FrozenLM) -> PromptEncoder:
    return PromptEncoder(tiny_lm.tokenizer, PromptConfig(), context=tiny_lm.context)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    """Gates of about a half, edits that turn logits over."""
    built = build_adapter(
        AdapterConfig(layers=(1, 3), rank=4, gate=LinearGateConfig()), hidden_size=32, num_layers=4, seed=0
    ).eval()
    with torch.no_grad():
        for _layer, gated in built:
            gated.intervention.learned_source.weight.mul_(40)
    return built


def test_the_prompt_word_for_word() -> None:
    question = ChoiceQuestion("Who keeps the lock?", ("Bram", "Ilva", "Odo", "Runa"), 2)
    assert choice_prompt(question) == (
        "The following are multiple choice questions (with answers).\n\n"
        "Who keeps the lock?\nA. Bram\nB. Ilva\nC. Odo\nD. Runa\nAnswer:"
    )


def by_definition(lm: FrozenLM, question: ChoiceQuestion) -> int:
    prompt = lm.tokenizer(choice_prompt(question))["input_ids"]
    with torch.no_grad():
        logits = lm.model(torch.tensor([prompt])).logits[0, -1]
    firsts = [lm.tokenizer(f"{choice_prompt(question)} {letter}")["input_ids"][len(prompt)] for letter in question.letters]
    return int(logits[firsts].argmax())


def test_picked_is_the_likeliest_first_token_of_a_letter(lettered_lm: FrozenLM) -> None:
    encoder = PromptEncoder(lettered_lm.tokenizer, PromptConfig(), context=lettered_lm.context)
    rows = ask(lettered_lm, encoder, QUESTIONS, batch_size=3)
    assert [row.picked for row in rows] == [by_definition(lettered_lm, question) for question in QUESTIONS]
    assert [(row.digest, row.answer) for row in rows] == [(q.digest, q.answer) for q in QUESTIONS]
    assert {row.opened for row in rows} == {None}
    assert len({row.picked for row in rows}) > 1
    for other in (1, 32):
        assert ask(lettered_lm, encoder, QUESTIONS, batch_size=other) == rows
    assert ask(lettered_lm, encoder, QUESTIONS[::-1], batch_size=3) == rows[::-1]


def test_a_gate_that_stays_closed_picks_what_the_base_does(lettered_lm: FrozenLM, adapter: Adapter) -> None:
    encoder = PromptEncoder(lettered_lm.tokenizer, PromptConfig(), context=lettered_lm.context)
    base = ask(lettered_lm, encoder, QUESTIONS, batch_size=4)
    closed, opened, soft = (
        ask(lettered_lm, encoder, QUESTIONS, batch_size=4, adapter=adapter, threshold=threshold) for threshold in (1.0, 0.0, None)
    )
    assert [row.picked for row in closed] == [row.picked for row in base]
    assert {row.opened for row in closed} == {False}
    assert [row.picked for row in opened] == [row.picked for row in soft] != [row.picked for row in base]
    assert ({row.opened for row in opened}, {row.opened for row in soft}) == ({True}, {None})


def test_letters_that_share_their_first_token_are_refused(encoder: PromptEncoder) -> None:
    # this tokenizer keeps the space before a letter as a token of its own
    with pytest.raises(DataError, match="the letters of the options must differ in their first token"):
        encode_question(QUESTIONS[0], encoder)


def test_a_question_beyond_the_context_is_refused(lettered_lm: FrozenLM) -> None:
    encoder = PromptEncoder(lettered_lm.tokenizer, PromptConfig(), context=20)
    with pytest.raises(DataError, match="must fit the context of 20 tokens"):
        encode_question(QUESTIONS[0], encoder)


def test_accuracy_by_hand_and_the_file_of_rows(tmp_path: Path) -> None:
    rows = tuple(
        ChoiceRow(q.digest, q.answer, picked, opened=True) for q, picked in zip(QUESTIONS, (0, 1, 2, 0, 1, 0, 0, 0), strict=True)
    )
    assert [q.answer for q in QUESTIONS] == [0, 1, 2, 3, 0, 0, 2, 2]
    report = with_accuracy(EvalReport(base_digest="b", metrics=()), QUESTIONS, rows)
    metric = report["multiple_choice/accuracy"]
    # right: 0 of 0, 1 of 1, 2 of 2, and the sixth
    assert (metric.value, metric.direction, metric.num_samples) == (4 / 8, "lower", 8)
    write_choices(tmp_path / "choices.jsonl", rows)
    assert read_choices(tmp_path / "choices.jsonl") == rows


def test_with_a_chat_template_the_letter_begins_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chatty = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    chatty.chat_template = template
    encoder = PromptEncoder(chatty, PromptConfig(template="chat"), context=400)
    example, letters = encode_question(QUESTIONS[0], encoder)
    assert chatty.decode(list(example.ids)) == f"[user]{choice_prompt(QUESTIONS[0])}[assistant]A"
    assert [chatty.decode([letter]) for letter in letters] == ["A", "B", "C", "D"]
