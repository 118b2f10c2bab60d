"""The default dtype of computation."""

import json
from pathlib import Path

import pytest
import torch

from gptailor.checkpoint.models import Opened
from gptailor.evaluation.evaluate import evaluate
from gptailor.evaluation.scores import Score, TargetSize
from gptailor.evaluation.space_trials import opened
from gptailor.lang.parse import load
from gptailor.program.devices import healing_dtype, quick_dtype
from gptailor.searching.run.records import RunRecord
from gptailor.searching.settings import Resources
from gptailor.searching.trial_evaluator import computing
from tests.support.second_device import second_device
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of a model that is stored in bfloat16."""
    folder = tmp_path_factory.mktemp("halves")
    tiny_model("llama", folder / "base", layers=4, dtype="bfloat16")
    (folder / "rows.jsonl").write_text(json.dumps({"text": "a cat sat " * 9}))
    (folder / "cut.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L2\n')
    return folder / "cut.tailor"


def slow_halves(there: pytest.MonkeyPatch, slow: bool) -> None:
    there.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not slow)


def judged(plan: Path, dtype: torch.dtype | None = None) -> tuple[float, TargetSize]:
    result = evaluate(plan, 'nll("rows.jsonl")', folder=plan.parent, dtype=dtype)
    outcome = result.results[0].outcome
    assert isinstance(outcome, Score)
    return outcome.value, result.subjects[0]


def test_a_processor_without_products_of_16_bits_computes_in_float32(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_halves(monkeypatch, True)
    quick, size = judged(plan)
    wide, _ = judged(plan, torch.float32)
    halves, of_halves = judged(plan, torch.bfloat16)
    assert quick == wide != halves
    assert size == of_halves, "a KV cache is said in the model's own dtype"

    slow_halves(monkeypatch, False)
    assert judged(plan) == (halves, of_halves)


def models_of(plan: Path) -> dict[str, Opened]:
    return opened(load(plan))[1]


def test_only_slow_dtypes_that_fit_are_widened(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = models_of(plan)
    slow_halves(monkeypatch, True)
    assert quick_dtype(models, "cpu") == torch.float32
    assert quick_dtype(models, "meta") is None
    monkeypatch.setattr("gptailor.program.devices._ROOM", 0.0)
    assert quick_dtype(models, "cpu") is None


def test_a_card_without_products_in_bfloat16_computes_in_float32(
    plan: Path, tmp_path: Path
) -> None:
    models = models_of(plan)
    tiny_model("llama", tmp_path / "base", dtype="float16")
    (tmp_path / "cut.tailor").write_text('tailor 1\nmodel base = "./base"\n')
    of_float16 = models_of(tmp_path / "cut.tailor")
    with second_device() as card:
        assert quick_dtype(models, "cuda") is None
        assert healing_dtype(models, torch.device("cuda")) == torch.bfloat16
        card.capability = 7, 5
        assert quick_dtype(models, "cuda") == torch.float32
        assert healing_dtype(models, torch.device("cuda")) == torch.float32
        assert quick_dtype(of_float16, "cuda") is None
        assert quick_dtype(models, "cuda:1") is None, "a worker's device, on another machine"
    assert quick_dtype(models, "cuda") is None


def test_a_search_resumes_in_its_first_dtype(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = models_of(plan)
    own, wide = (RunRecord.model_construct(dtype=dtype) for dtype in (None, "float32"))
    slow_halves(monkeypatch, True)
    assert computing(Resources(), models, None).dtype == "float32"
    assert computing(Resources(), models, own).dtype is None
    assert computing(Resources(dtype="bfloat16"), models, own).dtype == "bfloat16"
    slow_halves(monkeypatch, False)
    assert computing(Resources(), models, None).dtype is None
    assert computing(Resources(), models, wide).dtype == "float32"
