"""Scores that `gptailor eval` measured of a folder, for its model card and for the Hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import yaml  # type: ignore[import-untyped,unused-ignore]

from gptailor.checkpoint.files import CheckpointError, open_regular
from gptailor.lang.parse import read_objective
from gptailor.lang.words import measure_words
from gptailor.plan.faults import PlanError, listed
from gptailor.plan.plan import Objective
from gptailor.plan.registry import OBJECTIVES
from gptailor.plan.search_block import with_file
from gptailor.reporting.quantities import shown_number

RESULTS_FILE = ".eval_results/gptailor.yaml"
"""The place of benchmark results in a repository; the Hub reads `.eval_results/*.yaml`."""
_MOST_BYTES = 2**26
_CODE = "C605"


@final
class PublishedScore(NamedTuple):
    """A score of the folder: its objective, value, standard error and samples.

    Files have their names alone in the objective, without folders of this machine. `base` is the
    base's score, and `difference` the paired difference from it with its error; each is None if it
    was not measured. So is an unknown error.
    """

    objective: Objective
    value: float
    stderr: float | None
    samples: int
    base: float | None = None
    difference: tuple[float, float | None] | None = None

    @property
    def words(self) -> str:
        """The objective as a plan writes it: `nll("text.txt")`."""
        return measure_words(self.objective)

    @property
    def measured_on(self) -> str:
        """The name of the task or of the file of samples; empty for a size."""
        arguments = self.objective.arguments
        return Path(str(arguments.get("task") or arguments.get("file", ""))).name

    @property
    def metric(self) -> str:
        """The metric's name, such as `nll`, `accuracy` or `acc,none`."""
        name, metric = self.objective.name, self.objective.arguments.get("metric")
        return str(metric or ("accuracy" if name in {"multiple_choice", "generate"} else name))


def read_scores(file: str | Path, folder: Path) -> tuple[PublishedScore, ...]:
    """Return the scores of a folder in the JSON of `gptailor eval FOLDER … --format json`.

    Raises CheckpointError (C605) for another file, and for one without scores of this folder.
    """
    path = Path(file)
    with open_regular(path, _CODE) as opened:
        raw = opened.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise CheckpointError(_CODE, f"expected at most {_MOST_BYTES:,} bytes", path)
    try:
        document = json.loads(raw)
        rows = [row for row in document["results"] if row["score"] is not None]
        bases = {(row["target"], row["objective"]): row["score"] for row in document["bases"]}
        own = [row for row in rows if Path(row["target"]).resolve() == folder.resolve()]
        found = tuple(_score(row, bases) for row in own)
    except (ValueError, LookupError, TypeError, PlanError) as error:
        message = "expected the JSON of 'gptailor eval DIR -O … --format json'"
        raise CheckpointError(_CODE, message, path, "write it by that command") from error
    if not found:
        others = listed(dict.fromkeys(f"'{row['target']}'" for row in rows)) or "nothing"
        message = f"expected scores of '{folder}', got scores of {others}"
        help_ = f"paths start at the current folder: run 'gptailor eval {folder} …' here"
        raise CheckpointError(_CODE, message, path, help_)
    return found


def _score(row: Mapping[str, Any], bases: Mapping[tuple[str, str], float]) -> PublishedScore:
    """Return a row as a score; only a difference from a base counts."""
    stated, difference = str(row["objective"]), row.get("difference")
    objective = with_file(read_objective(stated)[0], lambda file: Path(file).name)
    base = bases.get((row.get("against") or "", stated))
    pair = None
    if base is not None and difference is not None:
        pair = (float(difference["value"]), difference["stderr"])
    return PublishedScore(
        objective, float(row["score"]), row["stderr"], int(row["samples"] or 0),
        base, pair,
    )  # fmt: skip


def model_index(name: str, scores: Sequence[PublishedScore]) -> list[dict[str, Any]]:
    """Return the `model-index` of a model card; sizes and times are left out."""
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    entries = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.measured_on,
            dataset_name=score.measured_on,
            metric_type=score.metric,
            metric_name=score.words,
            metric_value=score.value,
        )
        for score in scores
        if OBJECTIVES[score.objective.name].by == "samples"
    ]
    index: list[dict[str, Any]] = eval_results_to_model_index(name, entries) if entries else []
    return index


def scores_section(scores: Sequence[PublishedScore]) -> str:
    """Return the section of a model card: a table of the scores and the base's scores."""
    lines = ["## Evaluation", "", "Measured with `gptailor eval`. Differences are paired.", ""]
    lines += ["| objective | samples | base | this model | difference |", "|---|--:|--:|--:|--:|"]
    for score in scores:
        base = "" if score.base is None else shown_number(score.base)
        own = shown_number(score.value, score.stderr)
        difference = "" if score.difference is None else _signed(*score.difference)
        samples = str(score.samples or "")
        lines.append(f"| `{score.words}` | {samples} | {base} | {own} | {difference} |")
    return "\n".join(lines) + "\n"


def _signed(value: float, stderr: float | None) -> str:
    return ("+" if value > 0 else "") + shown_number(value, stderr)


def benchmark_results(
    scores: Sequence[PublishedScore], benchmarks: Mapping[str, str], version: str
) -> str:
    """Return the YAML of the Hub's benchmark results.

    `benchmarks` has the datasets of the Hub, `ORG/NAME` or `ORG/NAME:TASK`, by the name of the task
    or file that was measured. Raises CheckpointError (C605) for a name that no score has.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = []
    for name, dataset in benchmarks.items():
        own = [score for score in scores if score.measured_on == name]
        if len(own) != 1:
            known = listed(dict.fromkeys(f"'{score.measured_on}'" for score in scores), "or")
            message = f"expected one score of '{name}', got {len(own)}"
            help_ = "evaluate one objective on it" if own else f"the scores belong to {known}"
            raise CheckpointError(_CODE, message, Path(name), help_)
        [score], (dataset_id, _, task) = own, dataset.partition(":")
        notes = f"{score.metric}, {score.samples} samples, gptailor {version}"
        entry = EvalResultEntry(dataset_id, task or "default", value=score.value, notes=notes)
        entries.append(entry)
    text: str = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return text
