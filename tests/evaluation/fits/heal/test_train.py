"""Training: toy models, the best state, full and low rank, continued states."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gptailor.checkpoint.cache_folder import cache_folder
from gptailor.evaluation.fits.heal import train
from gptailor.evaluation.fits.heal.learning import HealError
from gptailor.plan.events import Event, Progress
from gptailor.plan.plan import Plan
from tests.support.events import progress
from tests.support.healing import (
    HealedLayers,
    divergence,
    heal,
    said,
    text_of,
    with_layers,
)
from tests.support.tiny import letters, tiny_model

CUT = 'drop L2\nheal on "text.txt" tokens 3840'

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates and steps for tiny models."""
    monkeypatch.setattr(train, "LOW_RANK_RATE", 0.006)
    monkeypatch.setattr(train, "WHOLE_RATE", 0.005)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("train")
    tiny_model("llama", made / "base", layers=4, num_key_value_heads=4)
    (made / "text.txt").write_text(letters(4500))
    return made


def state() -> Path:
    """Return the state file of an interrupted run."""
    [result] = (cache_folder() / "heal").iterdir()
    return result


def assert_untouched(result: HealedLayers, folder: Path, kept: tuple[int, ...]) -> None:
    base = load_file(folder / "base" / "model.safetensors")
    for index, its in result.tensors.items():
        for name, tensor in its.items():
            assert torch.equal(tensor, base[f"model.layers.{kept[index]}.{name}"])


# ----------------------------------------------------------------------------------------- toys


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a third layer that adds nothing to the hidden state."""
    made = tmp_path_factory.mktemp("idle")
    tiny_model("llama", made / "base", layers=4)
    file = made / "base" / "model.safetensors"
    tensors = load_file(file)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        tensors[f"model.layers.2.{name}"].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    (made / "text.txt").write_text(letters(1500))
    return made


@pytest.mark.parametrize("rank", ["4", "full"])
def test_dropping_an_idle_layer_leaves_nothing_to_learn(idle: Path, rank: str) -> None:
    result = heal(said(idle, f'drop L2\nheal on "text.txt" tokens 1024 rank {rank}'))
    assert result.result.numbers["start"] < 1e-9
    assert result.result.numbers["healed"] <= result.result.numbers["start"]
    assert_untouched(result, idle, (0, 1, 3))


def test_dropping_an_idle_layer_heals_to_a_tiny_loss_in_bfloat16(idle: Path) -> None:
    plan = said(idle, 'drop L2\nheal on "text.txt" tokens 1024 rank 4')
    result = heal(plan, dtype=torch.bfloat16)
    assert result.result.numbers["healed"] <= result.result.numbers["start"] < 1e-3


def test_full_rank_and_full_training_recover_a_layer_equally(
    folder: Path,
) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(folder / "base")
    left = {}
    for rank in ("16", "full"):
        plan = said(folder, f"{CUT} rank {rank}")
        result = heal(plan)
        left[rank] = result.result.numbers["healed"] / result.result.numbers["start"]
        assert (
            result.result.numbers["bare"],
            result.result.texts[0].tokens,
            result.result.numbers["held"],
        ) == (result.result.numbers["start"], 3840, 128)
        held = text_of(plan).held.tokens
        for tensors, loss in (
            ({}, result.result.numbers["start"]),
            (result.tensors, result.result.numbers["healed"]),
        ):
            own = divergence(teacher, with_layers(plan, tensors), held)
            assert own == pytest.approx(loss, rel=1e-4)
        norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
        assert (norms <= set(result.tensors[0])) == (rank == "full")
    assert left["16"] < 0.6
    assert left["16"] == pytest.approx(left["full"], abs=0.04)


def test_only_the_layers_that_are_named_learn(folder: Path) -> None:
    result = heal(said(folder, 'drop L2\nheal L1, L3 on "text.txt" tokens 1024 rank 4'))
    assert list(result.tensors) == [1, 2]
    assert result.result.numbers["healed"] < result.result.numbers["start"]


# --------------------------------------------------------------------------------- the best state


def test_a_diverging_rate_leaves_the_first_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOW_RANK_RATE", 30.0)
    result = heal(said(folder, 'drop L2\nheal on "text.txt" tokens 1024 rank 4'))
    assert result.result.numbers["healed"] == result.result.numbers["start"]
    assert_untouched(result, folder, (0, 1, 3))


@pytest.mark.parametrize(("rank", "name"), [("4", "LOW_RANK_RATE"), ("full", "WHOLE_RATE")])
def test_a_loss_that_is_not_finite_names_its_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rank: str, name: str
) -> None:
    monkeypatch.setattr(train, name, 1e30)
    with pytest.raises(HealError, match=r"the loss is not finite at step \d of 8") as caught:
        heal(said(folder, f'drop L2\nheal on "text.txt" tokens 1024 rank {rank}'))
    assert caught.value.code == "C809"
    assert "nothing was written" in caught.value.help


# ------------------------------------------------------------------------------- told, and gone on


def test_each_step_reports_its_losses_and_the_time_left(folder: Path) -> None:
    events: list[Progress] = []
    plan = said(folder, 'drop L2\nheal on "text.txt" tokens 1024 rank 4')
    result = heal(plan, on_event=progress("healing", events.append))
    assert [item.done for item in events] == [*range(9)]
    assert {item.total for item in events} == {8}
    assert events[0].seconds_left is None
    assert events[0].numbers == {"held_out": result.result.numbers["start"]}
    assert min(item.numbers["held_out"] for item in events) == result.result.numbers["healed"]
    assert all(item.numbers["loss"] > 0 for item in events[1:])
    assert events[-1].seconds_left == 0


def broken_off(at: int) -> Callable[[Progress], None]:
    def step(now: Progress) -> None:
        if now.done == at:
            raise KeyboardInterrupt

    return step


def same(one: HealedLayers, other: HealedLayers) -> bool:
    assert (one.result.numbers["start"], one.result.numbers["healed"], one.tensors.keys()) == (
        other.result.numbers["start"],
        other.result.numbers["healed"],
        other.tensors.keys(),
    )
    return all(
        torch.equal(tensor, other.tensors[index][name])
        for index, its in one.tensors.items()
        for name, tensor in its.items()
    )


@pytest.mark.parametrize(
    ("kind", "rank"),
    [("llama", "4"), ("llama", "full"), ("deepseek_v32", "4")],  # an indexer has no gradient
)
def test_an_interrupted_run_resumes_to_the_same_bytes(
    kind: str, rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SAVE_SECONDS", -1.0)
    tiny_model(kind, tmp_path / "base", layers=3)
    (tmp_path / "text.txt").write_text(letters(1500))
    plan = said(tmp_path, f'drop L2\nheal on "text.txt" tokens 1280 rank {rank}')
    with pytest.raises(KeyboardInterrupt):
        heal(plan, on_event=progress("healing", broken_off(3)))
    assert (state() / "state.safetensors").is_file()
    events: list[Progress] = []
    asked: list[Progress] = []
    by_work = {"healing": events, "reading": asked, "learning": list[Progress]()}

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            by_work[event.what].append(event)

    result = heal(plan, on_event=on_event)
    assert [item.done for item in events] == [*range(3, 11)]
    first, second = (item.numbers["held_out"] for item in events[:2])
    assert first == second <= result.result.numbers["start"]
    assert asked, "the teacher's predictions were kept"
    assert all(event.reused for event in asked)
    assert not list((cache_folder() / "heal").iterdir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert same(result, heal(plan))


def without_one_tensor(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        notes = opened.metadata()
    tensors = load_file(file)
    del tensors[max(name for name in tensors if name.startswith("adam."))]
    save_file(tensors, file, notes)


def one_bit(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1000] ^= 64
    file.write_bytes(raw)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(b""),
        without_one_tensor,
        one_bit,
    ],
    ids=["truncated", "empty", "a tensor is missing", "a bit is flipped"],
)
def test_a_damaged_state_is_discarded_and_gives_the_same_bytes(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    monkeypatch.setattr(train, "_SAVE_SECONDS", -1.0)
    plan: Plan = said(folder, 'drop L2\nheal on "text.txt" tokens 1024 rank 4')
    with pytest.raises(KeyboardInterrupt):
        heal(plan, on_event=progress("healing", broken_off(2)))
    damage(state() / "state.safetensors")
    events: list[Progress] = []
    result = heal(plan, on_event=progress("healing", events.append))
    assert events[0].done == 0
    assert same(result, heal(plan))


def test_a_state_of_other_predictions_is_discarded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_SAVE_SECONDS", -1.0)
    plan: Plan = said(folder, 'drop L2\nheal on "text.txt" tokens 1024 rank 4')
    with pytest.raises(KeyboardInterrupt):
        heal(plan, on_event=progress("healing", broken_off(2)))
    left = state()
    other: Plan = said(folder, 'drop L2\nheal on "text.txt" tokens 1024 rank 4 seed 1')
    with pytest.raises(KeyboardInterrupt):
        heal(other, on_event=progress("healing", broken_off(0)))
    [its] = (item for item in left.parent.iterdir() if item != left)
    shutil.copy(left / "state.safetensors", its)
    events: list[Progress] = []
    heal(other, on_event=progress("healing", events.append))
    assert events[0].done == 0


# ---------------------------------------------------------------------------------- no numbers


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ("", "its teacher's predictions are NaN"),
        (" from other", "the loss is not finite before the first step"),
    ],
)
@pytest.mark.parametrize("rank", ["4", "full"])
def test_a_model_with_nan_names_the_tensor_and_its_file(
    tmp_path: Path, teacher: str, says: str, rank: str
) -> None:
    for name in ("base", "other"):
        tiny_model("llama", tmp_path / name, layers=4)
    (tmp_path / "text.txt").write_text(letters(1500))
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    text = f'model other = "./other"; drop L2\nheal{teacher} on "text.txt" tokens 1024 rank {rank}'
    with pytest.raises(HealError) as caught:
        heal(said(tmp_path, text))
    where = f"'model.layers.1.mlp.up_proj.weight' in {file} contains NaN"
    assert (caught.value.code, caught.value.message) == (
        "C809", f"'heal' can't learn: {says}: {where}",
    )  # fmt: skip
    assert "fetch the file again" in caught.value.help
    assert not list((cache_folder() / "heal").iterdir())
    assert not list(cache_folder().glob("healed/*"))


def test_a_failure_with_finite_weights_names_the_text(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", layers=4)
    (tmp_path / "text.txt").write_text(letters(1500))
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] *= 3e38
    save_file({n: t.clamp(-3e38, 3e38) for n, t in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(HealError) as caught:
        heal(said(tmp_path, 'drop L2\nheal on "text.txt" tokens 1024 rank 4'))
    assert (
        f"NaN on {tmp_path / 'text.txt'}, although all stored tensors are" in caught.value.message
    )
