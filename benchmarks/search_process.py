"""Run SMAC3 or HEBO over flat parameters, with requests and answers as lines of JSON.

    PYTHON benchmarks/search_process.py SMAC3       # a Python with the package

The first line describes the search (`parameters`, `seed`, `trials`, `folder`). Further lines are
`{"tell": {"s0_0": 4, "r0": 0.3}, "value": 3.1}` or `{"ask": true}`. The answer to an ask has values
in the same form. With `"forbid": true` SMAC3 only builds its space, with a forbidden clause for
each two parameters of a set and each value, to measure the time.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

BATCH = 8
"""Plans of one suggestion by HEBO; a single plan takes as long."""


class Optimiser(Protocol):
    """An optimiser of flat parameters."""

    def ask(self) -> dict[str, Any]:
        """Return values to try."""

    def tell(self, values: dict[str, Any], value: float) -> None:
        """Tell what values are worth; less is better."""


class Smac:
    """SMAC3 with its random forest; starting plans replace its initial design."""

    def __init__(self, given: dict[str, Any]) -> None:
        from smac import HyperparameterOptimizationFacade as Facade
        from smac import Scenario

        self.space = smac_space(given)
        scenario = Scenario(
            self.space,
            deterministic=True,
            n_trials=given["trials"],
            seed=given["seed"],
            output_directory=given["folder"],
        )
        self.optimiser = Facade(
            scenario,
            lambda config, seed=0: 0.0,
            initial_design=Facade.get_initial_design(scenario, n_configs=0),
            overwrite=True,
            logging_level=False,
        )

    def ask(self) -> dict[str, Any]:
        """Return values to try."""
        return dict(self.optimiser.ask().config)

    def tell(self, values: dict[str, Any], value: float) -> None:
        """Tell what values are worth."""
        from ConfigSpace import Configuration
        from smac.runhistory import TrialInfo, TrialValue

        config = Configuration(self.space, values=values)
        self.optimiser.tell(TrialInfo(config, seed=0), TrialValue(cost=value))


def smac_space(given: dict[str, Any]) -> Any:
    """Return the space of the parameters."""
    from ConfigSpace import (
        Categorical,
        ConfigurationSpace,
        Float,
        ForbiddenAndConjunction,
        ForbiddenEqualsClause,
        Integer,
    )

    makers = {
        "real": lambda name, count: Float(name, (0.0, 1.0)),
        "whole": lambda name, count: Integer(name, (0, count - 1)),
        "category": lambda name, count: Categorical(name, list(range(count))),
    }
    space = ConfigurationSpace(seed=given["seed"])
    described = given["parameters"]
    made = [makers[one["kind"]](one["name"], one["count"]) for one in described]
    space.add(made)
    if given.get("forbid"):
        pairs = [
            (made[i], made[j], one["count"])
            for i, one in enumerate(described)
            for j, other in enumerate(described[:i])
            if one["set"] == other["set"] >= 0
        ]
        space.add(
            [
                ForbiddenAndConjunction(
                    ForbiddenEqualsClause(first, value), ForbiddenEqualsClause(second, value)
                )
                for first, second, count in pairs
                for value in range(count)
            ]
        )
    return space


class Hebo:
    """HEBO, which suggests a batch of plans at a time."""

    def __init__(self, given: dict[str, Any]) -> None:
        warnings.filterwarnings("ignore")
        import numpy
        import torch
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO

        numpy.random.seed(given["seed"])  # noqa: NPY002 (HEBO draws from it)
        torch.manual_seed(given["seed"])
        kinds = {
            "real": lambda count: {"type": "num", "lb": 0.0, "ub": 1.0},
            "whole": lambda count: {"type": "int", "lb": 0, "ub": count - 1},
            "category": lambda count: {"type": "cat", "categories": list(range(count))},
        }
        space = DesignSpace().parse(
            [{"name": one["name"], **kinds[one["kind"]](one["count"])}
             for one in given["parameters"]]
        )  # fmt: skip
        self.optimiser = HEBO(space, rand_sample=0)
        self.suggested: list[dict[str, Any]] = []

    def ask(self) -> dict[str, Any]:
        """Return values to try."""
        if not self.suggested:
            self.suggested = self.optimiser.suggest(BATCH).to_dict("records")
        return self.suggested.pop(0)

    def tell(self, values: dict[str, Any], value: float) -> None:
        """Tell what values are worth."""
        import numpy
        import pandas

        self.optimiser.observe(pandas.DataFrame([values]), numpy.array([[value]]))


OPTIMISERS: dict[str, Callable[[dict[str, Any]], Optimiser]] = {"SMAC3": Smac, "HEBO": Hebo}


def main() -> None:
    """Answer until the input ends."""
    given = json.loads(sys.stdin.readline())
    start = time.perf_counter()
    if given.get("forbid"):
        smac_space(given)
    optimiser = None if given.get("forbid") else OPTIMISERS[sys.argv[1]](given)
    reply({"seconds": time.perf_counter() - start})
    if optimiser is None:
        return
    for line in sys.stdin:
        said = json.loads(line)
        if "ask" in said:
            reply({name: value.item() if hasattr(value, "item") else value
                   for name, value in optimiser.ask().items()})  # fmt: skip
        else:
            optimiser.tell(said["tell"], said["value"])


def reply(answer: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
