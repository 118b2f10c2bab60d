"""lm-eval's model `gptailor` scores a plan as lm-eval's `hf` scores its compiled folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import gptailor
import gptailor.plugins.lm_eval.model
from tests.support.tiny import tiny_models

TASK = """\
task: tiny
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}]
"""
PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
merge(L1 base, L1 math, 0.5)
drop L3
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    tiny_models(folder, "base", "math")
    (folder / "plan.tailor").write_text(PLAN)
    (folder / "tasks").mkdir()
    rows = [
        {"question": f"the cat {n}", "choices": [" sat", " on the mat"], "answer": n % 2}
        for n in range(12)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "tasks" / "tiny.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    return folder


def judged(model: str, arguments: dict[str, Any], world: Path) -> list[Any]:
    manager = TaskManager(include_path=str(world / "tasks"), include_defaults=False)
    result = simple_evaluate(
        model=model, model_args=arguments, tasks=["tiny"], task_manager=manager, device="cpu",
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    return [sample["resps"] for sample in result["samples"]["tiny"]]


def test_a_plan_has_the_likelihoods_of_its_compiled_folder(world: Path) -> None:
    out = gptailor.compile(gptailor.load(world / "plan.tailor"), world / "out").folder
    of_plan = judged("gptailor", {"plan": str(world / "plan.tailor")}, world)
    of_folder = judged("hf", {"pretrained": str(out), "dtype": "float32"}, world)
    assert of_plan == of_folder
    of_base = judged("gptailor", {"plan": str(world / "base")}, world)
    assert of_base != of_plan


def test_a_plan_with_faults_is_refused(world: Path) -> None:
    (world / "bad.tailor").write_text(PLAN + "drop L99\n")
    with pytest.raises(gptailor.PlanError, match="L99"):
        judged("gptailor", {"plan": str(world / "bad.tailor")}, world)


def test_an_argument_without_an_effect_on_a_plan_is_refused(world: Path) -> None:
    for name in ("peft", "revision", "parallelize", "pretrained", "tokenizer", "frobnicate"):
        with pytest.raises(TypeError, match=f"an argument of the model gptailor, got '{name}'"):
            gptailor.lm_eval.PlanLM(str(world / "base"), **{name: "x"})
    model = gptailor.lm_eval.PlanLM(world / "base", dtype="auto", device="cuda", max_length=16)
    assert model.max_length == 16
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.wrong_types
def test_arguments_are_checked_by_name(world: Path) -> None:
    with pytest.raises(TypeError, match=r"'plan': expected str \| Path \| Plan, got 5"):
        gptailor.lm_eval.PlanLM(5)
    with pytest.raises(ValueError, match=r"'memory': expected int >= 1 \| str \| None, got 0"):
        gptailor.lm_eval.PlanLM("plan.tailor", memory=0)
    with pytest.raises(gptailor.TailorError, match="'frob' is not a device"):
        gptailor.lm_eval.PlanLM(world / "base", device="frob")
