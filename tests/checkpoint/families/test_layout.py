"""Layouts from names and configurations alone."""

import subprocess
import sys
from typing import Any

import pytest

from gptailor.checkpoint.families.compatibility import Disagreement, incompatible
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import (
    Layout,
    fold_scale,
    is_constant,
    layer_count,
    layer_entries,
    layout_of,
    moved_config,
    name_of,
    projection,
    split_name,
)
from gptailor.checkpoint.families.refused import LEARN
from tests.support.layer_names import layer_tensors

FULL, SLIDING = "full_attention", "sliding_attention"
LAYER = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)


def names(layers: int = 4, rests: tuple[str, ...] = LAYER, base: str = "model.") -> list[str]:
    found = [f"{base}layers.{i}.{rest}" for i in range(layers) for rest in rests]
    return [f"{base}embed_tokens.weight", *found, f"{base}norm.weight", "lm_head.weight"]


def config(model_type: str = "llama", layers: int = 4, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "num_hidden_layers": layers, **more}


def layout(model_type: str = "llama", layers: int = 4, **more: Any) -> Layout:
    found = layout_of(config(model_type, layers, **more), names(layers))
    assert isinstance(found, Layout), found
    return found


def reason(model_type: str = "llama", rests: tuple[str, ...] = LAYER, **more: Any) -> str:
    found = layout_of(config(model_type, **more), names(4, rests))
    assert isinstance(found, Refusal), found
    return found.reason


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.self_attn.q_proj.weight", (3, "attn", "self_attn.q_proj.weight")),
        ("model.layers.0.input_layernorm.weight", (0, "attn", "input_layernorm.weight")),
        (
            "model.layers.0.post_attention_layernorm.weight",
            (0, "mlp", "post_attention_layernorm.weight"),
        ),
        ("model.embed_tokens.weight", "embed"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "head"),
        ("lm_head.bias", "head"),
        ("model.layers.4.mlp.up_proj.weight", None),
        ("model.layers.03.mlp.up_proj.weight", None),
        ("model.layers.³.mlp.up_proj.weight", None),
        ("model.layers.3", None),
        ("model.layers.x.mlp.up_proj.weight", None),
        ("model.rotary_emb.inv_freq", None),
        ("layers.0.mlp.up_proj.weight", None),
    ],
)
def test_a_tensor_name_is_split_into_layer_and_rest(name: str, place: object) -> None:
    assert split_name(layout(), name) == place


def test_layer_one_is_not_layer_ten() -> None:
    ten = layout(layers=12)
    assert layer_tensors(ten, names(12), 1, "mlp") == {
        rest: f"model.layers.1.{rest}"
        for rest in (
            "post_attention_layernorm.weight",
            "mlp.up_proj.weight",
            "mlp.down_proj.weight",
        )
    }
    assert len(layer_tensors(ten, names(12), 10)) == len(LAYER)
    assert layer_tensors(ten, names(12), 12) == {}


def test_a_name_moves_to_another_layer() -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    place = split_name(layout(), name)
    assert place == (3, "mlp", "mlp.up_proj.weight")
    assert name_of(layout(), 11, place[2]) == "model.layers.11.mlp.up_proj.weight"
    assert split_name(layout(), "model.norm.weight") == "norm"


def test_a_base_model_saved_without_its_head() -> None:
    found = layout_of(config(), names(base=""))
    assert isinstance(found, Layout)
    assert split_name(found, "layers.2.mlp.up_proj.weight") == (2, "mlp", "mlp.up_proj.weight")
    assert split_name(found, "embed_tokens.weight") == "embed"
    assert split_name(found, "norm.weight") == "norm"


def test_masks_and_frequencies_arent_weights() -> None:
    assert is_constant("attn.bias")
    assert is_constant("self_attn.rotary_emb.inv_freq")
    assert not is_constant("attn.c_attn.bias")
    assert not is_constant("self_attn.q_proj.bias")


def test_projections_and_folds() -> None:
    assert projection(layout(), "mlp.down_proj.bias") == "mlp"
    assert projection(layout(), "self_attn.o_proj.weight") == "attn"
    assert projection(layout(), "mlp.up_proj.weight") is None
    assert fold_scale(layout(), "self_attn.o_proj.weight") == "divide"
    assert fold_scale(layout(), "input_layernorm.weight") is None
    many = layout("qwen2_moe")
    assert projection(many, "mlp.experts.11.down_proj.weight") == "mlp"
    assert projection(many, "mlp.experts.1.2.down_proj.weight") is None
    assert projection(many, "mlp.shared_expert.down_proj.weight") == "mlp"
    assert projection(many, "mlp.shared_expert_gate.weight") is None


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda: layout_of({}, names()), "the configuration names no 'model_type'"),
        (
            lambda: layout_of({"model_type": "llama"}, names()),
            "the configuration has no 'num_hidden_layers' (model type 'llama')",
        ),
        (
            lambda: layout_of({"model_type": "llama", "num_hidden_layers": "4"}, names()),
            "expected a positive integer for 'num_hidden_layers', got \"4\" (model type 'llama')",
        ),
        (
            lambda: layout_of(config(layers=5), names(4)),
            "there are no tensors 'model.layers.4.…', but the configuration has 5 layers "
            "(model type 'llama')",
        ),
        (
            lambda: layout_of(config(), names(5)),
            "there is a tensor 'model.layers.4.input_layernorm.weight', but the configuration has "
            "4 layers (model type 'llama')",
        ),
        (
            lambda: layout_of(config("qwen3_moe", mlp_only_layers=3), names()),
            "'mlp_only_layers' is 3, expected a list (model type 'qwen3_moe')",
        ),
        (
            lambda: layout_of(config(), [*names(), "model.layers.2.adapter.weight"]),
            "tensor 'model.layers.2.adapter.weight' belongs to neither branch of its layer "
            "(model type 'llama')",
        ),
        (
            lambda: layout_of(config("newvl", text_config={}, vision_config={}), names()),
            "model type 'newvl' contains further models ('text_config') in an unknown form",
        ),
        (
            lambda: layout_of(config("gemma3", vision_config={}), names()),
            "'text_config' is missing, expected the language model's configuration "
            "(model type 'gemma3')",
        ),
        (
            lambda: layout_of(config("llava", text_config={"model_type": "newllm"}), names()),
            "model type 'newllm' is unknown (the language model of model type 'llava')",
        ),
        (
            lambda: layout_of(config("llava", text_config={"num_hidden_layers": 2}), ["a.b"]),
            "there are no tensors of a language model, as 'model.language_model.layers.' "
            "(model type 'llava')",
        ),
        (
            lambda: layout_of(
                config("llava", text_config={}),
                [f"{root}layers.0.mlp.up_proj.weight" for root in ("model.", "language_model.")],
            ),
            "both 'language_model.layers.' and 'model.layers.' have tensors (model type 'llava')",
        ),
        (
            lambda: layout_of(config(per_layer_config={"0": {}}), names()),
            "'per_layer_config' of model type 'llama' gives its layers different shapes",
        ),
        (
            lambda: layout_of(config("qwen2", layer_types=[FULL] * 3), names()),
            "'layer_types' has 3 entries, but the model has 4 layers (model type 'qwen2')",
        ),
        (
            lambda: layout_of(config("qwen2", layer_types=FULL), names()),
            "'layer_types' is 'full_attention', but the model has 4 layers (model type 'qwen2')",
        ),
        (
            lambda: layout_of(config("gemma3_text", sliding_window_pattern=0), names()),
            "'sliding_window_pattern' is 0, expected an integer of at least 1",
        ),
        (
            lambda: layout_of(config("deepseek_v3", moe_layer_freq=2), names()),
            "'moe_layer_freq' is 2, which transformers can't read (model type 'deepseek_v3')",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_cut_is_refused_with_the_reason(
    found: Any, message: str
) -> None:
    unknown = found()
    assert isinstance(unknown, Refusal)
    assert message in unknown.reason


# --------------------------------------------------------------------------------- not in the table


def test_an_architecture_like_llama_gets_a_cautious_layout() -> None:
    found = layout("newllama", architectures=["A"] * 4, eos_token_id=[1, 2, 3, 4])
    assert found.notice == (
        "model type 'newllama' is unknown; gptailor treats its layers like Llama's"
    )
    assert (
        found.no_scale == found.no_bridge == ("the arithmetic of model type 'newllama' is unknown")
    )
    assert split_name(found, "model.layers.3.mlp.up_proj.weight") is not None


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"scales": [1.0, 2.0, 3.0, 4.0]}, "'scales' may have an entry for each layer"),
        ({"sliding_window": 4096}, "'sliding_window' may make a layer depend on its position"),
        ({"moe_every_n": 2}, "'moe_every_n' may make a layer depend on its position"),
        ({"scale_depth": 1.4}, "'scale_depth' may make a layer depend on its position"),
    ],
)
def test_a_key_that_may_depend_on_the_place_is_not_guessed(more: dict[str, Any], why: str) -> None:
    assert reason("newllama", **more) == f"model type 'newllama' is unknown, and {why}"


def test_a_key_without_a_value_is_ignored() -> None:
    assert layout("newllama", sliding_window=None, use_sliding_window=False, layer_norm_eps=1e-5)


@pytest.mark.parametrize(
    ("rests", "why"),
    [
        (LAYER[1:], "its layers are not built like Llama's"),
        ((*LAYER, "mlp.experts.0.up_proj.weight"), "its layers have a tensor 'mlp.experts.0"),
        ((*LAYER, "pre_norm.weight"), "its layers have a tensor 'pre_norm.weight'"),
    ],
)
def test_other_tensors_are_not_guessed(rests: tuple[str, ...], why: str) -> None:
    assert f"model type 'newllama' is unknown, and {why}" in reason("newllama", rests)


def test_layers_of_two_kinds_are_not_guessed() -> None:
    found = layout_of(config("newllama"), [*names(), "model.layers.2.self_attn.q_norm.weight"])
    assert found == Refusal(
        "model type 'newllama' is unknown, and its layers don't have the same tensors", LEARN
    )


# ------------------------------------------------------------------------------------ configuration


def moved(model_type: str, order: tuple[int, ...], **more: Any) -> dict[str, Any] | Refusal:
    base = config(model_type, **more)
    found = layout(model_type, **more)
    entries = layer_entries(found, base)
    return moved_config(found, base, [entries[i] for i in order])


def test_the_number_of_layers_is_written_where_it_was() -> None:
    assert moved("llama", (0, 2)) == config("llama", 2)
    assert layer_count(layout().family, config("llama", 7)) == 7
    tensors = [f"h.{i}.{rest}" for i in range(3) for rest in ("attn.c_proj.bias", "mlp.c_fc.bias")]
    base = {"model_type": "gpt2", "n_layer": 3}
    found = layout_of(base, tensors)
    assert isinstance(found, Layout)
    entries = layer_entries(found, base)
    assert moved_config(found, base, entries[:1]) == {"model_type": "gpt2", "n_layer": 1}


def test_no_layers_are_no_model() -> None:
    assert moved("llama", ()) == Refusal("a model has at least one layer")


def test_a_pattern_becomes_a_list() -> None:
    out = moved("gemma3_text", (1, 2, 0), sliding_window_pattern=3, _sliding_window_pattern=3)
    assert isinstance(out, dict)
    assert out["layer_types"] == [SLIDING, FULL, SLIDING]
    assert out.keys() == {"model_type", "num_hidden_layers", "layer_types", "sliding_window"}


def test_a_list_wins_over_the_pattern() -> None:
    out = moved("gemma3_text", (3, 0), layer_types=[FULL, SLIDING, SLIDING, SLIDING])
    assert isinstance(out, dict)
    assert out["layer_types"] == [SLIDING, FULL]


@pytest.mark.parametrize(("order", "first"), [((0, 2), 1), ((2, 3), 0), ((2, 0), 2)])
def test_older_readers_find_the_first_sliding_layer(order: tuple[int, ...], first: int) -> None:
    more = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
    out = moved("qwen2", order, **more)
    assert isinstance(out, dict)
    assert out["max_window_layers"] == first
    assert out["layer_types"] == [SLIDING if i >= 2 else FULL for i in order]


def test_a_list_that_the_family_does_not_read_follows_its_layers() -> None:
    out = moved("llama", (3, 1), layer_types=[FULL, SLIDING, FULL, FULL])
    assert isinstance(out, dict)
    assert out["layer_types"] == [FULL, SLIDING]


def test_experts_by_list_and_by_step() -> None:
    more = {"decoder_sparse_step": 2, "mlp_only_layers": [3], "num_experts": 4}
    out = moved("qwen3_moe", (1, 3, 0, 1), **more)
    assert isinstance(out, dict)
    assert (out["mlp_only_layers"], out["decoder_sparse_step"]) == ([1, 2], 1)


def refusal(out: dict[str, Any] | Refusal) -> str:
    assert isinstance(out, Refusal)
    return out.reason


def test_a_dense_layer_after_a_sparse_layer_is_refused() -> None:
    assert refusal(moved("deepseek_v3", (0, 2, 1), first_k_dense_replace=2)) == (
        "'first_k_dense_replace' makes the first layers dense and all others sparse, but a dense "
        "layer would be L2, after the sparse L1"
    )


def test_a_layer_that_computes_with_its_number() -> None:
    tensors = [f"h.{i}.{rest}" for i in range(3) for rest in ("attn.c_proj.bias", "mlp.c_fc.bias")]
    base = {"model_type": "gpt2", "n_layer": 3, "scale_attn_by_inverse_layer_idx": True}
    found = layout_of(base, tensors)
    assert isinstance(found, Layout)
    entries = layer_entries(found, base)
    assert isinstance(moved_config(found, base, entries[:2]), dict)
    assert refusal(moved_config(found, base, [entries[0], entries[2]])) == (
        "'scale_attn_by_inverse_layer_idx' divides by a layer's own number, and L2 would be L1"
    )
    plain = {**base, "scale_attn_by_inverse_layer_idx": False}
    assert "the model of L0 has it unset" in refusal(
        moved_config(found, base, layer_entries(found, plain))
    )


def test_two_windows_in_one_model() -> None:
    near, far = config("gemma2", sliding_window=8), config("gemma2", sliding_window=16)
    found = layout("gemma2")
    a, b = layer_entries(found, near), layer_entries(found, far)
    assert refusal(moved_config(found, near, [a[0], b[2]])) == (
        "'sliding_window' is one number for all layers, but these layers have windows of 8 and 16"
    )
    out = moved_config(found, near, [b[0], a[1]])
    assert isinstance(out, dict)
    assert out["sliding_window"] == 16


def test_an_entry_of_another_family_is_refused() -> None:
    entries = layer_entries(layout("llama"), config("llama"))
    assert refusal(moved_config(layout("gemma2"), config("gemma2"), entries)) == (
        "'layer_types' has no entry for the layer that would be L0"
    )


def test_the_base_s_configuration_is_left_as_it_is() -> None:
    base = config("qwen3_moe", mlp_only_layers=[1], layer_types=[FULL] * 4)
    before = {key: list(v) if isinstance(v, list) else v for key, v in base.items()}
    found = layout_of(base, names())
    assert isinstance(found, Layout)
    moved_config(found, base, layer_entries(found, base)[:2])
    assert base == before


def test_entries_of_a_configuration_with_other_layers_are_an_error() -> None:
    with pytest.raises(ValueError, match="'layer_types' has 3 entries, but the model has 4 layers"):
        layer_entries(layout("gemma2"), config("gemma2", layer_types=[FULL] * 3))


# ---------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize(
    ("model_type", "key", "base", "other", "severity"),
    [
        ("llama", "hidden_act", {}, {"hidden_act": "gelu"}, "fault"),
        ("llama", "rms_norm_eps", {}, {"rms_norm_eps": 1e-5}, "warning"),
        ("llama", "rope_parameters", {}, {"rope_theta": 1e6}, "fault"),
        (
            "llama",
            "rope_parameters",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            "fault",
        ),
        (
            "llama",
            "rope_parameters",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 8},
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16},
            "fault",
        ),
        ("llama", "model_type", {}, {"model_type": "mistral"}, "fault"),
        (
            "llama",
            "num_key_value_heads",
            {"num_attention_heads": 8},
            {"num_attention_heads": 8, "num_key_value_heads": 2},
            "fault",
        ),
        (
            "llama",
            "head_dim",
            {"hidden_size": 64, "num_attention_heads": 8},
            {"hidden_size": 64, "num_attention_heads": 8, "head_dim": 16},
            "fault",
        ),
        ("mistral", "sliding_window", {}, {"sliding_window": None}, "warning"),
        ("gemma2", "query_pre_attn_scalar", {}, {"query_pre_attn_scalar": 144}, "fault"),
        ("gemma3_text", "rope_parameters", {}, {"rope_local_base_freq": 1e5}, "fault"),
        ("granite", "residual_multiplier", {}, {"residual_multiplier": 0.2}, "fault"),
        ("granite", "logits_scaling", {}, {"logits_scaling": 8}, "warning"),
        ("newllama", "gate_power", {}, {"gate_power": 3}, "warning"),
    ],
)
def test_layers_with_different_relevant_settings_are_reported(
    model_type: str, key: str, base: dict[str, Any], other: dict[str, Any], severity: str
) -> None:
    a, b = config(model_type, **base), {**config(model_type), **other}
    found = incompatible(layout(model_type), a, b)
    assert [(d.key, d.severity) for d in found] == [(key, severity)]
    assert incompatible(layout(model_type), b, a) == [
        Disagreement(d.key, d.other_value, d.base_value, d.severity) for d in found
    ]


@pytest.mark.parametrize(
    ("model_type", "base", "other"),
    [
        ("llama", {"rope_theta": 10000}, {}),
        ("llama", {"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 500000}}),
        ("llama", {"max_position_embeddings": 8}, {"max_position_embeddings": 16}),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 1e5},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5}},
        ),
        ("llama", {"vocab_size": 32000, "torch_dtype": "float16"}, {"vocab_size": 32001}),
        ("gemma", {"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "long_factor": [1.0]}},
            {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}},
        ),
        ("qwen2", {"sliding_window": 4096, "use_sliding_window": False}, {"sliding_window": None}),
        ("qwen3_moe", {"sliding_window": 4096}, {"sliding_window": None}),
        ("newllama", {"rope_theta": 10000.0, "dtype": "float16"}, {"torch_dtype": "bfloat16"}),
    ],
)
def test_layers_with_equal_relevant_settings_are_compatible(
    model_type: str, base: dict[str, Any], other: dict[str, Any]
) -> None:
    a, b = config(model_type, **base), config(model_type, **other)
    assert incompatible(layout(model_type), a, b) == []


def test_no_tensor_library_is_imported() -> None:
    code = (
        "import sys, gptailor.checkpoint.families.layout\n"
        "print(*{'torch', 'jax', 'numpy', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
