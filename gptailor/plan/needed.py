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
    found: dict[str, None] = {}
    for name in names:
        waiting = [name] if name in plan.models else []
        while waiting:
            known = {*found, *waiting}
            ahead = (n for n in below(plan.models[waiting[-1]]) if n in plan.models)
            first = next((n for n in ahead if n not in known), None)
            if first is not None:
                waiting.append(first)
            else:
                found.setdefault(waiting.pop())
    return list(found)


def leaves_open(plan: p.Plan, recipe: p.Recipe) -> bool:
    """Whether a recipe has a choice in it, or a number that is one by its name."""
    found = [*recipe_sites(recipe)]
    names = {name for site in found for name in names_in(site.value)}
    fixed = {name for name, value in plan.numbers.items() if isinstance(value, int | float)}
    return any(site.open for site in found) or not names <= fixed


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
