import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import gptailor
from gptailor.checkpoint.error import CheckpointError
from gptailor.evaluate.bridge import BridgeError, Fitted, Statistics, fit, solve
from gptailor.evaluate.bridge_fold import carriers, fold
from gptailor.evaluate.bridge_states import Branch
from gptailor.evaluate.bridge_text import BATCH_TOKENS, calibration_text
from gptailor.evaluate.calibration import CalibrationError
from gptailor.evaluate.parts import decoder_layers
from gptailor.evaluate.stitch import Stitched, Stitcher, stitch
from gptailor.outline import gaps
from gptailor.plan import Plan
from gptailor.prepared import prepare
from tests.tiny import CONFIGURATIONS, LETTERS, tiny_model

TOKENS = torch.tensor([[1, 5, 9, 33, 20, 8, 41, 17], [1, 30, 30, 4, 62, 7, 11, 3]])
POST_NORM = {"gemma2", "gemma3_text", "olmo2"}
ONE = 'drop L2..L3; bridge on "text.txt" tokens 800 ridge 0.001'
TWO = 'drop L1, L3..L4; bridge on "text.txt" tokens 800 ridge 0.001'

Say = Callable[[str], Plan]


def letters(count: int, seed: int = 0) -> str:
    drawn = torch.randint(len(LETTERS), (count,), generator=torch.Generator().manual_seed(seed))
    return "".join(LETTERS[number] for number in drawn.tolist())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def statistics(m: Tensor, r: Tensor) -> Statistics:
    made = Statistics(m.shape[1])
    for part in range(0, len(m), 7):
        made.add(m[part : part + 7], r[part : part + 7])
    return made


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 4, generator=generator), torch.randn(50, 4, generator=generator)


def test_the_sums_are_those_of_all_tokens(drawn: tuple[Tensor, Tensor]) -> None:
    m, r = (one.double() for one in drawn)
    found = statistics(*drawn)
    assert found.count == 50
    torch.testing.assert_close(found.branch, m.T @ m)
    torch.testing.assert_close(found.cross, m.T @ r)
    torch.testing.assert_close(found.rest, (r * r).sum(0))
    torch.testing.assert_close(found.branch_sum, m.sum(0))
    torch.testing.assert_close(found.rest_sum, r.sum(0))


def test_without_a_ridge_it_is_least_squares(drawn: tuple[Tensor, Tensor]) -> None:
    m, r = (one.double() for one in drawn)
    summed = statistics(*drawn)
    w = solve(summed, 0.0)
    change = torch.linalg.lstsq(m, r).solution
    torch.testing.assert_close(w - torch.eye(4), change)
    left = (r - m @ change).square().sum() / r.square().sum()
    assert summed.explained(w) == pytest.approx(1 - float(left))
    assert summed.explained(torch.eye(4, dtype=torch.float64)) == 0


def test_first_tokens_are_fitted_and_say_nothing_of_the_ridge(
    drawn: tuple[Tensor, Tensor],
) -> None:
    m, r = (one.double() for one in drawn)
    first, own = (
        1e4 * torch.randn(1, 4, generator=torch.Generator().manual_seed(1)),
        torch.ones(1, 4),
    )
    summed = statistics(*drawn)
    summed.add_first(first, own)
    w = solve(summed, 0.1)
    every, rests = torch.cat([m, first.double()]), torch.cat([r, own.double()])
    ridge = 0.1 * m.square().sum(0).mean() * torch.eye(4)
    change = torch.linalg.inv(every.T @ every + ridge) @ every.T @ rests
    torch.testing.assert_close(w - torch.eye(4), change)
    torch.testing.assert_close(first.double() @ change, own.double(), atol=1e-2, rtol=0.0)
    assert summed.count == 50


def test_large_channels_leave_small_ones_their_digits(drawn: tuple[Tensor, Tensor]) -> None:
    m, r = drawn
    large = torch.tensor([1e7, 1.0, 1.0, 1.0])
    w, wide = solve(statistics(m, r), 0.0), solve(statistics(m * large, r), 0.0)
    change, other = (one - torch.eye(4) for one in (w, wide))
    torch.testing.assert_close(other * large[:, None], change, atol=1e-6, rtol=1e-6)


def test_a_huge_ridge_leaves_the_weights(drawn: tuple[Tensor, Tensor]) -> None:
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(solve(statistics(*drawn), 1e15), identity, atol=1e-14, rtol=0.0)


def test_a_singular_fit_needs_a_ridge(drawn: tuple[Tensor, Tensor]) -> None:
    m, r = drawn
    m = torch.cat([m[:, :3], m[:, :1] * 3], dim=1)
    dead = torch.cat([m[:, :3], torch.zeros(50, 1)], dim=1)
    with pytest.raises(BridgeError, match="depend on each other"):
        solve(statistics(dead, r), 0.0)
    with pytest.raises(BridgeError, match="depend on each other over 50 tokens") as caught:
        solve(statistics(m, r), 0.0)
    assert caught.value.code == "C808"
    assert solve(statistics(m, r), 0.001).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(drawn: tuple[Tensor, Tensor], value: float) -> None:
    m, r = drawn
    r[3, 1] = value
    with pytest.raises(BridgeError, match="no numbers"):
        statistics(m, r)


# ----------------------------------------------------------------------------- the text's tokens


def test_so_many_tokens_count_and_no_first_one(folder: Path) -> None:
    text = calibration_text(
        folder / "text.txt",
        700,
        tokenizer=AutoTokenizer.from_pretrained(folder / "base"),
        positions=128,
        width=16,
    )
    assert text.tokens == 700 == sum(int(batch.counted.sum()) for batch in text.batches)
    assert not any(batch.counted[:, 0].any() for batch in text.batches)
    assert max(batch.tokens.shape[1] for batch in text.batches) == 128
    assert all(batch.tokens.numel() <= BATCH_TOKENS for batch in text.batches)


def test_rows_are_sequences_of_their_own(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"text": "abc"}\n{"context": "ab", "answer": "cdefghij"}\n')
    text = calibration_text(
        folder / "rows.jsonl",
        100,
        tokenizer=AutoTokenizer.from_pretrained(folder / "base"),
        positions=8,
        width=2,
    )
    counts = sorted(int(row.sum()) for batch in text.batches for row in batch.counted)
    assert counts == [2, 2, 7]  # abc; ab cdefghij in pieces of 8 tokens


# --------------------------------------------------------------------------- against a naive fit


class Seen:
    """The states around some layers of a model, of all sequences, caught by hooks."""

    def __init__(self, model: PreTrainedModel, layer: int, until: int) -> None:
        self.branch: list[Tensor] = []
        self.after: list[Tensor] = []
        self.until: list[Tensor] = []
        layers = decoder_layers(model)
        layers[layer].mlp.down_proj.register_forward_hook(
            lambda _, __, out: self.branch.append(out[0])
        )
        for at, states in ((layer, self.after), (until - 1, self.until)):
            layers[at].register_forward_hook(
                lambda _, __, out, states=states: states.append(out[0])
            )


def naive(full: PreTrainedModel, cut: PreTrainedModel, gap: tuple[int, int, int]) -> Tensor:
    """W as language.md has it: `gap` is p, q, and p's number in the model that is cut."""
    after, until, index = gap
    tokenizer = AutoTokenizer.from_pretrained(full.name_or_path)
    path = Path(full.name_or_path).parent / "text.txt"
    batches = calibration_text(path, 800, tokenizer=tokenizer, positions=128, width=16).batches
    teacher, student = Seen(full, after, until), Seen(cut, index, index + 1)
    with torch.inference_mode():
        for batch in batches:
            for row, counted in zip(batch.tokens, batch.counted, strict=True):
                tokens = row[: int(counted.sum()) + 1][None]
                full(tokens)
                cut(tokens)
    m, out, t = (torch.cat(s).double() for s in (student.branch, student.after, teacher.until))
    later = torch.cat([states[1:] for states in student.branch]).double()
    ridge = 0.001 * later.square().sum(0).mean() * torch.eye(16)
    return torch.eye(16) + torch.linalg.inv(m.T @ m + ridge) @ m.T @ (t - out)


def test_the_fit_is_the_rules(say: Say, folder: Path) -> None:
    found = fitted(say(ONE))
    w = naive(loaded(folder / "base"), stitch(say("drop L2..L3")), (1, 4, 1))
    own = load_file(folder / "base" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert list(found.tensors) == ["model.layers.1.mlp.down_proj.weight"]
    [made] = found.tensors.values()
    torch.testing.assert_close(made, (w.T @ own.double()).float(), atol=1e-5, rtol=1e-4)
    assert (found.bridges["L1"].tokens, list(found.bridges)) == (800, ["L1"])
    assert found.bridges["L1"].explained > 0.1


def test_a_later_gap_is_fitted_on_the_bridged_models_states(say: Say, folder: Path) -> None:
    found = fitted(say(TWO))
    first = say('drop L1, L3..L4; bridge L0 on "text.txt" tokens 800 ridge 0.001')
    w = naive(loaded(folder / "base"), stitch(first), (2, 5, 1))
    own = load_file(folder / "base" / "model.safetensors")["model.layers.2.mlp.down_proj.weight"]
    made = found.tensors["model.layers.1.mlp.down_proj.weight"]
    torch.testing.assert_close(made, (w.T @ own.double()).float(), atol=1e-5, rtol=1e-4)
    assert list(found.bridges) == ["L0", "L2"]


def test_the_final_norm_ends_a_gap_and_a_gap_without_a_bridge_stays(say: Say, folder: Path) -> None:
    found = fitted(say('drop L1, L4..L5; bridge L3 on "text.txt" tokens 800 ridge 0.001'))
    w = naive(loaded(folder / "base"), stitch(say("drop L1, L4..L5")), (3, 6, 2))
    own = load_file(folder / "base" / "model.safetensors")["model.layers.3.mlp.down_proj.weight"]
    made = found.tensors["model.layers.2.mlp.down_proj.weight"]
    torch.testing.assert_close(made, (w.T @ own.double()).float(), atol=1e-5, rtol=1e-4)


def test_a_gap_of_another_text_goes_on_from_the_first(say: Say, folder: Path) -> None:
    (folder / "same.txt").write_text((folder / "text.txt").read_text())
    end = "tokens 800 ridge 0.001"
    plan = f'drop L1, L3..L4; bridge L0 on "text.txt" {end}; bridge L2 on "same.txt" {end}'
    for name, tensor in fitted(say(plan)).tensors.items():
        assert torch.equal(tensor, fitted(say(TWO)).tensors[name])


# -------------------------------------------------------------------------------- what it is for


def linear(folder: Path) -> None:
    """A model whose L2 and L3 add a linear map of what L1's MLP adds, and read nothing else.

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
        for name in ("mlp.down_proj.weight", "mlp.down_proj.bias"):
            its[name][: 8 if layer else None][slice(None) if layer else slice(8, None)] = 0
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


@pytest.mark.parametrize("kind", sorted(set(CONFIGURATIONS) - POST_NORM))
def test_a_map_folded_into_weights_is_the_map_of_the_branch(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "base")
    (tmp_path / "text.txt").write_text(letters(900))
    plan = said(tmp_path, ONE)
    stitcher = Stitcher(prepare(plan).models)
    layout = prepare(plan).models["base"].layout
    bare = stitcher.stitch(said(tmp_path, "drop L2..L3"))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 16, dtype=torch.float64, generator=generator)
    w = torch.eye(16).double() + 0.3 * noise

    content = bare.layers[1]
    names = carriers(layout, content)
    outputs = {o.spec.name: o for o in content.outputs if o.spec.name in names}
    made = {name: stitcher._tensors.make(output) for name, output in outputs.items()}
    tensors = fold(w, made, layout, {n: o.spec.dtype for n, o in outputs.items()})
    anatomy = stitcher._anatomist.anatomy(said(tmp_path, "drop L2..L3"))
    layers = list(anatomy.layers)
    layers[1] = stitcher._anatomist.bridged(layers[1], tensors)
    folded = stitcher._live(replace(anatomy, layers=tuple(layers)))

    layer = decoder_layers(bare.model)[1]
    layer.mlp.register_forward_hook(lambda _, __, out: out @ w.float())
    torch.testing.assert_close(logits(folded.model), logits(bare.model), atol=1e-4, rtol=1e-4)
    assert (logits(stitch(said(tmp_path, "drop L2..L3"))) - logits(bare.model)).abs().max() > 0.01


def without_branch(layer: nn.Module, call: Callable[[], Tensor]) -> Tensor:
    hook = layer.mlp.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    try:
        return call()
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", sorted(set(CONFIGURATIONS) - POST_NORM))
def test_every_family_is_bridged(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "base")
    (tmp_path / "text.txt").write_text(letters(900))
    plan = said(tmp_path, TWO)
    prepared = prepare(plan)
    found = fit(prepared)
    assert found.tensors.keys() == prepared.compiled.program.bridged
    assert all(bridge.explained > 0.05 for bridge in found.bridges.values())

    live: Stitched = Stitcher(prepared.models).stitch(plan)
    state = live.model.state_dict()
    for name, tensor in found.tensors.items():
        if name in state:
            assert torch.equal(state[name], tensor)
    layer, caught = decoder_layers(live.model)[1], []
    layer.register_forward_hook(lambda _, __, out: caught.append(out))
    with Branch(layer, prepared.models["base"].layout) as branch:
        logits(live.model)
        added = branch.output()
    without_branch(layer, lambda: logits(live.model))
    whole, attended = (out[0] if isinstance(out, tuple) else out for out in caught)
    torch.testing.assert_close(whole - attended, added, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", sorted(POST_NORM))
def test_a_norm_after_the_branch_is_refused(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "base")
    [fault] = gptailor.check(said(tmp_path, ONE))
    assert fault.code == "M219"
    assert "passes a norm before it is added" in fault.message


# ---------------------------------------------------------------------------- memory, other models


def test_streamed_layers_give_the_same_tensors(say: Say) -> None:
    prepared = prepare(say(TWO))
    size = Stitcher(prepared.models).stitch(prepared.plan).model.get_memory_footprint()
    whole = fit(prepared)
    streamed = fit(prepared, memory=int(size * 0.9))
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, streamed.tensors[name])


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


def test_plans_that_begin_alike_are_fitted_once(say: Say) -> None:
    stitcher = Stitcher(prepare(say(TWO)).models)
    told: list[int] = []
    [first, _] = stitcher.bridges(say(TWO), lambda gap: told.append(gap.after))
    other = say(TWO.replace("L3..L4", "L4"))
    [again, _] = stitcher.bridges(other, lambda gap: told.append(gap.after))
    assert told == [0, 2, 3]
    assert first[1] is again[1]
    shorter = say(TWO.replace("L3..L4", "L3"))
    stitcher.bridges(shorter, lambda gap: told.append(gap.after))
    assert told == [0, 2, 3, 2]
    one, two = stitcher.stitch(say(TWO)), stitcher.stitch(other)
    assert one.layers[0] is two.layers[0]
    assert one.layers[0].merged, "it is kept within the bytes of layers that are computed"
    assert stitcher.stitch(say("drop L1, L4")).layers[0] is not two.layers[0]
    for plan in (say(TWO), other, shorter):
        assert torch.equal(logits(stitcher.stitch(plan).model), logits(stitch(plan)))


SCRIPT = """
import sys, hashlib, torch, gptailor
from gptailor.evaluate.bridge import fit
from gptailor.prepared import prepare
torch.set_num_threads(1)
made = fit(prepare(gptailor.load(sys.argv[1]))).tensors
print(sorted((n, hashlib.sha256(t.numpy().tobytes()).hexdigest()) for n, t in made.items()))
"""


def test_two_processes_give_the_same_bytes(say: Say, folder: Path) -> None:
    say(TWO)
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder / "plan.tailor")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    first, second = (run.communicate()[0] for run in runs)
    assert first == second
    assert "down_proj" in first


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("gone.txt", None, "C801", "No such file"),
        ("empty.txt", "", "C802", "empty"),
        ("fields.jsonl", '{"words": "a"}\n', "C804", "'text'"),
        ("few.txt", "abcdefgh", "C806", "7 tokens that count, and a bridge needs at least 16"),
    ],
)
def test_a_text_that_does_not_serve(
    say: Say, folder: Path, name: str, content: str | None, code: str, says: str
) -> None:
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises((CalibrationError, CheckpointError), match=says) as caught:
        fitted(say(f'drop L2; bridge on "{name}"'))
    assert caught.value.code == code


def test_states_that_are_no_numbers_name_the_gap(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "text.txt").write_text(letters(900))
    with pytest.raises(BridgeError, match="the gap after L1: hidden states are no numbers"):
        fitted(said(tmp_path, ONE))


def test_gaps_are_between_kept_layers(say: Say) -> None:
    found = gaps(say('drop L0, L2..L3, L5; bridge on "text.txt"'), 6)
    assert [(gap.after, gap.until, gap.index) for gap in found] == [(1, 4, 0), (4, 6, 1)]
    assert not gaps(say("drop L2"), 6)
