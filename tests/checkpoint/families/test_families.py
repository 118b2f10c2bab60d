"""Each family against transformers: layers moved on disk compute the same as the original's layers.

The reference knows nothing of layouts: it calls the original model's own layer modules by hand,
with the masks and rotary embeddings that the original gave each of them.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.compatibility import incompatible
from gptailor.checkpoint.families.layer_config import LayerEntry, Refusal, RuleError
from gptailor.checkpoint.families.layout import (
    Layout,
    fold_scale,
    joined_entry,
    layer_entries,
    layout_of,
    moved_config,
    name_of,
    post_norm,
    projection,
    split_name,
)
from tests.support.layer_names import layer_tensors
from tests.support.structures import structure
from tests.support.thorough import one_of_each
from tests.support.tiny import CONFIGURATIONS, tiny_model
from tests.support.tiny_mixed import MIXED

Tensors = dict[str, torch.Tensor]
ROLES = Path(__file__).parents[2] / "golden" / "roles.json"
ORDER = (0, 5, 3, 3, 1)
FULL, SLIDING = "full_attention", "sliding_attention"

ORDERS = {"diffllama": (0, 1, 2), "gpt_neox_japanese": (0, 3, 3, 1, 5), "jamba": (0, 4, 2, 5)}
"""Families with some layers that can't move."""

# family, what differs from tiny.CONFIGURATIONS, the order of the original's layers
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    **{family: (family, {}, ORDERS.get(family, ORDER)) for family in CONFIGURATIONS},
    "llama-tied": ("llama", {"tie_word_embeddings": True}, ORDER),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}, ORDER),
    "llama-longer": ("llama", {}, (0, 1, 2, 3, 4, 5, 3, 4, 5)),
    "llama-one": ("llama", {}, (2,)),
    "gemma-untied": ("gemma", {"tie_word_embeddings": False}, ORDER),
    "mistral-window": ("mistral", {"sliding_window": 3}, ORDER),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3},
        (3, 0, 4, 1),
    ),
    "qwen3-window": (
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
        (0, 4, 5),
    ),
    "qwen2_moe-window": (
        "qwen2_moe",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 4},
        (1, 2, 0, 5),
    ),
    "qwen2_moe-dense": (
        "qwen2_moe",
        {"mlp_only_layers": [1], "decoder_sparse_step": 2},
        (3, 1, 5, 0),
    ),
    "qwen3_moe-dense": ("qwen3_moe", {"mlp_only_layers": [0, 4]}, (1, 4, 2)),
    "gemma3-pattern": ("gemma3_text", {"sliding_window_pattern": 3}, (2, 0, 5, 4)),
    "gemma3-full-only": ("gemma3_text", {"sliding_window_pattern": 2}, (1, 3, 5)),
    "gemma2-sliding-only": ("gemma2", {}, (0, 2, 4)),
    "cohere2-pattern": ("cohere2", {"sliding_window_pattern": 2}, (1, 0, 5, 2)),
    "smollm3-list": ("smollm3", {"no_rope_layers": [0, 1, 1, 0, 1, 1]}, (3, 1, 0, 2)),
    "smollm3-window": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 3, "no_rope_layer_interval": 2},
        (1, 0, 3, 3),
    ),
    "olmo-clipped": ("olmo", {"clip_qkv": 0.5}, ORDER),
    "olmo2-biases": ("olmo2", {"attention_bias": True}, ORDER),
    "olmo3-list": ("olmo3", {"layer_types": [FULL, SLIDING, SLIDING] * 2}, (1, 0, 3, 4)),
    "exaone4-full": ("exaone4", {"sliding_window": None, "layer_types": [FULL] * 6}, ORDER),
    "ministral-full": ("ministral", {"layer_types": [SLIDING, FULL] * 3}, (1, 0, 3, 2)),
    "ministral3-window": ("ministral3", {"sliding_window": 3}, ORDER),
    "starcoder2-window": ("starcoder2", {"sliding_window": 3}, ORDER),
    "ernie4_5-untied": ("ernie4_5", {"tie_word_embeddings": False, "use_bias": True}, ORDER),
    "internlm3-biases": ("internlm3", {"attention_bias": True, "mlp_bias": True}, ORDER),
    "phi-qk-norm": ("phi", {"qk_layernorm": True}, ORDER),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 8}, ORDER),
    "opt-no-last-norm": ("opt", {"_remove_final_layer_norm": True}, ORDER),
    "bloom-norm": ("bloom", {"apply_residual_connection_post_layernorm": True}, ORDER),
    "gpt_bigcode-heads": ("gpt_bigcode", {"multi_query": False}, ORDER),
    "gpt_neo-list": (
        "gpt_neo",
        {"attention_types": [[["local"], 2], [["global", "local"], 2]]},
        (2, 0, 5, 4),
    ),
    "granite_swa-thetas": (
        "granite_swa",
        {"layer_rope_theta": [10_000.0, 0, 500.0, 0, 10_000.0, 500.0]},
        (1, 0, 5, 4),
    ),
    "hyperclovax-no-norms": ("hyperclovax", {"use_post_norm": False}, ORDER),
    "minicpm3-longer": ("minicpm3", {}, (0, 1, 2, 3, 4, 5, 3, 4, 5)),
    "minicpm3-unscaled": ("minicpm3", {"scale_depth": None}, ORDER),
    "modernbert-biases": (
        "modernbert-decoder",
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        (0, 4, 3, 2, 2),
    ),
    "modernbert-untied": ("modernbert-decoder", {"tie_word_embeddings": False}, ORDER),
    "mpt-clipped": ("mpt", {"attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.3}}, ORDER),
    "doge-window": ("doge", {"sliding_window": 3, "keep_window_size": 4}, ORDER),
    "compass-mixed": (
        "cohere_compass_text",
        {
            "layer_types": [SLIDING, FULL, SLIDING] * 2,
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 500.0},
                FULL: None,
            },
        },
        (1, 0, 2, 4),
    ),
    "ctrl-untied": ("ctrl", {"tie_word_embeddings": False}, ORDER),
    "phi-tied": ("phi", {"tie_word_embeddings": True}, ORDER),
    "stablelm-parallel": ("stablelm", {"use_parallel_residual": True}, ORDER),
    "stablelm-qk-norm": ("stablelm", {"qk_layernorm": True, "use_qkv_bias": True}, ORDER),
    "cohere-qk-norm": ("cohere", {"use_qk_norm": True}, ORDER),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}, ORDER),
    "gpt2-cut-after": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, (0, 1, 2)),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False}, ORDER),
    "falcon-two-norms": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        ORDER,
    ),
    "falcon-serial": ("falcon", {"parallel_attn": False, "bias": True}, ORDER),
    "falcon-alibi": ("falcon", {"alibi": True, "multi_query": False}, ORDER),
    "deepseek_v2-dense": ("deepseek_v2", {"first_k_dense_replace": 3}, (2, 0, 4, 3)),
    "deepseek_v3-dense": ("deepseek_v3", {"first_k_dense_replace": 2}, (0, 5, 2)),
    "deepseek_v3-all-dense": ("deepseek_v3", {"first_k_dense_replace": 3}, (2, 1)),
}

FIRSTS = one_of_each(CASES, lambda case: (structure(CASES[case][0]), bool(CASES[case][1])))
"""A case of each structure, and one with another configuration, where a structure has one."""

IDS = torch.arange(24).reshape(2, 12) * 7 % 64


@dataclass(frozen=True)
class Disk:
    """A checkpoint as gptailor sees it: a configuration and named tensors."""

    layout: Layout
    config: dict[str, Any]
    tensors: Tensors

    @property
    def entries(self) -> list[LayerEntry]:
        return layer_entries(self.layout, self.config)


def read(folder: Path) -> Disk:
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    layout = layout_of(config, tensors.keys())
    assert isinstance(layout, Layout), layout
    return Disk(layout, config, tensors)


def write(folder: Path, config: dict[str, Any] | Refusal, tensors: Tensors) -> Path:
    assert isinstance(config, dict), config
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.clone() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def stitch(base: Disk, layers: Sequence[tuple[Disk, int]]) -> Tensors:
    """The base's other tensors, and these layers in order, by plain surgery on names."""
    layout = base.layout
    out = {n: t for n, t in base.tensors.items() if not isinstance(split_name(layout, n), tuple)}
    for new, (disk, old) in enumerate(layers):
        for rest, name in layer_tensors(disk.layout, disk.tensors.keys(), old).items():
            out[name_of(layout, new, rest)] = disk.tensors[name]
    return out


def load(folder: Path) -> PreTrainedModel:
    """The model; assert that its tensors are exactly the tensors on disk."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    faults = {key: value for key, value in info.items() if value}
    assert not faults, faults
    return model.eval()


def logits(model: PreTrainedModel, tokens: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def generated(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts with four tokens more, made greedily with a cache, and the logits of these four."""
    with torch.no_grad():
        made = model.generate(
            IDS[:, :6], attention_mask=torch.ones_like(IDS[:, :6]), do_sample=False,
            max_new_tokens=4, min_new_tokens=4, pad_token_id=0, use_cache=True,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    return made.sequences, torch.stack(made.logits, dim=1)


# ----------------------------------------------------------------------------------- the reference


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    body = model.get_decoder()
    if body is model or isinstance(body, torch.nn.Linear):
        body = model.model
    return next(getattr(body, name) for name in ("h", "blocks", "layers") if hasattr(body, name))


class Original:
    """A model's layers, each with all that it was called with."""

    def __init__(self, folder: Path) -> None:
        self.model = load(folder)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hooks = [
            layer.register_forward_pre_hook(self._called, with_kwargs=True)
            for layer in layers_of(self.model)
        ]
        self.unchanged = logits(self.model)
        for hook in hooks:
            hook.remove()

    def _called(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args, kwargs))

    @property
    def embedded(self) -> torch.Tensor:
        return self.calls[0][0][0]

    def run(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        (_, *args), kwargs = self.calls[layer]
        with torch.no_grad():
            return first(layers_of(self.model)[layer](hidden, *args, **kwargs))

    def without(self, part: str, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The layer with the output of a branch's module made zero."""
        with zeroed(branch(layers_of(self.model)[layer], part)):
            return self.run(layer, hidden)

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the model's output for a hidden state after the last layer."""

        def instead(_: torch.nn.Module, __: Any, output: Any) -> Any:
            return (hidden, *output[1:]) if isinstance(output, tuple | list) else hidden

        hook = layers_of(self.model)[-1].register_forward_hook(instead)
        try:
            return logits(self.model)
        finally:
            hook.remove()


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple | list) else output


BRANCHES = {
    "mlp": ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "mlp_block", "ffn", "fc2"),
    "attn": (
        "self_attn", "attn", "attention", "self_attention", "multi_head_attention", "linear_attn",
        "mamba", "conv", "temporal_block", "norm_attn_norm.attn",
    ),
}  # fmt: skip
ADDED = {
    "BloomBlock": {"attn": "self_attention.dense", "mlp": "mlp.dense_4h_to_h"},
    "MptBlock": {"mlp": "ffn.down_proj"},
}
"""Where a branch's module adds its output to the hidden state itself: the module before that."""


def branch(layer: torch.nn.Module, part: str) -> list[torch.nn.Module]:
    """The modules that a branch consists of but for its norms."""
    if path := ADDED.get(type(layer).__name__, {}).get(part):
        return [layer.get_submodule(path)]
    results = dict(layer.named_modules())
    return [results[name] for name in BRANCHES[part] if name in results]


@contextmanager
def zeroed(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    def zero(_: torch.nn.Module, __: Any, output: Any) -> Any:
        nothing = torch.zeros_like(first(output))
        return (nothing, *output[1:]) if isinstance(output, tuple | list) else nothing

    assert modules
    hooks = [module.register_forward_hook(zero) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def by_hand(base: Original, layers: Sequence[tuple[Original, int]]) -> torch.Tensor:
    hidden = base.embedded
    for model, layer in layers:
        hidden = model.run(layer, hidden)
    return base.finish(hidden)


def close(actual: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, wanted, atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------------------------------- cases


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder for a case and a seed, made once."""
    folders: dict[tuple[str, int], Path] = {}

    def make(case: str, seed: int = 0) -> Path:
        if (case, seed) not in folders:
            family, config, _ = CASES[case]
            folder = tmp_path_factory.mktemp(f"{case}-{seed}")
            folders[case, seed] = tiny_model(family, folder, seed=seed, **config)
        return folders[case, seed]

    return make


@pytest.fixture(scope="module")
def originals(made: Any) -> Any:
    """The model of a case and a seed, loaded once."""
    return cache(lambda case, seed=0: Original(made(case, seed)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are faster so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", FIRSTS)
def test_a_model_with_cut_and_reordered_layers_equals_one_made_by_hand(
    case: str, made: Any, originals: Any, tmp_path: Path
) -> None:
    order = CASES[case][2]
    disk, original = read(made(case)), originals(case)
    config = moved_config(disk.layout, disk.config, [disk.entries[i] for i in order])
    folder = write(tmp_path / "out", config, stitch(disk, [(disk, i) for i in order]))

    result = load(folder)

    wanted = by_hand(original, [(original, i) for i in order])
    close(logits(result), wanted)
    assert len(layers_of(result)) == len(order)
    assert (original.unchanged - wanted).abs().max() > 0.05  # the order does matter
    again = read(folder)
    assert again.entries == [disk.entries[i] for i in order]
    tokens, scores = generated(result)
    close(scores, logits(result, tokens)[:, 5:-1])


@pytest.mark.parametrize("case", FIRSTS)
def test_all_layers_in_order_are_the_model_itself(
    case: str, made: Any, originals: Any, tmp_path: Path
) -> None:
    disk = read(made(case))
    config = moved_config(disk.layout, disk.config, disk.entries)
    folder = write(tmp_path / "out", config, stitch(disk, [(disk, i) for i in range(6)]))
    torch.testing.assert_close(logits(load(folder)), originals(case).unchanged, atol=0, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_has_a_place(case: str, made: Any) -> None:
    disk = read(made(case))
    places = {name: split_name(disk.layout, name) for name in disk.tensors}
    assert None not in places.values()
    assert {"embed"} <= {place for place in places.values() if isinstance(place, str)}
    assert (disk.layout.head[0] in places) == (not disk.layout.tied)
    for layer in range(6):
        parts = [layer_tensors(disk.layout, places, layer, part) for part in ("attn", "mlp")]
        assert all(parts) or (parts[0] and CASES[case][0] in ONE_BRANCH)
        assert {**parts[0], **parts[1]} == layer_tensors(disk.layout, places, layer)
    roles, norms = roles_of(CASES[case][0]), set()
    for name, place in places.items():
        if isinstance(place, tuple):
            role = disk.layout.family.role(place[2])
            assert role == roles.get(stem(place[2])), name
            norms |= {disk.tensors[name].shape} if role == "norms" else set()
    assert len({shape for shape in norms if len(shape) == 1}) <= 1  # of the hidden state, all


def stem(rest: str) -> str:
    """The module of a tensor of a layer; `*` stands for the number of an expert."""
    return re.sub(r"experts\.\d+\.", "experts.*.", re.sub(r"\.(weight|bias)$", "", rest))


@cache
def roles_of(family: str) -> dict[str, str]:
    """Return the role of each module of a family's layers, from `tests/golden/roles.json`."""
    golden = json.loads(ROLES.read_text())
    [result] = [each["roles"] for each in golden if family in each["families"]]
    return {name: role for role, names in result.items() for name in names}


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_projections_and_norms_are_reported_by_name(family: str) -> None:
    """On disk and as transformers' modules have them; norms may have no tensors."""
    roles = roles_of(family)
    assert "norms" in roles.values() or family in {"nanochat", "olmo"}
    for name, role in roles.items():
        assert FAMILY_OF[family].role(name.replace("*", "0") + ".weight") == role
    for role in ("attn.o", "mlp.down"):
        assert role in roles.values() or family in ONE_BRANCH


# ------------------------------------------------------------------------------------------- parts

SHARED_NORM = {"cohere", "cohere2", "falcon", "stablelm-parallel", "cohere-qk-norm"}
SHARED_NORM |= {"cohere2-pattern", "falcon-alibi"}
SHARED_NORM |= {"phi", "phi-qk-norm", "phi-tied", "gptj", "codegen", "cohere_compass_text"}
SHARED_NORM |= {"compass-mixed", "cohere2_moe"}
ONE_BRANCH = {"mamba", "mamba2", "falcon_mamba", "nemotron_h"}
UNPARTED = {*ONE_BRANCH, "gemma4_text", "gemma4_unified_text", "olmo_hybrid"}
UNSCALED = {"gemma4_text", "gemma4_unified_text", "lfm3", "olmo_hybrid"}
PARALLEL = {"gpt_neox", "falcon-two-norms"}
UNSCALED |= {"opt-350m", "opt-no-last-norm", "bloom-norm", "openai-gpt", "hyperclovax-no-norms"}
MLP_PARTS = {
    "openai-gpt": ("mlp", "ln_2"),
    "opt-350m": ("fc1", "fc2", "final_layer_norm"),
    "bloom-norm": ("post_attention_layernorm", "mlp"),
    "doge": ("post_attention_layernorm", "post_attention_residual", "mlp"),
}
MLP_PARTS["doge-window"] = MLP_PARTS["doge"]
"""The modules of the second sum, for layers with more than two sums."""


def mixed(a: Original, b: Original, names: tuple[str, ...], hidden: torch.Tensor) -> torch.Tensor:
    """Run a hidden state through a's third layer with these modules of b's."""
    layers, other = layers_of(a.model), layers_of(b.model)[2]
    own = {name: getattr(layers[2], name) for name in names}
    try:
        for name in names:
            setattr(layers[2], name, getattr(other, name))
        return a.run(2, hidden)
    finally:
        for name, module in own.items():
            setattr(layers[2], name, module)


@pytest.mark.parametrize("case", FIRSTS)
def test_a_part_of_another_model(case: str, made: Any, originals: Any, tmp_path: Path) -> None:
    disk, other = read(made(case)), read(made(case, 1))
    if CASES[case][0] in UNPARTED:
        assert disk.layout.no_parts is not None
        return
    if case in SHARED_NORM:
        assert disk.layout.no_parts == "both branches of a layer read the output of one norm"
        return
    assert disk.layout.no_parts is None
    tensors = dict(disk.tensors)
    for name in layer_tensors(other.layout, other.tensors.keys(), 2, "mlp").values():
        tensors[name] = other.tensors[name]

    result = logits(load(write(tmp_path / "out", disk.config, tensors)))

    a, b = originals(case), originals(case, 1)
    hidden = a.run(1, a.run(0, a.embedded))
    between = a.without("mlp", 2, hidden)
    if case in MLP_PARTS:
        hidden = mixed(a, b, MLP_PARTS[case], hidden)
    elif case in PARALLEL:
        hidden = between + b.without("attn", 2, hidden) - hidden
    else:
        hidden = b.without("attn", 2, between)
    for layer in (3, 4, 5):
        hidden = a.run(layer, hidden)
    close(result, a.finish(hidden))
    assert (result - a.unchanged).abs().max() > 0.01


# ------------------------------------------------------------------------------- scales and bridges


def folded(how: str | None, tensor: torch.Tensor, c: float) -> torch.Tensor:
    if how == "divide":
        return tensor / c
    if how == "multiply":
        return tensor * c
    return (1 + tensor) / c - 1 if how == "divide_offset" else tensor


@pytest.mark.parametrize("case", FIRSTS)
def test_a_scaled_hidden_state_folds_into_the_layers_after_it(
    case: str, made: Any, originals: Any, tmp_path: Path
) -> None:
    disk, original, c = read(made(case)), originals(case), 0.5
    unscaled = case in UNSCALED or CASES[case][0] in UNSCALED
    assert (disk.layout.no_scale is not None) == unscaled
    if unscaled:
        assert disk.layout.no_bridge
        return
    tensors = dict(disk.tensors)
    for layer in (3, 4, 5):
        for rest, name in layer_tensors(disk.layout, disk.tensors.keys(), layer).items():
            tensors[name] = folded(fold_scale(disk.layout, rest), tensors[name], c)

    result = logits(load(write(tmp_path / "out", disk.config, tensors)))

    hidden = original.embedded
    for layer in range(6):
        hidden = original.run(layer, hidden) * (c if layer == 2 else 1.0)
    close(result, original.finish(hidden), 1e-3)
    assert (result - original.unchanged).abs().max() > 0.05


@pytest.mark.parametrize("case", FIRSTS)
def test_a_bridge_changes_only_the_mlp_projection(
    case: str, made: Any, originals: Any, tmp_path: Path
) -> None:
    disk, original = read(made(case)), originals(case)
    if disk.layout.no_bridge:
        assert case in UNSCALED or CASES[case][0] in MIXED
        return
    tensors, hidden_size = dict(disk.tensors), original.embedded.shape[-1]
    for rest, name in layer_tensors(disk.layout, disk.tensors.keys(), 5).items():
        if (how := post_norm(disk.layout, rest)) is not None:
            tensors[name] = folded(how, tensors[name], 0.5)
        elif projection(disk.layout, rest) == "mlp":
            tensors[name] = 2 * tensors[name]
            assert tensors[name].shape[-1 if disk.layout.transposed else -2 :][0] == hidden_size

    result = logits(load(write(tmp_path / "out", disk.config, tensors)))

    hidden = original.embedded
    for layer in range(5):
        hidden = original.run(layer, hidden)
    attended = original.without("mlp", 5, hidden)
    close(result, original.finish(2 * original.run(5, hidden) - attended))


# ---------------------------------------------------------------------- layers with their own rules


@pytest.mark.parametrize(
    ("family", "base", "other"),
    [
        ("gemma3_text", {"sliding_window_pattern": 2}, {"sliding_window_pattern": 3}),
        ("smollm3", {"no_rope_layer_interval": 2}, {"no_rope_layer_interval": 3}),
        (
            "qwen2",
            {"use_sliding_window": False},
            {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
        ),
        ("qwen3_moe", {"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}),
        ("deepseek_v3", {"first_k_dense_replace": 2}, {"first_k_dense_replace": 1}),
    ],
)
def test_a_layer_brings_its_own_configuration(
    family: str, base: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    folders = [
        tiny_model(family, tmp_path / str(seed), seed=seed, **config)
        for seed, config in enumerate((base, other))
    ]
    (a, b), (model_a, model_b) = map(read, folders), map(Original, folders)
    assert a.entries != b.entries
    assert incompatible(a.layout, a.config, b.config) == []
    layers = [(a, 0), (b, 2), (b, 4), (a, 3)]
    config = moved_config(a.layout, a.config, [disk.entries[i] for disk, i in layers])

    result = load(write(tmp_path / "out", config, stitch(a, layers)))

    close(
        logits(result), by_hand(model_a, [(model_a if d is a else model_b, i) for d, i in layers])
    )


def test_a_joined_entry_follows_the_rules_of_each_part(tmp_path: Path) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 6}
    config = {**windows, "mlp_only_layers": [0]}
    disk = read(tiny_model("qwen2_moe", tmp_path, **config))
    entry = joined_entry(disk.layout, attn=disk.entries[1], mlp=disk.entries[0])
    assert entry["layer_types"] == "full_attention"
    assert entry["mlp"] == "dense"
    assert joined_entry(disk.layout, disk.entries[0], disk.entries[1])["sliding_window"] == 3


# ------------------------------------------------------------------------------ the files on disk


def test_gpt2_as_the_hub_has_it(made: Any, originals: Any, tmp_path: Path) -> None:
    """Without the prefix, and with a causal mask in each layer."""
    disk, original = read(made("gpt2")), originals("gpt2")
    old = {name.removeprefix("transformer."): t for name, t in disk.tensors.items()}
    old |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8).tril() for i in range(6)}
    hub = read(write(tmp_path / "hub", disk.config, old))
    assert hub.layout.prefix == "h."
    config = moved_config(hub.layout, hub.config, [hub.entries[i] for i in ORDER])
    folder = write(tmp_path / "out", config, stitch(hub, [(hub, i) for i in ORDER]))
    close(logits(load(folder)), by_hand(original, [(original, i) for i in ORDER]))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_experts_in_one_tensor(family: str, made: Any, originals: Any, tmp_path: Path) -> None:
    """As transformers 5 holds them in memory."""
    disk, original = read(made(family)), originals(family)
    state = {name: t.contiguous() for name, t in original.model.state_dict().items()}
    fused = read(write(tmp_path / "fused", disk.config, state))
    assert any(name.endswith("experts.gate_up_proj") for name in fused.tensors)
    assert fold_scale(fused.layout, "mlp.experts.down_proj") == "divide"
    assert fold_scale(fused.layout, "mlp.experts.gate_up_proj") is None
    config = moved_config(fused.layout, fused.config, [fused.entries[i] for i in ORDER])
    folder = write(tmp_path / "out", config, stitch(fused, [(fused, i) for i in ORDER]))
    close(logits(load(folder)), by_hand(original, [(original, i) for i in ORDER]))


def test_layers_that_predict_further_tokens_stand_after_the_last(made: Any) -> None:
    disk = read(made("deepseek_v3"))
    names = {*disk.tensors, "model.layers.6.eh_proj.weight", "model.layers.6.enorm.weight"}
    layout = layout_of(disk.config, names)
    assert isinstance(layout, Layout)
    assert layout.predicting == names - disk.tensors.keys()
    assert split_name(layout, "model.layers.6.enorm.weight") is None
    given = {**disk.config, "use_mtp": True}
    for kept in (False, True):
        config = moved_config(layout, given, disk.entries[:3], predicting=kept)
        assert isinstance(config, dict)
        assert (config["num_nextn_predict_layers"], config["use_mtp"]) == (int(kept), kept)


# ------------------------------------------------------------------------------- the configuration


LISTED = {"lfm2_moe", "nemotron_h"}
"""Without the list of their kinds the model can't be made."""


@pytest.mark.parametrize("family", FAMILY_OF)
def test_an_absent_key_has_the_default_value_of_transformers(family: str) -> None:
    full = AutoConfig.for_model(family).to_dict()
    shape = {key: full[key] for key in ("num_attention_heads", "hidden_size") if key in full}
    for key in FAMILY_OF[family].agree:
        assert FAMILY_OF[family].value(key, shape) == FAMILY_OF[family].value(key, full), key
    assert FAMILY_OF[family].tied == full.get("tie_word_embeddings", False)
    for rule in FAMILY_OF[family].rules:
        if family in LISTED and rule.name == "layer_types":
            with pytest.raises(RuleError):
                rule.read({}, 40)
            continue
        count = {"gpt_neo": 24}.get(family, 40)
        assert rule.read({}, count) == rule.read(full_of(family, count), count)


def full_of(family: str, count: int) -> dict[str, Any]:
    return AutoConfig.for_model(family, num_hidden_layers=count).to_dict()


OLDER = [case for case, (family, _, _) in CASES.items() if family != "cohere_compass_text"]


@pytest.mark.parametrize("case", OLDER)
def test_a_configuration_agrees_with_its_older_form(case: str, made: Any) -> None:
    """Rotary embeddings under the older keys, and nothing that is a default."""
    disk = read(made(case))
    old = {k: v for k, v in disk.config.items() if k not in {"rope_parameters", "layer_types"}}
    given = disk.config.get("rope_parameters") or {}
    wide = given.get("full_attention", given)
    names = {
        "gpt_neox": ("rotary_emb_base", "rotary_pct"),
        "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct"),
        "modernbert-decoder": ("global_rope_theta", "partial_rotary_factor"),
    }
    theta, partial = names.get(CASES[case][0], ("rope_theta", "partial_rotary_factor"))
    renamed = {"rope_theta": theta, "partial_rotary_factor": partial}
    old |= {renamed[key]: value for key, value in wide.items() if key in renamed}
    assert incompatible(disk.layout, disk.config, old) == []
    assert incompatible(disk.layout, old, disk.config) == []


@pytest.mark.parametrize("case", CASES)
def test_lists_are_derived_as_transformers_does(case: str, made: Any) -> None:
    """transformers 5 writes them out; older configurations have the rule alone."""
    disk = read(made(case))
    listed = ("layer_types", "no_rope_layers")
    old = {key: value for key, value in disk.config.items() if key not in listed}
    family, config, _ = CASES[case]
    old |= {**CONFIGURATIONS[family], **config}
    assert layer_entries(disk.layout, old) == disk.entries


def test_a_quantised_checkpoint_is_neither_scaled_nor_bridged(made: Any) -> None:
    disk = read(made("llama"))
    config = {**disk.config, "quantization_config": {"quant_method": "gptq"}}
    layout = layout_of(config, disk.tensors.keys())
    assert isinstance(layout, Layout)
    reason = "the checkpoint's weights are quantised ('gptq')"
    assert (layout.no_scale, layout.no_bridge, layout.quantised) == (reason, reason, "gptq")
    assert layout == replace(disk.layout, no_scale=reason, no_bridge=reason, quantised="gptq")
