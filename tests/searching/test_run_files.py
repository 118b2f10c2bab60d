"""Folders and URLs are told apart; URLs and clusters need a plugin."""

from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.models import FETCHERS
from gptailor.plan import doors
from gptailor.plan.faults import TailorError
from gptailor.searching.run.workers import CLUSTERS
from gptailor.searching.run_files import STORAGES, RunFiles, local_or_url
from gptailor.searching.settings import Flags, Resources, settings
from gptailor.searching.trial_evaluator import workers_of


def test_folders_and_urls_are_distinguished() -> None:
    assert local_or_url("run") == Path("run")
    assert local_or_url(Path("s3")) == Path("s3")
    assert local_or_url("file:///tmp/a%20run") == Path("/tmp/a run")
    assert local_or_url("s3://bucket/run/") == "s3://bucket/run"


@pytest.fixture
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "_points", lambda *_: [])
    for door, name in ((STORAGES, "url"), (FETCHERS, "url"), (CLUSTERS, "ray")):
        monkeypatch.setattr(door, "_problems", {})
        monkeypatch.delitem(door, name, raising=False)


@pytest.mark.wrong_types
@pytest.mark.usefixtures("_no_plugins")
def test_urls_and_clusters_name_the_plugin_that_they_need() -> None:
    missing = "needs the plugin 'cluster': it is not installed"
    with pytest.raises(TailorError, match=rf"^'s3://bucket/run' {missing}"):
        RunFiles("s3://bucket/run")
    plan = gptailor.loads('tailor 1\nmodel base = "s3://bucket/base"\nmaybe drop L1\n')
    [fault] = gptailor.check(plan)
    message = f"not available: a model at a URL {missing} (s3://bucket/base)"
    assert (fault.code, fault.message) == ("C503", message.replace("s3://", "s3:/"))
    chosen = settings(plan, Flags(objectives=('nll("text.txt")',)))
    with pytest.raises(TailorError, match=rf"^--ray {missing}"):
        workers_of(None, chosen, Resources(ray="local"), print)
