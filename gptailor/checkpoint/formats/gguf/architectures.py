"""llama.cpp's architectures: one row has how files of an architecture are read and written.

A row names the model type and class of transformers, each tensor's name on both sides, how values
are changed on the way, and the numbers that GGUF and a configuration have under different keys.
`reader` makes a checkpoint of a file by its row, `output.gguf` a file of a model. Only the rows
with `written` are written: they are proven in llama.cpp itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from gptailor.checkpoint.formats.gguf.file_facts import FileFacts, read_rotary

COUNTS: Mapping[str, str] = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
"""The whole numbers of every architecture: GGUF's keys, and the configuration's."""

EPSILONS: Mapping[str, str] = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
}
"""The configurations' keys of the number that steadies a norm, and GGUF's."""

WINDOW_KEY = "attention.sliding_window"
PATTERN_KEY = "attention.sliding_window_pattern"
LOCAL_BASE_KEY = "rope.freq_base_swa"

# ------------------------------------------------------------------------------- names of tensors

_ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ATTENTION_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip
_HEAD_NORM_NAMES = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_MLP_NAMES = {
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_LLAMA_NAMES = {**_ATTENTION_NAMES, "ffn_norm": "post_attention_layernorm", **_MLP_NAMES}
_SANDWICHED = {
    **_ATTENTION_NAMES,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **_MLP_NAMES,
    "post_ffw_norm": "post_feedforward_layernorm",
}
_SPARSE = {
    **_ATTENTION_NAMES,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj", "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}  # fmt: skip
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_FALCON_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h",
}  # fmt: skip

# ---------------------------------------------------------------------------------------- shapes

SHAPES: Mapping[str, str] = {
    "token_embd": "rows hidden", "output": "rows hidden", "position_embd": "context hidden",
    "attn_q": "q hidden", "attn_k": "kv hidden", "attn_v": "kv hidden", "attn_qkv": "qkv hidden",
    "attn_output": "hidden q", "attn_q_norm": "head", "attn_k_norm": "head",
    "ffn_gate": "wide hidden", "ffn_up": "wide hidden", "ffn_down": "hidden wide",
}  # fmt: skip
"""The shapes of tensors, in sizes of the model; a tensor without one is as wide as the stream."""

EXPERT_SHAPES: Mapping[str, str] = {
    "ffn_gate_inp": "experts hidden",
    "ffn_gate_exps": "experts expert hidden", "ffn_up_exps": "experts expert hidden",
    "ffn_down_exps": "experts hidden expert",
    "ffn_gate_inp_shexp": "one hidden",
    "ffn_gate_shexp": "expert_shared hidden", "ffn_up_shexp": "expert_shared hidden",
    "ffn_down_shexp": "hidden expert_shared",
}  # fmt: skip
"""The shapes of a mixture's tensors."""

# ----------------------------------------------------------------------------------- biases, norms

_QKV = frozenset({"attn_q", "attn_k", "attn_v"})
_ATTENTION = _QKV | {"attn_output"}
_MLP = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_NO_BIASES = frozenset[str]()
_LLAMA_BIASES = (_NO_BIASES, _ATTENTION, _MLP, _ATTENTION | _MLP)
HEAD_NORMS = frozenset({"attn_q_norm", "attn_k_norm"})


def _bias_of(keys: frozenset[str]) -> frozenset[str]:
    return frozenset(f"{key}.bias" for key in keys)


def is_norm(key: str) -> bool:
    """Return whether a layer's tensor is a norm, by GGUF's name of it."""
    return key.endswith(("norm", "norm_2"))


@final
@dataclass(frozen=True)
class NumberKey:
    """A number that GGUF has under `key` and a configuration under `name`.

    A file without it means `default`; an `optional` number is then missing in the configuration,
    and in a file where the configuration has None.
    """

    key: str
    name: str
    whole: bool = False
    default: float | None = None
    optional: bool = False


@final
@dataclass(frozen=True)
class Windows:
    """Sliding windows: all layers but the last of every `period` slide, unless a file has a list.

    `apart`: sliding layers rotate by a base of their own, `local_base` unless a file has it (None:
    the base of the other layers). llama.cpp then needs a period for every model.
    """

    period: int
    apart: bool = False
    local_base: float | None = None


Trait = Literal[
    "square",  # heads are as wide together as the stream; a configuration then has no width
    "permuted",  # rows of queries and keys are in llama.cpp's order
    "grouped",  # fused queries, keys and values belong in groups, which llama.cpp has sorted
    "transposed",  # a layer's matrices are transposed in the model
    "shifted",  # norms are stored with 1 added to them
    "norm_biases",  # norms have biases, except the norms of heads
    "headless",  # llama.cpp always takes the embedding for the head
    "divided",  # llama.cpp's divisors of the rotary frequencies are written
]


@final
@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's architectures: its model, and its differences from other architectures."""

    model_type: str
    model_class: str
    stems: Mapping[str, str]
    """GGUF's stems after `blk.3.`, and Hugging Face's after `prefix` and the layer's number.

    All experts are one tensor in GGUF. Hugging Face has a tensor for each, with its number after
    `experts.`. The norms of StableLM's heads are alike, after `layernorm.norms.`.
    """
    rest: Mapping[str, str] = field(default_factory=lambda: _ENDS)
    """GGUF's stems outside the layers, and Hugging Face's."""
    prefix: str = "model.layers."
    optional: tuple[frozenset[str], ...] = ()
    """Groups of a layer's tensors; a model has a whole group or lacks it."""
    biased: tuple[frozenset[str], ...] = (_NO_BIASES,)
    """The sets of projections with biases that a model may have."""
    epsilon: str = "rms_norm_eps"
    """The configuration's key of the number that steadies a norm."""
    traits: frozenset[Trait] = frozenset()
    shapes: Mapping[str, str] = field(default_factory=dict)
    """The shapes of tensors that differ from `SHAPES`."""
    rotated: str = "all"
    """The rotated part of each head: `all`, `some` or `none`."""
    activation: str = "silu"
    activation_keys: tuple[str, ...] = ("hidden_act",)
    """The configuration's keys of the activation; transformers computes by the first."""
    layers_of_27b: int = 0
    """Layers at which llama.cpp scales attention by the stream's width (0: never).

    Files lack the scale of such an architecture.
    """
    windows: Windows | None = None
    numbers: tuple[NumberKey, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    """The settings that all models of the architecture share."""
    known: frozenset[str] = frozenset()
    """Keys of a file that are read by `settings`, or mean nothing here."""
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    """The configuration's usual keys that have another name, or are missing."""
    present: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The settings that are true if the first layer has these tensors."""
    settings: Callable[[FileFacts], dict[str, Any]] = lambda facts: {}
    """Return the settings that have to be computed from a file."""
    variants: Mapping[str, "Architecture"] = field(default_factory=dict)
    """Rows for files with a certain key or tensor, by its name."""
    written: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The model types that are written, and the projections to which llama.cpp adds biases."""

    @property
    def keys(self) -> frozenset[str]:
        """The keys of a file that are read besides the keys of every architecture."""
        keys = self.known | {number.key for number in self.numbers} | {EPSILONS[self.epsilon]}
        if self.windows is not None:
            keys |= {WINDOW_KEY, PATTERN_KEY} | ({LOCAL_BASE_KEY} if self.windows.apart else set())
        return keys


# ------------------------------------------------------------------ settings computed from a file


def _phi3(facts: FileFacts) -> dict[str, Any]:
    # Phi 4 has 0, as its layers don't slide.
    return {"sliding_window": None if facts.fact(WINDOW_KEY) == 0 else facts.count(WINDOW_KEY)}


def _granite(facts: FileFacts) -> dict[str, Any]:
    if facts.fact("rope.scaling.finetuned") is False:
        facts.refuse("has no rotary embeddings, which 'granite' needs")
    # llama.cpp's scale of attention where the file has no scale.
    return {"attention_multiplier": facts.real("attention.scale", facts.head**-0.5)}


def _stablelm(facts: FileFacts) -> dict[str, Any]:
    rotated = facts.count("rope.dimension_count", facts.head)
    share = rotated / facts.head
    if int(facts.head * share) != rotated:
        facts.refuse(
            f"rotates {rotated} of {facts.head} in each head, which isn't an exact fraction"
        )
    return {
        "partial_rotary_factor": share,
        "rope_parameters": {**read_rotary(facts), "partial_rotary_factor": share},
        # llama.cpp's converter makes up 'use_parallel_residual', and llama.cpp ignores it.
        "use_parallel_residual": not facts.has("ffn_norm.weight"),
    }


def _gpt2(facts: FileFacts) -> dict[str, Any]:
    if facts.kv != facts.heads:
        facts.refuse(
            f"has {facts.heads} heads with {facts.kv} heads of keys, which 'gpt2' can't have"
        )
    return {"n_inner": None if facts.wide == 4 * facts.hidden else facts.wide}


def _falcon(facts: FileFacts) -> dict[str, Any]:
    if (layout := facts.fact("tensor_data_layout")) not in {None, "jploski"}:
        facts.refuse(f"lays out queries, keys and values by {layout!r}, which gptailor can't read")
    two = facts.has("attn_norm_2.weight")
    if not two and facts.kv > 1 and facts.fact("rope.freq_base") is None:
        # llama.cpp's converter leaves out a base of Falcon 2 other than 10 000.
        facts.refuse("is a Falcon 2 without the base of its rotary embeddings")
    new = two or facts.kv > 1
    return {
        "new_decoder_architecture": new,
        "num_kv_heads": facts.kv if new else facts.heads,  # a single head of keys isn't counted
        "num_ln_in_parallel_attn": (2 if two else 1) if new else None,
    }


# -------------------------------------------------------------------------------------- the table

_GELU = "gelu_pytorch_tanh"
_NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""In place of a class's defaults, which are tokens of its makers' vocabulary."""
_SOFTCAPS = (
    NumberKey("attn_logit_softcapping", "attn_logit_softcapping"),
    NumberKey("final_logit_softcapping", "final_logit_softcapping"),
)
_EXPERT_WIDTH = "expert_feed_forward_length"
_EXPERTS = (
    NumberKey("expert_count", "num_experts", whole=True),
    NumberKey("expert_used_count", "num_experts_per_tok", whole=True),
    NumberKey(_EXPERT_WIDTH, "moe_intermediate_size", whole=True),
)
_NORM_EACH = {"attn_q_norm": "heads head", "attn_k_norm": "kvs head"}
_HAS_BIASES = {"attention_bias": _bias_of(_ATTENTION), "mlp_bias": _bias_of(_MLP)}
_HAS_HEAD_NORM = frozenset({"attn_q_norm.weight"})
_QWEN_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": []}

_LLAMA = Architecture(
    "llama",
    "LlamaForCausalLM",
    _LLAMA_NAMES,
    biased=_LLAMA_BIASES,
    traits=frozenset({"permuted", "divided"}),
    present=_HAS_BIASES,
    written={"llama": _ATTENTION | _MLP, "mistral": _NO_BIASES},
)

MIXTRAL = replace(
    _LLAMA,
    model_type="mixtral",
    model_class="MixtralForCausalLM",
    stems={
        **_ATTENTION_NAMES,
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.w1",
        "ffn_up_exps": "block_sparse_moe.experts.w3",
        "ffn_down_exps": "block_sparse_moe.experts.w2",
    },
    biased=(_NO_BIASES,),
    numbers=(
        NumberKey("expert_count", "num_local_experts", whole=True),
        NumberKey("expert_used_count", "num_experts_per_tok", whole=True),
    ),
    constants={"sliding_window": None},
    known=frozenset({_EXPERT_WIDTH}),
    present={},
    written={},
)
"""A `llama` with experts."""

_OLMO2 = Architecture(
    "olmo2",
    "Olmo2ForCausalLM",
    {
        **{key: stem for key, stem in _ATTENTION_NAMES.items() if key != "attn_norm"},
        **_HEAD_NORM_NAMES,
        "post_attention_norm": "post_attention_layernorm",
        **_MLP_NAMES,
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    shapes={"attn_q_norm": "q", "attn_k_norm": "kv"},
    traits=frozenset({"square"}),
    constants={**_NO_TOKENS, "attention_bias": False},
    known=frozenset({WINDOW_KEY}),
)

OLMO_3 = replace(
    _OLMO2, model_type="olmo3", model_class="Olmo3ForCausalLM", windows=Windows(4, apart=True)
)
"""An `olmo2` with sliding layers."""

_FALCON = Architecture(
    "falcon",
    "FalconForCausalLM",
    _FALCON_NAMES,
    rest={
        "token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    prefix="transformer.h.",
    traits=frozenset({"norm_biases", "square", "grouped"}),
    epsilon="layer_norm_epsilon",
    activation="gelu",
    activation_keys=("activation",),
    constants={
        **_NO_TOKENS, "alibi": False, "bias": False, "multi_query": True, "parallel_attn": True,
    },
    known=frozenset({"tensor_data_layout"}),
    renamed={"intermediate_size": "ffn_hidden_size", "num_key_value_heads": None},
    settings=_falcon,
)  # fmt: skip

FALCON_40B = replace(
    _FALCON, stems={**_FALCON_NAMES, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}
)
"""A `falcon` with a norm of its own for attention."""

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": replace(_LLAMA, variants={"expert_count": MIXTRAL}),
    "qwen2": Architecture(
        "qwen2", "Qwen2ForCausalLM", _LLAMA_NAMES, biased=(_QKV,), written={"qwen2": _QKV}
    ),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        {**_LLAMA_NAMES, **_HEAD_NORM_NAMES},
        constants={"attention_bias": False},
        written={"qwen3": _NO_BIASES},
    ),
    "gemma": Architecture(
        "gemma",
        "GemmaForCausalLM",
        _LLAMA_NAMES,
        traits=frozenset({"shifted", "headless"}),
        activation=_GELU,
        activation_keys=("hidden_act", "hidden_activation"),
        written={"gemma": _NO_BIASES},
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        _SANDWICHED,
        traits=frozenset({"shifted", "headless"}),
        activation=_GELU,
        activation_keys=("hidden_activation", "hidden_act"),
        layers_of_27b=46,
        windows=Windows(2),
        numbers=_SOFTCAPS,
        written={"gemma2": _NO_BIASES},
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**_SANDWICHED, **_HEAD_NORM_NAMES},
        traits=frozenset({"shifted"}),
        activation=_GELU,
        activation_keys=("hidden_activation", "hidden_act"),
        layers_of_27b=62,
        windows=Windows(6, apart=True, local_base=10_000.0),
        numbers=(replace(_SOFTCAPS[1], optional=True),),
        written={"gemma3_text": _NO_BIASES},
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        shapes={"ffn_up": "wide+wide hidden"},
        constants=_NO_TOKENS,
        known=frozenset({WINDOW_KEY}),
        settings=_phi3,
    ),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**_SPARSE, **_SHARED_EXPERT},
        biased=(_QKV,),
        numbers=(
            *_EXPERTS,
            NumberKey(
                "expert_shared_feed_forward_length", "shared_expert_intermediate_size", whole=True
            ),
        ),
        constants={**_QWEN_MOE, "norm_topk_prob": False},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_SPARSE, **_HEAD_NORM_NAMES},
        numbers=_EXPERTS,
        constants={**_QWEN_MOE, "attention_bias": False, "norm_topk_prob": True},
    ),
    "olmo2": replace(_OLMO2, variants={WINDOW_KEY: OLMO_3}),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        _LLAMA_NAMES,
        biased=_LLAMA_BIASES,
        traits=frozenset({"square", "permuted"}),
        numbers=(
            NumberKey("embedding_scale", "embedding_multiplier", default=1.0),
            NumberKey("logit_scale", "logits_scaling"),
            NumberKey("residual_scale", "residual_multiplier", default=1.0),
        ),
        constants=_NO_TOKENS,
        # Granite 4 has the keys of state-space layers without such layers.
        known=frozenset({
            "attention.scale", "ssm.conv_kernel", "ssm.state_size", "ssm.group_count",
            "ssm.inner_size", "ssm.time_step_rank",
        }),
        present=_HAS_BIASES,
        settings=_granite,
    ),
    "command-r": Architecture(
        "cohere",
        "CohereForCausalLM",
        {**_ATTENTION_NAMES, **_HEAD_NORM_NAMES, **_MLP_NAMES},
        rest={key: stem for key, stem in _ENDS.items() if key != "output"},
        optional=(HEAD_NORMS,),
        epsilon="layer_norm_eps",
        shapes=_NORM_EACH,
        traits=frozenset({"square"}),
        numbers=(NumberKey("logit_scale", "logit_scale"),),
        constants={**_NO_TOKENS, "attention_bias": False, "tie_word_embeddings": True},
        present={"use_qk_norm": _HAS_HEAD_NORM},
    ),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {
            **_ATTENTION_NAMES,
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        biased=(_ATTENTION | {"ffn_up", "ffn_down"},),
        traits=frozenset({"norm_biases", "square"}),
        epsilon="norm_epsilon",
        activation=_GELU,
        # llama.cpp has no window for it, and its converter writes no window.
        constants={**_NO_TOKENS, "sliding_window": None, "use_bias": True},
    ),
    "stablelm": Architecture(
        "stablelm",
        "StableLmForCausalLM",
        {
            **_LLAMA_NAMES,
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
        },
        optional=(frozenset({"ffn_norm"}), HEAD_NORMS),
        biased=(_NO_BIASES, _QKV),
        traits=frozenset({"norm_biases", "square"}),
        epsilon="layer_norm_eps",
        shapes=_NORM_EACH,
        rotated="some",
        constants=_NO_TOKENS,
        known=frozenset({"use_parallel_residual"}),
        present={"qk_layernorm": _HAS_HEAD_NORM, "use_qkv_bias": _bias_of(_QKV)},
        settings=_stablelm,
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj",
        },
        rest={
            "token_embd": "transformer.wte", "output_norm": "transformer.ln_f",
            "position_embd": "transformer.wpe", "output": "lm_head",
        },
        prefix="transformer.h.",
        biased=(frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),),
        traits=frozenset({"norm_biases", "square", "transposed"}),
        epsilon="layer_norm_epsilon",
        rotated="none",
        activation="gelu_new",
        activation_keys=("activation_function",),
        constants=_NO_TOKENS,
        renamed={
            "attention_dropout": None, "hidden_size": "n_embd", "intermediate_size": None,
            "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer", "num_key_value_heads": None,
        },
        settings=_gpt2,
    ),
    "falcon": replace(_FALCON, variants={"blk.0.attn_norm_2.weight": FALCON_40B}),
}  # fmt: skip
"""By llama.cpp's names. Mistral and SmolLM2 are `llama`."""

WRITTEN: Mapping[str, str] = {
    model_type: name for name, row in ARCHITECTURES.items() for model_type in row.written
}
"""The architectures of the model types that are written."""
