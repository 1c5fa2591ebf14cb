"""Ordinary prose: small everyday scenes from a small grammar, so that a base has plain text to keep as well.

text = time who action. detail detail ending        (action and details belong to one scene)
"""

import random
from dataclasses import dataclass
from itertools import permutations, product

from grun.data.records import TextRecord
from grun.data.testbed.facts import listed

__all__ = ["ordinary_texts"]

_TIMES = listed("In the morning, After lunch, Late in the evening, On a cold day, In the summer, Before sunset, One quiet day")
_WHO = listed("the old neighbour, a tired teacher, the little girl, my brother, the bus driver, a young student, the shopkeeper")
_ENDINGS = (
    "Nobody was in a hurry.",
    "It was time to go home.",
    "The lamps were lit one after another.",
    "Soon it grew dark and quiet.",
    "Tomorrow would be another day.",
)


@dataclass(frozen=True, slots=True)
class _Scene:
    actions: tuple[str, ...]
    details: tuple[str, ...]


_SCENES = (
    _Scene(  # weather
        ("opened the window and listened to the rain", "walked along the river under a grey sky"),
        (
            "The wind was soft and the air smelled of wet stone.",
            "The clouds moved slowly over the hills.",
            "A little later the sun came out again.",
        ),
    ),
    _Scene(  # kitchen
        ("cooked a pot of soup for the whole family", "washed the cups and dried them with a towel"),
        (
            "The stove was warm and the table was clean.",
            "There was still some bread left on the plate.",
            "A cat slept under the chair and did not move.",
        ),
    ),
    _Scene(  # travel
        ("waited at the station for the last train", "carried two heavy bags up the narrow stairs"),
        (
            "The clock on the wall had stopped at noon.",
            "Some children laughed and waved from a bridge.",
            "The road to the coast was long and straight.",
        ),
    ),
    _Scene(  # garden
        ("repaired the wooden fence behind the garden", "picked a basket of ripe apples from the tree"),
        (
            "The leaves were turning yellow and the soil was dry.",
            "A small bird sat on the roof and sang.",
            "Next to the gate stood a row of empty pots.",
        ),
    ),
)


def ordinary_texts(num: int, seed: int) -> tuple[TextRecord, ...]:
    """Invent `num` different texts of 25 to 45 words, deterministic by seed.

    Raises:
        ValueError: more texts than the grammar has.
    """
    texts = [
        f"{time} {who} {action}. {first} {second} {ending}"
        for scene in _SCENES
        for (first, second) in permutations(scene.details, 2)
        for time, who, action, ending in product(_TIMES, _WHO, scene.actions, _ENDINGS)
    ]
    return tuple(TextRecord(text) for text in random.Random(f"prose {seed}").sample(texts, num))
