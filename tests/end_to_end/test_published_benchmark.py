"""benchmarks/published.py without a model: its table, its kept results, its text, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.published import (
    PUBLISHED,
    Base,
    Kept,
    RefusedError,
    TaskScore,
    articles,
    drops_of,
    lines_of,
    parsed,
    score_of,
    settings_of,
    table,
    write_texts,
)

BASE = Base("Qwen/Qwen3-8B", 36, published=True)
TITLED = " = One = \n\n a b \n = = Part = = \n c \n = Two = \n d \n"


def kept(file: Path, settings: dict[str, Any] | None = None) -> Kept:
    return Kept.of(file, {"tokens": 5} if settings is None else settings)


def score(value: float, error: float | None = 0.01) -> TaskScore:
    return TaskScore("acc,none", value, error, 8, "2", "lm-eval 0.4.13", "cpu")


def options(*more: str) -> Any:
    return parsed(["--text", "text.txt", *more])


def test_the_table_has_shares_of_the_uncut_score_and_the_published_shares(
    tmp_path: Path,
) -> None:
    results = kept(tmp_path / "results.json")
    results.drops[28] = "L26..L33"
    results.scores[36] = {"mmlu": score(0.8), "mine": score(0.0)}
    results.scores[28] = {"mmlu": score(0.4), "mine": score(0.5, None)}
    rows = list(table(results, BASE, ["mmlu", "mine"], [28]))
    assert "| uncut | 36 | mmlu | 80.0 ± 1.0 | 100.0 % | 74.9 | 100.0 % |" in rows
    assert "| without L26..L33 | 28 | mmlu | 40.0 ± 1.0 | 50.0 % | 73.0 | 97.5 % |" in rows
    assert "| without L26..L33 | 28 | mine | 50.0 |  |  |  |" in rows
    assert "mmlu 2 (acc,none, 8 samples)" in rows[-1]
    other = list(table(results, Base("other", 36, published=False), ["mmlu"], [28]))
    assert "| without L26..L33 | 28 | mmlu | 40.0 ± 1.0 | 50.0 % |  |  |" in other


def test_published_shares_are_those_of_the_guide() -> None:
    shares = {
        layers: [round(100 * scores[task] / PUBLISHED[36][task], 1) for task in scores]
        for layers, scores in PUBLISHED.items()
    }
    assert shares == {36: [100.0] * 3, 32: [99.0, 91.3, 86.9], 28: [97.5, 80.6, 54.4]}


def test_results_are_read_again_and_belong_to_their_settings(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    first = kept(file)
    first.drops[28] = "L26..L33"
    first.scores[28] = {"mmlu": score(0.5)}
    first.write()
    again = kept(file)
    assert (again.drops, again.scores) == (first.drops, first.scores)
    with pytest.raises(RefusedError, match=r"tokens 5, not 6: give another --folder"):
        kept(file, {"tokens": 6})
    file.write_text("{")
    with pytest.raises(RefusedError, match=r"results\.json can't be read as results"):
        kept(file)


def test_lines_of_wikitext_are_joined_to_articles(tmp_path: Path) -> None:
    text, rows = tmp_path / "text.txt", tmp_path / "rows.jsonl"
    text.write_text(TITLED)
    rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in TITLED.splitlines(True)))
    expected = [" = One = \n a b \n = = Part = = \n c \n", " = Two = \n d \n"]
    assert list(articles(lines_of(text))) == list(articles(lines_of(rows))) == expected
    assert list(articles(["a\n", "b\n"])) == ["a\n", "b\n"]
    rows.write_text('{"prompt": "a"}\n')
    with pytest.raises(RefusedError, match=r"rows\.jsonl:1: expected an object with 'text'"):
        list(lines_of(rows))


def test_a_text_that_is_too_short_to_choose_layers_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TITLED + " = Three = \n" + "word " * 100 + "\n")
    with pytest.raises(RefusedError, match="has 1 texts of 400 characters, expected 2"):
        write_texts(text, tmp_path, 2)
    _, chosen = write_texts(text, tmp_path, 1)
    assert json.loads(chosen.read_text())["text"].startswith(" = Three")


def test_drops_are_assigned_by_the_number_of_kept_layers() -> None:
    given = options("--keep", "28", "35", "--drop", "L26..L33", "--drop", "L3")
    assert drops_of(given, BASE) == {28: "L26..L33", 35: "L3"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keep", "36"], "--keep 36: expected 1 to 35"),
        (["--drop", "L30..L37"], "expected layers up to L35"),
        (["--drop", "L1..L3"], "keeps 33 of 36 layers, which --keep"),
        (["--drop", "L1..L8", "--drop", "L2..L9"], "keeps 28 of 36 layers, again"),
        (["--drop", "eight"], "expected layers such as L26..L33, got 'eight'"),
        (["--drop", "any 8 of L0..L9"], "expected layers such as L26..L33"),
    ],
)
def test_layers_that_do_not_fit_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        drops_of(options(*arguments), BASE)


def test_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"--text text\.txt: there is no such file"):
        settings_of(options(), BASE)
    text = tmp_path / "text.txt"
    text.write_text("a")
    given = parsed(["--text", str(text), "--tasks", str(tmp_path / "none")])
    with pytest.raises(RefusedError, match="there is no such folder"):
        settings_of(given, BASE)


def test_a_score_has_the_published_metric_and_the_count_of_all_parts() -> None:
    values = {"acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.6,
              "acc_norm_stderr,none": "N/A"}  # fmt: skip
    results: dict[str, Any] = {
        "results": {"mmlu": values, "mine": values, "odd": {"f1,none": 0.5}},
        "versions": {"mmlu": 2},
        "n-samples": {"a": {"effective": 3}, "b": {"effective": 4}},
    }
    pytest.importorskip("lm_eval")
    result = score_of("mmlu", results, "cpu")
    assert (result.metric, result.score, result.stderr, result.samples) == ("acc,none", 0.5, 0.1, 7)
    assert score_of("mine", results, "cpu").stderr is None
    with pytest.raises(RefusedError, match="got f1,none"):
        score_of("odd", results, "cpu")
