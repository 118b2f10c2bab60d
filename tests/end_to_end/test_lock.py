"""Locks of whole compilations: their contents, refusals, and results of `verify`."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptailor
from gptailor.checkpoint.cache_folder import keep_json, kept_json
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli import main as cli
from gptailor.output.inputs import work
from gptailor.output.lock import LOCK_FILE, Lock, read_lock
from gptailor.output.lock_recording import plan_digest
from gptailor.output.verify import Verification
from gptailor.plan.bounds import MOST_BYTES
from gptailor.prepare import ready
from tests.support.events import sizes
from tests.support.hub_server import serving

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
L0..L1 from math
merge(L2 base, L2 math, 0.25)
L3 from base, math by ties(0.5)
drop L4
scale L5 by 0.9
"""
SHARDED = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write_models(family: Path, folder: Path) -> Path:
    """Two models, and a plan over them."""
    for name in ("base", "math"):
        shutil.copytree(family / name, folder / name)
    (folder / "p.tailor").write_text(PLAN)
    return folder


@pytest.fixture
def here(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with two models of its own, and a plan over them."""
    monkeypatch.chdir(tmp_path)
    return write_models(family, tmp_path)


@pytest.fixture(scope="module")
def compiled(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was compiled with its lock, with equal models."""
    folder = write_models(family, tmp_path_factory.mktemp("locked"))
    gptailor.compile(gptailor.load(folder / "p.tailor"), folder / "out", locking=True)
    return folder / "out"


@pytest.fixture
def out(here: Path, compiled: Path) -> Path:
    """A copy of it in the current folder."""
    return Path(shutil.copytree(compiled, here / "out"))


def test_a_kept_digest_is_for_making_a_lock_alone(
    here: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.checkpoint.write.digest._SETTLED", 0)
    plan = gptailor.load("p.tailor")
    right = gptailor.compile(plan, here / "right", locking=True).lock
    noted = own_cache / "gptailor" / "digests.json"
    entries = kept_json(noted)
    wrong = {path: [*entry[:-1], "0" * 64] for path, entry in entries.items()}
    keep_json(noted, wrong)
    made = gptailor.compile(plan, here / "made", locking=True).lock
    assert right is not None
    assert made is not None
    files = [digest for model in made.models.values() for digest in model.files.values()]
    assert {digest.sha256 for digest in files} == {"0" * 64}, "they weren't read"
    assert made.tensors == right.tensors
    assert gptailor.lock(plan) == right
    assert gptailor.compile(plan, here / "held", locked=right).lock == right
    with pytest.raises(CheckpointError, match="differs from the lock"):
        gptailor.compile(plan, here / "refused", locked=made)


def flip(path: Path, at: int = -1) -> None:
    """Change a bit of a file, and not its size."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def shard(folder: Path, *, backwards: bool = False) -> None:
    """The same weights in two files, in either order."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors, reverse=backwards)
    half = len(names) // 3
    parts = dict(zip(SHARDED, (names[:half], names[half:]), strict=True))
    for file, its in parts.items():
        save_file({name: tensors[name] for name in its}, folder / file, {"format": "pt"})
    mapped = {name: file for file, its in parts.items() for name in its}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapped}))
    (folder / "model.safetensors").unlink()


def refused(locked: Lock | Path, **how: Any) -> CheckpointError:
    """Return the error of `compile --locked`, which writes nothing."""
    before = sorted(Path().iterdir())
    with pytest.raises(CheckpointError) as error:
        gptailor.compile(gptailor.load("p.tailor"), "new", locked=locked, **how)
    assert sorted(Path().iterdir()) == before
    return error.value


def messages(folder: Path, **how: Any) -> list[str]:
    return [difference.message for difference in gptailor.verify(folder, **how).differences]


# ---------------------------------------------------------------------------------- the lock's
# contents


def test_the_lock_has_exactly_the_files_that_are_read(here: Path) -> None:
    result = gptailor.lock(gptailor.load("p.tailor"))
    assert {name: sorted(model.files) for name, model in result.models.items()} == {
        "base": [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ],
        "math": ["config.json", "model.safetensors"],
    }
    assert result.dtype == "float32"
    assert result.models["math"].source == "./math"
    size = (here / "math" / "model.safetensors").stat().st_size
    assert result.models["math"].files["model.safetensors"].size == size


def test_only_shards_that_the_output_is_made_of_are_locked(here: Path) -> None:
    shard(here / "math")
    (here / "p.tailor").write_text(PLAN.partition("L0")[0] + "head from math\n")
    files = gptailor.lock(gptailor.load("p.tailor")).models["math"].files
    assert sorted(files) == ["config.json", SHARDED[0], "model.safetensors.index.json"]


def test_a_tokenizer_from_elsewhere_locks_both(here: Path) -> None:
    (here / "p.tailor").write_text(PLAN + "tokenizer from math\n")
    models = gptailor.lock(gptailor.load("p.tailor")).models
    assert "tokenizer.json" in models["base"].files
    assert {"tokenizer.json", "generation_config.json"} <= models["math"].files.keys()
    assert "generation_config.json" not in models["base"].files


def test_tensors_are_locked_as_they_are_written(here: Path, out: Path) -> None:
    locked = gptailor.lock(gptailor.load("p.tailor"))
    tensors = load_file(out / "model.safetensors")
    assert {name: (t.shape, t.sha256) for name, t in locked.tensors.items()} == {
        name: (tuple(t.shape), sha256(t.view(torch.uint8).numpy().tobytes()).hexdigest())
        for name, t in tensors.items()
    }


def test_the_lock_in_the_folder_fits_the_plan_in_it(here: Path) -> None:
    plan = gptailor.load("p.tailor")
    written = gptailor.compile(plan, here / "deep" / "out", locking=True)
    assert written.lock == gptailor.lock(plan)
    inside = read_lock(here / "deep" / "out" / LOCK_FILE)
    copy = gptailor.load(here / "deep" / "out" / "plan.tailor")
    assert inside.models["math"].source == copy.models["math"].source == "../../math"
    assert inside.plan == plan_digest(copy) == plan_digest(plan)
    assert inside.tensors == written.lock.tensors
    again = gptailor.compile(copy, here / "again", locked=inside)
    assert again.lock is not None
    assert again.lock.tensors == inside.tensors


def test_compile_without_locking_writes_no_lock(here: Path) -> None:
    written = gptailor.compile(gptailor.load("p.tailor"), here / "out")
    assert written.lock is None
    assert not (here / "out" / LOCK_FILE).exists()


def test_a_locked_folder_holds_the_same_weights(here: Path, out: Path) -> None:
    gptailor.compile(gptailor.load("p.tailor"), here / "plain")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (here / "plain" / name).read_bytes() == (out / name).read_bytes()


def test_adapters_are_locked_apart_from_their_models(here: Path) -> None:
    (here / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (here / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {"A": torch.ones(2, 16), "B": torch.ones(16, 2)}
    pair = {f"{module}.lora_{name}.weight": factor for name, factor in factors.items()}
    save_file(pair, here / "adapter" / "adapter_model.safetensors")
    (here / "p.tailor").write_text(
        'tailor 1\nmodel base = "./base"\nmodel mid = "./math"\n'
        'model code = mid + "./adapter"\nL0 from code\ntokenizer from code\n'
    )
    locked = gptailor.lock(gptailor.load("p.tailor"))
    models = locked.models
    assert sorted(models["code"].files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= models["mid"].files.keys()
    assert models["code"].on == "mid"
    gptailor.compile(gptailor.load("p.tailor"), "out", locked=locked)
    assert gptailor.verify("out").result == "verified"
    document = json.loads(locked.text())
    del document["models"]["code"]["on"]
    inside = (here / "out" / LOCK_FILE).read_text()
    (here / "out" / LOCK_FILE).write_text(json.dumps(document))
    message = (
        "model 'code': expected a whole model as in the lock, got an adapter on 'mid' in the plan"
    )
    assert messages(here / "out") == messages(here / "out", tensors_only=True) == [message]
    (here / "out" / LOCK_FILE).write_text(inside)
    (here / "adapter").rename(here / "moved")
    flip(here / "out" / "tokenizer.json")
    assert messages(here / "out") == ["'tokenizer.json' differs from the plan's output"]
    (here / "moved").rename(here / "adapter")
    flip(here / "adapter" / "adapter_model.safetensors")
    assert "'adapter_model.safetensors' of model 'code'" in refused(locked).message


# ------------------------------------------------------------------------ same plan, same bytes

SCRIPT = """\
import sys, gptailor
from gptailor.prepare import ready
print(gptailor.lock(ready(gptailor.load("p.tailor")), threads=int(sys.argv[1])).text(), end="")
"""


@pytest.mark.parametrize(("threads", "seed"), [(1, "0"), (5, "random")])
@pytest.mark.slow
def test_every_process_makes_the_same_lock(here: Path, threads: int, seed: str) -> None:
    plan = PLAN + "tokenizer from math\nembed from base, math by dare(0.5, 1.0, 7)\n"
    (here / "p.tailor").write_text(plan)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(threads)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout == gptailor.lock(gptailor.load("p.tailor")).text()


def test_the_order_of_statements_and_comments_changes_no_digest(here: Path) -> None:
    head, *rest = PLAN.splitlines()
    locks = [gptailor.lock(gptailor.load("p.tailor")).text()]
    (here / "p.tailor").write_text("\n".join([head, "# note", *reversed(rest)]))
    locks.append(gptailor.lock(gptailor.load("p.tailor")).text())
    assert locks[0] == locks[1]


def test_two_spellings_of_a_text_change_no_digest(here: Path) -> None:
    def digest(bridge: str, heal: str) -> str:
        text = f'drop L1\nbridge on "{bridge}"\nheal on "{heal}"'
        head = 'tailor 1\nmodel base = "./base"\n'
        return plan_digest(gptailor.loads(head + text, folder=here))

    assert digest("a.txt", "./a.txt") == digest("a.txt", "a.txt") == digest("b.txt", "b.txt")
    assert digest("a.txt", "b.txt") != digest("a.txt", "a.txt")


@pytest.mark.parametrize("declared", [None, "bfloat16"])
def test_a_configuration_without_the_weights_dtype_stays_as_it_is(
    here: Path, declared: str | None
) -> None:
    file = here / "base" / "config.json"
    config = {k: v for k, v in json.loads(file.read_text()).items() if "dtype" not in k}
    file.write_text(json.dumps(config | ({} if declared is None else {"torch_dtype": declared})))
    gptailor.compile(gptailor.load("p.tailor"), here / "out", locking=True)
    written = json.loads((here / "out" / "config.json").read_text())
    assert {k: v for k, v in written.items() if "dtype" in k} == (
        {} if declared is None else {"torch_dtype": declared}
    )
    assert gptailor.verify(here / "out").result == "verified"
    again = gptailor.load(here / "out" / "plan.tailor")
    gptailor.compile(again, here / "again", locked=read_lock(here / "out" / LOCK_FILE))


def test_the_layout_of_the_sources_changes_files_and_no_tensor(here: Path, family: Path) -> None:
    results = [gptailor.lock(gptailor.load("p.tailor"))]
    for backwards in (False, True):
        shutil.rmtree(here / "math")
        shutil.copytree(family / "math", here / "math")
        shard(here / "math", backwards=backwards)
        results.append(gptailor.lock(gptailor.load("p.tailor")))
    assert results[0].tensors == results[1].tensors == results[2].tensors
    files = [lock.models["math"].files for lock in results]
    assert files[0] != files[1] != files[2] != files[0]


# --------------------------------------------------------------------------------- refusals


def test_a_locked_plan_compiles(here: Path) -> None:
    locked = gptailor.lock(gptailor.load("p.tailor"))
    locked.write("p.tailor.lock")
    written = gptailor.compile(gptailor.load("p.tailor"), "new", locked="p.tailor.lock")
    assert written.lock == locked
    assert (here / "new" / LOCK_FILE).exists()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda h: (h / "p.tailor").write_text(PLAN.replace("0.25", "0.5")), "C703", "the plan"),
        (lambda h: flip(h / "math" / "model.safetensors"), "C704", "'math' differs from the lock"),
        (lambda h: flip(h / "base" / "model.safetensors"), "C704", "'base' differs from the lock"),
        (lambda h: (h / "base" / "tokenizer.json").write_text("{}"), "C704", "2 bytes, expected"),
        (lambda h: shard(h / "math"), "C704", f"'{SHARDED[0]}' of model 'math' is used"),
        (lambda h: (h / "base" / "generation_config.json").unlink(), "C704", "but isn't used"),
        (lambda h: (h / "math" / "tokenizer.json").unlink(), "", ""),
    ],
)
def test_other_inputs_are_refused(
    here: Path, change: Callable[[Path], object], code: str, message: str
) -> None:
    locked = gptailor.lock(gptailor.load("p.tailor"))
    change(here)
    if not code:  # a file that the plan doesn't read
        gptailor.compile(gptailor.load("p.tailor"), "new", locked=locked)
        return
    error = refused(locked)
    assert error.code == code
    assert message in error.message


def test_another_dtype_is_refused(here: Path) -> None:
    locked = gptailor.lock(gptailor.load("p.tailor"))
    error = refused(locked, dtype="bfloat16")
    assert error.code == "C703"
    assert "the output is bfloat16, but in the lock float32" in error.message


def test_a_large_input_is_refused_while_it_is_copied(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptailor.output.lock_recording.EARLY_BYTES", 0)
    locked = gptailor.lock(gptailor.load("p.tailor"))
    flip(here / "math" / "model.safetensors")
    counts: list[int] = []
    error = refused(locked, on_event=sizes(counts.append))
    assert error.code == "C704"
    assert "'model.safetensors' of model 'math' differs from the lock" in error.message
    assert error.path == Path("math/model.safetensors")


@pytest.mark.parametrize("field", ["sha256", "shape", "dtype", "name", "config"])
def test_another_output_is_refused(here: Path, field: str) -> None:
    document = json.loads(gptailor.lock(gptailor.load("p.tailor")).text())
    name = "model.norm.weight"
    if field == "config":
        document["config"] = "0" * 64
    elif field == "name":
        document["tensors"]["other"] = document["tensors"].pop(name)
    else:
        other = {"sha256": "0" * 64, "shape": [4, 4], "dtype": "I32"}
        document["tensors"][name][field] = other[field]
    error = refused(Lock.model_validate(document))
    assert error.code == "C705"
    assert (name if field != "config" else "config.json") in error.message


def test_a_lock_is_read_before_anything_is_written(here: Path) -> None:
    (here / "p.tailor.lock").write_text("{")
    assert refused(Path("p.tailor.lock")).code == "C701"


# -------------------------------------------------------------------------------------- the Hub


def test_a_lock_holds_a_model_of_the_hub_at_its_commit(family: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tailor").write_text('tailor 1\nmodel base = "org/base"\ndrop L0\n')
    with serving() as hub:
        commit = hub.add("org/base", family / "base")
        environment = {name: v for name, v in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            script = [
                sys.executable,
                "-c",
                "from gptailor.cli.main import main; main()",
                *arguments,
            ]
            return subprocess.run(
                script,
                cwd=tmp_path,
                env=environment,
                text=True,
                capture_output=True,
                check=False,
            )

        assert run("lock", "p.tailor").returncode == 0
        locked = read_lock(tmp_path / "p.tailor.lock").models["base"]
        assert (locked.source, locked.revision, locked.commit) == ("org/base", None, commit)
        moved_on = hub.add("org/base", family / "base", family / "math")
        assert moved_on != commit
        assert run("compile", "p.tailor", "-o", "out", "--locked").returncode == 0
        assert (
            run("compile", "p.tailor", "-o", "free", "--lock", "--lock-file", "x").returncode == 0
        )
        assert run("verify", "out").returncode == 0
    plans = [(tmp_path / name / "plan.tailor").read_text() for name in ("out", "free")]
    assert [commit in text for text in plans] == [True, False]
    inside = read_lock(tmp_path / "out" / LOCK_FILE).models["base"]
    assert (inside.revision, inside.commit) == (commit, commit)
    assert read_lock(tmp_path / "x").models["base"].commit == moved_on


# ----------------------------------------------------------------------------------------- verify


def test_a_folder_as_it_was_compiled_is_verified(out: Path) -> None:
    result = gptailor.verify(out)
    assert (result.result, result.differences, result.unverified) == ("verified", (), ())
    assert len(result.compared) == 5
    (out / LOCK_FILE).unlink()
    assert gptailor.verify(out).result == "verified"


def test_progress_counts_all_work(out: Path) -> None:
    counts: list[int] = []
    begun = Verification(out)
    begun.run(sizes(counts.append))
    assert sum(counts) == begun.work
    prepared = ready(gptailor.load("p.tailor"))
    counts.clear()
    gptailor.lock(prepared, on_event=sizes(counts.append))
    assert sum(counts) == work(prepared)


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NORM = "model.norm.weight"


@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop(NORM), f"tensor '{NORM}' is missing"),
        (lambda t: t.update(more=torch.ones(1)), "tensor 'more' is present, but"),
        (
            lambda t: t.update({NORM: t[NORM].half()}),
            f"tensor '{NORM}' is F16 [16], expected F32 [16] as in",
        ),
        (
            lambda t: t.update({NORM: t[NORM].reshape(4, 4)}),
            f"'{NORM}' is F32 [4, 4], expected F32 [16] as in",
        ),
        (lambda t: t[NORM][3].neg_(), f"tensor '{NORM}' differs from"),
    ],
)
def test_a_changed_tensor_is_reported(
    out: Path, change: Callable[[dict[str, Any]], object], expected: str, locked: bool
) -> None:
    change_tensors(out, change)
    if not locked:
        (out / LOCK_FILE).unlink()
    (message,) = messages(out)
    assert expected in message
    assert messages(out, tensors_only=True) == ([message] if locked else [])


def test_other_files_are_named(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    config |= {"rope_theta": 1.5, "new": [1]}
    del config["vocab_size"]
    (out / "config.json").write_text(json.dumps(config))
    flip(out / "tokenizer.json")
    (out / "generation_config.json").unlink()
    (out / "chat_template.jinja").write_text("x")
    text = "\n".join(messages(out))
    for part in (
        "'new' of config.json is [1], but missing in the plan's output",
        "'rope_theta' of config.json is 1.5, but missing in the plan's output",
        "'vocab_size' of config.json is missing, but 64 in the plan's output",
        "'chat_template.jinja' is not a file of the plan's output",
        "'generation_config.json' is missing",
        "'tokenizer.json' differs from the plan's output",
    ):
        assert part in text
    assert messages(out, tensors_only=True) == []


def test_a_changed_model_card_still_verifies(out: Path) -> None:
    (out / "README.md").write_text("# My model\n")
    assert gptailor.verify(out).result == "verified"


def test_a_changed_plan_is_reported(out: Path) -> None:
    plan = out / "plan.tailor"
    text = plan.read_text()
    plan.write_text(text.replace("0.25", "0.5"))
    assert "plan.tailor is not the plan that was locked" in messages(out)
    plan.write_text(text.replace("float32", "float16"))
    assert "plan.tailor has the dtype float16, but the lock float32" in messages(out)
    plan.write_text("tailor 1\nL0 frm base\n")
    assert any("can't be compiled" in message for message in messages(out))


def test_reading_a_plan_stops_at_the_size_limit(out: Path) -> None:
    os.truncate(out / "plan.tailor", 16 * MOST_BYTES)
    tracemalloc.start()
    lines = messages(out, tensors_only=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(lines) == 1
    assert f"expected a plan of at most {MOST_BYTES:,} bytes, the file has more" in lines[0]
    assert peak < 4 * MOST_BYTES


def test_a_refusal_names_all_inputs_that_differ(here: Path) -> None:
    (here / "p.tailor").write_text(PLAN + 'chat_template "./t.jinja"\n')
    (here / "t.jinja").write_text("old")
    locked = gptailor.lock(gptailor.load("p.tailor"))
    (here / "t.jinja").write_text("new")
    flip(here / "math" / "model.safetensors")
    assert refused(locked).message == (
        "'model.safetensors' of model 'math' differs from the lock; "
        "the chat template differs from the lock"
    )


def test_a_tampered_lock_is_a_difference(out: Path) -> None:
    document = json.loads((out / LOCK_FILE).read_text())
    document["tensors"][NORM]["sha256"] = "0" * 64
    (out / LOCK_FILE).write_text(json.dumps(document))
    assert messages(out) == [
        f"tensor '{NORM}' differs from the lock",
        f"the plan's tensor '{NORM}' differs from the lock",
    ]


@pytest.mark.parametrize("content", ["", "{", '{"version": 2}', '{"version": 1, "version": 1}'])
def test_an_invalid_lock_stops_a_verification(out: Path, content: str) -> None:
    (out / LOCK_FILE).write_text(content)
    with pytest.raises(CheckpointError) as error:
        gptailor.verify(out)
    assert error.value.code in {"C701", "C702"}
    assert error.value.path == out / LOCK_FILE


def test_a_damaged_folder_differs(out: Path) -> None:
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    result = gptailor.verify(out)
    assert result.result == "differs"
    assert "the folder isn't a model" in result.differences[0].message


def test_other_sources_are_named(here: Path, out: Path) -> None:
    flip(here / "math" / "model.safetensors")
    result = gptailor.verify(out)
    assert [difference.message for difference in result.differences] == [
        "'model.safetensors' of model 'math' differs from the lock"
    ]
    assert result.differences[0].model == "math"
    assert any("the plan's output" in message for message in result.unverified)
    (out / LOCK_FILE).unlink()
    assert gptailor.verify(out).differences == ()  # a tensor that the plan doesn't take


def test_missing_sources_leave_a_folder_unverified(here: Path, out: Path) -> None:
    (here / "math").rename(here / "moved")
    result = gptailor.verify(out)
    assert result.result == "unverified"
    assert any("'math'" in message for message in result.unverified)
    assert any("tensors with the lock" in message for message in result.compared)
    assert gptailor.verify(out, models={"math": here / "moved"}).result == "verified"
    assert gptailor.verify(out, tensors_only=True).result == "verified"
    flip(out / "tokenizer.json")
    assert "'tokenizer.json' differs from the plan's output" in messages(out)
    flip(out / "tokenizer.json")
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(config.replace("64", "65"))
    assert "config.json differs from the lock" in messages(out)
    (out / LOCK_FILE).unlink()
    nothing = gptailor.verify(out)
    assert (nothing.result, nothing.compared) == ("unverified", ())


def test_sources_that_do_not_fit_any_more_differ(here: Path, family: Path, out: Path) -> None:
    result = gptailor.verify(out, models={"math": family / "wide"})
    assert result.result == "differs"
    assert "plan.tailor can't be compiled" in result.differences[0].message
    with pytest.raises(gptailor.PlanError, match="M105"):
        gptailor.verify(out, models={"mth": here / "math"})


def test_a_folder_without_a_plan_is_not_verified(family: Path, tmp_path: Path) -> None:
    result = gptailor.verify(family / "base")
    assert result.result == "unverified"
    assert "the plan: there is no plan.tailor" in result.unverified
    with pytest.raises(CheckpointError) as error:
        gptailor.verify(tmp_path / "none")
    assert error.value.code == "C101"


# ------------------------------------------------------------------------------- the command line


def test_lock_and_verify_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        code = cli.run(arguments)
        output = capsys.readouterr()
        return code, output.out + output.err

    assert run("lock", "p.tailor") == (0, "p.tailor.lock: 7 files of 2 models, 48 tensors\n")
    printed = run("lock", "p.tailor", "-o", "-")
    assert printed == (0, (here / "p.tailor.lock").read_text())
    assert run("compile", "p.tailor", "-o", "a", "--locked")[0] == 0
    assert run("compile", "p.tailor", "-o", "a", "--locked", "--dry-run", "--force")[0] == 0
    code, output = run("compile", "p.tailor", "-o", "b", "--lock", "--lock-file", "b.lock")
    assert code == 0
    assert "b.lock: 7 files of 2 models, 48 tensors" in output.splitlines()
    assert (here / "b.lock").read_text() == (here / "p.tailor.lock").read_text()
    assert (here / "a" / LOCK_FILE).read_text() == (here / "b" / LOCK_FILE).read_text()
    code, output = run("verify", "a")
    assert (code, output.startswith("a: verified; compared: 48 tensors with the lock")) == (0, True)
    flip(here / "a" / "model.safetensors")
    code, output = run("verify", "a", "--format", "json")
    record = json.loads(output)
    assert (code, record["result"], len(record["differences"])) == (1, "differs", 1)
    assert record["differences"][0].keys() == {"kind", "name", "model", "file", "message"}
    code, output = run("verify", "a")
    assert (code, output.splitlines()[0].startswith("differs: tensor '")) == (1, True)
    (here / "math").rename(here / "moved")
    code, output = run("verify", "b")
    assert (code, "can't be verified: model 'math'" in output) == (3, True)
    assert run("verify", "b", "--model", "math=moved")[0] == 0
    flip(here / "moved" / "model.safetensors")
    code, output = run("compile", "p.tailor", "-o", "c", "--locked", "--model", "math=moved")
    assert (code, output.startswith("error[C704]: ")) == (3, True)
    code, output = run("compile", "p.tailor", "-o", "c", "--locked", "--lock-file", "none")
    assert (code, output.startswith("error[C701]: ")) == (3, True)
    assert not (here / "c").exists()


@pytest.mark.parametrize("name", ["p.tailor", "notes.json", "missing/x.lock"])
def test_a_lock_replaces_no_other_file(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "notes.json").write_text("{}")
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    making = ["compile", "p.tailor", "-o", "new", "--lock", "--lock-file", name]
    for command in (["lock", "p.tailor", "-o", name], making):
        assert cli.run(command) == 3
        assert "C303" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in here.iterdir() if path.is_file()} == before
    assert not (here / "new").exists()
    (here / "p.tailor.lock").write_text("{")
    assert cli.run(["lock", "p.tailor"]) == 0, "a damaged lock"


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "p.tailor", "-o", "c", "--lock", "--locked"],
        ["compile", "p.tailor", "-o", "c", "--lock-file", "x"],
        ["compile", "-", "-o", "c", "--lock"],
        ["lock", "-"],
    ],
)
def test_flags_that_do_not_go_together(here: Path, arguments: list[str]) -> None:
    assert cli.run(arguments) == 2
    assert not (here / "c").exists()
