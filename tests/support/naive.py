"""A second interpreter of closed plans: whole tensors, no planning, one loop.

For models with tensors that are named like Llama's. It imports nothing of the compiler but the
plan's data; the long merge methods are `combine_tensors`' own, and tested elsewhere.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gptailor.plan.plan import Curve, LayerOf, Merge, MethodCall, Named, Plan, Recipe, Repeat, Take
from gptailor.plan.registry import METHODS
from tests.support.merging import merge_tensors

Tensors = dict[str, Tensor]
EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
MLP = ("mlp.", "post_attention_layernorm.")
OUTPUTS = ("self_attn.o_proj.", "mlp.down_proj.")


def interpret(plan: Plan, folders: Mapping[str, Path]) -> Tensors:
    """The output's tensors by name."""
    models = {name: read(folder) for name, folder in folders.items()}
    for name in plan.models:
        add_made(plan, name, models)
    base = models["base"]
    plan = with_whole_ends(plan, models)
    wanted = None if plan.dtype is None else getattr(torch, plan.dtype)
    out: Tensors = {}

    def put(name: str, values: Tensor, like: Tensor) -> None:
        out[name] = values.to(wanted or like.dtype)

    for number, (position, entries, divisor) in enumerate(layers(plan, base)):
        for rest in inside(base, 0):
            recipe = finest(entries, rest)
            first = sources_of(recipe)[0]
            own = f"model.layers.{first.layer if position is None else position}.{rest}"
            by = divisor if rest.startswith(OUTPUTS) else 1.0
            like = base.get(own, base[f"model.layers.0.{rest}"])
            made = make(recipe, models, lambda s, r=rest: f"model.layers.{s.layer}.{r}", own)
            put(f"model.layers.{number}.{rest}", over(made, by), like)
    for name, recipe, reads, place in ends(plan, models):
        put(name, make(recipe, models, lambda _, n=reads: n, place), base[place])
    return out


def with_whole_ends(plan: Plan, models: Mapping[str, Tensors]) -> Plan:
    """The plan with `whole` as its embedding, norm and head, where it names none; no names left."""
    stated = {where: plan.rest(where) for where in ("embed", "norm", "head")}
    if plan.whole is not None:
        recipe = plan.whole.recipe
        tied = [HEAD not in models[str(s.model)] for s in sources_of(recipe)]
        unsaid = [where for where in stated if stated[where] is None]
        if HEAD not in models["base"] and len(unsaid) < 2 + ("norm" in unsaid):
            unsaid = [where for where in unsaid if where == "norm"]
        elif HEAD not in models["base"] and all(tied):
            unsaid.remove("head")
        stated |= {where: plain(plan, recipe, 0 if where == "embed" else 1, (0, 1))
                 for where in unsaid}  # fmt: skip
    results = {w: None if r is None else plain(plan, r, 0, (0, 1)) for w, r in stated.items()}
    return plan.model_copy(update=results)


def plain(plan: Plan, recipe: Recipe, at: int | None, over: tuple[int, int]) -> Recipe:
    """A closed recipe with a number for each name and for each curve."""
    if isinstance(recipe, Take):
        return recipe
    assert isinstance(recipe, Merge)
    by = recipe.by
    if isinstance(by, MethodCall):
        given = {name: valued(plan, value, at, over) for name, value in by.arguments.items()}
        by = MethodCall(name=by.name, arguments=given)
    return Merge(merge=recipe.merge, share=valued(plan, recipe.share, at, over), by=by)


def valued(plan: Plan, value: Any, at: int | None, over: tuple[int, int]) -> Any:
    """A number at a position; an item of a stack (None) knows its place in its statement."""
    if isinstance(value, Named):
        return plan.numbers[value.named]
    if isinstance(value, Curve):
        first, last = value.over or over
        knots = [valued(plan, knot, at, over) for knot in value.curve]
        return curve(knots, first, 0, last) if at is None else curve(knots, at, first, last)
    if isinstance(value, tuple):
        return tuple(valued(plan, item, at, over) for item in value)
    return value


def curve(knots: Sequence[float], at: int, first: int, last: int) -> float:
    """The number on the straight lines through knots that stand evenly from first to last."""
    if first == last:
        return knots[-1]
    steps = len(knots) - 1
    way = (at - first) / (last - first) * steps
    before = [n for n in range(steps) if n <= way][-1]
    share = way - before
    return (1 - share) * knots[before] + share * knots[before + 1]


def highest_first(plan: Plan, position: int) -> Iterator[dict[str | None, Recipe]]:
    """Yield the recipes of a position's parts: its own, of `others`, of `whole`, the base's."""
    yield {layer.part: layer.recipe for layer in plan.layers if layer.position == position}
    yield {item.part: at(item.recipe, position) for item in plan.others}
    yield {None: at(plan.whole.recipe, position)} if plan.whole is not None else {}
    yield {None: Take(take=LayerOf(model="base", layer=position))}


def at(recipe: Recipe, position: int) -> Recipe:
    """The recipe with each source's layer of that number."""
    results = tuple(LayerOf(model=item.model, layer=position) for item in sources_of(recipe))
    if isinstance(recipe, Take):
        return Take(take=results[0])
    return recipe.model_copy(update={"merge": results})


def add_made(plan: Plan, name: str, models: dict[str, Tensors]) -> None:
    """A model that is made of others, which are added before it: each tensor by its one recipe."""
    recipe = plan.models[name].made
    if recipe is None or name in models:
        return
    named = [str(source.model) for source in sources_of(recipe)]
    for inner in named:
        add_made(plan, inner, models)
    base = models["base"]
    names = list(base) + [HEAD] * (HEAD not in base and any(HEAD in models[n] for n in named))
    models[name] = {
        here: make(recipe, models, lambda _, n=here: n, here if here in base else EMBED)
        for here in names
    }


def ends(plan: Plan, models: Mapping[str, Tensors]) -> Iterator[tuple[str, Recipe, str, str]]:
    """Embedding, norm and head: name, recipe, the read tensor, and the base's tensor at that place.

    A tied base has no head. Either name decides its embedding; both untie it if they differ.
    """
    own = Take(take=LayerOf(model="base"))
    yield NORM, plan.norm or own, NORM, NORM
    tied = HEAD not in models["base"]
    if tied and plan.embed is None and plan.head is not None:
        yield EMBED, plan.head, HEAD, EMBED
    else:
        yield EMBED, plan.embed or own, EMBED, EMBED
    if not tied:
        yield HEAD, plan.head or own, HEAD, HEAD
    elif untied(plan, models):
        assert plan.head is not None
        yield HEAD, plan.head, HEAD, EMBED


def untied(plan: Plan, models: Mapping[str, Tensors]) -> bool:
    """Return True if embedding and head are both named, and come from different tensors."""
    if plan.embed is None or plan.head is None:
        return False
    named = [s.model for r in (plan.embed, plan.head) for s in sources_of(r)]
    return plan.embed != plan.head or any(HEAD in models[str(name)] for name in named)


def read(folder: Path) -> Tensors:
    """All tensors of a checkpoint."""
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def inside(model: Tensors, layer: int) -> list[str]:
    """The names within a layer."""
    start = f"model.layers.{layer}."
    return [name.removeprefix(start) for name in model if name.startswith(start)]


def finest(levels: Sequence[Mapping[str | None, Recipe]], rest: str) -> Recipe:
    """Return the recipe of the finest part with the tensor, from the first level that has one."""
    norm = rest.split(".", maxsplit=1)[0].endswith("layernorm")
    branch = "mlp" if rest.startswith(MLP) else "attn"
    finer = "norms" if norm else f"{branch}.{rest.split('.')[1].removesuffix('_proj')}"
    for entry in levels:
        patterns = [part for part in entry if part and part[0] == '"']
        held = [part for part in patterns if fnmatchcase(rest, part.strip('"'))]
        for part in (*held, finer, branch, None):
            if part in entry:
                return entry[part]
    raise AssertionError("the last level says all")


Levels = Sequence[Mapping[str | None, Recipe]]


def layers(plan: Plan, base: Tensors) -> list[tuple[int | None, Levels, float]]:
    """The position of each layer, the recipes of its parts, and the divisor of its outputs."""
    if plan.stack is not None:
        items = [plain(plan, item.recipe, None, (0, 1)) for item in plan.stack.items]
        return [(None, [{None: recipe}], 1.0) for recipe in items]
    count = 1 + max(int(name.split(".")[2]) for name in base if name.startswith("model.layers."))
    results: list[tuple[int | None, Levels, float]] = []
    divisor = 1.0
    for position in walked(plan, count):
        levels = [
            {part: plain(plan, recipe, position, (0, count - 1)) for part, recipe in entry.items()}
            for entry in highest_first(plan, position)
        ]
        if position not in [drop.position for drop in plan.drops]:
            results.append((position, levels, divisor))
            factors = [s.factor for s in plan.scales if s.position == position]
            divisor *= math.prod(number(valued(plan, f, position, (0, 1))) for f in factors)
    return results


def walked(plan: Plan, count: int) -> Iterator[int]:
    """The positions that a hidden state passes, a block's positions several times."""
    position = 0
    while position < count:
        block = next(
            (b for b in plan.repeats if isinstance(b, Repeat) and b.first == position), None
        )
        last = position if block is None else block.last
        times = 0 if block is None else block.times
        assert isinstance(times, int)
        for _ in range(1 + times):
            yield from range(position, last + 1)
        position = last + 1


def make(recipe: Recipe, models: Mapping[str, Tensors], name: Any, place: str) -> Tensor:
    """A tensor of a recipe; a merged one in float32, one that is taken as it is."""
    sources = sources_of(recipe)
    tensors = [models[str(s.model)].get(name(s), models[str(s.model)][EMBED]) for s in sources]
    if isinstance(recipe, Take):
        return tensors[0]
    assert isinstance(recipe, Merge)
    if recipe.share is not None:
        share = number(recipe.share)
        return linear(tensors, (1.0 - share, share))
    call = recipe.by or MethodCall(name="linear")
    assert isinstance(call, MethodCall)
    takes_base = METHODS[call.name].takes_base(call.arguments)
    theta = models["base"][place] if takes_base else None
    return merge(call, [str(s.model) for s in sources], [t.float() for t in tensors], theta, place)


def sources_of(recipe: Recipe) -> Sequence[LayerOf]:
    """The layers that a closed recipe names."""
    if isinstance(recipe, Take):
        return (recipe.take,)
    assert isinstance(recipe, Merge)
    return recipe.merge


def number(value: object) -> float:
    """A number of a closed plan."""
    assert isinstance(value, int | float)
    return value


def over(values: Tensor, divisor: float) -> Tensor:
    """Divided in float32; untouched by 1."""
    return values if divisor == 1.0 else values.float() / torch.tensor(divisor)


# ----------------------------------------------------------------------------------------- methods


def merge(
    call: MethodCall, names: Sequence[str], sources: list[Tensor], theta: Tensor | None, place: str
) -> Tensor:
    """A merge in float32 by a method, its defaults filled in."""
    given: dict[str, Any] = {
        p.name: call.arguments.get(p.name, p.default) for p in METHODS[call.name].parameters
    }
    for parameter in METHODS[call.name].parameters:
        key = parameter.name
        if parameter.variadic or parameter.each:
            value = 1.0 / len(sources) if given[key] is None else given[key]
            several = value if isinstance(value, tuple) else (value,)
            given[key] = several * (len(sources) // len(several))
    if call.name == "linear":
        return linear(sources, shares(given))
    if call.name == "slerp":
        return slerp(sources[0], sources[1], given["t"])
    if call.name == "task_arithmetic" and theta is not None:
        return task_arithmetic(theta.float(), sources, shares(given))
    if call.name == "ties" and theta is not None:
        return ties(theta.float(), sources, given)
    arguments = tuple(given.items())
    return merge_tensors(call.name, arguments, theta, sources, names, place, dtype=torch.float32)


def shares(given: Mapping[str, Any]) -> tuple[float, ...]:
    """The weights, over their sum where they are normalised."""
    total = math.fsum(given["weight"]) if given["normalize"] == "yes" else 1.0
    return tuple(weight / total for weight in given["weight"])


def linear(sources: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_i θ_i."""
    terms = [s.float() * w for s, w in zip(sources, weights, strict=True) if w != 0]
    total = terms[0] if terms else torch.zeros_like(sources[0])
    for term in terms[1:]:
        total = total + term
    return total


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """sin((1 - t)θ)/sinθ · a + sin(tθ)/sinθ · b."""
    x, y = a.double().flatten(), b.double().flatten()
    lengths = float(x.norm() * y.norm())
    angle = math.acos(max(-1.0, min(1.0, float(x @ y) / lengths))) if lengths else 0.0
    if math.sin(angle) < 1e-4:
        return linear([a, b], [1.0 - t, t])
    shares = [math.sin((1.0 - t) * angle), math.sin(t * angle)]
    return linear([a, b], [share / math.sin(angle) for share in shares])


def task_arithmetic(theta: Tensor, sources: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """θ_b + Σ λ_i (θ_i - θ_b)."""
    return moved(theta, linear([source - theta for source in sources], scales))


def ties(theta: Tensor, sources: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
    """θ_b + scale · the mean of the trimmed task vectors that have the sign of their sum."""
    trimmed = []
    for source, density in zip(sources, given["density"], strict=True):
        vector = source - theta
        kept = max(1, round(density * vector.numel()))
        least = vector.abs().flatten().sort(descending=True).values[kept - 1]
        trimmed.append(torch.where(vector.abs() >= least, vector, 0.0))
    return moved(theta, linear([agreeing(trimmed, given)], [given["scale"]]))


def agreeing(vectors: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
    """Σ w τ where w τ has the sign of the sum of all, over Σ w of these if that is wanted."""
    weights = given["weight"]
    weighted = [v * w if w != 1 else v for v, w in zip(vectors, weights, strict=True)]
    mass = linear(weighted, [float(w != 0) for w in weights])
    agree = [torch.where(v.sign() == mass.sign(), v, 0.0) for v in weighted]
    total = linear(agree, [float(w != 0) for w in weights])
    if given["normalize"] == "no":
        return total
    each = zip(agree, weights, strict=True)
    count = linear([(v != 0).float() * w for v, w in each], [1.0] * len(agree))
    return total / torch.where(count == 0, 1.0, count)


def moved(theta: Tensor, change: Tensor) -> Tensor:
    """θ_b + change, a negative zero of θ_b kept where nothing changes."""
    return torch.where(change == 0, theta, theta + change)
