"""gptailor as a library: a script from a plan to its scores, a search and mergekit's YAML."""

import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import gptailor
from gptailor.program.compile import Compiled
from gptailor.program.sources import Checked
from tests.support.colours import contrast
from tests.support.tiny import tiny_models

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
merge(L1 base, L1 math, 0.5)
drop L3
"""
SPACE = """\
tailor 1
model base = "./base"
model math = "./math"
L1 from one of base, math
maybe drop any 1..2 of L0..L3
search {
  minimize nll("a.jsonl")
  minimize parameters()
  trials 6
}
"""
YAML = """\
models:
  - model: {folder}/base
  - model: {folder}/math
merge_method: slerp
base_model: {folder}/base
parameters:
  t: 0.25
dtype: float32
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    tiny_models(folder, "base", "math")
    (folder / "plan.tailor").write_text(PLAN)
    (folder / "space.tailor").write_text(SPACE)
    texts = [{"text": f"the cat {n} sat on the mat {n}"} for n in range(12)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return folder


@pytest.fixture(scope="module")
def judged(world: Path) -> gptailor.EvaluationResult:
    plan = gptailor.load(world / "plan.tailor")
    out = gptailor.compile(plan, world / "out").folder
    return gptailor.evaluate(["plan.tailor", plan, out][1:], 'nll("a.jsonl")', folder=world)


def test_records_are_the_rows_of_the_csv(judged: gptailor.EvaluationResult) -> None:
    import csv

    rows = judged.records()
    assert len(rows) == len(judged.results) + len(judged.bases)
    written = list(csv.DictReader(io.StringIO(judged.to_csv())))
    assert [row["target"] for row in written] == [row["target"] for row in rows]
    assert [list(row) for row in rows] == [list(row) for row in written]
    assert [float(row["score"]) for row in written] == [row["score"] for row in rows]
    assert {row["unit"] for row in rows} == {"nats a token"}


def test_a_difference_is_paired_and_antisymmetric(
    judged: gptailor.EvaluationResult, world: Path
) -> None:
    plan, out = str(world / "plan.tailor"), str(world / "out")
    base = judged.bases[0].target
    (one,) = judged.difference(plan, base).values()
    (other,) = judged.difference(base, plan).values()
    stated = next(r for r in judged.results if r.target == plan).difference
    assert stated is not None
    assert (one.value, one.stderr) == (stated.value, stated.stderr)
    assert one.value == -other.value
    (same,) = judged.difference(plan, out).values()
    assert same.value == 0.0


def test_an_unknown_target_names_the_known_ones(
    judged: gptailor.EvaluationResult, world: Path
) -> None:
    with pytest.raises(gptailor.TailorError, match="there is no target 'nobody'; the targets are"):
        judged.difference("nobody", str(world / "out"))


def test_a_name_of_several_targets_has_no_difference(world: Path) -> None:
    plans = [gptailor.load(world / "plan.tailor") for _ in range(2)]
    scores = gptailor.evaluate(plans, 'nll("a.jsonl")', folder=world)
    with pytest.raises(
        gptailor.TailorError, match=r"several targets have the name.*loads\(text, name"
    ):
        scores.difference(str(world / "plan.tailor"), str(world / "plan.tailor"))


def test_a_notebook_shows_a_table(judged: gptailor.EvaluationResult) -> None:
    page = judged._repr_html_()
    assert page.startswith("<pre>")
    assert f"{judged.records()[0]['score']:.3f}" in page
    assert "difference from" in page


@pytest.fixture(scope="module")
def searched(world: Path) -> gptailor.SearchResult:
    result: gptailor.SearchResult = gptailor.search(
        gptailor.load(world / "space.tailor"), world / "run", trials=5
    )
    return result


def test_a_search_has_its_best_plan(searched: gptailor.SearchResult, world: Path) -> None:
    assert searched.best is not None
    assert searched.plan.drops == gptailor.load(searched.best).drops
    again = gptailor.loads(gptailor.format(searched.plan), folder=world / "guide" / "elsewhere")
    assert not [f for f in gptailor.check(again) if f.severity == "error"], "paths are absolute"
    assert str(searched.best) in str(searched)
    assert not gptailor.check(searched.plan) or all(
        fault.severity == "warning" for fault in gptailor.check(searched.plan)
    )


def test_each_trial_is_a_row(searched: gptailor.SearchResult) -> None:
    rows = searched.records()
    assert len(rows) == len(searched.summary.ledger.trials)
    assert [row["number"] for row in rows] == sorted(row["number"] for row in rows)
    score = 'nll("a.jsonl")'
    scored = [row for row in rows if row[score] is not None]
    assert scored
    assert all(row["parameters"] > 0 and row["samples"] > 0 for row in scored)
    assert min(row[score] for row in scored) > 0


def test_each_trial_is_a_plan(searched: gptailor.SearchResult) -> None:
    rows = searched.records()
    plans = [searched.plan_of(row["number"]) for row in rows]
    assert [5 - len(plan.drops) for plan in plans] == [row["layers"] for row in rows]
    assert searched.plan in plans
    assert not gptailor.check(plans[0])
    assert plans[1].origin is not None
    assert plans[1].origin.source.name == f"<trial 1 of {searched.run}>"
    with pytest.raises(ValueError, match=f"'trial': expected a number below {len(rows)}, got 99"):
        searched.plan_of(99)


def test_the_result_has_the_measured_influence_of_layers(searched: gptailor.SearchResult) -> None:
    assert len(searched.influence["base"]) == 5
    assert all(0 < each < 2 for each in searched.influence["base"])


def test_a_plan_is_picked_by_its_size(searched: gptailor.SearchResult) -> None:
    sizes = sorted(row["parameters"] for row in searched.records() if row["parameters"])
    plan = searched.pick(parameters=sizes[0])
    assert len(plan.drops) == 2
    assert plan.origin is not None
    assert re.fullmatch(r"<trial \d of .*run>", plan.origin.source.name)
    with pytest.raises(gptailor.TailorError, match="no plan meets these limits; the nearest"):
        searched.pick(parameters=1)


def test_a_plan_is_picked_by_the_size_of_its_gguf_file(
    searched: gptailor.SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(checked: Checked, compiled: Compiled, kind: str) -> int:
        return 1000 * len(compiled.program.layers)

    monkeypatch.setattr("gptailor.evaluation.gguf_contents.gguf_size", size)
    least = min(point.size.layers for point in searched.summary.curve)
    result = searched.pick(gguf={"q4_0": f"{least}kB"})
    assert result.drops == searched.pick(layers=least).drops
    with pytest.raises(gptailor.TailorError, match="no plan meets these limits"):
        searched.pick(gguf={"q4_0": 1000 * least - 1})
    with pytest.raises(ValueError, match="expected the GGUF type"):
        searched.pick(gguf={"q9": "2k"})


@pytest.mark.pages
def test_the_script_of_the_guide_runs(
    searched: gptailor.SearchResult, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block of docs/python.md, in a folder with files of its names."""
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text("utf-8")
    script = page.partition("```python\n")[2].partition("```")[0]
    assert "gptailor.search(" in script
    plan = PLAN.replace(
        "merge(L1 base, L1 math, 0.5)", "let mix = 0.5\nmerge(L1 base, L1 math, mix)"
    )
    plan += "expect parameters() < base\n"
    (world / "guide").mkdir()
    for name in ("base", "math", "a.jsonl", "space.tailor"):
        (world / "guide" / name).symlink_to(world / name)
    (world / "guide" / "plan.tailor").write_text(plan)
    (world / "guide" / "merge.tailor").write_text(PLAN.replace("drop L3\n", ""))
    monkeypatch.chdir(world / "guide")
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gptailor.ConversionWarning)
        exec(compile(script, "docs/python.md", "exec"), names)
    assert len(names["rows"]) == 3
    assert len(names["trials"]) == len(names["found"].summary.ledger.trials)
    assert names["smaller"].drops
    assert names["changes"]
    assert (world / "guide" / "report.html").read_text().startswith("<!doctype html>")
    assert [answer.failure for answer in names["answers"]] == [None, None]
    assert names["model"].config.num_hidden_layers == 5 - len(names["best"].drops)
    assert [layer.position for layer in names["again"].layers] == [1]


def test_mergekits_yaml_survives_import_and_export(world: Path) -> None:
    text = YAML.format(folder=world)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = gptailor.import_mergekit(text)
    assert all(issubclass(each.category, gptailor.ConversionWarning) for each in caught)
    assert not [fault for fault in gptailor.check(plan) if fault.severity == "error"]
    again = gptailor.export_mergekit(plan, 5)
    assert "merge_method: slerp" in again
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gptailor.ConversionWarning)
        assert gptailor.import_mergekit(again).layers == plan.layers


def test_a_wrong_yaml_is_an_error_of_gptailors() -> None:
    with pytest.raises(gptailor.TailorError, match="one of slices and models"):
        gptailor.import_mergekit("models: []\nmerge_method: nothing\n")


def test_a_map_is_drawn_in_text_and_in_a_notebook(world: Path) -> None:
    drawn = gptailor.show(world / "plan.tailor")
    assert "5 layers of" in " ".join(str(drawn).split())  # a long path wraps the line
    assert "\x1b" not in str(drawn)
    page = drawn._repr_html_()
    assert "<pre>" in page
    hues = set(re.findall(r"background-color: (#\w+)", page))
    assert hues
    assert all(
        contrast(hue, ground) >= 3 for hue in hues for ground in ("#ffffff", "#111111", "#000000")
    )
    assert page.count("color: #000000; background-color: ") == page.count("background-color: ")
    compiled = gptailor.show(world / "plan.tailor", models={"math": world / "base"})
    assert "parameters" in str(compiled)


def test_differences_are_sentences(world: Path) -> None:
    plan = gptailor.load(world / "plan.tailor")
    assert gptailor.diff(plan, world / "plan.tailor") == []
    other = gptailor.loads(PLAN.replace("0.5", "0.25"), folder=world)
    (line,) = gptailor.diff(plan, other)
    assert "L1" in line


def test_a_prompt_has_an_answer_of_each_target(world: Path) -> None:
    plan = gptailor.load(world / "plan.tailor")
    answers = gptailor.generate([world / "base", plan], "the cat", tokens=5)
    assert [answer.target for answer in answers] == [
        str(world / "base"),
        str(world / "plan.tailor"),
    ]
    assert all(answer.failure is None for answer in answers)
    narrow = gptailor.generate(plan, "the cat", tokens=5, dtype="bfloat16")
    assert narrow[0].failure is None
    with pytest.raises(gptailor.TailorError, match=r"expected a dtype of .*, got 'int8'"):
        gptailor.generate(plan, "the cat", dtype="int8")


def test_results_are_tables_of_pandas(
    judged: gptailor.EvaluationResult, searched: gptailor.SearchResult
) -> None:
    scores = judged.to_pandas()
    assert list(scores["score"]) == [row["score"] for row in judged.records()]
    trials = searched.to_pandas()
    assert list(trials["number"]) == [row["number"] for row in searched.records()]
    page = searched._repr_html_()
    assert page.count("<tr>") == len(trials) + 1


def test_bounds_may_be_written_in_words(searched: gptailor.SearchResult) -> None:
    most = max(row["parameters"] for row in searched.records() if row["parameters"])
    assert searched.pick(parameters=f"{most:,}") == searched.pick(parameters=most)
    with pytest.raises(ValueError, match="expected a number of parameters such as 110M"):
        searched.pick(parameters="many")
    with pytest.raises(ValueError, match=r"'layers': expected int >= 1 \| None, got 0"):
        searched.pick(layers=0)


def test_a_difference_takes_plans_or_paths_and_defaults_to_the_base(world: Path) -> None:
    plan = gptailor.load(world / "plan.tailor")
    scores = gptailor.evaluate([plan, world / "math"], 'nll("a.jsonl")', folder=world)
    (named,) = scores.difference(str(world / "plan.tailor"), str(world / "math")).values()
    assert scores.difference(plan, world / "math") == {'nll("a.jsonl")': named}
    stated = next(r for r in scores.results if r.target == str(world / "plan.tailor")).difference
    (from_base,) = scores.difference(plan).values()
    assert stated is not None
    assert (from_base.value, from_base.stderr) == (stated.value, stated.stderr)


def test_targets_of_one_name_have_their_own_sizes(world: Path) -> None:
    texts = (PLAN, PLAN.replace("drop L3", "drop L2..L3"))
    plans = [gptailor.loads(text, folder=world) for text in texts]
    scores = gptailor.evaluate(plans, 'nll("a.jsonl")', folder=world)
    rows = scores.records()
    assert [row["layers"] for row in rows] == [5, 4, 3]
    assert [row["target"] for row in rows[1:]] == ["<text> #1", "<text> #2"]
    assert "<text> #2" in str(scores)
    (first, second) = (row["score"] for row in rows[1:])
    (lost,) = scores.difference(plans[1], plans[0]).values()
    assert lost.value == pytest.approx(second - first)
    assert scores.difference(gptailor.loads(texts[1], folder=world), "<text> #1") == {
        'nll("a.jsonl")': lost
    }, "an equal plan"


def test_numbers_out_of_range_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'objectives': expected an objective, got none"):
        gptailor.evaluate(world / "base", [])
    with pytest.raises(gptailor.TailorError, match=r"'fidelity': .* ascend, got 5\.\.2"):
        gptailor.search(world / "space.tailor", tmp_path / "run", gptailor.Flags(fidelity=(5, 2)))
    for verb in (gptailor.evaluate_expectations, lambda targets: gptailor.generate(targets, "a")):
        with pytest.raises(ValueError, match="'targets': expected a target, got none"):
            verb([])
    with pytest.raises(ValueError, match="'texts': expected a text, got none"):
        gptailor.teach(world / "base", [], tmp_path / "out.parquet")
    for wrong in ({"dtype": "half"}, {"save": ["attn"]}):
        with pytest.raises(ValueError, match=f"'{next(iter(wrong))}': expected '.* or '.*, got '"):
            gptailor.extract_lora(world / "base", world / "base", tmp_path / "out", **wrong)
    with pytest.raises(gptailor.TailorError, match=r"'plan\.tailor' has no expectation"):
        gptailor.evaluate_expectations(gptailor.loads(PLAN, "plan.tailor", world))


def test_a_report_never_replaces_the_plan_that_it_is_about(world: Path) -> None:
    before = (world / "plan.tailor").read_text()
    plan = gptailor.load(world / "plan.tailor")
    with pytest.raises(gptailor.TailorError, match="is the input of this report"):
        gptailor.report(plan, world / "plan.tailor", force=True)
    assert (world / "plan.tailor").read_text() == before


def test_a_plan_prints_as_its_text(world: Path) -> None:
    plan = gptailor.load(world / "plan.tailor")
    assert str(plan) == gptailor.format(plan)
    assert "<pre>" in plan._repr_html_()
