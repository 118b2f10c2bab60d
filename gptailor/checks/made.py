"""Rules of what models are made of, in a plan by itself: adapters, and recipes of other models."""

from collections.abc import Callable, Iterator

from gptailor.plan.faults import Fault
from gptailor.plan.needed import below, needed, undecided_models
from gptailor.plan.plan import PLAN_SUFFIX, Plan


def no_model_is_made_of_itself(plan: Plan) -> Iterator[Fault]:
    """What a model is made of, what that is made of and so on end at checkpoints."""
    done: set[str] = set()
    for name in plan.models:
        chain: dict[str, None] = {}  # the way from the name to the model that is looked at
        ahead = [iter((name,))]
        while ahead:
            at = next(ahead[-1], None)
            if at is None:
                ahead.pop()
                done.add(chain.popitem()[0] if chain else name)
            elif at in chain:
                names = list(chain)
                yield _circle(plan, [*names[names.index(at) :], at])
                done.update(chain)
            elif at in plan.models and at not in done:
                chain[at] = None
                ahead.append(iter(below(plan.models[at])))


def _circle(plan: Plan, names: list[str]) -> Fault:
    if all(plan.models[name].made is None for name in names):
        message = f"the adapters go in a circle: {' + '.join(names)}"
        return Fault("P107", message, ("models", names[-1], "on"))
    at = next(name for name in names if plan.models[name].made is not None)
    said = f"'{at}' is made of itself"
    said += "" if len(names) == 2 else f": {' of '.join(names)}"
    return Fault("P107", said, ("models", at, "made"))


def the_base_is_a_checkpoint(plan: Plan) -> Iterator[Fault]:
    """Task vectors are taken against the base, which can't be made of models that have them."""
    base = plan.models.get("base")
    if base is not None and (base.made is not None or base.on is not None):
        for name in needed(plan, ["base"]):
            if plan.models[name].made is not None:
                help_ = "name a folder, a model of the Hub, or a plan in a file of its own"
                message = "the base is made of other models, and task vectors are against it"
                yield Fault("P111", message, ("models", name, "made"), help_)


def every_adapter_is_on_one_model(plan: Plan) -> Iterator[Fault]:
    """An adapter is put on a model when that is opened, whatever the plan's choices come to."""
    chosen = undecided_models(plan)
    for name, model in plan.models.items():
        if model.on in chosen:
            message = f"'{model.on}' has choices, and an adapter is on one model"
            help_ = "put the adapter on what it is made of, or close its choices"
            yield Fault("P112", message, ("models", name, "on"), help_)


def a_union_is_of_checkpoints(plan: Plan) -> Iterator[Fault]:
    """All models have a part in a union, and those that no folder holds have no tokens."""
    for name, model in plan.models.items() if plan.tokenizer == "union" else ():
        plan_of = model.made is None and model.source.endswith(PLAN_SUFFIX)
        if model.made is not None or plan_of:
            what = "is a plan" if plan_of else "is made of models"
            message = f"'{name}' {what}, and a union of tokenizers is of folders"
            help_ = "compile it and name the folder, or write 'tokenizer from' a model"
            yield Fault("P402", message, ("tokenizer",), help_)
            return


MADE: tuple[Callable[[Plan], Iterator[Fault]], ...] = (
    no_model_is_made_of_itself,
    the_base_is_a_checkpoint,
    every_adapter_is_on_one_model,
    a_union_is_of_checkpoints,
)
"""The rules of every plan's models."""
