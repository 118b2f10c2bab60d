"""Merges of tensors in memory, with the arithmetic of `compile`: the verb `merge`."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from pydantic import ValidationError
from torch import Tensor

from gptailor.checkpoint.files import quoted
from gptailor.checkpoint.tensor import TensorInfo, TensorSpec
from gptailor.checks.plan import check_alone
from gptailor.plan.faults import PlanError, TailorError, errors
from gptailor.plan.plan import Layer, LayerOf, Merge, MethodCall, Model, Plan
from gptailor.plan.registry import METHODS
from gptailor.program.compile import making
from gptailor.program.devices import dtype_of
from gptailor.program.load import FLOAT_DTYPES, TORCH_DTYPES, combine_tensors
from gptailor.program.program import Combine

_Given = TypeVar("_Given", Tensor, dict[str, Tensor])
"""One tensor of each model, or tensors by name as `module.state_dict()` gives them."""

_FLOATS = frozenset(FLOAT_DTYPES.values())
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_BASE = "base"
"""The name of θ_b's tensors in messages."""


def merge(
    sources: Mapping[str, _Given],
    by: str = "linear",
    /,
    *,
    base: _Given | None = None,
    dtype: str | torch.dtype | None = None,
    name: str = "",
    **arguments: Any,
) -> _Given:
    """Merge the tensors of several models by a method, tensor by tensor, in memory.

    `sources` are state dicts by the models' names, all with the same keys, or one tensor each. The
    result is of the same kind, in new memory. Tensors of one key have one shape, one dtype and one
    device in all sources and in `base`. With `dtype` their dtypes may differ; the result has
    `dtype`. `by` is a method of the language, and `arguments` are its parameters by name: numbers
    without a unit, a list for a number per source, in the order of `sources`, and words as texts
    (`"yes"`, or True). `base` are θ_b's tensors, which methods of task vectors need. Other methods
    ignore `base`, but its keys, shapes and dtypes must agree.

    The arithmetic is the same as in `compile`: in float32, rounded once, the same bytes for the
    same tensors, names and keys. (The draws of `dare` depend on the names of the model and the
    tensor; `name` is the name of a single tensor.) Tensors that no method merges, such as whole
    numbers, are kept if all models have the same, and refused otherwise. Keys that share their
    memory in all models, as a tied head and its embedding do, are merged once and share memory
    again.

    Raises PlanError for an invalid method, argument or number of sources, as in a plan, and for a
    value that the dtype can't hold. Raises TailorError for tensors that don't agree, by name.

    The methods, their formulas and papers: docs/merge_methods.md.
    """
    recipe = _recipe(list(sources), by, arguments)
    if METHODS[by].takes_base(arguments) and base is None:
        raise TailorError(f"'{by}' needs the base's tensors: give them as 'base'")
    every: list[tuple[str, Any]] = [*sources.items()]
    every += [(_BASE, base)] if base is not None else []
    single = not isinstance(every[0][1], Mapping)
    for model, tensors in every:
        if single is isinstance(tensors, Mapping):
            expected = "one tensor" if single else "a state dict"
            what = type(tensors).__name__
            raise TailorError(f"'{model}' has the type {what}, but '{every[0][0]}' has {expected}")
    if name and not single:
        raise TailorError(
            "'name' is for single tensors; the tensors of state dicts have their keys"
        )
    if single:
        every = [(model, {name: tensor}) for model, tensor in every]
    by_key = _Merging(recipe, every, base is not None, dtype_of(dtype)).merged()
    merged: Any = by_key[name] if single else by_key
    result: _Given = merged
    return result


def _recipe(models: Sequence[str], by: str, arguments: Mapping[str, Any]) -> Merge:
    """Return the recipe of a merge. Raises PlanError with all faults, as a plan with it would."""
    values = {name: _value(name, value) for name, value in arguments.items()}
    try:
        call = MethodCall(name=by, arguments=values)
    except ValidationError as error:
        place = [str(part) for part in error.errors(include_input=False)[0]["loc"]]
        wrong = next((name for name in place if name in values), "by")
        value = values.get(wrong, by)
        raise TailorError(f"invalid value of {quoted(wrong)}: {value!r}") from error
    stand_ins = {f"m{i}": model for i, model in enumerate(models)}  # a plan's names are words
    recipe = Merge(merge=tuple(LayerOf(model=name, layer=0) for name in stand_ins), by=call)
    declared = {name: Model(source=f"./{name}") for name in (_BASE, *stand_ins)}
    faults = check_alone(Plan(models=declared, layers=(Layer(position=0, recipe=recipe),)))
    if errors(faults):
        raise PlanError([replace(fault, at=()) for fault in errors(faults)])
    layers = tuple(LayerOf(model=model, layer=0) for model in models)
    return recipe.model_copy(update={"merge": layers})


def _value(name: str, value: Any) -> Any:
    """Return an argument in a plan's form: a number, a word, or a tuple of these."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of an array or a tensor
    match value:
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case Integral():
            return int(value)
        case Real() if math.isfinite(value):
            return float(value)
        case Iterable() if not isinstance(value, Mapping | Set | bytes):
            return tuple(_value(name, each) for each in value)
    raise TailorError(f"{quoted(name)}: expected a number or a list of numbers, got {value!r}")


@final
class _Merging:
    """Sources that are merged by a recipe, each key's tensors when their turn comes.

    `every` are the sources, and after them the base where `based`.
    """

    def __init__(
        self,
        recipe: Merge,
        every: Sequence[tuple[str, Mapping[str, Any]]],
        based: bool,
        dtype: torch.dtype | None,
    ) -> None:
        self.recipe, self.all, self.dtype = recipe, every, dtype
        self.sources = every[:-1] if based else every
        assert isinstance(recipe.by, MethodCall)
        self.needs_base = METHODS[recipe.by.name].takes_base(recipe.by.arguments)

    def merged(self) -> dict[str, Tensor]:
        """Return the merge of each key, in the order of the first source."""
        self._check_keys()
        keys = self.all[0][1]
        for key in keys:  # all, before the first one is merged
            self._check(key)
        by_key: dict[str, Tensor] = {}
        by_memory: dict[tuple[object, ...], Tensor] = {}
        for key in keys:
            memory = tuple(_memory(key, tensors[key]) for _, tensors in self.all)
            if memory not in by_memory:
                by_memory[memory] = self._merged_key(key)
            by_key[key] = by_memory[memory]
        return by_key

    def _check_keys(self) -> None:
        first, keys = self.all[0]
        for model, tensors in self.all[1:]:
            if missing := [key for key in keys if key not in tensors]:
                raise TailorError(_lacks(model, missing, first))
            if surplus := [key for key in tensors if key not in keys]:
                raise TailorError(_lacks(first, surplus, model))

    def _check(self, key: str) -> None:
        """Refuse tensors that don't go together, by name."""
        first = self.all[0][1][key]
        for model, tensors in self.all:
            tensor = tensors[key]
            if not isinstance(tensor, Tensor):
                got = type(tensor).__name__
                help_ = "; torch.as_tensor makes one" if got == "ndarray" else ""
                where = f"{_called(key)} of '{model}'"
                raise TailorError(f"{where}: expected a tensor of torch, got {got}{help_}")
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
                raise TailorError(f"{_called(key)} of '{model}' is not a dense tensor in memory")
            self._check_alike(key, "shape", model, [*tensor.shape], [*first.shape])
            self._check_alike(key, "device", model, tensor.device, first.device)
            if self.dtype is None or not {tensor.dtype, first.dtype} <= _FLOATS:
                self._check_alike(
                    key, "dtype", model, _dtype_name(tensor.dtype), _dtype_name(first.dtype)
                )
            if tensor.dtype not in _FLOATS and not _same(tensor, first):
                what = f"{_called(key)} is {_dtype_name(first.dtype)}, which can't be merged"
                raise TailorError(f"{what}, but in '{model}' it has another dtype")

    def _check_alike(self, key: str, what: str, model: str, got: object, expected: object) -> None:
        if got == expected:
            return
        first = self.all[0][0]
        help_ = "; 'dtype' gives the result's dtype" if what == "dtype" else ""
        message = f"the {what} of {_called(key)} is {got} in '{model}', but {expected} in '{first}'"
        raise TailorError(message + help_)

    def _merged_key(self, key: str) -> Tensor:
        like: Tensor = self.all[-1][1][key]  # the base's, if there is one
        if like.dtype not in _FLOATS:
            return like.detach().clone()
        tensors = [tensors[key] for _, tensors in self.sources]
        base = [like] * self.needs_base
        read = [*base, *tensors]
        specs = [TensorSpec(key, _NAMES[tensor.dtype], tuple(tensor.shape)) for tensor in read]
        infos = tuple(TensorInfo(spec, Path(), 0) for spec in specs)  # of no file
        models = tuple(model for model, _ in self.sources)
        make = making(self.recipe, infos[len(base) :], models, infos[: len(base)], key)
        assert isinstance(make, Combine)
        spec = TensorSpec(key, _NAMES[self.dtype or like.dtype], tuple(like.shape))
        return combine_tensors(make, spec, read)


def _memory(key: str, tensor: Tensor) -> tuple[object, ...]:
    """Return the place of a tensor's entries in memory; the key of an empty tensor."""
    if not tensor.numel():
        return (key,)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _same(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of one shape, dtype and device have the same bytes."""
    flat = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (first, second)]
    return torch.equal(*flat)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _called(key: str) -> str:
    """Return the words for a tensor in messages; a single one may have no name."""
    return quoted(key) if key else "the tensor"


def _lacks(model: str, keys: Sequence[str], other: str) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    are = "which" if not more else "which all"
    return f"'{model}' has no tensor {quoted(keys[0])}{more}, {are} '{other}' has"
