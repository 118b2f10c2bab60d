"""What models are made of: adapters and recipes of models, down to checkpoints."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from gptailor.plan import plan as p
from gptailor.plan.faults import Origin, Source
from gptailor.plan.walk import named_models, names_in, recipe_sites


def below(model: p.Model) -> tuple[str, ...]:
    """The models that one is directly made of: what an adapter is on, the sources of a recipe."""
    named = () if model.made is None else (name for _, name, _ in named_models(model.made))
    return tuple(dict.fromkeys([*([model.on] if model.on is not None else []), *named]))


def needed(plan: p.Plan, names: Iterable[str]) -> list[str]:
    """These models and all that they are made of, each after those; unknown names are left out."""
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
    found: dict[str, int] = {}
    for name in needed(plan, plan.models):
        found[name] = max((1 + found.get(n, 0) for n in below(plan.models[name])), default=0)
    return found


def undecided_models(plan: p.Plan) -> set[str]:
    """Return the models that a choice of the plan decides, in their recipes or below."""
    found: set[str] = set()
    for name in needed(plan, plan.models):
        recipe = plan.models[name].made
        chosen = recipe is not None and _leaves_open(plan, recipe)
        if chosen or not found.isdisjoint(below(plan.models[name])):
            found.add(name)
    return found


def _leaves_open(plan: p.Plan, recipe: p.Recipe) -> bool:
    """Whether a recipe has a choice in it, or a number that is one by its name."""
    sites = [*recipe_sites(recipe)]
    named = (plan.numbers.get(name) for site in sites for name in names_in(site.value))
    return any(site.open for site in sites) or not all(isinstance(n, int | float) for n in named)


def with_inner(plan: p.Plan, paths: Mapping[str, Path]) -> p.Plan:
    """The same plan, with other checkpoints for models of the plans that are its models."""
    origin = plan.origin or Origin(Source("<plan>", ""), Path())
    return plan.read_from(replace(origin, inner={**origin.inner, **paths}))


def at_commits(plan: p.Plan, commits: Mapping[str, tuple[str, str | None, str]]) -> p.Plan:
    """The same plan, with models of the Hub of its inner plans at these commits.

    Each is of a source and a revision, as the inner plan has to have them.
    """
    origin = plan.origin or Origin(Source("<plan>", ""), Path())
    return plan.read_from(replace(origin, commits={**origin.commits, **commits}))
