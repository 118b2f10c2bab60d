"""Kept bridges and healings of this machine are reused as they were, and only for equal inputs."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from gptailor.checkpoint.cache_folder import kept_home
from gptailor.evaluation.fits import kept_tensors
from gptailor.evaluation.fits.kept_tensors import KeptTensors, TensorStore
from gptailor.evaluation.fits.repair import fit
from gptailor.lang.parse import loads
from gptailor.plan.events import Event, Progress
from gptailor.plan.faults import Origin, Source
from gptailor.prepare import Prepared, ready
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

CUT = 'drop L2..L3; heal on "text.txt" tokens 512'


def healing(numbers: int, fill: float = 0.5) -> KeptTensors:
    losses = {"bare": 1.5, "start": 0.75, "healed": 0.1 + 0.2}
    return KeptTensors({"0.A": torch.full((numbers,), fill)}, losses)


def healing_store(folder: Path, most: int = 10_000) -> TensorStore:
    return TensorStore(folder, most)


def test_a_stored_healing_is_read_back_exactly(tmp_path: Path) -> None:
    store = healing_store(tmp_path / "new")
    assert store.get("one") is None
    store.put("one", healing(7, 1 / 3))
    result = healing_store(tmp_path / "new").get("one")
    assert result is not None
    assert torch.equal(result.tensors["0.A"], healing(7, 1 / 3).tensors["0.A"])
    assert result.numbers == {"bare": 1.5, "start": 0.75, "healed": 0.1 + 0.2}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["one.safetensors"]


def test_the_least_recently_used_healing_is_removed_first(tmp_path: Path) -> None:
    store = healing_store(tmp_path)
    for age, name in enumerate(("one", "two")):
        store.put(name, healing(1000))
        os.utime(tmp_path / f"{name}.safetensors", (age, age))
    assert store.get("one") is not None, "and so it was used last"
    store.put("three", healing(1000))
    assert [name for name in ("one", "two", "three") if store.get(name)] == ["one", "three"]
    store.put("huge", healing(3000))
    assert store.get("huge") is None
    assert store.get("one") is not None


@pytest.mark.parametrize("raw", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"{" * 100])
def test_a_broken_file_is_treated_as_missing(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "one.safetensors").write_bytes(raw)
    assert healing_store(tmp_path).get("one") is None


def flipped(file: Path, bit: int) -> None:
    """Flip one bit of a file, counted from its end if it is negative."""
    raw = bytearray(file.read_bytes())
    raw[(bit % (8 * len(raw))) // 8] ^= 1 << bit % 8
    file.write_bytes(raw)


def test_one_flipped_bit_anywhere_makes_it_unknown_and_it_is_removed(tmp_path: Path) -> None:
    store = healing_store(tmp_path)
    store.put("one", healing(7))
    file = tmp_path / "one.safetensors"
    sound = file.read_bytes()
    for bit in range(0, 8 * len(sound), 7):
        file.write_bytes(sound)
        flipped(file, bit)
        assert store.get("one") is None, bit
        assert not file.exists()
    file.write_bytes(sound)
    assert store.get("one") is not None


def test_another_healings_file_is_not_taken(tmp_path: Path) -> None:
    store = healing_store(tmp_path)
    store.put("one", healing(7))
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert store.get("two") is None
    assert store.get("one") is not None


def test_another_users_file_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = healing_store(tmp_path)
    store.put("one", healing(7))
    monkeypatch.setattr(kept_tensors, "is_ours", lambda _: False)
    assert store.get("one") is None
    assert (tmp_path / "one.safetensors").exists()


def test_a_file_on_a_read_only_file_system_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = healing_store(tmp_path)
    store.put("one", healing(7))

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    assert store.get("one") is not None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = healing_store(tmp_path / "file")
    store.put("one", healing(1))
    assert store.get("one") is None


def test_a_fit_is_made_once_by_all_processes_and_read_once_by_each() -> None:
    made, read = list[str](), list[float]()

    def make() -> KeptTensors:
        made.append("one")
        return healing(7)

    def halved(kept: KeptTensors) -> KeptTensors:
        read.append(kept.numbers["start"])
        return KeptTensors(kept.tensors, {"start": kept.numbers["start"] / 2})

    for anew, times in ((False, 1), (False, 1), (True, 2), (False, 2)):
        process = TensorStore(kept_home() / "tests", anew=anew)
        result = process("one", make, halved)
        assert result.numbers == {"start": 0.375}
        assert process("one", make, halved) is result
        assert len(made) == times
    assert read == [0.75] * 4


# ---------------------------------------------------------------------------- as the healer uses it


class Told:
    """A record of whether layers were trained or taken from the cache."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.what == "learning":
            self.said.append("learned")
        elif isinstance(event, Progress) and event.what == "healing" and event.reused:
            self.said.append("known")
        elif isinstance(event, Progress) and event.what == "bridging" and not event.done:
            self.said.append("fitted")


def write_world(folder: Path) -> Path:
    """Two models, and two texts."""
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed, layers=6)
    words = "".join(f"the {n} cats sat on {n * n} mats. " for n in range(300))
    (folder / "text.txt").write_text(words)
    (folder / "other.txt").write_text(words[7:])
    return folder


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with the results of `CUT` and `BRIDGE` in its cache."""
    folder = write_world(tmp_path_factory.mktemp("known"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for body in (CUT, BRIDGE):
            healed(body, folder)
    return folder


@pytest.fixture
def known(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, its cache in use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(made / "cache"))
    return made


def ready_of(body: str, folder: Path) -> Prepared:
    """A plan over both models, ready to be fitted."""
    plan = loads(f'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n{body}\n')
    return ready(plan.read_from(Origin(Source("<plan>", ""), folder)))


def healed(
    body: str, folder: Path, *, anew: bool = False
) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Heal a plan; return its events in words and the learned tensors."""
    told = Told()
    result = fit(ready_of(body, folder), on_event=told, anew=anew)
    return told.said, dict(result.tensors)


def begun(body: str, folder: Path) -> str:
    """Return a healing's first event in words, and break it off there."""
    told = Told()

    def on_event(event: Event) -> None:
        told(event)
        if told.said:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        fit(ready_of(body, folder), on_event=on_event)
    return told.said[0]


@pytest.mark.parametrize(
    "other",
    [
        CUT.replace("512", "640"),
        CUT + " seed 1",
        CUT + " rank 2",
        CUT + " rank full",
        CUT.replace("text", "other"),
        CUT.replace("L3;", "L4;"),
        CUT.replace("heal on", "heal L1 on"),
        CUT.replace("heal on", "heal from math on"),
        CUT + "; L5 from math",
    ],
)
def test_each_input_of_the_result_gives_another_healing(known: Path, other: str) -> None:
    assert begun(CUT, known) == "known"
    assert begun(other, known) == "learned"


def test_a_rewritten_model_gives_another_healing(world: Path) -> None:
    healed(CUT, world)
    tiny_model("llama", world / "base", seed=5, layers=6)
    assert begun(CUT, world) == "learned"


def test_a_model_that_changed_with_its_time_kept_is_another(world: Path) -> None:
    healed(CUT, world)
    weights = world / "base" / "model.safetensors"
    before = weights.stat()
    tiny_model("llama", world / "other", seed=5, layers=6)
    weights.write_bytes((world / "other" / "model.safetensors").read_bytes())
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    assert begun(CUT, world) == "learned"


BRIDGE = 'drop L2..L3; bridge on "text.txt" tokens 512'


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (BRIDGE.replace("512", "1024"), ["fitted"]),
        (BRIDGE + " ridge 0.5", ["fitted"]),
        (BRIDGE.replace("text", "other"), ["fitted"]),
        (BRIDGE.replace("L3;", "L4;"), ["fitted"]),
        (BRIDGE + "; L0 from math", ["fitted"]),
        (BRIDGE + "; L1.mlp from math", ["fitted"]),
        (BRIDGE + "; embed from math", ["fitted"]),
        (BRIDGE + "; L5 from math", []),
    ],
)
def test_each_input_of_a_bridge_gives_another_bridge(
    known: Path, other: str, expected: list[str]
) -> None:
    how, result = healed(other, known)
    assert how == expected
    _, anew = healed(other, known, anew=True)
    assert all(torch.equal(tensor, result[name]) for name, tensor in anew.items())
