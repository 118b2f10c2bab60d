"""The modules of a layer by branch, attention and MLP, found by their inputs and outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from gptailor.plan.layer_parts import Branch
from gptailor.plugins.adopt.tiny_model import RunByHand, UnprovenError, first_of


@final
@dataclass(frozen=True)
class Branches:
    """The branch of each module of a layer, by name, and the modules that make each one's sum."""

    part_of: Mapping[str, Branch]
    outputs: Mapping[Branch, Sequence[str]]


@final
@dataclass(frozen=True)
class _Call:
    """A module that was called: its name, whether it has matrices, its input and its output."""

    name: str
    wide: bool
    read: torch.Tensor | None
    made: torch.Tensor | None


def branches_of(subject: RunByHand, layer: int, hidden: torch.Tensor) -> Branches:
    """Return the branches of a layer. Raises UnprovenError where they can't be told apart."""
    calls = _calls(subject, layer, hidden)
    wide = [call for call in calls if call.wide]
    if len(wide) < 2:
        raise UnprovenError("a layer has no two modules that could be its branches")
    attn, *mlp = wide
    if any(_same(attn.read, call.read) for call in mlp):
        raise UnprovenError("both branches of a layer read the output of one norm")
    called = {call.name for call in calls}
    for name, module in subject.layers[layer].named_children():
        if name not in called and module.state_dict():
            raise UnprovenError(f"module '{name}' of a layer belongs to neither branch")
    if any(True for _ in subject.layers[layer].parameters(recurse=False)):
        raise UnprovenError("a layer has tensors of its own, which belong to neither branch")
    parts = {call.name: _part(calls, i, attn.name) for i, call in enumerate(calls)}
    return Branches(parts, {"attn": [attn.name], "mlp": [call.name for call in mlp]})


def _part(calls: Sequence[_Call], at: int, attn: str) -> Branch:
    """Return the branch of a module; a norm's is that of the output it reads, else the next."""
    call = calls[at]
    before = [other for other in calls[:at] if other.wide and _same(call.read, other.made)]
    after = [other for other in calls[at:] if other.wide]
    near = call if call.wide else before[-1] if before else after[0] if after else None
    return "attn" if near is not None and near.name == attn else "mlp"


def _calls(subject: RunByHand, layer: int, hidden: torch.Tensor) -> list[_Call]:
    calls: list[_Call] = []
    hooks = []
    for name, module in subject.layers[layer].named_children():
        shapes = [tensor.dim() for tensor in module.parameters()]
        if not shapes:
            continue

        def called(
            _: nn.Module, args: Any, kwargs: Any, output: Any,
            name: str = name, wide: bool = max(shapes) > 1,
        ) -> None:  # fmt: skip
            read = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
            first = first_of(output)
            calls.append(
                _Call(name, wide, read, first if isinstance(first, torch.Tensor) else None)
            )

        hooks.append(module.register_forward_hook(called, with_kwargs=True))
    try:
        subject.run(layer, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


def prefixes(
    layers: Sequence[Branches], stems: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the prefixes of both branches' tensors on disk.

    `stems` has the module of each first word. Raises UnprovenError for a word of neither branch, or
    of both.
    """
    sides: dict[Branch, list[str]] = {"attn": [], "mlp": []}
    for stem, module in sorted(stems.items()):
        parts = {layer.part_of[module] for layer in layers if module in layer.part_of}
        if len(parts) != 1:
            raise UnprovenError(f"tensors '{stem}.…' belong to neither branch of a layer")
        sides[parts.pop()].append(f"{stem}.")
    return tuple(sides["attn"]), tuple(sides["mlp"])
