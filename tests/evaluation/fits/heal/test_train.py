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
    [found] = (cache_folder() / "heal").iterdir()
    return found


def assert_untouched(found: HealedLayers, folder: Path, kept: tuple[int, ...]) -> None:
    base = load_file(folder / "base" / "model.safetensors")
    for index, its in found.tensors.items():
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
def test_without_a_layer_that_does_nothing_there_is_nothing_to_learn(idle: Path, rank: str) -> None:
    found = heal(said(idle, f'drop L2\nheal on "text.txt" tokens 1024 rank {rank}'))
    assert found.result.numbers["start"] < 1e-9
    assert found.result.numbers["healed"] <= found.result.numbers["start"]
    assert_untouched(found, idle, (0, 1, 3))


def test_dropping_an_idle_layer_heals_to_a_tiny_loss_in_bfloat16(idle: Path) -> None:
    plan = said(idle, 'drop L2\nheal on "text.txt" tokens 1024 rank 4')
    found = heal(plan, dtype=torch.bfloat16)
    assert found.result.numbers["healed"] <= found.result.numbers["start"] < 1e-3


def test_full_rank_and_full_training_recover_a_layer_equally(
    folder: Path,
) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(folder / "base")
    left = {}
    for rank in ("16", "full"):
        plan = said(folder, f"{CUT} rank {rank}")
        found = heal(plan)
        left[rank] = found.result.numbers["healed"] / found.result.numbers["start"]
        assert (
            found.result.numbers["bare"],
            found.result.texts[0].tokens,
            found.result.numbers["held"],
        ) == (found.result.numbers["start"], 3840, 128)
        held = text_of(plan).held.tokens
        for tensors, loss in (
            ({}, found.result.numbers["start"]),
            (found.tensors, found.result.numbers["healed"]),
        ):
            own = divergence(teacher, with_layers(plan, tensors), held)
            assert own == pytest.approx(loss, rel=1e-4)
        norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
        assert (norms <= set(found.tensors[0])) == (rank == "full")
    assert left["16"] < 0.6
    assert left["16"] == pytest.approx(left["full"], abs=0.04)


def test_only_the_layers_that_are_named_learn(folder: Path) -> None:
    found = heal(said(folder, 'drop L2\nheal L1, L3 on "text.txt" tokens 1024 rank 4'))
    assert list(found.tensors) == [1, 2]
    assert found.result.numbers["healed"] < found.result.numbers["start"]


# --------------------------------------------------------------------------------- the best state


def test_a_diverging_rate_leaves_the_first_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOW_RANK_RATE", 30.0)
    found = heal(said(folder, 'drop L2\nheal on "text.txt" tokens 1024 rank 4'))
    assert found.result.numbers["healed"] == found.result.numbers["start"]
    assert_untouched(found, folder, (0, 1, 3))


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
    told: list[Progress] = []
    plan = said(folder, 'drop L2\nheal on "text.txt" tokens 1024 rank 4')
    found = heal(plan, on_event=progress("healing", told.append))
    assert [one.done for one in told] == [*range(9)]
    assert {one.total for one in told} == {8}
    assert told[0].seconds_left is None
    assert told[0].numbers == {"held_out": found.result.numbers["start"]}
    assert min(one.numbers["held_out"] for one in told) == found.result.numbers["healed"]
    assert all(one.numbers["loss"] > 0 for one in told[1:])
    assert told[-1].seconds_left == 0


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
    told: list[Progress] = []
    asked: list[Progress] = []
    by_work = {"healing": told, "reading": asked, "learning": list[Progress]()}

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            by_work[event.what].append(event)

    found = heal(plan, on_event=on_event)
    assert [one.done for one in told] == [*range(3, 11)]
    first, second = (one.numbers["held_out"] for one in told[:2])
    assert first == second <= found.result.numbers["start"]
    assert asked, "the teacher's predictions were kept"
    assert all(event.reused for event in asked)
    assert not list((cache_folder() / "heal").iterdir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert same(found, heal(plan))


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
    told: list[Progress] = []
    found = heal(plan, on_event=progress("healing", told.append))
    assert told[0].done == 0
    assert same(found, heal(plan))


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
    [its] = (one for one in left.parent.iterdir() if one != left)
    shutil.copy(left / "state.safetensors", its)
    told: list[Progress] = []
    heal(other, on_event=progress("healing", told.append))
    assert told[0].done == 0


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
    where = f"'model.layers.1.mlp.up_proj.weight' in {file} holds NaN"
    assert (caught.value.code, caught.value.message) == (
        "C809", f"'heal' can't learn: {says}: {where}",
    )  # fmt: skip
    assert "fetch the file again" in caught.value.help
    assert not list((cache_folder() / "heal").iterdir())
    assert not list(cache_folder().glob("healed/*"))


def test_where_all_weights_are_finite_the_text_is_named(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", layers=4)
    (tmp_path / "text.txt").write_text(letters(1500))
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] *= 3e38
    save_file({n: t.clamp(-3e38, 3e38) for n, t in tensors.items()}, file, {"format": "pt"})
    with pytest.raises(HealError) as caught:
        heal(said(tmp_path, 'drop L2\nheal on "text.txt" tokens 1024 rank 4'))
    assert f"NaN on {tmp_path / 'text.txt'}, and all stored tensors are" in caught.value.message
