"""The result of `gptailor shrink`: the table, the choice and its reason, in words and as JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from gptailor.plugins.shrink.comparison import ShrinkRow
from gptailor.plugins.shrink.goal import PlanCost, ShrinkGoal
from gptailor.reporting.quantities import bytes_in_words, millions, with_error
from gptailor.reporting.table import table_lines
from gptailor.reporting.terminal_encoding import wrapped


@final
@dataclass(frozen=True)
class ShrinkResult:
    """The rows of a comparison, the `chosen` one, and the reason in a sentence.

    `uncut` are the sizes of the uncut model, and `loss` its bits a byte on the held-out text.
    `already` is True if the unchanged model meets the goal, `impossible` if not even the largest
    cuts of all ways meet it. `files` are the files that were written:
    the plan, the space and the texts.
    """

    goal: ShrinkGoal
    uncut: PlanCost
    loss: float | None
    rows: tuple[ShrinkRow, ...]
    chosen: ShrinkRow | None
    reason: str
    notes: tuple[str, ...] = ()
    plan: Path | None = None
    files: tuple[Path, ...] = ()
    already: bool = False
    impossible: bool = False

    def lines(self, width: int, encoding: str | None = None) -> Iterator[str]:
        """Yield the table, the notes and the choice."""
        goal = f"goal: {self.goal.words}; the uncut model: {_sizes(self.uncut)}"
        yield from wrapped(goal, width, later="  ")
        if self.rows:
            yield ""
            head, body = self._table()
            yield from table_lines(head, body, width, encoding)
            if self.loss is not None:
                yield f"  lost: beyond the uncut model's {self.loss:.3f} bits a byte"
            if any(row.candidate.weighted for row in self.rows):
                yield "  i: with an importance matrix"
            if any(row.loss is None and row.predicted is not None for row in self.rows):
                yield "  ≈: predicted from the parts, not built"
            yield ""
        for text in (*(f"note: {note}" for note in self.notes), self.reason):
            yield from wrapped(text, width, later="  ")

    def _table(self) -> tuple[list[str], list[list[str]]]:
        memory = self.goal.memory is not None
        head = ["plan", "type", "bytes", "param.", "memory" if memory else "KV/token",
                "lost bits/byte", "speed"]  # fmt: skip
        rows = [_cells(row, self.goal, chosen=row is self.chosen) for row in self.rows]
        kept = [n for n, name in enumerate(head) if name != "speed" or any(r[n] for r in rows)]
        return [head[n] for n in kept], [[row[n] for n in kept] for row in rows]

    def record(self) -> str:
        """Return the result as JSON."""
        chosen = None if self.chosen is None else self.rows.index(self.chosen)
        return json.dumps(
            {
                "goal": self.goal.words,
                "uncut": _cost_record(self.uncut) | {"bits_a_byte": self.loss},
                "rows": [_row_record(row) for row in self.rows],
                "chosen": chosen,
                "reason": self.reason,
                "notes": self.notes,
                "already": self.already,
                "impossible": self.impossible,
                "plan": None if self.plan is None else str(self.plan),
                "files": [str(file) for file in self.files],
            },
            ensure_ascii=False,
            indent=2,
        )


def _sizes(cost: PlanCost) -> str:
    kind = "as a GGUF file" if cost.is_gguf else "as a folder"
    return f"{bytes_in_words(cost.bytes)} {kind}, {millions(cost.parameters)} parameters"


def _cells(row: ShrinkRow, goal: ShrinkGoal, *, chosen: bool) -> list[str]:
    cuts = ", ".join(cut.words for cut in row.candidate.cuts) or "the whole model"
    kind = "" if row.candidate.kind is None else row.candidate.kind.lower()
    speeds = [f"×{speed:.2f}" for speed in (row.decoding, *(row.llama or ())[1:]) if speed]
    cells = [
        f"{'→ ' if chosen else ''}{cuts}{', healed' * row.candidate.healed}",
        f"{kind}{' i' * row.candidate.weighted}",
        f"{bytes_in_words(row.cost.bytes)}",
        millions(row.cost.parameters),
        bytes_in_words(row.cost.memory(goal.context) if goal.memory else row.cost.kv_cache),
        loss_in_words(row),
        " ".join(speeds),
    ]
    if not row.met:
        cells[0] += " (misses the goal)"
    return cells


def loss_in_words(row: ShrinkRow) -> str:
    """Return the measured loss of a row, a predicted one with `≈`, or `?`."""
    if row.loss is not None:
        return with_error(*row.loss)
    return "?" if row.predicted is None else f"≈ {row.predicted:.3f}"


def _cost_record(cost: PlanCost) -> dict[str, Any]:
    return {
        "bytes": cost.bytes,
        "parameters": cost.parameters,
        "kv_cache": cost.kv_cache,
        "gguf": cost.is_gguf,
    }


def _row_record(row: ShrinkRow) -> dict[str, Any]:
    return {
        "plan": row.candidate.words,
        "way": row.candidate.way,
        "type": None if row.candidate.kind is None else row.candidate.kind.lower(),
        "imatrix": row.candidate.weighted,
        "met": row.met,
        **_cost_record(row.cost),
        "loss": None if row.loss is None else row.loss.value,
        "error": None if row.loss is None else row.loss.finite_error,
        "predicted": row.predicted,
        "decoding": row.decoding,
        "llama": row.llama,
    }


def choice(
    rows: Sequence[ShrinkRow], tied: Sequence[ShrinkRow], goal: ShrinkGoal
) -> tuple[ShrinkRow | None, str]:
    """Return the chosen row and the reason in a sentence.

    `tied` are the measured rows that meet the goal and differ by less than an error from the best
    one, the best first. The simplest of them is chosen. Without any the sentence names the nearest.
    """
    if not tied:
        return None, _nearest(rows, goal)
    best, chosen = tied[0], min(tied, key=lambda row: row.candidate.changes)
    words = chosen.candidate.words
    others = [row for row in rows if row.met and row is not chosen and row.loss is not None]
    if chosen is not best:
        lost = f"{best.candidate.words} ({loss_in_words(best)})"
        why = f"it loses {loss_in_words(chosen)} bits a byte, within an error of {lost}"
        return chosen, f"choice: {words}: {why}, and changes less"
    why = f"it loses {loss_in_words(chosen)} bits a byte"
    if not chosen.candidate.cuts:
        rival = next((row for row in others if row.candidate.cuts), None)
        why = "quantisation alone wins: " + why if chosen.candidate.kind else why
    else:
        rival = next((row for row in others if not row.candidate.cuts), None)
        if rival is None:
            why += "; no type of GGUF files meets the goal alone" if goal.sized else ""
    if rival is not None:
        why += f", {rival.candidate.words} {loss_in_words(rival)}"
    return chosen, f"choice: {words}: {why}"


def _nearest(rows: Sequence[ShrinkRow], goal: ShrinkGoal) -> str:
    if any(row.met for row in rows):
        return "no plan that meets the goal could be measured; the notes have the reasons"
    if not rows:
        return "nothing makes this model smaller; the notes have the reasons"
    near = min(rows, key=lambda row: goal.excess(row.cost, row.decoding))
    words = f"{near.candidate.words}: {_sizes(near.cost)}"
    return (
        f"nothing meets the goal of {goal.words}; the nearest is {words}. Ask for that, or begin "
        "with a smaller model"
    )
