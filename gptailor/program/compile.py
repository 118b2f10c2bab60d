"""A closed plan and its models into a `Program`, from headers alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import fold_scale, is_constant, name_of, projection
from gptailor.checkpoint.models import Opened, aligned_rows, has_rows
from gptailor.checkpoint.tensor import FLOATS, TensorInfo, TensorSpec
from gptailor.plan import layers as outline
from gptailor.plan.plan import Merge, MethodCall, Part, Plan, Recipe, Take
from gptailor.plan.registry import DTYPES, METHODS, Parameter
from gptailor.program.program import (
    Arguments,
    Bridged,
    Combine,
    Copy,
    Making,
    Output,
    Program,
    unbridged,
)
from gptailor.program.sources import Checked, base_layer, moved_configuration, uses

IDENTITY: Arguments = (("weights", (1.0,)),)
"""The arguments of `linear` for a tensor by itself."""


@dataclass(frozen=True)
class Compiled:
    """What a plan compiles to: the tensors' program and the configuration."""

    program: Program
    config: dict[str, Any]


def compile_plan(plan: Plan, models: Mapping[str, Opened]) -> Compiled:
    """The program and configuration of a closed plan that has no faults against its models."""
    checked = Checked(plan, models)
    maker = _Maker(checked)
    untied = _unties(checked)
    outputs = tuple(maker.outputs(with_head=untied or not checked.base.layout.tied))
    return Compiled(Program(outputs), _configuration(checked, outputs, untied=untied))


# --------------------------------------------------------------------------------- the instructions


@dataclass(frozen=True)
class _Inputs:
    """What a tensor of the output is made of: the recipe's tensors in order."""

    recipe: Recipe
    sources: tuple[TensorInfo, ...]
    models: tuple[str, ...]
    base: tuple[TensorInfo, ...]
    place: str


class _Maker:
    """Makes the outputs of a plan, one by one."""

    def __init__(self, checked: Checked) -> None:
        self.checked = checked
        self.base = checked.base
        dtype = checked.plan.dtype
        self.dtype = DTYPES[dtype] if dtype is not None else None
        self.gaps = {gap.index: gap for gap in outline.gaps(checked.plan, checked.count)}
        self.base_dtypes = {
            rest: tensor.spec.dtype
            for layer in reversed(range(checked.count))
            for part in outline.PARTS
            for rest, tensor in self.base.part(layer, part).items()
        }

    def outputs(self, *, with_head: bool) -> Iterator[Output]:
        """All tensors, in file order: embedding, layers, norm, head, and what else the base has.

        Within a part they are sorted by name: how a model's files are cut changes no byte.
        """
        tied = self.checked.base.layout.tied and not with_head
        recipe, head = self.checked.plan.embed, self.checked.plan.head
        if tied and recipe is None and head is not None:
            yield from self._rest("embed", head, read="head")
        else:
            yield from self._rest("embed", recipe)
        for n, slot in enumerate(outline.kept(self.checked.plan, self.checked.count)):
            for part in outline.PARTS:
                yield from self._part(n, slot, part)
        yield from self._rest("norm", self.checked.plan.norm)
        if with_head:
            yield from self._rest("head", self.checked.plan.head)
        for name, tensor in sorted(self.base.others.items()):
            yield self._output(name, self._dtype_of(tensor), _alone(tensor, "base"))

    def _part(self, n: int, slot: outline.Slot, part: Part) -> Iterator[Output]:
        made = slot.part(part)
        read = list(uses(self.checked, slot, part))
        at = base_layer(slot, made.recipe)
        if at is not None:
            read.pop()
        tensors = [use.model.part(use.layer, part) for use in read]
        own = self.base.part(slot.position if slot.position is not None else read[0].layer, part)
        for rest in sorted(tensors[0]):
            base = self.base.part(at, part)[rest] if at is not None else None
            place = own[rest] if rest in own else tensors[0][rest]
            inputs = _Inputs(
                made.recipe,
                tuple(tensor[rest] for tensor in tensors if rest in tensor),
                tuple(use.model.name for use in read),
                (base,) if base is not None else (),
                (base or place).spec.name,
            )
            if is_constant(rest):
                inputs = _alone(tensors[0][rest], inputs.models[0])
            dtype = own[rest].spec.dtype if rest in own else self.base_dtypes.get(rest)
            name = name_of(self.base.layout, n, rest)
            output = self._output(name, self._float(dtype or inputs.sources[0].spec.dtype), inputs)
            yield self._bridged(self._scaled(output, rest, slot.divisor), rest, n)

    def _rest(self, where: str, recipe: Recipe | None, *, read: str = "") -> Iterator[Output]:
        """Embedding, norm or head; `read` is what is taken of the models, where it is another."""
        recipe = recipe or outline.own(0)
        names = tuple(name for name, _ in outline.named_sources(recipe))
        tensors = [self._aligned(name, where, read or where) for name in names]
        ours = self._aligned("base", where, where)
        for i, name in enumerate(getattr(self.base.layout, where)):
            if i not in tensors[0]:
                if i in ours:  # GPT-2's positions, which a head hasn't
                    yield self._output(name, self._dtype_of(ours[i]), _alone(ours[i], "base"))
                continue
            base = ours[i] if i in ours else tensors[0][i]
            needs = _needs_base(recipe)
            inputs = _Inputs(recipe, tuple(t[i] for t in tensors), names, (base,) * needs, name)
            yield self._output(name, self._dtype_of(base), inputs)

    def _aligned(self, name: str, where: str, read: str) -> dict[int, TensorInfo]:
        """A model's embedding, norm or head, with the rows of the output's tokenizer."""
        model, owner = self.checked.models[name], self.checked.tokenizer_model
        donors = owner.rest(read)
        return {
            i: aligned_rows(tensor, model, donors[i], owner) if has_rows(where, i) else tensor
            for i, tensor in model.rest(read).items()
        }

    # ---------------------------------------------------------------------------- one instruction

    def _float(self, dtype: str) -> str:
        return self.dtype if self.dtype is not None and dtype in FLOATS else dtype

    def _dtype_of(self, tensor: TensorInfo) -> str:
        return self._float(tensor.spec.dtype)

    def _output(self, name: str, dtype: str, inputs: _Inputs) -> Output:
        first = inputs.sources[0]
        make: Making
        if isinstance(inputs.recipe, Take):
            castable = first.spec.dtype in FLOATS and dtype in FLOATS
            dtype = dtype if castable else first.spec.dtype
            as_it_is = first.spec.dtype == dtype and first.form is None
            make = Copy(first) if as_it_is else _combine("linear", IDENTITY, inputs)
        else:
            make = _merged(inputs)
        return Output(TensorSpec(name, dtype, first.spec.shape), make)

    def _bridged(self, output: Output, rest: str, n: int) -> Output:
        """The output with the map over the gap after its layer, if it is one that carries it."""
        if n not in self.gaps or projection(self.base.layout, rest) != "mlp":
            return output
        return replace(output, make=Bridged(unbridged(output.make), self.gaps[n]))

    def _scaled(self, output: Output, rest: str, divisor: float) -> Output:
        """The output with the scale folded into it, if it is one that carries it."""
        how = fold_scale(self.base.layout, rest) if divisor != 1.0 else None
        if how is None:
            return output
        make = unbridged(output.make)
        if isinstance(make, Copy):
            inputs = _alone(make.source, "base")
            make = _combine("linear", IDENTITY, inputs)
        by = 1.0 / divisor if how == "multiply" else divisor
        offset = 1.0 / divisor - 1.0 if how == "divide_offset" else 0.0
        return replace(output, make=replace(make, divisor=by, offset=offset))


def _alone(tensor: TensorInfo, model: str) -> _Inputs:
    return _Inputs(outline.own(0), (tensor,), (model,), (), tensor.spec.name)


def _needs_base(recipe: Recipe) -> bool:
    by = recipe.by if isinstance(recipe, Merge) else None
    return isinstance(by, MethodCall) and METHODS[by.name].needs_base


def _merged(inputs: _Inputs) -> Combine:
    recipe = inputs.recipe
    assert isinstance(recipe, Merge)
    if isinstance(recipe.share, int | float):
        weights = (1.0 - recipe.share, float(recipe.share))
        return _combine("linear", (("weights", weights),), inputs)
    call = recipe.by if isinstance(recipe.by, MethodCall) else MethodCall(name="linear")
    return _combine(call.name, arguments(call, len(inputs.sources)), inputs)


def arguments(call: MethodCall, sources: int) -> Arguments:
    """A closed call's arguments, complete: defaults filled in, one number for each source."""
    method = METHODS[call.name]
    return tuple(
        (parameter.name, _argument(parameter, call.arguments.get(parameter.name), sources))
        for parameter in method.parameters
    )


def _argument(parameter: Parameter, given: object, sources: int) -> int | float | tuple[float, ...]:
    if not parameter.variadic:
        number = parameter.default if given is None else given
        assert isinstance(number, int | float)
        return number if parameter.integer else float(number)
    if given is None:
        default = 1.0 / sources if parameter.default is None else parameter.default
        return (default,) * sources
    numbers = given if isinstance(given, tuple) else (given,)
    numbers = numbers * sources if len(numbers) == 1 and parameter.one_serves_all else numbers
    return tuple(float(number) for number in numbers)


def _combine(method: str, given: Arguments, inputs: _Inputs) -> Combine:
    return Combine(method, given, inputs.base, inputs.sources, inputs.models, inputs.place)


# -------------------------------------------------------------------------------- the configuration


def _unties(checked: Checked) -> bool:
    """Whether the plan gives a tied model's embedding and head different origins."""
    plan = checked.plan
    if not checked.base.layout.tied or plan.embed is None or plan.head is None:
        return False
    names = [
        name for recipe in (plan.embed, plan.head) for name, _ in outline.named_sources(recipe)
    ]
    return plan.embed != plan.head or not all(checked.models[n].layout.tied for n in names)


def _configuration(
    checked: Checked, outputs: tuple[Output, ...], *, untied: bool
) -> dict[str, Any]:
    made = moved_configuration(checked)
    assert not isinstance(made, Refusal)
    config: dict[str, Any] = dict(made)
    for key in ("_name_or_path", "auto_map"):  # of code that the output is not copied with
        config.pop(key, None)
    if untied:
        config["tie_word_embeddings"] = False
    if checked.plan.dtype is not None:
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        config |= dict.fromkeys(keys, checked.plan.dtype)
    embed = next((o for o in outputs if o.spec.name in checked.base.layout.embed), None)
    if embed is not None and "vocab_size" in config:
        config["vocab_size"] = embed.spec.shape[0]
    return config
