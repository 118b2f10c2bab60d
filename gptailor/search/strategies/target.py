"""Fitness as a model should see it: without heavy tails, finest near the best."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

WORST = 4.0
"""Where targets end: a cut that ruins a model is no more than very bad."""


def targets(
    found: Float[Array, " n"], fidelity: Float[Array, " n"], there: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Fitness with mean 0 and deviation 1 over what was told; 0 where nothing was.

    What is far behind the best counts by its logarithm, in units of the distance from the best to
    the better half's median. A failure counts as the worst.
    """
    valid = there & jnp.isfinite(found)
    best = jnp.min(jnp.where(valid, found, jnp.inf))
    behind = jnp.where(valid, found - best, jnp.nan)
    unit = jnp.nanquantile(behind, 0.5)
    behind = jnp.log1p(behind / jnp.maximum(jnp.nan_to_num(unit), 1e-9))
    worst = jnp.nan_to_num(jnp.nanmax(behind))
    behind = jnp.where(valid, behind, worst)
    many = jnp.maximum(jnp.sum(there), 1)
    mean = jnp.sum(jnp.where(there, behind, 0.0)) / many
    spread = jnp.sqrt(jnp.sum(jnp.where(there, (behind - mean) ** 2, 0.0)) / many)
    scaled = (behind - mean) / jnp.maximum(spread, 1e-6)
    return jnp.where(there, jnp.clip(scaled, -WORST, WORST), 0.0)
