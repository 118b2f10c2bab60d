"""SMAC3 over a pruning space, asked and told in lines of JSON: run it by a Python that has SMAC.

It reads one line that says the space (`layers`, `models`, `drops`, `seed`, `trials`), then lines of
`{"tell": {"drop": [...], "has": [[...]], "scale": [...]}, "value": 3.1}` and `{"ask": true}`, and
answers an ask with a plan in the same form. As in the paper's code, a layer that leaves is a number
for each of the drops. That no two are equal takes a forbidden clause for each two and each layer
(`"forbid": true`: to measure what it takes to build that); else a number that is taken moves to
the next layer that is free.
"""

import json
import sys
import time
from typing import Any

from ConfigSpace import (
    Categorical,
    Configuration,
    ConfigurationSpace,
    Float,
    ForbiddenAndConjunction,
    ForbiddenEqualsClause,
    Integer,
)
from smac import HyperparameterOptimizationFacade, Scenario
from smac.runhistory import TrialInfo, TrialValue


def main() -> None:
    """Answer until the input ends."""
    given = json.loads(sys.stdin.readline())
    start = time.perf_counter()
    space = space_of(given)
    reply({"seconds": time.perf_counter() - start})
    if given.get("forbid"):
        return
    optimiser = optimiser_of(space, given)
    for line in sys.stdin:
        said = json.loads(line)
        if "ask" in said:
            reply(plan_of(optimiser.ask().config, given))
        else:
            config = config_of(space, said["tell"], given)
            optimiser.tell(TrialInfo(config, seed=0), TrialValue(cost=said["value"]))


def space_of(given: dict[str, Any]) -> ConfigurationSpace:
    """Numbers of layers to drop, members of each layer's subset, scales."""
    layers, models, drops = given["layers"], given["models"], given["drops"]
    space = ConfigurationSpace(seed=given["seed"])
    gone = [Integer(f"drop_{i}", (0, layers - 1), default=i) for i in range(drops)]
    has = [
        Categorical(f"has_{layer}_{model}", [0, 1], default=0)
        for layer in range(layers)
        for model in range(models)
    ]
    scales = [Float(f"scale_{layer}", (0.0, 1.0), default=0.5) for layer in range(layers)]
    space.add([*gone, *has, *scales])
    if given.get("forbid"):
        space.add(
            [
                ForbiddenAndConjunction(
                    ForbiddenEqualsClause(one, layer), ForbiddenEqualsClause(other, layer)
                )
                for i, one in enumerate(gone)
                for other in gone[:i]
                for layer in range(layers)
            ]
        )
    return space


def optimiser_of(
    space: ConfigurationSpace, given: dict[str, Any]
) -> HyperparameterOptimizationFacade:
    """SMAC with its random forest, without a design of its own: the starting plans are told."""
    scenario = Scenario(
        space,
        deterministic=True,
        n_trials=given["trials"],
        seed=given["seed"],
        output_directory=given["folder"],
    )
    return HyperparameterOptimizationFacade(
        scenario,
        lambda config, seed=0: 0.0,
        initial_design=HyperparameterOptimizationFacade.get_initial_design(scenario, n_configs=0),
        overwrite=True,
        logging_level=False,
    )


def config_of(
    space: ConfigurationSpace, plan: dict[str, Any], given: dict[str, Any]
) -> Configuration:
    """A plan as SMAC knows it."""
    values: dict[str, Any] = {f"drop_{i}": layer for i, layer in enumerate(plan["drop"])}
    for layer, (chosen, scale) in enumerate(zip(plan["has"], plan["scale"], strict=True)):
        values |= {f"has_{layer}_{model}": int(one) for model, one in enumerate(chosen)}
        values[f"scale_{layer}"] = float(scale)
    return Configuration(space, values=values)


def plan_of(config: Configuration, given: dict[str, Any]) -> dict[str, Any]:
    """What it asks for, no layer dropped twice."""
    values, layers = dict(config), given["layers"]
    gone: list[int] = []
    for i in range(given["drops"]):
        layer = int(values[f"drop_{i}"])
        while layer in gone:
            layer = (layer + 1) % layers
        gone.append(layer)
    return {
        "drop": sorted(gone),
        "has": [
            [int(values[f"has_{layer}_{model}"]) for model in range(given["models"])]
            for layer in range(layers)
        ],
        "scale": [float(values[f"scale_{layer}"]) for layer in range(layers)],
    }


def reply(answer: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
