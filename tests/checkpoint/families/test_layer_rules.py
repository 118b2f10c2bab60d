"""Stacks with layers of several kinds: older ways of saying them, and what can't be said."""

from typing import Any

import pytest

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layer_config import LayerEntry, Refusal, RuleError
from gptailor.checkpoint.families.layout import layer_count, layout_of

FULL, LINEAR, SLIDING = "full_attention", "linear_attention", "sliding_attention"


def moved(family: str, config: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """The configuration for layers in another order, by the family's rules."""
    out, count = dict(config), layer_count(FAMILY_OF[family], config)
    for rule in FAMILY_OF[family].rules:
        values = rule.read(config, count)
        out = rule.write(out, [values[i] for i in order])
    return out


def entries(family: str, config: dict[str, Any], count: int) -> list[LayerEntry]:
    read = {rule.name: rule.read(config, count) for rule in FAMILY_OF[family].rules}
    return [{name: values[i] for name, values in read.items()} for i in range(count)]


def test_older_names_of_kinds_are_the_same_kinds_and_stay_in_their_words() -> None:
    config = {"num_hidden_layers": 4, "layers_block_type": ["mamba", "attention", "mamba", "mamba"]}
    now = {"num_hidden_layers": 4, "layer_types": [LINEAR, FULL, LINEAR, LINEAR]}
    assert entries("granitemoehybrid", config, 4) == entries("granitemoehybrid", now, 4)
    out = moved("granitemoehybrid", config, [1, 3])
    assert out["layers_block_type"] == ["attention", "mamba"]
    assert "layer_types" not in out
    assert moved("granitemoehybrid", now, [1, 3])["layer_types"] == [FULL, LINEAR]


def test_a_pattern_of_letters_is_cut_as_letters() -> None:
    config = {"hybrid_override_pattern": "M-M*E"}
    assert layer_count(FAMILY_OF["nemotron_h"], config) == 5
    assert moved("nemotron_h", config, [3, 0, 4]) == {"hybrid_override_pattern": "*ME"}
    with pytest.raises(RuleError, match="'hybrid_override_pattern' is 'MX'"):
        layer_count(FAMILY_OF["nemotron_h"], {"hybrid_override_pattern": "MX"})


def test_kimis_numbers_from_one_up_follow_their_layers() -> None:
    given = {"full_attn_layers": [4], "kda_layers": [1, 2, 3], "head_dim": 128}
    config = {"num_hidden_layers": 4, "linear_attn_config": given, "first_k_dense_replace": 1}
    out = moved("kimi_linear", config, [0, 3, 2])
    assert out["layer_types"] == [LINEAR, FULL, LINEAR]
    assert out["linear_attn_config"] == {
        "full_attn_layers": [2], "kda_layers": [1, 3], "head_dim": 128
    }  # fmt: skip
    assert (out["first_k_dense_replace"], out["mlp_layer_types"]) == (1, ["dense"] + ["sparse"] * 2)
    wrong = {**config, "linear_attn_config": {**given, "kda_layers": [1, 2]}}
    with pytest.raises(RuleError, match="doesn't list each layer exactly once"):
        moved("kimi_linear", wrong, [0])


def test_periods_are_solved_for_the_new_order_or_refused() -> None:
    config = {"num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 2}
    config |= {"expert_layer_period": 2, "expert_layer_offset": 1}
    out = moved("jamba", config, [0, 2, 4, 6])  # every other layer attends, no layer is sparse
    assert (out["attn_layer_period"], out["attn_layer_offset"]) == (2, 1)
    assert out["expert_layer_offset"] >= 4
    assert entries("jamba", out, 4) == [entries("jamba", config, 8)[i] for i in (0, 2, 4, 6)]
    with pytest.raises(RuleError, match="no 'attn_layer_period' and 'attn_layer_offset' make only"):
        moved("jamba", config, [0, 2, 6, 1])


def test_ernies_start_end_and_interval_are_solved_or_refused() -> None:
    config = {"num_hidden_layers": 6, "moe_layer_start_index": 1, "moe_layer_interval": 2}
    out = moved("ernie4_5_moe", config, [0, 1, 3, 5])  # the sparse ones
    assert [out[f"moe_layer_{key}"] for key in ("start_index", "end_index", "interval")] == [
        1,
        3,
        1,
    ]
    with pytest.raises(RuleError, match="can't make only L0, L3 sparse"):
        moved("ernie4_5_moe", config, [1, 0, 2, 3])


def test_llama_4s_step_is_kept_only_if_it_gives_the_same_layers() -> None:
    config = {"num_hidden_layers": 6, "interleave_moe_layer_step": 2, "no_rope_layers": []}
    assert moved("llama4_text", config, [0, 1, 4, 5])["interleave_moe_layer_step"] == 2
    out = moved("llama4_text", config, [1, 0, 3])
    assert out["moe_layers"] == [0, 2]
    assert "interleave_moe_layer_step" not in out
    assert out["no_rope_layers"] == [1, 1, 0]


def test_a_hybrid_keeps_a_layer_that_attends() -> None:
    config = {"num_hidden_layers": 8}
    with pytest.raises(RuleError, match="no layer that attends would be left"):
        moved("qwen3_next", config, [0, 1, 2])
    assert moved("qwen3_next", config, [0, 3])["layer_types"] == [LINEAR, FULL]


def test_the_last_layer_of_gemma_4_attends_fully() -> None:
    config = {"num_hidden_layers": 6, "hidden_size_per_layer_input": 0, "global_head_dim": 8}
    with pytest.raises(
        RuleError, match="the last layer must have full attention, but L1 has a window"
    ):
        moved("gemma4_text", config, [5, 0])
    out = moved("gemma4_text", config, [0, 5])
    assert out["layer_types"] == [SLIDING, FULL]
    assert "per_layer_config" not in out
    listed = {**config, "per_layer_config": {"05": {"head_dim": 8}}}
    assert entries("gemma4_text", listed, 6) == entries("gemma4_text", config, 6)
    assert moved("gemma4_text", listed, [0, 5])["per_layer_config"] == {"1": {"head_dim": 8}}


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("gemma4_text", {}, "'hidden_size_per_layer_input': one tensor has the inputs"),
        ("gemma4_text", {"num_kv_shared_layers": 2}, "'num_kv_shared_layers': its last layers use"),
        (
            "glm_moe_dsa",
            {"index_topk_freq": 4},
            "'index_topk_freq' is 4, where layers use the index",
        ),
        ("glm_moe_dsa", {"indexer_types": ["full", "shared"]}, "'indexer_types' is"),
    ],
)
def test_layers_that_use_states_of_other_layers_are_refused_by_name(
    family: str, config: dict[str, Any], reason: str
) -> None:
    names = {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}
    found = layout_of({"model_type": family, "num_hidden_layers": 2, **config}, names)
    assert isinstance(found, Refusal)
    assert found.reason.startswith(reason)


def test_tensors_that_predict_further_tokens_have_a_module() -> None:
    names = {f"model.layers.{i}.linear_attn.out_proj.weight" for i in range(2)}
    config = {"model_type": "qwen3_next", "num_hidden_layers": 2}
    layout = layout_of(config, {*names, "mtp.fc.weight", "mtp.layers.0.mlp.gate.weight"})
    assert not isinstance(layout, Refusal)
    assert layout.predicting == {"mtp.fc.weight", "mtp.layers.0.mlp.gate.weight"}


def test_an_unread_bound_of_windows_isnt_a_fault() -> None:
    config = {"num_hidden_layers": 2, "max_window_layers": None}
    assert moved("qwen2", config, [1])["layer_types"] == [FULL]
    with pytest.raises(RuleError, match="'max_window_layers' is None, expected an integer"):
        moved("qwen2", {**config, "use_sliding_window": True}, [1])
