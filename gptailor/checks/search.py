"""Rules of the `search` block and of bridges."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from gptailor.checks.language import LARGEST
from gptailor.plan.faults import Also, Fault, Place, listed, nearest
from gptailor.plan.needed import undecided_models
from gptailor.plan.plan import Objective, Plan, Requirement
from gptailor.plan.registry import OBJECTIVES, ObjectiveSpec
from gptailor.plan.walk import drops_by_choice, numbers
from gptailor.plan.wishes import compared_models, measured, with_plain_path


def every_objective_is_known(plan: Plan) -> Iterator[Fault]:
    """What is measured stands in the registry, and is wanted on its better side."""
    for at, objective in measured(plan.search):
        spec = OBJECTIVES.get(objective.name)
        if spec is None:
            help_ = nearest(objective.name, OBJECTIVES) or f"there are {listed(OBJECTIVES)}"
            yield Fault("P601", f"there is no objective '{objective.name}'", (*at, "name"), help_)
            continue
        if spec.direction not in (None, objective.direction):
            better = "smaller" if spec.direction == "minimize" else "larger"
            message = f"'{spec.name}' is better where it is {better}"
            said = {"minimize": "<=", "maximize": ">="} if at[1] == "requires" else {}
            field = "sign" if said else "direction"
            right = said.get(str(spec.direction), spec.direction)
            yield Fault("P602", message, (*at, field), f"write '{right}'")
        yield from _arguments(objective, spec, at)


def _arguments(objective: Objective, spec: ObjectiveSpec, at: Place) -> Iterator[Fault]:
    names = [argument.name for argument in spec.arguments]
    for name, value in objective.arguments.items():
        argument, help_ = spec.argument(name), ""
        if argument is None:
            help_ = nearest(name, names) or f"it takes {listed(names) if names else 'nothing'}"
            message = f"'{spec.name}' takes no argument '{name}'"
        elif (argument.kind == "number") == isinstance(value, str):
            needs = {"number": "a number", "model": "a model's name"}.get(argument.kind, "a text")
            message = f"'{name}' of '{spec.name}' is {needs}"
        elif value == "":
            message = f"'{name}' of '{spec.name}' is empty"
        else:
            continue
        yield Fault("P603", message, (*at, "arguments", name), help_)
    for argument in spec.arguments:
        if argument.required and argument.name not in objective.arguments:
            message = f"'{spec.name}' needs its {argument.name}"
            yield Fault("P604", message, (*at, "name"), f'write {spec.name}("…")')


def every_teacher_is_closed(plan: Plan) -> Iterator[Fault]:
    """What a search compares with is one model, whatever its choices come to."""
    compared = [*compared_models(plan.search)]
    chosen = undecided_models(plan) if compared else set()
    for place, name in compared:
        if name in chosen:
            message = f"'{name}' has choices, and scores are compared with one model"
            yield Fault("P603", message, place, "name a model that leaves nothing open")


def no_objective_stands_twice(plan: Plan) -> Iterator[Fault]:
    """The same objective twice is one, and so is a requirement."""
    listed_: tuple[tuple[str, str, Sequence[Objective | Requirement]], ...] = (
        ("objective", "objectives", plan.search.objectives if plan.search else ()),
        ("requirement", "requires", plan.search.requires if plan.search else ()),
    )
    for what, name, found in listed_:
        seen: dict[object, int] = {}
        for i, one in enumerate(found):
            said = dict(with_plain_path(one))
            key = frozenset((said | {"arguments": frozenset(said["arguments"].items())}).items())
            if (first := seen.setdefault(key, i)) < i:
                also = Also("first said here", ("search", name, first))
                message = f"the {what} '{one.name}' stands twice"
                yield Fault("P607", message, ("search", name, i), also=(also,))


def something_says_how_good_plans_are(plan: Plan) -> Iterator[Fault]:
    """Sizes and times alone are best where next to nothing is left of the model."""
    specs = [OBJECTIVES.get(one.name) for one in (plan.search.objectives if plan.search else ())]
    if specs and all(spec is not None and spec.by != "samples" for spec in specs):
        message = "no objective says how good a plan is: the smallest one would be the best"
        help_ = 'add one that does, as in minimize nll("text.txt")'
        yield Fault("P608", message, ("search",), help_)


def the_budget_makes_sense(plan: Plan) -> Iterator[Fault]:
    """Fidelity ascends; there is at least one sample and one trial."""
    if plan.search is None:
        return
    fidelity = plan.search.fidelity
    if fidelity is not None and not 1 <= fidelity[0] <= fidelity[1] <= LARGEST:
        message = f"the fidelity {fidelity[0]}..{fidelity[1]} doesn't ascend from 1"
        yield Fault("P606", message, ("search", "fidelity"))
    for name, least in (("trials", 1), ("seed", 0)):
        value = getattr(plan.search, name)
        if value is not None and not least <= value <= LARGEST:
            message = f"'{name}' is a whole number from {least} to {LARGEST}"
            yield Fault("P606", message, ("search", name))


# ----------------------------------------------------------------------------------------- bridges


def every_gap_is_named_once(plan: Plan) -> Iterator[Fault]:
    """A gap is bridged once; a bridge without a position names every gap."""
    first: dict[int | None, int] = {}
    for i, bridge in enumerate(plan.bridges):
        known = first.get(bridge.after, first.get(None))
        if known is not None:
            which = f"the gap after L{bridge.after}" if bridge.after is not None else "every gap"
            also = Also("and here", ("bridges", known))
            yield Fault("P701", f"{which} is named twice", ("bridges", i), also=(also,))
        first.setdefault(bridge.after, i)


def every_bridge_has_a_gap(plan: Plan) -> Iterator[Fault]:
    """A bridge closes what a drop leaves; where nothing can be dropped it does nothing."""
    dropped = {drop.position for drop in plan.drops}
    dropped |= {at for _, choice in drops_by_choice(plan) for at in choice.among}
    fixed = {d.position for d in plan.drops if not d.maybe}
    for i, bridge in enumerate(plan.bridges):
        if bridge.after is None:
            if not dropped:
                yield _warning("P702", "no layer is dropped, so there is no gap to bridge", i)
        elif bridge.after in fixed:
            message = f"L{bridge.after} is dropped, so no gap comes after it"
            yield Fault("P703", message, ("bridges", i, "after"), "name the layer before the gap")
        elif bridge.after + 1 not in dropped:
            yield _warning("P702", f"there is no gap after L{bridge.after}", i)
        if bridge.after is None and 0 in fixed:
            yield _warning("P704", "the gap before the first kept layer can't be bridged", i)


def _warning(code: str, message: str, i: int) -> Fault:
    return Fault(code, message, ("bridges", i), severity="warning")


def every_bridge_can_be_fitted(plan: Plan) -> Iterator[Fault]:
    """Tokens are a whole number, a ridge is not negative, and the text has a name."""
    for i, bridge in enumerate(plan.bridges):
        tokens, ridge = bridge.tokens, bridge.ridge
        if not bridge.on:
            yield Fault("P705", "a bridge's calibration text has no name", ("bridges", i, "on"))
        if tokens is not None and not (isinstance(tokens, int) and tokens > 0):
            yield Fault("P705", "'tokens' is a whole number from 1 up", ("bridges", i, "tokens"))
        if ridge is not None and min(numbers(ridge, plan.numbers), default=0) < 0:
            yield Fault("P705", "'ridge' is a number from 0 up", ("bridges", i, "ridge"))


SEARCHING: tuple[Callable[[Plan], Iterator[Fault]], ...] = (
    every_objective_is_known,
    every_teacher_is_closed,
    no_objective_stands_twice,
    something_says_how_good_plans_are,
    the_budget_makes_sense,
    every_gap_is_named_once,
    every_bridge_has_a_gap,
    every_bridge_can_be_fitted,
)

UNREAD_SEARCH: Mapping[Callable[[Plan], Iterator[Fault]], tuple[str, ...]] = {
    every_bridge_has_a_gap: ("drop", "maybe", "tied"),
    something_says_how_good_plans_are: ("search",),
}
"""Of these, what is missing may stand in such a statement that was not read."""
