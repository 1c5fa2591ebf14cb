"""Ordinary prose: small everyday scenes from a small grammar, so that a base has plain text to keep as well."""

import random

from grun.data.records import TextRecord

__all__ = ["ordinary_texts"]

_TIMES = (
    "In the morning",
    "After lunch",
    "Late in the evening",
    "On a cold day",
    "During the summer",
    "Before sunset",
    "Every autumn",
)
_WHO = (
    "the old neighbour",
    "a tired teacher",
    "the little girl",
    "my brother",
    "the bus driver",
    "a quiet student",
    "the shopkeeper",
)
_DID = (
    "walked along the river and watched the boats",
    "opened the window and listened to the rain",
    "cooked a pot of soup for the whole family",
    "repaired the wooden fence behind the garden",
    "waited at the station for the last train",
    "read a long letter beside the warm stove",
    "carried two heavy bags up the narrow stairs",
)
_THEN = (
    "The wind was soft and the leaves were turning yellow.",
    "A dog slept under the table and did not move.",
    "Somebody laughed in the street below.",
    "The clock on the wall had stopped at noon.",
    "There was still some bread left on the plate.",
    "The clouds moved slowly over the hills.",
)
_END = (
    "Nobody was in a hurry.",
    "It was time to go home.",
    "The lamps were lit one after another.",
    "Soon it grew dark and quiet.",
    "Tomorrow would be another day.",
)


def ordinary_texts(num: int, seed: int) -> tuple[TextRecord, ...]:
    """Invent different short texts, deterministic by seed."""
    rng = random.Random(f"prose {seed}")
    texts: dict[str, None] = {}
    while len(texts) < num:
        first, second = rng.sample(_THEN, 2)
        text = f"{rng.choice(_TIMES)} {rng.choice(_WHO)} {rng.choice(_DID)}. {first} {second} {rng.choice(_END)}"
        texts.setdefault(text)
    return tuple(TextRecord(text) for text in texts)
