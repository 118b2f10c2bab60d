"""The one comparison of `--locked`, of a lock's making, and of `verify`: `lock_differences`."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.folder import CONFIG
from gptailor.checkpoint.write.digest import UNMEASURED, FileDigest, TensorDigest
from gptailor.output.lock import Lock, LockedGguf
from gptailor.plan.faults import listed

_FIT_TOLERANCE = 0.01
"""The largest relative distance of two equal fits of one bridge, or of healing.

Other threads, another processor or another version of torch add up in another order.
"""

MOST_NAMED = 5
"""Differences that one message names."""

FactKind = Literal[
    "plan", "dtype", "gguf", "methods", "under",
    "families", "inputs", "texts", "template", "beside",
    "config", "config digest", "imatrix", "metadata", "metadata digest",
]  # fmt: skip
"""The kinds of facts besides tensors, in the order of their differences.

`gguf` are the types of the plan's GGUF files, `under` the models under adapters, `families` family
files, `inputs` models' files, `texts` calibration texts, and `beside` the files beside the weights.
`imatrix` is the text of a GGUF file's importance matrix.
"""

_Key = TypeVar("_Key", str, tuple[str, str])
_Value = TypeVar("_Value")


DifferenceKind = Literal["plan", "dtype", "model", "file", "config", "tensor"]


@final
@dataclass(frozen=True, slots=True)
class Difference:
    """A difference: its kind, the name of the thing, and the sentence for people.

    `path` is the file that differs, if there is one.
    """

    kind: DifferenceKind
    name: str
    message: str
    path: Path | None = None
    model: str | None = None


# ------------------------------------------------------------------------------ compared values


@final
@dataclass(frozen=True, slots=True)
class Fact:
    """A fact on an input or an output: its values, and its words, file and name for people.

    A value that wasn't measured is None.
    """

    values: tuple[object, ...]
    words: str = ""
    path: Path | None = None
    name: str = ""

    @classmethod
    def of_file(cls, file: FileDigest, path: Path | None = None) -> "Fact":
        """Return a file that was read whole."""
        return cls((file.size, file.sha256), f"{file.size:,}", path)


Facts = Mapping[tuple[str, str], Fact]
"""Facts by owner and name; the owner is a model, or empty."""


def alone(name: str, value: str | None, words: str = "", path: Path | None = None) -> Facts:
    """Return a fact without an owner; None for a value that wasn't measured."""
    return {("", name): Fact((value,), words, path)}


def on_methods(packages: Mapping[str, str]) -> Facts:
    """Return the packages of methods that aren't gptailor's own."""
    return {("", name): Fact((package,), package) for name, package in packages.items()}


def on_file_types(types: Iterable[str]) -> Facts:
    """Return the types of a plan's GGUF files."""
    return alone("gguf", words := listed(sorted(types)) or "no GGUF files", words)


def on_adapters(under: Mapping[str, str | None]) -> Facts:
    """Return the model under each adapter; None for a whole model."""
    words = {
        n: "a whole model" if u is None else f"an adapter on {quoted(u)}" for n, u in under.items()
    }
    return {(name, name): Fact((each,), each) for name, each in words.items()}


@final
@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A lock's content as far as it was measured; missing parts are not compared.

    In messages, `path` is the file of facts without one, `source` the origin of an expectation, and
    `tensor` the word for a tensor.
    """

    facts: Mapping[FactKind, Facts] = field(default_factory=dict)
    tensors: Mapping[str, TensorDigest] | None = None
    path: Path | None = None
    source: str = "the lock"
    tensor: str = "tensor"

    @classmethod
    def of(cls, lock: Lock) -> "Measurement":
        """Return the content of a lock."""
        template, gguf = lock.chat_template, lock.gguf
        file_types = {*lock.gguf_files, *([gguf.quantize] if gguf and gguf.quantize else [])}
        inputs = {
            (name, file): Fact.of_file(digest)
            for name, model in lock.models.items()
            for file, digest in model.files.items()
        }
        facts: dict[FactKind, Facts] = {
            "plan": alone("plan", lock.plan),
            "dtype": alone("dtype", str(lock.dtype), str(lock.dtype)),
            "gguf": on_file_types(file_types),
            "methods": on_methods(lock.methods),
            "under": on_adapters({name: model.on for name, model in lock.models.items()}),
            "families": {("", kind): Fact((sha256,)) for kind, sha256 in lock.families.items()},
            "inputs": inputs,
            "texts": {("", use): Fact((text.file.sha256,)) for use, text in lock.texts.items()},
            "template": {} if template is None else alone("", template),
            "config digest": alone(CONFIG, lock.config),
        }
        return cls(facts=facts, tensors=lock.tensors)

    @classmethod
    def of_gguf(cls, gguf: LockedGguf) -> "Measurement":
        """Return the content of a lock's entry for a GGUF file."""
        text = gguf.imatrix
        facts: dict[FactKind, Facts] = {
            "imatrix": {} if text is None else alone("imatrix", text.model_dump_json()),
            "metadata digest": alone("metadata", gguf.facts),
        }
        return cls(facts=facts, tensors=gguf.tensors)


# ------------------------------------------------------------------------------------ differences


@final
class Sentences(NamedTuple):
    """The differences between facts of one kind, and the sentences for them.

    The sentences are for a missing fact, for an unexpected one, and for another one by the place of
    its first other value. An empty sentence reports nothing. `absent` are the words of a missing
    fact. Differences of the facts `unless` explain differences of this kind.
    """

    of: DifferenceKind
    missing: str
    extra: str
    other: tuple[str, ...]
    absent: str = ""
    unless: FactKind | None = None


_LOCKED = "differs from the lock"
_BY_PACKAGE = "method {name}: expected the package {expected} as in the lock, got {got}"
_SETTING = "{name} is {got}, but {expected} in the plan's output"
_OF_CONFIG = f"{{name}} of {CONFIG} is {{got}}, but {{expected}} in the plan's output"
_KINDS: Mapping[FactKind, Sentences] = {
    "plan": Sentences("plan", "", "", ("{got} that was locked",)),
    "dtype": Sentences("dtype", "", "", ("{got} {expected}",), unless="plan"),
    "gguf": Sentences("plan", "", "", ("the plan has {got}, but the lock has {expected}",)),
    "methods": Sentences("plan", _BY_PACKAGE, _BY_PACKAGE, (_BY_PACKAGE,), absent="gptailor"),
    "under": Sentences(
        "model",
        "",
        "",
        ("model {name}: expected {expected} as in the lock, got {got} in the plan",),
    ),
    "families": Sentences(
        "file",
        "the family file of {name} is in the lock, but isn't used",
        "the family file of {name} is used, but isn't in the lock",
        (f"the family file of {{name}} {_LOCKED}",),
    ),
    "inputs": Sentences(
        "file",
        "{name} of model {owner} is in the lock, but isn't used",
        "{name} of model {owner} is used, but isn't in the lock",
        (
            "{name} of model {owner} has {got} bytes, expected {expected} as in the lock",
            "{name} of model {owner} differs from the lock",
        ),
    ),
    "texts": Sentences(
        "file",
        "",  # the plan has another digest
        "{got} has a text, but the lock has no such text",
        (f"the calibration text of {{got}} {_LOCKED}",),
    ),
    "template": Sentences(
        "file", "", f"the chat template {_LOCKED}", (f"the chat template {_LOCKED}",)
    ),
    "beside": Sentences(
        "file",
        "{name} is missing",
        "{name} is not a file of the plan's output",
        ("{name} differs from the plan's output",),
    ),
    "config": Sentences("config", _OF_CONFIG, _OF_CONFIG, (_OF_CONFIG,), absent="missing"),
    "config digest": Sentences("config", "", "", (f"{{got}} {_LOCKED}",), unless="config"),
    "imatrix": Sentences(
        "file",
        "the lock has an importance matrix, but the file lacks one",
        "the file has an importance matrix, but the lock lacks one",
        ("the text of the importance matrix differs from the lock",),
    ),
    "metadata": Sentences("config", _SETTING, _SETTING, (_SETTING,), absent="missing"),
    "metadata digest": Sentences(
        "config", "", "", ("the file's metadata differs from the lock",), unless="metadata"
    ),
}


def lock_differences(expected: Measurement, actual: Measurement) -> Iterator[Difference]:
    """Yield the differences between two measurements, in the parts that both have."""
    explained: set[FactKind] = set()
    for use, kind in _KINDS.items():
        if kind.unless not in explained:
            for difference in _of_facts(use, kind, expected, actual):
                explained.add(use)
                yield difference
    for name, expected_tensor, tensor in _pairs(expected.tensors, actual.tensors):
        if words := _of_tensor(expected_tensor, tensor, expected.source):
            yield Difference("tensor", name, f"{actual.tensor} {quoted(name)} {words}")


def gguf_differences(lock: Lock, gguf: LockedGguf | None) -> Iterator[Difference]:
    """Yield the differences of a GGUF file from a lock that has an entry for its type."""
    locked = None if gguf is None else lock.gguf_of_type(gguf.quantize)
    if locked is not None and gguf is not None:
        yield from lock_differences(Measurement.of_gguf(locked), Measurement.of_gguf(gguf))


def _pairs(
    expected: Mapping[_Key, _Value] | None, actual: Mapping[_Key, _Value] | None
) -> Iterator[tuple[_Key, _Value | None, _Value | None]]:
    """Yield each name with its two values; nothing where a side was not measured."""
    if expected is not None and actual is not None:
        for key in sorted(expected.keys() | actual.keys()):
            yield key, expected.get(key), actual.get(key)


def _of_facts(
    use: FactKind, kind: Sentences, expected: Measurement, actual: Measurement
) -> Iterator[Difference]:
    for (owner, name), locked, got in _pairs(expected.facts.get(use), actual.facts.get(use)):
        if locked is None or got is None:
            sentence = kind.extra if locked is None else kind.missing
        else:
            values = zip(kind.other, locked.values, got.values, strict=True)
            sentence = next((s for s, a, b in values if None not in (a, b) and a != b), "")
        if sentence:
            message = sentence.format(
                name=quoted(name),
                owner=quoted(owner),
                expected=kind.absent if locked is None else locked.words,
                got=kind.absent if got is None else got.words,
            )
            about = next(fact for fact in (got, locked) if fact is not None)
            path = about.path or actual.path
            yield Difference(kind.of, about.name or name, message, path, owner or None)


def _of_tensor(expected: TensorDigest | None, actual: TensorDigest | None, by: str) -> str:
    if actual is None:
        return f"is missing; {by} has it"
    if expected is None:
        return f"is present, but {by} has no such tensor"
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        form, expected_form = (f"{t.dtype} {list(t.shape)}" for t in (actual, expected))
        return f"is {form}, expected {expected_form} as in {by}"
    if actual.sha256 in {expected.sha256, UNMEASURED}:
        return ""
    if expected.sketch is None or actual.sketch is None:
        return f"differs from {by}"
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
    foreign = (f"{quoted(name)} of {package}" for name, package in lock.methods.items())
    help_ = help_.format(versions=listed(["gptailor", "torch", *foreign], "or"))
    raise CheckpointError(code, message, alike[0].path or lock.path, help_)


_INPUTS = "restore the locked files, or run 'gptailor lock' again"
_OUTPUT = "another version of {versions} may compute different numbers; run 'gptailor lock' again"
_REFUSALS = {
    **dict.fromkeys(("plan", "dtype"), ("C703", _INPUTS)),
    **dict.fromkeys(("model", "file"), ("C704", _INPUTS)),
    **dict.fromkeys(("config", "tensor"), ("C705", _OUTPUT)),
}
