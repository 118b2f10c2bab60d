"""`--set NAME=VALUE`: other values for a plan's `let`s, and sweeps of them in `eval`."""

import json
from pathlib import Path

import pytest

import gptailor
from gptailor.plan.faults import PlanError
from tests.support.said import Run, in_process, reading

pytestmark = pytest.mark.usefixtures("one_thread", "brief_answers")

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
let mix = 0.3  # the share of math
let late = one of (0.1, 0.2)
merge(L0 base, L0 math, mix)
merge(L1 base, L1 math, late)
"""


@pytest.fixture(scope="module")
def world(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for name in ("base", "math"):
        (folder / name).symlink_to(family / name)
    (folder / "open.tailor").write_text(PLAN)
    (folder / "plan.tailor").write_text(PLAN.replace("one of (0.1, 0.2)", "0.1"))
    (folder / "text.jsonl").write_text('{"text": "a cat sat on the mat"}\n{"text": "a dog"}\n')
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, world: Path) -> Run:
    monkeypatch.chdir(world)
    return reading(in_process(capsys), monkeypatch)


def test_a_value_replaces_that_of_the_text(run: Run) -> None:
    result = run("json", "plan.tailor", "--set", "mix=0.75")
    assert json.loads(result.out)["numbers"] == {"mix": 0.75, "late": 0.1}


def test_a_choice_is_closed(run: Run) -> None:
    assert "1 choice open" in run("check", "open.tailor").out
    assert run("check", "open.tailor", "--set", "late=0.2").out == "open.tailor: no faults\n"


def test_a_number_becomes_a_choice(run: Run) -> None:
    result = run("check", "plan.tailor", "--set", "mix=0.1..0.9", "--set", "late=one of (0.5, 1)")
    assert "2 choices open" in result.out


def test_the_compiled_plan_has_the_value(run: Run, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("compile", "plan.tailor", "-o", out, "--set", "mix=0.75").code == 0
    assert "let mix = 0.75" in (out / "plan.tailor").read_text()
    direct = (world / "plan.tailor").read_text().replace("0.3", "0.75")
    gptailor.compile(gptailor.loads(direct, folder=world), tmp_path / "direct")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "direct")]
    assert weights[0] == weights[1]


def test_the_same_in_python(world: Path) -> None:
    plan = gptailor.load(world / "plan.tailor", let={"mix": 0.75})
    assert plan.numbers["mix"] == 0.75
    assert gptailor.loads(PLAN, let={"late": "0.2"}).numbers["late"] == 0.2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mx=0.5", "error[P114]: the number 'mx' is not defined"),
        ("mix=1; drop L2", "error[P303]: expected a number, an interval or 'one of (…)'"),
        ("mix=0.5 L0 from b", "error[S101]"),
        ("mix=nan", "error[S101]"),
        ("mix=L3", "error[S101]"),
        ("mix=0.2..0.1", "error[P"),
    ],
)
def test_a_wrong_value_is_a_fault(run: Run, setting: str, message: str) -> None:
    result = run("check", "plan.tailor", "--set", setting)
    assert result.code == 1
    assert result.err.startswith(message)


def test_a_fault_names_the_setting(run: Run) -> None:
    result = run("check", "plan.tailor", "--set", "mix=0.2..0.1")
    assert " --> plan.tailor with mix=0.2..0.1:4:1\n" in result.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["mix"], "expected NAME=VALUE, got 'mix'"),
        (["mix="], "expected NAME=VALUE, got 'mix='"),
        (["mix=0.1,0.2"], "--set mix=0.1,0.2 has 2 values; give one"),
        (["mix=0.1", "mix=0.2"], "--set has one number twice"),
        (["mix=0.1,0.1"], "'mix=0.1,0.1' has a value twice"),
    ],
)
def test_a_wrong_option_is_a_usage_error(run: Run, settings: list[str], message: str) -> None:
    result = run("check", "plan.tailor", *(word for s in settings for word in ("--set", s)))
    assert result.code == 2
    assert message in result.err


def test_a_plan_in_json_has_no_lets(run: Run, world: Path) -> None:
    (world / "plan.json").write_text(run("json", "plan.tailor").out)
    result = run("check", "plan.json", "--set", "mix=0.5")
    assert (result.code, "change 'numbers' in the file" in result.err) == (1, True)


def test_eval_sweeps_a_value_and_draws_a_chart(run: Run, world: Path) -> None:
    swept = ("eval", "plan.tailor", "-O", 'nll("text.jsonl")', "--no-speed")
    result = run(*swept, "--set", "mix=0.0,0.5,1.0", "--format", "json")
    assert result.code == 0, result.err
    rows = [r for r in json.loads(result.out)["results"] if " with " in r["target"]]
    assert [row["target"] for row in rows] == [f"plan.tailor with mix={m}" for m in (0.0, 0.5, 1.0)]
    single = json.loads(run(*swept, "--set", "mix=0.5", "--format", "json").out)["results"]
    assert [r["score"] for r in single if " with " in r["target"]] == [rows[1]["score"]]
    result = run(*swept, "--set", "mix=0.0,0.5,1.0").out
    head, *chart = (
        result.partition("over 'mix'")[2].partition("answers to")[0].strip("\n").splitlines()
    )
    assert head == f" (bars begin at {min(row['score'] for row in rows):.4g})"
    assert [line.split()[0] for line in chart] == ["0.0", "0.5", "1.0"]
    best = min(range(3), key=lambda n: rows[n]["score"])
    assert [n for n, line in enumerate(chart) if line.endswith("(best)")] == [best]


def test_a_sweep_of_standard_input_reads_it_once(run: Run, world: Path) -> None:
    result = run("eval", "-", "-O", 'nll("text.jsonl")', "--no-speed", "--set", "mix=0.2,0.4",
               stdin=(world / "plan.tailor").read_text())  # fmt: skip
    assert result.code == 0, result.err
    assert result.out.count("<stdin> with mix=") >= 2


def test_a_let_is_swept_by_one_option(run: Run) -> None:
    result = run(
        "eval", "plan.tailor", "-O", 'nll("text.jsonl")', "--set", "mix=0", "--set", "mix=1"
    )
    assert (result.code, "--set has one number twice" in result.err) == (2, True)


def test_a_plan_may_be_given_twice_with_a_folder_of_any_name(run: Run, world: Path) -> None:
    if not (world / "x with y").exists():
        (world / "x with y").symlink_to(world / "math")
    result = run("eval", "plan.tailor", "plan.tailor", "x with y", "-O", 'nll("text.jsonl")',
               "--no-speed", "--set", "mix=0.1,0.4")  # fmt: skip
    assert result.code == 0, result.err
    assert result.out.count("over 'mix'") == 1


def test_a_sweep_evaluates_folders_too(run: Run) -> None:
    result = run("eval", "math", "plan.tailor", "-O", 'nll("text.jsonl")', "--no-speed",
               "--set", "mix=0.5", "--format", "json")  # fmt: skip
    targets = [row["target"] for row in json.loads(result.out)["results"]]
    assert {"math", "plan.tailor with mix=0.5"} <= set(targets)


def test_a_sweep_of_many_plans_asks_first(run: Run) -> None:
    values = ",".join(str(n / 200) for n in range(101))
    result = run("eval", "plan.tailor", "-O", 'nll("text.jsonl")', "--set", f"mix={values}")
    assert result.code == 2
    assert "--set makes 101 plans; add --many-plans to evaluate them all" in result.err


def test_a_sweep_needs_a_plan(run: Run) -> None:
    result = run("eval", "math", "-O", 'nll("text.jsonl")', "--set", "mix=0.5")
    assert (result.code, "--set expects the file of a plan, got 'math'" in result.err) == (2, True)


def test_every_combination_is_a_plan(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptailor.cli.options import swept

    monkeypatch.chdir(world)
    result = swept(["plan.tailor", "math"], (("mix", ("0.1", "0.2")), ("late", ("0.3", "0.4"))))
    assert result[-1] == "math"
    numbers = [plan.numbers for plan in result[:-1]]  # type: ignore[union-attr]
    assert [(n["mix"], n["late"]) for n in numbers] == [
        (0.1, 0.3), (0.1, 0.4), (0.2, 0.3), (0.2, 0.4),
    ]  # fmt: skip


def test_a_name_that_a_plan_lacks_stops_it(world: Path) -> None:
    with pytest.raises(PlanError, match="the number 'x' is not defined"):
        gptailor.load(world / "plan.tailor", let={"x": 1})


@pytest.mark.parametrize("value", [True, None, [0.5], float("nan")])
def test_a_value_of_another_type_isnt_a_syntax_fault(value: object) -> None:
    with pytest.raises(PlanError, match="expected a number, an interval or 'one of") as error:
        gptailor.loads(PLAN, let={"mix": value})
    assert [fault.code for fault in error.value.faults] == ["P303"]


COUNT = """\
tailor 1
model base = "./base"
let n = 1
drop any n of L0..L1
search { minimize nll("text.jsonl"); trials 4 }
"""


@pytest.fixture
def _count(world: Path) -> None:
    (world / "count.tailor").write_text(COUNT)


@pytest.mark.usefixtures("_count")
def test_an_option_sets_the_count_of_dropped_layers(run: Run) -> None:
    assert json.loads(run("json", "count.tailor").out)["drop_any"][0]["count"] == 1
    set_to_two = json.loads(run("json", "count.tailor", "--set", "n=2").out)
    assert set_to_two["drop_any"] == [{"count": 2, "among": [0, 1], "named": "n"}]
    result = run("check", "count.tailor", "--set", "n=0.5")
    assert (result.code, "error[P310]" in result.err) == (1, True)
    assert (
        "expected at most 2 layers to drop, got 3"
        in run("check", "count.tailor", "--set", "n=3").err
    )


@pytest.mark.usefixtures("_count")
def test_a_count_in_json_is_its_number(run: Run, world: Path) -> None:
    document = json.loads(run("json", "count.tailor").out)
    document["numbers"]["n"] = 2
    (world / "count.json").write_text(json.dumps(document))
    result = run("check", "count.json")
    assert result.code == 1
    assert "error[P310]: the count is 1, but 'n' is 2" in result.err


# ------------------------------------------------------------------------------------- references


def test_each_value_has_its_own_reference(run: Run, world: Path) -> None:
    text = PLAN.partition("let late")[0]
    text += "model blend = base, math by linear(1, mix)\nwhole from blend\n"
    (world / "blend.tailor").write_text(text)
    result = run("eval", "blend.tailor", "--set", "mix=0.3,0.7", "--format", "json", "--no-speed",
               "-O", 'kl("text.jsonl", from=blend)')  # fmt: skip
    assert result.code == 0
    values = [row["score"] for row in json.loads(result.out)["results"]]
    assert len(values) == 2
    assert all(abs(value) < 1e-5 for value in values), "a plan's own blend is the reference"


def test_too_many_plans_name_a_flag_that_exists(run: Run) -> None:
    values = ",".join(str(n / 200) for n in range(101))
    result = run("eval", "plan.tailor", "--set", f"mix={values}", "-O", "parameters()")
    assert "add --many-plans to evaluate them all" in result.err
    result = run("generate", "plan.tailor", "--set", f"mix={values}", "a cat")
    assert (result.code, "--many-plans" in result.err) == (2, False)
    assert "give fewer values, for at most 100 plans" in result.err


def test_a_text_in_the_home_is_found(
    run: Run, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(world))
    assert run("eval", "base", "-O", 'nll("~/text.jsonl")', "--no-speed").code == 0


# ------------------------------------------------------------------------------ diff and export


@pytest.mark.usefixtures("renders_here")
def test_diff_finds_no_difference_between_a_plan_and_its_folder(
    run: Run, world: Path, tmp_path: Path
) -> None:
    (world / "t.jinja").write_text("{{ messages }}")
    (world / "long.txt").write_text("a cat sat on the mat. " * 60)
    lines = ["drop L2", 'bridge on "long.txt" tokens 240', 'chat_template "./t.jinja"']
    (world / "cut.tailor").write_text('tailor 1\nmodel base = "./base"\n' + "\n".join(lines))
    assert run("compile", "cut.tailor", "-o", tmp_path / "out").code == 0
    result = run("diff", "cut.tailor", tmp_path / "out")
    assert (result.code, result.out) == (0, "the plans are equal\n")


def test_an_export_names_the_given_folder(run: Run, world: Path) -> None:
    text = PLAN.partition("let late")[0] + "merge(L0 base, L0 math, mix)\n"
    (world / "merge.tailor").write_text(text)
    result = run("export", "merge.tailor", "--model", f"math={world / 'base'}")
    assert (result.code, "./math" in result.out) == (0, False)
    assert run("export", "merge.tailor", "--model", "none=./base", "--layers", "4").code == 1
