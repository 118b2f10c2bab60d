"""What objectives ask of the forward pass, and the batches of token rows that it is run on."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, groupby, pairwise, starmap, zip_longest
from typing import NamedTuple, Protocol, TypeAlias, final, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedModel


@final
@dataclass(frozen=True, slots=True)
class Request:
    """A text in tokens, of which `tokens[first:]` are to be predicted, each from all before it.

    Raises `ValueError` where no token is to be predicted, or one that has none before it.
    """

    tokens: tuple[int, ...]
    first: int

    def __post_init__(self) -> None:
        if not 1 <= self.first < len(self.tokens):
            raise ValueError(
                f"a request of {len(self.tokens)} tokens can't be predicted from {self.first} on"
            )

    @property
    def predicted(self) -> int:
        """How many tokens are predicted."""
        return len(self.tokens) - self.first


@final
class Rows(NamedTuple):
    """Which predictions some rows of logits are; the tensors lie on the CPU."""

    request: Int64[Tensor, " n"]
    """The number of the request in `Work.requests`."""
    position: Int64[Tensor, " n"]
    """The place of the predicted token in the request's `tokens`: from `first` to the end."""
    number: Int64[Tensor, " n"]
    """The row's number among all of the work, request after request: where a table has it."""


Measure: TypeAlias = Callable[
    [Float[Tensor, " n vocab"], Int64[Tensor, " n"], Rows], Float[Tensor, " n k"]
]
"""Logits in float32, the tokens that were to come, which rows these are -> k numbers a row.

Each row by itself: rows come in any order and in chunks, and what one chunk holds changes
nothing but rounding. It leaves the logits as they are: other works measure them too. Logits and
targets lie on the device; so may the result.
"""


@final
@dataclass(frozen=True)
class Work:
    """What one objective wants from a forward pass.

    `cuts` are the numbers of requests before which it may be cut into parts. No batch has requests
    of two parts, so that they run one after another to the same numbers, bit by bit.
    """

    requests: Sequence[Request]
    measure: Measure
    cuts: tuple[int, ...] = ()

    @property
    def ranges(self) -> tuple[range, ...]:
        """The requests of each part."""
        return tuple(starmap(range, pairwise((0, *self.cuts, len(self.requests)))))

    @cached_property
    def parts(self) -> "tuple[Work, ...]":
        """Each part as a work of its own, of which `measure` hears as of the whole."""
        numbers = list(accumulate((one.predicted for one in self.requests), initial=0))
        return tuple(
            Work(self.requests[of.start : of.stop], partial(_moved, self.measure, of.start, first))
            for of, first in ((of, numbers[of.start]) for of in self.ranges)
        )


def _moved(
    measure: Measure,
    requests: int,
    numbers: int,
    logits: Float[Tensor, " n vocab"],
    targets: Int64[Tensor, " n"],
    rows: Rows,
) -> Float[Tensor, " n k"]:
    """The measure of rows that so many requests, and rows, stand before."""
    moved = Rows(rows.request + requests, rows.position, rows.number + numbers)
    return measure(logits, targets, moved)


Results: TypeAlias = list[list[Tensor]]
"""For each work, for each of its requests: float32 [predicted, k] on the CPU."""


@runtime_checkable
class LiveModel(Protocol):
    """A plan as a module whose layers come one by one.

    Two with an equal `start` and equal first k `layers` have the same hidden states after k layers.
    """

    @property
    def model(self) -> PreTrainedModel:
        """The module; the tensors of its layers may be away but for those of `layer`."""

    @property
    def start(self) -> Hashable:
        """What makes the hidden state that enters the first layer."""

    @property
    def layers(self) -> tuple[Hashable, ...]:
        """What each layer computes."""

    def layer(self, index: int, /) -> AbstractContextManager[nn.Module]:
        """The layer, ready to run on the device."""


PADDING = 64
"""Padding that a batch may always have, in tokens: about what one more batch costs."""
PADDED = 1 / 8
"""The share of a batch's own tokens that its padding may be beyond that."""


@final
@dataclass(frozen=True)
class Share:
    """What of a batch's rows is one work's, in the order of the rows."""

    work: int
    pick: Int64[Tensor, " n"]
    """Places in `Batch.wanted`."""
    targets: Int64[Tensor, " n"]
    rows: Rows

    def between(self, start: int, stop: int, *, most: int) -> Iterator["Share"]:
        """The share of wanted rows start:stop, at most so many at a time."""
        low, high = torch.searchsorted(self.pick, torch.tensor([start, stop])).tolist()
        for at in range(low, high, most):
            part = slice(at, min(at + most, high))
            rows = Rows(*(one[part] for one in self.rows))
            yield Share(self.work, self.pick[part] - start, self.targets[part], rows)


@final
@dataclass(frozen=True)
class Batch:
    """Token rows, padded on the right, and which of their hidden states are wanted."""

    tokens: Int64[Tensor, " batch length"]
    wanted: Int64[Tensor, " n"]
    """Places in the flattened rows, ascending."""
    shares: tuple[Share, ...]


@final
@dataclass(frozen=True, eq=False)
class Packed:
    """All batches of some works, part by part, the longest of each first."""

    asked: tuple[tuple[Request, ...], ...]
    batches: tuple[Batch, ...]

    @cached_property
    def highest(self) -> int:
        """The highest token of all requests."""
        return max((max(one.tokens) for requests in self.asked for one in requests), default=0)

    @property
    def tokens(self) -> int:
        """How many tokens go through each layer, padding included."""
        return sum(batch.tokens.numel() for batch in self.batches)


@final
@dataclass(frozen=True)
class _Line:
    """A text that is run, and who wants predictions of it: (work, request) by number."""

    tokens: tuple[int, ...]
    askers: list[tuple[int, int]]


def pack(works: Sequence[Work], batch_tokens: int, edge: int | None = None) -> Packed:
    """The batches of all works' requests, each of at most `batch_tokens`, or of one row.

    Each distinct text is a row once, and rows of like length run together. A text's last token is
    only ever predicted, so it isn't run; texts that then begin a longer one are rows of it. Batches
    depend on what the requests are, not on their order. No batch has both rows of at most `edge`
    tokens and longer ones: a model whose rotations depend on the longest row of a batch would turn
    the short ones' otherwise. Works' parts go together from the last one on: where some have fewer,
    these begin later.
    """
    asked = tuple(tuple(work.requests) for work in works)
    numbers = [
        list(accumulate((request.predicted for request in requests), initial=0))
        for requests in asked
    ]

    def beyond(tokens: tuple[int, ...]) -> bool:
        return edge is not None and len(tokens) > edge

    batches: list[Batch] = []
    last_first = zip_longest(*(reversed(work.ranges) for work in works), fillvalue=range(0))
    for ranges in reversed(list(last_first)):
        lines = sorted(_lines(asked, ranges, beyond), key=lambda line: -len(line.tokens))
        batches += (
            _batch(rows, asked, numbers)
            for _, alike in groupby(lines, lambda line: beyond(line.tokens))
            for rows in _cut(list(alike), batch_tokens)
        )
    return Packed(asked, tuple(batches))


def _lines(
    asked: Sequence[Sequence[Request]],
    ranges: Sequence[range],
    beyond: Callable[[tuple[int, ...]], bool],
) -> list[_Line]:
    askers: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for work, (requests, some) in enumerate(zip(asked, ranges, strict=True)):
        for number in some:
            askers.setdefault(requests[number].tokens[:-1], []).append((work, number))
    lines: list[_Line] = []
    for tokens in sorted(askers, reverse=True):  # what a text begins stands right before it
        last = lines[-1].tokens if lines else ()
        if last[: len(tokens)] != tokens or beyond(tokens) != beyond(last):
            lines.append(_Line(tokens, []))
        lines[-1].askers.extend(askers[tokens])
    return lines


def _cut(lines: Sequence[_Line], batch_tokens: int) -> Iterator[Sequence[_Line]]:
    start, own, padding = 0, 0, 0
    for at, line in enumerate(lines):
        length, longest = len(line.tokens), len(lines[start].tokens)
        padding += longest - length
        full = (at - start + 1) * longest > batch_tokens
        if at > start and (full or padding > max(PADDING, PADDED * own)):
            yield lines[start:at]
            start, own, padding = at, 0, 0
        own += length
    if lines:
        yield lines[start:]


def _batch(
    lines: Sequence[_Line], asked: Sequence[Sequence[Request]], numbers: Sequence[Sequence[int]]
) -> Batch:
    """A batch of these rows; `numbers` are those of each request's first row in its work."""
    length = len(lines[0].tokens)
    tokens = torch.tensor([[*line.tokens, *[0] * (length - len(line.tokens))] for line in lines])
    askers: dict[int, list[tuple[int, int]]] = {}
    for row, line in enumerate(lines):
        for work, number in line.askers:
            askers.setdefault(work, []).append((row * length, number))
    flats = {
        work: torch.cat([
            torch.arange(start + asked[work][n].first - 1, start + len(asked[work][n].tokens) - 1)
            for start, n in pairs
        ])
        for work, pairs in askers.items()
    }  # fmt: skip
    wanted = torch.unique(torch.cat(list(flats.values())))
    shares = []
    for work, pairs in sorted(askers.items()):
        mine = [asked[work][number] for _, number in pairs]
        firsts = [numbers[work][number] for _, number in pairs]
        counts = torch.tensor([request.predicted for request in mine])
        rows = Rows(
            torch.tensor([number for _, number in pairs]).repeat_interleave(counts),
            torch.cat([torch.arange(one.first, len(one.tokens)) for one in mine]),
            torch.cat(
                [torch.arange(n, n + one.predicted) for n, one in zip(firsts, mine, strict=True)]
            ),
        )
        targets = torch.tensor([token for one in mine for token in one.tokens[one.first :]])
        pick = torch.searchsorted(wanted, flats[work])
        order = torch.argsort(pick, stable=True)
        ordered = Rows(*(one[order] for one in rows))
        shares.append(Share(work, pick[order], targets[order], ordered))
    return Batch(tokens, wanted, tuple(shares))
