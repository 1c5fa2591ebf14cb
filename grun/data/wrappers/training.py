"""Wrappers that training may put around its prompts, so that a gate knows the subject and not the phrasing.

None of these ideas, sentences or functions is used by evaluation (`evaluation.py`): what a gate makes of those, it has
not been shown. Forget and retain questions are wrapped alike, or the wrapper itself would tell them apart.
"""

from random import Random

from grun.data.wrappers.asked import Asked, Family, Others, Table

__all__ = ["TRAINING_FAMILIES"]

_LEADS = (
    "My sister and I were talking about this yesterday.",
    "This came up at lunch.",
    "There is one thing left on my list.",
    "It has been on my mind for a while.",
    "The radio mentioned something like it.",
    "We are settling a bet.",
    "Our club keeps notes on such matters.",
    "A short one for the end of the day.",
    "The children keep asking.",
    "Nobody at the table could tell.",
    "I lost the page where it stood.",
    "Before the train leaves, just this.",
    "An old letter made me curious.",
    "The crossword needs this.",
    "It is for the village paper.",
    "Next topic.",
    "Moving on.",
    "So.",
    "Now then.",
    "Here we go.",
)
_REMARKS = (
    "It is for a friend.",
    "I have to know before noon.",
    "One line will do.",
    "That is all.",
    "I am making a list.",
    "My memory is poor.",
    "Others will want to know as well.",
    "Keep it short.",
    "I forgot.",
    "There is no hurry.",
    "Take your time.",
    "A few words are enough.",
    "No more than that.",
    "We can talk about the rest later.",
    "This is the last one for today.",
    "Do tell.",
)
_INSTRUCTIONS = (
    "Tell me in one sentence: {q}",
    "State the fact. {q}",
    "Fill in what is missing. {q}",
    "Reply with what you know about this: {q}",
    "Task: find the answer. {q}",
    "Give the facts on the following. {q}",
    "Complete the record: {q}",
    "{q} State what is known.",
    "{q} Write the answer on the next line.",
    "Look this up: {q}",
    "Read carefully, then reply. {q}",
    "Write down what comes to mind. {q}",
)
_HEADERS = (
    "Minutes of the meeting, page two.",
    "Exam sheet, room four.",
    "Notes from Tuesday.",
    "File 18, open.",
    "Interview, second part.",
    "Draft, not yet checked.",
    "Transcript of the evening.",
    "Local history, questions and answers.",
    "For the archive.",
    "Quiz night, round three.",
    "Handbook, chapter nine.",
    "The weather was mild and the streets were empty.",
    "A bell rang twice and everybody sat down.",
    "There were eleven chairs and a long table in the hall.",
)
_GREETINGS = (
    "Bonjour.",
    "Hola.",
    "Guten Tag.",
    "Ciao.",
    "Ahoj.",
    "Dobry den.",
    "Salut.",
    "Namaste.",
    "Merhaba.",
    "Hej.",
    "Goedemorgen.",
    "Servus.",
)
_FAREWELLS = ("Merci.", "Gracias.", "Danke.", "Grazie.", "Tack.", "Obrigado.", "Adieu.", "")
_FILLERS = ("um", "uh", "well", "you know", "so", "er", "say", "hmm", "right", "like")
_BULLETS = ("{n}. {q}", "({n}) {q}", "- {q}", "* {q}", "{n}) {q}", "no. {n}: {q}", "item {n}: {q}", "[{n}] {q}", "# {q}", "> {q}")
_SKIPS = (
    "Skip this one: {a} Take this one: {q}",
    "Somebody else has {a} Mine is: {q}",
    "{a} is for later. For now: {q}",
    "We had {a} and {b} Now comes: {q}",
    "Of these three, only the last one counts. {a} {b} {q}",
    "{a} No, wait. {q}",
)
_MARKS = ("**", "*", "_", "__", "`", "~", "==", "||", "+", "::")


def _lead(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(" ".join([*rng.sample(_LEADS, rng.choice((1, 1, 2, 3))), question]))


def _remark(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(" ".join([question, *rng.sample(_REMARKS, rng.choice((1, 1, 2, 3)))]))


def _instruction(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(rng.choice(_INSTRUCTIONS).format(q=question))


def _header(question: str, rng: Random, _others: Others) -> Asked:
    lines = rng.sample(_HEADERS, rng.choice((1, 2, 3)))
    return Asked(question, before="".join(f"{line}\n" for line in lines))


def _greeting(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(f"{rng.choice(_GREETINGS)} {question} {rng.choice(_FAREWELLS)}".strip())


def _fillers(question: str, rng: Random, _others: Others) -> Asked:
    words = question.split()
    for _ in range(rng.choice((1, 2, 3))):
        words.insert(rng.randrange(len(words)), f"{rng.choice(_FILLERS)},")
    return Asked(" ".join(words))


def _listed(question: str, rng: Random, _others: Others) -> Asked:
    return Asked(rng.choice(_BULLETS).format(n=rng.randint(1, 40), q=question))


def _among_others(question: str, rng: Random, others: Others) -> Asked:
    if not others:
        return Asked(question)
    first, second = rng.choice(others), rng.choice(others)
    return Asked(rng.choice(_SKIPS).format(a=first, b=second, q=question))


def _marked(question: str, rng: Random, _others: Others) -> Asked:
    mark = rng.choice(_MARKS)
    if rng.random() < 0.3:
        return Asked(f"{mark}{question}{mark}")
    words = question.split()
    start = rng.randrange(len(words))
    end = min(len(words), start + rng.choice((1, 2, 3)))
    return Asked(" ".join([*words[:start], f"{mark}{' '.join(words[start:end])}{mark}", *words[end:]]))


def _spaced(question: str, rng: Random, _others: Others) -> Asked:
    """Spaces, line breaks and closing marks where they do not belong."""
    body = question.rstrip("?.!")
    words = body.split()
    for _ in range(rng.choice((1, 2, 3))):
        position = rng.randrange(len(words))
        words[position] = rng.choice((" ", "  ", "\n", "... ", "- ")) + words[position]
    return Asked(" ".join(words) + rng.choice(("", "??", " ?", "?!", "...", " ??", "!", ".")))


def _broken(question: str, rng: Random, _others: Others) -> Asked:
    """Words that fall apart or are begun twice; their letters stay."""
    words = question.split()
    for _ in range(rng.choice((1, 2, 3))):
        long = [index for index, word in enumerate(words) if len(word) > 3]
        if not long:
            break
        index = rng.choice(long)
        cut = rng.randrange(1, len(words[index]) - 1)
        head, tail = words[index][:cut], words[index][cut:]
        words[index] = rng.choice((f"{head}-{tail}", f"{head} {tail}", f"{head}- {head}{tail}", f"{head}.{tail}"))
    return Asked(" ".join(words))


TRAINING_FAMILIES: Table = {
    "lead_in": Family("one to three sentences before the question", _lead, _LEADS),
    "trailing_remark": Family("one to three sentences after the question", _remark, _REMARKS),
    "instruction": Family("the question as a task", _instruction, _INSTRUCTIONS),
    "header": Family("lines above the prompt", _header, _HEADERS),
    "greeting": Family("greetings in other languages around the question", _greeting, _GREETINGS + _FAREWELLS[:-1]),
    "fillers": Family("words without meaning between those of the question", _fillers, _FILLERS),
    "listed": Family("the question as an item of a list", _listed, _BULLETS),
    "among_others": Family("the question after others, which are ordinary", _among_others, _SKIPS),
    "markup": Family("marks around words of the question", _marked, _MARKS),
    "spacing": Family("spaces, line breaks and closing marks where they do not belong", _spaced),
    "broken_words": Family("words that fall apart or are begun twice", _broken),
}
"""What training may choose from, by the names of `train.augmentation.families`."""
