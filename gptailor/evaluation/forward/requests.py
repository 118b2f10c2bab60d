"""Requests of objectives to the forward pass, and the batches of token rows that it runs on."""

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


@final
class Rows(NamedTuple):
    """The predictions behind some rows of logits; the tensors lie on the CPU."""

    request: Int64[Tensor, " n"]
    """The number of the request in `Work.requests`."""
    position: Int64[Tensor, " n"]
    """The place of the predicted token in the request's `tokens`: from `first` to the end."""
    number: Int64[Tensor, " n"]
    """The row's number in the work, request after request: its place in a table."""


Measure: TypeAlias = Callable[
    [Float[Tensor, " n vocab"], Int64[Tensor, " n"], Rows], Float[Tensor, " n k"]
]
"""Logits in float32, the target tokens and the rows -> k numbers a row.

A measure treats each row by itself: rows come in any order and in chunks, and the other rows of a
chunk change only rounding. It doesn't change the logits, since other works measure them too. Logits
and targets lie on the device; the result may too.
"""


@final
@dataclass(frozen=True)
class Work:
    """The requests of one objective to a forward pass.

    `cuts` are the numbers of requests before which the work may be cut into parts. No batch has
    requests of two parts, so parts that run one after another give the same numbers, bit by bit.
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
        """Each part as a separate work; `measure` still receives rows of the whole work."""
        counts = (request.predicted for request in self.requests)
        numbers = list(accumulate(counts, initial=0))
        return tuple(
            Work(
                self.requests[of.start : of.stop],
                partial(_measure_moved, self.measure, of.start, first),
            )
            for of, first in ((of, numbers[of.start]) for of in self.ranges)
        )


def _measure_moved(
    measure: Measure,
    requests: int,
    numbers: int,
    logits: Float[Tensor, " n vocab"],
    targets: Int64[Tensor, " n"],
    rows: Rows,
) -> Float[Tensor, " n k"]:
    """Measure rows that follow this many requests and rows of the whole work."""
    moved = Rows(rows.request + requests, rows.position, rows.number + numbers)
    return measure(logits, targets, moved)


Results: TypeAlias = list[list[Tensor]]
"""For each work, for each of its requests: float32 [predicted, k] on the CPU."""


@runtime_checkable
class LiveModel(Protocol):
    """A plan as a module whose layers come one by one.

    Two models with an equal `start` and equal first k `layers` have the same hidden states after k
    layers.
    """

    @property
    def model(self) -> PreTrainedModel:
        """The module; a layer's tensors may be away, except within `layer`."""

    @property
    def start(self) -> Hashable:
        """A key of all that determines the hidden state before the first layer."""

    @property
    def layers(self) -> tuple[Hashable, ...]:
        """A key of the computation of each layer."""

    def layer(self, index: int, /) -> AbstractContextManager[nn.Module]:
        """Yield the layer, ready to run on the device."""


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
    rows: Rows

    def between(self, start: int, stop: int, *, most: int) -> Iterator["Share"]:
        """Yield the share of wanted rows start:stop in chunks of at most `most` rows."""
        low, high = torch.searchsorted(self.pick, torch.tensor([start, stop])).tolist()
        for at in range(low, high, most):
            part = slice(at, min(at + most, high))
            rows = Rows(*(tensor[part] for tensor in self.rows))
            yield Share(self.work, self.pick[part] - start, self.targets[part], rows)


@final
@dataclass(frozen=True)
class Batch:
    """Token rows, padded on the right, with the places of their wanted hidden states."""

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
        texts = (request.tokens for requests in self.asked for request in requests)
        return max(map(max, texts), default=0)


@final
@dataclass(frozen=True)
class _Line:
    """A text that is run, with the (work, request) numbers that want predictions of it."""

    tokens: tuple[int, ...]
    askers: list[tuple[int, int]]


def pack(works: Sequence[Work], batch_tokens: int, edge: int | None = None) -> Packed:
    """Return the batches of all works' requests, each of at most `batch_tokens`, or of one row.

    Each distinct text is a row once, and rows of like length run together. A text's last token is
    only predicted, so it isn't run. A shortened text that begins a longer text shares the row of
    that text. Batches depend on the set of requests, not on their order.

    No batch has both rows of at most `edge` tokens and longer rows. A model whose rotations depend
    on the longest row of a batch would otherwise rotate the short rows differently. Works' parts
    are aligned at the last part: a work with fewer parts begins later.
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
    for tokens in sorted(askers, reverse=True):  # a longer text comes before its beginning
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
    """Return a batch of these rows, given `numbers`: each request's first row in its work."""
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
        requests = [asked[work][number] for _, number in pairs]
        firsts = [numbers[work][number] for _, number in pairs]
        counts = torch.tensor([request.predicted for request in requests])
        rows = Rows(
            torch.tensor([number for _, number in pairs]).repeat_interleave(counts),
            torch.cat([torch.arange(request.first, len(request.tokens)) for request in requests]),
            torch.cat(
                [
                    torch.arange(n, n + request.predicted)
                    for n, request in zip(firsts, requests, strict=True)
                ]
            ),
        )
        targets = torch.tensor(
            [token for request in requests for token in request.tokens[request.first :]]
        )
        pick = torch.searchsorted(wanted, flats[work])
        order = torch.argsort(pick, stable=True)
        ordered = Rows(*(tensor[order] for tensor in rows))
        shares.append(Share(work, pick[order], targets[order], ordered))
    return Batch(tokens, wanted, tuple(shares))
