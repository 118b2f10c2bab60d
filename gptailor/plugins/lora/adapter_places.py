"""The places of tensors in PEFT: the modules that transformers makes of a model."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, final

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.pytorch_utils import Conv1D

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.live.template import configuration
from gptailor.plan.faults import TailorError

Kind = Literal["projections", "biases", "norms", "embed", "head", "others"]
"""The kind of a tensor for an adapter. `projections` get a low rank; the next four can be saved
whole; PEFT has no place for `others`."""

SAVABLE: tuple[Kind, ...] = ("biases", "norms", "embed", "head")

_EXPERTS = frozenset(["gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"])
"""Names that PEFT takes for experts' wherever transformers joins experts into one tensor."""

_MAMBA = frozenset(["falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"])
"""Types for which PEFT refuses to adapt `out_proj` and `conv1d`: kernels read their weights."""


@final
class AdapterPlaces:
    """The modules of a model, built without memory, and their kinds for PEFT."""

    def __init__(self, opened: Opened) -> None:
        wrapped = opened.layout.wrapped
        make, config = _class_and_config(opened, wrapped=wrapped)
        with torch.device("meta"):
            model = make(config)
        steps = get_model_conversion_mapping(model)
        self._renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        self._converters = [step for step in steps if isinstance(step, WeightConverter)]
        joined = "experts" in str([step.target_patterns for step in self._converters])
        self._taken = _EXPERTS if joined else frozenset()
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        state: Mapping[str, torch.Tensor] = model.state_dict()
        self._shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        self._root = opened.layout.family.base
        self._embed, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        heads = (name for name, module in self.modules.items() if module is self._head)
        self.head = next(heads, "")
        self._refused = opened.layout.text_type in _MAMBA

    def name_of(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return transformers' name of a tensor on disk; None if it converts the tensor."""
        loaded = name
        for each in self._renamings:
            loaded = each.rename_source_key(loaded)[0]
        if any(each.rename_source_key(loaded)[1] is not None for each in self._converters):
            return None

        stems = (loaded, name)
        forms = [(stem, self._root + stem, stem.removeprefix(self._root)) for stem in stems]
        candidates = (each for form in forms for each in form)
        return next((each for each in candidates if self._shapes.get(each) == shape), None)

    def kind_of(self, name: str | None) -> Kind:
        """Return a tensor's kind, by transformers' name of it."""
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
            last = owner.rpartition(".")[2]
            refused = last in self._taken or (self._refused and last == "out_proj")
            return "others" if refused or leaf != "weight" else "projections"
        vectors = all(parameter.dim() == 1 for parameter in module.parameters())
        is_norm = "norm" in type(module).__name__.lower() and not any(module.children())
        return "norms" if is_norm and vectors else "others"

    def shortest(self, chosen: Mapping[str, int]) -> dict[str, int]:
        """Return the numbers of modules by names that match these modules alone in PEFT.

        The last word of their names stands for all modules that end with it if all of them are
        chosen and have one number.
        """
        ends: dict[str, set[str]] = {}
        for module in self.modules:
            ends.setdefault(module.rpartition(".")[2], set()).add(module)
        numbers: dict[str, int] = {}
        for module, number in chosen.items():
            last = module.rpartition(".")[2]
            alike = {chosen.get(other) for other in ends[last]} == {number}
            numbers[last if alike else module] = number
        return numbers


def _class_and_config(opened: Opened, *, wrapped: bool) -> tuple[Any, PreTrainedConfig]:
    """Return transformers' class of a model, and its configuration."""
    if not wrapped:
        config = configuration(opened.config)
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config
    name = str(opened.config["model_type"])
    if name not in CONFIG_MAPPING:
        raise TailorError(f"transformers has no model type '{name}'")
    wrapper_config: PreTrainedConfig = CONFIG_MAPPING[name].from_dict(dict(opened.config))
    if type(wrapper_config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise TailorError(f"transformers has no image-text model for the model type '{name}'")
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(wrapper_config)], wrapper_config


def owner_and_leaf(name: str) -> tuple[str, str]:
    """Return a tensor's module, and the tensor's name within it."""
    owner, _, leaf = name.rpartition(".")
    return owner, leaf


def length(numbers: Iterable[float]) -> float:
    """Return √(Σ x²): the length of parts that are at right angles to one another."""
    return math.sqrt(math.fsum(number * number for number in numbers))
