"""Learned parameters of a live model: low-rank changes of projections, or whole weights."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gptailor.evaluation.scores import Failure
from gptailor.plan.faults import CodedError, TailorError

_T = TypeVar("_T")


@final
class HealError(CodedError):
    """A plan can't be healed."""


@final
class NotFiniteError(ArithmeticError):
    """A model computes NaN or infinity before any learning; the caller finds the cause."""


def of_teacher(result: _T | Failure) -> _T:
    """Return the result of a teacher.

    Raises NotFiniteError for predictions that are NaN, TailorError for another failure.
    """
    if not isinstance(result, Failure):
        return result
    if result.reason == "nan":
        raise NotFiniteError("its teacher's predictions are NaN")
    raise TailorError(f"the teacher fails: {result.message}")


ModuleNames = Mapping[str, str]
"""The names of a layer's tensors in transformers' module, by their names in a checkpoint."""


@dataclass(frozen=True, eq=False)
class Learning(ABC):
    """Learned parameters of some layers; `names` are the tensors of each layer that they change.

    Layers have their numbers in the output, and tensors their names within the layer. Each name
    maps to the tensor's name in the live module.
    """

    layers: Mapping[int, nn.Module]
    names: Mapping[int, ModuleNames]

    @property
    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """The optimiser's parameters, in float32, by name."""

    @abstractmethod
    def collect(self) -> None:
        """Gather the parameters' gradients after a forward and a backward pass of the layers."""

    @abstractmethod
    def apply(self) -> None:
        """Let the layers compute with the current parameters."""

    @torch.no_grad()
    def take(self, kept: Mapping[str, Tensor]) -> None:
        """Take over the values of kept parameters, by their names."""
        for name, parameter in self.parameters.items():
            parameter.copy_(kept[name])
        self.apply()

    @abstractmethod
    def folded(self, layer: int, name: str, tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return a tensor of the plan after learning, in float32."""


@final
class LowRankChanges(Learning):
    """W + BA for each projection W, A and B of `rank` rows and columns at most.

    W itself stays. A begins as normal numbers with a variance of 1 / inputs, drawn by `seed`. B
    begins as zeros, so that nothing changes at first (LoRA, arXiv 2106.09685, with a scale of 1).
    In the live model a projection adds B(Ax) to its output.
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
        named = ((layer, *item) for layer in layers for item in names[layer].items())
        for layer, name, live_name in named:
            module = _projection(layers[layer], layer, live_name)
            sides = tuple(module.weight.shape)
            inputs, outputs = sides if isinstance(module, Conv1D) else reversed(sides)
            size = min(rank, inputs, outputs)
            drawn = torch.randn(size, inputs, generator=generator) / math.sqrt(inputs)
            first = nn.Parameter(drawn.to(device))
            second = nn.Parameter(torch.zeros(outputs, size, device=device))
            key = f"{layer}.{name}"
            self._factors[key] = first, second
            module.register_forward_hook(self._hook(key))

    def _hook(self, key: str) -> Any:
        (first, second), ran = self._factors[key], self._ran  # not self: it has the module

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            ran.add(key)
            autocast = torch.is_autocast_enabled(output.device.type)
            x = inputs[0] if autocast else inputs[0].float()
            change = nn.functional.linear(nn.functional.linear(x, first), second)
            return output + change.to(output.dtype)

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
        """Raise HealError (C810) for a projection that its layer computes without its module."""
        if skipped := sorted(self._factors.keys() - self._ran):
            layer, _, name = skipped[0].partition(".")
            message = (
                f"'{name}' of the output's layer {layer} has no module of its own in transformers"
            )
            raise HealError("C810", message, "name other layers after 'heal', or write 'rank full'")

    def apply(self) -> None:
        """Do nothing, as the layers hold the parameters themselves."""

    def folded(self, layer: int, name: str, tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return W + BA, or W + (BA)ᵀ where weights are stored as (inputs, outputs)."""
        first, second = self._factors[f"{layer}.{name}"]
        change = second.detach() @ first.detach()
        wide = tensor.to(device=change.device, dtype=torch.float32)
        module = _projection(self.layers[layer], layer, self.names[layer][name])
        return wide + (change.T if isinstance(module, Conv1D) else change)


@final
class WholeWeights(Learning):
    """Whole tensors of the layers, learned in float32; the layers compute with rounded ones."""

    def __init__(self, layers: Mapping[int, nn.Module], names: Mapping[int, ModuleNames]) -> None:
        super().__init__(layers, names)
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for layer, module in layers.items():
            for name, live_name in names[layer].items():
                path, _, last = live_name.rpartition(".")
                holder = module.get_submodule(path)
                old = getattr(holder, last)
                if not isinstance(old, nn.Parameter):
                    raise _missing(layer, name)
                own = nn.Parameter(old.detach().clone())
                setattr(holder, last, own)
                same = own.dtype == torch.float32
                wide = own if same else nn.Parameter(own.detach().float())
                self._pairs[f"{layer}.{name}"] = own, wide

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The tensors in float32."""
        return {key: wide for key, (_, wide) in self._pairs.items()}

    def collect(self) -> None:
        """Move the gradients of the rounded tensors to the float32 tensors."""
        for own, wide in self._pairs.values():
            if wide is not own and own.grad is not None:
                wide.grad = own.grad.float()
                own.grad = None

    @torch.no_grad()
    def apply(self) -> None:
        """Round the tensors into the layers."""
        for own, wide in self._pairs.values():
            if wide is not own:
                own.copy_(wide)

    def folded(self, layer: int, name: str, tensor: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the learned tensor, plus the plan's tensor's rounding error before learning."""
        own, parameter = self._pairs[f"{layer}.{name}"]
        learned, exact = parameter.detach(), tensor.to(parameter.device)
        begun, wide = exact.to(own.dtype).float(), exact.float()
        return torch.where(begun == wide, learned, wide + (learned - begun))


def matched(
    names: Sequence[str], tensors: Mapping[str, Tensor], module: nn.Module, layer: int
) -> dict[str, str]:
    """Match a layer's tensors with equal tensors of its live module, by their names.

    `tensors` are all the layer's tensors. transformers renames, joins and splits some tensors as it
    loads them. Raises HealError (C810) for a tensor that equals no tensor of the module, or several
    of them.
    """
    live: dict[str, Tensor] = dict(module.state_dict())
    renamed = [name for name in live if name not in tensors]
    live_names = {}
    for name in names:
        candidates = [name] if name in live else renamed
        same = [candidate for candidate in candidates if _equal(tensors[name], live[candidate])]
        if len(same) != 1:
            raise _missing(layer, name)
        live_names[name] = same[0]
    return live_names


def _equal(stored: Tensor, loaded: Tensor) -> bool:
    if stored.shape != loaded.shape:
        return False
    own = stored.to(device=loaded.device, dtype=loaded.dtype)
    return torch.allclose(own, loaded, rtol=0, atol=0, equal_nan=True)


def _projection(module: nn.Module, layer: int, name: str) -> nn.Linear | Conv1D:
    try:
        owner = module.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        owner = module
    if not isinstance(owner, nn.Linear | Conv1D):
        raise _missing(layer, name)
    return owner


def _missing(layer: int, name: str) -> HealError:
    message = f"transformers has no separate '{name}' in the output's layer {layer}"
    return HealError("C810", message, "name other layers after 'heal'")
