"""Rules of models that no folder holds: those made of others, and the outputs of plans."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import Opened
from gptailor.checks.models import check_models
from gptailor.plan.faults import Fault, Place, errors
from gptailor.plan.needed import needed
from gptailor.plan.plan import Model, Plan, Take, TemplateOf
from gptailor.plan.walk import named_models, open_choices
from gptailor.program.nested import any_closing, made_model, named_in, whole_plan
from gptailor.program.sources import Checked
from gptailor.program.unquantised import dequantised_models


def checked_made_model(
    plan: Plan, name: str, opened: Mapping[str, Opened]
) -> tuple[Opened | None, list[Fault]]:
    """A model that is made of others, and its faults against them, at its place."""
    recipe = plan.models[name].made
    if recipe is None or "base" not in opened:
        return None, []
    inner = whole_plan(plan, recipe)
    if not named_in(inner) <= opened.keys():
        return None, []  # a fault already
    checked = Checked.of(inner, {n: opened[n] for n in named_in(inner)})
    read, said = dequantised_models(checked)
    found = said + ([] if errors(said) else check_models(replace(checked, models=read)))
    here: Place = ("models", name, "made")
    faults: dict[object, Fault] = {}
    for fault in found:
        if fault.at[:1] in (("models",), ("tokenizer",)):
            faults.setdefault((fault.code, fault.at, fault.message), fault)
        else:  # one for all layers
            faults.setdefault(fault.code, replace(fault, at=here))
    if errors(faults.values()):
        return None, [*faults.values()]
    closed = any_closing(recipe) if open_choices(plan) else recipe
    models = {**plan.models, name: Model(made=closed)}
    try:
        model = made_model(plan.model_copy(update={"models": models}), name, opened)
    except CheckpointError as error:
        return None, [Fault(error.code, error.message, here, error.help)]
    return model, [*faults.values()]


def why_no_model(plan: Plan, name: str, inner: Plan) -> Iterator[tuple[str, str]]:
    """Why a plan's output can't be a model of another plan, and what to do."""
    compiled = "compile it, and name the folder"
    if inner.bridges or inner.heal is not None:
        yield "is bridged or healed, which takes running its models", compiled
    if count := open_choices(inner):
        choices = "a choice" if count == 1 else f"{count} choices"
        yield f"has {choices} open, and a model has none", "'gptailor search' closes them"
    if inner.tokenizer is not None and not isinstance(inner.tokenizer, Take):
        yield "makes a tokenizer, which no file has yet", compiled
    tells = {"base"} if plan.tokenizer is None else set()
    if isinstance(plan.tokenizer, Take):
        tells = {n for _, n, _ in named_models(plan.tokenizer)}
    tells |= {plan.chat_template.model} if isinstance(plan.chat_template, TemplateOf) else set()
    if inner.chat_template is not None and name in needed(plan, tells):
        yield "gives its tokenizer a chat template, which no file has yet", compiled
