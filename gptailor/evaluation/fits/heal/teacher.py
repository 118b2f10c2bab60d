"""The teacher's predictions after each token, computed once and kept on disk, compactly."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import final

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from gptailor.checkpoint.cache_folder import keep_json, kept_json
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import Opened
from gptailor.evaluation.fits.heal.learning import HealError, NotFiniteError, of_teacher
from gptailor.evaluation.fits.heal.process_group import ALONE, ProcessGroup
from gptailor.evaluation.fits.heal.sources import PredictionsFile
from gptailor.evaluation.fits.heal.text import PackedSequences, chunk_starts
from gptailor.evaluation.fits.heal.whole_vocabulary import WholeVocabulary
from gptailor.evaluation.forward.evaluator import Evaluator
from gptailor.evaluation.forward.requests import Request, Work
from gptailor.evaluation.live.content_keys import ModelContents, not_finite
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.objectives.kl import grouped
from gptailor.plan.events import OnEvent, Progress, ignore_events
from gptailor.plan.faults import listed
from gptailor.program.sources import Checked

TAUGHT = 128
"""Number of the teacher's likeliest tokens that are kept for each prediction: 1 KiB."""
_DONE = "teacher.json"


@contextmanager
def explaining_not_finite(
    models: Sequence[ModelContents], texts: Sequence[Path], what: str = "'heal' can't learn"
) -> Iterator[None]:
    """Turn NotFiniteError into HealError, which names the tensor that isn't finite or the text."""
    try:
        yield
    except NotFiniteError as error:
        if (broken := next(filter(None, map(not_finite, models)), None)) is not None:
            help_ = "fetch the file again, or name another model"
            raise HealError("C809", f"{what}: {error}: {broken}", help_) from None
        paths = listed(map(str, texts))
        message = f"{what}: {error} on {paths}, although all stored tensors are finite"
        raise HealError("C809", message, "use other text, or another model") from None


@final
class Teachers:
    """The teachers of a healing, each a plan with its models; one at a time is on the device.

    `stitcher` returns a stitcher of some models. A teacher without a name is the plan with nothing
    dropped.
    """

    def __init__(
        self,
        plans: Mapping[str | None, Checked],
        stitcher: Callable[[Mapping[str, Opened]], Stitcher],
    ) -> None:
        self.plans = plans
        self._stitcher = stitcher
        self._live: tuple[str | None, Stitched] | None = None

    def contents(self, name: str | None) -> ModelContents:
        """Return the contents of a teacher's live model."""
        teacher = self.plans[name]
        return self._stitcher(teacher.models).contents(teacher.resolved)

    def live(self, name: str | None) -> Stitched:
        """Return a teacher's live model; the one before it leaves the device."""
        if self._live is None or self._live[0] != name:
            self.release()
            teacher = self.plans[name]
            stitcher = self._stitcher(teacher.models)
            self._live = name, stitcher.live(stitcher.contents(teacher.resolved))
        return self._live[1]

    def release(self) -> None:
        """Take the last live model from the device."""
        self._live = None


@final
class Predictions:
    """The teacher's distributions of some sequences, in a folder.

    A prediction has the likeliest tokens and their log-probabilities. The last log-probability
    belongs to all remaining tokens together, if any. A sequence of n tokens has n − 1 predictions.
    They are in memory if the folder has no room.

    `learn` checks the files once: chunks are valid up to the first one with a wrong digest. `take`
    reads a file of predictions instead. After that, `digest` covers all predictions.
    """

    def __init__(
        self,
        folder: Path,
        sequences: Int64[Tensor, " n length"],
        vocabulary: int,
        kept: int = TAUGHT,
    ) -> None:
        self.folder = folder
        self.sequences = sequences
        self.kept = min(kept, vocabulary)
        self.groups = self.kept + (self.kept < vocabulary)
        self.per_sequence = sequences.shape[1] - 1
        self.starts = chunk_starts(sequences)
        self.on_disk = True
        self._digests: list[str] = []
        rows = len(sequences) * self.per_sequence
        self.tokens = self._mapped("tokens", rows * self.kept, torch.int32).view(rows, self.kept)
        self.logs = self._mapped("logs", rows * self.groups, torch.float32).view(rows, self.groups)

    def _mapped(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """Map a file as a tensor, or allocate memory.

        The disk space is allocated first, because writing a mapped file to a full disk crashes.
        """
        file = self._file(name)
        try:
            self.folder.mkdir(exist_ok=True)
            with file.open("ab") as opened:
                os.posix_fallocate(opened.fileno(), 0, size * dtype.itemsize)
        except OSError:
            self.on_disk = False
            with suppress(OSError):
                file.unlink()
            return torch.empty(size, dtype=dtype)
        return torch.from_file(str(file), shared=True, size=size, dtype=dtype)

    def of(
        self, start: int, stop: int
    ) -> tuple[Int32[Tensor, " n kept"], Float[Tensor, " n groups"]]:
        """Return the predictions of the sequences from `start` up to `stop`, in order."""
        rows = slice(start * self.per_sequence, stop * self.per_sequence)
        return self.tokens[rows], self.logs[rows]

    @property
    def digest(self) -> str:
        """The digest of the available predictions and of their sequences."""
        return hashlib.sha256("".join(self._digests).encode()).hexdigest()

    def learn(
        self,
        teacher: Callable[[], Stitched],
        device: torch.device,
        on_event: OnEvent = ignore_events,
        whole: WholeVocabulary | None = None,
        group: ProcessGroup = ALONE,
    ) -> None:
        """Compute the missing predictions, and report the `Progress` of reading.

        A teacher with a `whole` vocabulary reads the sequences in its own tokens. The processes of
        a group compute one chunk each at a time, into the same files.

        Raises NotFiniteError if a teacher's predictions are NaN, TailorError for a teacher that
        fails.
        """
        total, length = self.sequences.numel(), self.sequences.shape[1]
        self._digests = list(self._sound()) if self.on_disk else []
        missing = self.starts[len(self._digests) :]
        if self._digests:
            done = missing[0] * length if missing else total
            on_event(Progress("reading", done, total, reused=True))
        if not missing:
            return
        if not all(group.gathered(self.on_disk)):
            group = ALONE  # no process can read another's memory
        live, evaluator = teacher(), Evaluator(device=device)
        for at in range(0, len(missing), group.size):
            on_event(Progress("reading", missing[at] * length, total))
            own = missing[at : at + group.size][group.rank : group.rank + 1]
            for start in own:
                chunk = self.sequences[start : start + self.starts.step].tolist()
                values = self._values(evaluator, live, chunk, whole)
                tokens, logs = self.of(start, start + len(chunk))
                tokens[:] = values[:, : self.kept]
                logs[:] = values[:, self.kept :]
            self._digests += chain.from_iterable(group.gathered([*map(self._digest, own)]))
            if self.on_disk and group.first:
                self._note()
        on_event(Progress("reading", total, total))

    def _values(
        self,
        evaluator: Evaluator,
        live: Stitched,
        sequences: Sequence[Sequence[int]],
        whole: WholeVocabulary | None,
    ) -> Float[Tensor, " n values"]:
        """Return the predictions of some sequences: the kept tokens, then log-probabilities."""
        read = [] if whole is None else [whole.read(sequence) for sequence in sequences]
        texts = [each.tokens for each in read] or [tuple(row) for row in sequences]
        requests = [Request(text, 1) for text in texts]
        work = Work(requests, partial(self._keep, whole))
        results = of_teacher(evaluator.run(live, [work]))
        if whole is None:
            return torch.cat(results[0])
        pairs = zip(read, results[0], strict=True)
        return torch.cat([whole.spread(each, rows, self.kept) for each, rows in pairs])

    def take(self, file: PredictionsFile, rows: Sequence[int]) -> None:
        """Read the predictions of a file's sequences with these numbers.

        The prediction after a sequence's last token is left out. Raises CalibrationError (C814).
        """
        for place, tokens, logs in file.read(rows, self.kept):
            own_tokens, own_logs = self.of(place, place + 1)
            own_tokens[:] = tokens[:-1]
            own_logs[:] = logs[:-1]
        self._digests = [*map(self._digest, self.starts)]

    def _sound(self) -> Iterator[str]:
        """Yield the digests of the first chunks, up to the first that differs from its note."""
        noted = kept_json(self.folder / _DONE).get("chunks", [])
        for start, digest in zip(self.starts, noted, strict=False):
            if self._digest(start) != digest:
                return
            yield digest

    def _digest(self, start: int) -> str:
        """Return the sha256 of a chunk's sequences and their predictions."""
        stop = min(start + self.starts.step, len(self.sequences))
        digest = hashlib.sha256(self.sequences[start:stop].contiguous().numpy().data)
        for part in self.of(start, stop):
            digest.update(part.numpy().data)
        return digest.hexdigest()

    def _note(self) -> None:
        """Write the digests, after the predictions are on the disk."""
        with suppress(OSError, CheckpointError):  # a kill would then cost more
            for name in ("tokens", "logs"):
                with self._file(name).open("rb") as file:
                    os.fsync(file.fileno())
            keep_json(self.folder / _DONE, {"chunks": self._digests})

    def _file(self, name: str) -> Path:
        return self.folder / f"teacher.{name}"

    def _keep(
        self,
        whole: WholeVocabulary | None,
        logits: Float[Tensor, " n vocab"],
        _targets: Int64[Tensor, " n"],
        _numbers: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n kept"]:
        logits = logits if whole is None else whole.mapped(logits)
        tokens = logits.topk(self.kept, dim=1).indices
        return torch.cat([tokens.to(logits.dtype), grouped(logits, tokens)], dim=1)


@final
class TaughtSequences:
    """Sequences with the predictions of their teachers, in the order of learning.

    `parts` are the predictions of each teacher for its sequences. `teachers` are the teachers of
    all sequences, by their numbers in `parts`.
    """

    def __init__(
        self,
        sequences: PackedSequences,
        parts: Sequence[Predictions],
        teachers: Int64[Tensor, " sequences"],
    ) -> None:
        self.sequences = sequences.tokens
        self.counted = sequences.counted
        self.parts = parts
        self._sources = list[tuple[int, int]]()
        seen = [0] * len(parts)
        for teacher in teachers.tolist():
            self._sources.append((teacher, seen[teacher]))
            seen[teacher] += 1

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._sources)

    def of(self, start: int, stop: int) -> "TaughtBatch":
        """Return the sequences from `start` up to `stop` with their predictions."""
        taught = [self.parts[n].of(row, row + 1) for n, row in self._sources[start:stop]]
        tokens, logs = (torch.cat(part) for part in zip(*taught, strict=True))
        counted = self.counted[start:stop].flatten()
        return TaughtBatch(self.sequences[start:stop], tokens[counted], logs[counted], counted)

    @property
    def digest(self) -> str:
        """The digest of the predictions, of their order, and of the predictions that count."""
        digest = hashlib.sha256("".join(part.digest for part in self.parts).encode())
        digest.update(repr(self._sources).encode() + self.counted.numpy().tobytes())
        return digest.hexdigest()


@final
@dataclass(frozen=True, eq=False)
class TaughtBatch:
    """Sequences, and the teacher's predictions for the places in them that count."""

    sequences: Int64[Tensor, " batch length"]
    tokens: Int32[Tensor, " n kept"]
    logs: Float[Tensor, " n groups"]
    counted: Bool[Tensor, " predictions"]
