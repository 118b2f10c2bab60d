"""From hidden states after the last layer to what each work measures, some rows at a time."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gptailor.evaluate.batches import Batch, Packed
from gptailor.evaluate.failure import Failure
from gptailor.evaluate.recording import Head
from gptailor.evaluate.work import Results, Work


@final
class Gathering:
    """The works' numbers as they come, batch by batch; logits are made for `step` rows at once."""

    def __init__(self, head: Head, works: Sequence[Work], step: int) -> None:
        self.head = head
        self.works = works
        self.step = step
        self.found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in works]

    def add(self, batch: Batch, hidden: Float[Tensor, " batch length width"]) -> None:
        """Measure the batch's wanted rows."""
        rows = hidden.flatten(0, 1)[batch.wanted.to(hidden.device)]
        chunks = -(-len(rows) // self.step)
        size = -(-len(rows) // max(chunks, 1))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            self._measure(batch, start, self.head.logits(part))

    def _measure(self, batch: Batch, start: int, logits: Float[Tensor, " n vocab"]) -> None:
        for share in batch.shares:
            for part in share.between(start, start + len(logits), most=self.step):
                mine = _picked(logits, part.pick)
                values = self.works[share.work].measure(
                    mine, part.targets.to(logits.device), part.rows
                )
                if values.dim() != 2 or len(values) != len(mine):
                    raise ValueError(
                        f"a measure of {len(mine)} rows returned {list(values.shape)} numbers"
                    )
                self.found[share.work].append((part.rows.number, values.float()))

    def results(self, packed: Packed) -> Results | Failure:
        """Each request's numbers; a Failure where one is NaN."""
        results: Results = []
        for number, (requests, found) in enumerate(zip(packed.asked, self.found, strict=True)):
            if not requests:
                results.append([])
                continue
            order = torch.cat([numbers for numbers, _ in found])
            values = torch.cat([values for _, values in found]).cpu()
            bad = int(values.isnan().any(dim=1).sum())
            if bad:
                return Failure(
                    "nan", f"{bad} of {len(values)} predictions of objective {number} are NaN"
                )
            table = torch.empty_like(values)
            table[order] = values
            results.append(list(torch.split(table, [request.predicted for request in requests])))
        return results


def _picked(
    logits: Float[Tensor, " n vocab"], pick: Int64[Tensor, " m"]
) -> Float[Tensor, " m vocab"]:
    if torch.equal(pick, torch.arange(len(logits))):
        return logits
    return logits[pick.to(logits.device)]
