import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import gptailor
from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError
from gptailor.checks.repairs import last_projection
from gptailor.evaluation.fits.bridge import fit as bridge_fit
from gptailor.evaluation.fits.bridge.fit import (
    Statistics,
    carriers,
    fold_fit,
    solve,
    weights,
)
from gptailor.evaluation.fits.bridge.states import (
    BRIDGE_BATCH_TOKENS,
    Pass,
    calibration_text,
    regressors,
)
from gptailor.evaluation.fits.fit import BridgeError, Fitted
from gptailor.evaluation.fits.repair import Repairs, fit, stitch
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import decoder_layers, position_count
from gptailor.evaluation.objectives.tokens import TokenEncoder
from gptailor.plan.events import Progress
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.prepare import prepare
from tests.support.events import progress
from tests.support.structures import branch_structure
from tests.support.thorough import one_of_each
from tests.support.tiny import CONFIGURATIONS, letters, tiny_model
from tests.support.tiny_mixed import MIXED

TOKENS = torch.tensor([[1, 5, 9, 33, 20, 8, 41, 17], [1, 30, 30, 4, 62, 7, 11, 3]])
POST_NORM = {"gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4", "glm4", "hyperclovax"}
POST_SUM = {"openai-gpt"}
IN_PLACE = {"diffllama"}
EXPERTS = {"mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3"}
BRIDGED = sorted(set(CONFIGURATIONS) - POST_NORM - POST_SUM - IN_PLACE - set(MIXED))
FIRSTS = one_of_each(BRIDGED, branch_structure)
ONE = 'drop L2..L3; bridge on "text.txt" tokens 800 ridge 0.001'
TWO = 'drop L1, L3..L4; bridge on "text.txt" tokens 800 ridge 0.001'

Say = Callable[[str], Plan]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bridge")
    tiny_model("llama", made / "base")
    (made / "text.txt").write_text(letters(2000))
    return made


def said(folder: Path, text: str) -> Plan:
    (folder / "plan.tailor").write_text(f'tailor 1\nmodel base = "./base"\n{text}\n')
    return gptailor.load(folder / "plan.tailor")


@pytest.fixture
def say(folder: Path) -> Say:
    return lambda text: said(folder, text)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(TOKENS).logits


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def fitted(plan: Plan) -> Fitted:
    return fit(prepare(plan))


# ------------------------------------------------------------------------------------ the rule


Drawn = tuple[Tensor, Tensor, Tensor]
"""X, R and the weights of some tokens."""


def statistics(x: Tensor, r: Tensor, omega: Tensor) -> Statistics:
    made = Statistics(x.shape[1], r.shape[1])
    for part in range(0, len(x), 7):
        made.add(x[part : part + 7], r[part : part + 7], omega[part : part + 7])
    return made


def draw(n: int, width_in: int, width_out: int, seed: int = 0) -> Drawn:
    generator = torch.Generator().manual_seed(seed)
    x, r = (torch.randn(n, width, generator=generator) for width in (width_in, width_out))
    return x, r, torch.rand(n, generator=generator, dtype=torch.float64) + 0.1


@pytest.fixture
def drawn() -> Drawn:
    return draw(50, 4, 3)


def naive_fit(x: Tensor, r: Tensor, omega: Tensor, ridge: float) -> Tensor:
    """(XᵀΩX + λI)⁻¹ XᵀΩR, as it stands."""
    x, r, diagonal = x.double(), r.double(), torch.diag(omega)
    gram = x.T @ diagonal @ x
    damped = gram + ridge * gram.diagonal().median() * torch.eye(len(gram))
    return torch.linalg.inv(damped) @ x.T @ diagonal @ r


def test_the_sums_are_those_of_all_tokens(drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_fit, "CHUNK", 3)
    monkeypatch.setattr(bridge_fit, "GRAM_COLUMNS", 3)
    x, r, omega = (item.double() for item in drawn)
    result = statistics(*drawn)
    assert result.count == 50
    torch.testing.assert_close(result.gram.triu(), (x.T @ torch.diag(omega) @ x).triu())
    torch.testing.assert_close(result.cross, x.T @ torch.diag(omega) @ r)
    torch.testing.assert_close(result.squares, (omega[:, None] * r * r).sum())


@given(
    st.integers(1, 9), st.integers(1, 9), st.floats(0, 100), st.integers(0, 2**32), st.booleans()
)
def test_the_fit_is_the_formula(
    width_in: int, width_out: int, ridge: float, seed: int, loud: bool
) -> None:
    x, r, omega = draw(40, width_in, width_out, seed)
    if loud:
        x[0] *= 1e3
    result = solve(statistics(x, r, omega), ridge)
    change = naive_fit(x, r, omega, ridge)
    torch.testing.assert_close(result.change, change, atol=1e-9, rtol=1e-6)
    left = (omega[:, None] * (r - x.double() @ change).square()).sum()
    whole = (omega[:, None] * r.double().square()).sum()
    assert result.explained == pytest.approx(1 - float(left / whole), abs=1e-7)


@given(st.integers(1, 9), st.integers(1, 4), st.floats(0.01, 10), st.integers(0, 2**32))
def test_the_held_out_share_is_that_of_fits_without_each_sequence(
    width_in: int, width_out: int, ridge: float, seed: int
) -> None:
    x, r, omega = draw(40, width_in, width_out, seed)
    parts = [slice(0, 13), slice(13, 16), slice(16, 40)]
    result = solve(statistics(x, r, omega), ridge).held_out(
        [(x[part], r[part], omega[part]) for part in parts]
    )
    root = omega.sqrt()[:, None]
    wide, lack = x.double() * root, r.double() * root
    damping = ridge * (wide.T @ wide).diagonal().median() * torch.eye(width_in)
    left = torch.tensor(0.0, dtype=torch.float64)
    for part in parts:
        others = torch.ones(40, dtype=torch.bool)
        others[part] = False
        gram = wide[others].T @ wide[others] + damping
        change = torch.linalg.solve(gram, wide[others].T @ lack[others])
        left += (lack[part] - wide[part] @ change).square().sum()
    assert result == pytest.approx(1 - float(left / lack.square().sum()), abs=1e-6)


def test_a_share_without_a_solution_isnt_a_number() -> None:
    one = torch.eye(2)[:1], torch.ones(1, 1), torch.ones(1, dtype=torch.float64)
    other = torch.eye(2)[1:], torch.ones(1, 1), torch.ones(1, dtype=torch.float64)
    joint = tuple(torch.cat(pair) for pair in zip(one, other, strict=True))
    assert math.isnan(solve(statistics(*joint), 0.0).held_out([one, other]))


def test_without_a_ridge_it_is_weighted_least_squares(drawn: Drawn) -> None:
    x, r, omega = (item.double() for item in drawn)
    root = omega.sqrt()[:, None]
    change = torch.linalg.lstsq(root * x, root * r).solution
    torch.testing.assert_close(solve(statistics(*drawn), 0.0).change, change)


def test_a_token_weighs_by_the_hidden_state_that_is_wanted() -> None:
    target = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e20, 4e20], [3e-20, 0.0]])
    wanted = torch.tensor([1 / 25, 0.0, 1 / 25e40, 1 / 9e-40], dtype=torch.float64)
    torch.testing.assert_close(weights(target), wanted, atol=0.0, rtol=1e-6)


def test_a_token_without_weight_is_left_out(drawn: Drawn) -> None:
    x, r, omega = drawn
    omega[5] = 0
    result = solve(statistics(x, r, omega), 0.1).change
    there = torch.arange(50) != 5
    torch.testing.assert_close(
        result, solve(statistics(x[there], r[there], omega[there]), 0.1).change
    )


def test_large_inputs_keep_the_precision_of_small_ones(drawn: Drawn) -> None:
    x, r, omega = drawn
    large = torch.tensor([1e7, 1.0, 1.0, 1.0])
    change = solve(statistics(x, r, omega), 0.0).change
    other = solve(statistics(x * large, r, omega), 0.0).change
    torch.testing.assert_close(other * large[:, None], change, atol=1e-6, rtol=1e-6)


def test_a_large_input_does_not_raise_the_ridge(drawn: Drawn) -> None:
    """The median, as a few inputs are a thousand times as large as the others."""
    x, r, omega = drawn
    loud = torch.cat([x, 1e6 * torch.randn(50, 1, generator=torch.Generator())], dim=1)
    quiet, other = (solve(statistics(item, r, omega), 1e-3).change for item in (x, loud))
    assert (other[:4] - quiet).norm() < 0.3 * quiet.norm()


def test_a_huge_ridge_leaves_the_weights(drawn: Drawn) -> None:
    assert solve(statistics(*drawn), 1e15).change.abs().max() < 1e-14


def test_a_singular_fit_needs_a_ridge(drawn: Drawn) -> None:
    x, r, omega = drawn
    twice = torch.cat([x[:, :3], x[:, :1] * 3], dim=1)
    dead = torch.cat([x[:, :3], torch.zeros(50, 1)], dim=1)
    with pytest.raises(BridgeError, match="depend on each other"):
        solve(statistics(dead, r, omega), 0.0)
    with pytest.raises(BridgeError, match="depend on each other over 50 tokens") as caught:
        solve(statistics(twice, r, omega), 0.0)
    assert caught.value.code == "C808"
    assert solve(statistics(twice, r, omega), 0.001).change.isfinite().all()


def test_inputs_that_are_always_zero_change_nothing(drawn: Drawn) -> None:
    x, r, omega = drawn
    dead = torch.cat([x, torch.zeros(50, 5)], dim=1)
    result = solve(statistics(dead, r, omega), 0.1).change
    torch.testing.assert_close(result[:4], solve(statistics(x, r, omega), 0.1).change)
    assert not result[4:].any()
    nothing = solve(statistics(0 * x, r, omega), 0.1)
    assert (nothing.change.any().item(), nothing.explained) == (False, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_states_that_are_not_finite_are_refused(drawn: Drawn, which: int, value: float) -> None:
    drawn[which][3, 1] = value
    with pytest.raises(BridgeError, match="not finite"):
        statistics(*drawn)


# ----------------------------------------------------------------------------- the text's tokens


def test_the_requested_number_of_tokens_is_taken(folder: Path) -> None:
    encoder = TokenEncoder(AutoTokenizer.from_pretrained(folder / "base"), 128)
    text = calibration_text(folder / "text.txt", 700, encoder)
    assert text.tokens == 700 == sum(int(batch.real.sum()) for batch in text.batches)
    assert all(batch.real[:, 0].all() for batch in text.batches)
    assert max(batch.tokens.shape[1] for batch in text.batches) == 128
    assert all(batch.tokens.numel() <= BRIDGE_BATCH_TOKENS for batch in text.batches)


def test_each_row_is_its_own_sequence(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"text": "abc"}\n{"context": "ab", "answer": "cdefghij"}\n')
    encoder = TokenEncoder(AutoTokenizer.from_pretrained(folder / "base"), 8)
    text = calibration_text(folder / "rows.jsonl", 100, encoder)
    counts = sorted(int(row.sum()) for batch in text.batches for row in batch.real)
    assert counts == [3, 3, 8]  # abc; ab cdefghij in pieces of 8 tokens


# --------------------------------------------------------------------------- against a naive fit


class Seen:
    """The states around some layers of a model, of all sequences, caught by hooks."""

    def __init__(self, model: PreTrainedModel, layer: int, until: int) -> None:
        self.inputs: list[Tensor] = []
        self.after: list[Tensor] = []
        self.until: list[Tensor] = []
        layers = decoder_layers(model)
        layers[layer].mlp.down_proj.register_forward_pre_hook(
            lambda _, given: self.inputs.append(given[0][0])
        )
        for at, states in ((layer, self.after), (until - 1, self.until)):
            layers[at].register_forward_hook(
                lambda _, __, out, states=states: states.append(out[0])
            )


def rows(base: Path, tokens: int = 800) -> Iterator[Tensor]:
    """The sequences of the calibration text, one by one and without padding."""
    positions = position_count(AutoConfig.from_pretrained(base))
    encoder = TokenEncoder(AutoTokenizer.from_pretrained(base), positions)
    text = calibration_text(base.parent / "text.txt", tokens, encoder)
    for batch in text.batches:
        for row, real in zip(batch.tokens, batch.real, strict=True):
            yield row[: int(real.sum())][None]


def naive(full: PreTrainedModel, cut: PreTrainedModel, gap: tuple[int, int, int]) -> Tensor:
    """A' as bridge_internals.md has it: `gap` is p, q, and p's number in the model that is cut."""
    after, until, index = gap
    teacher, student = Seen(full, after, until), Seen(cut, index, index + 1)
    with torch.inference_mode():
        for tokens in rows(Path(full.name_or_path)):
            full(tokens)
            cut(tokens)
    x, out, t = (torch.cat(s).double() for s in (student.inputs, student.after, teacher.until))
    assert len(x) == 800
    change = naive_fit(x, t - out, 1 / t.square().sum(1), 0.001)
    return decoder_layers(cut)[index].mlp.down_proj.weight.double() + change.T


def assert_made(result: Fitted, index: int, naive: Tensor) -> None:
    made = result.tensors[f"model.layers.{index}.mlp.down_proj.weight"]
    torch.testing.assert_close(made, naive.float(), atol=2e-5, rtol=1e-4)


def test_a_bridge_equals_the_naive_fit(say: Say, folder: Path) -> None:
    result = fitted(say(ONE))
    assert_made(result, 1, naive(loaded(folder / "base"), stitch(say("drop L2..L3")), (1, 4, 1)))
    assert list(result.tensors) == ["model.layers.1.mlp.down_proj.weight"]
    assert (result.results["L1"].tokens, list(result.results)) == (800, ["L1"])
    assert result.results["L1"].numbers["explained"] > 0.1


def test_a_later_gap_is_fitted_on_the_bridged_models_states(say: Say, folder: Path) -> None:
    result = fitted(say(TWO))
    first = say('drop L1, L3..L4; bridge L0 on "text.txt" tokens 800 ridge 0.001')
    assert_made(result, 1, naive(loaded(folder / "base"), stitch(first), (2, 5, 1)))
    assert list(result.results) == ["L0", "L2"]


def test_each_of_three_gaps_is_fitted_after_the_previous_bridge(say: Say, folder: Path) -> None:
    end = 'on "text.txt" tokens 800 ridge 0.001'
    drops = "drop L1, L3, L5; scale L2 by 1.5"
    result = fitted(say(f"{drops}; bridge {end}"))
    two = stitch(say(f"{drops}; bridge L0 {end}; bridge L2 {end}"))
    whole = stitch(say("scale L2 by 1.5"))
    whole.name_or_path = str(folder / "base")
    assert_made(result, 2, naive(whole, two, (4, 6, 2)))


def test_the_final_norm_ends_a_gap_and_a_gap_without_a_bridge_stays(say: Say, folder: Path) -> None:
    result = fitted(say('drop L1, L4..L5; bridge L3 on "text.txt" tokens 800 ridge 0.001'))
    cut = stitch(say("drop L1, L4..L5"))
    assert_made(result, 2, naive(loaded(folder / "base"), cut, (3, 6, 2)))


def test_a_gap_with_another_text_is_fitted_after_the_first_bridge(say: Say, folder: Path) -> None:
    (folder / "same.txt").write_text((folder / "text.txt").read_text())
    end = "tokens 800 ridge 0.001"
    plan = f'drop L1, L3..L4; bridge L0 on "text.txt" {end}; bridge L2 on "same.txt" {end}'
    for name, tensor in fitted(say(plan)).tensors.items():
        assert torch.equal(tensor, fitted(say(TWO)).tensors[name])


# -------------------------------------------------------------------------------- its purpose


def linear(folder: Path) -> None:
    """A model with L2 and L3 that add a linear map of L1's MLP output, and read nothing else.

    Norms are linear (their epsilon is huge), L0 and L1 write what isn't that MLP's into the first
    half of the channels, that MLP into the second half, the only one that L2 and L3 read.
    """
    tiny_model("llama", folder / "base", mlp_bias=True, hidden_act="linear", rms_norm_eps=1e12)
    file = folder / "base" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.mul_(1e6)
        elif name.endswith("embed_tokens.weight"):
            tensor[:, 8:] = 0
    for layer in range(4):
        its = {
            n.split(".", 3)[3]: t
            for n, t in tensors.items()
            if n.startswith(f"model.layers.{layer}.")
        }
        if layer >= 2:
            its["self_attn.o_proj.weight"].zero_()
            its["mlp.gate_proj.weight"].zero_()
            its["mlp.gate_proj.bias"].fill_(1.0)
            its["mlp.up_proj.weight"][:, :8] = 0
            its["mlp.up_proj.bias"].zero_()
            its["mlp.down_proj.bias"].zero_()
            continue
        its["self_attn.o_proj.weight"][8:] = 0
        its["mlp.down_proj.bias"].zero_()
        its["mlp.down_proj.weight"][slice(8) if layer else slice(8, None)] = 0
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_gap_that_is_a_linear_map_is_closed_to_rounding(tmp_path: Path) -> None:
    linear(tmp_path)
    (tmp_path / "text.txt").write_text(letters(2000))
    bare = stitch(said(tmp_path, "drop L2..L3"))
    bridged = stitch(said(tmp_path, 'drop L2..L3; bridge on "text.txt" tokens 800 ridge 1e-12'))
    whole = logits(loaded(tmp_path / "base"))
    scale = whole.abs().max()
    assert (logits(bare) - whole).abs().max() > 0.1 * scale
    assert (logits(bridged) - whole).abs().max() < 1e-4 * scale


def test_a_huge_ridge_changes_nothing(say: Say, folder: Path) -> None:
    [made] = fitted(say('drop L2..L3; bridge on "text.txt" tokens 800 ridge 1e18')).tensors.values()
    own = load_file(folder / "base" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(made, own)


def test_a_plan_without_gaps_is_untouched(say: Say) -> None:
    plan = say('bridge on "not there.txt"')
    assert [fault.code for fault in gptailor.check(plan)] == ["P702"]
    assert not fitted(plan).tensors
    assert torch.equal(logits(stitch(plan)), logits(stitch(say(""))))


# ------------------------------------------------------------------------------------- families


@pytest.mark.parametrize("kind", FIRSTS)
def test_a_fit_folded_into_weights_is_the_fit_at_run_time(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "base")
    plan = said(tmp_path, "drop L2..L3")
    stitcher = Stitcher(prepare(plan).models)
    layout = prepare(plan).models["base"].layout
    bare = stitcher.stitch(plan)

    content = bare.layers[1]
    outputs = carriers(layout, content)
    made = {name: stitcher.tensors.make(output) for name, output in outputs.items()}
    last = last_projection(layout, {name: output.spec.shape for name, output in outputs.items()})
    noise = torch.randn(last.inputs if last else 16, 16, generator=torch.Generator().manual_seed(0))
    change = 0.3 * noise
    tensors = fold_fit(change.double(), made, layout, {n: o.spec.dtype for n, o in outputs.items()})
    contents = stitcher.table.contents(stitcher.table.resolved(plan))
    layers = list(contents.layers)
    layers[1] = stitcher.table.fitted(layers[1], tensors)
    folded = stitcher.live(replace(contents, layers=tuple(layers)))

    layer = decoder_layers(bare.model)[1]
    last = last_projection(layout, {name: one.shape for name, one in layer.named_parameters()})
    if last is None:
        layer.mlp.register_forward_hook(lambda _, __, out: out + out @ change)
    else:
        layer.get_submodule(last.name).register_forward_hook(
            lambda _, given, out: out + given[0] @ change
        )
    torch.testing.assert_close(logits(folded.model), logits(bare.model), atol=1e-4, rtol=1e-4)
    assert (logits(stitch(plan)) - logits(bare.model)).abs().max() > 0.01


def after_layer(model: PreTrainedModel, index: int, tokens: list[Tensor]) -> Tensor:
    """The hidden states after a layer, of some sequences."""
    states: list[Tensor] = []
    hook = decoder_layers(model)[index].register_forward_hook(
        lambda _, __, out: states.append((out[0] if isinstance(out, tuple) else out)[0])
    )
    with torch.inference_mode():
        for row in tokens:
            model(row)
    hook.remove()
    return torch.cat(states).double()


@pytest.mark.parametrize("kind", [*FIRSTS, *sorted(POST_NORM)])
def test_the_explained_share_is_that_of_the_bridged_model(kind: str, tmp_path: Path) -> None:
    """Through the whole of it: which inputs, multipliers, transposed weights, experts, biases."""
    tiny_model(kind, tmp_path / "base")
    (tmp_path / "text.txt").write_text(letters(900))
    plan = said(tmp_path, ONE)
    [bridge] = fitted(plan).results.values()
    tokens = list(rows(tmp_path / "base"))
    wanted = after_layer(loaded(tmp_path / "base"), 3, tokens)
    weigh = 1 / wanted.square().sum(1)
    far = [
        (weigh[:, None] * (after_layer(model, 1, tokens) - wanted).square()).sum()
        for model in (stitch(said(tmp_path, "drop L2..L3")), stitch(plan))
    ]
    assert bridge.numbers["explained"] == pytest.approx(float(1 - far[1] / far[0]), abs=1e-4)
    assert bridge.numbers["explained"] > (0.05 if kind in FIRSTS else -0.5)


def without_branch(layer: nn.Module, branch: str, call: Callable[[], Tensor]) -> Tensor:
    hook = layer.get_submodule(branch).register_forward_hook(
        lambda _, __, out: torch.zeros_like(out)
    )
    try:
        return call()
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", FIRSTS)
def test_every_family_is_bridged(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "base")
    (tmp_path / "text.txt").write_text(letters(900))
    plan = said(tmp_path, TWO)
    prepared = prepare(plan)
    result = fit(prepared)
    assert result.tensors.keys() == prepared.compiled.program.fitted
    assert all(bridge.numbers["explained"] > 0.05 for bridge in result.results.values())

    live: Stitched = Repairs(Stitcher(prepared.models)).stitch(plan)
    state = live.model.state_dict()
    for name, tensor in result.tensors.items():
        if name in state:
            assert torch.equal(state[name], tensor)
    layer, caught = decoder_layers(live.model)[1], []
    layer.register_forward_hook(lambda _, __, out: caught.append(out))
    layout = prepared.models["base"].layout
    with regressors(layer, layout) as last:
        logits(live.model)
        added = last()
    shapes = {name: one.shape for name, one in layer.named_parameters()}
    assert (last_projection(layout, shapes) is None) == (kind in EXPERTS)
    name = "mlp"
    if kind not in EXPERTS:
        name = last_projection(layout, shapes).name
        weight = layer.get_parameter(f"{name}.weight")
        added = added @ (weight if layout.transposed else weight.T)
    without_branch(layer, name, lambda: logits(live.model))
    whole, attended = (out[0] if isinstance(out, tuple) else out for out in caught)
    torch.testing.assert_close(
        (whole - attended).diff(dim=1), added.diff(dim=1), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", sorted(POST_SUM))
def test_a_norm_after_the_sum_is_refused(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "base")
    plan = said(tmp_path, ONE)
    [fault] = [item for item in gptailor.check(plan) if item.code != "C801"]  # the text is missing
    assert fault.code == "M219"
    assert "the sum of hidden state" in fault.message


# ---------------------------------------------------------------------------- memory, other models


def test_the_sums_of_a_fit_count_as_memory(say: Say) -> None:
    prepared = prepare(say(TWO))
    sums = 8 * 24 * (24 + 16)
    with pytest.raises(TailorError) as caught:
        fit(prepared, memory=sums, anew=True)
    match = re.search(
        r"a fit takes 7,680, ([\d,]+) are outside .* takes ([\d,]+)", str(caught.value)
    )
    assert match is not None
    least = sums + sum(int(number.replace(",", "")) for number in match.groups())
    with pytest.raises(TailorError, match="can't hold the model: a fit takes 7,680"):
        fit(prepared, memory=least - 1, anew=True)
    assert fit(prepared, memory=least, anew=True).tensors
    stitcher = Stitcher(prepared.models, memory=least - sums)
    assert stitcher.stitch(say("drop L1")).model
    repairs = Repairs(Stitcher(prepared.models, memory=least), anew=True)
    repairs.stitch(prepared.plan)
    assert repairs.stitch(say("drop L1")).model


def test_a_model_of_another_dtype_is_fitted_in_float32(folder: Path, tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", dtype="bfloat16")
    (tmp_path / "text.txt").write_text((folder / "text.txt").read_text())
    plan = said(tmp_path, ONE)
    [made] = fitted(plan).tensors.values()
    live = stitch(plan)
    assert made.dtype == torch.bfloat16 == live.dtype
    assert torch.equal(decoder_layers(live)[1].mlp.down_proj.weight, made)
    wide = stitch(plan, dtype=torch.float32)
    assert torch.equal(decoder_layers(wide)[1].mlp.down_proj.weight, made.float())


def test_a_fit_does_not_depend_on_the_plans_before_it(say: Say) -> None:
    repairs = Repairs(Stitcher(prepare(say(ONE)).models), anew=True)
    wide, narrow = say(ONE), say(f"dtype bfloat16; {ONE}")
    for plan in (wide, narrow, wide):
        weight = decoder_layers(repairs.stitch(plan).model)[1].mlp.down_proj.weight
        [made] = fitted(plan).tensors.values()
        assert torch.equal(weight, made)


def test_plans_with_equal_first_layers_share_a_fit(say: Say) -> None:
    messages: list[str] = []

    def begun(event: Progress) -> None:
        if not event.done:
            messages.append(event.at.removeprefix("the gap after "))

    on_event = progress("bridging", begun)
    repairs = Repairs(Stitcher(prepare(say(TWO)).models), on_event, anew=True)
    resolved = repairs.stitcher.table.resolved
    first = repairs.fitted(resolved(say(TWO))).changes["bridge"]
    other = say(TWO.replace("L3..L4", "L4"))
    again = repairs.fitted(resolved(other)).changes["bridge"]
    assert messages == ["L0", "L2", "L3"]
    assert first[0] is again[0]
    shorter = say(TWO.replace("L3..L4", "L3"))
    repairs.fitted(resolved(shorter))
    assert messages == ["L0", "L2", "L3", "L2"]
    one, two = repairs.stitch(say(TWO)), repairs.stitch(other)
    assert one.layers[0] is two.layers[0]
    assert one.layers[0].made, "it is kept within the bytes of layers that are computed"
    assert repairs.stitch(say("drop L1, L4")).layers[0] is not two.layers[0]
    for plan in (say(TWO), other, shorter):
        assert torch.equal(logits(repairs.stitch(plan).model), logits(stitch(plan)))


def test_the_whole_plan_runs_once_for_all_cuts(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    watched = Pass.watched

    def counted(self: Pass, watch: Any, *, stay: bool = False) -> Any:
        ran.append(self.at)
        return watched(self, watch, stay=stay)

    monkeypatch.setattr(Pass, "watched", counted)
    repairs = Repairs(Stitcher(prepare(say(ONE)).models), anew=True)
    resolved = repairs.stitcher.table.resolved
    repairs.fitted(resolved(say(ONE)))
    assert ran == [0, 1, 2, 3, 1], "the whole plan up to the gap's end, and the layer before it"
    ran.clear()
    shorter = say(ONE.replace("L2..L3", "L3"))
    result = repairs.fitted(resolved(shorter)).changes["bridge"]
    assert ran == [2], "only the layer before the other gap"
    alone = fitted(shorter).changes["bridge"]
    assert all(torch.equal(result[2][name], alone[2][name]) for name in alone[2])


SCRIPT = """
import sys, hashlib, torch, gptailor
from gptailor.evaluation.fits.repair import fit
from gptailor.prepare import prepare
torch.set_num_threads(1)
made = fit(prepare(gptailor.load(sys.argv[1]))).tensors
print(sorted((n, hashlib.sha256(t.numpy().tobytes()).hexdigest()) for n, t in made.items()))
"""


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(say: Say, folder: Path) -> None:
    """One of them is this one."""
    mine = {
        name: sha256(t.numpy().tobytes()).hexdigest()
        for name, t in fitted(say(TWO)).tensors.items()
    }
    command = [sys.executable, "-c", SCRIPT, str(folder / "plan.tailor")]
    other = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert other == f"{sorted(mine.items())}\n"
    assert "down_proj" in other


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("gone.txt", None, "C801", "No such file"),
        ("empty.txt", "", "C802", "empty"),
        ("fields.jsonl", '{"words": "a"}\n', "C804", "'text'"),
        ("few.txt", "abcdefgh", "C806", "8 tokens, and 'bridge' needs at least 24"),
    ],
)
def test_an_unusable_text_is_refused(
    say: Say, folder: Path, name: str, content: str | None, code: str, says: str
) -> None:
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises((CalibrationError, CheckpointError), match=says) as caught:
        fitted(say(f'drop L2; bridge on "{name}"'))
    assert caught.value.code == code


def test_a_bridge_with_too_few_tokens_is_refused(say: Say, folder: Path) -> None:
    (folder / "some.txt").write_text(letters(900))
    with pytest.raises(CalibrationError) as caught:
        fitted(say('drop L2; bridge on "some.txt" tokens 3000000'))
    message = "the text has 900 tokens, and 'bridge' needs 3,000,000"
    assert (caught.value.code, caught.value.message) == ("C806", message)
    assert caught.value.help == "give more text, or fewer 'tokens'"
    [bridge] = fitted(say('drop L2; bridge on "some.txt"')).results.values()
    assert bridge.tokens == 900


def test_gaps_are_between_kept_layers(say: Say) -> None:
    result = Resolved(say('drop L0, L2..L3, L5; bridge on "text.txt"'), 6).gaps
    assert [(gap.after, gap.until, gap.index) for gap in result] == [(1, 4, 0), (4, 6, 1)]
    assert not Resolved(say("drop L2"), 6).gaps
