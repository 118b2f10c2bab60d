"""The effects of dropping, keeping and changing each layer on the losses of plans."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np
from jaxtyping import Bool, Float

from gptailor.plan.optional_packages import missing_package
from gptailor.plan.resolved import Resolved, Slot, own
from gptailor.plugins.report.effects import Effects, LayerEffect, LayerState, WindowLoss
from gptailor.searching.run.asking import TOLD, by_spread
from gptailor.searching.run.incumbent import expected_losses
from gptailor.searching.run.trials import RANDOM, SEARCH, STARTS, Ledger, Trial
from gptailor.searching.run_reading import RunReading
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.hash_random import key_of, keys_of
from gptailor.searching.space.space import Space, with_gap_errors
from gptailor.searching.space.table import sample

_STATES: tuple[LayerState, ...] = get_args(LayerState)
_DRAWS = 64
"""Draws of the surrogate's coefficients."""
_PLANS = 128
"""Plans of the space over which its effects are averaged."""
_LEARNING = "surrogate"
"""The strategy with a model of the layers' effects."""


def run_effects(reading: RunReading) -> Effects:
    """Return the effects of layers in a search's trials; to fit the surrogate takes seconds."""
    ledger, space = reading.ledger, reading.space
    losses = {t.number: loss.value for t in ledger.trials if (loss := ledger.loss(t)) is not None}
    layer_lists = {digest: layer_states(plan.slots) for digest, plan in reading.plans.items()}
    states = {digest: row for digest, row in layer_lists.items() if row is not None}
    full_trials = [
        t
        for t in ledger.of(STARTS, RANDOM, SEARCH)
        if t.full and t.same_as is None and t.number in losses
    ]
    learned, missing = _learned(reading)
    return Effects(
        windows=window_losses(space, full_trials, losses),
        seen=_effects(full_trials, states, losses),
        learned=learned,
        missing=missing,
    )


def _effects(
    trials: Sequence[Trial],
    states: Mapping[str, list[LayerState]],
    losses: Mapping[int, float],
) -> list[LayerEffect]:
    """Return layer effects over plans, each once, on all samples and before it is repaired."""
    shown = [trial for trial in trials if trial.plan in states]
    return seen_effects([states[t.plan] for t in shown], [losses[t.number] for t in shown])


def _learned(reading: RunReading) -> tuple[list[LayerEffect], list[str]]:
    """Return the effects by the surrogate, and the reason why they are missing, if there is one."""
    strategy, space = reading.record.strategy, reading.space
    if not reading.ledger.trials:
        return [], []
    if strategy != _LEARNING:
        return [], [
            f"The search's strategy was {strategy}, which has no model of the layers:"
            " effects are computed from the trials alone."
        ]
    measured = reading.study.typed.measured.found
    prior = (measured.influence or {}).get("base")
    if prior is not None and len(prior) != space.layers:
        prior = None
    if measured.gaps is not None and len(measured.gaps) == space.layers:
        space = with_gap_errors(space, measured.gaps)
    try:
        return learned_effects(space, reading.ledger, prior), []
    except ImportError as error:
        why = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
        return [], [f"What the surrogate learned isn't shown: {why or error}."]


def layer_states(slots: Sequence[Slot]) -> list[LayerState] | None:
    """Return each layer's state; None for a stack, because its items have no positions."""
    states: list[LayerState] = []
    for number, slot in enumerate(slots):
        if slot.position is None:
            return None
        if slot.dropped == "yes":
            states.append("dropped")
        else:
            itself = all(recipe.recipe == own(number) for recipe in slot.recipes.values())
            states.append("kept" if itself else "changed")
    return states


def seen_effects(
    states: Sequence[Sequence[LayerState]], losses: Sequence[float]
) -> list[LayerEffect]:
    """Return the effects of layers' states on losses: differences of means, with errors.

    An effect needs two plans with the state and two without it.
    """
    values = np.array(losses, float)[:, None]
    return [
        LayerEffect(layer, state, float(mean[0]), _welch(values[:, 0], with_it), *counts)
        for layer, state, with_it, mean, counts in _contrasts(states, values)
        if min(counts) > 1
    ]


def _contrasts(
    states: Sequence[Sequence[LayerState]], values: Float[np.ndarray, "n d"]
) -> Iterable[
    tuple[int, LayerState, Bool[np.ndarray, " n"], Float[np.ndarray, " d"], tuple[int, int]]
]:
    """Yield each layer and state with its mask, difference of means and counts.

    A state of all plans, or of no plan, is left out: it isn't a choice.
    """
    table = np.array([list(row) for row in states])
    for layer in range(table.shape[1] if len(table) else 0):
        for state in _STATES:
            with_it = table[:, layer] == state
            count = int(with_it.sum())
            if 0 < count < len(with_it):
                mean = values[with_it].mean(axis=0) - values[~with_it].mean(axis=0)
                yield layer, state, with_it, mean, (count, len(with_it) - count)


def _welch(values: Float[np.ndarray, " n"], with_it: Bool[np.ndarray, " n"]) -> float:
    """Return the standard error of the difference of two means with different spreads."""
    sides = values[with_it], values[~with_it]
    return math.sqrt(sum(float(side.var(ddof=1)) / len(side) for side in sides))


def learned_effects(
    space: Space, ledger: Ledger, prior: Sequence[float] | None
) -> list[LayerEffect]:
    """Return effects by the surrogate, fitted again on its trials, over plans of the space.

    Losses are in deviations of its targets, which are logarithmic far behind the best. The error
    is the deviation of its posterior. Raises ImportError without JAX.
    """
    from gptailor.searching.strategies.posterior import draw, sharing  # imports JAX
    from gptailor.searching.strategies.strategy import Archive, scalarise
    from gptailor.searching.strategies.surrogate import described, drawn_scores, observations

    trials = [trial for trial in ledger.trials if trial.request.phase in TOLD]
    if not trials:  # recipes alone were evaluated so far
        return []
    genomes = [trial.request.genome for trial in trials]
    population = Genome(*(np.stack(genes) for genes in zip(*genomes, strict=True)))
    losses = expected_losses(ledger, trials)
    deciding = list(ledger.deciding)
    weights = by_spread(np.full(len(deciding), 1 / len(deciding)), losses[:, deciding])
    shares = np.array([t.request.samples / ledger.full for t in trials], np.float32)
    drawing, planning = keys_of(key_of(0), 2)
    drawn = sample(space.table, planning, _PLANS)
    influence = None if prior is None else np.array(prior, float)
    archive = Archive(population, losses[:, deciding], shares, len(shares))
    fitness = scalarise(losses[:, deciding], weights)
    observed = observations(space.table, archive, described(space.table, population), fitness)
    by = draw(observed, sharing(space.table, influence), np.ones(_DRAWS), drawing)
    values = drawn_scores(space.table, described(space.table, drawn), by)
    rows = (Genome(*genes) for genes in zip(*drawn, strict=True))
    states = [layer_states(Resolved(decode(space, row), space.layers).slots) for row in rows]
    complete = [row for row in states if row is not None]
    if len(complete) < len(states):
        return []
    return [
        LayerEffect(layer, state, float(mean.mean()), float(mean.std(ddof=1)), *counts)
        for layer, state, _, mean, counts in _contrasts(complete, values)
    ]


def window_losses(
    space: Space, trials: Sequence[Trial], losses: Mapping[int, float]
) -> list[WindowLoss]:
    """Return the plans' losses by the window that their first `drop window` takes."""
    if not space.plan.windows:
        return []
    [pick] = space.index["windows", 0]
    options = [option for option in space.picks[pick].options if isinstance(option, tuple)]
    maybe = space.index["windows", 0, "maybe"][0] if space.plan.windows[0].maybe else -1
    by_window: dict[tuple[int, int], list[float]] = {}
    for trial in trials:
        genome = trial.request.genome
        if trial.number in losses and (maybe < 0 or genome.bits[maybe]):
            first, last = options[int(genome.picks[pick])]
            by_window.setdefault((int(first), int(last)), []).append(losses[trial.number])
    return [
        WindowLoss(*window, math.fsum(of) / len(of), min(of), len(of))
        for window, of in sorted(by_window.items())
    ]
