"""An architecture as data: `Family`, the roles of its tensors, and pieces that families share."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, final

from gptailor.checkpoint.families.compatibility import Agreed, ConfigKey, config_keys, rope
from gptailor.checkpoint.families.layer_config import Config
from gptailor.checkpoint.families.layer_rules import LayerRule, Listed
from gptailor.plan.layer_parts import NORMS, Branch

How = Literal["divide", "multiply", "divide_offset"]


@final
@dataclass(frozen=True, slots=True)
class Fold:
    """The change of a tensor in a layer whose incoming hidden state is 1/c of the original's.

    `divide` is w/c, `multiply` is w·c, and `divide_offset` is (1 + w)/c - 1, for a norm that
    multiplies by 1 + w. In the name, `*` stands for one part between dots.
    """

    tensor: str
    how: How


Roles = tuple[tuple[str, str], ...]
"""Names within a layer, `*` standing for one part between dots, and their tensors' roles."""


@final
@dataclass(frozen=True)
class Family:
    """An architecture: its tensors' names, and the configuration that its layers depend on.

    `agree` names the keys whose values must agree where layers are exchanged; `rules` move with a
    layer. `count_of` returns the number of layers of configurations that have no number.

    Names within a layer start after its number and dot. `base` and `stack` make the prefix of a
    layer; `embed` and `norm` stand under `base`, `head` doesn't. `attn` and `mlp` are prefixes of
    each branch's tensors, `attn_out` and `mlp_out` the projections whose output the branch adds to
    the hidden state (`*`: one part between dots). `folds` are the changes of tensors for `scale`,
    if it doesn't divide these projections. `roles` are the roles of tensors with unusual names (an
    empty text: no role); None: no roles are known.

    `one_norm` returns whether both branches read one norm's output. `no_parts` and `no_bridge` are
    reasons why the family has none; `no_scale` returns a reason why a configuration has neither
    `scale` nor `bridge`, and `unfit` why it isn't read. `seen` are the keys that the proof of a
    family from a file had. `like` is another model type that computes the same from a text.
    """

    model_types: tuple[str, ...]
    agree: tuple[Agreed, ...]
    rules: tuple[LayerRule, ...] = ()
    base: str = "model."
    stack: str = "layers."
    count_key: str = "num_hidden_layers"
    count_of: Callable[[Config], int | None] = lambda config: None
    embed: tuple[str, ...] = ("embed_tokens.weight",)
    norm: tuple[str, ...] = ("norm.weight", "norm.bias")
    head: tuple[str, ...] = ("lm_head.weight", "lm_head.bias")
    attn: tuple[str, ...] = ("input_layernorm.", "self_attn.")
    mlp: tuple[str, ...] = ("post_attention_layernorm.", "mlp.")
    attn_out: tuple[str, ...] = ("self_attn.o_proj",)
    mlp_out: tuple[str, ...] = ("mlp.down_proj",)
    folds: tuple[Fold, ...] = ()
    roles: Roles | None = ()
    no_parts: str | None = None
    no_bridge: str | None = None
    no_scale: Callable[[Config], str | None] = lambda config: None
    unfit: Callable[[Config], str | None] = lambda config: None
    seen: frozenset[str] = frozenset()
    one_norm: Callable[[Config], bool] = lambda config: False
    transposed: bool = False
    tied: bool = False
    like: str = ""

    @cached_property
    def keys(self) -> tuple[ConfigKey, ...]:
        """The keys that must agree, with the values that their absence means."""
        return tuple(config_keys(self.agree, self.model_types[0]))

    def part(self, suffix: str) -> Branch | None:
        """Return the part of a layer that a tensor belongs to, by its name within the layer."""
        if suffix.startswith(self.attn):
            return "attn"
        return "mlp" if suffix.startswith(self.mlp) else None

    def role(self, suffix: str) -> str | None:
        """Return `norms` or a projection such as `mlp.down`, by a tensor's name within the layer.

        Return None for other tensors: norms of queries and keys, convolutions, a router's
        neighbours.
        """
        branch = self.part(suffix)
        if branch is None or self.roles is None:
            return None
        norms = _norm_prefixes((*self.attn, *self.mlp))
        outputs = self.attn_out if branch == "attn" else self.mlp_out
        return _role_of(suffix, branch, self.roles, norms, outputs)


PATTERN_KEYS = ("sliding_window_pattern", "_sliding_window_pattern")
"""Keys of a period of sliding layers, which a list replaces."""

ONE_BRANCH = "a layer is one branch, with one norm before it"
"""The reason why a family has neither parts nor bridges."""

UNFITTED = "no fit is proven to be exact for its kinds of layers"
"""The reason why a family with experts or several kinds of layers has no bridges."""

POST_NORM = "the MLP branch passes a norm before it is added to the hidden state"
"""The reason why such a family has no bridges."""

POST_SUM = "a layer passes the sum of hidden state and branch through a norm"
"""The reason why such a family has neither `scale` nor `bridge`."""

NORMS_AFTER: dict[str, Any] = {
    "attn": ("self_attn.", "post_attention_layernorm."),
    "mlp": ("mlp.", "post_feedforward_layernorm."),
    # The branches read the hidden state without a norm before them, so c is put back there.
    "folds": (
        *(Fold(f"self_attn.{name}_proj.weight", "multiply") for name in "qkv"),
        *(Fold(f"mlp.{name}_proj.weight", "multiply") for name in ("gate", "up")),
        Fold("post_attention_layernorm.weight", "divide"),
        Fold("post_feedforward_layernorm.weight", "divide"),
    ),
    "no_bridge": POST_NORM,
}
"""OLMo from 2 on, and EXAONE 4: norms stand after the branches alone."""


def _thetas(config: Config, count: int) -> list[Any]:
    """Return the model's base of rotary embeddings for every layer."""
    return [rope()({}).read(config)["rope_theta"]] * count


LAYER_THETAS = Listed("layer_rope_theta", "attn", _thetas)
"""Granite with windows: each layer's base of its rotary embeddings, 0 for none."""

EXPERTS_OUT = (
    "mlp.down_proj", "mlp.experts.down_proj", "mlp.experts.*.down_proj",
    "mlp.shared_expert.down_proj", "mlp.shared_experts.down_proj",
)  # fmt: skip
"""Output projections of a dense layer, and of a sparse one: experts in one tensor or apart."""


# ------------------------------------------------------------------------------------------ roles

_ROLES: dict[Branch, dict[str, str]] = {
    "attn": {
        "q": "q_proj q_a_proj q_b_proj Wq",
        "k": "k_proj Wk",
        "v": "v_proj Wv",
        "qkv": "qkv_proj query_key_value c_attn Wqkv in_proj_qkv",
    },
    "mlp": {
        "gate": "gate_proj w1 c_fc_0",
        "up": "up_proj w3 v1 fc1 c_fc c_fc_1 dense_h_to_4h fc_in",
        "down": "down_proj w2",
        "gate_up": "gate_up_proj Wi input_linear",
        "router": "gate router expert_bias e_score_correction_bias moe_statics",
    },
}
"""Usual names of modules by their role. A family has the names of the modules that end a branch,
and so of `attn.o` and `mlp.down`, itself."""

_BY_WORD = {
    branch: {word: f"{branch}.{role}" for role, words in roles.items() for word in words.split()}
    for branch, roles in _ROLES.items()
}

_PIECE = re.compile(r"_(bias|blocks|scales)$")
"""Ends of tensors' names that no dot parts from their module's."""


@lru_cache(maxsize=1024)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"[^.]+") + r"(\..*|_bias|_blocks|_scales)?")


def _role_of(
    suffix: str, branch: Branch, own: Roles, norms: Sequence[str], outputs: Sequence[str]
) -> str | None:
    """Return `norms`, or the projection that a tensor (weight, bias or scale) belongs to.

    `own` goes first, then `norms`, prefixes of norms over the hidden state, and `outputs`, the
    projections that the branch ends with.
    """
    for name, role in own:
        if _pattern(name).fullmatch(suffix):
            return role or None
    if suffix.startswith(tuple(norms)):
        return NORMS
    if any(_pattern(name).fullmatch(suffix) for name in outputs):
        return "attn.o" if branch == "attn" else "mlp.down"
    roles = _BY_WORD[branch]
    for word in reversed(suffix.split(".")):
        projection = roles.get(word) or roles.get(_PIECE.sub("", word))
        if projection is not None:
            return projection
    return None


def _norm_prefixes(prefixes: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of a branch's norms."""
    return tuple(each for each in prefixes if re.search(r"(norm|(^|\.)ln_)[^.]*\.?$", each))
