"""Conversation: short, helpful answers to greetings, questions and requests, made of written rows.

Training and held-out texts share no row of `conversation.txt`, no way of asking except in
greetings, and no names; two kinds of request (advice, differences) are held out whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from . import Text

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Anna", "Boris", "Celine", "David", "Elena", "Frank", "Gita", "Hassan", "Ingrid")
PEOPLE = ("a friend", "my aunt", "a colleague", "my neighbor", "my boss", "a customer")
HELD_OUT_NAMES = ("Jamal", "Kira", "Luis")
HELD_OUT_PEOPLE = ("my uncle", "a classmate")

Row = list[str]
Maker = Callable[[Random, Row, str, str], tuple[Row, str]]


# A maker takes a row, a name and a person, and gives what fills the question, and the answer.


def told(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """The row's second cell is the answer to its first."""
    return row, row[1]


def undone(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """The row's first cell is the answer to its second."""
    return row[1:], row[0]


def explained(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """Two sentences about a thing."""
    return row, f"{row[1]}. {row[2]}."


def explained_briefly(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """One sentence about a thing."""
    return row, f"{row[1]}."


def in_steps(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """A numbered list of steps."""
    return row, "\n".join(f"{i}. {step}." for i, step in enumerate(row[1:], 1))


def listed(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """Some of the things that a row names, one a line."""
    word, things = some(rng, row)
    return [row[0], word], "\n".join(f"- {thing}" for thing in things)


def in_a_sentence(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """Some of the things that a row names, in one sentence."""
    word, things = some(rng, row)
    joined = f"{', '.join(things[:-1])} and {things[-1]}"
    return [row[0], word], f"{word.capitalize()} {row[0]} are {joined}."


def some(rng: Random, row: Row) -> tuple[str, Row]:
    """Return a number as a word, and so many of the row's things in their order."""
    number, word = rng.choice(((3, "three"), (4, "four"), (5, "five")))
    things = row[1].split(", ")
    return word, [things[i] for i in sorted(rng.sample(range(len(things)), number))]


def in_a_word(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """The first word of the answer only."""
    return row, row[1].partition(" ")[0]


def same_meaning(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """A synonym."""
    return row, f'Another word for "{row[0]}" is "{row[1]}".'


def other_meaning(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """An opposite."""
    return row, f'The opposite of "{row[0]}" is "{row[2]}".'


def written(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """A short message between a greeting and a farewell."""
    return [row[0], person, name], f"Dear {name},\n{row[1]}\nBest wishes"


def extracted(rng: Random, row: Row, name: str, person: str) -> tuple[Row, str]:
    """A name and a day, to be found in a sentence."""
    day = rng.choice(DAYS)
    return [row[0].format(name, day)], f"Person: {name}\nDay: {day}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: the section of rows, how it is asked in training and after, the answer."""

    section: str
    make: Maker
    asked: tuple[str, ...]
    asked_held_out: tuple[str, ...]


KINDS = (
    Kind("greeting", told, ("{0}",), ("{0}",)),
    Kind(
        "explain",
        explained,
        (
            "What is {0}?", "Explain {0} in simple words.", "Can you tell me about {0}?",
            "I keep hearing about {0}. What does it mean?", "How would you explain {0} to a child?",
        ),
        ("Please describe {0}.", "What should I know about {0}?"),
    ),
    Kind(
        "explain",
        explained_briefly,
        ("Explain {0} in one sentence.", "In one sentence, what is {0}?", "Define {0} briefly."),
        ("Tell me about {0}, but use only one sentence.",),
    ),
    Kind(
        "steps",
        in_steps,
        (
            "How do I {0}?", "Give me three steps to {0}.", "I'd like to {0}. Where do I start?",
            "What is the best way to {0}?",
        ),
        ("Tell me how to {0}.", "Please help me to {0}."),
    ),
    Kind(
        "list",
        listed,
        ("Name {1} {0}.", "List {1} {0}.", "Can you give me {1} examples of {0}?"),
        ("I need {1} {0}.", "Which {0} come to your mind? Give me {1}."),
    ),
    Kind(
        "list",
        in_a_sentence,
        ("Name {1} {0} in one sentence.", "Write a sentence with {1} {0}."),
        ("Answer in a sentence: what are {1} {0}?",),
    ),
    Kind(
        "polite",
        told,
        (
            'Rewrite this politely: "{0}"', "Make this sentence more polite: {0}",
            'How can I say "{0}" in a friendlier way?',
        ),
        ("{0} - please put this more kindly.", "What is a nicer way to say: {0}"),
    ),
    Kind(
        "polite",
        undone,
        ("Say this more directly: {0}", 'Make this blunt and short: "{0}"'),
        ("How would a rude person say this? {0}",),
    ),
    Kind(
        "grammar",
        told,
        (
            "Correct the grammar: {0}", 'Is this sentence right? "{0}"',
            "Fix the mistake in this sentence: {0}",
        ),
        ("Please check this sentence for errors: {0}", "{0} Did I write that correctly?"),
    ),
    Kind(
        "shorten",
        told,
        (
            "Shorten this sentence: {0}", "Say this in fewer words: {0}",
            'Make this shorter: "{0}"',
        ),
        ("Please summarize: {0}", "Cut this down to what matters: {0}"),
    ),
    Kind(
        "sentiment",
        told,
        (
            'Is this review positive or negative? "{0}"', "What is the mood of this sentence? {0}",
            "Classify as positive or negative, with a reason: {0}",
        ),
        ('A customer wrote: "{0}" Was the customer content?', "Good or bad review? {0}"),
    ),
    Kind(
        "sentiment",
        in_a_word,
        ("Positive or negative? Answer in one word: {0}", 'One word for the mood of "{0}"'),
        ("Label this as positive or negative without a reason: {0}",),
    ),
    Kind(
        "fact",
        told,
        ("{0}", "Quick question: {0}", "Do you know this? {0}"),
        ("Please answer: {0}", "My daughter asks: {0}"),
    ),
    Kind(
        "word",
        same_meaning,
        ('What is another word for "{0}"?', 'Give me a synonym of "{0}".'),
        ('Which word means the same as "{0}"?', 'I am looking for a synonym of "{0}".'),
    ),
    Kind(
        "word",
        other_meaning,
        ('What is the opposite of "{0}"?', 'Give me the antonym of "{0}".'),
        ('Which word means the contrary of "{0}"?',),
    ),
    Kind(
        "occasion",
        written,
        (
            "Write a short message to {1} about {0}. The name is {2}.",
            "What could I write to {2}, {1}, on the occasion of {0}?",
            "Help me with a short note to {1}, {2}. It is about {0}.",
        ),
        ("Please draft a few friendly lines for {2}, who is {1}. The subject is {0}.",),
    ),
    Kind(
        "event",
        extracted,
        (
            "Who is this about, and when does it happen? {0}",
            "Find the person and the day in this sentence: {0}",
        ),
        ("Read this and tell me the name and the day: {0}",),
    ),
    Kind("advice", told, (), ("{0} What should I do?", "{0} Do you have any advice?")),
    Kind(
        "difference",
        told,
        (),
        ("What is the difference between {0}?", "How do {0} differ?"),
    ),
)  # fmt: skip


def texts(count: int, held_out: bool) -> list[Text]:
    """Return `count` different exchanges: for training, or such as training never sees."""
    rng = Random("conversation held out" if held_out else "conversation")
    names = HELD_OUT_NAMES if held_out else NAMES
    people = HELD_OUT_PEOPLE if held_out else PEOPLE
    sections = read()
    kinds = [kind for kind in KINDS if held_out or kind.asked]
    found: dict[Text, None] = {}
    while len(found) < count:
        kind = rng.choice(kinds)
        rows = side(sections[kind.section], held_out, whole=not kind.asked)
        filling, answer = kind.make(rng, rng.choice(rows), rng.choice(names), rng.choice(people))
        asked = kind.asked_held_out if held_out else kind.asked
        found[Text(rng.choice(asked).format(*filling), answer)] = None
    return list(found)


def read() -> dict[str, list[Row]]:
    """Return the rows of each section of `conversation.txt`."""
    sections: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for line in Path(__file__).with_suffix(".txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            rows = sections.setdefault(line.strip("[]*"), [])
        elif line and not line.startswith("#"):
            rows.append([cell.strip() for cell in line.split("|")])
    return sections


def side(rows: list[Row], held_out: bool, whole: bool) -> list[Row]:
    """Return the rows on one side of the split: every sixth is held out, or all of them."""
    return [row for i, row in enumerate(rows) if whole or (i % 6 == 5) == held_out]
