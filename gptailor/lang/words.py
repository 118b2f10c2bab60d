"""Entries of a plan as words of the language."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, final

from gptailor.plan import plan as p
from gptailor.plan.registry import METHODS, OBJECTIVES
from gptailor.plan.search_block import PLANS_TYPE, UNITS
from gptailor.plan.sites import has_curve, placed, revalued, sources
from gptailor.plan.windows import runs

_E = TypeVar("_E", p.Layer, p.Drop, p.Scale, p.Item)

# ------------------------------------------------------------- numbers, layers, models, methods


def range_words(numbers: Sequence[int], part: str | None = None) -> str:
    """Return `L0..L4, L7`, in the order given."""
    tail = f".{part}" if part else ""
    return ", ".join(f"L{a}{tail}" if a == b else f"L{a}..L{b}{tail}" for a, b in runs(numbers))


def value_words(v: p.Value) -> str:
    """Return a number as Python prints it, its name, a curve, or a choice of numbers."""
    if isinstance(v, p.Named):
        return v.named
    if isinstance(v, p.Curve):
        over = "" if v.over is None else f" over {range_words([*range(v.over[0], v.over[1] + 1)])}"
        return f"curve({', '.join(map(value_words, v.curve))}){over}"
    if isinstance(v, p.Interval):
        return "..".join(map(repr, v.interval))
    if isinstance(v, p.OneOfNumbers):
        return f"one of ({', '.join(map(repr, v.one_of))})"
    return repr(v)


def _model_words(name: str | p.OneOfModels, *, bare: bool = False) -> str:
    """Return a model, or a choice of one;

    `bare` where the choice runs to `by` or the statement's end.
    """
    if isinstance(name, str):
        return name
    options = ", ".join(name.one_of)
    return f"one of {options}" if bare else f"one of ({options})"


def _in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Return names in the order of `order`, then the unknown ones."""
    return sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))


def _call_words(call: p.MethodCall) -> str:
    """Return a method with its arguments: named, unless there is only one; a variadic one bare."""
    spec = METHODS.get(call.name)
    order = [parameter.name for parameter in spec.parameters] if spec else []
    arguments = []
    for name in _in_order(call.arguments, order):
        value, parameter = call.arguments[name], spec.parameter(name) if spec else None
        words = _argument_words(value)
        if parameter is not None and parameter.variadic:
            arguments.append(words[1:-1] if isinstance(value, tuple) else words)
        else:
            bare = len(order) == 1 and parameter is not None and not parameter.named
            arguments.append(words if bare else f"{name}={words}")
    return f"{call.name}({', '.join(arguments)})"


def _argument_words(value: p.Value | tuple[p.Value, ...] | str) -> str:
    """Return `0.5`, `(0.5, 0.3..0.7)`, or a word."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return f"({', '.join(map(value_words, value))})"
    return value_words(value)


def _by_words(how: p.By | None) -> str:
    """Return ` by …`, or nothing."""
    if how is None:
        return ""
    if isinstance(how, p.OneOfMethods):
        return f" by one of {', '.join(map(_call_words, how.one_of))}"
    return f" by {_call_words(how)}"


def _from_words(recipe: p.Recipe) -> str | None:
    """Return the words after `from`, or None for a recipe that has no such form."""
    if isinstance(recipe, p.Subset):
        return f"any of {', '.join(recipe.any_of)}{_by_words(recipe.by)}"
    if isinstance(recipe, p.Take):
        return _model_words(recipe.take.model, bare=True)
    if recipe.by is None or recipe.share is not None or not recipe.merge:
        return None
    names = [source.model for source in recipe.merge]
    if len(names) > 1 and not all(isinstance(name, str) for name in names):
        return None
    return ", ".join(_model_words(name, bare=True) for name in names) + _by_words(recipe.by)


def _made_words(recipes: Sequence[Any], part: str | None = None) -> str:
    """Return `L3 math`, or `merge(L12 code, L14 chat, 0.5) by …`, for recipes that go in step."""
    first = recipes[0]
    if isinstance(first, p.Take):
        layers = range_words([r.take.layer or 0 for r in recipes], part)
        return f"{layers} {_model_words(first.take.model, bare=True)}"
    items = [
        f"{range_words([recipe.merge[k].layer or 0 for recipe in recipes], part)} "
        f"{_model_words(source.model)}"
        for k, source in enumerate(first.merge)
    ]
    items += [] if first.share is None else [value_words(first.share)]
    return f"merge({', '.join(items)}){_by_words(first.by)}"


def _layer_words(entries: Sequence[p.Layer]) -> str:
    """Return one statement for layers with recipes that go in step."""
    target = range_words([entry.position for entry in entries], entries[0].part)
    joint, recipe = _layer_recipe_words(entries)
    return f"{target} {joint} {recipe}" if joint else recipe


def layer_recipe_words(entries: Sequence[p.Layer]) -> str:
    """Return the recipe of layers that go in step, without positions where these are their own."""
    first = entries[0].recipe
    if not isinstance(first, p.Take):
        return _layer_recipe_words(entries)[1]
    takes = [entry.recipe.take for entry in entries if isinstance(entry.recipe, p.Take)]
    layers = [take.layer or 0 for take in takes]
    own = layers == [entry.position for entry in entries]
    return _model_words(first.take.model, bare=True) + ("" if own else f" {range_words(layers)}")


def _layer_recipe_words(entries: Sequence[p.Layer]) -> tuple[Literal["", "from", "="], str]:
    """Return the recipe, and the sign between it and its target; empty where it has the target."""
    recipes = _without_extent([entry.recipe for entry in entries], _extent(entries))
    here = all(
        source.layer == entry.position for entry in entries for _, source in sources(entry.recipe)
    )
    if here and (origin := _from_words(recipes[0])) is not None:
        return "from", origin
    words = _made_words(recipes, entries[0].part)
    return ("" if here and isinstance(recipes[0], p.Merge) else "="), words


def _extent(entries: Sequence[p.Layer | p.Scale]) -> tuple[int, int]:
    """Return the first and the last position of a statement: its curves go over these."""
    positions = [entry.position for entry in entries]
    return min(positions), max(positions)


def _without_extent(recipes: Sequence[p.Recipe], extent: tuple[int, int]) -> list[p.Recipe]:
    """Return the recipes, the first one without an extent that its statement says."""
    return [revalued(recipes[0], partial(_unsaid, extent=extent)), *recipes[1:]]


def _unsaid(value: p.Value, extent: tuple[int, int]) -> p.Value:
    if isinstance(value, p.Curve) and value.over == extent:
        return value.model_copy(update={"over": None})
    return value


def target_words(entry: p.Others | p.Whole) -> str:
    """Return `others`, `others.mlp` or `whole`."""
    if isinstance(entry, p.Whole):
        return "whole"
    return f"others.{entry.part}" if entry.part else "others"


def _all_words(entries: Sequence[p.Others | p.Whole]) -> str:
    """Return `others.mlp from code`, or `whole from math, code by linear()`."""
    return f"{target_words(entries[0])} from {recipe_words(entries[0].recipe)}"


def _drop_words(entries: Sequence[p.Drop]) -> str:
    return f"drop {range_words([entry.position for entry in entries])}"


def recipe_words(recipe: p.Recipe) -> str:
    """Return a recipe with sources that name no layer: `math, code by linear()`."""
    return _from_words(recipe) or ""


def _scale_words(entries: Sequence[p.Scale]) -> str:
    """Return `scale L12 by 0.9`."""
    positions = range_words([entry.position for entry in entries])
    factor = _unsaid(entries[0].factor, _extent(entries))
    return f"scale {positions} by {value_words(factor)}"


def _item_words(entries: Sequence[p.Item]) -> str:
    """Return one item of a stack for layers with recipes that go in step."""
    recipes = [entry.recipe for entry in entries]
    return _made_words(_without_extent(recipes, (0, len(recipes) - 1)))


def rest_words(where: str, recipe: p.Recipe | p.TemplateOf | str) -> str:
    """Return `embed from chat` or `tokenizer union`; merges that only JSON has become `linear`."""
    origin = rest_recipe_words(where, recipe)
    return f"{where} {origin}" if isinstance(recipe, str) else f"{where} from {origin}"


def rest_recipe_words(where: str, recipe: p.Recipe | p.TemplateOf | str) -> str:
    """Return the origin of the embedding, norm, head, tokenizer or chat template alone."""
    if isinstance(recipe, p.TemplateOf):
        return recipe.model
    if isinstance(recipe, str):
        return recipe if where == "tokenizer" else f'"{recipe}"'
    return recipe_words(_by_method(recipe))


def _by_method(recipe: p.Recipe) -> p.Recipe:
    """Return a merge with a method: `linear` by default."""
    if isinstance(recipe, p.Merge) and recipe.by is None:
        weights: tuple[p.Value, ...] = ()
        if isinstance(recipe.share, int | float):
            weights = (1.0 - recipe.share, recipe.share)
        call = p.MethodCall(name="linear", arguments={"weight": weights} if weights else {})
        recipe = p.Merge(merge=recipe.merge, by=call)
    return recipe


def mark_words(entry: p.Closed) -> str:
    """Return the marks `tied ` and `maybe ` of a statement."""
    if not isinstance(entry, p.Open):
        return ""
    return "tied " * (entry.tied is not None) + "maybe " * entry.maybe


def model_source(m: p.Model) -> str:
    """Return a model's declaration after its name: `"…" @ "…"`, `math, code by linear()`."""
    if m.made is not None:
        return recipe_words(_by_method(m.made))
    on = f"{m.on} + " if m.on is not None else ""
    revision = f' @ "{m.revision}"' if m.revision is not None else ""
    return f'{on}"{m.source}"{revision}'


def _some_dropped_words(entry: p.DropAny | p.DropWindow) -> str:
    """Return `any 10 of L0..L39`."""
    what = "any" if isinstance(entry, p.DropAny) else "window"
    return f"{what} {entry.named or p.count_text(entry.count)} of {range_words(entry.among)}"


def _repeat_words(entry: p.Repeat | p.RepeatWindow) -> str:
    """Return `L14..L17 times 2`."""
    times = "" if entry.times == 1 else f" times {p.count_text(entry.times)}"
    if isinstance(entry, p.RepeatWindow):
        return f"window {p.count_text(entry.count)} of {range_words(entry.among)}{times}"
    end = f"..L{entry.last}" if entry.last != entry.first else ""
    return f"L{entry.first}{end}{times}"


def text_fit_words(fit: p.TextFit) -> str:
    """Return `1024..1536 step 128 on "text" tokens 65536`."""
    size = f"{size_words(fit.size)} " if isinstance(fit, p.SizeCut) else ""
    return f'{size}on "{fit.on}"{_setting_words(fit, "tokens", "ridge")}'


def _gguf_words(entry: p.GgufOutput) -> str:
    """Return `q4_k_m on "text"`."""
    return entry.type + (f' on "{entry.on}"' if entry.on is not None else "")


def _setting_words(entry: p.Closed, *names: str) -> str:
    """Return ` tokens 65536 ridge 0.1`: the words of the settings that an entry has."""
    given = ((name, getattr(entry, name, None)) for name in names)
    return "".join(f" {name} {_argument_words(v)}" for name, v in given if v is not None)


def size_words(size: p.Size) -> str:
    """Return `24576`, a number's name, or `1024..1536 step 128`."""
    if isinstance(size, p.Named):
        return size.named
    if isinstance(size, p.SizeRange):
        step = "" if size.step == 1 else f" step {size.step}"
        return f"{'..'.join(map(str, size.between))}{step}"
    return str(size)


def _bridge_words(entry: p.Bridge) -> str:
    """Return `L11 on "text" tokens 65536 ridge 0.1`."""
    after = f"L{entry.after} " if entry.after is not None else ""
    after += f"by {entry.by} " if entry.by is not None else ""
    return f'{after}on "{entry.on}"{_setting_words(entry, "tokens", "ridge")}'


def heal_lines(entry: p.Heal, width: int) -> str:
    """Return the statement, with a line for each text if it would be wider than `width`."""
    words = statement_words([entry])
    if len(words) <= width or len(entry.on) == 1:
        return words
    texts = "".join(f"\n  {_heal_text_words(text)}," for text in entry.on)
    return "heal " + _heal_words(entry, f"({texts.removesuffix(',')}\n)")


def _heal_words(entry: p.Heal, texts: str = "") -> str:
    """Return `L12..L20 from chat on "text", "other"`."""
    texts = texts or ", ".join(map(_heal_text_words, entry.on))
    layers = f"{range_words(entry.layers)} " if entry.layers else ""
    teacher = f"from {entry.teacher} " if entry.teacher is not None else ""
    settings = _setting_words(entry, "tokens", "rank", "seed", "loss")
    return f"{layers}{teacher}on {texts}{settings}"


def _heal_text_words(text: p.HealText) -> str:
    """Return `"text" from math weight 2`, or `answers("prompts", tokens=256)`."""
    words = f'"{text.file}"'
    if text.answers is not None:
        settings = {"tokens": text.answers.tokens, "temperature": text.answers.temperature}
        given = [f"{name}={v!r}" for name, v in settings.items() if v is not None]
        words = f"answers({', '.join([words, *given])})"
    teacher = f" from {text.teacher}" if text.teacher is not None else ""
    return words + teacher + (f" weight {text.weight!r}" if text.weight != 1 else "")


def bounded_words(entry: p.Expectation) -> str:
    """Return `parameters() <= 0.75 * base`."""
    return f"{measure_words(entry.objective)} {entry.sign} {_bound_words(entry)}"


def _bound_words(entry: p.Expectation) -> str:
    """Return `0.75 * base`, or `110M` for a size."""
    number, of = entry.bound.number, entry.bound.of
    spec = OBJECTIVES.get(entry.name)
    sized = spec is not None and spec.by == "headers" and of is None
    words = [] if number is None else [_counted(number) if sized else repr(number)]
    return " * ".join([*words, *([] if of is None else [of])])


def _counted(number: int | float) -> str:
    """Return `1.3G` for a number with at most three digits behind that point, else the number."""
    for unit, size in reversed(UNITS.items()):
        step = size if unit == "k" else size // 1000
        if isinstance(number, int) and number >= size and number % step == 0:
            return f"{number / size:.3f}".rstrip("0").rstrip(".") + unit
    return repr(number)


def objective_words(wish: p.Objective) -> str:
    """Return `minimize kl("text", from=chat)`."""
    return f"{wish.direction} {measure_words(wish)}"


def measure_words(wish: p.Objective) -> str:
    """Return `kl("text", from=chat)`."""
    spec = OBJECTIVES.get(wish.name)
    words = []
    for name in _in_order(wish.arguments, [a.name for a in spec.arguments] if spec else []):
        v = wish.arguments[name]
        argument = spec.argument(name) if spec else None
        bare = argument is not None and argument.kind in ("model", "file type")
        text = repr(v) if not isinstance(v, str) else v if bare else f'"{v}"'
        alone = v == PLANS_TYPE or (argument is not None and argument.required)
        words.append(text if alone else f"{name}={text}")
    return f"{wish.name}({', '.join(words)})"


@final
class StatementForm(NamedTuple):
    """The form of a kind of entry: its section, its order in it, its words and its keyword.

    Without a keyword the words belong to several entries, which make one statement. Entries that
    are `joined` do so if they go in step; any other entry is a statement by itself.
    """

    section: str
    order: int
    words: Callable[[Any], str]
    keyword: str = ""
    joined: bool = False


FORMS: Mapping[type[p.Closed], StatementForm] = {
    p.GgufOutput: StatementForm("output", 6, _gguf_words, "gguf"),
    p.Layer: StatementForm("layers", 0, _layer_words, joined=True),
    p.Others: StatementForm("layers", 1, _all_words),
    p.Whole: StatementForm("layers", 2, _all_words),
    p.Drop: StatementForm("changes", 0, _drop_words, joined=True),
    p.DropAny: StatementForm("changes", 1, _some_dropped_words, "drop"),
    p.DropWindow: StatementForm("changes", 2, _some_dropped_words, "drop"),
    p.Repeat: StatementForm("changes", 3, _repeat_words, "repeat"),
    p.RepeatWindow: StatementForm("changes", 3, _repeat_words, "repeat"),
    p.Scale: StatementForm("changes", 4, _scale_words, joined=True),
    p.Bridge: StatementForm("changes", 6, _bridge_words, "bridge"),
    p.Heal: StatementForm("changes", 7, _heal_words, "heal"),
    p.Item: StatementForm("stack", 0, _item_words, joined=True),
    p.Requirement: StatementForm("search", 1, bounded_words, "require"),
    p.Expectation: StatementForm("expects", 0, bounded_words, "expect"),
}


def keyword_and_words(entry: p.Closed) -> tuple[str, str]:
    """Return a statement's keyword, and the words after it with its marks before them."""
    form = FORMS[type(entry)]
    return form.keyword, mark_words(entry) + form.words(entry)


def statement_words(entries: Sequence[p.Closed]) -> str:
    """Return the statement of an entry, or of entries that go in step."""
    first = entries[0]
    form = FORMS[type(first)]
    words = f"{form.keyword} {form.words(first)}" if form.keyword else form.words(entries)
    return mark_words(first) + words


def groups(entries: Sequence[_E]) -> list[list[_E]]:
    """Return the entries grouped by statement.

    A statement has the tied entries of a group, those that share a curve, neighbours that go in
    step, or all drops.
    """
    grouped: list[list[_E]] = []
    latest: dict[object, list[_E]] = {}  # run of each key
    seen: dict[object, set[tuple[int, int | None]]] = {}  # and the layers in its lists
    for entry in entries:
        key, layers = _run_key(entry), set(enumerate(_lists(entry)))
        run = latest.get(key)
        beside = run is not None and run is grouped[-1]
        again = run is not None and not seen[key].isdisjoint(layers)
        if run is None or not _continues(entry, run[-1], beside=beside, again=again):
            grouped.append(run := [])
            latest[key], seen[key] = run, set()
        run.append(entry)
        seen[key] |= layers
    return grouped


def _run_key(entry: p.Layer | p.Drop | p.Scale | p.Item) -> object:
    """Return a key that all entries of a statement share."""
    if entry.tied is not None:
        return entry.tied
    if not _is_curved(entry):
        return "in step", getattr(entry, "part", None), isinstance(entry, p.Drop) and entry.maybe
    return "curve" if isinstance(entry, p.Item) else repr(_shape(entry))


def _continues(entry: Any, last: Any, *, beside: bool, again: bool) -> bool:
    """Return whether an entry continues the statement that ends with `last`.

    Items of a stack are `beside` each other and count up; elsewhere a list has each layer once, and
    not `again`.
    """
    if entry.tied is not None or isinstance(entry, p.Drop):
        return True
    if isinstance(entry, p.Item) and not beside:
        return False
    if not _is_curved(entry):
        following = [None if number is None else number + 1 for number in _lists(last)]
        return following == _lists(entry) and _shape(last) == _shape(entry)
    return _shape(last, 1) == _shape(entry) if isinstance(entry, p.Item) else not again


def _lists(entry: Any) -> list[int | None]:
    """Return the position, and the layer of each source."""
    recipe = getattr(entry, "recipe", None)
    layers = [source.layer for _, source in sources(recipe)] if recipe is not None else []
    return [getattr(entry, "position", None), *layers]


def _is_curved(entry: p.Layer | p.Drop | p.Scale | p.Item) -> bool:
    if isinstance(entry, p.Layer | p.Item):
        return has_curve(entry.recipe)
    return isinstance(entry, p.Scale) and isinstance(entry.factor, p.Curve)


def _shape(entry: Any, step: int = 0) -> tuple[object, ...]:
    """Return an entry's content without its layers; an item's curve is moved on by `step`."""

    def counted(value: p.Value) -> p.Value:
        if isinstance(value, p.Curve) and value.over is not None:
            return value.model_copy(update={"over": (value.over[0] + step, value.over[1])})
        return value

    recipe = getattr(entry, "recipe", None)
    if recipe is not None:
        here = [source.layer == getattr(entry, "position", None) for _, source in sources(recipe)]
        content = placed(recipe, None)
        recipe = here, revalued(content, counted) if step else content
    return getattr(entry, "part", None), entry.maybe, getattr(entry, "factor", None), recipe
