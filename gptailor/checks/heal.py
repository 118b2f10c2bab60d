"""Rules of healing: by itself, and against the models."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import is_constant
from gptailor.checkpoint.families.vision import wrapper_of
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import FLOATS, TensorSpec
from gptailor.checkpoint.vocabulary import relation
from gptailor.checks.language import LARGEST
from gptailor.plan import layers as outline
from gptailor.plan.faults import Fault, Place
from gptailor.plan.plan import Plan
from gptailor.plan.registry import HEAL_RANK
from gptailor.plan.walk import open_choices
from gptailor.program.compile import moved_configuration
from gptailor.program.program import learning_tensors, projections
from gptailor.program.sources import Checked, Use

# --------------------------------------------------------------------------------------- by itself


def healing_can_be_set_up(plan: Plan) -> Iterator[Fault]:
    """The text has a name, and the numbers are whole ones that a trial of it can have."""
    heal = plan.heal
    if heal is None:
        return
    if not heal.on:
        yield Fault("P706", "the text of 'heal' has no name", ("heal", "on"))
    for name, least in (("tokens", 1), ("rank", 1), ("seed", 0)):
        value = getattr(heal, name)
        if isinstance(value, int) and not least <= value <= LARGEST:
            message = f"'{name}' of 'heal' is a whole number from {least} to {LARGEST}"
            yield Fault("P706", message, ("heal", name))


def there_is_something_to_heal(plan: Plan) -> Iterator[Fault]:
    """Where nothing is dropped a plan would be its own teacher."""
    if plan.heal is not None and not outline.may_be_healed(plan):
        message = "no layer is dropped, so there is nothing to heal"
        help_ = "a plan that drops nothing learns from a model that it names: heal from NAME on …"
        yield Fault("P707", message, ("heal",), help_, severity="warning")


def no_layers_of_a_stack_are_named(plan: Plan) -> Iterator[Fault]:
    """A stack has no positions: its layers may stand in it several times."""
    if plan.stack is not None and plan.heal is not None and plan.heal.layers:
        message = "beside a stack 'heal' names no layers"
        help_ = "leave them out: all layers of the output learn"
        yield Fault("P708", message, ("heal", "layers"), help_)


ALONE: tuple[Callable[[Plan], Iterator[Fault]], ...] = (
    healing_can_be_set_up,
    there_is_something_to_heal,
    no_layers_of_a_stack_are_named,
)

UNREAD_HEALING: Mapping[Callable[[Plan], Iterator[Fault]], tuple[str, ...]] = {
    there_is_something_to_heal: ("drop", "maybe", "tied", "merge", "others", "whole"),
}
"""Of these, what is missing may stand in such a statement that was not read."""

# ------------------------------------------------------------------------------ against the models


def _learning(checked: Checked) -> Iterator[Use]:
    """All that a layer that learns may be made of."""
    heal = checked.plan.heal
    for slot in checked.resolved.slots:
        if slot.dropped != "yes" and heal is not None and (slot.healed or not heal.layers):
            for part in outline.PARTS:
                yield from checked.uses(slot, part)


def _specs(use: Use) -> dict[str, TensorSpec]:
    return {name: tensor.spec for name, tensor in use.tensors.items()}


_WITH_TOWERS = frozenset(["qwen3_vl_moe_text"])
"""Language models that transformers has no causal model for by themselves."""
_JOINED: dict[str, re.Pattern[str]] = {
    "sarvam_moe": re.compile(r"\.query_key_value\."),
    "lara_mini": re.compile(r"(^|\.)linear_attn\.in_proj\."),
    "bailing_hybrid": re.compile(r"\.[qkv]_conv1d\."),
}
"""Tensors that transformers' layers hold in several pieces, or as a piece of another."""
_ONE_EXPERT = re.compile(r"(^|\.)experts\.\d+\.|(^|\.)experts\.fc[12]\.")
"""In the names of experts' weights that transformers' layers hold as one tensor, or transposed."""


def _untrainable(checked: Checked, use: Use) -> Iterator[Fault]:
    """What learns of a layer and has no tensor of its own in transformers."""
    heal = checked.plan.heal
    given = heal.rank if heal is not None and heal.rank is not None else HEAL_RANK
    rank = given if isinstance(given, int) else None
    joined = _JOINED.get(checked.base.layout.text_type)
    for rest in learning_tensors(rank, _specs(use)):
        message = f"'heal' can't train '{rest}' of L{use.layer} of '{use.model.name}': "
        if rank is None and _ONE_EXPERT.search(rest):
            message += "transformers computes with all experts' weights as one tensor"
            help_ = "heal with a rank, which leaves experts as they are, or name other layers"
            yield Fault("M222", message, ("heal",), help_)
        elif joined is not None and joined.search(rest):
            message += "transformers computes with it in other pieces"
            yield Fault("M222", message, ("heal",), "name layers that have no such tensor")


def what_learns_can_be_trained(checked: Checked) -> Iterator[Fault]:
    """The architecture's layers are known, and what learns is numbers that transformers trains."""
    layout = checked.base.layout
    if not outline.may_be_healed(checked.plan):
        return
    if not layout.known:
        message = f"'heal' can't train '{layout.model_type}', whose layers aren't known"
        yield Fault("M222", message, ("heal",))
        return
    wrapper = wrapper_of(checked.base.config)
    if layout.wrapped and (wrapper is None or wrapper.two_ways or layout.text_type in _WITH_TOWERS):
        message = f"'heal' can't train a '{layout.model_type}' model, whose language model"
        yield Fault("M222", f"{message} transformers can't run without its towers", ("heal",))
        return
    for use in _learning(checked):
        for rest, tensor in use.tensors.items():
            if (dtype := tensor.spec.dtype) not in FLOATS and not is_constant(rest):
                message = f"'heal' can't train '{rest}' of L{use.layer} of '{use.model.name}'"
                yield Fault("M222", f"{message}, which is {dtype}", ("heal",))
                return
        if (fault := next(_untrainable(checked, use), None)) is not None:
            yield fault
            return


def the_rank_fits(checked: Checked) -> Iterator[Fault]:
    """A change of a projection has at most the rank of the projection."""
    heal = checked.plan.heal
    rank = heal.rank if heal is not None else None
    if not isinstance(rank, int) or not outline.may_be_healed(checked.plan):
        return
    found = [
        (side, f"'{rest}' of L{use.layer} of '{use.model.name}'")
        for use in _learning(checked)
        for rest, side in projections(_specs(use)).items()
    ]
    side, name = min(found, default=(rank, ""))
    if rank > side:
        message = f"{name} can't change by a rank of {rank}"
        yield Fault("M223", message, ("heal", "rank"), f"the largest rank that fits is {side}")


def the_teacher_has_the_tokens(checked: Checked) -> Iterator[Fault]:
    """A distribution is learned from one over the same tokens, each with the same number."""
    heal = checked.plan.heal
    if heal is None or not outline.may_be_healed(checked.plan):
        return
    name = "base" if heal.teacher is None and checked.plan.stack is not None else heal.teacher
    teacher, owner = checked.models.get(name or ""), checked.tokenizer_model
    union = checked.union
    if teacher is None or (teacher.name == owner.name and union is None):
        return
    at: Place = ("heal", "teacher") if heal.teacher is not None else ("heal",)
    mine = owner.vocabulary if union is None else union.vocabulary
    its = teacher.vocabulary
    said = f"'{teacher.name}' can't teach the output, which has the tokenizer of '{owner.name}'"
    if mine is not None and its is not None and relation(mine, its) != "same":
        yield Fault("M224", f"{said}: its vocabulary is another", at)
        return
    theirs, ours = _rows(teacher), _rows(owner) if union is None else union.size
    if theirs != ours:
        yield Fault("M224", f"{said}: its distributions have {theirs} tokens, not {ours}", at)


def _rows(model: Opened) -> int | None:
    """Over how many tokens a model's distributions are."""
    head = model.rest("head").get(0) or model.rest("embed").get(0)
    return head.spec.shape[0] if head is not None and head.spec.shape else None


def the_undone_plan_is_a_teacher(checked: Checked) -> Iterator[Fault]:
    """Without another teacher it is the plan with nothing dropped, which has a configuration."""
    plan, heal = checked.plan, checked.plan.heal
    if heal is None or heal.teacher is not None or plan.stack is not None or open_choices(plan):
        return
    made = moved_configuration(checked.undone)
    if isinstance(made, Refusal):
        message = f"'heal' learns from the plan without its drops, and there {made.reason}"
        yield Fault("M217", message, ("heal",), "name another teacher: heal from NAME on …")


HEALING: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    what_learns_can_be_trained,
    the_rank_fits,
    the_teacher_has_the_tokens,
    the_undone_plan_is_a_teacher,
)
