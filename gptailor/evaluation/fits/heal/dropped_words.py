"""More of the words that a smaller vocabulary splits, in the texts that a student learns from.

A student has to learn which tokens stand for each word that is no token any more, and texts have
few of these words. So some tokens of a text give way to tokens that the student lacks, drawn by the
teacher's predictions at their place. The teacher then reads the changed text.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gptailor.evaluation.fits.heal.teacher import AT_ONCE, teacher_error
from gptailor.evaluation.fits.heal.text import PackedSequences
from gptailor.evaluation.fits.heal.whole_vocabulary import (
    LEAST_PROBABILITY,
    ReadSequence,
    WholeVocabulary,
)
from gptailor.evaluation.fits.kept_tensors import KeptTensors, read_tensors
from gptailor.evaluation.forward.evaluator import Evaluator
from gptailor.evaluation.forward.requests import Request, Work
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.scores import Failure
from gptailor.plan.events import OnEvent, Progress, ignore_events

REPLACED_SHARE = 0.1
"""The share of a text's tokens that are replaced; a quarter was worse (docs/healing_results.md)."""
CANDIDATES = 64
"""The likeliest of the missing tokens at a place; one of them is drawn."""


@final
@dataclass(frozen=True)
class DroppedWords:
    """Replaces tokens of sequences by tokens that the student lacks.

    `whole` has both vocabularies. Places and tokens are drawn by `seed`.
    """

    whole: WholeVocabulary
    device: torch.device
    seed: int

    def replace_tokens(
        self,
        sequences: PackedSequences,
        teacher: Callable[[], Stitched],
        file: Path,
        on_event: OnEvent = ignore_events,
    ) -> PackedSequences:
        """Return sequences of the same lengths with replaced tokens, and keep them in `file`.

        Only tokens whose prediction counts are replaced. Reports the `Progress` of reading.

        Raises NotFiniteError for a teacher whose predictions are NaN, TailorError for a teacher
        that fails.
        """
        if not self.whole.pieces:
            return sequences
        key = hashlib.sha256(sequences.tokens.contiguous().numpy().data).hexdigest()
        kept = read_tensors(file, key)
        if kept is None:
            kept = KeptTensors(self._made(sequences, teacher(), on_event), {})
            kept.write(file, key)
        return replace(sequences, **kept.tensors)

    def _made(
        self, sequences: PackedSequences, teacher: Stitched, on_event: OnEvent
    ) -> dict[str, Tensor]:
        rows, length = sequences.tokens.shape
        tokens, counted = sequences.tokens.clone(), sequences.counted.clone()
        evaluator = Evaluator(device=self.device)
        generator = torch.Generator().manual_seed(self.seed)
        step = max(1, AT_ONCE // length)
        for start in range(0, rows, step):
            on_event(Progress("reading", start * length, rows * length))
            read = [self.whole.read(row) for row in tokens[start : start + step].tolist()]
            requests = [Request(each.tokens, 1) for each in read]
            results = evaluator.run(teacher, [Work(requests, self._likely)])
            if isinstance(results, Failure):
                raise teacher_error(results)
            for number, (each, likely) in enumerate(zip(read, results[0], strict=True), start):
                old = tokens[number].tolist(), counted[number].tolist()
                new = self._replaced(*old, each, likely.double(), generator)
                tokens[number], counted[number] = map(torch.tensor, new)
        return {"tokens": tokens, "counted": counted}

    def _likely(
        self,
        logits: Float[Tensor, " n whole"],
        _targets: Int64[Tensor, " n"],
        _numbers: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n values"]:
        """Return the likeliest of the missing tokens, then their probabilities."""
        missing = self.whole.missing.to(logits.device)
        probabilities = logits.softmax(dim=1)[:, missing]
        likely = probabilities.topk(min(CANDIDATES, len(missing)), dim=1)
        return torch.cat([missing[likely.indices].to(logits.dtype), likely.values], dim=1)

    def _replaced(
        self,
        sequence: Sequence[int],
        counted: Sequence[bool],
        read: ReadSequence,
        likely: Float[Tensor, " n values"],
        generator: torch.Generator,
    ) -> tuple[list[int], list[bool]]:
        """Return a sequence with replaced tokens, and which of its predictions count."""
        ends = {after: place for place, after in enumerate(read.after) if after >= 0}
        spans = [
            (after, end + 1, ends[after + 1] + 1)
            for after, end in ends.items()
            if after + 1 in ends and sequence[end + 1] not in self.whole.added
        ]
        spans = [span for span in spans if all(counted[span[1] - 1 : span[2] - 1])]
        count = round(REPLACED_SHARE * len(spans))
        if not count:
            return list(sequence), list(counted)
        candidates, chances = likely.clamp(min=LEAST_PROBABILITY).tensor_split(2, dim=1)
        # places where such a word is likely are preferred
        weights = chances[[after for after, _, _ in spans]].sum(dim=1).sqrt()
        chosen = torch.multinomial(weights, count, generator=generator)
        made, counts, done = list[int](), list[bool](), 0
        flags = [True, *counted]
        for after, begin, end in sorted(spans[number] for number in chosen.tolist()):
            drawn = int(torch.multinomial(chances[after], 1, generator=generator))
            pieces = self.whole.pieces[int(candidates[after, drawn])]
            made += [*sequence[done:begin], *pieces]
            counts += [*flags[done:begin], *(True for _ in pieces)]
            done = end
        made, counts = [*made, *sequence[done:]], [*counts, *flags[done:]]
        if len(made) < len(sequence):  # the text itself had words in more tokens
            return list(sequence), list(counted)
        return made[: len(sequence)], counts[1 : len(sequence)]
