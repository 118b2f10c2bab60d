"""The rules of a plan by itself, and the rules of its sizes, positions, stack, rest and ties."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise

from gptailor.checks.rule import repeats, rule, rules_of, run_rules
from gptailor.plan.bounds import (
    DEEPEST,
    MOST_ENTRIES,
    MOST_LAYERS,
    MOST_LISTED,
    MOST_STATEMENTS,
    MOST_WINDOWS,
)
from gptailor.plan.faults import (
    TOO_LARGE,
    Also,
    Fault,
    Hit,
    Place,
    joined_faults,
    listed,
    locate,
    nearest,
)
from gptailor.plan.layer_parts import is_pattern
from gptailor.plan.model_dependencies import depths, needed
from gptailor.plan.plan import (
    BY_LAYER,
    OVERLAY,
    Drop,
    DropWindow,
    Merge,
    Plan,
    RepeatWindow,
    Scale,
    SizeRange,
    Subset,
    Take,
    TemplateOf,
    count_ends,
    derived,
)
from gptailor.plan.registry import CHAT_TEMPLATES, DTYPES, LARGEST_SINGLE
from gptailor.plan.sites import (
    drops_by_choice,
    entry_sites,
    enumerated,
    named_models,
    numbers,
    recipe_lists,
    recipes,
    tied_entries,
    value_lists,
    values,
)
from gptailor.plan.windows import stretch_of, window_count


def check_alone(plan: Plan, *, unread: frozenset[str] = frozenset()) -> list[Fault]:
    """Return the faults of a plan by itself, in the order of its text.

    `unread` are the first words of statements that have syntax faults, empty for an unknown
    statement. A rule is skipped if such a statement may contain an entry that the rule misses. A
    plan keeps its faults, so its rules run once. A plan that is too large has one fault.
    """
    return _faults(plan, unread) if unread else [*_all_faults(plan)]


@derived
def _all_faults(plan: Plan) -> list[Fault]:
    return _faults(plan, frozenset())


def _faults(plan: Plan, unread: frozenset[str]) -> list[Fault]:
    kept = [each for each in PLAN_RULES if not each.is_unread(unread)]
    too_large = list(islice(run_rules(kept, plan, stage=0), 1))
    return locate(too_large or run_rules(kept, plan), plan.origin)


# -------------------------------------------------------------------------------------------- sizes


_Size = tuple[str, int, int, Place, str]
"""Things in one place of a plan: their noun, their number, the most, the place, the remedy."""


def _too_large(sizes: Iterable[_Size]) -> Iterator[Fault]:
    for what, count, most, at, help_ in sizes:
        if count > most:
            yield Fault(TOO_LARGE, f"expected at most {most:,} {what}, got {count:,}", at, help_)


@rule(TOO_LARGE, stage=0)
def statements_and_layers_are_few(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each field with too many entries, and for too many layers in all."""
    yield from _too_large(_fields(plan))


def _fields(plan: Plan) -> Iterator[_Size]:
    """Yield the number of entries of each field that lists statements, and the number of layers."""
    for name in ("models", "numbers", "gguf", *(name for name in OVERLAY if name not in BY_LAYER)):
        entries = getattr(plan, name)
        yield (f"'{name}'", len(entries), MOST_STATEMENTS, (name,), "write several plans")
    texts, layers = ((), ()) if plan.heal is None else (plan.heal.on, plan.heal.layers)
    join = "join texts into one file"
    yield ("texts to heal on", len(texts), MOST_STATEMENTS, ("heal", "on"), join)
    items = plan.stack.items if plan.stack is not None else ()
    count = sum(map(len, (*(getattr(plan, name) for name in BY_LAYER), items, layers)))
    count += sum(len(choice.among) for _, choice in drops_by_choice(plan))
    yield ("layers in a plan", count, MOST_ENTRIES, ("layers",), "write several plans")


@rule("P214", stage=0)
def _output_layers_are_few(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a stack, and for repeated blocks, of more than `MOST_LAYERS` layers."""
    if plan.stack is not None and len(plan.stack.items) > MOST_LAYERS:
        message = f"expected at most {MOST_LAYERS:,} layers of an output, the stack has more"
        yield Fault("P214", message, ("stack",), "write fewer items")
    more = 0
    for i, block in enumerate(plan.repeats):
        first, last = stretch_of(block)
        length = count_ends(block.count)[1] if isinstance(block, RepeatWindow) else last - first + 1
        again = max(0, count_ends(block.times)[1]) * max(0, length)
        more += again if again < MOST_LAYERS else 0  # one block alone is P503
        if more > MOST_LAYERS:
            message = f"expected at most {MOST_LAYERS:,} repeated layers, got {more:,}"
            yield Fault("P214", message, ("repeats", i), "write fewer blocks, or fewer times")


@rule(TOO_LARGE, stage=0)
def _lists_are_short(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for choices among too many windows, and for lists and ranges that are long."""
    yield from islice(_too_large(_windows(plan)), 1)
    yield from _too_large(_lists(plan))


def _windows(plan: Plan) -> Iterator[_Size]:
    """Yield the number of windows to choose from, up to each choice."""
    choices = [*enumerated(plan, "windows"), *enumerated(plan, "repeats")]
    total = 0
    for at, choice in choices:
        if isinstance(choice, DropWindow | RepeatWindow):
            total += window_count(choice.count, choice.among)
            help_ = "name fewer layers, or fewer lengths"
            yield ("windows to choose from", total, MOST_WINDOWS, at, help_)


def _lists(plan: Plan) -> Iterator[_Size]:
    """Yield the length of each list, and of each range of sizes."""
    lists: list[tuple[Place, int]] = []
    for name, number in plan.numbers.items():
        lists += value_lists(number, ("numbers", name))
    for i, scale in enumerate(plan.scales):
        lists += value_lists(scale.factor, ("scales", i, "factor"))
    for at, recipe in recipes(plan):
        lists += (((*at, *place), length) for place, length in recipe_lists(recipe))
    if plan.search is not None:
        lists.append((("search", "objectives", 0), len(plan.search.objectives)))
        lists.append((("search", "requires", 0), len(plan.search.requires)))
    lists.append((("expects", 0), len(plan.expects)))
    for at, length in lists:
        yield ("entries in a list", length, MOST_LISTED, at, "write a shorter list")
    for name, cut in plan.cuts.items():
        count = len(cut.size.sizes) if isinstance(cut.size, SizeRange) else 1
        help_ = "write a larger step, as in 16384..49152 step 4096"
        yield ("sizes to choose from", count, MOST_LISTED, (name, "size"), help_)


@rule(TOO_LARGE, stage=0)
def _models_are_shallow(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for models that are more than `DEEPEST` deep in one another."""
    depth_of = depths(plan)
    name = max(depth_of, key=depth_of.__getitem__, default="")
    if (depth := depth_of.get(name, 0)) > DEEPEST:
        message = f"expected models nested at most {DEEPEST} deep, '{name}' is nested {depth} deep"
        help_ = "compile one of them first, and name the folder"
        yield Fault(TOO_LARGE, message, ("models", name, "name"), help_)


# ---------------------------------------------------------------------------------------- positions


@rule("P207")
def _every_position_is_decided_once(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each part of a position that two layers decide; patterns may overlap."""
    layers = plan.layers
    parts = ["a pattern" if is_pattern(layer.part) else layer.part for layer in layers]
    keys = zip([layer.position for layer in layers], parts, strict=True)
    hits = [Hit(layers[j].position, *_in_text_order(plan, i, j)) for j, i in repeats(keys)]
    twice = Fault("P207", "is set twice", help="remove one of the two")
    yield from joined_faults(plan.origin, hits, twice, "first set here")


def _in_text_order(plan: Plan, i: int, j: int) -> tuple[Place, Place]:
    """Return both places, the later one first: that one is to blame."""
    a, b = ("layers", i), ("layers", j)
    spans = [plan.origin.span(at) if plan.origin else None for at in (a, b)]
    if spans[0] and spans[1] and spans[0].start > spans[1].start:
        return a, b
    return b, a


@rule("P209", "P210")
def _nothing_is_scaled_or_dropped_twice(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each position with two scales, or that two drops name."""
    multiply = "write one 'scale' with the product of both factors"
    kinds: tuple[tuple[str, Sequence[Drop | Scale], Fault, str], ...] = (
        ("scales", plan.scales, Fault("P209", "is scaled twice", help=multiply), "scaled"),
        (
            "drops",
            plan.drops,
            Fault("P210", "is dropped twice", help="remove one of the two"),
            "dropped",
        ),
    )
    for name, entries, twice, what in kinds:
        hits = [
            Hit(second.position, (name, i + 1), (name, i))
            for i, (first, second) in enumerate(pairwise(entries))
            if first.position == second.position
        ]
        yield from joined_faults(plan.origin, hits, twice, f"first {what} here")


@rule("P208")
def _nothing_dropped_is_decided(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each position that a fixed `drop` removes and another statement changes."""
    drops = {d.position: ("drops", i) for i, d in enumerate(plan.drops) if not d.maybe}
    healed = plan.heal.layers if plan.heal is not None else ()
    layers, scales = ([entry.position for entry in each] for each in (plan.layers, plan.scales))
    keep = "keep one of the two"
    conflicts: tuple[tuple[Place, Iterable[int], Fault], ...] = (
        (("layers",), layers, Fault("P208", "is set and dropped", help=keep)),
        (("scales",), scales, Fault("P208", "is scaled and dropped", help=keep)),
        (("heal", "layers"), healed, Fault("P208", "is healed and dropped", help=keep)),
    )
    for at, positions, both in conflicts:
        hits = [Hit(n, (*at, i), drops[n]) for i, n in enumerate(positions) if n in drops]
        yield from joined_faults(plan.origin, hits, both, "dropped here")


@rule("P212")
def _no_overlay_stands_beside_a_stack(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for an overlay statement in a plan with a stack."""
    if plan.stack is None:
        return
    first: Place | None = next(((name, 0) for name in OVERLAY if getattr(plan, name)), None)
    first = ("whole",) if first is None and plan.whole is not None else first
    if first is not None:
        span = plan.origin.statement(first) if plan.origin else None
        also = Also("the stack is here", ("stack",))
        help_ = "list all layers in the stack, or remove the stack"
        message = "a plan with a stack can't have other statements about layers"
        yield Fault("P212", message, first, help_, (also,), span=span)


@rule("P213", missing_in=("stack",))
def _a_stack_has_items(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for an empty stack."""
    if plan.stack is not None and not plan.stack.items:
        yield Fault("P213", "the stack is empty", ("stack",), "name its layers: L0..L9 base")


@rule("P220")
def _a_stack_fits_its_limit(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a limit below the items that are not `maybe`, the only ones it removes."""
    if plan.stack is None or (limit := plan.stack.limit) is None or limit < 1:
        return
    fixed = sum(not item.maybe for item in plan.stack.items)
    if fixed > limit:
        layers = "1 layer" if limit == 1 else f"{limit} layers"
        message = f"the limit is {layers}, but {fixed} items of the stack aren't 'maybe'"
        at = ("stack", "limit")
        yield Fault("P220", message, at, "raise the limit, or write 'maybe' before more items")


# ----------------------------------------------------------------------------- the rest and choices


@rule("P403")
def _the_dtype_is_known(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a dtype that checkpoints can't have."""
    if plan.dtype is not None and plan.dtype not in DTYPES:
        help_ = nearest(plan.dtype, DTYPES) or f"the dtypes are {listed(DTYPES)}"
        yield Fault("P403", f"there is no dtype '{plan.dtype}' for an output", ("dtype",), help_)


@rule("P402")
def _the_tokenizer_is_from_one_checkpoint(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a merged tokenizer, and for one from a model made of models."""
    if isinstance(plan.tokenizer, Merge | Subset):
        help_ = "name one model, or write 'tokenizer union' for the tokens of all models"
        yield Fault(
            "P402", "expected a tokenizer from one model, got a merge", ("tokenizer",), help_
        )
    names: list[tuple[Place, str]] = []
    if isinstance(plan.tokenizer, Take):
        names += [(("tokenizer", *at), name) for at, name, _ in named_models(plan.tokenizer)]
    if isinstance(plan.chat_template, TemplateOf):
        names.append((("chat_template",), plan.chat_template.model))
    for at, name in names:
        if any(plan.models[n].made is not None for n in needed(plan, [name])):
            message = f"'{name}' is a merge, which has no tokenizer of its own"
            yield Fault("P402", message, at, "name one of its models")


@rule("P404")
def _the_chat_template_is_known(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a chat template other than a file, a model's and one of the registry."""
    template = plan.chat_template
    if not isinstance(template, str) or template in CHAT_TEMPLATES:
        return
    if template[:1] not in (".", "/", "~"):
        names = listed((f'"{name}"' for name in CHAT_TEMPLATES), "or")
        help_ = f"write {names}, 'from' and a model, or a path that begins with '.', '/' or '~'"
        yield Fault("P404", f"there is no chat template '{template}'", ("chat_template",), help_)


@rule("P306")
def _every_number_fits_into_float32(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each number beyond float32, in which merges are computed."""
    most = f"{LARGEST_SINGLE:.9g}"
    for at, value in values(plan):
        for number in numbers(value):
            if abs(number) > LARGEST_SINGLE:
                got = f"{number:g}" if isinstance(number, float) else "a larger one"
                yield Fault("P306", f"expected at most {most}, the largest float32, got {got}", at)


@rule("P405")
def _every_scale_is_positive(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each scale of a hidden state that is not above 0."""
    for i, scale in enumerate(plan.scales):
        if any(number <= 0 for number in numbers(scale.factor, plan.numbers)):
            help_ = "to remove a layer, write 'drop'"
            yield Fault("P405", "a scale must be above 0", ("scales", i, "factor"), help_)


@rule("P507")
def _every_tie_holds_a_choice(plan: Plan) -> Iterator[Fault]:
    """Yield a warning for each `tied` before statements without a choice, where it does nothing."""
    groups: dict[tuple[Place, int | None], tuple[Place, bool]] = {}
    for at, entry in tied_entries(plan):
        first, before = groups.get((at[:-1], entry.tied), (at, False))
        has = before or any(site.open for site in entry_sites(entry, at))
        groups[at[:-1], entry.tied] = first, has
    for at, has in groups.values():
        if not has:
            yield Fault("P507", "'tied' has no effect on a statement without a choice",
                        (*at, "tied"), "remove it", severity="warning")  # fmt: skip


PLAN_RULES = rules_of(
    "declarations", "plan", "recipes", "numbers", "language", "depth", "fits", "search"
)
"""Rules of a plan by itself; faults without a place in a text keep this order.

Rules of stage 0 are about sizes: the work of all other rules grows with them."""
