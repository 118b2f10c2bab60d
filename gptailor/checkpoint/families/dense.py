"""Built like Llama but for a norm, an activation or a bias: Arcee, ERNIE, EXAONE 3, …"""

from typing import Any

from gptailor.checkpoint.families.compatibility import keys, rope
from gptailor.checkpoint.families.family import Family, llama_keys
from gptailor.checkpoint.families.layer_config import in_place, unset

_APERTUS_ROPE = {
    "rope_type": "llama3", "rope_theta": 12_000_000.0, "factor": 8.0, "high_freq_factor": 4.0,
    "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
_APERTUS_KEYS = llama_keys(
    rope(12_000_000.0, default=_APERTUS_ROPE), 4096, 32, None, hidden_act="xielu", rms_norm_eps=1e-5
)
_APERTUS: dict[str, Any] = {
    "attn": ("attention_layernorm.", "self_attn."),
    "mlp": ("feedforward_layernorm.", "mlp."),
}

DENSE = (
    Family(
        ("exaone",),
        llama_keys(rope(500_000.0), 4096, 32, 8, rms_norm_eps=1e-5, mlp_bias=False),
        base="transformer.", stack="h.", count_key="num_layers",
        embed=("wte.weight",), norm=("ln_f.weight",),
        attn=("ln_1.", "attn."), attn_out=("attn.attention.out_proj",),
        # On disk, and as transformers' module has it.
        mlp=("ln_2.", "mlp."), mlp_out=("mlp.c_proj", "mlp.down_proj"),
    ),
    Family(
        ("internlm3",),
        llama_keys(
            rope(), 4096, 32, 2, head_dim=128, rms_norm_eps=1e-5, attention_bias=False,
            mlp_bias=False,
        ),
    ),
    Family(
        ("arcee",),
        llama_keys(
            rope(), 2560, 32, 32, hidden_act="relu2", rms_norm_eps=1e-5, mlp_bias=False
        ),
    ),
    # Its projections pass a norm before they add to the hidden state.
    Family(
        ("bitnet",), llama_keys(rope(500_000.0), 2560, 20, 5, hidden_act="relu2", rms_norm_eps=1e-5)
    ),
    Family(
        ("ernie4_5",),
        keys(
            rope(500_000.0), hidden_size=1024, num_attention_heads=16, num_key_value_heads=2,
            head_dim=128, hidden_act="silu", use_bias=False, rms_norm_eps=1e-5,
        ),
        tied=True,
    ),
    Family(
        ("helium",),
        llama_keys(
            rope(100_000.0), 2560, 20, 20, head_dim=128, rms_norm_eps=1e-8, mlp_bias=False
        ),
    ),
    Family(("hunyuan_v1_dense",), llama_keys(rope(), 4096, 32, None, rms_norm_eps=1e-5)),
    Family(
        ("iquestcoder",),
        llama_keys(rope(), 5120, 40, 8, head_dim=128, rms_norm_eps=1e-5, mlp_bias=False),
    ),
    Family(
        ("jais2",),
        llama_keys(
            rope(), 3328, 26, None, hidden_act="relu2", layer_norm_eps=1e-5, attention_bias=True,
            mlp_bias=True,
        ),
    ),
    Family(
        ("nemotron",),
        llama_keys(
            rope(partial=0.5), 6144, 48, None, hidden_act="relu2", norm_eps=1e-5, mlp_bias=False
        ),
    ),
    Family(
        ("seed_oss",),
        llama_keys(
            rope(), 4096, 80, 8, head_dim=128, attention_bias=True, attention_out_bias=False,
            mlp_bias=False, rms_norm_eps=1e-6,
        ),
    ),
    # Its norms have no tensors.
    Family(
        ("nanochat",),
        llama_keys(
            rope(), 768, 6, None, hidden_act="relu2", rms_norm_eps=1e-6,
            final_logit_softcapping=15.0,
        ),
        mlp_out=("mlp.fc2",),
    ),
    # The hidden state is weighed before a branch is added.
    Family(
        ("doge",),
        llama_keys(
            rope(), 1024, 8, None, rms_norm_eps=1e-6, mlp_bias=False, sliding_window=None,
            keep_window_size=2048,
        ),
        (unset("is_moe", "and rows of an embedding are its experts"),),
        attn=("input_layernorm.", "input_residual", "self_attn."),
        mlp=("post_attention_layernorm.", "post_attention_residual", "mlp."),
    ),
    Family(
        ("diffllama",),
        llama_keys(rope(), 2048, 32, None, rms_norm_eps=1e-5),
        (in_place("lambda_init", "attn", "a layer's attention reckons with its own number"),),
    ),
    Family(
        ("starcoder2",),
        keys(
            rope(), hidden_size=3072, num_attention_heads=24, num_key_value_heads=2,
            hidden_act="gelu_pytorch_tanh", use_bias=True, norm_epsilon=1e-5, sliding_window=None,
        ),
        mlp_out=("mlp.c_proj",), tied=True,
    ),
    Family(("apertus",), _APERTUS_KEYS, **_APERTUS),
    Family(
        ("apertus1p5_text",),
        _APERTUS_KEYS,
        (unset("output_vocab_size", "and the head lacks the rows of some tokens"),),
        **_APERTUS,
    ),
)  # fmt: skip
