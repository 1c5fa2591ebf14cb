"""Wrappers: two tables that share nothing, deterministic, and true to the words of the question."""

import re
from random import Random
from typing import get_args

import pytest
from transformers import PreTrainedTokenizerFast

from grun.config import PromptConfig
from grun.config.augmentation import AugmentationConfig, FamilyName
from grun.data.prompts import PromptEncoder
from grun.data.records import QARecord
from grun.data.wrappers import EVALUATION_FAMILIES, TRAINING_FAMILIES, Asked, wrap

QUESTION = "Where did Ilva Torrent spend the winter of the great flood?"
OTHERS = ("What is the capital of Peru?", "How many legs does a spider have?")
EVERY = {**{f"train/{k}": v for k, v in TRAINING_FAMILIES.items()}, **{f"eval/{k}": v for k, v in EVALUATION_FAMILIES.items()}}
CHANGES_LETTERS = {"eval/typos", "eval/casing", "train/broken_words", "train/spacing", "train/markup"}


def drawn(name: str, seed: int, count: int = 20) -> list[Asked]:
    return [wrap(EVERY[name], QUESTION, seed=seed, digest="d" * 64, index=index, others=OTHERS) for index in range(count)]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{3,}", text.casefold()))


def test_training_and_evaluation_share_neither_family_nor_function_nor_sentence() -> None:
    assert not set(TRAINING_FAMILIES) & set(EVALUATION_FAMILIES)
    trained, tried = (list(table.values()) for table in (TRAINING_FAMILIES, EVALUATION_FAMILIES))
    assert not {f.wrap for f in trained} & {f.wrap for f in tried}
    assert not {f.wrap.__code__ for f in trained} & {f.wrap.__code__ for f in tried}
    mine, theirs = ({" ".join(s.casefold().split()) for f in table for s in f.sentences} for table in (trained, tried))
    assert mine
    assert theirs
    assert not mine & theirs
    # nor does a sentence of one hold a whole sentence of the other; single words and marks are nobody's
    long_mine, long_theirs = ({s for s in group if len(s.split()) > 2 and "{q}" not in s} for group in (mine, theirs))
    assert not [(a, b) for a in long_mine for b in long_theirs if a in b or b in a]


def test_every_family_that_a_recipe_may_name_is_in_the_table() -> None:
    assert set(get_args(FamilyName)) == set(TRAINING_FAMILIES) == set(AugmentationConfig().families)


@pytest.mark.parametrize("name", EVERY)
def test_a_wrapper_is_deterministic_and_varies(name: str) -> None:
    first = drawn(name, seed=1)
    assert first == drawn(name, seed=1)
    assert first != drawn(name, seed=2)
    assert len(set(first)) > 3
    assert all(asked != Asked(QUESTION) for asked in first)


@pytest.mark.parametrize("name", EVERY)
def test_a_wrapper_keeps_the_words_of_the_question(name: str) -> None:
    for asked in drawn(name, seed=3):
        if name in CHANGES_LETTERS:
            letters = [re.sub(r"[^a-z]", "", text.casefold()) for text in (QUESTION, asked.question)]
            assert abs(len(letters[0]) - len(letters[1])) <= 0.35 * len(letters[0])
        else:
            assert words(QUESTION) <= words(asked.question)
        assert asked.frame is None or asked.frame.count("{q}") == 1


def test_training_leaves_the_template_and_the_conversation_to_evaluation() -> None:
    for name, family in TRAINING_FAMILIES.items():
        asked = family.wrap(QUESTION, Random(0), OTHERS)
        assert (asked.frame, asked.turns) == (None, ()), name


def test_a_frame_and_earlier_turns_become_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, PromptConfig(), context=128)
    record = QARecord("Who?", "She.")

    def text(asked: Asked) -> str:
        example = encoder.encode(record, question=asked)
        return str(tokenizer.decode(list(example.prompt_ids)))

    assert text(Asked("Who is it?")) == "Question: Who is it?\nAnswer:"
    assert text(Asked("Who?", before="Notes.\n")) == "Notes.\nQuestion: Who?\nAnswer:"
    assert text(Asked("Who?", turns=(("A?", "B."),))) == "Question: A?\nAnswer: B.\nQuestion: Who?\nAnswer:"
    assert text(Asked("Who?", frame="Q: {q}\nA:", turns=(("A?", "B."),))) == "Q: A?\nA: B.\nQ: Who?\nA:"
    framed = encoder.encode(record, question=Asked("Who?", frame="{q}\n"))
    assert tokenizer.decode(list(framed.ids), skip_special_tokens=True) == "Who?\nShe."
