"""Live models of several targets: those on one base share one stitcher, and all their layers."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar, final

import torch
from torch import Tensor

from gptailor.checkpoint.models import Opened
from gptailor.evaluate.forward.evaluator import Evaluator
from gptailor.evaluate.forward.requests import Work
from gptailor.evaluate.live.stitch import Stitched, Stitcher
from gptailor.evaluate.objectives import Forward, Judged, PreparedObjective
from gptailor.evaluate.outcome import (
    Failure,
    Judgement,
    Outcome,
    Result,
    Speed,
    Subject,
    retained_score,
)
from gptailor.evaluate.samples import Preparing, Samples, Wish, no_reference
from gptailor.evaluate.scoring import guarded, scored, unstitched
from gptailor.evaluate.speed import cache_bytes, parameters, speeds
from gptailor.evaluate.targets import Target, base_of, find_targets, identity, names
from gptailor.lang.parse import read_objective
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Objective, Plan
from gptailor.prepare import Prepared, ready
from gptailor.program.run import device_of

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


CACHE = 2**30
"""Bytes of hidden states where targets part: what they have in common runs once."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told of what is done, how many steps that makes, and how many there are."""

_Kind = TypeVar("_Kind", bound=PreparedObjective)


@final
@dataclass(frozen=True)
class Placement:
    """Where models live: a device, a dtype if not their own, and bytes of weights at most."""

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    memory: int | None = None


def judge(  # noqa: PLR0913 (the verb of the command line, and its flags)
    targets: Sequence[str | Path | Plan] | str | Path | Plan,
    objectives: Sequence[str | Objective] | str | Objective,
    *,
    models: Mapping[str, str | Path] | None = None,
    samples: int | None = None,
    seed: int = 0,
    folder: str | Path = ".",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: int | None = None,
    speed: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Judgement:
    """Judge plans, compiled folders and models by objectives such as `nll("text.txt")`.

    A target is a plan or its file, a model's folder, a GGUF file, or a Hub id. `models` gives other
    folders for the plans' names, `samples` bounds what is drawn by `seed`, and relative paths of
    objectives start at `folder`. `dtype` is the live models', else their own; `memory` bounds their
    bytes on the device. With `speed` tokens a second are measured too.

    What goes wrong with one target is a `Failure` in its results. Raises PlanError for faults of
    plans and objectives, and TailorError or OSError for what concerns all: a file of an
    objective, a device that isn't there.
    """
    several = [targets] if isinstance(targets, str | Path | Plan) else list(targets)
    found = find_targets(several, models or {})
    wanted = [objectives] if isinstance(objectives, str | Objective) else list(objectives)
    wishes = [_wish(one, found) for one in wanted]
    drawn = Samples(Path(folder), samples, seed)
    judging = Judging(found, wishes, drawn, Placement(device, dtype, memory))
    return judging.judgement(speed=speed, progress=progress)


def _wish(objective: str | Objective, targets: Sequence[Target]) -> Wish:
    if isinstance(objective, Objective):
        return Wish(objective, directed=True)
    return Wish(*read_objective(objective, names(targets)))


@final
@dataclass(eq=False)
class _Seen:
    """What is known of one target so far."""

    target: Target
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    parameters: int | None = None
    cache: int | None = None
    speed: Speed | None = None
    beside: Speed | None = None


@final
class Judging:
    """One evaluation. Making it reads the objectives' files, and no weights."""

    def __init__(
        self, targets: Sequence[Target], wishes: Sequence[Wish], samples: Samples, place: Placement
    ) -> None:
        self.targets = targets
        self.wishes = wishes
        device = device_of(str(place.device))
        self.stitchers = Stitchers(device, place.dtype, place.memory)
        self.evaluator = Evaluator(cache=CACHE, device=device)
        self.seen = [_Seen(target) for target in targets]
        self.bases = self._bases()
        self.preparing = Preparing(wishes, samples, self._reference)
        for one in self._all():
            self.stitchers.expect(one.target.prepared)
            self.preparing.of(one.target)

    def judgement(self, *, speed: bool, progress: Progress) -> Judgement:
        """Run all."""
        steps = _Steps(progress, self._count(speed))
        for group in self._groups():
            self._forward(group, steps)
        for one in self._all():
            self._alone(one, steps)
        if speed:
            for one in self.seen:
                self._speed(one, steps)
        bases = list(self.bases.values())
        return Judgement(
            tuple(result for one in self.seen for result in self._results(one)),
            tuple(map(_subject, self.seen)),
            tuple(result for one in bases for result in self._results(one)),
            tuple(map(_subject, bases)),
        )

    # ------------------------------------------------------------------------------ who is judged

    def _bases(self) -> dict[Hashable, _Seen]:
        """The bases that aren't targets themselves."""
        asked = {target.identity_of_base for target in self.targets if target.plain}
        found: dict[Hashable, _Seen] = {}
        for target in self.targets:
            key = target.identity_of_base
            if target.base is None or key in asked or key in found:
                continue
            name = target.base.plan.models["base"].source
            base = Target(name, target.base, target.origin, target.base)
            found[key] = _Seen(base)
        return found

    def _all(self) -> list[_Seen]:
        return [*self.bases.values(), *self.seen]

    def _base(self, target: Target) -> _Seen | None:
        key = target.identity_of_base
        plain = (one for one in self.seen if one.target.plain)
        there = (one for one in plain if one.target.identity_of_base == key)
        return self.bases.get(key) or next(there, None)

    def _groups(self) -> list[list[_Seen]]:
        """Those that are measured on the same samples and share layers, together."""
        groups: dict[Hashable, list[_Seen]] = {}
        for one in self._all():
            family = self.stitchers.family(one.target.prepared)
            key = (id(family), self.preparing.key(one.target))
            groups.setdefault(key, []).append(one)
        return list(groups.values())

    def _count(self, speed: bool) -> int:
        if not self.seen:
            return 0
        kinds = self.preparing.of(self.targets[0])
        forward = any(isinstance(one, Forward) for one in kinds)
        alone = sum(isinstance(one, Judged) for one in kinds)
        return len(self._all()) * (forward + alone) + len(self.seen) * speed

    # ------------------------------------------------------------------------------------- scores

    def _forward(self, group: Sequence[_Seen], steps: "_Steps") -> None:
        """What a forward pass measures, of all of a group."""
        asked: dict[int, tuple[Forward, Work]] = {}
        for number, objective in self._of(group[0], Forward):  # type: ignore[type-abstract]
            try:
                asked[number] = objective, objective.work()
            except TailorError as error:  # a reference that isn't there
                for one in group:
                    one.outcomes[number] = Failure("error", str(error))
        live = [(one, stitched) for one in group if (stitched := self._stitched(one))]
        if not asked:
            return
        population = [stitched for _, stitched in live]
        works = [work for _, work in asked.values()]
        for number, result in self.evaluator.run_all(population, works):
            one, stitched = live[number]
            one.outcomes |= scored(self.evaluator, stitched, asked, result)
            steps.done(one.target.name)

    def _alone(self, one: _Seen, steps: "_Steps") -> None:
        """What needs the model to make text."""
        for number, objective in self._of(one, Judged):  # type: ignore[type-abstract]
            stitched = self._stitched(one)
            if stitched is not None:
                model = stitched.model
                one.outcomes[number] = guarded(partial(objective.judge, model))
            steps.done(f"{one.target.name}: {objective.name}")

    def _of(self, one: _Seen, kind: type[_Kind]) -> Iterator[tuple[int, _Kind]]:
        for number, objective in enumerate(self.preparing.of(one.target)):
            if isinstance(objective, kind):
                yield number, objective

    def _reference(self, target: Target, name: str, work: Work) -> Sequence[Tensor]:
        """What a model of a target's plan says of a work."""
        prepared = self._referred(target, name)
        self.stitchers.expect(prepared)
        found = self.evaluator.run(self.stitchers.stitch(prepared), [work])
        if isinstance(found, Failure):
            raise no_reference(name, found.message)
        return found[0]

    def _referred(self, target: Target, name: str) -> Prepared:
        if name == "base":
            if target.base is None:
                raise no_reference(name, f"the base that '{target.name}' was made of isn't there")
            return target.base
        if name not in target.origin.models:
            raise no_reference(name, f"'{target.name}' has none of that name")
        return ready(base_of(target.origin, name))

    # ------------------------------------------------------------------------- live models, speed

    def _stitched(self, one: _Seen) -> Stitched | None:
        """The live model; where it can't be had, that is the outcome of all that is left."""
        try:
            stitched = self.stitchers.stitch(one.target.prepared)
            one.parameters = one.parameters or parameters(stitched.model)
            one.cache = one.cache or cache_bytes(stitched.model)
        except Exception as error:  # noqa: BLE001 (one target's failure is a value)
            for number in range(len(self.wishes)):
                one.outcomes.setdefault(number, unstitched(error))
            return None
        return stitched

    def _speed(self, one: _Seen, steps: "_Steps") -> None:
        base = None if one.target.plain else self._base(one.target)
        with suppress(Exception):  # a speed that can't be had is none; why is in the scores
            live = self.stitchers.stitch(one.target.prepared).model
            other = None if base is None else self.stitchers.stitch(base.target.prepared).model
            one.speed, one.beside = speeds(live, other)
            if base is not None:
                base.speed = base.speed or one.beside
        steps.done(f"{one.target.name}: speed")

    def _results(self, one: _Seen) -> Iterator[Result]:
        base = self._base(one.target)
        for number, objective in enumerate(self.preparing.of(one.target)):
            outcome = one.outcomes[number]
            theirs = None if base is None else base.outcomes[number]
            share = None
            if objective.normalise == "base" and not one.target.plain:
                share = retained_score(outcome, theirs, objective.direction)
            yield Result(one.target.name, objective.name, objective.direction, outcome, share)


@final
class _Steps:
    """How far an evaluation is."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.count = 0

        progress("", 0, total)

    def done(self, what: str) -> None:
        """A step is done."""
        self.count += 1
        self.progress(what, self.count, self.total)


def _subject(one: _Seen) -> Subject:
    layers = one.target.prepared.layers
    return Subject(one.target.name, layers, one.parameters, one.cache, one.speed, one.beside)
