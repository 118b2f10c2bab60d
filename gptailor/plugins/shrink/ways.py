"""The ways to cut a model that its rules allow, each with its sizes from the least cut on."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checks.fit_sizes import layers_size
from gptailor.plugins.shrink.candidates import CutStep, Drafts, ShrinkCandidate

Distances = Mapping[tuple[int, int], float]
"""How far a window of layers moves the hidden state, by its first layer and its length."""
_MOST = 2
"""The inverse of the largest share of layers, neurons or experts that leaves."""
_MOST_TOKENS = 16
"""The inverse of the smallest share of tokens that stays."""
_STEP_OF_TOKENS = 1024
"""The most that one step of a smaller vocabulary removes."""
_STEPS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
_FIRST = 4
"""The fewest steps of a size."""


@final
@dataclass(frozen=True)
class ShrinkWay:
    """A way to cut, its sizes with the least cut first, and the cut of a size.

    A cut is None if no plan with it can be written. Illegal sizes are the last ones, or with
    `gaps` any.
    """

    name: str
    sizes: Sequence[int]
    make: Callable[[int], CutStep | None]
    gaps: bool = False

    def least(self, meets: Callable[[CutStep], bool]) -> CutStep | None:
        """Return the least cut that meets a goal, or None."""
        if self.gaps:
            made = (cut for cut in map(self.make, self.sizes) if cut is not None)
            return next((cut for cut in made if meets(cut)), None)

        def enough(number: int) -> bool:
            cut = self.make(self.sizes[number])
            return cut is None or meets(cut)

        at = bisect_left(range(len(self.sizes)), True, key=enough)
        return self.make(self.sizes[at]) if at < len(self.sizes) else None


def ways_of(drafts: Drafts, distances: Distances) -> list[ShrinkWay]:
    """Return the ways of a recipe's model; a way that its rules refuse has no sizes left."""
    whole = drafts.prepared(())
    assert whole is not None, "the uncut plan has been checked"
    vocabulary = whole.models["base"].vocabulary
    tokens = 0 if vocabulary is None else len(vocabulary.ids)
    found = [_vocabulary(drafts, tokens), _layers(drafts, len(whole.resolved.kept), distances)]
    for word, noun in (("width", "MLP neurons"), ("experts", "experts")):
        own = layers_size(whole.checked, word)
        if isinstance(own, Refusal):
            if word == "width":
                drafts.refusals.setdefault(word, own.reason)
        else:
            found.append(_smaller(drafts, word, noun, own))
    return [way for way in found if way.sizes]


def _checked(drafts: Drafts, variants: Sequence[CutStep]) -> CutStep | None:
    """Return the first cut that can be written, as a GGUF file too if the whole model can."""
    kind = None if drafts.no_gguf else "Q8_0"
    legal = (cut for cut in variants if drafts.cost(ShrinkCandidate((cut,), kind)) is not None)
    return next(legal, None)


def vocabulary_sizes(own: int) -> range:
    """Return the sizes of smaller vocabularies, at most 1,024 tokens apart."""
    step = min(_STEP_OF_TOKENS, max(1, 2 ** (own.bit_length() - 6)))
    return range((own - 1) // step * step, max(own // _MOST_TOKENS, 1), -step)


def _vocabulary(drafts: Drafts, own: int) -> ShrinkWay:
    def make(size: int) -> CutStep | None:
        line = f'vocabulary {size} on "{drafts.fit}"'
        return _checked(drafts, [CutStep("vocabulary", size, (line,), f"a vocabulary of {size:,}")])

    return ShrinkWay("vocabulary", vocabulary_sizes(own), make)


def _smaller(drafts: Drafts, word: str, noun: str, own: int) -> ShrinkWay:
    step = next(step for step in _STEPS if own % step == 0 and (own >= _FIRST * step or step == 1))

    def make(size: int) -> CutStep | None:
        line = f'{word} {size} on "{drafts.calibration}"'
        return _checked(drafts, [CutStep(word, size, (line,), f"{size:,} {noun}")])

    return ShrinkWay(word, range(own - step, own // _MOST - 1, -step), make)


def _layers(drafts: Drafts, count: int, distances: Distances) -> ShrinkWay:
    """Return the way of dropping a window: for each size the legal window that moves states least.

    The first and the last layer stay.
    """
    known: dict[int, CutStep | None] = {}

    def make(size: int) -> CutStep | None:
        if size not in known:
            far = max(distances.values(), default=0.0) + count
            starts = sorted(
                range(1, count - size), key=lambda first: distances.get((first, size), far - first)
            )
            found = (_checked(drafts, windows(drafts, first, size)) for first in starts)
            known[size] = next((cut for cut in found if cut is not None), None)
        return known[size]

    return ShrinkWay("layers", range(1, count // _MOST + 1), make, gaps=True)


def windows(drafts: Drafts, first: int, size: int) -> list[CutStep]:
    """Return the cuts that drop a window, bridged and not."""
    last = first + size - 1
    names = f"L{first}" if size == 1 else f"L{first}..L{last}"
    drop, bridge = f"drop {names}", f'bridge on "{drafts.calibration}"'
    return [
        CutStep("layers", size, (drop, bridge), f"without {names}, bridged"),
        CutStep("layers", size, (drop,), f"without {names}"),
    ]
