"""Healing as a whole: the teacher, memory, results kept between runs."""

import errno
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import gptailor
from gptailor.checkpoint.cache_folder import cache_folder
from gptailor.evaluation.fits import kept_tensors
from gptailor.evaluation.fits.heal import train
from gptailor.evaluation.fits.heal.learning import HealError
from gptailor.evaluation.fits.heal.text import HealingTexts
from gptailor.evaluation.fits.repair import Repairs, fit, stitch
from gptailor.evaluation.live.content_keys import ModelContents
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import decoder_layers
from gptailor.plan.events import Event, Progress
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from gptailor.program.devices import healing_dtype
from tests.support.events import progress
from tests.support.healing import (
    HealedLayers,
    divergence,
    heal,
    healed_layers,
    said,
    text_of,
    two_models,
    with_layers,
)
from tests.support.tiny import letters, tiny_model
from tests.support.tiny_vision import VISION, tiny_vision

SHORT = 'drop L2\nheal on "text.txt" tokens 1024 rank 4'

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache")


RATE = 0.006


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOW_RANK_RATE", RATE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_models(tmp_path_factory.mktemp("heal"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


@pytest.fixture(scope="module")
def expected(made: Path, tmp_path_factory: pytest.TempPathFactory) -> HealedLayers:
    """The result of `SHORT` where nothing is unusual."""
    work = tmp_path_factory.mktemp("usual")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(work / "cache"))
        patched.setattr(train, "LOW_RANK_RATE", RATE)
        return heal(said(Path(shutil.copytree(made, work / "work")), SHORT))


def same(one: HealedLayers, other: HealedLayers) -> bool:
    return one.result.numbers["healed"] == other.result.numbers["healed"] and all(
        torch.equal(tensor, other.tensors[index][name])
        for index, its in one.tensors.items()
        for name, tensor in its.items()
    )


def interrupted(plan: Plan, at: int) -> None:
    """A run that is broken off, its state kept."""

    def step(now: Progress) -> None:
        if now.done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(plan, on_event=progress("healing", step))


def first_step(plan: Plan) -> int:
    """Where a run begins."""
    counts: list[int] = []

    def step(now: Progress) -> None:
        counts.append(now.done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(plan, on_event=progress("healing", step))
    return counts[0]


# -------------------------------------------------------------------------------------- the teacher


def judged(folder: Path, plan: Plan, teacher: Plan, result: HealedLayers) -> None:
    """The losses are transformers' own, against the teacher's plan."""
    held = text_of(plan).held.tokens
    for tensors, loss in (
        ({}, result.result.numbers["start"]),
        (result.tensors, result.result.numbers["healed"]),
    ):
        own = divergence(stitch(teacher), with_layers(plan, tensors), held)
        assert own == pytest.approx(loss, rel=1e-4)
    assert result.result.numbers["healed"] < result.result.numbers["start"]


def test_without_a_name_the_teacher_is_the_plan_with_nothing_dropped(folder: Path) -> None:
    other = 'model other = "./other"; L1 from other; '
    plan = said(folder, other + SHORT)
    judged(folder, plan, said(folder, other), heal(plan))


def test_healing_learns_from_the_named_teacher(folder: Path) -> None:
    other = 'model other = "./other"; '
    plan = said(folder, other + SHORT.replace("heal", "heal from other"))
    taken = said(folder, other + "L0..L3 from other; embed from other; norm from other; "
                 "head from other")  # fmt: skip
    judged(folder, plan, taken, heal(plan))


@pytest.fixture
def two(folder: Path) -> Path:
    """Two models and their base, and a text for each in letters of its own."""
    tiny_model("llama", folder / "third", layers=4, seed=2)
    for name, alphabet in (("a.txt", "abcdefgh"), ("b.txt", "ijklmnop")):
        (folder / name).write_text("".join(alphabet[ord(c) % 8] for c in letters(3000)))
    return folder


MODELS = 'model other = "./other"; model third = "./third"; drop L2\n'


def test_each_text_is_learned_from_its_own_teacher(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "WHOLE_RATE", 0.01)

    def healed(one: str, other: str) -> tuple[HealingTexts, PreTrainedModel, HealedLayers]:
        on = f'"a.txt" from {one}, "b.txt" from {other} tokens 4096 rank full'
        plan = said(two, f"{MODELS}heal on {on}")
        result = heal(plan)
        return text_of(plan), with_layers(plan, result.tensors), result

    names = ("other", "third")
    teachers = {name: AutoModelForCausalLM.from_pretrained(two / name) for name in names}
    bare = stitch(said(two, f"{MODELS}"))
    texts, model, result = healed("other", "third")
    _, swapped, _ = healed("third", "other")
    losses = []
    for number, name in enumerate(names):
        held = texts.held.tokens[texts.held.texts == number]
        own, before, opposite = (
            divergence(teachers[name], m, held) for m in (model, bare, swapped)
        )
        assert own < 0.8 * before
        assert own < 0.95 * opposite, "the other teacher was not the one"
        losses += [own]
    assert result.result.numbers["healed"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert [file.tokens for file in result.result.texts] == [2048, 2048]


def test_each_teacher_is_loaded_once_and_reads_only_its_own_texts(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = '"a.txt" from other, "text.txt", "b.txt" from other tokens 3072 rank 4'
    loaded: list[str] = []
    live = Stitcher.live

    def counted(self: Stitcher, contents: ModelContents) -> Stitched:
        loaded.append(str(self.table.models["base"].checkpoint.folder.name))
        return live(self, contents)

    monkeypatch.setattr(Stitcher, "live", counted)
    events: list[Progress] = []
    heal(said(two, f"{MODELS}heal on {on}"), on_event=progress("reading", events.append))
    assert loaded == ["other", "base", "base"]  # the student is last
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert {event.total for event in events} == {events[-1].done}


def test_steps_are_small_for_a_small_loss(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "FULL_RATE_LOSS", 1e-6)
    far = heal(said(two, SHORT))
    monkeypatch.setattr(train, "FULL_RATE_LOSS", 1e6)
    near = heal(said(two, f"{SHORT} seed 1"))  # not the kept result
    assert far.result.numbers["healed"] < 0.97 * far.result.numbers["start"]
    assert near.result.numbers["healed"] == pytest.approx(near.result.numbers["start"], rel=1e-4)


def test_only_the_tokens_of_answers_are_learned(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "WHOLE_RATE", 0.01)
    monkeypatch.setattr(train, "FULL_RATE_LOSS", 1e-6)
    pairs = zip(letters(6000), letters(6000, seed=1), strict=True)
    joined = "".join("abcdefgh"[ord(p) % 8] + "ijklmnop"[ord(r) % 8] for p, r in pairs)
    chunks = [joined[at : at + 24] for at in range(0, 6000, 24)]
    lines = [json.dumps({"prompt": c[::2], "response": c[1::2]}) for c in chunks]
    (two / "rows.jsonl").write_text("\n".join(lines))
    teacher = AutoModelForCausalLM.from_pretrained(two / "base")

    def apart(loss: str) -> tuple[float, float, HealedLayers]:
        """The divergence of the predictions of prompts, and of responses, once healed."""
        plan = said(two, f'drop L2\nheal on "rows.jsonl" tokens 3072 rank full loss {loss}')
        result = heal(plan)
        tokens = text_of(plan).held.tokens
        answers = text_of(plan, only_answers=True).held.counted.flatten()
        model = with_layers(plan, result.tensors)
        with torch.no_grad():
            p, q = (m(tokens[:, :-1]).logits.double().log_softmax(-1) for m in (teacher, model))
        each = (p.exp() * (p - q)).sum(-1).flatten()
        return float(each[~answers].mean()), float(each[answers].mean()), result

    prompts, answers, result = apart("answers")
    assert result.result.numbers["healed"] == pytest.approx(answers, rel=1e-4)
    other_prompts, other_answers, _ = apart("all")
    assert answers < other_answers
    assert prompts > other_prompts


def test_a_run_that_is_killed_between_two_teachers_resumes_to_the_same_bytes(two: Path) -> None:
    plan = said(two, f'{MODELS}heal on "a.txt" from other, "b.txt" tokens 2048 rank 4')
    expected = heal(plan)
    counts: list[int] = []

    def read(event: Progress) -> None:
        counts.append(event.done)
        if len(counts) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(plan, on_event=progress("reading", read))
    again: list[Progress] = []
    assert same(heal(plan, on_event=progress("reading", again.append)), expected)
    assert again[0].reused
    assert next(event.done for event in again if not event.reused) == counts[-1]


def test_a_stack_learns_from_the_base(folder: Path) -> None:
    stack = "stack { L0..L1 base; L1 base; L3 base }\n"
    plan = said(folder, stack + SHORT.partition("\n")[2])
    judged(folder, plan, said(folder, ""), heal(plan))


@pytest.mark.parametrize(
    ("kind", "rank"), [("gpt2", "4"), ("gemma2", "full"), ("exaone", "full"), ("mixtral", "4")]
)
def test_each_family_heals_to_a_smaller_loss(kind: str, rank: str, tmp_path: Path) -> None:
    tiny_model(kind, tmp_path / "base", layers=4)
    (tmp_path / "text.txt").write_text(letters(900))
    plan = said(tmp_path, f'drop L2\nheal on "text.txt" tokens 768 rank {rank}')
    judged(tmp_path, plan, said(tmp_path, ""), heal(plan))


@pytest.mark.parametrize("kind", ["qwen2_5_vl"])
def test_the_language_model_of_a_vision_model_is_healed(kind: str, tmp_path: Path) -> None:
    tiny_vision(kind, tmp_path / "base")
    (tmp_path / "text.txt").write_text(letters(900))
    result = fit(prepare(said(tmp_path, 'drop L1\nheal on "text.txt" tokens 512 rank 4')))
    losses = result.results["heal"].numbers
    assert losses["healed"] < losses["start"]
    names = set(load_file(tmp_path / "base" / "model.safetensors"))
    assert result.tensors
    assert result.tensors.keys() <= names


@pytest.mark.parametrize("kind", ["paligemma", "qwen3_vl_moe"])
def test_healing_is_refused_if_transformers_has_no_separate_language_model(
    kind: str, tmp_path: Path
) -> None:
    assert kind in VISION
    tiny_vision(kind, tmp_path / "base")
    (tmp_path / "text.txt").write_text(letters(10))
    faults = gptailor.check(said(tmp_path, 'drop L1\nheal on "text.txt" rank 4'))
    [fault] = [item for item in faults if item.severity == "error"]
    assert fault.code == "M222"
    assert "can't run its language model alone" in fault.message


def test_the_device_determines_the_dtype_of_products(made: Path, tmp_path: Path) -> None:
    for kind in ("llama", "mixtral", "granitemoe", "mamba"):
        tiny_model(kind, tmp_path / kind, layers=2)
    prepared = {
        kind: prepare(gptailor.loads(f'tailor 1\nmodel base = "{tmp_path / kind}"'))
        for kind in ("llama", "mixtral", "granitemoe", "mamba")
    }
    for kind, its in prepared.items():
        expected = torch.float32 if "moe" in kind or kind == "mixtral" else torch.bfloat16
        assert healing_dtype(its.models, torch.device("cuda")) == expected
    narrow = torch.cpu._is_avx512_bf16_supported()
    own = healing_dtype(prepared["llama"].models, torch.device("cpu"))
    assert own == (torch.bfloat16 if narrow else torch.float32)


# ------------------------------------------------------------------------------------------- memory


def footprint(folder: Path) -> tuple[int, int]:
    """Bytes of the cut plan's model, and of one of its layers."""
    model = stitch(said(folder, "drop L2"))
    both = (model, decoder_layers(model)[0])
    whole, layer = (sum(4 * parameter.numel() for parameter in each.parameters()) for each in both)
    return whole, layer


def started(plan: Plan, memory: int | None) -> dict[str, float]:
    """Return the sizes in the first event of a healing."""
    events: list[Progress] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            events.append(event)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(plan, memory=memory, on_event=on_event)
    assert events[0].what == "learning"
    return {"layers": events[0].total, **events[0].numbers}


def test_the_cost_of_healing_is_reported_first(folder: Path) -> None:
    small, large = (started(said(folder, f"{SHORT[:-1]}{rank}"), None) for rank in (1, 8))
    assert (small["layers"], small["tokens"]) == (3, 1024)
    # q, o 16x16; k, v 8x16; gate, up, down 24x16
    assert small["numbers"] == 3 * (2 * 32 + 2 * 24 + 3 * 40)
    assert large["numbers"] == 8 * small["numbers"]
    assert large["bytes"] - small["bytes"] == 7 * small["numbers"] * 24
    whole = started(said(folder, SHORT.replace("rank 4", "rank full")), None)
    assert whole["numbers"] == 3 * (2 * 256 + 2 * 128 + 3 * 384 + 2 * 16)


def test_with_less_memory_layers_are_streamed_to_the_same_loss(
    folder: Path, expected: HealedLayers
) -> None:
    plan = said(folder, SHORT)
    model, layer = footprint(folder)
    beside = int(started(plan, 2**40)["bytes"])
    roomy = heal(plan, memory=2**40)
    assert roomy.result.numbers["healed"] == pytest.approx(
        expected.result.numbers["healed"], rel=1e-4
    )
    streamed = heal(plan, memory=beside + model - layer)
    assert same(streamed, roomy)


def test_too_little_memory_is_refused_with_a_rank_that_fits(
    folder: Path,
) -> None:
    plan = said(folder, SHORT.replace("rank 4", "rank 8"))
    model, layer = footprint(folder)
    least = model - 2 * layer
    beside = int(started(plan, 2**40)["bytes"])
    with pytest.raises(HealError) as caught:
        heal(plan, memory=beside + least - 1)
    assert caught.value.code == "C811"
    said_so = f"{beside + least - 1:,} bytes are too few for healing: trained weights"
    assert caught.value.message.startswith(said_so)
    assert f"need {beside:,}, and its largest layer and its ends {least:,}" in caught.value.message
    assert caught.value.help == f"use at most rank 7, or give {beside + least:,} bytes"
    seven = said(folder, SHORT.replace("rank 4", "rank 7"))
    assert started(seven, beside + least - 1)["layers"] == 3
    with pytest.raises(HealError, match="no rank fits"):
        heal(plan, memory=1000)
    assert heal(plan, memory=beside + least).result.numbers["healed"]


def test_the_weights_themselves_learn_in_memory_or_not_at_all(folder: Path) -> None:
    plan = said(folder, SHORT.replace("rank 4", "rank full"))
    model, _ = footprint(folder)
    beside = int(started(plan, 2**40)["bytes"])
    with pytest.raises(HealError, match=r"all its weights") as caught:
        heal(plan, memory=beside + model - 1)
    assert re.match(r"use at most rank \d+", caught.value.help)
    bounded, whole = heal(plan, memory=beside + model), heal(plan)
    assert bounded.result.numbers["healed"] == pytest.approx(
        whole.result.numbers["healed"], rel=1e-4
    )
    assert bounded.result.numbers["healed"] < bounded.result.numbers["start"]


# ------------------------------------------------------------------------------------------ on disk


@pytest.mark.parametrize("what", ["text", "teacher", "tokenizer", "layer"])
def test_a_kept_state_is_used_for_equal_inputs_alone(
    folder: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SAVE_SECONDS", -1.0)
    head = 'model other = "./other"; L1 from other; '
    text = head + SHORT
    if what == "teacher":  # the other model is that alone
        text = head.replace("L1 from other; ", "") + SHORT.replace("heal", "heal from other")
    interrupted(said(folder, text), 2)
    if what == "text":
        (folder / "text.txt").write_text(letters(1500, seed=3))
    elif what == "tokenizer":
        for file in (folder / "base").glob("tokenizer.json"):
            file.write_text(
                file.read_text().replace('"a": 3', '"a": 4').replace('"b": 4', '"b": 3')
            )
    else:
        file = folder / "other" / "model.safetensors"
        tensors = {name: tensor * 1.01 for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    assert first_step(said(folder, text)) == 0


def test_two_simultaneous_healings_are_independent(folder: Path, expected: HealedLayers) -> None:
    plan = said(folder, SHORT)
    inner: list[HealedLayers] = []

    def step(now: Progress) -> None:
        if now.done == 2:
            inner.append(heal(plan))

    outer = heal(plan, on_event=progress("healing", step))
    assert same(inner[0], outer)
    assert same(outer, expected)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ["a file in its place", "full", "full, and nothing temporary"])
def test_a_cache_that_cannot_be_written_isnt_a_fault(
    folder: Path,
    expected: HealedLayers,
    tmp_path: Path,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = said(folder, SHORT)
    monkeypatch.setattr(train, "_SAVE_SECONDS", -1.0)
    if what == "a file in its place":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.setattr(os, "posix_fallocate", full)
        monkeypatch.setattr(kept_tensors, "save_file", full)
    if what.endswith("temporary"):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        monkeypatch.setattr(tempfile, "mkdtemp", full)
    assert same(heal(plan), expected)


def test_a_healing_that_fails_leaves_no_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOW_RANK_RATE", 1e30)
    with pytest.raises(HealError):
        heal(said(folder, SHORT))
    assert not list((cache_folder() / "heal").iterdir())


# ----------------------------------------------------------------------------------------- repairs


def test_a_plan_is_bridged_first_and_healed_once(folder: Path) -> None:
    bridge = 'bridge on "text.txt" tokens 800 ridge 0.01\n'
    plan = said(folder, SHORT.replace("\n", f"\n{bridge}"))
    prepared = prepare(plan)
    repairs = Repairs(Stitcher(prepared.models, dtype=torch.float32))
    result = repairs.fitted(prepared.resolved)
    healed, losses = result.changes["heal"], result.results["heal"].numbers
    assert repairs.fitted(prepared.resolved).changes["heal"] is healed
    assert losses["healed"] < losses["start"] < losses["bare"]
    live = repairs.stitch(prepared.plan).model
    for index, its in healed.items():
        for name, tensor in its.items():
            assert torch.equal(live.get_parameter(f"model.layers.{index}.{name}"), tensor)
    held = text_of(plan).held.tokens
    own = divergence(AutoModelForCausalLM.from_pretrained(folder / "base"), live, held)
    assert own == pytest.approx(
        losses["healed"], rel=0.05
    )  # it learned in bfloat16, where that is fast


def test_healing_begins_from_the_bridged_weights(folder: Path) -> None:
    prepared = prepare(said(folder, SHORT))
    base = load_file(folder / "base" / "model.safetensors")
    nudged = base["model.layers.1.mlp.down_proj.weight"] * 1.1
    moved = {1: {"mlp.down_proj.weight": nudged}}
    result = healed_layers(prepared, moved)
    assert result.result.numbers["start"] != result.result.numbers["bare"]
    teacher = AutoModelForCausalLM.from_pretrained(folder / "base")
    own = divergence(
        teacher, with_layers(prepared.plan, moved), text_of(said(folder, SHORT)).held.tokens
    )
    assert own == pytest.approx(result.result.numbers["start"], rel=1e-4)


def test_old_states_of_killed_runs_are_removed(folder: Path, tmp_path: Path) -> None:
    left, fresh = (cache_folder() / "heal" / name for name in ("left", "fresh"))
    for place in (left, fresh):
        place.mkdir(parents=True)
        (place / "state.safetensors").write_bytes(b"")
    long_ago = time.time() - 31 * 86_400
    for file in (left / "state.safetensors", left):
        os.utime(file, (long_ago, long_ago))
    (folder / "plan.tailor").write_text(f'tailor 1\nmodel base = "./base"\n{SHORT}\n')
    fit(prepare(gptailor.load(folder / "plan.tailor")))
    assert not left.exists()
    assert fresh.exists()
