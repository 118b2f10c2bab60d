"""Adapters merged tensor by tensor equal PEFT's own `merge_and_unload`, to a rounding."""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gptailor
from gptailor.checkpoint.folder import Checkpoint, open_checkpoint
from gptailor.checkpoint.formats.lora import apply_adapter
from gptailor.checkpoint.tensor import (
    Adapted,
    Delta,
    LowRank,
    NewRows,
    Shift,
    TensorInfo,
    TensorSpec,
)
from gptailor.methods.rounding import NotFiniteFault, OverflowFault
from gptailor.program import load
from gptailor.program.load import load_tensor
from tests.support.tiny import tiny_model

peft = pytest.importorskip("peft")

ATTENTION = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ALL, "r": 4, "lora_alpha": 7}),
    "fractional": ("llama", {"target_modules": ATTENTION, "r": 3, "lora_alpha": 0.1}),
    "patterns": (
        "llama",
        {
            "target_modules": ALL,
            "rank_pattern": {"layers.1.self_attn.q_proj": 6, "down_proj": 2, "proj": 1},
            "alpha_pattern": {r"^model\.layers\.0\..*_proj": 3, "o_proj": 40},
        },
    ),
    "rslora": ("llama", {"target_modules": ALL, "use_rslora": True, "r": 5, "lora_alpha": 3}),
    "rslora patterns": (
        "qwen2",
        {"target_modules": ALL, "use_rslora": True, "rank_pattern": {"up_proj": 7}},
    ),
    "dora": ("llama", {"target_modules": ALL, "use_dora": True, "r": 4}),
    "dora rslora": ("qwen2", {"target_modules": ALL, "use_dora": True, "use_rslora": True}),
    "some layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "one layer": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": 0}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "regex": ("llama", {"target_modules": r".*\.1\.mlp\.up_proj"}),
    "excluded": ("llama", {"target_modules": ALL, "exclude_modules": ["up_proj"]}),
    "saved": (
        "llama",
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head", "embed_tokens"]},
    ),
    "saved norms": ("llama", {"target_modules": ATTENTION, "modules_to_save": ["norm"]}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "r": 4}),
    "embedding and head": ("llama", {"target_modules": ["embed_tokens", "lm_head"], "r": 4}),
    "dora embedding": (
        "llama",
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True, "r": 4},
    ),
    "tokens": ("llama", {"target_modules": ATTENTION, "trainable_token_indices": [5, 3, 60]}),
    "tokens by name": (
        "llama",
        {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [1, 2]}},
    ),
    "biases": ("qwen2", {"target_modules": ATTENTION, "bias": "all"}),
    "own biases": ("qwen2", {"target_modules": ATTENTION, "bias": "lora_only"}),
    "lora bias": ("qwen2", {"target_modules": ATTENTION, "lora_bias": True, "bias": "all"}),
    "turned": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True, "r": 4},
    ),
    "turned unsaid": ("gpt2", {"target_modules": ["c_attn"], "r": 4}),
    "turned dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "r": 4}),
    "turned embedding": (
        "gpt2",
        {"target_modules": ["wte", "wpe", "c_attn"], "fan_in_fan_out": True, "r": 4},
    ),
    "turned layers and a head": ("gpt2", {"target_modules": ["c_attn", "lm_head"], "r": 4}),
    "tied embedding": ("tied", {"target_modules": ["embed_tokens", "q_proj"], "r": 4}),
    "tied head": ("tied", {"target_modules": ["lm_head", "q_proj"], "r": 4}),
    "tied tokens": ("tied", {"target_modules": ATTENTION, "trainable_token_indices": [3]}),
    "tied, embedding saved": (
        "tied",
        {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
    ),
    "tied, head saved": ("tied", {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}),
    "tied, kept tied": (
        "tied",
        {
            "target_modules": ATTENTION,
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "tied, head saved, embedding adapted": (
        "tied",
        {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"], "r": 4},
    ),
    "experts": ("mixtral", {"target_modules": ["q_proj", "o_proj"], "r": 4}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in ("llama", "qwen2", "gpt2", "mixtral"):
        tiny_model(name, folder / name, layers=2)
    tiny_model("llama", folder / "tied", layers=2, tie_word_embeddings=True)
    tiny_model("llama", folder / "half", layers=2, dtype="bfloat16")
    return folder


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT warns of much, and of its own use of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def train(model: Any, folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """Save an adapter on a model, as if it had been trained: all that can be is moved."""
    adapter = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (0.3 * noise).to(parameter.dtype)
    adapter.save_pretrained(folder)
    return folder


def merged(model: Any, *adapters: Path) -> dict[str, Tensor]:
    """PEFT's own merge of adapters, one on the other."""
    for folder in adapters:
        model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def apply(base: Path, *adapters: Path) -> tuple[Checkpoint, list[str]]:
    checkpoint, messages = open_checkpoint(base), []
    for folder in adapters:
        checkpoint, warned = apply_adapter(checkpoint, folder)
        messages += warned
    return checkpoint, messages


def check(checkpoint: Checkpoint, expected: dict[str, Tensor], *, atol: float = 2e-6) -> int:
    """Compare all tensors; how many of them the adapters change."""
    for name, tensor in checkpoint.tensors.items():
        values = load_tensor(tensor)
        assert values.shape == tensor.spec.shape
        if tensor.form is None:
            assert torch.equal(values, expected[name]), name
        torch.testing.assert_close(values.float(), expected[name].float(), atol=atol, rtol=2e-6)
    return sum(
        tensor != open_checkpoint(checkpoint.folder).tensors.get(name)
        for name, tensor in checkpoint.tensors.items()
    )


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_merged_as_peft_does_it(case: str, bases: Path, tmp_path: Path) -> None:
    base, config = CASES[case]
    adapter = train(load_model(bases / base), tmp_path / "adapter", **config)
    expected = merged(load_model(bases / base), adapter)
    before = load_model(bases / base).state_dict()
    checkpoint, _ = apply(bases / base, adapter)
    if base != "mixtral":  # transformers joins its experts; they have other names on disk
        changed = {n for n, t in expected.items() if not torch.equal(t, before[n])}
        ours = {
            n for n, t in checkpoint.tensors.items() if not torch.equal(load_tensor(t), before[n])
        }
        twins = {"lm_head.weight"} - checkpoint.tensors.keys()
        assert ours == changed - twins
        assert check(checkpoint, expected) >= len(ours)
    else:
        attention = {n: t for n, t in checkpoint.tensors.items() if n in expected}
        assert sum(isinstance(t.form, Adapted) for t in attention.values()) == 4
        check(Checkpoint(checkpoint.folder, {}, attention, ()), expected)


LEFT_OUT: dict[str, dict[str, Any]] = {
    "a layer": {"layers_to_transform": 1},
    "layers": {"layers_to_transform": [1, 7]},
    "a layer by its list's name": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "several lists": {"layers_to_transform": [0], "layers_pattern": ["blocks", "lay.rs"]},
    "no layer": {"layers_to_transform": [], "layers_pattern": []},
    "a whole name": {"target_modules": ["model.layers.0.mlp.up_proj", "q_proj"],
                     "layers_to_transform": 1},
    "fewer targets": {"target_modules": ["q_proj", "0.mlp.down_proj"]},
    "a pattern": {"target_modules": r".*\.1\.(self_attn|mlp)\.[qu].*"},
    "a pattern that is no whole name": {"target_modules": r".*\.1\.self_attn\.[qk]_proj"},
    "excluded": {"exclude_modules": ["0.self_attn.q_proj", "mlp.up_proj"]},
    "excluded by a pattern": {"exclude_modules": r".*\.0\..*"},
    "both": {"target_modules": ["q_proj"], "exclude_modules": ["q"], "layers_to_transform": [1]},
}  # fmt: skip
"""Settings that let PEFT read less than an adapter's file holds."""


@pytest.mark.parametrize("case", LEFT_OUT)
def test_deltas_that_peft_does_not_read_are_left_out(
    case: str, bases: Path, tmp_path: Path
) -> None:
    adapter = train(load_model(bases / "llama"), tmp_path / "adapter", target_modules=ALL, r=4)
    settings = adapter / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | LEFT_OUT[case]))
    expected = merged(load_model(bases / "llama"), adapter)
    checkpoint, messages = apply(bases / "llama", adapter)
    assert 0 < check(checkpoint, expected) == 14 - left_out(messages)


def left_out(warned: list[str]) -> int:
    """The number of modules that warnings name as left out."""
    messages = [text for text in warned if "leaves out" in text]
    return len(messages) + sum(
        int(more) for more in re.findall(r"' and (\d+) more", "".join(messages))
    )


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("tied")])
def test_a_tied_model_stays_tied_as_in_peft(case: str, bases: Path, tmp_path: Path) -> None:
    base, config = CASES[case]
    adapter = train(load_model(bases / base), tmp_path / "adapter", **config)
    model = peft.PeftModel.from_pretrained(load_model(bases / base), adapter).merge_and_unload()
    checkpoint, messages = apply(bases / base, adapter)
    assert checkpoint.config["tie_word_embeddings"] == model.config.tie_word_embeddings
    assert ("lm_head.weight" in checkpoint.tensors) != model.config.tie_word_embeddings
    assert any("tied" in text for text in messages) == (
        case not in ("tied tokens", "tied, kept tied")
    )


def test_the_scale_of_the_delta_has_the_patterns_effect(bases: Path, tmp_path: Path) -> None:
    adapter = train(load_model(bases / "llama"), tmp_path / "adapter", **CASES["patterns"][1])
    checkpoint, warnings = apply(bases / "llama", adapter)
    assert [text for text in warnings if "no module for 'proj'" not in text] == []

    def scale(name: str) -> tuple[float, int]:
        form = checkpoint.tensors[f"model.layers.{name}_proj.weight"].form
        assert isinstance(form, Adapted)
        (delta,) = form.deltas
        assert isinstance(delta, LowRank)
        return delta.scale, delta.a.spec.shape[0]

    assert scale("1.self_attn.q") == (8 / 6, 6)
    assert scale("0.self_attn.q") == (3 / 8, 8)
    assert scale("1.self_attn.o") == (40 / 8, 8)
    assert scale("1.mlp.down") == (8 / 2, 2)


def test_adapters_are_chained(bases: Path, tmp_path: Path) -> None:
    adapter = train(
        load_model(bases / "llama"), tmp_path / "one", target_modules=ALL, use_dora=True
    )
    model = peft.PeftModel.from_pretrained(load_model(bases / "llama"), adapter).merge_and_unload()
    config = {"target_modules": ATTENTION, "modules_to_save": ["lm_head"], "r": 3}
    two = train(model, tmp_path / "two", seed=1, **config)
    checkpoint, _ = apply(bases / "llama", adapter, two)
    check(checkpoint, merged(load_model(bases / "llama"), adapter, two))
    form = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].form
    assert isinstance(form, Adapted)
    assert [isinstance(delta, LowRank) for delta in form.deltas] == [True, True]
    assert checkpoint.files[1:] == tuple(f / "adapter_model.safetensors" for f in (adapter, two))


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ALL, "r": 4},
        {"target_modules": ALL, "use_dora": True},
        {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens"], "r": 4},
    ],
)
def test_a_delta_in_half_precision_is_rounded_once(
    config: dict[str, Any], bases: Path, tmp_path: Path
) -> None:
    adapter = train(load_model(bases / "half"), tmp_path / "adapter", **config)
    expected = merged(load_model(bases / "half"), adapter)
    checkpoint, _ = apply(bases / "half", adapter)
    for name, tensor in checkpoint.tensors.items():
        assert tensor.spec.dtype == "BF16"
        ours, theirs = load_tensor(tensor).bfloat16(), expected[name]
        embedded = "embed" in name  # its delta, of at most 4, is rounded by PEFT before it is added
        atol = 2**-6 if embedded else 2**-9
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2**-7, atol=atol)
        assert embedded or (ours == theirs).float().mean() > 0.98


# -------------------------------------------------------------------------------------- arithmetic


def stored(folder: Path, name: str, values: Tensor) -> TensorInfo:
    """A tensor in a file of its own."""
    file = folder / name
    file.write_bytes(values.contiguous().view(torch.uint8).numpy().tobytes())
    dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[values.dtype]
    return TensorInfo(TensorSpec(name, dtype, tuple(values.shape)), file, 0)


def adapted(tensor: TensorInfo, *deltas: Delta) -> TensorInfo:
    return replace(tensor, form=Adapted(tensor, deltas))


@pytest.mark.parametrize("turned", [False, True])
def test_threads_and_blocks_change_no_bit(
    turned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, *shape: int) -> TensorInfo:
        return stored(tmp_path, name, torch.randn(shape, generator=generator))

    outputs, inputs = (257, 300) if turned else (300, 257)
    a, b, w = draw("a", 24, inputs), draw("b", outputs, 24), draw("w", 300, 257)
    delta = LowRank(a, b, 0.7, turned, draw("m", outputs))
    threads = torch.get_num_threads()
    results = []
    try:
        for count, block in ((1, 2**21), (2, 2**21), (4, 2**12), (3, 1)):
            torch.set_num_threads(count)
            monkeypatch.setattr(load, "_DELTA_ENTRIES", block)
            results.append(load_tensor(adapted(w, delta)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert not torch.equal(results[0], load_tensor(w))


def test_deltas_follow_one_another(tmp_path: Path) -> None:
    rows = stored(tmp_path, "rows", torch.tensor([[1.0, 2.0]]))
    bias = stored(tmp_path, "bias", torch.ones(3, 2))
    w = stored(tmp_path, "w", torch.zeros(3, 2))
    result = load_tensor(adapted(w, NewRows(rows, (2,)), Shift(bias, 0.5)))
    assert torch.equal(result, torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.5, 2.5]]))


def test_a_delta_that_overflows_is_named(tmp_path: Path) -> None:
    w, b = stored(tmp_path, "w", torch.ones(3, 2)), torch.ones(3, 1)
    b[2] = 1e30
    delta = LowRank(stored(tmp_path, "a", torch.ones(1, 2)), stored(tmp_path, "b", b), 1e20)
    with pytest.raises(
        OverflowFault, match=r"'w'\[2, 0\] is 1.00000002e\+50.*: 1e\+20 times 'b' @ 'a'"
    ):
        load_tensor(adapted(w, delta))
    turned = adapted(stored(tmp_path, "v", torch.ones(2, 3)), replace(delta, transposed=True))
    with pytest.raises(OverflowFault, match=r"'v'\[0, 2\] is 1.00000002e\+50"):
        load_tensor(turned)
    bias = stored(tmp_path, "bias", torch.full((3, 2), 3e38))
    with pytest.raises(OverflowFault, match=r"'w'\[0, 0\] is 6.*e\+38.*: 2 times 'bias'"):
        load_tensor(adapted(w, Shift(bias, 2.0)))


@pytest.mark.parametrize("wild", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["w", "a", "b", "m"])
def test_a_value_of_an_adapter_that_is_not_finite_is_named(
    name: str, wild: float, tmp_path: Path
) -> None:
    shapes = {"w": (3, 2), "a": (1, 2), "b": (3, 1), "m": (3,)}
    values = {each: torch.ones(shape) for each, shape in shapes.items()}
    values[name].reshape(-1)[1] = wild
    w, a, b, m = (stored(tmp_path, each, tensor) for each, tensor in values.items())
    message = f"got {wild} in '{name}'.* of '{tmp_path.name}/{name}"
    with pytest.raises(NotFiniteFault, match=message):
        load_tensor(adapted(w, LowRank(a, b, 1.0, magnitude=m)))


def test_a_direction_of_zeros_is_refused(tmp_path: Path) -> None:
    w, a, b = (
        stored(tmp_path, n, torch.zeros(s))
        for n, s in (("w", (3, 2)), ("a", (1, 2)), ("b", (3, 1)))
    )
    delta = LowRank(a, b, 1.0, magnitude=stored(tmp_path, "m", torch.ones(3)))
    with pytest.raises(OverflowFault, match="'m' divided by the length"):
        load_tensor(adapted(w, delta))


def test_without_deltas_a_tensor_is_only_cast(tmp_path: Path) -> None:
    w = stored(tmp_path, "w", torch.tensor([1.5], dtype=torch.bfloat16))
    result = load_tensor(adapted(w))
    assert result.dtype == torch.float32
    assert result.item() == 1.5


# ------------------------------------------------------------------------------------- end to end

PLAN = """\
tailor 1
model base = "{bases}/llama"
model code = base + "{one}"
model more = code + "{two}"

L1 from {name}
"""


@pytest.mark.parametrize(("name", "count"), [("code", 1), ("more", 2)])
def test_a_plan_with_an_adapter_compiles(
    name: str, count: int, bases: Path, tmp_path: Path
) -> None:
    adapter = train(load_model(bases / "llama"), tmp_path / "one", target_modules=ALL, r=4)
    model = peft.PeftModel.from_pretrained(load_model(bases / "llama"), adapter).merge_and_unload()
    two = train(model, tmp_path / "two", seed=1, target_modules=ATTENTION, r=4)
    adapters = [adapter, two][:count]
    expected = merged(load_model(bases / "llama"), *adapters)
    plan = tmp_path / "plan.tailor"
    plan.write_text(PLAN.format(bases=bases, one=adapter, two=two, name=name))
    gptailor.compile(gptailor.load(plan), tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    base = load_file(bases / "llama/model.safetensors")
    for key, tensor in written.items():
        if ".layers.1." in key:
            torch.testing.assert_close(tensor, expected[key], atol=2e-6, rtol=2e-6)
        else:
            assert torch.equal(tensor, base[key])
    assert not torch.equal(
        written["model.layers.1.self_attn.q_proj.weight"],
        base["model.layers.1.self_attn.q_proj.weight"],
    )
    loaded = load_model(tmp_path / "out")
    assert loaded(torch.tensor([[1, 5, 9]])).logits.isfinite().all()
