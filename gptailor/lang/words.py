"""A plan's entries as the words of the language: one statement's text for a group of entries."""

from collections.abc import Iterable, Sequence

from gptailor.plan import plan as p
from gptailor.plan.registry import METHODS, OBJECTIVES


def ranges(numbers: Sequence[int], part: str | None = None) -> str:
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


def method(call: p.MethodCall) -> str:
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
        return f" by one of {', '.join(method(call) for call in how.one_of)}"
    return f" by {method(how)}"


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


def merge(recipes: Sequence[p.Merge], part: str | None) -> str:
    """`merge(L12 code, L14 chat, 0.5) by …` for recipes that go in step."""
    first = recipes[0]
    items = []
    for k, source in enumerate(first.merge):
        layers = ranges([r.merge[k].layer or 0 for r in recipes], part)
        items.append(f"{layers} {model_words(source.model)}")
    if first.share is not None:
        items.append(value_words(first.share))
    return f"merge({', '.join(items)}){by_words(first.by)}"


def decision(entries: Sequence[p.Layer]) -> str:
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
        return f"{ranges(targets, part)} from {origin}"
    if isinstance(first, p.Take):
        layers = [r.take.layer or 0 for r in recipes if isinstance(r, p.Take)]
        words = f"{ranges(layers, part)} {model_words(first.take.model, bare=True)}"
        return f"{ranges(targets, part)} = {words}"
    merged = merge([r for r in recipes if isinstance(r, p.Merge)], part)
    return merged if here else f"{ranges(targets, part)} = {merged}"


def item(entries: Sequence[p.Item]) -> str:
    """One item of a stack for layers whose recipes go in step."""
    first = entries[0].recipe
    if isinstance(first, p.Take):
        layers = [e.recipe.take.layer or 0 for e in entries if isinstance(e.recipe, p.Take)]
        return f"{ranges(layers)} {model_words(first.take.model, bare=True)}"
    return merge([e.recipe for e in entries if isinstance(e.recipe, p.Merge)], None)


def rest(where: str, recipe: p.Recipe) -> str:
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


def declaration(name: str, m: p.Model) -> str:
    """`model math = "…" @ "…"`."""
    on = f"{m.on} + " if m.on is not None else ""
    revision = f" @ {string_words(m.revision)}" if m.revision is not None else ""
    return f"model {name} = {on}{string_words(m.source)}{revision}"


def drop(entries: Iterable[p.Drop]) -> str:
    """`drop L30..L39`."""
    return f"drop {ranges([entry.position for entry in entries])}"


def drop_any(entry: p.DropAny) -> str:
    """`drop any 10 of L0..L39`."""
    return f"drop any {entry.count} of {ranges(entry.among)}"


def scale(entries: Sequence[p.Scale]) -> str:
    """`scale L12 by 0.9`."""
    return f"scale {ranges([e.position for e in entries])} by {value_words(entries[0].factor)}"


def bridge(entry: p.Bridge) -> str:
    """`bridge L11 on "text" tokens 65536 ridge 0.1`."""
    after = f"L{entry.after} " if entry.after is not None else ""
    settings = (("tokens", entry.tokens), ("ridge", entry.ridge))
    tail = "".join(f" {name} {value_words(v)}" for name, v in settings if v is not None)
    return f"bridge {after}on {string_words(entry.on)}{tail}"


def objective(wish: p.Objective) -> str:
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


def budget(name: str, numbers: Sequence[int]) -> str:
    """`fidelity 64..1024`, `trials 500`."""
    distinct = numbers[:1] if len(set(numbers)) == 1 else numbers
    return f"{name} {'..'.join(str(n) for n in distinct)}"
