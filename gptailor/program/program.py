"""The `Program`: an instruction for each tensor of an output.

Pure data, made from headers alone.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, final

from gptailor.checkpoint.families.layout import is_constant
from gptailor.checkpoint.families.mixture import of_expert
from gptailor.checkpoint.tensor import (
    FLOATS,
    Computation,
    TensorInfo,
    TensorSpec,
    tensors_in,
)
from gptailor.plan.layer_parts import Branch
from gptailor.plan.plan import SizeCut, TextFit
from gptailor.plan.resolved import Gap, Healing

Arguments = tuple[tuple[str, int | float | str | tuple[float, ...]], ...]
"""A method's arguments by name, complete: defaults filled in, one number for each source."""


@final
@dataclass(frozen=True, slots=True)
class Copy:
    """The bytes of a tensor as they are, wherever they go and whatever its model is called.

    `model` and `place` are as in `Combine`, should a pass make it one.
    """

    source: TensorInfo
    model: str = field(default="base", compare=False)
    place: str = field(default="", compare=False)

    @property
    def combined(self) -> "Combine":
        """Return the tensor as `linear` makes it of itself alone: to be cast or divided."""
        weight = (("weight", (1.0,)), ("normalize", "no"))
        return Combine("linear", weight, (), (self.source,), (self.model,), self.place)


@final
@dataclass(frozen=True, slots=True)
class Combine(Computation):
    """Tensors combined by a method in float32, divided by `divisor`, `offset` added, rounded once.

    `base` is θ_b for a method that needs it, else empty. `models` are the sources' names in the
    plan; `place` is the base's name of the tensor at the target's position (dare's draws depend on
    both). A cast or a division alone is `linear` with the weight 1. The offset is for norms that
    multiply by 1 + w: (1 + w)/c − 1 is w/c + (1/c − 1).

    `provider` identifies the code of another package's method, for results that are kept.

    As a tensor's form it is nested in another: a model that is made of models has such tensors,
    which are not rounded.
    """

    method: str
    arguments: Arguments
    base: tuple[TensorInfo, ...]
    sources: tuple[TensorInfo, ...]
    models: tuple[str, ...]
    place: str
    divisor: float = 1.0
    offset: float = 0.0
    provider: str = ""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Return all tensors that are read: θ_b's, if there is one, and the sources'."""
        return (*self.base, *self.sources)

    @property
    def bare(self) -> bool:
        """Return whether the method's result is only rounded."""
        return self.divisor == 1.0 and self.offset == 0.0


@final
@dataclass(frozen=True, slots=True)
class Unfitted(Computation):
    """A tensor of an inner plan's output before its fits: it is made of `sources`, and of a text.

    Only headers are read of it. The fitted tensor is in a file, see `FittedPlan`.
    """

    sources: tuple[TensorInfo, ...]

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Return all tensors that are read."""
        return self.sources


Making = Copy | Combine


@final
@dataclass(frozen=True, slots=True)
class Marked:
    """A tensor that texts decide: `make` makes it, and the fit of this word changes it.

    `width` leaves the neurons that stay, and fits the output projection. `experts` copies or
    combines the experts that a text chooses; `make` makes the first experts. `bridge` folds a gap's
    map into the layer before it. `heal` adds the change that a layer learns. The models must run
    for each. `provider` identifies the code of another package's bridge.
    """

    word: str
    make: "Instruction"
    fit: TextFit | Gap | Healing
    provider: str = ""


Instruction = Making | Marked


@final
@dataclass(frozen=True, slots=True)
class OutputPlace:
    """The place of a tensor in the output.

    `layer` is the number of the output's layer and `name` the tensor's name within it; outside the
    layers they are None and empty.
    """

    part: Branch | Literal["embed", "norm", "head", "predictor", "other"] = "other"
    layer: int | None = None
    name: str = ""


@final
@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the output, the one instruction that makes it, and its place."""

    spec: TensorSpec
    make: Instruction
    place: OutputPlace = OutputPlace()


@final
@dataclass(frozen=True)
class Program:
    """The output's tensors in file order."""

    outputs: tuple[Output, ...]

    @cached_property
    def layers(self) -> tuple[tuple[Output, ...], ...]:
        """Return the tensors of each of the output's layers."""
        layers: dict[int, list[Output]] = {}
        for output in self.outputs:
            if output.place.layer is not None:
                layers.setdefault(output.place.layer, []).append(output)
        return tuple(tuple(layers[number]) for number in sorted(layers))

    @cached_property
    def size(self) -> int:
        """The bytes of all tensors."""
        return sum(output.spec.size for output in self.outputs)

    @cached_property
    def parameters(self) -> int:
        """The number of entries of all tensors."""
        return sum(output.spec.elements for output in self.outputs)

    @property
    def fitted(self) -> frozenset[str]:
        """Return the names of the tensors that a cut, a bridge or healing decides."""
        return frozenset(o.spec.name for o in self.outputs if not isinstance(o.make, Making))


def unfitted(make: Instruction) -> Making:
    """Return the instruction for the tensor before a fit or healing changes it."""
    while isinstance(make, Marked):
        make = make.make
    return make


_ROUTING = re.compile(r"router|expert_gate|(^|\.)gate\.weight$")
"""A pattern in the names of weights that choose a token's experts."""


def projections(tensors: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Return the linear projections among a layer's tensors, and the smaller side of each.

    The side of stacked experts is one expert's. Routers, convolutions and vectors are left out.
    """
    sides = {}
    for name, spec in tensors.items():
        matrix = len(shape := spec.shape) > 1 and min(shape[-2:]) > 1
        stacked = "expert" in name and len(shape) > 2
        if matrix and (name.endswith(".weight") or stacked) and not _ROUTING.search(name):
            sides[name] = min(shape[-2:])
    return sides


_EXPERT = re.compile(r"(^|\.)experts?\.")
"""A pattern in the names of experts' weights.

transformers computes with all of a layer's as one tensor.
"""


_BUFFERS = re.compile(r"(e_score_correction_bias|expert_bias|layer_scalar|act_fn\.(beta|eps))$")
"""A pattern in the names of numbers that transformers' modules hold as constants."""


def learning_tensors(rank: int | None, tensors: Mapping[str, TensorSpec]) -> list[str]:
    """Return the names within a layer of the tensors that healing of a rank changes.

    Without a rank these are all floats except constants; a rank changes projections, except
    experts'.
    """
    if rank is None:
        floats = [name for name, spec in tensors.items() if spec.dtype in FLOATS]
        return [n for n in floats if not is_constant(n) and not _BUFFERS.search(n)]
    return [n for n in projections(tensors) if len(tensors[n].shape) == 2 and not _EXPERT.search(n)]


def files(program: Program) -> list[Path]:
    """Return the files that the program reads, each once, in the order that they are first read."""
    return list(dict.fromkeys(t.file for t in stored_tensors(program.outputs)))


def stored_tensors(outputs: Iterable[Output]) -> Iterator[TensorInfo]:
    """Yield the tensors on disk that outputs are made from, in the order that they are read."""
    for output in outputs:
        make = unfitted(output.make)
        for tensor in (make.source,) if isinstance(make, Copy) else make.tensors:
            yield from leaves_of(tensor)


def leaves_of(tensor: TensorInfo) -> Iterator[TensorInfo]:
    """Yield the tensors on disk that a tensor's values are made from."""
    inner = [*tensors_in(tensor.form)]
    for each in inner:
        yield from leaves_of(each)
    if not inner:
        yield tensor


def stored_plainly(tensor: TensorInfo) -> bool:
    """Return whether a tensor is read as its bytes are, or computed from such tensors alone.

    Others are read by torch: quantised, adapted, pickled and GGUF's.
    """
    if isinstance(tensor.form, Computation):
        return all(map(stored_plainly, tensor.form.tensors))
    return tensor.form is None


def program_lines(program: Program) -> list[str]:
    """Return the program as text: one line for each tensor, its spec and its instruction."""
    return [
        f"{o.spec.name} {o.spec.dtype}[{','.join(map(str, o.spec.shape))}] = {_instruction(o.make)}"
        for o in program.outputs
    ]


def _instruction(make: Instruction) -> str:
    if isinstance(make, Copy):
        return f"copy {_tensor(make.source)}"
    if isinstance(make, Combine):
        return _combination(make)
    inner = _instruction(make.make)
    match make.fit:
        case Healing(texts=texts, rank=rank):
            files = ", ".join(repr(text.file) for text in texts)
            return f"heal({inner}, rank {'full' if rank is None else rank}, {files})"
        case Gap(after=after, until=until, on=on):
            return f"bridge({inner}, L{after} to L{until}, {on!r})"
        case TextFit(on=on) as fit:
            inner = of_expert(inner, "*") if make.word == "experts" else inner
            size = f"{fit.size}, " if isinstance(fit, SizeCut) else ""
            return f"{make.word}({inner}, {size}{on!r})"


def _combination(make: Combine) -> str:
    arguments = [f"{name}={value}" for name, value in make.arguments]
    tensors = [f"{m}:{_tensor(t)}" for m, t in zip(make.models, make.sources, strict=True)]
    base = [f"base={_tensor(tensor)}" for tensor in make.base]
    after = f" / {make.divisor!r}" if make.divisor != 1.0 else ""
    after += f" + {make.offset!r}" if make.offset else ""
    return f"{make.method}({', '.join([*tensors, *base, *arguments])}){after}"


def _tensor(tensor: TensorInfo) -> str:
    if isinstance(tensor.form, Combine):
        return _combination(tensor.form)
    return f"{tensor.file.parent.name}/{tensor.file.name}#{tensor.spec.name}"
