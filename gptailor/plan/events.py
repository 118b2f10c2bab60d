"""Events of a run: `compile`, `lock`, `verify`, `extract_lora`, `evaluate`, `search` report them.

    def on_event(event: Event) -> None:
        match event:
            case HealStep(done, total):
                print(f"{done} of {total}")

    gptailor.compile(plan, "out", on_event=on_event)

A function that receives events ignores those that it doesn't know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, final

from gptailor.plan.resolved import Gap


@final
@dataclass(frozen=True)
class BytesDone:
    """More bytes were read or written: `size`, since the last such event."""

    size: int


@final
@dataclass(frozen=True)
class ExtractionDone:
    """So much of the extraction of an adapter is done, from 0 to 1."""

    share: float


@final
@dataclass(frozen=True)
class NarrowingBegun:
    """The MLPs of so many layers are about to be narrowed to `width` neurons."""

    layers: int
    width: int


@dataclass(frozen=True)
class LayerStep:
    """A measurement of `done` layers of `total` is made.

    `seconds_left` is the estimated time of the other layers.
    """

    done: int
    total: int
    seconds_left: float


@final
class NarrowingStep(LayerStep):
    """The MLPs of so many layers are narrow."""


@final
@dataclass(frozen=True)
class ChoosingBegun:
    """The experts of so many layers are about to be compared, of which `experts` stay in each."""

    layers: int
    experts: int


@final
class ChoosingStep(LayerStep):
    """The experts of so many layers are compared."""


@final
class ImportanceStep(LayerStep):
    """The importance matrix has the matrices of so many layers."""


@final
@dataclass(frozen=True)
class GapBegun:
    """A gap's bridge is about to be fitted."""

    gap: Gap


@final
@dataclass(frozen=True)
class GapStep:
    """The text has gone through `done` layers of `total` up to the end of a gap.

    `seconds_left` is the estimated time of the other layers.
    """

    gap: Gap
    done: int
    total: int
    seconds_left: float


@final
@dataclass(frozen=True)
class HealingStart:
    """Healing begins: `numbers` of so many layers learn from so many tokens.

    `bytes` are those on the device beside the model's weights.
    """

    layers: int
    numbers: int
    tokens: int
    bytes: int


@final
@dataclass(frozen=True)
class HealingReused:
    """The same healing was learned before on this machine; its result is taken."""


@final
@dataclass(frozen=True)
class TeacherAnswered:
    """A teacher answers more prompts of a file; `done` tokens of `total` are there.

    Kept answers have no such event.
    """

    file: str
    done: int
    total: int


@final
@dataclass(frozen=True)
class TeacherRead:
    """The teacher has predicted from `done` tokens of `total`; `reused` ones in an earlier run."""

    done: int
    total: int
    reused: bool = False


@final
@dataclass(frozen=True)
class HealStep:
    """Learning has taken `done` steps of `total`.

    `loss` is the mean of the last steps, None before the first; `held_out` that of the held-out
    text, both in nats a token. `seconds_left` is None before the first step is done.
    """

    done: int
    total: int
    loss: float | None
    held_out: float
    seconds_left: float | None


@final
class FitText(NamedTuple):
    """A text that a fit read: the size and sha256 of its file, and the tokens used."""

    size: int
    sha256: str
    tokens: int


@final
@dataclass(frozen=True)
class FitResult:
    """The result of a fit: `experts`, `width`, `bridge` or `heal`, its `word`.

    `at` is the layer before a bridge's gap, `L19`, and the word of any other fit. `numbers` are:

    - `experts`: the experts that `stay` in a layer, and their `share` of the weighted norms of all
      experts' outputs, the mean of all layers.
    - `width`: `recovered`, the share of the squared error of leaving neurons out that the fits
      remove from sequences that they left out, the mean of all layers.
    - `bridge`: `explained`, the share of the squared distance across the gap that the bridge
      removes from its tokens, and `held_out`, the share that it removes from sequences that its
      fit left out. Each token's distance is relative to the length of its state.
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


@final
@dataclass(frozen=True)
class EvaluationStep:
    """An evaluation has done `what`, which is its step `done` of `total`.

    The first event has no words and a `done` of 0.
    """

    what: str
    done: int
    total: int


Event: TypeAlias = (
    BytesDone
    | ExtractionDone
    | NarrowingBegun
    | NarrowingStep
    | ChoosingBegun
    | ChoosingStep
    | ImportanceStep
    | GapBegun
    | GapStep
    | HealingStart
    | HealingReused
    | TeacherAnswered
    | TeacherRead
    | HealStep
    | FitResult
    | EvaluationStep
)
OnEvent: TypeAlias = Callable[[Event], None]


def ignore_events(event: object) -> None:
    """Do nothing."""


def counting_bytes(on_event: OnEvent) -> Callable[[int], None]:
    """Return a function that reports a number of bytes as an event."""
    return lambda size: on_event(BytesDone(size))
