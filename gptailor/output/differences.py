"""The one comparison of `--locked`, of a lock's making, and of `verify`: `lock_differences`."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.write.digest import UNMEASURED, FileDigest, TensorDigest
from gptailor.output.lock import Lock, LockedGguf
from gptailor.plan.faults import PLAN_FILE

_FIT_TOLERANCE = 0.01
"""The relative distance up to which two fits of one bridge, or of healing, are the same.

Other threads, another processor or another version of torch add up in another order.
"""

MOST_NAMED = 5
"""Differences that one message names."""

FileUse = Literal["families", "inputs", "texts", "template", "beside"]
"""Family files, models' files, calibration texts, the chat template, files beside the weights."""

_Key = TypeVar("_Key", str, tuple[str, str])
_Value = TypeVar("_Value")


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """A difference: its kind, the name of the thing, and the sentence for people.

    `path` is the file that differs, if there is one.
    """

    kind: Literal["plan", "dtype", "model", "file", "config", "tensor"]
    name: str
    message: str
    path: Path | None = None
    model: str | None = None


# ------------------------------------------------------------------------------ what is compared


@final
@dataclass(frozen=True, slots=True)
class MeasuredFile:
    """A file's place, and its bytes and sha256 as far as they were measured."""

    path: Path | None = None
    size: int | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, digest: FileDigest, path: Path | None = None) -> "MeasuredFile":
        """Return a file that was read whole."""
        return cls(path, digest.size, digest.sha256)

    def is_other(self, than: "MeasuredFile") -> bool:
        """Return whether size or sha256 differ, where both files have them."""
        pairs = ((self.size, than.size), (self.sha256, than.sha256))
        return any(a != b for a, b in pairs if a is not None and b is not None)


MeasuredFiles = Mapping[tuple[str, str], MeasuredFile]
"""Files by owner and name; the owner is a model, or empty."""


@final
@dataclass(frozen=True, slots=True)
class MeasuredPlan:
    """A plan's digest, its dtype, and the model under each adapter; `path` is its copy's.

    `methods` are the packages of methods that aren't gptailor's own.
    """

    digest: str
    dtype: str | None
    under: Mapping[str, str | None] = field(default_factory=dict)
    path: Path | None = None
    methods: Mapping[str, str] | None = None


MeasuredSetting = tuple[str, str]
"""A setting's value as comparable text, and its text for people."""


@final
@dataclass(frozen=True, slots=True)
class MeasuredSettings:
    """A configuration, or a GGUF file's metadata: its digest, its settings, or both.

    `changed` is the sentence for another digest, `place` goes behind a setting's name.
    """

    digest: str | None = None
    values: Mapping[str, MeasuredSetting] | None = None
    name: str = ""
    place: str = ""
    changed: str = ""
    path: Path | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A lock's content as far as it was measured; missing parts are not compared.

    In messages, `source` is the origin of an expectation, and `tensor` the word for a tensor.
    """

    plan: MeasuredPlan | None = None
    files: Mapping[FileUse, MeasuredFiles] = field(default_factory=dict)
    settings: MeasuredSettings | None = None
    tensors: Mapping[str, TensorDigest] | None = None
    source: str = "the lock"
    tensor: str = "tensor"

    @classmethod
    def of(cls, lock: Lock) -> "Measurement":
        """Return the content of a lock."""
        texts = lock.texts
        template = {} if lock.chat_template is None else {("", ""): lock.chat_template}
        return cls(
            plan=MeasuredPlan(
                lock.plan,
                lock.dtype,
                {n: m.on for n, m in lock.models.items()},
                methods=lock.methods,
            ),
            files={
                "families": {("", t): MeasuredFile(sha256=s) for t, s in lock.families.items()},
                "inputs": {
                    (name, file): MeasuredFile.of(digest)
                    for name, model in lock.models.items()
                    for file, digest in model.files.items()
                },
                "texts": {("", use): MeasuredFile.of(text.file) for use, text in texts.items()},
                "template": {key: MeasuredFile(sha256=s) for key, s in template.items()},
            },
            settings=MeasuredSettings(lock.config),
            tensors=lock.tensors,
        )

    @classmethod
    def of_gguf(cls, gguf: LockedGguf) -> "Measurement":
        """Return the content of a lock's entry for a GGUF file."""
        return cls(settings=gguf_settings(gguf.facts), tensors=gguf.tensors)


def gguf_settings(
    digest: str, path: Path | None = None, values: Mapping[str, MeasuredSetting] | None = None
) -> MeasuredSettings:
    """Return the metadata of a GGUF file."""
    changed = "the file's metadata is not what was locked"
    return MeasuredSettings(digest, values, "metadata", changed=changed, path=path)


# ------------------------------------------------------------------------------------ what differs


def lock_differences(expected: Measurement, actual: Measurement) -> Iterator[Difference]:
    """Yield the differences between two measurements, in the parts that both have."""
    if expected.plan is not None and actual.plan is not None:
        yield from _of_plans(expected.plan, actual.plan)
    for use in _WORDINGS:
        yield from _of_files(use, expected.files.get(use), actual.files.get(use))
    if expected.settings is not None and actual.settings is not None:
        yield from _of_settings(expected.settings, actual.settings)
    for name, expected_tensor, tensor in _pairs(expected.tensors, actual.tensors):
        if words := _of_tensor(expected_tensor, tensor, expected.source):
            yield Difference("tensor", name, f"{actual.tensor} {quoted(name)} {words}")


def gguf_differences(lock: Lock, gguf: LockedGguf) -> Iterator[Difference]:
    """Yield the differences of a GGUF file from a lock that has an entry for its type."""
    locked = lock.gguf
    if locked is None or locked.quantize != gguf.quantize:
        return
    if (locked.imatrix is None) != (gguf.imatrix is None):
        has, lacks = ("the lock", "the file") if gguf.imatrix is None else ("the file", "the lock")
        words = f"{has} has an importance matrix, and {lacks} has none"
        yield Difference("file", "imatrix", words)
    elif locked.imatrix != gguf.imatrix:
        words = "the text of the importance matrix is not the one that was locked"
        yield Difference("file", "imatrix", words)
    yield from lock_differences(Measurement.of_gguf(locked), Measurement.of_gguf(gguf))


def _pairs(
    expected: Mapping[_Key, _Value] | None, actual: Mapping[_Key, _Value] | None
) -> Iterator[tuple[_Key, _Value | None, _Value | None]]:
    """Yield each name with its two values; nothing where a side was not measured."""
    if expected is not None and actual is not None:
        for key in sorted(expected.keys() | actual.keys()):
            yield key, expected.get(key), actual.get(key)


def _of_plans(expected: MeasuredPlan, actual: MeasuredPlan) -> Iterator[Difference]:
    copy = actual.path is not None
    if actual.digest != expected.digest:
        words = f"{PLAN_FILE} is not the plan" if copy else "the plan is not the one"
        name = PLAN_FILE if copy else "plan"
        yield Difference("plan", name, f"{words} that was locked", actual.path)
    elif actual.dtype != expected.dtype and not (copy and actual.dtype is None):
        words = f"the output is {actual.dtype or 'of several dtypes'}, and by the lock"
        if copy:
            words = f"{PLAN_FILE} has the dtype {actual.dtype}, and the lock"
        yield Difference("dtype", "dtype", f"{words} {expected.dtype}", actual.path)
    for name, package, installed in _pairs(expected.methods, actual.methods):
        if package != installed:
            locked, here = (name_of or "gptailor" for name_of in (package, installed))
            words = f"method {quoted(name)}: expected the package {locked} by the lock, got {here}"
            yield Difference("plan", name, words, actual.path)
    for name in sorted(expected.under.keys() & actual.under.keys()):
        locked, kind = (_kind_of_model(plan.under[name]) for plan in (expected, actual))
        if locked != kind:
            words = f"model {quoted(name)}: expected {locked} by the lock, got {kind} in the plan"
            yield Difference("model", name, words, actual.path, name)


def _kind_of_model(under: str | None) -> str:
    return "a whole model" if under is None else f"an adapter on {quoted(under)}"


_LOCKED = "is not the one that was locked"
_WORDINGS: Mapping[FileUse, tuple[str, str, str]] = {
    "families": (
        "the family file of {name} is in the lock, and none is read",
        "the family file of {name} is read, and the lock has none",
        f"the family file of {{name}} {_LOCKED}",
    ),
    "inputs": (
        "{name} of model {owner} is in the lock, and is not read",
        "{name} is read of model {owner}, and the lock has none of that name",
        "{name} of model {owner} has {bytes}",
    ),
    "texts": (
        "",  # the plan has another digest
        "{fit} reads a text, and the lock has none",
        f"the calibration text of {{fit}} {_LOCKED}",
    ),
    "template": ("", f"the chat template {_LOCKED}", f"the chat template {_LOCKED}"),
    "beside": (
        "{name} is missing",
        "{name} is there, and the plan gives none of that name",
        "{name} has other bytes than the plan gives",
    ),
}
"""Sentences for a file that is missing, that is unexpected, and that is another."""


def _of_files(
    use: FileUse, expected: MeasuredFiles | None, actual: MeasuredFiles | None
) -> Iterator[Difference]:
    missing, extra, other = _WORDINGS[use]
    for (owner, name), locked, measured in _pairs(expected, actual):
        if locked is None:
            sentence = extra
        elif measured is None:
            sentence = missing
        else:
            sentence = other if measured.is_other(locked) else ""
        if not sentence:
            continue
        message = sentence.format(
            name=quoted(name),
            owner=quoted(owner),
            fit=f"the bridge after {name}" if name[:1] == "L" else f"'{name.partition(' ')[0]}'",
            bytes=_of_bytes(locked, measured),
        )
        path = next((file.path for file in (measured, locked) if file is not None), None)
        if path is not None and use not in {"inputs", "beside"}:
            name = path.name  # noqa: PLW2901 (its key is not the file's name)
        yield Difference("file", name, message, path, owner or None)


def _of_bytes(expected: MeasuredFile | None, actual: MeasuredFile | None) -> str:
    if expected is None or actual is None or actual.size == expected.size:
        return "other bytes than by the lock"
    return f"{actual.size:,} bytes, and by the lock {expected.size:,}"


_MISSING: MeasuredSetting = ("", "missing")


def _of_settings(expected: MeasuredSettings, actual: MeasuredSettings) -> Iterator[Difference]:
    differing = False
    for key, expected_setting, setting in _pairs(expected.values, actual.values):
        (value, shown), (planned, by_plan) = setting or _MISSING, expected_setting or _MISSING
        if value != planned:
            differing = True
            message = f"{quoted(key)}{actual.place} is {shown}, and by the plan {by_plan}"
            yield Difference("config", key, message, actual.path)
    digests = {expected.digest, actual.digest} - {None}
    if not differing and len(digests) > 1:
        yield Difference("config", actual.name, actual.changed, actual.path)


def _of_tensor(expected: TensorDigest | None, actual: TensorDigest | None, by: str) -> str:
    if actual is None:
        return f"is missing; {by} has it"
    if expected is None:
        return f"is there, and {by} has none of that name"
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        form, expected_form = (f"{t.dtype} {list(t.shape)}" for t in (actual, expected))
        return f"is {form}, and by {by} {expected_form}"
    if actual.sha256 in {expected.sha256, UNMEASURED}:
        return ""
    if expected.sketch is None or actual.sketch is None:
        return f"has other bytes than by {by}"
    apart = _distance(expected.sketch, actual.sketch)
    words = f"differs from {by}: the fitted values are {apart:.1%} off"
    return words if apart > _FIT_TOLERANCE else ""


def _distance(expected: Sequence[float], actual: Sequence[float]) -> float:
    """Return how far two tensors are apart by their sketches, relative to the first."""
    if len(expected) != len(actual):
        return math.inf
    size = math.hypot(*expected)
    apart = math.dist(expected, actual)
    return apart / size if size else math.inf if apart else 0.0


# --------------------------------------------------------------------------------------- refusals


def refuse(differences: Iterable[Difference], lock: Lock) -> None:
    """Raise CheckpointError (C703 to C705) if there are differences: all with the first's code."""
    differing = list(differences)
    if not differing:
        return
    code, help_ = _REFUSALS[differing[0].kind]
    alike = [each for each in differing if _REFUSALS[each.kind][0] == code]
    message = "; ".join(each.message for each in alike[:MOST_NAMED])
    if len(alike) > MOST_NAMED:
        message += f"; and {len(alike) - MOST_NAMED:,} more differ"
    raise CheckpointError(code, message, alike[0].path or lock.path, help_)


_INPUTS = "give what was locked, or lock anew by 'gptailor lock'"
_OUTPUT = "another version of gptailor or torch may compute otherwise; see 'gptailor lock'"
_REFUSALS = {
    **dict.fromkeys(("plan", "dtype"), ("C703", _INPUTS)),
    **dict.fromkeys(("model", "file"), ("C704", _INPUTS)),
    **dict.fromkeys(("config", "tensor"), ("C705", _OUTPUT)),
}
