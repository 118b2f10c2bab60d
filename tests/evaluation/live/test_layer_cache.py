"""Layers that come and go: the same numbers, within the memory that was given."""

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import gptailor
from gptailor.evaluation.fits.repair import stitch
from gptailor.evaluation.live.content_keys import Content
from gptailor.evaluation.live.layer_cache import LayerStream, LayerTensors, peers_of
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import decoder_layers
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare

TOKENS = torch.tensor([[5, 9, 31, 4, 60, 17, 8, 22, 40], [6, 6, 7, 50, 12, 3, 44, 21, 9]])
CUT = "drop L1; L2 from math; L3 = merge(L3 base, L3 math, 0.3); embed from math"
KEPT = 5
"""Layers of that plan."""

Say = Callable[[str], Plan]


@pytest.fixture
def say(family: Path) -> Say:
    """Plans over two tiny models."""
    head = "".join(f'model {name} = "{family / name}"\n' for name in ("base", "math"))
    return lambda text: gptailor.loads(f"tailor 1\n{head}{text}\n")


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(TOKENS).logits


def held(stitched: Stitched) -> int:
    """Bytes of the model that are there now."""
    return sum(p.nbytes for p in stitched.model.parameters() if not p.is_meta)


def size(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def layer_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in decoder_layers(model)[0].parameters())


def streamed(plan: Plan, whole: PreTrainedModel, layers: int) -> Stitched:
    """The plan with memory for this many of its layers."""
    memory = size(whole) - (KEPT - layers) * layer_bytes(whole)
    return Stitcher(prepare(plan).models, memory=memory).stitch(plan)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
def test_streamed_layers_compute_the_same(layers: int, say: Say) -> None:
    plan = say(CUT)
    whole = stitch(plan)
    live = streamed(plan, whole, layers)
    for _ in range(2):
        assert torch.equal(logits(live.model), logits(whole))
    assert held(live) == size(whole) - KEPT * layer_bytes(whole)
    inputs = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(live.model.generate(TOKENS, **inputs), whole.generate(TOKENS, **inputs))


@pytest.mark.parametrize(("layers", "made"), [(1, 12), (2, 12), (3, 11), (5, 9), (8, 6)])
def test_layers_that_fit_into_memory_stay(layers: int, made: int) -> None:
    """Two passes over six layers: all that stay are made once, the others twice."""
    alive: set[int] = set()
    calls: list[Content] = []
    fixed, each = 100, 1000

    def make(content: Content) -> LayerTensors:
        tensor = torch.zeros(each // 4)
        calls.append(content)
        alive.add(id(tensor))
        weakref.finalize(tensor, alive.discard, id(tensor))
        assert fixed + each * len(alive) <= fixed + layers * each
        return {"weight": tensor}

    contents = [Content(str(number), ()) for number in range(6)]
    stream = LayerStream(torch.device("cpu"), fixed + layers * each)
    stream.expect(contents, fixed, each)
    for _ in range(2):
        for number, content in enumerate(contents):
            layer = stream.enter(content, make)
            if number + 1 < len(contents):
                stream.prefetch(contents[number + 1], make, ahead=True)
            del layer
            stream.leave(content)
    assert len(calls) == made


@pytest.mark.parametrize(("rooms", "made"), [((), 12), ((3000,), 9), ((1000, 3000), 8)])
def test_layers_wait_on_other_devices(rooms: tuple[int, ...], made: int) -> None:
    """Two passes over six layers. No layer stays; layers that wait are made once."""
    calls: list[Content] = []

    def make(content: Content) -> LayerTensors:
        calls.append(content)
        return {"weight": torch.full((250,), float(content.kind))}

    cpu = torch.device("cpu")
    stream = LayerStream(cpu, 2000, [(cpu, room) for room in rooms])
    contents = [Content(str(number), ()) for number in range(6)]
    stream.expect(contents, 0, 1000)
    for content in contents * 2:
        assert (stream.enter(content, make)["weight"] == float(content.kind)).all()
        stream.leave(content)
    assert len(calls) == made


def test_more_gpus_than_available_is_one_message() -> None:
    with pytest.raises(TailorError, match="expected 2 GPUs for the layers, got 0"):
        peers_of(torch.device("cpu"), 2)


def test_layers_that_wait_on_a_gpu_compute_the_same(cuda: str) -> None:
    """The other device is the same one here: the test is about waiting for copies."""
    gpu = torch.device(cuda)
    draws = [torch.randn(1 << 20, generator=torch.manual_seed(n)) for n in range(6)]
    made: list[str] = []

    def make(content: Content) -> LayerTensors:
        made.append(content.kind)
        return {"weight": draws[int(content.kind)].to(gpu)}

    size = 4 << 20
    stream = LayerStream(gpu, 2 * size, [(gpu, 6 * size)])
    contents = [Content(str(number), ()) for number in range(6)]
    stream.expect(contents, 0, size)
    for number, content in enumerate(contents * 5):
        layer = stream.enter(content, make)
        stream.prefetch(contents[(number + 1) % 6], make, ahead=True)
        assert torch.equal(layer["weight"].cpu(), draws[number % 6])
        stream.leave(content)
    assert sorted(made) == list("012345")


def test_layers_that_the_latest_model_lacks_make_room() -> None:
    stream = LayerStream(torch.device("cpu"), 5000)
    first, second = ([Content(f"{k}{n}", ()) for n in range(3)] for k in "ab")
    for contents in (first, second):
        stream.expect(contents, 0, 1000)
        for content in contents:
            stream.enter(content, lambda _: {"weight": torch.zeros(250)})
            stream.leave(content)
    assert not any(content in stream.resident.layers for content in first)
    assert all(content in stream.resident.layers for content in second)


def test_a_lent_layer_is_loaded_and_freed(say: Say) -> None:
    plan = say("drop L1; L2 from math")
    whole = stitch(plan)
    live = streamed(plan, whole, 3)
    assert live.model.num_parameters() == whole.num_parameters()
    with live.layer(1) as layer, live.layer(1) as again:
        assert layer is again
        mine = dict(layer.named_parameters())
        for name, parameter in decoder_layers(whole)[1].named_parameters():
            assert torch.equal(mine[name], parameter)
    assert all(parameter.is_meta for parameter in layer.parameters())


def test_a_failed_pass_leaves_nothing_behind(say: Say) -> None:
    plan = say("drop L1; L2 from math")
    whole = stitch(plan)
    live = streamed(plan, whole, 3)

    def fail(*_: object) -> None:
        raise KeyError("a hook of somebody's")

    for register in ("register_forward_hook", "register_forward_pre_hook"):
        handle = getattr(decoder_layers(live.model)[2], register)(fail)
        with pytest.raises(KeyError):
            logits(live.model)
        handle.remove()
        assert held(live) == size(whole) - KEPT * layer_bytes(whole)
        assert torch.equal(logits(live.model), logits(whole))


def test_streaming_on_a_gpu_changes_nothing(cuda: str, say: Say) -> None:
    plan = say(CUT)
    whole = stitch(plan, device=cuda)
    memory = size(whole) - 3 * layer_bytes(whole)
    live = stitch(plan, device=cuda, memory=memory)
    tokens = TOKENS.to(cuda)
    with torch.inference_mode():
        assert torch.equal(whole(tokens).logits, live(tokens).logits)
        assert torch.allclose(whole(tokens).logits.cpu(), stitch(plan)(TOKENS).logits, atol=1e-4)
