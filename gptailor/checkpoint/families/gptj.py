"""GPT-J and CodeGen, whose branches stand side by side, and what was before: GPT-Neo, CTRL, GPT."""

from typing import Any

from gptailor.checkpoint.families.compatibility import keys
from gptailor.checkpoint.families.family import POST_SUM, Family
from gptailor.checkpoint.families.layer_config import Config, LayerRule, RuleError, Values, complete
from gptailor.checkpoint.files import shown


def _attention_types() -> LayerRule:
    """GPT-Neo: `[[["global", "local"], 12]]` is both in turn, twelve times."""

    def read(config: Config, count: int) -> list[Any]:
        given = config.get("attention_types") or [[["global", "local"], 12]]
        try:
            kinds = [kind for names, times in given for _ in range(times) for kind in names]
        except (TypeError, ValueError):
            message = f"'attention_types' is {shown(given)}, and should be lists of types and times"
            raise RuleError(message) from None
        if len(kinds) != count:
            raise RuleError(
                f"'attention_types' says {len(kinds)} layers, and the model has {count} layers"
            )
        return kinds

    def write(config: Config, values: Values) -> dict[str, Any]:
        kinds = complete("attention_types", values)
        listed = {"attention_layers": kinds} if "attention_layers" in config else {}
        return {**config, **listed, "attention_types": [[kinds, 1]]}

    return LayerRule("attention_types", "attn", read, write)


_SIDE_BY_SIDE: dict[str, Any] = {
    "base": "transformer.",
    "stack": "h.",
    "count_key": "n_layer",
    "embed": ("wte.weight",),
    "norm": ("ln_f.weight", "ln_f.bias"),
    "attn": ("ln_1.", "attn."),
    "attn_out": ("attn.out_proj",),
    "mlp": ("mlp.",),
    "mlp_out": ("mlp.fc_out",),
    "one_norm": lambda config: True,
}

GPTJ = (
    Family(
        ("gptj", "codegen"),
        keys(
            n_embd=4096, n_head=16, rotary_dim=64, activation_function="gelu_new",
            layer_norm_epsilon=1e-5,
        ),
        **_SIDE_BY_SIDE,
    ),
    Family(
        ("gpt_neo",),
        keys(
            hidden_size=2048, num_heads=16, activation_function="gelu_new",
            layer_norm_epsilon=1e-5, window_size=256,
        ),
        (_attention_types(),),
        base="transformer.", stack="h.", count_key="num_layers",
        embed=("wte.weight", "wpe.weight"), norm=("ln_f.weight", "ln_f.bias"),
        attn=("ln_1.", "attn."), attn_out=("attn.attention.out_proj",),
        mlp=("ln_2.", "mlp."), mlp_out=("mlp.c_proj",), tied=True,
    ),
    # The first GPT, whose norms stand after the sums.
    Family(
        ("openai-gpt",),
        keys(n_embd=768, n_head=12, afn="gelu", layer_norm_epsilon=1e-5),
        base="transformer.", stack="h.", count_key="n_layer",
        embed=("tokens_embed.weight", "positions_embed.weight"), norm=(),
        attn=("attn.", "ln_1."), attn_out=("attn.c_proj",),
        mlp=("mlp.", "ln_2."), mlp_out=("mlp.c_proj",),
        no_scale=lambda config: POST_SUM, transposed=True, tied=True,
    ),
    Family(
        ("ctrl",),
        keys(n_embd=1280, n_head=16),
        base="transformer.", stack="h.", count_key="n_layer",
        embed=("w.weight",), norm=("layernorm.weight", "layernorm.bias"),
        attn=("layernorm1.", "multi_head_attention."), attn_out=("multi_head_attention.dense",),
        mlp=("layernorm2.", "ffn."), mlp_out=("ffn.2",), roles=(("ffn.0", "mlp.up"),), tied=True,
    ),
)  # fmt: skip
