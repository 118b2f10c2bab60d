"""Quantised checkpoints: layers move byte for byte, and their configuration follows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gptailor
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout, layout_of
from gptailor.checkpoint.families.quantised import requantised
from tests.support.tiny import tiny_model

FORMATS: dict[str, tuple[dict[str, Any], dict[str, torch.dtype]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4,
         "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]],
         "dynamic": {r"-:model\.layers\.3\.mlp\..*": {}, r"+:.*\.up_proj": {"bits": 8}}},
        {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16,
         "g_idx": torch.int32},
    ),
    "awq": (
        {"quant_method": "awq", "modules_to_not_convert": ["model.layers.3.", "lm_head"]},
        {"qweight": torch.int32, "qzeros": torch.int32, "scales": torch.float16},
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head"]},
        {"weight": torch.uint8, "weight.absmax": torch.uint8, "weight.quant_map": torch.float32,
         "weight.nested_absmax": torch.float32,
         "weight.quant_state.bitsandbytes__nf4": torch.uint8},
    ),
    "fp8": (
        {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.3.mlp.up_proj"]},
        {"weight": torch.float8_e4m3fn, "weight_scale_inv": torch.float32},
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "ignore": ["lm_head", "model.layers.3.mlp.up_proj"],
         "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}}},
        {"weight_packed": torch.int32, "weight_scale": torch.float16, "weight_shape": torch.int64},
    ),
}  # fmt: skip


def quantise(
    folder: Path, seed: int, config: dict[str, Any], kinds: dict[str, torch.dtype]
) -> None:
    """A tiny model with the tensors of such a format as its matrices; the numbers are noise."""
    tiny_model("llama", folder, seed=seed, layers=4, dtype="float16")
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "_proj.weight" not in name:
            tensors[name] = tensor
            continue
        stem = name.removesuffix("weight")
        for suffix, dtype in kinds.items():
            noise = torch.randint(0, 100, (8, 3), generator=generator)
            tensors[stem + suffix] = noise.to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    change(folder, quantization_config=config)


def change(folder: Path, **config: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


@pytest.fixture(scope="module", params=FORMATS)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models in a format, and one that isn't quantised."""
    root = tmp_path_factory.mktemp(request.param)
    for seed, name in enumerate(("base", "math")):
        quantise(root / name, seed, *FORMATS[request.param])
    tiny_model("llama", root / "plain", seed=3, layers=4, dtype="float16")
    return root


HEAD = """tailor 1
model base = "./base"
model math = "./math"
model plain = "./plain"
"""


def test_layers_move_byte_for_byte(models: Path, tmp_path: Path) -> None:
    plan = gptailor.loads(HEAD + "drop L0..L1; L2 from math; norm from plain", folder=models)
    gptailor.compile(plan, tmp_path / "out")
    base, math = (load_file(models / n / "model.safetensors") for n in ("base", "math"))
    expected = {n: t for n, t in base.items() if ".layers." not in n}
    expected["model.norm.weight"] = load_file(models / "plain" / "model.safetensors")[
        "model.norm.weight"
    ]
    for new, (source, old) in enumerate([(math, 2), (base, 3)]):
        mark = f".layers.{old}."
        expected |= {n.replace(mark, f".layers.{new}."): t for n, t in source.items() if mark in n}
    result = load_file(tmp_path / "out" / "model.safetensors")
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        assert result[name].dtype == tensor.dtype, name
        assert result[name].view(torch.uint8).equal(tensor.view(torch.uint8)), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.dumps(json.loads((models / "base" / "config.json").read_text()))
    after = json.dumps(config["quantization_config"])
    assert ("layers" in after) == ("layers" in before.partition("quantization_config")[2])
    assert "3" not in after.replace('"num_bits": 4', "")


def test_a_quantisation_is_found_in_the_tensors_without_a_configuration(tmp_path: Path) -> None:
    quantise(tmp_path / "base", 0, *FORMATS["gptq"])
    change(tmp_path / "base", quantization_config=None)
    text = 'tailor 1\nmodel base = "./base"\ndtype bfloat16'
    (fault,) = gptailor.check(gptailor.loads(text, folder=tmp_path))
    assert fault.code == "M213"
    assert "names no method" in fault.message


@pytest.mark.parametrize("text", ["dtype bfloat16", "scale L1 by 0.5"])
def test_small_floats_are_not_computed_with(tmp_path: Path, text: str) -> None:
    tiny_model("llama", tmp_path / "base", layers=4)
    file = tmp_path / "base" / "model.safetensors"
    save_file({n: t.to(torch.float8_e4m3fn) if "_proj" in n else t
               for n, t in load_file(file).items()}, file)  # fmt: skip
    plan = gptailor.loads(f'tailor 1\nmodel base = "./base"\n{text}', folder=tmp_path)
    assert [fault.code for fault in gptailor.check(plan)] == ["M215"]


# ------------------------------------------------------------------------------ the configuration


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tiny_model("llama", tmp_path_factory.mktemp("m"), layers=12)
    config = json.loads((folder / "config.json").read_text())
    result = layout_of(config, load_file(folder / "model.safetensors"))
    assert isinstance(result, Layout)
    return result


def moved(layout: Layout, entries: Any, places: list[tuple[int, int]]) -> Any:
    result = requantised(layout, {"quantization_config": {"ignore": entries}}, places)
    return result if isinstance(result, Refusal) else result["quantization_config"]["ignore"]


SHIFTED = [(3, 3), (11, 11), (3, 3)]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("lm_head", ["lm_head"]),
        ("Linear", ["Linear"]),
        ("re:.*lm_head", ["re:.*lm_head"]),
        ("re:.*self_attn.*", ["re:.*self_attn.*"]),
        ("experts.3.w1", ["experts.3.w1"]),
        ("model.layers.*.self_attn", ["model.layers.*.self_attn"]),
        (r"re:model\.layers\.\d+\.mlp", [r"re:model\.layers\.\d+\.mlp"]),
        ("model.layers.3.mlp", ["model.layers.0.mlp", "model.layers.2.mlp"]),
        ("layers.11.mlp.up_proj", ["layers.1.mlp.up_proj"]),
        ("model.layers.11", ["model.layers.1"]),
        ("model.layers.3.", ["model.layers.0.", "model.layers.2."]),
        (
            r"-:model\.layers\.3\.mlp.*",
            [r"-:model\.layers\.0\.mlp.*", r"-:model\.layers\.2\.mlp.*"],
        ),
        (r"re:.*layers\.11\..*", [r"re:.*layers\.1\..*"]),
        ("model.layers.5.mlp", []),
    ],
)
def test_entries_follow_their_layers(layout: Layout, entry: str, expected: list[str]) -> None:
    assert moved(layout, [entry], SHIFTED) == expected
    (key,) = expected[:1] or [None]
    keyed = requantised(layout, {"quantization_config": {"dynamic": {entry: {"bits": 8}}}}, SHIFTED)
    assert not isinstance(keyed, Refusal)
    assert list(keyed["quantization_config"]["dynamic"])[:1] == ([key] if key else [])


@pytest.mark.parametrize(
    "entry",
    [
        r"re:model\.layers\.[0-5]\.mlp",
        r"re:model\.layers\.(1|2)\.mlp",
        r"+:.*\.18\..*gate.*",
        r"re:model\.layers\..\.mlp",
        "model.layers.1",
        "3.mlp",
    ],
)
def test_a_setting_that_cannot_follow_its_layers_is_refused(layout: Layout, entry: str) -> None:
    result = moved(layout, [entry], SHIFTED)
    assert isinstance(result, Refusal)
    assert entry in result.reason
    stays = [(n, n) for n in range(7)]
    assert moved(layout, [entry], stays) == [entry]


def test_branches_follow_by_themselves(layout: Layout) -> None:
    crossed = [(3, 4)]
    assert moved(layout, ["model.layers.3.self_attn.q_proj", "model.layers.4.mlp"], crossed) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp",
    ]
    assert moved(layout, ["model.layers.4.self_attn", "model.layers.3.mlp"], crossed) == []
    assert isinstance(moved(layout, ["model.layers.3."], crossed), Refusal)


# ------------------------------------------------------------------------- code in the repository


def test_code_is_never_run(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", layers=2)
    (tmp_path / "base" / "modeling_x.py").write_text("raise SystemExit")
    change(tmp_path / "base", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L0', folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not (tmp_path / "out" / "modeling_x.py").exists()
    change(tmp_path / "base", model_type="mystery")
    (fault,) = gptailor.check(plan)
    assert fault.code == "M204"
    assert "auto_map" in fault.message
