"""A tree into a `Plan`: each statement into the entries it stands for; what can't be is a fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptailor.lang import recipes, tree
from gptailor.lang.draft import Draft, Placed
from gptailor.plan import plan as p
from gptailor.plan.faults import STATEMENT, TARGET, Also, Fault, Place, Source, Span, listed, locate
from gptailor.plan.registry import OBJECTIVES


def lower(file: tree.File, source: Source, folder: Path) -> tuple[p.Plan, list[Fault]]:
    """The plan that a tree stands for, and the faults that kept statements out of it."""
    draft = Draft()
    for i, statement in enumerate(file.statements):
        if isinstance(statement.body, tree.Version) and i > 0:
            draft.fault("P101", "'tailor' is not the first statement", statement.span,
                        "move it to the top of the file")  # fmt: skip
        lower_statement(draft, statement)
    plan = draft.plan(source, folder)
    assert plan.origin is not None
    return plan, locate(draft.faults, plan.origin)


def has_version(file: tree.File) -> bool:
    """Whether the text says its language version."""
    return any(isinstance(statement.body, tree.Version) for statement in file.statements)


def lower_statement(draft: Draft, statement: tree.Statement) -> None:
    """Add what a statement says to the draft."""
    _LOWER[type(statement.body)](draft, statement, statement.body)


# ----------------------------------------------------------------------------- the file, the models


def _version(draft: Draft, statement: tree.Statement, body: tree.Version) -> None:
    if body.number.value != 1:
        said = f"{body.number.value!r}"[:20]
        draft.fault("P102", f"there is no version {said} of the language", body.number.span,
                    "this gptailor reads 'tailor 1'")  # fmt: skip
    draft.once("tailor", 1, statement.span)


def _model(draft: Draft, statement: tree.Statement, body: tree.Declare) -> None:
    name = body.name.text
    known = draft.models.get(name)
    if known is not None:
        also = Also("first declared here", span=known.spans["name",])
        draft.fault("P104", f"the model '{name}' is declared twice", body.name.span, "", also)
        return
    spans: dict[Place, Span] = {(): statement.span, ("name",): body.name.span}
    spans["source",] = body.source.span
    if body.on is not None:
        spans["on",] = body.on.span
    if body.revision is not None:
        spans["revision",] = body.revision.span
    entry = p.Model(
        source=body.source.text,
        revision=body.revision.text if body.revision else None,
        on=body.on.text if body.on else None,
    )
    draft.models[name] = Placed(entry, spans)


def _dtype(draft: Draft, statement: tree.Statement, body: tree.Dtype) -> None:
    draft.once("dtype", body.name.text, body.name.span, {STATEMENT: statement.span})


def _rest(draft: Draft, statement: tree.Statement, body: tree.RestNode) -> None:
    where = body.where.text
    _no_marks(draft, statement, f"'{where}'", f"write '{where} from one of …' for a choice")
    pattern = recipes.from_models(draft, body.origin, None)
    if pattern is not None:
        spans = {place[1:]: span for place, span in pattern.spans.items()}
        draft.once(where, pattern.recipe(0), statement.span, spans)


def _no_marks(draft: Draft, statement: tree.Statement, what: str, help_: str = "") -> None:
    for word, span in (("tied", statement.tied), ("maybe", statement.maybe)):
        if span is not None:
            draft.fault("P506", f"'{word}' doesn't go with {what}", span, help_)


# ---------------------------------------------------------------------------------------- overlays


def _select(draft: Draft, statement: tree.Statement, body: tree.Select) -> None:
    target = recipes.positions_of(draft, body.layers)
    pattern = recipes.from_models(draft, body.origin, target)
    _decide(draft, statement, target, pattern)


def _place(draft: Draft, statement: tree.Statement, body: tree.PlaceNode) -> None:
    target = recipes.positions_of(draft, body.layers)
    if isinstance(body.source, tree.Merging):
        pattern = recipes.from_merging(draft, body.source)
    else:
        pattern = recipes.from_picked(draft, body.source)
    source = pattern.layers[0] if pattern else None
    if target and source and not recipes.in_step(draft, target, source):
        return
    _decide(draft, statement, target, pattern)


def _merge_here(draft: Draft, statement: tree.Statement, body: tree.MergeHere) -> None:
    pattern = recipes.from_merging(draft, body.merge)
    if pattern is None:
        return
    target = pattern.layers[0]
    assert target is not None
    for other in pattern.layers[1:]:
        if other is not None and other.numbers != target.numbers:
            draft.fault("P215", "the sources name different layers, and no target is said",
                        other.span, "write the target before it: L12 = merge(…)")  # fmt: skip
            return
    _decide(draft, statement, target, pattern)


def _decide(
    draft: Draft,
    statement: tree.Statement,
    target: recipes.Positions | None,
    pattern: recipes.Pattern | None,
) -> None:
    """An entry for each position of the target."""
    if target is None or pattern is None:
        return
    tied = draft.group(statement)
    for n, at in enumerate(target.at):
        entry = p.Layer(
            position=at.number,
            part=target.part,
            recipe=pattern.recipe(n),
            maybe=statement.maybe is not None,
            tied=tied,
        )
        spans = _entry_spans(statement, at) | pattern.spans | dict(pattern.layer_spans(n))
        draft.layers.append(Placed(entry, spans))


def _entry_spans(statement: tree.Statement, at: recipes.At) -> dict[Place, Span]:
    spans = {(): at.span, TARGET: at.range, STATEMENT: statement.span}
    if statement.maybe is not None:
        spans["maybe",] = statement.maybe
    if statement.tied is not None:
        spans["tied",] = statement.tied
    return spans


def _drop(draft: Draft, statement: tree.Statement, body: tree.Dropping) -> None:
    target = recipes.positions_of(draft, body.layers, whole="'drop'")
    tied = draft.group(statement)
    for at in target.at if target else ():
        entry = p.Drop(position=at.number, maybe=statement.maybe is not None, tied=tied)
        draft.drops.append(Placed(entry, _entry_spans(statement, at)))


def _drop_any(draft: Draft, statement: tree.Statement, body: tree.DroppingAny) -> None:
    _no_marks(draft, statement, "'drop any'")
    target = recipes.positions_of(draft, body.layers, whole="'drop any'")
    count = recipes.whole_number(draft, body.count, "how many layers to drop")
    if target is not None and count is not None:
        entry = p.DropAny(count=count, among=tuple(sorted(target.numbers)))
        spans: dict[Place, Span] = {(): statement.span, ("count",): body.count.span}
        spans["among",] = body.layers.span
        draft.drop_any.append(Placed(entry, spans))


def _scale(draft: Draft, statement: tree.Statement, body: tree.Scaling) -> None:
    target = recipes.positions_of(draft, body.layers, whole="'scale'")
    factor = recipes.value_of(draft, body.factor)
    tied = draft.group(statement)
    if target is None or factor is None:
        return
    for at in target.at:
        entry = p.Scale(
            position=at.number, factor=factor, maybe=statement.maybe is not None, tied=tied
        )
        spans = _entry_spans(statement, at) | {("factor",): body.factor.span}
        draft.scales.append(Placed(entry, spans))


def _bridge(draft: Draft, statement: tree.Statement, body: tree.BridgeNode) -> None:
    if statement.tied is not None:
        draft.fault("P506", "'tied' doesn't go with 'bridge'", statement.tied)
    settings: dict[str, p.Value | None] = {}
    spans: dict[Place, Span] = {(): statement.span, ("on",): body.on.span}
    for word, numeral in body.settings:
        if word.text in settings:
            draft.fault("P305", f"'{word.text}' is given twice", word.span)
        settings[word.text] = recipes.value_of(draft, numeral)
        spans[word.text,] = numeral.span
    if body.after is not None:
        spans["after",] = body.after.span
        if not recipes.is_a_layer(draft, body.after):
            return
    entry = p.Bridge(
        after=body.after.number if body.after else None,
        on=body.on.text,
        tokens=settings.get("tokens"),
        ridge=settings.get("ridge"),
        maybe=statement.maybe is not None,
    )
    draft.bridges.append(Placed(entry, spans))


# ------------------------------------------------------------------------------------------ blocks


def _block(draft: Draft, statement: tree.Statement, body: tree.Block) -> None:
    said_before = body.name.text in draft.single
    draft.once(body.name.text, True, body.name.span, {STATEMENT: statement.span})
    if said_before:
        return
    for inner in body.statements:
        if isinstance(inner.body, tree.MergeHere):
            _item_merge(draft, inner, inner.body)
        elif isinstance(inner.body, tree.PlaceNode):
            draft.fault("P216", "an item of a stack has no target", inner.body.layers.span,
                        "the items are the output's layers in order: leave 'L… =' out")  # fmt: skip
        else:
            lower_statement(draft, inner)


def _item_take(draft: Draft, statement: tree.Statement, body: tree.ItemTake) -> None:
    pattern = recipes.from_picked(draft, body.picked, whole="a stack")
    _add_items(draft, statement, pattern)


def _item_merge(draft: Draft, statement: tree.Statement, body: tree.MergeHere) -> None:
    pattern = recipes.from_merging(draft, body.merge, whole="a stack")
    _add_items(draft, statement, pattern)


def _add_items(draft: Draft, statement: tree.Statement, pattern: recipes.Pattern | None) -> None:
    if pattern is None or pattern.layers[0] is None:
        return
    tied = draft.group(statement)
    for n, at in enumerate(pattern.layers[0].at):
        entry = p.Item(recipe=pattern.recipe(n), maybe=statement.maybe is not None, tied=tied)
        spans = _entry_spans(statement, at) | pattern.spans | dict(pattern.layer_spans(n))
        draft.items.append(Placed(entry, spans))


def _limit(draft: Draft, statement: tree.Statement, body: tree.Limit) -> None:
    count = recipes.whole_number(draft, body.count, "a limit of layers", least=1)
    if count is not None:
        draft.once("limit", count, statement.span)


def _wish(draft: Draft, statement: tree.Statement, body: tree.ObjectiveNode) -> None:
    before = len(draft.faults)
    arguments, spans = _measure_arguments(draft, body.measure)
    if len(draft.faults) > before:
        return
    entry = p.Objective(
        direction="minimize" if body.direction.text == "minimize" else "maximize",
        name=body.measure.name.text,
        arguments=arguments,
    )
    spans |= {
        (): statement.span,
        ("direction",): body.direction.span,
        ("name",): body.measure.name.span,
    }
    draft.objectives.append(Placed(entry, spans))


def _measure_arguments(
    draft: Draft, call: tree.CallNode
) -> tuple[dict[str, int | float | str], dict[Place, Span]]:
    """An objective's arguments under their names."""
    spec = OBJECTIVES.get(call.name.text)
    free = [argument.name for argument in spec.arguments] if spec else []
    arguments: dict[str, int | float | str] = {}
    spans: dict[Place, Span] = {}
    for i, given in enumerate(call.arguments):
        if given.name is None and spec is not None and i >= len(free):
            takes = listed(free)
            draft.fault("P305", f"'{spec.name}' takes {takes}, no more", given.span)
            continue
        name = given.name.text if given.name else (free[i] if i < len(free) else f"argument {i}")
        if name in arguments:
            draft.fault("P305", f"'{name}' is given twice", given.span)
        found = _scalar(draft, given.value)
        if found is not None:
            arguments[name] = found
            spans["arguments", name] = given.value.span
    return arguments, spans


def _scalar(
    draft: Draft, value: tree.Numeral | tree.String | tree.Word
) -> int | float | str | None:
    if isinstance(value, tree.String | tree.Word):
        return value.text
    if not isinstance(value, tree.Fixed):
        draft.fault("P605", "no choices stand in a search block", value.span)
        return None
    found = recipes.value_of(draft, value)
    return found if isinstance(found, int | float) else None


def _budget(draft: Draft, statement: tree.Statement, body: tree.BudgetNode) -> None:
    name = body.name.text
    least = 0 if name == "seed" else 1
    numbers = [recipes.whole_number(draft, n, f"'{name}'", least) for n in body.numbers]
    found = tuple(number for number in numbers if number is not None)
    if len(found) < len(numbers):
        return
    value = (found[0], found[-1]) if name == "fidelity" else found[0]
    draft.once(name, value, statement.span)


_LOWER: dict[type, Callable[[Draft, tree.Statement, Any], None]] = {
    tree.Version: _version,
    tree.Declare: _model,
    tree.Dtype: _dtype,
    tree.RestNode: _rest,
    tree.Select: _select,
    tree.PlaceNode: _place,
    tree.MergeHere: _merge_here,
    tree.Dropping: _drop,
    tree.DroppingAny: _drop_any,
    tree.Scaling: _scale,
    tree.BridgeNode: _bridge,
    tree.Block: _block,
    tree.ItemTake: _item_take,
    tree.Limit: _limit,
    tree.ObjectiveNode: _wish,
    tree.BudgetNode: _budget,
}
