"""Messages of the language server about models at URLs and on the Hub."""

from pathlib import Path

import pytest
from lsprotocol import types

from gptailor.checkpoint.files import CheckpointError
from gptailor.plugins.lsp.hover import diagnostic
from gptailor.plugins.lsp.remedies import edited, remedies
from gptailor.plugins.lsp.text import EditedText, seen_models
from tests.support.hollow import SMALL, llama, write_hollow


def opened(text, folder):
    return EditedText((folder / "plan.tailor").as_uri(), text)


@pytest.mark.parametrize("url", ["s3://bucket/model", "https://example.org/model"])
def test_a_model_at_a_url_is_not_fetched_though_a_plan_in_a_file_names_it(
    tmp_path, monkeypatch, url
):
    asked = []
    write_hollow(tmp_path / "base", *llama(**SMALL))
    monkeypatch.setattr("gptailor.checkpoint.models._fetched_folder", asked.append)
    (tmp_path / "far.tailor").write_text(f'tailor 1\nmodel base = "{url}"\ndrop L1\n')
    between = "".join(f'model {n} = "./{n}.tailor"\n' for n in ("between", "bad", "gone"))
    inner = f'tailor 1\n{between}model base = "./far.tailor"\ndrop L1\n'
    (tmp_path / "between.tailor").write_text(inner)
    (tmp_path / "bad.tailor").write_text("no plan")
    for head, known in (
        ('model base = "./between.tailor"\n', set()),
        ('model base = "./base"\nmodel m = "./between.tailor"\nL1 from m\n', {"base"}),
        (f'model base = "./base"\nmodel m = "{url}"\nL1 from m\n', {"base"}),
    ):
        seen = seen_models(opened(f"tailor 1\n{head}drop L2\n", tmp_path))
        assert (set(seen.opened), seen.faults, seen.whole) == (known, (), False)
    assert asked == []


@pytest.mark.parametrize("inner", [False, True])
def test_uncached_models_are_no_fault_without_the_hub(tmp_path, monkeypatch, inner):
    why = "is not in the local cache, and the Hub can't be reached"

    def offline(repo, _):
        raise CheckpointError("C503", why, Path(repo), "check the connection")

    monkeypatch.setattr("gptailor.checkpoint.models.open_hub", offline)
    plan = 'tailor 1\nmodel base = "org/name"\ndrop L1\n'
    (tmp_path / "inner.tailor").write_text(plan)
    text = opened(plan.replace("org/name", "./inner.tailor") if inner else plan, tmp_path)
    (fault,) = seen_models(text).faults
    assert fault.message.startswith("'org/name' is missing from the Hub's cache")
    assert diagnostic(text, fault).severity == types.DiagnosticSeverity.Information
    (fault,) = seen_models(text, hub=True).faults
    assert (fault.message, fault.help) == (f"{why} (org/name)", "check the connection")
    assert diagnostic(text, fault).severity == types.DiagnosticSeverity.Error


def test_a_folder_with_the_name_of_a_repository_is_reported(tmp_path, monkeypatch):
    why = ["is not in the local cache, and the Hub can't be reached", "not available: no disk"]

    def offline(repo, _):
        raise CheckpointError("C503", why[0], Path(repo))

    monkeypatch.setattr("gptailor.checkpoint.models.open_hub", offline)
    (tmp_path / "org" / "name").mkdir(parents=True)
    text = opened('tailor 1\nmodel base = "org/name"\ndrop L1\n', tmp_path)
    (fault,) = seen_models(text).faults
    (remedy,) = remedies(text, [fault])
    assert 'model base = "./org/name"' in edited(text.text, remedy.edits)
    del why[0]
    assert "no disk" in seen_models(text).faults[0].message
