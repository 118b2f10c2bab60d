"""The settings of a search: flags over the plan's `search` block, as `Settings`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gptailor.lang.parse import read_objective
from gptailor.lang.words import measure_words
from gptailor.plan.arguments import NotNegative, Positive, check_fields
from gptailor.plan.faults import Fault, PlanError, TailorError, listed, nearest
from gptailor.plan.plan import CountRange, Objective, Plan, Requirement, Search
from gptailor.plan.registry import OBJECTIVES, STRATEGIES
from gptailor.plan.search_block import with_plain_path
from gptailor.plan.sites import drops_by_choice, open_choices
from gptailor.program.packages import search_packages
from gptailor.searching.run.records import BridgedTrials

TRIALS = 200
"""The default budget of a search."""


@final
class WishError(TailorError):
    """A search can't be as requested."""

    exit_code = 1


@final
class SearchError(TailorError):
    """A search can't go on, for a reason that concerns all its trials."""


@final
@dataclass(frozen=True)
class Flags:
    """Flags that replace the plan's settings; where a flag is None, the `search` block counts."""

    objectives: tuple[str, ...] = ()
    fidelity: tuple[Positive, Positive] | None = None
    trials: Positive | None = None
    seed: NotNegative | None = None
    strategy: str | None = None
    bridge: BridgedTrials | None = None
    prefer: str | None = None
    finalists: Positive | None = None
    race: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@final
@dataclass(frozen=True)
class Resources:
    """The place of the models.

    `dtype` is the live models', by name. `ray` is a cluster's address, `workers` how many of its
    workers to use. `gpus_per_worker` GPUs hold one worker's layers, and this process's own.
    """

    device: str = "cpu"
    dtype: str | None = None
    memory: Positive | str | None = None
    ray: str | None = None
    workers: Positive | None = None
    gpus_per_worker: Positive = 1

    def __post_init__(self) -> None:
        check_fields(self)


@final
@dataclass(frozen=True)
class Settings:
    """All settings of a search. Relative paths in `objectives` start at `folder`.

    `directed` tells of each objective whether its direction was given. `prefer` is the number of
    the deciding objective, from 0. With `heals` the best trials are healed in the end; `finalists`
    is how many were asked for. With `race` trials are given up where they have lost. `requires` are
    the plan's requirements; their paths start at the plan's folder. `packages` are the installed
    packages of its names.
    """

    objectives: tuple[Objective, ...]
    directed: tuple[bool, ...]
    folder: Path
    fidelity: tuple[int, int] | None
    trials: int
    seed: int
    strategy: str
    bridge: BridgedTrials | None
    prefer: int | None
    heals: bool = False
    finalists: int | None = None
    race: bool = True
    requires: tuple[Requirement, ...] = ()
    packages: tuple[str, ...] = ()

    @property
    def conditions(self) -> tuple[Requirement, ...]:
        """Requirements of scores and times, for which the best plans are evaluated in the end."""
        return tuple(r for r in self.requires if OBJECTIVES[r.name].by != "headers")


_OBJECTIVE = "add --objective 'nll(\"text.txt\")'"


def settings(plan: Plan, flags: Flags) -> Settings:
    """Return the flags over the block. Raises WishError or PlanError for an invalid search."""
    if flags.fidelity is not None and flags.fidelity[0] > flags.fidelity[1]:
        low, high = flags.fidelity
        raise WishError(f"'fidelity': expected two numbers that ascend, got {low}..{high}")
    if open_choices(plan) == 0:
        raise WishError("the plan has no open choices, so there is nothing to search")
    block = plan.search or Search()
    if not (flags.objectives or block.objectives):
        message = "the search has no objective"
        raise WishError(f"{message}: {_OBJECTIVE}, or a search block")
    objectives, directed, folder = _objectives(plan, block, flags.objectives)
    if all(OBJECTIVES[objective.name].by != "samples" for objective in objectives):
        message = "no objective measures quality, so the smallest plan would be the best"
        raise WishError(f"{message}; {_OBJECTIVE} too")
    sizes = [objective for objective in objectives if OBJECTIVES[objective.name].by == "headers"]
    several = any(isinstance(choice.count, CountRange) for _, choice in drops_by_choice(plan))
    if several and not sizes:
        objectives, directed = (*objectives, SIZE), (*directed, True)
    if flags.bridge is not None and not plan.bridges:
        raise WishError("--bridge needs a plan with 'bridge'")
    trials = flags.trials or block.trials or TRIALS
    heals = plan.may_be_healed
    usual: BridgedTrials = "each" if heals else "finalists"
    bridge = (flags.bridge or usual) if plan.bridges else None
    if flags.finalists is not None:
        _refuse_finalists(flags.finalists, trials, final=heals or bridge == "finalists")
    strategy = _strategy(flags.strategy or next(iter(STRATEGIES)))
    return Settings(
        objectives=objectives,
        directed=directed,
        folder=folder,
        fidelity=flags.fidelity or block.fidelity,
        trials=trials,
        seed=flags.seed if flags.seed is not None else block.seed or 0,
        strategy=strategy,
        bridge=bridge,
        prefer=None if flags.prefer is None else _preferred(flags.prefer, objectives),
        heals=heals,
        finalists=flags.finalists,
        race=flags.race,
        requires=block.requires,
        packages=search_packages(plan, objectives, strategy),
    )


SIZE = Objective(direction="minimize", name="parameters")
"""The additional objective of a plan that drops between two numbers of layers."""


def _refuse_finalists(finalists: int, trials: int, *, final: bool) -> None:
    """Raise WishError without finalists, or for more than half of the budget."""
    if not final:
        needed = "a plan with 'heal', or 'bridge' with --bridge finalists"
        raise WishError(f"--finalists needs {needed}")
    if not 1 <= finalists <= (most := max(trials // 2, 1)):
        message = f"expected 1 to {most} finalists for {trials} trials, got {finalists}"
        raise WishError(f"{message}: each is evaluated twice")


def _objectives(
    plan: Plan, block: Search, texts: Sequence[str]
) -> tuple[tuple[Objective, ...], tuple[bool, ...], Path]:
    if not texts:
        folder = plan.origin.folder if plan.origin else Path()
        return block.objectives, (True,) * len(block.objectives), folder
    parsed: list[tuple[Objective, bool]] = []
    faults: list[Fault] = []
    for text in texts:
        try:
            parsed.append(read_objective(text, plan.models, name="--objective"))
        except PlanError as error:
            faults += error.faults
    if faults:
        raise PlanError(faults)
    objectives = tuple(objective for objective, _ in parsed)
    plain = [*map(with_plain_path, objectives)]
    for number, objective in enumerate(objectives):
        if plain[number] in plain[:number]:
            raise WishError(f"the objective {measure_words(objective)} is given twice")
    return objectives, tuple(directed for _, directed in parsed), Path()


def _strategy(name: str) -> str:
    if name not in STRATEGIES:
        names = STRATEGIES.names()
        help_ = nearest(name, names) or f"the strategies are {listed(names)}"
        help_ = STRATEGIES.problem(name) or help_
        raise WishError(f"there is no strategy '{name}'; {help_}")
    return name


def _preferred(text: str, objectives: Sequence[Objective]) -> int:
    """Return an objective's number, given its number from 1, its words or its unique name."""
    words = [measure_words(objective) for objective in objectives]
    numbers = [str(number) for number in range(1, len(words) + 1)]
    for names in (numbers, words, [objective.name for objective in objectives]):
        if names.count(text) == 1:
            return names.index(text)
    choices = "; ".join(map(" ".join, zip(numbers, words, strict=True)))
    given = f"--prefer '{text}'"
    raise WishError(f"{given} must match exactly one objective of: {choices}")
