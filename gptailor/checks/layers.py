"""Rules of layers' tensors: names, shapes, kinds, dtypes; and of parts finer than branches."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import fold_scale, is_constant
from gptailor.checkpoint.families.vision import visual_tokens
from gptailor.checkpoint.files import quoted
from gptailor.checkpoint.tensor import FLOATS, TensorInfo
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place, listed
from gptailor.plan.layer_parts import BRANCHES, PROJECTIONS, Branch, holds, is_pattern, rank
from gptailor.plan.plan import LayerBelow
from gptailor.plan.resolved import Slot
from gptailor.plan.sites import repeated_blocks
from gptailor.program.compile import moved_configuration
from gptailor.program.sources import Checked, Use, merges

_LEAST_SCALE = 2.0**-126
"""The smallest product of scales: it and its reciprocal are normal numbers of float32."""


@rule("M216")
def _parts_can_be_told_apart(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a branch taken from a base with one norm for both branches."""
    reason = checked.base.layout.no_parts
    if reason is None:
        return
    for i, layer in enumerate(checked.plan.layers):
        if layer.part in BRANCHES:
            message = f"L{layer.position}.{layer.part} can't be taken by itself: {reason}"
            help_ = "take the whole layer, or projections such as 'mlp.down'"
            yield Fault("M216", message, ("layers", i), help_)
            return


@rule("M214")
def _scales_can_be_folded(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for scales in an architecture that has no exact form for folding them."""
    reason = checked.base.layout.no_scale
    if checked.plan.scales and reason is not None:
        message = f"'scale' can't be folded into the weights: {reason}"
        yield Fault("M214", message, ("scales", 0), "remove 'scale'")


@rule("M214")
def _scales_multiply_to_a_number(checked: Checked) -> Iterator[Fault]:
    """Yield a fault if the product of scales, or its reciprocal, isn't a normal float32."""
    for slot in checked.resolved.remaining if checked.plan.scales else ():
        if not _LEAST_SCALE <= slot.divisor <= 1 / _LEAST_SCALE:
            where = f"L{slot.position}"
            message = f"the scales before {where} multiply to {slot.divisor:.9g}"
            message += f", expected {_LEAST_SCALE:.3g} to {1 / _LEAST_SCALE:.3g}"
            yield Fault("M214", message, ("scales", 0), "use numbers nearer to 1")
            return


@rule("M214")
def some_scale_does_something(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each branch without a tensor that a scale could be folded into."""
    base = checked.base
    if not checked.plan.scales or base.layout.no_scale is not None:
        return
    for part in BRANCHES:
        tensors = base.part(0, part)
        if tensors and not any(fold_scale(base.layout, suffix) for suffix in tensors):
            message = f"'scale' can't be folded into the weights: no tensor of '{part}' can take it"
            yield Fault("M214", message, ("scales", 0), "remove 'scale'")


@rule("M208", "M209")
def _layers_fit(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each model with other names or shapes of tensors than the base."""
    reported: set[tuple[str, str]] = set()
    for slot, use in _all_uses(checked):
        fault = _misfit(checked, slot, use)
        if fault is not None and (use.model.name, fault.code) not in reported:
            reported.add((use.model.name, fault.code))
            yield fault


def _all_uses(checked: Checked) -> Iterator[tuple[Slot, Use]]:
    """Yield each use of a source, with the slot that it is in."""
    for slot, part in product(checked.resolved.slots, BRANCHES):
        yield from ((slot, use) for use in checked.uses(slot, part))


def _misfit(checked: Checked, slot: Slot, use: Use) -> Fault | None:
    """Return how the tensors of a source differ from the base's layer of its kind."""
    reference = _reference(checked, slot, use)
    if reference is None:
        return None
    tensors = _weights(use.tensors)
    base_tensors = _weights(replace(use, model=checked.base, layer=reference).tensors)
    who = f"L{use.layer} of '{use.model.name}'"
    if missing := base_tensors.keys() - tensors.keys():
        message = f"{who} has no tensor '{min(missing)}', which the base has"
        return Fault("M209", message, use.at, _SAME)
    if extra := tensors.keys() - base_tensors.keys():
        message = f"{who} has a tensor '{min(extra)}', which the base lacks"
        return Fault("M209", message, use.at, _SAME)
    wrong = [n for n in base_tensors if base_tensors[n].spec.shape != tensors[n].spec.shape]
    if not wrong:
        return None
    name = wrong[0]
    more = f"; {len(wrong) - 1} more tensors differ" if len(wrong) > 1 else ""
    message = (
        f"'{name}' of {who} has the shape {list(tensors[name].spec.shape)}, "
        f"expected {list(base_tensors[name].spec.shape)} as in the base's L{reference}{more}"
    )
    return Fault("M208", message, use.at, "use a model with the same shapes")


_SAME = "use a model with the same tensors"


def _weights(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors that aren't constants."""
    return {suffix: tensor for suffix, tensor in tensors.items() if not is_constant(suffix)}


def _reference(checked: Checked, slot: Slot, use: Use) -> int | None:
    """Return a layer of the base with the same tensors: its own, or one of the same kind."""
    entry = use.model.entries[use.layer]
    own = use.layer if slot.position is None else slot.position
    candidates = [own, *range(checked.count)] if own < checked.count else range(checked.count)
    return next((n for n in candidates if checked.base.entries[n] == entry), None)


@rule("M218")
def _merged_layers_are_of_one_kind(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for merged layers that compute in other ways; their places may differ.

    A part finer than a branch is held to the layer that it goes into.
    """
    rules = checked.base.layout.rules
    for slot, part in product(checked.resolved.slots, BRANCHES):
        main = {layer.at for layer in slot.part(part).chain}
        first: dict[Place, Use] = {}
        for use in checked.uses(slot, part):
            first_use = first.setdefault(use.layer_recipe.at, use)
            finer = use.layer_recipe.at not in main
            keys = [rule.name for rule in rules if rule.part == part or not finer]
            for other in [first[at] for at in main if at in first] if finer else [first_use]:
                entry, other_entry = (each.model.entries[each.layer] for each in (use, other))
                key = next((k for k in keys if entry.get(k) != other_entry.get(k)), None)
                if key is None:
                    continue
                message = (
                    f"L{use.layer} of '{use.model.name}' has {key} {entry.get(key)}, but "
                    f"L{other.layer} of '{other.model.name}' has {other_entry.get(key)}"
                )
                how = "take the part from a layer" if finer else "merge only layers"
                yield Fault("M218", message, use.at, f"{how} with the same {key}")
                return


@rule("M215")
def _tensors_can_be_computed_with(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a merged tensor that isn't floating-point."""
    for _, use in _all_uses(checked):
        merged = merges(use.layer_recipe.recipe)
        for tensor in _weights(use.tensors).values() if merged else ():
            if (dtype := tensor.spec.dtype) not in FLOATS:
                name = f"'{tensor.spec.name}' of '{use.model.name}'"
                message = f"{name} is {dtype}, which can't be merged"
                yield Fault("M215", message, use.at, "take it from one model")
                return


@rule("M217")
def _the_configuration_can_follow(checked: Checked) -> Iterator[Fault]:
    """Yield a fault if the configuration can't describe the output's layers by position."""
    if any(slot.dropped == "maybe" for slot in checked.resolved.slots):
        return
    moved = moved_configuration(checked)
    if isinstance(moved, Refusal):
        at: Place = ("stack",) if checked.plan.stack else ("drops", 0)
        at = at if checked.plan.stack or checked.plan.drops else ("layers", 0)
        yield Fault("M217", moved.reason, at)


_SCALAR = "layer_scalar"
"""In the name of a number that a layer's output is multiplied by (Gemma 4)."""


@rule("M316")
def _no_layer_scalar_repeats(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for each block with a factor on a layer's output.

    The factor was learned for one run of the layer.
    """
    for at, entry in repeated_blocks(checked.plan):
        for position in entry.positions:
            part = checked.base.part(position, BRANCHES[-1])
            name = next((suffix for suffix in part if suffix.rpartition(".")[2] == _SCALAR), None)
            if name is not None:
                message = (
                    f"L{position} scales its output by '{name}', and each repeat scales it again"
                )
                help_ = "evaluate the output; a plan can't change this number"
                yield Fault("M316", message, at, help_, severity="warning")
                break


# ------------------------------------------------------------------------------------------- towers


@rule("M310")
def _features_meet_their_layers(checked: Checked) -> Iterator[Fault]:
    """Yield a warning if features of an image are added after other layers than the base's."""
    count = checked.base.layout.stacked
    if any(slot.dropped == "maybe" for slot in checked.resolved.slots):
        return
    first = checked.resolved.kept[:count]
    places = [
        checked.uses(slot, "attn")[0].layer if slot.position is None else slot.position
        for slot in first
    ]
    if places == list(range(count)):
        return
    moved = (i for i, drop in enumerate(checked.plan.drops) if drop.position < count)
    at: Place = ("stack",) if checked.plan.stack else ("drops", next(moved, 0))
    after = listed(f"L{place}" for place in places)
    message = (
        f"the base adds an image's features after its first {count} layers, the output after "
        f"{after}" + (", so some features are lost" if len(places) < count else "")
    )
    yield Fault("M310", message, at, f"keep L0..L{count - 1} in their places", severity="warning")


@rule("M221")
def _images_keep_their_tokens(checked: Checked) -> Iterator[Fault]:
    """Yield a fault if the output's tokenizer has other tokens for images than the base."""
    base, owner = checked.base, checked.tokenizer_model
    base_vocabulary, written = base.vocabulary, owner.vocabulary
    if owner is base or base_vocabulary is None or written is None:
        return
    for key, number in visual_tokens(base.config).items():
        base_token, output_token = base_vocabulary.tokens.get(number), written.tokens.get(number)
        if base_token != output_token:
            expected, token = (
                "no token" if each is None else quoted(each) for each in (base_token, output_token)
            )
            message = (
                f"expected {expected} at {number}, the base's '{key}', in the tokenizer of "
                f"'{owner.name}', got {token}"
            )
            help_ = "use a tokenizer with the base's image tokens"
            yield Fault("M221", message, ("tokenizer",), help_)
            return


# ------------------------------------------------------------------------------------- small floats


@rule("M215", stage=2)
def small_floats_only_move(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a cast or scaled small float that no configuration calls quantised."""
    plan = checked.plan
    if plan.dtype is None and not plan.scales:
        return
    what, at = ("cast", ("dtype",)) if plan.dtype is not None else ("scaled", ("scales", 0))
    for model in checked.models.values():
        for tensor in model.checkpoint.tensors.values():
            dtype = tensor.spec.dtype
            if model.layout.quantised is None and dtype.startswith(("F8_", "F6_", "F4")):
                assert dtype not in FLOATS
                message = (
                    f"'{tensor.spec.name}' of '{model.name}' is {dtype}, which can't be {what}"
                )
                yield Fault("M215", message, at)
                return


_FUSED = {
    "attn.q": ("attn.qkv", "queries, keys and values are"),
    "attn.k": ("attn.qkv", "queries, keys and values are"),
    "attn.v": ("attn.qkv", "queries, keys and values are"),
    "mlp.gate": ("mlp.gate_up", "gate and up are"),
    "mlp.up": ("mlp.gate_up", "gate and up are"),
}
"""The projection that another may be a piece of."""


_Tensor = tuple[Branch, str | None, str]
"""A tensor of a layer: its branch, its role, its name within the layer."""


def _tensors(checked: Checked, slot: Slot) -> list[_Tensor]:
    """Return the tensors of a slot's layer."""
    family = checked.base.layout.family
    tensors: list[_Tensor] = []
    for branch in BRANCHES:
        first = next(iter(checked.uses(slot, branch)), None)
        names = first.model.part(first.layer, branch) if first is not None else ()
        tensors += [(branch, family.role(suffix), suffix) for suffix in names]
    return tensors


@rule("M230")
def _every_part_exists(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each part that its layer has no tensors of.

    `others` pass over layers that lack the part, unless all do.
    """
    finer = [(i, layer) for i, layer in enumerate(checked.plan.layers) if rank(layer.part) > 1]
    slots = checked.resolved.slots if finer else []
    absent: dict[tuple[str, bool], Fault] = {}
    present: set[tuple[str, bool]] = set()
    for i, layer in finer:
        key = layer.part or "", isinstance(layer, LayerBelow)
        if key in absent and not key[1]:
            continue
        tensors = _tensors(checked, slots[layer.position])
        if any(holds(layer.part, *tensor) for tensor in tensors):
            present.add(key)
        elif key not in absent:
            message, help_ = _absent(checked, key[0], layer.position, tensors)
            absent[key] = Fault("M230", message, ("layers", i), help_)
    yield from (fault for key, fault in absent.items() if not key[1] or key not in present)


def _absent(checked: Checked, part: str, position: int, tensors: list[_Tensor]) -> tuple[str, str]:
    """Return the message and the help for a part that a layer lacks."""
    layout = checked.base.layout
    if is_pattern(part):
        names = sorted(suffix for branch, _, suffix in tensors if branch == "attn") or [""]
        message = f"no tensor of L{position} matches the pattern {part}"
        return message, f"a pattern matches the whole name, such as {quoted(names[0])}"
    message = f"L{position} has no part '{part}'"
    if not layout.family.attn_out:
        what = f"gptailor doesn't know the projections of model type '{layout.model_type}'"
        return f"{message}: {what}", "use a pattern in quotes"
    roles = {role for _, role, _ in tensors}
    fused, fused_words = _FUSED.get(part, ("", ""))
    if fused in roles:
        return f"{message}: {fused_words} one projection", f"use '{fused}'"
    present = [name for name in PROJECTIONS if name in roles]
    has = f"it has {listed(present)}; " if present else ""
    return message, f"{has}a pattern in quotes can name any tensor"


_WEIGHT = re.compile(r"(\.(weight|bias)(\..*)?|_(bias|blocks|scales)|\.[^.]*)$")
"""The end of a tensor's name, after its module's name."""


@rule("M231")
def _quantised_weights_stay_whole(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a pattern that takes some tensors of a quantised weight, and not all."""
    patterns = [(i, layer) for i, layer in enumerate(checked.plan.layers) if is_pattern(layer.part)]
    if not patterns or all(model.layout.quantised is None for model in checked.models.values()):
        return
    slots = checked.resolved.slots
    for i, layer in patterns:
        modules: dict[str, set[bool]] = defaultdict(set)
        for tensor in _tensors(checked, slots[layer.position]):
            modules[_WEIGHT.sub("", tensor[2])].add(holds(layer.part, *tensor))
        torn = next((module for module, held in sorted(modules.items()) if len(held) > 1), None)
        if torn is not None:
            message = (
                f"the pattern {layer.part} matches only some tensors of the quantised '{torn}'"
            )
            help_ = f'write "{torn}*"'
            yield Fault("M231", message, ("layers", i), help_)
            return
