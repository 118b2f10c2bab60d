"""Events of a run: `compile`, `lock`, `verify`, `extract_lora`, `evaluate`, `search` report them.

    def on_event(event: Event) -> None:
        match event:
            case Progress(what, done, total):
                print(f"{what}: {done} of {total}")

    gptailor.compile(plan, "out", on_event=on_event)

A function that receives events ignores those that it doesn't know.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, final


@final
@dataclass(frozen=True)
class BytesDone:
    """More bytes were read or written: `size`, since the last such event."""

    size: int


@final
@dataclass(frozen=True)
class Progress:
    """So much of some work is done: `done` of `total`.

    `what` is the work:

    - `narrowing`, `comparing experts`, `importance matrix`, `bridging`: layers are measured. The
      first three count the layers of a plan, and bridging those up to the end of a gap, which `at`
      names. Before the first layer of cuts, `numbers` has the `size` that stays.
    - `fitting`: a plan that is a model of another, `at`, is fitted next.
    - `answering`: a teacher answers more prompts of a file, `at`; `done` tokens are there. Kept
      answers have no such event.
    - `reading`: the teacher has predicted from this many tokens.
    - `learning`: healing begins to train `total` layers. `numbers` has the `numbers` that learn,
      the `tokens` of the texts, and the `bytes` on the device in addition to the model's weights.
    - `healing`: steps of learning. `numbers` has the `held_out` loss, and after the first step
      `loss`, the mean of the last steps, both in nats a token.
    - `evaluating`: steps of an evaluation; `at` was the last step. The first event has no `at`.
    - `searching`: a slow step of a search that isn't a trial, `at`. Its `total` is 0 if unknown.
    - `asking`: the next plans of a search are being chosen.
    - `scoring`: a worker begins to score `total` plans on this many `samples`, in `numbers`.
    - `extracting`: thousandths of the extraction of an adapter.

    `seconds_left` is the estimated time of the others. A `reused` result is from an earlier run.
    """

    what: str
    done: int
    total: int
    at: str = ""
    seconds_left: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    reused: bool = False


@final
class FitText(NamedTuple):
    """A text that a fit read: the size and sha256 of its file, and the tokens used."""

    size: int
    sha256: str
    tokens: int


@final
@dataclass(frozen=True)
class FitResult:
    """The result of a fit: `vocabulary`, `experts`, `width`, `bridge` or `heal`, its `word`.

    `at` is the layer before a bridge's gap, `L19`, and the word of any other fit. `numbers` are:

    - `vocabulary`: the fields of `TokenCutReport`. No event reports this result.
    - `experts`: the experts that `stay` in a layer, and their `share` of the weighted norms of all
      experts' outputs, the mean of all layers.
    - `width`: `recovered`, the share of the squared error of leaving neurons out that the fits
      remove from sequences that they left out, the mean of all layers.
    - `bridge`: `explained`, the share of the squared distance across the gap that the bridge
      removes from its tokens, and `held_out`, the share that it removes from sequences that its
      fit left out. Each token's distance is relative to the length of its state. A fit of another
      package has no numbers.
    - `heal`: the number of `held` out tokens, and the mean KL divergence from the teacher on them
      in nats a token: of the `bare` plan, of the model that learning began with, `start` (the same
      where nothing is bridged), and of the `healed` one. If no step came nearer to the teacher, the
      last two are equal.
    """

    word: str
    at: str
    texts: tuple[FitText, ...]
    numbers: Mapping[str, float]

    @property
    def tokens(self) -> int:
        """The tokens of all texts."""
        return sum(text.tokens for text in self.texts)

    @property
    def in_vain(self) -> bool:
        """Return whether no step of healing came nearer to the teacher, so that nothing changed."""
        return self.word == "heal" and self.numbers["healed"] >= self.numbers["start"]


def seconds_left(begun: float, done: int, total: int) -> float:
    """Return the time of the remaining work, since `begun` on the monotonic clock."""
    return (time.monotonic() - begun) / done * (total - done)


Event: TypeAlias = BytesDone | Progress | FitResult
OnEvent: TypeAlias = Callable[[Event], None]


def ignore_events(event: object) -> None:
    """Do nothing."""


def counting_bytes(on_event: OnEvent) -> Callable[[int], None]:
    """Return a function that reports a number of bytes as an event."""
    return lambda size: on_event(BytesDone(size))
