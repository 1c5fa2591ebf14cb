"""Evaluation sets: which records they hold, in which wording and role, and how they are halved."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from grun.config import PromptConfig
from grun.data.prompts import PromptEncoder
from grun.data.records import QARecord, Record, TextRecord
from grun.data.splits import Splits, in_part
from grun.evaluation.sets import EvalPrompt, EvalSet, evaluation_sets


def people(name: str, count: int, **fields: Any) -> tuple[QARecord, ...]:
    return tuple(
        QARecord(f"Where does {name} {n} live?", f"{name} {n} lives in Harn.", f"What is the home of {name} {n}?", **fields)
        for n in range(count)
    )


SPLITS = Splits(
    forget=people("Ilva", 12),
    retain=people("Bram", 30),
    holdout=people("Sefa", 14),
    utility={"retain": people("Bram", 9), "world_facts": people("Capital", 7)},
)


def by_name(sets: Sequence[EvalSet]) -> dict[str, EvalSet]:
    return {evaluated.name: evaluated for evaluated in sets}


def rows(evaluated: EvalSet) -> list[tuple[str, str]]:
    return [(prompt.record.digest, prompt.wording) for prompt in evaluated.prompts]


def test_roles_wordings_and_records_of_each_set() -> None:
    sets = evaluation_sets(SPLITS)
    held = {s.name: (s.role, sorted({p.wording for p in s.prompts}), {p.record for p in s.prompts}) for s in sets}
    assert held == {
        "forget": ("forget", ["question"], set(SPLITS.forget)),
        "forget_unseen": ("forget_unseen", ["paraphrase"], set(SPLITS.forget)),
        "holdout": ("holdout", ["paraphrase", "question"], set(SPLITS.holdout)),
        # plain probability on the retain set, a normalised one on the others
        "retain": ("retain", ["question"], set(SPLITS.utility["retain"])),
        "world_facts": ("utility", ["question"], set(SPLITS.utility["world_facts"])),
    }
    assert all(len(set(rows(s))) == len(s.prompts) for s in sets)
    assert len(by_name(sets)["holdout"].prompts) == 2 * len(SPLITS.holdout)


def test_the_halves_are_disjoint_and_together_everything() -> None:
    whole, first, second = (by_name(evaluation_sets(SPLITS, part=part)) for part in ("all", "validation", "test"))
    assert whole.keys() == first.keys() == second.keys()
    for name in whole:
        halves = rows(first[name]), rows(second[name])
        assert all(halves), f"{name} has an empty half: choose other records for this test"
        assert not set(halves[0]) & set(halves[1])
        assert sorted(halves[0] + halves[1]) == sorted(rows(whole[name]))


def test_a_record_is_in_the_same_half_in_every_wording() -> None:
    validation = by_name(evaluation_sets(SPLITS, part="validation"))
    seen, unseen = ([p.record for p in validation[name].prompts] for name in ("forget", "forget_unseen"))
    assert seen == unseen


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_set_too_small_to_be_halved_is_judged_whole(part: str) -> None:
    one = next(record for record in SPLITS.holdout if not in_part(record.digest, part))
    holdout = by_name(evaluation_sets(replace(SPLITS, holdout=(one,)), part=part))["holdout"]
    assert rows(holdout) == [(one.digest, "question"), (one.digest, "paraphrase")]


def test_rows_are_limited_per_record_and_chosen_by_content() -> None:
    limited = evaluation_sets(SPLITS, max_rows=3)
    backwards = evaluation_sets(replace(SPLITS, holdout=SPLITS.holdout[::-1]), max_rows=3)
    holdout = by_name(limited)["holdout"]
    assert {p.record.digest for p in holdout.prompts} == set(sorted(r.digest for r in SPLITS.holdout)[:3])
    assert len(holdout.prompts) == 6
    assert rows(by_name(backwards)["holdout"]) == rows(holdout)


def test_unseen_wording_is_the_paraphrase_or_the_question_with_a_lead() -> None:
    [paraphrased] = people("Ilva", 1)
    bare = QARecord("Who taught Bram?", "His aunt did.")
    assert EvalPrompt(paraphrased, "paraphrase").question == "What is the home of Ilva 0?"
    assert EvalPrompt(paraphrased, "question").question == "Where does Ilva 0 live?"
    led = EvalPrompt(bare, "paraphrase").question
    assert led is not None
    assert led != bare.question
    assert led.endswith(bare.question)


def test_a_plain_text_has_one_wording_and_no_question() -> None:
    texts: tuple[Record, ...] = (TextRecord("Bridges in Harn open at noon and close at night."), *people("Ilva", 1))
    sets = by_name(evaluation_sets(replace(SPLITS, holdout=texts)))
    assert [(p.question, p.wording, p.reference) for p in sets["holdout"].prompts] == [
        (None, "question", ""),
        ("Where does Ilva 0 live?", "question", "Ilva 0 lives in Harn."),
        ("What is the home of Ilva 0?", "paraphrase", "Ilva 0 lives in Harn."),
    ]


def test_a_set_without_prompts_is_left_out() -> None:
    assert "world_facts" not in by_name(evaluation_sets(replace(SPLITS, utility={"world_facts": ()})))


def test_digest_depends_on_records_and_wordings_but_not_on_their_order() -> None:
    prompts = tuple(EvalPrompt(record, "question") for record in SPLITS.forget)
    digest = EvalSet("forget", "forget", prompts).digest
    assert EvalSet("forget", "forget", prompts[::-1]).digest == digest
    assert EvalSet("forget", "forget", prompts[1:]).digest != digest
    asked_otherwise = (EvalPrompt(SPLITS.forget[0], "paraphrase"), *prompts[1:])
    assert EvalSet("forget", "forget", asked_otherwise).digest != digest


def test_encoding_keeps_the_prompt_whatever_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, PromptConfig(), context=128)
    [record] = people("Ilva", 1)
    prompt = EvalPrompt(record, "paraphrase")
    own, other = prompt.encode(encoder), prompt.encode(encoder, answer="Nobody knows.")
    assert tokenizer.decode(list(own.prompt_ids)) == "Question: What is the home of Ilva 0?\nAnswer:"
    assert own.prompt_ids == other.prompt_ids
    assert tokenizer.decode(list(own.ids[own.num_prompt_tokens : -1])) == " Ilva 0 lives in Harn."
    assert tokenizer.decode(list(other.ids[other.num_prompt_tokens : -1])) == " Nobody knows."


def test_nonmembers_are_asked_once_in_a_set_of_their_own() -> None:
    assert "nonmembers" not in by_name(evaluation_sets(SPLITS))
    sets = by_name(evaluation_sets(replace(SPLITS, nonmembers=people("Runa", 3))))
    assert sets["nonmembers"].role == "nonmember"
    assert [prompt.wording for prompt in sets["nonmembers"].prompts] == ["question"] * 3
