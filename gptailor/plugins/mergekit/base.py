"""A configuration's base: its number of layers, whether its head is tied, its tensors' names.

Its configuration is looked for in the folder that the user gives, in the folder that the file
names, in the Hub's cache, and on the Hub. Without it nothing is assumed.

Filters match mergekit's names of tensors. Where mergekit has no list of its own for an architecture
it takes the names of transformers' class, in which all experts of a layer are one tensor; a
checkpoint may hold them one by one.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint import hub
from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.family_file import family_for
from gptailor.checkpoint.families.layer_config import Refusal, RuleError
from gptailor.checkpoint.families.layout import is_tied, layer_count, place_in
from gptailor.checkpoint.families.vision import WRAPPERS
from gptailor.checkpoint.files import CheckpointError, read_object
from gptailor.checkpoint.folder import CONFIG, TOKENIZER_FILES, Checkpoint, open_checkpoint
from gptailor.checkpoint.vocabulary import read_vocabulary
from gptailor.plan import faults
from gptailor.plan.layer_parts import Branch
from gptailor.plugins.mergekit.config import ModelReference

MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

HOW_TO_NAME_THE_BASE = (
    "give a folder with its config.json by --base FOLDER; "
    "or only the number of layers by --layers N"
)


# ------------------------------------------------------------------------------------ tensor names


@final
@dataclass(frozen=True)
class TensorNames:
    """mergekit's names of a model's tensors: whole outside the layers, within a layer otherwise."""

    embed: tuple[str, ...]
    norm: tuple[str, ...]
    head: tuple[str, ...]
    prefix: str
    """Text before a layer's number."""
    branches: Mapping[str, Branch]
    """The branch of each tensor of a layer."""
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The checkpoint's names of a tensor, where they differ from mergekit's."""
    fused: bool = False
    """True if several tensors of the checkpoint are one in mergekit."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """`norms`, or a projection such as `mlp.down`, of the tensors that have a role."""
    branches_differ: bool = True
    """True if a layer's two branches can be distinguished."""

    def full_name(self, layer: int | None, tensor: str) -> str:
        """Return the whole name of a layer's tensor, or of one outside the layers."""
        return tensor if layer is None else f"{self.prefix}{layer}.{tensor}"

    def in_checkpoint(self, tensor: str) -> tuple[str, ...]:
        """Return the checkpoint's names of a layer's tensor."""
        return self.stored.get(tensor, (tensor,))

    def names(self, layers: int) -> list[str]:
        """Return all names of a model with that many layers."""
        numbered = (self.full_name(n, tensor) for n in range(layers) for tensor in self.branches)
        return [*self.embed, *self.norm, *self.head, *numbered]

    def nearest(self, word: str, layers: int) -> str:
        """Return a help text with the nearest filter that matches a tensor, or nothing."""
        word = word.strip(".")
        count = word.count(".") + 1
        parts = [name.split(".") for name in self.names(layers)]
        words = (
            ".".join(part[i : i + count]) for part in parts for i in range(len(part) - count + 1)
        )
        return faults.nearest(word, dict.fromkeys(words))


_EXPERTS = r"(?:block_sparse_moe|mlp|feed_forward)\.experts\.\d+\."
_RENAMED = (
    (re.compile(_EXPERTS + r"(?:w1|w3|gate_proj|up_proj)\.weight"), "mlp.experts.gate_up_proj"),
    (re.compile(_EXPERTS + r"(?:w2|down_proj)\.weight"), "mlp.experts.down_proj"),
    (re.compile(r"block_sparse_moe\.gate\.weight"), "mlp.gate.weight"),
)
_UNFUSED_TYPES = ("afmoe",)
"""Model types with experts as separate tensors in mergekit too."""


def _names_from(
    family: Family, config: Mapping[str, Any], model_type: str, tensors: Iterable[str]
) -> TensorNames:
    """Return mergekit's names of a checkpoint with these tensors in its layers."""
    roles: dict[str, set[str | None]] = {}
    branches: dict[str, Branch] = {}
    stored: dict[str, list[str]] = {}
    for tensor in dict.fromkeys(tensors):
        renamed = () if model_type in _UNFUSED_TYPES else _RENAMED
        name = next((new for old, new in renamed if old.fullmatch(tensor)), tensor)
        if (branch := family.part(tensor)) is not None:
            branches[name] = branch
            roles.setdefault(name, set()).add(family.role(tensor))
            stored.setdefault(name, []).append(tensor)
    differing = {name: tuple(tensors) for name, tensors in stored.items() if tensors != [name]}
    return TensorNames(
        tuple(family.base + name for name in family.embed),
        tuple(family.base + name for name in _without_bias(family.norm)),
        _without_bias(family.head)[:1],
        family.base + family.stack,
        branches,
        differing,
        any(len(tensors) > 1 for tensors in differing.values()),
        {name: role for name, (role, *more) in roles.items() if role is not None and not more},
        family.why_not("parts", config) is None,
    )


def _without_bias(names: tuple[str, ...]) -> tuple[str, ...]:
    """Drop the bias of a norm or a head, which no filter tells from its weight."""
    return tuple(name for name in names if not name.endswith(".bias")) or names


def _each(pattern: str, *words: str) -> tuple[str, ...]:
    return tuple(pattern.format(word) for word in words)


def _biased(*weights: str) -> tuple[str, ...]:
    """Return the names of weights, each with its bias's name."""
    both = ((weight, weight.removesuffix("weight") + "bias") for weight in weights)
    return tuple(name for names in both for name in names)


_INPUT, _AFTER = "input_layernorm.weight", "post_attention_layernorm.weight"
_QKV, _O = _each("self_attn.{}_proj.weight", "q", "k", "v"), ("self_attn.o_proj.weight",)
_MLP = _each("mlp.{}_proj.weight", "gate", "up", "down")
_HEADS = _each("self_attn.{}_norm.weight", "q", "k")
_FEED = _each("{}_feedforward_layernorm.weight", "pre", "post")
_MIXED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight")
_LLAMA = (_INPUT, _AFTER, *_QKV, *_O, *_MLP)
_LAYER_TENSORS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "ministral3", "granite", "smollm3"), _LLAMA),
    "gemma": _LLAMA,
    "qwen2": (_INPUT, _AFTER, *_biased(*_QKV), *_O, *_MLP),
    "qwen3": (_INPUT, _AFTER, *_QKV, *_O, *_HEADS, *_MLP),
    "gemma2": (_INPUT, _AFTER, *_QKV, *_O, *_FEED, *_MLP),
    "gemma3_text": (_INPUT, _AFTER, *_QKV, *_O, *_HEADS, *_FEED, *_MLP),
    "mixtral": (_INPUT, _AFTER, *_QKV, *_O, *_MIXED),
    "qwen3_moe": (_INPUT, _AFTER, *_QKV, *_O, *_HEADS, *_MIXED),
    "olmo": (*_QKV, *_O, *_MLP),
    "olmo2": (_AFTER, "post_feedforward_layernorm.weight", *_QKV, *_O, *_HEADS, *_MLP),
    "cohere": (_INPUT, *_QKV, *_O, *_MLP),
    "cohere2": (_INPUT, *_QKV, *_O, *_MLP),
    "phi": _biased(_INPUT, *_QKV, "self_attn.dense.weight", "mlp.fc1.weight", "mlp.fc2.weight"),
    "phi3": (_INPUT, _AFTER, *_O, "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight",
             "mlp.down_proj.weight"),
    "stablelm": (*_biased(_INPUT, _AFTER), *_QKV, *_O, *_MLP),
    "starcoder2": _biased(_INPUT, _AFTER, *_QKV, *_O, "mlp.c_fc.weight", "mlp.c_proj.weight"),
    "gpt2": _biased("ln_1.weight", "ln_2.weight", "attn.c_attn.weight", "attn.c_proj.weight",
                    "mlp.c_fc.weight", "mlp.c_proj.weight"),
    "gpt_neox": _biased(_INPUT, _AFTER, "attention.query_key_value.weight",
                        "attention.dense.weight", "mlp.dense_h_to_4h.weight",
                        "mlp.dense_4h_to_h.weight"),
}  # fmt: skip
"""The tensors of a layer by model type, for a base with only its configuration available."""

_MORE_TENSORS = ("attention_bias", "mlp_bias", "use_qkv_bias", "qk_layernorm", "use_qk_norm")
"""Configuration keys that add tensors which are not listed above."""


def _names_by_type(config: Mapping[str, Any]) -> TensorNames | None:
    """Return mergekit's names of a model with this configuration, if its type tells them."""
    model_type = str(config.get("model_type"))
    family, tensors = FAMILY_OF.get(model_type), _LAYER_TENSORS.get(model_type)
    if family is None or tensors is None or any(config.get(key) for key in _MORE_TENSORS):
        return None
    names = _names_from(family, config, model_type, tensors)
    experts = [name for name in names.branches if "experts" in name]
    roles = {name: role for name, role in names.roles.items() if name not in experts}
    return replace(names, fused=bool(experts), roles=roles)  # checkpoints mostly have them apart


# ------------------------------------------------------------------------------------------ models


@final
@dataclass(frozen=True)
class ModelFacts:
    """A model's number of layers, whether its head is the embedding, and mergekit's names of it.

    `names` is None where its type doesn't tell them; `towers` is set if it reads images too.
    """

    layers: int
    tied: bool
    names: TensorNames | None
    model_type: str
    towers: bool = False


@final
@dataclass(frozen=True)
class ModelFolders:
    """Places of models: folders by the models' names, relative paths from `root`, the Hub.

    Without `root` and `given` nothing is looked up.
    """

    root: Path | None = None
    given: Mapping[str, Path] = field(default_factory=dict)
    on_hub: bool = False

    def folder(self, reference: ModelReference, *names: str) -> Path | None:
        """Return the folder of a model that the file or the user names, if there is one."""
        path = reference.model.path
        for name in (*names, path, str(reference)):
            if name in self.given:
                return self.given[name]
        here = None if self.root is None or is_windows(path) else self.root / path
        return here if here is not None and here.is_dir() else None

    def layer_count(self, reference: ModelReference, *names: str) -> int | None:
        """Return a model's number of layers, if its configuration is on this machine."""
        folder = self.folder(reference, *names)
        path, revision = reference.model.path, reference.model.revision
        try:
            if folder is None and self.on_hub and MODEL_ID.fullmatch(path):
                config = hub.cached(path, revision, CONFIG)
                folder = config.parent if config is not None else None
            return None if folder is None else _facts_in(folder).layers
        except (CheckpointError, RuleError):
            return None

    def vocabulary(self, reference: ModelReference, *names: str) -> Mapping[str, int] | None:
        """Return a model's tokens and their numbers, if its tokenizer is available."""
        folder = self.folder(reference, *names)
        path, revision = reference.model.path, reference.model.revision
        try:
            if folder is None and self.on_hub and MODEL_ID.fullmatch(path):
                folder = hub.snapshot(path, revision, TOKENIZER_FILES)
            vocabulary = None if folder is None else read_vocabulary(folder)
        except CheckpointError:
            return None
        return None if vocabulary is None else vocabulary.ids

    def dtype(self, reference: ModelReference, *names: str) -> str | None:
        """Return the dtype in a model's configuration, if it is in a folder here."""
        folder = self.folder(reference, *names)
        try:
            config = read_object(folder / CONFIG, "C103", duplicate=None) if folder else {}
        except CheckpointError:
            return None
        dtype = config.get("dtype") or config.get("torch_dtype")
        return dtype if isinstance(dtype, str) else None


def is_windows(path: str) -> bool:
    """Return whether a path is a Windows path: it has a drive or backslashes."""
    return bool(re.match(r"[A-Za-z]:[\\/]", path)) or "\\" in path


@final
class Base:
    """The base of a file; its configuration is read when it is first needed."""

    def __init__(
        self, reference: ModelReference, folders: ModelFolders, given_layers: int | None
    ) -> None:
        self.reference, self.folders, self.given_layers = reference, folders, given_layers
        self.why_unknown = "its folder is unknown"

    @cached_property
    def facts(self) -> ModelFacts | None:
        """Its configuration's facts; without them None, and the reason in `why_unknown`."""
        folder = self.folders.folder(self.reference, "base")
        try:
            if folder is not None:
                return _facts_in(folder)
            path, revision = self.reference.model.path, self.reference.model.revision
            if self.folders.on_hub and MODEL_ID.fullmatch(path):
                return _facts_on_hub(path, revision)
            if self.folders.root is not None and path.startswith((".", "/", "~")):
                self.why_unknown = f"there is no folder {path} here"
        except (CheckpointError, RuleError) as error:
            self.why_unknown = error.message if isinstance(error, CheckpointError) else str(error)
        return None

    @property
    def layers(self) -> int | None:
        """Its number of layers, from its configuration, or else from the user."""
        return self.given_layers if self.facts is None else self.facts.layers


def _facts_in(folder: Path) -> ModelFacts:
    """Return a model's facts from its weights' headers, or else from its configuration alone."""
    try:
        return _facts_of_checkpoint(open_checkpoint(folder))
    except CheckpointError:
        if not (folder / CONFIG).exists():
            raise
    return _facts_of_config(read_object(folder / CONFIG, "C103", duplicate=None))


def _facts_of_checkpoint(checkpoint: Checkpoint) -> ModelFacts:
    family = family_for(checkpoint.config.get("model_type"), (), checkpoint.folder)
    layout = replace(checkpoint, family=family).layout()
    if isinstance(layout, Refusal):
        raise RuleError(layout.reason)
    places = (place_in(layout.prefix, name) for name in checkpoint.tensors)
    tensors = [at[1] for at in places if at is not None and at[0] < layout.count]
    names = _names_from(layout.family, checkpoint.config, layout.model_type, tensors)
    return ModelFacts(layout.count, layout.tied, names, layout.model_type, layout.wrapped)


def _facts_of_config(config: Mapping[str, Any]) -> ModelFacts:
    model_type = str(config.get("model_type"))
    family = FAMILY_OF.get(model_type)
    if family is None:
        raise RuleError(f"gptailor can't recognise model type '{model_type}' by its configuration")
    count, tied = layer_count(family, config), is_tied(config, family)
    return ModelFacts(count, tied, _names_by_type(config), model_type, model_type in WRAPPERS)


def _facts_on_hub(path: str, revision: str | None) -> ModelFacts:
    """Return a model's facts from its configuration, or from its headers if that isn't enough."""
    cached = hub.cached(path, revision, CONFIG)
    folder = (cached or hub.snapshot(path, revision, [CONFIG]) / CONFIG).parent
    with suppress(RuleError):
        if (facts := _facts_in(folder)).names is not None:
            return facts
    return _facts_of_checkpoint(hub.open_hub(path, revision)[0])
