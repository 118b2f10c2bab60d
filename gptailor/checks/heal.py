"""Rules of healing against the models: trainable layers, the rank, the teacher."""

import re
from collections.abc import Iterator
from itertools import islice

from gptailor.checkpoint.families.layout import is_constant
from gptailor.checkpoint.families.vision import wrapper_of
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import FLOATS, TensorSpec
from gptailor.checkpoint.vocabulary import relation
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place
from gptailor.plan.layer_parts import BRANCHES
from gptailor.plan.registry import HEAL_RANK
from gptailor.program.program import learning_tensors, projections
from gptailor.program.sources import Checked, Use


def _learning(checked: Checked) -> Iterator[Use]:
    """Yield each use of a source in a layer that learns."""
    heal = checked.plan.heal
    for slot in checked.resolved.slots:
        if slot.dropped != "yes" and heal is not None and (slot.learns or not heal.layers):
            for part in BRANCHES:
                yield from checked.uses(slot, part)


def _specs(use: Use) -> dict[str, TensorSpec]:
    """Return the specifications of a use's tensors by name."""
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


@rule("M222")
def _learning_layers_can_be_trained(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for an unknown architecture, or a tensor that transformers can't train."""
    if checked.plan.may_be_healed:
        yield from islice(_untrainable(checked), 1)


def _untrainable(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each thing that can't learn, or that transformers has in another form."""
    layout, heal = checked.base.layout, checked.plan.heal
    if not layout.known:
        message = f"'heal' can't train the unknown architecture '{layout.model_type}'"
        yield Fault("M222", message, ("heal",))
    wrapper = wrapper_of(checked.base.config)
    if layout.wrapped and (wrapper is None or wrapper.two_ways or layout.text_type in _WITH_TOWERS):
        message = f"'heal' can't train a '{layout.model_type}' model:"
        yield Fault("M222", f"{message} transformers can't run its language model alone", ("heal",))
    asked = heal.rank if heal is not None and heal.rank is not None else HEAL_RANK
    rank = asked if isinstance(asked, int) else None
    joined = _JOINED.get(layout.text_type)
    for use in _learning(checked):
        where = f"of L{use.layer} of '{use.model.name}'"
        for suffix, tensor in use.tensors.items():
            if (dtype := tensor.spec.dtype) not in FLOATS and not is_constant(suffix):
                message = f"'heal' can't train '{suffix}' {where}, which is {dtype}"
                yield Fault("M222", message, ("heal",))
        for suffix in learning_tensors(rank, _specs(use)):
            message = f"'heal' can't train '{suffix}' {where}: transformers computes with "
            if rank is None and _ONE_EXPERT.search(suffix):
                message += "all experts' weights as one tensor"
                help_ = "heal with a rank, which leaves experts as they are, or name other layers"
                yield Fault("M222", message, ("heal",), help_)
            elif joined is not None and joined.search(suffix):
                message += "it in other pieces"
                yield Fault("M222", message, ("heal",), "name layers that have no such tensor")


@rule("M223")
def _the_rank_fits(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a rank above that of the smallest projection that learns."""
    heal = checked.plan.heal
    rank = heal.rank if heal is not None else None
    if not isinstance(rank, int) or not checked.plan.may_be_healed:
        return
    sides = [
        (side, f"'{suffix}' of L{use.layer} of '{use.model.name}'")
        for use in _learning(checked)
        for suffix, side in projections(_specs(use)).items()
    ]
    side, name = min(sides, default=(rank, ""))
    if rank > side:
        message = f"{name} can't change by rank {rank}"
        yield Fault("M223", message, ("heal", "rank"), f"the largest rank that fits is {side}")


@rule("M224")
def _the_teacher_has_the_tokens(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a teacher with other tokens, or other numbers of them, than the output."""
    heal = checked.plan.heal
    if heal is None or not checked.plan.may_be_healed:
        return
    teachers = dict(heal.named_teachers)
    if checked.plan.stack is not None and heal.needs_default_teacher:
        teachers.setdefault("base", ("heal",))
    for name, at in teachers.items():
        if (teacher := checked.models.get(name)) is not None:
            yield from _other_tokens(checked, teacher, at)


def _other_tokens(checked: Checked, teacher: Opened, at: Place) -> Iterator[Fault]:
    """Yield a fault if a teacher's tokens differ from the output's."""
    owner, union = checked.tokenizer_model, checked.union
    if teacher.name == owner.name and union is None:
        return
    vocabulary = owner.vocabulary if union is None else union.vocabulary
    taught = teacher.vocabulary
    message = f"'{teacher.name}' can't teach the output, which has the tokenizer of '{owner.name}'"
    if vocabulary is not None and taught is not None and relation(vocabulary, taught) != "same":
        yield Fault("M224", f"{message}: its vocabulary is another", at)
        return
    teacher_tokens, tokens = _rows(teacher), _rows(owner) if union is None else union.size
    if teacher_tokens != tokens:
        yield Fault(
            "M224", f"{message}: its distributions have {teacher_tokens} tokens, not {tokens}", at
        )


def _rows(model: Opened) -> int | None:
    """Return the number of tokens that a model's distributions are over."""
    head = model.rest("head").get(0) or model.rest("embed").get(0)
    return head.spec.shape[0] if head is not None and head.spec.shape else None
