"""Computations on a pretended card: they give the CPU's numbers, and planted mistakes are found."""

import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gptailor
from gptailor.evaluation import speed
from gptailor.evaluation.evaluate import evaluate
from gptailor.evaluation.fits import narrower
from gptailor.evaluation.fits.bridge.fit import Statistics
from gptailor.evaluation.fits.heal import train
from gptailor.evaluation.fits.heal.learning import LowRankChanges
from gptailor.evaluation.fits.importance import importance_matrix, importance_text
from gptailor.evaluation.fits.repair import fit, repair_estimates, stitch
from gptailor.evaluation.forward import evaluator
from gptailor.evaluation.generate import generate as answer
from gptailor.evaluation.live import template
from gptailor.evaluation.live.layer_cache import LayerStream, peers_of
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.objectives import generate as generative
from gptailor.evaluation.objectives import kl
from gptailor.evaluation.scores import Score
from gptailor.methods import arrays
from gptailor.output.compile import ComputeOptions
from gptailor.plan.faults import TailorError
from gptailor.plan.registry import METHODS
from gptailor.prepare import Prepared, prepare
from gptailor.program import run
from gptailor.program.devices import device_of, devices_of, memory_of
from tests.support.healing import healed_layers
from tests.support.second_device import MEMORY, WrongDeviceError, second_device
from tests.support.structures import branch_structure
from tests.support.thorough import one_of_each
from tests.support.tiny import CONFIGURATIONS, letters, tiny_model

pytestmark = [
    pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache"),
    pytest.mark.wrong_types,  # the card's events and streams aren't torch's
]

TOKENS = torch.tensor([[5, 9, 31, 4, 60, 17, 8, 22, 40], [6, 6, 7, 50, 12, 3, 44, 21, 9]])
MERGED = "L1 from math\nL2 = merge(L2 base, L2 math, 0.3)\ndrop L3\nembed from math"
NARROW = 'width 16 on "text.txt" tokens 300'
BRIDGED = 'drop L1\nbridge on "text.txt" tokens 300 ridge 0.001'
HEALED = 'drop L1\nheal on "text.txt" tokens 256 rank 2'
ABSENT = {"kolibri1"}  # its router's product in float32 has no kernel for the CPU
FAMILIES = one_of_each(sorted(CONFIGURATIONS.keys() - ABSENT), branch_structure)

Compute = Callable[[Path, str], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed, layers=4)
    tiny_model("llama", folder / "tied", layers=2, tie_word_embeddings=True)
    tiny_model("gpt_neo", folder / "buffers")
    tiny_model("mixtral", folder / "mixture", layers=1)
    (folder / "text.txt").write_text(letters(900))
    rows = [
        {
            "text": letters(20, seed),
            "context": letters(9, seed),
            "answer": letters(2, seed),
            "query": letters(9, seed),
            "choices": [letters(3, seed), letters(4, seed)],
            "gold": 0,
        }
        for seed in range(4)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(autouse=True)
def _one_attention() -> Iterator[None]:
    """The CPU's own kernel of attention sums in another order than a device's."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


def said(folder: Path, text: str, base: str = "base") -> Prepared:
    """Return a prepared plan of these statements, over the model in that folder."""
    math = 'model math = "./math"\n' if "math" in text else ""
    return prepare(
        gptailor.loads(f'tailor 1\nmodel base = "./{base}"\n{math}{text}\n', folder=folder)
    )


def outputs(model: Any) -> tuple[Tensor, Tensor]:
    """Return a model's logits, and the tokens that it generates."""
    tokens = TOKENS.to(model.device)
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        return model(tokens).logits.cpu(), model.generate(tokens, **settings).cpu()


def live(text: str, base: str = "base", memory: int | None = None) -> Compute:
    def compute(folder: Path, device: str) -> Any:
        plan = said(folder, text, base).plan
        return outputs(stitch(plan, device=device, memory=memory))

    return compute


def fitted(text: str, base: str = "base", memory: int | None = None) -> Compute:
    """Fit a plan as `compile` does; healing computes in float32."""

    def compute(folder: Path, device: str) -> Any:
        prepared = said(folder, text, base)
        if prepared.resolved.healing is not None:
            healed = healed_layers(prepared, device=torch.device(device), memory=memory)
            return healed.result.numbers["start"], healed.result.numbers["healed"], healed.tensors
        result = fit(prepared, device=device, memory=memory, anew=True)
        return result.tensors, repr(result.chosen)

    return compute


def scored(objective: str, memory: int | None = None) -> Compute:
    def compute(folder: Path, device: str) -> Any:
        plan = said(folder, MERGED).plan
        result = evaluate(plan, objective, folder=folder, device=device, memory=memory)
        outcomes = [each.outcome for each in result.results]
        assert all(isinstance(outcome, Score) for outcome in outcomes), outcomes
        return outcomes

    return compute


def merged(folder: Path, device: str) -> Any:
    """Merge a tensor in memory by each method."""
    states = {name: load_file(folder / name / "model.safetensors") for name in ("base", "math")}
    part = "model.layers.0.mlp.up_proj.weight"
    there = {name: {part: state[part].to(device)} for name, state in states.items()}
    results = {}
    for name, method in METHODS.items():
        own = {}
        for parameter in method.parameters:
            number = 0.1 if parameter.name == "epsilon" else 0.4
            if parameter.variadic or parameter.each:
                own[parameter.name] = [number, number]
            elif parameter.default is None:
                own[parameter.name] = number
        made = gptailor.merge(there, name, base=there["base"], **own)[part]
        assert made.device.type == device
        results[name] = made.cpu()
    return results


def written(folder: Path, device: str) -> Any:
    """Compile a plan with merges, a bridge and an importance matrix's weighing."""
    run._DEVICE_LEAST, least = 1, run._DEVICE_LEAST
    try:
        target = folder / f"written on {device}"
        prepared = said(folder, MERGED.replace("drop L3", "") + "\n" + BRIDGED.replace("L1", "L3"))
        gptailor.compile(prepared, target, compute=ComputeOptions(device=device), force=True)
    finally:
        run._DEVICE_LEAST = least
    return load_file(target / "model.safetensors")


def weighed(folder: Path, device: str) -> Any:
    prepared = said(folder, BRIDGED)
    text = importance_text(prepared, folder / "text.txt")
    result = fit(prepared, device=device, anew=True)
    return dict(importance_matrix(prepared, text, result, device=device, anew=True))


def influence(folder: Path, device: str) -> Any:
    prepared = said(folder, MERGED)
    stitched = Stitcher(prepared.models, device=device).stitch(prepared.plan)
    from gptailor.evaluation.forward.requests import Request, Work

    work = Work([Request(tuple(TOKENS[0].tolist()), 4)], lambda logits, *_: logits[:, :1])
    return evaluator.Evaluator(device=device).block_influence(stitched, [work])


def answered(folder: Path, device: str) -> Any:
    [result] = answer(folder / "base", "a", tokens=3, device=device)
    assert result.failure is None
    return result.text


SAME: dict[str, Compute] = {
    "a live model": live(MERGED),
    "streamed layers": live(MERGED, memory=60_000),
    "tied ends": live("", "tied"),
    "a layer with buffers": live("", "buffers"),
    "streamed layers with tied ends": live("", "tied", 40_000),
    "a bridge": fitted(BRIDGED),
    "a bridge with bounded memory": fitted(BRIDGED, memory=4_900_000),
    "fewer neurons": fitted(NARROW),
    "fewer neurons with bounded memory": fitted(NARROW, memory=4_900_000),
    "fewer experts": fitted('experts 2 on "text.txt" tokens 300', "mixture"),
    "healing": fitted(HEALED),
    "healing with bounded memory": fitted(HEALED, memory=269_640_000),
    "merges in memory": merged,
    "a compiled folder": written,
    "an importance matrix": weighed,
    "influence of layers": influence,
    **{name: scored(f'{name}("rows.jsonl")') for name in (
        "nll", "kl", "acceptance", "multiple_choice", "margin", "generate",
    )},
    "nll of streamed layers": scored('nll("rows.jsonl")', 60_000),
    "an answer": answered,
}  # fmt: skip


LEARNED = {"healing", "healing with bounded memory"}
"""Results of gradients, which torch computes by other formulas where it has no kernel."""


def same(one: Any, other: Any, *, exactly: bool) -> bool:
    """Return whether two results agree; tensors must agree bit by bit, or nearly."""
    if isinstance(one, Tensor):
        assert type(other) is Tensor, "a result is still on the card"
        near = one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-6)
        return torch.equal(one, other) if exactly else near
    if isinstance(one, dict):
        one, other = list(one.items()), list(other.items())
    if isinstance(one, list | tuple):
        return all(same(*pair, exactly=exactly) for pair in zip(one, other, strict=True))
    return bool(one == (other if exactly or one is None else pytest.approx(other)))


@pytest.mark.parametrize("name", SAME)
def test_a_card_gives_the_numbers_of_the_cpu(name: str, folder: Path) -> None:
    expected = SAME[name](folder, "cpu")
    with second_device() as card:
        result = SAME[name](folder, "cuda")
    assert card.ran, "nothing ran on the card"
    assert same(expected, result, exactly=name not in LEARNED)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_has_the_logits_of_the_cpu(kind: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "base")
    prepared = said(tmp_path, "")
    with torch.inference_mode():
        expected = stitch(prepared.plan)(TOKENS).logits
        with second_device():
            for memory in (None, MEMORY):
                model = stitch(prepared.plan, device="cuda", memory=memory)
                assert torch.equal(model(TOKENS.cuda()).logits.cpu(), expected)


def test_streamed_layers_stay_within_their_memory(folder: Path) -> None:
    plan = said(folder, "L1 from math").plan
    with second_device() as card:
        whole = stitch(plan, device="cuda")
        weights = card.held
        outputs(whole)
        computing = card.most - weights
        size = sum(parameter.nbytes for parameter in whole.parameters())
        del whole
    layer = sum(p.nbytes for p in template.decoder_layers(stitch(plan))[0].parameters())
    memory = size - layer
    with second_device() as card:
        model = stitch(plan, device="cuda", memory=memory)
        assert card.held <= memory - layer
        outputs(model)
        assert card.most <= memory + computing < size + computing


def test_devices_are_counted() -> None:
    with second_device(cards=2):
        assert device_of("cuda") == torch.device("cuda")
        assert device_of("cuda:1") == torch.device("cuda:1")
        with pytest.raises(TailorError, match="can't use 'cuda:2': the machine has 2"):
            device_of("cuda:2")
        pair = [torch.device("cuda:0"), torch.device("cuda:1")]
        assert devices_of(torch.device("cuda"), 2) == pair
        with pytest.raises(TailorError, match="from 'cuda:1' on, but the machine has 1"):
            devices_of(pair[1], 2)
        assert memory_of(pair[0]) == MEMORY
        assert peers_of(torch.device("cuda"), 2) == [(pair[1], int(0.9 * MEMORY))]
        with pytest.raises(TailorError, match="expected 3 GPUs for the layers, got 2"):
            peers_of(torch.device("cuda"), 3)


def test_layers_wait_on_a_second_card(folder: Path) -> None:
    prepared = said(folder, MERGED)
    expected = outputs(stitch(prepared.plan))
    with second_device(cards=2):
        stitcher = Stitcher(prepared.models, device="cuda", memory=60_000, gpus=2)
        assert same(expected, outputs(stitcher.stitch(prepared.plan).model), exactly=True)


def test_speeds_and_times_are_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PROMPT", 4)
    monkeypatch.setattr(speed, "ANSWER", 2)
    with second_device() as card:
        live = stitch(said(folder, MERGED).plan, device="cuda")
        assert speed.speeds(live, rounds=1)[0].decoding > 0
        assert speed.cache_bytes(live) > 0
        ran = card.ran.total()
        assert repair_estimates(said(folder, HEALED), device="cuda")
        assert card.ran.total() > ran, "the card's speed was measured on it"


def test_halves_learn_on_a_card(folder: Path) -> None:
    """The default dtype on a card, by its autocast."""
    prepared = said(folder, HEALED)
    with second_device():
        healed = healed_layers(prepared, device=torch.device("cuda"), dtype=torch.bfloat16)
    alone = healed_layers(prepared, dtype=torch.bfloat16)
    assert healed.result.numbers["start"] == pytest.approx(alone.result.numbers["start"], rel=0.02)
    assert healed.result.numbers["healed"] == pytest.approx(
        alone.result.numbers["healed"], rel=0.02
    )


# ------------------------------------------------------------------------------ mistakes of devices

ON_CARD = torch.device("cuda")
MISTAKES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "a tensor on the default device": lambda x, n: x + torch.ones(3),
    "a mask on the CPU": lambda x, n: x.masked_fill(torch.tensor([True, False, True]), 0.0),
    "a mask of masked_select on the CPU": lambda x, n: x.masked_select(torch.ones(3) > 0),
    "an array of a tensor on the card": lambda x, n: x.numpy(),
    "bytes of a tensor on the card": lambda x, n: x.view(torch.uint8).numpy().tobytes(),
    "a generator of the CPU": lambda x, n: torch.rand(
        3, device=x.device, generator=torch.Generator().manual_seed(0)
    ),
    "an index on the CPU for gather": lambda x, n: x.gather(0, torch.tensor([0])),
    "tokens on the CPU for an embedding": lambda x, n: nn.functional.embedding(
        torch.tensor([0]), x[:, None]
    ),
    "an index on the card of a tensor on the CPU": lambda x, n: torch.ones(3)[n],
    "values on the CPU put on the card": lambda x, n: x.index_put((n,), torch.ones(3)),
    "positions on the CPU": lambda x, n: x * torch.arange(3),
    "a module whose buffer stayed": lambda x, n: _WithBuffer()(x),
    "a comparison with the CPU": lambda x, n: x == torch.ones(3),
    "torch.where of the CPU's tensor": lambda x, n: torch.where(x > 0, x, torch.zeros(3)),
    "torch.equal of two devices": lambda x, n: torch.equal(x, torch.ones(3)),
    "a concatenation of two devices": lambda x, n: torch.cat([x, torch.ones(3)]),
    "a number of the CPU in a product": lambda x, n: torch.dot(x[:1], torch.tensor(1.0)[None]),
    "a result into memory of the CPU": lambda x, n: torch.ones(()).add_(x[0]),
    "a product of whole numbers": lambda x, n: n[None] @ n[:, None],
    "an operation that CUDA lacks": lambda x, n: torch.histogram(x, 3),
    "a tensor without memory": lambda x, n: x + torch.ones(3, device="meta"),
    "another card": lambda x, n: x + torch.ones(3, device="cuda:1"),
    "a device compared with its short name": lambda x, n: _same_device(x.device, ON_CARD),
    "autocast of the CPU": lambda x, n: _in_autocast("cpu", x),
}


class _WithBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(3)  # registered nowhere
        self.to("cuda")

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def _same_device(one: torch.device, other: torch.device) -> None:
    if one != other:
        raise WrongDeviceError(f"{one} isn't {other}")


def _in_autocast(kind: str, x: Tensor) -> Tensor:
    with torch.autocast(kind, dtype=torch.bfloat16):
        return nn.functional.linear(
            x[None], torch.ones(3, 3, dtype=torch.bfloat16, device=x.device)
        )


@pytest.mark.parametrize("name", MISTAKES)
def test_a_device_mistake_is_found(name: str) -> None:
    with second_device(cards=2), pytest.raises((RuntimeError, TypeError)):
        MISTAKES[name](torch.ones(3, device="cuda"), torch.arange(3, device="cuda"))


def test_operations_that_cuda_allows_are_accepted() -> None:
    with second_device():
        x = torch.arange(3.0, device="cuda")
        assert x[torch.tensor([2])].tolist() == [2]
        assert x[[0, 2]].tolist() == [0, 2]
        assert x[torch.tensor([True, False, True])].tolist() == [0, 2]
        assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3]
        assert torch.where(x > 1, x, torch.tensor(-1.0)).tolist() == [-1, -1, 2]
        assert float(x.copy_(torch.ones(3)).sum()) == 3
        assert torch.ones(3).copy_(x).numpy().tolist() == [1, 1, 1]
        assert torch.rand(3, device="cuda").device == torch.device("cuda:0")
        assert _in_autocast("cuda", x).dtype == torch.bfloat16
        assert x.to("cuda") is x


def test_a_stream_must_wait_for_the_stream_that_computes() -> None:
    with second_device():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            x = torch.ones(3, device="cuda")
            done = side.record_event()
        with pytest.raises(WrongDeviceError, match="another stream still computes"):
            x + 1
        torch.cuda.current_stream().wait_event(done)
        with pytest.raises(WrongDeviceError, match="without record_stream"):
            x + 1
        x.record_stream(torch.cuda.current_stream())
        assert (x + 1).tolist() == [2, 2, 2]


def test_bytes_on_the_card_are_counted_once() -> None:
    with second_device() as card:
        x = torch.zeros(100, device="cuda")
        views = [x[n:] for n in range(9)]
        assert card.held == 400
        del x
        assert card.held == 400
        del views
        assert (card.held, card.most) == (0, 400)


# ----------------------------------------------------------------------- mistakes in the package

Plant = tuple[Any, str, str, str, str]

PLANTS: dict[str, Plant] = {
    "tokens stay on the CPU": (
        evaluator.Evaluator, "_through", "b.tokens.to(self.device)", "b.tokens", "nll",
    ),
    "targets stay on the CPU": (
        evaluator, "_measured", "share.targets.to(logits.device)", "share.targets", "nll",
    ),
    "a reference's tokens stay on the CPU": (
        kl, "compact", "likely[numbers].to(logits.device).long()",
        "likely[numbers].long()", "kl",
    ),
    "sums on the default device": (
        Statistics, "__init__", "dtype=torch.float64, device=device", "dtype=torch.float64",
        "a bridge",
    ),
    "numbers of the neurons on the default device": (
        narrower, "kept_neurons", "torch.arange(len(rows), device=rows.device)",
        "torch.arange(len(rows))", "fewer neurons",
    ),
    "weights of a merge on the default device": (
        arrays, "float32s", "dtype=xp.float64, device=like.device", "dtype=xp.float64",
        "merges in memory",
    ),
    "an array of a merge on the card": (
        arrays, "host", "values.cpu()", "values", "a compiled folder",
    ),
    "a mask on the CPU": (
        generative, "_decode", "torch.tensor(mask, device=model.device)", "torch.tensor(mask)",
        "generate",
    ),
    "a criterion on the CPU": (
        generative._Stop, "__call__", "torch.tensor(done, device=input_ids.device)",
        "torch.tensor(done)", "generate",
    ),
    "a layer's buffers stay on the CPU": (
        template, "_empty_layer", "buffer.to(device)", "buffer", "a layer with buffers",
    ),
    "fitted tensors stay on the CPU": (
        template.ModelTemplate, "_tensors_of", "tensor.to(self.tensors.device)", "tensor",
        "an importance matrix",
    ),
    "a generator of the CPU draws on the card": (
        LowRankChanges, "__init__", "inputs, generator=generator)",
        "inputs, generator=generator, device=device)", "healing",
    ),
    "a teacher's predictions stay on the CPU": (
        train.Student, "_taught", "batch.tokens.to(self.device)", "batch.tokens", "healing",
    ),
    "a layer is used before it has come": (
        LayerStream, "enter", "current.wait_event(event)", "pass", "streamed layers",
    ),
    "a layer's memory is reused too early": (
        LayerStream, "enter", "tensor.record_stream(current)", "pass", "streamed layers",
    ),
}  # fmt: skip
"""Mistakes in the package: where, the right text, the wrong one, and a computation with it."""


@pytest.mark.parametrize("name", PLANTS)
def test_a_mistake_in_the_package_is_found(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, function, right, wrong, computation = PLANTS[name]
    written = inspect.unwrap(getattr(owner, function))
    source = textwrap.dedent(inspect.getsource(written))
    assert source.count(right) == 1, "the text has changed: plant the mistake again"
    source = source.replace("super()", f"super({owner.__name__}, self)")  # as outside its class
    names = dict(vars(inspect.getmodule(written)))
    exec(compile(source.replace(right, wrong), "<planted>", "exec"), names)
    for module in [m for m in list(sys.modules.values()) if m is not None]:
        if not inspect.isclass(owner) and vars(module).get(function) is written:
            monkeypatch.setattr(module, function, names[function])
    if inspect.isclass(owner):
        monkeypatch.setattr(owner, function, names[function])
    refused = "on the same device|to numpy|generator, but|another stream"
    kinds = (WrongDeviceError, TypeError, AssertionError)  # one trial's error is its score
    with second_device(), pytest.raises(kinds, match=refused):
        SAME[computation](folder, "cuda")
