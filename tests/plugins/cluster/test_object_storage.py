"""RUN at a URL: objects that are whole, a journal of them, storages that refuse."""

import json
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.plan.faults import TailorError
from gptailor.plugins.cluster.object_storage import ObjectJournal, ObjectStorage
from gptailor.prepare import prepare
from gptailor.searching.folder import SETTINGS, folder_at
from gptailor.searching.run.records import RunRecord
from gptailor.searching.run.study import Study, open_study
from gptailor.searching.run.workers import Alone
from gptailor.searching.run_files import RunFiles
from gptailor.searching.run_reading import read_run
from gptailor.searching.search import search as whole_search
from gptailor.searching.settings import Flags
from tests.searching.landscape import NLL, Counting, Search, search, setting, space
from tests.searching.written_run import record_of
from tests.support.tiny import tiny_model

RECORD = record_of((NLL,), 3, space())


class Named(MemoryFileSystem):
    """A storage in memory by another name."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace(f"{cls.protocol}://", "memory://"))


class Refusing(Named):
    """Lets be read, and nothing be written."""

    protocol = "refusing"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            raise PermissionError("Access Denied")
        return super()._open(path, mode, **options)

    def pipe_file(self, *_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")


class Slow(Named):
    """A storage that shows files while they are written: `_WHOLE` doesn't know it."""

    protocol = "slow"


@pytest.fixture(params=["memory", "slow"])
def url(request: pytest.FixtureRequest) -> str:
    fsspec.register_implementation("slow", Slow, clobber=True)
    return f"{request.param}://bucket-{uuid.uuid4().hex}/runs/one"


def other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))


def test_stored_files_are_available_on_another_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder_at(url) as run:
        run.put("front/trial-0001.tailor", "tailor 1\n")
        run.put(SETTINGS, json.dumps(RECORD))
        (run.path / "best.tailor.lock").write_text("{}")
        run.send()
    assert ObjectStorage(url).names() == ["best.tailor.lock", "front/trial-0001.tailor", SETTINGS]
    other_machine(monkeypatch, tmp_path)
    with folder_at(url) as run:
        assert RunFiles(run.path).record() == RunRecord.model_validate_json(json.dumps(RECORD))
        (run.path / "front/trial-0001.tailor").unlink()
        run.send()
    assert ObjectStorage(url).names() == ["best.tailor.lock", SETTINGS]


def test_a_copy_holds_nothing_that_was_removed_elsewhere(url: str) -> None:
    with folder_at(url) as run:
        run.put(SETTINGS, "{}")
        run.put("start.tailor", "tailor 1\n")
    ObjectStorage(url).remove("start.tailor")
    with folder_at(url) as run:
        assert not (run.path / "start.tailor").exists()


def test_a_url_with_other_things_isnt_a_run(url: str) -> None:
    ObjectStorage(url).put("thesis.pdf", b"%PDF")
    with pytest.raises(
        CheckpointError, match=r"C902.*expected the folder of a search, got one with 'thesis\.pdf'"
    ) as refused:
        folder_at(url).__enter__()
    assert url in str(refused.value)
    assert ObjectStorage(url).names() == ["thesis.pdf"]


def test_a_url_that_refuses_writing_is_one_message() -> None:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    with pytest.raises(CheckpointError) as refused:
        folder_at("refusing://bucket/run").__enter__()
    message = str(refused.value)
    assert message.startswith("error[C303]: cannot be written: Access Denied\n")
    assert "refusing://bucket/run" in message


@pytest.mark.parametrize("url", ["nowhere://bucket/run", "nothing-s3://b/run"])
def test_a_url_that_nothing_reads_is_one_message(url: str) -> None:
    with pytest.raises(TailorError, match=f"'{url}' can't be used: "):
        folder_at(url)


# --------------------------------------------------------------------------------------- the study


def searching(url: str, **changes: Any) -> Search:
    chosen = setting(**changes)
    begun = bool(ObjectStorage(url).names())
    study = open_study(folder_at(url).journal, begun=begun)
    return Search(chosen, study, Alone(Counting()))


class Killed(BaseException):
    """The process is gone."""


def test_a_search_at_a_url_ends_with_the_study_of_one_in_a_folder(url: str, tmp_path: Path) -> None:
    """Killed on one machine and gone on with on another."""
    calm = search(tmp_path, setting())
    calm.run()
    first = searching(url)
    seen: list[Any] = []

    def kill(event: Any) -> None:
        seen.append(event)
        if len(first.ledger.trials) == 9:
            raise Killed

    first.on_event = kill
    with pytest.raises(Killed):
        first.run()
    again = searching(url)
    assert len(again.ledger.trials) == 9
    again.run()
    numbers = [[(t.plan, t.values, t.request.key) for t in s.ledger.trials] for s in (calm, again)]
    assert numbers[0] == numbers[1]
    assert again.study.typed == calm.study.typed
    storage = ObjectStorage(url)
    names = storage.names()
    joined = Study(b"".join(storage.get(names)[name] for name in names), storage.path)
    assert len(joined.trials) == len(calm.ledger.trials)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread", "brief_answers")
def test_a_run_is_complete_at_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plans there compile anywhere, and the same command continues on another machine."""
    url = f"memory://bucket-{uuid.uuid4().hex}/run"
    tiny_model("llama", tmp_path / "base", layers=7)
    (tmp_path / "rows.jsonl").write_text('{"text": "a cat and two dogs"}\n' * 8)
    text = """tailor 1
model base = "./base"
drop any 2 of L1..L5
search { minimize nll("rows.jsonl") }
"""
    (tmp_path / "space.tailor").write_text(text)
    plan = gptailor.load(tmp_path / "space.tailor")
    result = whole_search(plan, url, Flags(trials=4, fidelity=(4, 4)))
    names = ObjectStorage(url).names()
    assert {"best.tailor", "best.tailor.lock", "run.json", "start.tailor",
            "summary.md"} <= set(names)  # fmt: skip
    assert not any("digests" in name or name.startswith(".") for name in names)
    reading, before = read_run(url), len(result.summary.ledger.trials)
    assert len(reading.ledger.trials) == len(result.summary.ledger.trials)
    assert all(reading.made(trial) for trial in reading.ledger.trials)
    (tmp_path / "elsewhere").mkdir()
    best = tmp_path / "elsewhere" / "best.tailor"
    best.write_bytes(ObjectStorage(url).get(["best.tailor"])["best.tailor"])
    prepared = prepare(gptailor.load(best))
    assert prepared.models["base"].checkpoint.folder.resolve() == (tmp_path / "base").resolve()
    other_machine(monkeypatch, tmp_path)
    more = whole_search(plan, url, Flags(trials=9, fidelity=(4, 4)))
    assert len(more.summary.ledger.trials) > before
    with pytest.raises(CheckpointError, match=r"C902.*its seed was") as refused:
        whole_search(plan, url, Flags(trials=9, fidelity=(4, 4), seed=1))
    assert url in str(refused.value)


def test_two_searches_at_one_url_meet(url: str) -> None:
    one, two = (ObjectJournal(ObjectStorage(url)) for _ in "ab")
    one.append(b'{"late":1}\n')
    with pytest.raises(CheckpointError, match=r"C901.*another search uses the folder"):
        two.append(b'{"late":2}\n')
    assert ObjectJournal(ObjectStorage(url)).read() == b'{"late":1}\n'


def test_a_journal_with_a_hole_is_refused(url: str) -> None:
    journal = ObjectJournal(ObjectStorage(url))
    for number in range(3):
        journal.append(b'{"late":%d}\n' % number)
    ObjectStorage(url).remove("journal.jsonl/00000001.jsonl")
    with pytest.raises(CheckpointError, match=r"C903.*00000001\.jsonl' is missing"):
        ObjectJournal(ObjectStorage(url)).read()


def test_an_object_that_isnt_a_journal_is_refused(url: str) -> None:
    ObjectStorage(url).put("journal.jsonl/00000000.jsonl", b"{")
    with pytest.raises(CheckpointError, match=r"C903.*line 1 of the journal is damaged") as caught:
        open_study(folder_at(url).journal)
    assert str(caught.value.path).endswith("runs/one/journal.jsonl")


def test_a_url_of_the_former_format_is_refused(url: str) -> None:
    ObjectStorage(url).put("study.journal/00000000.jsonl", b"{}")
    for read in (read_run, lambda run: folder_at(run).__enter__()):
        with pytest.raises(CheckpointError, match=r"C902.*of an earlier release"):
            read(url)


def test_an_object_with_a_name_outside_run_is_not_fetched(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://strange/run"
    ObjectStorage(url).put("run.json", b"{}")
    monkeypatch.setattr(ObjectStorage, "names", lambda self: ["run.json", "front/../../evil"])
    monkeypatch.setattr(ObjectStorage, "get", lambda self, names: dict.fromkeys(names, b"{}"))
    with pytest.raises(CheckpointError, match="a link out of the folder"), folder_at(url):
        pass
    assert own_cache.is_dir()
    assert not list(own_cache.rglob("evil"))
