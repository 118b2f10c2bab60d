"""Vision-language models through all verbs: locked and verified, stitched, judged, bridged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import gptailor
from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import layout_of
from gptailor.checkpoint.families.quantised import requantised
from gptailor.evaluation.live import language
from gptailor.plan.faults import PlanError, TailorError
from tests.checkpoint.families.test_vision import compiled, load, plan_of, settings_of, tensors_of
from tests.support.tiny import write_tokenizer
from tests.support.tiny_vision import VISION, VisionMaker, tiny_vision, vision_maker

ALONE = [kind for kind in VISION if kind not in {"paligemma", "qwen3_vl_moe"}]
"""Types with a language model that runs alone."""
IDS = torch.arange(3, 43).reshape(2, 20)
TEXT = "a stitch in time saves nine, said the tailor, and cut the thread. " * 30


pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "brief_answers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> VisionMaker:
    return vision_maker(tmp_path_factory)


def of_text(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
        return result


# ------------------------------------------------------------------------------------ live models


@pytest.mark.parametrize("kind", ALONE)
def test_a_stitched_model_reads_a_text_as_the_compiled_one(
    kind: str, made: Any, tmp_path: Path
) -> None:
    scale = "" if kind == "gemma4" else "; scale L2 by 0.9"
    text = f"drop L4; merge(L3 base, L3 math, 0.5){scale}"
    models = {"base": made(kind), "math": made(kind, 1)}
    out = compiled(text, tmp_path / "out", **models)

    live = gptailor.stitch(plan_of(text, **models))

    torch.testing.assert_close(of_text(live), of_text(load(out)), atol=0, rtol=0)
    assert not hasattr(live.model, "visual")
    whole = sum(tensor.numel() for tensor in tensors_of(out).values())
    assert sum(parameter.numel() for parameter in live.parameters()) < whole


def test_a_family_names_the_architecture_of_its_language_model() -> None:
    like = {name: family.like for name, family in FAMILY_OF.items() if family.like}
    assert like == {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
    for name, stands in like.items():
        config = {"model_type": name.removesuffix("_text"), "text_config": {}}
        assert language.language_config(config)["model_type"] == stands


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("paligemma", "the language model of a 'paligemma' model reads a text in both directions"),
        (
            "qwen3_vl_moe",
            "transformers has no language model for the model type 'qwen3_vl_moe_text'",
        ),
    ],
)
def test_a_language_model_that_can_t_run_alone_is_refused(
    kind: str, message: str, made: Any, tmp_path: Path
) -> None:
    plan = plan_of("drop L3", base=made(kind))
    with pytest.raises(TailorError, match=message):
        gptailor.stitch(plan)
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(TailorError, match=message):
        gptailor.evaluate([made(kind)], f'nll("{tmp_path}/text.txt")')
    bridged = plan_of(f'drop L3; bridge on "{tmp_path}/text.txt"', base=made(kind))
    with pytest.raises(PlanError) as refused:
        gptailor.compile(bridged, tmp_path / "out")
    assert [fault.code for fault in refused.value.faults] == ["M219"]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3", "smolvlm"])
def test_a_plan_scores_what_its_folder_scores(kind: str, made: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    plan = plan_of("drop L3", base=made(kind))
    out = tmp_path / "out"
    gptailor.compile(plan, out)
    for folder in (made(kind), out):
        write_tokenizer(folder)
    objectives = [f'nll("{tmp_path}/text.txt")', f'kl("{tmp_path}/text.txt")']

    evaluation = gptailor.evaluate([plan, out], objectives, samples=4)

    scores = [result.outcome for result in evaluation.results]
    assert scores[: len(scores) // 2] == scores[len(scores) // 2 :]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "mistral3"])
def test_a_bridge_is_fitted_to_the_language_model(kind: str, made: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    text = f'drop L3; bridge on "{tmp_path}/text.txt" tokens 600 ridge 0.01'
    plain = compiled("drop L3", tmp_path / "plain", base=made(kind))
    bridged = compiled(text, tmp_path / "bridged", base=made(kind))
    before, after = tensors_of(plain), tensors_of(bridged)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert [name.rpartition("layers.")[2] for name in changed] == ["2.mlp.down_proj.weight"]
    live = gptailor.stitch(plan_of(text, base=made(kind)))
    torch.testing.assert_close(of_text(live), of_text(load(bridged)), atol=0, rtol=0)


# ---------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("template", [None, "chat_template.jinja", "chat_template.json"])
def test_a_card_shows_the_use_with_an_image(
    template: str | None, made: Any, tmp_path: Path
) -> None:
    base = shutil.copytree(made("llava"), tmp_path / "base")
    if template is not None:
        (base / template).write_text('{"chat_template": "<image>"}', "utf-8")

    card = (compiled("drop L4", tmp_path / "out", base=base) / "README.md").read_text("utf-8")

    assert "pipeline_tag: image-text-to-text" in card
    assert 'generate = pipeline("image-text-to-text", "out")' in card
    assert ('images="tomato.jpg"' in card) == (template is None)
    assert ("generate(text=messages" in card) == (template is not None)


def test_a_folder_is_locked_and_verified_with_its_processor(made: Any, tmp_path: Path) -> None:
    plan = plan_of("drop L3", base=made("qwen2_5_vl"))
    lock = gptailor.lock(plan)
    assert "preprocessor_config.json" in lock.models["base"].files
    gptailor.compile(plan, tmp_path / "out", locked=lock)
    assert not gptailor.verify(tmp_path / "out").differences

    (tmp_path / "out" / "preprocessor_config.json").write_text("{}")

    for models in (None, {"base": tmp_path / "gone"}):
        (tmp_path / "gone").mkdir(exist_ok=True)
        result = gptailor.verify(tmp_path / "out", models=models).differences
        assert [d.name for d in result if d.kind == "file"] == ["preprocessor_config.json"]


def test_another_tokenizer_keeps_the_numbers_of_images(made: Any, tmp_path: Path) -> None:
    other = tiny_vision(
        "qwen2_5_vl", tmp_path / "other", text={"eos_token_id": 7, "vocab_size": 70}
    )
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"€": 64, "£": 65}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    out = compiled("tokenizer from other", tmp_path / "out", base=made("qwen2_5_vl"), other=other)
    config = settings_of(out)
    assert config["image_token_id"] == 60
    assert config["text_config"]["eos_token_id"] == 7
    assert config["text_config"]["vocab_size"] == 70
    assert "vocab_size" not in config
    assert load(out).get_input_embeddings().weight.shape[0] == 70
    assert (out / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_vision_towers_have_the_dtype_of_the_plan(made: Any, tmp_path: Path) -> None:
    out = compiled("dtype bfloat16", tmp_path / "out", base=made("qwen2_5_vl"))
    config = settings_of(out)
    parts = (config, config["text_config"], config["vision_config"])
    assert {part["dtype"] for part in parts if "dtype" in part} == {"bfloat16"}
    assert {tensor.dtype for tensor in tensors_of(out).values()} == {torch.bfloat16}
    assert load(out).dtype == torch.bfloat16


# --------------------------------------------------------------------------------------- adapters


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, of transformers
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3", "mistral3", "smolvlm"])
def test_an_adapter_names_modules_as_they_are_in_memory(
    kind: str, made: Any, tmp_path: Path
) -> None:
    """On layers and on a tower: the disk may have other names, and PEFT has the module's."""
    base = load(made(kind))
    wanted = r".*(self_attn\.[qv]_proj|blocks\.0\.attn\.qkv)"
    adapted = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=wanted))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    text = f'model tuned = base + "{tmp_path}/adapter"'
    order = "stack { " + "; ".join(f"L{i} tuned" for i in range(6)) + " }"
    out = compiled(f"{text}\n{order}", tmp_path / "out", base=made(kind))

    merged = adapted.merge_and_unload().eval()

    language = {n: t for n, t in load(out).state_dict().items() if ".layers." in n}
    own = merged.state_dict()
    layers = [n for n in language if "self_attn" in n and "vis" not in n]
    assert len(layers) > 20
    for name in layers:
        torch.testing.assert_close(language[name], own[name], atol=1e-6, rtol=1e-6)


# ------------------------------------------------------------------------------------ quantisation


def test_layers_in_a_quantisation_are_the_language_model_s(made: Any) -> None:
    config = settings_of(made("mistral3"))
    skipped = [
        "vision_tower.transformer.layers.3.attention.q_proj",
        "language_model.model.layers.3.mlp.down_proj",
        "model.language_model.layers.1.self_attn.q_proj",
        "multi_modal_projector",
        "re:.*vision_tower.*",
    ]
    config["quantization_config"] = {"quant_method": "fp8", "modules_to_not_convert": skipped}
    layout = layout_of(config, tensors_of(made("mistral3")).keys())
    assert not isinstance(layout, Refusal)
    assert layout.quantised == "fp8"
    result = requantised(layout, config, [(0, 0), (3, 3)])
    assert not isinstance(result, Refusal)
    assert result["quantization_config"]["modules_to_not_convert"] == [
        "vision_tower.transformer.layers.3.attention.q_proj",
        "language_model.model.layers.1.mlp.down_proj",
        "multi_modal_projector",
        "re:.*vision_tower.*",
    ]
    config["quantization_config"]["modules_to_not_convert"] = [".*layers.3.mlp"]
    assert isinstance(requantised(layout, config, [(0, 0), (3, 3)]), Refusal)
    config["text_config"]["quantization_config"] = {"quant_method": "fp8"}
    assert isinstance(layout_of(config, tensors_of(made("mistral3")).keys()), Refusal)
