"""Files of inner plans' fits: named by content, never written again, removed when old."""

import os
import time
from pathlib import Path

import pytest
import torch

from gptailor.checkpoint.files import CheckpointError, stamp
from gptailor.evaluation.fits import repair
from gptailor.evaluation.fits.inner_plans import with_inner_fits
from gptailor.evaluation.fits.kept_tensors import KeptTensors
from gptailor.evaluation.fits.repair import _kept_file
from gptailor.lang.parse import loads
from gptailor.prepare import prepare


def kept(value: float) -> KeptTensors:
    return KeptTensors({"a": torch.full((64,), value)}, {})


def aged(file: Path, days: float) -> Path:
    then = time.time() - days * 86_400
    os.utime(file, (then, then))
    return file


def test_equal_tensors_are_one_file_that_stays_as_it_is(own_cache: Path) -> None:
    first = aged(_kept_file(kept(1.0), []), 3)
    before = stamp(first.stat())
    assert first.parent == own_cache / "gptailor" / "inner"
    assert _kept_file(kept(1.0), []) == first
    assert stamp(first.stat()) == before
    assert _kept_file(kept(2.0), []) != first


def test_old_files_make_room_unless_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    needed, old = (aged(_kept_file(kept(value), []), 3) for value in (1.0, 2.0))
    young = aged(_kept_file(kept(3.0), []), 0.5)
    monkeypatch.setattr(repair, "KEPT_BYTES", 300)
    new = _kept_file(kept(4.0), [needed])
    assert [file.exists() for file in (needed, old, young, new)] == [True, False, True, True]


def test_a_file_that_cant_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="256 bytes, which can't be written") as caught:
        _kept_file(kept(1.0), [])
    assert caught.value.code == "C305"


def test_a_plan_without_fitted_plans_inside_is_left_alone(family: Path) -> None:
    (family / "plain.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\n')
    prepared = prepare(loads('tailor 1\nmodel base = "./plain.tailor"', folder=family))
    assert with_inner_fits(prepared) is prepared
