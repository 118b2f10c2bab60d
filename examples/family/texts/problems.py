# ruff: noqa: E501
"""The kinds of problems that training sees.

Each takes two names and a thing, and gives a question, the steps, the answer.
"""

from random import Random


def added(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A bare sum."""
    a, b = rng.randint(2, 199), rng.randint(2, 99)
    ask = rng.choice(
        ("What is {} + {}?", "Calculate {} + {}.", "{} plus {} is how much?", "{} + {} =")
    )
    return ask.format(a, b), f"{a} + {b} = {a + b}", a + b


def subtracted(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A bare difference."""
    b = rng.randint(2, 99)
    a = b + rng.randint(1, 120)
    ask = rng.choice(
        ("What is {} - {}?", "Calculate {} - {}.", "What is {} minus {}?", "{} - {} =")
    )
    return ask.format(a, b), f"{a} - {b} = {a - b}", a - b


def multiplied(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A bare product."""
    a, b = rng.randint(2, 12), rng.randint(2, 30)
    ask = rng.choice(
        ("What is {} * {}?", "Calculate {} times {}.", "Multiply {} by {}.", "{} * {} =")
    )
    return ask.format(a, b), f"{a} * {b} = {a * b}", a * b


def divided(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A bare quotient without a remainder."""
    b, c = rng.randint(2, 12), rng.randint(2, 20)
    ask = rng.choice(("What is {} / {}?", "Divide {} by {}.", "Calculate {} / {}."))
    return ask.format(b * c, b), f"{b * c} / {b} = {c}", c


def given_away(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Some are given to another."""
    a, b = rng.randint(20, 99), rng.randint(2, 19)
    question = rng.choice((
        f"{one} has {a} {things} and gives {b} of them to {two}. How many {things} does {one} have left?",
        f"{one} had {a} {things}. {two} took {b} of them. How many are left?",
        f"There were {a} {things} in the box until {one} took out {b}. How many {things} are still there?",
    ))  # fmt: skip
    return question, f"{a} - {b} = {a - b}", a - b


def found_more(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Two amounts come together, then some are lost."""
    a, b = rng.randint(10, 80), rng.randint(5, 40)
    c = rng.randint(2, 14)
    question = rng.choice((
        f"{one} has {a} {things}, buys {b} more and loses {c}. How many {things} does {one} have now?",
        f"{one} collected {a} {things} in May and {b} in June, then gave {c} to {two}. "
        f"How many {things} does {one} still have?",
    ))  # fmt: skip
    steps = f"{a} + {b} = {a + b}\n{a + b} - {c} = {a + b - c}"
    return question, steps, a + b - c


def together(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Another has some more; how many in all."""
    a, more = rng.randint(5, 60), rng.randint(2, 30)
    question = rng.choice((
        f"{one} has {a} {things}. {two} has {more} more than {one}. How many {things} do they have together?",
        f"{two} owns {more} {things} more than {one}, who owns {a}. How many {things} do the two own in total?",
    ))  # fmt: skip
    b = a + more
    return (
        question,
        f"{a} + {more} = {b}\n{a} + {b} = {a + b}",
        a + b,
    )


def fewer(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Another has some fewer; how many has that one."""
    less, rest = rng.randint(2, 30), rng.randint(3, 60)
    a = less + rest
    question = rng.choice((
        f"{one} has {a} {things}. {two} has {less} fewer. How many {things} does {two} have?",
        f"{one} sold {a} {things}, which is {less} more than {two} sold. How many did {two} sell?",
    ))  # fmt: skip
    return question, f"{a} - {less} = {rest}", rest


def packed(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Boxes of the same size."""
    n, size = rng.randint(2, 15), rng.randint(3, 24)
    question = rng.choice((
        f"{one} buys {n} boxes with {size} {things} in each. How many {things} is that?",
        f"There are {size} {things} in a bag. {one} carries {n} bags. How many {things} does {one} carry?",
    ))  # fmt: skip
    return question, f"{n} * {size} = {n * size}", n * size


def shared(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Equal shares."""
    n, each = rng.randint(2, 12), rng.randint(2, 20)
    question = rng.choice((
        f"{one} shares {n * each} {things} equally among {n} friends. How many does each friend get?",
        f"{n * each} {things} are put into {n} equal piles. How many {things} are in a pile?",
    ))  # fmt: skip
    return question, f"{n * each} / {n} = {each}", each


def paid(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A price and a quantity."""
    n, price = rng.randint(2, 15), rng.randint(2, 14)
    extra = rng.randint(2, 30)
    question = rng.choice((
        f"{one} buys {n} {things} for ${price} each and a bag for ${extra}. How much does {one} pay?",
        f"At the market {things} cost ${price} apiece. {one} takes {n} of them and spends another ${extra} "
        "on lunch. How many dollars does that come to?",
    ))  # fmt: skip
    cost = n * price
    return (
        question,
        f"{n} * {price} = {cost}\n{cost} + {extra} = {cost + extra}",
        cost + extra,
    )


def saved(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A weekly amount."""
    start, week, weeks = rng.randint(5, 60), rng.randint(3, 20), rng.randint(2, 12)
    question = f"{one} has ${start} and saves ${week} every week. How much money does {one} have after {weeks} weeks?"
    put = week * weeks
    steps = f"{week} * {weeks} = {put}\n{start} + {put} = {start + put}"
    return question, steps, start + put


def twice(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A multiple of another's."""
    a, times = rng.randint(3, 40), rng.randint(2, 5)
    word = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}[times]
    question = f"{one} picked {a} {things}. {two} picked {word} as many. How many {things} did they pick altogether?"
    b = a * times
    return (
        question,
        f"{a} * {times} = {b}\n{a} + {b} = {a + b}",
        a + b,
    )


def halved(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A fraction goes, and then some more."""
    part = rng.choice((2, 3, 4))
    each, more = rng.randint(8, 30), rng.randint(1, 7)
    word = {2: "half", 3: "a third", 4: "a quarter"}[part]
    whole = each * part
    rest = whole - each
    question = f"{one} had {whole} {things}. {one} sold {word} of them and then {more} more. How many {things} are left?"
    steps = f"{whole} / {part} = {each}\n{whole} - {each} = {rest}\n{rest} - {more} = {rest - more}"
    return question, steps, rest - more


def older(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Ages."""
    a, more, later = rng.randint(4, 50), rng.randint(2, 20), rng.randint(2, 15)
    question = f"{one} is {a} years old and {two} is {more} years older. How old will {two} be in {later} years?"
    b = a + more
    return (
        question,
        f"{a} + {more} = {b}\n{b} + {later} = {b + later}",
        b + later,
    )


def driven(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A speed and a time."""
    speed, hours = rng.randint(3, 18) * 5, rng.randint(2, 8)
    question = rng.choice((
        f"{one} drives {speed} kilometers an hour for {hours} hours. How far does {one} drive?",
        f"A train goes {speed} miles in an hour. How many miles does it go in {hours} hours?",
    ))  # fmt: skip
    return question, f"{speed} * {hours} = {speed * hours}", speed * hours


def baked(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """A daily output less a daily use, over days."""
    made, used, days = rng.randint(12, 40), rng.randint(2, 11), rng.randint(2, 10)
    question = f"{one} makes {made} {things} a day and uses {used} of them. How many {things} does {one} have after {days} days?"
    each = made - used
    return (
        question,
        f"{made} - {used} = {each}\n{each} * {days} = {each * days}",
        each * days,
    )


def owed(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Ask for the amount that is missing for a price."""
    has, gift = rng.randint(5, 60), rng.randint(5, 40)
    missing = rng.randint(4, 60)
    price = has + gift + missing
    question = f"{one} wants a coat for ${price}. {one} has ${has} and gets ${gift} from {two}. How many dollars are missing?"
    steps = f"{has} + {gift} = {has + gift}\n{price} - {has + gift} = {missing}"
    return question, steps, missing


def in_rows(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Rows, with some gaps."""
    rows, seats = rng.randint(3, 12), rng.randint(4, 15)
    empty = rng.randint(2, rows * seats // 2)
    question = f"A hall has {rows} rows of {seats} seats. {empty} seats are empty. How many seats are taken?"
    total = rows * seats
    return (
        question,
        f"{rows} * {seats} = {total}\n{total} - {empty} = {total - empty}",
        total - empty,
    )


def basket(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Two prices and two quantities."""
    n, price, m, other = (rng.randint(2, 12) for _ in range(4))
    question = rng.choice((
        f"{one} buys {n} {things} at ${price} each and {m} cakes at ${other} each. How much does {one} spend?",
        f"A shop sells {things} for ${price} and cakes for ${other}. What do {n} {things} and {m} cakes cost together?",
    ))  # fmt: skip
    a, b = n * price, m * other
    return question, f"{n} * {price} = {a}\n{m} * {other} = {b}\n{a} + {b} = {a + b}", a + b


def more_bags(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """The difference of two amounts, each in bags."""
    n, m, size = rng.randint(5, 12), rng.randint(2, 5), rng.randint(4, 15)
    less = rng.randint(2, size - 1)
    a, b = n * size, m * less
    question = f"{one} fills {n} bags with {size} {things} each, {two} fills {m} bags with {less} each. How many more {things} does {one} have than {two}?"
    return question, f"{n} * {size} = {a}\n{m} * {less} = {b}\n{a} - {b} = {a - b}", a - b


def before(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """Ask for the number before."""
    left, gone = rng.randint(4, 80), rng.randint(3, 40)
    question = rng.choice((
        f"After giving {gone} {things} to {two}, {one} has {left} left. How many did {one} have before?",
        f"{one} lost {gone} {things} on the way and arrived with {left}. With how many did {one} set out?",
    ))  # fmt: skip
    return question, f"{left} + {gone} = {left + gone}", left + gone


def bought(rng: Random, one: str, two: str, things: str) -> tuple[str, str, int]:
    """How many were bought in between."""
    had, more = rng.randint(4, 70), rng.randint(3, 50)
    question = rng.choice((
        f"{one} had {had} {things} and now has {had + more}. How many {things} did {one} get?",
        f"Yesterday there were {had} {things} on the shelf, today there are {had + more}. How many were added?",
    ))  # fmt: skip
    return question, f"{had + more} - {had} = {more}", more


KINDS = (
    added, subtracted, multiplied, divided, given_away, found_more, together, fewer, packed,
    shared, paid, saved, twice, halved, older, driven, baked, owed, in_rows,
    basket, more_bags, before, bought,
)  # fmt: skip
