"""The printer: a plan's entries as words, and the canonical form of a plan or of a text."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, final

from gptailor.lang import tree
from gptailor.lang.draft import Draft, stepped
from gptailor.lang.lower import lower, lower_statement
from gptailor.lang.parse import parse
from gptailor.plan import plan as p
from gptailor.plan.faults import Fault, PlanError, Source, errors
from gptailor.plan.registry import METHODS, OBJECTIVES
from gptailor.plan.walk import sources

_E = TypeVar("_E", p.Layer, p.Drop, p.Scale, p.Item)
_Joined = Callable[[Sequence[Any]], list[list[Any]]]
"""How entries are joined to statements."""

# ------------------------------------------------------------- numbers, layers, models, methods


def range_words(numbers: Sequence[int], part: str | None = None) -> str:
    """`L0..L4, L7`, in the order given."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    tail = f".{part}" if part else ""
    return ", ".join(f"L{a}{tail}" if a == b else f"L{a}..L{b}{tail}" for a, b in runs)


def value_words(v: p.Value) -> str:
    """A number, as Python prints it, or a choice of numbers."""
    if isinstance(v, p.Interval):
        return "..".join(map(repr, v.interval))
    if isinstance(v, p.OneOfNumbers):
        return f"one of ({', '.join(map(repr, v.one_of))})"
    return repr(v)


def model_words(name: str | p.OneOfModels, *, bare: bool = False) -> str:
    """A model, or a choice of one; `bare` where the choice runs to `by` or the statement's end."""
    if isinstance(name, str):
        return name
    options = ", ".join(name.one_of)
    return f"one of {options}" if bare else f"one of ({options})"


def _in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Names as they are known, then those that aren't."""
    return sorted(names, key=lambda n: (known.index(n) if n in known else len(known), n))


def _call_words(call: p.MethodCall) -> str:
    """A method with its arguments: named, unless there is but one to give."""
    spec = METHODS.get(call.name)
    known = [parameter.name for parameter in spec.parameters] if spec else []
    names = _in_order(call.arguments, known)
    bare = len(known) == 1 and names == known
    arguments = []
    for name in names:
        given = call.arguments[name]
        words = ", ".join(map(value_words, given if isinstance(given, tuple) else (given,)))
        arguments.append(words if bare else f"{name}={words}")
    return f"{call.name}({', '.join(arguments)})"


def _by_words(how: p.By | None) -> str:
    """` by …`, or nothing."""
    if how is None:
        return ""
    if isinstance(how, p.OneOfMethods):
        return f" by one of {', '.join(map(_call_words, how.one_of))}"
    return f" by {_call_words(how)}"


def _from_words(recipe: p.Recipe) -> str | None:
    """What stands after `from`, or None if it can't be said so."""
    if isinstance(recipe, p.Subset):
        return f"any of {', '.join(recipe.any_of)}{_by_words(recipe.by)}"
    if isinstance(recipe, p.Take):
        return model_words(recipe.take.model, bare=True)
    if recipe.by is None or recipe.share is not None or not recipe.merge:
        return None
    names = [source.model for source in recipe.merge]
    if len(names) > 1 and not all(isinstance(name, str) for name in names):
        return None
    return ", ".join(model_words(name, bare=True) for name in names) + _by_words(recipe.by)


def _made_words(recipes: Sequence[Any], part: str | None = None) -> str:
    """`L3 math`, or `merge(L12 code, L14 chat, 0.5) by …`, for recipes that go in step."""
    first = recipes[0]
    if isinstance(first, p.Take):
        layers = range_words([r.take.layer or 0 for r in recipes], part)
        return f"{layers} {model_words(first.take.model, bare=True)}"
    items = [
        f"{range_words([r.merge[k].layer or 0 for r in recipes], part)} {model_words(source.model)}"
        for k, source in enumerate(first.merge)
    ]
    items += [] if first.share is None else [value_words(first.share)]
    return f"merge({', '.join(items)}){_by_words(first.by)}"


def layer_words(entries: Sequence[p.Layer]) -> str:
    """One statement for layers whose recipes go in step."""
    recipes = [entry.recipe for entry in entries]
    target = range_words([entry.position for entry in entries], entries[0].part)
    here = all(
        source.layer == entry.position for entry in entries for _, source in sources(entry.recipe)
    )
    if here and (origin := _from_words(recipes[0])) is not None:
        return f"{target} from {origin}"
    made = _made_words(recipes, entries[0].part)
    return made if here and isinstance(recipes[0], p.Merge) else f"{target} = {made}"


def item_words(entries: Sequence[p.Item]) -> str:
    """One item of a stack for layers whose recipes go in step."""
    return _made_words([entry.recipe for entry in entries])


def rest_words(where: str, recipe: p.Recipe) -> str:
    """`embed from chat`; a merge that only JSON can say is said by `linear`."""
    if isinstance(recipe, p.Merge) and recipe.by is None:
        weights: tuple[p.Value, ...] = ()
        if isinstance(recipe.share, int | float):
            weights = (1.0 - recipe.share, recipe.share)
        call = p.MethodCall(name="linear", arguments={"weights": weights} if weights else {})
        recipe = p.Merge(merge=recipe.merge, by=call)
    return f"{where} from {_from_words(recipe) or ''}"


def mark_words(entry: p.Open) -> str:
    """`tied ` and `maybe `, where they stand."""
    return "tied " * (entry.tied is not None) + "maybe " * entry.maybe


def model_source(m: p.Model) -> str:
    """`"…" @ "…"`: what stands in a model's declaration after its name."""
    on = f"{m.on} + " if m.on is not None else ""
    revision = f' @ "{m.revision}"' if m.revision is not None else ""
    return f'{on}"{m.source}"{revision}'


def drop_any_words(entry: p.DropAny) -> str:
    """`drop any 10 of L0..L39`."""
    return f"drop any {entry.count} of {range_words(entry.among)}"


def bridge_words(entry: p.Bridge) -> str:
    """`bridge L11 on "text" tokens 65536 ridge 0.1`."""
    after = f"L{entry.after} " if entry.after is not None else ""
    settings = (("tokens", entry.tokens), ("ridge", entry.ridge))
    tail = "".join(f" {name} {value_words(v)}" for name, v in settings if v is not None)
    return f'bridge {after}on "{entry.on}"{tail}'


def heal_words(entry: p.Heal) -> str:
    """`heal L12..L20 from chat on "text" tokens 200000 rank 64 seed 0`."""
    layers = f"{range_words(entry.layers)} " if entry.layers else ""
    teacher = f"from {entry.teacher} " if entry.teacher is not None else ""
    settings = (("tokens", entry.tokens), ("rank", entry.rank), ("seed", entry.seed))
    tail = "".join(f" {name} {v}" for name, v in settings if v is not None)
    return f'heal {layers}{teacher}on "{entry.on}"{tail}'


def objective_words(wish: p.Objective) -> str:
    """`minimize kl("text", from=chat)`."""
    spec = OBJECTIVES.get(wish.name)
    words = []
    for name in _in_order(wish.arguments, [a.name for a in spec.arguments] if spec else []):
        v = wish.arguments[name]
        argument = spec.argument(name) if spec else None
        model = argument is not None and argument.kind == "model"
        text = repr(v) if not isinstance(v, str) else v if model else f'"{v}"'
        words.append(text if argument is not None and argument.required else f"{name}={text}")
    return f"{wish.direction} {wish.name}({', '.join(words)})"


# --------------------------------------------------------------------------------- canonical forms

_SECTIONS = ("version", "models", "output", "layers", "changes", "stack", "search")
_DTYPE = ("output", (0, ""))


@final
@dataclass(slots=True)
class _Line:
    """A statement's canonical text, where it sorts, and its comments."""

    section: str
    key: Any
    text: str
    above: tuple[str, ...] = ()
    behind: str = ""

    def shown(self, indent: str = "") -> str:
        """The text with its comments."""
        text = self.text + (f"  {self.behind}" if self.behind else "")
        return "\n".join(indent + part for part in (*self.above, text))


def format_plan(plan: p.Plan) -> str:
    """The canonical text of a plan. Reading it gives the same plan."""
    lines = [_Line("version", 0, f"tailor {plan.version}"), *_lines(plan, groups)]
    said = [name for name in ("stack", "search") if getattr(plan, name) is not None]
    texts = {name: _block_text(name, [li for li in lines if li.section == name]) for name in said}
    blocks = [_Line(name, 0, text) for name, text in texts.items()]
    return _sheet([line for line in lines if line.section not in said] + blocks)


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

    The models, the dtype, the bridges and the healing of `used` stand for what the text says of
    them, as in the copy of a plan that a compiled folder holds.
    """
    blocks = [(s, s.body) for s in file.statements if isinstance(s.body, tree.Block)]
    others = [s for s in file.statements if not isinstance(s.body, tree.Block)]
    lines = [_block_of(statement, block) for statement, block in blocks]
    lines += _stated([s for s in others if not _commented(s)])
    for statement in filter(_commented, others):
        lines += _stated([statement])
    return _sheet(lines if used is None else _restated(lines, used), file.closing)


def _sheet(lines: Iterable[_Line], closing: Sequence[str] = ()) -> str:
    """The whole text; sections are parted by an empty line."""
    ordered = sorted(lines, key=lambda line: (_SECTIONS.index(line.section), line.key))
    sections = ["\n".join(line.shown() for line in found)
                for _, found in groupby(ordered, lambda line: line.section)]  # fmt: skip
    sections += ["\n".join(closing)] if closing else []
    return "\n\n".join(sections) + "\n" if sections else ""


def _restated(lines: list[_Line], used: p.Plan) -> list[_Line]:
    """The lines, saying which models, dtype and calibration files are used."""
    fixed = {line.key: line.text for line in _change_lines(used, groups) if line.key[0] >= 3}
    for line in lines:
        if line.section == "models":
            line.text = f"model {line.key[1]} = {model_source(used.models[line.key[1]])}"
        elif line.section == "changes":
            line.text = fixed.get(line.key, line.text)
    if used.dtype is not None:
        dtype = next((line for line in lines if (line.section, line.key) == _DTYPE), None)
        if dtype is None:
            lines.append(dtype := _Line(*_DTYPE, ""))
        dtype.text = f"dtype {used.dtype}"
    return lines


def _commented(statement: tree.Statement) -> bool:
    """Such a statement is neither joined nor split."""
    return bool(statement.above or statement.behind)


def _stated(statements: Sequence[tree.Statement]) -> list[_Line]:
    """The lines of statements without comments, or of one with its own."""
    draft = Draft()
    for statement in statements:
        lower_statement(draft, statement)
    plan = draft.plan(Source("", ""), Path())
    alone = bool(statements) and _commented(statements[0])
    lines = list(_lines(plan, (lambda found: [list(found)] if found else []) if alone else groups))
    said = [s.body.number.value for s in statements if isinstance(s.body, tree.Version)]
    lines += [_Line("version", 0, f"tailor {number!r}") for number in said]
    for line in lines if alone else ():
        line.above, line.behind = statements[0].above, statements[0].behind
    return lines


def _block_of(statement: tree.Statement, block: tree.Block) -> _Line:
    """A block from its statements, which keep their comments; neighbours without any are joined."""
    runs: list[list[tree.Statement]] = []
    for inner in sorted(block.statements, key=lambda s: isinstance(s.body, tree.Limit)):
        if not runs or _commented(inner) or _commented(runs[-1][0]):
            runs.append([])
        runs[-1].append(inner)
    lines: list[_Line] = []
    for run in runs:
        part = tree.Block(block.span, block.name, tuple(run), ())
        first = run[0]
        lines += _stated([tree.Statement(block.span, part, above=first.above, behind=first.behind)])
    text = _block_text(block.name.text, lines, block.closing)
    return _Line(block.name.text, 0, text, statement.above, statement.behind)


def _lines(plan: p.Plan, joined: _Joined) -> Iterator[_Line]:
    for name, model in plan.models.items():
        yield _Line("models", (name != "base", name), f"model {name} = {model_source(model)}")
    if plan.dtype is not None:
        yield _Line(*_DTYPE, f"dtype {plan.dtype}")
    for i, where in enumerate(p.REST, 1):
        if (recipe := plan.rest(where)) is not None:
            yield _Line("output", (i, where), rest_words(where, recipe))
    for group in joined(plan.layers):
        yield _Line("layers", p.normal_order(group[0]), mark_words(group[0]) + layer_words(group))
    yield from _change_lines(plan, joined)
    yield from _inner_lines(plan, joined)


def _change_lines(plan: p.Plan, joined: _Joined) -> Iterator[_Line]:
    found: dict[Any, list[p.Drop]] = {}  # those of a tied statement, all `maybe` ones, the rest
    for drop in plan.drops:
        found.setdefault((drop.maybe, drop.tied), []).append(drop)
    for drops in found.values():
        words = f"drop {range_words([entry.position for entry in drops])}"
        yield _Line("changes", (0, drops[0].position), mark_words(drops[0]) + words)
    for choice in plan.drop_any:
        yield _Line("changes", (1, min(choice.among, default=0)), drop_any_words(choice))
    for group in joined(plan.scales):
        positions = range_words([entry.position for entry in group])
        words = f"scale {positions} by {value_words(group[0].factor)}"
        yield _Line("changes", (2, group[0].position), mark_words(group[0]) + words)
    for bridge in plan.bridges:
        words = mark_words(bridge) + bridge_words(bridge)
        yield _Line("changes", (3, p.normal_order(bridge)), words)
    if plan.heal is not None:
        yield _Line("changes", (4, ()), heal_words(plan.heal))


def _inner_lines(plan: p.Plan, joined: _Joined) -> Iterator[_Line]:
    if plan.stack is not None:
        for group in joined(plan.stack.items):
            yield _Line("stack", 0, mark_words(group[0]) + item_words(group))
        if plan.stack.limit is not None:
            yield _Line("stack", 1, f"limit {plan.stack.limit} layers")
    for objective in plan.search.objectives if plan.search else ():
        yield _Line("search", 0, objective_words(objective))
    for i, name in enumerate(("fidelity", "trials", "seed"), 1):
        if (value := getattr(plan.search, name, None)) is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            yield _Line("search", i, f"{name} {'..'.join(map(str, dict.fromkeys(numbers)))}")


def _block_text(name: str, lines: Iterable[_Line], closing: Sequence[str] = ()) -> str:
    inside = [line.shown("  ") for line in sorted(lines, key=lambda line: line.key)]
    inside += [f"  {comment}" for comment in closing]
    return "\n".join([f"{name} {{", *inside, "}"]) if inside else f"{name} {{ }}"


def groups(entries: Sequence[_E]) -> list[list[_E]]:
    """Entries that one statement says: the tied ones of a group, and neighbours that go in step."""
    found: list[list[_E]] = []
    runs: dict[Any, list[_E]] = {}  # the run that an entry may continue, by what must be equal
    tied: dict[int, list[_E]] = {}
    for entry in entries:
        if entry.tied is not None:
            if entry.tied not in tied:
                found.append(tied.setdefault(entry.tied, []))
            tied[entry.tied].append(entry)
            runs = runs if not isinstance(entry, p.Item) else {}
            continue
        key = getattr(entry, "part", None)
        run = runs.get(key)
        if run is not None and stepped(run[-1], 1) == stepped(entry, 0):
            run.append(entry)
        else:
            runs[key] = [entry]
            found.append(runs[key])
    return found
