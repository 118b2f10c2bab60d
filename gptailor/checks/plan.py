"""Rules that a plan must keep by itself, whatever its models are."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from gptailor.checks.recipes import MERGING
from gptailor.checks.sizes import oversizes
from gptailor.plan.faults import Also, Fault, Hit, Place, joined_faults, listed, locate, nearest
from gptailor.plan.needed import needed
from gptailor.plan.parts import is_pattern
from gptailor.plan.plan import (
    PLAN_SUFFIX,
    Curve,
    Drop,
    Layer,
    Merge,
    Model,
    Named,
    Plan,
    Scale,
    Subset,
    Take,
    TemplateOf,
    is_at_url,
)
from gptailor.plan.registry import CHAT_TEMPLATES, DTYPES, LARGEST_SINGLE, WORDS
from gptailor.plan.walk import (
    entry_sites,
    named_models,
    numbers,
    recipes,
    tied_entries,
    values,
)
from gptailor.plan.wishes import compared_models

PlanRule = Callable[[Plan], Iterator[Fault]]


def check_alone(
    plan: Plan, *, unread: frozenset[str] = frozenset(), written: bool = False
) -> list[Fault]:
    """The faults of a plan by itself, as its text has them.

    `unread` are the first words of statements that have syntax faults, empty for one that says
    nothing: what may only be missing because its statement was not read is not reported. `written`
    says that the plan comes from a text, which keeps some rules by its grammar. All rules run once
    for a plan, which remembers; none runs for a plan that is too large.
    """
    whole = not unread
    if whole and plan.faults is not None:
        return list(plan.faults)
    too_large = next(oversizes(plan), None)
    rules = _rules(plan, unread, written=written) if too_large is None else ()
    faults = locate([too_large], plan.origin) if too_large is not None else []
    faults += locate((fault for rule in rules for fault in rule(plan)), plan.origin)
    if whole:
        plan.knowing(faults)
    return faults


def _rules(plan: Plan, unread: frozenset[str], *, written: bool) -> tuple[PlanRule, ...]:
    """The rules that a plan can break, those of rare statements only where it has them."""
    rules = PLAN_RULES
    made = any(model.made is not None or model.on is not None for model in plan.models.values())
    if made or plan.tokenizer == "union":
        from gptailor.checks.made import MADE

        rules += MADE
    if made or _says_numbers(plan):
        from gptailor.checks.numbers import NUMBERING

        rules += NUMBERING
    if not written:
        from gptailor.checks.language import SAYABLE

        rules += SAYABLE
    rules += _of_moving_layers(plan)
    if plan.search is not None or plan.bridges:
        from gptailor.checks.search import SEARCHING

        rules += SEARCHING
    return tuple(rule for rule in rules if not _may_be_unread(rule, unread)) if unread else rules


def _may_be_unread(rule: PlanRule, unread: frozenset[str]) -> bool:
    """Whether what a rule misses may stand in a statement with a syntax fault."""
    from gptailor.checks import heal, numbers, search

    known = _ABSENCES, numbers.UNREAD_NUMBERS, search.UNREAD_SEARCH, heal.UNREAD_HEALING
    said_by = next((of[rule] for of in known if rule in of), None)
    return said_by is not None and not (said_by and unread.isdisjoint({"", *said_by}))


def _of_moving_layers(plan: Plan) -> tuple[PlanRule, ...]:
    """The rules of choices of drops, of healing and of blocks that come again."""
    rules: tuple[PlanRule, ...] = ()
    if plan.drop_any or plan.windows:
        from gptailor.checks.drops import DROPPING

        rules += DROPPING
    if plan.heal is not None:
        from gptailor.checks.heal import ALONE

        rules += ALONE
    if plan.repeats:
        from gptailor.checks.repeats import REPEATING

        rules += REPEATING
    return rules


def _says_numbers(plan: Plan) -> bool:
    """Whether something has a name that is a number's, a curve, or is said of all positions."""
    if plan.numbers or plan.others or plan.whole is not None:
        return True
    return any(isinstance(value, Named | Curve) for _, value in values(plan))


# ------------------------------------------------------------------------------------------ models


def the_version_is_known(plan: Plan) -> Iterator[Fault]:
    """There is one version of the language."""
    if plan.version != 1:
        yield Fault("P102", f"there is no version {plan.version} of the language", ("version",))


def base_is_declared(plan: Plan) -> Iterator[Fault]:
    """The model named `base` gives the positions and all that the plan doesn't say."""
    if "base" not in plan.models:
        close = nearest("base", plan.models)
        help_ = close or 'add a line such as model base = "./models/base"'
        yield Fault("P103", "no model is named 'base'", ("models",), help_)


def every_name_can_be_one(plan: Plan) -> Iterator[Fault]:
    """Names are letters, digits and `_`, no words of the language, and not shaped like layers."""
    named = [("model", ("models", name, "name"), name) for name in plan.models]
    named += [("number", ("numbers", name, "name"), name) for name in plan.numbers]
    for what, at, name in named:
        if re.fullmatch(r"L\d+", name):
            yield Fault("P105", f"'{name}' is a layer's name, not a {what}'s", at)
        elif name in WORDS:
            yield Fault("P105", f"'{name}' is a word of the language", at, "choose another name")
        elif not re.fullmatch(r"[^\W\d]\w*", name):
            said = f"a {what}'s name is letters, digits and '_', a letter or '_' first"
            yield Fault("P105", f"'{name}' can't name a {what}", at, said)


def every_model_is_declared(plan: Plan) -> Iterator[Fault]:
    """Recipes, adapters and objectives name declared models."""
    named = [(at + inner, name) for at, r in recipes(plan) for inner, name, _ in named_models(r)]
    if plan.heal is not None and plan.heal.teacher is not None:
        named.append((("heal", "teacher"), plan.heal.teacher))
    if isinstance(plan.chat_template, TemplateOf):
        named.append((("chat_template", "model"), plan.chat_template.model))
    named += [(("models", n, "on"), m.on) for n, m in plan.models.items() if m.on is not None]
    named += compared_models(plan.search)
    for at, name in named:
        if name not in plan.models:
            help_ = nearest(name, plan.models) or _declared(plan)
            yield Fault("P106", f"the model '{name}' is not declared", at, help_)


def _declared(plan: Plan) -> str:
    names = listed(f"'{name}'" for name in list(plan.models)[:8])
    return f"declared are {names}" if names else "no model is declared"


_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def every_source_can_be_one(plan: Plan) -> Iterator[Fault]:
    """A source is a folder or has the shape of a Hub id; a revision goes with the Hub."""
    for name, model in plan.models.items():
        at = ("models", name, "source")
        local = model.source[:1] in (".", "/", "~")
        at_url = is_at_url(model.source)
        if model.made is not None:
            yield from _no_recipe(name, model)
        elif re.search(r'["\r\n]', model.source + (model.revision or "")) or "\0" in model.source:
            yield Fault("P109", "a source holds no quotes and no line ends", at)
        elif not model.source:
            yield Fault("P109", f"the source of '{name}' is empty", at)
        elif (local or at_url) and model.revision is not None:
            kind = "a URL" if at_url else "local"
            message = f"'{model.source}' is {kind}, and has no revision"
            yield Fault("P110", message, ("models", name, "revision"))
        elif model.source.endswith(PLAN_SUFFIX):
            yield from _no_plan(model, at, local)
        elif not (local or at_url) and not re.fullmatch(
            r"[\w.-]+(/[\w.-]+)?", model.source, re.ASCII
        ):
            help_ = f"a local folder starts with '.', '/' or '~': \"./{model.source}\""
            yield Fault("P109", f"'{model.source}' has not the shape of a Hub id", at, help_)


def _no_recipe(name: str, model: Model) -> Iterator[Fault]:
    if model.source or model.on is not None or model.revision is not None:
        message = f"'{name}' is made of models, and has a source besides"
        yield Fault("P109", message, ("models", name), "keep one of the two")


def _no_plan(model: Model, at: Place, local: bool) -> Iterator[Fault]:
    if model.on is not None:
        yield Fault("P109", f"'{model.source}' is a plan, and an adapter is a folder", at)
    elif not local:
        help_ = f"the path of a plan starts with '.', '/' or '~': \"./{model.source}\""
        yield Fault("P109", f"'{model.source}' is a plan, and the Hub has models", at, help_)


# --------------------------------------------------------------------------------------- positions


def every_position_is_decided_once(plan: Plan) -> Iterator[Fault]:
    """A position is decided once, and each part of it: a finer one wins. Patterns may overlap."""
    hits = []
    decided: dict[tuple[int, str | None], int] = {}
    for j, layer in enumerate(plan.layers):
        part = "a pattern" if is_pattern(layer.part) else layer.part
        i = decided.setdefault((layer.position, part), j)
        if i != j:
            hits.append(Hit(layer.position, *_in_text_order(plan, i, j)))
    yield from _joined(plan, hits, Fault("P207", "is decided twice"), "first decided here")


def _in_text_order(plan: Plan, i: int, j: int) -> tuple[Place, Place]:
    """The later place first: it is the one to blame."""
    a, b = ("layers", i), ("layers", j)
    spans = [plan.origin.span(at) if plan.origin else None for at in (a, b)]
    if spans[0] and spans[1] and spans[0].start > spans[1].start:
        return a, b
    return b, a


def _joined(plan: Plan, hits: Iterable[Hit], fault: Fault, label: str) -> Iterator[Fault]:
    """A fault for each range of hits; its message says what one position "is"."""

    def said(name: str, many: bool) -> Fault:
        message = fault.message.replace("is", "are", 1) if many else fault.message
        return replace(fault, message=f"{name} {message}")

    return joined_faults(plan.origin, hits, said, label)


def _twins(name: str, placed: Sequence[Drop | Scale]) -> Iterator[Hit]:
    for (i, first), (j, second) in pairwise(enumerate(placed)):
        if first.position == second.position:
            yield Hit(second.position, (name, j), (name, i))


def nothing_is_scaled_twice(plan: Plan) -> Iterator[Fault]:
    """A position has one scale."""
    twice = Fault("P209", "is scaled twice")
    yield from _joined(plan, _twins("scales", plan.scales), twice, "first scaled here")


def nothing_is_dropped_twice(plan: Plan) -> Iterator[Fault]:
    """A position is dropped by one `drop`."""
    twice = Fault("P210", "is dropped twice")
    yield from _joined(plan, _twins("drops", plan.drops), twice, "first dropped here")


def nothing_dropped_is_decided(plan: Plan) -> Iterator[Fault]:
    """What a fixed `drop` takes away, nothing else is said of; a drop by choice may win."""
    drops = {d.position: ("drops", i) for i, d in enumerate(plan.drops) if not d.maybe}
    said: tuple[tuple[str, Sequence[Layer | Scale], str], ...] = (
        ("layers", plan.layers, "is decided and dropped"),
        ("scales", plan.scales, "is scaled and dropped"),
    )
    for name, decided, message in said:
        hits = [
            Hit(entry.position, (name, i), drops[entry.position])
            for i, entry in enumerate(decided)
            if entry.position in drops
        ]
        both = Fault("P208", message, help="keep one of the two")
        yield from _joined(plan, hits, both, "dropped here")
    learning = enumerate(plan.heal.layers if plan.heal is not None else ())
    hits = [Hit(at, ("heal", "layers", i), drops[at]) for i, at in learning if at in drops]
    gone = Fault("P208", "is healed and dropped", help="what is dropped learns nothing")
    yield from _joined(plan, hits, gone, "dropped here")


def overlay_or_stack(plan: Plan) -> Iterator[Fault]:
    """A plan has overlay statements or a stack."""
    if plan.stack is None:
        return
    names = ("layers", "others", "drops", "drop_any", "windows", "repeats", "scales", "bridges")
    first: Place | None = next(((name, 0) for name in names if getattr(plan, name)), None)
    first = ("whole",) if first is None and plan.whole is not None else first
    if first is not None:
        span = plan.origin.statement(first) if plan.origin else None
        also = Also("the stack is here", ("stack",))
        help_ = "a stack says all layers in order; write either"
        message = "an overlay statement stands beside a stack"
        yield Fault("P212", message, first, help_, (also,), span=span)


def a_stack_has_items(plan: Plan) -> Iterator[Fault]:
    """A stack of nothing is no model."""
    if plan.stack is not None and not plan.stack.items:
        yield Fault("P213", "the stack is empty", ("stack",), "name its layers: L0..L9 base")


# -------------------------------------------------------------------------------- rest and choices


def a_stack_fits_its_limit(plan: Plan) -> Iterator[Fault]:
    """A stack's limit removes `maybe` items only, so that the others must fit."""
    if plan.stack is None or (limit := plan.stack.limit) is None or limit < 1:
        return
    fixed = sum(not item.maybe for item in plan.stack.items)
    if fixed > limit:
        layers = "1 layer" if limit == 1 else f"{limit} layers"
        message = f"the limit is {layers}, and {fixed} of the stack are not 'maybe'"
        at = ("stack", "limit")
        yield Fault("P220", message, at, "a limit takes only 'maybe' items away")


def the_dtype_is_known(plan: Plan) -> Iterator[Fault]:
    """The output's dtype is one that checkpoints have."""
    if plan.dtype is not None and plan.dtype not in DTYPES:
        help_ = nearest(plan.dtype, DTYPES) or f"the dtypes are {listed(DTYPES)}"
        yield Fault("P403", f"'{plan.dtype}' is no dtype of an output", ("dtype",), help_)


def the_tokenizer_is_one_models(plan: Plan) -> Iterator[Fault]:
    """Tokenizers don't merge, and a model that is made of others has none of its own."""
    if isinstance(plan.tokenizer, Merge | Subset):
        help_ = "'tokenizer union' has the tokens of all models"
        yield Fault("P402", "a tokenizer is one model's and can't be merged", ("tokenizer",), help_)
    named: list[tuple[Place, str]] = []
    if isinstance(plan.tokenizer, Take):
        named += [(("tokenizer", *at), name) for at, name, _ in named_models(plan.tokenizer)]
    if isinstance(plan.chat_template, TemplateOf):
        named.append((("chat_template",), plan.chat_template.model))
    for at, name in named:
        if any(plan.models[n].made is not None for n in needed(plan, [name])):
            message = f"'{name}' is made of models, and has no tokenizer of its own"
            yield Fault("P402", message, at, "name the model that has it")


def the_chat_template_is_known(plan: Plan) -> Iterator[Fault]:
    """A chat template is a file, a model's, or one that has a name here."""
    said = plan.chat_template
    if isinstance(said, str) and said[:1] not in (".", "/", "~") and said not in CHAT_TEMPLATES:
        help_ = f"known is {listed(CHAT_TEMPLATES)}; a file starts with '.', '/' or '~'"
        yield Fault("P404", f"'{said}' names no chat template", ("chat_template",), help_)


def every_number_fits_into_float32(plan: Plan) -> Iterator[Fault]:
    """A number is one that the arithmetic can compute with, which is done in float32."""
    most = f"{LARGEST_SINGLE:.9g}"
    for at, value in values(plan):
        for number in numbers(value):
            if abs(number) > LARGEST_SINGLE:
                got = f"{number:g}" if isinstance(number, float) else "a larger whole number"
                yield Fault("P306", f"expected at most {most}, where float32 ends, got {got}", at)


def every_scale_is_positive(plan: Plan) -> Iterator[Fault]:
    """A hidden state is scaled by a number above 0."""
    for i, scale in enumerate(plan.scales):
        if any(number <= 0 for number in numbers(scale.factor, plan.numbers)):
            yield Fault("P405", "a scale is above 0", ("scales", i, "factor"))


def every_tie_holds_a_choice(plan: Plan) -> Iterator[Fault]:
    """`tied` before a statement without a choice does nothing."""
    groups: dict[tuple[Place, int | None], tuple[Place, bool]] = {}
    for at, entry in tied_entries(plan):
        first, before = groups.get((at[:-1], entry.tied), (at, False))
        has = before or any(site.open for site in entry_sites(entry, at))
        groups[at[:-1], entry.tied] = first, has
    for at, has in groups.values():
        if not has:
            yield Fault("P507", "'tied' stands before a statement without a choice",
                        (*at, "tied"), "leave it out", severity="warning")  # fmt: skip


PLAN_RULES: tuple[PlanRule, ...] = (
    the_version_is_known,
    base_is_declared,
    every_name_can_be_one,
    every_model_is_declared,
    every_source_can_be_one,
    every_position_is_decided_once,
    nothing_is_scaled_twice,
    nothing_is_dropped_twice,
    nothing_dropped_is_decided,
    overlay_or_stack,
    a_stack_has_items,
    a_stack_fits_its_limit,
    the_dtype_is_known,
    the_tokenizer_is_one_models,
    the_chat_template_is_known,
    every_number_fits_into_float32,
    every_scale_is_positive,
    every_tie_holds_a_choice,
    *MERGING,
)
"""The rules of every plan, in no order that matters; a search and bridges have others besides."""

_ABSENCES: Mapping[PlanRule, tuple[str, ...]] = {
    base_is_declared: ("model",),
    every_model_is_declared: ("model",),
    a_stack_has_items: ("stack",),
}
"""Rules that miss something, and the statements that may say it; of any without one."""
