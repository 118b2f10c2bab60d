"""The canonical form of a plan, and of a text with its comments."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gptailor.lang import tree
from gptailor.lang.draft import Draft
from gptailor.lang.lower import lower, lower_statement
from gptailor.lang.parse import parse
from gptailor.plan import plan as p
from gptailor.plan.faults import Fault, PlanError, Source, errors
from gptailor.plan.registry import METHODS, OBJECTIVES

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
        lines = [Line(i, _marked(g, item_words)) for i, g in enumerate(groups(plan.stack.items))]
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


def format(plan: p.Plan | str) -> str:
    """The canonical text of a plan, or of a text, whose comments stay.

    Raises PlanError where a text can't be read.
    """
    if isinstance(plan, p.Plan):
        return format_plan(plan)
    text, faults = format_text(Source("<text>", plan))
    if text is None:
        raise PlanError(faults)
    return text


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
        line.text = model_declaration(line.key[1], used.models[line.key[1]])
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
            lines += [Line(0, _marked(group, item_words)) for group in groups(pool)]
            lines.append(_commented(Line(0, _marked(items, item_words)), statement))
            pool = []
        else:
            pool += items
    lines += [Line(0, _marked(group, item_words)) for group in groups(pool)]
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
        return Line((0, i), objective_words(draft.objectives[0].entry))
    name, placed = next(iter(draft.single.items()))
    value = placed.entry if isinstance(placed.entry, tuple) else (placed.entry,)
    return Line((_BUDGET.index(name) + 1, 0), budget_words(name, value))


# ------------------------------------------------------------------------------------ single lines

_DTYPE = (0, "")
_BUDGET = ("fidelity", "trials", "seed")


def _model(name: str, model: p.Model) -> Line:
    return Line((name != "base", name), model_declaration(name, model))


def _rest(where: str, recipe: p.Recipe) -> Line:
    return Line((1 + p.REST.index(where), where), rest_words(where, recipe))


def _marked(entries: Sequence[E], text: Callable[[Sequence[E]], str]) -> str:
    return mark_words(entries[0]) + text(entries)


def _decision(entries: Sequence[p.Layer]) -> Line:
    return Line(p.layer_order(entries[0]), _marked(entries, layer_words))


def _drops(entries: Sequence[p.Drop]) -> Line:
    return Line((0, entries[0].position), _marked(entries, drop_words))


def _drop_any(entry: p.DropAny) -> Line:
    return Line((1, min(entry.among, default=0)), drop_any_words(entry))


def _scales(entries: Sequence[p.Scale]) -> Line:
    return Line((2, entries[0].position), _marked(entries, scale_words))


def _bridge(entry: p.Bridge) -> Line:
    return Line((3, p.bridge_order(entry)), mark_words(entry) + bridge_words(entry))


def _changes(plan: p.Plan) -> list[Line]:
    lines = [_drops(group) for group in _drop_groups(plan.drops)]
    lines += [_drop_any(entry) for entry in plan.drop_any]
    lines += [_scales(group) for group in groups(plan.scales)]
    return lines + [_bridge(entry) for entry in plan.bridges]


def _limit(limit: int | None) -> list[Line]:
    return [Line(0, f"limit {limit} layers")] if limit is not None else []


def _wishes(search: p.Search) -> list[Line]:
    lines = [Line(0, objective_words(wish)) for wish in search.objectives]
    budgets = (("fidelity", search.fidelity), ("trials", search.trials), ("seed", search.seed))
    for name, value in budgets:
        if value is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            lines.append(Line(0, budget_words(name, numbers)))
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


def range_words(numbers: Sequence[int], part: str | None = None) -> str:
    """`L0..L4, L7`, in the order given."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    tail = f".{part}" if part else ""
    return ", ".join(
        (f"L{first}{tail}" if first == last else f"L{first}..L{last}{tail}") for first, last in runs
    )


def number_words(value: int | float) -> str:
    """A number as Python prints it."""
    return repr(value)


def value_words(v: p.Value) -> str:
    """A number or a choice of numbers."""
    if isinstance(v, p.Interval):
        return "..".join(number_words(end) for end in v.interval)
    if isinstance(v, p.OneOfNumbers):
        return f"one of ({', '.join(number_words(option) for option in v.one_of)})"
    return number_words(v)


def string_words(text: str) -> str:
    """A text in quotes."""
    return f'"{text}"'


def method_words(call: p.MethodCall) -> str:
    """A method with its arguments: named, unless there is but one to give."""
    spec = METHODS.get(call.name)
    order = [parameter.name for parameter in spec.parameters] if spec else []
    names = sorted(call.arguments, key=lambda n: (order.index(n) if n in order else len(order), n))
    bare = len(order) == 1 and names == order
    arguments = []
    for name in names:
        given = call.arguments[name]
        words = (
            ", ".join(value_words(v) for v in given)
            if isinstance(given, tuple)
            else value_words(given)
        )
        arguments.append(words if bare else f"{name}={words}")
    return f"{call.name}({', '.join(arguments)})"


def by_words(how: p.By | None) -> str:
    """` by …`, or nothing."""
    if how is None:
        return ""
    if isinstance(how, p.OneOfMethods):
        return f" by one of {', '.join(method_words(call) for call in how.one_of)}"
    return f" by {method_words(how)}"


def model_words(name: str | p.OneOfModels, *, bare: bool = False) -> str:
    """A model, or a choice of one; `bare` where the choice runs to `by` or the statement's end."""
    if isinstance(name, str):
        return name
    options = ", ".join(name.one_of)
    return f"one of {options}" if bare else f"one of ({options})"


# ----------------------------------------------------------------------------------------- recipes


def _sources(recipe: p.Recipe) -> Sequence[p.LayerOf]:
    if isinstance(recipe, p.Take):
        return (recipe.take,)
    return recipe.merge if isinstance(recipe, p.Merge) else ()


def _origin(recipe: p.Recipe) -> str | None:
    """What stands after `from`, or None if it can't be said so."""
    if isinstance(recipe, p.Subset):
        return f"any of {', '.join(recipe.any_of)}{by_words(recipe.by)}"
    if isinstance(recipe, p.Take):
        return model_words(recipe.take.model, bare=True)
    if recipe.by is None or recipe.share is not None or not recipe.merge:
        return None
    names = [source.model for source in recipe.merge]
    if len(names) == 1:
        return model_words(names[0], bare=True) + by_words(recipe.by)
    if all(isinstance(name, str) for name in names):
        return ", ".join(str(name) for name in names) + by_words(recipe.by)
    return None


def merge_words(recipes: Sequence[p.Merge], part: str | None) -> str:
    """`merge(L12 code, L14 chat, 0.5) by …` for recipes that go in step."""
    first = recipes[0]
    items = []
    for k, source in enumerate(first.merge):
        layers = range_words([r.merge[k].layer or 0 for r in recipes], part)
        items.append(f"{layers} {model_words(source.model)}")
    if first.share is not None:
        items.append(value_words(first.share))
    return f"merge({', '.join(items)}){by_words(first.by)}"


def layer_words(entries: Sequence[p.Layer]) -> str:
    """One statement for layers whose recipes go in step."""
    targets = [entry.position for entry in entries]
    recipes = [entry.recipe for entry in entries]
    first, part = recipes[0], entries[0].part
    here = all(
        source.layer == target
        for target, recipe in zip(targets, recipes, strict=True)
        for source in _sources(recipe)
    )
    origin = _origin(first)
    if here and origin is not None:
        return f"{range_words(targets, part)} from {origin}"
    if isinstance(first, p.Take):
        layers = [r.take.layer or 0 for r in recipes if isinstance(r, p.Take)]
        words = f"{range_words(layers, part)} {model_words(first.take.model, bare=True)}"
        return f"{range_words(targets, part)} = {words}"
    merged = merge_words([r for r in recipes if isinstance(r, p.Merge)], part)
    return merged if here else f"{range_words(targets, part)} = {merged}"


def item_words(entries: Sequence[p.Item]) -> str:
    """One item of a stack for layers whose recipes go in step."""
    first = entries[0].recipe
    if isinstance(first, p.Take):
        layers = [e.recipe.take.layer or 0 for e in entries if isinstance(e.recipe, p.Take)]
        return f"{range_words(layers)} {model_words(first.take.model, bare=True)}"
    return merge_words([e.recipe for e in entries if isinstance(e.recipe, p.Merge)], None)


def rest_words(where: str, recipe: p.Recipe) -> str:
    """`embed from chat`; a merge that only JSON can say is said by `linear`."""
    if isinstance(recipe, p.Merge) and recipe.by is None:
        weights: tuple[p.Value, ...] = ()
        if isinstance(recipe.share, int | float):
            weights = (1.0 - recipe.share, recipe.share)
        call = p.MethodCall(name="linear", arguments={"weights": weights} if weights else {})
        recipe = p.Merge(merge=recipe.merge, by=call)
    return f"{where} from {_origin(recipe) or ''}"


# -------------------------------------------------------------------------------- other statements


def mark_words(entry: p.Open) -> str:
    """`tied ` and `maybe `, where they stand."""
    return "tied " * (entry.tied is not None) + "maybe " * entry.maybe


def model_declaration(name: str, m: p.Model) -> str:
    """`model math = "…" @ "…"`."""
    on = f"{m.on} + " if m.on is not None else ""
    revision = f" @ {string_words(m.revision)}" if m.revision is not None else ""
    return f"model {name} = {on}{string_words(m.source)}{revision}"


def drop_words(entries: Iterable[p.Drop]) -> str:
    """`drop L30..L39`."""
    return f"drop {range_words([entry.position for entry in entries])}"


def drop_any_words(entry: p.DropAny) -> str:
    """`drop any 10 of L0..L39`."""
    return f"drop any {entry.count} of {range_words(entry.among)}"


def scale_words(entries: Sequence[p.Scale]) -> str:
    """`scale L12 by 0.9`."""
    return f"scale {range_words([e.position for e in entries])} by {value_words(entries[0].factor)}"


def bridge_words(entry: p.Bridge) -> str:
    """`bridge L11 on "text" tokens 65536 ridge 0.1`."""
    after = f"L{entry.after} " if entry.after is not None else ""
    settings = (("tokens", entry.tokens), ("ridge", entry.ridge))
    tail = "".join(f" {name} {value_words(v)}" for name, v in settings if v is not None)
    return f"bridge {after}on {string_words(entry.on)}{tail}"


def objective_words(wish: p.Objective) -> str:
    """`minimize kl("text", from=chat)`."""
    spec = OBJECTIVES.get(wish.name)
    order = [argument.name for argument in spec.arguments] if spec else []
    given = sorted(wish.arguments, key=lambda n: (order.index(n) if n in order else len(order), n))
    words = []
    for name in given:
        v = wish.arguments[name]
        argument = spec.argument(name) if spec else None
        bare = argument is not None and argument.kind == "model"
        text = (v if bare else string_words(v)) if isinstance(v, str) else number_words(v)
        words.append(text if argument is not None and argument.required else f"{name}={text}")
    return f"{wish.direction} {wish.name}({', '.join(words)})"


def budget_words(name: str, numbers: Sequence[int]) -> str:
    """`fidelity 64..1024`, `trials 500`."""
    distinct = numbers[:1] if len(set(numbers)) == 1 else numbers
    return f"{name} {'..'.join(str(n) for n in distinct)}"
