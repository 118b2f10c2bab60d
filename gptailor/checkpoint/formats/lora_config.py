"""What a LoRA adapter's configuration says; whatever it says that isn't understood is refused."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gptailor.checkpoint.files import LONGEST_QUOTED, CheckpointError, quoted, read_object
from gptailor.plan.faults import nearest

ADAPTER_CONFIG = "adapter_config.json"

_READ = {
    "alpha_pattern", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "init_lora_weights", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save",
    "peft_type", "r", "rank_pattern", "target_modules", "trainable_token_indices", "use_dora",
    "use_rslora",
}  # fmt: skip

_FOR_TRAINING = {
    "auto_mapping", "corda_config", "eva_config", "inference_mode", "layers_pattern",
    "loftq_config", "lora_dropout", "lora_dtype", "lora_ga_config", "lorap_emb_lr",
    "lorap_lr_ratio", "megatron_config", "megatron_core", "merge_weights", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "task_type", "unsloth_fixed",
    "fan_in_fan_out",  # whether a weight is stored so is known from the model, as PEFT does it
}  # fmt: skip
"""Settings that change nothing in what a trained adapter does to a model."""

_REFUSED = {
    "alora_invocation_tokens": "an activated LoRA acts on some tokens only, and no weights do that",
    "arrow_config": "Arrow chooses among adapters token by token, and no weights do that",
    "enable_lora": "the parts of a fused projection are adapted apart",
    "kasa_config": "KaSA cuts the weights of its base",
    "layer_replication": "the adapter is for a stack of repeated layers",
    "monteclora_config": "MonteCLoRA's deltas are drawn at random",
    "target_parameters": "deltas of parameters that are no layer's weight (fused experts) can't "
    "be applied yet",
    "use_bdlora": "block-diagonal deltas can't be applied yet",
    "use_qalora": "QALoRA's deltas are for the pooled inputs of quantised layers",
    "velora_config": "VeLoRA's adapters can't be applied yet",
}

_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Ways to start the training that leave the base as it is, apart from true and false."""

_RESIDUAL_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways that take something out of the base, so that the deltas are for what was left of it."""

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class LoraSettings:
    """The settings of a LoRA that say what its tensors do.

    `targets` and `excluded` are None where they are no list of names. `tokens` are the trainable
    tokens by the name of their embedding, "" for the only one.
    """

    path: Path
    base: str
    rank: int
    alpha: float
    ranks: tuple[tuple[re.Pattern[str], int], ...]
    alphas: tuple[tuple[re.Pattern[str], float], ...]
    rslora: bool
    dora: bool
    lora_bias: bool
    ties: bool
    saved: tuple[str, ...]
    targets: tuple[str, ...] | None
    excluded: tuple[str, ...] | None
    layers: frozenset[int] | None
    tokens: Mapping[str, tuple[int, ...]]

    def rank_of(self, module: str) -> int:
        """The rank of a module's delta."""
        return _first(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What a module's b @ a is multiplied by."""
        rank = self.rank_of(module)
        return _first(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def saves(self, name: str) -> bool:
        """Whether the tensor belongs to one of the modules to save, as PEFT matches them."""
        if not self.saved:
            return False
        parts = name.split(".")[:-1]
        modules = [".".join(parts[: n + 1]) for n in range(len(parts))]
        return any(module.endswith(self.saved) for module in modules)

    def aims_at(self, module: str) -> bool:
        """Whether the lists of targets name this module."""
        if self.targets is None or self.excluded is None:
            return False
        return _named(module, self.targets) and not _named(module, self.excluded)

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """The trainable tokens of an embedding."""
        found = (tokens for name, tokens in self.tokens.items() if module.endswith(name))
        return next(found, None)


def _first(
    patterns: tuple[tuple[re.Pattern[str], _Number], ...], module: str, default: _Number
) -> _Number:
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def _named(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def read_settings(folder: Path) -> LoraSettings:
    """The settings of the adapter in a folder. C401: none, or wrong; C402: not understood."""
    path = folder / ADAPTER_CONFIG
    config = read_object(path, "C401", duplicate=None)
    read = _Reader(path, config)
    read.check_kind()
    return LoraSettings(
        path=path,
        base=read.text("base_model_name_or_path"),
        rank=read.rank("r", config.get("r", 8)),
        alpha=read.number("lora_alpha", config.get("lora_alpha", 8)),
        ranks=tuple(read.patterns("rank_pattern", read.rank)),
        alphas=tuple(read.patterns("alpha_pattern", read.number)),
        rslora=read.flag("use_rslora"),
        dora=read.flag("use_dora"),
        lora_bias=read.flag("lora_bias"),
        ties=read.flag("ensure_weight_tying"),
        saved=read.names("modules_to_save") or (),
        targets=read.names("target_modules", regex=True),
        excluded=read.names("exclude_modules", regex=True),
        layers=read.layers(),
        tokens=read.tokens(),
    )


@dataclass(frozen=True)
class _Reader:
    """One configuration, read setting by setting."""

    path: Path
    config: Mapping[str, Any]

    def refuse(self, code: str, message: str, help: str = "") -> NoReturn:
        raise CheckpointError(code, message, self.path, help)

    def wrong(self, key: str, value: object, should: str) -> NoReturn:
        self.refuse("C401", f"'{key}' is {quoted(repr(value))}, and should be {should}")

    def check_kind(self) -> None:
        """A LoRA, with nothing that we don't understand."""
        kind = self.config.get("peft_type")
        if not isinstance(kind, str):
            self.refuse("C401", "names no 'peft_type', so it is no adapter's configuration")
        if kind != "LORA":
            message = f"the adapter is of the kind {quoted(kind)}, and only LoRA can be applied"
            self.refuse("C402", message)
        for key, value in self.config.items():
            self._check_known(key, value)
        self._check_start(self.config.get("init_lora_weights", True))
        bias = self.config.get("bias", "none")
        if bias not in ("none", "all", "lora_only"):
            self.wrong("bias", bias, "'none', 'all' or 'lora_only'")

    def _check_known(self, key: str, value: object) -> None:
        if not value or key in _READ or key in _FOR_TRAINING:
            return
        if key in _REFUSED:
            self.refuse("C402", f"'{key}' is set: {_REFUSED[key]}")
        message = f"{quoted(key)} is a setting that this version doesn't know"
        help_ = (
            nearest(key[:LONGEST_QUOTED], _READ | _FOR_TRAINING)
            or "remove it if it only concerns the training"
        )
        self.refuse("C402", message, help_)

    def _check_start(self, start: object) -> None:
        if start is None or isinstance(start, bool):
            return
        name = start.lower() if isinstance(start, str) else ""
        if name in _PLAIN_STARTS:
            return
        if name.startswith(_RESIDUAL_STARTS):
            message = (
                f"'init_lora_weights' is {quoted(name)}: the deltas are for what this start left "
                "of the base's weights, not for the base"
            )
            help_ = "save it with PEFT's path_initial_model_for_weight_conversion"
            self.refuse("C402", message, help_)
        shown = quoted(str(start))
        self.refuse("C402", f"'init_lora_weights' is {shown}, which this version doesn't know")

    # ------------------------------------------------------------------------------ one setting

    def text(self, key: str) -> str:
        value = self.config.get(key) or ""
        if not isinstance(value, str):
            self.wrong(key, value, "a text")
        return value

    def flag(self, key: str) -> bool:
        value = self.config.get(key) or False
        if not isinstance(value, bool):
            self.wrong(key, value, "true or false")
        return value

    def number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(key, value, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.wrong(key, value, "a finite number")
        return number

    def rank(self, key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            self.wrong(key, value, "a whole number above 0")
        return value

    def patterns(
        self, key: str, check: Callable[[str, object], _Number]
    ) -> Iterator[tuple[re.Pattern[str], _Number]]:
        given = self.config.get(key) or {}
        if not isinstance(given, dict):
            self.wrong(key, given, "an object")
        for name, value in given.items():
            try:
                pattern = re.compile(rf"(.*\.)?({name})$")
            except (re.error, RecursionError, OverflowError) as error:
                message = f"'{key}' has {quoted(name)}, which is no pattern: {error}"
                raise CheckpointError("C401", message, self.path) from error
            if _may_hang(name):
                message = f"'{key}' has {quoted(name)}, a pattern that could be matched for ever"
                self.refuse("C402", message, "write it with less to repeat, or as plain names")
            yield pattern, check(key, value)

    def names(self, key: str, *, regex: bool = False) -> tuple[str, ...] | None:
        """A list of names; None for a pattern, where one is allowed."""
        given = self.config.get(key) or []
        if isinstance(given, str):
            if regex:
                return None
            given = [given]
        if not isinstance(given, list) or not all(isinstance(n, str) and n for n in given):
            self.wrong(key, given, "a list of names")
        return tuple(given)

    def layers(self) -> frozenset[int] | None:
        given = self.config.get("layers_to_transform")
        if given is None or given == []:
            return None
        numbers = given if isinstance(given, list) else [given]
        if not all(_is_count(number) for number in numbers):
            self.wrong("layers_to_transform", given, "a layer's number, or a list of them")
        return frozenset(numbers)

    def tokens(self) -> dict[str, tuple[int, ...]]:
        key = "trainable_token_indices"
        given = self.config.get(key) or {}
        by_name = {"": given} if isinstance(given, list) else given
        if not isinstance(by_name, dict):
            self.wrong(key, given, "a list of tokens, or one for each embedding")
        for tokens in by_name.values():
            if not isinstance(tokens, list) or not all(_is_count(token) for token in tokens):
                self.wrong(key, given, "a list of tokens, or one for each embedding")
            if len(set(tokens)) < len(tokens):
                self.refuse("C401", f"'{key}' names a token twice")
        return {name: tuple(tokens) for name, tokens in by_name.items()}


def _may_hang(pattern: str) -> bool:
    """Whether matching may take ages: for what is repeated within a repetition, or too often."""
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL).replace("(?:", "(")
    repeats = len(re.findall(r"[*+?{]", bare))
    return ")*" in bare or ")+" in bare or "){" in bare or repeats > 2 or bare.count("(") > 4


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
