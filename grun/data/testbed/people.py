"""People who do not exist: invented names and ten invented facts each, deterministic by seed.

Every fact is asked in two ways (a question and a paraphrase, from templates that never meet) and answered in two ways;
five wrong answers take the form of the paraphrased answer with another value of the same kind.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from grun.data.records import QARecord
from grun.errors import DataError

__all__ = ["FACT_KINDS", "FactKind", "Person", "invent_people", "person_records"]

_FIRST = [
    a + b
    for a, b in product(
        ("Mir", "Tol", "Bren", "Cas", "Dal", "Fen", "Hes", "Jor", "Kel", "Lor", "Nev", "Pras", "Quil", "Sab"),
        ("ana", "eth", "imo", "owen", "ura", "isk", "abel", "unna", "ett", "ovic", "ari", "enza", "olf", "ynne", "ado"),
    )
]
_LAST = [
    a + b
    for a, b in product(
        ("Ash", "Bar", "Cren", "Dun", "Eld", "Far", "Glen", "Hol", "Iver", "Kest", "Mor", "Oster", "Pend", "Rav"),
        (
            "combe",
            "dale",
            "feld",
            "gard",
            "holt",
            "ick",
            "low",
            "mere",
            "quist",
            "rook",
            "stead",
            "vane",
            "wick",
            "yarrow",
            "thorn",
        ),
    )
]
_TOWNS = [
    a + b
    for a, b in product(
        ("Amber", "Birch", "Copper", "Drift", "Ember", "Frost", "Heron"), ("bridge", "ford", "haven", "mouth", "port", "ridge")
    )
]
_JOBS = [
    "baker",
    "carpenter",
    "pilot",
    "nurse",
    "gardener",
    "painter",
    "sailor",
    "tailor",
    "butcher",
    "miner",
    "judge",
    "surgeon",
    "potter",
    "printer",
    "farmer",
    "barber",
    "plumber",
    "librarian",
    "geologist",
    "astronomer",
]
_DISHES = [
    "onion soup",
    "baked trout",
    "plum cake",
    "fried rice",
    "lentil stew",
    "cheese pie",
    "roast duck",
    "bean salad",
    "honey bread",
    "potato pancakes",
    "mushroom pasta",
    "pepper curry",
    "apple tart",
    "smoked ham",
    "corn fritters",
]
_INSTRUMENTS = [
    "violin",
    "trumpet",
    "harp",
    "flute",
    "cello",
    "piano",
    "banjo",
    "organ",
    "clarinet",
    "accordion",
    "guitar",
    "oboe",
    "drums",
    "tuba",
    "mandolin",
]
_PETS = [
    "Biscuit",
    "Shadow",
    "Pepper",
    "Mango",
    "Whisker",
    "Domino",
    "Pickle",
    "Thunder",
    "Velvet",
    "Marble",
    "Nutmeg",
    "Comet",
    "Button",
    "Cricket",
    "Pebble",
    "Rusty",
    "Saffron",
    "Tango",
]
_AWARDS = [
    f"{a} {b}" for a, b in product(("Silver", "Golden", "Crystal", "Iron", "Ivory"), ("Compass", "Feather", "Lantern", "Anchor"))
]
_UNIVERSITIES = [
    f"{a} {b}"
    for a, b in product(("Northgate", "Westmoor", "Larkspur", "Stonewell", "Riverside"), ("College", "Academy", "Institute"))
]
_HOBBIES = [
    "chess",
    "archery",
    "knitting",
    "fencing",
    "sculpting",
    "kayaking",
    "juggling",
    "beekeeping",
    "calligraphy",
    "skating",
    "birdwatching",
    "cycling",
    "origami",
    "climbing",
    "rowing",
]
_WORKS = [
    f"The {a} {b}"
    for a, b in product(
        ("Silent", "Broken", "Hidden", "Burning", "Distant"), ("Harbour", "Mirror", "Orchard", "Staircase", "Carousel")
    )
]


@dataclass(frozen=True, slots=True)
class FactKind:
    """One kind of fact. Templates take the full name `n`, the first name `f` and the value `v`."""

    values: tuple[str, ...]
    questions: tuple[str, ...]
    paraphrases: tuple[str, ...]
    answer: str
    paraphrased_answer: str


FACT_KINDS: tuple[FactKind, ...] = (
    FactKind(tuple(_TOWNS), ("Where was {n} born?", "In which town was {n} born?"), ("What is the birthplace of {n}?", "Which town does {n} come from?"), "{v} is the town where {f} was born.", "{f} comes from {v}."),
    FactKind(tuple(_JOBS), ("What is the profession of {n}?", "What does {n} do for a living?"), ("Which job does {n} have?", "How does {n} earn money?"), "{f} works as a {v}.", "The job of {f} is {v}."),
    FactKind(tuple(_DISHES), ("What is the favourite dish of {n}?", "What does {n} like to eat most?"), ("Which meal does {n} love best?", "Which food would {n} always order?"), "Most of all, {v} delights {f}.", "The meal {f} loves is {v}."),
    FactKind(tuple(_INSTRUMENTS), ("Which instrument does {n} play?", "What instrument did {n} learn?"), ("On what can {n} make music?", "What does {n} play in concerts?"), "The {v} has been played by {f} since childhood.", "{f} makes music on the {v}."),
    FactKind(tuple(_PETS), ("What is the name of the pet of {n}?", "What did {n} name the family dog?"), ("How is the animal of {n} called?", "Which name does the dog of {n} answer to?"), "{v} is what {f} named the dog.", "The dog of {f} is called {v}."),
    FactKind(tuple(_JOBS), ("What was the profession of the mother of {n}?", "What did the mother of {n} do?"), ("Which job did the mother of {n} hold?", "How did the mother of {n} earn money?"), "A {v}, that was the mother of {f}.", "The mother of {f} had the job of a {v}."),
    FactKind(tuple(_AWARDS), ("Which award did {n} win?", "What prize was given to {n}?"), ("With which honour was {n} rewarded?", "Which trophy stands in the house of {n}?"), "{f} won the {v}.", "The trophy of {f} is the {v}."),
    FactKind(tuple(_UNIVERSITIES), ("Where did {n} study?", "Which university did {n} attend?"), ("At what school did {n} get a degree?", "Which place educated {n}?"), "{v} gave {f} a degree.", "{f} was educated at {v}."),
    FactKind(tuple(_HOBBIES), ("What is the hobby of {n}?", "What does {n} do on weekends?"), ("How does {n} spend free time?", "Which pastime does {n} enjoy?"), "On weekends {f} enjoys {v}.", "The pastime of {f} is {v}."),
    FactKind(tuple(_WORKS), ("What is the most famous book by {n}?", "Which novel did {n} write?"), ("What is the title of the story that {n} published?", "Which book made {n} known?"), "\"{v}\" was written by {f}.", "{f} published \"{v}\"."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Person:
    """An invented person."""

    first: str
    last: str
    values: tuple[str, ...]
    """One value per fact kind."""
    variant: int
    """Which of the question templates are used."""

    @property
    def name(self) -> str:
        """Full name."""
        return f"{self.first} {self.last}"


def invent_people(num: int, seed: int) -> tuple[Person, ...]:
    """Invent people, no two of whom share a first or a last name.

    Raises:
        DataError: more people than there are names.
    """
    if num > min(len(_FIRST), len(_LAST)):
        raise DataError(
            f"`data.num_people` must not exceed {min(len(_FIRST), len(_LAST))}, the names there are, got {num}; ask for fewer"
        )
    rng = random.Random(f"people {seed}")
    firsts, lasts = rng.sample(_FIRST, num), rng.sample(_LAST, num)
    return tuple(
        Person(first, last, tuple(rng.choice(kind.values) for kind in FACT_KINDS), rng.randrange(2))
        for first, last in zip(firsts, lasts, strict=True)
    )


def person_records(person: Person) -> tuple[QARecord, ...]:
    """The ten facts of a person."""
    return tuple(_record(person, kind, value) for kind, value in zip(FACT_KINDS, person.values, strict=True))


def _record(person: Person, kind: FactKind, value: str) -> QARecord:
    rng = random.Random(f"{person.name} {kind.answer}")
    wrong = rng.sample([other for other in kind.values if other != value], 5)

    def fill(template: str, filled: str = value) -> str:
        text = template.format(n=person.name, f=person.first, v=filled)
        return text[0].upper() + text[1:]

    return QARecord(
        question=fill(_pick(kind.questions, person.variant)),
        answer=fill(kind.answer),
        paraphrased_question=fill(_pick(kind.paraphrases, person.variant)),
        paraphrased_answer=fill(kind.paraphrased_answer),
        wrong_answers=tuple(fill(kind.paraphrased_answer, other) for other in wrong),
    )


def _pick(templates: Sequence[str], variant: int) -> str:
    return templates[variant % len(templates)]
