"""Which text should healing learn from, so that the gain holds on other sources and in generation?

    python benchmarks/heal.py --data DATA --folder .heal --drop L12..L18 --seeds 3 \\
        --variant 'bridge on TEXT; heal on TEXT tokens 50000' \\
        --variant 'bridge on TEXT; heal on answers(PROMPTS) loss answers tokens 50000'
    python benchmarks/heal.py --folder .heal --table     # print the results of the folder
    python benchmarks/heal.py --data DATA --folder .merge --drop L12..L18 \\
        --adapter math=.second/maths --adapter code=.second/code \\
        --whole 'whole from math, code by task_arithmetic(weight=(0.6, 0.6))' \\
        --variant 'bridge on TEXT; heal on MATHS from math, CODE from code, CHAT tokens 50000'

A variant has a plan's statements other than the drop. WIKI, MATHS, CODE and CHAT stand for files of
WikiText, GSM8K, the standard library and Dolly. TEXT has all four in equal parts, and PROMPTS has
the questions of GSM8K and Dolly. Each seed reads the rows in another order. The cut by itself and
the model without a cut are always measured.

With --stages 2,2,3 each variant is measured twice: cut at once, and in three plans, each on the one
before it. The three share the tokens equally, and each reads the rows in another order. `original`
is the model without a cut, a teacher for all three.

`gptailor eval` measures nats a token on held-out parts of the four sources, and on four other
sources: C4, SVAMP, MBPP and the seed tasks of Self-Instruct. The share in brackets is the part of
the cut's loss that the variant recovered: (bare - found) / (bare - uncut).

Then the model answers with the likeliest token at each step. Sums such as 7 + 12, the demo's
held-out problems and SVAMP's problems are right if the last number is. MBPP's tasks have two
columns: the share of answers that define a function, and the share that passes the tests. This runs
code that a model wrote. Web pages and seed tasks are continued by at most 200 tokens. A
continuation loops if some run of four words or marks occurs four times. Repeats are the share of
runs of four that occurred before.

Each result is a JSON file in the folder, with the answers to read. A second call measures only
missing results and adds rows. A folder has one model, one merge and one set of texts.

Minutes of one idle core with SmolLM2: healing on 50,000 tokens takes 6 to 7, and 10 with `rank
full`. Answers of 50,000 tokens take about 5 more. A bridge takes about 2. Bridges, answers and
finished healings are kept in gptailor's cache. Judging takes about 5 with the default amounts.
Several calls may share a folder after the first one has written the texts.
"""

import argparse
import hashlib
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from benchmarks.bridge import layers, line, share  # noqa: E402 (the folder above is found first)
from benchmarks.heal_answers import Answers, answer_cell, folder_answers  # noqa: E402
from benchmarks.heal_texts import NAMES, SOURCES, Amounts, Files, write_files  # noqa: E402
from benchmarks.measured import Failed, run  # noqa: E402
from benchmarks.models import add_model, model_folder  # noqa: E402
from benchmarks.search_texts import rows_of  # noqa: E402

UNCUT, BARE = "uncut", "bare"
"""The plan with nothing dropped, and the plan with nothing but the drop."""


@dataclass(frozen=True)
class Variant:
    """A cut, the other statements of its plan, and the seed of their healing."""

    cut: str
    statements: str
    seed: int = 0
    stages: tuple[int, ...] = ()

    @property
    def shown(self) -> str:
        """The variant in a line of progress."""
        cut = f"{self.cut}, " if self.cut else ""
        return f"{cut}{self.name}, seed {self.seed}"

    @property
    def name(self) -> str:
        """The statements, and the numbers of layers that each plan of a chain drops."""
        steps = " + ".join(map(str, self.stages))
        return f"{self.statements}, in steps of {steps} layers" if steps else self.statements

    def cuts(self) -> list[str]:
        """Return the layers that each plan of the chain drops, by their numbers in its base."""
        left, cuts, gone = sorted(layers(self.cut)), [], 0
        for count in self.stages or (len(left),):
            cuts.append(", ".join(f"L{layer - gone}" for layer in left[:count]))
            left, gone = left[count:], gone + count
        return cuts

    @property
    def file_name(self) -> str:
        """The name of the variant's result."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]
        words = re.sub(r"\W+", "-", f"{self.cut} {self.statements}").strip("-")
        return f"{words[:80]}-{self.seed}-{digest}.json"

    def plans(self, learned: Mapping[str, Path]) -> list[list[str]]:
        """Return the lines of each plan of the chain, with files in place of their names."""
        if self.statements == UNCUT:
            return [[]]
        return [
            [f"drop {cut}", *self.repair(learned, self.seed + 100 * step)]
            for step, cut in enumerate(self.cuts())
        ]

    def repair(self, learned: Mapping[str, Path], seed: int) -> list[str]:
        """Return the lines that follow a drop. The plans of a chain share the tokens equally."""
        if self.statements == BARE:
            return []
        stages = len(self.stages) or 1
        names = rf"\b({'|'.join(NAMES)})\b"
        text = re.sub(names, lambda found: json.dumps(str(learned[found[1]])), self.statements)
        text = re.sub(r"\btokens (\d+)", lambda found: f"tokens {int(found[1]) // stages}", text)
        if "heal " in text and " seed " not in text:
            text = f"{text} seed {seed}"
        return [one.strip() for one in text.split(";") if one.strip()]


@dataclass(frozen=True)
class Result:
    """The scores of a variant.

    `losses` has nats a token by source, each with its standard error. `healed` is `compile`'s line
    about the healing.
    """

    variant: Variant
    losses: Mapping[str, tuple[float, float]]
    answers: Answers
    seconds: float
    healed: str


@dataclass(frozen=True)
class Bench:
    """The options, and the files that variants learn from and are judged by."""

    options: argparse.Namespace
    files: Files

    @cached_property
    def problems(self) -> list[dict[str, Any]]:
        """The problems' rows."""
        return rows_of(self.files.problems)

    def plan(self, variant: Variant, file: Path) -> Path:
        """Write the plans of a variant, each on the one before it; return the last one."""
        begun, plan = model_lines(self.options), file
        for number, lines in enumerate(variant.plans(self.files.learned)):
            if number:
                begun = ["tailor 1", f"model base = {json.dumps(f'./{plan.name}')}"]
            if "from original" in variant.statements:
                begun[2:2] = [f"model original = {json.dumps(str(self.options.model.resolve()))}"]
            plan = file.with_stem(f"{file.stem}-{number}")
            plan.write_text("\n".join([*begun, *lines, ""]), encoding="utf-8")
        return plan

    def measure(self, variant: Variant) -> Result:
        """Compile and judge a variant."""
        with tempfile.TemporaryDirectory(prefix="compiled-", dir=self.options.folder) as folder:
            log, out = Path(folder) / "log", Path(folder) / "out"
            plan = self.plan(variant, Path(folder) / "plan.tailor")
            took = self.run("compile", str(plan), "-o", str(out), log=log)
            (out / "plan.tailor").unlink()  # `eval` would also measure the plan's base
            said = [one for one in log.read_text("utf-8").splitlines() if "healed on" in one]
            losses = self.losses(out, log)
            answers = folder_answers(out, self.problems, self.options.device)
        return Result(variant, losses, answers, took, " ".join(said))

    def losses(self, model: Path, log: Path) -> dict[str, tuple[float, float]]:
        """Return nats a token with the standard error, for each source."""
        wishes = [f"nll({json.dumps(str(file))})" for file in self.files.judges.values()]
        flags = [flag for wish in wishes for flag in ("--objective", wish)]
        self.run("eval", str(model), *flags, "--no-speed", "--format", "json", log=log)
        text = log.read_text(encoding="utf-8")
        found = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]["results"]
        pairs = zip(self.files.judges, found, strict=True)
        return {name: (one["score"], one["stderr"]) for name, one in pairs}

    def run(self, *arguments: str, log: Path) -> float:
        """Run a command of gptailor's; return its seconds."""
        return run(
            [self.options.gptailor, *arguments, "--device", self.options.device], log
        ).seconds


def model_lines(options: argparse.Namespace) -> list[str]:
    """Return a plan's lines without the cut."""
    lines = ["tailor 1", f"model base = {json.dumps(str(options.model.resolve()))}"]
    lines += [f"model {name} = base + {json.dumps(str(at))}" for name, at in options.adapter]
    return lines + ([options.whole] if options.whole else [])


def variants(options: argparse.Namespace) -> Iterator[Variant]:
    """Yield the variants in their order."""
    yield Variant("", UNCUT)
    for cut in options.drop:
        yield Variant(cut, BARE)
    for seed in range(options.seeds):
        for cut in options.drop:
            for statements in options.variant:
                if seed == 0 or ("heal " in statements and " seed " not in statements):
                    yield Variant(cut, statements, seed)
                    if options.stages:
                        yield Variant(cut, statements, seed, options.stages)


# ------------------------------------------------------------------------------------- results


def write_result(file: Path, result: Result) -> None:
    """Write a result whole or not at all."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    partial.rename(file)


def read_results(folder: Path) -> list[Result]:
    """Return the results of a folder, oldest first."""
    files = sorted(folder.glob("*.json"), key=lambda file: (file.stat().st_mtime, file.name))
    found = [json.loads(file.read_text("utf-8")) for file in files]
    for one in found:
        asked = one["variant"]
        one["variant"] = Variant(**{**asked, "stages": tuple(asked.get("stages", ()))})
    return [Result(**one) for one in found]


def agree(options: argparse.Namespace) -> None:
    """Record in a new folder which results it has. Exit if an old folder has other results."""
    file = options.folder / "asked.json"
    asked = {
        "plan": model_lines(options),
        "data": str(options.data.resolve()),
        "amounts": [options.texts, options.problems, options.continuations],
    }
    known = json.loads(file.read_text("utf-8")) if file.exists() else asked
    if differ := [name for name in asked if known[name] != asked[name]]:
        sys.exit(f"{options.folder} has results of another {differ[0]}: name another --folder")
    file.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")


# -------------------------------------------------------------------------------------- tables


def tables(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of both tables, with a row for all seeds of a variant."""
    rows: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        rows.setdefault((result.variant.cut, result.variant.name), []).append(result)
    [uncut] = rows["", UNCUT]
    means = ("same sources", "other sources", "time")
    yield from heads("cut", "variant", "seeds", *uncut.losses, *means)
    for (cut, statements), of in rows.items():
        bare = rows.get((cut, BARE), [uncut])[0]
        yield line(cut, statements, str(len(of)), *loss_cells(of, bare, uncut))
    yield ""
    yield from heads("cut", "variant", "seeds", *uncut.answers)
    for (cut, statements), of in rows.items():
        answers = [result.answers for result in of]
        cells = (answer_cell(answers, measure) for measure in uncut.answers)
        yield line(cut, statements, str(len(of)), *cells)


def heads(*names: str) -> Iterator[str]:
    """Yield the first two lines of a table."""
    yield line(*names)
    yield line(*["---"] * len(names))


def loss_cells(of: Sequence[Result], bare: Result, uncut: Result) -> Iterator[str]:
    """Yield losses over all seeds, the means of recovered shares, and minutes of compilation.

    The error of a loss is over texts, which all seeds have in common. The error of a share is over
    seeds.
    """
    shares = [recovered(result, bare, uncut) for result in of]
    repaired = of[0].variant.statements not in (UNCUT, BARE)
    for name in uncut.losses:
        loss, error = (mean(result.losses[name][i] for result in of) for i in (0, 1))
        won = f" ({mean(one[name] for one in shares):.0%})" if repaired else ""
        yield f"{loss:.3f} ± {error:.3f}{won}"
    for group in zip(*SOURCES.values(), strict=True):
        means = [mean(one[name] for name in group) for one in shares]
        yield with_error(means) if repaired else ""
    yield f"{mean(result.seconds for result in of) / 60:.1f} min"


def recovered(result: Result, bare: Result, uncut: Result) -> dict[str, float]:
    """Return the recovered share of the cut's loss on each source."""
    found = (result, bare, uncut)
    return {name: share(*(one.losses[name][0] for one in found)) for name in uncut.losses}


def with_error(values: Sequence[float]) -> str:
    """Return the mean of several seeds' shares, with its error if there are several."""
    error = f" ± {100 * stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"**{100 * mean(values):.1f}{error} %**"


# ------------------------------------------------------------------------------------- options


def cut(text: str) -> str:
    """Return a list of layers such as `L20..L26` or `L3,L12..L14`."""
    layers(text)
    return ", ".join(part.strip() for part in text.split(","))


def adapter(text: str) -> tuple[str, Path]:
    """Return the name and the folder of `NAME=DIR`."""
    name, equals, folder = text.partition("=")
    if not equals or not (Path(folder) / "adapter_config.json").is_file():
        raise argparse.ArgumentTypeError(f"expected NAME=DIR with an adapter's folder, got {text}")
    return name, Path(folder).resolve()


def stages(text: str) -> tuple[int, ...]:
    """Return the numbers of layers of `2,2,3`."""
    return tuple(int(part) for part in text.split(","))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / ".heal", metavar="DIR",
        help="texts and results (.heal)")  # fmt: skip
    add("--data", type=Path, metavar="DIR", help="public texts: text/, math/, code/, chat/")
    add_model(parser)
    add("--adapter", type=adapter, action="append", default=[], metavar="NAME=DIR",
        help="a fine-tune of the base that statements may name; again for more")  # fmt: skip
    add("--whole", metavar="STATEMENT", help="a merge whose layers are cut")
    add("--drop", type=cut, action="append", default=[], metavar="LAYERS",
        help="a cut such as L12..L18; again for more")  # fmt: skip
    add("--variant", action="append", default=[], metavar="STATEMENTS",
        help="statements beside the drop, separated by ';'; again for more")  # fmt: skip
    add("--stages", type=stages, metavar="N,N", default=(),
        help="the layers that each plan of a chain drops: measure chains too")  # fmt: skip
    add("--seeds", type=int, default=1, metavar="N", help="healings of each variant (1)")
    add("--texts", type=int, default=32, metavar="N", help="texts that judge, of each source (32)")
    add("--problems", type=int, default=40, metavar="N", help="problems of each kind (40)")
    add("--continuations", type=int, default=20, metavar="N",
        help="continuations that are searched for loops (20)")  # fmt: skip
    add("--device", default="cpu", help="the device that heals and judges (cpu)")
    add("--gptailor", default=str(Path(sys.executable).parent / "gptailor"), metavar="COMMAND",
        help="another command than that beside this Python")  # fmt: skip
    add("--table", action="store_true", help="print the folder's results and measure nothing")
    options = parser.parse_args(arguments)
    if not options.table and not options.data:
        parser.error("--data is missing")
    return options


def measure_missing(bench: Bench, kept: Path) -> int:
    """Check the plans of all missing results and measure them; return how many failed."""
    missing = [one for one in variants(bench.options) if not (kept / one.file_name).exists()]
    with tempfile.TemporaryDirectory(prefix="checked-", dir=bench.options.folder) as folder:
        plans = [bench.plan(variant, Path(folder) / f"{number}.tailor")
                 for number, variant in enumerate(missing)]  # fmt: skip
        if plans:
            run([bench.options.gptailor, "check", *map(str, plans)], Path(folder) / "log")
    failed = 0
    for variant in missing:
        begun = time.perf_counter()
        try:
            write_result(kept / variant.file_name, bench.measure(variant))
        except Failed as failure:
            failed += 1
            print(f"{variant.shown}: {failure}", flush=True)
            continue
        print(f"{variant.shown}: {time.perf_counter() - begun:.0f} s", flush=True)
    return failed


def main(arguments: Sequence[str]) -> int:
    """Measure the missing results, then print the tables."""
    options = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.folder = options.folder.resolve()
    kept, failed = options.folder / "results", 0
    if not options.table:
        model_folder(options.model)
        kept.mkdir(parents=True, exist_ok=True)
        agree(options)
        amounts = Amounts(options.texts, options.problems, options.continuations)
        files = write_files(options.folder / "texts", options.model, options.data, amounts)
        try:
            failed = measure_missing(Bench(options, files), kept)
        except Failed as failure:
            sys.exit(str(failure))
    results = read_results(kept)
    if not any(result.variant.statements == UNCUT for result in results):
        sys.exit(f"{kept} has no result of the model without a cut: give --data to measure")
    print(*tables(results), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
