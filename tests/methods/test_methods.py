"""Each method against its formula over whole tensors in float64, and on its degenerate cases."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptailor.methods import KERNELS
from gptailor.methods.arithmetic import (
    Chunk,
    Inputs,
    draw_key,
    kept_entries,
    magnitude,
    thresholds,
)
from gptailor.methods.arrays import Array
from gptailor.methods.rounding import NotFiniteFault, OverflowFault
from gptailor.methods.slerp import slerp_coefficients
from gptailor.methods.sums import gram_of
from gptailor.plan.faults import TailorError
from gptailor.plan.registry import METHODS
from gptailor.program.program import Arguments
from tests.support.merging import merge_tensors
from tests.support.thorough import drawn

PLACE = "model.layers.3.mlp.up_proj.weight"
NAMES = ("math", "code", "chat", "law")
SHAPE = (24, 31)
Formula = Callable[[np.ndarray, list[np.ndarray], dict], np.ndarray]


def complete(method: str, count: int, **given: object) -> Arguments:
    """The arguments as the compiler writes them: defaults filled in, one number for each source."""
    arguments = []
    for parameter in METHODS[method].parameters:
        value = given.get(parameter.name, parameter.default)
        if isinstance(value, str):
            arguments.append((parameter.name, value))
            continue
        if (parameter.variadic or parameter.each) and not isinstance(value, tuple):
            value = (1.0 / count if value is None else float(value),) * count
        arguments.append((parameter.name, value if isinstance(value, tuple) else float(value)))
    return tuple(arguments)


def merge(method: str, base: Tensor, sources: Sequence[Tensor], **given: object) -> Tensor:
    arguments = complete(method, len(sources), **given)
    return merge_tensors(method, arguments, base, sources, NAMES[: len(sources)], PLACE)


def tensors(count: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> list[Tensor]:
    """A base, and sources near it, as fine-tuned models are."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=rng)
    return [base, *(base + 0.3 * torch.randn(shape, generator=rng) for _ in range(count))]


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, negative zeros and all."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


# ------------------------------------------------------------------- the formulas, written naively


def naive_linear(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    return sum(w * s for w, s in zip(shares(given), sources, strict=True))


def shares(given: dict) -> list[float]:
    """The weights, over their sum where they are normalised."""
    total = sum(given["weight"]) if given["normalize"] == "yes" else 1
    return [w / total for w in given["weight"]]


def naive_slerp(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    a, b = sources
    u, v = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    t = given["t"]
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def naive_task_arithmetic(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    return base + sum(w * (s - base) for w, s in zip(shares(given), sources, strict=True))


def naive_ties(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    kept = []
    for source, density in zip(sources, given["density"], strict=True):
        vector = (source - base).astype(np.float32).astype(float)
        least = np.sort(np.abs(vector))[::-1][max(1, round(density * len(vector))) - 1]
        kept.append(np.where(np.abs(vector) >= least, vector, 0))
    return base + given["scale"] * agreeing(kept, given)


def agreeing(vectors: list[np.ndarray], given: dict, later: np.ndarray | None = None) -> np.ndarray:
    """Σ w τ of those that have the sign of the sum of all, ÷ Σ w of these if that is wanted.

    Weights that come `later` count for the mean, not for the sign.
    """
    stack = np.stack([w * v for w, v in zip(given["weight"], vectors, strict=True)])
    agrees = (np.sign(stack) == np.sign(stack.sum(0))) & (stack != 0)
    if later is not None:
        weights = (later[:, None] * agrees).sum(0)
        return (later[:, None] * stack * agrees).sum(0) / np.where(weights == 0, 1, weights)
    total = (stack * agrees).sum(0)
    if given["normalize"] == "no":
        return total
    weights = (np.array(given["weight"])[:, None] * agrees).sum(0)
    return total / np.where(weights == 0, 1, weights)


def naive_dare(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    kept = dropped(base, sources, given)
    return base + given["scale"] * sum(w * v for w, v in zip(shares(given), kept, strict=True))


def naive_dare_ties(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    return base + given["scale"] * agreeing(dropped(base, sources, given), given)


def dropped(
    base: np.ndarray,
    sources: list[np.ndarray],
    given: dict,
    likely: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Task vectors, entries dropped by draws and the others rescaled."""
    results = []
    for i, (name, source) in enumerate(zip(NAMES, sources, strict=False)):
        vector = (source - base).astype(np.float32).astype(float)
        share = np.full(len(vector), given["density"][i])
        if likely is not None and given["density"][i] < 1:
            share = likely(i, vector)
        key = draw_key(int(given["seed"]), PLACE, name)
        keep = np.array([splitmix(key, k) for k in range(len(base))]) < share
        left = np.where(keep, vector, 0)
        if given["rescale"] == "density":
            left = left / share
        elif given["rescale"] == "l1" and np.abs(left).sum():
            left = left * np.abs(vector).sum() / np.abs(left).sum()
        results.append(left)
    return results


def ranked(base: np.ndarray, sources: list[np.ndarray], given: dict) -> list[np.ndarray]:
    def likely(i: int, vector: np.ndarray) -> np.ndarray:
        rows = np.abs(vector).reshape(SHAPE)
        ranks = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1, kind="stable")
        density, epsilon = given["density"][i], given["epsilon"][i]
        return (density - epsilon + 2 * epsilon * ranks / (SHAPE[1] - 1)).reshape(-1)

    return dropped(base, sources, given, likely)


def naive_della_linear(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    kept = ranked(base, sources, given)
    return base + given["scale"] * sum(w * v for w, v in zip(shares(given), kept, strict=True))


def naive_della(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    return base + given["scale"] * agreeing(ranked(base, sources, given), given)


def splitmix(key: int, number: int) -> float:
    """A draw in [0, 1) with Python's whole numbers."""
    mask = 2**64 - 1
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) / 2**53


def naive_breadcrumbs(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    kept = crumbs(base, sources, given)
    return base + given["scale"] * sum(w * v for w, v in zip(shares(given), kept, strict=True))


def naive_breadcrumbs_ties(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    return base + given["scale"] * agreeing(crumbs(base, sources, given), given)


def crumbs(base: np.ndarray, sources: list[np.ndarray], given: dict) -> list[np.ndarray]:
    results = []
    for source, density, gamma in zip(sources, given["density"], given["gamma"], strict=True):
        vector = (source - base).astype(np.float32).astype(float)
        kept = max(1, round(density * len(vector)))
        above = min(round(gamma * len(vector)), len(vector) - kept)
        order = np.sort(np.abs(vector))[::-1][above : above + kept]
        inside = (np.abs(vector) <= order[0]) & (np.abs(vector) >= order[-1])
        results.append(np.where(inside, vector, 0))
    return results


def naive_sce(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    stack = np.stack([s - base for s in sources])
    variance = stack.var(axis=0)
    least = np.sort(variance)[::-1][max(1, round(given["density"] * (variance > 0).sum())) - 1]
    stack = stack * (variance >= least)
    weights = (stack**2).mean(axis=1)
    if weights.sum() < given["floor"]:
        weights = np.ones(len(weights))
    return base + agreeing(list(stack), {"weight": [1.0] * len(sources), "normalize": "no"},
                           weights / weights.sum())  # fmt: skip


def naive_ram(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    stack = np.stack([s - base for s in sources]).astype(np.float32).astype(float)
    active = np.abs(stack) > np.float32(given["epsilon"])
    count = active.sum(0)
    factors = np.ones(len(sources))
    if "r" in given:
        shared, alone = (active & (count > 1)).sum(1), (active & (count == 1)).sum(1)
        factors = 1 + given["r"] * np.minimum(shared / alone, given["alpha"])
    alone_or_mean = np.where(count == 1, factors[:, None], 1 / np.maximum(1, count))
    return base + (stack * active * alone_or_mean).sum(0)


naive_ram_plus = naive_ram


def naive_nearswap(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    a, b = sources
    w = np.clip(given["t"] / np.maximum(np.abs(a - b), 1e-6), 0, 1)
    return w * b + (1 - w) * a


def naive_arcee_fusion(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    a, b = (s.reshape(SHAPE) for s in sources)
    p, q = (np.exp(x - x.max(1, keepdims=True)) for x in (b, a))
    p, q = (x / x.sum(1, keepdims=True) + 1e-8 for x in (p, q))
    importance = np.abs(b - a) * (p * np.log(p / q)).sum(1, keepdims=True)
    order = np.sort(importance.reshape(-1))
    first, median, third = (order[int(part * (len(order) - 1))] for part in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (third - first), b, a).reshape(-1)


def naive_multislerp(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    origin = base if given["of"] == "task_vectors" else np.zeros_like(base)
    vectors, weights = [s - origin for s in sources], shares(given)
    norms = [np.linalg.norm(v) for v in vectors]
    units = [v / n for v, n in zip(vectors, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean /= np.linalg.norm(mean)
    step = sum(w * (u - (u @ mean) * mean) for w, u in zip(weights, units, strict=True))
    length = np.linalg.norm(step)
    on_arc = mean * np.cos(length) + step * np.sinc(length / np.pi)
    return origin + on_arc * sum(w * n for w, n in zip(weights, norms, strict=True))


def naive_nuslerp(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    origin = base if given["of"] == "task_vectors" else np.zeros_like(base)
    a, b = ((s - origin).reshape(SHAPE) for s in sources)
    if given["by"] == "tensor":
        a, b = a.reshape(1, -1), b.reshape(1, -1)
    axis = 0 if given["by"] == "column" else 1
    norms = [np.linalg.norm(v, axis=axis, keepdims=True) for v in (a, b)]
    angle = np.arccos((a * b).sum(axis, keepdims=True) / norms[0] / norms[1])
    t = given["weight"][1] / sum(given["weight"])
    merged = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return origin + merged.reshape(-1)


def naive_model_stock(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    rows = SHAPE if given["by"] == "row" else (1, -1)
    vectors = [(s - base).reshape(rows) for s in sources]
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    count = len(units)
    pairs = [(units[i] * units[j]).sum(1) for i in range(count) for j in range(i)]
    cosine = np.mean(pairs, axis=0)
    t = np.clip(count * cosine / (1 + (count - 1) * cosine), 0, 1)[:, None]
    mean, own = np.mean(sources, axis=0).reshape(rows), base.reshape(rows)
    return (t * mean + (1 - t) * own).reshape(-1)


def naive_karcher(base: np.ndarray, sources: list[np.ndarray], given: dict) -> np.ndarray:
    units = [s / np.linalg.norm(s) for s in sources]
    mean = np.sum(units, axis=0)
    mean /= np.linalg.norm(mean)
    for _ in range(500):
        step = np.zeros_like(mean)
        for unit in units:
            across = unit - (unit @ mean) * mean
            if (sine := np.linalg.norm(across)) > 0:
                step += np.arctan2(sine, unit @ mean) * across / sine / len(units)
        length = np.linalg.norm(step)
        if length < 1e-14:
            break
        mean = np.cos(length) * mean + np.sin(length) * step / length
    return mean / np.linalg.norm(mean) * np.mean([np.linalg.norm(s) for s in sources])


NAIVE: dict[str, Formula] = {
    name.removeprefix("naive_"): value
    for name, value in globals().items()
    if name.startswith("naive_")
}
CASES = [
    ("linear", 2, {}),
    ("linear", 3, {"weight": (0.5, -0.2, 1.1)}),
    ("slerp", 2, {"t": 0.5}),
    ("slerp", 2, {"t": 0.17}),
    ("task_arithmetic", 1, {"weight": 0.4}),
    ("task_arithmetic", 3, {"weight": (0.4, -0.3, 1.0)}),
    ("ties", 1, {"density": 0.3}),
    ("ties", 3, {"density": 0.2, "scale": 0.7}),
    ("ties", 4, {"density": 1.0}),
    ("ties", 3, {"density": (0.2, 1.0, 0.6), "weight": (1.0, 0.3, 0.0)}),
    ("ties", 2, {"weight": (0.7, -0.3), "normalize": "no", "scale": 0.5}),
    ("dare", 2, {"density": 0.3, "scale": 1.5, "seed": 7}),
    ("dare", 1, {"density": 0.9}),
    ("breadcrumbs", 1, {"density": 0.5, "gamma": 0.2}),
    ("breadcrumbs", 3, {"density": 0.8, "gamma": 0.05, "scale": 0.6}),
    ("breadcrumbs", 2, {}),
    ("model_stock", 2, {}),
    ("model_stock", 4, {}),
    ("karcher", 2, {}),
    ("karcher", 4, {}),
    ("linear", 3, {"weight": (0.5, -0.2, 1.1), "normalize": "yes"}),
    ("task_arithmetic", 2, {"weight": (0.4, 0.8), "normalize": "yes"}),
    ("dare", 2, {"weight": (0.4, 0.8), "density": (0.3, 0.7), "rescale": "l1"}),
    ("dare", 2, {"normalize": "yes", "rescale": "no"}),
    ("dare_ties", 3, {"weight": (0.4, 0.8, 1.2), "density": (0.3, 0.7, 1.0), "seed": 3}),
    ("dare_ties", 2, {"rescale": "l1", "normalize": "yes", "scale": 0.8}),
    ("breadcrumbs", 2, {"weight": (0.5, 1.5), "density": (0.7, 0.4), "gamma": (0.1, 0.02)}),
    ("breadcrumbs_ties", 3, {"weight": (0.5, 1.5, 1.0), "density": 0.6, "normalize": "yes"}),
    ("breadcrumbs_ties", 2, {"scale": 0.5}),
    ("della_linear", 2, {"density": (0.4, 0.6), "epsilon": (0.1, 0.3), "weight": (0.5, 1.5)}),
    ("della_linear", 2, {"rescale": "l1", "normalize": "yes", "seed": 5}),
    ("della", 3, {"density": (0.4, 0.6, 1.0), "rescale": "no"}),
    ("della", 2, {"weight": (0.5, 1.5), "rescale": "l1", "scale": 0.9, "normalize": "no"}),
    ("sce", 3, {}),
    ("sce", 2, {"density": 0.3}),
    ("sce", 4, {"density": 0.7, "floor": 1.0}),
    ("ram", 3, {"epsilon": 0.25}),
    ("ram_plus", 3, {"epsilon": 0.25, "r": 0.5, "alpha": 0.9}),
    ("ram_plus", 2, {"epsilon": 0.3}),
    ("model_stock", 3, {"by": "row"}),
    ("nuslerp", 2, {"weight": (0.3, 0.6)}),
    ("nuslerp", 2, {"weight": (0.3, 0.6), "by": "row", "of": "task_vectors"}),
    ("nuslerp", 2, {"weight": (1.0, 0.2), "by": "column"}),
    ("multislerp", 3, {"weight": (0.3, 0.6, 0.4)}),
    ("multislerp", 2, {"weight": (0.3, 0.6), "normalize": "no", "of": "task_vectors"}),
    ("nearswap", 2, {"t": 0.1}),
    ("arcee_fusion", 2, {}),
]


def expected(method: str, base: Tensor, sources: Sequence[Tensor], given: dict) -> np.ndarray:
    arguments = dict(complete(method, len(sources), **given))
    flat = [tensor.double().numpy().reshape(-1) for tensor in (base, *sources)]
    return NAIVE[method](flat[0], flat[1:], arguments).reshape(base.shape)


@pytest.mark.parametrize(("method", "count", "arguments"), CASES)
def test_a_method_is_its_formula(method: str, count: int, arguments: dict) -> None:
    base, *sources = tensors(count)
    result = merge(method, base, sources, **arguments)
    assert result.dtype == torch.float32
    wanted = expected(method, base, sources, arguments)
    np.testing.assert_allclose(result.double().numpy(), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["slerp", "karcher", "model_stock"])
def test_tensors_far_apart_have_their_angles(method: str) -> None:
    base, *sources = [tensor - tensors(3, seed=1)[0] * 0.9 for tensor in tensors(3)]
    sources = [s + torch.randn(s.shape, generator=torch.manual_seed(i)) for i, s in
               enumerate(sources[: METHODS[method].most or 3])]  # fmt: skip
    result = merge(method, base, sources, **({"t": 0.3} if method == "slerp" else {}))
    arguments = {"t": 0.3} if method == "slerp" else {}
    wanted = expected(method, base, sources, arguments)
    np.testing.assert_allclose(result.double().numpy(), wanted, rtol=0, atol=3e-6)


# ------------------------------------------------------------------------ one contract for them all


def test_every_method_has_its_kernel() -> None:
    assert list(KERNELS) == list(METHODS)
    assert {method for method, _, _ in CASES} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_docstring_of_a_kernel_has_its_five_parts(method: str) -> None:
    text = type(KERNELS[method]).__doc__ or ""
    parts = ["Formula:", "Granularity:", "Arithmetic:", "Degenerate:", "Paper:"]
    places = [text.find(f"    {part} ") for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert "float32" in text


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 4), (2, 3, 5)])
@pytest.mark.parametrize("method", METHODS)
def test_any_shape_is_kept(method: str, shape: tuple[int, ...]) -> None:
    base, *sources = tensors(max(2, METHODS[method].least), shape)
    before = [tensor.clone() for tensor in (base, *sources)]
    result = merge(method, base, sources)
    assert result.shape == shape
    assert result.isfinite().all()
    assert all(same(a, b) for a, b in zip(before, (base, *sources), strict=True))


TASK_VECTORS = [name for name, m in METHODS.items() if m.needs_base]
"""The methods of θ_b."""


@pytest.mark.parametrize("method", TASK_VECTORS)
def test_sources_equal_to_the_base_give_it_to_the_byte(method: str) -> None:
    base = tensors(0)[0]
    base[0, :3] = torch.tensor([0.0, -0.0, 1e-42])
    assert same(merge(method, base, [base.clone(), base.clone()]), base)


@pytest.mark.parametrize("method", METHODS)
def test_equal_sources_far_from_the_base(method: str) -> None:
    base, source = tensors(1)
    result = merge(method, base, [source, source.clone()])
    if method in ("nearswap", "arcee_fusion"):
        assert same(result, source)
    elif method in ("linear", "slerp", "karcher", "model_stock", "nuslerp"):
        torch.testing.assert_close(result, source, rtol=2e-7, atol=0)
    elif method == "task_arithmetic":
        torch.testing.assert_close(result, base + 2 * (source - base), rtol=0, atol=1e-6)
    elif method == "ties":
        assert same(result, merge(method, base, [source]))
    elif method.startswith("breadcrumbs"):
        assert same(result, merge(method, base, [source], scale=2.0))
    elif method.startswith(("dare", "della")):
        assert not same(result, merge(method, base, [source], scale=2.0))  # other draws
    else:
        torch.testing.assert_close(result, source, rtol=5e-7, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_unlike_shape_is_refused(method: str) -> None:
    base, *sources = tensors(2)
    with pytest.raises(ValueError, match="differ"):
        merge(method, base, [sources[0], sources[1].T])


# ---------------------------------------------------------------------------- the degenerate cases


def test_linear_of_one_source_is_the_source() -> None:
    source = torch.tensor([-0.0, 0.0, 1e-45, 3.4e38, -2.5])
    assert same(merge("linear", source, [source], weight=(1.0,)), source)


def test_linear_ignores_sources_without_weight() -> None:
    source = torch.tensor([1.0, -0.0])
    wild = torch.tensor([math.inf, math.nan])
    assert same(merge("linear", source, [wild, source], weight=(0.0, 1.0)), source)
    assert same(merge("linear", source, [wild, source], weight=(0.0, 0.0)), torch.zeros(2))


def test_linear_is_not_normalised() -> None:
    ones = torch.ones(3)
    assert merge("linear", ones, [ones, ones], weight=(1.0, 2.0)).tolist() == [3.0] * 3


@pytest.mark.parametrize("scale", [1.0, 1e-5, -1.0, 0.0, 3.0])
def test_slerp_at_its_ends_is_a_source(scale: float) -> None:
    _, a, b = tensors(2)
    a[0, 0] = -0.0
    b = scale * (a if abs(scale) == 1.0 else b)
    assert same(merge("slerp", a, [a, b], t=0.0), a)
    assert same(merge("slerp", a, [a, b], t=1.0), b)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, -0.5, 0.0])
def test_slerp_without_an_arc_is_linear(factor: float) -> None:
    _, a = tensors(1)
    result = merge("slerp", a, [a, factor * a], t=0.3)
    assert same(result, merge("linear", a, [a, factor * a], weight=(0.7, 0.3)))


@pytest.mark.parametrize("sine", [2e-4, 0.9e-4])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_slerp_turns_linear_only_where_that_is_argued(sine: float, side: float) -> None:
    a, b = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    a[0], b[0], b[1] = 1.0, side * math.sqrt(1 - sine**2), sine
    share = slerp_coefficients((torch.stack([a, b]) @ torch.stack([a, b]).T).tolist(), 0.25)
    assert (share == (0.75, 0.25)) == (sine < 1e-4)
    if side > 0:  # continuous at the threshold: linear differs by less than a float32's rounding
        assert share == pytest.approx((0.75, 0.25), abs=6e-8)


def test_slerp_keeps_the_length_of_unit_vectors() -> None:
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    result = merge("slerp", a, [a, b], t=1 / 3)
    wanted = [math.cos(math.pi / 6), 0.5, 0.0]
    assert result.tolist() == pytest.approx(wanted, abs=1e-7)


def test_slerp_measures_half_precision_in_full() -> None:
    a = torch.full((300_000,), 0.01, dtype=torch.float16)
    b = a.clone()
    b[::2] = -0.01
    result = merge("slerp", a, [a, b], t=0.5)  # a half precision sum of squares stalls far below
    torch.testing.assert_close(result[1].item(), 0.01 * math.sqrt(2), rtol=1e-3, atol=0)


def test_task_arithmetic_without_scale_is_the_base() -> None:
    base, *sources = tensors(2)
    base[0, 0] = -0.0
    assert same(merge("task_arithmetic", base, sources, weight=0.0), base)


def test_ties_by_hand() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    one = base + torch.tensor([4.0, -1.0, 2.0, -8.0])
    two = base + torch.tensor([2.0, 4.0, 1.0, 8.0])
    # kept: (4, 0, 0, -8) and (0, 4, 0, 8): 4 from one, 4 from two, nothing, and 8 against 8
    assert merge("ties", base, [one, two], density=0.5).tolist() == [5.0, 5.0, 1.0, 1.0]
    # all kept: 3 of both, 4 against -1, 1.5 of both, 8 against 8
    assert merge("ties", base, [one, two], density=1.0).tolist() == [4.0, 5.0, 2.5, 1.0]


def test_ties_keeps_all_entries_at_its_threshold() -> None:
    base = torch.zeros(5)
    source = torch.tensor([2.0, -1.0, 1.0, 1.0, 0.5])
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        result = merge("ties", base, [source[order]], density=0.4)
        assert result.tolist() == torch.tensor([2.0, -1.0, 1.0, 1.0, 0.0])[order].tolist()


def test_ties_keeps_one_entry_at_least() -> None:
    base, source = torch.zeros(3), torch.tensor([1.0, 3.0, 2.0])
    assert merge("ties", base, [source], density=1e-9).tolist() == [0.0, 3.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_no_method_returns_infinite_numbers_or_nan(method: str, wild: float) -> None:
    base, a, b = tensors(2)
    b[3, 4] = wild
    density = {"density": 1.0} if METHODS[method].parameter("density") else {}
    named = re.escape(f"got {wild:g} in '{PLACE}'[3, 4] of 'code'")
    with pytest.raises(NotFiniteFault, match=named):
        merge(method, base, [a, b], **density)


@pytest.mark.parametrize("method", ["dare", "breadcrumbs", "della_linear"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_density_1_is_task_arithmetic(method: str, scale: float) -> None:
    base, *sources = tensors(3)
    result = merge(method, base, sources, density=1.0, scale=scale, gamma=0.0)
    assert same(result, merge("task_arithmetic", base, sources, weight=scale))


@pytest.mark.parametrize(
    "method", [name for name, m in METHODS.items() if m.parameter("scale") is not None]
)
def test_scale_0_is_the_base(method: str) -> None:
    base, *sources = tensors(3)
    assert same(merge(method, base, sources, scale=0.0), base)


@pytest.mark.parametrize("method", ["dare_ties", "breadcrumbs_ties", "della"])
def test_an_election_at_full_density_equals_ties(method: str) -> None:
    base, *sources = tensors(3)
    more: dict[str, object] = {"weight": (1.0, 0.4, 0.7), "normalize": "yes", "density": 1.0}
    wanted = merge("ties", base, sources, **more)
    assert same(merge(method, base, sources, **more, gamma=0.0), wanted)


@pytest.mark.parametrize(
    ("method", "alone"),
    [("dare_ties", "dare"), ("breadcrumbs_ties", "breadcrumbs"), ("della", "della_linear")],
)
def test_one_source_has_nothing_to_elect(method: str, alone: str) -> None:
    base, source = tensors(1)
    more = {"weight": 0.4, "normalize": "no"}
    assert same(merge(method, base, [source], **more), merge(alone, base, [source], **more))


@pytest.mark.parametrize("method", ["dare", "dare_ties", "della_linear", "della"])
def test_l1_gives_a_task_vector_its_old_norm(method: str) -> None:
    base, source = tensors(1)
    result = merge(method, base, [source], rescale="l1", normalize="no")
    before, after = (source - base).double().abs().sum(), (result - base).double().abs().sum()
    assert float(after) == pytest.approx(float(before), rel=1e-6)
    assert 0.3 < float((result == base).float().mean()) < 0.7


def test_della_keeps_large_entries_more_often() -> None:
    base, source = torch.zeros(64, 257), torch.randn(64, 257, generator=torch.manual_seed(3))
    result = merge("della_linear", base, [source], density=0.5, epsilon=0.4, rescale="no")
    ranks = source.abs().argsort(1).argsort(1)
    kept = [float((result[ranks // 65 == q] != 0).float().mean()) for q in range(4)]
    assert kept == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.03)


def test_equal_magnitudes_have_their_ranks_in_order() -> None:
    ones = torch.ones(4, 100)
    result = merge("della_linear", ones * 0, [ones], density=0.5, epsilon=0.499, rescale="no")
    assert float(result[:, 50:].mean()) > float(result[:, :50].mean()) + 0.3


def test_a_source_of_weight_0_is_ignored() -> None:
    base, one, two = tensors(2)
    two[3, 4] = math.nan
    for method in ("ties", "dare", "dare_ties", "breadcrumbs", "della", "della_linear"):
        result = merge(method, base, [one, two], weight=(1.0, 0.0))
        assert same(result, merge(method, base, [one])), method


def test_sce_selects_nothing_where_sources_are_equal() -> None:
    base, source = tensors(1)
    assert same(merge("sce", base, [source, source.clone()], density=0.5), base)
    _, one, two = tensors(2)
    assert not same(merge("sce", base, [one, two]), merge("sce", base, [one, two], floor=9.0))


def test_nearswap_keeps_the_first_source() -> None:
    _, a, b = tensors(2)
    assert same(merge("nearswap", a, [a, b], t=0.0), a)
    result = merge("nearswap", a, [a, b], t=0.2)
    near = (a - b).abs() <= 0.2
    assert same(result[near], b[near])


def test_ram_adds_unique_changes_and_averages_shared_changes() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, -0.0])
    one, two = base + torch.tensor([2.0, 0.0, 4.0, 0.0]), base + torch.tensor([0.0, 3.0, 2.0, 0.0])
    assert merge("ram", base, [one, two]).tolist() == [3.0, 4.0, 4.0, 0.0]
    # each has one entry alone and shares one: 1 + 0.5 · min(1, 0.4)
    result = merge("ram_plus", base, [one, two], r=0.5, alpha=0.4)
    assert result.tolist() == pytest.approx([3.4, 4.6, 4.0, 0.0])
    assert math.copysign(1.0, float(result[3])) == -1.0


def test_multislerp_of_opposite_sources_is_the_weighted_sum() -> None:
    _, a = tensors(1)
    result = merge("multislerp", a, [a, -2 * a], weight=(1.0, 1.0))
    assert same(result, merge("linear", a, [a, -2 * a], weight=(0.5, 0.5)))


@pytest.mark.parametrize("by", ["tensor", "row", "column"])
def test_nuslerp_without_weight_is_the_other_source(by: str) -> None:
    _, a, b = tensors(2)
    assert same(merge("nuslerp", a, [a, b], weight=(0.0, 0.7), by=by), b)
    assert same(merge("nuslerp", a, [a, b], weight=(0.7, 0.0), by=by), a)


def test_arcee_fusion_takes_large_changes_alone() -> None:
    _, a = tensors(1, (40, 64))
    b = a.clone()
    b[3] += 0.5 * torch.randn(64, generator=torch.manual_seed(0))
    result = merge("arcee_fusion", a, [a, b])
    assert same(result, b)  # all other products are 0, and so is the threshold
    b = b + 0.001 * torch.randn(40, 64, generator=torch.manual_seed(1))
    taken = merge("arcee_fusion", a, [a, b]) == b
    assert taken[3].float().mean() > 0.9
    assert 0.02 < float(taken.float().mean()) < 0.4


def test_ties_of_one_untrimmed_source_is_task_arithmetic() -> None:
    base, source = tensors(1)
    result = merge("ties", base, [source], density=1.0, scale=0.7)
    assert same(result, merge("task_arithmetic", base, [source], weight=0.7))


def test_breadcrumbs_by_hand() -> None:
    base = torch.zeros(10)
    source = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, -10.0])
    result = merge("breadcrumbs", base, [source], density=0.5, gamma=0.2)
    assert result.tolist() == [0.0, 0.0, 0.0, -4.0, 5.0, -6.0, 7.0, -8.0, 0.0, 0.0]
    order = torch.randperm(10, generator=torch.manual_seed(0))
    assert same(merge("breadcrumbs", base, [source[order]], density=0.5, gamma=0.2), result[order])


def test_breadcrumbs_keeps_equal_magnitudes() -> None:
    base = torch.zeros(4)
    source = torch.tensor([1.0, -1.0, 1.0, 1.0])
    assert same(merge("breadcrumbs", base, [source], density=0.5, gamma=0.25), source)


def test_breadcrumbs_keeps_the_only_entry() -> None:
    one = torch.ones(1)
    assert same(merge("breadcrumbs", torch.zeros(1), [one], density=0.1, gamma=0.9), one)
    three = torch.tensor([3.0, 2.0, 1.0])  # 0.3 of them to keep, 2.7 to cut as outliers
    result = merge("breadcrumbs", torch.zeros(3), [three], density=0.1, gamma=0.9)
    assert result.tolist() == [0.0, 0.0, 1.0]


def test_model_stock_of_orthogonal_task_vectors_is_the_base() -> None:
    base = torch.tensor([1.0, -0.0, 3.0])
    one, two = base + torch.tensor([0.0, 1.0, 0.0]), base + torch.tensor([0.0, 0.0, 1.0])
    assert same(merge("model_stock", base, [one, two]), base)


@pytest.mark.parametrize("count", [2, 3])
def test_model_stock_never_steps_away(count: int) -> None:
    """Opposite task vectors: at -1/(N - 1) the formula has its pole."""
    base = torch.ones(4)
    turns = [2 * math.pi * i / count for i in range(count)]
    sources = [base + torch.tensor([math.cos(a), math.sin(a), 0.0, 0.0]) for a in turns]
    assert same(merge("model_stock", base, sources), base)


def test_model_stock_counts_a_zero_task_vector_as_orthogonal() -> None:
    base, source = tensors(1)
    other = base + 2 * (source - base)
    result = merge("model_stock", base, [source, other, base.clone()])
    cosine = (1 + 0 + 0) / 3
    t = 3 * cosine / (1 + 2 * cosine)
    wanted = t * (source + other + base) / 3 + (1 - t) * base
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-6)
    assert same(merge("model_stock", base, [source, base.clone()]), base)


def test_karcher_of_two_is_the_middle_of_the_arc() -> None:
    _, a, b = tensors(2)
    a, b = a / a.norm(), b / b.norm()
    result = merge("karcher", a, [a, b])
    torch.testing.assert_close(result, merge("slerp", a, [a, b], t=0.5), rtol=0, atol=1e-7)


def test_karcher_has_the_mean_norm() -> None:
    _, *sources = tensors(3)
    sources = [source * (i + 1) for i, source in enumerate(sources)]
    norms = [source.double().norm().item() for source in sources]
    assert merge("karcher", sources[0], sources).double().norm().item() == pytest.approx(
        sum(norms) / 3, rel=1e-6
    )


def test_karcher_of_zero_tensors() -> None:
    _, a, b = tensors(2)
    zero = torch.zeros_like(a)
    assert same(merge("karcher", a, [zero, zero]), zero)
    torch.testing.assert_close(merge("karcher", a, [a, zero]), a / 2, rtol=2e-7, atol=0)
    result = merge("karcher", a, [a, zero, b])
    torch.testing.assert_close(result, merge("karcher", a, [a, b]) * (2 / 3), rtol=1e-5, atol=1e-6)


def test_karcher_of_opposite_sources_is_the_mean() -> None:
    _, a = tensors(1)
    assert same(merge("karcher", a, [a, -a]), torch.zeros_like(a))
    turns = (0, 2 * math.pi / 3, -2 * math.pi / 3)
    turned = [torch.tensor([math.cos(turn), math.sin(turn)]) for turn in turns]
    wanted = merge("linear", turned[0], turned, weight=(1 / 3, 1 / 3, 1 / 3))
    assert same(merge("karcher", turned[0], turned), wanted)


def test_karcher_ignores_a_source_opposite_to_the_mean() -> None:
    a = torch.tensor([1.0, 0.0, 0.0])
    assert same(merge("karcher", a, [a, a, a, -a]), a)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("slerp", {}),
        ("model_stock", {}),
        ("model_stock", {"by": "row"}),
        ("karcher", {}),
        ("nuslerp", {}),
        ("nuslerp", {"by": "column"}),
        ("multislerp", {}),
        ("sce", {}),
        ("arcee_fusion", {}),
        ("dare", {"rescale": "l1"}),
        ("della", {"rescale": "l1"}),
    ],
)
@pytest.mark.parametrize("wild", [math.inf, -math.inf, math.nan])
def test_a_norm_of_infinity_is_refused(method: str, arguments: dict, wild: float) -> None:
    base, a, b = tensors(2)
    b[3, 4] = wild
    with pytest.raises(TailorError, match=rf"got {wild} in '{PLACE}'\[3, 4\] of 'code'"):
        merge(method, base, [a, b], **arguments)


# ------------------------------------------------------------------------------------ measurements


def whole(sources: Sequence[Array], step: int, base: Array | None = None) -> Inputs:
    """Flat tensors as a kernel's inputs."""

    def read(start: int, end: int) -> Chunk:
        cut = None if base is None else base[start:end]
        return Chunk(start, cut, tuple(source[start:end] for source in sources))

    return Inputs(len(sources[0]), NAMES[: len(sources)], PLACE, step, read)


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=80),
    st.integers(1, 100),
    st.data(),
)
@settings(max_examples=drawn(60), deadline=None)
def test_a_threshold_is_the_ranks_largest(
    values: list[float], step: int, data: st.DataObject
) -> None:
    vector = torch.tensor(values)
    ranks = data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=3))
    ordered = vector.abs().sort(descending=True).values
    (result,) = thresholds(whole([vector], step, torch.zeros(len(values))), [ranks])
    assert list(result) == [magnitude(ordered)[rank - 1].item() for rank in ranks]


def test_a_sum_is_as_exact_as_a_float64() -> None:
    vectors = [torch.randn(100_003, generator=torch.manual_seed(i)) for i in range(2)]
    gram = gram_of(whole(vectors, 40_000), "weights")
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        products = vectors[i].double() * vectors[j].double()
        assert gram[i][j] == pytest.approx(math.fsum(products.tolist()), rel=1e-13)


def test_a_sum_depends_on_no_chunk() -> None:
    vectors = [torch.randn(100_003, generator=torch.manual_seed(i)) for i in range(3)]
    wanted = gram_of(whole(vectors, 1 << 30), "weights")
    for step in (1, 16_383, 16_385, 70_000):
        assert gram_of(whole(vectors, step), "weights") == wanted
    short = [vector[:21] for vector in vectors]  # shorter than a block, in steps that cut it
    assert gram_of(whole(short, 5), "weights") == gram_of(whole(short, 1 << 30), "weights")


@pytest.mark.parametrize("entries", [1, 700, 5_000, 100_003])
def test_a_sum_is_the_same_in_both_libraries(entries: int) -> None:
    vectors = [torch.randn(entries, generator=torch.manual_seed(i)) for i in range(3)]
    for what in ("weights", "task_vectors"):
        in_torch = gram_of(whole(vectors[1:], 40_000, vectors[0]), what)
        base, *sources = (vector.numpy() for vector in vectors)
        assert gram_of(whole(sources, 40_000, base), what) == in_torch


def like(count: int) -> np.ndarray:
    return np.empty(count, np.float32)


def test_the_draws_are_pinned() -> None:
    """Other numbers here are other weights in every compiled model: a break of the format."""
    assert draw_key(0, "model.norm.weight", "math") == PINNED_KEY
    keep = kept_entries(PINNED_KEY, 0, like(64), 0.5)
    assert sum(int(bit) << i for i, bit in enumerate(keep)) == PINNED_DRAWS
    assert kept_entries(PINNED_KEY, 0, torch.empty(64), 0.5).tolist() == keep.tolist()


PINNED_KEY = 3378839908167148471
PINNED_DRAWS = 0x13ABBC502487C08F


@given(st.integers(0, 2**53), st.text(max_size=5), st.integers(0, 2**40), st.integers(1, 9))
@settings(max_examples=drawn(40), deadline=None)
def test_a_draw_depends_on_its_number_alone(seed: int, model: str, offset: int, count: int) -> None:
    key = draw_key(seed, PLACE, model)
    keep = kept_entries(key, offset, like(count), 0.5)
    assert keep.tolist() == [splitmix(key, offset + i) < 0.5 for i in range(count)]


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_draws_are_fair_and_independent(density: float) -> None:
    count = 200_000
    keys = [
        draw_key(seed, place, model)
        for seed, place, model in ((0, "a", "m"), (1, "a", "m"), (0, "b", "m"), (0, "a", "n"))
    ]
    kept = [kept_entries(k, 0, like(count), density).astype(float) for k in keys]
    spread = 5 * math.sqrt(density * (1 - density) / count)
    for i, one in enumerate(kept):
        assert one.mean().item() == pytest.approx(density, abs=spread)
        for other in [*kept[:i], np.roll(one, 1)]:
            assert (one * other).mean().item() == pytest.approx(density**2, abs=spread)


# ----------------------------------------------------------------------------------- live tensors


def test_a_live_tensor_may_be_a_parameter_and_strided() -> None:
    base, *sources = tensors(2)
    wanted = merge("ties", base, sources)
    parameters = [torch.nn.Parameter(t.T.contiguous()).T for t in (base, *sources)]
    result = merge("ties", parameters[0], parameters[1:])
    assert not result.requires_grad
    assert same(result, wanted)


def test_the_result_has_the_dtype_of_the_base_by_default() -> None:
    base, *sources = tensors(2)
    half = base.to(torch.bfloat16)
    assert merge("linear", half, sources).dtype == torch.bfloat16
    arguments = complete("linear", 2)
    result = merge_tensors("linear", arguments, None, sources, NAMES[:2], PLACE)
    assert result.dtype == torch.float32
    result = merge_tensors(
        "linear", arguments, base, sources, NAMES[:2], PLACE, dtype=torch.float16
    )
    assert result.dtype == torch.float16


def test_a_divisor_divides_before_the_one_rounding() -> None:
    base, source = tensors(1)
    arguments = complete("linear", 1, weight=(1.0,))
    result = merge_tensors(
        "linear", arguments, base, [source], ["math"], PLACE, divisor=0.9, dtype=torch.bfloat16
    )
    wanted = (source.numpy() / np.float32(0.9)).astype(np.float32)
    assert same(result.float(), torch.from_numpy(wanted).to(torch.bfloat16).float())


def test_whole_numbers_arent_weights() -> None:
    base = torch.ones(3, dtype=torch.int32)
    with pytest.raises(TailorError, match="int32, which can't be merged"):
        merge("linear", base, [base])


@pytest.mark.parametrize(
    ("arguments", "source", "dtype", "message"),
    [
        (
            {"weight": (1e38,)},
            9.0,
            torch.float32,
            ("weight=1e+38", "9 of 'm'", "a smaller 'weight'"),
        ),
        ({"weight": (2e4,)}, 9.0, torch.float16, ("weight=20000.0", "'weight', or choose a dtype")),
        (
            {"weight": (1.0,)},
            9e4,
            torch.float16,
            ("but float16 ends at 65504\n", "help: choose a dt"),
        ),
        ({"weight": (1e300,)}, 9.0, torch.float32, ("is 1e+300", "weight=1e+300", "a smaller 'we")),
    ],
)
def test_an_overflow_names_the_number_that_is_too_large(
    arguments: dict, source: float, dtype: torch.dtype, message: tuple[str, ...]
) -> None:
    given, tensor = complete("linear", 1, **arguments), torch.full((2,), source)
    with pytest.raises(OverflowFault) as caught:
        merge_tensors("linear", given, None, [tensor], ["m"], PLACE, dtype=dtype)
    assert all(part in str(caught.value) for part in message), str(caught.value)


@pytest.mark.parametrize("divisor", [1e300, 1e-30, 1e-60])
def test_an_overflow_names_scales(divisor: float) -> None:
    given, tensor = complete("linear", 1, weight=(1.0,)), torch.full((2,), 1e10)
    with pytest.raises(OverflowFault, match=r"divided by 1e[+-]\d+ \(scales\)") as caught:
        merge_tensors("linear", given, None, [tensor], ["m"], PLACE, divisor=divisor)
    assert "choose a smaller 'scale'" in str(caught.value) or divisor == 1e-60


def test_an_overflow_of_a_live_tensor_is_named() -> None:
    base = torch.zeros(2, 3)
    source = base.clone()
    source[1, 2] = 7e4
    arguments = complete("linear", 1, weight=(1.0,))
    with pytest.raises(OverflowFault, match=r"\[1, 2\] is 70000, but float16 ends at 65504"):
        merge_tensors("linear", arguments, None, [source], ["m"], PLACE, dtype=torch.float16)
