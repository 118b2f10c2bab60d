"""A tiny model with random weights, and its layers run by hand: the reference for moved models."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from gptailor.plugins.adopt.shrink import VOCABULARY

Tensors = dict[str, torch.Tensor]

IDS = torch.arange(24).reshape(2, 12) * 7 % (VOCABULARY - 4) + 3
"""Two texts, longer than any window."""

_STACKS = frozenset({"layers", "h", "blocks", "block"})


@final
class UnprovenError(ValueError):
    """A part that can't be drafted, made or shown, with the reason."""


def words(error: Exception) -> str:
    """Return an error of transformers in one line; a reason of ours as it is."""
    if isinstance(error, UnprovenError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def configured(model_type: str, values: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a configuration of a type."""
    apart = {"model_type", "transformers_version", "auto_map", "quantization_config"}
    plain = {key: value for key, value in values.items() if key not in apart}
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **plain)
    return config


def random_model(model_type: str, values: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """Return a model of random weights of a realistic size, in float32."""
    config = configured(model_type, values)
    config.dtype = torch.float32
    model = _from_config(config)
    model.to(torch.float32)  # type: ignore[arg-type] # a decorator of transformers' hides the types
    model.train(False)
    randomise(model, seed)
    return model


def hollow(model_type: str, values: Mapping[str, Any]) -> PreTrainedModel:
    """Return a model without values, on the meta device."""
    with torch.device("meta"):
        model = _from_config(configured(model_type, values))
    return model


def _from_config(config: PreTrainedConfig) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    return model


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Give all saved tensors random values that leave the hidden state near 1."""
    generator = torch.Generator().manual_seed(seed)
    wide = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kept = model.state_dict().keys()
    saved_buffers = [b for name, b in model.named_buffers() if name in kept]
    with torch.no_grad():
        for tensor in (*model.parameters(), *saved_buffers):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if tensor.dim() <= 1:  # a norm's weight or a bias, around its old values
                tensor.add_(0.2 * noise)
            elif id(tensor) in wide:
                tensor.copy_(noise)
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)


def loaded(folder: Path) -> PreTrainedModel:
    """Return the model in a folder. Raises UnprovenError for missing or unused tensors."""
    auto: Any = AutoModelForCausalLM
    model, report = auto.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, trust_remote_code=False
    )
    for what, names in report.items():
        if names:
            shown = sorted(map(str, names))
            more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
            problem = f"{what.replace('_', ' ')}: {', '.join(shown[:3])}{more}"
            raise UnprovenError(f"transformers finds {problem}")
    live: PreTrainedModel = model.eval()
    return live


def saved(model: PreTrainedModel, folder: Path) -> tuple[dict[str, Any], Tensors]:
    """Save a model as transformers does; return its configuration and its tensors by name."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return config, tensors


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Return the model's logits for the texts, computed without a cache."""
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    if not torch.isfinite(out).all():
        raise UnprovenError("the tiny model's outputs are NaN or infinite")
    return out


def stack_of(model: PreTrainedModel, count: int) -> tuple[str, list[nn.Module]]:
    """Return the decoder layers and their name: the one outermost list of `count` modules."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [(n, m) for n, m in lists if not any(n.startswith(f"{o}.") for o, _ in lists if o != n)]
    if len(outer) > 1:
        outer = [(n, m) for n, m in outer if n.rpartition(".")[2] in _STACKS]
    if len(outer) != 1:
        several = f"{len(outer)} lists of modules have" if outer else "no list of modules has"
        raise UnprovenError(f"{several} an entry for each of {count} layers")
    name, layers = outer[0]
    return name, list(layers)


def first_of(output: Any) -> Any:
    """Return a module's output, or the first of several."""
    return output[0] if isinstance(output, tuple | list) else output


@contextmanager
def zeroed(module: nn.Module) -> Iterator[None]:
    """Make a module's output zero."""

    def zero(_: nn.Module, __: Any, output: Any) -> Any:
        nothing = torch.zeros_like(first_of(output))
        return (nothing, *output[1:]) if isinstance(output, tuple) else nothing

    with module.register_forward_hook(zero):
        yield


@final
@dataclass(frozen=True, slots=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@final
class RunByHand:
    """A model's layers, each with all arguments of its call."""

    def __init__(self, model: PreTrainedModel, count: int) -> None:
        self.model = model
        self.path, self.layers = stack_of(model, count)
        self.calls: list[_Call] = []
        order: list[int] = []
        with ExitStack() as hooks:
            for i, layer in enumerate(self.layers):
                noting = self._noting(i, order)
                hooks.enter_context(layer.register_forward_pre_hook(noting, with_kwargs=True))
            self.unchanged = logits(model)
        if order != list(range(count)):
            ran = ", ".join(map(str, order[:12])) or "no layer"
            raise UnprovenError(f"expected each layer to run once, in order, got: {ran}")

    def _noting(self, number: int, order: list[int]) -> Callable[..., None]:
        def called(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            order.append(number)
            self.calls.append(_Call(args, dict(kwargs)))

        return called

    @property
    def embedded(self) -> torch.Tensor:
        """Return the hidden state that enters the first layer."""
        call = self.calls[0]
        state = call.args[0] if call.args else call.kwargs.get("hidden_states")
        if not isinstance(state, torch.Tensor) or state.dim() != 3 or state.shape[:2] != IDS.shape:
            raise UnprovenError("a layer is not called with one hidden state for each token")
        return state

    def run(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Run a layer on a hidden state, called as its model called it."""
        call = self.calls[layer]
        args = (hidden, *call.args[1:]) if call.args else ()
        kwargs = call.kwargs if call.args else {**call.kwargs, "hidden_states": hidden}
        with torch.no_grad():
            out = first_of(self.layers[layer](*args, **kwargs))
        if not isinstance(out, torch.Tensor) or out.shape != hidden.shape:
            raise UnprovenError("a layer does not give one hidden state for each token")
        return out

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the model's logits for a hidden state after its last layer."""

        def instead(_: nn.Module, __: Any, output: Any) -> Any:
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        with self.layers[-1].register_forward_hook(instead):
            return logits(self.model)


def by_hand(base: RunByHand, layers: Sequence[tuple[RunByHand, int]]) -> torch.Tensor:
    """Return logits of the base with these layers in order, each called as by its own model."""
    hidden = base.embedded
    for subject, layer in layers:
        hidden = subject.run(layer, hidden)
    return base.finish(hidden)
