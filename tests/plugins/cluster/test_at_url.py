"""Models in object storage: fetched once a machine, whatever goes on at the same time."""

import fcntl
import os
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import gptailor
from gptailor.checkpoint import cache_folder
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import kept_folder
from gptailor.plan.faults import PlanError
from gptailor.plugins.cluster import at_url
from gptailor.plugins.cluster.at_url import fetched_folder
from tests.support.tiny import tiny_model


@pytest.fixture
def got(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was fetched."""
    counts: Counter[str] = Counter()
    real = MemoryFileSystem.get_file

    def counting(self: Any, path: str, *arguments: Any, **named: Any) -> Any:
        counts[path.rpartition("/")[2]] += 1
        return real(self, path, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, "get_file", counting)
    return counts


def stored(**files: str) -> str:
    url = f"memory://bucket-{uuid.uuid4().hex}/models/base"
    for name, text in files.items():
        fsspec.filesystem("memory").pipe_file(f"{url}/{name}", text.encode())
    return url


def test_unchanged_files_are_not_fetched_again(got: Counter[str]) -> None:
    url = stored(one="1", two="2")
    folder = fetched_folder(url)
    assert folder == kept_folder(url)
    assert [(folder / name).read_text() for name in ("one", "two")] == ["1", "2"]
    fsspec.filesystem("memory").pipe_file(f"{url}/two", b"22")
    assert fetched_folder(url) == folder
    assert (folder / "two").read_text() == "22"
    assert got == {"one": 1, "two": 2}
    fsspec.filesystem("memory").rm_file(f"{url}/one")
    fetched_folder(url)
    assert not (folder / "one").exists()


def test_a_copy_that_changed_with_its_time_kept_is_fetched_again(got: Counter[str]) -> None:
    url = stored(one="1")
    copy = fetched_folder(url) / "one"
    before = copy.stat()
    time.sleep(0.02)  # a coarse clock gives two changes one time
    copy.write_text("2")
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (fetched_folder(url) / "one").read_text() == "1"
    assert got == {"one": 2}


def test_workers_of_one_machine_fetch_once(got: Counter[str]) -> None:
    url = stored(**{f"file{n}": str(n) for n in range(20)})
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(fetched_folder, [url] * 8))
    assert len(folders) == 1
    assert set(got.values()) == {1}


def test_waiting_for_another_fetch_is_interrupted() -> None:
    """Also by an interrupt that comes just before the wait, and so doesn't end it."""
    url = stored(one="1")
    place = kept_folder(url)
    place.parent.mkdir(parents=True)
    with place.with_name(f"{place.name}.lock").open("w") as another:
        fcntl.flock(another, fcntl.LOCK_EX)
        timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])  # in its own thread
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            fetched_folder(url)
    timer.join()
    assert (fetched_folder(url) / "one").read_text() == "1"


def test_a_fetch_that_breaks_off_leaves_nothing_half(
    got: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = stored(one="1", two="2")

    def broken(self: Any, path: str, to: str, **_: Any) -> None:
        Path(to).write_text("hal")
        raise ConnectionError("reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", broken)
        with pytest.raises(CheckpointError, match=r"C503.*not available: reset by peer") as refused:
            fetched_folder(url)
    assert url in str(refused.value)
    assert list(kept_folder(url).iterdir()) == []
    assert (fetched_folder(url) / "one").read_text() == "1"


@pytest.mark.parametrize("damage", ["torn", "changed", "gone"])
def test_a_missing_or_damaged_copy_is_fetched_again(got: Counter[str], damage: str) -> None:
    url = stored(one="11", two="2")
    place = fetched_folder(url) / "one"
    if damage == "gone":
        place.unlink()
    else:
        place.write_text("1" if damage == "torn" else "12")
        os.utime(place, (1, 1))
    assert (fetched_folder(url) / "one").read_text() == "11"
    fetched_folder(url)
    assert got == {"one": 2, "two": 1}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"one": 1}', b"\xff"])
def test_a_damaged_list_of_fetched_files_is_ignored(got: Counter[str], raw: bytes) -> None:
    url = stored(one="1")
    (fetched_folder(url) / ".fetched.json").write_bytes(raw)
    fetched_folder(url)
    fetched_folder(url)
    assert got == {"one": 2}


def test_another_users_folder_isnt_a_place_for_models(monkeypatch: pytest.MonkeyPatch) -> None:
    url = stored(one="1")
    fetched_folder(url)
    monkeypatch.setattr(at_url, "is_ours", lambda _: False)
    with pytest.raises(CheckpointError, match=r"C303.*belongs to another user"):
        fetched_folder(url)


@pytest.mark.parametrize("how", ["another user's", "a link"])
def test_without_a_home_another_users_temporary_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(cache_folder, "cache_folder", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    url = stored(one="1")
    own = fetched_folder(url).parents[1]
    assert own == tmp_path / f"gptailor-{os.getuid()}"
    assert own.stat().st_mode & 0o777 == 0o700
    if how == "a link":
        own.rename(tmp_path / "elsewhere")
        own.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr(cache_folder, "is_ours", lambda _: False)
    with pytest.raises(CheckpointError, match=r"C303.*belongs to another user"):
        fetched_folder(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing-is-here/models", "is empty"),
        ("nowhere://bucket/model", "not available: Protocol not known: nowhere"),
    ],
)
def test_an_unavailable_folder_is_one_fault(url: str, message: str) -> None:
    plan = gptailor.loads(f'tailor 1\nmodel base = "{url}"\ndrop L1\n')
    with pytest.raises(PlanError, match="C503") as refused:
        gptailor.compile(plan, "out")
    assert message in str(refused.value)


def test_a_model_at_a_url_compiles_as_the_folder_does(tmp_path: Path) -> None:
    here = tiny_model("llama", tmp_path / "base", layers=4)
    url = stored()
    for file in here.iterdir():
        fsspec.filesystem("memory").pipe_file(f"{url}/{file.name}", file.read_bytes())
    texts = [f'tailor 1\nmodel base = "{source}"\ndrop L1\n' for source in (here, url)]
    for name, text in zip(("one", "two"), texts, strict=True):
        gptailor.compile(gptailor.loads(text), tmp_path / name)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert f'model base = "{url}"' in (tmp_path / "two/plan.tailor").read_text()


def test_a_url_has_no_revision() -> None:
    with pytest.raises(PlanError, match="'s3://b/m' is a URL, which can't have a revision"):
        gptailor.loads('tailor 1\nmodel base = "s3://b/m" @ "main"\ndrop L1\n')
