"""The configuration of a LoRA adapter; a setting that isn't understood is refused."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gptailor.checkpoint.files import LONGEST_QUOTED, CheckpointError, may_hang, quoted, read_object
from gptailor.plan.faults import nearest
from gptailor.plan.plan import Several

ADAPTER_CONFIG = "adapter_config.json"

_FOR_TRAINING = {
    "auto_mapping", "corda_config", "eva_config", "inference_mode",
    "loftq_config", "lora_dropout", "lora_dtype", "lora_ga_config", "lorap_emb_lr",
    "lorap_lr_ratio", "megatron_config", "megatron_core", "merge_weights", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type", "unsloth_fixed",
    "fan_in_fan_out",  # whether a weight is stored so is known from the model, as PEFT does it
}  # fmt: skip
"""Settings that don't change a trained adapter's effect on a model."""

_REFUSED = {
    "alora_invocation_tokens": "an activated LoRA changes only some tokens, which weights can't do",
    "arrow_config": "Arrow chooses an adapter for each token, which weights can't do",
    "enable_lora": "the parts of a fused projection are adapted apart",
    "kasa_config": "KaSA also changes the base's weights",
    "layer_replication": "the adapter is for a stack of repeated layers",
    "monteclora_config": "MonteCLoRA's deltas are drawn at random",
    "target_parameters": "deltas of parameters that aren't a layer's weight (fused experts) can't "
    "be applied yet",
    "use_bdlora": "block-diagonal deltas can't be applied yet",
    "use_qalora": "QALoRA's deltas are for the pooled inputs of quantised layers",
    "velora_config": "VeLoRA's adapters can't be applied yet",
}

_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Ways to start the training that leave the base unchanged, apart from true and false."""

_RESIDUAL_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways that take something out of the base, so that the deltas are for the remainder."""


def _different(tokens: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(tokens)) < len(tokens):
        raise ValueError("a token is given twice")
    return tokens


_Number = TypeVar("_Number", int, float)
_Rank = Annotated[int, Field(gt=0, lt=2**31)]
_Count = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(min_length=1)]
_Tokens = Annotated[Several[_Count], AfterValidator(_different)]


@final
class LoraSettings(BaseModel):
    """The settings of a LoRA that decide the effect of its tensors, by PEFT's names.

    A field's description is its expected form, for messages.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    base_model_name_or_path: str = Field("", description="a text")
    r: _Rank = Field(8, description="a whole number above 0")
    lora_alpha: float = Field(8.0, description="a finite number")
    rank_pattern: dict[str, _Rank] = Field({}, description="an object of whole numbers above 0")
    alpha_pattern: dict[str, float] = Field({}, description="an object of finite numbers")
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="'none', 'all' or 'lora_only'"
    )
    use_rslora: bool = Field(False, description="true or false")
    use_dora: bool = Field(False, description="true or false")
    lora_bias: bool = Field(False, description="true or false")
    ensure_weight_tying: bool = Field(False, description="true or false")
    modules_to_save: str | Several[_Name] = Field((), description="a list of names")
    target_modules: str | Several[_Name] = Field((), description="a list of names")
    exclude_modules: str | Several[_Name] = Field((), description="a list of names")
    layers_to_transform: _Count | Several[_Count] | None = Field(
        None, description="a layer's number, or a list of them"
    )
    layers_pattern: str | Several[_Name] = Field((), description="a list of names")
    trainable_token_indices: _Tokens | dict[str, _Tokens] = Field(
        (), description="a list of different tokens, or one for each embedding"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Drop settings that are null, except where that may be a mistake."""
        return {
            key: value
            for key, value in settings.items()
            if value is not None or key in ("r", "lora_alpha", "bias")
        }

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's delta."""
        return _first(self.rank_pattern, module, self.r)

    def scale_of(self, module: str) -> float:
        """Return the factor of a module's b @ a."""
        rank = self.rank_of(module)
        alpha = _first(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def saves(self, name: str) -> bool:
        """Return whether the tensor belongs to one of the modules to save, as PEFT matches them."""
        saved = self.modules_to_save
        parts = name.split(".")[:-1]
        modules = [".".join(parts[: n + 1]) for n in range(len(parts))]
        return bool(saved) and any(module.endswith(saved) for module in modules)

    def leaving_out(self, module: str) -> str | None:
        """Return the setting by which PEFT reads no delta for a module; None if it reads one."""
        targets, excluded = self.target_modules, self.exclude_modules
        if excluded and _aims(excluded, module):
            return "exclude_modules"
        if any(_pattern(*each).match(module) for each in self.patterns("modules_to_save")):
            return "modules_to_save"
        if isinstance(targets, str) and (
            targets.lower() == "all-linear" or may_hang(targets, len(module))
        ):
            return None  # a pattern that isn't matched here: the file holds the trained modules
        if targets and not _aims(targets, module):
            return "target_modules"
        return None if module in targets or self._in_layers(module) else "layers_to_transform"

    def _in_layers(self, module: str) -> bool:
        """Return whether a module is in one of the layers to transform, as PEFT matches them."""
        wanted = self.layers_to_transform
        if wanted is None or wanted == ():
            return True
        named = [_pattern(*each) for each in self.patterns("layers_pattern")]
        patterns = named or [re.compile(_ANY_LAYER)]
        found = next(filter(None, (pattern.match(module) for pattern in patterns)), None)
        number = found and found["idx"]
        layers = wanted if isinstance(wanted, tuple) else (wanted,)
        return number is not None and int(number) in layers

    def patterns(self, *keys: str) -> Iterator[tuple[str, str]]:
        """Yield these settings, or all, and each regular expression in them."""
        for key in keys or _FORMS:
            value = getattr(self, key)
            if isinstance(value, str) or key not in {"target_modules", "exclude_modules"}:
                names = (value,) if isinstance(value, str) else value
                yield from ((key, name) for name in names if name)

    def slow_patterns(self, longest: int) -> Iterator[tuple[str, str]]:
        """Yield patterns, except of targets, that could be matched for ever with a long name."""
        for key, name in self.patterns():
            around = ".*" * len(re.findall("[*+]", _FORMS[key]))
            if key != "target_modules" and may_hang(name + around, longest):
                yield key, name

    def idle_patterns(self, modules: Collection[str]) -> Iterator[tuple[str, str]]:
        """Yield settings and their patterns that match no module."""
        for key, name in self.patterns("rank_pattern", "alpha_pattern"):
            if not any(map(_pattern(key, name).match, modules)):
                yield key, name

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """Return the trainable tokens of an embedding, or None."""
        setting = self.trainable_token_indices
        by_name = setting if isinstance(setting, dict) else {"": setting} if setting else {}
        return next((tokens for name, tokens in by_name.items() if module.endswith(name)), None)


_FORMS = {
    "rank_pattern": r"(.*\.)?(%s)$",
    "alpha_pattern": r"(.*\.)?(%s)$",
    "modules_to_save": r"(^|.*\.)%s($|\..*)",
    "layers_pattern": r"(?:^|.*?\.)%s\.(?P<idx>\d+)\.",
    "target_modules": "%s",
    "exclude_modules": "%s",
}
"""The patterns with which PEFT matches the names of settings; a whole name for the last two."""
_ANY_LAYER = r".*?\.[^.]*\.(?P<idx>\d+)\."


def _pattern(setting: str, name: str) -> re.Pattern[str]:
    return re.compile(_FORMS[setting] % name)


def _first(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    named = (n for name, n in patterns.items() if _pattern("rank_pattern", name).match(module))
    return next(named, default)


def _aims(names: str | tuple[str, ...], module: str) -> bool:
    """Return whether a pattern is one of a whole module, or a list has its name or its end."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_settings(folder: Path) -> LoraSettings:
    """Return the settings of the adapter in a folder.

    Raises CheckpointError: C401 for missing or wrong ones, C402 for ones that aren't understood.
    """
    path = folder / ADAPTER_CONFIG
    config = read_object(path, "C401", duplicate=None)
    for code, message, help_ in _not_understood(config):
        raise CheckpointError(code, message, path, help_)
    try:
        settings = LoraSettings.model_validate(config)
    except ValidationError as error:
        key = str(error.errors(include_input=False)[0]["loc"][0])
        should = LoraSettings.model_fields[key].description
        message = f"'{key}': expected {should}, got {quoted(repr(config[key]))}"
        raise CheckpointError("C401", message, path) from error
    for message, help_ in _odd_patterns(settings):
        raise CheckpointError("C401", message, path, help_)
    return settings


def _not_understood(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield a code, a message and help for settings that can't be applied or aren't known."""
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        yield "C401", "has no 'peft_type', so it isn't an adapter's configuration", ""
    elif kind != "LORA":
        yield "C402", f"expected a LoRA adapter, got the kind {quoted(kind)}", ""
    names = {*LoraSettings.model_fields, "peft_type", "init_lora_weights", *_FOR_TRAINING}
    for key, value in config.items():
        if value and key in _REFUSED:
            yield "C402", f"'{key}' is set: {_REFUSED[key]}", ""
        elif value and key not in names:
            message = f"{quoted(key)} is an unknown setting"
            likely = nearest(key[:LONGEST_QUOTED], names)
            yield "C402", message, likely or "remove it if it is only for training"
    start = config.get("init_lora_weights", True)
    name = start.lower() if isinstance(start, str) else ""
    if name.startswith(_RESIDUAL_STARTS):
        message = (
            f"'init_lora_weights' is {quoted(name)}: the deltas are for what this start left "
            "of the base's weights, not for the base"
        )
        yield (
            "C402",
            message,
            "save the adapter with PEFT's path_initial_model_for_weight_conversion",
        )
    elif name not in _PLAIN_STARTS and not (start is None or isinstance(start, bool)):
        shown = quoted(str(start))
        yield "C402", f"'init_lora_weights' is {shown}, which is unknown", ""


def _odd_patterns(settings: LoraSettings) -> Iterator[tuple[str, str]]:
    """Yield messages and help for invalid patterns, and for layers with a pattern of targets."""
    for key, name in settings.patterns():
        try:
            _pattern(key, name)
        except (re.error, RecursionError, OverflowError) as error:
            yield f"'{key}': expected a regular expression, got {quoted(name)}: {error}", ""
    if isinstance(settings.target_modules, str) and settings.layers_to_transform is not None:
        message = "'layers_to_transform' needs a list of 'target_modules', but it is a pattern"
        yield message, "name the layers in the pattern"
