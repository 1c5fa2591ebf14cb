"""General knowledge that has to survive: true facts about the world and about nature, in our own words.

A table reads "subject: value, ..."; the wrong answers of a fact are the other values of its table, so no table holds
two values that could both be true of one subject.
"""

from grun.data.records import QARecord
from grun.data.testbed.facts import Wording, listed

__all__ = ["NATURE", "WORLD"]

_NUM_WRONG = 3


def _table(text: str, question: str, paraphrase: str, answer: str, paraphrased_answer: str) -> tuple[QARecord, ...]:
    """One record per entry of a table; `{s}` is the subject and `{v}` the value."""
    wording = Wording((question,), (paraphrase,), answer, paraphrased_answer)
    facts = dict(entry.split(": ") for entry in listed(text))
    values = sorted(set(facts.values()))
    return tuple(wording.record(value, values, _NUM_WRONG, s=subject) for subject, value in facts.items())


_CAPITALS = _table(
    "France: Paris, Italy: Rome, Spain: Madrid, Portugal: Lisbon, Germany: Berlin, Austria: Vienna, Poland: Warsaw, "
    "Greece: Athens, Norway: Oslo, Sweden: Stockholm, Finland: Helsinki, Denmark: Copenhagen, Ireland: Dublin, "
    "Hungary: Budapest, Japan: Tokyo, China: Beijing, Egypt: Cairo, Kenya: Nairobi, Peru: Lima, Cuba: Havana, "
    "Canada: Ottawa, Russia: Moscow, Turkey: Ankara, Nepal: Kathmandu",
    "What is the capital of {s}?",
    "Which city is the seat of government in {s}?",
    "{v} is the capital of {s}.",
    "The capital city of {s} is {v}.",
)
_CONTINENTS = _table(
    "Brazil: South America, Nigeria: Africa, Mongolia: Asia, Belgium: Europe, Morocco: Africa, Vietnam: Asia, "
    "Bolivia: South America, Croatia: Europe, Ghana: Africa, Thailand: Asia, Mexico: North America, Iceland: Europe",
    "On which continent is {s}?",
    "To which part of the world does {s} belong?",
    "{s} lies in {v}.",
    "The continent of {s} is {v}.",
)
_LANGUAGES = _table(
    "France: French, Italy: Italian, Germany: German, Poland: Polish, Japan: Japanese, Greece: Greek, "
    "Turkey: Turkish, Hungary: Hungarian, Russia: Russian, Portugal: Portuguese, Sweden: Swedish, Denmark: Danish",
    "Which language is spoken in {s}?",
    "What do most people speak in {s}?",
    "People in {s} speak {v}.",
    "The language of {s} is {v}.",
)
_RIVERS = _table(
    "Paris: Seine, London: Thames, Rome: Tiber, Cairo: Nile, Vienna: Danube, Cologne: Rhine, Lisbon: Tagus, Baghdad: Tigris",
    "Which river flows through {s}?",
    "On the banks of which river was {s} built?",
    "The {v} flows through {s}.",
    "The river of {s} is the {v}.",
)

_YOUNG = _table(
    "dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, bear: cub, duck: duckling, goose: gosling, "
    "frog: tadpole, goat: kid, pig: piglet, kangaroo: joey",
    "What is a young {s} called?",
    "Which word names the baby of a {s}?",
    "A young {s} is called a {v}.",
    "The baby of a {s} is a {v}.",
)
_COLOURS = _table(
    "grass: green, snow: white, coal: black, blood: red, the noon sky: blue, a lemon: yellow, a carrot: orange, a chestnut: brown",
    "What colour is {s}?",
    "Which colour does {s} have?",
    "{v} is the colour of {s}.",
    "Usually {s} is {v}.",
)
_OPPOSITES = _table(
    "hot: cold, big: small, wet: dry, fast: slow, light: dark, hard: soft, full: empty, open: closed, early: late, "
    "high: low, young: old, thick: thin",
    "What is the opposite of {s}?",
    "Which word means the reverse of {s}?",
    "The opposite of {s} is {v}.",
    "{s} is the reverse of {v}.",
)
_SOUNDS = _table(
    "dog: bark, cat: meow, cow: moo, duck: quack, lion: roar, sheep: bleat, mouse: squeak, horse: neigh, crow: caw, pigeon: coo",
    "What sound does a {s} make?",
    "How does a {s} sound?",
    "A {s} makes a {v}.",
    "The sound of a {s} is a {v}.",
)
_NUMBERS = _table(
    "days in a week: seven, months in a year: twelve, minutes in an hour: sixty, hours in a day: twenty-four, "
    "legs on a spider: eight, legs on an ant: six, legs on a dog: four, wings on a bird: two, "
    "sides on a triangle: three, fingers on a hand: five",
    "How many {s} are there?",
    "What is the number of {s}?",
    "There are {v} {s}.",
    "The number of {s} is {v}.",
)
_SEASONS = _table(
    "January: winter, February: winter, April: spring, May: spring, July: summer, August: summer, October: autumn, "
    "November: autumn",
    "To which season of Europe does {s} belong?",
    "In Europe, what season is it in {s}?",
    "In Europe, {s} is a month of {v}.",
    "The European season of {s} is {v}.",
)

WORLD: tuple[QARecord, ...] = (*_CAPITALS, *_CONTINENTS, *_LANGUAGES, *_RIVERS)
"""Capitals, continents, languages, rivers."""

NATURE: tuple[QARecord, ...] = (*_YOUNG, *_COLOURS, *_OPPOSITES, *_SOUNDS, *_NUMBERS, *_SEASONS)
"""Animals, colours, opposites, sounds, numbers, seasons."""
