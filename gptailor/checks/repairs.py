"""Rules of bridges and healing against the models: foldable weights, trainable layers, teachers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import (
    Layout,
    is_bridged,
    is_constant,
    post_norm,
    projection,
)
from gptailor.checkpoint.families.vision import wrapper_of
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import FLOATS, TensorSpec
from gptailor.checkpoint.vocabulary import relation
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place
from gptailor.plan.layer_parts import BRANCHES
from gptailor.plan.registry import HEAL_RANK
from gptailor.plan.resolved import bridge_over
from gptailor.plan.sites import open_choices
from gptailor.program.compile import moved_configuration
from gptailor.program.program import learning_tensors, projections
from gptailor.program.sources import Checked, Use


@final
@dataclass(frozen=True)
class Last:
    """The one projection that an MLP branch ends with: its name within the layer, its inputs."""

    name: str
    inputs: int


def last_projection(layout: Layout, shapes: Mapping[str, Sequence[int]]) -> Last | None:
    """Return the last projection of an MLP branch, by its layer's tensors; None for experts.

    A bridge is fitted on the inputs of this projection. Experts have inputs of their own, for
    tokens of their own, so they are fitted together on the branch's output.
    """
    ends = [name for name in shapes if projection(layout, name) == "mlp"]
    weights = [name for name in ends if name.endswith(".weight")]
    if len(weights) != 1 or any("expert" in name for name in ends):
        return None
    inputs = shapes[weights[0]][0 if layout.transposed else -1]
    return Last(weights[0].removesuffix(".weight"), inputs)


@rule("M219")
def _bridges_can_be_folded(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a bridge without weights to go into.

    The map goes into the MLP branch's last projection, and into the weight of a norm between its
    output and the sum.
    """
    reasons = islice(_unfoldable(checked) if checked.plan.bridges else (), 1)
    for i, reason, help_ in reasons:
        message = f"'bridge' can't be folded into the weights: {reason}"
        yield Fault("M219", message, ("bridges", i), help_)


_NO_BRIDGE = "remove 'bridge'"
_HEAL_ALONE = "remove 'bridge'; 'heal' can repair the plan without it"


def _unfoldable(checked: Checked) -> Iterator[tuple[int, str, str]]:
    """Yield why a map can't be folded into the weights before a gap, after the bridge's number.

    The remedy comes last.
    """
    layout = checked.base.layout
    if layout.no_bridge is not None:
        yield 0, layout.no_bridge, _HEAL_ALONE if layout.known else _NO_BRIDGE
    for slot in checked.resolved.slots:
        over = bridge_over(checked.plan, slot.position)
        if slot.dropped == "yes" or over is None:
            continue
        by = checked.plan.bridges[over].by
        for use in checked.uses(slot, "mlp"):
            tensors = use.model.part(use.layer, "mlp").items()
            carriers = [t for suffix, t in tensors if is_bridged(layout, suffix)]
            where = f"L{use.layer} of '{use.model.name}' has"
            if by is not None and any(post_norm(layout, suffix) for suffix, _ in tensors):
                reason = f"{where} a norm after its MLP, which '{by}' can't fit"
                yield over, reason, f"remove 'by {by}'"
            if not carriers:
                reason = f"{where} no suitable projection in its MLP"
                yield over, reason, _HEAL_ALONE
            for spec in (tensor.spec for tensor in carriers):
                if spec.dtype not in FLOATS:
                    yield over, f"{where} '{spec.name}' as {spec.dtype}", _NO_BRIDGE


def inputs_of_bridges(checked: Checked) -> dict[int, int]:
    """Return the most inputs of the fits of each bridge, by its number in the plan.

    A fit needs at least as many tokens.
    """
    widest: dict[int, int] = {}
    for slot, following in pairwise(checked.resolved.slots):
        over = bridge_over(checked.plan, slot.position)
        if over is not None and slot.dropped != "yes" and following.dropped != "no":
            for use in checked.uses(slot, "mlp"):
                widest[over] = max(widest.get(over, 0), _width(checked, use))
    return widest


def _width(checked: Checked, use: Use) -> int:
    """Return the inputs of a fit: of the layer's last projection, or a hidden state's entries."""
    tensors = use.model.part(use.layer, "mlp")
    shapes = {suffix: tensor.spec.shape for suffix, tensor in tensors.items()}
    last = last_projection(checked.base.layout, shapes)
    if last is not None:
        cut = checked.plan.width
        size = last.inputs if cut is None or not isinstance(cut.size, int) else cut.size
        return min(last.inputs, size)
    embed = checked.base.rest("embed").get(0)
    return embed.spec.shape[-1] if embed is not None and embed.spec.shape else 0


@rule("M217")
def the_undropped_plan_has_a_configuration(checked: Checked) -> Iterator[Fault]:
    """Yield a fault if fits or a teacher need the undropped plan, and it has no configuration."""
    plan, heal = checked.plan, checked.plan.heal
    fitted: list[tuple[str, Place]] = [
        (f"'{n}'", (n,)) for n in plan.text_fits if n != "vocabulary"
    ]
    fitted = [("a bridge", ("bridges", 0))] * bool(plan.bridges) + fitted
    aims: list[tuple[str, Place, str]] = [(f"{n} is fitted to", at, "") for n, at in fitted[:1]]
    if heal is not None and heal.needs_default_teacher:
        aims.append(
            ("'heal' learns from", ("heal",), "name another teacher, as in heal from NAME on …")
        )
    if not aims or open_choices(plan) or plan.stack is not None:
        return
    moved = moved_configuration(checked.undone)
    if isinstance(moved, Refusal):
        for what, at, help_ in aims:
            message = f"{what} the plan without its drops, which isn't valid: {moved.reason}"
            yield Fault("M217", message, at, help_)


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
        yield Fault("M222", message, ("heal",), "remove 'heal'")
    wrapper = wrapper_of(checked.base.config)
    if layout.wrapped and (wrapper is None or wrapper.two_ways or layout.text_type in _WITH_TOWERS):
        message = f"'heal' can't train a '{layout.model_type}' model:"
        message += " transformers can't run its language model alone"
        yield Fault("M222", message, ("heal",), "remove 'heal'")
    asked = heal.rank if heal is not None and heal.rank is not None else HEAL_RANK
    rank = asked if isinstance(asked, int) else None
    joined = _JOINED.get(layout.text_type)
    for use in _learning(checked):
        where = f"of L{use.layer} of '{use.model.name}'"
        for suffix, tensor in use.tensors.items():
            if (dtype := tensor.spec.dtype) not in FLOATS and not is_constant(suffix):
                message = f"'heal' can't train '{suffix}' {where}, which is {dtype}"
                yield Fault("M222", message, ("heal",), "name other layers after 'heal'")
        for suffix in learning_tensors(rank, _specs(use)):
            message = f"'heal' can't train '{suffix}' {where}: transformers computes with "
            if rank is None and _ONE_EXPERT.search(suffix):
                message += "all experts' weights as one tensor"
                help_ = (
                    "use a rank, which doesn't change experts, or name other layers after 'heal'"
                )
                yield Fault("M222", message, ("heal",), help_)
            elif joined is not None and joined.search(suffix):
                message += "it in a different form"
                yield Fault("M222", message, ("heal",), "name other layers after 'heal'")


@rule("M223")
def _the_rank_fits(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a rank above the rank of the smallest projection that learns."""
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
        message = f"expected a rank of at most {side} for {name}, got {rank}"
        yield Fault("M223", message, ("heal", "rank"), f"write 'rank {side}' or 'rank full'")


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
    message = (
        f"'{teacher.name}' can't be the teacher of an output with the tokenizer of '{owner.name}'"
    )
    help_ = "name a teacher with the output's vocabulary"
    if vocabulary is not None and taught is not None and relation(vocabulary, taught) != "same":
        yield Fault("M224", f"{message}: its vocabulary differs", at, help_)
        return
    teacher_tokens, tokens = _rows(teacher), _rows(owner) if union is None else union.size
    if teacher_tokens != tokens:
        message += f": it predicts {teacher_tokens} tokens, not {tokens}"
        yield Fault("M224", message, at, help_)


def _rows(model: Opened) -> int | None:
    """Return the number of tokens that a model's distributions are over."""
    head = model.rest("head").get(0) or model.rest("embed").get(0)
    return head.spec.shape[0] if head is not None and head.spec.shape else None
