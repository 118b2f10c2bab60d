"""Arithmetic: sums and word problems, drawn by a seeded program, answered by equations.

Training and held-out texts share no kind of problem, no names, no things and no seed, and the
held-out numbers reach higher.
"""

from random import Random

from . import Text, problems, problems_held_out

NAMES = (
    "Ada", "Amir", "Bea", "Ben", "Carla", "Chen", "Dario", "Dina", "Elif", "Emil", "Fatou", "Finn",
    "Greta", "Hugo", "Ines", "Ivan", "Jonas", "Kofi", "Lena", "Mateo", "Nadia", "Omar", "Petra",
    "Ravi", "Selma", "Tariq", "Una", "Viktor", "Wanda", "Yuki",
)  # fmt: skip
THINGS = (
    "apples", "beads", "books", "buttons", "candles", "cards", "coins", "cookies", "eggs",
    "flowers", "keys", "lemons", "marbles", "mugs", "notebooks", "oranges", "pencils", "plums",
    "postcards", "rolls", "seeds", "shells", "spoons", "stamps", "stickers", "stones", "tickets",
    "toys",
)  # fmt: skip
HELD_OUT_NAMES = (
    "Aisha",
    "Bruno",
    "Clara",
    "Diego",
    "Esther",
    "Farid",
    "Gloria",
    "Henrik",
    "Irene",
)
HELD_OUT_THINGS = ("balloons", "bricks", "crayons", "figs", "kites", "lamps", "medals", "walnuts")


def texts(count: int, held_out: bool) -> list[Text]:
    """Return `count` different problems: for training, or such as training never sees."""
    rng = Random("arithmetic held out" if held_out else "arithmetic")
    kinds = problems_held_out.KINDS if held_out else problems.KINDS
    names = HELD_OUT_NAMES if held_out else NAMES
    things = HELD_OUT_THINGS if held_out else THINGS
    found: dict[str, Text] = {}
    while len(found) < count:
        one, two = rng.sample(names, 2)
        question, steps, answer = rng.choice(kinds)(rng, one, two, rng.choice(things))
        found[question] = Text(question, f"{steps}\nThe answer is {answer}.")
    return list(found.values())
