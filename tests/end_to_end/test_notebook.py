"""The cells of `examples/library.ipynb` run one after the other, as in a notebook."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "library.ipynb"

pytestmark = [pytest.mark.pages, pytest.mark.usefixtures("one_thread")]


def test_the_notebook_runs_and_its_results_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    shown: list[Any] = []
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, NOTEBOOK.name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)
            shown += [] if value is None else [value]
    output = capsys.readouterr().out
    faults, plan_map, scores, table, differences, best_map = shown
    assert faults == []
    assert "L4 is dropped" not in str(plan_map)
    for html in (plan_map, scores, best_map):
        assert html._repr_html_().startswith("<")
    assert len(table) == 5
    assert "L9 is beyond the base, which has 8 layers" in output
    assert differences[0].startswith("let share: 0.5 → ")
    assert names["model"].config.num_hidden_layers == 7
    best = names["trials"]["loss"].min()
    assert table["loss"].iloc[0] == best
    own = names["scores"].difference("merge.tailor", str(names["here"] / "words"))
    assert own['nll("sums.jsonl")'].value < 0, "a merge knows more of sums than the words' model"


def test_the_notebook_has_its_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in code) >= len(code) - 1
    assert not any(out["output_type"] == "error" for cell in code for out in cell["outputs"])
