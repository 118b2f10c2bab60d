"""The difference of two models as an adapter: PEFT loads it, and its error is the printed one."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.formats.lora import apply_adapter
from gptailor.cli.main import run
from gptailor.plugins.lora.command import small_percent
from gptailor.plugins.lora.low_rank import low_rank, residual
from gptailor.program.load import load_tensor
from tests.conftest import copy
from tests.support.tiny import tiny_model
from tests.support.tiny_vision import VISION, tiny_vision

SAVABLE = ("biases", "norms", "embed", "head")
pytestmark = [
    pytest.mark.usefixtures("no_progress_bars", "one_thread"),
    # PEFT 0.21 asks transformers 5.24 by an older name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # of a tied embedding that it doesn't know by its name
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
]


def with_adapter(base: Path, adapter: Path, kind: Any = AutoModelForCausalLM) -> dict[str, Tensor]:
    """The tensors of a model with an adapter merged into it by PEFT."""
    from peft import PeftModel

    model = kind.from_pretrained(base)
    adapted: Any = PeftModel.from_pretrained(model, adapter)
    merged: Mapping[str, Tensor] = adapted.merge_and_unload().state_dict()
    return dict(merged)


def read_by_us(base: Path, adapter: Path) -> dict[str, Tensor]:
    """The same as a plan's `base + "adapter"` reads it."""
    made, warnings = apply_adapter(open_checkpoint(base), adapter)
    assert all(
        message.startswith("the output's embedding and head aren't tied") for message in warnings
    )
    return {name: load_tensor(tensor) for name, tensor in made.tensors.items()}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_full_rank_with_all_that_can_be_saved_is_the_other_model(tmp_path: Path) -> None:
    """Biases, norms and a tied embedding too; to the bit, where the model's dtype is narrower."""
    how: dict[str, Any] = {"layers": 2, "dtype": "bfloat16", "tie_word_embeddings": True}
    a = tiny_model("qwen2", tmp_path / "a", seed=0, **how)
    b = tiny_model("qwen2", tmp_path / "b", seed=1, **how)
    made = gptailor.extract_lora(a, b, tmp_path / "out", rank=64, save=SAVABLE)
    assert made.error < 1e-6
    assert len(made.modules) == 14
    assert {module.rank for module in made.modules} == {8, 16}
    assert {other.kind for other in made.others} == {"biases", "norms", "embed"}
    assert all(other.saved for other in made.others)
    wanted = tensors_of(b)
    merged = with_adapter(a, tmp_path / "out")
    assert {name: torch.equal(merged[name], tensor) for name, tensor in wanted.items()} == (
        dict.fromkeys(wanted, True)
    )
    assert torch.equal(merged["lm_head.weight"], wanted["model.embed_tokens.weight"])
    ours = read_by_us(a, tmp_path / "out")
    assert all(torch.equal(ours[n].to(tensor.dtype), tensor) for n, tensor in wanted.items())


def test_the_error_of_an_adapter_is_the_least_for_its_rank(family: Path, tmp_path: Path) -> None:
    a, b, out = family / "base", family / "math", tmp_path / "out"
    made = gptailor.extract_lora(a, b, out, rank=3)
    ours, theirs, merged = tensors_of(a), tensors_of(b), with_adapter(a, out)
    lost, every = 0.0, 0.0
    known = {f"{module.name}.weight": module for module in made.modules}
    assert len(known) == 6 * 7
    for name, tensor in theirs.items():
        difference = tensor.double() - ours[name].double()
        gap = float((tensor.double() - merged[name].double()).norm())
        lost, every = lost + gap**2, every + float(difference.norm()) ** 2
        if name in known:
            values = torch.linalg.svdvals(difference)
            best = float(values[3:].norm() / values.norm())
            assert known[name].rank == 3
            assert known[name].difference == pytest.approx(float(values.norm()))
            assert known[name].error == pytest.approx(best, rel=1e-5)
            assert gap / float(values.norm()) == pytest.approx(best, rel=1e-5)
        else:
            assert torch.equal(merged[name], ours[name])
    assert made.error == pytest.approx((lost / every) ** 0.5, rel=1e-5)
    parts = [(module.difference, module.error * module.difference) for module in made.modules]
    whole, lacking = (
        sum(number**2 for number in numbers) ** 0.5 for numbers in zip(*parts, strict=True)
    )
    assert made.error_of_modules == pytest.approx(lacking / whole)
    assert {o.name for o in made.others} == set(theirs) - set(known)
    assert not any(other.saved for other in made.others)
    config = json.loads((out / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted({n.split(".")[-2] for n in known})
    assert config["base_model_name_or_path"] == str(a)
    card = (out / "README.md").read_text()
    assert all(f"| `{module.name}` | 3 |" in card for module in made.modules)
    assert f"{made.error:.2%} of the difference" in card


def test_transposed_weights_and_modules_that_do_not_differ(tmp_path: Path) -> None:
    a = tiny_model("gpt2", tmp_path / "a", seed=0, layers=2)
    b = tiny_model("gpt2", tmp_path / "b", seed=1, layers=2)
    wanted, same = tensors_of(b), "transformer.h.1.attn.c_proj.weight"
    wanted[same] = tensors_of(a)[same]
    save_file(wanted, b / "model.safetensors", {"format": "pt"})
    made = gptailor.extract_lora(a, b, tmp_path / "out", rank=64, save=["biases", "norms"])
    assert len(made.modules) == 7
    positions = [other for other in made.others if other.kind == "others"]
    assert [other.name for other in positions] == ["transformer.wpe.weight"]
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert "c_proj" not in config["target_modules"]
    merged, ours = with_adapter(a, tmp_path / "out"), read_by_us(a, tmp_path / "out")
    for name in wanted.keys() - {"transformer.wpe.weight", "transformer.wte.weight"}:
        for model in (merged, ours):
            torch.testing.assert_close(model[name], wanted[name], atol=1e-6, rtol=1e-6)


LEFT = {
    "qwen2_vl": r"model\.visual\.patch_embed\.proj\.weight",  # a convolution
    "gemma3": r"model\.multi_modal_projector\.mm_input_projection_weight|"
    r"model\.vision_tower\.embeddings\..*",  # its embedding is tied, within the language model
    "gpt_neox": r"",  # on disk its head has another name
    "modernbert-decoder": r"",  # a tied head with a bias of its own
    "falcon": r"",  # a tied embedding that PEFT doesn't know by its name
    "deepseek_v3": r".*\.mlp\..*",  # experts, and what PEFT takes for such
}
"""The tensors of each family that have no place in an adapter."""


@pytest.mark.parametrize("kind", LEFT)
def test_tensors_outside_the_adapter_are_reported_and_all_others_match(
    kind: str, tmp_path: Path
) -> None:
    make, auto = tiny_model, AutoModelForCausalLM
    if kind in VISION:
        make, auto = tiny_vision, AutoModelForImageTextToText
    a, b = (make(kind, tmp_path / name, seed=n, layers=2) for n, name in enumerate("ab"))
    made = gptailor.extract_lora(a, b, tmp_path / "out", rank=64, save=SAVABLE)
    left = {other.name for other in made.others if not other.saved}
    assert all(re.fullmatch(LEFT[kind], name) for name in left)
    assert bool(left) == bool(LEFT[kind])
    merged = with_adapter(a, tmp_path / "out", auto)
    wanted = auto.from_pretrained(b).state_dict()
    assert merged.keys() == wanted.keys()
    off = {n for n, tensor in wanted.items() if not torch.allclose(merged[n], tensor, atol=1e-6)}
    assert {name for name in off if ".experts." not in name} <= left
    ours = read_by_us(a, tmp_path / "out")
    far = [n for n, t in tensors_of(b).items() if not torch.allclose(ours[n], t, atol=1e-6)]
    assert len(far) == len(left)


@pytest.mark.parametrize(
    ("other", "code", "message"),
    [
        ("base", "C407", "equals the base exactly"),
        ("short", "C406", "has 4 layers, but the base has 6"),
        ("qwen", "C406", "is a 'qwen2' model, but the base is a 'llama' model"),
        ("wide", "C406", "has hidden_size 32, but the base has 16"),
        ("broad", "C406", "has the shape [16, 32], expected [16, 24] as in the base"),
        ("theta", "C406", "rope_theta"),
        ("tied", "C406", "has a head that is tied"),
        ("vocab", "C406", "`tokenizer from`"),
        ("biased", "C406", "has attention_bias True, but the base has False"),
        ("nowhere", "C101", "there is no such folder"),
        ("unknown", "C406", "is a 'mystery' model"),
        ("numberless", "M204", "'num_hidden_layers', got null"),
        ("endless", "C408", "'model.layers.1.mlp.down_proj.weight' contains infinity or NaN"),
        ("normed", "C407", "differs from the base only in norms"),
        ("huge", "C408", "choose another --dtype"),
    ],
)
def test_differences_that_no_adapter_can_express_are_refused(
    other: str, code: str, message: str, family: Path, tmp_path: Path
) -> None:
    made_of: dict[str, tuple[str, float]] = {
        "endless": ("model.layers.1.mlp.down_proj.weight", float("nan")),
        "normed": ("model.norm.weight", 2.0),
        "huge": ("model.layers.1.mlp.down_proj.weight", 1e12),
    }
    folder = family / other
    if other in made_of:
        name, factor = made_of[other]
        copy(tmp_path, other, source=str(family / "base"))
        folder = tmp_path / other
        tensors = tensors_of(folder)
        tensors[name] *= factor
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        gptailor.extract_lora(family / "base", folder, tmp_path / "out/a", dtype="float16")
    assert (caught.value.code, message in str(caught.value)) == (code, True), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_errors_and_omitted_tensors(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract-lora", str(family / "base"), str(family / "math"), "-o"]
    assert run([*command, str(tmp_path / "a"), "--rank", "2", "--save", "norms"]) == 0
    output = capsys.readouterr().out
    assert "q_proj     6 modules, error " in output
    assert (
        "norms differ (model.layers.0.input_layernorm.weight and 12 more): in the adapter" in output
    )
    assert (
        "embed differs (model.embed_tokens.weight): left out; --save embed includes them" in output
    )
    assert f"{tmp_path / 'a'}: 42 modules, " in output
    assert "% of the projections, " in output
    assert run([*command, str(tmp_path / "a"), "--format", "json"]) == 3
    assert "error[C301]" in capsys.readouterr().err
    how = ["--force", "--randomised", "--format", "json", "--dtype", "bfloat16", "--rank", "1"]
    assert run([*command, str(tmp_path / "a"), *how]) == 0
    record = json.loads(capsys.readouterr().out)
    assert 0.5 < record["error"] < 1
    assert {module["rank"] for module in record["modules"]} == {1}
    assert {t.dtype for t in load_file(tmp_path / "a/adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
    assert run([*command, str(family / "math" / "in"), "--force"]) == 3
    assert "is inside the source" in capsys.readouterr().err


def test_random_projections_come_near_the_best_and_repeat() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    left, right = (torch.linalg.qr(drawn(n, 90)).Q for n in (150, 90))
    values = 0.95 ** torch.arange(90, dtype=torch.float64)
    for matrix in (left * values @ right.t(), right * values @ left.t()):
        b, a = low_rank(matrix, 20)
        best = float(values[20:].norm())
        assert residual(matrix, b, a) == pytest.approx(best, rel=1e-9)
        near = low_rank(matrix, 20, "w")
        assert best <= residual(matrix, *near) * (1 + 1e-12) <= 1.001 * best
        assert all(map(torch.equal, near, low_rank(matrix, 20, "w")))
        assert [*near[0].shape, *near[1].shape] == [matrix.shape[0], 20, 20, matrix.shape[1]]
        assert residual(matrix, *low_rank(matrix, 90)) < 1e-14
    zero = torch.zeros(5, 7, dtype=torch.float64)
    assert not any(factor.any() for factor in low_rank(zero, 3))


def test_small_shares_are_under_a_hundredth_of_a_percent() -> None:
    assert [small_percent(n) for n in (0.0, 1e-5, 0.00523)] == ["0.00%", "under 0.01%", "0.52%"]
