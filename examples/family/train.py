"""Train three specialists of one small model as LoRA adapters: arithmetic, Python, conversation.

    python examples/family/train.py                 # train all three, measure, write losses.json
    python examples/family/train.py arithmetic      # train one of them, measure all
    python examples/family/train.py --check         # recompute losses.json from the adapters
    python examples/family/train.py --texts DIR     # write the held-out texts as JSON Lines

Needs `pip install peft`. Two idle CPU cores take five to eight minutes for each adapter.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import smollm2  # noqa: E402
from texts import Text, arithmetic, conversation, standard_library  # noqa: E402

RANK = 4
HELD_OUT = 160  # texts of each domain that the losses are measured on
TOLERANCE = 0.02  # nats between two machines
RECORD = HERE / "losses.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The texts and the schedule of one specialist."""

    texts: Callable[[int, bool], list[Text]]
    pool: int  # number of different texts, reused when they run out
    steps: int
    batch: int
    rate: float


RECIPES = {
    "arithmetic": Recipe(arithmetic.texts, pool=2400, steps=130, batch=16, rate=8e-4),
    "python": Recipe(standard_library.texts, pool=1280, steps=160, batch=8, rate=5e-4),
    "conversation": Recipe(conversation.texts, pool=2000, steps=110, batch=16, rate=5e-4),
}


def train(domain: str, folder: Path, device: str) -> None:
    """Train one specialist and save it beside this file."""
    import learning

    recipe = RECIPES[domain]
    schedule = learning.Schedule(recipe.steps, recipe.batch, recipe.rate)
    print(domain, flush=True)
    tuned = learning.train(folder, recipe.texts(recipe.pool, False), schedule, RANK, device)
    learning.save(tuned, smollm2.MODEL, HERE / domain)


def measure(folder: Path, device: str) -> dict[str, Any]:
    """Return the nats a token of the base and its specialists on each domain's held-out texts."""
    import learning

    encoder = learning.Encoder(folder)
    rows = {
        domain: [encoder(text) for text in recipe.texts(HELD_OUT, True)]
        for domain, recipe in RECIPES.items()
    }
    there = [domain for domain in RECIPES if (HERE / domain / "adapter_config.json").is_file()]
    losses, tokens = {}, {}
    for name in ["base", *there]:
        model = learning.loaded(folder, device)
        if name != "base":
            model = learning.adapted(model, HERE / name)
        found = {domain: learning.loss_on(model, rows[domain]) for domain in RECIPES}
        losses[name] = {domain: round(loss, 4) for domain, (loss, _) in found.items()}
        tokens = {domain: number for domain, (_, number) in found.items()}
    return {
        "python": platform.python_version(),
        "texts": HELD_OUT,
        "tokens": tokens,
        "nats a token": losses,
    }


def table(found: dict[str, Any]) -> str:
    """Return the losses as a Markdown table, each specialist's own domain in bold."""
    lines = ["| model | " + " | ".join(RECIPES) + " |", "|---" * (len(RECIPES) + 1) + "|"]
    for name, row in found["nats a token"].items():
        cells = (f"**{x:.3f}**" if name == domain else f"{x:.3f}" for domain, x in row.items())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def complaints(found: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Return the faults of a table: figures unlike the record, or a domain won by another model."""
    here, there = found["nats a token"], recorded["nats a token"]
    wrong = []
    if here.keys() != there.keys():
        wrong.append(f"the models are {', '.join(here)}, but losses.json has {', '.join(there)}")
    for name in here.keys() & there.keys():
        for domain, loss in here[name].items():
            if abs(loss - there[name][domain]) > TOLERANCE:
                wrong.append(
                    f"{name} on {domain}: {loss:.4f}, but losses.json has {there[name][domain]:.4f}"
                )
    for domain in RECIPES:
        best = min(here, key=lambda name: here[name][domain])
        if best != domain:
            wrong.append(f'the best model on {domain} is "{best}"')
    if wrong and found["python"] != recorded["python"]:
        wrong.append(
            f"the Python texts are from Python {found['python']}, "
            f"but losses.json was measured with Python {recorded['python']}"
        )
    return wrong


def write_texts(model: Path, folder: Path) -> None:
    """Write the held-out texts, prompts in the chat template, one JSON Lines file a domain."""
    import learning

    encoder = learning.Encoder(model)
    folder.mkdir(parents=True, exist_ok=True)
    for domain, recipe in RECIPES.items():
        rows = (
            {"prompt": encoder.prompt(text), "response": text.answer}
            for text in recipe.texts(HELD_OUT, True)
        )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{domain}.jsonl").write_text(lines, "utf-8")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("domains", nargs="*", metavar="DOMAIN", help=f"any of {', '.join(RECIPES)}")
    parser.add_argument("--check", action="store_true", help="measure only, compare, write nothing")
    parser.add_argument(
        "--texts", type=Path, metavar="DIR", help="write the held-out texts and end"
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", default=ROOT / ".demo" / "smollm2", help="the base"
    )
    parser.add_argument("--device", default="cpu", help='"cuda" for a GPU')
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    given = parser.parse_args()
    for domain in given.domains:
        if domain not in RECIPES:
            parser.error(f'expected one of {", ".join(RECIPES)}, got "{domain}"')
    if given.domains and (given.check or given.texts):
        parser.error("expected no domain with --check or --texts")
    return given


def run(given: argparse.Namespace) -> int:
    """Train, measure or check, as the options ask."""
    smollm2.extract(given.model)
    if given.threads:
        import torch

        torch.set_num_threads(given.threads)
    if given.texts:
        write_texts(given.model, given.texts)
        return 0
    if not given.check:
        for domain in given.domains or RECIPES:
            train(domain, given.model, given.device)
    found = measure(given.model, given.device)
    print(table(found))
    if not given.check:
        RECORD.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        return 0
    wrong = complaints(found, json.loads(RECORD.read_text("utf-8")))
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    """Run the command, and print a missing package or file in one line."""
    given = arguments()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return run(given)
    except ModuleNotFoundError as error:
        print(f"error: {error}; pip install {error.name}", file=sys.stderr)
    except (smollm2.MissingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
