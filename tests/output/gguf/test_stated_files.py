"""GGUF files that a plan states: where they are written, their lock, and their verification."""

from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.gguf.header import PLAN_KEY, read_gguf
from gptailor.cli import main as cli
from gptailor.evaluation.space_trials import Trials
from gptailor.output.lock import read_lock
from gptailor.plan.events import BytesDone
from gptailor.plan.faults import PlanError
from gptailor.searching.space.decode import expecting
from gptailor.searching.space.space import space_of
from tests.support.tiny import tiny_model
from tests.support.tiny_bytes import model
from tests.support.vocabularies import TEXT

pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

CUT = 'tailor 1\nmodel base = "./base"\ndrop L1\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model and a text of 780 tokens."""
    model(tmp_path / "base", layers=3)
    (tmp_path / "text.txt").write_text(TEXT * 4, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stating(*lines: str) -> gptailor.Plan:
    """Return the plan of a cut with these further lines."""
    Path("p.tailor").write_text(CUT + "\n".join(lines))
    return gptailor.load("p.tailor")


def values(file: Path) -> dict[str, bytes]:
    """Return the bytes of a file's tensors, with their types, and all metadata but the plan."""
    header, raw = read_gguf(file), file.read_bytes()
    results = {
        name: tensor.spec.dtype.encode() + raw[tensor.offset : tensor.offset + tensor.spec.size]
        for name, tensor in header.tensors.items()
    }
    named = {PLAN_KEY, "gptailor.padding", "general.name"}
    facts = {key: value for key, value in header.facts.items() if key not in named}
    return results | {"facts": repr(facts).encode()}


def test_a_stated_file_has_the_bytes_of_the_option(here: Path) -> None:
    made = gptailor.compile(stating("gguf q8_0"), "out.gguf")
    assert made.file_type == "Q8_0"
    option = gptailor.compile(stating(), "other.gguf", quantize="q8_0")
    assert values(made.folder) == values(option.folder)
    weighted = gptailor.compile(stating('gguf q4_k_m on "text.txt"'), "weighted.gguf")
    option = gptailor.compile(stating(), "o.gguf", quantize="q4_k_m", imatrix="text.txt")
    assert values(weighted.folder) == values(option.folder)


def test_stated_files_are_written_next_to_the_folder_and_kept_in_its_plan(here: Path) -> None:
    plan = stating("gguf q8_0  # for laptops", 'gguf q4_0 on "text.txt"')
    made = gptailor.compile(plan, "deep/out")
    assert [file.folder.name for file in made.gguf] == ["out-Q4_0.gguf", "out-Q8_0.gguf"]
    kept = (here / "deep/out/plan.tailor").read_text()
    assert 'gguf q4_0 on "../../text.txt"\ngguf q8_0  # for laptops\n' in kept
    card = (here / "deep/out/README.md").read_text()
    assert "- `out-Q4_0.gguf`, by an importance matrix of `text.txt`\n- `out-Q8_0.gguf`" in card
    in_file = str(read_gguf(made.gguf[0].folder).facts[PLAN_KEY])
    assert 'gguf q4_0 on "../text.txt"' in in_file
    assert "quantised with an importance matrix" in "".join(made.gguf[0].notes)
    assert not made.gguf[1].notes


def test_an_option_replaces_all_statements(here: Path) -> None:
    plan = stating("gguf q8_0", 'gguf q4_0 on "text.txt"')
    made = gptailor.compile(plan, "out", gguf=["f16"])
    assert [file.file_type for file in made.gguf] == ["F16"]
    assert "gguf" not in (here / "out/plan.tailor").read_text()
    plain = gptailor.compile(stating(), "plain", gguf=["f16"])
    assert made.gguf[0].folder.stat().st_size == plain.gguf[0].folder.stat().st_size
    with pytest.raises(CheckpointError, match="expected one statement 'gguf'"):
        gptailor.compile(plan, "one.gguf")
    assert gptailor.compile(plan, "one.gguf", quantize="f32").file_type == "F32"


def test_a_lock_has_the_files_and_a_changed_file_is_found(here: Path) -> None:
    plan = stating("gguf q8_0", "gguf f16")
    made = gptailor.compile(plan, "out", locking=True)
    assert made.lock is not None
    assert made.lock.gguf_files.keys() == {"F16", "Q8_0"}
    assert made.lock.gguf_files == gptailor.lock(plan).gguf_files
    assert read_lock(here / "out/plan.tailor.lock").gguf_files == made.lock.gguf_files
    result = gptailor.verify("out")
    assert result.result == "verified", (result.differences, result.unverified)
    assert result.compared[-2].startswith("out-F16.gguf: ")
    assert "the metadata, " in result.compared[-2]
    file = here / "out-Q8_0.gguf"
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    result = gptailor.verify("out")
    assert result.result == "differs"
    assert result.differences[0].message.startswith("out-Q8_0.gguf: tensor 'output")
    assert gptailor.verify("out", tensors_only=True).result == "differs"
    file.unlink()
    result = gptailor.verify("out")
    assert result.result == "unverified"
    assert "out-Q8_0.gguf: the plan has this file, but it is missing" in result.unverified


def test_a_file_of_another_plan_is_found(here: Path) -> None:
    gptailor.compile(stating("gguf f16"), "out")
    other = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L0\n')
    gptailor.compile(other, "out-F16.gguf", quantize="f16", force=True)
    result = gptailor.verify("out")
    assert [each.message for each in result.differences] == [
        "out-F16.gguf: its plan is not the plan of the folder"
    ]
    (here / "out-F16.gguf").write_text("mine")
    assert gptailor.verify("out").result == "differs"


def test_other_files_than_the_locked_ones_are_refused(here: Path) -> None:
    lock = gptailor.lock(stating("gguf f16"))
    gptailor.compile(stating("gguf f16"), "out", locked=lock)
    gptailor.compile(stating("gguf f16"), "alone.gguf", locked=lock)
    with pytest.raises(CheckpointError, match="the plan has Q8_0, but the lock has F16") as caught:
        gptailor.compile(stating("gguf q8_0"), "again", locked=lock)
    assert caught.value.code == "C703"
    gptailor.compile(stating(), "option", gguf=["q8_0"], locked=lock)


def test_a_file_that_can_not_be_made_is_refused_at_its_statement(here: Path) -> None:
    (here / "short.txt").write_text("few words")
    for line, code, words in [
        ('gguf q4_0 on "short.txt"', "C806", '"short.txt"'),
        ('gguf q4_0 on "none.txt"', "C801", '"none.txt"'),
    ]:
        plan = stating("gguf f16", line)
        faults = gptailor.check(plan)
        assert [fault.code for fault in faults] == [code]
        with pytest.raises(PlanError) as caught:
            gptailor.compile(plan, "out")
        assert [fault.code for fault in caught.value.faults] == [code]
        for fault in (faults[0], caught.value.faults[0]):
            assert fault.span is not None
            assert Path("p.tailor").read_text()[fault.span.start : fault.span.end] == words
    assert not list(here.glob("out*"))


def test_a_dry_run_has_the_size_of_each_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stating("gguf f16", "gguf q8_0", "expect bytes(gguf=f16) <= 1k")
    assert cli.run(["compile", "p.tailor", "-o", "out", "--dry-run"]) == 0
    planned, warned = capsys.readouterr()
    assert "  gguf        f16\n" in planned
    assert "it has" not in warned
    assert "'expect bytes(gguf=f16) <= 1k' isn't met: out-F16.gguf has" in warned
    assert cli.run(["compile", "p.tailor", "-o", "out"]) == 0
    for name in ("out-F16.gguf", "out-Q8_0.gguf"):
        assert f"{(here / name).stat().st_size:,} bytes in {name}" in planned


def test_a_size_names_the_type_of_the_only_file() -> None:
    wishes = (
        "expect bytes(gguf) <= 1M\n"
        'search { minimize nll("t"); minimize bytes(gguf)\n require bytes(gguf) <= 1M }'
    )
    plan = gptailor.loads(f"{CUT}gguf q8_0\n{wishes}")
    assert plan.search is not None
    measures = (plan.search.objectives[1], *plan.search.requires, *plan.expects)
    assert [each.arguments["gguf"] for each in measures] == ["q8_0"] * 3
    assert "expect bytes(gguf) <= 1M\n" in gptailor.format(f"{CUT}gguf q8_0\n{wishes}")
    with pytest.raises(PlanError, match="add one statement 'gguf' to the plan"):
        gptailor.loads(f"{CUT}gguf q8_0\ngguf f16\n{wishes}")


def test_a_found_plan_keeps_the_files_of_its_space() -> None:
    space = gptailor.loads('tailor 1\nmodel base = "./base"\nmaybe drop L1\ngguf q8_0\n')
    closed = gptailor.loads('tailor 1\nmodel base = "./base"\n')
    assert expecting(closed, space).gguf == space.gguf


@pytest.mark.parametrize("drop", ["drop L1", "maybe drop L1"])
def test_check_finds_architectures_that_gguf_lacks(here: Path, drop: str) -> None:
    tiny_model("phi", here / "phi", layers=2)
    text = (
        f'tailor 1\nmodel base = "./phi"\n{drop}\ngguf q8_0\nexpect bytes(gguf=f16) <= 1M\n'
        "expect bytes() <= 1M\n"
    )
    faults = gptailor.check(gptailor.loads(text, folder="."))
    assert {fault.code for fault in faults} == {"C306"}
    assert all("gptailor can't write the model type 'phi' as GGUF" in f.message for f in faults)
    spans = [fault.span for fault in faults if fault.span is not None]
    assert [text[span.start : span.end] for span in spans] == ["gguf q8_0", "f16"]


@pytest.mark.parametrize("after", [1, 30_000])
def test_an_interrupt_leaves_complete_outputs_alone(here: Path, after: int) -> None:
    done = 0

    def stop(event: object) -> None:
        nonlocal done
        done += event.size if isinstance(event, BytesDone) else 0
        if done >= after:
            raise KeyboardInterrupt

    before = set(here.iterdir())
    with pytest.raises(KeyboardInterrupt):
        gptailor.compile(stating("gguf q8_0", "gguf f16"), "out", on_event=stop)
    for left in set(here.iterdir()) - before - {here / "p.tailor"}:
        assert gptailor.verify(left).result == "verified"


def test_the_text_of_a_gguf_file_is_not_read_by_trials(here: Path) -> None:
    text = 'gguf q4_0 on "text.txt"\nsearch { minimize nll("other.txt") }'
    space = stating("maybe drop L0", text)
    trials = Trials.__new__(Trials)
    trials.plan, trials.folder, trials.stated = space, here, ()
    assert trials.files == ()
    without = stating("maybe drop L0", 'search { minimize nll("other.txt") }')
    assert space_of(space, 3).digest == space_of(without, 3).digest
