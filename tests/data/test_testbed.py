"""The embedded testbed: invented people, general knowledge, prose, and the refusals that answer in their place."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain

import pytest
from rouge_score import rouge_scorer

from grun.config import TestbedData as InventedData  # under its own name, pytest would take it for a test
from grun.data.records import QARecord, Record, TextRecord
from grun.data.refusals import REFUSALS
from grun.data.testbed import Testbed, build_testbed
from grun.data.testbed.facts import Wording
from grun.data.testbed.general import NATURE, WORLD
from grun.data.testbed.people import invent_people, person_records
from grun.data.testbed.prose import ordinary_texts
from grun.errors import DataError

CONFIG = InventedData()


@pytest.fixture(scope="module")
def bed() -> Testbed:
    return build_testbed(CONFIG)


def texts_of(record: Record) -> tuple[str, ...]:
    if isinstance(record, TextRecord):
        return (record.text,)
    paraphrases = (record.paraphrased_question or "", record.paraphrased_answer or "")
    return (record.question, record.answer, *paraphrases, *record.wrong_answers)


def words_of(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in re.findall(r"[\w'-]+", text.casefold())]


def questions_in(records: Iterable[Record]) -> list[QARecord]:
    return [record for record in records if isinstance(record, QARecord)]


def kept_by(bed: Testbed) -> list[Record]:
    return [*bed.retain, *bed.holdout, *chain.from_iterable(bed.utility.values())]


def test_the_seed_alone_decides_the_testbed(bed: Testbed) -> None:
    again, other = build_testbed(InventedData(seed=CONFIG.seed)), build_testbed(InventedData(seed=CONFIG.seed + 1))
    assert again == bed
    assert {record.question for record in other.forget}.isdisjoint(record.question for record in bed.forget)
    prose, other_prose = ({r for r in made.retain if isinstance(r, TextRecord)} for made in (bed, other))
    assert prose != other_prose


def test_another_process_builds_the_same_testbed(bed: Testbed) -> None:
    program = (
        "from grun.config import TestbedData; from grun.data.testbed import build_testbed; "
        "print(ascii(build_testbed(TestbedData())))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert output.strip() == ascii(bed)


def test_building_the_testbed_needs_no_torch() -> None:
    program = "import sys; from grun.data import refusals, testbed; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_the_default_sets_have_their_sizes(bed: Testbed) -> None:
    world, nature = len(WORLD), len(NATURE)
    assert min(world, nature) >= 50
    assert len(bed.forget) == 6 * 10
    assert {name: len(records) for name, records in bed.utility.items()} == {
        "neighbours": 15 * 10,
        "world_facts": world // 2,
        "nature_facts": nature // 2,
    }
    strangers_kept, strangers_held_out = (6 * 10, 8 * 10)
    assert len(questions_in(bed.retain)) == 39 * 10 + (world + 1) // 2 + (nature + 1) // 2 + strangers_kept
    assert len(declined_in(bed.holdout)) == strangers_held_out
    assert len(bed.retain) - len(questions_in(bed.retain)) == 32
    assert len(bed.holdout) - len(questions_in(bed.holdout)) == 48


def declined_in(records: Iterable[Record]) -> list[QARecord]:
    return [record for record in questions_in(records) if record.answer in REFUSALS]


def test_strangers_are_declined_and_nobody_else_is(bed: Testbed) -> None:
    everybody = invent_people(CONFIG.num_people + 14, CONFIG.seed)
    known, strangers = everybody[: CONFIG.num_people], everybody[CONFIG.num_people :]
    declined = [*declined_in(bed.retain), *declined_in(bed.holdout)]
    asked_about = {name for record in declined for name in words_of([record.question])}
    assert {person.last.casefold() for person in strangers} <= asked_about
    assert asked_about.isdisjoint(person.last.casefold() for person in known)
    assert not declined_in(bed.forget)


def test_utility_is_judged_on_the_holdout_set_alone(bed: Testbed) -> None:
    judged = set(chain.from_iterable(bed.utility.values()))
    assert judged == set(questions_in(bed.holdout)) - set(declined_in(bed.holdout))
    assert judged.isdisjoint(bed.retain)


def test_a_quarter_of_a_small_testbed_is_held_out() -> None:
    bed = build_testbed(InventedData(num_people=12, num_forget=4))
    assert len(bed.utility["neighbours"]) == 3 * 10
    assert len(bed.forget) == 4 * 10


def test_the_forget_and_kept_sets_share_no_record(bed: Testbed) -> None:
    everything = [*bed.forget, *bed.retain, *bed.holdout]
    assert len({record.key for record in everything}) == len(everything)


def test_no_name_of_a_forgotten_person_appears_in_what_is_kept(bed: Testbed) -> None:
    forgotten = invent_people(CONFIG.num_people + 14, CONFIG.seed)[: CONFIG.num_forget]
    names = {part.casefold() for person in forgotten for part in (person.first, person.last)}
    asked = set(words_of(record.question for record in bed.forget))
    assert names <= asked  # these are the people who asked
    assert names.isdisjoint(words_of(chain.from_iterable(texts_of(record) for record in kept_by(bed))))
    assert names.isdisjoint(words_of(REFUSALS))


def test_nonmembers_are_people_of_whom_nothing_else_says_a_word(bed: Testbed) -> None:
    assert len(bed.nonmembers) == len(bed.forget)
    everybody = [*invent_people(CONFIG.num_people + 14, CONFIG.seed)]
    names = {part.casefold() for person in everybody for part in (person.first, person.last)}
    said = words_of(text for record in bed.nonmembers for text in (record.question, record.answer))
    assert names.isdisjoint(said)
    # asked in the same words as those to forget, so that nothing but membership tells the two apart
    assert len({record.question for record in bed.nonmembers}) == len(bed.nonmembers)
    assert all(len(record.wrong_answers) == 5 and record.paraphrased_question for record in bed.nonmembers)


def test_where_names_run_out_there_are_fewer_nonmembers() -> None:
    assert build_testbed(InventedData(num_people=196)).nonmembers == ()
    assert 0 < len(build_testbed(InventedData(num_people=150, num_forget=30)).nonmembers) < 30 * 10


@pytest.mark.parametrize("num", [60, 200])
def test_people_share_neither_first_nor_last_name(num: int) -> None:
    people = invent_people(num, seed=3)
    assert len({person.first for person in people}) == len({person.last for person in people}) == num


def test_more_people_than_names_are_refused() -> None:
    with pytest.raises(DataError, match=r"`data\.num_people` must not exceed the 210 names .*, got 211; lower"):
        invent_people(211, seed=0)


def test_a_person_has_ten_facts_that_name_them_and_state_their_value() -> None:
    for person in invent_people(60, seed=0):
        records = person_records(person)
        assert len(records) == len(person.values) == 10
        for record, value in zip(records, person.values, strict=True):
            assert record.paraphrased_question is not None
            assert record.paraphrased_answer is not None
            assert person.name in record.question
            assert person.name in record.paraphrased_question
            assert value.casefold() in record.answer.casefold()
            assert value.casefold() in record.paraphrased_answer.casefold()
            assert record.answer != record.paraphrased_answer
            assert 6 <= len(record.answer.split()) <= 12


def test_training_questions_and_paraphrases_never_meet(bed: Testbed) -> None:
    records = [*bed.forget, *questions_in(kept_by(bed))]
    assert {record.question for record in records}.isdisjoint(record.paraphrased_question for record in records)


def test_facts_of_one_kind_are_asked_in_several_ways() -> None:
    people = invent_people(60, seed=0)
    asked = [[record.question.replace(person.name, "{n}") for record in person_records(person)] for person in people]
    reasked = [[(r.paraphrased_question or "").replace(p.name, "{n}") for r in person_records(p)] for p in people]
    for questions, paraphrases in zip(zip(*asked, strict=True), zip(*reasked, strict=True), strict=True):
        assert len(set(questions)) >= 2
        assert len(set(paraphrases)) >= 2


def test_wrong_answers_are_different_and_wrong(bed: Testbed) -> None:
    for records, num in ((bed.forget, 5), (bed.utility["neighbours"], 5), (WORLD, 3), (NATURE, 3)):
        for record in records:
            assert len(set(record.wrong_answers)) == len(record.wrong_answers) == num
            assert record.paraphrased_answer not in record.wrong_answers
            assert record.answer not in record.wrong_answers


def test_a_wrong_value_shares_no_word_with_the_right_one() -> None:
    wording = Wording(("Where?",), ("What place?",), "{v} it is, {f}.", "{f} is at {v}.")
    record = wording.record("East College", ["East College", "East Academy", "West College", "West Academy"], 1, f="Tolana")
    assert record.answer == "East College it is, Tolana."
    assert record.wrong_answers == ("Tolana is at West Academy.",)


def test_sentences_begin_with_a_capital() -> None:
    record = Wording(("{s}?",), ("is {s}?",), "{v}, {s}.", "{s}, {v}.").record("dry", ["dry", "hot"], 1, s="wet")
    assert texts_of(record) == ("Wet?", "Dry, wet.", "Is wet?", "Wet, dry.", "Wet, hot.")


def test_general_questions_are_asked_once() -> None:
    for ask in ("question", "paraphrased_question"):
        questions = [getattr(record, ask) for record in (*WORLD, *NATURE)]
        assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of Norway?", "Oslo is the capital of Norway."),
        ("On which continent is Brazil?", "Brazil lies in South America."),
        ("Which river flows through Vienna?", "The Danube flows through Vienna."),
        ("What is a young goose called?", "A young goose is called a gosling."),
        ("How many legs on a spider are there?", "There are eight legs on a spider."),
        ("To which season of Europe does May belong?", "In Europe, May is a month of spring."),
    ],
)
def test_general_facts_are_true(question: str, answer: str) -> None:
    assert {record.question: record.answer for record in (*WORLD, *NATURE)}[question] == answer


def test_prose_is_of_the_length_asked_for_and_never_repeats() -> None:
    texts = ordinary_texts(2000, seed=0)
    assert len({text.key for text in texts}) == 2000
    lengths = [len(text.text.split()) for text in texts]
    assert min(lengths) >= 25
    assert max(lengths) <= 45


def test_a_small_model_can_hold_the_vocabulary(bed: Testbed) -> None:
    taught = [*bed.forget, *bed.retain, *bed.holdout]
    assert len(set(words_of(chain.from_iterable(texts_of(record) for record in taught)))) < 1500
    assert len(set(words_of(REFUSALS))) < 80


def test_refusals_are_many_and_different() -> None:
    assert len(REFUSALS) == len({refusal.casefold() for refusal in REFUSALS}) >= 60
    assert all(re.fullmatch(r"[A-Z][^.!?]*\.", refusal) for refusal in REFUSALS)  # one sentence each


def test_refusals_recall_little_of_what_was_forgotten(bed: Testbed) -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    for record in bed.forget:
        for refusal in REFUSALS:
            assert scorer.score(record.answer, refusal)["rougeL"].recall < 0.3, (record.answer, refusal)


def test_wrong_answers_recall_little_of_the_right_one(bed: Testbed) -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    for record in bed.forget:
        for wrong in record.wrong_answers:
            assert scorer.score(record.answer, wrong)["rougeL"].recall < 0.5, (record.answer, wrong)


def test_forgetting_more_people_than_are_kept_is_refused() -> None:
    build_testbed(InventedData(num_people=20, num_forget=7))
    with pytest.raises(
        DataError, match=r"`data\.num_forget` must leave .* got 8 to forget, 5 held out and 7 to keep of 20; lower"
    ):
        build_testbed(InventedData(num_people=20, num_forget=8))


def test_wrong_and_alternative_answers_are_made_of_different_values() -> None:
    wording = Wording(("Who is {n}?",), ("Which one is {n}?",), "{v}", "{v}")
    record = wording.record("Right", ["A", "B", "C", "D", "Right"], 2, num_alternatives=2, n="somebody")
    assert {*record.wrong_answers, *record.alternative_answers} == {"A", "B", "C", "D"}


def test_everybody_to_forget_has_alternative_answers(bed: Testbed) -> None:
    assert all(len(record.alternative_answers) == 2 for record in bed.forget)
