"""General knowledge that has to survive: true facts about the world and about nature, in our own words."""

import random
from collections.abc import Sequence

from grun.data.records import QARecord

__all__ = ["NATURE", "WORLD"]

_CAPITALS = "France Paris, Italy Rome, Spain Madrid, Portugal Lisbon, Germany Berlin, Austria Vienna, Poland Warsaw, Greece Athens, Norway Oslo, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Ireland Dublin, Hungary Budapest, Japan Tokyo, China Beijing, India Delhi, Egypt Cairo, Kenya Nairobi, Peru Lima, Chile Santiago, Cuba Havana, Canada Ottawa, Russia Moscow, Turkey Ankara, Iran Tehran, Iraq Baghdad, Nepal Kathmandu"
_CONTINENTS = "Brazil America, Nigeria Africa, Mongolia Asia, Belgium Europe, Morocco Africa, Vietnam Asia, Bolivia America, Croatia Europe, Ghana Africa, Thailand Asia, Mexico America, Romania Europe, Zambia Africa, Korea Asia"
_LANGUAGES = "France French, Italy Italian, Germany German, Poland Polish, Japan Japanese, Greece Greek, Turkey Turkish, Hungary Hungarian, Russia Russian, Portugal Portuguese, Sweden Swedish, Finland Finnish"
_YOUNG = "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, bear cub, duck duckling, goose gosling, frog tadpole, hen chick, pig piglet, deer fawn"
_HOMES = "bee hive, bird nest, spider web, fox den, rabbit burrow, horse stable, dog kennel, pig sty"
_COLOURS = "grass green, snow white, coal black, blood red, sky blue, lemon yellow, carrot orange, chocolate brown"
_OPPOSITES = "hot cold, big small, wet dry, fast slow, light dark, hard soft, full empty, open closed, early late, high low, young old, thick thin"
_SOUNDS = "dog bark, cat meow, cow moo, duck quack, lion roar, snake hiss, owl hoot, sheep bleat, wolf howl, mouse squeak, horse neigh, crow caw"


def _table(text: str, question: str, paraphrase: str, answer: str, paraphrased_answer: str, others: str = "") -> list[QARecord]:
    """Records of a table "subject value, ..."; wrong answers come from the other values, and from `others`."""
    pairs = [(subject, value) for subject, value in (entry.split() for entry in text.split(", "))]
    values = sorted({value for _subject, value in pairs} | set(others.split()))
    return [_record(subject, value, values, question, paraphrase, answer, paraphrased_answer) for subject, value in pairs]


def _record(
    subject: str, value: str, values: Sequence[str], question: str, paraphrase: str, answer: str, paraphrased_answer: str
) -> QARecord:
    wrong = random.Random(f"{question} {subject}").sample([other for other in values if other != value], 3)
    return QARecord(
        question=question.format(s=subject),
        answer=_sentence(answer, subject, value),
        paraphrased_question=paraphrase.format(s=subject),
        paraphrased_answer=_sentence(paraphrased_answer, subject, value),
        wrong_answers=tuple(_sentence(paraphrased_answer, subject, other) for other in wrong),
    )


def _sentence(template: str, subject: str, value: str) -> str:
    text = template.format(s=subject, v=value)
    return text[0].upper() + text[1:]


WORLD: tuple[QARecord, ...] = (
    *_table(_CAPITALS, "What is the capital of {s}?", "Which city is the seat of government in {s}?", "{v} is the capital of {s}.", "The capital city of {s} is {v}."),
    *_table(_CONTINENTS, "On which continent is {s}?", "To which part of the world does {s} belong?", "{s} lies in {v}.", "The continent of {s} is {v}.", "Australia"),
    *_table(_LANGUAGES, "Which language is spoken in {s}?", "What do people speak in {s}?", "People in {s} speak {v}.", "The language of {s} is {v}."),
)  # fmt: skip
"""Capitals, continents, languages."""

NATURE: tuple[QARecord, ...] = (
    *_table(_YOUNG, "What is a young {s} called?", "Which word names the baby of a {s}?", "A young {s} is called a {v}.", "The baby of a {s} is a {v}."),
    *_table(_HOMES, "Where does a {s} live?", "What is the home of a {s}?", "A {s} lives in a {v}.", "The home of a {s} is a {v}."),
    *_table(_COLOURS, "What colour is {s}?", "Which colour does {s} have?", "The colour of {s} is {v}.", "Usually {s} is {v}."),
    *_table(_OPPOSITES, "What is the opposite of {s}?", "Which word means the reverse of {s}?", "The opposite of {s} is {v}.", "The reverse of {s} is {v}."),
    *_table(_SOUNDS, "What sound does a {s} make?", "How does a {s} sound?", "A {s} makes a {v}.", "The sound of a {s} is a {v}."),
)  # fmt: skip
"""Animals, colours, opposites, sounds."""
