"""Mixtures of experts: the experts in each tensor of a layer, and the configuration's keys."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from gptailor.checkpoint.families import vision
from gptailor.checkpoint.families.layer_config import Config, Refusal, RuleError, quantisation
from gptailor.checkpoint.families.layout import QUANTISED_NAMES, Layout
from gptailor.plan.layer_parts import NORMS

_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys of configurations that are the number of a layer's experts."""
_TAKEN = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k",
    "top_k_experts",
)  # fmt: skip
"""Keys of configurations that are the number of experts that compute a token."""
_GROUPS = ("n_group", "num_expert_group")
"""Keys of configurations with the number of groups. A router takes a few groups first."""
_TAKEN_GROUPS = "topk_group"
_NESTED = "ffn_config"
"""DBRX's key with the settings of its experts."""
_LEAST_OF_GROUP = 2
"""The number of a group's experts that add up to the group's score."""

_PROJECTIONS = {"mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down"}
_NUMBERED = re.compile(r"(^|\.)experts\.(?P<number>\d+)\.")
_STACKED = re.compile(r"(^|\.)experts\.")


@final
@dataclass(frozen=True)
class Stacked:
    """Experts along an axis of a tensor, each with this many entries of it, one after another."""

    axis: int
    entries: int = 1


@final
@dataclass(frozen=True)
class LayerExperts:
    """The experts of a layer: their number, and the layer's tensors that have them, by name.

    A tensor has one expert, by its number, or all experts. Shared experts, which compute each
    token, are not among them.
    """

    count: int
    numbers: Mapping[str, int]
    stacks: Mapping[str, Stacked]


def experts_in(
    layout: Layout, shapes: Mapping[str, tuple[int, ...]]
) -> LayerExperts | Refusal | None:
    """Return the experts of a layer, by the shapes of all its tensors; None for a dense layer.

    A refusal names what keeps them from being cut.
    """
    roles = {name: layout.family.role(name) for name in shapes}
    routers = [name for name, role in roles.items() if role == "mlp.router"]
    inside = [name for name in shapes if _STACKED.search(name)]
    if not routers and not inside:
        return None
    if any((roles[name] or "attn").startswith("attn") for name in inside):
        return Refusal("has experts in its attention")
    try:
        count = _router_size(routers, shapes)
        numbers = {name: int(m["number"]) for name in inside if (m := _NUMBERED.search(name))}
        found = {n: _stacked(layout, n, shapes[n], count) for n in shapes.keys() - numbers}
        stacks = {name: stacked for name, stacked in found.items() if stacked is not None}
        _check_alike(numbers, count)
    except RuleError as error:
        return Refusal(str(error))
    if not any(roles[name] in _PROJECTIONS for name in (*numbers, *stacks)):
        return Refusal("has a router without known experts")
    return LayerExperts(count, numbers, stacks)


def _router_size(routers: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of experts that a layer's router chooses among. Raises RuleError."""
    weights = [n for n in routers if n.endswith(".weight") and len(shapes[n]) == 2]
    if packed := [name for name in routers if name.endswith(QUANTISED_NAMES)]:
        raise RuleError(f"has a quantised router ('{packed[0]}')")
    if len(weights) != 1:
        raise RuleError("has a router with unknown tensors")
    return shapes[weights[0]][0]


def _stacked(layout: Layout, name: str, shape: tuple[int, ...], count: int) -> Stacked | None:
    """Return the experts in a tensor that has all of them; None without any. Raises RuleError."""
    role = layout.family.role(name)
    within = _STACKED.search(name) is not None
    if within or (role in _PROJECTIONS and len(shape) > 2):
        if not shape or shape[0] % count or (layout.quantised and shape[0] != count):
            raise RuleError(f"has '{name}', which can't be split into {count} experts")
        return Stacked(0, shape[0] // count)
    if role == "mlp.router":
        axis = next((i for i, side in enumerate(shape) if side != 1), 0)
        return Stacked(axis) if shape and shape[axis] == count else None
    if role != NORMS and layout.family.part(name) == "mlp" and count in shape and len(shape) != 2:
        raise RuleError(f"has an entry of '{name}' for each expert")
    return None


def _check_alike(numbers: Mapping[str, int], count: int) -> None:
    """Raise RuleError unless separate experts, if any, are `count` with equal tensors."""
    tensors: dict[int, set[str]] = {}
    for name, number in numbers.items():
        tensors.setdefault(number, set()).add(of_expert(name, 0))
    if numbers and sorted(tensors) != list(range(count)):
        raise RuleError(f"has {len(tensors)} experts, but a router for {count}")
    other = next((number for number, names in tensors.items() if names != tensors[0]), None)
    if other is not None:
        raise RuleError(f"has different tensors for expert {other} and expert 0")


def of_expert(name: str, number: int | str) -> str:
    """Return the name of the same tensor of the expert with another number."""
    return _NUMBERED.sub(lambda match: f"{match[1]}experts.{number}.", name)


# -------------------------------------------------------------------------------- the configuration


@final
@dataclass(frozen=True)
class Routing:
    """The limits that a router sets to the number of experts.

    A token takes `taken` experts, out of `taken_groups` of `groups` equal groups.
    """

    taken: int
    groups: int
    taken_groups: int

    def allows(self, count: int) -> bool:
        """Return whether a router can choose among this many experts."""
        if count < self.taken or count % self.groups:
            return False
        each = count // self.groups
        least = _LEAST_OF_GROUP if self.groups > 1 else 1
        return each >= least and each * self.taken_groups >= self.taken


def routing(layout: Layout, config: Config) -> Routing:
    """Return the limits of the routers of a configuration; the most, where layers differ."""
    text = vision.text_of(config)
    groups = _number(layout, text, _GROUPS, 1)
    taken_groups = _number(layout, text, (_TAKEN_GROUPS,), groups)
    return Routing(_number(layout, text, _TAKEN, 1), groups, min(taken_groups, groups))


def _number(layout: Layout, text: Config, keys: Sequence[str], absent: int) -> int:
    """Return the number of the first key that the configuration or its defaults have."""
    nested = text.get(_NESTED)
    for settings in (text, nested if isinstance(nested, Mapping) else {}, _defaults(layout, text)):
        for key in keys:
            value = settings.get(key)
            found = value if isinstance(value, list | tuple) else [value]
            if numbers := [each for each in found if isinstance(each, int) and each > 0]:
                return max(numbers)
    return absent


def _defaults(layout: Layout, text: Config) -> dict[str, Any]:
    """Return the values that the family's keys have in a configuration, absent ones too."""
    values: dict[str, Any] = {}
    for key in layout.family.agree:
        value = layout.family.value(key, text)
        values |= value if key == _NESTED and isinstance(value, dict) else {key: value}
    return values


def with_expert_count(
    layout: Layout, config: Config, before: int, count: int
) -> dict[str, Any] | Refusal:
    """Return the configuration for layers with another number of experts; or a refusal."""
    text = dict(vision.text_of(config))
    if re.search(r"experts\\?\.\d", repr(quantisation(config))):
        return Refusal("its quantisation's configuration names single experts")
    nested = text.get(_NESTED)
    changed = _replaced(text, before, count)
    if isinstance(nested, Mapping) and (inner := _replaced(nested, before, count)):
        changed[_NESTED] = {**nested, **inner}
    if not changed:
        defaults = _defaults(layout, text)
        absent = [key for key in _KEYS if defaults.get(key) == before and text.get(key) is None]
        if not absent:
            return Refusal(f"its configuration has no number of experts ({before:,})")
        changed = {absent[0]: count}
    return vision.with_text(config, text | changed)


def _replaced(settings: Config, before: int, count: int) -> dict[str, Any]:
    """Return the keys that are the number of experts, with another number."""
    changed: dict[str, Any] = {}
    for key in _KEYS:
        value = settings.get(key)
        if value == before:
            changed[key] = count
        elif isinstance(value, list | tuple) and set(value) == {before}:
            changed[key] = [count] * len(value)
    return changed
