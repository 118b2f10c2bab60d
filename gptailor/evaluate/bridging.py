"""Bridges of a plan fitted, gap after gap, and kept for other plans that begin alike."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gptailor.checkpoint.digest import FileDigest
from gptailor.checks.fitting import Checked
from gptailor.evaluate.bridge_fold import carriers, fold
from gptailor.evaluate.bridge_states import Own, Walk
from gptailor.evaluate.bridge_statistics import BridgeError, solve
from gptailor.evaluate.bridge_text import CalibrationText, calibration_text
from gptailor.evaluate.contents import Anatomist, Anatomy, Content, piece
from gptailor.evaluate.shell import configuration
from gptailor.evaluate.tensors import Tensors, size_of
from gptailor.evaluate.tokenizing import tokenizer_of
from gptailor.evaluate.work import Live
from gptailor.outline import Gap, kept
from gptailor.plan import Plan
from gptailor.prepared import text_of

KEPT = 2**31
"""Bytes of fitted tensors that are kept for other plans."""

Told = Callable[[Gap], None]


@final
@dataclass(frozen=True, eq=False)
class Bridge:
    """A gap's fit: the tensors of the layer before it, by their names within the layer, on the CPU.

    `digest` is the calibration file's, `tokens` how many were summed over. `explained` is the share
    of the squared distance to the hidden states without a gap that the bridge takes away there.
    """

    tensors: Mapping[str, Tensor]
    digest: FileDigest
    tokens: int
    explained: float


@final
class Bridger:
    """Fits the bridges of plans over some models; what plans have in common is fitted once.

    `live` makes a float32 model of contents, `tensors` are those of the models. `place` is where
    hidden states wait between layers.
    """

    def __init__(
        self,
        anatomist: Anatomist,
        live: Callable[[Anatomy], Live],
        tensors: Tensors,
        place: torch.device,
    ) -> None:
        self.anatomist = anatomist
        self.live = live
        self.tensors = tensors
        self.place = place
        self.layout = anatomist.models["base"].layout
        self._texts: dict[tuple[Hashable, ...], CalibrationText] = {}
        self._fits: OrderedDict[Hashable, Bridge] = OrderedDict()

    def bridges(
        self, plan: Plan, gaps: Sequence[Gap], told: Told = lambda _: None
    ) -> Iterator[tuple[Gap, Bridge]]:
        """The fits of a closed plan's gaps, the first gap first; `told` is told of each before it.

        Raises CalibrationError for a text that doesn't serve, BridgeError for a gap that can't be
        closed.
        """
        undone = self.anatomist.anatomy(plan.model_copy(update={"drops": (), "bridges": ()}))
        own = self._own(plan, undone)
        walk: Walk | None = None
        walked: CalibrationText | None = None
        for gap in gaps:
            text = self._text(plan, gap, undone)
            key = (
                piece((*undone.begin, *undone.others)),
                undone.layers[: gap.until],
                tuple(own[: gap.after + 1]),
                (text, gap.ridge),
            )
            if (known := self._fits.get(key)) is None:
                told(gap)
                if walk is None or walked is not text:
                    walk, walked = self._walk(undone, text), text
                known = self._fits[key] = self._fit(walk, gap, own, text)
            self._fits.move_to_end(key)
            content = own[gap.after]
            assert content is not None
            bridged = own[gap.after] = self.anatomist.bridged(content, known.tensors)
            if walk is not None and walk.at > gap.after:
                walk.cross(gap, bridged)
            yield gap, known
        self._trim()

    def _walk(self, undone: Anatomy, text: CalibrationText) -> Walk:
        return Walk(undone, self.live, self.layout, text.batches, self.place)

    def _fit(self, walk: Walk, gap: Gap, own: Own, text: CalibrationText) -> Bridge:
        try:
            statistics = walk.statistics(gap, own)
            w = solve(statistics, gap.ridge)
            content = own[gap.after]
            assert content is not None
            tensors = self._folded(w, content)
        except BridgeError as error:
            message = f"{gap.name}: {error.message}"
            raise BridgeError(error.code, message, error.help) from None
        return Bridge(tensors, text.digest, text.tokens, statistics.explained(w))

    def _folded(self, w: Tensor, content: Content) -> dict[str, Tensor]:
        names = carriers(self.layout, content)
        outputs = [output for output in content.outputs if output.spec.name in names]
        made = {output.spec.name: self.tensors.make(output) for output in outputs}
        return fold(w, made, self.layout, {o.spec.name: o.spec.dtype for o in outputs})

    def _own(self, plan: Plan, undone: Anatomy) -> list[Content | None]:
        own: list[Content | None] = [None] * len(undone.layers)
        for slot in kept(plan, len(undone.layers)):
            assert slot.position is not None
            own[slot.position] = undone.layers[slot.position]
        return own

    def _text(self, plan: Plan, gap: Gap, undone: Anatomy) -> CalibrationText:
        teller = Checked(plan, self.anatomist.models).teller
        path = text_of(plan, gap.on)
        key = (path, gap.tokens, teller.name)
        if key not in self._texts:
            config = configuration(undone.config)
            self._texts[key] = calibration_text(
                path,
                gap.tokens,
                tokenizer=tokenizer_of(teller),
                positions=getattr(config, "max_position_embeddings", None),
                width=int(config.hidden_size),
            )
        return self._texts[key]

    def _trim(self) -> None:
        size = sum(size_of(list(bridge.tensors.values())) for bridge in self._fits.values())
        while size > KEPT:
            _, oldest = self._fits.popitem(last=False)
            size -= size_of(list(oldest.tensors.values()))
