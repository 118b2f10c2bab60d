"""Texts of healing that a plugin provides."""

from pathlib import Path

import pytest

from gptailor.evaluation.fits.heal.sources import ANSWERS, PREDICTIONS, answers_to, open_predictions
from gptailor.plan import doors
from gptailor.plan.faults import TailorError


def test_a_text_without_its_plugin_names_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "_points", lambda *_: [])
    for door, name in ((PREDICTIONS, "parquet"), (ANSWERS, "teacher")):
        monkeypatch.setattr(door, "_problems", {})
        monkeypatch.delitem(door, name, raising=False)
    missing = "needs the plugin 'teach': it is not installed"
    with pytest.raises(TailorError, match=rf"^'taught\.parquet' {missing}"):
        open_predictions(Path("taught.parquet"))
    with pytest.raises(TailorError, match=rf'^answers\("prompts\.jsonl"\) {missing}'):
        answers_to(Path("prompts.jsonl"))
