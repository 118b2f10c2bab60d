"""Default texts of `benchmarks/bridge.py`, from the project and Python's standard library.

Three domains are from the demo's family. Their training and held-out texts are disjoint. The fourth
domain is a story, without calibration text of its kind.
"""

import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES / "family"))

from texts import Text, arithmetic, conversation, standard_library  # noqa: E402 (beside train.py)

DOMAINS = {
    "arithmetic": arithmetic.texts,
    "python": standard_library.texts,
    "conversation": conversation.texts,
}
CALIBRATION = {"arithmetic": 1000, "python": 700, "conversation": 1600}
"""Calibration texts of each domain, about 250,000 tokens in all."""
HELD_OUT = {"arithmetic": 60, "python": 20, "conversation": 120}
"""Held-out texts of each domain, about 4,000 tokens each."""
STORY = "story"


def write_texts(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Write the calibration file and a held-out file for each domain; return their paths."""
    calibration = [make(CALIBRATION[domain], False) for domain, make in DOMAINS.items()]
    held_out = {domain: make(HELD_OUT[domain], True) for domain, make in DOMAINS.items()}
    story = Text("", (EXAMPLES / "text.txt").read_text(encoding="utf-8"))
    whole = _write(folder / "calibration.jsonl", list(chain(*calibration)))
    files = {name: _write(folder / f"{name}.jsonl", some) for name, some in held_out.items()}
    return whole, {**files, STORY: _write(folder / f"{STORY}.jsonl", [story])}


def _write(file: Path, texts: Sequence[Text]) -> Path:
    rows = ({"text": "\n".join(filter(None, (one.prompt, one.answer)))} for one in texts)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
