"""The difference of two models as a LoRA adapter in PEFT's format: `extract_lora`."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn, final

import torch
from torch import Tensor

from gptailor.checkpoint.files import CheckpointError, is_gguf, quoted, refuse_changed, stamps
from gptailor.checkpoint.folder import ADAPTER
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import ByteRange, TensorInfo, TensorSpec
from gptailor.checkpoint.write.output_file import Payload
from gptailor.checkpoint.write.tensors import plan_shards
from gptailor.checkpoint.write.writer import (
    check_target,
    free_space,
    new_checkpoint,
    write_files,
)
from gptailor.methods.rounding import rounded
from gptailor.plan.arguments import Positive
from gptailor.plan.events import OnEvent, Progress, ignore_events
from gptailor.plan.faults import listed
from gptailor.plan.registry import DTYPES
from gptailor.plugins.lora.adapter_places import (
    SAVABLE,
    AdapterPlaces,
    Kind,
    length,
    owner_and_leaf,
)
from gptailor.plugins.lora.low_rank import low_rank, residual
from gptailor.plugins.lora.model_pair import base_settings, open_whole, refuse_unlike, weights_read
from gptailor.prepare import Dtype
from gptailor.program.devices import device_of
from gptailor.program.load import load_tensor

RANK = 64
"""The default rank of an adapter."""

_ROOT = "base_model.model."
"""PEFT's prefix of the names of a model's modules."""
_ENTRIES = 2**22
"""Number of entries that are compared at once."""


@final
@dataclass(frozen=True)
class ExtractedModule:
    """A projection with a low rank: ‖B - A‖ of its weight, and the share that the rank lacks.

    Norms are Frobenius norms. `error` is measured on the factors as they are written.
    """

    name: str
    rank: int
    difference: float
    error: float


@final
@dataclass(frozen=True)
class OtherDifference:
    """A tensor that differs and isn't a projection: kind, ‖B - A‖, whether the adapter has it.

    The adapter holds B's tensor whole.
    """

    name: str
    kind: Kind
    difference: float
    saved: bool


@final
@dataclass(frozen=True)
class ExtractResult:
    """A written adapter: its content, and the distance of the base with it from the tuned model.

    `size` is the number of bytes of its weights.
    """

    folder: Path
    modules: tuple[ExtractedModule, ...]
    others: tuple[OtherDifference, ...]
    size: int

    @property
    def error(self) -> float:
        """‖B - (A + adapter)‖ / ‖B - A‖ over all tensors, including the left out tensors."""
        omitted = [other.difference for other in self.others if not other.saved]
        unmerged = [other.difference for other in self.others]
        lost, every = self._lost_and_every
        return length([lost, *omitted]) / length([every, *unmerged])

    @property
    def error_of_modules(self) -> float:
        """The same share over the projections with a low rank alone."""
        lost, every = self._lost_and_every
        return lost / every

    @property
    def _lost_and_every(self) -> tuple[float, float]:
        lost = length(module.error * module.difference for module in self.modules)
        return lost, length(module.difference for module in self.modules)


def extract_lora(  # noqa: PLR0913 (the contents and the way of extracting)
    base: str | Path,
    tuned: str | Path,
    output: str | Path,
    *,
    rank: Positive = RANK,
    save: Collection[str] = (),
    dtype: Dtype = "float32",
    randomised: bool = False,
    device: str = "cpu",
    force: bool = False,
    on_event: OnEvent = ignore_events,
) -> ExtractResult:
    """Write the low-rank part of `tuned` - `base` as a LoRA adapter, all or nothing.

    Both are folders, GGUF files or ids on the Hub (`owner/name@revision`) of one architecture and
    shape. Each projection that differs gets factors of this `rank`, or of its smaller side:
    those with the least error, or, `randomised`, nearly so in a fraction of the time. They are
    computed in float64 on `device` and written in `dtype`. `save` are kinds of other tensors
    (`biases`, `norms`, `embed`, `head`) that the adapter is to hold whole where they differ.
    `on_event` receives `Progress`. Memory: a tensor of both
    models, its difference in float64, and a few matrices of its smaller side squared.

    Raises CheckpointError: C406 for models that differ in more than numbers, C407 where no
    projection does, C408 for values that aren't finite; and the errors of opening and writing.
    """
    for name, given, known in (("dtype", [str(dtype)], [*DTYPES]), ("save", save, SAVABLE)):
        if unknown := sorted(set(given) - set(known)):
            expected = listed(map(repr, known), "or")
            raise ValueError(f"'{name}': expected {expected}, got {unknown[0]!r}")
    target = Path(output)
    a, b = open_whole("base", base), open_whole("tuned", tuned)
    files = [file for model in (a, b) for file in model.checkpoint.files]
    protected = {file if is_gguf(file) else file.parent for file in files}
    check_target(target, force=force, protected=protected)
    refuse_unlike(a, b)
    before = stamps(files)
    request = _Wanted(rank, frozenset(save), DTYPES[str(dtype)], randomised, device_of(device))
    work = _Extraction(a, b, request, on_event)
    work.compare()
    (shard,) = plan_shards(work.specs(), 2**63)
    shard = replace(shard, name=ADAPTER)
    if (free := free_space(target)) < shard.size:
        message = f"the adapter takes {shard.size:,} bytes, but {free:,} are free"
        raise CheckpointError("C305", message, target)

    config = json.dumps(work.settings(base_settings(base, a)), indent=2, sort_keys=True) + "\n"
    with new_checkpoint(
        target, [shard], work.payload, force=force, protected=protected, threads=1
    ) as new:
        refuse_changed(before)
        text = _card(work.extracted(target, shard.size), str(base), str(tuned))
        write_files(new, target, {ADAPTER_CONFIG: config.encode(), "README.md": text})
    return work.extracted(target, shard.size)


# ------------------------------------------------------------------------------- the extraction


@final
@dataclass(frozen=True)
class _Change:
    """A tensor that differs, by transformers' name if it has one."""

    name: str
    kind: Kind
    a: TensorInfo
    b: TensorInfo
    difference: float


@final
@dataclass(frozen=True)
class _Wanted:
    """The settings of an adapter: see `extract_lora`; `dtype` is safetensors' name."""

    rank: int
    save: frozenset[str]
    dtype: str
    randomised: bool
    device: torch.device


@final
class _Extraction:
    """The tensors that differ, and the adapter's tensors; once written, the errors too."""

    def __init__(self, a: Opened, b: Opened, request: _Wanted, on_event: OnEvent) -> None:
        self.a, self.b, self.wanted, self.on_event = a, b, request, on_event
        self.places = AdapterPlaces(a)
        self.tied = a.layout.tied and bool(self.places.head)
        self.changes: list[_Change] = []
        self.targets: dict[str, _Change] = {}
        self.whole: dict[str, TensorInfo] = {}
        self.saved: set[str] = set()
        self.by_key: dict[str, _Change] = {}
        self.factors: dict[str, Tensor] = {}
        self.modules: dict[str, ExtractedModule] = {}

    def compare(self) -> None:
        """Find the tensors that differ; raise CheckpointError if no projection does."""
        base, tuned = weights_read(self.a), weights_read(self.b)
        places = {n: self.places.name_of(n, tensor.spec.shape) for n, tensor in base.items()}
        for done, name in enumerate(sorted(base, key=_in_order), 1):
            difference = _difference(base[name], tuned[name])
            self.on_event(Progress("extracting", 300 * done // len(base), 1000))
            if difference:
                kind, shown = self.places.kind_of(places[name]), places[name] or name
                self.changes.append(_Change(shown, kind, base[name], tuned[name], difference))
        self.targets = {
            owner_and_leaf(c.name)[0]: c for c in self.changes if c.kind == "projections"
        }
        if not self.targets:
            kinds = listed(dict.fromkeys(change.kind for change in self.changes))
            what = f"differs from the base only in {kinds}" if kinds else "equals the base exactly"
            message = f"{what}, but a LoRA changes projections"
            raise CheckpointError("C407", message, self.b.checkpoint.folder)
        self._hold({p: tuned[name] for name, p in places.items() if p is not None})

    def _hold(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Find the tensors that are held whole, among the tensors that transformers has."""
        for change in self.changes:
            if change.kind not in self.wanted.save:
                continue
            owner = owner_and_leaf(change.name)[0]
            if change.kind == "biases":
                wrapped = ".base_layer" if owner in self.targets else ""
                self.whole[f"{_ROOT}{owner}{wrapped}.bias"] = change.b
                continue
            self._hold_module(owner, tensors)
            if self.tied and change.kind == "embed":  # PEFT ties them, and looks for both
                named = not owner.endswith("embed_tokens")
                self._hold_module(self.places.head, tensors, named=named)

    def _hold_module(
        self, owner: str, tensors: Mapping[str, TensorInfo], *, named: bool = True
    ) -> None:
        """Hold all tensors of a module, since PEFT looks for all; a tied head's is the embedding.

        PEFT finds a tied head by itself where it knows the embedding's name: `embed_tokens`.
        """
        if named:
            self.saved.add(owner)
        held = {name: each for name, each in tensors.items() if owner_and_leaf(name)[0] == owner}
        if self.tied and owner == self.places.head:
            embed = self.a.layout.embed[0]
            from_tuned = "embed" in self.wanted.save
            held[f"{owner}.weight"] = weights_read(self.b if from_tuned else self.a)[embed]
        self.whole |= {_ROOT + name: each for name, each in held.items()}

    def specs(self) -> list[TensorSpec]:
        """Return the adapter's tensors; the two factors of a module follow each other."""
        specs = []
        for module, change in self.targets.items():
            outputs, inputs = self._oriented(change.a.spec.shape)
            rank = min(self.wanted.rank, outputs, inputs)
            for letter, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                key = f"{_ROOT}{module}.lora_{letter}.weight"
                self.by_key[key] = change
                specs.append(TensorSpec(key, self.wanted.dtype, shape))
        specs += [TensorSpec(key, t.spec.dtype, t.spec.shape) for key, t in self.whole.items()]
        return specs

    def _oriented(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the numbers of outputs and inputs of a projection's weight."""
        first, second = shape
        return (second, first) if self.a.layout.transposed else (first, second)

    def payload(self, spec: TensorSpec) -> Payload:
        """Return the bytes of a tensor of the adapter; factors are computed on demand."""
        whole = self.whole.get(spec.name)
        if whole is not None and whole.form is None:
            return ByteRange(whole.file, whole.offset, spec.size)
        return self._computed(spec, whole)

    def _computed(self, spec: TensorSpec, whole: TensorInfo | None) -> Iterator[memoryview]:
        if whole is not None:
            tensor = _rounded(load_tensor(whole), spec.dtype, quoted(spec.name), whole.file)
        else:
            if spec.name not in self.factors:
                self._factorise(spec.name)
            tensor = self.factors.pop(spec.name)
        raw: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        yield raw

    def _factorise(self, key: str) -> None:
        """Compute both factors of a module, and measure their error."""
        change = self.by_key[key]
        module = owner_and_leaf(change.name)[0]
        matrix = _subtracted(change, self.wanted.device)
        if self.a.layout.transposed:
            matrix = matrix.t()
        pair = low_rank(matrix, self.wanted.rank, module if self.wanted.randomised else None)
        what, dtype = f"the factors of {quoted(module)}", self.wanted.dtype
        b, a = (_rounded(factor, dtype, what, change.b.file) for factor in pair)
        share = residual(matrix, b, a) / change.difference
        extracted = ExtractedModule(module, a.shape[0], change.difference, share)
        self.modules[module] = extracted
        self.factors[f"{_ROOT}{module}.lora_A.weight"] = a.cpu()
        self.factors[f"{_ROOT}{module}.lora_B.weight"] = b.cpu()
        done = 300 + 700 * len(self.modules) // (len(self.by_key) // 2)
        self.on_event(Progress("extracting", done, 1000))

    def settings(self, base: Mapping[str, str]) -> dict[str, Any]:
        """Return the adapter's configuration, by PEFT's names."""
        ranks = {}
        for module, change in self.targets.items():
            ranks[module] = min(self.wanted.rank, *change.a.spec.shape)
        names, largest = self.places.shortest(ranks), max(ranks.values())
        patterns = {name: rank for name, rank in names.items() if rank != largest}
        bias = any(key.endswith(".base_layer.bias") for key in self.whole)
        config: dict[str, Any] = {
            **base,
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": largest,
            "lora_alpha": largest,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "lora_dropout": 0.0,
            "target_modules": sorted(names),
            "modules_to_save": sorted(self.saved) or None,
            "bias": "lora_only" if bias else "none",
            "fan_in_fan_out": self.a.layout.transposed,
            "inference_mode": True,
            "init_lora_weights": True,
        }
        by_name = any(owner.endswith(("embed_tokens", "lm_head")) for owner in self.saved)
        tied = (
            self.tied
            and by_name
            and any(c.kind == "embed" and c.kind in self.wanted.save for c in self.changes)
        )
        return config | ({"ensure_weight_tying": True} if tied else {})

    def extracted(self, folder: Path, size: int) -> ExtractResult:
        """Return the result, once the adapter is written."""
        others = tuple(
            OtherDifference(c.name, c.kind, c.difference, c.kind in self.wanted.save)
            for c in self.changes
            if c.kind != "projections"
        )
        return ExtractResult(folder, tuple(self.modules.values()), others, size)


def _in_order(name: str) -> list[tuple[bool, int, str]]:
    """Return the sort key of a name: its words, numbers as numbers."""
    words = name.split(".")
    return [(w.isdecimal(), int(w) if w.isdecimal() else 0, w) for w in words]


def _difference(a: TensorInfo, b: TensorInfo) -> float:
    """Return ‖b - a‖ in float64. Raises CheckpointError (C408) if it isn't finite."""
    base, tuned = load_tensor(a).reshape(-1), load_tensor(b).reshape(-1)
    if base.dtype == tuned.dtype and torch.equal(base, tuned):
        return 0.0
    parts = []
    for start in range(0, len(base), _ENTRIES):
        part = tuned[start : start + _ENTRIES].double() - base[start : start + _ENTRIES].double()
        parts.append(float(torch.linalg.vector_norm(part)))
    difference = length(parts)
    if not isfinite(difference):
        message = f"{quoted(b.spec.name)} contains infinity or NaN in one of the models"
        raise CheckpointError("C408", message, b.file)
    return difference


def _rounded(values: Tensor, dtype: str, what: str, file: Path) -> Tensor:
    """Return the values in a dtype. Raises CheckpointError (C408) for one that it can't hold."""

    def refuse(number: int) -> NoReturn:
        message = f"{what} would contain {float(values.reshape(-1)[number]):.9g} in {dtype}"
        raise CheckpointError("C408", message, file, "choose another --dtype")

    result: Tensor = rounded(values, dtype, refuse)
    return result


def _subtracted(change: _Change, device: torch.device) -> Tensor:
    """Return B - A of a tensor, in float64 on a device."""
    base, tuned = (load_tensor(info).to(device) for info in (change.a, change.b))
    return tuned.double().sub_(base)


# ------------------------------------------------------------------------------------- the card


def _card(adapter: ExtractResult, base: str, tuned: str) -> bytes:
    """Return the adapter's model card: its two models, and the error of each module."""
    lines = [
        "---", "library_name: peft", "tags:", "- gptailor", "- lora", "---", "",
        f"# {adapter.folder.name}", "",
        f"The difference of `{tuned}` and `{base}`, as a low-rank adapter on `{base}`.",
        f"{adapter.error:.2%} of the difference (Frobenius norm, over all tensors) is not in it.",
        "",
        "| module | rank | size of the difference | not in the adapter |",
        "|---|--:|--:|--:|",
    ]  # fmt: skip
    lines += [
        f"| `{m.name}` | {m.rank} | {m.difference:.4g} | {m.error:.2%} |" for m in adapter.modules
    ]
    if adapter.others:
        lines += ["", "| other tensor | size of the difference | |", "|---|--:|---|"]
    for other in adapter.others:
        state = "in it, whole" if other.saved else "not in it"
        lines.append(f"| `{other.name}` | {other.difference:.4g} | {state} |")
    return ("\n".join(lines) + "\n").encode()
