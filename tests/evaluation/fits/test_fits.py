"""Each fit is made once for all plans and processes, the same to the bit, whatever it fits."""

import gc
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import pytest
import torch

import gptailor
from gptailor.checkpoint.cache_folder import cache_folder
from gptailor.evaluation.fits.fit import Fit, Fitted
from gptailor.evaluation.fits.repair import Repairs, fit
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.plan.events import Event, FitResult, Progress
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from gptailor.program.fits import FITS
from tests.support.tiny import letters, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


class Case(NamedTuple):
    """A fit, its number of tokens, other statements, and statements of a plan that shares it."""

    fit: str
    tokens: int
    beside: str
    other: str
    family: str = "llama"


CASES = {
    "experts": Case('experts 3 on "text.txt" tokens 300', 300, "", "drop L2", "mixtral"),
    "narrowed": Case('width 16 on "text.txt" tokens 900', 900, "", "drop L2"),
    "bridged": Case(
        'bridge on "text.txt" tokens 512', 512, "drop L2..L3", "drop L2..L3; scale L5 by 0.9"
    ),
    "healed": Case('heal on "text.txt" tokens 512', 512, "drop L2..L3", "drop L2..L3"),
}
"""By the folder of kept fits."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A case, its model and its text in the test's folder."""
    case = CASES[request.param]
    experts = {"num_local_experts": 6} if case.family == "mixtral" else {}
    tiny_model(case.family, tmp_path / "base", **experts)
    (tmp_path / "text.txt").write_text(letters(3000))
    return case


def plan_of(folder: Path, *statements: str) -> Plan:
    lines = "\n".join(('tailor 1\nmodel base = "./base"', *statements))
    return gptailor.loads(f"{lines}\n", folder=folder)


def made(events: list[Event]) -> bool:
    """Return whether a fit was made, which takes steps, and forget the events."""
    steps = [event for event in events if isinstance(event, Progress) and not event.reused]
    events.clear()
    return bool(steps)


def same(one: Fitted, other: Fitted) -> bool:
    assert one.tensors.keys() == other.tensors.keys()
    assert one.resolved.kept_experts == other.resolved.kept_experts
    return one.results == other.results and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def test_each_fit_is_a_case() -> None:
    makers = [resolve_name(each.maker) for each in FITS if each.maker is not None]
    assert {maker.folder for maker in makers} == CASES.keys()


def test_a_fit_is_kept_on_the_disk_and_the_same_to_the_bit(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[Event]()

    def fitted(folder: Path = tmp_path, **anew: Any) -> Fitted:
        return fit(prepare(plan_of(folder, case.beside, case.fit)), on_event=events.append, **anew)

    first = fitted()
    assert isinstance(events[-1], FitResult)
    assert events[-1].tokens == case.tokens
    work = (each for each in events if isinstance(each, Progress))
    steps = [each for each in work if each.what not in ("reading", "learning")]
    assert [step.done for step in steps] == [*range(steps[0].total + 1)]
    assert steps[-1].seconds_left == 0
    assert made(events)
    monkeypatch.chdir(tmp_path)
    assert same(first, fitted(Path()))
    assert not made(events), "wherever the files are seen from"
    assert same(first, fitted(anew=True))
    assert made(events)
    (folder,) = (f for f in cache_folder().iterdir() if f.name in CASES)
    (file,) = folder.iterdir()
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1 << 7
    file.write_bytes(raw)
    for expected in (True, False):
        assert same(first, fitted())
        assert made(events) == expected, "a damaged file is made anew"


def test_plans_share_a_fit_in_memory(case: Case, tmp_path: Path) -> None:
    events = list[Event]()
    plan = plan_of(tmp_path, case.beside, case.fit)
    other = plan_of(tmp_path, case.other, case.fit.replace("experts 3", "experts 2"))
    repairs = Repairs(Stitcher(prepare(plan).models), events.append, anew=True)
    first = repairs.fitted(repairs.stitcher.table.resolved(plan))
    assert made(events)
    again = repairs.fitted(repairs.stitcher.table.resolved(other))
    assert not made(events)
    known, own = (item.changes.get("width", {}) for item in (first, again))
    for number, at in enumerate(again.resolved.undone_numbers):
        for name, tensor in known.get(at, {}).items():
            assert own[number][name] is tensor


@pytest.mark.parametrize("case", ["experts", "narrowed", "bridged"], indirect=True)
def test_streamed_layers_give_the_same_fit(case: Case, tmp_path: Path) -> None:
    prepared = prepare(plan_of(tmp_path, case.beside, case.fit))
    memory = Stitcher(prepared.models).stitch(plan_of(tmp_path)).model.get_memory_footprint()
    streamed = fit(prepared, anew=True, memory=int(0.9 * memory))
    assert same(streamed, fit(prepared, anew=True))


def tensors_in_memory() -> dict[int, int]:
    """The bytes of all tensors in memory, by their addresses."""
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    stored = [tensor.untyped_storage() for tensor in tensors if tensor.device.type != "meta"]
    return {item.data_ptr(): item.nbytes() for item in stored}


@pytest.mark.parametrize("memory", [None, 300_000_000])
def test_the_weights_of_a_fit_are_freed_before_the_next_fit(
    memory: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("mixtral", tmp_path / "base", num_local_experts=6)
    (tmp_path / "text.txt").write_text(letters(3000))
    fits = [CASES[name].fit for name in ("experts", "bridged", "healed")]
    prepared = prepare(plan_of(tmp_path, "drop L2..L3", *fits))
    begun, left = list[str](), list[int]()
    run = Repairs.run

    def noted(self: Repairs, kind: type[Fit], fitted: Fitted) -> Fitted:
        own = {tensor.data_ptr() for tensor in fitted.tensors.values()}
        now = tensors_in_memory().items()
        left.append(sum(size for at, size in now if at not in own | before.keys()))
        begun.append(kind.folder)
        return run(self, kind, fitted)

    monkeypatch.setattr(Repairs, "run", noted)
    gc.collect()
    gc.disable()  # weights leave with the last reference to them
    try:
        before = tensors_in_memory()
        fit(prepared, anew=True, memory=memory)
    finally:
        gc.enable()
    assert begun == ["experts", "bridged", "healed"]
    assert left == [0, 0, 0]
