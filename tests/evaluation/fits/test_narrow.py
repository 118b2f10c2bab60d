"""Narrower MLPs: the families, live models, compiled folders, and the order of effects."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)

import gptailor
from gptailor.checks.fit_sizes import layers_size
from gptailor.evaluation.fits.repair import Repairs, fit, stitch
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from tests.support.quantised import write_quantised
from tests.support.structures import branch_structure
from tests.support.thorough import one_of_each
from tests.support.tiny import CONFIGURATIONS, letters, tiny_model
from tests.support.tiny_mixed import MIXED

TOKENS = torch.tensor([[1, 5, 9, 33, 20, 8, 41, 17], [1, 30, 30, 4, 62, 7, 11, 3]])
REFUSED = {
    "bitnet": "L0 of 'base' has an entry of 'mlp.ffn_sub_norm.weight' for each neuron",
    "bloom": "its configuration has no number of an MLP's neurons (64)",
    "mpt": "its configuration has no number of an MLP's neurons (64)",
    "gpt_neo": "its configuration has no number of an MLP's neurons (64)",
    "gpt_neox_japanese": "its configuration has no number of an MLP's neurons (64)",
    "mixtral": "L0 of 'base' has experts instead of one MLP",
    "openai-gpt": "a layer passes the sum of hidden state and branch through a norm",
}
"""Families with MLPs that can't be narrowed, and the reason."""
EXPERTS = {"qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"}
NARROWED = sorted(set(CONFIGURATIONS) - REFUSED.keys() - EXPERTS - set(MIXED))
FIRSTS = one_of_each(NARROWED, branch_structure)
DEAD = 8

Say = Callable[[str], Plan]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("width")
    (folder / "text.txt").write_text(letters(1200), encoding="utf-8")
    tiny_model("llama", folder / "llama")
    return folder


@pytest.fixture
def say(folder: Path) -> Say:
    def said(statements: str, family: str = "llama") -> Plan:
        text = f'tailor 1\nmodel base = "./{family}"\n{statements}\n'
        return gptailor.loads(text, folder=folder)

    return said


def kill_neurons(model: Path, own: int) -> None:
    """Set all weights of the first `DEAD` neurons of each MLP to zero, so that they give zero."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        for axis, side in enumerate(tensor.shape if "att" not in name else ()):
            if side in {own, 2 * own}:
                for first in range(0, side, own):
                    tensor.narrow(axis, first, DEAD).zero_()
    save_file(tensors, file, {"format": "pt"})


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS).logits


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ------------------------------------------------------------------------------------- the families


@pytest.mark.parametrize("family", FIRSTS)
def test_neurons_that_give_zero_leave_without_a_trace(family: str, tmp_path: Path) -> None:
    base = tiny_model(family, tmp_path / "base", layers=3)
    plan = 'tailor 1\nmodel base = "./base"\n'
    own = checked_width(gptailor.loads(plan, folder=tmp_path))
    kill_neurons(base, own)
    (tmp_path / "text.txt").write_text(letters(600), encoding="utf-8")
    cut = gptailor.loads(f'{plan}width {own - DEAD} on "text.txt" tokens 500', folder=tmp_path)
    result = gptailor.compile(cut, tmp_path / "out")
    before, after = loaded(base), loaded(tmp_path / "out")
    assert parameters(after) < parameters(before)
    assert result.parameters == prepare(cut).output_size.parameters
    assert torch.allclose(logits(after), logits(before), atol=1e-4)
    assert torch.equal(logits(stitch(cut)), logits(after))


def checked_width(plan: Plan) -> int:
    own = layers_size(prepare(plan).checked, "width")
    assert isinstance(own, int), own
    return own


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_without_such_a_form_is_refused_with_the_reason(
    family: str, tmp_path: Path
) -> None:
    tiny_model(family, tmp_path / "base")
    text = 'tailor 1\nmodel base = "./base"\nwidth 8 on "text.txt"'
    (tmp_path / "text.txt").write_text(letters(100), encoding="utf-8")
    faults = [f for f in gptailor.check(gptailor.loads(text, folder=tmp_path)) if f.code == "M240"]
    assert [fault.message for fault in faults] == [f"'width' isn't supported: {REFUSED[family]}"]


# ------------------------------------------------------------------------------------------ the fit


def test_the_refit_leaves_less_error_than_slices_alone(say: Say, folder: Path) -> None:
    plan = say('width 16 on "text.txt" tokens 1000 ridge 0.01')
    whole, narrow = loaded(folder / "llama"), stitch(plan)
    sliced = stitch(plan)
    prepared = prepare(plan)
    made = Repairs(Stitcher(prepared.models)).fitted(prepared.resolved).changes["width"]
    for number, layer in enumerate(whole.model.layers):
        rows = made[number]["mlp.gate_proj.weight"]
        kept = (layer.mlp.gate_proj.weight[:, None] == rows).all(-1).any(1)
        assert int(kept.sum()) == 16
        down = layer.mlp.down_proj.weight[:, kept]
        assert not torch.equal(down, made[number]["mlp.down_proj.weight"])
        sliced.model.layers[number].mlp.down_proj.weight = torch.nn.Parameter(down)
    tokens = torch.randint(3, 64, (8, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full, *others = (model(tokens).logits for model in (whole, narrow, sliced))
    errors = [(other - full).square().mean() for other in others]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("family", "count", "ridge"),
    [("llama", 16, 0.01), ("llama", 16, 0.1), ("gemma2", 3, 0.1), ("gpt2", 56, 0.1)],
)
def test_the_output_equals_a_fit_by_transformers_and_least_squares(
    family: str, count: int, ridge: float, tmp_path: Path
) -> None:
    base = tiny_model(family, tmp_path / "base", layers=2)
    rows = [letters(40 + n, seed=n) for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps({'text': r})}\n" for r in rows))
    tokenizer = AutoTokenizer.from_pretrained(base)
    sequences = [tokenizer(row, return_tensors="pt").input_ids for row in rows]
    total = sum(sequence.numel() for sequence in sequences)
    plan = gptailor.loads(
        'tailor 1\nmodel base = "./base"\n'
        f'width {count} on "rows.jsonl" tokens {total} ridge {ridge}\n',
        folder=tmp_path,
    )
    gptailor.compile(plan, tmp_path / "out")
    whole, narrow = loaded(base), loaded(tmp_path / "out")
    pairs = zip(layers_of(whole), layers_of(narrow), strict=True)
    for number, (layer, own) in enumerate(pairs):
        down, result = output_projection(layer), output_projection(own)
        x, after = neurons_and_states(whole, layer, down, sequences)
        root = after.square().sum(1).rsqrt()[:, None]
        kept = greedy_neurons(x * root, matrix(down), count, ridge)
        wanted = matrix(down)[kept] + fitted(
            x[:, kept] * root, (x @ matrix(down) - x[:, kept] @ matrix(down)[kept]) * root, ridge
        )
        torch.testing.assert_close(matrix(result), wanted, rtol=1e-3, atol=1e-5, msg=f"L{number}")


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def output_projection(layer: torch.nn.Module) -> torch.nn.Module:
    return getattr(layer.mlp, "down_proj", None) or layer.mlp.c_proj


def matrix(down: torch.nn.Module) -> torch.Tensor:
    """Return a projection's weight in float64 with a row for each neuron."""
    weight = down.weight.detach().double()
    return weight.T if isinstance(down, torch.nn.Linear) else weight


def neurons_and_states(
    model: PreTrainedModel,
    layer: torch.nn.Module,
    down: torch.nn.Module,
    sequences: list[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the neurons' values and the states after the layer, a row for each token."""
    x, after = list[torch.Tensor](), list[torch.Tensor]()
    hooks = [
        down.register_forward_hook(lambda _, inputs, __: x.append(inputs[0][0])),
        layer.register_forward_hook(
            lambda _, __, out: after.append((out[0] if isinstance(out, tuple) else out)[0])
        ),
    ]
    with torch.no_grad():
        for sequence in sequences:
            model(sequence)
    for hook in hooks:
        hook.remove()
    return torch.cat(x).double(), torch.cat(after).double()


def greedy_neurons(x: torch.Tensor, rows: torch.Tensor, count: int, ridge: float) -> torch.Tensor:
    """Return the neurons that stay: the neuron that costs least leaves, again and again.

    A choice is measured by its damped error, with all neurons that stay fitted again.
    """
    damping = ridge * x.square().sum(0).median()
    aim, kept = x @ rows, list(range(len(rows)))

    def error(choice: list[int]) -> float:
        inputs = torch.cat([x[:, choice], damping.sqrt() * torch.eye(len(choice)).double()])
        target = torch.cat([aim, torch.zeros(len(choice), aim.shape[1]).double()])
        fit = torch.linalg.lstsq(inputs, target, driver="gels").solution  # damped: full rank
        return float((inputs @ fit - target).square().sum())

    while len(kept) > count:
        kept.remove(min(kept, key=lambda neuron: error([n for n in kept if n != neuron])))
    return torch.tensor(kept)


def fitted(x: torch.Tensor, target: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the damped least squares of a target by columns of `x`."""
    damping = ridge * x.square().sum(0).median()
    inputs = torch.cat([x, damping.sqrt() * torch.eye(x.shape[1]).double()])
    zeros = torch.zeros(x.shape[1], target.shape[1]).double()
    return torch.linalg.lstsq(inputs, torch.cat([target, zeros]), driver="gelsd").solution


# ------------------------------------------------------------------------------- with other parts


def test_a_bridge_after_narrow_layers_approximates_the_whole_model(say: Say) -> None:
    bare = 'width 16 on "text.txt" tokens 1000\ndrop L2..L3\n'
    whole = logits(stitch(say("")))
    errors = [
        (logits(stitch(say(bare + bridge))) - whole).square().mean()
        for bridge in ("", 'bridge on "text.txt" tokens 1000\n')
    ]
    assert errors[1] < errors[0]
    assert stitch(say(bare)).model.layers[1].mlp.down_proj.weight.shape == (16, 16)


def test_healing_learns_from_the_whole_model(say: Say) -> None:
    plan = say('width 12 on "text.txt" tokens 1000\nheal on "text.txt" tokens 900 rank 4')
    losses = fit(prepare(plan)).results["heal"].numbers
    assert 0 < losses["healed"] < losses["start"] == losses["bare"]


def test_a_quantised_model_is_dequantised(tmp_path: Path) -> None:
    write_quantised(tiny_model("llama", tmp_path / "base"), "fp8-block")
    (tmp_path / "text.txt").write_text(letters(600), encoding="utf-8")
    text = 'tailor 1\nmodel base = "./base"\nwidth 16 on "text.txt"'
    plan = gptailor.loads(text, folder=tmp_path)
    [warning] = [fault for fault in gptailor.check(plan) if fault.code == "M309"]
    assert warning.at == ("width",)
    gptailor.compile(plan, tmp_path / "out")
    live = stitch(plan, dtype="float32")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(logits(live), logits(after))


def test_a_width_of_the_model_itself_changes_nothing(say: Say, folder: Path) -> None:
    plan = say('width 24 on "text.txt" tokens 900')
    assert not prepare(plan).compiled.program.fitted
    assert torch.equal(logits(stitch(plan)), logits(loaded(folder / "llama")))
