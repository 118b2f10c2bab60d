"""What an architecture is, as data: `Family`, and pieces that families of several lines share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

from gptailor.checkpoint.families.compatibility import ConfigKey, keys
from gptailor.checkpoint.families.layer_config import Config, LayerRule
from gptailor.checkpoint.families.roles import Roles, norm_prefixes, role_of
from gptailor.plan.parts import Branch

How = Literal["divide", "multiply", "divide_offset"]


@final
@dataclass(frozen=True, slots=True)
class Fold:
    """What becomes of a tensor in a layer whose incoming hidden state is 1/c of what it was.

    `divide` is w/c, `multiply` is w·c, and `divide_offset` is (1 + w)/c - 1, for a norm that
    multiplies by 1 + w. In the name, `*` stands for one part between dots.
    """

    tensor: str
    how: How


@final
@dataclass(frozen=True)
class Family:
    """An architecture: how it names its tensors, and what of its configuration layers depend on.

    `keys` must agree where layers are exchanged; `rules` say what moves with a layer.

    Names within a layer start after its number and dot. `base` and `stack` make the prefix of a
    layer; `embed` and `norm` stand under `base`, `head` doesn't. `attn` and `mlp` are the prefixes
    of each part's tensors. `attn_out` and `mlp_out` are the projections whose output each part adds
    to the hidden state (`*`: one part between dots); `folds` is what `scale` does where it isn't
    dividing these. `roles` are those of tensors that are called otherwise than elsewhere (an empty
    one: none that has a name); None where nothing is known of them. `one_norm` says of which
    configurations both branches read one norm's output; `no_scale` says why neither `scale` nor
    `bridge` holds of one, or None. `no_parts` and `no_bridge` are reasons why a whole family has
    none. `count_of` says how many layers there are where a configuration needs no number for it.
    `unfit` says why a configuration isn't read, and `seen` are the keys that the proof of a family
    from a file had. `like` is the model type that computes the same of the same text, if there is
    another.
    """

    model_types: tuple[str, ...]
    keys: tuple[ConfigKey, ...]
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

    def part(self, rest: str) -> Branch | None:
        """The part of a layer that a tensor belongs to, by its name within the layer."""
        if rest.startswith(self.attn):
            return "attn"
        return "mlp" if rest.startswith(self.mlp) else None

    def role(self, rest: str) -> str | None:
        """`norms` or a projection such as `mlp.down`, by a tensor's name within the layer.

        None for what is neither: norms of queries and keys, convolutions, a router's neighbours.
        """
        branch = self.part(rest)
        if branch is None or self.roles is None:
            return None
        norms = norm_prefixes((*self.attn, *self.mlp))
        outputs = self.attn_out if branch == "attn" else self.mlp_out
        return role_of(rest, branch, self.roles, norms, outputs)


def llama_keys(
    rotary: ConfigKey,
    hidden_size: int,
    heads: int,
    kv: int | None,
    /,
    *others: ConfigKey,
    **more: Any,
) -> tuple[ConfigKey, ...]:
    """The keys of families that are built like Llama, and `more`, with what their absence means."""
    names: dict[str, Any] = {
        "hidden_size": hidden_size, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": None, "hidden_act": "silu", "attention_bias": False,
    }  # fmt: skip
    return keys(rotary, *others, **(names | more))


PATTERN_KEYS = ("sliding_window_pattern", "_sliding_window_pattern")
"""Keys of a period of sliding layers, which a list of them replaces."""

ONE_BRANCH = "a layer is one branch, with one norm before it"
"""Why a family has neither parts nor bridges."""

UNFITTED = "no fit is proven to be exact for its kinds of layers"
"""Why a family with experts or of several kinds of layers has no bridges."""

POST_NORM = "the MLP branch passes a norm before it is added to the hidden state"
"""Why such a family has no bridges."""

POST_SUM = "a layer passes the sum of hidden state and branch through a norm"
"""Why such a family has neither `scale` nor `bridge`."""

EXPERTS_OUT = (
    "mlp.down_proj", "mlp.experts.down_proj", "mlp.experts.*.down_proj",
    "mlp.shared_expert.down_proj", "mlp.shared_experts.down_proj",
)  # fmt: skip
"""Of a dense layer; of a sparse one, its experts in one tensor or apart."""
