"""Write small tasks for a trial of `benchmarks/published.py`, from a folder of public data.

    python benchmarks/published_tasks.py --data DATA --folder .tasks
    python benchmarks/published.py --tasks .tasks --limit 8 ...

DATA has `choice/piqa.jsonl` and `choice/arc_easy.jsonl` (`query`, `choices`, `gold`), and
`math/gsm8k_train.jsonl` (`question`, `answer`). The first two tasks are the group `choice`, and
their score is an accuracy; GSM8K's answers are generated and compared by their last number. Every
second row is an example for prompts, and the others are asked, so no prompt has the asked row.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

CHOICES: Final = ("piqa", "arc_easy")
GROUP: Final = "choice"
NUMBER: Final = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
"""The pattern of an answer's number; the last match counts."""
NEW_TOKENS: Final = 96


def split(file: Path, folder: Path) -> dict[str, str]:
    """Write the rows of a file as two files, the examples and the asked rows; return the paths."""
    rows = [row for row in file.read_text("utf-8").splitlines() if row.strip()]
    paths = {}
    for name, part in (("train", rows[::2]), ("test", rows[1::2])):
        path = folder / f"{file.stem}-{name}.jsonl"
        path.write_text("\n".join(part) + "\n", "utf-8")
        paths[name] = str(path.resolve())
    return paths


def task(name: str, paths: Mapping[str, str]) -> dict[str, Any]:
    """Return the part that all tasks share."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": dict(paths)},
        "test_split": "test",
        "fewshot_split": "train",
        "metadata": {"version": 1.0},
    }


def choice(name: str, paths: Mapping[str, str]) -> dict[str, Any]:
    """Return a task with answers that are scored by their log-likelihood after the question."""
    metrics = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True}
        for metric in ("acc", "acc_norm")
    ]
    return task(name, paths) | {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query.strip()}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": metrics,
    }


def generated(name: str, paths: Mapping[str, str]) -> dict[str, Any]:
    """Return a task with generated answers, which are compared by their last number."""
    pattern = {"function": "regex", "group_select": -1, "regex_pattern": NUMBER}
    flexible = {"name": "flexible-extract", "filter": [pattern, {"function": "take_first"}]}
    metric = {
        "metric": "exact_match",
        "aggregation": "mean",
        "higher_is_better": True,
        "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
    }
    return task(name, paths) | {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {
            "until": ["Question:"],
            "do_sample": False,
            "max_gen_toks": NEW_TOKENS,
        },
        "filter_list": [flexible],
        "metric_list": [metric],
    }


def write_tasks(data: Path, folder: Path) -> None:
    """Write the tasks' files and their rows. JSON is YAML too."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [choice(name, split(data / "choice" / f"{name}.jsonl", folder)) for name in CHOICES]
    tasks.append(generated("gsm8k", split(data / "math" / "gsm8k_train.jsonl", folder)))
    accuracy = {"metric": "acc", "weight_by_size": True}
    group = {"group": GROUP, "task": list(CHOICES), "aggregate_metric_list": [accuracy]}
    for one in (*tasks, group | {"metadata": {"version": 1.0}}):
        name = one.get("task") if isinstance(one.get("task"), str) else one["group"]
        (folder / f"{name}.yaml").write_text(json.dumps(one, indent=1) + "\n", "utf-8")


def main() -> None:
    """Write the tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="the folder of public data")
    add("--folder", type=Path, required=True, metavar="DIR", help="the output folder")
    options = parser.parse_args()
    try:
        write_tasks(options.data, options.folder)
    except OSError as error:
        sys.exit(f"published_tasks.py: {error.filename}: {error.strerror}: check --data, --folder")


if __name__ == "__main__":
    main()
