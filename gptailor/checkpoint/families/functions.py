"""Functions of the few families that a rule of their file can't describe, by name.

`READERS` read a key that must agree, from a configuration, the key and its default. `RULES` are
pairs: one reads a setting of each layer, the other writes it. `lettered_layers` lists all layers.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

from gptailor.checkpoint.families.layer_config import (
    DENSE,
    FULL,
    LINEAR,
    SLIDING,
    SPARSE,
    Config,
    Rotary,
    RuleError,
    Values,
    complete,
    current_name,
    int_of,
    window,
)
from gptailor.checkpoint.files import shown


@final
class Stated(NamedTuple):
    """A rule's name, key and values of a missing key, and the values of its rule."""

    name: str
    key: str
    absent: tuple[Any, ...]
    others: Callable[[Config, int], list[Any]]


# ---------------------------------------------------------------------------- keys that must agree


def _gelu(config: Config, key: str, default: Any) -> Any:
    """Read gemma's activation: its first configurations mean the approximation by `gelu`."""
    act = config.get(key, default)
    return "gelu_pytorch_tanh" if act == "gelu" else act


def _head_width(config: Config, key: str, hidden: int, heads: int) -> Any:
    """Read the width of a head; without one, the hidden state's over the number of heads."""
    width = config.get(key)
    hidden, heads = config.get("hidden_size", hidden), config.get("num_attention_heads", heads)
    derived = width is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0
    return hidden // heads if derived else width


def _head_scale(config: Config, key: str, default: Any) -> Any:
    """Read hyperclovax's factor; without one, a head's width to the power of -1/2."""
    if (multiplier := config.get(key)) is not None:
        return multiplier
    width = _head_width(config, "head_dim", 4096, 32)
    return width**-0.5 if isinstance(width, int) and width > 0 else default


def _object_in(config: Config, *keys: str) -> Mapping[str, Any]:
    """Return the value of the first of these keys that is set, or an empty object."""
    value = next((config[key] for key in keys if config.get(key)), None)
    return value if isinstance(value, Mapping) else {}


def _settings(config: Config, key: str, default: Any) -> Any:
    """Read the settings of an object that change arithmetic: dbrx, mpt."""
    settings = _object_in(config, key)
    return {name: settings.get(name, absent) for name, absent in default.items()}


def _partly_rotated(config: Config, key: str, default: Any) -> Any:
    """Read minimax_m2's rotary embeddings: `rotary_dim` of a head's dimensions rotate."""
    turning, size = config.get("rotary_dim"), config.get("head_dim", 128)
    if turning is not None and "partial_rotary_factor" not in config:
        config = {**config, "partial_rotary_factor": turning / size}
    return Rotary().read(config, default)


def _sections(config: Config, key: str, default: Any) -> Any:
    """Read the numbers of rotations along time, height and width: qwen2_vl_text and its like.

    A model of text alone has no such key.
    """
    return _object_in(config, "rope_scaling", "rope_parameters").get(key, default)


def _state_rank(config: Config, key: str, default: Any) -> Any:
    """Read the rank of time steps, a 16th of the width if it is `auto`: mamba, jamba."""
    rank, hidden = config.get(key, default), config.get("hidden_size")
    return -(-hidden // 16) if rank == "auto" and isinstance(hidden, int) else rank


def _time_steps(config: Config, key: str, default: Any) -> Any:
    """Read the limits of time steps; JSON lacks their infinity: mamba2, bamba, falcon_h1."""
    limits = config.get(key, default)
    ends = default if limits is None else limits
    ends = [end.get("__float__") if isinstance(end, Mapping) else end for end in ends]
    return ["Infinity" if end == math.inf else end for end in ends]


def _of_heads(config: Config, key: str, default: Any) -> Any:
    """Read olmo_hybrid's numbers of linear heads, by default the numbers of attention heads."""
    own = config.get(key)
    return config.get("num_attention_heads", default) if own is None else own


_KIMI = {
    "linear_head_dim": "head_dim",
    "linear_num_heads": "num_heads",
    "linear_conv_kernel_dim": "short_conv_kernel_size",
}
"""Keys of kimi_linear that its checkpoints have in an object of its own, by other names."""


def _kimi(config: Config, key: str, default: Any) -> Any:
    return _object_in(config, "linear_attn_config").get(_KIMI[key], config.get(key, default))


def _residual_scale(config: Config, count: int) -> float:
    """Return minicpm3's factor of a branch, which depends on how many layers there are."""
    depth = config.get("scale_depth", 1.4)
    if depth is None:
        return 1.0
    if type(depth) not in {int, float}:
        raise RuleError(f"'scale_depth' is {shown(depth)}, expected a number")
    return float(f"{depth / math.sqrt(count):.12g}")  # the same again where it was solved for


def _own_scale(config: Config, key: str, default: Any) -> Any:
    count = config.get("num_hidden_layers", 62)
    return _residual_scale(config, count) if isinstance(count, int) and count > 0 else None


READERS: Mapping[str, Callable[[Config, str, Any], Any]] = {
    "gelu": _gelu,
    "gated_window": lambda config, key, default: window(config, gated=True, default=default),
    "head_scale": _head_scale,
    "if_set": lambda config, key, default: config.get(key) or default,
    "kimi": _kimi,
    "of_heads": _of_heads,
    "own_scale": _own_scale,
    "partly_rotated": _partly_rotated,
    "sections": _sections,
    "settings": _settings,
    "state_rank": _state_rank,
    "time_steps": _time_steps,
    "value_width": lambda config, key, default: _head_width(config, key, 2560, 40),
    "window": lambda config, key, default: window(config, gated=False, default=default),
}

# ------------------------------------------------------------------------- kinds that are derived


def _even_below_bound(rule: Stated, config: Config, count: int) -> list[Any]:
    """Derive qwen2_moe's kinds: every other layer below `max_window_layers` slides."""
    bound = int_of(config, "max_window_layers", 28)
    slides = bool(config.get("use_sliding_window", False))
    return [SLIDING if slides and i % 2 == 0 and i < bound else FULL for i in range(count)]


def _after_dense(rule: Stated, config: Config, count: int) -> list[Any]:
    """Derive cohere2_moe's kinds: the first dense layers have windows of a pattern of their own."""
    first = int_of(config, "first_k_dense_replace", 0)
    inner = int_of(config, "prefix_dense_sliding_window_pattern", 1, least=1)
    outer = int_of(config, "sliding_window_pattern", 4, least=1)
    steps = [(i + 1) % inner if i < first else (i - first + 1) % outer for i in range(count)]
    return [SLIDING if step else FULL for step in steps]


def _chunked(rule: Stated, config: Config, count: int) -> list[Any]:
    """Derive llama4_text's kinds: layers with rotary embeddings attend within chunks."""
    chunks = config.get("attention_chunk_size", 8192) is not None
    rotates = rule.others(config, count)
    return ["chunked_attention" if chunks and turns else FULL for turns in rotates]


def _without_rotation(rule: Stated, config: Config, count: int) -> list[Any]:
    """Derive smollm3's kinds: layers without rotary embeddings slide, if any layer does."""
    slides = window(config, gated=True, default=None) is not None
    rotates = rule.others(config, count)
    return [SLIDING if slides and not each else FULL for each in rotates]


def _some_attend(rule: Stated, config: Config, count: int) -> list[Any]:
    """Derive olmo_hybrid's kinds: each fourth layer attends; without a fourth, the last one."""
    return [FULL if i % 4 == 3 or i == count - 1 < 3 else LINEAR for i in range(count)]


def _thetas(rule: Stated, config: Config, count: int) -> list[Any]:
    """Derive the bases of layers' rotary embeddings: granite_swa, granitemoe_swa."""
    return [Rotary().read(config, {})["rope_theta"]] * count


def _never(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    """Write nothing: a list has the values."""
    return dict(config)


# ---------------------------------------------------------------------- kinds in forms of their own


def _read_kimi(rule: Stated, config: Config, count: int) -> list[Any]:
    """Read kimi_linear's lists of numbers from 1 up; without them each fourth attends."""
    settings = _object_in(config, "linear_attn_config")
    if "full_attn_layers" not in settings or "kda_layers" not in settings:
        return [FULL if i and i % 4 == 0 else LINEAR for i in range(count)]
    full, linear = settings["full_attn_layers"], settings["kda_layers"]
    if not isinstance(full, list) or not isinstance(linear, list):
        raise RuleError(f"'linear_attn_config' has {shown(full)}, expected a list")
    if sorted([*full, *linear]) != list(range(1, count + 1)):
        raise RuleError("'linear_attn_config' doesn't list each layer exactly once")
    return [FULL if i + 1 in full else LINEAR for i in range(count)]


def _write_kimi(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    settings = dict(_object_in(config, "linear_attn_config"))
    for key, kind in (("full_attn_layers", FULL), ("kda_layers", LINEAR)):
        if key in settings:
            settings[key] = [i + 1 for i, value in enumerate(values) if value == kind]
    return {**config, "linear_attn_config": settings} if settings else dict(config)


def _read_steps(rule: Stated, config: Config, count: int) -> list[Any]:
    """Read Qwen's sparse layers: qwen2_moe, qwen3_moe, qwen3_next, qwen3_vl_moe_text.

    Each `decoder_sparse_step`-th layer is sparse, except the layers in `mlp_only_layers`.
    """
    step = int_of(config, "decoder_sparse_step", 1, least=1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list | tuple):
        raise RuleError(f"'mlp_only_layers' is {shown(dense)}, expected a list")
    has = bool(config.get("num_experts", config.get("num_local_experts", *rule.absent)))
    sparse = [has and i not in dense and (i + 1) % step == 0 for i in range(count)]
    return [SPARSE if each else DENSE for each in sparse]


def _write_steps(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    kinds = complete("mlp_only_layers", values)
    dense = [i for i, kind in enumerate(kinds) if kind == DENSE]
    return {**config, "mlp_only_layers": dense, "decoder_sparse_step": 1}


def _interval(config: Config) -> int:
    return int_of(config, "moe_layer_interval", 1, least=1)


def _spaced(start: int, end: int, step: int, count: int) -> list[Any]:
    sparse = [(i + 1) % step == 0 and start <= i <= end for i in range(count)]
    return [SPARSE if each else DENSE for each in sparse]


def _read_ernie(rule: Stated, config: Config, count: int) -> list[Any]:
    """Read ernie4_5_moe's sparse layers: a start, an end and an interval."""
    start = int_of(config, "moe_layer_start_index", 1)
    end = int_of(config, "moe_layer_end_index", -1, least=-1)
    return _spaced(start, count - 1 if end == -1 else end, _interval(config), count)


def _write_ernie(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    """Write a start, an end and an interval, solved for the new order."""
    kinds, count = complete("moe_layer_start_index", values), len(values)
    sparse = [i for i, value in enumerate(kinds) if value == SPARSE]
    start, end = (sparse[0], sparse[-1]) if sparse else (count, count)
    for step in (_interval(config), *range(1, count + 1)):
        if _spaced(start, end, step, count) == kinds:
            out = {"moe_layer_start_index": start, "moe_layer_end_index": end}
            return {**config, **out, "moe_layer_interval": step}
    which = ", ".join(f"L{i}" for i in sparse)
    raise RuleError(
        "'moe_layer_start_index', 'moe_layer_end_index' and 'moe_layer_interval' can't make only "
        f"{which} sparse"
    )


def _read_each(rule: Stated, config: Config, count: int) -> list[Any]:
    """Read numbers, one for all layers or a list with one for each: hunyuan_v1_moe, laguna."""
    key = rule.key or rule.name
    value = config.get(key, *rule.absent)
    values = value if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise RuleError(f"'{key}' has {len(values)} entries, but the model has {count} layers")
    if not isinstance(value, list | tuple | int):
        raise RuleError(f"'{key}' is {shown(value)}, expected a number or a list")
    return list(values)


def _write_each(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    numbers = complete(rule.name, values)
    alike = len(set(numbers)) == 1 and not isinstance(config.get(rule.name), list)
    return {**config, rule.name: numbers[0] if alike else numbers}


def _read_indexers(rule: Stated, config: Config, count: int) -> list[Any]:
    """Read None for each layer, if each of glm_moe_dsa's layers has an indexer of its own."""
    listed, pattern = config.get("indexer_types"), config.get("index_topk_pattern")
    kinds = pattern if listed is None else listed
    if kinds is None and max(int_of(config, "index_topk_freq", 1), 1) == 1:
        kinds = ["full"] * count
    if not isinstance(kinds, list | tuple | str) or not set(kinds) <= {"full", "F"}:
        key = "indexer_types" if listed is not None else "index_topk_freq"
        value = shown(kinds if kinds is not None else config.get(key))
        raise RuleError(
            f"'{key}' is {value}, where layers use the index of another layer before them"
        )
    return [None] * count


def _write_indexers(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    own = {"indexer_types": ["full"] * len(values), "index_topk_pattern": "F" * len(values)}
    return {**config, **{key: value for key, value in own.items() if config.get(key) is not None}}


def _read_depth(rule: Stated, config: Config, count: int) -> list[Any]:
    return [_residual_scale(config, count)] * count


def _write_depth(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    """Write minicpm3's `scale_depth`, solved for the number of layers."""
    if len(several := sorted(set(values))) > 1:
        raise RuleError(f"a model has one 'scale_depth', but these layers need {several}")
    if config.get("num_hidden_layers") == len(values):
        return dict(config)
    return {**config, "scale_depth": values[0] * math.sqrt(len(values))}


def _full_layers(rule: Stated, config: Config, count: int) -> list[Any]:
    """Return the settings that full layers have of their own where no object states them."""
    own = {"head_dim": config.get("global_head_dim", 512)}
    heads = config.get("num_global_key_value_heads")
    if heads is not None and config.get("attention_k_eq_v", False):
        own["num_key_value_heads"] = heads
    return [own if kind == FULL else {} for kind in rule.others(config, count)]


def _read_shapes(rule: Stated, config: Config, count: int) -> list[Any]:
    """Read settings of single layers by their numbers: gemma4_text, gemma4_unified_text."""
    by_number = config.get("per_layer_config")
    if by_number is None:
        return _full_layers(rule, config, count)
    numbered = isinstance(by_number, Mapping) and all(str(key).isdecimal() for key in by_number)
    if not numbered or not all(int(key) < count for key in by_number):
        raise RuleError(
            f"'per_layer_config' is {shown(by_number)}, not an object of layers' numbers"
        )
    settings = {int(key): value for key, value in by_number.items()}
    return [settings.get(i, {}) for i in range(count)]


def _write_shapes(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    settings = complete("per_layer_config", values)
    by_number = config.get("per_layer_config")
    if by_number is None and _full_layers(rule, config, len(settings)) == settings:
        return dict(config)
    own = {str(i): value for i, value in enumerate(settings) if value}
    return {**config, "per_layer_config": own}


def _read_times(rule: Stated, config: Config, count: int) -> list[Any]:
    """Read gpt_neo's kinds: `[[["global", "local"], 12]]` is both in turn, twelve times."""
    pairs = config.get("attention_types") or [[["global", "local"], 12]]
    try:
        kinds = [kind for names, times in pairs for _ in range(times) for kind in names]
    except (TypeError, ValueError):
        message = f"'attention_types' is {shown(pairs)}, expected lists of types and times"
        raise RuleError(message) from None
    if len(kinds) != count:
        raise RuleError(
            f"'attention_types' has {len(kinds)} layers, but the model has {count} layers"
        )
    return kinds


def _write_times(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    kinds = complete("attention_types", values)
    listed = {"attention_layers": kinds} if "attention_layers" in config else {}
    return {**config, **listed, "attention_types": [[kinds, 1]]}


_SIGNS = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}
"""Kinds of nemotron_h's layers by the letters of a pattern."""


def lettered_layers(config: Config) -> list[Any] | None:
    """Return the kinds of a list or of the older pattern; None without."""
    if (listed := config.get("layers_block_type", config.get("layer_types"))) is not None:
        if not isinstance(listed, list | tuple):
            raise RuleError(f"'layers_block_type' is {shown(listed)}, expected a list")
        return [current_name(kind) for kind in listed]
    if (pattern := config.get("hybrid_override_pattern")) is None:
        return None
    if not isinstance(pattern, str) or not set(pattern) <= _SIGNS.keys():
        form = "a text of 'M', 'E', '*' and '-'"
        raise RuleError(f"'hybrid_override_pattern' is {shown(pattern)}, expected {form}")
    return [_SIGNS[sign] for sign in pattern]


def _read_letters(rule: Stated, config: Config, count: int) -> list[Any]:
    kinds = lettered_layers(config)
    if kinds is None:
        kinds = [LINEAR, "moe", FULL, "mlp"]
    if len(kinds) != count:
        which = f"the pattern of layers has {len(kinds)} entries"
        raise RuleError(f"{which}, but the model has {count} layers")
    return kinds


def _write_letters(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    """Write the kinds in the form that the configuration has; in both where it has both."""
    kinds = complete("layers_block_type", values)
    signs = {kind: sign for sign, kind in _SIGNS.items()}
    out = {key: value for key, value in config.items() if key != "layer_types"}
    if "hybrid_override_pattern" in config:
        out["hybrid_override_pattern"] = "".join(signs[kind] for kind in kinds)
    if "hybrid_override_pattern" not in config or "layers_block_type" in config:
        out["layers_block_type"] = kinds
    return out


def _read_same(rule: Stated, config: Config, count: int) -> list[Any]:
    """Read that no layer of qwen3_vl_text has a window."""
    return [*rule.absent] * count


def _write_same(rule: Stated, config: Config, values: Values) -> dict[str, Any]:
    """Refuse layers that have a window elsewhere."""
    for i, each in enumerate(values):
        if each != rule.absent[0]:
            raise RuleError(f"the model's layers have no window, but the new L{i} has one")
    listed = isinstance(config.get(rule.name), list | tuple)
    return {**config, rule.name: list(values)} if listed else dict(config)


RULES: Mapping[
    str,
    tuple[
        Callable[[Stated, Config, int], list[Any]],
        Callable[[Stated, Config, Values], dict[str, Any]],
    ],
] = {
    "after_dense": (_after_dense, _never),
    "alike": (_read_each, _never),
    "chunked": (_chunked, _never),
    "depth": (_read_depth, _write_depth),
    "each": (_read_each, _write_each),
    "ernie": (_read_ernie, _write_ernie),
    "even_below_bound": (_even_below_bound, _never),
    "indexers": (_read_indexers, _write_indexers),
    "kimi": (_read_kimi, _write_kimi),
    "letters": (_read_letters, _write_letters),
    "same": (_read_same, _write_same),
    "shapes": (_read_shapes, _write_shapes),
    "some_attend": (_some_attend, _never),
    "steps": (_read_steps, _write_steps),
    "thetas": (_thetas, _never),
    "times": (_read_times, _write_times),
    "without_rotation": (_without_rotation, _never),
}
