"""A tree into a `Plan`: each statement into its entries, or into faults."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from gptailor.lang import draft as d
from gptailor.lang import tree
from gptailor.lang.recipes import (
    Pattern,
    made_pattern,
    measure_of,
    models_pattern,
)
from gptailor.plan import plan as p
from gptailor.plan.bounds import MOST_ENTRIES, MOST_FAULTS, MOST_LAYERS
from gptailor.plan.faults import STATEMENT, TARGET, Also, Fault, Place, Source, Span, locate
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.search_block import with_file_type
from gptailor.plan.sites import recipe_lists, value_lists


def lower(file: tree.File, source: Source, folder: Path) -> tuple[p.Plan, list[Fault]]:
    """Return the plan of a tree, and the faults that kept statements out of it."""
    draft = d.Draft()
    for i, statement in enumerate(file.statements):
        if statement.rule == "version" and i > 0:
            draft.fault("P101", "'tailor' is not the first statement", statement.span,
                        "move it to the top of the file")  # fmt: skip
        lower_statement(draft, statement)
        if len(draft.faults) > MOST_FAULTS or draft.entries > MOST_ENTRIES:
            break
    plan = _with_file_type(draft.plan(source, folder))
    return plan, locate(draft.faults, plan.origin)


def _with_file_type(plan: p.Plan) -> p.Plan:
    """Return a plan with one GGUF file, with the file's type in its measures."""
    if len(plan.gguf) != 1:
        return plan
    typed = partial(with_file_type, file_type=plan.gguf[0].type)
    search = plan.search and plan.search.model_copy(
        update={
            "objectives": tuple(map(typed, plan.search.objectives)),
            "requires": tuple(map(typed, plan.search.requires)),
        }
    )
    return plan.model_copy(update={"search": search, "expects": tuple(map(typed, plan.expects))})


def lower_statement(draft: d.Draft, statement: tree.Statement) -> None:
    """Add a statement's entries to the draft, and a fault for each mark that it can't have."""
    if (excluded := _EXCLUDED.get(statement.rule)) is not None:
        _no_marks(draft, statement, *excluded)
    _LOWER[statement.rule](draft, statement, *statement.parts)


def parts_of(statement: tree.Statement) -> dict[str, Any]:
    """Return a statement's parts by name: the parameters of the function of its rule."""
    names = [*signature(_LOWER[statement.rule]).parameters][2:]
    return dict(zip(names, statement.parts, strict=False))  # the last ones may have defaults


def _version(draft: d.Draft, statement: tree.Statement, number: tree.Fixed) -> None:
    if number.value != 1:
        shown = f"{number.value!r}"[:20]
        draft.fault("P102", f"unknown version {shown} of the language", number.span,
                    "write 'tailor 1', or update gptailor")  # fmt: skip
    draft.once(("tailor",), d.spanned(statement, 1))


def _model(
    draft: d.Draft,
    statement: tree.Statement,
    name: tree.Word,
    on: tree.Word | None,
    source: tree.String | tree.From,
    revision: tree.String | None,
) -> None:
    if (earlier := draft.single.get(("models", name.text))) is not None:
        also = Also("first declared here", span=earlier.spans["name",])
        draft.fault("P104", f"the model '{name.text}' is declared twice", name.span,
                    "rename or remove one of the two", also)  # fmt: skip
        return
    parts = {"revision": d.placed_text(revision), "on": d.placed_text(on)}
    if isinstance(source, tree.From):
        if on is not None:
            draft.fault("P109", "expected the source of an adapter in quotes", source.span,
                        "write a folder or a Hub id, as in base + \"./adapter\"")  # fmt: skip
        if revision is not None:
            draft.fault("P110", "a merge can't have a revision", revision.span,
                        "remove the revision")  # fmt: skip
        pattern = models_pattern(draft, source, None)
        if pattern is None:  # a fault
            parts = {"source": d.spanned(source, ".")}
        else:
            parts = {"made": pattern.made | {(): source.span}}
    else:
        parts["source"] = d.placed_text(source)
    model = d.placed_data(p.Model, statement.span, **parts)
    draft.single["models", name.text] = model | {("name",): name.span, ("source",): source.span}


def _let(
    draft: d.Draft,
    statement: tree.Statement,
    name: tree.Word,
    value: tree.Fixed | tree.Between | tree.OneNumber,
) -> None:
    if (earlier := draft.single.get(("numbers", name.text))) is not None:
        also = Also("first defined here", span=earlier.spans["name",])
        draft.fault("P113", f"the number '{name.text}' is defined twice", name.span,
                    "rename or remove one of the two", also)  # fmt: skip
        return
    number = d.value_of(draft, value)
    named = d.spanned(statement, 0 if number is None else number)
    spans = {("name",): name.span, ("value",): value.span}
    draft.single["numbers", name.text] = named | spans


def _others(
    draft: d.Draft, statement: tree.Statement, part: tree.Word | None, origin: tree.From
) -> None:
    named = d.part_named(draft, part)
    pattern = models_pattern(draft, origin, None)
    if pattern is None or (part is not None and named is None):
        return
    parts = {"part": part and d.spanned(part, named), "recipe": pattern.made}
    _add(draft, statement, "others", p.Others, **parts, **_tied(statement))


def _whole(draft: d.Draft, statement: tree.Statement, origin: tree.From) -> None:
    pattern = models_pattern(draft, origin, None)
    if pattern is not None:
        tied = statement.tied and d.spanned(statement.tied, 0)
        whole = d.placed_data(p.Whole, statement.span, recipe=pattern.made, tied=tied)
        draft.once(("whole",), whole)


def _dtype(draft: d.Draft, statement: tree.Statement, name: tree.Word) -> None:
    draft.once(("dtype",), d.spanned(name, name.text) | {STATEMENT: statement.span})


def _gguf(
    draft: d.Draft, statement: tree.Statement, name: tree.Word, on: tree.String | None
) -> None:
    parts = {"type": d.spanned(name, name.text.lower()), "on": d.placed_text(on)}
    draft.add(("gguf",), d.placed_data(p.GgufOutput, statement.span, **parts))


def _rest(
    draft: d.Draft,
    statement: tree.Statement,
    word: tree.Word,
    origin: tree.From | tree.Word | tree.String,
) -> None:
    where = word.text
    choice = f"write '{where} from one of …' for a choice" if where in p.REST else ""
    _no_marks(draft, statement, _MARKS, where, choice)
    if where == "chat_template" and isinstance(origin, tree.Word):
        template = d.placed_data(p.TemplateOf, statement.span, model=d.placed_text(origin))
        draft.once((where,), template)
    elif not isinstance(origin, tree.From):
        draft.once((where,), d.spanned(statement, origin.text))
    elif (pattern := models_pattern(draft, origin, None)) is not None:
        draft.once((where,), pattern.made | {(): statement.span})


def _no_marks(
    draft: d.Draft, statement: tree.Statement, marks: Sequence[str], what: str, help_: str
) -> None:
    """Add a fault for each of these marks before a statement."""
    what = what.format(*statement.parts)
    for mark in marks:
        if (word := getattr(statement, mark)) is not None:
            draft.fault("P506", f"'{mark}' can't be combined with '{what}'", word.span, help_)


def _tied(statement: tree.Statement) -> dict[str, d.Placed]:
    """Return the entries' field for `tied`: one group for each statement, which a plan numbers."""
    group = statement.span.start
    return {} if statement.tied is None else {"tied": d.spanned(statement.tied, group)}


def _maybe(statement: tree.Statement) -> dict[str, d.Placed]:
    """Return the entries' field for `maybe`."""
    return {} if statement.maybe is None else {"maybe": d.spanned(statement.maybe, True)}


def _add(
    draft: d.Draft,
    statement: tree.Statement,
    field: str,
    kind: Callable[..., p.Open],
    **parts: d.Placed | None,
) -> None:
    """Add an entry, `maybe` or not, to one of the plan's lists."""
    draft.add((field,), d.placed_data(kind, statement.span, **parts, **_maybe(statement)))


def _add_each(
    draft: d.Draft,
    statement: tree.Statement,
    at: Place,
    kind: Callable[..., p.Open],
    target: d.Positions,
    recipes: Sequence[d.Placed] = (),
    **common: d.Placed,
) -> None:
    """Add an entry for each of a statement's layers, with its own recipe and these common parts."""
    common |= {**_maybe(statement), **_tied(statement)}
    for n, layer in enumerate(target.at):
        position = None if kind is p.Item else d.Placed(layer.number)
        recipe = recipes[n] if recipes else None
        entry = d.placed_data(kind, layer.span, position=position, recipe=recipe, **common)
        draft.add(at, entry | {TARGET: layer.range, STATEMENT: statement.span})


def _select(
    draft: d.Draft, statement: tree.Statement, layers: tree.Layers, origin: tree.From
) -> None:
    target = d.positions_of(draft, layers)
    _decide(draft, statement, target, models_pattern(draft, origin, target))


def _assign(
    draft: d.Draft,
    statement: tree.Statement,
    layers: tree.Layers,
    recipe: tree.Picked | tree.Merging,
) -> None:
    target = d.positions_of(draft, layers)
    pattern = made_pattern(draft, recipe)
    source = pattern.layers[0] if pattern else None
    if target and source and d.in_step(draft, target, source):
        _decide(draft, statement, target, pattern)


def _item(draft: d.Draft, statement: tree.Statement, recipe: tree.Picked | tree.Merging) -> None:
    """Add layers that are merged of layers of the same numbers."""
    pattern = made_pattern(draft, recipe)
    if pattern is None or (target := pattern.layers[0]) is None:
        return
    others = [at for at in pattern.layers if at is not None and at.numbers != target.numbers]
    if others:
        help_ = f"write the target before it, such as L{target.numbers[0]} = merge(…)"
        draft.fault("P215", "the target is missing, and the sources name different layers",
                    others[0].span, help_)  # fmt: skip
    _decide(draft, statement, target, pattern)  # so that its other faults are found too


def _decide(
    draft: d.Draft, statement: tree.Statement, target: d.Positions | None, pattern: Pattern | None
) -> None:
    if target is None or pattern is None or not _has_room(draft, statement, target, pattern):
        return
    spread = pattern.over(min(target.numbers), max(target.numbers))
    recipes = [spread.at(n) for n in range(len(target.at))]
    part = d.Placed(target.part)
    _add_each(draft, statement, ("layers",), p.Layer, target, recipes, part=part)


def _has_room(
    draft: d.Draft, statement: tree.Statement, target: d.Positions, pattern: Pattern
) -> bool:
    """Return whether a plan may name all layers of a recipe's lists; add a fault if not."""
    if not target.at:  # layers for which the plan had no room
        return False
    listed = sum(length for _, length in recipe_lists(pattern.made.entry))
    return draft.has_room(listed * len(target.at), statement.span)


def _drop(draft: d.Draft, statement: tree.Statement, layers: tree.Layers) -> None:
    target = d.positions_of(draft, layers, taker="'drop'")
    if target is not None:
        _add_each(draft, statement, ("drops",), p.Drop, target)


def _drop_some(
    draft: d.Draft,
    statement: tree.Statement,
    what: tree.Word,
    count: tree.Fixed | tree.Between | tree.Word,
    layers: tree.Layers,
) -> None:
    target = d.positions_of(draft, layers, taker=f"'drop {what.text}'")
    named = None
    if isinstance(count, tree.Word):
        number: d.Placed | None = d.spanned(count, 1)  # the draft's plan has the named number
        named = d.Placed(count.text)
    else:
        number = d.count_of(draft, count, "the number of layers to drop")
    if target is not None and number is not None:
        field, kind = _CHOICES[what.text]
        among = d.spanned(layers, tuple(sorted(target.numbers)))
        _add(draft, statement, field, kind, count=number, among=among, named=named)


_CHOICES: Mapping[str, tuple[str, type[p.DropAny | p.DropWindow]]] = {
    "any": ("drop_any", p.DropAny),
    "window": ("windows", p.DropWindow),
}

_Count = tree.Fixed | tree.Between


def _repeat(
    draft: d.Draft, statement: tree.Statement, block: tree.Range, times: _Count | None
) -> None:
    ends = d.stretch(draft, block)
    runs = _times(draft, times)
    if ends is not None and runs is not None:
        first, last = d.spanned(block.first, ends[0]), d.spanned(block.last, ends[1])
        _add(draft, statement, "repeats", p.Repeat, first=first, last=last, times=runs)


def _repeat_window(
    draft: d.Draft,
    statement: tree.Statement,
    count: _Count,
    layers: tree.Layers,
    times: _Count | None,
) -> None:
    target = d.positions_of(draft, layers)
    length = d.count_of(draft, count, "the number of layers to repeat")
    runs = _times(draft, times)
    if target is not None and length is not None and runs is not None:
        among = d.spanned(layers, tuple(sorted(target.numbers)))
        parts = {"count": length, "among": among, "times": runs}
        _add(draft, statement, "repeats", p.RepeatWindow, **parts)


def _times(draft: d.Draft, times: _Count | None) -> d.Placed | None:
    """Return the number of further runs of a block."""
    return d.Placed(1) if times is None else d.count_of(draft, times, "the number of repeats")


def _scale(
    draft: d.Draft,
    statement: tree.Statement,
    layers: tree.Layers,
    factor: tree.Numeral | tree.Word,
) -> None:
    target = d.positions_of(draft, layers, taker="'scale'")
    value = d.value_of(draft, factor)
    if value is None or target is None:
        return
    listed = sum(length for _, length in value_lists(value))
    if not draft.has_room(listed * len(target.at), factor.span):
        return
    value = p.over_positions(value, min(target.numbers), max(target.numbers))
    by = d.spanned(factor, value)
    _add_each(draft, statement, ("scales",), p.Scale, target, factor=by)


def _cut(
    draft: d.Draft,
    statement: tree.Statement,
    what: tree.Word,
    size: tree.Fixed | tree.SizesNode | tree.Word,
    on: tree.String,
    settings: Sequence[tree.SettingNode],
) -> None:
    parts = {"size": d.cut_size(draft, size, f"the size of '{what.text}'"), "on": d.placed_text(on)}
    parts |= _settings(draft, settings, what.text)
    draft.once((what.text,), d.placed_data(p.SizeCut, statement.span, **parts))


_LEAST = {"tokens": 1, "rank": 1, "seed": 0}
"""The least value of each setting that takes a whole number."""


def _settings(
    draft: d.Draft, settings: Sequence[tree.SettingNode], owner: str
) -> dict[str, d.Placed | None]:
    """Return a statement's settings. Those of a bridge may be open."""
    values: dict[str, d.Placed | None] = {}
    for setting in settings:
        name, node = setting.name.text, setting.value
        what = f"'{name}' of '{owner}'"
        if name in values:
            draft.fault("P305", f"'{name}' is given twice", setting.name.span,
                        "keep one of the two")  # fmt: skip
        if owner == "bridge":
            values[name] = d.placed_number(draft, node)
        elif isinstance(node, tree.Word):
            values[name] = d.placed_text(node)
        elif name in _LEAST:
            values[name] = d.whole_number(draft, node, what, _LEAST[name])
        else:
            values[name] = _fixed(draft, node, what)
    return values


def _bridge(
    draft: d.Draft,
    statement: tree.Statement,
    after: tree.LayerWord | None,
    by: tree.Word | None,
    on: tree.String,
    settings: Sequence[tree.SettingNode],
) -> None:
    given = _settings(draft, settings, "bridge")
    if after is None or d.is_a_layer(draft, after):
        parts = {"after": after and d.spanned(after, after.number), "by": d.placed_text(by)}
        _add(draft, statement, "bridges", p.Bridge, **parts, on=d.placed_text(on), **given)


def _heal(
    draft: d.Draft,
    statement: tree.Statement,
    layers: tree.Layers | None,
    teacher: tree.Word | None,
    on: Sequence[tree.HealTextNode],
    settings: Sequence[tree.SettingNode],
) -> None:
    trained = d.positions_of(draft, layers, taker="'heal'") if layers else None
    ordered = sorted(trained.at, key=lambda at: at.number) if trained else ()
    given = _settings(draft, settings, "heal")
    texts = [_heal_text(draft, node) for node in on]
    shared, taught = p.with_normal_teachers(
        teacher and teacher.text, [text.entry for text in texts]
    )
    words = [node.teacher or teacher for node in on]
    if teacher is not None and teacher not in words:
        message = f"every text names its own teacher, so '{teacher.text}' is never used"
        help_ = f"remove 'from {teacher.text}' before 'on'"
        draft.fault("P305", message, teacher.span, help_)
    healed = d.placed_data(
        p.Heal,
        statement.span,
        layers=d.listed_parts(
            [d.Placed(at.number, {(): at.span, TARGET: at.range}) for at in ordered]
        ),
        on=d.Placed(taught, d.listed_parts(texts).spans),
        teacher=d.Placed(shared),
        **given,
    )
    spans: dict[Place, Span] = {} if layers is None else {("layers",): layers.span}
    for i, word in enumerate(words):
        if word is not None:
            spans[("teacher",) if shared is not None else ("on", i, "teacher")] = word.span
    draft.once(("heal",), healed | spans)


def _heal_text(draft: d.Draft, node: tree.HealTextNode) -> d.Placed:
    """Return a text of a healing, with its own teacher."""
    file, answers = node.text, None
    if isinstance(file, tree.AnswersNode):
        settings = _settings(draft, file.settings, "answers")
        answers = d.placed_data(p.TeacherAnswers, None, **settings)
        file = file.file
    parts = {
        "file": d.placed_text(file),
        "answers": answers,
        "teacher": d.placed_text(node.teacher),
    }
    if node.weight is not None:
        parts["weight"] = _fixed(draft, node.weight, "'weight' of 'heal'")
    return d.placed_data(p.HealText, node.span, **parts)


def _fixed(draft: d.Draft, numeral: tree.Numeral | tree.Word, what: str) -> d.Placed:
    """Return a number that isn't a choice; 1, with a fault, for anything else."""
    if isinstance(numeral, tree.Fixed):
        return d.placed_number(draft, numeral) or d.spanned(numeral, 1)
    draft.fault("P306", f"{what} must be one number, not a choice", numeral.span)
    return d.spanned(numeral, 1)


def _block(
    draft: d.Draft,
    statement: tree.Statement,
    name: tree.Word,
    statements: Sequence[tree.Statement],
    closing: Sequence[str],
) -> None:
    said_before = (name.text,) in draft.single
    draft.once((name.text,), d.spanned(name, True) | {STATEMENT: statement.span})
    for inner in () if said_before else statements:
        if inner.rule == "item":
            _items(draft, inner, made_pattern(draft, inner.parts[0], taker="a stack"))
        elif inner.rule == "assign":
            draft.fault("P216", "an item of a stack can't have a target", inner.parts[0].span,
                        "remove 'L… ='; the items are the output's layers in order")  # fmt: skip
            _items(draft, inner, made_pattern(draft, inner.parts[1], taker="a stack"))
        else:
            lower_statement(draft, inner)


def _items(draft: d.Draft, statement: tree.Statement, pattern: Pattern | None) -> None:
    if len(draft.lists.get(("stack", "items"), ())) > MOST_LAYERS:
        return  # too many already, which a rule reports
    target = pattern.layers[0] if pattern is not None else None
    if pattern is None or target is None or not _has_room(draft, statement, target, pattern):
        return
    count = len(target.at)
    recipes = [pattern.over(n, count - 1).at(n) for n in range(count)]
    _add_each(draft, statement, ("stack", "items"), p.Item, target, recipes)


def _limit(draft: d.Draft, statement: tree.Statement, number: tree.Fixed) -> None:
    count = d.whole_number(draft, number, "a limit of layers", least=1)
    if count is not None:
        draft.once(("stack", "limit"), count | {(): statement.span})


def _objective(
    draft: d.Draft,
    statement: tree.Statement,
    direction: tree.Word | None,
    measure: tree.CallNode,
) -> None:
    """Add an objective; by default its direction is the better one.

    Where only a metric knows the direction it is `maximize`.
    """
    before = len(draft.faults)
    spec = OBJECTIVES.get(measure.name.text)
    parts = measure_of(draft, measure)
    if len(draft.faults) == before:
        better = d.Placed((spec and spec.direction) or "maximize")
        parts["direction"] = d.placed_text(direction) or better
        draft.add(("search", "objectives"), d.placed_data(p.Objective, statement.span, **parts))


def _bounded(
    draft: d.Draft,
    statement: tree.Statement,
    keyword: tree.Word,
    measure: tree.CallNode,
    sign: tree.Word,
    bound: tree.BoundNode,
) -> None:
    """Add a requirement of the search, or an expectation of the plan."""
    before = len(draft.faults)
    parts: dict[str, d.Placed | None] = {**measure_of(draft, measure), "sign": d.placed_text(sign)}
    number = d.Placed(d.value_of(draft, bound.number)) if bound.number else None
    parts["bound"] = d.placed_data(p.Bound, bound.span, number=number, of=d.placed_text(bound.of))
    required = keyword.text == "require"
    kind = p.Requirement if required else p.Expectation
    if len(draft.faults) == before:
        at = ("search", "requires") if required else ("expects",)
        draft.add(at, d.placed_data(kind, statement.span, **parts))


def _budget(
    draft: d.Draft,
    statement: tree.Statement,
    word: tree.Word,
    first: tree.Fixed,
    last: tree.Fixed | None = None,
) -> None:
    name = word.text
    least = 0 if name == "seed" else 1
    nodes = [first] if last is None else [first, last]
    numbers = [d.whole_number(draft, number, f"'{name}'", least) for number in nodes]
    values = [number.entry for number in numbers if number is not None]
    if len(values) == len(numbers):
        value = (values[0], values[-1]) if name == "fidelity" else values[0]
        draft.once(("search", name), d.spanned(statement, value))


_MARKS = ("tied", "maybe")
_BLOCK = (("tied",), "repeat", "remove 'tied'; it is one choice already")
_EXCLUDED: Mapping[str, tuple[Sequence[str], str, str]] = {
    "whole": (
        ("maybe",), "whole", "write 'whole from one of …' for a choice",
    ),
    "dropping_some": (("tied",), "drop {0.text}", "remove 'tied'; it is one choice already"),
    "repeating": _BLOCK,
    "repeating_window": _BLOCK,
    "cutting": (
        _MARKS, "{0.text}",
        "write a range of sizes that ends at the model's own size",
    ),
    "bridging": (("tied",), "bridge", "remove 'tied'; it is one choice already"),
    "heal": (_MARKS, "heal", "healing can't be a choice; write two plans"),
}  # fmt: skip
"""The marks that can't stand before a statement, the statement's words, and the remedy."""

_LOWER: Mapping[str, Callable[..., None]] = {
    "version": _version,
    "declare": _model,
    "let": _let,
    "others": _others,
    "whole": _whole,
    "dtype": _dtype,
    "gguf": _gguf,
    "rest": _rest,
    "select": _select,
    "assign": _assign,
    "item": _item,
    "dropping": _drop,
    "dropping_some": _drop_some,
    "repeating": _repeat,
    "repeating_window": _repeat_window,
    "scaling": _scale,
    "cutting": _cut,
    "bridging": _bridge,
    "heal": _heal,
    "block": _block,
    "limit": _limit,
    "objective": _objective,
    "bounded": _bounded,
    "budget": _budget,
}
"""The function of each rule of a statement; its parameters name the rule's parts in order."""
