"""Losses of candidates on held-out text, measured in their written form, and kept in the cache."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from shutil import disk_usage
from typing import final

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn.functional import normalize

import gptailor
from gptailor.checkpoint.cache_folder import json_digest, keep_result, kept_home, kept_json
from gptailor.checkpoint.files import CheckpointError
from gptailor.evaluation.fits.bridge.gaps import plan_gap_errors
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.meter import Meter, Placement, Samples
from gptailor.evaluation.scores import Failure, PerSample, Score, paired_difference
from gptailor.evaluation.speed import speeds
from gptailor.evaluation.targets import Target, find_targets
from gptailor.evaluation.trial import Ask
from gptailor.lang.parse import read_objective
from gptailor.output.compile import compile as compile_to
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import TailorError
from gptailor.plugins.shrink.candidates import Drafts, ShrinkCandidate
from gptailor.plugins.shrink.llama_speed import llama_speeds
from gptailor.plugins.shrink.texts import PIECE
from gptailor.plugins.shrink.ways import Distances, windows
from gptailor.program.devices import device_of, halves_are_quick
from gptailor.reporting.measure import Estimate

_STATES = 4
"""Samples that measure the pace, and how far windows of layers move hidden states."""
_ROOM = 10
"""GGUF files of the size of one that the disk must have room for, so that it is kept."""
_DISK = frozenset({"C303", "C305"})
"""Codes of a disk that takes no more bytes: no other plan could be written either."""


@final
class Losses:
    """Measures candidates in bits a byte of held-out text, and their speed.

    `held` is the name of the text in the drafts' folder, and `digest` the digest of all texts. All
    models compute in one dtype: bfloat16 if the device is quick in it, otherwise float32.
    """

    def __init__(
        self,
        held: str,
        digest: str,
        samples: int,
        *,
        device: str = "cpu",
        on_event: OnEvent = ignore_events,
    ) -> None:
        device_of(device)
        self.held, self.digest, self.samples, self.device = held, digest, samples, device
        self.on_event = on_event
        dtype = torch.bfloat16 if halves_are_quick(device) else torch.float32
        self.place = Placement(device, dtype)
        self.stated = [read_objective(f'nll("{held}")', ["base"])]
        self.made = 0
        self._known: dict[tuple[str, int], PerSample | Failure] = {}

    @cached_property
    def meter(self) -> Meter:
        """The meter of plans without a type, which share the base's layers."""
        return Meter(self.place, self.on_event)

    def expect(self, recipes: Iterable[Drafts]) -> None:
        """Load the models of all recipes together, before the first is measured."""
        for drafts in recipes:
            if (whole := drafts.prepared(())) is not None:
                self.meter.family(whole.models)

    def of(
        self, drafts: Drafts, candidate: ShrinkCandidate, samples: int | None = None
    ) -> PerSample | Failure:
        """Return the losses of a candidate on the first samples, or the failure.

        A finished measurement is kept in the user's cache.
        """
        key = self._key(drafts, candidate), samples or self.samples
        if key not in self._known:
            file = kept_home() / "shrink" / f"{key[0]}-{key[1]}.json"
            if kept := kept_json(file):
                self._known[key] = PerSample(tuple(kept["sums"]), tuple(kept["counts"]))
            else:
                self._known[key] = found = self._measured(drafts, candidate, key[1])
                if isinstance(found, PerSample):
                    keep_result(file, {"sums": found.sums, "counts": found.counts})
        return self._known[key]

    def difference(
        self,
        drafts: Drafts,
        candidate: ShrinkCandidate,
        uncut: PerSample,
        samples: int | None = None,
    ) -> Estimate | None:
        """Return the loss beyond the uncut model's, sample by sample; None for a failure."""
        found = self.of(drafts, candidate, samples)
        return None if isinstance(found, Failure) else paired_difference(found, uncut)

    def _key(self, drafts: Drafts, candidate: ShrinkCandidate) -> str:
        whole = drafts.prepared(())
        assert whole is not None, "the uncut plan has been checked"
        record = {
            "plan": [drafts.head, *drafts.statements(candidate)],
            "files": sorted((str(file), list(stamp)) for file, stamp in whole.stamps.items()),
            "texts": self.digest,
            "place": [str(part) for part in self.place],
            "release": gptailor.__version__,
        }
        return json_digest(record)[:32]

    def _measured(
        self, drafts: Drafts, candidate: ShrinkCandidate, samples: int
    ) -> PerSample | Failure:
        self.made += 1
        try:
            with self.target(drafts, candidate) as (meter, target):
                chosen = Samples(drafts.folder, samples)
                objectives = meter.of_target(target, self.stated, chosen, PIECE)
                ask = Ask(target.prepared.models, target.prepared.plan, objectives)
                [(_, (outcome,))] = meter.run([ask])
        except TailorError as error:
            if isinstance(error, CheckpointError) and error.code in _DISK:
                raise
            drafts.refuse(candidate, str(error).splitlines()[0])
            return Failure("error", str(error))
        if isinstance(outcome, Score):
            assert outcome.each is not None, "a mean over samples"
            return outcome.each
        drafts.refuse(candidate, str(outcome))
        return outcome

    @contextmanager
    def target(self, drafts: Drafts, candidate: ShrinkCandidate) -> Iterator[tuple[Meter, Target]]:
        """Yield a candidate as a target: its plan, or its GGUF file in a temporary folder."""
        if candidate.kind is None:
            [target] = find_targets([drafts.plan(candidate)], {}, device=self.device)
            yield self.meter, target
            return
        with self._file(drafts, candidate) as file:
            [target] = find_targets([file], {}, device=self.device)
            yield Meter(self.place, self.on_event), target

    @contextmanager
    def _file(self, drafts: Drafts, candidate: ShrinkCandidate) -> Iterator[Path]:
        """Yield the GGUF file of a candidate, written into the drafts' folder. Raises TailorError.

        It is kept for the next use if the disk has room for several.
        """
        file = drafts.folder / f"{self._key(drafts, candidate)}.gguf"
        if not file.exists():
            plan = drafts.plan(candidate).model_copy(update={"gguf": ()})
            matrix = drafts.folder / drafts.calibration if candidate.weighted else None
            compile_to(plan, file, quantize=candidate.kind, imatrix=matrix, on_event=self.on_event)
        try:
            yield file
        finally:
            if disk_usage(drafts.folder).free < _ROOM * file.stat().st_size:
                file.unlink()

    # ------------------------------------------------------------------- states and speeds

    def stitched(self, drafts: Drafts, candidate: ShrinkCandidate) -> Stitched:
        """Return the live model of a candidate without its type, narrowed and bridged."""
        made = drafts.prepared(candidate.cuts)
        assert made is not None, "it has been sized"
        return self.meter.stitch(made.models, made.plan)

    def pace(self, drafts: Drafts) -> float:
        """Return tokens a second of a pass of the uncut model."""
        live = self.stitched(drafts, ShrinkCandidate())
        seconds = 0.0
        with torch.no_grad():
            for tokens in self._passages(drafts, live):
                begun = time.monotonic()
                live.model(tokens)
                seconds = time.monotonic() - begun  # the first passes are slow
        return tokens.numel() / seconds

    def distances(self, drafts: Drafts) -> Distances:
        """Return how far windows of layers move hidden states.

        The distance is the error that a bridge over the window would leave. Where no bridge is
        possible, it is 1 minus the mean cosine of the states before and after the window.
        """
        whole = ShrinkCandidate()
        live = self.stitched(drafts, whole)
        bridged = drafts.prepared((windows(drafts, 1, 1)[0],))
        if bridged is None:
            read = []
            with torch.no_grad():
                for tokens in self._passages(drafts, live):
                    states = live.model(tokens, output_hidden_states=True).hidden_states
                    read.append([normalize(state[0].float(), dim=-1) for state in states])
            return _angles(read)
        uncut, widest = drafts.plan(whole), len(live.layers) // 2
        errors = plan_gap_errors(live, bridged.plan, uncut, bridged.models, widest)
        return {
            (after + 1, number): error
            for after, row in enumerate(errors)
            for number, error in enumerate(row, 1)
        }

    def _passages(self, drafts: Drafts, live: Stitched) -> Iterator[Integer[Tensor, "1 tokens"]]:
        """Yield the tokens of the first held-out samples."""
        [target] = find_targets([drafts.plan(ShrinkCandidate())], {}, device=self.device)
        chosen = Samples(drafts.folder, _STATES)
        [objective] = self.meter.of_target(target, self.stated, chosen, PIECE)
        for request in objective.requests(_STATES):
            yield torch.tensor([request.tokens], device=live.model.device)

    def speed_ratios(
        self, uncut: Drafts, drafts: Drafts, candidates: list[ShrinkCandidate]
    ) -> list[float]:
        """Return the speeds of decoding in transformers, as multiples of the uncut model's.

        All are measured by turns.
        """
        live = [self.stitched(uncut, ShrinkCandidate())]
        live += [self.stitched(drafts, candidate) for candidate in candidates]
        base, *others = speeds(*(each.model for each in live))
        return [other.decoding / base.decoding for other in others]

    def llama_ratios(
        self, uncut: Drafts, drafts: Drafts, candidates: list[ShrinkCandidate]
    ) -> dict[ShrinkCandidate, tuple[float, float]]:
        """Return the speeds of prompt and decoding in llama.cpp, as multiples of the uncut model's.

        All GGUF files are measured by turns. Return nothing where llama.cpp can't run.
        """
        typed = [candidate for candidate in candidates if candidate.kind is not None]
        if not typed:
            return {}
        with ExitStack() as stack:
            files = [stack.enter_context(self._file(uncut, ShrinkCandidate()))]
            files += [stack.enter_context(self._file(drafts, candidate)) for candidate in typed]
            found = llama_speeds(files, torch.get_num_threads())
        if found is None:
            return {}
        (prompt, decoding), *others = found
        ratios = [(a / prompt, b / decoding) for a, b in others]
        return dict(zip(typed, ratios, strict=True))


def _angles(read: Sequence[Sequence[Float[Tensor, "tokens width"]]]) -> Distances:
    """Return 1 minus the mean cosine of the states before and after each window.

    `read` has the states of each sample before each layer and after the last, of length 1.
    """
    count = sum(len(units[0]) for units in read)
    return {
        (first, last - first): 1 - sum(float((u[first] * u[last]).sum()) for u in read) / count
        for last in range(1, len(read[0]))
        for first in range(last)
    }
