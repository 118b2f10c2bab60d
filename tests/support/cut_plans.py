"""A folder with texts to cut a model by, and a plan of the folder's base."""

import json
from pathlib import Path

import gptailor
from gptailor.plan.plan import Plan
from tests.support.tiny import letters


def write_texts(folder: Path) -> None:
    """Write a calibration text, and rows for a search."""
    (folder / "text.txt").write_text(letters(900))
    rows = [json.dumps({"text": letters(30, seed)}) for seed in range(24)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")


def write(folder: Path, text: str) -> Plan:
    """Write `plan.tailor` with these statements, and read it."""
    (folder / "plan.tailor").write_text(f'tailor 1\nmodel base = "./base"\n{text}\n')
    return gptailor.load(folder / "plan.tailor")
