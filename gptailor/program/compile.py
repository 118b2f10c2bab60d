"""A closed plan and its models into a `Program`, from headers alone: a draft, and `PASSES`.

The draft has an instruction for each tensor of the output. Each pass is a function Program →
Program that also receives the plan with its models. The size of an output follows from its
program. The base's layers that predict further tokens stay only if all that they need stays.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, final

from gptailor.checkpoint.families import layout as layouts
from gptailor.checkpoint.families import vision
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.quantised import requantised
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.tensor import DTYPE_BITS, FLOATS, TensorInfo, TensorSpec
from gptailor.checkpoint.tokenizer_settings import without_code
from gptailor.plan.layer_parts import BRANCHES, Branch
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Merge, MethodCall, Recipe, Take
from gptailor.plan.registry import DTYPES, METHODS, Parameter
from gptailor.plan.resolved import Slot, own
from gptailor.plan.sites import named_models
from gptailor.program import program as p
from gptailor.program.fits import FITS, LAYER_CUTS, layer_cuts
from gptailor.program.packages import provider_of
from gptailor.program.sources import AlignedRest, Checked, base_layer, needs_base, unrefused


def moved_configuration(checked: Checked) -> dict[str, object] | Refusal:
    """Return the configuration of a plan's output, for its layers."""
    entries, layers = [], []
    for slot in checked.resolved.kept:
        first = [checked.uses(slot, part)[0] for part in BRANCHES]
        attn, mlp = (use.model.entries[use.layer] for use in first)
        entries.append(layouts.joined_entry(checked.base.layout, attn, mlp))
        layers.append((first[0].layer, first[1].layer))
    base, keeps = checked.base, keeps_predictors(checked)
    config = layouts.moved_config(base.layout, base.config, entries, predicting=keeps)
    if isinstance(config, Refusal) or base.layout.quantised is None:
        return config
    if keeps:
        layers += [(number, number) for number in numbered_predictors(base)]
    return requantised(base.layout, config, layers)


# ---------------------------------------------------------------------------------- the compilation


@final
@dataclass(frozen=True)
class Compiled:
    """The result of a plan's compilation: the tensors' program and the configuration."""

    program: p.Program
    config: dict[str, Any]


def compile_plan(checked: Checked, *, repaired: bool = True) -> Compiled:
    """Return the program and configuration of a closed plan without faults.

    Without `repaired` the program leaves gaps open and trains nothing.
    """
    program = draft_program(checked)
    for each in PASSES if repaired else UNREPAIRED_PASSES:
        program = each(program, checked)
    return Compiled(program, output_configuration(checked, program))


# ---------------------------------------------------------------------------------------- the draft


def draft_program(checked: Checked) -> p.Program:
    """Return all tensors, in file order.

    These are embedding, layers, norm, head, the base's others, and its predictors if they stay.

    Each follows its recipe and has the dtype of the base's tensor at its place; a copy may still
    have another dtype. Within a part tensors are sorted by name, so the layout of a model's files
    changes no byte.
    """
    return p.Program(tuple(_drafted(checked)))


def _drafted(checked: Checked) -> Iterator[p.Output]:
    plan, base = checked.plan, checked.base
    tied = base.layout.tied and not _unties(checked)
    read: _End = "head" if tied and plan.embed is None and plan.head is not None else "embed"
    yield from _rest(checked, "embed", plan.rest(read), read)
    dtypes = {
        inner_name: tensor.spec.dtype
        for layer in reversed(range(checked.count))
        for part in BRANCHES
        for inner_name, tensor in base.part(layer, part).items()
    }
    for n, slot in enumerate(checked.resolved.kept):
        for part in BRANCHES:
            yield from _part(checked, (n, slot), part, dtypes)
    yield from _rest(checked, "norm", plan.norm, "norm")
    yield from _rest(
        checked, "head", plan.head or (plan.embed if tied else None), "head", int(tied)
    )
    yield from (_alone(name, tensor) for name, tensor in sorted(base.others.items()))
    if keeps_predictors(checked):
        for name, tensor in sorted(predicting_tensors(checked).items()):
            yield _alone(name, tensor, p.OutputPlace("predictor"))


def _part(
    checked: Checked, where: tuple[int, Slot], part: Branch, dtypes: Mapping[str, str]
) -> Iterator[p.Output]:
    """Yield a branch of an output layer;

    `dtypes` are for tensors that the base's layer lacks.
    """
    n, slot = where
    read = checked.uses(slot, part)
    layer = read[0].layer
    position = slot.position if slot.position is not None else layer
    own = checked.base.part(position, part)
    for inner_name, first in sorted(read[0].model.part(layer, part).items()):
        name = layouts.name_of(checked.base.layout, n, inner_name)
        dtype = (
            own[inner_name].spec.dtype
            if inner_name in own
            else dtypes.get(inner_name, first.spec.dtype)
        )
        if layouts.is_constant(inner_name):
            yield _alone(name, first, p.OutputPlace(part, n, inner_name), read[0].model.name, dtype)
            continue
        uses = [use for use in read if use.names is None or inner_name in use.names]
        recipe = uses[0].layer_recipe.recipe
        at = base_layer(slot, recipe)
        if at is not None:
            uses.pop()
        base = () if at is None else (checked.base.part(at, part)[inner_name],)
        place = first.spec.name
        if inner_name in own or base:
            place = layouts.name_of(checked.base.layout, position if at is None else at, inner_name)
        tensors = [use.model.part(use.layer, part) for use in uses]
        sources = tuple(tensor[inner_name] for tensor in tensors if inner_name in tensor)
        make = making(recipe, sources, tuple(use.model.name for use in uses), base, place)
        at_layer = p.OutputPlace(part, n, inner_name)
        yield p.Output(TensorSpec(name, dtype, first.spec.shape), make, at_layer)


_End = Literal["embed", "norm", "head"]


def _rest(
    checked: Checked, where: _End, recipe: Recipe | None, read: _End, start: int = 0
) -> Iterator[p.Output]:
    """Yield embedding, norm or head, from the layout's tensor with the number `start` on.

    `read` names the tensors read of the models, which may differ: a head serves as the embedding.
    """
    recipe = recipe or own(0)
    models = tuple(name for _, name, _ in named_models(recipe))
    sources_read = frozenset((*models, "base") if needs_base(recipe) else models)
    aligned = AlignedRest(checked, sources_read)
    tensors = [aligned.of(name, where, read) for name in models]
    ours = aligned.of("base", where, where)
    names = list(enumerate(getattr(checked.base.layout, where)))
    for i, name in names[start:]:
        if i in tensors[0] and (where == read or i == 0):
            base, sources = ours.get(i, tensors[0][i]), tuple(tensor[i] for tensor in tensors)
            make = making(recipe, sources, models, (base,) * needs_base(recipe), name)
            spec = TensorSpec(name, base.spec.dtype, sources[0].spec.shape)
            yield p.Output(spec, make, p.OutputPlace(where))
        elif i in ours:  # GPT-2's positions, which a head hasn't; a bias that another head hasn't
            yield _alone(name, ours[i], p.OutputPlace(where))


def _alone(
    name: str,
    tensor: TensorInfo,
    place: p.OutputPlace = p.OutputPlace(),  # noqa: B008 (frozen)
    model: str = "base",
    dtype: str = "",
) -> p.Output:
    spec = TensorSpec(name, dtype or tensor.spec.dtype, tensor.spec.shape)
    return p.Output(spec, p.Copy(tensor, model, tensor.spec.name), place)


def making(
    recipe: Recipe,
    sources: tuple[TensorInfo, ...],
    models: tuple[str, ...],
    base: tuple[TensorInfo, ...],
    place: str,
) -> p.Making:
    """Return the instruction for a tensor of these sources, with its arguments complete."""
    if isinstance(recipe, Take):
        return p.Copy(sources[0], models[0], place)
    assert isinstance(recipe, Merge)
    call = recipe.by if isinstance(recipe.by, MethodCall) else MethodCall(name="linear")
    if isinstance(recipe.share, int | float):
        weights = (1.0 - recipe.share, float(recipe.share))
        call = MethodCall(name="linear", arguments={"weight": weights})
    arguments = tuple(
        (parameter.name, _argument(parameter, call.arguments.get(parameter.name), len(sources)))
        for parameter in METHODS[call.name].parameters
    )
    provider = provider_of(call.name)
    return p.Combine(call.name, arguments, base, sources, models, place, provider=provider)


def _argument(
    parameter: Parameter, value: object, sources: int
) -> int | float | str | tuple[float, ...]:
    """Return an argument with its default, and with one number for each source where it may."""
    complete = parameter.default if value is None else value
    if isinstance(complete, str):
        return complete
    if not (parameter.variadic or parameter.each):
        assert isinstance(complete, int | float)
        return complete if parameter.integer else float(complete)
    if complete is None:
        return (1.0 / sources,) * sources
    numbers = complete if isinstance(complete, tuple) else (complete,)
    return tuple(map(float, numbers * sources if len(numbers) == 1 else numbers))


# --------------------------------------------------------------------------------------- the passes


def cast(program: p.Program, checked: Checked) -> p.Program:
    """Give each float the plan's dtype, if it has one; a copy takes bytes as they are.

    A copy with another dtype, or with values that don't lie in a row, becomes `linear` of itself.
    """
    dtype = DTYPES[checked.plan.dtype] if checked.plan.dtype is not None else None
    return p.Program(tuple(_cast(output, dtype) for output in program.outputs))


def _cast(output: p.Output, wanted: str | None) -> p.Output:
    dtype, make = output.spec.dtype, output.make
    if wanted is not None and dtype in FLOATS:
        dtype = wanted
    if isinstance(make, p.Copy):
        stored = make.source.spec.dtype
        if dtype not in FLOATS or stored not in FLOATS:
            dtype = stored
        form = make.source.form
        if isinstance(form, p.Combine) and form.bare:
            make = form  # of a model that is made of models: combined here, and rounded
        elif dtype != stored or not isinstance(form, p.Unfitted | None):
            make = make.combined
    return replace(output, spec=replace(output.spec, dtype=dtype), make=make)


def fold_scales(program: p.Program, checked: Checked) -> p.Program:
    """Divide each layer's addition to the hidden state by the scales of the layers before it.

    A copy becomes `linear` of the tensor, named by itself alone, so that equally scaled layers are
    equal at all positions.
    """
    slots = enumerate(checked.resolved.kept)
    divisors = {n: slot.divisor for n, slot in slots if slot.divisor != 1.0}
    return p.Program(tuple(_scaled(checked, output, divisors) for output in program.outputs))


def _scaled(checked: Checked, output: p.Output, divisors: Mapping[int, float]) -> p.Output:
    place = output.place
    if place.layer is None or place.layer not in divisors:
        return output
    how, divisor = layouts.fold_scale(checked.base.layout, place.name), divisors[place.layer]
    if how is None:
        return output
    make = p.unfitted(output.make)
    if isinstance(make, p.Copy):
        make = replace(make, model="base", place=make.source.spec.name).combined
    by = 1.0 / divisor if how == "multiply" else divisor
    offset = 1.0 / divisor - 1.0 if how == "divide_offset" else 0.0
    return replace(output, make=replace(make, divisor=by, offset=offset))


UNREPAIRED_PASSES: tuple[Callable[[p.Program, Checked], p.Program], ...] = (
    cast,
    fold_scales,
    *(fit.mark for fit in FITS if fit.mark and fit.word in LAYER_CUTS),
)
"""Passes over the draft, in this order."""
PASSES = (
    *UNREPAIRED_PASSES,
    *(fit.mark for fit in FITS if fit.mark and fit.word not in LAYER_CUTS),
)
"""All passes, in this order."""

# -------------------------------------------------------------------------------- the configuration


def _unties(checked: Checked) -> bool:
    """Return whether the plan gives a tied model's embedding and head different origins."""
    plan = checked.plan
    if not checked.base.layout.tied or plan.embed is None or plan.head is None:
        return False
    names = [name for recipe in (plan.embed, plan.head) for _, name, _ in named_models(recipe)]
    return plan.embed != plan.head or not all(checked.models[n].layout.tied for n in names)


def output_configuration(checked: Checked, program: p.Program) -> dict[str, Any]:
    """Return the configuration of a plan's output, with the special tokens of its tokenizer."""
    layout = checked.base.layout
    config: dict[str, Any] = dict(unrefused(moved_configuration(checked)))
    config.pop("_name_or_path", None)
    config = without_code(config)
    if _unties(checked):
        config = layouts.untied(config)
    for word, (whole, cut) in layer_cuts(checked).items():
        config = unrefused(LAYER_CUTS[word].resized(layout, config, whole, cut.closed_size))
    if checked.plan.dtype is not None:
        config = vision.with_dtype(config, checked.plan.dtype)
    text = vision.text_of(config) if layout.wrapped else config
    embed = next((o for o in program.outputs if o.spec.name in layout.embed), None)
    rows = embed.spec.shape[0] if embed is not None else None
    before = (tensor.spec.shape[0] for tensor in checked.base.rest("embed").values())
    if rows is not None and ("vocab_size" in text or rows != next(before, rows)):
        text = {**text, "vocab_size": rows}
        config = vision.with_text(config, text) if layout.wrapped else text
    if (owner := checked.tokenizer_model).name != "base":
        config = vision.with_tokens_of(config, owner.config)
    tokens = checked.token_cut
    return config if tokens is None else tokens.renumbered(config)


# ----------------------------------------------------------------------------------------- the size


def plan_size(checked: Checked) -> OutputSize:
    """Return the size of the output of a closed plan without faults."""
    return compiled_size(checked, compile_plan(checked))


def compiled_size(checked: Checked, compiled: Compiled) -> OutputSize:
    """Return the size of the output of a compiled plan, or of the GGUF file that it is."""
    program, cached = compiled.program, token_cache(checked, compiled)
    kv_cache = None if isinstance(cached, Refusal) else cached
    size = program.size if checked.gguf_file is None else checked.gguf_file.stat().st_size
    return OutputSize(program.parameters, size, kv_cache, len(program.layers))


def token_cache(checked: Checked, compiled: Compiled) -> int | Refusal:
    """Return the KV cache's bytes of a token, or why they are unknown.

    They are in the output's dtype. llama.cpp, which runs a GGUF file, has 16 bits an entry.
    """
    program, config, total = compiled.program, compiled.config, 0
    layout = checked.base.layout
    entries = layouts.layer_entries(replace(layout, count=len(program.layers)), config)
    for entry, outputs in zip(entries, program.layers, strict=True):
        shapes = {output.place.name: output.spec.shape for output in outputs}
        cached = layouts.cached_entries(layout, config, entry, shapes)
        if isinstance(cached, Refusal):
            return cached
        total += cached
    dtype = _dtype(program, config) if checked.gguf_file is None else "F16"
    return total * DTYPE_BITS[dtype] // 8


def _dtype(program: p.Program, config: Mapping[str, Any]) -> str:
    """Return the file name of the dtype of the output's layers, else of its configuration."""
    for output in chain.from_iterable(program.layers):
        if output.spec.dtype in DTYPES.values():
            return output.spec.dtype
    declared = config.get("dtype", config.get("torch_dtype"))
    return DTYPES.get(str(declared), "BF16")


# --------------------------------------------------------------- layers that predict further tokens


# Multi-token prediction (MTP): such a layer reads the last layer's output, and shares the embedding
# and the head. Checkpoints have it in a module `mtp`, or under the numbers after the last layer.


def keeps_predictors(checked: Checked) -> bool:
    """Return whether a closed plan's output has the base's layers that predict further tokens."""
    return bool(checked.base.predicting) and predictors_lost(checked) is None


def predictors_lost(checked: Checked) -> str | None:
    """Return why a closed plan's output can't have the base's predictors; None if it can."""
    base, last = checked.base, checked.base.layout.count - 1
    uses = [use for part in BRANCHES for use in checked.uses(checked.resolved.kept[-1], part)]
    if any(use.layer != last for use in uses):
        return f"they read L{last}, which isn't the output's last layer"
    if (cut := _cut_word(checked)) is not None:
        return f"the plan cuts the {cut} of the model"
    if not _has_tokens_of_base(checked):
        return "the output has other tokens than the base"
    numbers = layouts.predictor_numbers(base.layout, base.predicting)
    stated = layouts.predictor_count(base.config)
    if len(numbers) < stated:
        return f"the base has tensors of {len(numbers)} of its {stated} such layers"
    return None


def _cut_word(checked: Checked) -> str | None:
    """Return the word of a plan's cut; None without a cut, and for a cut to all experts."""
    cuts = checked.plan.cuts
    if [*cuts] == ["experts"] and isinstance(cuts["experts"].size, int):
        return "experts" if "experts" in layer_cuts(checked) else None
    return next(iter(cuts), None)


def _has_tokens_of_base(checked: Checked) -> bool:
    """Return whether the output has the base's tokens in the same rows."""
    base, owner = checked.base, checked.tokenizer_model
    if checked.union is not None or owner.name == base.name:
        return checked.union is None
    rows = [model.rest("embed")[0].spec.shape[0] for model in (base, owner)]
    ids = [None if m.vocabulary is None else m.vocabulary.ids for m in (base, owner)]
    return rows[0] == rows[1] and ids[0] == ids[1]


def numbered_predictors(base: Opened) -> list[int]:
    """Return the numbers of predictors after the last layer, in order."""
    places = (layouts.place_in(base.layout.prefix, name) for name in base.predicting)
    return sorted({at[0] for at in places if at is not None})


def predicting_tensors(checked: Checked) -> dict[str, TensorInfo]:
    """Return the base's tensors of predictors, by their names after the output's last layer."""
    layout, moved = checked.base.layout, {}
    further = len(checked.resolved.kept) - layout.count
    for name, tensor in checked.base.predicting.items():
        at = layouts.place_in(layout.prefix, name)
        new = name if at is None else layouts.name_of(layout, at[0] + further, at[1])
        moved[new] = tensor
    return moved
