"""Keys on which two models' configurations must agree for their layers to be exchangeable."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from gptailor.checkpoint.families.layer_config import UNSPOKEN, Config
from gptailor.checkpoint.families.rotary import Rotary

_Weight = Literal["fault", "warning"]

_EPSILONS = frozenset({
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon",
})  # fmt: skip
"""Norms' epsilons: 1e-5 beside 1e-6 is a warning, as checkpoints of one family have both."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "n_embed"),
    "n_embd": ("hidden_size",),
    "n_head": ("num_attention_heads",),
    "num_attention_heads": ("n_head",),
    "rms_norm_eps": ("layer_norm_epsilon",),
    "hidden_act": ("activation_function",),
    "attention_bias": ("qkv_bias",),
    "mlp_bias": ("bias",),
    "num_heads": ("num_attention_heads",),
    "num_experts": ("num_local_experts",),
    "num_local_experts": ("num_experts",),
    "n_routed_experts": ("num_local_experts", "num_experts"),
    "n_shared_experts": ("num_shared_experts",),
}
"""Other names of a key, which transformers reads too."""

KeyReader = Callable[[Config, str, Any], Any]
"""Function of a configuration, a key and the value that its absence means, to its value."""


@final
@dataclass(frozen=True)
class ConfigKey:
    """A value that must be equal: its reader, what its absence means, how bad a difference is."""

    name: str
    reader: KeyReader
    default: Any = None
    severity: _Weight = "fault"

    def read(self, config: Config) -> Any:
        """Return the value in a configuration."""
        return self.reader(config, self.name, self.default)


@final
@dataclass(frozen=True)
class Disagreement:
    """A key, its value in the base, its value in the other model, and how bad that is."""

    key: str
    base_value: object
    other_value: object
    severity: _Weight


def _value(config: Config, name: str, default: Any) -> Any:
    """Return a key's value; resolve its absence, and a None that stands for another key."""
    names = (name, *ALIASES.get(name, ()))
    value = next((config[each] for each in names if each in config), default)
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if value is None and name in {"num_key_value_heads", "num_kv_heads"}:
        return heads
    if value is None and name == "head_dim" and isinstance(heads, int) and heads:
        return hidden // heads if isinstance(hidden, int) else None
    return value


def config_keys(
    agree: Mapping[str, Any], read: Mapping[str, str], warn: Collection[str], rotary: Rotary
) -> Iterator[ConfigKey]:
    """Yield keys that must agree, by their defaults; a difference in one of `warn` is a warning."""
    for key, default in agree.items():
        reader: KeyReader = rotary.read if key == "rope_parameters" else _value
        if key in read:
            from gptailor.checkpoint.families.functions import READERS  # only few families have one

            reader = READERS[read[key]]
        yield ConfigKey(key, reader, default, "warning" if key in warn else "fault")


def disagreements(
    base_keys: Iterable[ConfigKey],
    other_keys: Iterable[ConfigKey],
    base: Config,
    other: Config,
    *,
    cautious: bool = False,
) -> list[Disagreement]:
    """Return the keys of both families that differ in two configurations.

    If `cautious`, keys of unknown meaning are compared too.
    """
    readers = {key.name: key for key in other_keys}
    shared = [key for key in base_keys if key.name in readers]
    if cautious:
        more = {*base, *other} - readers.keys() - UNSPOKEN
        unknown = [ConfigKey(name, _value, None, "warning") for name in sorted(more)]
        shared, readers = shared + unknown, readers | {key.name: key for key in unknown}
    read = [(key, key.read(base), readers[key.name].read(other)) for key in shared]
    return [Disagreement(key.name, a, b, _severity(key, a, b)) for key, a, b in read if a != b]


def _severity(key: ConfigKey, a: Any, b: Any) -> _Weight:
    """Return how bad a difference is; epsilons that are near each other hardly matter."""
    if key.name not in _EPSILONS:
        return key.severity
    numbers = [value for value in (a, b) if isinstance(value, int | float) and value > 0]
    near = len(numbers) == 2 and max(numbers) <= 10.5 * min(numbers)
    return "warning" if near else "fault"
