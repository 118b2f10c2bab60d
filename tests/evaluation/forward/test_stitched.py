"""Stitched plans through the evaluator: their compiled folders' numbers, streamed or not."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import gptailor
from gptailor.evaluation.forward.evaluator import Evaluator
from gptailor.evaluation.forward.requests import Results, Work
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.live.template import decoder_layers
from gptailor.prepare import prepare
from tests.evaluation.lent import Lent, requests, whole
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PLANS = (
    "drop L4",
    "drop L3..L4\nL5 from math",
    "drop L3..L4\nL2 = merge(L2 base, L2 math, 0.3)",
    "drop L4\nL5 = merge(L5 base, L5 math, 0.3)",
)
WORKS = [Work(requests(10), whole)]
LAYERS = 6


def flat(result: object) -> torch.Tensor:
    assert isinstance(result, list), result
    results: Results = result
    return torch.cat([values for work in results for values in work])


def compiled(plan: gptailor.Plan, folder: Path) -> Lent:
    """The plan as a folder that transformers loaded."""
    gptailor.compile(plan, folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    return Lent(model, "start", tuple(range(len(decoder_layers(model)))))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "falcon", "qwen3_moe"])
def test_the_numbers_of_the_compiled_folder(family: str, tmp_path: Path) -> None:
    logging.disable_progress_bar()
    for seed, name in enumerate(("base", "math")):
        tiny_model(family, tmp_path / name, seed=seed)
    head = "tailor 1\n" + "".join(
        f'model {name} = "{tmp_path / name}"\n' for name in ("base", "math")
    )
    plans = [gptailor.loads(head + text + "\n") for text in PLANS]
    size = (tmp_path / "base" / "model.safetensors").stat().st_size
    alone = [
        flat(Evaluator(batch_tokens=64).run(compiled(plan, tmp_path / str(number)), WORKS))
        for number, plan in enumerate(plans)
    ]
    for memory in (None, int(0.8 * size)):
        stitcher = Stitcher(prepare(plans[1]).models, memory=memory)
        evaluator = Evaluator(batch_tokens=64, cache=2**20)
        contents = [stitcher.contents(prepare(plan).resolved) for plan in plans]
        ran = evaluator.run_all(dict(enumerate(contents)), WORKS, stitcher.live)
        results = {number: result for number, _, result in ran}
        assert [torch.equal(flat(results[n]), one) for n, one in enumerate(alone)] == [True] * 4
        assert evaluator.layers_saved > 0
