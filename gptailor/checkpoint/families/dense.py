"""Built like Llama but for a norm, an activation or a bias: Arcee, ERNIE, Helium, HunYuan, …"""

from typing import Any

from gptailor.checkpoint.families.compatibility import keys, rope
from gptailor.checkpoint.families.family import Family, llama_keys
from gptailor.checkpoint.families.layer_config import unset

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
