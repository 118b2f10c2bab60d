"""Dependencies between a plan's models: adapters and recipes of models, down to checkpoints."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from gptailor.plan import plan as p
from gptailor.plan.faults import Origin, Source
from gptailor.plan.sites import named_models, names_in, recipe_sites


def below(model: p.Model) -> tuple[str, ...]:
    """Return the models that a model directly depends on: an adapter's, the sources of a recipe."""
    named = () if model.made is None else (name for _, name, _ in named_models(model.made))
    return tuple(dict.fromkeys([*([model.on] if model.on is not None else []), *named]))


def needed(plan: p.Plan, names: Iterable[str]) -> list[str]:
    """Return these models and their dependencies, each after its own; unknown names are ignored."""
    complete: dict[str, None] = {}
    entered: set[str] = set()
    for start in names:
        waiting = [(start, iter((start,)))]
        while waiting:
            name, ahead = waiting[-1]
            following = next((n for n in ahead if n in plan.models and n not in entered), None)
            if following is not None:
                entered.add(following)
                waiting.append((following, iter(below(plan.models[following]))))
            else:
                waiting.pop()
                if waiting:
                    complete[name] = None
    return list(complete)


def depths(plan: p.Plan) -> dict[str, int]:
    """Return for each model how many models lie below one another in it: 0 for a checkpoint."""
    depths: dict[str, int] = {}
    for name in needed(plan, plan.models):
        depths[name] = max((1 + depths.get(n, 0) for n in below(plan.models[name])), default=0)
    return depths


def undecided_models(plan: p.Plan) -> set[str]:
    """Return the models that a choice of the plan decides, in their recipes or below."""
    undecided: set[str] = set()
    for name in needed(plan, plan.models):
        recipe = plan.models[name].made
        chosen = recipe is not None and _leaves_open(plan, recipe)
        if chosen or not undecided.isdisjoint(below(plan.models[name])):
            undecided.add(name)
    return undecided


def _leaves_open(plan: p.Plan, recipe: p.Recipe) -> bool:
    """Return whether a recipe has a choice in it, or the name of a number that is one."""
    sites = [*recipe_sites(recipe)]
    named = (plan.numbers.get(name) for site in sites for name in names_in(site.value))
    return any(site.open for site in sites) or not all(isinstance(n, int | float) for n in named)


def of_inner_plans(
    plan: p.Plan, field: Literal["inner", "commits", "fitted"], entries: Mapping[str, object]
) -> p.Plan:
    """Return the plan with more entries of a field of its `Origin` about the plans inside it.

    The key of an entry is the path of a model, such as `deep.math`.
    """
    origin = plan.origin or Origin(Source("<plan>", ""), Path())
    more: dict[str, Any] = {field: {**getattr(origin, field), **entries}}
    return plan.read_from(replace(origin, **more))


_Entry = TypeVar("_Entry")


def entries_inside(entries: Mapping[str, _Entry], name: str) -> dict[str, _Entry]:
    """Return the entries of models inside the inner plan `name`, by their paths there."""
    here = f"{name}."
    return {n.removeprefix(here): e for n, e in entries.items() if n.startswith(here)}
