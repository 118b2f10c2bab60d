"""What a configuration says of each layer by its position, and how that moves with the layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.checkpoint.files import LONGEST_QUOTED
from gptailor.plan.plan import Part

Config = Mapping[str, Any]
LayerEntry = Mapping[str, Any]
"""What one layer's configuration is: a value for the name of each rule."""

FULL, SLIDING = "full_attention", "sliding_attention"
DENSE, SPARSE = "dense", "sparse"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something can't be said of a model or written into its configuration."""

    reason: str


Values = Sequence[Any]
Read = Callable[[Config, int], list[Any] | Refusal]
Write = Callable[[Config, Values], dict[str, Any] | Refusal]


@dataclass(frozen=True)
class LayerRule:
    """One thing that a configuration says by position: its name, and the part that it is about.

    `read` makes a list with one value for each layer of a configuration that has that many;
    `write` makes the configuration whose layers, in order, have these values.
    """

    name: str
    part: Part
    read: Read
    write: Write


def shown(value: object) -> str:
    """A value of a configuration in a message: a long one is cut."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTED else f"{text[:LONGEST_QUOTED]}…"


# ------------------------------------------------------------------------------------------- lists


def listed_per_layer(key: str, part: Part) -> LayerRule:
    """A list with an entry a layer, where the model reads it but doesn't need it."""

    def write(config: Config, values: Values) -> dict[str, Any] | Refusal:
        if config.get(key) is None:
            return dict(config)
        if (missing := _missing(key, values)) is not None:
            return missing
        return {**config, key: list(values)}

    return LayerRule(key, part, lambda config, count: _list(config, key, count), write)


def derived(
    key: str, part: Part, derive: Read, *, replaces: tuple[str, ...] = (), keep: Write | None = None
) -> LayerRule:
    """A list with an entry a layer that older configurations leave to a rule of positions.

    It is written out, and the keys of the rule that it `replaces` are left out. `keep` makes a
    rule that can't be left out agree with the list where it can.
    """

    def read(config: Config, count: int) -> list[Any] | Refusal:
        return derive(config, count) if config.get(key) is None else _list(config, key, count)

    def write(config: Config, values: Values) -> dict[str, Any] | Refusal:
        if (missing := _missing(key, values)) is not None:
            return missing
        out = {name: value for name, value in config.items() if name not in replaces}
        out[key] = list(values)
        return keep(out, values) if keep else out

    return LayerRule(key, part, read, write)


def _list(config: Config, key: str, count: int) -> list[Any] | Refusal:
    values = config.get(key)
    if values is None:
        return [None] * count
    if not isinstance(values, list | tuple) or len(values) != count:
        has = (
            f"has {len(values)} entries"
            if isinstance(values, list | tuple)
            else f"is {shown(values)}"
        )
        return Refusal(f"'{key}' {has}, and the model has {count} layers")
    return list(values)


def _missing(key: str, values: Values) -> Refusal | None:
    if None not in values:
        return None
    return Refusal(f"'{key}' has no entry for the layer that would be L{values.index(None)}")


def _number(config: Config, key: str, default: int, least: int = 0) -> int | Refusal:
    value = config.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    return Refusal(f"'{key}' is {shown(value)}, and should be an integer from {least} up")


# ------------------------------------------------------------------------------- sliding attention


def alternating(period: int, key: str | None = None) -> Read:
    """Every layer slides but each `period`-th; a configuration may say another period by `key`."""

    def derive(config: Config, count: int) -> list[Any] | Refusal:
        every = _number(config, key, period, least=1) if key else period
        if isinstance(every, Refusal):
            return every
        return [SLIDING if (i + 1) % every else FULL for i in range(count)]

    return derive


def after_full_ones(config: Config, count: int) -> list[Any] | Refusal:
    """Qwen 2 and 3: the first `max_window_layers` are full, the others slide."""
    first = _number(config, "max_window_layers", 28)
    if isinstance(first, Refusal):
        return first
    slides = _window(config, gated=True, default=4096) is not None
    return [SLIDING if slides and i >= first else FULL for i in range(count)]


def even_below_bound(config: Config, count: int) -> list[Any] | Refusal:
    """Qwen 2 MoE: every other layer below `max_window_layers` slides."""
    bound = _number(config, "max_window_layers", 28)
    if isinstance(bound, Refusal):
        return bound
    slides = bool(config.get("use_sliding_window", False))
    return [SLIDING if slides and i % 2 == 0 and i < bound else FULL for i in range(count)]


def without_rotation(config: Config, count: int) -> list[Any] | Refusal:
    """SmolLM 3: a layer without rotary embeddings slides, if any does."""
    rotates = ROTATION.read(config, count)
    if isinstance(rotates, Refusal):
        return rotates
    slides = _window(config, gated=True, default=None) is not None
    return [SLIDING if slides and not rotate else FULL for rotate in rotates]


def keep_max_window_layers(config: Config, values: Values) -> dict[str, Any]:
    """Say the list by `max_window_layers` too, for readers that don't know `layer_types`."""
    full = list(values).index(SLIDING) if SLIDING in values else len(values)
    if SLIDING in values and FULL not in values[full:]:
        return {**config, "max_window_layers": full}
    return dict(config)


def sliding(
    types: LayerRule, *, gated: bool = False, default: int | None = 4096
) -> tuple[LayerRule, LayerRule]:
    """The types of attention, and the window of the layers that slide: one width a model.

    In a `gated` family the window counts only where `use_sliding_window` is set.
    """

    def read(config: Config, count: int) -> list[Any] | Refusal:
        kinds = types.read(config, count)
        if isinstance(kinds, Refusal):
            return kinds
        window = _window(config, gated=gated, default=default)
        if window is not None and not isinstance(window, int | float):
            return Refusal(f"'sliding_window' is {shown(window)}, and should be a number")
        return [window if kind == SLIDING else None for kind in kinds]

    def write(config: Config, values: Values) -> dict[str, Any] | Refusal:
        widths = sorted({value for value in values if value is not None})
        if not widths:
            return dict(config)
        if len(widths) > 1:
            return Refusal(
                "'sliding_window' is one number for all layers, and these layers have windows of "
                + " and ".join(map(str, widths))
            )
        gate = {"use_sliding_window": True} if gated else {}
        return {**config, **gate, "sliding_window": widths[0]}

    return types, LayerRule("sliding_window", "attn", read, write)


def _window(config: Config, *, gated: bool, default: int | None) -> object:
    """What is said of the window, of whatever type; None: no layer has one."""
    if gated and not config.get("use_sliding_window", False):
        return None
    return config.get("sliding_window", default)


# ------------------------------------------------------------------------------- rotary embeddings


def _every_fourth_has_none(config: Config, count: int) -> list[Any] | Refusal:
    every = _number(config, "no_rope_layer_interval", 4, least=1)
    if isinstance(every, Refusal):
        return every
    return [int((i + 1) % every != 0) for i in range(count)]


ROTATION = derived("no_rope_layers", "attn", _every_fourth_has_none)
"""SmolLM 3: 1 for a layer with rotary embeddings, despite the key's name."""

# ------------------------------------------------------------------------------ mixtures of experts


def sparse_steps(experts: int) -> LayerRule:
    """Qwen MoE: each `decoder_sparse_step`-th layer is sparse, but those of `mlp_only_layers`."""

    def read(config: Config, count: int) -> list[Any] | Refusal:
        step = _number(config, "decoder_sparse_step", 1, least=1)
        if isinstance(step, Refusal):
            return step
        dense = config.get("mlp_only_layers") or []
        if not isinstance(dense, list | tuple):
            return Refusal(f"'mlp_only_layers' is {shown(dense)}, and should be a list")
        has = bool(config.get("num_experts", config.get("num_local_experts", experts)))
        return [
            SPARSE if has and i not in dense and (i + 1) % step == 0 else DENSE
            for i in range(count)
        ]

    def write(config: Config, values: Values) -> dict[str, Any] | Refusal:
        if (missing := _missing("mlp_only_layers", values)) is not None:
            return missing
        dense = [i for i, value in enumerate(values) if value == DENSE]
        return {**config, "mlp_only_layers": dense, "decoder_sparse_step": 1}

    return LayerRule("mlp", "mlp", read, write)


def dense_first(default: int) -> LayerRule:
    """DeepSeek: the first `first_k_dense_replace` layers are dense, the others sparse."""

    def read(config: Config, count: int) -> list[Any] | Refusal:
        first = _number(config, "first_k_dense_replace", default)
        if isinstance(first, Refusal):
            return first
        if (every := config.get("moe_layer_freq", 1)) != 1:
            return Refusal(f"'moe_layer_freq' is {shown(every)}, which transformers doesn't read")
        return [DENSE if i < first else SPARSE for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any] | Refusal:
        first = list(values).index(SPARSE) if SPARSE in values else len(values)
        for i, value in enumerate(values):
            if value != (DENSE if i < first else SPARSE):
                return Refusal(
                    "'first_k_dense_replace' makes the first layers dense and all others sparse, "
                    f"and a dense layer would be L{i}, after the sparse L{first}"
                )
        return {**config, "first_k_dense_replace": first}

    return LayerRule("mlp", "mlp", read, write)


# --------------------------------------------------------------------------------- what can't move


def in_place(key: str, what: str) -> LayerRule:
    """A switch that makes a layer compute with its own number: a layer stays where it is."""

    def read(config: Config, count: int) -> list[Any] | Refusal:
        return list(range(count)) if config.get(key) else [None] * count

    def write(config: Config, values: Values) -> dict[str, Any] | Refusal:
        for i, value in enumerate(values):
            if config.get(key) and value is None:
                return Refusal(f"'{key}' is set for all layers, and L{i}'s own model has it unset")
            if value is not None and (value != i or not config.get(key)):
                return Refusal(f"'{key}' {what}, and L{value} would be L{i}")
        return dict(config)

    return LayerRule(key, "attn", read, write)
