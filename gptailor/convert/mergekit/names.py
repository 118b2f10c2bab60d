"""The tensors of a base by the names that mergekit has for them, which its filters match.

Where mergekit has no list of its own for an architecture it takes the names of transformers'
class, in which all experts of a layer are one tensor; a checkpoint may hold them one by one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.family import Family
from gptailor.plan.parts import Branch


@final
@dataclass(frozen=True)
class TensorNames:
    """mergekit's names: those outside the layers whole, those of layers from their number on.

    `inner` says of which part a layer's tensor is, and `stored` which tensors of the checkpoint it
    is, where those are others. `fused` says that several are one in mergekit, `roles` which are
    norms or projections, `apart` whether its two branches can be told apart.
    """

    embed: tuple[str, ...]
    norm: tuple[str, ...]
    head: tuple[str, ...]
    prefix: str
    inner: Mapping[str, Branch]
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fused: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)
    apart: bool = True

    def role(self, rest: str) -> str | None:
        """`norms`, or a projection such as `mlp.down`, if the tensor is one of these."""
        return self.roles.get(rest)

    def name(self, layer: int | None, rest: str) -> str:
        """The whole name of a tensor: `rest`, within a layer if one is given."""
        return rest if layer is None else f"{self.prefix}{layer}.{rest}"

    def has(self, filter_: str, layers: int) -> bool:
        """Whether a filter is of a tensor of a model of that many layers."""
        named = (self.name(layer, rest) for layer in range(layers) for rest in self.inner)
        return any(filter_ in name for name in (*self.embed, *self.norm, *self.head, *named))


_EXPERTS = r"(?:block_sparse_moe|mlp|feed_forward)\.experts\.\d+\."
_RENAMED = (
    (re.compile(_EXPERTS + r"(?:w1|w3|gate_proj|up_proj)\.weight"), "mlp.experts.gate_up_proj"),
    (re.compile(_EXPERTS + r"(?:w2|down_proj)\.weight"), "mlp.experts.down_proj"),
    (re.compile(r"block_sparse_moe\.gate\.weight"), "mlp.gate.weight"),
)
_APART = ("afmoe",)
"""Types whose experts are tensors by themselves in mergekit too."""


def names_of(
    family: Family, config: Mapping[str, Any], model_type: str, rests: Iterable[str]
) -> TensorNames:
    """mergekit's names of a checkpoint with these tensors within its layers."""
    roles: dict[str, set[str | None]] = {}
    inner: dict[str, Branch] = {}
    stored: dict[str, list[str]] = {}
    for rest in dict.fromkeys(rests):
        renamed = () if model_type in _APART else _RENAMED
        name = next((new for old, new in renamed if old.fullmatch(rest)), rest)
        if (part := family.part(rest)) is not None:
            inner[name] = part
            roles.setdefault(name, set()).add(family.role(rest))
            stored.setdefault(name, []).append(rest)
    others = {name: tuple(of) for name, of in stored.items() if of != [name]}
    return TensorNames(
        tuple(family.base + name for name in family.embed),
        tuple(family.base + name for name in _known_ends(family.norm, inner)),
        _known_ends(family.head, inner)[:1],
        family.base + family.stack,
        inner,
        others,
        any(len(of) > 1 for of in others.values()),
        {name: role for name, (role, *more) in roles.items() if role is not None and not more},
        family.no_parts is None and not family.one_norm(config),
    )


def _known_ends(names: tuple[str, ...], inner: Mapping[str, Branch]) -> tuple[str, ...]:
    """Without the bias of a norm or a head, which no filter tells from its weight."""
    return tuple(name for name in names if not name.endswith(".bias")) or names


def _each(text: str) -> tuple[str, ...]:
    """`a.{b,c}.d` for each of the braces' words; `x+` also with a bias."""
    found: list[str] = []
    for word in text.split():
        both = word.endswith("+")
        stem, _, rest = word.removesuffix("+").partition("{")
        inside, _, tail = rest.partition("}")
        for one in inside.split(",") if rest else [""]:
            weight = f"{stem}{one}{tail}"
            found += [weight, weight.removesuffix("weight") + "bias"] if both else [weight]
    return tuple(found)


_ATTENTION = "self_attn.{q,k,v,o}_proj.weight"
_MLP = "mlp.{gate,up,down}_proj.weight"
_NORMS = "input_layernorm.weight post_attention_layernorm.weight"
_HEADS = "self_attn.{q,k}_norm.weight"
_FEED = "pre_feedforward_layernorm.weight post_feedforward_layernorm.weight"
_MIXED = "mlp.experts.gate_up_proj mlp.experts.down_proj mlp.gate.weight"
_LLAMA = _each(f"{_NORMS} {_ATTENTION} {_MLP}")
_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "ministral", "ministral3", "granite", "smollm3"), _LLAMA),
    "gemma": _LLAMA,
    "qwen2": _each(f"{_NORMS} self_attn.{{q,k,v}}_proj.weight+ self_attn.o_proj.weight {_MLP}"),
    "qwen3": _each(f"{_NORMS} {_ATTENTION} {_HEADS} {_MLP}"),
    "gemma2": _each(f"{_NORMS} {_ATTENTION} {_FEED} {_MLP}"),
    "gemma3_text": _each(f"{_NORMS} {_ATTENTION} {_HEADS} {_FEED} {_MLP}"),
    "mixtral": _each(f"{_NORMS} {_ATTENTION} {_MIXED}"),
    "qwen3_moe": _each(f"{_NORMS} {_ATTENTION} {_HEADS} {_MIXED}"),
    "olmo": _each(f"{_ATTENTION} {_MLP}"),
    "olmo2": _each(
        f"post_attention_layernorm.weight post_feedforward_layernorm.weight {_ATTENTION} {_HEADS} "
        f"{_MLP}"
    ),
    "cohere": _each(f"input_layernorm.weight {_ATTENTION} {_MLP}"),
    "cohere2": _each(f"input_layernorm.weight {_ATTENTION} {_MLP}"),
    "phi": _each("input_layernorm.weight+ self_attn.{q,k,v}_proj.weight+ self_attn.dense.weight+ "
                 "mlp.fc1.weight+ mlp.fc2.weight+"),
    "phi3": _each(f"{_NORMS} self_attn.o_proj.weight self_attn.qkv_proj.weight "
                  "mlp.gate_up_proj.weight mlp.down_proj.weight"),
    "stablelm": _each("input_layernorm.weight+ post_attention_layernorm.weight+ "
                      f"{_ATTENTION} {_MLP}"),
    "starcoder2": _each("input_layernorm.weight+ post_attention_layernorm.weight+ "
                        "self_attn.{q,k,v,o}_proj.weight+ mlp.c_fc.weight+ mlp.c_proj.weight+"),
    "gpt2": _each("ln_1.weight+ ln_2.weight+ attn.c_attn.weight+ attn.c_proj.weight+ "
                  "mlp.c_fc.weight+ mlp.c_proj.weight+"),
    "gpt_neox": _each("input_layernorm.weight+ post_attention_layernorm.weight+ "
                      "attention.{query_key_value,dense}.weight+ "
                      "mlp.dense_h_to_4h.weight+ mlp.dense_4h_to_h.weight+"),
}  # fmt: skip
"""The tensors of a layer, where a configuration is all that is at hand."""


_MORE_TENSORS = ("attention_bias", "mlp_bias", "use_qkv_bias", "qk_layernorm", "use_qk_norm")
"""Keys of configurations that have tensors which are not listed above."""


def names_by_type(config: Mapping[str, Any]) -> TensorNames | None:
    """mergekit's names of a model with this configuration; None where its type doesn't tell."""
    model_type = str(config.get("model_type"))
    family, rests = FAMILY_OF.get(model_type), _OF_TYPE.get(model_type)
    if family is None or rests is None or any(config.get(key) for key in _MORE_TENSORS):
        return None
    found = names_of(family, config, model_type, rests)
    experts = [name for name in found.inner if "experts" in name]
    roles = {name: role for name, role in found.roles.items() if name not in experts}
    return replace(found, fused=bool(experts), roles=roles)  # checkpoints mostly have them apart
