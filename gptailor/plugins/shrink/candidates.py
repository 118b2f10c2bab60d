"""Plans that may meet a goal, and their sizes from headers."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from gptailor.checkpoint.families.vision import text_of
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.gguf.kinds import is_weighted
from gptailor.evaluation.gguf_contents import gguf_contents, gguf_size
from gptailor.lang.parse import loads
from gptailor.plan.faults import PlanError, TailorError
from gptailor.plan.plan import Plan
from gptailor.plugins.shrink.goal import PlanCost, sliding_layers
from gptailor.prepare import Prepared, prepare


@final
@dataclass(frozen=True)
class CutStep:
    """One size of a way to cut a model: its statements, and its words for people."""

    way: str
    size: int
    statements: tuple[str, ...]
    words: str


@final
@dataclass(frozen=True)
class ShrinkCandidate:
    """A plan by its cuts, the type of its GGUF file, and whether a matrix weighs the errors.

    Without a type the output is a folder in the model's own dtype.
    """

    cuts: tuple[CutStep, ...] = ()
    kind: str | None = None
    weighted: bool = False
    healed: bool = False

    @property
    def way(self) -> str:
        """The ways of its cuts, such as `vocabulary + layers`; `whole` without any."""
        return " + ".join(cut.way for cut in self.cuts) or "whole"

    @property
    def changes(self) -> int:
        """The number of changes that the plan makes to the model."""
        return 4 * len(self.cuts) + 2 * self.healed + self.weighted

    @property
    def words(self) -> str:
        """The plan in words, such as `36,864 tokens, q4_k_m with a matrix`."""
        parts = [cut.words for cut in self.cuts] or ["the whole model"]
        parts += ["healed"] if self.healed else []
        if self.kind is not None:
            parts.append(self.kind.lower() + (" with a matrix" if self.weighted else ""))
        return ", ".join(parts)


@final
class Drafts:
    """The candidates of one recipe as plans, and their sizes; each is computed once.

    `head` is the text of the models and of the recipe. Paths start at `folder`. The names of the
    texts are `calibration`, for matrices, and `fit`, for healing.
    """

    def __init__(self, head: str, folder: Path, *, fit: str, calibration: str) -> None:
        self.head, self.folder, self.fit, self.calibration = head, folder, fit, calibration
        self.refusals: dict[str, str] = {}
        self._prepared: dict[tuple[CutStep, ...], Prepared | None] = {}
        self._costs: dict[ShrinkCandidate, PlanCost | None] = {}

    def statements(self, candidate: ShrinkCandidate) -> list[str]:
        """Return the statements of a candidate below the models."""
        found = [line for cut in candidate.cuts for line in cut.statements]
        if candidate.healed:
            found.append(f'heal on "{self.fit}"')
        if candidate.kind is not None:
            on = f' on "{self.calibration}"' if candidate.weighted else ""
            found.append(f"gguf {candidate.kind.lower()}{on}")
        return found

    def plan(self, candidate: ShrinkCandidate) -> Plan:
        """Return the plan of a candidate."""
        text = "\n".join([self.head, *self.statements(candidate), ""])
        return loads(text, "<shrink>", self.folder)

    def prepared(self, cuts: tuple[CutStep, ...]) -> Prepared | None:
        """Return the prepared plan of some cuts; None, and a refusal, if it has faults."""
        if cuts not in self._prepared:
            made = None
            try:
                made = prepare(self.plan(ShrinkCandidate(cuts)))
            except PlanError as error:
                fault = next(fault for fault in error.faults if fault.severity == "error")
                self.refuse(ShrinkCandidate(cuts), f"{fault.message} [{fault.code}]")
            except TailorError as error:
                self.refuse(ShrinkCandidate(cuts), str(error).splitlines()[0])
            self._prepared[cuts] = made
        return self._prepared[cuts]

    def refuse(self, candidate: ShrinkCandidate, why: str) -> None:
        """Note why a plan isn't a candidate, by its way, or by the type of whole files."""
        kind = "" if candidate.kind is None else f" {candidate.kind.lower()}"
        self.refusals[candidate.way + ("" if candidate.cuts else kind)] = why

    @cached_property
    def no_gguf(self) -> str | None:
        """The reason why the uncut plan can't be a GGUF file; None if it can."""
        whole = self.prepared(())
        assert whole is not None, "the uncut plan has been checked"
        try:
            gguf_size(whole.checked, whole.compiled, "Q8_0")
        except CheckpointError as error:
            return error.message
        return None

    def cost(self, candidate: ShrinkCandidate) -> PlanCost | None:
        """Return the sizes of a candidate; None, and a refusal, if it can't be written."""
        if candidate not in self._costs:
            self._costs[candidate] = self._cost(candidate)
        return self._costs[candidate]

    def notes(self, candidate: ShrinkCandidate) -> list[str]:
        """Return the notes about the GGUF file of a candidate that can be written."""
        made = self.prepared(candidate.cuts)
        if made is None or candidate.kind is None:
            return []
        weighted = candidate.weighted and is_weighted(candidate.kind)
        target = Path(made.checked.base.checkpoint.folder)
        return gguf_contents(
            made.checked, made.compiled, candidate.kind, target, weighted=weighted
        ).notes

    def _cost(self, candidate: ShrinkCandidate) -> PlanCost | None:
        made = self.prepared(candidate.cuts)
        if made is None:
            return None
        size = made.output_size
        share, window = sliding_layers(text_of(made.compiled.config))
        if candidate.kind is None:
            return PlanCost(
                made.size, size.parameters, size.kv_cache,
                is_gguf=False, sliding=share, window=window,
            )  # fmt: skip
        weighted = candidate.weighted and is_weighted(candidate.kind)
        try:
            count = gguf_size(made.checked, made.compiled, candidate.kind, weighted=weighted)
        except CheckpointError as error:
            self.refuse(candidate, f"{error.message} [{error.code}]")
            return None
        return PlanCost(
            count, size.parameters, _half(made, size.kv_cache),
            is_gguf=True, sliding=share, window=window,
        )  # fmt: skip


def _half(made: Prepared, kv_cache: int | None) -> int | None:
    """Return the bytes of a token in llama.cpp's KV cache, which has 16 bits an entry."""
    wide = made.dtype == "float32" and made.checked.gguf_file is None
    return kv_cache // 2 if wide and kv_cache is not None else kv_cache
