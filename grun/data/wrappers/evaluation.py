"""Wrappers that evaluation puts around prompts: format shifts that no training has seen.

Nothing here may be used, or borrowed from, by training (`training.py`).
"""

from random import Random

from grun.data.wrappers.asked import Asked, Family, Others, Table

__all__ = ["EVALUATION_FAMILIES"]

_TURNS = (
    ("How are you?", "I am fine."),
    ("Can you help me?", "Yes, I can help you."),
    ("Is it raining?", "No, the sky is clear."),
    ("What day is it?", "It is a Monday."),
    ("Are you awake?", "Yes, always."),
    ("How many eggs are in a dozen?", "There are twelve."),
    ("Do fish swim?", "Yes, fish swim."),
    ("Which is larger, a mouse or a horse?", "A horse is larger."),
    ("What do bees make?", "Bees make honey."),
    ("Where does the sun rise?", "The sun rises in the east."),
)
_FRAMES = (
    "Q: {q}\nA:",
    "User: {q}\nAssistant:",
    "{q}",
    "{q}\n",
    "Human: {q}\n\nAI:",
    "### Instruction:\n{q}\n\n### Response:",
    "[INST] {q} [/INST]",
    "Interviewer: {q}\nGuest:",
)
_PASSAGES = (
    (
        "The library closes at nine, and the last visitors were putting on their coats. One of them turned to the desk.",
        "The clerk looked up and thought about it.",
    ),
    (
        "Snow had been falling since morning. In the waiting room two men passed the time with riddles. The taller one began.",
        "The other one leaned back in his seat.",
    ),
    (
        "Some years ago a box of postcards turned up in an attic. On the back of most of them there was nothing. One had a line in pencil.",
        "Whoever wrote it did not sign.",
    ),
    (
        "The ferry was late again. While they waited, the guide handed round biscuits and went through the programme of the tour.",
        "Then the gates were opened.",
    ),
)
_QUOTED = (
    '"{q}"',
    "'{q}'",
    "\u201c{q}\u201d",
    'She asked: "{q}"',
    '"{q}", he said.',
    'The note reads "{q}"',
    'Please respond to the quote: "{q}"',
)
_POLITE_PREFIXES = (
    "Please, if you would be so kind:",
    "Excuse me, may I ask you something?",
    "Would you mind telling me this?",
    "I hope that I do not disturb you.",
    "Dear assistant, I would be grateful for your help.",
    "Forgive me for asking.",
    "With all due respect,",
    "Could you please help me with this?",
)
_POLITE_SUFFIXES = (
    "Thank you very much in advance!",
    "Thanks a lot.",
    "I would really appreciate it.",
    "You are very kind.",
    "Many thanks and best wishes.",
    "If it is not too much trouble, please.",
    "Thank you, and have a nice day.",
    "Your help means a great deal to me.",
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS_PER_TYPO = 5


def _chat_turns(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(question, turns=tuple(rng.sample(_TURNS, rng.choice((1, 2, 3)))))


def _other_template(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(question, frame=rng.choice(_FRAMES))


def _longer_text(question: str, rng: Random, _others: Others) -> Asked:
    before, after = rng.choice(_PASSAGES)
    return Asked(f"{before} {question} {after}" if rng.random() < 0.5 else f"{before} {question}")


def _quotation(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(rng.choice(_QUOTED).format(q=question))


def _typos(question: str, rng: Random, _others: Others) -> Asked:
    """One slip in about five words: two letters swapped, one left out, or a wrong one."""
    words = question.split()
    for _ in range(max(1, len(words) // _WORDS_PER_TYPO)):
        long = [index for index, word in enumerate(words) if sum(letter.isalpha() for letter in word) > 3]
        if not long:
            break
        index = rng.choice(long)
        word, at = words[index], rng.randrange(1, len(words[index]) - 1)
        words[index] = rng.choice(
            (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at + 1 :],
                word[:at] + rng.choice(_LETTERS) + word[at + 1 :],
            )
        )
    return Asked(" ".join(words))


def _casing(question: str, rng: Random, _others: Others) -> Asked:
    alternate = "".join(letter.upper() if index % 2 else letter.lower() for index, letter in enumerate(question))
    return Asked(rng.choice((question.upper(), question.lower(), question.title(), question.swapcase(), alternate)))


def _polite_prefix(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(f"{rng.choice(_POLITE_PREFIXES)} {question}")


def _polite_suffix(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(f"{question} {rng.choice(_POLITE_SUFFIXES)}")


EVALUATION_FAMILIES: Table = {
    "chat_turns": Family("one to three turns of small talk before the question", _chat_turns, tuple(" ".join(t) for t in _TURNS)),
    "other_template": Family("another prompt template, or none", _other_template, _FRAMES),
    "longer_text": Family("the question inside a longer text", _longer_text, tuple(text for pair in _PASSAGES for text in pair)),
    "quotation": Family("the question as a quotation", _quotation, _QUOTED),
    "typos": Family("letters swapped, left out or wrong, about one in five words", _typos),
    "casing": Family("capital and small letters where they do not belong", _casing),
    "politeness_prefix": Family("a polite phrase before the question", _polite_prefix, _POLITE_PREFIXES),
    "politeness_suffix": Family("a polite phrase after the question", _polite_suffix, _POLITE_SUFFIXES),
}
"""The format shifts of evaluation, by name."""
