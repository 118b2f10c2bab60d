"""JSON files with one field edited: a command ends well, or with one message of its own."""

import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptailor.cli.main import run
from tests.support.tiny import tiny_model
from tests.support.tiny_adapter import adapter

pytestmark = pytest.mark.usefixtures("one_thread", "no_progress_bars")

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
model tuned = base + "./lora"
L1 from math
L0 from tuned
drop L2
"""
COMPILE = ("compile", "cut.tailor", "-o", "new", "--force")
LOCKED = ("compile", "out/plan.tailor", "-o", "new", "--force", "--locked")
VERIFY = ("verify", "out")
MEASURE = ("--no-speed", "--samples", "1", "-O", 'nll("t.txt")')
EVAL, EVAL_BASE = ("eval", "out", *MEASURE), ("eval", "base", *MEASURE)
GENERATE = ("generate", "out", "the cat", "--tokens", "3")
READERS = {
    "out/config.json": (VERIFY, EVAL, GENERATE),
    "out/tokenizer_config.json": (VERIFY, EVAL, GENERATE),
    "out/generation_config.json": (VERIFY, EVAL, GENERATE),
    "out/tokenizer.json": (VERIFY, EVAL, GENERATE),
    "out/plan.tailor.lock": (VERIFY, LOCKED),
    "base/config.json": (COMPILE, EVAL_BASE),
    "base/tokenizer_config.json": (COMPILE, EVAL_BASE),
    "base/tokenizer.json": (COMPILE, LOCKED, EVAL_BASE),
    "lora/adapter_config.json": (COMPILE, LOCKED),
}
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 10**30, 0.5, float("nan"), "", "x", "a" * 3000, "../../etc", "\ud800",
    [], [None], [[]], {}, {"": None}, [1] * 4, "{{ 1 }}", "\x1b[31m\n",
)  # fmt: skip
FOREIGN = re.compile(r"\b\w+(Error|Exception)\b|Traceback|trust_remote_code")
"""Words of an exception that nobody put into a message."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, an adapter, a plan, and its output, with its lock."""
    folder = tmp_path_factory.mktemp("edits")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed, layers=3)
    adapter(folder / "lora", target_modules=["q_proj"], rank_pattern={"q_proj": 4})
    (folder / "t.txt").write_text("the cat sat on the mat " * 8)
    (folder / "cut.tailor").write_text(PLAN)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert run(["compile", "cut.tailor", "-o", "out", "--lock"]) == 0
    return folder


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values of a document but the whole of it."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, each in inner[:6] + inner[6:][-6:]:
        yield (*at, key)
        if isinstance(each, dict | list):
            yield from places(each, (*at, key))


def edited(document: Any, draw: random.Random) -> Any:
    """The document with one field set, left out, renamed or added."""
    made = copy.deepcopy(document)
    *above, last = draw.choice(list(places(made)))
    holder = made
    for key in above:
        holder = holder[key]
    value, change = copy.deepcopy(draw.choice(VALUES)), draw.randrange(6)
    if change == 0:
        del holder[last]
    elif change == 1 and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    elif change == 2 and isinstance(holder, dict):
        holder["more"] = value
    else:
        holder[last] = value
    return made


def ends_well(
    command: tuple[str, ...], world: Path, file: str, document: Any, capsys: Any
) -> tuple[int, str]:
    """Run a command with another document in a file's place; its code and words."""
    path = world / file
    kept = path.read_bytes()
    path.write_text(json.dumps(document))
    capsys.readouterr()
    try:
        code = run(command)
    finally:
        path.write_bytes(kept)
    output = "".join(capsys.readouterr())
    assert code in {0, 1, 3}
    assert code == 0 or output.strip()
    assert FOREIGN.search(output) is None, output
    assert not list(world.glob(".*partial*"))
    return code, output


@pytest.mark.parametrize("file", READERS)
def test_one_edit_is_one_message_or_nothing(
    file: str, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    document = json.loads((world / file).read_text())
    draw = random.Random(file)
    for number in range(8):
        command = READERS[file][number % len(READERS[file])]
        ends_well(command, world, file, edited(document, draw), capsys)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("out/config.json", {"use_cache": {}}, "'out': transformers can't read the configuration"),
        ("out/config.json", {"num_attention_heads": 0}, "transformers can't read the configur"),
        (
            "out/config.json",
            {"intermediate_size": 99},
            "expected [16, 99]",
        ),
        ("out/config.json", {"hidden_act": "x"}, "model from its configuration: unknown value"),
        ("out/tokenizer_config.json", {"model_max_length": "x"}, "tokenizer of"),
        ("out/tokenizer_config.json", {"eos_token": 1}, "can't be loaded: Special token eos_token"),
    ],
)
def test_settings_that_transformers_refuses_are_one_message(
    file: str,
    change: dict[str, Any],
    says: str,
    world: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(world)
    document = json.loads((world / file).read_text()) | change
    code, output = ends_well(EVAL, world, file, document, capsys)
    assert code == 3
    assert says in " ".join(output.split())


@pytest.mark.parametrize("end", [float("nan"), "x", [[]], 10**30, -1])
def test_an_end_that_isnt_a_token_is_one_message(
    end: Any, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    file = "out/generation_config.json"
    document = json.loads((world / file).read_text()) | {"eos_token_id": end}
    code, output = ends_well(GENERATE, world, file, document, capsys)
    assert code == 3
    assert "expected token numbers as 'eos_token_id', got" in " ".join(output.split())


@pytest.mark.parametrize("file", ["base/config.json", "base/tokenizer_config.json"])
def test_an_unpaired_surrogate_is_one_message(
    file: str, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    document = json.loads((world / file).read_text()) | {"architectures": ["😀", "\ud800"]}
    code, output = ends_well(COMPILE, world, file, document, capsys)
    assert code in {1, 3}
    assert "half a surrogate pair" in " ".join(output.split())


def test_a_long_setting_is_cut(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    document = json.loads((world / "base/config.json").read_text()) | {"hidden_act": "a" * 3000}
    code, output = ends_well(COMPILE, world, "base/config.json", document, capsys)
    assert code == 1
    assert max(map(len, output.split())) < 200
