"""Live models of several targets: those on one base share one stitcher, and all their layers."""

from dataclasses import dataclass, field
from typing import final

import torch

from gptailor.checkpoint.opened import Opened
from gptailor.evaluate.stitch import Stitched, Stitcher
from gptailor.evaluate.targets import identity
from gptailor.prepared import Prepared

LIVE = 2
"""Stitchers whose models stay loaded: a target's, and its base's."""


@final
@dataclass(eq=False)
class _Family:
    """Plans on one base whose names for other models don't contradict each other."""

    models: dict[str, Opened] = field(default_factory=dict)
    known: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def takes(self, prepared: Prepared) -> bool:
        """Whether the plan's models are this family's, under the same names; then it is one."""
        theirs = {name: identity(prepared, name) for name in prepared.models}
        if self.known and theirs["base"] != self.known["base"]:
            return False
        if any(self.known.get(name, files) != files for name, files in theirs.items()):
            return False
        self.models = {**prepared.models, **self.models}
        self.known |= theirs
        return True


@final
class Stitchers:
    """Stitches any of the expected plans; `memory` is what all live ones have together."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None, memory: int | None) -> None:
        self.device = device
        self.dtype = dtype
        self.memory = memory
        self._families: list[_Family] = []
        self._homes: dict[int, tuple[Prepared, _Family]] = {}  # by id; plans have no hash
        self._live: dict[_Family, Stitcher] = {}

    def expect(self, prepared: Prepared) -> None:
        """This plan will be stitched; sharing is best where all are known before the first."""
        if id(prepared) in self._homes:
            return
        home = next((one for one in self._families if one.takes(prepared)), None)
        if home is None:
            home = _Family()
            home.takes(prepared)
            self._families.append(home)
        self._homes[id(prepared)] = prepared, home

    def family(self, prepared: Prepared) -> _Family:
        """Plans of one family share what they begin with."""
        return self._homes[id(prepared)][1]

    def stitch(self, prepared: Prepared) -> Stitched:
        """The plan's live model. Raises as `Stitcher` does."""
        home = self.family(prepared)
        stitcher = self._live.pop(home, None)
        if stitcher is None:
            while len(self._live) >= LIVE:
                del self._live[next(iter(self._live))]
            stitcher = self._new(home)
        self._live[home] = stitcher
        return stitcher.stitch(prepared.plan)

    def _new(self, home: _Family) -> Stitcher:
        memory = self.memory
        if memory is not None:
            memory //= min(LIVE, len(self._families))
        return Stitcher(home.models, device=self.device, dtype=self.dtype, memory=memory)
