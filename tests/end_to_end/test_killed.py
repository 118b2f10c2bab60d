"""All or nothing, in real processes: killed, interrupted, out of disk, their sources gone."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.forked import Ended, Runs, forking
from tests.support.hollow import SMALL, llama, write_hollow
from tests.support.thorough import THOROUGH, moments

COPIES = """\
tailor 1
model base = "./base"
model math = "./math"
L1..L2 from math
drop L4
"""
MERGES = COPIES + "L0.mlp from base, math by ties(0.5)\nL3 from base, math by slerp(0.3)\n"
SHARD = 6_000
"""Bytes of a shard: there are several."""


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    with forking() as started:
        yield started


@pytest.fixture(scope="module")
def merging() -> Iterator[Runs]:
    with forking("gptailor.program.run") as started:
        yield started


class Place:
    """Sources, plans and a target in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources = folder / "sources"
        self.plan = self.sources / "copies.tailor"
        self.merges = self.sources / "merges.tailor"
        self.outputs = folder / "outputs"
        self.target = self.outputs / "new"
        self.sources.mkdir()
        self.outputs.mkdir()
        for seed, name in enumerate(("base", "math")):
            write_model(self.sources / name, seed)
        self.plan.write_text(COPIES)
        self.merges.write_text(MERGES)
        self.before = tree(self.sources)

    def around(self) -> list[str]:
        """Return the names in the target's folder."""
        return sorted(path.name for path in self.outputs.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """In memory, if there is such a file system: hundreds of runs wait for the disk otherwise."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield Place(tmp_path)
        return
    with TemporaryDirectory(dir=memory) as folder:
        yield Place(Path(folder))


def write_model(folder: Path, seed: int) -> None:
    """A Llama of 6 layers, its numbers random; without a tensor library."""
    config, shapes = llama(**SMALL)
    write_hollow(folder, config, shapes, 2)
    draw = random.Random(seed)
    for path in folder.glob("*.safetensors"):
        with path.open("r+b") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            file.seek(start)
            count = (path.stat().st_size - start) // 2
            # bfloat16: 0x3c00 to 0x3fff and the same below 0 are finite, and near 1
            numbers = (
                draw.randrange(0x3C00, 0x4000) | draw.choice((0, 0x8000)) for _ in range(count)
            )
            file.write(b"".join(number.to_bytes(2, "little") for number in numbers))
    (folder / "tokenizer.json").write_text("{}")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def succeeds(ended: Ended) -> Ended:
    assert (ended.code, ended.said) == (0, "")
    return ended


def made_in_peace(runs: Runs, place: Place, plan: Path, **options: Any) -> dict[str, bytes]:
    """Return the files of an undisturbed run, and remove them."""
    succeeds(runs(plan, place.target, **options))
    made = tree(place.target)
    shutil.rmtree(place.target)
    assert place.around() == []
    return made


def seen_by(runs: Runs, place: Place, **options: Any) -> tuple[str, ...]:
    """The moments of an undisturbed run; its output is removed."""
    seen = succeeds(runs(place.plan, place.target, **options)).moments
    shutil.rmtree(place.target)
    return seen


def put(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


# ------------------------------------------------------------------------------------------ killed


def test_a_kill_at_any_moment_leaves_no_model(runs: Runs, place: Place) -> None:
    """At each change of the file system and each piece written; then the next run cleans up."""
    wanted = made_in_peace(runs, place, place.plan, shard_size=SHARD)
    assert sum(name.endswith(".safetensors") for name in wanted) > 3
    for at in moments(seen_by(runs, place, shard_size=SHARD)):
        ended = runs(place.plan, place.target, shard_size=SHARD, at=at)
        whole = place.target.exists()
        assert tree(place.target) == (wanted if whole else {})
        assert tree(place.sources) == place.before
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
        succeeds(runs(place.plan, place.target, shard_size=SHARD, force=whole))
        assert place.around() == ["new"]
        assert tree(place.target) == wanted
        shutil.rmtree(place.target)
    assert at > 40


@pytest.mark.parametrize("lacking", [[], ["renameat2"]], ids=["in one step", "in two"])
def test_a_kill_while_an_old_output_is_replaced_loses_neither(
    runs: Runs, place: Place, lacking: list[str]
) -> None:
    """It is the old one until it is the new one, whole, or will be after the next run.

    Where folders can't be exchanged, the old one is in the side folder for a moment.
    """
    old = made_in_peace(runs, place, place.plan)
    wanted = made_in_peace(runs, place, place.plan, shard_size=SHARD)
    aside = 0
    options = {"shard_size": SHARD, "force": True, "lacking": lacking}
    put(place.target, old)
    for at in moments(seen_by(runs, place, **options)):
        put(place.target, old)
        ended = runs(place.plan, place.target, **options, at=at)
        result = tree(place.target)
        if not place.target.exists():
            (saved,) = place.outputs.glob(".new.partial-*/old")
            assert tree(saved) == old
            aside += 1
        assert result in (old, wanted) or not place.target.exists()
        assert tree(place.sources) == place.before
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
        again = runs(place.plan, place.target, shard_size=SHARD)
        if again.code:  # gptailor wrote the old one without a record, and may record the new one
            assert again.code == 3
            assert "error[C301]" in again.said
            assert tree(place.target) == (result or old)
        succeeds(runs(place.plan, place.target, **options))
        assert place.around() == ["new"]
        assert tree(place.target) == wanted
    assert at > 40
    assert aside == len(lacking)


def test_a_kill_while_tensors_are_merged_leaves_no_model(merging: Runs, place: Place) -> None:
    wanted = made_in_peace(merging, place, place.merges, shard_size=SHARD)
    moments = len(succeeds(merging(place.merges, place.target, shard_size=SHARD)).moments)
    shutil.rmtree(place.target)
    for at in range(0, moments - 8, 7):
        assert merging(place.merges, place.target, shard_size=SHARD, at=at).code == -9
        assert not place.target.exists()
        assert tree(place.sources) == place.before
    succeeds(merging(place.merges, place.target, shard_size=SHARD))
    assert place.around() == ["new"]
    assert tree(place.target) == wanted


def test_a_kill_from_outside_at_any_time(merging: Runs, place: Place) -> None:
    wanted = made_in_peace(merging, place, place.merges, shard_size=SHARD)
    killed = 0
    for i in range(24):
        put(place.target, wanted)
        ended = merging(place.merges, place.target, shard_size=10**9, force=True, after=i * 0.004)
        killed += ended.code == -signal.SIGKILL
        result = tree(place.target)
        assert result == wanted or "model.safetensors" in result
        assert place.before == tree(place.sources)
    assert killed > 0
    succeeds(merging(place.merges, place.target, shard_size=SHARD, force=True))
    assert tree(place.target) == wanted
    assert place.around() == ["new"]


# ------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize(("signal_", "code"), [("interrupt", 130), ("terminate", 143)])
@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_a_signal_ends_the_command_and_leaves_nothing_at_once(
    runs: Runs, place: Place, signal_: str, code: int, force: bool
) -> None:
    old = made_in_peace(runs, place, place.plan)
    wanted = made_in_peace(runs, place, place.plan, dtype="bfloat16")
    command = ["compile", str(place.plan), "-o", str(place.target), "--dtype", "bfloat16"]
    command += ["--force"] if force else []
    log = place.folder / "said"
    if force:
        put(place.target, old)
    for at in moments(seen_by(runs, place, cli=command, stderr=str(log))):
        if force:
            put(place.target, old)
        ended = runs(place.plan, place.target, cli=command, at=at, do=signal_, stderr=str(log))
        result = tree(place.target)
        if ended.code == 0:
            assert result == wanted
            break
        assert ended.code == code
        assert log.read_text().strip() == ("interrupted" if code == 130 else "")
        assert place.around() == (["new"] if result else [])
        assert result in ((old, wanted) if force else ({}, wanted))
        assert tree(place.sources) == place.before
        shutil.rmtree(place.target, ignore_errors=True)
        log.unlink()
    assert at > 20


# ------------------------------------------------------------------------------------ out of disk


@pytest.fixture
def small(place: Place) -> Iterator[Path]:
    """A file system of 512 KiB, where the outputs are to be."""
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place.outputs)]
    with suppress(FileNotFoundError):
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            yield place.outputs
            subprocess.run(["umount", "-l", place.outputs], check=True)
            return
    pytest.skip("no file system can be mounted here")


def test_a_disk_that_fills_up_in_the_middle(runs: Runs, place: Place, small: Path) -> None:
    """Another process takes the remaining room, at any moment of a run that had enough."""
    old = made_in_peace(runs, place, place.plan, shard_size=10**9)
    wanted = made_in_peace(runs, place, place.plan, shard_size=SHARD)
    failed = 0
    for at in range(0, 1000, 2):
        put(place.target, old)
        ended = runs(
            place.plan,
            place.target,
            shard_size=SHARD,
            force=True,
            at=at,
            do="fill",
            where=str(small),
        )
        (small / "filler").unlink(missing_ok=True)
        assert place.around() == ["new"]
        assert tree(place.target) == (old if ended.code else wanted)
        if ended.code == 0 and len(ended.moments) <= at:
            break
        if ended.code:
            failed += 1
            assert ended.code == 3
            assert "error[C303]: cannot be written: No space left on device" in ended.said
            assert str(place.target) in ended.said
            assert ".partial-" not in ended.said
    assert failed > 5


def test_a_disk_that_fills_up_during_an_update(merging: Runs, place: Place, small: Path) -> None:
    """The old folder stays, and the next compile updates it."""
    command = ["compile", str(place.merges), "-o", str(place.target)]
    where = {"XDG_CACHE_HOME": str(place.folder / "cache"), "PATH": os.environ["PATH"]}
    log = place.folder / "said"

    def compiled(plan: str, *more: str, **how: Any) -> Ended:
        place.merges.write_text(plan)
        log.unlink(missing_ok=True)
        settings = {"environment": where, "cwd": str(place.folder), "seconds": 60}
        settings |= {"cli": [*command, *more], "stderr": str(log)}
        return merging(place.merges, place.target, **settings, **how)

    changed = MERGES.replace("L1..L2", "L2")
    compiled(MERGES, "--lock")
    old = tree(place.target)
    seen = compiled(changed).moments
    wanted = tree(place.target)
    codes = set()
    for at in range(0, len(seen), 3):
        assert compiled(MERGES, "--force", "--lock").code == 0
        ended = compiled(changed, at=at, do="fill", where=str(small))
        (small / "filler").unlink(missing_ok=True)
        codes.add(ended.code)
        assert place.around() == ["new"]
        assert tree(place.target) == (old if ended.code else wanted)
        if ended.code:
            assert "error[C30" in log.read_text()
        assert compiled(changed).code == 0
        assert tree(place.target) == wanted
    assert codes == {0, 3}


def test_no_room_is_reported_before_anything_is_written(
    runs: Runs, place: Place, small: Path
) -> None:
    (small / "filler").write_bytes(bytes(500 * 1024))
    ended = runs(place.plan, place.target, shard_size=SHARD)
    assert ended.code == 3
    assert "error[C305]" in ended.said
    assert str(place.target) in ended.said
    assert [name for name in ended.moments if name != "open"] == []
    assert place.around() == ["filler"]


@pytest.mark.parametrize("limit", [100, 5_000, 8_000])
def test_a_limit_on_the_size_of_files(place: Place, limit: int) -> None:
    """SIGXFSZ, which comes with it, must not kill in silence."""
    ended = subprocess.run(
        [sys.executable, "-B", "-c", "from gptailor.cli.main import main; main()", "compile",
         str(place.plan), "-o", str(place.target)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert ended.returncode == 3
    assert "error[C303]: cannot be written: File too large" in ended.stderr
    assert f"--> {place.target}/model.safetensors" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert place.around() == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT])
def test_any_change_of_the_file_system_may_fail(runs: Runs, place: Place, number: int) -> None:
    """As on a network's file system: one message that names the output, the old one still there."""
    old = made_in_peace(runs, place, place.plan)
    wanted = made_in_peace(runs, place, place.plan, shard_size=SHARD)
    put(place.target, old)
    for at in moments(seen_by(runs, place, shard_size=SHARD, force=True)):
        put(place.target, old)
        options = {"shard_size": SHARD, "force": True, "at": at}
        ended = runs(place.plan, place.target, **options, do="fail", where=str(number))
        assert tree(place.target) == (old if ended.code else wanted)
        if ended.code == 0 and len(ended.moments) <= at:
            break
        what = ended.moments[at]
        if ended.code and what != "progress":  # that one is the caller's own exception
            assert ended.code == 3
            assert f"error[C303]: cannot be written: {os.strerror(number)}" in ended.said
            assert f"--> {place.outputs}" in ended.said
        if ended.code:
            assert place.around() == ["new"]
        for path in place.outputs.iterdir():
            shutil.rmtree(path)
    assert at > 40


# ---------------------------------------------------------------------------- sources pulled away


@pytest.mark.parametrize("what", ["unlink", "truncate", "replace", "overwrite"])
@pytest.mark.parametrize("merge", [False, True], ids=["copied", "merged"])
def test_a_source_that_is_pulled_away(merging: Runs, place: Place, what: str, merge: bool) -> None:
    """While other tensors are written already: the output never appears."""
    shard = place.sources / "math" / "model-00001-of-00002.safetensors"
    plan = place.merges if merge else place.plan
    whole = shard.read_bytes()
    for at in (5, 6, 7):
        ended = merging(plan, place.target, shard_size=SHARD, at=at, do=what, where=str(shard))
        assert ended.code == 3, ended
        assert f"--> {shard}" in ended.said
        assert "error[C201]" in ended.said or "error[C304]" in ended.said
        assert place.around() == []
        shard.write_bytes(whole)


# -------------------------------------------------------------------------------- at the same time


def test_two_runs_to_one_target_never_mix(runs: Runs, place: Place) -> None:
    one = made_in_peace(runs, place, place.plan)
    other = made_in_peace(runs, place, place.plan, shard_size=SHARD)
    both = [
        {"plan": str(place.plan), "output": str(place.target), "shard_size": size}
        for size in (10**9, SHARD)
    ]
    for _ in range(10 if THOROUGH else 5):
        first, second = runs.together(*both)
        if (first.code, second.code) == (0, 0):  # the later one began after the end of the earlier
            assert tree(place.target) in (one, other)
        else:
            assert sorted((first.code, second.code)) == [0, 3]
            assert "error[C301]" in first.said + second.said
            assert tree(place.target) == (one if first.code == 0 else other)
        assert place.around() == ["new"]
        shutil.rmtree(place.target)


@pytest.mark.parametrize("force", [False, True], ids=["new", "force"])
def test_a_run_that_ends_while_another_is_at_work(runs: Runs, place: Place, force: bool) -> None:
    """At any moment of the other one, between its renames too."""
    mine = made_in_peace(runs, place, place.plan, shard_size=SHARD)
    theirs = made_in_peace(runs, place, place.plan)
    slow = {"plan": str(place.plan), "output": str(place.target), "shard_size": SHARD}
    slow |= {"force": force, "do": "wait", "where": str(place.target / "config.json")}
    fast = {"plan": str(place.plan), "output": str(place.target)}
    for at in range(0, 1000, 3):
        first, second = runs.together({**slow, "at": at}, fast)
        result = tree(place.target)
        assert result in (mine, theirs)
        if len(first.moments) <= at:
            break
        # The second is refused only where the first was through before it began.
        assert (first.code, second.code) in ([(0, 0), (0, 3)] if force else [(3, 0), (0, 3)])
        assert result == (mine if first.code == 0 else theirs)
        assert place.around() == ["new"]
        shutil.rmtree(place.target)
