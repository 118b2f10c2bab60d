"""`gptailor eval`: a plan and its folder score alike; bad input is one message with its place."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest

import gptailor
from gptailor.cli import main as cli
from gptailor.evaluation import generate as answers
from tests.support.said import Run, in_process, reading
from tests.support.tiny import tiny_model, write_rows

pytestmark = pytest.mark.usefixtures("one_thread", "brief_answers")

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
L1 from math
merge(L2 base, L2 math, 0.5)
drop L3
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed, layers=5)
    (folder / "cut.tailor").write_text(PLAN)
    gptailor.compile(gptailor.load(folder / "cut.tailor"), folder / "out")
    (folder / "long.txt").write_text("the cat sat on the mat, " * 40)
    (folder / "short.txt").write_text("a cat")
    (folder / "empty.jsonl").write_text("\n")
    write_rows(folder / "rows.jsonl", [{"text": "a cat " * n} for n in range(1, 9)])
    write_rows(folder / "broken.jsonl", [{"text": "a"}, {"txt": "b"}])
    answers = [{"context": f"{n}, then ", "answer": str(n + 1)} for n in range(4)]
    write_rows(folder / "answers.jsonl", answers)
    questions = [{"query": f"{n}:", "choices": ["so", "no"], "gold": n % 2} for n in range(8)]
    write_rows(folder / "questions.jsonl", questions)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, world: Path) -> Run:
    """Run `gptailor eval` in the world's folder."""
    monkeypatch.chdir(world)
    return partial(reading(in_process(capsys), monkeypatch), "eval")


OBJECTIVES = (
    'nll("long.txt")',
    'kl("rows.jsonl")',
    'multiple_choice("questions.jsonl", metric="acc_norm")',
    'generate("answers.jsonl")',
)


def flags(*objectives: str) -> list[str]:
    return [part for text in objectives for part in ("--objective", text)]


def test_a_plan_is_judged_healed_and_this_is_reported(
    run: Run, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    (world / "text.txt").write_text("".join(f"the {n} cats sat on {n * n}. " for n in range(300)))
    (world / "healed.tailor").write_text(PLAN + 'heal on "text.txt" tokens 1024\n')
    command = ("healed.tailor", "cut.tailor", "mended", *flags('nll("long.txt")'), "--no-speed")
    gptailor.compile(gptailor.load(world / "healed.tailor"), world / "mended")
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "elsewhere"))
    done = run(*command, "--format", "json")
    assert done.code == 0
    assert "healing 4 layers: " in done.err
    assert "healing: step 8 of 8" in done.err
    live, bare, folder = (result["score"] for result in json.loads(done.out)["results"])
    assert live == folder != bare


def test_a_plan_and_its_folder_have_equal_scores(run: Run) -> None:
    outcome = run(
        "cut.tailor", "out", "base", *flags(*OBJECTIVES), "--format", "json", "--no-speed"
    )
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    results = result["results"]
    assert [item["target"] for item in results] == ["cut.tailor"] * 4 + ["out"] * 4 + ["base"] * 4
    keys = ("objective", "score", "stderr", "samples", "retained")
    plan, out, base = (
        [tuple(item[key] for key in keys) for item in results[at : at + 4]] for at in (0, 4, 8)
    )
    assert plan == out
    assert plan != base
    assert [item[0] for item in plan] == list(OBJECTIVES)
    assert base[1][1] == 0, "the base is where it is"
    assert result["bases"] == [], "the base is a target"
    sizes = {
        target["target"]: (target["layers"], target["kv_bytes"]) for target in result["targets"]
    }
    assert sizes["cut.tailor"] == sizes["out"] == (4, sizes["base"][1] * 4 // 5)


def test_the_base_is_evaluated_too(run: Run) -> None:
    outcome = run("cut.tailor", *flags('nll("rows.jsonl")'), "--format", "json")
    result = json.loads(outcome.out)
    [mine], [base] = result["results"], result["bases"]
    assert base["target"] == "./base"
    assert mine["retained"] == pytest.approx(base["score"] / mine["score"])
    assert mine["samples"] == 8
    [target] = result["targets"]
    assert target["speed"].keys() == {"prefill", "decoding"}
    assert target["base_speed"]["decoding"] > 0


def test_one_text_under_two_names_is_refused_as_given_twice(run: Run) -> None:
    result = run("cut.tailor", *flags('nll("rows.jsonl")', 'nll("./rows.jsonl")'), "--no-speed")
    assert result.code == 2
    assert 'nll("./rows.jsonl") is given twice' in result.err


def test_the_base_is_a_path_from_the_current_folder(run: Run, world: Path) -> None:
    (world / "found").mkdir()
    (world / "found" / "cut.tailor").write_text(PLAN.replace('"./', '"../'))
    result = run("found/cut.tailor", *flags('nll("rows.jsonl")'), "--no-speed")
    assert "difference from ./base, paired" in result.out, result.err
    assert "../base" not in result.out


def test_a_folder_without_its_base_has_scores_and_no_share(run: Run, world: Path) -> None:
    plan = (world / "out" / "plan.tailor").read_text()
    (world / "orphan").mkdir()
    for file in (world / "out").iterdir():
        (world / "orphan" / file.name).write_bytes(file.read_bytes())
    (world / "orphan" / "plan.tailor").write_text(plan.replace("../base", "../gone"))
    arguments = ("orphan", *flags('nll("rows.jsonl")', 'kl("rows.jsonl")'), "--no-speed")
    result = run(*arguments, "--format", "json")
    nll, kl = json.loads(result.out)["results"]
    assert result.code == 3
    assert (nll["retained"], nll["samples"]) == (None, 8)
    assert kl["score"] is None
    assert "the base of 'orphan' is missing" in kl["failure"]["message"]
    there = run(*arguments, "--model", "base=base", "--format", "json")
    assert there.code == 0, there.err
    assert json.loads(there.out)["results"][0]["retained"] is not None


def test_eval_prints_a_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = run("cut.tailor", "out", *flags(*OBJECTIVES))
    assert result.code == 0
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    choice = next(name for name in OBJECTIVES if name.startswith("multiple_choice"))
    at = lines.index(f"({1 + list(OBJECTIVES).index(choice)}) {choice}:")
    assert lines[at + 1] == "  8 samples, more is better"
    assert sum(line.count("±") for line in lines) == 3 * 4 + 2 * 2, (
        "kl and generate are 0 for the base"
    )
    assert "difference from ./base, paired (* beyond two errors)" in lines
    assert any("KV/token" in line and "decoding/s" in line for line in lines)
    at = lines.index('answers to "The sky is blue because":')
    assert lines[at - 1] == ""
    answers = lines[at + 1 :]
    names = [line.partition(":")[0] for line in answers if line[2] != " "]
    assert names == ["  ./base", "  cut.tailor", "  out"]
    assert "2/" in result.err, "progress is said in lines where there is no terminal"


def test_differences_are_paired_and_relative_to_the_named_target(run: Run) -> None:
    wanted = ("cut.tailor", *flags('nll("rows.jsonl")'), "--no-speed", "--against", "out")
    [cut, out] = json.loads(run(*wanted, "--format", "json", "--each").out)["results"]
    assert (cut["against"], cut["difference"]) == ("out", {"value": 0.0, "stderr": 0.0})
    assert "difference" not in out
    each = cut["each"]
    assert len(each["sums"]) == len(each["counts"]) == cut["samples"]
    assert sum(each["sums"]) / sum(each["counts"]) == pytest.approx(cut["score"])
    lines = run(*wanted, "--format", "csv").out.splitlines()
    rows = list(csv.DictReader(lines))
    assert [row["target"] for row in rows] == ["./base", "cut.tailor", "out"]
    assert float(rows[1]["score"]) == cut["score"]
    assert (rows[1]["against"], rows[1]["difference"], rows[2]["against"]) == ("out", "0.0", "")
    assert run(*wanted, "--each").code == 2


def test_samples_are_a_prefix_by_the_seed(run: Run) -> None:
    few = run("base", *flags('nll("rows.jsonl")'), "--samples", 3, "--format", "json")
    same = run("base", *flags('nll("rows.jsonl")'), "--samples", 3, "--format", "json")
    other = run(
        "base", *flags('nll("rows.jsonl")'), "--samples", 3, "--seed", 7, "--format", "json"
    )
    score = [json.loads(item.out)["results"][0]["score"] for item in (few, same, other)]
    assert score[0] == score[1] != score[2]


def test_a_plan_from_standard_input(run: Run) -> None:
    result = run("-", *flags('nll("rows.jsonl")'), "--no-speed", "--format", "json", stdin=PLAN)
    assert json.loads(result.out)["results"][0]["target"] == "<stdin>"


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        ([], 2, "TARGET"),
        (["cut.tailor"], 2, "--objective"),
        (["gone.tailor", "-O", 'nll("long.txt")'], 3, "gone.tailor"),
        (["~nobody9/a.tailor", "-O", 'nll("~nobody9/t.txt")'], 3, "'~nobody9/a.tailor'"),
        (["cut.tailor", "-O", 'nl("long.txt")'], 1, "did you mean 'nll'?"),
        (["cut.tailor", "-O", "nll(long.txt)"], 1, "--objective:1:9"),
        (["cut.tailor", "-O", 'nll("gone.txt")'], 3, "gone.txt"),
        (["cut.tailor", "-O", 'nll("empty.jsonl")'], 3, "C802"),
        (["cut.tailor", "-O", 'nll("broken.jsonl")'], 3, "broken.jsonl:2"),
        (["cut.tailor", "-O", 'nll("short.txt")'], 3, "C805"),
        (["cut.tailor", "-O", 'multiple_choice("questions.jsonl", metric="f1")'], 1, "'f1'"),
        (["cut.tailor", "-O", 'kl("long.txt", from=code)'], 1, "'code' is not declared"),
        (["cut.tailor", "-O", 'nll("long.txt")', "-O", 'nll("long.txt")'], 2, "twice"),
        (["cut.tailor", "-O", 'nll("long.txt")', "--device", "cuda:99"], 3, "cuda:99"),
        (["cut.tailor", "-O", 'nll("long.txt")', "--model", "code=x"], 1, "'code'"),
        (["cut.tailor", "-O", 'nll("long.txt")', "--memory", "big"], 2, "'big'"),
        (["cut.tailor", "-O", 'nll("long.txt")', "--samples", "0"], 2, "samples"),
    ],
)
def test_bad_input_is_one_clear_message(
    run: Run, arguments: list[str], code: int, named: str
) -> None:
    result = run(*arguments)
    assert result.code == code, result.err
    assert named in result.err
    assert result.out == ""


def test_memory_that_holds_no_layer_is_a_failure(run: Run) -> None:
    outcome = run("cut.tailor", *flags('nll("long.txt")'), "--memory", "100B", "--format", "json")
    assert outcome.code == 3
    [result] = json.loads(outcome.out)["results"]
    assert result["score"] is None
    assert result["failure"]["reason"] in ("error", "memory")


@pytest.mark.parametrize("memory", ["40kB"])
def test_streamed_layers_have_equal_scores(run: Run, memory: str) -> None:
    arguments = ("cut.tailor", *flags('nll("long.txt")'), "--no-speed", "--format", "json")
    whole, streamed = run(*arguments), run(*arguments, "--memory", memory)
    assert streamed.code == 0, streamed.out
    assert json.loads(streamed.out)["results"] == json.loads(whole.out)["results"]


# ------------------------------------------------------------------------------------- generate


@pytest.mark.parametrize(
    ("answer", "shown"),
    [("", "  (ends at once)"), ("\n\n", '  ("\\n\\n" alone)'), ("\n\na cat", "  a cat")],
)
def test_an_answer_without_words_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world: Path,
    answer: str, shown: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(world)
    given = answers.GeneratedText("base", answer)
    monkeypatch.setattr(answers, "answers", lambda *_, **__: iter([given]))
    assert cli.run(["generate", "base", "a cat"]) == 0
    assert capsys.readouterr().out == f"base\n{shown}\n"


def test_plans_and_folders_generate_the_same_text(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], world: Path
) -> None:
    monkeypatch.chdir(world)

    def said(*arguments: str, code: int = 0) -> list[dict[str, str]]:
        capsys.readouterr()
        given = ["generate", *arguments, "--tokens", "6", "--format", "json"]
        assert cli.run(given) == code
        result: list[dict[str, str]] = json.loads(capsys.readouterr().out)
        return result

    plan, out, base = said("cut.tailor", "out", "base", "a cat and")
    assert [item["target"] for item in (plan, out, base)] == ["cut.tailor", "out", "base"]
    assert plan["text"] == out["text"]
    assert base["text"]
    [failed] = said("base", "a cat", "--chat", code=3)
    assert "no chat template" in failed["failure"]
    template = world / "base" / "chat_template.jinja"
    template.write_text("{{ bos }}")
    [failed] = said("base", "a cat", "--chat", code=3)
    template.unlink()
    assert "the chat template of 'base' gives no tokens for this prompt" in failed["failure"]
    capsys.readouterr()
    assert cli.run(["generate", "out", "a cat and", "--tokens", "6"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "out"
    assert cli.run(["generate", "a cat"]) == 2
