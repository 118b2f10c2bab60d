"""A compile into a folder that gptailor wrote: equal tensors are copied, all bytes are the same."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.cache_folder import keep_json, kept_json
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.tensor import ByteRange
from gptailor.checkpoint.write.side_folder import SideFolder, TargetExists
from gptailor.output.lock import LOCK_FILE, read_lock
from gptailor.output.update import Update
from gptailor.plan.events import BytesDone

HEAD = 'tailor 1\nmodel base = "{family}/base"\nmodel math = "{family}/math"\n'
MERGED = "L0..L3 from base, math by slerp(0.3)\n"


@pytest.fixture
def here(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models and a cache of its own."""
    shutil.copytree(family / "base", tmp_path / "base")
    shutil.copytree(family / "math", tmp_path / "math")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def compiled(here: Path, statements: str, **options: object) -> Update | None:
    """The update of a compile into `out`."""
    plan = gptailor.loads(HEAD.format(family=here) + statements, name="p.tailor")
    return gptailor.compile(plan, here / "out", **options).update  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def damaged(place: ByteRange) -> None:
    """Change the last bytes of a tensor in place; the file's size and time of writing stay."""
    time.sleep(0.02)  # a coarse clock gives two changes one time
    before = place.file.stat()
    with place.file.open("r+b") as raw:
        raw.seek(end := place.offset + place.size - 4)
        last = raw.read(4)
        raw.seek(end)
        raw.write(bytes(255 - byte for byte in last))
    os.utime(place.file, ns=(before.st_atime_ns, before.st_mtime_ns))


def reused(here: Path, statements: str) -> list[ByteRange]:
    """The places of the tensors that the next compile copies."""
    update = compiled(here, statements, dry_run=True)
    assert update is not None
    tensors = update.reused.values()
    return [ByteRange(here / "out" / each.file, each.offset, each.size) for each in tensors]


def refused(here: Path, statements: str, changed: str) -> None:
    """Compile into the changed folder: it is refused, and stays; `force` replaces a model alone."""
    before = content(here / "out")
    with pytest.raises(TargetExists) as caught:
        compiled(here, statements)
    assert f"error[C301]: was changed since gptailor wrote it: {changed}\n" in str(caught.value)
    mine = here / "out" / "mine.txt"
    is_theirs = os.path.lexists(mine)
    help_ = f"move {mine.name} to another folder; then " if is_theirs else ""
    assert f"help: {help_}--force replaces it" in str(caught.value)
    assert content(here / "out") == before
    if is_theirs:
        with pytest.raises(CheckpointError, match=r"got a folder that also contains mine\.txt"):
            compiled(here, statements, force=True)
        assert content(here / "out") == before
        mine.rename(here / "mine.txt")
    compiled(here, statements, force=True)


def fresh(here: Path, statements: str) -> dict[str, bytes]:
    """The files of a compile that copies nothing from the folder, under the same name."""
    compiled(here, statements, force=True)
    return content(here / "out")


def test_the_first_compile_updates_nothing(here: Path) -> None:
    assert compiled(here, MERGED) is None


def test_only_changed_tensors_are_computed(here: Path) -> None:
    compiled(here, MERGED)
    changed = "L0..L1 from base, math by slerp(0.3)\nL2..L3 from base, math by slerp(0.6)\n"
    update = compiled(here, changed)
    assert update is not None
    assert update.changes == (("~", "L2..L3"),)
    assert {name.split(".")[2] for name in update.reused} == {"0", "1"}
    out = content(here / "out")
    assert update.computed == sum(place.size for place in update.reused.values())
    assert out == fresh(here, changed)


def test_dropping_a_layer_renumbers_the_others_without_computing(here: Path) -> None:
    compiled(here, MERGED)
    cut = "L0 from base, math by slerp(0.3)\ndrop L1\nL2..L3 from base, math by slerp(0.3)\n"
    update = compiled(here, cut)
    assert update is not None
    assert (update.changes, update.computed) == ((("−", "L1"),), 0)
    assert content(here / "out") == fresh(here, cut)


def test_an_unchanged_output_is_not_computed(here: Path) -> None:
    compiled(here, MERGED)
    before = content(here / "out")
    update = compiled(here, MERGED)
    assert update is not None
    assert (update.changes, update.computed) == ((), 0)
    assert content(here / "out") == before


def test_a_changed_source_is_computed_again(here: Path) -> None:
    compiled(here, MERGED)
    shutil.copyfile(here / "base" / "model.safetensors", here / "math" / "model.safetensors")
    update = compiled(here, MERGED)
    assert update is not None
    assert update.changes == (("~", "L0..L3"),)
    assert not update.reused
    assert content(here / "out") == fresh(here, MERGED)


def test_another_dtype_is_computed_again(here: Path) -> None:
    compiled(here, MERGED)
    update = compiled(here, MERGED, dtype="float16")
    assert update is not None
    assert not update.reused


@pytest.mark.parametrize("how", ["edited", "added", "removed", "touched", "folder", "link"])
def test_a_folder_that_somebody_changed_is_refused(here: Path, how: str) -> None:
    compiled(here, MERGED)
    card, extra = here / "out" / "README.md", here / "out" / "mine.txt"
    if how == "added":
        extra.write_text("dear")
    elif how == "folder":
        extra.mkdir()
    elif how == "link":
        extra.symlink_to("nowhere")
    elif how == "removed":
        card.unlink()
    elif how == "touched":
        os.utime(card)
    else:
        card.write_text("mine")
    name = "mine.txt" if how in ("added", "folder", "link") else "README.md"
    refused(here, "L0 from math\n", name)


def test_another_plan_does_not_replace_the_folder(here: Path) -> None:
    compiled(here, MERGED)
    before = content(here / "out")
    other = gptailor.loads(HEAD.format(family=here) + "L0 from math\n", name="other.tailor")
    with pytest.raises(TargetExists, match=r"exists already\n"):
        gptailor.compile(other, here / "out")
    assert content(here / "out") == before


def test_a_plan_without_a_file_replaces_nothing(here: Path) -> None:
    plan = gptailor.loads(HEAD.format(family=here) + MERGED)
    gptailor.compile(plan, here / "out")
    with pytest.raises(TargetExists, match=r"exists already\n"):
        gptailor.compile(plan, here / "out")


def test_a_copy_of_the_folder_in_its_place_is_refused(here: Path) -> None:
    compiled(here, MERGED)
    shutil.copytree(here / "out", here / "copy")  # with the times of writing
    shutil.rmtree(here / "out")
    (here / "copy").rename(here / "out")
    refused(here, MERGED, "README.md, config.json and generation_config.json and 4 more")


def test_a_folder_that_is_replaced_during_an_update_is_not_mixed(here: Path) -> None:
    """Another compile ends into the same folder while this one copies from it."""
    compiled(here, MERGED)
    other = gptailor.loads(HEAD.format(family=here) + "L0..L3 from base, math by slerp(0.9)\n")
    done: list[object] = []

    def interfere(event: object) -> None:
        if isinstance(event, BytesDone) and not done:
            done.append(gptailor.compile(other, here / "out", force=True))

    plan = gptailor.loads(HEAD.format(family=here) + MERGED, name="p.tailor")
    with pytest.raises(TargetExists, match="changed since gptailor wrote it"):
        gptailor.compile(plan, here / "out", on_event=interfere)
    after = content(here / "out")
    gptailor.compile(other, here / "out", force=True)
    assert content(here / "out") == after


def test_an_update_of_a_locked_folder_writes_a_lock(here: Path) -> None:
    compiled(here, MERGED, locking=True)
    compiled(here, "L0 from math\n")
    updated = content(here / "out")
    compiled(here, "L0 from math\n", locking=True, force=True)
    assert content(here / "out")["plan.tailor.lock"] == updated["plan.tailor.lock"]


def test_many_changed_files_are_counted(here: Path) -> None:
    compiled(here, MERGED)
    for number in range(5):
        (here / "out" / f"{number}.txt").touch()
    with pytest.raises(TargetExists, match=r"0\.txt, 1\.txt and 2\.txt and 2 more"):
        compiled(here, MERGED)


def test_a_dry_run_shows_the_change_and_writes_nothing(here: Path) -> None:
    compiled(here, MERGED)
    before = content(here / "out")
    update = compiled(here, "L0 from base, math by slerp(0.3)\n", dry_run=True)
    assert update is not None
    assert update.changes == (("~", "L1..L3"),)
    assert content(here / "out") == before


@pytest.mark.parametrize("damage", ["removed", "torn", "foreign"])
def test_without_its_record_a_folder_stays(here: Path, damage: str) -> None:
    compiled(here, MERGED)
    (record,) = (here / "cache" / "gptailor" / "outputs").iterdir()
    if damage == "removed":
        record.unlink()
    else:
        record.write_text("{" if damage == "torn" else '{"value": {}, "sha256": ""}')
    with pytest.raises(TargetExists, match=r"exists already\n"):
        compiled(here, MERGED)


def test_another_folder_in_its_place_is_not_an_update(here: Path) -> None:
    compiled(here, MERGED)
    shutil.move(here / "out", here / "elsewhere")
    assert compiled(here, MERGED) is None


def test_an_update_makes_the_lock_of_a_fresh_compile(here: Path) -> None:
    compiled(here, MERGED, locking=True)
    changed = "L0..L2 from base, math by slerp(0.3)\n"
    compiled(here, changed, locking=True)
    updated = content(here / "out")
    compiled(here, changed, locking=True, force=True)
    assert content(here / "out") == updated


@pytest.mark.usefixtures("one_thread")
def test_fitted_layers_change_with_the_plan_and_its_texts(here: Path) -> None:
    text = here / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"a cat {n} on a mat"}) + "\n" for n in range(400)))
    healed = f'drop L1\nheal L0 on "{text}" tokens 1024 rank 2\n'
    compiled(here, healed)
    update = compiled(here, healed)
    assert update is not None
    assert update.changes == ()
    assert not update.reused
    update = compiled(here, healed.replace("seed 0", "seed 1").replace("rank 2", "rank 1"))
    assert update is not None
    assert update.changes == (("~", "L0"),)
    text.write_text(text.read_text() + json.dumps({"text": "a dog"}) + "\n")
    update = compiled(here, healed)
    assert update is not None
    assert update.changes == (("~", "L0"),)


def test_a_full_disk_leaves_the_old_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(here, MERGED)
    before = content(here / "out")
    from gptailor.checkpoint.write.output_file import OutputFile

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OutputFile, "copy", full)
    with pytest.raises((gptailor.TailorError, OSError)):
        compiled(here, "L0 from math\n")
    monkeypatch.undo()
    assert content(here / "out") == before


def test_an_expectation_changes_no_bytes_and_no_lock(here: Path) -> None:
    """Its text isn't even read; a text of its plan's copy is next to the other one."""
    compiled(here, MERGED, locking=True)
    before, lock = content(here / "out"), read_lock(here / "out" / LOCK_FILE)
    update = compiled(here, f'{MERGED}expect nll("gone.txt") <= base\n', locking=True)
    assert update is not None
    assert (update.changes, update.computed) == ((), 0)
    after = content(here / "out")
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"plan.tailor", "README.md"}
    assert read_lock(here / "out" / LOCK_FILE) == lock


def test_a_file_that_changed_with_its_time_kept_is_refused(here: Path) -> None:
    compiled(here, MERGED)
    damaged(reused(here, MERGED)[3])
    refused(here, MERGED, "model.safetensors")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_reused_tensor_must_have_its_digest_in_the_lock(here: Path, threads: int) -> None:
    """A disk may return other bytes without a change of any time."""
    compiled(here, MERGED, locking=True)
    before = content(here / "out")
    place = reused(here, MERGED)[3]
    damaged(place)
    (record,) = (here / "cache" / "gptailor" / "outputs").iterdir()
    kept = kept_json(record)
    now = place.file.stat()
    kept["files"][place.file.name] = [now.st_size, now.st_mtime_ns, now.st_ctime_ns]
    keep_json(record, kept)
    assert place in reused(here, MERGED)
    with pytest.raises(TargetExists, match=r"wrote it: model\.safetensors"):
        compiled(here, MERGED, compute=gptailor.ComputeOptions(threads=threads))
    compiled(here, MERGED, force=True, locking=True)
    assert content(here / "out") == before


def test_a_changed_source_with_an_equal_time_is_computed_again(here: Path) -> None:
    compiled(here, MERGED)
    merged = open_checkpoint(here / "math").tensors["model.layers.0.mlp.down_proj.weight"]
    damaged(ByteRange(merged.file, merged.offset, merged.spec.size))
    assert not reused(here, MERGED)
    compiled(here, MERGED)
    assert content(here / "out") == fresh(here, MERGED)


def test_a_folder_that_another_compile_updates_at_the_same_time_is_kept(here: Path) -> None:
    """Both update it from one plan's file; the one that ends last is refused."""
    compiled(here, MERGED)
    done: list[object] = []

    def interfere(_: object) -> None:
        if not done:
            done.append(compiled(here, "L1 from math\n"))

    with pytest.raises(TargetExists, match="changed since gptailor wrote it"):
        compiled(here, "L0 from math\n", on_event=interfere)
    left = content(here / "out")
    assert {path.name for path in here.iterdir()} == {"base", "math", "out", "cache"}
    assert compiled(here, "L1 from math\n") is not None
    assert content(here / "out") == left == fresh(here, "L1 from math\n")


def test_a_folder_removed_during_an_update_is_an_error(here: Path) -> None:
    """Another one may have stood in its place for a moment."""
    compiled(here, MERGED)

    def interfere(_: object) -> None:
        shutil.rmtree(here / "out", ignore_errors=True)

    with pytest.raises(TargetExists, match=r"wrote it: README\.md"):
        compiled(here, "L0 from math\n", on_event=interfere)
    assert {path.name for path in here.iterdir()} == {"base", "math", "cache"}
    assert compiled(here, "L0 from math\n") is None


@pytest.mark.parametrize("how", ["added", "edited"])
def test_a_file_that_appears_while_the_folder_is_updated_is_kept(here: Path, how: str) -> None:
    compiled(here, MERGED)
    mine = here / "out" / ("mine.txt" if how == "added" else "README.md")

    def interfere(_: object) -> None:
        mine.write_text("mine")

    with pytest.raises(TargetExists, match=f"changed since gptailor wrote it: {mine.name}"):
        compiled(here, "L0 from math\n", on_event=interfere)
    assert mine.read_text() == "mine"
    assert {path.name for path in here.iterdir()} == {"base", "math", "out", "cache"}


def test_a_folder_that_appears_while_force_writes_is_kept(here: Path) -> None:
    def interfere(_: object) -> None:
        (here / "out").mkdir(exist_ok=True)
        (here / "out" / "mine.txt").write_text("mine")

    with pytest.raises(gptailor.TailorError, match="a folder without a model"):
        compiled(here, MERGED, force=True, on_event=interfere)
    assert (here / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("exchanged", [False, True])
def test_an_output_is_updated_after_a_kill_at_the_exchange(
    here: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool
) -> None:
    swap = SideFolder.swap

    def killed(self: SideFolder, *, force: bool) -> None:
        if exchanged:
            swap(self, force=force)
        raise KeyboardInterrupt

    compiled(here, MERGED)
    with monkeypatch.context() as patched:
        patched.setattr(SideFolder, "swap", killed)
        with pytest.raises(KeyboardInterrupt):
            compiled(here, "L0 from math\n")
    update = compiled(here, MERGED)
    assert update is not None
    assert update.copied > 0
    assert content(here / "out") == fresh(here, MERGED)
