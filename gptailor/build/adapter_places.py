"""Where PEFT has what differs between two models: the modules that transformers makes of one."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, final

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from gptailor.checkpoint.models import Opened
from gptailor.evaluate.live.template import configuration

Kind = Literal["projections", "biases", "norms", "embed", "head", "others"]
"""What a tensor is for an adapter. `projections` get a low rank; the next four can be saved whole;
`others` are those that PEFT has no place for."""

SAVABLE: tuple[Kind, ...] = ("biases", "norms", "embed", "head")

_MAMBA = frozenset(["falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"])
"""Types whose `out_proj` and `conv1d` PEFT refuses to adapt: kernels read their weights."""


@final
class AdapterPlaces:
    """The modules of a model, made without memory, and what PEFT can do to each."""

    def __init__(self, opened: Opened) -> None:
        config = configuration(opened.config)
        make: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with torch.device("meta"):
            model = make(config)
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        state: Mapping[str, torch.Tensor] = model.state_dict()
        self._shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self._root = opened.layout.family.base
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        heads = (name for name, module in self.modules.items() if module is self._head)
        self.head = next(heads, "")
        self._refused = opened.layout.text_type in _MAMBA

    def name_of(self, name: str, shape: tuple[int, ...]) -> str | None:
        """transformers' name of a tensor on disk; None where it makes others of it."""
        candidates = (name, self._root + name, name.removeprefix(self._root))
        return next((each for each in candidates if self._shapes.get(each) == shape), None)

    def kind_of(self, name: str | None) -> Kind:
        """What a tensor is, by transformers' name of it."""
        if name is None:
            return "others"
        owner, leaf = owner_and_leaf(name)
        module = self.modules[owner]
        if any(other != owner and other.endswith(owner) for other in self.modules):
            return "others"  # PEFT compares the ends of names
        if module is self._embed or module is self._head:
            return "embed" if module is self._embed else "head"
        if isinstance(module, nn.Linear | Conv1D):
            if leaf == "bias":
                return "biases"
            refused = self._refused and owner.endswith(".out_proj")
            return "others" if refused or leaf != "weight" else "projections"
        vectors = all(parameter.dim() == 1 for parameter in module.parameters())
        is_norm = "norm" in type(module).__name__.lower() and not any(module.children())
        return "norms" if is_norm and vectors else "others"

    def shortest(self, chosen: Mapping[str, int]) -> dict[str, int]:
        """Modules with a number each, by names that PEFT finds these and no others by.

        One name, the last word of theirs, stands for all modules that end with it where they are
        all chosen, and have one number.
        """
        ends: dict[str, set[str]] = {}
        for module in self.modules:
            ends.setdefault(module.rpartition(".")[2], set()).add(module)
        found: dict[str, int] = {}
        for module, number in chosen.items():
            last = module.rpartition(".")[2]
            alike = {chosen.get(other) for other in ends[last]} == {number}
            found[last if alike else module] = number
        return found


def owner_and_leaf(name: str) -> tuple[str, str]:
    """The module that a tensor is of, and the tensor's name within it."""
    owner, _, leaf = name.rpartition(".")
    return owner, leaf


def length(numbers: Iterable[float]) -> float:
    """√(Σ x²): the length of parts that are at right angles to one another."""
    return math.sqrt(math.fsum(number * number for number in numbers))
