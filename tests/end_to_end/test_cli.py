"""The command line: its output and where it goes, its exit codes, and the files it leaves."""

import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import gptailor
from gptailor.checkpoint.families import FOLDER
from gptailor.cli import compile as compile_module
from gptailor.cli import main
from gptailor.cli import options as screen
from gptailor.plan.faults import PlanError
from gptailor.plan.plan import Plan
from gptailor.searching.pick import BEST
from gptailor.searching.run_files import SETTINGS
from tests.support.said import Run, Said, in_process, reading
from tests.support.tiny import tiny_model

GROUPS = {
    "Write": ("compile", "fmt", "import"),
    "Look": ("check", "show", "json", "explain"),
    "Measure": ("eval", "generate"),
    "Search": ("search", "pick"),
    "Share": ("lock", "verify"),
    "Set up": ("schema",),
}
COMMANDS = [command for commands in GROUPS.values() for command in commands]
ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, "-c", "from gptailor.cli.main import main; main()"]

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
L0..L1 from math
merge(L2 base, L2 math, 0.25)
drop L4
"""
CANONICAL = """\
tailor 1

model base = "./base"
model math = "./math"

L0..L1 from math
merge(L2 base, L2 math, 0.25)

drop L4
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, with this standard input."""
    done = reading(in_process(capsys), monkeypatch)

    def call(*arguments: object, **given: str | bytes) -> Said:
        result = done(*arguments, **given)
        assert "\x1b" not in result.out + result.err
        return result

    return call


@pytest.fixture
def here(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with links to models, and a plan over them."""
    for name in ("base", "math", "code"):
        (tmp_path / name).symlink_to(family / name)
    (tmp_path / "p.tailor").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------ misuse


def test_the_help_names_all_commands(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    for group, commands in GROUPS.items():
        listed = result.out.partition(f"{group}:\n")[2].partition("\n\n")[0].splitlines()
        assert [line.split()[0] for line in listed][: len(commands)] == list(commands)
        assert not any(line.endswith("...") for line in listed)
    headings = [line for line in result.out.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Options:", *(f"{group}:" for group in GROUPS)]
    assert run("-h").out == result.out


@pytest.mark.parametrize(
    ("word", "instead"),
    [("quantize", "--quantize q4_k_m"), ("prune", "drop any 4"), ("compress", "drop L9..L12"),
     ("drop", "docs/search.md"), ("quantise", "gptailor shrink"),
     ("merge", "L0..L9 from math"), ("compil", "Did you mean"),
     ("merge", "gptailor import"), ("mergekit-yaml", "gptailor import merge.yml -o plan.tailor")],
)  # fmt: skip
def test_a_command_of_other_tools_is_answered_with_ours(run: Run, word: str, instead: str) -> None:
    result = run(word, "p.tailor")
    assert result.code == 2
    assert f"No such command '{word}'." in result.err
    assert instead in result.err


@pytest.mark.parametrize("word", ["quantize", "prune", "compress", "reduce", "distill"])
def test_another_word_for_a_command_names_it_if_it_exists(
    run: Run, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.delitem(main._COMMANDS, "shrink", raising=False)
    monkeypatch.setattr(main.COMMANDS, "installed", dict)
    assert "gptailor shrink" not in run(word, "p.tailor").err
    monkeypatch.setitem(main._COMMANDS, "shrink", ("compile", "Write", "Shrink a model."))
    result = run(word, "p.tailor")
    assert result.code == 2
    assert f"No such command '{word}'. See 'gptailor shrink --help'. " in result.err


@pytest.mark.parametrize(
    ("word", "command"), [("evaluate", "eval"), ("run", "generate"), ("upload", "publish")]
)
def test_another_word_for_todays_commands_names_them(run: Run, word: str, command: str) -> None:
    assert f"No such command '{word}'. See 'gptailor {command} --help'\n" in run(word).err


def test_a_models_folder_in_place_of_a_plan_gets_a_plan_and_a_command(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = '    tailor 1\n    model base = "./base"\n'
    monkeypatch.delitem(main._COMMANDS, "shrink", raising=False)
    monkeypatch.setattr(main.COMMANDS, "installed", dict)
    for arguments in (["compile", "base"], ["compile", "base", "-o", "out"]):
        result = run(*arguments)
        assert (result.code, lines in result.err, "shrink" in result.err) == (3, True, False)
    monkeypatch.setitem(main._COMMANDS, "shrink", ("compile", "Write", "Shrink a model."))
    result = run("compile", "base", "-o", "out")
    assert lines in result.err
    assert result.err.endswith("  Or without a plan: gptailor shrink base\n")
    assert not (here / "out").exists()
    (here / "out").mkdir()
    assert "shrink" not in run("compile", "out").err  # no model


def test_flags_of_mergekit_and_of_earlier_releases_have_their_remedies(run: Run) -> None:
    for flag, remedy in main._FLAGS.items():
        result = run("compile", flag, "p.tailor", "-o", "out")
        assert result.code == 2
        assert f"No such option '{flag}'; {remedy}" in result.err
    assert "'--force'" in run("compile", "p.tailor", "-o", "out", "--forced").err


def test_an_output_without_its_option_has_the_whole_line(run: Run) -> None:
    result = run("compile", "merge.tailor", "out")
    assert result.code == 2
    line = "Missing option '-o' / '--output'; write: gptailor compile merge.tailor -o out"
    assert line in result.err
    assert run("compile", "merge.tailor").err.endswith("Missing option '-o' / '--output'.\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: gptailor {command}")
    assert run(command, "-h").out == result.out


def test_version_prints_the_version(run: Run) -> None:
    for flag in ("--version", "-V"):
        assert run(flag) == (0, f"gptailor, version {gptailor.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["check"], "PLAN"),
        (["check", "--frob", "p.tailor"], "--frob"),
        (["check", "--format", "xml", "p.tailor"], "xml"),
        (["check", "p.tailor", "--model", "math"], "expected NAME=PATH, got 'math'"),
        (["check", "p.tailor", "--model", "=x"], "expected NAME=PATH, got '=x'"),
        (["compile", "p.tailor"], "--output"),
        (["compile", "p.tailor", "-o", "out", "--shard-size", "big"], "got 'big'"),
        (["compile", "p.tailor", "-o", "out", "--shard-size", "0"], "got '0'"),
        (["compile", "p.tailor", "-o", "out", "--shard-size", "1B"], "--out-shard-size counts"),
        (["compile", "p.tailor", "-o", "out", "--shard-size", "999kB"], "at least 1MB"),
        (["compile", "p.tailor", "-o", "out", "--shard-size", "-5GB"], "got '-5GB'"),
        (["compile", "p.tailor", "-o", "out", "--shard-size", "5XB"], "got '5XB'"),
        (["compile", "p.tailor", "q.tailor", "-o", "out"], "q.tailor"),
        (["diff", "p.tailor"], "B"),
        (["generate", "base"], "then a prompt, got 'base' alone"),
        (["generate", "hello"], "got 'hello' alone"),
        (["generate", "Once upon", "base"], "then a prompt, got 'base' last"),
    ],
)
def test_misuse_exits_with_2_and_names_the_mistake(
    run: Run, here: Path, arguments: list[str], named: str
) -> None:
    before = names(here)
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert named in result.err
    assert "Usage: gptailor" in result.err
    assert names(here) == before


@pytest.mark.parametrize(
    "arguments",
    [["check"], ["fmt"], ["show"], ["json"], ["diff", "p.tailor"], ["compile", "-o", "out"]],
)
@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("none.tailor", "[C201]: expected a plan's file, 'none.tailor' is missing"),
        ("base", "[C201]: expected a plan's file, got the folder 'base'"),
    ],
)
def test_an_unreadable_plan_exits_with_3(
    run: Run, here: Path, arguments: list[str], plan: str, reason: str
) -> None:
    if plan == "base" and arguments[0] in ("show", "diff"):
        pytest.skip("these take folders")
    result = run(*arguments, plan)
    assert result.code == 3
    assert result.err.startswith(f"error{reason}")
    assert result.err.count("\n") <= (2 if plan != "base" else 8)
    assert not (here / "out").exists()


@pytest.mark.parametrize("output", [[], ["-o", "out"]])
def test_a_model_in_place_of_a_plan_has_its_plan_of_two_lines(
    run: Run, here: Path, output: list[str]
) -> None:
    result = run("compile", "base", *output)
    assert result.code == 3
    lines = result.err.splitlines()
    assert any(line.endswith("then: gptailor compile plan.tailor -o out") for line in lines)
    (here / "plan.tailor").write_text("\n".join(lines[3:5]).replace("    ", "") + "\n")
    assert run("compile", "plan.tailor", "-o", "out", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "p.tailor"], "expected a compiled folder or a .gguf file, got another file"),
        (["check", "p.tailor.lock"], "got a plan's lock\n --> p.tailor.lock\n  = help: name "
         "the plan: p.tailor\n"),
        (["import", "p.tailor"], "got a plan\n  = help: compile it directly"),
        (["eval", "base", "-O", "data/t.jsonl"], 'as in nll("text.txt")'),
    ],
)  # fmt: skip
def test_a_file_in_place_of_another_is_named(
    run: Run, here: Path, arguments: list[str], message: str
) -> None:
    (here / "p.tailor.lock").write_text('{"lock": 1, "models": {}, "tensors": {}}')
    done = run(*arguments)
    assert done.code in {1, 3}
    assert message in done.err
    assert done.err.count("error") == 1


def test_a_misspelt_command_names_the_nearest(run: Run) -> None:
    result = run("complie", "p.tailor")
    assert result.code == 2
    assert "No such command 'complie'. Did you mean 'compile'?" in result.err
    assert "Did you mean" not in run("xyz").err


def test_a_misspelt_file_or_folder_names_the_nearest(run: Run, here: Path) -> None:
    (here / "cal.jsonl").write_text('{"text": "a"}')
    (here / "p.tailor").write_text(
        PLAN.replace('"./math"', '"./mth"') + 'bridge on "cal.jsn"\nexpect nll("zz") <= 1\n'
    )
    result = run("check", "p.tailor", "--format", "json")
    helps = {
        fault["code"] + fault["message"][-9:]: fault["help"] for fault in json.loads(result.out)
    }
    assert set(helps.values()) == {"did you mean 'math'?", "did you mean 'cal.jsonl'?", ""}
    result = run("eval", "base", "-O", 'nll("cal.jsn")')
    assert "error[C801]" in result.err
    assert "did you mean 'cal.jsonl'?" in result.err
    result = run("eval", "base", "-O", 'multiple_choice("cal.jsonl")')
    assert "error[C804]: the row has no 'query'; it has 'text'\n --> cal.jsonl:1" in result.err


def test_a_misspelt_word_beyond_the_listed_ones_has_a_suggestion(run: Run, here: Path) -> None:
    (here / "p.tailor").write_text(PLAN + 'heal on "cal.jsonl" token 500\n')
    result = run("check", "p.tailor", "--alone")
    assert "'rank' or something else, found 'token'" in result.err
    assert "did you mean 'tokens'?" in result.err


def test_a_range_beyond_a_model_is_one_fault_for_each_model(run: Run, here: Path) -> None:
    for name in ("a", "b"):
        tiny_model("llama", here / name, layers=3)
    (here / "p.tailor").write_text(
        'tailor 1\nmodel base = "./base"\nmodel a = "./a"\nmodel b = "./b"\n'
        "whole from a, b by linear()\n"
    )
    result = run("check", "p.tailor", "--format", "json")
    assert [fault["message"] for fault in json.loads(result.out)] == [
        "L3..L5 are beyond the model 'a', which has 3 layers",
        "L3..L5 are beyond the model 'b', which has 3 layers",
    ]


def test_an_update_is_reported_before_and_after_it(run: Run, here: Path) -> None:
    run("compile", "p.tailor", "-o", "out")
    planned = run("compile", "p.tailor", "-o", "out", "--dry-run").out.splitlines()[-1]
    assert planned.startswith("would compute 0 bytes and copy ")
    assert planned.endswith("; nothing changed in the plan")
    assert "\ncomputed: 0 bytes; copied: " in "\n" + run("compile", "p.tailor", "-o", "out").out


_TARGETS: list[list[str]] = [
    *(["check"], ["fmt"], ["show"], ["json"], ["diff", "p.tailor"], ["lock"]),
    *(["compile", "-o", "out"], ["test"], ["eval", "-O", "parameters()"], ["generate"]),
]


@pytest.mark.parametrize("arguments", _TARGETS, ids=lambda arguments: arguments[0])
def test_a_folder_of_a_search_names_its_best_plan(
    run: Run, here: Path, arguments: list[str]
) -> None:
    (here / "run").mkdir()
    (here / "run" / SETTINGS).write_text("{}")
    (here / "run" / BEST).write_text(PLAN)
    result = run(*arguments, "run") if arguments[0] != "generate" else run("generate", "run", "a")
    assert result.code == 3
    assert result.err == (
        "error[C201]: 'run' is the folder of a search, expected a plan or a model\n"
        "  = help: its best plan is run/best.tailor; 'gptailor search SPACE -o run' continues the "
        "search\n"
    )
    (here / "run" / BEST).unlink()
    assert "'gptailor search SPACE -o run' writes it" in run("check", "run").err


# ------------------------------------------------------------------------------------------- check


def test_a_valid_plan_is_reported_without_faults(run: Run, here: Path) -> None:
    assert run("check", "p.tailor") == (0, "p.tailor: no faults\n", "")
    assert run("check", "-", stdin=PLAN) == (0, "<stdin>: no faults\n", "")


def test_check_counts_the_open_choices(run: Run, here: Path) -> None:
    others = (
        'tailor 1\nmodel base = "./base"\nmodel math = "./math"\nothers from one of base, math\n'
    )
    (here / "p.tailor").write_text(others)
    assert run("check", "p.tailor").out == "p.tailor: no faults; 6 choices open\n"
    assert run("check", "p.tailor", "--alone").out == "p.tailor: no faults; 1 choice open\n"
    assert "6 open; 6 choices open" in run("show", "p.tailor").out
    assert "got 6 open choices" in run("compile", "p.tailor", "-o", "out").err
    search = 'search {\n  minimize nll("p.tailor")\n  trials 16\n}\n'
    (here / "p.tailor").write_text(others + search)
    assert run("check", "p.tailor").out == "p.tailor: no faults; 6 choices open, 16 trials\n"
    (here / "p.tailor").write_text(f'{others}drop L3\nbridge on "p.tailor"\n{search}')
    stages = "first plans with nothing dropped, then cuts without repair; the best are bridged"
    assert run("check", "p.tailor").out.endswith(f"choices open, 16 trials: {stages}\n")


def test_a_tied_embedding_and_head_are_one_choice(run: Run, here: Path) -> None:
    tiny_model("llama", here / "one", layers=2, tie_word_embeddings=True)
    tiny_model("llama", here / "two", layers=2, tie_word_embeddings=True)
    (here / "p.tailor").write_text(
        'tailor 1\nmodel base = "./one"\nmodel two = "./two"\nwhole from one of base, two\n'
    )
    assert run("check", "p.tailor").out == "p.tailor: no faults; 4 choices open\n"
    assert "; 4 choices open" in run("show", "p.tailor").out


def test_all_faults_of_all_plans_are_shown(run: Run, here: Path) -> None:
    (here / "q.tailor").write_text(PLAN + "drop L4\nL1 from math\n")
    (here / "r.tailor").write_text(PLAN + "drop L9\n")
    result = run("check", "q.tailor", "p.tailor", "r.tailor")
    assert result.code == 1
    assert result.out == "p.tailor: no faults\n"
    for wanted in ("error[P210]", "error[P207]", "error[M201]", "q.tailor:7:", "r.tailor:7:6"):
        assert wanted in result.err
    assert result.err.count("error[") == 3


def test_warnings_arent_faults(run: Run, here: Path) -> None:
    (here / "p.tailor").write_text(PLAN + 'model code = "./code"\n')
    result = run("check", "p.tailor")
    assert result.code == 0
    assert "warning[M303]" in result.err


def test_models_are_read_unless_a_plan_is_checked_alone(run: Run, here: Path) -> None:
    (here / "math").unlink()
    result = run("check", "p.tailor")
    assert result.code == 1
    assert "./math" in result.err
    assert run("check", "--alone", "p.tailor").code == 0
    assert run("check", "p.tailor", "--model", "math=code").code == 0
    result = run("check", "p.tailor", "--model", "mat=code")
    assert result.code == 1
    assert "M105" in result.err
    assert "'mat'" in result.err


def test_a_folder_without_a_configuration_is_named(run: Run, here: Path) -> None:
    (here / "empty").mkdir()
    result = run("check", "p.tailor", "--model", "math=empty")
    assert result.code == 1
    assert "config.json" in result.err
    result = run("compile", "p.tailor", "-o", "out", "--model", "math=empty")
    assert result.code == 1
    assert not (here / "out").exists()


def test_faults_for_machines(run: Run, here: Path) -> None:
    (here / "q.tailor").write_text(PLAN + "drop L4\n")
    result = run("check", "--format", "json", "q.tailor", "p.tailor")
    (fault,) = json.loads(result.out)
    assert (result.code, result.err) == (1, "")
    assert (fault["code"], fault["severity"], fault["file"]) == ("P210", "error", "q.tailor")
    assert (fault["line"], fault["column"], fault["end_column"]) == (7, 6, 8)
    assert fault["also"][0]["line"] == 6
    assert run("check", "--format", "json", "p.tailor") == (0, "[]\n", "")


def test_faults_for_pull_requests(run: Run, here: Path) -> None:
    (here / "q.tailor").write_text(PLAN + "drop L4\n")
    result = run("check", "--format", "github", "q.tailor")
    assert (result.code, result.err) == (1, "")
    assert result.out.startswith(
        "::error file=q.tailor,line=7,col=6,endLine=7,endColumn=8,title=P210::"
    )
    assert result.out.count("\n") == 1


def test_no_more_faults_than_people_read(run: Run, here: Path) -> None:
    lines = "".join(f"L0 from model{i}\n" for i in range(150))
    result = run("check", "-", stdin=PLAN.replace("L0..L1 from math\n", lines))
    assert result.code == 1
    assert result.err.count("error[") == screen.MOST_SHOWN
    assert "more faults" in result.err


def test_a_plan_that_isnt_text_is_refused(run: Run, here: Path) -> None:
    (here / "p.tailor").write_bytes(PLAN.encode() + b"# \xff\n")
    for command in ("check", "fmt", "show", "json"):
        for arguments in ([command, "p.tailor"], [command, "-"]):
            result = run(*arguments, stdin=PLAN.encode() + b"# \xff\n")
            assert result.code == 1, arguments
            assert "error[S106]" in result.err
            assert "line 7" in result.err


# --------------------------------------------------------------------------------------------- fmt


def test_plans_are_formatted_in_place(run: Run, here: Path) -> None:
    (here / "q.tailor").write_text(CANONICAL)
    (here / "p.tailor").chmod(0o640)
    assert run("fmt", "p.tailor", "q.tailor") == (0, "p.tailor: rewritten\n", "")
    assert (here / "p.tailor").read_text() == CANONICAL
    assert (here / "p.tailor").stat().st_mode & 0o777 == 0o640
    assert run("fmt", "p.tailor") == (0, "", "")
    assert [n for n in names(here) if n.startswith(".")] == []


def test_fmt_keeps_a_link_to_a_plan(run: Run, here: Path) -> None:
    (here / "link.tailor").symlink_to("p.tailor")
    assert run("fmt", "link.tailor").code == 0
    assert (here / "link.tailor").is_symlink()
    assert (here / "p.tailor").read_text() == CANONICAL


def test_checking_and_diffing_write_nothing(run: Run, here: Path) -> None:
    for flag in ("--check", "--diff"):
        result = run("fmt", flag, "p.tailor")
        assert (result.code, result.err) == (1, "")
        assert "p.tailor" in result.out
        assert (here / "p.tailor").read_text() == PLAN
    assert "+\n" in result.out
    (here / "q.tailor").write_text(CANONICAL)
    for flag in ("--check", "--diff"):
        assert run("fmt", flag, "q.tailor") == (0, "", "")


def test_standard_input_is_formatted_to_standard_output(run: Run, here: Path) -> None:
    assert run("fmt", "-", stdin=PLAN) == (0, CANONICAL, "")
    assert run("fmt", "-", stdin=CANONICAL) == (0, CANONICAL, "")


def test_fmt_rewrites_valid_plans_and_leaves_invalid_ones_unchanged(run: Run, here: Path) -> None:
    (here / "q.tailor").write_text("tailor 1\nfrob\n")
    result = run("fmt", "q.tailor", "p.tailor")
    assert (result.code, result.out) == (1, "p.tailor: rewritten\n")
    assert "q.tailor:2:" in result.err
    assert (here / "q.tailor").read_text() == "tailor 1\nfrob\n"


# ----------------------------------------------------------------------------- show, diff, json …


def test_the_map_shows_each_layer(run: Run, here: Path) -> None:
    result = run("show", "p.tailor")
    assert (result.code, result.err) == (0, "")
    assert (
        result.out
        == """\
p.tailor: 6 layers of './base'
  2 of math, 1 merged, 2 of base, 1 dropped

  L0
  m m ◆ b · b
b     ▆ █   █
m █ █ ▂

  b base   m math   ◆ merged   · dropped   ▁…█ a model's share

  L0..L1  math
  L2      merge(L2 base, L2 math, 0.25)
  L3      base
  L4      dropped
  L5      base

  11,824 parameters, 47.3 kB; KV cache: 320 bytes a token
"""
    )
    assert run("show", "-", stdin=PLAN).out == result.out.replace("p.tailor", "<stdin>")


def test_the_map_shows_known_layers_without_the_models(run: Run, here: Path) -> None:
    (here / "base").unlink()
    result = run("show", "p.tailor")
    assert result.code == 0
    assert "at least 5 layers" in result.out


def test_the_program_is_one_line_a_tensor(run: Run, here: Path) -> None:
    result = run("show", "--program", "p.tailor")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("model.embed_tokens.weight F32[64,16] = copy base/")
    assert len(lines) == 3 + 5 * 9
    merged = [line for line in lines if "= linear(" in line]
    assert len(merged) == 9
    assert all(line.startswith("model.layers.2.") for line in merged)
    assert all("weight=(0.75, 0.25)" in line for line in merged)
    result = run("show", "--program", "p.tailor", "--model", "base=none")
    assert result.code == 1


def test_differences_in_words(run: Run, here: Path) -> None:
    (here / "q.tailor").write_text(PLAN.replace("drop L4", "drop L3..L4").replace("0.25", "0.5"))
    result = run("diff", "p.tailor", "q.tailor")
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[:2] == ["1: p.tailor", "2: q.tailor"]
    assert "      ^ ^" in lines
    assert lines[-2:] == [
        "L2: merge(L2 base, L2 math, 0.25) → merge(L2 base, L2 math, 0.5)",
        "L3: base → dropped",
    ]
    (here / "r.tailor").write_text(CANONICAL)
    assert run("diff", "p.tailor", "r.tailor") == (0, "the plans are equal\n", "")
    assert run("diff", "-", "p.tailor", stdin=PLAN).code == 0


def test_folders_are_shown_and_compared_as_the_plans_they_are(run: Run, here: Path) -> None:
    assert run("compile", "p.tailor", "-o", "out").code == 0
    assert run("diff", "p.tailor", "out") == (0, "the plans are equal\n", "")
    assert run("diff", "out", "p.tailor").code == 0
    assert run("compile", "p.tailor", "-o", "half", "--dtype", "float16").code == 0
    assert run("diff", "p.tailor", "half").out == "dtype: as the base → float16\n"
    assert "merge(L2 base, L2 math, 0.25)" in run("show", "out").out
    assert "6 layers of" in run("show", "base").out
    assert run("diff", "base", "p.tailor").code == 1


def test_json_is_a_plan_too(run: Run, here: Path) -> None:
    result = run("json", "p.tailor")
    assert (result.code, result.err) == (0, "")
    (here / "p.json").write_text(result.out)
    assert run("diff", "p.tailor", "p.json").code == 0
    assert run("check", "p.json").code == 0
    assert run("json", "p.json").out == result.out
    assert run("compile", "p.json", "-o", "a").code == 0
    assert run("compile", "p.tailor", "-o", "b").code == 0
    assert_same_weights(here / "a", here / "b")
    result = run("check", "-", stdin='{"layer": []}')
    assert result.code == 1
    assert "S107" in result.err


def test_the_schema_describes_plans(run: Run, here: Path) -> None:
    output = run("schema").out
    assert output == (ROOT / "docs" / "plan.schema.json").read_text("utf-8"), (
        "gptailor schema > docs/plan.schema.json"
    )
    schema = json.loads(output)
    assert schema["$id"] == "urn:gptailor:plan:1"
    document = json.loads(run("json", "p.tailor").out)
    assert schema["title"] == "Plan"
    assert schema["additionalProperties"] is False
    assert set(document) <= set(schema["properties"]) == set(Plan.model_fields)

    validator = pytest.importorskip("jsonschema").Draft202012Validator
    validator.check_schema(schema)
    validator(schema).validate(document)
    assert list(validator(schema).iter_errors({"layer": []}))


def test_the_schema_describes_families(run: Run, here: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(run("schema", "--family").out)
    assert schema["$id"] == "urn:gptailor:family:1"
    check = jsonschema.Draft202012Validator(schema).is_valid
    documents = [json.loads(path.read_bytes()) for path in FOLDER.iterdir()]
    assert all(map(check, documents))
    assert not any(check(document | {"layrs": []}) for document in documents)


# ----------------------------------------------------------------------------------------- compile


def assert_same_weights(a: Path, b: Path) -> None:
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def test_compile_prints_the_written_files(run: Run, here: Path) -> None:
    result = run("compile", "p.tailor", "-o", "deep/out")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("deep/out: 5 layers (the base has 6), 0.0 M parameters, 47.3 kB")
    assert set(names(here / "deep" / "out")) >= {"config.json", "model.safetensors", "plan.tailor"}
    assert names(here / "deep") == ["out"]
    result = run("compile", "-", "-o", "other", stdin=PLAN)
    assert result.code == 0
    assert_same_weights(here / "other", here / "deep" / "out")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("stack { L0..L2 base }", "read what it writes: gptailor generate 'my out' "),
        ("drop L1", "read what it writes: gptailor generate 'my out' "),
        ("L1 from math", None),
    ],
)
def test_a_cut_without_repair_names_the_command_that_reads_it(
    run: Run, here: Path, body: str, line: str | None
) -> None:
    models = 'model base = "./base"\nmodel math = "./math"\n'
    (here / "p.tailor").write_text(f"tailor 1\n{models}{body}\n")
    last = run("compile", "p.tailor", "-o", "my out").out.splitlines()[-1]
    assert last.startswith(line or "my out: 6 layers")


def test_a_dtype_of_the_command_line_has_no_place_in_the_plan(here: Path) -> None:
    plan = gptailor.loads(f"{PLAN}dtype bfloat16\n", folder=here)
    with pytest.raises(PlanError) as caught:
        gptailor.compile(plan, here / "out", dtype="fp16")
    assert [(fault.code, fault.span) for fault in caught.value.faults] == [("P403", None)]


def test_a_folder_behind_a_link_names_its_models(run: Run, here: Path) -> None:
    assert run("compile", "p.tailor", "-o", "out").code == 0
    (here / "far" / "away").mkdir(parents=True)
    (here / "far" / "away" / "link").symlink_to("../../out")
    result = run("show", "far/away/link")
    assert "layers of './base'" in result.out.splitlines()[0]


def test_a_dry_run_writes_nothing(run: Run, here: Path) -> None:
    before = names(here)
    result = run("compile", "p.tailor", "-o", "out", "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("would write out: 5 layers (the base has 6)\n")
    assert "merge(L2 base, L2 math, 0.25)" in result.out
    assert names(here) == before


def test_flags_of_compile_take_effect(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_module, "SMALLEST_SHARD", 1)
    result = run("compile", "p.tailor", "-o", "out", "--dtype", "bfloat16", "--shard-size", "10kB",
               "--model", "math=code")  # fmt: skip
    assert result.code == 0, result.err
    shards = sorted((here / "out").glob("*.safetensors"))
    assert len(shards) > 1
    tensors = {k: v for shard in shards for k, v in load_file(shard).items()}
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}
    text = (here / "out" / "plan.tailor").read_text()
    assert 'code"' in text.partition("model math = ")[2].partition("\n")[0]
    assert "dtype bfloat16" in text
    code = load_file(here / "code" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert tensors[name].equal(code[name].bfloat16())


@pytest.mark.parametrize("size", ["5000", "5kB", "0.005 MB", "4.8828125KiB"])
def test_shard_sizes_have_units(
    run: Run, here: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_module, "SMALLEST_SHARD", 1)
    assert run("compile", "p.tailor", "-o", "out", "--shard-size", size).code == 0
    assert run("compile", "p.tailor", "-o", "same", "--shard-size", "5000B").code == 0
    assert names(here / "out") == names(here / "same")


def test_an_unknown_dtype_names_the_option(run: Run, here: Path) -> None:
    result = run("compile", "p.tailor", "-o", "out", "--dtype", "bfloat61")
    assert result.code == 2
    assert "Invalid value for '--dtype': 'bfloat61'" in result.err
    assert "bfloat16" in result.err
    assert not (here / "out").exists()


def test_a_faulty_plan_is_not_compiled(run: Run, here: Path) -> None:
    (here / "p.tailor").write_text(PLAN + "drop L4\n")
    result = run("compile", "p.tailor", "-o", "deep/out")
    assert (result.code, result.out) == (1, "")
    assert "error[P210]" in result.err
    assert not (here / "deep").exists()


def test_an_open_plan_is_not_compiled(run: Run, here: Path) -> None:
    (here / "p.tailor").write_text(PLAN.replace("0.25", "0.0..1.0"))
    assert run("check", "p.tailor").code == 0
    result = run("compile", "p.tailor", "-o", "out")
    assert result.code == 1
    assert "expected a closed plan, got 1 open choice" in result.err
    assert "0.0..1.0" in result.err, "the line of the choice"
    assert "gptailor search" in result.err
    assert not (here / "out").exists()


def test_an_existing_folder_is_kept_without_force(run: Run, here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "mine").write_text("dear")
    result = run("compile", "p.tailor", "-o", "out")
    assert result.code == 3
    assert "exists already" in result.err
    assert "--force" not in result.err
    assert names(here / "out") == ["mine"]
    (here / "out" / "config.json").write_text("{}")
    result = run("compile", "p.tailor", "-o", "out", "--force")
    assert result.code == 3
    assert "move mine to another folder; then --force replaces it" in result.err
    assert names(here / "out") == ["config.json", "mine"]
    (here / "out" / "mine").unlink()
    assert run("compile", "p.tailor", "-o", "out", "--force").code == 0


def test_a_folder_that_holds_no_model_is_not_replaced(run: Run, here: Path) -> None:
    (here / "results").mkdir()
    (here / "results" / "mine").write_text("dear")
    result = run("compile", "p.tailor", "-o", "results", "--force")
    assert result.code == 3
    assert "error[C302]: expected a model to replace, got a folder without a model" in result.err
    assert names(here / "results") == ["mine"]


@pytest.mark.parametrize("target", ["base", "base/inner", ".", "p.tailor", "p.tailor/out"])
def test_a_target_that_would_destroy_something(run: Run, here: Path, target: str) -> None:
    before = names(here), names(here / "base")
    for flags in ([], ["--force"]):
        result = run("compile", "p.tailor", "-o", target, *flags)
        assert result.code == 3
        assert result.err.startswith("error")
        assert len(result.err.splitlines()) <= 4
    assert (names(here), names(here / "base")) == before
    assert (here / "p.tailor").read_text() == PLAN


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system that nobody can write")
def test_a_target_that_can_not_be_written(run: Run, here: Path) -> None:
    result = run("compile", "p.tailor", "-o", "/proc/nowhere/out")
    assert result.code == 3
    assert "cannot be written" in result.err
    assert "/proc/nowhere" in result.err


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_target_in_a_file_is_refused_before_anything_is_computed(
    run: Run, here: Path, flags: list[str]
) -> None:
    result = run("compile", "p.tailor", "-o", "p.tailor/in/out", *flags)
    assert result.code == 3
    assert "error[C302]: is a file, expected a folder" in result.err
    assert "p.tailor\n" in result.err


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder(run: Run, here: Path) -> None:
    (here / "locked").mkdir(mode=0o500)
    result = run("compile", "p.tailor", "-o", "locked/out")
    assert result.code == 3
    assert "Permission denied" in result.err
    assert names(here / "locked") == []


# ------------------------------------------------------------------------------- real processes


def process(
    *arguments: str, limit: int | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [*SCRIPT, *arguments]
    if limit is not None:
        command.insert(1, "-B")  # bytecode that is cut off would be read by others
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=restrict,
        **more,
    )


def test_a_disk_that_is_full_leaves_nothing(here: Path) -> None:
    before = names(here)
    result = process("compile", "p.tailor", "-o", "deep/out", limit=20_000)
    assert result.returncode == 3
    assert result.stderr.startswith("error[C303]: cannot be written: File too large\n")
    assert "deep/out/model.safetensors" in result.stderr
    assert "Traceback" not in result.stderr
    assert names(here) == before


def test_formatting_on_a_full_disk_keeps_the_plan(here: Path) -> None:
    before = names(here)
    result = process("fmt", "p.tailor", limit=50)
    assert result.returncode == 3
    assert result.stderr.startswith("error[C303]: cannot be written: ")
    assert " --> p.tailor" in result.stderr
    assert (here / "p.tailor").read_text() == PLAN
    assert names(here) == before


def test_a_reader_that_goes_away_isnt_an_error() -> None:
    with subprocess.Popen(
        [*SCRIPT, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 128 + signal.SIGPIPE


def test_colours_are_for_terminals(here: Path) -> None:
    (here / "p.tailor").write_text(PLAN + "drop L4\n")
    assert "\x1b[" not in process("check", "p.tailor").stderr
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        output = on_a_terminal("check", "p.tailor", env={**environment, "TERM": "xterm", **extra})
        assert ("\x1b[" in output) is coloured
        assert "error[P210]" in output


def on_a_terminal(*arguments: str, env: dict[str, str]) -> str:
    """Return the output of a command on a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*SCRIPT, *arguments], stdin=slave, stdout=slave, stderr=slave, env=env
    ) as child:
        os.close(slave)
        shown = b""
        while chunk := _read(master):
            shown += chunk
        child.wait()
    os.close(master)
    return shown.decode()


def _read(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except OSError:  # the other end is closed
        return b""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, family: Path) -> Path:
    """A model with a slow merge: its weights are holes in a file."""
    folder = tmp_path_factory.mktemp("large") / "base"
    folder.mkdir()
    config = json.loads((family / "base" / "config.json").read_text())
    size, layers = 1024, 8
    config |= {"hidden_size": size, "intermediate_size": 2 * size, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": size // 8}
    (folder / "config.json").write_text(json.dumps(config))
    square, wide = [size, size], [2 * size, size]
    shapes: dict[str, list[int]] = {
        **{f"self_attn.{name}_proj": square for name in "qkvo"},
        "mlp.gate_proj": wide,
        "mlp.up_proj": wide,
        "mlp.down_proj": wide[::-1],
        "input_layernorm": [size],
        "post_attention_layernorm": [size],
    }
    tensors = {f"model.layers.{n}.{k}.weight": v for n in range(layers) for k, v in shapes.items()}
    tensors |= {"model.embed_tokens.weight": [64, size], "lm_head.weight": [64, size]}
    tensors |= {"model.norm.weight": [size]}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * (shape[0] * (shape[1] if len(shape) > 1 else 1))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return folder.parent


@pytest.mark.parametrize("force", [False, True])
def test_an_interrupt_leaves_nothing(large: Path, tmp_path: Path, force: bool) -> None:
    head = f'tailor 1\nmodel base = "{large}/base"\n'
    body = "merge(L0..L7 base, L0..L7 base, L0..L7 base) by karcher()\n"
    (tmp_path / "p.tailor").write_text(head + body)
    if force:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text("{}")
    before = names(tmp_path)
    command = [*SCRIPT, "compile", "p.tailor", "-o", "out", *["--force"] * force]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        while child.poll() is None and not grown(tmp_path):
            time.sleep(0.01)
        assert child.poll() is None, child.stderr.read()
        child.send_signal(signal.SIGINT)
        assert child.stderr.read().strip() == "interrupted"
        assert child.wait(30) == 130
    assert names(tmp_path) == before
    assert not force or (tmp_path / "out" / "config.json").read_text() == "{}"


def grown(folder: Path) -> bool:
    """True if a compilation has written some of its weights."""
    result = folder.glob(".out.partial-*/new/*.safetensors")
    return any(file.stat().st_size > 2**20 for file in result)
