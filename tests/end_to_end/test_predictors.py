"""Layers that predict further tokens (MTP): kept after the base's last layer, or left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM

import gptailor
from gptailor.checkpoint.families.layer_config import Config
from gptailor.checkpoint.families.layout import Layout, layout_of
from gptailor.checkpoint.families.quantised import requantised
from tests.support.tiny import tiny_model

LAST = "model.layers.5."
OWN = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight")
HEAL = 'heal on "TEXT" tokens 1024 rank 4'


def with_tensors(folder: Path, new: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Add tensors to the only file of a model."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | new(tensors), path, metadata={"format": "pt"})
    return folder


def numbered(tensors: dict[str, Any]) -> dict[str, Any]:
    """A further layer as DeepSeek's files have it: the last one's tensors doubled, and its own."""
    shapes = dict.fromkeys(OWN, (16,)) | {OWN[0]: (16, 32)}
    further = {name: torch.randn(shape) for name, shape in shapes.items()}
    further["embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    further["shared_head.head.weight"] = tensors["lm_head.weight"]
    further |= {n.removeprefix(LAST): 2 * t for n, t in tensors.items() if n.startswith(LAST)}
    return {f"model.layers.6.{name}": tensor.clone() for name, tensor in further.items()}


def named(tensors: dict[str, Any]) -> dict[str, Any]:
    """A further layer as Qwen3-Next's files have it."""
    return {
        "mtp.fc.weight": torch.randn(16, 32),
        "mtp.norm.weight": torch.randn(16),
        "mtp.layers.0.mlp.gate.weight": torch.randn(4, 16),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`deep` and `plain` have a further layer by number, `next` by name; `few` lacks one of two."""
    folder = tmp_path_factory.mktemp("predictors")
    torch.manual_seed(0)
    with_tensors(tiny_model("deepseek_v3", folder / "deep", seed=0), numbered)
    with_tensors(tiny_model("deepseek_v3", folder / "few", seed=0), numbered)
    with_tensors(tiny_model("llama", folder / "plain", seed=0), numbered)
    for name, count in (("few", 2), ("plain", 1)):
        config = json.loads((folder / name / "config.json").read_text())
        config["num_nextn_predict_layers"] = count
        (folder / name / "config.json").write_text(json.dumps(config))
    with_tensors(tiny_model("qwen3_next", folder / "next", seed=0, layers=6), named)
    (folder / "text.txt").write_text("the cat sat on the mat, " * 90)
    return folder


def plan_of(models: Path, text: str, base: str = "deep") -> gptailor.Plan:
    head = f'tailor 1\nmodel base = "{models / base}"\n'
    return gptailor.loads(head + text.replace("TEXT", str(models / "text.txt")))


def compiled(plan: gptailor.Plan, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the configuration of a plan's output."""
    gptailor.compile(plan, folder)
    config = json.loads((folder / "config.json").read_text())
    return load_file(folder / "model.safetensors"), config


def test_numbered_layers_follow_the_last_one(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, 'drop L2..L3; bridge on "TEXT" tokens 256')
    assert not [fault.code for fault in gptailor.check(plan)]
    tensors, config = compiled(plan, tmp_path / "out")
    own = load_file(models / "deep" / "model.safetensors")
    further = {n: t for n, t in own.items() if n.startswith("model.layers.6.")}
    assert further
    for name, tensor in further.items():
        assert torch.equal(tensors[name.replace("layers.6.", "layers.4.")], tensor)
    assert not [name for name in tensors if name.startswith(("model.layers.5.", "model.layers.6."))]
    assert (config["num_hidden_layers"], config["num_nextn_predict_layers"]) == (4, 1)


def test_transformers_decodes_with_the_kept_layer(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for the number of the released model alone, so it's told the new one."""
    compiled(plan_of(models, "drop L2..L3"), tmp_path / "out")
    place = [r"model\.layers\.4\..*"]
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", place)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    own = load_file(models / "deep" / "model.safetensors")
    predictor = MtpModel.from_pretrained(model).layers[0]
    assert torch.equal(predictor.eh_proj.weight, own["model.layers.6.eh_proj.weight"])
    prompt = torch.tensor([[5, 6, 7, 8]])
    plain = model.generate(prompt, max_new_tokens=8, do_sample=False)
    drafted = model.generate(prompt, max_new_tokens=8, do_sample=False, use_mtp=True)
    assert plain.tolist() == drafted.tolist()


def test_a_module_keeps_its_names(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, "drop L1..L2", "next")
    own = load_file(models / "next" / "model.safetensors")
    tensors, _ = compiled(plan, tmp_path / "out")
    for name in named({}):
        assert torch.equal(tensors[name], own[name])
    assert not [fault.code for fault in gptailor.check(plan)]


@pytest.mark.parametrize(
    ("base", "text", "why"),
    [
        ("deep", "drop L5", "they read L5, which isn't the output's last layer"),
        ("deep", f"drop L5; {HEAL}", "which isn't the output's last layer"),
        ("deep", "L5.attn = L4.attn base", "which isn't the output's last layer"),
        ("deep", "stack { L0..L4 base }", "which isn't the output's last layer"),
        ("next", "drop L4..L5", "which isn't the output's last layer"),
        ("plain", 'width 8 on "TEXT"', "the plan cuts the width of the model"),
        ("few", "drop L2", "the base has tensors of 1 of its 2 such layers"),
    ],
)
def test_layers_that_cannot_stay_are_left_out(
    models: Path, tmp_path: Path, base: str, text: str, why: str
) -> None:
    plan = plan_of(models, text, base)
    [fault] = [fault for fault in gptailor.check(plan) if fault.code == "M318"]
    assert why in fault.message
    assert "vLLM" in fault.help
    tensors, config = compiled(plan, tmp_path / "out")
    further = f"model.layers.{config['num_hidden_layers']}."
    assert not [name for name in tensors if "mtp" in name or name.startswith(further)]
    assert config.get("num_nextn_predict_layers", 0) == 0


def test_fewer_experts_leave_the_layers_out(models: Path, tmp_path: Path) -> None:
    for count, stay in ((4, True), (3, False)):
        base = tiny_model("deepseek_v3", tmp_path / f"base{count}", n_group=1, topk_group=1)
        with_tensors(base, numbered)
        plan = plan_of(models, f'experts {count} on "TEXT" tokens 300', str(base))
        assert ("M318" in [fault.code for fault in gptailor.check(plan)]) != stay
        tensors, config = compiled(plan, tmp_path / f"out{count}")
        assert config["n_routed_experts"] == count
        assert config["num_nextn_predict_layers"] == stay
        assert any("eh_proj" in name for name in tensors) == stay


def test_other_tokens_leave_the_layers_out(models: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((models / "deep" / "tokenizer.json").read_text())
    base = models / "deep"
    for name, swapped in (("same", False), ("other", True)):
        other = tiny_model("deepseek_v3", tmp_path / name, seed=1)
        ids = tokenizer["model"]["vocab"]
        moved = {**ids, "a": ids["b"], "b": ids["a"]} if swapped else ids
        changed = {**tokenizer, "model": {**tokenizer["model"], "vocab": moved}}
        (other / "tokenizer.json").write_text(json.dumps(changed))
        text = f'tailor 1\nmodel base = "{base}"\nmodel chat = "{other}"\ntokenizer from chat\n'
        codes = [fault.code for fault in gptailor.check(gptailor.loads(text))]
        assert ("M318" in codes) == swapped


def test_healing_leaves_a_kept_layer_as_it_is(models: Path, tmp_path: Path) -> None:
    tensors, config = compiled(plan_of(models, f"drop L2\n{HEAL}"), tmp_path / "out")
    own = load_file(models / "deep" / "model.safetensors")
    further = {n: t for n, t in tensors.items() if n.startswith("model.layers.5.")}
    assert "model.layers.5.eh_proj.weight" in further
    for name, tensor in further.items():
        assert torch.equal(tensor, own[name.replace("layers.5.", "layers.6.")])
    assert config["num_nextn_predict_layers"] == 1
    healed = tensors["model.layers.4.self_attn.o_proj.weight"]
    assert not torch.equal(healed, own["model.layers.5.self_attn.o_proj.weight"])


def test_a_live_model_has_no_further_layer(models: Path) -> None:
    plan = plan_of(models, "drop L2..L3")
    live = gptailor.stitch(plan)
    assert not [name for name, _ in live.named_parameters() if "layers.4." in name]
    assert live.config.num_hidden_layers == 4


def test_settings_of_a_quantisation_follow(models: Path) -> None:
    config: Config = json.loads((models / "deep" / "config.json").read_text())
    config = {**config, "quantization_config": {"modules_to_not_convert": [
        "model.layers.5.mlp.gate", "model.layers.6.eh_proj", "mtp.layers.0.fc", "mtp.fc",
    ]}}  # fmt: skip
    layout = layout_of(config, load_file(models / "deep" / "model.safetensors"))
    assert isinstance(layout, Layout)
    for places, wanted in (
        ([(1, 1), (5, 5), (6, 6)], ["model.layers.1.mlp.gate", "model.layers.2.eh_proj"]),
        ([(1, 1), (5, 5)], ["model.layers.1.mlp.gate"]),
    ):
        moved = requantised(layout, dict(config), places)
        assert isinstance(moved, dict)
        names = moved["quantization_config"]["modules_to_not_convert"]
        assert names == [*wanted, "mtp.layers.0.fc", "mtp.fc"]
