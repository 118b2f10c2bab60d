"""The texts of `gptailor shrink`: rows to fit on, to calibrate with, and held out to measure on."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gptailor.checkpoint.datasets import CalibrationError, Exchange, joined_text, read_rows
from gptailor.checkpoint.write.output_file import write_whole

OWN_TEXT = Path(__file__).with_name("text.jsonl")
"""The text that gptailor brings: prose, talk, Python and sums of the project, in English."""
PIECE = 1024
"""Bytes of a sample of the held-out text."""
_ROW = 2048
"""Characters of a row that is made of plain text."""
_LEAST = 8 * PIECE
"""The fewest bytes of held-out text."""
_HELD = 4
"""One row in this many is held out."""


@final
@dataclass(frozen=True)
class ShrinkTexts:
    """Rows of a text, in three files: `fit`, `calibration`, a part of it, and `held`."""

    fit: tuple[str, ...]
    calibration: tuple[str, ...]
    held: tuple[str, ...]

    @classmethod
    def of(cls, files: Sequence[Path], calibrated: int) -> "ShrinkTexts":
        """Read files, and hold out a quarter of their rows. The calibration has this many bytes.

        Raises CalibrationError for an unusable file, and for too little text (C806).
        """
        rows = [row for file in files for row in _rows(file)]
        rows.sort(key=lambda row: hashlib.sha256(row.encode()).digest())
        held, fit = rows[::_HELD], [row for i, row in enumerate(rows) if i % _HELD]
        if (size := sum(len(row.encode()) for row in held)) < _LEAST or not fit:
            message = f"expected {_HELD * _LEAST // 1000} kB of text or more, got about "
            message += f"{_HELD * size / 1000:.1f} kB in {len(rows)} rows"
            raise CalibrationError(
                "C806", message, files[0], help="give more text, or remove --text"
            )
        part, used = [], 0
        for row in fit:
            part += [row] if used < calibrated else []
            used += len(row.encode())
        return cls(tuple(fit), tuple(part), tuple(held))

    @property
    def digest(self) -> str:
        """The sha256 of all rows."""
        return hashlib.sha256(repr((self.fit, self.calibration, self.held)).encode()).hexdigest()

    def write(self, folder: Path, stem: str) -> dict[str, str]:
        """Write the files into a folder, and return their names by their parts.

        One file has both `fit` and `calibration` if they are equal. Raises CheckpointError.
        """
        names = self.names(stem)
        for part, name in names.items():
            rows: tuple[str, ...] = getattr(self, part)
            lines = (json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows)
            write_whole(folder / name, "".join(lines).encode(), folder / name)
        return names

    def names(self, stem: str) -> dict[str, str]:
        """Return the names of the files by their parts."""
        calibration = "fit" if self.calibration == self.fit else "calibration"
        return {
            "fit": f"{stem}-fit.jsonl",
            "calibration": f"{stem}-{calibration}.jsonl",
            "held": f"{stem}-held.jsonl",
        }


def _rows(file: Path) -> Iterator[str]:
    """Yield the texts of a file's rows; plain text is split before a line, or a blank."""
    for row in read_rows(file, "text"):
        if isinstance(row, Exchange):
            yield row.context + joined_text(row.context, row.continuation)
        elif row.line is not None:
            yield row.text
        else:
            yield from _split(row.text)


def _split(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        stop = start + _ROW
        if stop < len(text):
            ends = (text.rfind(end, start + _ROW // 2, stop) for end in ("\n\n", "\n", " "))
            stop = next((end for end in ends if end > start), stop)
        if piece := text[start:stop].strip():
            yield piece
        start = stop
