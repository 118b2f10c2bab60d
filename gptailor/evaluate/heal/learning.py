"""What of a live model learns: low-rank changes of projections, or the weights themselves."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gptailor.plan.faults import CodedError


@final
class HealError(CodedError):
    """A plan can't be healed."""


@final
class NotFiniteError(ArithmeticError):
    """A model computes NaN or infinity before anything has learned; why is for others to find."""


ModuleNames = Mapping[str, str]
"""What a layer's tensors are called in a checkpoint, and in transformers' module."""


@dataclass(frozen=True, eq=False)
class Learning(ABC):
    """Parameters of some layers that learn; `names` are the tensors of each that they change.

    Layers are by their numbers in the output, tensors by their names within the layer, each with
    the one that it has in the live module.
    """

    layers: Mapping[int, nn.Module]
    names: Mapping[int, ModuleNames]

    @property
    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimiser changes, in float32, by name."""

    @abstractmethod
    def collect(self) -> None:
        """The layers have run there and back: gather the parameters' gradients."""

    @abstractmethod
    def apply(self) -> None:
        """Let the layers compute with the parameters as they are now."""

    @torch.no_grad()
    def take(self, found: Mapping[str, Tensor]) -> None:
        """Be as parameters were that were kept, by their names."""
        for name, parameter in self.parameters.items():
            parameter.copy_(found[name])
        self.apply()

    @abstractmethod
    def folded(self, layer: int, name: str, tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A tensor of the plan as it is after learning, in float32."""


@final
class LowRankChanges(Learning):
    """W + BA for each projection W, A and B of `rank` rows and columns at most.

    W itself stays. A begins as normal numbers with a variance of 1 / inputs, drawn by `seed`, B as
    zeros, so that nothing is changed at first (LoRA, arXiv 2106.09685, with a scale of 1). In the
    live model a projection adds B(Ax) to what it makes.
    """

    def __init__(
        self,
        layers: Mapping[int, nn.Module],
        names: Mapping[int, ModuleNames],
        rank: int,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(layers, names)
        self._factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._ran: set[str] = set()
        generator = torch.Generator().manual_seed(seed)
        for layer, name, module in _projections(layers, names):
            inputs, outputs = _widths(module)
            most = min(rank, inputs, outputs)
            drawn = torch.randn(most, inputs, generator=generator) / math.sqrt(inputs)
            first = nn.Parameter(drawn.to(device))
            second = nn.Parameter(torch.zeros(outputs, most, device=device))
            key = f"{layer}.{name}"
            self._factors[key] = first, second
            module.register_forward_hook(self._hook(key))

    def _hook(self, key: str) -> Any:
        first, second = self._factors[key]

        def add(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> Tensor:
            self._ran.add(key)
            x = given[0] if torch.is_autocast_enabled(made.device.type) else given[0].float()
            change = nn.functional.linear(nn.functional.linear(x, first), second)
            return made + change.to(made.dtype)

        return add

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """A and B of each projection."""
        return {
            f"{key}.{which}": factor
            for key, factors in self._factors.items()
            for which, factor in zip(("A", "B"), factors, strict=True)
        }

    def collect(self) -> None:
        """Raise HealError (C810) for a projection that a layer computes with past its module."""
        if left := sorted(self._factors.keys() - self._ran):
            layer, _, name = left[0].partition(".")
            message = f"'{name}' of the output's layer {layer} isn't computed by its own module"
            raise HealError("C810", message, "name other layers, or heal with 'rank full'")

    def apply(self) -> None:
        """Nothing is to be done: the layers hold the parameters themselves."""

    def folded(self, layer: int, name: str, tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """W + BA; where weights are stored as (inputs, outputs), its transpose."""
        first, second = self._factors[f"{layer}.{name}"]
        change = second.detach() @ first.detach()
        wide = tensor.to(device=change.device, dtype=torch.float32)
        module = _projection(self.layers[layer], layer, self.names[layer][name])
        return wide + (change.T if isinstance(module, Conv1D) else change)


@final
class WholeWeights(Learning):
    """The layers' tensors themselves, learned in float32; the layers compute with them rounded."""

    def __init__(self, layers: Mapping[int, nn.Module], names: Mapping[int, ModuleNames]) -> None:
        super().__init__(layers, names)
        self._own: dict[str, nn.Parameter] = {}
        self._wide: dict[str, nn.Parameter] = {}
        for layer, module in layers.items():
            for name, its in names[layer].items():
                path, _, last = its.rpartition(".")
                holder = module.get_submodule(path)
                old = getattr(holder, last)
                if not isinstance(old, nn.Parameter):
                    raise _missing(layer, name)
                key = f"{layer}.{name}"
                own = nn.Parameter(old.detach().clone())
                setattr(holder, last, own)
                self._own[key] = own
                same = own.dtype == torch.float32
                self._wide[key] = own if same else nn.Parameter(own.detach().float())

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The tensors in float32."""
        return self._wide

    def collect(self) -> None:
        """Hand the gradients of the rounded tensors to those in float32."""
        for key, own in self._own.items():
            wide = self._wide[key]
            if wide is not own and own.grad is not None:
                wide.grad = own.grad.float()
                own.grad = None

    @torch.no_grad()
    def apply(self) -> None:
        """Round the tensors into the layers."""
        for key, own in self._own.items():
            if self._wide[key] is not own:
                own.copy_(self._wide[key])

    def folded(self, layer: int, name: str, tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The learned tensor; what rounding took from the plan's before learning is back."""
        key = f"{layer}.{name}"
        learned = self._wide[key].detach()
        whole = tensor.to(learned.device)
        begun, wide = whole.to(self._own[key].dtype).float(), whole.float()
        return torch.where(begun == wide, learned, wide + (learned - begun))


def matched(
    names: Sequence[str], made: Mapping[str, Tensor], module: nn.Module, layer: int
) -> dict[str, str]:
    """What some of a layer's tensors are called in its live module: there they have equal values.

    `made` are all the layer's tensors. transformers renames some as it loads them, and makes one of
    several, or several of one. Raises HealError (C810) for a tensor that isn't there as it is, and
    where it can't be told which one it is.
    """
    own: dict[str, Tensor] = dict(module.state_dict())
    others = [name for name in own if name not in made]
    found = {}
    for name in names:
        candidates = [name] if name in own else others
        same = [one for one in candidates if _equal(made[name], own[one])]
        if len(same) != 1:
            raise _missing(layer, name)
        found[name] = same[0]
    return found


def _equal(given: Tensor, loaded: Tensor) -> bool:
    if given.shape != loaded.shape:
        return False
    own = given.to(device=loaded.device, dtype=loaded.dtype)
    if own.is_floating_point():
        return torch.allclose(own, loaded, rtol=0, atol=0, equal_nan=True)
    return torch.equal(own, loaded)


def _projections(
    layers: Mapping[int, nn.Module], names: Mapping[int, ModuleNames]
) -> Iterator[tuple[int, str, nn.Module]]:
    for layer, module in layers.items():
        for name, its in names[layer].items():
            yield layer, name, _projection(module, layer, its)


def _projection(module: nn.Module, layer: int, name: str) -> nn.Module:
    try:
        found = module.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        found = module
    if not isinstance(found, nn.Linear | Conv1D):
        raise _missing(layer, name)
    return found


def _missing(layer: int, name: str) -> HealError:
    message = f"transformers has no '{name}' of its own in the output's layer {layer}"
    return HealError("C810", message, "such a layer can't learn; name others")


def _widths(module: nn.Module) -> tuple[int, int]:
    """The inputs and outputs of a projection."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    outputs, inputs = weight.shape
    return (outputs, inputs) if isinstance(module, Conv1D) else (inputs, outputs)
