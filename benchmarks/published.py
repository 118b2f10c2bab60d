"""Repeat a published depth pruning of Qwen3-8B with gptailor, and print both results in one table.

    python benchmarks/published.py --text wikitext.jsonl --folder .published
    python benchmarks/published.py --text wikitext.jsonl --folder .published-28 \\
        --keep 28 --drop L26..L33

The published rows are from NVIDIA's guide to pruning with Model Optimizer. Qwen3-8B keeps 28 or 32
of its 36 layers, is distilled on 1.6 million tokens of WikiText-103, and is judged by lm-eval:
https://github.com/NVIDIA/Model-Optimizer/tree/main/examples/pruning/minitron_vs_puzzletron
(`README.md`, and `advanced_compression_experiments.md` for these rows). As given by the guide:

- The layers with the least block influence leave: L26..L33 of the 28-layer model (the guide counts
  from 1: L27 to L34). The guide does not name the four layers of the 32-layer model.
- Distillation takes 100 steps of 4 sequences of 4096 tokens of the training split of
  `wikitext-103-v1`. The guide's notebooks have a rate of 0.0001 that falls to 0.00001.
- MMLU has 5 examples in a prompt. The guide does not state the number for HellaSwag and GSM8K; this
  command uses 5 for each task. If the uncut model scores as published, the numbers agree.
- Models are in bfloat16, with 4 prompts a batch and no chat template.

For each number of kept layers the command writes a plan, compiles it by `gptailor compile` and
judges the output; the uncut model is judged first. The plan drops the layers of `--drop`. Without
`--drop` a search of `--trials` evaluations chooses them: it starts from block influence, the best
windows and the cuts that a bridge closes best, and scores bridged cuts on `--samples` texts of the
same file. The plan then bridges the gaps and heals on `--tokens` tokens of the file, by the
defaults of gptailor. So healing differs from the guide's distillation: a low-rank change of all
layers, sequences of 512 tokens, more and smaller steps.

`--text` is a file of WikiText's lines or rows, for example the training split, written by

    datasets.load_dataset("Salesforce/wikitext", "wikitext-103-v1", split="train").to_json(FILE)

Its lines are joined to articles. A finished choice, output or score is kept in `--folder`, and an
interrupted run continues there. The built-in tasks load their data from the Hub. Without a network,
`--tasks DIR` names a folder of task files with local data; `benchmarks/published_tasks.py` writes
such a folder.

The command was tried from end to end with SmolLM2-135M on a CPU (benchmarks/notes/published.md). It
was not run with Qwen3-8B yet, so its time and memory there are unknown.
"""

import argparse
import gc
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import gptailor  # noqa: E402 (the folder above is found first)
from gptailor.plan.faults import TailorError  # noqa: E402
from gptailor.plan.optional_packages import require  # noqa: E402
from gptailor.plan.windows import runs  # noqa: E402

PUBLISHED: Final[Mapping[int, Mapping[str, float]]] = {
    36: {"mmlu": 0.7493, "hellaswag": 0.7653, "gsm8k": 0.8749},
    32: {"mmlu": 0.7421, "hellaswag": 0.6987, "gsm8k": 0.7604},
    28: {"mmlu": 0.7302, "hellaswag": 0.6166, "gsm8k": 0.4761},
}
"""The guide's scores by number of layers; 36 is the uncut model."""
SHAPE: Final = ("qwen3", 36, 4096)
"""Model type, layers and hidden size of the published model. Other models have no published row."""
METRICS: Final = {
    "mmlu": "acc,none",
    "hellaswag": "acc_norm,none",
    "gsm8k": "exact_match,flexible-extract",
}
"""The published metric of each task."""
OTHERS: Final = ("acc_norm,none", "exact_match,flexible-extract", "acc,none", "exact_match,none")
"""Metrics of other tasks, the preferred one first."""
SHOTS: Final = 5
BRIDGED: Final = 4096
"""Calibration tokens of the bridges in a search's trials."""
LEAST, MOST = 400, 2000
"""Characters of a text for the choice of layers."""


class RefusedError(Exception):
    """The command can't start or continue; the message names the thing, the place, the remedy."""


@dataclass(frozen=True)
class TaskScore:
    """The score of a model on a task, and the conditions under which it was measured."""

    metric: str
    score: float
    stderr: float | None
    samples: int
    version: str
    judge: str
    device: str


@dataclass(frozen=True)
class Base:
    """The uncut model: its name in plans, its number of layers, the presence of published rows."""

    name: str
    layers: int
    published: bool


# ------------------------------------------------------------------------------- the kept results


@dataclass(frozen=True)
class Kept:
    """The finished parts of a run: dropped layers by kept layers, and scores by kept layers.

    The uncut model's scores have its own number of layers.
    """

    file: Path
    settings: Mapping[str, Any]
    drops: dict[int, str]
    scores: dict[int, dict[str, TaskScore]]

    @classmethod
    def of(cls, file: Path, settings: Mapping[str, Any]) -> "Kept":
        """Read the file, or begin a new one. Raises RefusedError for other settings."""
        if not file.is_file():
            return cls(file, settings, {}, {})
        try:
            found = json.loads(file.read_text("utf-8"))
            drops = {int(kept): text for kept, text in found["drops"].items()}
            scores = {
                int(kept): {task: TaskScore(**score) for task, score in of_model.items()}
                for kept, of_model in found["scores"].items()
            }
            earlier = dict(found["settings"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            words = f"{file} can't be read as results ({error}): remove it, or give another"
            raise RefusedError(f"{words} --folder") from error
        for name, value in settings.items():
            if earlier.get(name) != value:
                words = f"{file} has results with {name} {earlier.get(name)!r}, not {value!r}"
                raise RefusedError(f"{words}: give another --folder, or the earlier option")
        return cls(file, settings, drops, scores)

    def write(self) -> None:
        """Replace the file."""
        scores = {
            kept: {task: asdict(score) for task, score in of_model.items()}
            for kept, of_model in self.scores.items()
        }
        found = {"settings": self.settings, "drops": self.drops, "scores": scores}
        beside = self.file.with_suffix(".partial")
        beside.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        beside.replace(self.file)


# ------------------------------------------------------------------------------------- the text


def lines_of(file: Path) -> Iterator[str]:
    """Yield the lines of a text, or the texts of a JSON Lines file; blank ones are left out."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if file.suffix != ".jsonl":
                text = line
            elif line.strip():
                try:
                    text = str(json.loads(line)["text"])
                except (ValueError, KeyError, TypeError):
                    words = f"{file}:{number}: expected an object with 'text', got {line[:40]!r}"
                    raise RefusedError(f"{words}: give --text in that form") from None
            else:
                continue
            if text.strip():
                yield text if text.endswith("\n") else text + "\n"


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Join WikiText's lines to articles; an article begins with ` = Title = `.

    Lines without a single title are texts by themselves.
    """
    article: list[str] = []
    titles = False
    for line in lines:
        title = line.startswith(" = ") and not line.startswith(" = = ")
        if article and (title or not titles):
            yield "".join(article)
            article = []
        titles = titles or title
        article.append(line)
    if article:
        yield "".join(article)


def write_texts(text: Path, folder: Path, samples: int) -> tuple[Path, Path]:
    """Write the articles for healing, and the beginnings for the choice of layers."""
    learned, chosen = folder / "learned.jsonl", folder / "chosen.jsonl"
    long = []
    with learned.open("w", encoding="utf-8") as rows:
        for article in articles(lines_of(text)):
            rows.write(json.dumps({"text": article}) + "\n")
            if len(article) >= LEAST:
                long.append(article[:MOST])
    if len(long) < samples:
        words = f"--text {text} has {len(long)} texts of {LEAST} characters, expected {samples}"
        raise RefusedError(f"{words} for --samples: give a longer text, or fewer samples")
    drawn = random.Random(0).sample(long, samples)
    chosen.write_text("".join(json.dumps({"text": one}) + "\n" for one in drawn), "utf-8")
    return learned, chosen


# ------------------------------------------------------------------------------------ the plans


def opening(base: Base) -> list[str]:
    """Return the first lines of all plans."""
    return ["tailor 1", f"model base = {json.dumps(base.name)}"]


def dropped(text: str) -> tuple[int, ...]:
    """Return the positions that `L26..L33` or `L3, L12..L14` drops. Raises RefusedError."""
    try:
        plan = gptailor.loads(f'tailor 1\nmodel base = "./base"\ndrop {text}\n')
    except TailorError:
        plan = None
    found = [drop.position for drop in plan.drops if hasattr(drop, "position")] if plan else []
    if not found:
        raise RefusedError(f"--drop: expected layers such as L26..L33, got '{text}'")
    return tuple(found)


def words_of(positions: Sequence[int]) -> str:
    """Return positions as a plan writes them."""
    windows = runs(sorted(positions))
    return ", ".join(f"L{a}" if a == b else f"L{a}..L{b}" for a, b in windows)


def tailored(options: argparse.Namespace, command: str, *arguments: str) -> None:
    """Run a command of gptailor, which prints its progress. Raises RefusedError if it fails."""
    more = ["--device", options.device]
    more += ["--memory", options.memory] if options.memory else []
    whole = [sys.executable, "-m", "gptailor", command, *arguments, *more]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        whole, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    )
    if done.returncode:
        words = f"`gptailor {command} {' '.join(arguments)}` ended with exit code {done.returncode}"
        raise RefusedError(f"{words}: its message is above; the same command continues")


def chosen_layers(
    options: argparse.Namespace, base: Base, kept: int, texts: tuple[Path, Path]
) -> str:
    """Search for the layers to drop, or continue the search; return them."""
    learned, chosen = (json.dumps(str(text.resolve())) for text in texts)
    space, run = options.folder / f"{kept}-space.tailor", options.folder / f"{kept}-search"
    lines = [
        *opening(base),
        f"drop any {base.layers - kept} of L1..L{base.layers - 1}",
        f"bridge on {learned} tokens {BRIDGED}",
        f"search {{ minimize nll({chosen}); fidelity {max(1, options.samples // 4)}.."
        f"{options.samples}; trials {options.trials} }}",
    ]
    space.write_text("\n".join(lines) + "\n", "utf-8")
    of_search = ("--bridge", "each", "--dtype", options.dtype)
    tailored(options, "search", str(space), "-o", str(run), *of_search)
    best = gptailor.load(run / "best.tailor")
    return words_of([drop.position for drop in best.drops if hasattr(drop, "position")])


def compiled(options: argparse.Namespace, base: Base, kept: int, drop: str, learned: Path) -> Path:
    """Compile the plan of a cut unless its output exists; return the output."""
    plan, out = options.folder / f"{kept}.tailor", options.folder / f"{kept}"
    text = json.dumps(str(learned.resolve()))
    tokens = f" tokens {options.bridge_tokens}" if options.bridge_tokens else ""
    lines = [*opening(base), f"drop {drop}", f"bridge on {text}{tokens}"]
    lines += [f"heal on {text} tokens {options.tokens}"]
    plan.write_text("\n".join(lines) + "\n", "utf-8")
    if not (out / "config.json").is_file():
        tailored(options, "compile", str(plan), "-o", str(out))
    return out


# ------------------------------------------------------------------------------------ the judge


def tasks_of(options: argparse.Namespace) -> tuple[Any, list[str]]:
    """Return lm-eval's index of tasks, and the names of the tasks to run. Raises RefusedError.

    The tasks of a folder are its groups, and the tasks outside of them. All are loaded once, so
    that missing data is found before anything is compiled.
    """
    from lm_eval.tasks import TaskManager

    if options.tasks is None:
        manager, names = TaskManager(), list(METRICS)
    else:
        manager = TaskManager(include_path=str(options.tasks), include_defaults=False)
        entries = [manager.task_index[name] for name in manager.all_groups]
        inside = {part for entry in entries for part in (entry.cfg or {})["task"]}
        all_names = [*manager.all_groups, *manager.all_subtasks]
        names = [name for name in all_names if name not in inside]
    where = "lm-eval's own tasks" if options.tasks is None else f"--tasks {options.tasks}"
    if not names:
        raise RefusedError(f"{where}: expected .yaml files of lm-eval's tasks, found none")
    for name in names:
        try:
            loaded = manager.load([name])["tasks"]
        except Exception as error:  # tasks and their data are foreign
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            remedy = "check the network or the task's data, or give --tasks with local data"
            raise RefusedError(
                f"{where}: task '{name}' can't be loaded ({reason}): {remedy}"
            ) from error
        without = [one for one, task in loaded.items() if task.get_config("num_fewshot") == 0]
        if without:
            words = f"{where}: task '{without[0]}' fixes num_fewshot at 0, expected {SHOTS}"
            raise RefusedError(f"{words}: remove the line from its file")
    return manager, names


def score_of(task: str, results: Mapping[str, Any], device: str) -> TaskScore:
    """Return a task's score from lm-eval's results. Raises RefusedError without a known metric."""
    values = results["results"][task]
    known = [metric for metric in (METRICS.get(task, OTHERS[0]), *OTHERS) if metric in values]
    if not known:
        names = ", ".join(name for name in values if "," in name)
        words = f"task '{task}': expected one of the metrics {', '.join(OTHERS)}, got {names}"
        raise RefusedError(f"{words}: add one to the metric_list of its file")
    name, _, filter_ = known[0].partition(",")
    stderr = values.get(f"{name}_stderr,{filter_}")
    return TaskScore(
        known[0],
        float(values[known[0]]),
        float(stderr) if isinstance(stderr, int | float) else None,
        sum(counts["effective"] for counts in results["n-samples"].values()),
        str(results["versions"].get(task)),
        f"lm-eval {version('lm_eval')}, transformers {version('transformers')}",
        device,
    )


def judged(
    model: str, names: Sequence[str], manager: Any, options: argparse.Namespace
) -> Iterator[tuple[str, TaskScore]]:
    """Yield the scores of a model, task by task, and free its memory at the end."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    live = HFLM(
        pretrained=model,
        dtype=options.dtype,
        device=options.device,
        batch_size=options.batch,
    )
    for name in names:
        results = lm_eval.simple_evaluate(
            model=live,
            tasks=[name],
            num_fewshot=SHOTS,
            limit=options.limit,
            task_manager=manager,
            log_samples=False,
        )
        yield name, score_of(name, results, options.device)
    del live
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def judge(
    kept: Kept, layers: int, model: str, tasks: tuple[Any, list[str]], options: argparse.Namespace
) -> None:
    """Score a model on its unscored tasks, and keep each score at once."""
    manager, names = tasks
    found = kept.scores.setdefault(layers, {})
    missing = [name for name in names if name not in found]
    for name, score in judged(model, missing, manager, options) if missing else ():
        found[name] = score
        kept.write()
        print(f"{layers} layers, {name}: {score.score:.4f}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------ the table


def table(kept: Kept, base: Base, names: Sequence[str], shown: Sequence[int]) -> Iterator[str]:
    """Yield the lines of the table, and the conditions of the measurement below it.

    A share is the score divided by the uncut model's.
    """
    yield "| model | layers | task | score, % | share kept | published score | published share |"
    yield "|---|--:|---|--:|--:|--:|--:|"
    for layers in (base.layers, *shown):
        model = "uncut" if layers == base.layers else f"without {kept.drops[layers]}"
        for name in names:
            score, whole = kept.scores[layers][name], kept.scores[base.layers][name]
            error = "" if score.stderr is None else f" ± {100 * score.stderr:.1f}"
            share = f"{100 * score.score / whole.score:.1f} %" if whole.score else ""
            cells = [f"{100 * score.score:.1f}{error}", share, "", ""]
            value = PUBLISHED.get(layers, {}).get(name) if base.published else None
            if value is not None:
                cells[2] = f"{100 * value:.1f}"
                cells[3] = f"{100 * value / PUBLISHED[base.layers][name]:.1f} %"
            yield f"| {model} | {layers} | {name} | {' | '.join(cells)} |"
    scores = [kept.scores[layers][name] for layers in (base.layers, *shown) for name in names]
    versions = ", ".join(
        dict.fromkeys(
            f"{name} {kept.scores[base.layers][name].version} "
            f"({kept.scores[base.layers][name].metric}, "
            f"{kept.scores[base.layers][name].samples} samples)"
            for name in names
        )
    )
    judges = "; ".join(dict.fromkeys(f"{score.judge}, {score.device}" for score in scores))
    yield f"\ngptailor {gptailor.__version__}; {judges}; {SHOTS} examples in a prompt."
    yield f"Tasks and their versions: {versions}."


# --------------------------------------------------------------------------------- the command


def base_of(options: argparse.Namespace) -> Base:
    """Read the model's configuration. Raises RefusedError."""
    from transformers import AutoConfig

    folder = Path(options.model).expanduser()
    name = str(folder.resolve()) if folder.is_dir() else options.model
    try:
        config = AutoConfig.from_pretrained(name).get_text_config()
        layers = int(config.num_hidden_layers)
    except (OSError, ValueError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        words = f"--model {options.model}: its configuration can't be read ({reason})"
        raise RefusedError(f"{words}: give a model's folder, or its id on the Hub") from error
    shape = (config.model_type, layers, getattr(config, "hidden_size", None))
    return Base(name, layers, shape == SHAPE)


def drops_of(options: argparse.Namespace, base: Base) -> dict[int, str]:
    """Return the given dropped layers by the number of kept layers. Raises RefusedError."""
    for kept in options.keep:
        if not 1 <= kept < base.layers:
            words = f"--keep {kept}: expected 1 to {base.layers - 1}"
            raise RefusedError(f"{words}, because {options.model} has {base.layers} layers")
    found: dict[int, str] = {}
    for text in options.drop:
        positions = dropped(text)
        kept = base.layers - len(positions)
        if max(positions) >= base.layers:
            words = f"--drop {text}: expected layers up to L{base.layers - 1}"
            raise RefusedError(f"{words}, because {options.model} has {base.layers} layers")
        if kept not in options.keep or kept in found:
            which = "again" if kept in found else f"which --keep {options.keep} doesn't name"
            words = f"--drop {text}: it keeps {kept} of {base.layers} layers, {which}"
            raise RefusedError(f"{words}: give one --drop for a number of --keep")
        found[kept] = words_of(positions)
    return found


def settings_of(options: argparse.Namespace, base: Base) -> dict[str, Any]:
    """Return the options that results depend on. Raises RefusedError for a missing file."""
    if not options.text.is_file():
        words = f"--text {options.text}: there is no such file: give a file of WikiText"
        raise RefusedError(f"{words} (--help says how to get one)")
    if options.tasks is not None and not options.tasks.is_dir():
        words = f"--tasks {options.tasks}: there is no such folder: give one with task files"
        raise RefusedError(words)
    with options.text.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    names = ("tokens", "bridge_tokens", "limit", "dtype", "samples", "trials")
    found = {name: getattr(options, name) for name in names}
    tasks = None if options.tasks is None else str(options.tasks.resolve())
    return {"model": base.name, "text": digest, "tasks": tasks, **found}


def run(options: argparse.Namespace) -> None:
    """Judge the uncut model, make and judge each cut, and print the table."""
    require("search", "benchmarks/published.py")
    require("eval", "benchmarks/published.py")
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        words = f"--device {options.device}: torch finds no GPU"
        raise RefusedError(f"{words}: give --device cpu, for a small model")
    base = base_of(options)
    given = drops_of(options, base)
    settings = settings_of(options, base)
    options.folder.mkdir(parents=True, exist_ok=True)
    kept = Kept.of(options.folder / "results.json", settings)
    for layers, drop in given.items():
        if kept.drops.setdefault(layers, drop) != drop:
            words = f"{kept.file} has {layers} layers without {kept.drops[layers]}, not {drop}"
            raise RefusedError(f"{words}: give another --folder, or the earlier --drop")
    kept.write()
    texts = write_texts(options.text, options.folder, options.samples)
    tasks = tasks_of(options)
    judge(kept, base.layers, base.name, tasks, options)
    for layers in options.keep:
        if layers not in kept.drops:
            kept.drops[layers] = chosen_layers(options, base, layers, texts)
            kept.write()
        out = compiled(options, base, layers, kept.drops[layers], texts[0])
        judge(kept, layers, str(out), tasks, options)
    print("", *table(kept, base, tasks[1], options.keep), sep="\n")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="Qwen/Qwen3-8B", metavar="MODEL",
        help="the uncut model: a folder, or an id on the Hub (Qwen/Qwen3-8B)")  # fmt: skip
    add("--text", type=Path, required=True, metavar="FILE", help="WikiText: .txt, or .jsonl")
    add("--keep", type=int, nargs="+", default=[28, 32], metavar="N", help="layers (28 32)")
    add("--drop", action="append", default=[], metavar="LAYERS",
        help="layers to drop; one list for each number of --keep (a search)")  # fmt: skip
    add("--tokens", type=_count, default=1_600_000, metavar="N",
        help="tokens for healing a cut (1600000)")  # fmt: skip
    add("--bridge-tokens", type=_count, metavar="N",
        help="calibration tokens of bridges (65536)")  # fmt: skip
    add("--trials", type=_count, default=24, metavar="N",
        help="evaluations of the search for layers (24)")  # fmt: skip
    add("--samples", type=_count, default=48, metavar="N",
        help="texts of the search for layers (48)")  # fmt: skip
    add("--device", default="cuda", help="device of models: cpu, cuda or cuda:1 (cuda)")
    add("--dtype", choices=["float32", "float16", "bfloat16"], default="bfloat16",
        help="the dtype of judged models (bfloat16)")  # fmt: skip
    add("--memory", metavar="SIZE", help="the most bytes of weights on the device, for gptailor")
    add("--batch", type=_count, default=4, metavar="N", help="prompts of a batch of lm-eval (4)")
    add("--tasks", type=Path, metavar="DIR",
        help="a folder of lm-eval's task files (mmlu, hellaswag and gsm8k of lm-eval)")  # fmt: skip
    add("--limit", type=_count, metavar="N", help="documents of each task (all)")
    add("--folder", type=Path, default=ROOT / ".published", metavar="DIR",
        help="outputs and results (.published)")  # fmt: skip
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return int(text)


if __name__ == "__main__":
    try:
        run(parsed(sys.argv[1:]))
    except (RefusedError, TailorError) as error:
        sys.exit(f"published.py: {error}")
