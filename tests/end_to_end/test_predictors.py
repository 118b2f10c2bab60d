"""Layers that predict further tokens (MTP): kept after the base's last layer, or left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, modeling_layers
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3ForCausalLM

import gptailor
from gptailor.checkpoint.families.layer_config import Config
from gptailor.checkpoint.families.layout import Layout, layout_of
from gptailor.checkpoint.families.quantised import requantised
from gptailor.evaluation.heal.learning import HealError
from gptailor.evaluation.heal.predictors import PredictorLessons, live_predictors
from gptailor.evaluation.heal.text import PackedSequences
from gptailor.evaluation.heal.train import Student
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.plan.events import PredictorsBegun
from gptailor.prepare import prepare
from gptailor.program.compile import compile_plan
from tests.tiny import tiny_model
from tests.tiny_vision import tiny_vision

LAST = "model.layers.5."
OWN = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight")


def with_tensors(folder: Path, new: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Add tensors to the only file of a model."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | new(tensors), path, metadata={"format": "pt"})
    return folder


def numbered(tensors: dict[str, Any], number: int = 6) -> dict[str, Any]:
    """A further layer as DeepSeek's files have it: the last one's tensors doubled, and its own."""
    shapes = dict.fromkeys(OWN, (16,)) | {OWN[0]: (16, 32)}
    further = {name: torch.randn(shape) for name, shape in shapes.items()}
    further["embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    further["shared_head.head.weight"] = tensors["lm_head.weight"]
    further |= {n.removeprefix(LAST): 2 * t for n, t in tensors.items() if n.startswith(LAST)}
    return {f"model.layers.{number}.{name}": tensor.clone() for name, tensor in further.items()}


def named(tensors: dict[str, Any]) -> dict[str, Any]:
    """A further layer as Qwen3-Next's files have it."""
    return {
        "mtp.fc.weight": torch.randn(16, 32),
        "mtp.norm.weight": torch.randn(16),
        "mtp.layers.0.mlp.gate.weight": torch.randn(4, 16),
    }


def whole_module(tensors: dict[str, Any]) -> dict[str, Any]:
    """Qwen3-Next's module as a whole: its layer is the last layer with full attention."""
    own = ("fc.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "norm.weight")
    width = tensors["model.embed_tokens.weight"].shape[1]
    shapes = dict.fromkeys(own, (width,)) | {own[0]: (width, 2 * width)}
    full = "model.layers.3."
    layer = {f"layers.0.{n.removeprefix(full)}": t for n, t in tensors.items() if full in n}
    further = {name: torch.randn(shape) for name, shape in shapes.items()} | layer
    return {f"mtp.{name}": tensor.clone() for name, tensor in further.items()}


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
    with_tensors(tiny_model("qwen3_next", folder / "qwen", seed=0, layers=6), whole_module)
    two = with_tensors(tiny_model("deepseek_v3", folder / "two", seed=0), numbered)
    with_tensors(two, lambda tensors: numbered(tensors, 7))
    config = json.loads((two / "config.json").read_text()) | {"num_nextn_predict_layers": 2}
    (two / "config.json").write_text(json.dumps(config))
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
        ("deep", "drop L5", "they read the output of L5, and the output ends with another layer"),
        ("deep", "L5.attn = L4.attn base", "the output ends with another layer"),
        ("deep", "stack { L0..L4 base }", "the output ends with another layer"),
        ("next", "drop L4..L5", "the output ends with another layer"),
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


HEAL = 'heal on "TEXT" tokens 1024 rank 4'


IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 5, 8, 6]])


def drafted(folder: Path) -> list[torch.Tensor]:
    """KL of each further layer's predictions from the model's own in transformers, a row each."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    last = model.config.num_hidden_layers
    place = [rf"model\.layers\.({last}|{last + 1})\..*"]
    model._keys_to_ignore_on_load_unexpected = place
    predictors, found = MtpModel.from_pretrained(model), []
    with torch.no_grad():
        out = model(IDS[:, :-1], output_hidden_states=True)
        state, own = out.hidden_states[-1], out.logits.log_softmax(-1)
        for number in range(len(predictors.layers)):
            ids = IDS[:, number + 1 : -1]
            places = torch.arange(number + 1, IDS.shape[1] - 1)[None]
            state = state[:, : ids.shape[1]]
            state = predictors.forward_layer(number, state, places, None, input_ids=ids)
            wanted = own[:, number + 1 :]
            logs = model.lm_head(state).log_softmax(-1)
            found.append((wanted.exp() * (wanted - logs)).sum(-1)[0])
    return found


@pytest.mark.parametrize(("base", "drop"), [("deep", "L2"), ("deep", "L4..L5"), ("two", "L3")])
def test_healing_trains_them(models: Path, tmp_path: Path, base: str, drop: str) -> None:
    plan = plan_of(models, f"drop {drop}\n{HEAL}", base)
    assert not [fault.code for fault in gptailor.check(plan)]
    begun: list[int] = []

    def note(event: object) -> None:
        if isinstance(event, PredictorsBegun):
            begun.append(event.layers)

    result = gptailor.compile(plan, tmp_path / "out", on_event=note)
    count = 1 + (base == "two")
    assert begun == [count]
    assert result.healed is not None
    assert result.healed.predictors is not None
    assert 0 < result.healed.predictors.healed < result.healed.predictors.start
    last = f"model.layers.{6 - len(plan.drops)}."
    own = load_file(models / base / "model.safetensors")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    changed = {
        name.removeprefix(last)
        for name, tensor in tensors.items()
        if last in name and not torch.equal(tensor, own[name.replace(last, "model.layers.6.")])
    }
    assert {"eh_proj.weight", "self_attn.o_proj.weight"} <= changed
    assert not changed & {"embed_tokens.weight", "shared_head.head.weight", "enorm.weight"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == count
    gptailor.compile(plan, tmp_path / "again", on_event=note)  # the result is kept
    assert begun == [count]
    gptailor.compile(plan_of(models, f"drop {drop}", base), untrained := tmp_path / "untrained")
    if drop != "L4..L5":  # these leave an untrained one out
        tensors |= {
            n: t for n, t in load_file(untrained / "model.safetensors").items() if last in n
        }
        save_file(tensors, tmp_path / "again" / "model.safetensors", metadata={"format": "pt"})
        after, before = (float(drafted(tmp_path / name)[0].mean()) for name in ("out", "again"))
        assert after < before


def test_the_losses_are_those_of_transformers(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, "drop L2", "two")
    gptailor.compile(plan, tmp_path / "out")
    live = Stitcher(prepare(plan).models).stitch(plan)
    layers: dict[int, dict[str, torch.Tensor]] = {5: {}, 6: {}}
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        for number, layer in layers.items():
            if (place := f"model.layers.{number}.") in name:
                layer[name.removeprefix(place)] = tensor
    before = live.model.config.to_dict()
    predictors = live_predictors(live.model, layers, tmp_path)
    assert live.model.config.to_dict() == before
    zeros = torch.zeros(1, dtype=torch.int64)
    counted = torch.ones(1, IDS.shape[1] - 1, dtype=torch.bool)
    counted[0, 4] = False
    rows = PackedSequences(IDS, counted, zeros, zeros)
    student = Student(live, 0, recompute=False)
    found = PredictorLessons(student, predictors, rows, rows).held_out()
    wanted = torch.cat([
        each[counted[0, number + 1 :]]
        for number, each in enumerate(drafted(tmp_path / "out"))
    ])  # fmt: skip
    assert len(wanted) == 8 + 7 - 2
    assert found == pytest.approx(float(wanted.mean()), rel=1e-4)
    none = PackedSequences(IDS, torch.zeros_like(counted).index_fill(1, zeros, True), zeros, zeros)
    prompt = PredictorLessons(student, predictors, none, none)
    assert (prompt.learn(0, 1), prompt.held_out()) == (0.0, 0.0), "no later token counts"


def test_predictors_that_transformers_lacks_are_an_error(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(modeling_layers, "MtpModel")
    plan = plan_of(models, f"drop L1\n{HEAL}")
    with pytest.raises(HealError, match=r"C810.*this version of transformers can't compute"):
        gptailor.compile(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("drop", ["L4..L5", "L1"])
def test_healing_trains_a_module(models: Path, tmp_path: Path, drop: str) -> None:
    """The output's last layer has full attention, or linear attention."""
    plan = plan_of(models, f"drop {drop}\n{HEAL}", "qwen")
    assert not [fault.code for fault in gptailor.check(plan)]
    result = gptailor.compile(plan, tmp_path / "out")
    assert result.healed is not None
    assert result.healed.predictors is not None
    assert 0 < result.healed.predictors.healed < result.healed.predictors.start
    own = load_file(models / "qwen" / "model.safetensors")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    further = [name for name in own if name.startswith("mtp.")]
    changed = {name for name in further if not torch.equal(tensors[name], own[name])}
    assert {"mtp.fc.weight", "mtp.layers.0.self_attn.o_proj.weight"} <= changed
    assert "mtp.norm.weight" not in changed


def test_healing_trains_the_module_of_a_vision_model(models: Path, tmp_path: Path) -> None:
    base = tiny_vision("qwen3_5", tmp_path / "base")
    with_tensors(
        base,
        lambda tensors: whole_module({
            n.replace("model.language_model.", "model."): t for n, t in tensors.items()
        }),
    )  # fmt: skip
    plan = plan_of(models, f"drop L4\n{HEAL}", str(base))
    result = gptailor.compile(plan, tmp_path / "out")
    assert result.healed is not None
    assert result.healed.predictors is not None
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert not torch.equal(tensors["mtp.fc.weight"], before["mtp.fc.weight"])


def test_healing_that_trains_nothing_leaves_them_out(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, f"L5.attn = L4.attn base\n{HEAL}")
    assert {"M318", "P707"} <= {fault.code for fault in gptailor.check(plan)}
    _, config = compiled(plan, tmp_path / "out")
    assert config["num_nextn_predict_layers"] == 0


def test_values_that_are_not_finite_are_an_error(models: Path, tmp_path: Path) -> None:
    base = shutil.copytree(models / "deep", tmp_path / "base")
    nan = {"model.layers.6.eh_proj.weight": torch.full((16, 32), torch.nan)}
    with_tensors(base, lambda _: nan)
    with pytest.raises(HealError, match=r"C809.*further tokens compute values that aren't finite"):
        gptailor.compile(plan_of(models, f"drop L1\n{HEAL}", str(base)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lock_compares_trained_layers_with_a_tolerance(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, f"drop L1\n{HEAL}")
    gptailor.compile(plan, tmp_path / "out", locking=True)
    assert gptailor.verify(tmp_path / "out").result == "verified"
    prepared = prepare(plan)
    assert "model.layers.5.eh_proj.weight" in compile_plan(prepared.checked).program.fitted


def test_a_search_counts_the_trained_layers(models: Path, tmp_path: Path) -> None:
    sizes = []
    for text in ("drop L5", f"drop L5\n{HEAL}"):
        tensors, _ = compiled(plan_of(models, text), tmp_path / f"out{len(sizes)}")
        sizes.append(sum(tensor.numel() for tensor in tensors.values()))
    assert sizes[0] < sizes[1]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the cat sat on the mat"}\n' * 6)
    space = (
        f"drop any 1 of L4..L5\n{HEAL}\n"
        f'search {{ minimize nll("{rows}"); require parameters() <= {sizes[0]} }}'
    )
    with pytest.raises(gptailor.TailorError, match="parameters"):
        gptailor.search(plan_of(models, space), tmp_path / "run", trials=4)


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
