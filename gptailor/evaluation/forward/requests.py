"""Requests of objectives to the forward pass, and the batches of token rows that it runs on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise, starmap, zip_longest
from typing import TypeAlias, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class Request:
    """A text in tokens; `tokens[first:]` are to be predicted, each from all tokens before it.

    `size` is the number of bytes of the predicted text, if a score counts by bytes. Raises
    `ValueError` if no token is to be predicted, or if the first has no token before it.
    """

    tokens: tuple[int, ...]
    first: int
    size: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.first < len(self.tokens):
            raise ValueError(
                f"a request of {len(self.tokens)} tokens can't be predicted from {self.first} on"
            )

    @property
    def predicted(self) -> int:
        """The number of predicted tokens."""
        return len(self.tokens) - self.first


Measure: TypeAlias = Callable[
    [Float[Tensor, " n vocab"], Int64[Tensor, " n"], Int64[Tensor, " n"]], Float[Tensor, " n k"]
]
"""Logits in float32, the target tokens and the rows' numbers -> k numbers a row.

The rows of a work are numbered request after request. A measure treats each row by itself: rows
come in any order and in chunks, and the other rows of a chunk change only rounding. It doesn't
change the logits, since other works measure them too. Logits and targets lie on the device, the
rows' numbers on the CPU; the result may lie on either.
"""


@final
@dataclass(frozen=True, eq=False)
class Work:
    """The requests of one objective to a forward pass.

    `cuts` are the numbers of requests before which the work may be cut into parts. No batch has
    requests of two parts, so parts that run one after another give the same numbers, bit by bit.
    A part is a work that has `before` rows of the whole work before its own.
    """

    requests: Sequence[Request]
    measure: Measure
    cuts: tuple[int, ...] = ()
    before: int = 0

    @property
    def ranges(self) -> tuple[range, ...]:
        """The requests of each part."""
        return tuple(starmap(range, pairwise((0, *self.cuts, len(self.requests)))))

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The number of the first row of each request, and the number of all rows."""
        return (0, *accumulate(request.predicted for request in self.requests))

    @cached_property
    def parts(self) -> "tuple[Work, ...]":
        """Each part as a separate work; `measure` still receives rows of the whole work."""
        return tuple(
            Work(self.requests[of.start : of.stop], self.measure, before=self.rows[of.start])
            for of in self.ranges
        )


Results: TypeAlias = list[list[Tensor]]
"""For each work, for each of its requests: float32 [predicted, k] on the CPU."""


PADDING = 64
"""Padding that a batch may always have, in tokens: about the cost of one more batch."""
PADDED = 1 / 8
"""Padding that a batch may have, as a share of its own tokens, if that exceeds `PADDING`."""


@final
@dataclass(frozen=True)
class Share:
    """One work's share of a batch's rows, in the order of the rows."""

    work: int
    pick: Int64[Tensor, " n"]
    """Places in `Batch.wanted`."""
    targets: Int64[Tensor, " n"]
    numbers: Int64[Tensor, " n"]
    """The rows' numbers, counted within the work."""

    def between(self, start: int, stop: int, *, most: int) -> Iterator["Share"]:
        """Yield the share of wanted rows start:stop in chunks of at most `most` rows."""
        low, high = torch.searchsorted(self.pick, torch.tensor([start, stop])).tolist()
        for at in range(low, high, most):
            part = slice(at, min(at + most, high))
            yield Share(self.work, self.pick[part] - start, self.targets[part], self.numbers[part])


@final
@dataclass(frozen=True)
class Batch:
    """Token rows, padded on the right, with the places of their wanted hidden states."""

    tokens: Int64[Tensor, " batch length"]
    wanted: Int64[Tensor, " n"]
    """Places in the flattened rows, ascending."""
    shares: tuple[Share, ...]

    @property
    def highest(self) -> int:
        """The highest token among the tokens to run and to predict."""
        return max(int(t.max()) for t in (self.tokens, *(share.targets for share in self.shares)))


_Asker: TypeAlias = tuple[int, Request, int]
"""The number of a work, one of its requests, and the request's first row in the work."""


_Line: TypeAlias = tuple[tuple[int, ...], list[_Asker]]
"""A text that is run, in tokens, and the requests for predictions of it."""


def pack(works: Sequence[Work], batch_tokens: int, edge: int | None = None) -> tuple[Batch, ...]:
    """Return the batches of all works' requests, each of at most `batch_tokens`, or of one row.

    They come part by part, the longest of each part first.

    Each distinct text is a row once, and rows of like length run together. A text's last token is
    only predicted, so it isn't run. A shortened text that begins a longer text shares the row of
    that text. Batches depend on the set of requests, not on their order.

    No batch has both rows of at most `edge` tokens and longer rows. Otherwise a model with
    rotations that depend on a batch's longest row would rotate the short rows differently. Works'
    parts are aligned at the last part: a work with fewer parts begins later.
    """

    def beyond(tokens: tuple[int, ...]) -> bool:
        return edge is not None and len(tokens) > edge

    batches: list[Batch] = []
    last_first = zip_longest(*(reversed(work.ranges) for work in works), fillvalue=range(0))
    for ranges in reversed(list(last_first)):
        lines = sorted(_lines(works, ranges, beyond), key=lambda line: -len(line[0]))
        batches += (
            _batch(rows)
            for _, alike in groupby(lines, lambda line: beyond(line[0]))
            for rows in _cut(list(alike), batch_tokens)
        )
    return tuple(batches)


def _lines(
    works: Sequence[Work],
    ranges: Sequence[range],
    beyond: Callable[[tuple[int, ...]], bool],
) -> list[_Line]:
    askers: dict[tuple[int, ...], list[_Asker]] = {}
    for number, (work, some) in enumerate(zip(works, ranges, strict=True)):
        for at in some:
            asker = number, work.requests[at], work.rows[at]
            askers.setdefault(work.requests[at].tokens[:-1], []).append(asker)
    lines: dict[tuple[int, ...], list[_Asker]] = {}
    last: tuple[int, ...] = ()
    for tokens in sorted(askers, reverse=True):  # a longer text comes before its beginning
        if last[: len(tokens)] != tokens or beyond(tokens) != beyond(last):
            last, lines[tokens] = tokens, []
        lines[last].extend(askers[tokens])
    return list(lines.items())


def _cut(lines: Sequence[_Line], batch_tokens: int) -> Iterator[Sequence[_Line]]:
    start, own, padding = 0, 0, 0
    for at, (tokens, _) in enumerate(lines):
        length, longest = len(tokens), len(lines[start][0])
        padding += longest - length
        full = (at - start + 1) * longest > batch_tokens
        if at > start and (full or padding > max(PADDING, PADDED * own)):
            yield lines[start:at]
            start, own, padding = at, 0, 0
        own += length
    if lines:
        yield lines[start:]


def _batch(lines: Sequence[_Line]) -> Batch:
    length = len(lines[0][0])
    tokens = torch.tensor([[*text, *[0] * (length - len(text))] for text, _ in lines])
    columns: dict[int, tuple[list[int], list[int], list[int]]] = {}
    for row, (_, askers) in enumerate(lines):
        for work, request, number in askers:
            places, targets, numbers = columns.setdefault(work, ([], [], []))
            place = row * length + request.first - 1
            places += range(place, place + request.predicted)
            targets += request.tokens[request.first :]
            numbers += range(number, number + request.predicted)
    wanted = torch.unique(torch.tensor([at for places, *_ in columns.values() for at in places]))
    shares = []
    for work, own in sorted(columns.items()):
        at, predicted, rows = map(torch.tensor, own)
        pick = torch.searchsorted(wanted, at)
        order = torch.argsort(pick, stable=True)
        shares.append(Share(work, pick[order], predicted[order], rows[order]))
    return Batch(tokens, wanted, tuple(shares))
