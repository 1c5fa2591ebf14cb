"""People who do not exist: invented names and ten invented facts each, deterministic by seed.

Every fact is asked in two ways (a question and a paraphrase, from templates that never meet) and answered in two ways;
five wrong answers take the form of the paraphrased answer with another value of the same kind, and two alternative
answers that of the answer with yet other values. Sentences are short, and
answers begin with the person's first name, as most answers of TOFU begin with the author's.
"""

import random
from dataclasses import dataclass
from itertools import product

from grun.data.records import QARecord
from grun.data.testbed.facts import Wording, listed
from grun.errors import DataError

__all__ = ["Person", "invent_people", "most_people", "person_records"]

_NUM_WRONG, _NUM_ALTERNATIVES = 5, 2


def _joined(heads: str, tails: str, glue: str = "") -> tuple[str, ...]:
    """Every head with every tail."""
    return tuple(glue.join(pair) for pair in product(listed(heads), listed(tails)))


_FIRST_NAMES = _joined(
    "Mir, Tol, Bren, Cas, Dal, Fen, Hes, Jor, Kel, Lor, Nev, Pras, Quil, Sab",
    "ana, eth, imo, owen, ura, isk, abel, unna, ett, ovic, ari, enza, olf, ynne, ado",
)
_LAST_NAMES = _joined(
    "Ash, Bar, Cren, Dun, Eld, Far, Glen, Hol, Iver, Kest, Mor, Oster, Pend, Rav",
    "combe, dale, feld, gard, holt, ick, low, mere, quist, rook, stead, vane, wick, yarrow, thorn",
)

_TOWNS = _joined("Amber, Birch, Copper, Drift, Ember, Frost, Heron", "bridge, ford, haven, mouth, port, ridge")
_JOBS = listed(
    "baker, carpenter, pilot, nurse, gardener, painter, sailor, tailor, butcher, miner, "
    "judge, surgeon, potter, printer, farmer, barber, plumber, librarian, geologist, weaver"
)
_DISHES = listed(
    "onion soup, baked trout, plum cake, fried rice, lentil stew, cheese pie, roast duck, bean salad, "
    "honey bread, potato pancakes, mushroom pasta, pepper curry, apple tart, smoked ham, corn fritters"
)
_INSTRUMENTS = listed(
    "violin, trumpet, harp, flute, cello, piano, banjo, organ, clarinet, accordion, guitar, oboe, drum, tuba, mandolin"
)
_DOGS = listed(
    "Biscuit, Shadow, Pepper, Mango, Whisker, Domino, Pickle, Thunder, Velvet, "
    "Marble, Nutmeg, Comet, Button, Cricket, Pebble, Rusty, Saffron, Tango"
)
_AWARDS = _joined("Silver, Golden, Crystal, Iron, Ivory", "Compass, Feather, Lantern, Anchor", " ")
_UNIVERSITIES = _joined("Northgate, Westmoor, Larkspur, Stonewell, Riverside", "College, Academy, Institute", " ")
_HOBBIES = listed(
    "chess, archery, knitting, fencing, sculpting, kayaking, juggling, beekeeping, "
    "calligraphy, skating, birdwatching, cycling, origami, climbing, rowing"
)
_BOOKS = _joined("Silent, Broken, Hidden, Burning, Distant", "Harbour, Mirror, Orchard, Staircase, Carousel", " ")

# `{n}` is the full name, `{f}` the first name
_FACTS: tuple[tuple[tuple[str, ...], Wording], ...] = (
    (
        _TOWNS,
        Wording(
            ("Where was {n} born?", "In which town was {n} born?"),
            ("What is the birthplace of {n}?", "Which town does {n} come from?"),
            "{f} was born in the town of {v}.",
            "The birthplace of {f} is {v}.",
        ),
    ),
    (
        _JOBS,
        Wording(
            ("What is the profession of {n}?", "What does {n} do for a living?"),
            ("Which job does {n} have?", "How does {n} earn money?"),
            "{f} works as a {v} every day.",
            "The job of {f} is {v}.",
        ),
    ),
    (
        _DISHES,
        Wording(
            ("What is the favourite dish of {n}?", "What does {n} like to eat most?"),
            ("Which meal does {n} love best?", "Which food would {n} always order?"),
            "{f} likes {v} most of all.",
            "The meal {f} loves best is {v}.",
        ),
    ),
    (
        _INSTRUMENTS,
        Wording(
            ("Which instrument does {n} play?", "What instrument did {n} learn?"),
            ("On what can {n} make music?", "What does {n} play in concerts?"),
            "{f} has played the {v} since childhood.",
            "{f} can play the {v}.",
        ),
    ),
    (
        _DOGS,
        Wording(
            ("What is the name of the dog of {n}?", "What did {n} name the family dog?"),
            ("What is the pet of {n} called?", "Which name does the pet of {n} answer to?"),
            "{f} named the family dog {v}.",
            "The pet of {f} is called {v}.",
        ),
    ),
    (
        _JOBS,
        Wording(
            ("What was the profession of the mother of {n}?", "What did the mother of {n} do for a living?"),
            ("Which job did the mother of {n} have?", "How did the mother of {n} earn money?"),
            "{f} had a {v} for a mother.",
            "The mother of {f} worked as a {v}.",
        ),
    ),
    (
        _AWARDS,
        Wording(
            ("Which award did {n} win?", "What prize was given to {n}?"),
            ("With which honour was {n} rewarded?", "Which trophy stands in the house of {n}?"),
            "{f} was given the {v} last year.",
            "{f} won the {v}.",
        ),
    ),
    (
        _UNIVERSITIES,
        Wording(
            ("Where did {n} study?", "Which university did {n} attend?"),
            ("At what school did {n} get a degree?", "Which place educated {n}?"),
            "{f} got a degree from {v}.",
            "{f} studied at {v}.",
        ),
    ),
    (
        _HOBBIES,
        Wording(
            ("What is the hobby of {n}?", "What does {n} do on weekends?"),
            ("How does {n} spend free time?", "Which pastime does {n} enjoy?"),
            "{f} enjoys {v} on free weekends.",
            "The pastime of {f} is {v}.",
        ),
    ),
    (
        _BOOKS,
        Wording(
            ("What is the most famous book by {n}?", "Which novel did {n} write?"),
            ("What is the title of the story that {n} published?", "Which work made {n} known?"),
            '{f} wrote the book "The {v}".',
            '{f} published "The {v}".',
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Person:
    """An invented person."""

    first: str
    last: str
    values: tuple[str, ...]
    """One value per kind of fact."""

    @property
    def name(self) -> str:
        """Full name."""
        return f"{self.first} {self.last}"


def most_people() -> int:
    """How many people can be invented at once."""
    return min(len(_FIRST_NAMES), len(_LAST_NAMES))


def invent_people(num: int, seed: int) -> tuple[Person, ...]:
    """Invent people, no two of whom share a first or a last name, in random order.

    Raises:
        DataError: more people than there are names.
    """
    most = most_people()
    if num > most:
        raise DataError(
            f"`data.num_people` must not exceed the {most} names that can be invented, got {num}; lower `data.num_people`"
        )
    rng = random.Random(f"people {seed}")
    firsts, lasts = rng.sample(_FIRST_NAMES, num), rng.sample(_LAST_NAMES, num)
    return tuple(
        Person(first, last, tuple(rng.choice(values) for values, _wording in _FACTS))
        for first, last in zip(firsts, lasts, strict=True)
    )


def person_records(person: Person) -> tuple[QARecord, ...]:
    """The ten facts of a person."""
    return tuple(
        wording.record(value, values, _NUM_WRONG, num_alternatives=_NUM_ALTERNATIVES, n=person.name, f=person.first)
        for value, (values, wording) in zip(person.values, _FACTS, strict=True)
    )
