"""Rules of cuts: a smaller vocabulary, a narrower MLP."""

from collections.abc import Iterator

from gptailor.checks.language import LARGEST
from gptailor.checks.rule import ascending, rule
from gptailor.plan import plan as p
from gptailor.plan.faults import Also, Fault, Place
from gptailor.plan.sites import numbers


@rule("P504", "P721")
def every_size_range_ascends(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for a range of sizes that descends, is one size, or doesn't end on a step."""
    for name, cut in plan.cuts.items():
        if not isinstance(size := cut.size, p.SizeRange):
            continue
        (low, high), at = size.between, (name, "size")
        step = f" step {size.step}" if size.step > 1 else ""
        yield from ascending("range of sizes", size.between, at, "is one size", step)
        if low < high and size.step < 1:
            yield Fault("P721", "'step' must be a whole number of at least 1", at)
        elif low < high and (high - low) % size.step:
            last = size.sizes[-1]
            fitting = f"{low}..{last}" if last > low else f"{low}..{low + size.step}"
            message = f"steps of {size.step} from {low} don't reach {high}"
            yield Fault("P721", message, at, f"write {fitting} step {size.step}")


@rule("P721")
def cut_settings_are_valid(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each size below 1, text without a name, and setting out of range."""
    for name, cut in plan.cuts.items():
        at: Place = (name, "size")
        ends = cut.size.between if isinstance(cut.size, p.SizeRange) else (cut.size,)
        if any(isinstance(end, int) and not 1 <= end <= LARGEST for end in ends):
            message = f"the size of '{name}' must be a whole number from 1 to {LARGEST}"
            yield Fault("P721", message, at)
        if not cut.on:
            yield Fault("P721", f"the text of '{name}' has no name", (name, "on"))
        if cut.tokens is not None and not 1 <= cut.tokens <= LARGEST:
            message = f"'tokens' of '{name}' must be a whole number from 1 to {LARGEST}"
            yield Fault("P721", message, (name, "tokens"))
        if cut.ridge is not None and name != "width":
            message = f"'{name}' has no 'ridge': nothing is fitted"
            yield Fault("P721", message, (name, "ridge"), "leave it out")
        elif cut.ridge is not None and cut.ridge < 0:
            message = "'ridge' must be a number of at least 0"
            yield Fault("P721", message, (name, "ridge"))


@rule("P310")
def every_named_size_is_whole(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for each size by the name of a number that isn't whole, or is below 1."""
    for name, cut in plan.cuts.items():
        if not isinstance(cut.size, p.Named) or cut.size.named not in plan.numbers:
            continue
        word, at = cut.size.named, (name, "size")
        value = plan.numbers[word]
        also = Also("the number is here", ("numbers", word, "value"))
        if isinstance(value, p.Interval):
            message = f"expected a size for '{name}', '{word}' is an interval of reals"
            help_ = f"write the range here, as in '{name} 16384..49152 step 4096'"
            yield Fault("P310", message, at, help_, (also,))
        elif any(not isinstance(n, int) or not 1 <= n <= LARGEST for n in numbers(value)):
            message = f"expected whole numbers of at least 1 for '{name}', '{word}' has another"
            yield Fault("P310", message, at, f"write 'let {word} = 1024'", (also,))


@rule("P722")
def no_union_is_cut(plan: p.Plan) -> Iterator[Fault]:
    """Yield a fault for a smaller vocabulary of a union of tokenizers."""
    if plan.vocabulary is not None and plan.tokenizer == "union":
        message = "'vocabulary' can't be combined with 'tokenizer union'"
        also = Also("the union is here", ("tokenizer",))
        help_ = "compile the union first, and cut the folder's vocabulary"
        yield Fault("P722", message, ("vocabulary",), help_, (also,))
