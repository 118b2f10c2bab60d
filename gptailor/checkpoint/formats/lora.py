"""A LoRA adapter applied to a model: each of its tensors has a place, or the adapter is refused."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout, aliases, split_name, untied
from gptailor.checkpoint.files import LONGEST_NAME, CheckpointError, quoted, shown
from gptailor.checkpoint.folder import ADAPTER, CONFIG, Checkpoint
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG, LoraSettings, read_settings
from gptailor.checkpoint.formats.pytorch import ADAPTER_BIN, read_pickled
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.checkpoint.tensor import FLOATS, Adapted, Delta, LowRank, NewRows, Shift, TensorInfo
from gptailor.plan.faults import listed, nearest_path
from gptailor.plan.registry import LARGEST_SINGLE

_ROWS = "token_adapter.trainable_tokens_delta"
_MAGNITUDE = "lora_magnitude_vector"
_BIAS = "lora_B.bias"
_EMBEDDING = "lora_embedding"

_ROOT = "base_model.model."
_NAME = r"(?:\.(?!weight$|bias$)[^.]+)?"  # the adapter's own, which some programs leave in
_PIECE = re.compile(
    rf"(?P<module>.+)\.(?:(?P<factor>lora_[AB]){_NAME}\.weight|(?P<bias>lora_B){_NAME}\.bias|"
    rf"(?P<plain>lora_embedding_[AB]|{re.escape(_ROWS)}){_NAME}|"
    rf"(?P<magnitude>{_MAGNITUDE}){_NAME}(?:\.weight)?)"
)
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")


def apply_adapter(
    model: Checkpoint, folder: Path, also: Collection[str] | None = ()
) -> tuple[Checkpoint, list[str]]:
    """Return the model with the adapter's tensors and deltas, and warnings, from headers alone.

    `also` are other names that the model is known by; with None the adapter's name for its base is
    not compared.

    Raises CheckpointError: C401 for a configuration or file that is missing or wrong, C402 for a
    kind or setting that can't be applied, C403 for a tensor that has no place in the model, C404
    for another shape, C405 for an incomplete part. No tensor is left unapplied, except the deltas
    that PEFT reads neither.
    """
    file = _weights(folder)
    settings = read_settings(folder)
    pieces, replacing = _sorted(
        file, read_header(file) if file.name == ADAPTER else read_pickled(file)
    )
    lengths = (len(name) for name in (*pieces, *model.tensors))
    longest = max((length for length in lengths if length <= LONGEST_NAME), default=0)
    for key, name in settings.slow_patterns(longest):
        message = f"'{key}' has {quoted(name)}, a pattern that takes too long to match"
        help_ = "write plain names"
        raise CheckpointError("C402", message, folder / ADAPTER_CONFIG, help_)
    layout = model.layout()
    if isinstance(layout, Refusal):
        raise CheckpointError("C403", f"the model can't be adapted: {layout.reason}", folder)
    work = _Work(model, layout, settings, file)
    work.replace_whole(replacing)
    work.add_deltas(pieces)
    if not work.applied:
        message = "the adapter doesn't change the model"
        raise CheckpointError("C401", message, file, next(work.surplus(), ""))
    adapted = replace(model, config=work.config, tensors=work.tensors, files=(*model.files, file))
    base = settings.base_model_name_or_path
    warnings = [] if also is None else _other_base(model, base, also)
    return adapted, [*warnings, *work.warnings, *work.missing(), *work.surplus()]


def _weights(folder: Path) -> Path:
    """Return the file of an adapter's tensors; with two of them, the one that PEFT takes."""
    if not folder.is_dir():
        raise CheckpointError("C101", "there is no such folder", folder, nearest_path(folder))
    if not (folder / ADAPTER_CONFIG).exists():
        complete = (folder / CONFIG).exists()
        help_ = (
            'expected an adapter, got a whole model: write `model NAME = "…"`' if complete else ""
        )
        raise CheckpointError("C401", f"the folder has no {ADAPTER_CONFIG}", folder, help_)
    weights = next((name for name in (ADAPTER, ADAPTER_BIN) if (folder / name).exists()), None)
    if weights is None:
        raise CheckpointError("C401", f"the folder has no {ADAPTER}", folder)
    return folder / weights


def _other_base(model: Checkpoint, base: str, also: Collection[str]) -> Iterator[str]:
    """Yield a warning if an adapter's configuration names another base than this model."""

    def last(path: object) -> list[str]:
        parts = re.split(r"[/\\]", path) if isinstance(path, str) else []
        return [part.casefold() for part in parts if part not in ("", ".")][-1:]

    folder = model.folder.absolute()
    names = [str(folder), *(str(file.absolute().parent) for file in model.files), *also]
    known_parts = {
        part for name in (*names, model.config.get("_name_or_path")) for part in last(name)
    }
    if folder.parent.name == "snapshots":  # of the Hub's cache: models--OWNER--NAME/snapshots/…
        known_parts.add(folder.parent.parent.name.split("--")[-1].casefold())
    if not known_parts.issuperset(last(base)):
        yield f"{OTHER_BASE}, {quoted(base)}"


OTHER_BASE = "the adapter's configuration names another base"
"""The first words of the warning of another base."""

_Pieces = dict[str, TensorInfo]
"""An adapter's tensors for one module by their kinds: `lora_A`, `lora_B` and so on."""


def _pair(pieces: _Pieces) -> tuple[str, str]:
    kind = _EMBEDDING if any(kind.startswith(_EMBEDDING) for kind in pieces) else "lora"
    return f"{kind}_A", f"{kind}_B"


def _sorted(
    file: Path, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, _Pieces], dict[str, TensorInfo]]:
    """Return each module's pieces, and replacing tensors by the name that the model may have."""
    pieces: dict[str, _Pieces] = {}
    replacing: dict[str, TensorInfo] = {}
    for key, tensor in tensors.items():
        if tensor.spec.dtype not in FLOATS:
            message = f"{quoted(key)}: expected a float dtype, got {tensor.spec.dtype}"
            raise CheckpointError("C402", message, file)
        if len(key) > LONGEST_NAME:
            message = f"{quoted(key)} has {len(key)} characters, more than any module's name"
            raise CheckpointError("C403", message, file)
        name = key.removeprefix(_ROOT)
        if (match := _PIECE.fullmatch(name)) is not None:
            kind = _BIAS if match["bias"] else match["factor"] or match["plain"] or _MAGNITUDE
            first = pieces.setdefault(match["module"], {}).setdefault(kind, tensor)
        else:
            first = replacing.setdefault(_WRAPPED.sub("", name), tensor)
        if first is not tensor:
            message = f"{quoted(key)} and {quoted(first.spec.name)} are for the same module"
            raise CheckpointError("C403", message, file)
    return pieces, replacing


@final
class _Work:
    """One adapter applied to one model; `tensors` and `config` become the result's.

    While `tied`, the head is the embedding's tensor, whether or not a tensor has the head's name.
    """

    def __init__(
        self, model: Checkpoint, layout: Layout, settings: LoraSettings, file: Path
    ) -> None:
        self.layout = layout
        self.settings = settings
        self.file = file
        self.tensors: dict[str, TensorInfo] = dict(model.tensors)
        self.config = model.config
        self.embed = layout.embed[0] if layout.embed else ""
        self.head = layout.head[0] if layout.head else ""
        self.tied = layout.tied and bool(self.head) and self.embed in self.tensors
        self.warnings: list[str] = []
        self.changed: set[str] = set()
        self.has_rows = False
        self.modules: list[str] = []  # modules with a pair of factors
        self.left_out: dict[str, list[str]] = {}  # modules by the setting that leaves them out
        self.applied = False

    def refuse(self, code: str, message: str, help: str = "") -> NoReturn:
        raise CheckpointError(code, message, self.file, help)

    def resolved(self, name: str) -> str | None:
        """Return the model's name of a tensor, with or without the base model's prefix, or None."""
        base = self.layout.family.base
        head = self.layout.head[:1] if name == "lm_head.weight" else ()  # GPT-NeoX's, by now
        candidates = (
            name,
            base + name,
            name.removeprefix(base),
            *aliases(self.layout, name),
            *head,
        )
        return next((each for each in candidates if each in self.tensors), None)

    def refuse_place(self, tensor: TensorInfo) -> NoReturn:
        message = f"the model has no module for {quoted(tensor.spec.name)}"
        help_ = "use the model that the adapter was trained on"
        self.refuse("C403", message, help_)

    def check_shape(self, tensor: TensorInfo, target: str, wanted: tuple[int, ...]) -> None:
        """Refuse a tensor with another shape than the wanted shape."""
        if tensor.spec.shape == wanted:
            return
        message = f"{quoted(tensor.spec.name)} has the shape {list(tensor.spec.shape)}"
        message += f", expected {list(wanted)} for {quoted(target)} of the model"
        vocabulary = target in (self.embed, self.head) and tensor.spec.shape[1:] == wanted[1:]
        help_ = (
            "the adapter has another vocabulary; use the model that it was trained on"
            if vocabulary
            else "use the model that the adapter was trained on"
        )
        self.refuse("C404", message, help_)

    def replace_whole(self, replacing: Mapping[str, TensorInfo]) -> None:
        """Put the tensors that an adapter brings whole into the place of the model's."""
        saved: dict[str, TensorInfo] = {}
        for key, tensor in replacing.items():
            tied_head = self.tied and self.head in (key, *aliases(self.layout, key))
            name = self.head if tied_head else self.resolved(key)
            if name is None or saved.setdefault(name, tensor) is not tensor:
                self.refuse_place(tensor)
        for name in self.tensors:
            present = name in saved or (self.tied and name == self.head)
            if not present and self.settings.saves(name):
                message = f"'modules_to_save' names {quoted(name)}, which the file lacks"
                self.refuse("C405", message)
        if self.tied and (self.embed in saved or self.head in saved):
            self._part_or_join(saved)
        for name, tensor in saved.items():
            spec = self.tensors[name].spec
            self.check_shape(tensor, name, spec.shape)
            cast = None if tensor.spec.dtype == spec.dtype else Adapted(tensor, ())
            self.tensors[name] = TensorInfo(spec, tensor.file, tensor.offset, cast)
            self.changed.add(name)
            self.applied = True

    def _part_or_join(self, saved: dict[str, TensorInfo]) -> None:
        """Separate embedding and head of a tied model if they are modules to save, as in PEFT."""
        brought = [name for name in (self.embed, self.head) if name in saved]
        if self.settings.ensure_weight_tying or not any(map(self.settings.saves, brought)):
            if self.head in saved:
                saved.setdefault(self.embed, saved.pop(self.head))
            return
        own = self.tensors[self.embed]
        self.tensors[self.head] = replace(own, spec=replace(own.spec, name=self.head))
        self.config = untied(self.config)
        self.tied = False
        names = listed(quoted(name) for name in brought)
        self.warnings.append(
            f"the output's embedding and head aren't tied, because the adapter has {names}"
        )

    def add_deltas(self, by_module: Mapping[str, _Pieces]) -> None:
        by_target: dict[str, str] = {}
        for module, pieces in by_module.items():
            for target, delta in self._deltas(module, pieces):
                other = by_target.setdefault(target, module)
                if other != module:
                    modules = f"{quoted(other)} and {quoted(module)}"
                    message = f"{modules} are one tensor of the model, but the adapter changes each"
                    self.refuse(
                        "C402",
                        message,
                        "PEFT would add both deltas, although neither was trained with the other",
                    )
                self._add(target, delta)

    def _add(self, name: str, delta: Delta) -> None:
        info = self.tensors[name]
        form = info.form if isinstance(info.form, Adapted) else Adapted(info, ())
        self.tensors[name] = replace(info, form=replace(form, deltas=(*form.deltas, delta)))
        self.changed.add(name)
        nothing = isinstance(delta, LowRank) and not delta.scale and delta.magnitude is None
        self.applied = self.applied or not nothing

    def _deltas(self, module: str, pieces: _Pieces) -> Iterator[tuple[str, Delta]]:
        """Yield the tensors that a module's pieces change, and their deltas."""
        if pieces.keys() == {_ROWS}:
            yield self._new_rows(module, pieces[_ROWS])
            return
        self._check_pieces(module, pieces)
        a, b = (pieces[kind] for kind in _pair(pieces))
        target = self._target(f"{module}.weight", a)
        if (setting := self._leaving_out(module, target)) is not None:
            self.left_out.setdefault(setting, []).append(module)
            return
        self.modules.append(module)
        in_layer = isinstance(split_name(self.layout, target), tuple)
        turned = f"{_EMBEDDING}_A" in pieces or (self.layout.transposed and in_layer)
        self._check_factors(module, pieces, target, turned=turned)
        if self.tied and target == self.embed:
            warning = "embedding and head are tied: the adapter changes both, as in PEFT"
            self.warnings.append(warning)
        scale = self.settings.scale_of(module)
        if abs(scale) > LARGEST_SINGLE:
            message = f"'lora_alpha' scales {quoted(module)} by {scale:g}, expected at most"
            message += f" {LARGEST_SINGLE:.9g}, where float32 ends"
            raise CheckpointError("C401", message, self.file.parent / ADAPTER_CONFIG)
        yield target, LowRank(a, b, scale, turned, pieces.get(_MAGNITUDE))
        if (bias := pieces.get(_BIAS)) is not None:
            target = self._target(f"{module}.bias", bias)
            self.check_shape(bias, target, self.tensors[target].spec.shape)
            yield target, Shift(bias, scale)

    def _leaving_out(self, module: str, target: str) -> str | None:
        """Return the setting that leaves a delta out, also by the model's name of the module."""
        setting = self.settings.leaving_out(module)
        if setting is None or f"{module}.weight" in {target, self.head}:
            return setting
        return self.settings.leaving_out(target.removesuffix(".weight"))

    def _check_pieces(self, module: str, pieces: _Pieces) -> None:
        """Refuse a module's delta with missing pieces, or with pieces that the settings deny."""
        pair, name = _pair(pieces), quoted(module)
        for kind in pair:
            if kind not in pieces:
                self.refuse("C405", f"{name} has no {kind}, so its delta is incomplete")
        for kind, setting, on in (
            (_MAGNITUDE, "use_dora", self.settings.use_dora),
            (_BIAS, "lora_bias", self.settings.lora_bias and f"{_EMBEDDING}_A" not in pieces),
        ):
            if on and kind not in pieces:
                self.refuse("C405", f"{name} has no {kind}, but '{setting}' is true")
            if not on and kind in pieces:
                self.refuse("C402", f"{name} has a {kind}, but '{setting}' is not true")
        if surplus := pieces.keys() - {*pair, _MAGNITUDE, _BIAS}:
            self.refuse("C402", f"{name} has a {min(surplus)} together with its {pair[0]}")

    def _target(self, name: str, tensor: TensorInfo) -> str:
        """Return the tensor that a delta is for; a tied head's is the embedding's."""
        target = self.resolved(self.embed if self.tied and name == self.head else name)
        if target is None:
            self.refuse_place(tensor)
        if (dtype := self.tensors[target].spec.dtype) not in FLOATS:
            message = f"can't add a delta to {quoted(target)} of the model, which is {dtype}"
            self.refuse("C402", message, "put the adapter on the unquantised model")
        return target

    def _check_factors(self, module: str, pieces: _Pieces, target: str, *, turned: bool) -> None:
        shape = self.tensors[target].spec.shape
        if len(shape) != 2:
            self.refuse(
                "C404", f"{quoted(target)} has {len(shape)} dimensions, but a delta has two"
            )
        pair, rank = _pair(pieces), self.settings.rank_of(module)
        a = pieces[pair[0]]
        if a.spec.shape[:1] != (rank,):
            message = f"{quoted(a.spec.name)} has the shape {list(a.spec.shape)}"
            self.refuse("C404", f"{message}, but the configuration has the rank {rank}")
        outputs, inputs = reversed(shape) if turned else shape
        wanted: list[tuple[int, ...]] = [(rank, inputs), (outputs, rank), (outputs,)]
        for kind, its in zip((*pair, _MAGNITUDE), wanted, strict=True):
            if kind in pieces:
                self.check_shape(pieces[kind], target, its)

    def _new_rows(self, module: str, rows: TensorInfo) -> tuple[str, Delta]:
        self.has_rows = True
        target = self._target(f"{module}.weight", rows)
        at = self.settings.tokens_of(module)
        if at is None:
            name = quoted(module)
            self.refuse("C405", f"'trainable_token_indices' has no row numbers for {name}")
        shape = self.tensors[target].spec.shape
        self.check_shape(rows, target, (len(at), *shape[1:]))
        if max(at, default=0) >= shape[0]:
            message = (
                f"'trainable_token_indices' has {max(at)}, but the model has {shape[0]} tokens"
            )
            self.refuse("C404", message)
        return target, NewRows(rows, at)

    def missing(self) -> Iterator[str]:
        """Yield a warning if the adapter has no delta for modules that it aims at."""
        targets = self.settings.target_modules
        tensors = self.tensors if targets and not isinstance(targets, str) else ()
        names = [name for name in tensors if self._is_missing(name)]
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield (
                f"the adapter has no delta for {quoted(names[0])}{more}, although its "
                "'target_modules' has them"
            )

    def surplus(self) -> Iterator[str]:
        """Warn of deltas that the configuration leaves out, and of patterns that match nothing."""
        for setting, modules in self.left_out.items():
            more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
            value = getattr(self.settings, setting)
            its = shown(list(value) if isinstance(value, tuple) else value)
            yield (
                f"the adapter has a delta for {quoted(modules[0])}{more}, which its '{setting}' "
                f"{its} leaves out, as PEFT does"
            )
        if self.settings.trainable_token_indices and not self.has_rows:
            yield "the adapter has no rows for the tokens of its 'trainable_token_indices'"
        for setting, name in self.settings.idle_patterns(self.modules):
            yield f"the adapter has no module for {quoted(name)} of its '{setting}'"

    def _is_missing(self, name: str) -> bool:
        adapted = name in self.changed or (self.tied and name == self.head)
        is_matrix = name.endswith(".weight") and len(self.tensors[name].spec.shape) == 2
        if adapted or not is_matrix or len(name) > LONGEST_NAME:
            return False
        return self.settings.leaving_out(name.removesuffix(".weight")) is None
