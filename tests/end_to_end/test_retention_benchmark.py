"""benchmarks/retention.py: its arithmetic, its journal, and a small run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.retention import METHODS, UNCUT, measure, parsed, show
from benchmarks.retention_lab import Journal
from benchmarks.retention_page import (
    BEGIN,
    END,
    OTHER,
    PLOT,
    SAME,
    Cell,
    Cells,
    page,
    plot,
    put,
)
from benchmarks.retention_peers import Layer
from tests.support.preloaded import Preloaded

SOURCES = ("WikiText", "GSM8K", "library", "Dolly", "C4", "SVAMP", "MBPP", "Self-Instruct")
SCRIPT = Path(__file__).parents[2] / "benchmarks/retention.py"
LEFT_OUT = {"cut", "select", "merged", "bridge"}
"""Searches like `heal`'s: one is enough to see that they run."""


def cell(method: str, nats: float, **fields: Any) -> Cell:
    """A cell with two losses on the same sources, and losses of 1 more on other sources."""
    losses = [
        nats - 0.5,
        nats - 0.5,
        nats + 0.5,
        nats + 0.5,
        nats + 1,
        nats + 1,
        nats + 1,
        nats + 1,
    ]
    about: dict[str, Any] = {
        "share": 25, "count": 7, "words": method, "seed": 0, "seen": None,
        "held": {name: (loss, 0.3) for name, loss in zip(SOURCES, losses, strict=True)},
        "choices": {"piqa": (0.6, 0.1)},
        "answers": {
            "sums": [("a | b\nc", 1.0), ("d", 0.0)],
            "MBPP written": [("e", 0.0), ("", 0.0)],
            "loops": [("", 0.0), ("f", 0.0)],
        },
        "evaluations": 1.0, "seconds": 2.0, "note": "L1",
    }  # fmt: skip
    return Cell(method=method, **(about | fields))


@pytest.fixture
def cells() -> Cells:
    return Cells(
        [
            cell("base", 2.5, share=0, seen=2.5, choices={"piqa": (0.8, 0.1)}),
            cell("merge", 2.0, share=0, seen=2.0),
            cell("specialist", 1.9, share=0, seen=2.1),
            cell("shortgpt", 4.0),
            cell("heal", 2.5),
            cell("heal", 3.0, seed=1),
        ],
        {"shortgpt": "ShortGPT", "heal": "gptailor: heal"},
    )


def test_recovery_is_relative_to_the_best_uncut_recipe(
    cells: Cells,
) -> None:
    assert cells.uncut.method == "merge"
    assert cells.won_back(cells.cells[3], SAME) == 0
    for sources in (SAME, OTHER):
        assert cells.won_back(cells.cells[4], sources) == pytest.approx(1 - 0.5 / 2)
    assert cells.retained(cells.cells[4]) == pytest.approx(0.6 / 0.8)
    assert cells.kept(cells.cells[4]) == pytest.approx(3 / 3.5), "on other sources"
    assert cells.cells[4].error(SAME) == pytest.approx(0.15)


def test_tables_have_the_mean_over_seeds_and_the_range_of_shares(cells: Cells) -> None:
    rows = page(cells).splitlines()
    losses, tasks = (row for row in rows if row.startswith("| gptailor: heal (2 seeds)"))
    shares = "2.750 ± 0.150 | 62 % (50 to 75) | 3.750 ± 0.150 | 62 % (50 to 75)"
    assert f"|  | {shares} | 2.250 · 3.750 |" in losses
    assert tasks.endswith("| 60 ± 10 % | 75 % | 50 ± 50 % | 0 ± 0 % | 0 ± 0 % | 1 | 2 |")
    for row, head in ((losses, "won back, same"), (tasks, "retained")):
        heads = next(line for line in rows if head in line and line.count("|") == row.count("|"))
        assert heads
    assert any("| a \\| b ⏎ c | e | f |" in row for row in rows)


def test_answers_of_few_methods_are_shown(cells: Cells) -> None:
    more = Cells([*cells.cells, cell("laco", 5.0)], {**cells.words, "laco": "LaCo"})
    tables, _, answers = page(more).partition("### Greedy text")
    assert "| LaCo |" in tables
    assert "| ShortGPT |" in answers
    assert "LaCo" not in answers


def test_a_plot_has_a_line_for_each_method_and_labels_that_stand_apart(cells: Cells) -> None:
    svg = ElementTree.fromstring(plot(cells))
    assert len(svg.findall("{*}polyline")) == 2
    labels = [float(text.attrib["y"]) for text in svg.findall("{*}text") if "fill" in text.attrib]
    assert len(labels) == 2
    assert abs(labels[0] - labels[1]) >= 15


def test_a_page_without_marks_is_left_as_it_is(cells: Cells, tmp_path: Path) -> None:
    file = tmp_path / "results.md"
    file.write_text("# Results\n")
    with pytest.raises(ValueError, match="has no"):
        put(cells, file, "python")
    assert file.read_text() == "# Results\n"


def test_an_incomplete_line_is_ignored(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "cells.jsonl")
    journal.add("a", 1)
    with journal.file.open("a") as lines:
        lines.write('["b", 2')
    again = Journal(journal.file)
    assert again.known == {"a": 1}
    again.add("c", [3])
    assert Journal(journal.file).known == {"a": 1, "c": [3]}


def test_folding_adds_differences_of_layers() -> None:
    once = Layer(2, {2: 1.0}).folding([Layer(3, {3: 1.0}), Layer(4, {4: 1.0})])
    assert once.weights == {2: -1.0, 3: 1.0, 4: 1.0}
    twice = Layer(1, {1: 1.0}).folding([once])
    assert twice.weights == {2: -1.0, 3: 1.0, 4: 1.0}


def test_a_page_has_the_command_without_the_places_of_one_machine() -> None:
    arguments = ["--folder", "/a", "--data", "/b", "--only-page", "--model", "/c", "--texts", "3"]
    command = parsed([*arguments, "--page", "page.md"]).command
    assert command == "python benchmarks/retention.py --data DATA --texts 3 --page page.md"


def public_texts(folder: Path) -> None:
    """Write few rows of each public source, in its own form."""
    long = "Some words of an article, one after the other. " * 16
    articles = "".join(f" = Title {n} = \n{long}\n" for n in range(40))
    rows: Mapping[str, Sequence[Mapping[str, Any]]] = {
        "text/c4_demo.jsonl": [{"text": f"{n} {long}"} for n in range(9)],
        "math/gsm8k_train.jsonl": [
            {"question": f"What is {n} and 1?", "answer": str(n + 1)} for n in range(200)
        ],
        "math/svamp.jsonl": [
            {"context": f"{n} and 1?", "chain_of_thought": f"[[{n}+1]]", "answer": str(n + 1)}
            for n in range(9)
        ],
        "code/mbpp.jsonl": [
            {"text": f"Return {n}.", "code": f"def f():\n    return {n}", "test_setup_code": "",
             "test_list": [f"assert f() == {n}"]}
            for n in range(9)
        ],
        "chat/dolly_hhrlhf_train_small.jsonl": [
            {"prompt": f"### Instruction:\nSay {n}.\n### Response:\n", "response": f"{n} it is."}
            for n in range(200)
        ],
        "chat/self_instruct_seed_tasks.jsonl": [
            {"instruction": f"Add to {n}.", "instances": [{"input": "1", "output": str(n + 1)}]}
            for n in range(9)
        ],
        **{f"choice/{task}.jsonl": [
            {"query": f"{n} is ", "choices": ["odd", "even"], "gold": (n + 1) % 2} for n in range(9)
        ] for task in ("piqa", "arc_easy")},
    }  # fmt: skip
    for name, its in rows.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in its))
    (folder / "text/wikitext2_valid.txt").write_text(articles)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_benchmark_measures_all_cells_writes_its_page_and_resumes(
    preloaded: Preloaded, tmp_path: Path
) -> None:
    methods = [name for name in METHODS if name not in LEFT_OUT]
    results = tmp_path / "results.md"
    results.write_text(f"# Results\n\n{BEGIN}\n{END}\n\nThe end.\n")
    public_texts(tmp_path / "data")
    command = ["--smoke", "--folder", str(tmp_path / "made"), "--data", str(tmp_path / "data")]
    command += ["--methods", *methods, "--page", str(results)]
    code, output, errors = preloaded.run(SCRIPT, *command)
    assert code == 0, output + errors
    text = results.read_text()
    assert text.startswith("# Results\n")
    assert text.endswith("The end.\n")
    for name in (*UNCUT, *methods):
        assert f"\n| {(UNCUT | METHODS)[name].words}" in text
    assert ElementTree.parse(tmp_path / PLOT).getroot().tag.endswith("svg")
    assert not list((tmp_path / "made/models").iterdir()), "peers' models are gone"
    kept = (tmp_path / "made/cells.jsonl").read_text().splitlines()
    assert len(kept) == len(UNCUT) + len(methods)
    assert {json.loads(line)[1]["count"] for line in kept} == {0, 2}
    given = parsed([*command, "--only-page"])
    results.write_text(f"{BEGIN}{END}")
    journal = Journal(given.folder / "cells.jsonl")
    assert measure(None, journal, given) == 0, "nothing is left to measure"
    show(journal, given)
    assert results.read_text() == text[len("# Results\n\n") : -len("\n\nThe end.\n")]
