"""The canonical form of a plan, and of a text with its comments."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gptailor.lang import tree, words
from gptailor.lang.draft import Draft
from gptailor.lang.lower import lower, lower_statement
from gptailor.lang.parse import parse
from gptailor.plan import plan as p
from gptailor.plan.faults import Fault, Source, errors

E = TypeVar("E", p.Layer, p.Drop, p.Scale, p.Item)


@dataclass(slots=True)
class Line:
    """A statement's canonical text, where it sorts, and its comments."""

    key: Any
    text: str
    above: tuple[str, ...] = ()
    behind: str = ""


@dataclass(slots=True)
class Sheet:
    """The lines of a canonical text, section by section, and the blocks."""

    version: list[Line] = field(default_factory=list)
    models: list[Line] = field(default_factory=list)
    output: list[Line] = field(default_factory=list)
    layers: list[Line] = field(default_factory=list)
    changes: list[Line] = field(default_factory=list)
    stack: list[Line] = field(default_factory=list)
    search: list[Line] = field(default_factory=list)

    def text(self, closing: Sequence[str] = ()) -> str:
        """The whole text; sections are parted by an empty line."""
        sections = []
        for name in Sheet.__dataclass_fields__:
            lines = sorted(getattr(self, name), key=lambda line: line.key)
            if lines:
                sections.append("\n".join(_with_comments(line) for line in lines))
        if closing:
            sections.append("\n".join(closing))
        return "\n\n".join(sections) + "\n" if sections else ""


def _with_comments(line: Line, indent: str = "") -> str:
    text = line.text + (f"  {line.behind}" if line.behind else "")
    return "\n".join(indent + part for part in (*line.above, text))


def format_plan(plan: p.Plan) -> str:
    """The canonical text of a plan. `read` of it gives the same plan."""
    sheet = Sheet(version=[Line(0, f"tailor {plan.version}")])
    sheet.models = [_model(name, model) for name, model in plan.models.items()]
    sheet.output = [Line(_DTYPE, f"dtype {plan.dtype}")] if plan.dtype is not None else []
    for where in p.REST:
        if (recipe := plan.rest(where)) is not None:
            sheet.output.append(_rest(where, recipe))
    sheet.layers = [_decision(group) for group in groups(plan.layers)]
    sheet.changes = _changes(plan)
    if plan.stack is not None:
        lines = [Line(i, _marked(g, words.item)) for i, g in enumerate(groups(plan.stack.items))]
        sheet.stack = [_block("stack", [*lines, *_limit(plan.stack.limit)])]
    if plan.search is not None:
        sheet.search = [_block("search", _wishes(plan.search))]
    return sheet.text()


def format_text(source: Source) -> tuple[str | None, list[Fault]]:
    """The canonical form of a text, comments kept; None and the faults if it can't be read."""
    file, faults = parse(source)
    _, more = lower(file, source, Path())
    if errors(found := faults + more):
        return None, found
    return format_file(file), []


def format_file(file: tree.File, used: p.Plan | None = None) -> str:
    """The canonical form of a tree that lowers without faults.

    The models, the dtype and the bridges of `used` stand for what the text says of them, as in the
    copy of a plan that a compiled folder holds.
    """
    sheet = Sheet()
    pool = Draft()
    for statement in file.statements:
        if isinstance(statement.body, tree.Block):
            line = _block_of(statement.body)
            section = sheet.stack if statement.body.name.text == "stack" else sheet.search
            section.append(_commented(line, statement))
        elif _stands_alone(statement):
            alone = Draft()
            lower_statement(alone, statement)
            _add(sheet, alone, statement)
        else:
            lower_statement(pool, statement)
    _add_pool(sheet, pool)
    if used is not None:
        _state(sheet, used)
    return sheet.text(file.closing)


def _state(sheet: Sheet, used: p.Plan) -> None:
    """Have a text say which models, dtype and calibration files are used."""
    for line in sheet.models:
        line.text = words.declaration(line.key[1], used.models[line.key[1]])
    bridges = {_bridge(entry).key: _bridge(entry).text for entry in used.bridges}
    for line in sheet.changes:
        line.text = bridges.get(line.key, line.text)
    if used.dtype is not None:
        said = [line for line in sheet.output if line.key == _DTYPE] or [Line(_DTYPE, "")]
        said[-1].text = f"dtype {used.dtype}"
        sheet.output += said if said[-1] not in sheet.output else []


# -------------------------------------------------------------------------- statements of a text


def _stands_alone(statement: tree.Statement) -> bool:
    """Neither joined nor split: it has a comment, or is tied, or is always one line."""
    one_line = (
        tree.Version,
        tree.Declare,
        tree.Dtype,
        tree.RestNode,
        tree.BridgeNode,
        tree.DroppingAny,
    )
    tied = statement.tied is not None
    return bool(statement.above or statement.behind or tied or isinstance(statement.body, one_line))


def _commented(line: Line, statement: tree.Statement) -> Line:
    return Line(line.key, line.text, statement.above, statement.behind)


def _add(sheet: Sheet, draft: Draft, statement: tree.Statement) -> None:
    """Add the one line that a statement stands for."""
    if isinstance(statement.body, tree.Version):
        number = statement.body.number.value
        sheet.version.append(_commented(Line(0, f"tailor {number!r}"), statement))
    for name, placed in draft.models.items():
        sheet.models.append(_commented(_model(name, placed.entry), statement))
    if (dtype := draft.value("dtype")) is not None:
        sheet.output.append(_commented(Line(_DTYPE, f"dtype {dtype}"), statement))
    for where in p.REST:
        if (recipe := draft.value(where)) is not None:
            sheet.output.append(_commented(_rest(where, recipe), statement))
    if draft.layers:
        line = _decision(sorted((placed.entry for placed in draft.layers), key=p.layer_order))
        sheet.layers.append(_commented(line, statement))
    drops = [placed.entry for placed in draft.drops]
    scales = [placed.entry for placed in draft.scales]
    changes = (
        [_drops(sorted(drops, key=p.position_order))] if drops else [],
        [_drop_any(placed.entry) for placed in draft.drop_any],
        [_scales(sorted(scales, key=p.position_order))] if scales else [],
        [_bridge(placed.entry) for placed in draft.bridges],
    )
    sheet.changes += [_commented(line, statement) for lines in changes for line in lines]


def _add_pool(sheet: Sheet, pool: Draft) -> None:
    """Add what may be joined and split: the statements without comments."""
    layers = sorted((placed.entry for placed in pool.layers), key=p.layer_order)
    sheet.layers += [_decision(group) for group in groups(layers)]
    drops = sorted((placed.entry for placed in pool.drops), key=p.position_order)
    scales = sorted((placed.entry for placed in pool.scales), key=p.position_order)
    sheet.changes += [_drops(group) for group in _drop_groups(drops)]
    sheet.changes += [_scales(group) for group in groups(scales)]


def _block_of(block: tree.Block) -> Line:
    """A block from its statements, which keep their comments."""
    if block.name.text == "search":
        lines = [_commented(_wish(i, s), s) for i, s in enumerate(block.statements)]
        return _block("search", sorted(lines, key=lambda line: line.key), block.closing)
    lines, limit = [], []
    pool: list[p.Item] = []
    for statement in block.statements:
        draft = Draft()
        lower_statement_of_stack(draft, statement)
        items = [placed.entry for placed in draft.items]
        if isinstance(statement.body, tree.Limit):
            limit.append(_commented(Line(0, f"limit {draft.value('limit')} layers"), statement))
        elif _stands_alone(statement):
            lines += [Line(0, _marked(group, words.item)) for group in groups(pool)]
            lines.append(_commented(Line(0, _marked(items, words.item)), statement))
            pool = []
        else:
            pool += items
    lines += [Line(0, _marked(group, words.item)) for group in groups(pool)]
    return _block("stack", lines + limit, block.closing)


def lower_statement_of_stack(draft: Draft, statement: tree.Statement) -> None:
    """Lower one item of a stack by itself."""
    word = tree.Word("stack", statement.span)
    block = tree.Block(word, (statement,), ())
    lower_statement(draft, tree.Statement(block, statement.span))


def _wish(i: int, statement: tree.Statement) -> Line:
    draft = Draft()
    lower_statement(draft, statement)
    if draft.objectives:
        return Line((0, i), words.objective(draft.objectives[0].entry))
    name, placed = next(iter(draft.single.items()))
    value = placed.entry if isinstance(placed.entry, tuple) else (placed.entry,)
    return Line((_BUDGET.index(name) + 1, 0), words.budget(name, value))


# ------------------------------------------------------------------------------------ single lines

_DTYPE = (0, "")
_BUDGET = ("fidelity", "trials", "seed")


def _model(name: str, model: p.Model) -> Line:
    return Line((name != "base", name), words.declaration(name, model))


def _rest(where: str, recipe: p.Recipe) -> Line:
    return Line((1 + p.REST.index(where), where), words.rest(where, recipe))


def _marked(entries: Sequence[E], text: Callable[[Sequence[E]], str]) -> str:
    return words.mark_words(entries[0]) + text(entries)


def _decision(entries: Sequence[p.Layer]) -> Line:
    return Line(p.layer_order(entries[0]), _marked(entries, words.decision))


def _drops(entries: Sequence[p.Drop]) -> Line:
    return Line((0, entries[0].position), _marked(entries, words.drop))


def _drop_any(entry: p.DropAny) -> Line:
    return Line((1, min(entry.among, default=0)), words.drop_any(entry))


def _scales(entries: Sequence[p.Scale]) -> Line:
    return Line((2, entries[0].position), _marked(entries, words.scale))


def _bridge(entry: p.Bridge) -> Line:
    return Line((3, p.bridge_order(entry)), words.mark_words(entry) + words.bridge(entry))


def _changes(plan: p.Plan) -> list[Line]:
    lines = [_drops(group) for group in _drop_groups(plan.drops)]
    lines += [_drop_any(entry) for entry in plan.drop_any]
    lines += [_scales(group) for group in groups(plan.scales)]
    return lines + [_bridge(entry) for entry in plan.bridges]


def _limit(limit: int | None) -> list[Line]:
    return [Line(0, f"limit {limit} layers")] if limit is not None else []


def _wishes(search: p.Search) -> list[Line]:
    lines = [Line(0, words.objective(wish)) for wish in search.objectives]
    budgets = (("fidelity", search.fidelity), ("trials", search.trials), ("seed", search.seed))
    for name, value in budgets:
        if value is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            lines.append(Line(0, words.budget(name, numbers)))
    return lines


def _block(name: str, lines: Iterable[Line], closing: Sequence[str] = ()) -> Line:
    inside = [_with_comments(line, "  ") for line in lines] + [f"  {c}" for c in closing]
    return Line(0, "\n".join([f"{name} {{", *inside, "}"]) if inside else f"{name} {{ }}")


# ------------------------------------------------------------------------------------------ groups


def groups(entries: Sequence[E]) -> list[list[E]]:
    """Entries that one statement says: the tied ones of a group, and neighbours that go in step."""
    found: list[list[E]] = []
    runs: dict[Any, list[E]] = {}  # the run that an entry may continue, by what must be equal
    tied: dict[int, list[E]] = {}
    for entry in entries:
        if entry.tied is not None:
            if entry.tied not in tied:
                found.append(tied.setdefault(entry.tied, []))
            tied[entry.tied].append(entry)
            runs = runs if not isinstance(entry, p.Item) else {}
            continue
        key = getattr(entry, "part", None)
        run = runs.get(key)
        if run is not None and _next(run[-1]) == _here(entry):
            run.append(entry)
        else:
            runs[key] = [entry]
            found.append(runs[key])
    return found


def _drop_groups(entries: Sequence[p.Drop]) -> list[list[p.Drop]]:
    """All fixed drops in one statement, all `maybe` ones in another, each tied group in its own."""
    found: dict[Any, list[p.Drop]] = {}
    for entry in entries:
        found.setdefault((entry.maybe, entry.tied), []).append(entry)
    return list(found.values())


def _here(entry: Any) -> tuple[Any, ...]:
    return _position(entry), entry.maybe, getattr(entry, "factor", None), _recipe(entry, 0)


def _next(entry: Any) -> tuple[Any, ...]:
    """What the neighbour after this entry must be to be joined with it."""
    position = _position(entry)
    after = None if position is None else position + 1
    return after, entry.maybe, getattr(entry, "factor", None), _recipe(entry, 1)


def _position(entry: Any) -> int | None:
    position: int | None = getattr(entry, "position", None)
    return position


def _recipe(entry: Any, step: int) -> Any:
    """The recipe with its layers moved on."""
    recipe = getattr(entry, "recipe", None)
    if isinstance(recipe, p.Take):
        return p.Take(take=_moved(recipe.take, step))
    if isinstance(recipe, p.Merge):
        moved = tuple(_moved(source, step) for source in recipe.merge)
        return recipe.model_copy(update={"merge": moved})
    if isinstance(recipe, p.Subset) and recipe.layer is not None:
        return recipe.model_copy(update={"layer": recipe.layer + step})
    return recipe


def _moved(source: p.LayerOf, step: int) -> p.LayerOf:
    if source.layer is None:
        return source
    return source.model_copy(update={"layer": source.layer + step})  # may be past the last
