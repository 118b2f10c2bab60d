"""The trained parts of each family: gradients against autograd, folded weights against the run."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import gptailor
from gptailor.evaluation.fits.heal.heal import _folded, _learning
from gptailor.evaluation.fits.heal.learning import (
    HealError,
    Learning,
    LowRankChanges,
    WholeWeights,
    matched,
)
from gptailor.evaluation.fits.heal.teacher import TaughtBatch
from gptailor.evaluation.fits.heal.train import Student
from gptailor.evaluation.live.content_keys import ModelContents
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import decoder_layers
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from tests.support.healing import said, wanted
from tests.support.structures import structure
from tests.support.thorough import one_of_each
from tests.support.tiny import CONFIGURATIONS, tiny_model
from tests.support.tiny_mixed import MIXED

TOKENS = torch.tensor([[1, 5, 9, 33, 20, 8, 41, 17, 9, 50], [1, 30, 31, 4, 62, 7, 11, 3, 25, 6]])
SAMPLED = {
    "falcon_h1", "gemma4_text", "gpt_oss", "hy_v3", "lfm2", "llama4_text", "mamba", "nemotron_h",
    "recurrent_gemma", "sarvam_moe",
}  # fmt: skip
"""Of mixtures of experts and hybrids."""
KINDS = sorted((set(CONFIGURATIONS) - set(MIXED)) | SAMPLED)
DROPS = {"diffllama": "drop L4..L5", "nemotron_h": "drop L0"}
REFUSED = {"sarvam_moe": "transformers computes with it in a different form"}
WHOLE = ["apertus", "exaone", "gemma4_text", "gpt2", "gpt_oss", "llama", "mamba"]
NARROW = ["bloom", "exaone", "gemma2", "gpt2", "llama", "nemotron", "olmo"]


pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread")


@dataclass
class Case:
    """A plan that is healed, its live model, and its learning parts."""

    plan: Plan
    stitcher: Stitcher
    contents: ModelContents
    live: Stitched
    learning: Learning

    @property
    def model(self) -> PreTrainedModel:
        return self.live.model


def case(plan: Plan, *, memory: int | None = None, dtype: torch.dtype = torch.float32) -> Case:
    """The plan, its changes moved by noise where they begin with zeros."""
    prepared = prepare(plan)
    stitcher = Stitcher(prepared.models, dtype=dtype, memory=memory)
    contents = stitcher.contents(prepared.resolved)
    live = stitcher.live(contents)
    learning = _learning(wanted(prepared), stitcher, live, contents)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in learning.parameters.values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(
                0.1 * noise * (parameter.shape[-1] if parameter.dim() > 1 else 1) ** -0.5
            )
    learning.apply()
    return Case(plan, stitcher, contents, live, learning)


def taught() -> tuple[Tensor, Tensor]:
    """Whole distributions, as a teacher may predict them."""
    drawn = torch.randn(18, 64, generator=torch.Generator().manual_seed(2))
    logs = (2 * drawn).log_softmax(-1)
    return torch.arange(64).expand_as(logs).int(), logs


def naive(case: Case, logs: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The mean divergence and its gradient by transformers' own forward pass and by autograd."""
    q = case.model(TOKENS[:, :-1], use_cache=False).logits.float().log_softmax(-1).flatten(0, 1)
    loss = (logs.exp() * (logs - q)).sum(-1).mean()
    loss.backward()
    case.learning.collect()
    return loss.item(), gradients(case)


def gradients(case: Case) -> dict[str, Tensor]:
    """The parameters' gradients, which are taken away."""
    results = {}
    for name, parameter in case.learning.parameters.items():
        results[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
    return results


def learned(
    case: Case, known: tuple[Tensor, Tensor], *, recompute: bool, first: int = 0
) -> tuple[float, dict[str, Tensor]]:
    """The same as healing has them."""
    batch = TaughtBatch(TOKENS, *known, torch.ones(len(known[0]), dtype=torch.bool))
    loss = Student(case.live, first, recompute=recompute).learn(batch, len(known[0]))
    case.learning.collect()
    return loss, gradients(case)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    scale = max(float(value.abs().max()) for value in expected.values())
    assert scale > 1e-6
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=2e-5 * scale, rtol=1e-3, msg=name)


def folded(case: Case) -> PreTrainedModel:
    """The live model of the plan's tensors with the learned changes folded in."""
    layers = list(case.contents.layers)
    for i in case.learning.layers:
        tensors = _folded(case.stitcher.tensors, case.learning, layers[i], i)
        layers[i] = replace(layers[i], fitted=tensors)
    return case.stitcher.live(replace(case.contents, layers=tuple(layers))).model


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def plan_of(kind: str, folder: Path, end: str) -> Plan:
    tiny_model(kind, folder / "base")
    (folder / "text.txt").write_text("what is never read")
    drop = DROPS.get(kind, "drop L2..L3")
    return said(folder, f'{drop}\nheal on "text.txt" {end}')


@pytest.mark.parametrize("kind", one_of_each(KINDS, structure, besides=DROPS))
def test_every_family_learns_by_its_gradient_and_is_folded_as_it_ran(
    kind: str, tmp_path: Path
) -> None:
    plan = plan_of(kind, tmp_path, "rank 2")
    faults = [fault for fault in gptailor.check(plan) if fault.severity == "error"]
    if kind in REFUSED:
        [fault] = faults
        assert fault.code == "M222"
        assert REFUSED[kind] in fault.message
        return
    assert not faults
    made, known = case(plan), taught()
    loss, slopes = naive(made, known[1])
    for recompute in (False, True):
        result, ours = learned(made, known, recompute=recompute)
        assert result == pytest.approx(loss, rel=1e-4)
        assert_same(ours, slopes)
    bare = logits(made.stitcher.live(made.contents).model)
    ran = logits(made.model)
    assert float((ran - bare).abs().max()) > 1e-3
    torch.testing.assert_close(logits(folded(made)), ran, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", WHOLE)
def test_the_weights_themselves_learn_by_their_gradient_and_are_folded(
    kind: str, tmp_path: Path
) -> None:
    plan = plan_of(kind, tmp_path, "rank full")
    assert not [fault for fault in gptailor.check(plan) if fault.severity == "error"]
    made, known = case(plan), taught()
    loss, slopes = naive(made, known[1])
    result, ours = learned(made, known, recompute=True)
    assert result == pytest.approx(loss, rel=1e-4)
    assert_same(ours, slopes)
    torch.testing.assert_close(logits(folded(made)), logits(made.model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", NARROW)
def test_the_gradient_in_bfloat16_is_nearly_the_same(kind: str, tmp_path: Path) -> None:
    plan, known = plan_of(kind, tmp_path, "rank 2"), taught()
    loss, slopes = learned(case(plan), known, recompute=True)
    narrow = case(plan, dtype=torch.bfloat16)
    assert narrow.model.dtype == torch.bfloat16
    for recompute in (False, True):
        result, ours = learned(narrow, known, recompute=recompute)
        assert result == pytest.approx(loss, rel=0.03)
        both = [torch.cat([item[n].flatten() for n in slopes]) for item in (slopes, ours)]
        assert float(torch.cosine_similarity(*both, dim=0)) > 0.95


@pytest.mark.parametrize("recompute", [False, True])
def test_places_that_do_not_count_give_no_gradient(tmp_path: Path, recompute: bool) -> None:
    made = case(plan_of("llama", tmp_path, "rank 2"))
    tokens, logs = taught()
    counted = torch.arange(18) % 3 == 1
    q = made.model(TOKENS[:, :-1]).logits.float().log_softmax(-1).flatten(0, 1)[counted]
    loss = (logs[counted].exp() * (logs[counted] - q)).sum(-1).mean()
    loss.backward()
    made.learning.collect()
    expected = gradients(made)
    batch = TaughtBatch(TOKENS, tokens[counted], logs[counted], counted)
    student = Student(made.live, 0, recompute=recompute)
    assert student.divergence(batch) / 6 == pytest.approx(loss.item(), rel=1e-5)
    assert student.learn(batch, int(batch.counted.sum())) == pytest.approx(loss.item(), rel=1e-5)
    made.learning.collect()
    assert_same(gradients(made), expected)


def test_streamed_layers_have_the_same_gradient(tmp_path: Path) -> None:
    plan = plan_of("llama", tmp_path, "rank 2")
    known = taught()
    whole = case(plan)
    size = whole.model.get_memory_footprint()
    streamed = case(plan, memory=int(0.75 * size))
    assert next(decoder_layers(streamed.model)[3].parameters()).is_meta
    loss, slopes = learned(whole, known, recompute=True)
    result, ours = learned(streamed, known, recompute=True)
    assert result == loss
    assert all(torch.equal(ours[name], slopes[name]) for name in slopes)


def test_layers_before_the_first_that_learns_run_without_the_way_back(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base")
    made = case(said(tmp_path, 'drop L3\nheal L2, L4 on "text.txt" rank 2'))
    known = taught()
    loss, slopes = naive(made, known[1])
    graphs: list[bool] = []
    decoder_layers(made.model)[1].register_forward_hook(
        lambda _, __, out: graphs.append(out.requires_grad)
    )
    for recompute in (False, True):
        result, ours = learned(made, known, recompute=recompute, first=2)
        assert result == pytest.approx(loss, rel=1e-5)
        assert_same(ours, slopes)
    assert graphs == [False, False]
    assert {name.split(".")[0] for name in slopes} == {"2", "3"}


# --------------------------------------------------------------------------- what learns, alone


def layer_of(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


def named(*names: str) -> dict[int, dict[str, str]]:
    return {0: {name: name for name in names}}


def test_low_rank_begins_with_no_change_and_is_drawn_by_its_seed() -> None:
    def changes(seed: int) -> LowRankChanges:
        layer = layer_of(a=nn.Linear(8, 6, bias=False), b=Conv1D(3, 8))
        return LowRankChanges(
            {0: layer}, named("a.weight", "b.weight"), 4, seed, torch.device("cpu")
        )

    one, same, other = (changes(seed).parameters for seed in (1, 1, 2))
    shapes = {name: tuple(parameter.shape) for name, parameter in one.items()}
    assert shapes == {
        "0.a.weight.A": (4, 8),
        "0.a.weight.B": (6, 4),
        "0.b.weight.A": (3, 8),
        "0.b.weight.B": (3, 3),
    }
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.a.weight.A"], other["0.a.weight.A"])
    assert not one["0.a.weight.B"].any()


def test_weights_as_inputs_by_outputs_are_folded_transposed() -> None:
    layer = layer_of(c=Conv1D(3, 8))
    changes = LowRankChanges({0: layer}, named("c.weight"), 2, 0, torch.device("cpu"))
    x, before = torch.randn(5, 8), layer.c.weight.detach().clone()
    with torch.no_grad():
        changes.parameters["0.c.weight.B"].normal_()
        ran = layer.c(x)
        layer.c._forward_hooks.clear()
        layer.c.weight.copy_(changes.folded(0, "c.weight", before))
        torch.testing.assert_close(layer.c(x), ran)
    assert layer.c.weight.shape == (8, 3)


def test_an_uncalled_projection_is_refused() -> None:
    layer = layer_of(a=nn.Linear(8, 6), b=nn.Linear(8, 6))
    names = named("a.weight", "b.weight")
    changes = LowRankChanges({0: layer}, names, 4, 0, torch.device("cpu"))
    layer.a(torch.randn(2, 8))
    with pytest.raises(
        HealError, match=r"'b.weight' of the output's layer 0 has no module of its own"
    ) as e:
        changes.collect()
    assert e.value.code == "C810"
    layer.b(torch.randn(2, 8))
    changes.collect()


def test_weights_that_did_not_learn_are_the_plans_to_the_last_bit() -> None:
    plans = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    layer = layer_of(a=nn.Linear(8, 6, bias=False))
    layer.a.weight = nn.Parameter(plans.bfloat16())
    whole = WholeWeights({0: layer}, named("a.weight"))
    assert torch.equal(whole.folded(0, "a.weight", plans), plans)
    assert not torch.equal(layer.a.weight.float(), plans)
    with torch.no_grad():
        whole.parameters["0.a.weight"][2, 3] += 1.0
    changed = whole.folded(0, "a.weight", plans) - plans
    assert changed.nonzero().tolist() == [[2, 3]]
    assert float(changed[2, 3]) == pytest.approx(1.0)


def test_a_tensor_under_another_name_is_found_by_its_values() -> None:
    layer = layer_of(q=nn.Linear(8, 6), k=nn.Linear(8, 6), v=nn.Linear(8, 7))
    own = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    made = {"v.weight": own["v.weight"], "old.q": own["q.weight"], "k.weight": own["k.weight"]}
    result = matched(["old.q", "v.weight"], made, layer, 0)
    assert result == {"old.q": "q.weight", "v.weight": "v.weight"}
    for wrong in ({"v.weight": own["v.weight"] + 1}, {"old.x": own["q.weight"] + 1}):
        [name] = wrong
        with pytest.raises(HealError, match=f"no separate '{name}' in the output's layer 0") as e:
            matched([name], {**made, **wrong}, layer, 0)
        assert e.value.code == "C810"


def test_an_ambiguous_renamed_tensor_is_refused() -> None:
    layer = layer_of(q=nn.LayerNorm(8), k=nn.LayerNorm(8))
    with pytest.raises(HealError, match=r"'old\.norm'"):
        matched(["old.norm"], {"old.norm": torch.ones(8)}, layer, 0)
