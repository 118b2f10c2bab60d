"""What a search is asked for: the flags, over what the plan's `search` block says: `Settings`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from gptailor.lang.parse import read_objective
from gptailor.lang.words import measure_words, objective_words, requirement_words
from gptailor.plan.faults import Fault, PlanError, TailorError, listed, nearest
from gptailor.plan.plan import CountRange, Objective, Plan, Requirement, Search
from gptailor.plan.registry import OBJECTIVES, STRATEGIES
from gptailor.plan.search_block import with_plain_path
from gptailor.plan.sites import drops_by_choice, open_choices
from gptailor.report.summary import BridgedTrials, escaped_control

TRIALS = 200
"""The budget of a search that nobody gave one."""

BRIDGE: BridgedTrials = "finalists"
"""When trials of a space with bridges are bridged, if nobody says."""


@final
class WishError(TailorError):
    """A search can't be what was asked for."""

    exit_code = 1


@final
@dataclass(frozen=True)
class Flags:
    """What was said beside the plan; None is not said, and then the `search` block counts."""

    objectives: tuple[str, ...] = ()
    fidelity: tuple[int, int] | None = None
    trials: int | None = None
    seed: int | None = None
    strategy: str | None = None
    bridge: BridgedTrials | None = None
    prefer: str | None = None
    compare_random: bool = False
    finalists: int | None = None
    race: bool = True
    repeat_calibration: int = 0


@final
@dataclass(frozen=True)
class Resources:
    """Where models live, and where the study is if not in the folder.

    `dtype` is the live models', by name; `storage` is a URL of Optuna's, `study` its name there.
    `ray` is a cluster's address, `workers` how many of its workers to use; `gpus_per_worker` hold
    one worker's layers, and those of this process.
    """

    device: str = "cpu"
    dtype: str | None = None
    memory: int | None = None
    storage: str | None = None
    study: str = "gptailor"
    ray: str | None = None
    workers: int | None = None
    gpus_per_worker: int = 1


@final
@dataclass(frozen=True)
class Settings:
    """How a search goes. Relative paths in `objectives` start at `folder`.

    `directed` says of each objective whether its direction was said; `prefer` is the number of the
    one that decides, from 0. `heals` says that the best trials are healed in the end; `finalists`
    is how many were asked for. With `race` trials are given up where they have lost. `requires` are
    the plan's, whose paths start at its own folder.
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
    compare_random: bool
    heals: bool = False
    finalists: int | None = None
    race: bool = True
    requires: tuple[Requirement, ...] = ()

    @property
    def limits(self) -> tuple[Requirement, ...]:
        """What is required of sizes, which no plan that is asked for is beyond."""
        return tuple(one for one in self.requires if OBJECTIVES[one.name].by == "headers")

    @property
    def conditions(self) -> tuple[Requirement, ...]:
        """What is required of scores and times, which the best plans are judged by in the end."""
        return tuple(one for one in self.requires if OBJECTIVES[one.name].by != "headers")

    @property
    def texts(self) -> tuple[object, ...]:
        """The file that each objective is measured on; its number where it names none."""
        return tuple(o.arguments.get("file", n) for n, o in enumerate(self.objectives))

    def record(self) -> dict[str, Any]:
        """What is written down of it."""
        words = tuple(escaped_control(objective_words(one)) for one in self.objectives)
        return {
            "objectives": words,
            "fidelity": None if self.fidelity is None else "{}..{}".format(*self.fidelity),
            "trials": self.trials,
            "seed": self.seed,
            "strategy": self.strategy,
            "bridge": self.bridge,
            "prefer": None if self.prefer is None else words[self.prefer],
            "compare_random": self.compare_random,
            "heals": self.heals,
            "finalists": self.finalists,
            "race": self.race,
            "requires": tuple(escaped_control(requirement_words(one)) for one in self.requires),
        }


def settings(plan: Plan, flags: Flags) -> Settings:
    """The flags over the block. Raises WishError or PlanError for what can't be searched."""
    if open_choices(plan) == 0:
        raise WishError("the plan leaves nothing open, so there is nothing to search")
    block = plan.search or Search()
    objectives, directed, folder = _objectives(plan, block, flags.objectives)
    if all(OBJECTIVES[one.name].by != "samples" for one in objectives):
        message = "no objective says how good a plan is: the smallest one would be the best"
        raise WishError(f"{message}; give --objective 'nll(\"text.txt\")' too")
    if _of_several_sizes(plan) and not any(_is_size(one) for one in objectives):
        objectives, directed = (*objectives, SIZE), (*directed, True)
    if flags.bridge is not None and not plan.bridges:
        raise WishError("--bridge says when trials are bridged, and the plan has no bridge")
    trials = flags.trials or block.trials or TRIALS
    bridge = (flags.bridge or BRIDGE) if plan.bridges else None
    heals = plan.may_be_healed
    if flags.finalists is not None:
        _refuse_finalists(flags.finalists, trials, final=heals or bridge == BRIDGE)
    return Settings(
        objectives=objectives,
        directed=directed,
        folder=folder,
        fidelity=flags.fidelity or block.fidelity,
        trials=trials,
        seed=flags.seed if flags.seed is not None else block.seed or 0,
        strategy=_strategy(flags.strategy or next(iter(STRATEGIES))),
        bridge=bridge,
        prefer=None if flags.prefer is None else _preferred(flags.prefer, objectives),
        compare_random=flags.compare_random,
        heals=heals,
        finalists=flags.finalists,
        race=flags.race,
        requires=block.requires,
    )


def wants_size_too(plan: Plan, flags: Flags, chosen: Settings) -> bool:
    """Whether the size is an objective only because plans are of several sizes."""
    asked = flags.objectives or (() if plan.search is None else plan.search.objectives)
    return len(chosen.objectives) > len(asked)


SIZE = Objective(direction="minimize", name="parameters")
"""What a search wants too whose plan says how many layers leave, at least and at most."""


def _of_several_sizes(plan: Plan) -> bool:
    return any(isinstance(one.count, CountRange) for _, one in drops_by_choice(plan))


def _is_size(objective: Objective) -> bool:
    return OBJECTIVES[objective.name].by == "headers"


def _refuse_finalists(wanted: int, trials: int, *, final: bool) -> None:
    """Each finalist is evaluated twice, so that at most half of the budget can be finalists."""
    if not final:
        message = "--finalists says how many of the best are bridged or healed in the end"
        raise WishError(f"{message}, and none are: the plan has neither 'bridge' nor 'heal'")
    if not 1 <= wanted <= (most := max(trials // 2, 1)):
        message = f"of {trials} trials 1 to {most} can be finalists, not {wanted}"
        raise WishError(f"{message}: each is evaluated twice")


def _objectives(
    plan: Plan, block: Search, texts: Sequence[str]
) -> tuple[tuple[Objective, ...], tuple[bool, ...], Path]:
    if not texts:
        if not block.objectives:
            message = "nothing says what to search for"
            raise WishError(f"{message}: give --objective 'nll(\"text.txt\")', or a search block")
        folder = plan.origin.folder if plan.origin else Path()
        return block.objectives, (True,) * len(block.objectives), folder
    found: list[tuple[Objective, bool]] = []
    faults: list[Fault] = []
    for text in texts:
        try:
            found.append(read_objective(text, plan.models, name="--objective"))
        except PlanError as error:
            faults += error.faults
    if faults:
        raise PlanError(faults)
    objectives = tuple(objective for objective, _ in found)
    plain = [*map(with_plain_path, objectives)]
    for number, one in enumerate(objectives):
        if plain[number] in plain[:number]:
            raise WishError(f"the objective {measure_words(one)} is given twice")
    return objectives, tuple(directed for _, directed in found), Path()


def _strategy(name: str) -> str:
    if name not in STRATEGIES:
        help_ = nearest(name, STRATEGIES) or f"there are {listed(STRATEGIES)}"
        raise WishError(f"there is no strategy '{name}'; {help_}")
    return name


def _preferred(said: str, objectives: Sequence[Objective]) -> int:
    """The number of an objective by its number from 1, its words, or its name if one has it."""
    if said.isdecimal():
        if 1 <= int(said) <= len(objectives):
            return int(said) - 1
    else:
        for names in ([measure_words(o) for o in objectives], [o.name for o in objectives]):
            if names.count(said) == 1:
                return names.index(said)
    known = "; ".join(f"{n} {measure_words(one)}" for n, one in enumerate(objectives, start=1))
    raise WishError(f"--prefer '{said}' names none of the objectives, or several: {known}")
