"""Train a second family of fine-tunes on public data, and write its texts.

    python benchmarks/second_family.py --data DATA --folder .second
    python benchmarks/cut_scores.py --family .second
    python benchmarks/search_repaired.py --family .second

Two low-rank fine-tunes of SmolLM2 are trained on 510,000 tokens each: `maths` on GSM8K, `code` on
the standard library. Each takes about 45 minutes of a core. The texts of a search and of its
healing come from these sources; the fine-tunes don't learn from the search's texts. Held-out texts
come from other sources: SVAMP and MBPP. Problems are in the model's chat template, and only answers
count. Finished fine-tunes are kept.

    python benchmarks/second_family.py --data DATA --folder .whole --whole --tokens 36000

trains the whole models on fewer tokens, in three minutes of a core each.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(ROOT / "examples" / "family")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import learning  # noqa: E402 (in examples/family/)
import smollm2  # noqa: E402 (in examples/)
import torch  # noqa: E402
from learning import Encoder, Row, Schedule  # noqa: E402
from texts import Text  # noqa: E402

from benchmarks.models import add_model, model_folder  # noqa: E402
from benchmarks.search_texts import rows_of  # noqa: E402

TOKENS: Final = 510_000
"""Training tokens of each fine-tune."""
STEP_TOKENS, RATE, RANK = 2048, 5e-4, 8
WHOLE_RATE: Final = 1e-4
"""The learning rate of a whole model."""
STRETCH: Final = 256
"""Tokens of a piece of a module."""
SEARCHED, HELD = 6, 60
"""Texts of each domain for the search, and held out."""
LEARNED: Final = 900
"""Calibration texts of each domain for bridges and healing."""
LONGEST: Final = 1200
"""Most characters of an answer."""
LEAST: Final = 8
"""Least tokens of an answer."""
APART: Final = ("test", "site-packages", "dist-packages", "idlelib", "encodings")
"""Parts of paths of excluded modules."""


def modules(tokenizer: Any) -> Iterator[Text]:
    """Yield pieces of the standard library's modules."""
    for path in sorted(Path(os.__file__).parent.rglob("*.py")):
        if not any(part in str(path) for part in APART):
            ids = tokenizer(path.read_text("utf-8", "ignore"))["input_ids"]
            for first in range(0, len(ids) - STRETCH, STRETCH):
                yield Text("", tokenizer.decode(ids[first : first + STRETCH]))


def own_texts(data: Path, tokenizer: Any) -> dict[str, list[Text]]:
    """Return the texts of each domain in a drawn order; the last ones are the search's."""
    problems = rows_of(data / "math" / "gsm8k_train.jsonl")
    found = {
        "maths": [Text(row["question"], row["answer"]) for row in problems],
        "code": list(modules(tokenizer)),
    }
    for texts in found.values():
        random.Random(1).shuffle(texts)
    return found


def held_texts(data: Path) -> dict[str, list[Text]]:
    """Return the texts of each domain's other source."""
    found = {
        "maths": [
            Text(row["context"], f"{row['chain_of_thought'][2:-2]} = {row['answer']}")
            for row in rows_of(data / "math" / "svamp.jsonl")
        ],
        "code": [
            Text("", row["code"].replace("\r\n", "\n"))
            for row in rows_of(data / "code" / "mbpp.jsonl")
        ],
    }
    for texts in found.values():
        random.Random(2).shuffle(texts)
    return found


def answered(row: Row) -> bool:
    """Return whether a row has an answer that isn't cut off."""
    ids, skipped = row
    return skipped + LEAST < len(ids)


def schedule_of(rows: Sequence[Row], tokens: int, rate: float) -> Schedule:
    """Return a schedule of so many tokens."""
    mean = sum(len(ids) for ids, _ in rows) / len(rows)
    batch = max(4, round(STEP_TOKENS / mean))
    return Schedule(int(tokens / (mean * batch)) + 1, batch, rate)


def write(file: Path, texts: Sequence[Text], encoder: Encoder) -> None:
    """Write texts as rows: prompts in the chat template, answers with the token that ends them."""
    end = encoder.tokenizer.eos_token
    rows = [
        {"prompt": encoder.prompt(text), "response": text.answer[:LONGEST] + end}
        if text.prompt
        else {"text": text.answer[:LONGEST]}
        for text in texts
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_texts(
    folder: Path, own: Mapping[str, Sequence[Text]], data: Path, encoder: Encoder
) -> None:
    """Write the texts of the search and of its healing, and the held-out texts."""
    folder.mkdir(exist_ok=True)
    parts = {
        "search": [texts[-SEARCHED:] for texts in own.values()],
        "learned": [texts[: min(LEARNED, len(texts) - SEARCHED)] for texts in own.values()],
    }
    for name, part in parts.items():  # rows alternate between the domains
        mixed = [text for some in zip_longest(*part) for text in some if text is not None]
        write(folder / f"{name}.jsonl", mixed, encoder)
    for domain, texts in held_texts(data).items():
        write(folder / f"held-{domain}.jsonl", texts[:HELD], encoder)


def main() -> None:
    """Train the missing models, then write the texts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / ".second", metavar="DIR", help="adapters and texts")
    add_model(parser)
    add("--data", type=Path, required=True, metavar="DIR", help="folder of public texts")
    add("--whole", action="store_true", help="train whole models (adapters)")
    add("--tokens", type=int, default=TOKENS, help=f"training tokens of each fine-tune ({TOKENS})")
    options = parser.parse_args()
    model_folder(options.model)
    encoder = Encoder(options.model)
    own = own_texts(options.data, encoder.tokenizer)
    options.folder.mkdir(parents=True, exist_ok=True)
    for domain, texts in own.items():
        folder = options.folder / domain
        if any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
            continue
        learned = [text for text in texts[:-SEARCHED] if answered(encoder(text))]
        rate, rank = (WHOLE_RATE, 0) if options.whole else (RATE, RANK)
        schedule = schedule_of([encoder(text) for text in learned], options.tokens, rate)
        tuned = learning.train(options.model, learned, schedule, rank, "cpu")
        if options.whole:
            tuned.to(torch.bfloat16).save_pretrained(folder)
            encoder.tokenizer.save_pretrained(folder)
        else:
            learning.save(tuned, smollm2.MODEL, folder)
    write_texts(options.folder / "texts", own, options.data, encoder)


if __name__ == "__main__":
    main()
