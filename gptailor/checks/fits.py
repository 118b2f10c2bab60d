"""Rules of cuts, bridges and healing in a plan by itself."""

from collections.abc import Iterator

from gptailor.checks.language import LARGEST
from gptailor.checks.rule import NAME_FILE, NO_FILE, ascending, repeats, rule
from gptailor.plan.faults import Also, Fault, Place
from gptailor.plan.plan import CUTS, HealText, Interval, Named, Plan, SizeRange
from gptailor.plan.sites import drops_by_choice, numbers


@rule("P706")
def _healing_settings_are_valid(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for healing without a text, and for each number out of range."""
    heal = plan.heal
    if heal is None:
        return
    if not heal.on:
        yield Fault("P706", "'heal' has no text", ("heal", "on"), 'name one: heal on "text.jsonl"')
    for name, least in (("tokens", 1), ("rank", 1), ("seed", 0)):
        message = f"'{name}' of 'heal' must be a whole number from {least} to {LARGEST}"
        fault = Fault("P706", message, ("heal", name))
        yield from _beyond(fault, getattr(heal, name), least)
    for i, text in enumerate(heal.on):
        yield from _text_settings(text, ("heal", "on", i))


_LARGEST_WEIGHT = 10**9
"""The largest weight of a text; the smallest is one divided by it."""
_LARGEST_TEMPERATURE = 100


def _text_settings(text: HealText, at: Place) -> Iterator[Fault]:
    """Yield a fault for each setting of a text of 'heal' that is out of range."""
    if not text.file:
        yield Fault("P706", NO_FILE, (*at, "file"), NAME_FILE)
    if not 1 / _LARGEST_WEIGHT <= text.weight <= _LARGEST_WEIGHT:
        message = f"'weight' of 'heal' must be above 0 and at most {_LARGEST_WEIGHT:,}"
        help_ = "to skip a text, remove it"
        yield Fault("P706", message, (*at, "weight"), help_)
    if text.answers is None:
        return
    tokens, temperature = text.answers.tokens, text.answers.temperature
    message = f"'tokens' of 'answers' must be a whole number from 1 to {LARGEST}"
    yield from _beyond(Fault("P706", message, (*at, "answers", "tokens")), tokens)
    if temperature is not None and not 0 <= temperature <= _LARGEST_TEMPERATURE:
        message = f"'temperature' of 'answers' must be a number from 0 to {_LARGEST_TEMPERATURE}"
        help_ = "0 always takes the most likely token"
        yield Fault("P706", message, (*at, "answers", "temperature"), help_)


def _beyond(fault: Fault, value: object, least: int = 1) -> Iterator[Fault]:
    """Yield the fault if a whole number is out of range."""
    if isinstance(value, int) and not least <= value <= LARGEST:
        yield fault


@rule("P711")
def _no_text_is_learned_from_twice(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each text that an earlier one equals, apart from its weight."""
    texts = plan.heal.on if plan.heal is not None else ()
    for i, earlier in repeats(repr(text.model_copy(update={"weight": 1})) for text in texts):
        message = f"'heal' learns from '{texts[i].file}' twice"
        also = Also("named first here", ("heal", "on", earlier))
        yield Fault(
            "P711",
            message,
            ("heal", "on", i),
            "name it once; a 'weight' repeats it more often",
            (also,),
        )


@rule("P712")
def _predictions_have_a_teacher(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each setting that a file of predictions can't have."""
    heal = plan.heal
    if heal is None:
        return
    for i, (text, (teacher, at)) in enumerate(zip(heal.on, heal.taught, strict=True)):
        if not text.predicted:
            continue
        file = f"'{text.file}' has predictions"
        if text.answers is not None:
            help_ = "name a file of prompts, or remove 'answers'"
            yield Fault("P712", f"{file}, not prompts", ("heal", "on", i, "answers"), help_)
        elif teacher is not None:
            help_ = f"write 'from {teacher}' after the other texts only"
            if all(other.predicted for other in heal.on):
                help_ = f"remove 'from {teacher}'"
            yield Fault("P712", f"{file} of a teacher, so it can't have another teacher", at, help_)
    if heal.loss == "answers" and any(text.predicted for text in heal.on):
        message = "a file of predictions doesn't mark the tokens of answers"
        yield Fault("P712", message, ("heal", "loss"), "remove 'loss answers'")


@rule("P707", missing_in=("drop", "maybe", "tied", "merge", "others", "whole", *CUTS))
def _healing_has_an_effect(plan: Plan) -> Iterator[Fault]:
    """Yield a warning if nothing is dropped: the plan would be its own teacher."""
    if plan.heal is not None and not plan.may_be_healed:
        message = "nothing is dropped or cut, so there is nothing to heal"
        help_ = "remove 'heal', or name a teacher: heal from NAME on …"
        yield Fault("P707", message, ("heal",), help_, severity="warning")


@rule("P708")
def _no_layers_of_a_stack_are_named(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for healing that names layers of a stack, which has no positions."""
    if plan.stack is not None and plan.heal is not None and plan.heal.layers:
        message = "'heal' can't name layers in a plan with a stack"
        help_ = "remove them; all layers of the output are trained"
        yield Fault("P708", message, ("heal", "layers"), help_)


@rule("P701")
def _every_gap_is_named_once(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each gap that two bridges close; one without a position closes all gaps."""
    first: dict[int | None, int] = {}
    for i, bridge in enumerate(plan.bridges):
        earlier = first.get(bridge.after, first.get(None))
        if earlier is not None:
            which = f"the gap after L{bridge.after}" if bridge.after is not None else "every gap"
            also = Also("and here", ("bridges", earlier))
            help_ = "remove one of the two"
            yield Fault("P701", f"{which} is bridged twice", ("bridges", i), help_, (also,))
        first.setdefault(bridge.after, i)


@rule("P702", "P703", "P704", missing_in=("drop", "maybe", "tied"))
def _every_bridge_has_a_gap(plan: Plan) -> Iterator[Fault]:
    """Yield a fault or a warning for each bridge over a gap that no drop can leave."""
    dropped = {drop.position for drop in plan.drops}
    dropped |= {at for _, choice in drops_by_choice(plan) for at in choice.among}
    fixed = {d.position for d in plan.drops if not d.maybe}
    for i, bridge in enumerate(plan.bridges):
        if bridge.after is None:
            if not dropped:
                yield _warning("P702", "no layer is dropped, so there is no gap to bridge", i)
        elif bridge.after in fixed:
            message = f"expected a kept layer before the gap, but L{bridge.after} is dropped"
            yield Fault(
                "P703", message, ("bridges", i, "after"), "name the last kept layer before the gap"
            )
        elif bridge.after + 1 not in dropped:
            yield _warning("P702", f"there is no gap after L{bridge.after}", i)
        if bridge.after is None and 0 in fixed:
            yield _warning("P704", "the gap before the first kept layer can't be bridged", i)


def _warning(code: str, message: str, i: int) -> Fault:
    """Return a warning about a bridge."""
    help_ = "bridge the layer before a gap, or remove 'bridge'"
    return Fault(code, message, ("bridges", i), help_, severity="warning")


@rule("P705")
def _bridge_settings_are_valid(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each bridge without a text, or with invalid tokens or a negative ridge."""
    for i, bridge in enumerate(plan.bridges):
        tokens, ridge = bridge.tokens, bridge.ridge
        if not bridge.on:
            yield Fault("P705", NO_FILE, ("bridges", i, "on"), NAME_FILE)
        if tokens is not None and not (isinstance(tokens, int) and tokens > 0):
            message = "'tokens' must be a whole number of at least 1"
            yield Fault("P705", message, ("bridges", i, "tokens"))
        if ridge is not None and min(numbers(ridge, plan.numbers), default=0) < 0:
            yield Fault("P705", "'ridge' must be a number of at least 0", ("bridges", i, "ridge"))


# ------------------------------------------------------------------------------------------- cuts


@rule("P504", "P721")
def _every_size_range_ascends(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a range of sizes that descends, is one size, or doesn't end on a step."""
    for name, cut in plan.cuts.items():
        if not isinstance(size := cut.size, SizeRange):
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
def _cut_settings_are_valid(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each size below 1, and each ridge that is negative or has no fit."""
    for name, cut in plan.cuts.items():
        message = f"the size of '{name}' must be a whole number from 1 to {LARGEST}"
        for end in cut.size.between if isinstance(cut.size, SizeRange) else (cut.size,):
            yield from _beyond(Fault("P721", message, (name, "size")), end)
        if cut.ridge is not None and name != "width":
            message = f"'{name}' can't have a 'ridge', because it fits nothing"
            yield Fault("P721", message, (name, "ridge"), "remove it")
        elif cut.ridge is not None and cut.ridge < 0:
            message = "'ridge' must be a number of at least 0"
            yield Fault("P721", message, (name, "ridge"))


@rule("P721")
def _text_fits_have_a_text(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each text of a fit without a name, and number of tokens out of range."""
    for name, fit in plan.text_fits.items():
        if not fit.on:
            yield Fault("P721", NO_FILE, (name, "on"), NAME_FILE)
        message = f"'tokens' of '{name}' must be a whole number from 1 to {LARGEST}"
        yield from _beyond(Fault("P721", message, (name, "tokens")), fit.tokens)


@rule("P310")
def _every_named_size_is_whole(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each size by the name of a number that isn't whole, or is below 1."""
    for name, cut in plan.cuts.items():
        if not isinstance(cut.size, Named) or cut.size.named not in plan.numbers:
            continue
        word, at = cut.size.named, (name, "size")
        value = plan.numbers[word]
        also = Also("the number is here", ("numbers", word, "value"))
        if isinstance(value, Interval):
            message = f"expected a size for '{name}', but '{word}' is an interval"
            help_ = f"write the range of sizes here, as in '{name} 16384..49152 step 4096'"
            yield Fault("P310", message, at, help_, (also,))
        elif any(not isinstance(n, int) or not 1 <= n <= LARGEST for n in numbers(value)):
            message = f"expected whole numbers of at least 1 for '{name}', but '{word}' has another"
            yield Fault("P310", message, at, f"write 'let {word} = 1024'", (also,))


@rule("P722")
def _no_union_is_cut(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a smaller vocabulary of a union of tokenizers."""
    if plan.vocabulary is not None and plan.tokenizer == "union":
        message = "'vocabulary' can't be combined with 'tokenizer union'"
        also = Also("the union is here", ("tokenizer",))
        help_ = "compile the union first, and cut the compiled folder's vocabulary"
        yield Fault("P722", message, ("vocabulary",), help_, (also,))
