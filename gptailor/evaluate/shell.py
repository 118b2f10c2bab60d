"""What surrounds a plan's layers, and one template for each kind of layer: made by transformers.

A shell is loaded by `from_pretrained` from tensors in memory, so that whatever transformers does
to a checkpoint on loading (renaming, fusing experts, casting, tying) is done to it too.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from gptailor.checkpoint.opened import Opened
from gptailor.checkpoint.source import generation_config
from gptailor.diagnostics import TailorError
from gptailor.evaluate.contents import Anatomy, Content
from gptailor.evaluate.modules import Named, Template, as_it_is, fill_module, hollow, out_of
from gptailor.evaluate.parts import decoder_layers, replace_layers
from gptailor.evaluate.tensors import TensorMaker, aligned_tensor, size_of
from gptailor.program.program import Output

_Config = Mapping[str, Any]

CONFIGURATIONS = 32
"""Plans' configurations that are kept, to be copied."""


@final
class Shell:
    """A model without layers, and how its layers are made of contents.

    `dtype` is the one asked for, None for the configuration's.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        base: Opened,
        tensors: TensorMaker,
        dtype: torch.dtype | None,
    ) -> None:
        self.anatomy = anatomy
        self.prefix = base.layout.prefix
        self.tensors = tensors
        self.dtype = dtype
        self._rest: dict[str, Tensor] = {}
        self._configs: dict[str, PreTrainedConfig] = {}
        made = {on_cpu.data_ptr(): tensor for on_cpu, tensor in self._read_rest()}
        self.numbers = {anatomy.layers[at].kind: n for n, at in enumerate(anatomy.first)}
        self.shown = [anatomy.layers[at] for at in anatomy.first]
        given = [self._given(content) for content in self.shown]
        self.model = self._load(given)
        if (path := generation_config(base.checkpoint)) is not None:
            self.model.generation_config = GenerationConfig.from_pretrained(path.parent)
        loaded = list(decoder_layers(self.model))
        self._direct = [_same(g, _tensors(m)) for g, m in zip(given, loaded, strict=True)]
        replace_layers(self.model, [])
        self._move(made)
        if all(self._direct):
            self._rest.clear()
        emptied = [_emptied(layer, tensors.device) for layer in loaded]
        self._hollow = [_tensors(layer) for layer in emptied]
        self._whole = Template(self.model, self.model.config)
        self._templates = [Template(layer, self.model.config) for layer in emptied]
        self.size = size_of(list(self.model.parameters()))

    # ------------------------------------------------------------------------------------- layers

    def direct(self, content: Content) -> bool:
        """Whether a layer's tensors are the checkpoint's, as they are but for a cast."""
        return self._direct[self.numbers[content.kind]]

    def layer(self, content: Content) -> dict[str, Tensor]:
        """A layer's parameters and buffers on the device, by their names within its module."""
        number = self.numbers[content.kind]
        if self._direct[number]:
            like = self._hollow[number]
            made = self._given(content)
            return {name: tensor.to(like[name].dtype) for name, tensor in made.items()}
        given = [self._given(content if n == number else c) for n, c in enumerate(self.shown)]
        module = decoder_layers(self._load(given))[number]
        device = self.tensors.device
        return {name: aligned_tensor(t.detach()).to(device) for name, t in _tensors(module).items()}

    def _given(self, content: Content) -> dict[str, Tensor]:
        return {output.spec.name: self._one(content, output) for output in content.outputs}

    def _one(self, content: Content, output: Output) -> Tensor:
        fitted = content.fitted.get(output.spec.name)
        return self.tensors.make(output) if fitted is None else fitted.to(self.tensors.device)

    def hollow(self, content: Content) -> dict[str, Tensor]:
        """The same without memory."""
        return self._hollow[self.numbers[content.kind]]

    # -------------------------------------------------------------------------------------- whole

    def model_of(self, anatomy: Anatomy, layers: Sequence[Named]) -> PreTrainedModel:
        """The live model of a plan whose shell this is, around these layers' tensors."""
        config = self._config(anatomy.config, len(layers))
        model = self._whole.copy(as_it_is, config, None)
        assert isinstance(model, PreTrainedModel)
        model.generation_config = copy.deepcopy(self.model.generation_config)
        numbers = [self.numbers[content.kind] for content in anatomy.layers]
        modules = [
            self._templates[number].copy(out_of(tensors), config, index)
            for index, (number, tensors) in enumerate(zip(numbers, layers, strict=True))
        ]
        replace_layers(model, modules)
        return model

    def _config(self, given: _Config, count: int) -> PreTrainedConfig:
        """The plan's configuration, with what transformers had put into the shell's; a new one."""
        key = json.dumps(given, sort_keys=True)
        if key not in self._configs:
            if len(self._configs) >= CONFIGURATIONS:
                del self._configs[next(iter(self._configs))]
            self._configs[key] = self._completed(configuration(given))
        config = copy.deepcopy(self._configs[key])  # a quarter of the time that making one takes
        assert config.num_hidden_layers == count
        return config

    def _completed(self, config: PreTrainedConfig) -> PreTrainedConfig:
        for name, value in vars(self.model.config).items():
            if name.startswith("_") or name == "dtype" or name not in vars(config):
                setattr(config, name, value)
        return config

    # ------------------------------------------------------------------------------------ loading

    def _load(self, layers: Sequence[Named]) -> PreTrainedModel:
        """The shell with these layers, as transformers loads it on the CPU."""
        state = dict(self._rest)
        for number, tensors in enumerate(layers):
            state |= {f"{self.prefix}{number}.{name}": t.cpu() for name, t in tensors.items()}
        config = configuration(self.anatomy.shell)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with _quietly():
            model, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=self.dtype or "auto",
                output_loading_info=True,
            )
        for what, names in report.items():
            if names and what != "unexpected_keys":
                raise TailorError(f"transformers can't load '{min(map(str, names))}' ({what})")
        assert isinstance(model, PreTrainedModel)
        model.requires_grad_(requires_grad=False)
        return model

    def _read_rest(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The tensors outside the layers: on the CPU, and where they were made."""
        for output in self.anatomy.rest:
            made = self.tensors.make(output)
            self._rest[output.spec.name] = made.cpu()
            yield self._rest[output.spec.name], made

    def _move(self, made: Mapping[int, Tensor]) -> None:
        """All outside the layers onto the device; what is there already, by address, is shared."""
        for parameter in self.model.parameters():
            there = made.get(parameter.data_ptr())
            if there is not None and there.dtype == parameter.dtype:
                parameter.data = there
            else:
                parameter.data = aligned_tensor(parameter.data)
        nn.Module.to(self.model, self.tensors.device)


def configuration(given: _Config) -> PreTrainedConfig:
    """The configuration as transformers reads it. Raises TailorError for an unknown model type."""
    name = str(given.get("model_type"))
    if name not in CONFIG_MAPPING:
        raise TailorError(f"transformers has no model type '{name}'")
    made: PreTrainedConfig = CONFIG_MAPPING[name].from_dict(dict(given))
    if type(made) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise TailorError(f"model type '{name}' is no language model for transformers")
    return made


@contextmanager
def _quietly() -> Iterator[None]:
    """No bar of transformers' own: these loads take milliseconds, and there are many."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers has no types here
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict(keep_vars=True))


def _same(given: Named, loaded: Named) -> bool:
    """Whether what was loaded is what was given, by the same names and but for a cast."""
    return given.keys() == loaded.keys() and all(
        tensor.shape == loaded[name].shape
        and torch.equal(tensor.cpu().to(loaded[name].dtype), loaded[name])
        for name, tensor in given.items()
    )


def _emptied(layer: nn.Module, device: torch.device) -> nn.Module:
    """The layer without its own tensors; buffers that no checkpoint has stay."""
    fill_module(layer, hollow(_tensors(layer)))
    for module in layer.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return layer
