# ruff: noqa: E501
"""The kinds of problems that training never sees: other stories, and numbers that reach higher.

Each takes two names and a thing, and gives a question, the steps, the answer.
"""

from random import Random


def change(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """The change from a note."""
    n, price = rng.randint(3, 9), rng.randint(2, 16)
    note = next(note for note in (20, 50, 100, 200) if note > n * price)
    question = f"{one} pays for {n} {things} at ${price} each with a ${note} bill. How much change does {one} get back?"
    cost = n * price
    return (
        question,
        f"{n} * {price} = {cost}\n{note} - {cost} = {note - cost}",
        note - cost,
    )


def reading(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Pages that remain, over days."""
    days, each, read = rng.randint(3, 9), rng.randint(11, 32), rng.randint(20, 90)
    pages = days * each + read
    question = f"{one} is reading a book of {pages} pages and has finished {read} of them. How many pages a day must {one} read to finish it in {days} days?"
    left = pages - read
    return (
        question,
        f"{pages} - {read} = {left}\n{left} / {days} = {each}",
        each,
    )


def fenced(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A perimeter."""
    a, b = rng.randint(9, 70), rng.randint(5, 45)
    question = f"{one}'s garden is {a} meters long and {b} meters wide. How many meters of fence go around it?"
    return (
        question,
        f"{a} + {b} = {a + b}\n2 * {a + b} = {2 * (a + b)}",
        2 * (a + b),
    )


def three_added(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Three bare numbers."""
    a, b, c = rng.randint(30, 230), rng.randint(11, 120), rng.randint(5, 40)
    return (
        f"Work out {a} + {b} - {c}.",
        f"{a} + {b} = {a + b}\n{a + b} - {c} = {a + b - c}",
        a + b - c,
    )


def team_scores(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Points from two kinds of hits."""
    twos, threes = rng.randint(6, 28), rng.randint(3, 17)
    question = f"In the game {one} made {twos} shots worth 2 points and {threes} shots worth 3 points. How many points did {one} score?"
    a, b = 2 * twos, 3 * threes
    return (
        question,
        f"2 * {twos} = {a}\n3 * {threes} = {b}\n{a} + {b} = {a + b}",
        a + b,
    )


def wages(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """The difference between two wages."""
    hours = rng.randint(4, 12)
    low, more = rng.randint(9, 22), rng.randint(2, 9)
    question = f"{one} earns ${low + more} an hour and {two} earns ${low} an hour. Both work {hours} hours. How much more does {one} earn than {two}?"
    a, b = (low + more) * hours, low * hours
    return (
        question,
        f"{low + more} * {hours} = {a}\n{low} * {hours} = {b}\n{a} - {b} = {a - b}",
        a - b,
    )


def recovered(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Ask for the number at the start."""
    gone, bought, now = rng.randint(8, 70), rng.randint(5, 40), rng.randint(45, 160)
    question = f"{one} gave away {gone} {things}, then bought {bought}, and now has {now}. How many {things} were there at the start?"
    before = now - bought
    return (
        question,
        f"{now} - {bought} = {before}\n{before} + {gone} = {before + gone}",
        before + gone,
    )


KINDS = (
    change, reading, fenced, three_added, team_scores, wages, recovered,
)  # fmt: skip
