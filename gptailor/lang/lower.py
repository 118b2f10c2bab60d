"""A tree into a `Plan`: each statement into its entries, or into faults."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptailor.lang import draft as d
from gptailor.lang import tree
from gptailor.lang.recipes import (
    Pattern,
    measure_arguments,
    merging_pattern,
    models_pattern,
    picked_pattern,
)
from gptailor.plan import plan as p
from gptailor.plan.bounds import MOST_ENTRIES, MOST_FAULTS, MOST_LAYERS
from gptailor.plan.faults import STATEMENT, TARGET, Also, Fault, Place, Source, Span, locate
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.sites import recipe_lists, value_lists


def lower(file: tree.File, source: Source, folder: Path) -> tuple[p.Plan, list[Fault]]:
    """Return the plan of a tree, and the faults that kept statements out of it."""
    draft = d.Draft()
    for i, statement in enumerate(file.statements):
        if isinstance(statement.body, tree.Version) and i > 0:
            draft.fault("P101", "'tailor' is not the first statement", statement.span,
                        "move it to the top of the file")  # fmt: skip
        lower_statement(draft, statement)
        if len(draft.faults) > MOST_FAULTS or draft.entries > MOST_ENTRIES:
            break
    plan = draft.plan(source, folder)
    return plan, locate(draft.faults, plan.origin)


def lower_statement(draft: d.Draft, statement: tree.Statement) -> None:
    """Add a statement's entries to the draft, and a fault for each mark that it can't have."""
    if (excluded := _EXCLUDED.get(type(statement.body))) is not None:
        _no_marks(draft, statement, *excluded)
    _LOWER[type(statement.body)](draft, statement, statement.body)


def _spans(entry_span: Span, **inside: tree.TreeNode | None) -> dict[Place, Span]:
    """Return an entry's span, and the spans of its parts that are present."""
    return {
        (): entry_span,
        **{(name,): node.span for name, node in inside.items() if node is not None},
    }


def _version(draft: d.Draft, statement: tree.Statement, body: tree.Version) -> None:
    if body.number.value != 1:
        number = f"{body.number.value!r}"[:20]
        draft.fault("P102", f"there is no version {number} of the language", body.number.span,
                    "this gptailor reads 'tailor 1'")  # fmt: skip
    draft.once("tailor", 1, statement.span)


def _model(draft: d.Draft, statement: tree.Statement, body: tree.Declare) -> None:
    name = body.name.text
    if (earlier := draft.models.get(name)) is not None:
        also = Also("first declared here", span=earlier.spans["name",])
        draft.fault("P104", f"the model '{name}' is declared twice", body.name.span, "", also)
        return
    spans = _spans(statement.span, name=body.name, source=body.source, on=body.on,
                   revision=body.revision)  # fmt: skip
    fields: dict[str, Any]
    if isinstance(body.source, tree.From):
        if body.on is not None:
            draft.fault("P109", "expected an adapter in quotes: a folder or a Hub id",
                        body.source.span)  # fmt: skip
        if body.revision is not None:
            draft.fault("P110", "a model that is made of models has no revision",
                        body.revision.span)  # fmt: skip
        pattern = models_pattern(draft, body.source, None)
        fields = {"made": pattern.recipe} if pattern is not None else {"source": "."}  # a fault
        inside = pattern.spans if pattern is not None else {}
        spans |= {("made", *place[1:]): span for place, span in inside.items()}
        spans["made",] = body.source.span
    else:
        fields = {k: node.text for k in ("source", "revision", "on") if (node := getattr(body, k))}
    draft.models[name] = d.Placed(p.built(p.Model, **fields), spans)


def _let(draft: d.Draft, statement: tree.Statement, body: tree.LetNode) -> None:
    name = body.name.text
    if (earlier := draft.numbers.get(name)) is not None:
        also = Also("first named here", span=earlier.spans["name",])
        draft.fault("P113", f"the number '{name}' is named twice", body.name.span, "", also)
        return
    value = d.value_of(draft, body.value)
    spans = _spans(statement.span, name=body.name, value=body.value)
    draft.numbers[name] = d.Placed(0 if value is None else value, spans)


def _others(draft: d.Draft, statement: tree.Statement, body: tree.OthersNode) -> None:
    part = d.part_named(draft, body.part)
    pattern = models_pattern(draft, body.origin, None)
    if pattern is None or (body.part is not None and part is None):
        return
    spans = _spans(statement.span, tied=statement.tied, part=body.part) | pattern.spans
    fields = {"part": part, "recipe": pattern.recipe, **_marks(draft, statement)}
    _add(draft, statement, "others", p.Others, spans, **fields)


def _whole(draft: d.Draft, statement: tree.Statement, body: tree.WholeNode) -> None:
    pattern = models_pattern(draft, body.origin, None)
    if pattern is not None:
        tied = 0 if statement.tied is not None else None
        entry = p.built(p.Whole, recipe=pattern.recipe, tied=tied)
        spans = _spans(statement.span, tied=statement.tied) | pattern.spans
        draft.once("whole", entry, statement.span, spans)


def _rest(draft: d.Draft, statement: tree.Statement, body: tree.Rest) -> None:
    where = body.where.text
    choice = f"write '{where} from one of …' for a choice" if where in p.REST else ""
    _no_marks(draft, statement, _MARKS, where, choice)
    if where == "chat_template" and isinstance(body.origin, tree.Word):
        value = p.built(p.TemplateOf, model=body.origin.text)
        draft.once(where, value, statement.span, {("model",): body.origin.span})
    elif not isinstance(body.origin, tree.From):
        draft.once(where, body.origin.text, statement.span)
    elif (pattern := models_pattern(draft, body.origin, None)) is not None:
        spans = {place[1:]: span for place, span in pattern.spans.items()}
        draft.once(where, pattern.recipe, statement.span, spans)


def _no_marks(
    draft: d.Draft, statement: tree.Statement, marks: Sequence[str], what: str, help_: str
) -> None:
    """Add a fault for each of these marks before a statement."""
    what = what.format(**vars(statement.body))
    for mark in marks:
        if (word := getattr(statement, mark)) is not None:
            draft.fault("P506", f"'{mark}' can't be combined with '{what}'", word.span, help_)


def _marks(draft: d.Draft, statement: tree.Statement) -> dict[str, Any]:
    """Return the entries' fields for `maybe` and `tied`, with a new group for each `tied`."""
    marks: dict[str, Any] = {"maybe": statement.maybe is not None, "tied": None}
    if statement.tied is not None:
        marks["tied"] = draft.groups
        draft.groups += 1
    return marks


def _add(
    draft: d.Draft,
    statement: tree.Statement,
    field: str,
    kind: Callable[..., p.Open],
    spans: dict[Place, Span],
    **values: Any,
) -> None:
    """Add an entry, `maybe` or not, to one of the plan's lists."""
    entry = p.built(kind, **values | {"maybe": statement.maybe is not None})
    draft.add(field, entry, _spans(statement.span, maybe=statement.maybe) | spans)


def _entries(
    draft: d.Draft, statement: tree.Statement, target: d.Positions | None
) -> Iterator[tuple[int, d.At, dict[str, Any], dict[Place, Span]]]:
    """Yield each of a statement's layers: its number in the list, itself, its marks, its spans."""
    if target is None:
        return
    marks = _marks(draft, statement)
    for n, at in enumerate(target.at):
        spans = _spans(at.span, maybe=statement.maybe, tied=statement.tied)
        yield n, at, marks, spans | {TARGET: at.range, STATEMENT: statement.span}


def _select(draft: d.Draft, statement: tree.Statement, body: tree.Select) -> None:
    target = d.positions_of(draft, body.layers)
    _decide(draft, statement, target, models_pattern(draft, body.origin, target))


def _assign(draft: d.Draft, statement: tree.Statement, body: tree.Assign) -> None:
    target = d.positions_of(draft, body.layers)
    if isinstance(body.source, tree.Merging):
        pattern = merging_pattern(draft, body.source)
    else:
        pattern = picked_pattern(draft, body.source)
    source = pattern.layers[0] if pattern else None
    if target and source and d.in_step(draft, target, source):
        _decide(draft, statement, target, pattern)


def _merging(draft: d.Draft, statement: tree.Statement, body: tree.Merging) -> None:
    pattern = merging_pattern(draft, body)
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
    pattern = pattern.over(min(target.numbers), max(target.numbers))
    for n, at, marks, spans in _entries(draft, statement, target):
        recipe = pattern.at(n)
        entry = p.built(p.Layer, position=at.number, part=target.part, recipe=recipe, **marks)
        draft.add("layers", entry, spans | pattern.all_spans(n))


def _has_room(
    draft: d.Draft, statement: tree.Statement, target: d.Positions | None, pattern: Pattern
) -> bool:
    """Return whether a plan may name all layers of a recipe's lists; add a fault if not."""
    if target is not None and not target.at:  # layers for which the plan had no room
        return False
    listed = sum(length for _, length in recipe_lists(pattern.recipe))
    return draft.has_room(listed * len(target.at if target else ()), statement.span)


def _drop(draft: d.Draft, statement: tree.Statement, body: tree.Dropping) -> None:
    target = d.positions_of(draft, body.layers, taker="'drop'")
    for _, at, marks, spans in _entries(draft, statement, target):
        draft.add("drops", p.built(p.Drop, position=at.number, **marks), spans)


def _drop_some(draft: d.Draft, statement: tree.Statement, body: tree.DroppingSome) -> None:
    target = d.positions_of(draft, body.layers, taker=f"'drop {body.what.text}'")
    count: p.Count | None
    if isinstance(body.count, tree.Word):
        count, named = 1, body.count.text  # the draft's plan has the named number
    else:
        count, named = d.count_of(draft, body.count, "the number of layers to drop"), None
    if target is not None and count is not None:
        among = tuple(sorted(target.numbers))
        spans = _spans(statement.span, count=body.count, among=body.layers)
        field, kind = _CHOICES[body.what.text]
        _add(draft, statement, field, kind, spans, count=count, among=among, named=named)


_CHOICES: Mapping[str, tuple[str, type[p.DropAny | p.DropWindow]]] = {
    "any": ("drop_any", p.DropAny),
    "window": ("windows", p.DropWindow),
}


def _repeat(draft: d.Draft, statement: tree.Statement, body: tree.Repeating) -> None:
    block = d.stretch(draft, body.block)
    times = _times(draft, body)
    if block is not None and times is not None:
        ends = {"first": body.block.first, "last": body.block.last}
        spans = _spans(statement.span, times=body.times, **ends)
        first, last = block
        _add(draft, statement, "repeats", p.Repeat, spans, first=first, last=last, times=times)


def _repeat_window(draft: d.Draft, statement: tree.Statement, body: tree.RepeatingWindow) -> None:
    target = d.positions_of(draft, body.layers)
    count = d.count_of(draft, body.count, "the number of layers to repeat")
    times = _times(draft, body)
    if target is not None and count is not None and times is not None:
        spans = _spans(statement.span, count=body.count, among=body.layers, times=body.times)
        fields = {"count": count, "among": tuple(sorted(target.numbers)), "times": times}
        _add(draft, statement, "repeats", p.RepeatWindow, spans, **fields)


def _times(draft: d.Draft, body: tree.Repeating | tree.RepeatingWindow) -> p.Count | None:
    """Return the number of further runs of a block."""
    return 1 if body.times is None else d.count_of(draft, body.times, "the number of repeats")


def _scale(draft: d.Draft, statement: tree.Statement, body: tree.Scaling) -> None:
    target = d.positions_of(draft, body.layers, taker="'scale'")
    factor = d.value_of(draft, body.factor)
    if factor is None:
        return
    if target is not None:
        listed = sum(length for _, length in value_lists(factor))
        if not draft.has_room(listed * len(target.at), body.factor.span):
            return
        factor = p.over_positions(factor, min(target.numbers), max(target.numbers))
    for _, at, marks, spans in _entries(draft, statement, target):
        entry = p.built(p.Scale, position=at.number, factor=factor, **marks)
        draft.add("scales", entry, spans | {("factor",): body.factor.span})


def _cut(draft: d.Draft, statement: tree.Statement, body: tree.Cutting) -> None:
    name = body.what.text
    spans = _spans(statement.span, size=body.size, on=body.on)
    size = d.cut_size(draft, body.size, f"the size of '{name}'")
    settings = _settings(draft, body.settings, name, spans)
    entry = p.built(p.SizeCut, size=size, on=body.on.text, **settings)
    draft.once(name, entry, statement.span, spans)


_LEAST = {"tokens": 1, "rank": 1, "seed": 0}
"""The least value of each setting that takes a whole number."""


def _settings(
    draft: d.Draft,
    settings: Sequence[tree.SettingNode],
    owner: str,
    spans: dict[Place, Span],
    at: Place = (),
) -> dict[str, Any]:
    """Return a statement's settings, and note their spans. Those of a bridge may be open."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, node = setting.name.text, setting.value
        what = f"'{name}' of '{owner}'"
        if name in values:
            draft.fault("P305", f"'{name}' is given twice", setting.name.span)
        if owner == "bridge":
            values[name] = d.value_of(draft, node)
        elif isinstance(node, tree.Word):
            values[name] = node.text
        elif name in _LEAST:
            values[name] = d.whole_number(draft, node, what, _LEAST[name])
        else:
            values[name] = _fixed(draft, node, what)
        spans[*at, name] = node.span
    return values


def _bridge(draft: d.Draft, statement: tree.Statement, body: tree.Bridging) -> None:
    spans = _spans(statement.span, on=body.on, after=body.after, by=body.by)
    settings = _settings(draft, body.settings, "bridge", spans)
    if body.after is None or d.is_a_layer(draft, body.after):
        after = body.after.number if body.after else None
        by = body.by.text if body.by else None
        fields = {"after": after, "by": by, "on": body.on.text, **settings}
        _add(draft, statement, "bridges", p.Bridge, spans, **fields)


def _heal(draft: d.Draft, statement: tree.Statement, body: tree.HealNode) -> None:
    spans = _spans(statement.span, layers=body.layers)
    layers = d.positions_of(draft, body.layers, taker="'heal'") if body.layers else None
    ordered = sorted(layers.at, key=lambda at: at.number) if layers else ()
    for i, at in enumerate(ordered):
        spans |= {("layers", i): at.span, ("layers", i, *TARGET): at.range}
    settings = _settings(draft, body.settings, "heal", spans)
    texts = [_heal_text(draft, i, node, spans) for i, node in enumerate(body.on)]
    shared = body.teacher.text if body.teacher else None
    teacher, on = p.with_normal_teachers(shared, texts)
    words = [node.teacher or body.teacher for node in body.on]
    if body.teacher is not None and body.teacher not in words:
        message = f"every text names its own teacher, so '{shared}' is never used"
        draft.fault("P305", message, body.teacher.span, f"leave 'from {shared}' out before 'on'")
    for i, word in enumerate(words):
        if word is not None:
            spans[("teacher",) if teacher is not None else ("on", i, "teacher")] = word.span
    numbers = tuple(at.number for at in ordered)
    entry = p.built(p.Heal, on=on, layers=numbers, teacher=teacher, **settings)
    draft.once("heal", entry, statement.span, spans)


def _heal_text(
    draft: d.Draft, i: int, node: tree.HealTextNode, spans: dict[Place, Span]
) -> p.HealText:
    """Return a text of a healing, with its own teacher, and note the spans inside it."""
    spans["on", i] = node.span
    answers = None
    file = node.text
    if isinstance(file, tree.AnswersNode):
        settings = _settings(draft, file.settings, "answers", spans, ("on", i, "answers"))
        answers = p.built(p.TeacherAnswers, **settings)
        file = file.file
    spans["on", i, "file"] = file.span
    weight: int | float = 1
    if node.weight is not None:
        spans["on", i, "weight"] = node.weight.span
        weight = _fixed(draft, node.weight, "'weight' of 'heal'")
    teacher = node.teacher.text if node.teacher is not None else None
    return p.built(p.HealText, file=file.text, answers=answers, teacher=teacher, weight=weight)


def _fixed(draft: d.Draft, numeral: tree.Numeral | tree.Word, what: str) -> int | float:
    """Return a number that is no choice; 1, with a fault, for anything else."""
    if not isinstance(numeral, tree.Fixed):
        draft.fault("P306", f"{what} must be one number, not a choice", numeral.span)
        return 1
    value = d.value_of(draft, numeral)
    return value if isinstance(value, int | float) else 1


def _block(draft: d.Draft, statement: tree.Statement, body: tree.Block) -> None:
    said_before = body.name.text in draft.single
    draft.once(body.name.text, True, body.name.span, {STATEMENT: statement.span})
    for inner in () if said_before else body.statements:
        if isinstance(inner.body, tree.Merging):
            _items(draft, inner, merging_pattern(draft, inner.body, taker="a stack"))
        elif isinstance(inner.body, tree.Picked):
            _items(draft, inner, picked_pattern(draft, inner.body, taker="a stack"))
        elif isinstance(inner.body, tree.Assign):
            draft.fault("P216", "an item of a stack can't have a target", inner.body.layers.span,
                        "the items are the output's layers in order: leave 'L… =' out")  # fmt: skip
        else:
            lower_statement(draft, inner)


def _items(draft: d.Draft, statement: tree.Statement, pattern: Pattern | None) -> None:
    if len(draft.lists["items"]) > MOST_LAYERS:
        return  # too many already, which a rule reports
    if pattern is not None and _has_room(draft, statement, target := pattern.layers[0], pattern):
        for n, _, marks, spans in _entries(draft, statement, target):
            recipe = pattern.over(n, len(target.at) - 1 if target else 0).at(n)
            entry = p.built(p.Item, recipe=recipe, **marks)
            draft.add("items", entry, spans | pattern.all_spans(n))


def _limit(draft: d.Draft, statement: tree.Statement, body: tree.Limit) -> None:
    count = d.whole_number(draft, body.count, "a limit of layers", least=1)
    if count is not None:
        draft.once("limit", count, statement.span)


def _objective(draft: d.Draft, statement: tree.Statement, body: tree.ObjectiveNode) -> None:
    """Add an objective; by default its direction is the better one.

    Where only a metric knows the direction it is `maximize`.
    """
    before = len(draft.faults)
    name = body.measure.name.text
    spec = OBJECTIVES.get(name)
    spans = _spans(statement.span, direction=body.direction, name=body.measure.name)
    arguments = measure_arguments(draft, body.measure, spans)
    if len(draft.faults) > before:
        return
    better = spec.direction if spec else None
    direction = body.direction.text if body.direction else (better or "maximize")
    fields: Any = {"direction": direction, "name": name, "arguments": arguments}
    draft.add("objectives", p.built(p.Objective, **fields), spans)


def _bounded(draft: d.Draft, statement: tree.Statement, body: tree.BoundedNode) -> None:
    """Add a requirement of the search, or an expectation of the plan."""
    before = len(draft.faults)
    spans = _spans(statement.span, name=body.measure.name, sign=body.sign, bound=body.bound)
    arguments = measure_arguments(draft, body.measure, spans)
    number: Any = d.value_of(draft, body.bound.number) if body.bound.number else None
    if body.bound.of is not None:
        spans["bound", "of"] = body.bound.of.span
    if len(draft.faults) > before:
        return
    of = body.bound.of.text if body.bound.of else None
    fields: Any = {"name": body.measure.name.text, "sign": body.sign.text, "arguments": arguments}
    bound = p.built(p.Bound, number=number, of=of)
    if body.keyword.text == "require":
        draft.add("requires", p.built(p.Requirement, bound=bound, **fields), spans)
    else:
        draft.add("expects", p.built(p.Expectation, bound=bound, **fields), spans)


def _budget(draft: d.Draft, statement: tree.Statement, body: tree.BudgetNode) -> None:
    name = body.name.text
    least = 0 if name == "seed" else 1
    nodes = [body.first] if body.last is None else [body.first, body.last]
    numbers = [d.whole_number(draft, number, f"'{name}'", least) for number in nodes]
    if None not in numbers:
        value = (numbers[0], numbers[-1]) if name == "fidelity" else numbers[0]
        draft.once(name, value, statement.span)


_MARKS = ("tied", "maybe")
_BLOCK = (("tied",), "repeat", "a block is one choice anyway")
_EXCLUDED: Mapping[type, tuple[tuple[str, ...], str, str]] = {
    tree.WholeNode: (
        ("maybe",), "whole", "a model has an embedding, a norm and a head in any case",
    ),
    tree.DroppingSome: (("tied",), "drop {what.text}", "it is one choice anyway"),
    tree.Repeating: _BLOCK,
    tree.RepeatingWindow: _BLOCK,
    tree.Cutting: (
        _MARKS, "{what.text}",
        "a size that may stay as it is stands in the range: its upper end",
    ),
    tree.Bridging: (("tied",), "bridge", ""),
    tree.HealNode: (_MARKS, "heal", "healing is no choice: a plan is healed or not"),
}  # fmt: skip
"""The marks that can't stand before a statement, the statement's words, and the remedy."""

_LOWER: dict[type, Callable[[d.Draft, tree.Statement, Any], None]] = {
    tree.Version: _version,
    tree.Declare: _model,
    tree.LetNode: _let,
    tree.OthersNode: _others,
    tree.WholeNode: _whole,
    tree.Dtype: lambda draft, statement, body: draft.once(
        "dtype", body.name.text, body.name.span, {STATEMENT: statement.span}
    ),
    tree.Rest: _rest,
    tree.Select: _select,
    tree.Assign: _assign,
    tree.Merging: _merging,
    tree.Dropping: _drop,
    tree.DroppingSome: _drop_some,
    tree.Repeating: _repeat,
    tree.RepeatingWindow: _repeat_window,
    tree.Scaling: _scale,
    tree.Cutting: _cut,
    tree.Bridging: _bridge,
    tree.HealNode: _heal,
    tree.Block: _block,
    tree.Limit: _limit,
    tree.ObjectiveNode: _objective,
    tree.BoundedNode: _bounded,
    tree.BudgetNode: _budget,
}
