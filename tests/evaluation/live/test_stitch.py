"""Live models against the compiled and reloaded folder, and against each other."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

import gptailor
from gptailor.evaluation.fits.repair import stitch
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import decoder_layers
from gptailor.evaluation.speed import cache_bytes
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from tests.support.structures import structure
from tests.support.thorough import one_of_each
from tests.support.tiny import CONFIGURATIONS, tiny_model

TOKENS = torch.tensor([[5, 9, 31, 4, 60, 17, 8, 22, 40], [6, 6, 7, 50, 12, 3, 44, 21, 9]])
CUT = "drop L1; L2 from math; L3 = merge(L3 base, L3 math, 0.3); embed from math"
MOVED = "stack { L0 base; L3 math; L3 base; L5 base; merge(L2 base, L2 math, 0.3); L3 math }"
ALL = "L0 from math; L1 from code; L2 from chat"
CUT_AFTER = "drop L4..L5; L2 from math; L3 = merge(L3 base, L3 math, 0.3); embed from math"
NOT_MOVED = {"deepseek_v2": CUT, "deepseek_v3": CUT, "jamba": CUT, "gpt_neox_japanese": CUT}
NOT_MOVED |= {"diffllama": CUT_AFTER}
BOTH = {"llama", "gemma2", "gpt2"}
ROUNDED = {"mamba", "falcon_mamba", "jamba"}
"""Their scans round otherwise at other addresses: twice the same folder too."""
STREAMED = {"gemma2", "gpt2", "falcon", "deepseek_v3"}
"""One family for each way to call layers, and one that transformers converts on loading."""
SPECIAL = {*NOT_MOVED, *BOTH, *ROUNDED, *STREAMED}

Say = Callable[[str], Plan]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture
def say(family: Path) -> Say:
    """Plans over the tiny models."""
    names = ("base", "math", "code", "chat")
    head = "".join(f'model {name} = "{family / name}"\n' for name in names)
    return lambda text: gptailor.loads(f"tailor 1\n{head}{text}\n")


@pytest.fixture
def stitcher(say: Say) -> Stitcher:
    return Stitcher(prepare(say(ALL)).models)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(TOKENS).logits


def reloaded(plan: Plan, folder: Path, **more: object) -> PreTrainedModel:
    """Compiled and loaded; copied, so that its tensors are aligned as torch aligns them."""
    gptailor.compile(plan, folder)
    model = copy.deepcopy(AutoModelForCausalLM.from_pretrained(folder, **more))
    assert isinstance(model, PreTrainedModel)
    return model


def buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """All of them: a repeated layer's too, which are the same tensors."""
    return dict(model.named_buffers(remove_duplicate=False))


def equal(live: PreTrainedModel, folder: PreTrainedModel) -> None:
    """The same class, configuration, tensors, buffers, logits."""
    assert type(live) is type(folder)
    ours, theirs = live.config.to_dict(), folder.config.to_dict()
    assert {**ours, "_name_or_path": None} == {**theirs, "_name_or_path": None}
    assert live.generation_config.to_dict() == folder.generation_config.to_dict()
    for mine, other in (
        (live.state_dict(), folder.state_dict()),
        (buffers(live), buffers(folder)),
    ):
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == other[name].dtype, name
            assert torch.equal(tensor, other[name]), name
    rounding = 1e-4 if live.config.model_type in ROUNDED else 0.0
    torch.testing.assert_close(logits(live), logits(folder), atol=rounding, rtol=0)


# ------------------------------------------------------------------------- the same as the folder


@pytest.mark.parametrize("kind", one_of_each(CONFIGURATIONS, structure, besides=SPECIAL))
def test_a_live_model_equals_the_folder_in_every_family(kind: str, tmp_path: Path) -> None:
    head = "tailor 1\n"
    for seed, name in enumerate(("base", "math")):
        tiny_model(kind, tmp_path / name, seed=seed)
        head += f'model {name} = "{tmp_path / name}"\n'
    texts = (CUT, MOVED) if kind in BOTH else (NOT_MOVED.get(kind, MOVED),)
    plans = [gptailor.loads(head + text) for text in texts]
    stitcher = Stitcher(prepare(plans[0]).models)
    for number, plan in enumerate(plans):
        folder = reloaded(plan, tmp_path / f"out{number}")
        live = stitcher.stitch(plan).model
        equal(live, folder)
        layers = decoder_layers(live)
        for index, layer in enumerate(layers):
            for module in layer.modules():
                numbers = [getattr(module, name, index) for name in ("layer_idx", "layer_id")]
                assert numbers == [index, index]
    if kind not in STREAMED:
        return
    live = stitcher.stitch(plans[-1]).model
    memory = int(0.9 * sum(parameter.nbytes for parameter in live.parameters()))
    streamed = Stitcher(prepare(plans[-1]).models, memory=memory).stitch(plans[-1])
    assert torch.equal(logits(streamed.model), logits(folder))


def test_a_live_model_generates_as_the_folder_does(say: Say, tmp_path: Path) -> None:
    plan = say(MOVED)
    live, folder = stitch(plan), reloaded(plan, tmp_path / "out")
    for model in (live, folder):
        assert not model.training
    wanted = folder.generate(TOKENS, max_new_tokens=6, do_sample=False)
    assert torch.equal(live.generate(TOKENS, max_new_tokens=6, do_sample=False), wanted)


@pytest.mark.parametrize(
    "text", ["scale L2 by 0.7; dtype bfloat16", "L1 = L4 code; norm from math"]
)
def test_another_dtype_is_the_folders_loaded_in_it(text: str, say: Say, tmp_path: Path) -> None:
    plan = say(text)
    equal(stitch(plan), reloaded(plan, tmp_path / "out"))
    folder = copy.deepcopy(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float16)
    )
    assert torch.equal(logits(stitch(plan, dtype=torch.float16)), logits(folder))


def test_models_may_be_replaced_by_other_folders(say: Say, family: Path) -> None:
    swapped = stitch(say("L2 from math"), models={"math": family / "code"})
    assert torch.equal(logits(swapped), logits(stitch(say("L2 from code"))))


def test_the_whole_hidden_state_is_recorded_once(stitcher: Stitcher, say: Say) -> None:
    first, second = stitcher.stitch(say("")), stitcher.stitch(say("drop L5"))
    for live, count in ((first, 6), (second, 5)):
        states = live.model(TOKENS, output_hidden_states=True).hidden_states
        assert len(states) == count + 1


# ---------------------------------------------------------------------------------- sharing


def tensor_of(stitched: Stitched, index: int) -> Tensor:
    tensor = decoder_layers(stitched.model)[index].get_parameter("mlp.up_proj.weight")
    assert isinstance(tensor, Tensor)
    return tensor


def test_tensors_are_shared_and_modules_are_not(stitcher: Stitcher, say: Say) -> None:
    first, second = stitcher.stitch(say("drop L0")), stitcher.stitch(say("L4 from math"))
    assert tensor_of(first, 1).data_ptr() == tensor_of(second, 2).data_ptr()
    ours, theirs = first.model.get_input_embeddings(), second.model.get_input_embeddings()
    assert ours is not None
    assert theirs is not None
    assert ours.weight.data_ptr() == theirs.weight.data_ptr()
    before, calls = logits(second.model), []
    decoder_layers(first.model)[1].register_forward_hook(lambda *_: calls.append(1))
    first.model.to(torch.float16)
    assert torch.equal(logits(second.model), before)
    assert not calls
    assert not any(parameter.requires_grad for parameter in second.model.parameters())


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_layer_in_another_form_is_held_once(kind: str, tmp_path: Path) -> None:
    """In another dtype, or with its experts in one tensor."""
    tiny_model(kind, tmp_path / "base", dtype="bfloat16")
    plan = gptailor.loads(f'tailor 1\nmodel base = "{tmp_path / "base"}"\n')
    stitcher = Stitcher(prepare(plan).models, dtype=torch.float32)
    first = stitcher.stitch(plan)
    held = [tensor for tensor in stitcher.tensors._loaded if ".layers." in tensor.spec.name]
    kinds = {layer.kind for layer in stitcher.contents(prepare(plan).resolved).layers}
    layers = {tensor.spec.name.split(".")[2] for tensor in held}
    assert len(layers) <= len(kinds), "those that show transformers the kinds"
    again = stitcher.stitch(plan).model
    for mine, other in zip(first.model.parameters(), again.parameters(), strict=True):
        assert mine.data_ptr() == other.data_ptr()


def test_equal_keys_are_equal_layers(stitcher: Stitcher, say: Say) -> None:
    whole, cut = stitcher.stitch(say("")), stitcher.stitch(say("drop L1; L4 from math"))
    assert whole.start == cut.start
    assert cut.layers[:3] == (whole.layers[0], *whole.layers[2:4])
    assert cut.layers[3] not in whole.layers
    part = stitcher.stitch(say("L1.mlp from math"))
    assert part.layers[1] not in (whole.layers[1], stitcher.stitch(say("L1 from math")).layers[1])
    third, half = (stitcher.stitch(say(f"merge(L2 math, L2 code, {t})")) for t in (0.3, 0.5))
    assert third.layers[2] != half.layers[2]
    assert third.layers[3:] == half.layers[3:]
    other = stitcher.stitch(say("embed from math; head from code"))
    assert other.start != whole.start
    assert stitcher.stitch(say("norm from code")).start == whole.start
    again = Stitcher(prepare(say(ALL)).models).stitch(say(""))
    assert not set(again.layers) & set(whole.layers)


def test_a_layer_that_computes_otherwise_has_another_key(family: Path) -> None:
    plan = gptailor.loads(f'tailor 1\nmodel base = "{family / "mixed"}"\n')
    live = Stitcher(prepare(plan).models).stitch(plan)
    assert len({content.kind for content in live.layers}) == 2  # type: ignore[attr-defined]


def test_a_tied_models_head_is_its_embedding(family: Path) -> None:
    head = f'tailor 1\nmodel base = "{family / "tied"}"\nmodel math = "{family / "tied"}"\n'
    plan = gptailor.loads(head)
    live = Stitcher(prepare(plan).models).stitch(plan)
    assert live.model.get_output_embeddings().weight is live.model.get_input_embeddings().weight


# ------------------------------------------------------------------------------------ merged layers


def test_merged_layers_are_kept_within_their_bytes(say: Say) -> None:
    models = prepare(say(ALL)).models
    plans = [say(f"merge(L2 math, L2 code, {share})") for share in (0.2, 0.4, 0.2)]
    for layers, same in ((2, True), (1, False)):
        size = sum(p.nbytes for p in decoder_layers(stitch(plans[0]))[2].parameters())
        stitcher = Stitcher(models)
        stitcher.merged = layers * size
        first, _, again = [stitcher.stitch(plan) for plan in plans]
        assert (tensor_of(first, 2).data_ptr() == tensor_of(again, 2).data_ptr()) is same
        assert torch.equal(tensor_of(first, 2), tensor_of(again, 2))


# ---------------------------------------------------------------------------------------- the rest


def test_the_footprint_is_the_models_own(say: Say) -> None:
    live = stitch(say("drop L1"))
    heads, width, both, layers, width_of_float = 2, 4, 2, 5, 4
    assert cache_bytes(live) == heads * width * both * layers * width_of_float


def test_impossible_stitchings_are_refused(say: Say, family: Path) -> None:
    models = prepare(say(ALL)).models
    with pytest.raises(TailorError, match="can't use 'cuda:99'"):
        Stitcher(models, device="cuda:99")
    with pytest.raises(TailorError, match="1,000 bytes can't hold the model"):
        Stitcher(models, memory=1000).stitch(say(""))
    with pytest.raises(TailorError, match="'math' is not among the models"):
        Stitcher(prepare(say("")).models).stitch(say("L1 from math"))
    plan = gptailor.loads(f'tailor 1\nmodel base = "{family / "quantised"}"\n')
    with pytest.raises(TailorError, match="quantised by 'gptq', but no tensor is quantised"):
        stitch(plan)
