"""Plans that compute with quantised models equal plans with the models' dequantised weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from transformers import AutoModelForCausalLM

import gptailor
from gptailor.plan.faults import Fault
from tests.support.quantised import FORMATS, mxfp4, write_quantised
from tests.support.tiny import tiny_model

HEAD = 'tailor 1\nmodel base = "./{}/base"\nmodel math = "./{}/math"\n'
BRIDGE = 'L0 from math; drop L1; bridge on "a.txt" tokens 128'


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, from which quantised ones are made, and a text."""
    root = tmp_path_factory.mktemp("source")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", root / name, seed=seed, layers=3, hidden_size=64,
                   intermediate_size=96, head_dim=16)  # fmt: skip
    (root / "a.txt").write_text("the cat sat on the mat and looked at the dog " * 40)
    return root


def make(root: Path, source: Path, format_: str) -> Path:
    """`packed` and `plain` models, of the same numbers."""
    for seed, name in enumerate(("base", "math")):
        for kind in ("packed", "plain"):
            shutil.copytree(source / name, root / kind / name)
        plain = write_quantised(root / "packed" / name, format_, seed)
        save_file(plain, root / "plain" / name / "model.safetensors", {"format": "pt"})
    shutil.copy(source / "a.txt", root)
    return root


@pytest.fixture(scope="module")
def models(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in FP8."""
    return make(tmp_path_factory.mktemp("fp8"), source, "fp8-block")


def text(statements: str, kinds: tuple[str, str] = ("packed", "packed")) -> str:
    return HEAD.format(*kinds) + statements


def said(folder: Path, plan: str) -> list[Fault]:
    return gptailor.check(gptailor.loads(plan, folder=folder))


def compiled(folder: Path, plan: str, out: Path) -> dict[str, torch.Tensor]:
    gptailor.compile(gptailor.loads(plan, folder=folder), out)
    return load_file(out / "model.safetensors")


def assert_same(actual: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].equal(tensor), name


@pytest.mark.parametrize("format_", FORMATS)
def test_a_merge_is_that_of_the_numbers(format_: str, source: Path, tmp_path: Path) -> None:
    folder = make(tmp_path, source, format_)
    merge = "L0 from math; L1 from base, math by task_arithmetic(0.7); drop L2"
    (warning,) = said(folder, text(merge))
    assert (warning.code, warning.severity) == ("M309", "warning")
    result = compiled(folder, text(merge), tmp_path / "out")
    assert_same(result, compiled(folder, text(merge, ("plain", "plain")), tmp_path / "wanted"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((tmp_path / "wanted" / "config.json").read_text())
    assert "quantization_config" not in config


@pytest.mark.parametrize(
    "statements",
    [
        "dtype bfloat16; L1 from math",
        "dtype float16; L0 from math; L1.mlp from math",
        "scale L0 by 0.5; L1.attn from math",
        "norm from math; scale L1 by 2.0; head from math",
        BRIDGE,
        "L2 from base, math by ties(density=0.5)",
        "L2 from base, math by slerp(0.3)",
        'model tuned = math + "./lora"; L1 from tuned',
    ],
)
def test_every_computation_uses_dequantised_numbers(
    statements: str, models: Path, tmp_path: Path
) -> None:
    adapter(models)
    result = compiled(models, text(statements), tmp_path / "out")
    wanted = compiled(models, text(statements, ("plain", "plain")), tmp_path / "wanted")
    assert_same(result, wanted)
    assert {fault.code for fault in said(models, text(statements))} == {"M309"}


def adapter(folder: Path) -> None:
    """A LoRA adapter for a model of ours."""
    (folder / "lora").mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    drawn = torch.Generator().manual_seed(0)
    tensors = {
        f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{ab}.weight": torch.randn(
            shape, generator=drawn
        )
        for n in range(3)
        for ab, shape in (("A", (2, 64)), ("B", (64, 2)))
    }
    save_file(tensors, folder / "lora" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "statements",
    ["L0 from math", "drop L0..L1", "norm from base, math by linear()", "head from math"],
)
def test_moved_layers_keep_their_bytes(statements: str, models: Path, tmp_path: Path) -> None:
    assert said(models, text(statements)) == [] or "math" not in statements
    result = compiled(models, text(statements), tmp_path / "out")
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in result.values())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "fp8"


@pytest.mark.parametrize("kinds", [("packed", "plain"), ("plain", "packed"), ("packed", "other")])
def test_models_quantised_in_different_ways_are_mixed_as_numbers(
    kinds: tuple[str, str], models: Path, source: Path, tmp_path: Path
) -> None:
    for kind in ("packed", "plain"):
        (tmp_path / kind).symlink_to(models / kind)
    if kinds[1] == "other":
        shutil.copytree(source / "math", tmp_path / "other" / "math")
        plain = write_quantised(tmp_path / "other" / "math", "gptq")
        shutil.copytree(source / "math", tmp_path / "number" / "math")
        save_file(plain, tmp_path / "number" / "math" / "model.safetensors", {"format": "pt"})
    (warning,) = said(tmp_path, text("L0 from math", kinds))
    assert warning.code == "M309"
    assert "'math' is" in warning.message
    result = compiled(tmp_path, text("L0 from math", kinds), tmp_path / "out")
    other = ("plain", "number" if kinds[1] == "other" else "plain")
    assert_same(result, compiled(tmp_path, text("L0 from math", other), tmp_path / "wanted"))


def test_the_output_has_the_dtype_that_the_configuration_names(
    models: Path, tmp_path: Path
) -> None:
    for path in (models / "packed").iterdir():
        shutil.copytree(path, tmp_path / "packed" / path.name)
        file = tmp_path / "packed" / path.name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "bfloat16"}))
    result = compiled(tmp_path, text("L0 from base, math by linear()"), tmp_path / "out")
    assert {t.dtype for name, t in result.items() if "_proj" in name} == {torch.bfloat16}
    again = tmp_path / "out" / "plan.tailor"
    gptailor.compile(gptailor.load(again), tmp_path / "again")
    assert_same(load_file(tmp_path / "again" / "model.safetensors"), result)


def test_a_moved_model_is_stitched_of_its_numbers(models: Path, tmp_path: Path) -> None:
    plan = gptailor.loads(text("L0 from math"), folder=models)
    live = gptailor.stitch(plan)
    compiled(models, text("L0 from math", ("plain", "plain")), tmp_path / "wanted")
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "wanted")
    state = wanted.state_dict()
    for name, tensor in live.state_dict().items():
        assert tensor.equal(state[name]), name
    gptailor.compile(plan, tmp_path / "moved")
    outcome = gptailor.evaluate([str(tmp_path / "moved")], f'nll("{models / "a.txt"}")', samples=4)
    other = gptailor.evaluate([str(tmp_path / "wanted")], f'nll("{models / "a.txt"}")', samples=4)
    assert outcome.results[0].outcome == other.results[0].outcome


@pytest.mark.filterwarnings("ignore")  # of transformers, about a tiny model's rotations
def test_gpt_oss_in_mxfp4_is_computed_with_and_moved(tmp_path: Path) -> None:
    for kind in ("packed", "plain"):
        tiny_model("gpt_oss", tmp_path / kind, layers=3, hidden_size=32, intermediate_size=64)
    packed = load((tmp_path / "packed" / "model.safetensors").read_bytes())
    plain = dict(packed)
    for number, name in enumerate(sorted(packed)):
        if name.endswith("_proj") and ".experts." in name:
            made = mxfp4(number, *packed.pop(name).shape)
            packed |= {name + end: tensor.contiguous() for end, tensor in made.tensors.items()}
            plain[name] = made.values
    save_file(packed, tmp_path / "packed" / "model.safetensors", {"format": "pt"})
    save_file(plain, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    file = tmp_path / "packed" / "config.json"
    settings = {"quantization_config": {"quant_method": "mxfp4"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    text = 'tailor 1\nmodel base = "./{}"\nL0 from base; drop L2; scale L0 by 0.5'
    result = compiled(tmp_path, text.format("packed"), tmp_path / "out")
    assert_same(result, compiled(tmp_path, text.format("plain"), tmp_path / "wanted"))
    moved = 'tailor 1\nmodel base = "./packed"\ndrop L0..L1'
    kept = compiled(tmp_path, moved, tmp_path / "moved")
    name = "model.layers.{}.mlp.experts.down_proj_blocks"
    assert kept[name.format(0)].equal(packed[name.format(2)])
