"""Importance matrices: the mean squares that a model's own matrices receive, and bad texts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import gptailor
from gptailor.checkpoint.datasets import CalibrationError
from gptailor.evaluation.fits.bridge.states import CalibrationText
from gptailor.evaluation.fits.fit import BridgeError
from gptailor.evaluation.fits.importance import importance_matrix, importance_text
from gptailor.output.compile import fit_tensors
from gptailor.plan.events import Progress
from gptailor.prepare import Prepared, prepare
from tests.support.tiny_bytes import FAMILIES, model
from tests.support.vocabularies import TEXT

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [" ".join(TEXT.split()[i : i + 9 + i % 5]) for i in range(0, 60, 3)] * 6


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Rows of several lengths, so that batches have padding."""
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS), encoding="utf-8")
    return file


def prepared(folder: Path, statements: str) -> Prepared:
    return prepare(gptailor.loads(f'tailor 1\nmodel base = "./base"\n{statements}', folder=folder))


def squares_in_transformers(folder: Path, text: CalibrationText) -> dict[str, Tensor]:
    """The mean squares of the inputs of a folder's linear modules, one sequence after another."""
    live = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: dict[str, list[Tensor]] = {}

    def catch(name: str):
        return lambda _, inputs: seen.setdefault(name, []).append(inputs[0][0])

    for name, module in live.named_modules():
        if isinstance(module, nn.Linear) and "layers." in name:
            module.register_forward_pre_hook(catch(f"{name}.weight"))
    with torch.inference_mode():
        for batch in text.batches:
            for row, real in zip(batch.tokens, batch.real, strict=True):
                live(row[real][None], use_cache=False)
    return {name: torch.cat(rows).double().square().mean(0) for name, rows in seen.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_have_the_mean_squares_of_the_compiled_model(
    tmp_path: Path, text: Path, family: str
) -> None:
    model(tmp_path / "base", family, layers=4)
    drop = "" if family == "gemma3_text" else "drop L1\n"
    plan = prepared(tmp_path, f"{drop}scale L2 by 0.9\n" if family == "llama" else drop)
    result = importance_matrix(plan, read := importance_text(plan, text), None)
    wanted = squares_in_transformers(gptailor.compile(plan, tmp_path / "out").folder, read)
    assert result.keys() == wanted.keys()
    assert len(result) == 7 * len(plan.resolved.kept)
    for name, columns in result.items():
        assert columns.dtype == torch.float32
        torch.testing.assert_close(columns.double(), wanted[name], rtol=1e-4, atol=1e-9)


def test_the_finished_plan_is_read_bridged_narrowed_and_healed(tmp_path: Path, text: Path) -> None:
    model(tmp_path / "base", layers=4)
    statements = (
        f'drop L1\nwidth 64 on "{text.name}" tokens 600\n'
        f'bridge on "{text.name}" tokens 600\nheal on "{text.name}" tokens 600\n'
    )
    plan = prepared(tmp_path, statements)
    fitted = fit_tensors(plan)
    result = importance_matrix(plan, read := importance_text(plan, text), fitted)
    folder = gptailor.compile(plan, tmp_path / "out").folder
    wanted = squares_in_transformers(folder, read)
    assert result.keys() == wanted.keys()
    assert len(result["model.layers.1.mlp.down_proj.weight"]) == 64
    for name, columns in result.items():
        torch.testing.assert_close(columns.double(), wanted[name], rtol=1e-4, atol=1e-9)


def test_a_matrix_is_kept_for_the_same_plan_and_text_alone(tmp_path: Path, text: Path) -> None:
    model(tmp_path / "base")
    plan = prepared(tmp_path, "drop L1\n")
    read = importance_text(plan, text)
    steps: list[object] = []
    first = importance_matrix(plan, read, None, on_event=steps.append)
    assert [e.done for e in steps if isinstance(e, Progress)] == [1, 2]
    again = importance_matrix(plan, read, None, on_event=steps.append)
    assert len(steps) == 2
    assert all(torch.equal(first[name], again[name]) for name in first)
    importance_matrix(plan, read, None, on_event=steps.append, anew=True)
    assert len(steps) == 4
    importance_matrix(prepared(tmp_path, "drop L2\n"), read, None, on_event=steps.append)
    assert len(steps) == 6


def test_numbers_that_are_not_finite_are_refused_with_their_layer(
    tmp_path: Path, text: Path
) -> None:
    base = model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][0, 0] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    plan = prepared(tmp_path, "")
    with pytest.raises(BridgeError) as caught:
        importance_matrix(plan, importance_text(plan, text), None)
    assert caught.value.code == "C807"
    assert caught.value.message.startswith("the importance matrix of L1: hidden states")
    assert "'model.layers.1.self_attn.v_proj.weight'" in caught.value.message


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, "C801", "can't be read"),
        ('{"text": "short"}\n', "C806", "tokens, and an importance matrix needs 512"),
        ('{"texts": "a"}\n', "C804", "text"),
        ("[]\n", "C803", "JSON object"),
    ],
)
def test_unusable_texts_are_refused(
    tmp_path: Path, content: str | None, code: str, words: str
) -> None:
    model(tmp_path / "base")
    file = tmp_path / "bad.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CalibrationError) as caught:
        importance_text(prepared(tmp_path, ""), file)
    assert caught.value.code == code
    assert words in caught.value.message
    assert caught.value.path == file
