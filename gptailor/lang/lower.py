"""A tree into a `Plan`: each statement into its entries, or into faults."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from gptailor.lang import draft as d
from gptailor.lang import tree
from gptailor.lang.recipes import (
    Pattern,
    made_pattern,
    measure_arguments,
    models_pattern,
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
        if statement.rule == "version" and i > 0:
            draft.fault("P101", "'tailor' is not the first statement", statement.span,
                        "move it to the top of the file")  # fmt: skip
        lower_statement(draft, statement)
        if len(draft.faults) > MOST_FAULTS or draft.entries > MOST_ENTRIES:
            break
    plan = draft.plan(source, folder)
    return plan, locate(draft.faults, plan.origin)


def lower_statement(draft: d.Draft, statement: tree.Statement) -> None:
    """Add a statement's entries to the draft, and a fault for each mark that it can't have."""
    if (excluded := _EXCLUDED.get(statement.rule)) is not None:
        _no_marks(draft, statement, *excluded)
    _LOWER[statement.rule](draft, statement, *statement.parts)


def parts_of(statement: tree.Statement) -> dict[str, Any]:
    """Return a statement's parts by name: the parameters of the function of its rule."""
    names = [*signature(_LOWER[statement.rule]).parameters][2:]
    return dict(zip(names, statement.parts, strict=False))  # the last ones may have defaults


def _spans(entry_span: Span, **inside: tree.TreeNode | None) -> dict[Place, Span]:
    """Return an entry's span, and the spans of its parts that are present."""
    return {
        (): entry_span,
        **{(name,): node.span for name, node in inside.items() if node is not None},
    }


def _version(draft: d.Draft, statement: tree.Statement, number: tree.Fixed) -> None:
    if number.value != 1:
        shown = f"{number.value!r}"[:20]
        draft.fault("P102", f"there is no version {shown} of the language", number.span,
                    "this gptailor reads 'tailor 1'")  # fmt: skip
    draft.once(("tailor",), 1, statement.span)


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
        draft.fault("P104", f"the model '{name.text}' is declared twice", name.span, "", also)
        return
    spans = _spans(statement.span, name=name, source=source, on=on, revision=revision)
    fields: dict[str, Any]
    if isinstance(source, tree.From):
        if on is not None:
            draft.fault("P109", "expected an adapter in quotes: a folder or a Hub id", source.span)
        if revision is not None:
            draft.fault("P110", "a model that is made of models has no revision", revision.span)
        pattern = models_pattern(draft, source, None)
        fields = {"made": pattern.recipe} if pattern is not None else {"source": "."}  # a fault
        inside = pattern.spans if pattern is not None else {}
        spans |= {("made", *place[1:]): span for place, span in inside.items()}
        spans["made",] = source.span
    else:
        fields = _texts(source=source, revision=revision, on=on)
    draft.single["models", name.text] = d.Placed(p.built(p.Model, **fields), spans)


def _texts(**nodes: tree.Word | tree.String | None) -> dict[str, str]:
    """Return the texts of the parts that are present."""
    return {name: node.text for name, node in nodes.items() if node is not None}


def _let(
    draft: d.Draft,
    statement: tree.Statement,
    name: tree.Word,
    value: tree.Fixed | tree.Between | tree.OneNumber,
) -> None:
    if (earlier := draft.single.get(("numbers", name.text))) is not None:
        also = Also("first named here", span=earlier.spans["name",])
        draft.fault("P113", f"the number '{name.text}' is named twice", name.span, "", also)
        return
    number = d.value_of(draft, value)
    spans = _spans(statement.span, name=name, value=value)
    draft.single["numbers", name.text] = d.Placed(0 if number is None else number, spans)


def _others(
    draft: d.Draft, statement: tree.Statement, part: tree.Word | None, origin: tree.From
) -> None:
    named = d.part_named(draft, part)
    pattern = models_pattern(draft, origin, None)
    if pattern is None or (part is not None and named is None):
        return
    spans = _spans(statement.span, tied=statement.tied, part=part) | pattern.spans
    fields = {"part": named, "recipe": pattern.recipe, **_marks(draft, statement)}
    _add(draft, statement, "others", p.Others, spans, **fields)


def _whole(draft: d.Draft, statement: tree.Statement, origin: tree.From) -> None:
    pattern = models_pattern(draft, origin, None)
    if pattern is not None:
        tied = 0 if statement.tied is not None else None
        entry = p.built(p.Whole, recipe=pattern.recipe, tied=tied)
        spans = _spans(statement.span, tied=statement.tied) | pattern.spans
        draft.once(("whole",), entry, statement.span, spans)


def _dtype(draft: d.Draft, statement: tree.Statement, name: tree.Word) -> None:
    draft.once(("dtype",), name.text, name.span, {STATEMENT: statement.span})


def _rest(
    draft: d.Draft,
    statement: tree.Statement,
    word: tree.Word,
    origin: tree.From | tree.Word | tree.String,
) -> None:
    where = word.text
    choice = f"write '{where} from one of …' for a choice" if where in p.REST else ""
    _no_marks(draft, statement, _MARKS, where, choice)
    if not isinstance(origin, tree.From):
        of_model = where == "chat_template" and isinstance(origin, tree.Word)
        value = p.built(p.TemplateOf, model=origin.text) if of_model else origin.text
        draft.once((where,), value, statement.span)
    elif (pattern := models_pattern(draft, origin, None)) is not None:
        spans = {place[1:]: span for place, span in pattern.spans.items()}
        draft.once((where,), pattern.recipe, statement.span, spans)


def _no_marks(
    draft: d.Draft, statement: tree.Statement, marks: Sequence[str], what: str, help_: str
) -> None:
    """Add a fault for each of these marks before a statement."""
    what = what.format(*statement.parts)
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
    draft.add((field,), entry, _spans(statement.span, maybe=statement.maybe) | spans)


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
    pattern = pattern.over(min(target.numbers), max(target.numbers))
    for n, at, marks, spans in _entries(draft, statement, target):
        recipe = pattern.at(n)
        entry = p.built(p.Layer, position=at.number, part=target.part, recipe=recipe, **marks)
        draft.add(("layers",), entry, spans | pattern.all_spans(n))


def _has_room(
    draft: d.Draft, statement: tree.Statement, target: d.Positions | None, pattern: Pattern
) -> bool:
    """Return whether a plan may name all layers of a recipe's lists; add a fault if not."""
    if target is not None and not target.at:  # layers for which the plan had no room
        return False
    listed = sum(length for _, length in recipe_lists(pattern.recipe))
    return draft.has_room(listed * len(target.at if target else ()), statement.span)


def _drop(draft: d.Draft, statement: tree.Statement, layers: tree.Layers) -> None:
    target = d.positions_of(draft, layers, taker="'drop'")
    for _, at, marks, spans in _entries(draft, statement, target):
        draft.add(("drops",), p.built(p.Drop, position=at.number, **marks), spans)


def _drop_some(
    draft: d.Draft,
    statement: tree.Statement,
    what: tree.Word,
    count: tree.Fixed | tree.Between | tree.Word,
    layers: tree.Layers,
) -> None:
    target = d.positions_of(draft, layers, taker=f"'drop {what.text}'")
    number: p.Count | None
    if isinstance(count, tree.Word):
        number, named = 1, count.text  # the draft's plan has the named number
    else:
        number, named = d.count_of(draft, count, "the number of layers to drop"), None
    if target is not None and number is not None:
        among = tuple(sorted(target.numbers))
        spans = _spans(statement.span, count=count, among=layers)
        field, kind = _CHOICES[what.text]
        _add(draft, statement, field, kind, spans, count=number, among=among, named=named)


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
        spans = _spans(statement.span, times=times, first=block.first, last=block.last)
        fields = {"first": ends[0], "last": ends[1], "times": runs}
        _add(draft, statement, "repeats", p.Repeat, spans, **fields)


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
        spans = _spans(statement.span, count=count, among=layers, times=times)
        fields = {"count": length, "among": tuple(sorted(target.numbers)), "times": runs}
        _add(draft, statement, "repeats", p.RepeatWindow, spans, **fields)


def _times(draft: d.Draft, times: _Count | None) -> p.Count | None:
    """Return the number of further runs of a block."""
    return 1 if times is None else d.count_of(draft, times, "the number of repeats")


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
    for _, at, marks, spans in _entries(draft, statement, target):
        entry = p.built(p.Scale, position=at.number, factor=value, **marks)
        draft.add(("scales",), entry, spans | {("factor",): factor.span})


def _cut(
    draft: d.Draft,
    statement: tree.Statement,
    what: tree.Word,
    size: tree.Fixed | tree.SizesNode | tree.Word,
    on: tree.String,
    settings: Sequence[tree.SettingNode],
) -> None:
    spans = _spans(statement.span, size=size, on=on)
    cut_size = d.cut_size(draft, size, f"the size of '{what.text}'")
    given = _settings(draft, settings, what.text, spans)
    entry = p.built(p.SizeCut, size=cut_size, on=on.text, **given)
    draft.once((what.text,), entry, statement.span, spans)


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


def _bridge(
    draft: d.Draft,
    statement: tree.Statement,
    after: tree.LayerWord | None,
    by: tree.Word | None,
    on: tree.String,
    settings: Sequence[tree.SettingNode],
) -> None:
    spans = _spans(statement.span, on=on, after=after, by=by)
    given = _settings(draft, settings, "bridge", spans)
    if after is None or d.is_a_layer(draft, after):
        fields = {"after": after and after.number, **_texts(by=by, on=on), **given}
        _add(draft, statement, "bridges", p.Bridge, spans, **fields)


def _heal(
    draft: d.Draft,
    statement: tree.Statement,
    layers: tree.Layers | None,
    teacher: tree.Word | None,
    on: Sequence[tree.HealTextNode],
    settings: Sequence[tree.SettingNode],
) -> None:
    spans = _spans(statement.span, layers=layers)
    trained = d.positions_of(draft, layers, taker="'heal'") if layers else None
    ordered = sorted(trained.at, key=lambda at: at.number) if trained else ()
    for i, at in enumerate(ordered):
        spans |= {("layers", i): at.span, ("layers", i, *TARGET): at.range}
    given = _settings(draft, settings, "heal", spans)
    texts = [_heal_text(draft, i, node, spans) for i, node in enumerate(on)]
    shared, taught = p.with_normal_teachers(teacher and teacher.text, texts)
    words = [node.teacher or teacher for node in on]
    if teacher is not None and teacher not in words:
        message = f"every text names its own teacher, so '{teacher.text}' is never used"
        help_ = f"leave 'from {teacher.text}' out before 'on'"
        draft.fault("P305", message, teacher.span, help_)
    for i, word in enumerate(words):
        if word is not None:
            spans[("teacher",) if shared is not None else ("on", i, "teacher")] = word.span
    numbers = tuple(at.number for at in ordered)
    entry = p.built(p.Heal, on=taught, layers=numbers, teacher=shared, **given)
    draft.once(("heal",), entry, statement.span, spans)


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
    fields: Any = _texts(file=file, teacher=node.teacher)
    return p.built(p.HealText, answers=answers, weight=weight, **fields)


def _fixed(draft: d.Draft, numeral: tree.Numeral | tree.Word, what: str) -> int | float:
    """Return a number that is no choice; 1, with a fault, for anything else."""
    if not isinstance(numeral, tree.Fixed):
        draft.fault("P306", f"{what} must be one number, not a choice", numeral.span)
        return 1
    value = d.value_of(draft, numeral)
    return value if isinstance(value, int | float) else 1


def _block(
    draft: d.Draft,
    statement: tree.Statement,
    name: tree.Word,
    statements: Sequence[tree.Statement],
    closing: Sequence[str],
) -> None:
    said_before = (name.text,) in draft.single
    draft.once((name.text,), True, name.span, {STATEMENT: statement.span})
    for inner in () if said_before else statements:
        if inner.rule == "item":
            _items(draft, inner, made_pattern(draft, inner.parts[0], taker="a stack"))
        elif inner.rule == "assign":
            draft.fault("P216", "an item of a stack can't have a target", inner.parts[0].span,
                        "the items are the output's layers in order: leave 'L… =' out")  # fmt: skip
        else:
            lower_statement(draft, inner)


def _items(draft: d.Draft, statement: tree.Statement, pattern: Pattern | None) -> None:
    if len(draft.lists.get(("stack", "items"), ())) > MOST_LAYERS:
        return  # too many already, which a rule reports
    if pattern is not None and _has_room(draft, statement, target := pattern.layers[0], pattern):
        for n, _, marks, spans in _entries(draft, statement, target):
            recipe = pattern.over(n, len(target.at) - 1 if target else 0).at(n)
            entry = p.built(p.Item, recipe=recipe, **marks)
            draft.add(("stack", "items"), entry, spans | pattern.all_spans(n))


def _limit(draft: d.Draft, statement: tree.Statement, number: tree.Fixed) -> None:
    count = d.whole_number(draft, number, "a limit of layers", least=1)
    if count is not None:
        draft.once(("stack", "limit"), count, statement.span)


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
    name = measure.name.text
    spec = OBJECTIVES.get(name)
    spans = _spans(statement.span, direction=direction, name=measure.name)
    arguments = measure_arguments(draft, measure, spans)
    if len(draft.faults) > before:
        return
    better = spec.direction if spec else None
    wanted = direction.text if direction else (better or "maximize")
    fields: Any = {"direction": wanted, "name": name, "arguments": arguments}
    draft.add(("search", "objectives"), p.built(p.Objective, **fields), spans)


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
    spans = _spans(statement.span, name=measure.name, sign=sign, bound=bound)
    arguments = measure_arguments(draft, measure, spans)
    number: Any = d.value_of(draft, bound.number) if bound.number else None
    if bound.of is not None:
        spans["bound", "of"] = bound.of.span
    if len(draft.faults) > before:
        return
    limit = p.built(p.Bound, number=number, **_texts(of=bound.of))
    fields: Any = {"bound": limit, "arguments": arguments, **_texts(name=measure.name, sign=sign)}
    if keyword.text == "require":
        draft.add(("search", "requires"), p.built(p.Requirement, **fields), spans)
    else:
        draft.add(("expects",), p.built(p.Expectation, **fields), spans)


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
    if None not in numbers:
        value = (numbers[0], numbers[-1]) if name == "fidelity" else numbers[0]
        draft.once(("search", name), value, statement.span)


_MARKS = ("tied", "maybe")
_BLOCK = (("tied",), "repeat", "a block is one choice anyway")
_EXCLUDED: Mapping[str, tuple[Sequence[str], str, str]] = {
    "whole": (
        ("maybe",), "whole", "a model has an embedding, a norm and a head in any case",
    ),
    "dropping_some": (("tied",), "drop {0.text}", "it is one choice anyway"),
    "repeating": _BLOCK,
    "repeating_window": _BLOCK,
    "cutting": (
        _MARKS, "{0.text}",
        "a size that may stay as it is stands in the range: its upper end",
    ),
    "bridging": (("tied",), "bridge", ""),
    "heal": (_MARKS, "heal", "healing is no choice: a plan is healed or not"),
}  # fmt: skip
"""The marks that can't stand before a statement, the statement's words, and the remedy."""

_LOWER: Mapping[str, Callable[..., None]] = {
    "version": _version,
    "declare": _model,
    "let": _let,
    "others": _others,
    "whole": _whole,
    "dtype": _dtype,
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
