"""Copies of modules around other tensors; a hook on one copy touches no other."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from gptailor.checkpoint.files import quoted
from gptailor.checkpoint.folder import generation_config
from gptailor.checkpoint.models import Opened
from gptailor.evaluation.live.content_keys import (
    Content,
    ModelContents,
    TensorMaker,
    aligned_tensor,
    size_of,
)
from gptailor.plan.faults import TailorError


def decoder(model: PreTrainedModel) -> nn.Module:
    """Return the module that embeds tokens and runs the layers: the model without its head."""
    module: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    inner = getattr(model, "model", None)
    # Llama 4's text model calls its decoder by another name, ModernBERT its head by this one.
    other = module is model or not any(module.children())
    return inner if other and isinstance(inner, nn.Module) else module


def embeddings(model: PreTrainedModel) -> Float[Tensor, " vocab width"]:
    """Return the weight of the token embedding."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the model's own list of decoder layers, in order.

    Raises `ValueError` for a model without one list of layers.
    """
    layers = getattr(decoder(model), _name(model))
    assert isinstance(layers, nn.ModuleList)
    return layers


def replace_layers(model: PreTrainedModel, layers: Iterable[nn.Module]) -> None:
    """Give the model these layers, without a change of configurations."""
    setattr(decoder(model), _name(model), nn.ModuleList(layers))


@contextmanager
def standing_in(model: PreTrainedModel, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Put these layers in the place of the model's own, which always return afterwards."""
    holder, name, own = decoder(model), _name(model), decoder_layers(model)
    setattr(holder, name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(holder, name, own)


def _name(model: PreTrainedModel) -> str:
    children = decoder(model).named_children()
    lists = [name for name, child in children if isinstance(child, nn.ModuleList)]
    names = [name for name in lists if name in ("layers", "h", "blocks")] or lists
    if len(names) != 1:
        candidates = ", ".join(names) or "none"
        raise ValueError(f"{type(model).__name__} has no single list of layers ({candidates})")
    return names[0]


NamedTensors = Mapping[str, Tensor]
"""Parameters and buffers by their names within a module."""
_NUMBERS = ("layer_idx", "layer_id", "layer_number")
"""Attributes of a layer's modules with the layer's number."""


def _copied_module(
    module: nn.Module, replaced: Mapping[int, object], index: int | None = None
) -> nn.Module:
    """Return a copy of a module, with copies of the modules in it and with hooks of its own.

    `replaced` has the tensors and the configuration that take the places of the module's, by the
    ids of those. All others are shared. A layer's number becomes `index`.
    """
    own = {id(part): copy.copy(part) for part in module.modules()}
    new = {**replaced, **own}
    for part in own.values():
        state = vars(part)
        for name, value in state.items():
            if isinstance(value, (dict, set)):
                state[name] = value.copy()
                if value and isinstance(value, dict):
                    state[name].update((n, new[id(v)]) for n, v in value.items() if id(v) in new)
            elif id(value) in new:
                state[name] = new[id(value)]
        if index is not None:
            state.update((name, index) for name in _NUMBERS if name in state)
    return own[id(module)]


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


@final
class ModelTemplate:
    """A model without layers, with templates for layers of its contents.

    `dtype` is the requested dtype; None means the configuration's.
    """

    def __init__(
        self, contents: ModelContents, base: Opened, tensors: TensorMaker, dtype: torch.dtype | None
    ) -> None:
        self.contents = contents
        self.prefix = base.layout.prefix
        self.tensors = tensors
        self.dtype = dtype
        self._rest: dict[str, Tensor] = {}
        on_device: dict[int, Tensor] = {}  # by their addresses on the CPU
        for output in contents.rest:
            tensor = tensors.make(output)
            on_cpu = self._rest[output.spec.name] = tensor.cpu()
            on_device[on_cpu.data_ptr()] = tensor
        self.shown = [contents.layers[at] for at in contents.first]
        shown_tensors = [self._tensors_of(content) for content in self.shown]
        self.model = self._load(shown_tensors)
        if (path := generation_config(base.checkpoint)) is not None:
            self.model.generation_config = GenerationConfig.from_pretrained(path.parent)
        loaded = {c.kind: m for c, m in zip(self.shown, decoder_layers(self.model), strict=True)}
        pairs = zip(loaded.items(), shown_tensors, strict=True)
        self.direct = {kind: _equal_tensors(own, _tensors(layer)) for (kind, layer), own in pairs}
        """True for kinds of layers that have the tensors of the checkpoint, except for a cast."""
        replace_layers(self.model, [])
        self._move(on_device)
        if all(self.direct.values()):
            self._rest.clear()
        self._layers = {kind: _empty_layer(m, tensors.device) for kind, m in loaded.items()}
        self.hollow = {kind: _tensors(layer) for kind, layer in self._layers.items()}
        """The parameters and buffers of a kind of layers, without memory."""
        self.size = size_of(self.model.parameters())

    # ------------------------------------------------------------------------------------- layers

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def layer(self, content: Content) -> dict[str, Tensor]:
        """Return a layer's parameters and buffers on the device, by names within its module."""
        if self.direct[content.kind]:
            like = self.hollow[content.kind]
            tensors = self._tensors_of(content)
            cast = {name: tensor.to(like[name].dtype) for name, tensor in tensors.items()}
            names = {name for name, tensor in tensors.items() if cast[name] is not tensor}
            self.tensors.forget(o for o in content.outputs if o.spec.name in names)
            return cast
        shown = [content if other.kind == content.kind else other for other in self.shown]
        loaded = self._load([self._tensors_of(each) for each in shown])
        module = decoder_layers(loaded)[shown.index(content)]
        device = self.tensors.device
        self.tensors.forget(content.outputs)  # transformers has them in another form
        return {name: aligned_tensor(t.detach()).to(device) for name, t in _tensors(module).items()}

    def _tensors_of(self, content: Content) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for output in content.outputs:
            tensor = self.tensors.of_layer(content, output)
            tensors[output.spec.name] = tensor.to(self.tensors.device)
        return tensors

    # -------------------------------------------------------------------------------------- whole

    def model_of(self, contents: ModelContents, layers: Sequence[NamedTensors]) -> PreTrainedModel:
        """Return the live model of a plan with this template, around these layers' tensors."""
        config = self._config(contents.config)
        own: dict[int, object] = {id(self.model.config): config}
        tensors: dict[int, object] = {
            id(p): _parameter(p.detach()) for p in self.model.parameters()
        }
        tensors |= {id(buffer): buffer.detach() for buffer in self.model.buffers()}
        model = _copied_module(self.model, own | tensors)
        assert isinstance(model, PreTrainedModel)
        if contents.generation:
            model.generation_config = GenerationConfig.from_dict(dict(contents.generation))
        else:
            model.generation_config = copy.deepcopy(self.model.generation_config)
        modules = []
        for index, (content, layer) in enumerate(zip(contents.layers, layers, strict=True)):
            filled: dict[int, object] = {
                id(old): _parameter(layer[name]) if isinstance(old, nn.Parameter) else layer[name]
                for name, old in self.hollow[content.kind].items()
                if name in layer
            }
            modules.append(_copied_module(self._layers[content.kind], own | filled, index))
        replace_layers(model, modules)
        if hasattr(inner := decoder(model), "first_kv_shared_layer_idx"):  # Gemma 4's
            inner.first_kv_shared_layer_idx = len(layers) - config.num_kv_shared_layers
        return model

    def _config(self, settings: Mapping[str, Any]) -> PreTrainedConfig:
        config = configuration(settings)
        for name, value in vars(self.model.config).items():
            ours = name.startswith("_") and name != "_heterogeneity_spec"  # shapes by number
            if ours or name == "dtype" or name not in vars(config):
                setattr(config, name, copy.deepcopy(value))
        for name in config.sub_configs:
            if isinstance(part := getattr(config, name, None), PreTrainedConfig):
                part.dtype = config.dtype
        return config

    # ------------------------------------------------------------------------------------ loading

    def _load(self, layers: Sequence[NamedTensors]) -> PreTrainedModel:
        state = dict(self._rest)
        for number, tensors in enumerate(layers):
            state |= {f"{self.prefix}{number}.{name}": t.cpu() for name, t in tensors.items()}
        config = configuration(self.contents.template)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        try:
            with _quietly():
                model, report = kind.from_pretrained(
                    None,
                    config=config,
                    state_dict=state,
                    dtype=self.dtype or "auto",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are in the report
                )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            why = f"unknown value {error}" if isinstance(error, KeyError) else str(error)
            message = f"transformers can't build the model from its configuration: {why}"
            raise TailorError(message) from error
        for name, shape, configured in sorted(report.pop("mismatched_keys", ())):
            shapes = f"{list(shape)}, expected {list(configured)} as in the configuration"
            raise TailorError(f"transformers can't load '{name}': it is {shapes}")
        for what, names in report.items():
            if names and what != "unexpected_keys":
                raise TailorError(f"transformers can't load '{min(map(str, names))}' ({what})")
        assert isinstance(model, PreTrainedModel)
        model.requires_grad_(requires_grad=False)
        return model

    def _move(self, on_device: Mapping[int, Tensor]) -> None:
        """Move all tensors outside the layers to the device, sharing present ones by address."""
        for parameter in self.model.parameters():
            present = on_device.get(parameter.data_ptr())
            if present is not None and present.dtype == parameter.dtype:
                parameter.data = present
            else:
                parameter.data = aligned_tensor(parameter.data)
        nn.Module.to(self.model, self.tensors.device)


def configuration(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration as transformers reads it.

    Raises TailorError for an unknown model type, and for settings that transformers refuses.
    """
    name = str(settings.get("model_type"))
    if name not in CONFIG_MAPPING:
        raise TailorError(f"transformers has no model type '{name}'")
    numbers = PreTrainedConfig._decode_special_floats(dict(settings))  # infinity isn't in JSON
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[name].from_dict(numbers)
    except Exception as error:  # transformers and huggingface_hub raise anything
        why = str(error.__cause__ or error).strip() or type(error).__name__
        message = f"transformers can't read the configuration of this {name}"
        raise TailorError(f"{message}: {quoted(why.splitlines()[0], whole=True)[1:-1]}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise TailorError(f"transformers has no language model for the model type '{name}'")
    return config


def position_count(config: PreTrainedConfig) -> int | None:
    """Return the longest text that a model takes, in tokens; None means no limit."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len")  # MPT's
    count = next((value for name in names if (value := getattr(text, name, None))), None)
    return None if count is None else int(count)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide transformers' progress bars and reports: these loads are many and take milliseconds."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers has no types here
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict(keep_vars=True))


def _equal_tensors(tensors: NamedTensors, loaded: NamedTensors) -> bool:
    """Return whether the loaded tensors equal the given ones by name, except for a cast."""
    return tensors.keys() == loaded.keys() and all(
        tensor.shape == loaded[name].shape
        and torch.equal(tensor.cpu().to(loaded[name].dtype), loaded[name])
        for name, tensor in tensors.items()
    )


def _empty_layer(layer: nn.Module, device: torch.device) -> nn.Module:
    """Return the layer without its own tensors; buffers that no checkpoint has stay."""
    own = _tensors(layer).items()
    hollow = {name: torch.empty_like(tensor, device="meta") for name, tensor in own}
    layer.load_state_dict(hollow, assign=True)
    for module in layer.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers[name]
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return layer
