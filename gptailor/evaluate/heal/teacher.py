"""What the teacher predicts after each token, computed once and kept on disk, compactly."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from gptailor.evaluate.forward.evaluator import Evaluator
from gptailor.evaluate.forward.requests import LiveModel, Request, Rows, Work
from gptailor.evaluate.objectives.kl import grouped
from gptailor.evaluate.outcome import Failure
from gptailor.plan.faults import TailorError

TAUGHT = 128
"""How many of the teacher's likeliest tokens are kept of each prediction, by themselves: 1 KiB.

Chosen in `docs/healing.md`'s ablation.
"""
_AT_ONCE = 2**16
"""Tokens that the teacher predicts from at once; a killed run begins again after the last ones."""
_DONE = "teacher.json"


@final
class Predictions:
    """The teacher's distributions of some sequences, in a folder.

    Of each prediction: the likeliest tokens, and the logarithms of their probabilities, of all
    others' together last where there are others. A sequence of n tokens has n − 1 predictions.
    Where the folder has no room they are in memory.
    """

    def __init__(
        self, folder: Path, sequences: Int64[Tensor, " n length"], vocabulary: int
    ) -> None:
        self.folder = folder
        self.sequences = sequences
        self.kept = min(TAUGHT, vocabulary)
        self.groups = self.kept + (self.kept < vocabulary)
        self.each = sequences.shape[1] - 1
        self.on_disk = True
        rows = len(sequences) * self.each
        self.tokens = self._mapped("tokens", rows * self.kept, torch.int32).view(rows, self.kept)
        self.logs = self._mapped("logs", rows * self.groups, torch.float32).view(rows, self.groups)

    def _mapped(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """A file as a tensor. Its room is taken first: a mapped file on a full disk is a crash."""
        file = self.folder / f"teacher.{name}"
        try:
            self.folder.mkdir(exist_ok=True)
            with file.open("ab") as there:
                os.posix_fallocate(there.fileno(), 0, size * dtype.itemsize)
        except OSError:
            self.on_disk = False
            with suppress(OSError):
                file.unlink()
            return torch.empty(size, dtype=dtype)
        return torch.from_file(str(file), shared=True, size=size, dtype=dtype)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.tokens.numel() * 4 + self.logs.numel() * 4

    def of(
        self, start: int, stop: int
    ) -> tuple[Int32[Tensor, " n kept"], Float[Tensor, " n groups"]]:
        """Those of the sequences from `start` up to `stop`, one after the other."""
        rows = slice(start * self.each, stop * self.each)
        return self.tokens[rows], self.logs[rows]

    def learn(
        self,
        teacher: Callable[[], LiveModel],
        device: torch.device,
        on_done: Callable[[int, int], None],
    ) -> None:
        """Ask the teacher, where that isn't done yet. `on_done` hears of tokens done and of all.

        Raises TailorError for a teacher that predicts no numbers.
        """
        marker = self.folder / _DONE
        known = self.on_disk and marker.is_file()
        done = int(json.loads(marker.read_text())["sequences"]) if known else 0
        total = self.sequences.numel()
        step = max(1, _AT_ONCE // self.sequences.shape[1])
        if done == len(self.sequences):
            return
        live = teacher()
        evaluator = Evaluator(device=device)
        for start in range(done, len(self.sequences), step):
            on_done(start * self.sequences.shape[1], total)
            some = self.sequences[start : start + step]
            requests = [Request(tuple(row), 1) for row in some.tolist()]
            found = evaluator.run(live, [Work(requests, self._keep)])
            if isinstance(found, Failure):
                raise TailorError(f"the teacher of 'heal' fails: {found.message}")
            rows = slice(start * self.each, (start + len(some)) * self.each)
            values = torch.cat(found[0])
            self.tokens[rows] = values[:, : self.kept].int()
            self.logs[rows] = values[:, self.kept :]
            if self.on_disk:
                with suppress(OSError):  # a kill would then cost more
                    written = marker.with_suffix(".new")
                    written.write_text(json.dumps({"sequences": start + len(some)}))
                    written.replace(marker)
        on_done(total, total)

    def _keep(
        self, logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], rows: Rows
    ) -> Float[Tensor, " n kept"]:
        tokens = logits.topk(self.kept, dim=1).indices
        return torch.cat([tokens.to(logits.dtype), grouped(logits, tokens)], dim=1)
