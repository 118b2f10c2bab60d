"""The plan and the space that `gptailor shrink` writes, as texts."""

import math
from collections.abc import Iterator, Sequence
from typing import final

from gptailor.lang.format import format as formatted
from gptailor.lang.parse import loads
from gptailor.plan.faults import errors
from gptailor.plugins.shrink.candidates import CutStep, Drafts, ShrinkCandidate
from gptailor.plugins.shrink.comparison import ShrinkRow
from gptailor.plugins.shrink.goal import ShrinkGoal
from gptailor.prepare import check
from gptailor.reporting.quantities import bytes_in_words, millions, with_error

_SURE = 3
"""The number of standard errors above a measured loss that an expectation allows."""
_TRIALS = 60
"""The trials of the space."""
_BESIDE = 3
"""Layers on each side of a dropped window that the space may drop instead."""


@final
class PlanTexts:
    """Texts of a chosen row, the plan in `file`.

    `loss` is the uncut model's on the held-out text, in bits a byte.
    """

    def __init__(  # noqa: PLR0913 (facts of one text)
        self,
        name: str,
        file: str,
        goal: ShrinkGoal,
        row: ShrinkRow,
        drafts: Drafts,
        *,
        loss: float,
        held: str,
        others: Sequence[ShrinkRow],
    ) -> None:
        self.name, self.file, self.goal, self.row, self.drafts = name, file, goal, row, drafts
        self.loss, self.held, self.others = loss, held, others

    def plan(self, head: str) -> str:
        """Return the text of the plan below the models of `head`."""
        title = f"# {self.name}: {self.goal.words}, by gptailor shrink"
        return self._text(title, head, [*self._healing(), *self._expectations()])

    def space(self, head: str) -> str:
        """Return the text of a space around the plan, for `gptailor search`.

        Its plans are bridged if the rules of the model allow it.
        """
        bridge = f'bridge on "{self.drafts.calibration}"'
        bridged = [*dict.fromkeys([*self._open_cuts(), bridge])]
        draft = loads(self._space(self.drafts.head, bridged), "<shrink>", self.drafts.folder)
        lines = self._open_cuts() if errors(check(draft)) else bridged
        kept = ShrinkCandidate((), self.row.candidate.kind, self.row.candidate.weighted)
        return self._space(head, [*lines, *self.drafts.statements(kept)])

    def _space(self, head: str, cuts: Sequence[str]) -> str:
        title = f"# plans like {self.file}: {self.goal.words}"
        requires = [f"require {bound}" for bound in self._bounds()]
        block = [f'minimize nll("{self.drafts.fit}")', *requires, f"trials {_TRIALS}"]
        return formatted("\n".join([title, head, *cuts, "search {", *block, "}", ""]))

    def _text(self, title: str, head: str, more: Sequence[str]) -> str:
        lines = [title, *(f"# {line}" for line in self._figures()), head]
        return formatted(
            "\n".join([*lines, *self.drafts.statements(self.row.candidate), *more, ""])
        )

    def _figures(self) -> Iterator[str]:
        """Yield the measured figures of the row, and of the best other plan."""
        yield figures(self.row)
        if self.row.loss is not None:
            yield (
                f"loses {with_error(*self.row.loss)} bits a byte of {self.loss:.3f} on the "
                "held-out text"
            )
        for row in self.others:
            if row.loss is not None:
                lost = f"loses {with_error(*row.loss)}, {bytes_in_words(row.cost.bytes)}"
                yield f"instead: {row.candidate.words}: {lost}"

    def _healing(self) -> Iterator[str]:
        if self.row.candidate.cuts and not self.row.candidate.healed:
            yield f'# heal on "{self.drafts.fit}"  # trains for minutes, and wins back some loss'

    def _bounds(self) -> Iterator[str]:
        """Yield the goal as bounds on measures of the language."""
        cost, kind = self.row.cost, self.row.candidate.kind
        size = "bytes()" if kind is None else f"bytes(gguf={kind.lower()})"
        most = [self.goal.to] if self.goal.to is not None else []
        if self.goal.memory is not None:
            most.append(self.goal.memory - (cost.memory(self.goal.context) - cost.bytes))
        if most:
            yield f"{size} <= {min(most)}"
        if self.goal.parameters is not None:
            yield f"parameters() <= {self.goal.parameters}"
        if self.goal.faster is not None and kind is None:
            yield f"latency() <= {1 / self.goal.faster:.3f} * base"

    def _expectations(self) -> Iterator[str]:
        for bound in self._bounds():
            if not bound.startswith("latency"):  # a time has no known error
                yield f"expect {bound}"
        if self.row.loss is not None and math.isfinite(self.row.loss.stderr):
            most = max(self.row.loss.value, 0.0) + _SURE * self.row.loss.stderr
            share = math.ceil(1000 * (1 + most / self.loss)) / 1000
            yield f'expect nll("{self.held}") <= {share} * base'

    def _open_cuts(self) -> list[str]:
        """Return the statements of the cuts with choices around them."""
        whole = self.drafts.prepared(())
        assert whole is not None, "the uncut plan has been checked"
        last = len(whole.resolved.kept) - 2
        cuts = {cut.way: cut for cut in self.row.candidate.cuts}
        found: list[str] = []
        for way, cut in cuts.items():
            found += _opened(cut, last) if way == "layers" else cut.statements
        if "layers" not in cuts and last > 1:
            found.append(f"maybe drop any 1..{max(2, last // 8)} of L1..L{last}")
        return found


def _opened(cut: CutStep, last: int) -> Iterator[str]:
    """Yield a dropped window as a choice of as many layers around it, and its other statements."""
    first = int(cut.statements[0].removeprefix("drop L").partition("..")[0])
    low, high = max(1, first - _BESIDE), min(last, first + cut.size - 1 + _BESIDE)
    yield f"drop any {cut.size} of L{low}..L{high}"
    yield from cut.statements[1:]


def figures(row: ShrinkRow) -> str:
    """Return the sizes of a row in words."""
    size = f"{row.candidate.words}: {bytes_in_words(row.cost.bytes)}"
    parts = [size, f"{millions(row.cost.parameters)} parameters"]
    if row.cost.kv_cache is not None:
        parts.append(f"{bytes_in_words(row.cost.kv_cache)} of KV cache a token")
    return ", ".join(parts)
