"""EXAONE 3 and InternLM 3: Llama's arithmetic, and names and keys of their own."""

from gptailor.checkpoint.families.compatibility import rope
from gptailor.checkpoint.families.family import Family, llama_keys

EXAONE = (
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
)  # fmt: skip
