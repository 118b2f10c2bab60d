"""Modules made again around other tensors: new objects, so that hooks on one touch no other."""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

Named = Mapping[str, Tensor]
"""Parameters and buffers by their names within a module."""
_MakeTensor = Callable[[str, Tensor], Tensor]
"""What stands in a copy for a parameter or buffer, by its name within the whole: a tensor."""


@final
class Template:
    """A module of which copies are made, taken apart once: a copy is a few microseconds a module.

    Copies are objects of their own down to each `Parameter`; what else the modules hold is shared,
    and the tensors too. A parameter or module that stands at two places is one in the copy too.
    `config` is the configuration that the module holds, in whose place copies have another.
    """

    def __init__(self, module: nn.Module, config: object, prefix: str = "") -> None:
        self.module = module
        own = module.__dict__
        owned = {name: value for name, value in own.items() if isinstance(value, dict | set)}
        self._shared = {name: value for name, value in own.items() if name not in owned}
        self._empty = [(name, type(value)) for name, value in owned.items() if not value]
        self._full = [(name, value) for name, value in owned.items() if value]
        self._configs = [name for name, value in own.items() if value is config]
        self._numbered = "layer_idx" in own
        self._parameters = [
            (name, prefix + name, tensor)
            for name, tensor in own["_parameters"].items()
            if tensor is not None
        ]
        self._buffers = [
            (name, prefix + name, tensor)
            for name, tensor in own["_buffers"].items()
            if tensor is not None
        ]
        self._children = [
            (name, Template(child, config, f"{prefix}{name}."))
            for name, child in own["_modules"].items()
            if child is not None
        ]

    def copy(self, take: _MakeTensor, config: object, index: int | None = None) -> nn.Module:
        """A copy with the tensors that `take` gives; `index` is its number if it is a layer."""
        return self._copied(take, config, index, {})

    def _copied(
        self, take: _MakeTensor, config: object, index: int | None, made: dict[int, Any]
    ) -> nn.Module:
        if (known := made.get(id(self.module))) is not None:
            assert isinstance(known, nn.Module)
            return known
        new: nn.Module = object.__new__(type(self.module))
        made[id(self.module)] = new
        own = new.__dict__
        self._bare(own, config, index)
        for name, whole, tensor in self._parameters:
            if (parameter := made.get(id(tensor))) is None:
                parameter = made[id(tensor)] = _parameter(take(whole, tensor))
            own["_parameters"][name] = parameter
        for name, whole, tensor in self._buffers:
            own["_buffers"][name] = take(whole, tensor)
        for name, child in self._children:
            own["_modules"][name] = child._copied(take, config, index, made)
        return new

    def _bare(self, own: dict[str, Any], config: object, index: int | None) -> None:
        """Fill a new module's attributes: its dictionaries, hooks too, are its own."""
        own.update(self._shared)
        for name, kind in self._empty:
            own[name] = kind()
        for name, value in self._full:
            own[name] = value.copy()
        for name in self._configs:
            own[name] = config
        if index is not None and self._numbered:
            own["layer_idx"] = index


def as_it_is(name: str, tensor: Tensor) -> Tensor:
    """The tensor that is there."""
    return tensor.detach()


def out_of(tensors: Named) -> _MakeTensor:
    """The tensors of these names; what has none, as it is."""
    return tensors.get


def fill_module(module: nn.Module, tensors: Named) -> None:
    """Put these tensors in the place of the module's own."""
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        own = module.get_submodule(path).__dict__
        if last in own["_parameters"]:
            own["_parameters"][last] = _parameter(tensor)
        else:
            own["_buffers"][last] = tensor


def hollow(tensors: Named) -> dict[str, Tensor]:
    """The same shapes and dtypes, without memory."""
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
