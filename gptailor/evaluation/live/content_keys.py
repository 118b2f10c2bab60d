"""Keys of the pieces of a live model: pieces with equal keys compute the same."""

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, final
from weakref import WeakValueDictionary

import torch
from jaxtyping import Shaped
from torch import Tensor

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import layer_entries, moved_config
from gptailor.checkpoint.files import Stamp, quoted, stamp, stamps
from gptailor.checkpoint.models import Opened, taken
from gptailor.checkpoint.tensor import Quantised, TensorInfo
from gptailor.plan.faults import TailorError
from gptailor.plan.plan import Plan, SizeCut
from gptailor.plan.resolved import Resolved
from gptailor.program.compile import compile_plan
from gptailor.program.load import combine_tensors, load_tensor
from gptailor.program.nested_models import with_made_models
from gptailor.program.program import (
    Combine,
    Copy,
    Instruction,
    Marked,
    Output,
    Program,
    files,
    stored_tensors,
    unfitted,
)
from gptailor.program.sources import Checked

_TENSOR_ALIGNMENT = 64
"""Alignment in bytes of torch's tensors on the CPU."""


@final
class TensorMaker:
    """Makes outputs on a device. With `keep`, each tensor of a model is read once and stays."""

    def __init__(self, device: torch.device, *, keep: bool) -> None:
        self.device = device
        self.keep = keep
        self._loaded: dict[TensorInfo, Tensor] = {}

    def make(self, output: Output) -> Shaped[Tensor, "..."]:
        """Return the output without bridges and healing, equal bit for bit to the compiled one.

        Don't write into it, as callers may share a copied tensor. Raises CheckpointError for a file
        that contradicts its header, OverflowFault for a merge that overflows.
        """
        make = unfitted(output.make)
        if isinstance(make, Copy):
            return self._load(make.source)
        # A tensor that is only dequantised is made once, and would otherwise be kept twice.
        keep = len(make.tensors) > 1 or not isinstance(make.tensors[0].form, Quantised)
        tensors = [self._load(tensor, keep=keep) for tensor in make.tensors]
        return combine_tensors(make, replace(output.spec, name=make.place), tensors)

    def forget(self, outputs: Iterable[Output]) -> None:
        """Forget the tensors that these outputs copy: the caller keeps them in another form."""
        for output in outputs:
            if isinstance(make := unfitted(output.make), Copy):
                self._loaded.pop(make.source, None)

    def of_layer(self, content: "Content", output: Output) -> Shaped[Tensor, "..."]:
        """Return an output of a layer, fitted if it was; raises as `make`."""
        fitted = content.fitted.get(output.spec.name)
        return self.make(output) if fitted is None else fitted

    def _load(self, tensor: TensorInfo, *, keep: bool = True) -> Tensor:
        if (cached := self._loaded.get(tensor)) is not None:
            return cached
        if isinstance(tensor.form, Combine):  # its sources load one after another
            inner = [self._load(source, keep=False) for source in tensor.form.tensors]
            loaded = combine_tensors(tensor.form, replace(tensor.spec, dtype="F32"), inner)
        else:
            loaded = aligned_tensor(load_tensor(tensor).to(self.device))
        if self.keep and keep:
            self._loaded[tensor] = loaded
        return loaded


def aligned_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor in memory that is aligned like torch's own allocations.

    The CPU's matrix products choose their kernels by the alignment, which changes the rounding by
    some 1e-7. A layer that is read again must compute the same.
    """
    return tensor.clone() if tensor.is_cpu and tensor.data_ptr() % _TENSOR_ALIGNMENT else tensor


def size_of(tensors: Iterable[Tensor]) -> int:
    """Return the total bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def not_finite(contents: "ModelContents") -> str | None:
    """Return which stored tensor of a model holds NaN or infinity, and its file.

    None if all are finite. Each tensor is read again, once while its file is unchanged. This is for
    a model that computed NaN, and a search may have many models of one file.
    """
    outputs = [*contents.begin, *(o for layer in contents.layers for o in layer.outputs)]
    for stored in dict.fromkeys(stored_tensors([*outputs, *contents.others, *contents.end])):
        [stamp] = stamps([stored.file]).values() or [None]
        if (holds := _not_finite(stored, stamp)) is not None:
            return f"{quoted(stored.spec.name)} in {stored.file} contains {holds}"
    return None


def cause_of_nan(contents: "ModelContents", dtype: torch.dtype) -> str:
    """Return why a model that computed in this dtype may have predicted NaN."""
    if (broken := not_finite(contents)) is not None:
        return broken
    remedy = "; float16 overflows; use --dtype bfloat16"
    return "all stored tensors are finite" + (remedy if dtype == torch.float16 else "")


@lru_cache(maxsize=2**16)
def _not_finite(stored: TensorInfo, _stamp: Stamp | None) -> str | None:
    """Return "NaN" or "infinity" if a tensor holds it; cached while its file is unchanged."""
    values = load_tensor(stored)
    if not values.is_floating_point() or bool(values.double().isfinite().all()):
        return None
    return "NaN" if bool(values.double().isnan().any()) else "infinity"


PieceKey = tuple[tuple[str, str, Instruction], ...]
"""Tensors' names (within their layer), dtypes, and the instructions that make them."""


@final
@dataclass(frozen=True, eq=False)
class Content:
    """The tensors and the kind of a layer, at any position. Equal only to itself.

    `kind` is the layer's configuration (type of attention, window, rotation, experts). `fitted` are
    tensors on the CPU that a narrower MLP, a bridge or healing changed; they replace the outputs of
    their names.
    """

    kind: str
    outputs: tuple[Output, ...]
    fitted: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def fitted_digest(self) -> bytes:
        """The sha256 of the names and the bytes of the fitted tensors."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.fitted.items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.digest()

    @property
    def made(self) -> int:
        """Bytes of the tensors that are computed."""
        return sum(
            output.spec.size
            for output in self.outputs
            if output.spec.name in self.fitted or isinstance(output.make, Combine)
        )


@final
@dataclass(frozen=True)
class ModelContents:
    """A closed plan's live model in pieces, from headers alone.

    `TensorMaker` leaves the gaps open, and doesn't make narrower MLPs. `Repairs` puts narrowed,
    bridged and healed tensors into `Content.fitted`, and chooses the experts that stay before.

    `config` is the compiled folder's, and `dtype` is its dtype, if it has one. `template` is the
    configuration of a model with one layer of each kind. It is equal for all plans with these
    kinds. `first` has the first position of each kind in `layers`. `begin`, `end` and `others` are
    the tensors outside the layers. `generation` are the settings of generation with a smaller
    vocabulary; empty if they are the base's.
    """

    config: dict[str, Any]
    dtype: str
    template: dict[str, Any]
    first: tuple[int, ...]
    layers: tuple[Content, ...]
    begin: tuple[Output, ...]
    end: tuple[Output, ...]
    others: tuple[Output, ...]
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def rest(self) -> tuple[Output, ...]:
        """All tensors outside the layers."""
        return (*self.begin, *self.others, *self.end)

    @property
    def start(self) -> Hashable:
        """A key of all that determines the hidden state before the first layer."""
        return self.dtype, piece(self.begin), piece(self.others)

    @property
    def key(self) -> str:
        """The template's configuration, for comparing."""
        return json.dumps(self.template, sort_keys=True)

    @property
    def instructions(self) -> str:
        """How the model is made, for the key of a kept result; see `instructions`."""
        outputs = [*self.rest, *(output for layer in self.layers for output in layer.outputs)]
        return f"{json.dumps(self.config, sort_keys=True)} {self.key} {instructions(outputs)}"


_ENDS = {"embed": "begin", "norm": "end", "head": "end", "other": "others"}
"""The fields of `ModelContents` for tensors outside the layers. Live models have no predictors."""


@final
class ContentTable:
    """Takes plans apart; equal layers of all its plans are one `Content`."""

    def __init__(self, models: Mapping[str, Opened]) -> None:
        self.models = models
        self._known: WeakValueDictionary[tuple[str, str, PieceKey], Content] = WeakValueDictionary()
        self._fitted: WeakValueDictionary[Hashable, Content] = WeakValueDictionary()

    def resolved(self, plan: Plan) -> Resolved:
        """Resolve a closed plan for the base."""
        return Checked.of(plan, self.models).resolved

    def checked(self, resolved: Resolved) -> Checked:
        """Return a closed plan with the table's models, including models made of models.

        Raises TailorError where a model that the plan uses isn't in the table.
        """
        plan = resolved.declared
        if missing := sorted(taken(plan) - self.models.keys()):
            raise TailorError(f"'{missing[0]}' is not among the models that were opened")
        return Checked(resolved, with_made_models(plan, self.models))

    def contents(self, resolved: Resolved) -> ModelContents:
        """Return the pieces of a closed plan without its fitted tensors and healing.

        Raises TailorError as `checked`.
        """
        checked = self.checked(resolved)
        layout = self.models["base"].layout
        compiled = compile_plan(checked, repaired=False)
        config, layers = compiled.config, compiled.program.layers
        entries = layer_entries(replace(layout, count=len(layers)), config)
        kept = resolved.kept_experts or ()
        numbers = resolved.undone_numbers
        experts = [{"experts": len(kept[n])} if kept and kept[n] else {} for n in numbers]
        kinds = [
            json.dumps({**entry, **_width(outputs), **fewer}, sort_keys=True)
            for entry, outputs, fewer in zip(entries, layers, experts, strict=True)
        ]
        shown = sorted({kind: at for at, kind in reversed(list(enumerate(kinds)))}.values())
        template = moved_config(layout, config, [entries[at] for at in shown])
        assert not isinstance(template, Refusal), template.reason
        dtype = str(config.get("dtype") or config.get("torch_dtype") or "")
        pairs = zip(kinds, layers, strict=True)
        contents = tuple(self._content(kind, dtype, outputs) for kind, outputs in pairs)
        outside = [o for o in compiled.program.outputs if o.place.layer is None]
        ends = {
            field: tuple(output for output in outside if _ENDS.get(output.place.part) == field)
            for field in _ENDS.values()
        }
        return ModelContents(
            config, dtype, template, tuple(shown), contents, **ends,
            generation=checked.token_cut.generation if checked.token_cut is not None else {},
        )  # fmt: skip

    def fitted(self, content: Content, tensors: Mapping[str, Tensor]) -> Content:
        """Return the layer with these fitted tensors too, the same object for the same tensors."""
        key = (content, *((name, id(tensor)) for name, tensor in tensors.items()))
        if (fitted := self._fitted.get(key)) is None:  # a kept layer keeps its tensors' ids
            fitted = self._fitted[key] = replace(content, fitted={**content.fitted, **tensors})
        return fitted

    def with_fitted(
        self, contents: ModelContents, tensors: Mapping[int, Mapping[str, Tensor]]
    ) -> ModelContents:
        """Return the contents with fitted tensors of some layers, by the layers' numbers."""
        layers = list(contents.layers)
        for number, fitted in tensors.items():
            layers[number] = self.fitted(layers[number], fitted)
        return replace(contents, layers=tuple(layers))

    def _content(self, kind: str, dtype: str, outputs: tuple[Output, ...]) -> Content:
        key = (kind, dtype, tuple((o.place.name, o.spec.dtype, o.make) for o in outputs))
        if (content := self._known.get(key)) is None:
            inner = [replace(o, spec=replace(o.spec, name=o.place.name)) for o in outputs]
            content = self._known[key] = Content(kind, tuple(inner))
        return content


def _width(outputs: Iterable[Output]) -> dict[str, int]:
    """Return the width of a layer's narrower MLP as a part of its kind; {} without one."""
    marks = [o.make for o in outputs if isinstance(o.make, Marked)]
    return {
        mark.word: mark.fit.closed_size
        for mark in marks
        if isinstance(mark.fit, SizeCut) and mark.word == "width"
    }


def instructions(outputs: Iterable[Output]) -> str:
    """Describe how outputs are made, for the key of a kept result.

    The description doesn't depend on the paths of files, and stays the same while files are
    unchanged.
    """
    some = tuple(outputs)
    described = repr([(output.spec, output.make) for output in some])
    for file in files(Program(some)):
        described = described.replace(repr(file), repr(stamp(file.stat())))
    return described


def piece(outputs: tuple[Output, ...]) -> PieceKey:
    """Return the key of some outputs."""
    return tuple((output.spec.name, output.spec.dtype, output.make) for output in outputs)
