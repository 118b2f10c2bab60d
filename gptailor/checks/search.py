"""Rules of the `search` block, of expectations, and of GGUF files."""

from collections.abc import Iterator, Sequence

from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES, is_weighted, unwritten_type
from gptailor.checks.language import LARGEST
from gptailor.checks.rule import NAME_FILE, NO_FILE, repeats, rule
from gptailor.plan.faults import Also, Fault, Place, listed, nearest
from gptailor.plan.model_dependencies import undecided_models
from gptailor.plan.plan import Expectation, Objective, Plan
from gptailor.plan.registry import OBJECTIVES, ObjectiveSpec
from gptailor.plan.search_block import PLANS_TYPE, with_plain_path
from gptailor.plan.sites import compared_models, measured

_LIKE = {"loss": "nll", "ppl": "perplexity", "accuracy": "multiple_choice"}
"""Objectives by common names of others, which come before the nearest name."""

_VALUES = {"number": "a number", "model": "a model's name", "file type": "a GGUF type"}


@rule("P601", "P602", "P603", "P604")
def _every_objective_is_known(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each objective that is unregistered, in the wrong direction or misused."""
    for at, objective in measured(plan):
        spec = OBJECTIVES.get(objective.name)
        if spec is None:
            names = OBJECTIVES.names()
            like = nearest(_LIKE.get(objective.name, objective.name), names)
            help_ = like or f"the objectives are {listed(names)}"
            help_ = OBJECTIVES.problem(objective.name) or help_
            yield Fault("P601", f"there is no objective '{objective.name}'", (*at, "name"), help_)
            continue
        if at[0] == "search" and spec.direction not in (None, objective.direction):
            better = "smaller" if spec.direction == "minimize" else "larger"
            message = f"a {better} '{spec.name}' is better"
            signs = {"minimize": "<=", "maximize": ">="} if at[1] == "requires" else {}
            field = "sign" if signs else "direction"
            right = signs.get(str(spec.direction), spec.direction)
            yield Fault("P602", message, (*at, field), f"write '{right}'")
        yield from _arguments(objective, spec, at)


def unknown_file_type(name: str) -> tuple[str, str]:
    """Return a message and help on a type of GGUF files that is not written."""
    types = [kind.lower() for kind in FILE_TYPES]
    help_ = unwritten_type(name) or nearest(name, types) or f"the types are {listed(types)}"
    return f"there is no GGUF type '{name}'", help_


def _taken(names: list[str]) -> str:
    """Return the arguments of an objective in words."""
    return f"its arguments are {listed(names)}" if names else "it has no arguments"


def _arguments(objective: Objective, spec: ObjectiveSpec, at: Place) -> Iterator[Fault]:
    """Yield a fault for each unknown, wrong or missing argument of an objective."""
    names = [argument.name for argument in spec.arguments]
    for name, value in objective.arguments.items():
        argument, help_ = spec.argument(name), ""
        if argument is None:
            help_ = nearest(name, names) or _taken(names)
            message = f"'{spec.name}' has no argument '{name}'"
        elif (argument.kind == "number") == isinstance(value, str):
            message = f"'{name}' of '{spec.name}' must be {_VALUES.get(argument.kind, 'a text')}"
        elif value == "":
            message = f"'{name}' of '{spec.name}' is empty"
        elif argument.kind == "file type" and str(value).upper() not in FILE_TYPES:
            message, help_ = unknown_file_type(str(value))
            if value == PLANS_TYPE:
                help_ = "add one statement 'gguf' to the plan, or name a type"
        else:
            continue
        yield Fault("P603", message, (*at, "arguments", name), help_)
    for argument in spec.arguments:
        if argument.required and argument.name not in objective.arguments:
            message = f"'{spec.name}' needs the argument '{argument.name}'"
            yield Fault("P604", message, (*at, "name"), f'write {spec.name}("…")')


@rule("P401", "P406")
def _every_file_has_another_type(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each GGUF file of an unknown type, and of a type that another has.

    A type without blocks, and `q8_0`, has no importance matrix.
    """
    types = [file.type for file in plan.gguf]
    for i, first in repeats(types):
        also = (Also("first given here", ("gguf", first)),)
        yield Fault(
            "P401", f"'gguf {types[i]}' is given twice", ("gguf", i), "keep one of the two", also
        )
    for i, file in enumerate(plan.gguf):
        if file.type.upper() not in FILE_TYPES:
            message, help_ = unknown_file_type(file.type)
            yield Fault("P406", message, ("gguf", i, "type"), help_)
        elif file.on == "":
            yield Fault("P406", NO_FILE, ("gguf", i, "on"), NAME_FILE)
        elif file.on is not None and not is_weighted(file.type.upper()):
            message = f"the GGUF type {file.type} can't use an importance matrix"
            yield Fault("P406", message, ("gguf", i, "on"), "remove 'on' and the text")


@rule("P603")
def _every_teacher_is_closed(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each model with choices that scores are compared with."""
    compared = [*compared_models(plan)]
    chosen = undecided_models(plan) if compared else set()
    for place, name in compared:
        if name in chosen:
            message = f"expected one model to compare scores with, got '{name}' with choices"
            yield Fault("P603", message, place, "name a model without choices")


@rule("P607")
def _no_objective_stands_twice(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each repeated objective, requirement and expectation."""
    search = plan.search
    listed_: tuple[tuple[str, Place, Sequence[Objective | Expectation]], ...] = (
        ("objective", ("search", "objectives"), search.objectives if search else ()),
        ("requirement", ("search", "requires"), search.requires if search else ()),
        ("expectation", ("expects",), plan.expects),
    )
    for what, at, wishes in listed_:
        for i, first in repeats(map(_key, wishes)):
            also = Also("first given here", (*at, first))
            message = f"the {what} '{wishes[i].name}' is given twice"
            yield Fault("P607", message, (*at, i), "keep one of the two", (also,))


def _key(wish: Objective | Expectation) -> object:
    """Return a value that only equal measures share."""
    fields = dict(with_plain_path(wish))
    return frozenset((fields | {"arguments": frozenset(fields["arguments"].items())}).items())


@rule("P608", missing_in=("search",))
def _some_objective_measures_quality(plan: Plan) -> Iterator[Fault]:
    """Yield a fault if all objectives are sizes or times, which are best for a tiny model."""
    objectives = plan.search.objectives if plan.search else ()
    specs = [OBJECTIVES.get(objective.name) for objective in objectives]
    if specs and all(spec is not None and spec.by != "samples" for spec in specs):
        message = "no objective measures quality, so the smallest plan would be the best"
        help_ = 'add an objective of quality, such as minimize nll("text.txt")'
        yield Fault("P608", message, ("search",), help_)


@rule("P606")
def _the_budget_is_valid(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a fidelity that doesn't ascend, and for trials or a seed out of range."""
    if plan.search is None:
        return
    fidelity = plan.search.fidelity
    if fidelity is not None and not 1 <= fidelity[0] <= fidelity[1] <= LARGEST:
        message = f"'fidelity' must ascend from at least 1, got {fidelity[0]}..{fidelity[1]}"
        help_ = "write the smaller number first, as in fidelity 64..1024"
        yield Fault("P606", message, ("search", "fidelity"), help_)
    for name, least in (("trials", 1), ("seed", 0)):
        value = getattr(plan.search, name)
        if value is not None and not least <= value <= LARGEST:
            message = f"'{name}' must be a whole number from {least} to {LARGEST}"
            yield Fault("P606", message, ("search", name))
