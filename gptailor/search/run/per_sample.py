"""The scores of each sample, as a study keeps them: exact in float32, and short."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptailor.evaluate.outcome import Outcome, PerSample, Score

PerObjective = tuple[PerSample | None, ...]
"""The samples of each objective; None where its score is no mean of samples."""


def per_objective(outcomes: Sequence[Outcome]) -> PerObjective:
    """What scores are made of, in float32 as a study keeps it: the same in a later process.

    Nothing where no score is a mean of samples.
    """
    found = tuple(_rounded(one.each) if isinstance(one, Score) else None for one in outcomes)
    return found if any(each is not None for each in found) else ()


def _rounded(each: PerSample | None) -> PerSample | None:
    if each is None:
        return None
    with np.errstate(over="ignore"):
        sums = np.asarray(each.sums, np.float32).tolist()
    return PerSample(tuple(sums), each.counts, each.exponential)


def per_sample_to_json(found: PerObjective) -> list[dict[str, Any] | None]:
    """The samples as JSON holds them: float32 in base64, counts only where they aren't all 1."""
    return [None if each is None else _to_json(each) for each in found]


def _to_json(each: PerSample) -> dict[str, Any]:
    said: dict[str, Any] = {"sums": _text(np.asarray(each.sums, "<f4"))}
    if any(count != 1 for count in each.counts):
        said["counts"] = _text(np.asarray(each.counts, "<u4"))
    if each.exponential:
        said["exponential"] = True
    return said


def per_sample_from_json(said: Sequence[Mapping[str, Any] | None]) -> PerObjective:
    """The same samples. Raises KeyError, TypeError or ValueError for what is none."""
    return tuple(None if each is None else _from_json(each) for each in said)


def _from_json(each: Mapping[str, Any]) -> PerSample:
    sums = _numbers(each["sums"], "<f4")
    counts = [1] * len(sums) if "counts" not in each else _numbers(each["counts"], "<u4")
    if len(counts) != len(sums):
        raise ValueError("samples have other counts than sums")
    return PerSample(tuple(sums), tuple(counts), each.get("exponential", False))


def _text(numbers: np.ndarray) -> str:
    """Bytes of one place stand together, which compresses what is alike."""
    planes = numbers.view(np.uint8).reshape(len(numbers), -1).T.tobytes()
    return base64.b85encode(zlib.compress(planes, 6)).decode()


def _numbers(text: str, kind: str) -> list[Any]:
    try:
        planes = np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8)
    except zlib.error as error:
        raise ValueError("samples are torn") from error
    size = np.dtype(kind).itemsize
    found: list[Any] = planes.reshape(size, -1).T.copy().view(kind).ravel().tolist()
    return found
