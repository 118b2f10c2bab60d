"""Plans on plans that are bridged, healed or cut: each equals the plan on the compiled folder.

To the byte: the fits of the inner plan are made once, rounded as the folder's tensors are, and kept
by their content.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli.main import run
from gptailor.evaluation.fits.repair import stitch
from gptailor.output.lock import read_lock
from gptailor.plan.events import Event, FitResult, Progress
from gptailor.plan.faults import PlanError, errors
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from tests.support.preloaded import Child, Preloaded
from tests.support.tiny import letters, tiny_model
from tests.support.tiny_adapter import adapter
from tests.support.vocabularies import TEXT, write_byte_level

HEAL = 'heal on "text.txt" tokens 512 rank 2'
BRIDGE = 'bridge on "text.txt" tokens 400'
STEPS = {
    "step1": f'model base = "./base"\ndrop L2\n{HEAL}',
    "step2": 'model base = "./step1.tailor"\nmodel first = "./base"\ndrop L1\n'
    'heal from first on "text.txt" tokens 512 rank 2',
    "step3": 'model base = "./step2.tailor"\nL0 = merge(L0 base, L1 base, 0.25)',
}

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache", "brief_answers")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, calibration texts, and a chain of three plans."""
    folder = tmp_path_factory.mktemp("chain")
    tiny_model("llama", folder / "base", layers=5, dtype="bfloat16")
    tiny_model("llama", folder / "math", layers=5, dtype="float32", seed=1)
    tiny_model("gpt2", folder / "gpt2", layers=5)
    tiny_model("qwen3_moe", folder / "moe", layers=4, num_experts=6)
    tied = {"vocab_size": 368, "tie_word_embeddings": True, "bos_token_id": 356}
    tiny_model("llama", folder / "tied", layers=4, eos_token_id=358, **tied)
    write_byte_level(folder / "tied")
    (folder / "text.txt").write_text(letters(1500))
    (folder / "words.txt").write_text(TEXT.replace("\r", "") * 6, encoding="utf-8")
    rows = [json.dumps({"text": letters(30, seed)}) for seed in range(16)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    for name, text in STEPS.items():
        write(folder, name, text)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "work"))


def write(folder: Path, name: str, text: str) -> Plan:
    """Write a plan's file, and read it."""
    path = folder / f"{name}.tailor"
    path.write_text(f"tailor 1\n{text}\n")
    return gptailor.load(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a compiled folder's files, except those that name the plan."""
    named = {"README.md", "plan.tailor", "plan.tailor.lock"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in named}


def fits(events: list[Event]) -> list[str]:
    """Return the fits that were made, not reused, in order."""
    begun = (e for e in events if _learning(e) or _bridging(e))
    return ["heal" if _learning(event) else "bridge" for event in begun]


def _learning(event: Event) -> bool:
    return isinstance(event, Progress) and event.what == "learning"


def _bridging(event: Event) -> bool:
    return isinstance(event, Progress) and event.what == "bridging" and not event.done


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        pytest.param(
            f'model base = "./base"\nmodel math = "./math"\n'
            f"L0..L1 from base, math by slerp(0.3)\ndrop L3\n{BRIDGE}",
            f"L0 = merge(L0 base, L2 base, 0.25)\ndrop L1\n{BRIDGE}",
            id="bridge",
        ),
        pytest.param(
            f'model base = "./base"\ndtype float32\ndrop L2\n{BRIDGE}\n{HEAL}',
            f"L0 = merge(L0 base, L2 base, 0.25)\ndrop L1\n{HEAL}",
            id="heal",
        ),
        pytest.param(
            'model base = "./base"\nwidth 16 on "text.txt" tokens 400\ndrop L2',
            'drop L1\nwidth 8 on "text.txt" tokens 400',
            id="width",
        ),
        pytest.param(f'model base = "./gpt2"\ndrop L2\n{BRIDGE}', f"drop L1\n{HEAL}", id="biases"),
        pytest.param(
            'model base = "./moe"\nexperts 3 on "text.txt" tokens 400',
            "L0 = merge(L0 base, L2 base, 0.25)\ndrop L1",
            id="experts",
        ),
        pytest.param(
            'model base = "./tied"\nvocabulary 290 on "words.txt"\ndrop L1',
            'drop L1\nbridge on "words.txt" tokens 400',
            id="vocabulary",
        ),
        pytest.param(
            'model base = "./tied"\nvocabulary 300 on "words.txt"\ndrop L1\n'
            'heal on "words.txt" tokens 512 rank 2',
            'drop L1\nvocabulary 280 on "words.txt"',
            id="vocabulary and heal",
        ),
    ],
)
def test_a_plan_on_a_fitted_plan_is_the_plan_on_its_folder(
    folder: Path, inner: str, outer: str
) -> None:
    on_plan = write(folder, "outer", f'model base = "./inner.tailor"\n{outer}')
    inner_plan = write(folder, "inner", inner)
    assert not errors(gptailor.check(on_plan))
    gptailor.compile(on_plan, folder / "made")  # fits in memory
    gptailor.compile(inner_plan, folder / "stage")
    on_folder = write(folder, "outer", f'model base = "./stage"\n{outer}')
    gptailor.compile(on_folder, folder / "expected")
    expected = contents(folder / "expected")
    assert contents(folder / "made") == expected
    events: list[Event] = []
    gptailor.compile(on_plan, folder / "kept", on_event=events.append)  # kept ones
    assert contents(folder / "kept") == expected
    assert not fits(events)
    live = stitch(on_plan).state_dict()
    again = stitch(on_folder).state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in again.items())


def test_three_steps_are_three_folders(folder: Path) -> None:
    events: list[Event] = []
    gptailor.compile(folder / "step3.tailor", folder / "made", on_event=events.append)
    assert fits(events) == ["heal", "heal"]
    assert [e.word for e in events if isinstance(e, FitResult)] == ["heal", "heal"]
    base = "./base"
    for name, text in STEPS.items():
        head = re.sub(r'model base = "[^"]*"', f'model base = "{base}"', text)
        events.clear()
        gptailor.compile(write(folder, "alone", head), folder / name, on_event=events.append)
        # the first plan's fit is shared; another folder below is another plan's
        assert fits(events) == (["heal"] if name == "step2" else [])
        base = f"./{name}"
    assert contents(folder / "made") == contents(folder / "step3")


def test_a_merge_with_a_model_that_isnt_the_base(folder: Path) -> None:
    text = 'model base = "./base"\nmodel deep = "./{}"\nL0..L3 from base, deep by slerp(0.4)'
    gptailor.compile(folder / "step1.tailor", folder / "stage")
    for name in ("step1.tailor", "stage"):
        gptailor.compile(write(folder, "outer", text.format(name)), folder / f"out-{name}")
    assert contents(folder / "out-step1.tailor") == contents(folder / "out-stage")


def test_a_lock_has_each_steps_texts_and_compares_them(folder: Path) -> None:
    plan = gptailor.load(folder / "step3.tailor")
    gptailor.compile(plan, folder / "out", locking=True)
    lock = read_lock(folder / "out" / "plan.tailor.lock")
    assert {name: text.tokens for name, text in lock.texts.items()} == {
        "base.heal": 512,
        "base.base.heal": 512,
    }
    assert [*lock.models["base.base"].files] == ["step1.tailor"]
    sketched = {name for name, tensor in lock.tensors.items() if tensor.sketch}
    assert sketched == {n for n in lock.tensors if "_proj" in n}
    card = (folder / "out" / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| base") and "| heal |" in line]
    digest = lock.texts["base.heal"].file.sha256
    assert rows == [
        f"| {name} | `{step}.tailor` | heal | `text.txt` | 512 | `{digest}` |"
        for name, step in (("base.base", "step1"), ("base", "step2"))
    ]
    assert "and trained for a short while" in card
    anew = gptailor.lock(plan)
    assert (anew.tensors, anew.texts) == (lock.tensors, lock.texts)
    assert gptailor.verify(folder / "out").result == "verified"
    gptailor.compile(plan, folder / "again", locked=lock)

    (folder / "text.txt").write_text(letters(1500, seed=1))
    with pytest.raises(CheckpointError, match=r"text of 'base\.heal'") as caught:
        gptailor.compile(plan, folder / "third", locked=lock)
    assert caught.value.code == "C704"
    assert not (folder / "third").exists()
    result = "; ".join(each.message for each in gptailor.verify(folder / "out").differences)
    assert "'base.base.heal'" in result
    (folder / "text.txt").unlink()
    assert gptailor.verify(folder / "out").result == "unverified"


def test_another_inner_text_and_other_weights_are_differences(folder: Path) -> None:
    gptailor.compile(folder / "step2.tailor", folder / "out", locking=True)
    write(folder, "step1", STEPS["step1"].replace("drop L2", "drop L3"))
    [difference] = gptailor.verify(folder / "out").differences
    assert (difference.name, difference.model) == ("step1.tailor", "base")
    lock = folder / "out" / "plan.tailor.lock"
    with pytest.raises(CheckpointError, match=r"'step1\.tailor' of model 'base'"):
        gptailor.compile(folder / "step2.tailor", folder / "again", locked=lock)
    write(folder, "step1", STEPS["step1"])
    weights = folder / "out" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-3] ^= 64
    weights.write_bytes(raw)
    assert gptailor.verify(folder / "out").result == "differs"


def test_show_and_a_dry_run_have_every_step(
    folder: Path, capsys: pytest.CaptureFixture[str], own_cache: Path
) -> None:
    drawn = str(gptailor.show(folder / "step3.tailor", width=400))
    heads = [line.partition(":")[0] for line in drawn.splitlines() if " layers of " in line]
    assert [Path(head).name for head in heads] == [
        "step1.tailor",
        "step2.tailor",
        "step3.tailor",
    ]
    assert drawn.count("+ learns by 'heal'") == 2
    assert 'heal    on "text.txt" tokens 512 rank 2' in drawn
    plan, out = str(folder / "step3.tailor"), folder / "out"
    assert run(["compile", plan, "-o", str(out), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"healing base\.base +about .* for 500 tokens", output)
    assert re.search(r"healing base +about .* for 500 tokens", output)
    assert output.index("base.base  ") < output.index("base  ")
    assert not out.exists()
    assert not (own_cache / "gptailor" / "inner").exists()


def test_a_killed_run_resumes_at_its_step(folder: Path) -> None:
    plan = gptailor.load(folder / "step3.tailor")

    def stopped_after(count: int) -> Callable[[Event], None]:
        seen: list[Event] = []

        def on_event(event: Event) -> None:
            seen.append(event)
            if len(fits(seen)) > count:
                raise KeyboardInterrupt

        return on_event

    for finished in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            gptailor.compile(plan, folder / "out", on_event=stopped_after(finished))
        assert not (folder / "out").exists()
    events: list[Event] = []
    gptailor.compile(plan, folder / "out", on_event=events.append)
    assert fits(events) == ["heal"]
    reused = [e for e in events if isinstance(e, Progress) and e.what == "healing" and e.reused]
    assert len(reused) == 1


SCRIPT = """
import os, sys, time, torch, gptailor
os.environ["XDG_CACHE_HOME"] = sys.argv[4]
from gptailor.evaluation.fits.heal import train
from gptailor.plan.events import Progress
torch.set_num_threads(1)
train._SAVE_SECONDS = -1.0
def on_event(event):
    match event:
        case Progress("fitting", at=at):
            print(at, file=sys.stderr, flush=True)
        case Progress("healing", done, reused=reused):
            print("reused" if reused else done, file=sys.stderr, flush=True)
            time.sleep(float(sys.argv[3]))
gptailor.compile(gptailor.load(sys.argv[1]), sys.argv[2], on_event=on_event)
"""


def test_a_process_that_is_killed_in_the_second_step_resumes_there(
    folder: Path, preloaded: Preloaded
) -> None:
    def started(output: str, seconds: float) -> Child:
        arguments = folder / "step3.tailor", folder / output, seconds, folder / f"cache-{output}"
        return preloaded.start(SCRIPT, *arguments, cwd=folder)

    process = started("out", 0.05)
    while "(step2.tailor)\n0\n1\n2\n" not in process.error() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "out").exists()
    _, errors = started("out", 0).communicate()
    first, second = errors.split("base (step2.tailor)\n")
    assert first.splitlines() == ["base.base (step1.tailor)", "reused"]
    assert int(second.splitlines()[0]) >= 2
    started("other", 0).communicate()
    assert contents(folder / "out") == contents(folder / "other")


def test_a_search_fits_the_plan_below_once(folder: Path) -> None:
    search = 'search { minimize nll("rows.jsonl"); trials 4 }'
    space = write(folder, "space", f'model base = "./step1.tailor"\ndrop any 1 of L0..L3\n{search}')
    events: list[object] = []
    gptailor.search(space, folder / "run", on_event=events.append)
    assert sum(map(_learning, events)) == 1
    best = gptailor.load(folder / "run" / "best.tailor")
    gptailor.compile(best, folder / "out")
    gptailor.compile(folder / "step1.tailor", folder / "stage")
    dropped = best.drops[0].position
    on_folder = write(folder, "outer", f'model base = "./stage"\ndrop L{dropped}')
    gptailor.compile(on_folder, folder / "expected")
    assert contents(folder / "out") == contents(folder / "expected")


def test_evaluations_of_a_plan_and_of_its_folder_are_equal(folder: Path) -> None:
    gptailor.compile(folder / "step2.tailor", folder / "out")
    targets = [folder / "step2.tailor", folder / "out", folder / "step1.tailor"]
    result = gptailor.evaluate(targets, 'nll("rows.jsonl")', folder=folder)
    on_plan, on_folder, first = (entry.outcome.value for entry in result.results)
    assert on_plan == on_folder
    assert on_plan != first


def test_commands_compare_with_a_fitted_plan(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    healed = 'model base = "./base"\nmodel healed = "./step1.tailor"\ndrop L1'
    expecting = 'expect nll("rows.jsonl") <= 2 * healed\nexpect kl("rows.jsonl", from=healed) < 9'
    write(folder, "outer", f"{healed}\n{expecting}")
    assert run(["test", "outer.tailor"]) == 0
    assert "fitting the plan inside, base (step1.tailor)" in capsys.readouterr().err
    objective = 'kl("rows.jsonl", from=healed)'
    assert run(["eval", "outer.tailor", "-O", objective, "--no-speed", "--format", "json"]) == 0
    assert run(["generate", "step2.tailor", "a stitch", "--tokens", "2"]) == 0
    search = f"search {{ minimize {objective}; trials 2 }}"
    space = write(folder, "space", healed.replace("L1", "any 1 of L0..L3") + f"\n{search}")
    assert gptailor.search(space, folder / "run").plan.drops


def test_a_fitted_plan_may_teach(folder: Path) -> None:
    text = 'model base = "./base"\nmodel taught = "./{}"\ndrop L2\n'
    text += 'heal from taught on "text.txt" tokens 512 rank 2'
    gptailor.compile(folder / "step1.tailor", folder / "stage")
    for name in ("step1.tailor", "stage"):
        gptailor.compile(write(folder, "outer", text.format(name)), folder / f"out-{name}")
    assert contents(folder / "out-step1.tailor") == contents(folder / "out-stage")


def test_an_unchanged_chain_is_not_written_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compile", str(folder / "step3.tailor"), "-o", str(folder / "out")]
    assert run(command) == 0
    assert "fitting the plan inside, base.base (step1.tailor)" in capsys.readouterr().err
    assert run(command) == 0
    assert "nothing changed" in capsys.readouterr().out
    write(folder, "step3", STEPS["step3"].replace("0.25", "0.5"))
    assert run(command) == 0
    assert "~ L0" in capsys.readouterr().out


def test_a_gguf_file_of_a_chain_is_locked_and_verified(folder: Path) -> None:
    heal = 'heal on "words.txt" tokens 512 rank 2'
    write(folder, "inner", f'model base = "./tied"\ndrop L2\n{heal}')
    gptailor.compile(folder / "inner.tailor", folder / "stage")
    locked = []
    for name in ("inner.tailor", "stage"):
        plan = write(folder, "outer", f'model base = "./{name}"\ndrop L1')
        locked.append(gptailor.compile(plan, folder / "out.gguf", locking=True, force=True).lock)
        assert gptailor.verify(folder / "out.gguf").result == "verified"
    made, expected = ({n: t.sha256 for n, t in lock.gguf.tensors.items()} for lock in locked)
    assert made == expected


def test_a_cache_that_cant_be_written_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    with pytest.raises(CheckpointError, match="set XDG_CACHE_HOME") as caught:
        gptailor.compile(folder / "step2.tailor", folder / "out")
    assert caught.value.code == "C305"
    assert not (folder / "out").exists()


# -------------------------------------------------------------------------------------- bad input


def said(text: str, folder: Path) -> str:
    """Return the faults of a plan as people see them."""
    return "\n".join(map(str, errors(gptailor.check(write(folder, "outer", text)))))


def test_a_circle_of_fitted_plans_is_refused(folder: Path) -> None:
    write(folder, "step1", STEPS["step1"].replace("./base", "./step3.tailor"))
    message = said('model base = "./step3.tailor"', folder)
    assert "M232" in message
    assert "depends on itself" in message
    with pytest.raises(PlanError, match="depends on itself"):
        gptailor.compile(folder / "step2.tailor", folder / "out")


def test_a_fault_of_an_inner_plan_has_its_place_there(folder: Path) -> None:
    write(folder, "step1", STEPS["step1"].replace("text.txt", "nowhere.txt"))
    for name in ("step1", "step3"):
        message = said(f'model base = "./{name}.tailor"', folder)
        assert "C801" in message
        assert re.search(r"step1\.tailor:4:9", message)
    assert run(["compile", str(folder / "step3.tailor"), "-o", str(folder / "out")]) == 1
    assert not (folder / "out").exists()
    write(folder, "step1", STEPS["step1"].replace("drop L2", "drop L2; L9 from base"))
    assert re.search(r"M201.*\n.*step1\.tailor:3:10", said('model base = "./step3.tailor"', folder))


def test_a_short_text_of_an_inner_plan_is_refused_before_a_fit(folder: Path) -> None:
    write(folder, "step2", STEPS["step2"].replace("512", "1600"))
    with pytest.raises(PlanError, match="C806") as caught:
        gptailor.compile(folder / "step3.tailor", folder / "out")
    assert "step2.tailor:5" in str(caught.value)
    assert not (folder / "out").exists()


def test_a_space_isnt_a_model(folder: Path) -> None:
    write(folder, "step1", STEPS["step1"].replace("drop L2", "drop any 1 of L1..L2"))
    message = said('model base = "./step1.tailor"', folder)
    assert "M233" in message
    assert "open choice" in message


def test_an_adapter_on_a_plan_with_a_smaller_vocabulary(folder: Path) -> None:
    write(folder, "cut", 'model base = "./tied"\nvocabulary 290 on "words.txt"')
    rows = {"base_model.model.model.embed_tokens.weight": torch.zeros(368, 16)}
    adapter(folder / "adapter", rows)
    plan = 'model base = "./cut.tailor"\nmodel tuned = base + "./adapter"\nL0 from tuned'
    message = said(plan, folder)
    assert "adapter" in message
    assert "290" in message


def test_a_teacher_with_more_tokens_than_an_inner_plan_is_refused(folder: Path) -> None:
    write(folder, "cut", 'model base = "./tied"\nvocabulary 290 on "words.txt"')
    plan = 'model base = "./cut.tailor"\nmodel first = "./tied"\ndrop L1\n'
    assert "M224" in said(f'{plan}heal from first on "words.txt" tokens 512', folder)


def test_memory_that_holds_no_layer_is_refused(folder: Path) -> None:
    options = gptailor.ComputeOptions(memory=1000)
    with pytest.raises(gptailor.TailorError, match="1,000 bytes are too few for healing"):
        gptailor.compile(folder / "step2.tailor", folder / "out", compute=options)
    assert not (folder / "out").exists()


def test_bounded_memory_gives_the_folders_output(folder: Path) -> None:
    options = gptailor.ComputeOptions(memory="600MB")
    gptailor.compile(folder / "step2.tailor", folder / "out", compute=options)
    gptailor.compile(folder / "step1.tailor", folder / "stage", compute=options)
    on_folder = write(folder, "outer", STEPS["step2"].replace("step1.tailor", "stage"))
    gptailor.compile(on_folder, folder / "expected", compute=options)
    assert contents(folder / "out") == contents(folder / "expected")


def test_a_damaged_kept_file_is_made_again(folder: Path, own_cache: Path) -> None:
    gptailor.compile(folder / "step2.tailor", folder / "out")
    [file] = (own_cache / "gptailor" / "inner").iterdir()
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 64
    file.write_bytes(raw)
    gptailor.compile(folder / "step2.tailor", folder / "again")
    assert contents(folder / "again") == contents(folder / "out")


def test_a_plan_is_prepared_from_headers_alone(folder: Path, own_cache: Path) -> None:
    prepared = prepare(gptailor.load(folder / "step3.tailor"))
    assert len(prepared.resolved.kept) == 3
    assert [*prepared.inner_plans] == ["base.base", "base"]
    assert [*prepared.texts] == ["base.base.heal", "base.heal"]
    assert not prepared.repaired
    assert not os.path.exists(own_cache / "gptailor" / "inner")  # noqa: PTH110
