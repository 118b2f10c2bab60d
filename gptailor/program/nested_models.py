"""Models without files of their own: made of models, another plan's output, or dequantised.

Its tensors are the tensors of a plan's program before they are rounded. A combined tensor has the
form `Combine`, which is computed when the tensor is read, entry by entry. A plan that texts decide
is fitted once, and then it equals its compiled folder.

A plan that only moves layers copies the bytes of quantised weights. One that merges, scales, casts,
bridges or heals any quantised weight, or mixes models that are quantised in different ways, has an
output without quantisation: each quantised weight is then one tensor, dequantised as it is read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from gptailor.checkpoint.cache_folder import kept_files
from gptailor.checkpoint.families.layer_config import Refusal, quantisation
from gptailor.checkpoint.files import CheckpointError, is_gguf
from gptailor.checkpoint.folder import Checkpoint
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.checkpoint.models import InnerPlan, Opened, dequantised_model, used
from gptailor.checkpoint.tensor import FLOATS, Adapted, Aligned, Mean, TensorInfo, tensors_in
from gptailor.plan import plan as p
from gptailor.plan.bounds import DEEPEST
from gptailor.plan.faults import Fault, Place
from gptailor.plan.layer_parts import BRANCHES
from gptailor.plan.model_dependencies import needed
from gptailor.plan.sites import named_models, output_recipes, sources
from gptailor.program.compile import (
    compile_plan,
    draft_program,
    fold_scales,
    output_configuration,
)
from gptailor.program.program import Combine, Copy, Output, Unfitted, leaves_of, stored_tensors
from gptailor.program.sources import Checked, merges

MOST_NESTED = 1_000
"""The most instructions and tensors behind one tensor."""


def whole_plan(plan: p.Plan, recipe: p.Recipe) -> p.Plan:
    """Return the plan of `whole from …` with a recipe and the plan's tokenizer."""
    recipes = [r for r in (recipe, plan.rest("tokenizer")) if r is not None]
    names = [
        "base",
        *(name for each in recipes for _, name, _ in named_models(each)),
    ]
    return p.Plan(
        models={name: plan.models[name] for name in needed(plan, names)},
        numbers=plan.numbers,
        whole=p.Whole(recipe=recipe),
        tokenizer=plan.tokenizer,
    )


def named_in(plan: p.Plan) -> set[str]:
    """Return the models that a plan's recipes name, and the base."""
    names = {name for _, recipe in output_recipes(plan) for _, name, _ in named_models(recipe)}
    return {"base", *names}


def any_closing(recipe: p.Recipe) -> p.Recipe:
    """Return a closed recipe for an open one: its tensors have the same shapes and names."""
    names = [s.model if isinstance(s.model, str) else s.model.one_of[0]
             for _, s in sources(recipe)]  # fmt: skip
    layers = tuple(p.LayerOf(model=name) for name in names)
    if isinstance(recipe, p.Take):
        return p.Take(take=layers[0])
    return p.Merge(merge=layers, by=p.MethodCall(name="linear"))


def made_model(plan: p.Plan, name: str, models: Mapping[str, Opened]) -> Opened:
    """Return a model that a recipe without choices makes of opened models."""
    recipe = plan.models[name].made
    assert recipe is not None, "a checkpoint"
    inner = whole_plan(plan, recipe)
    checked = Checked.of(inner, {n: models[n] for n in named_in(inner)})
    checked, _ = dequantised(checked)
    return nested_model(name, checked)


def with_made_models(plan: p.Plan, models: Mapping[str, Opened]) -> dict[str, Opened]:
    """Return the opened models of an open plan; a closing decides the models made of models."""
    result = dict(models)
    for name in needed(plan, sorted(used(plan))):
        if plan.models[name].made is not None:
            result[name] = made_model(plan, name, result)
    return result


def nested_model(name: str, checked: Checked, inner: InnerPlan | None = None) -> Opened:
    """Return the output of a closed plan without faults as an opened model.

    `inner` is the plan, if it is in a file. Raises CheckpointError (M204, M234) for an output with
    layers that can't be moved, and for a tensor with too many sources.
    """
    fitted = inner.fitted if inner is not None else None
    checkpoint = _nested_checkpoint(checked, read_header(fitted.file) if fitted else {})
    layout = checkpoint.layout()
    if isinstance(layout, Refusal):
        path = inner.file if inner is not None else checkpoint.folder
        raise CheckpointError("M204", layout.reason, path, layout.help)
    return Opened(name, checkpoint, layout, inner=inner)


def _nested_checkpoint(checked: Checked, fitted: Mapping[str, TensorInfo]) -> Checkpoint:
    """Return the output of a closed plan without faults as a checkpoint that was never written.

    Its folder is its tokenizer's. `fitted` are the tensors that fits and merges made for a plan
    that texts decide; without them its tensors have only headers. Raises CheckpointError (M234) if
    a tensor has too many sources.
    """
    fits = checked.resolved.declared.is_fitted
    program = (
        compile_plan(checked).program if fits else fold_scales(draft_program(checked), checked)
    )
    config = output_configuration(checked, program)
    owner, cut = checked.tokenizer_model, checked.token_cut
    tensors = {output.spec.name: _tensor_of(output, fits=fits) for output in program.outputs}
    tensors |= fitted
    folder = owner.checkpoint.folder if cut is None else kept_files(cut.files)
    for tensor in tensors.values():
        size, depth = _measured(tensor)
        if size > MOST_NESTED or depth > DEEPEST:
            message = f"'{tensor.spec.name}' depends on {size} tensors, nested {depth} deep"
            most = f"at most {MOST_NESTED:,} tensors and a depth of {DEEPEST} are allowed"
            help_ = f"compile one of these models first; {most}"
            raise CheckpointError("M234", message, folder, help_)
    its = owner.checkpoint.files[:1]
    read = [*its] if is_gguf(its[0]) else []  # such a file has the tokenizer in it
    read += [leaf.file for tensor in tensors.values() for leaf in leaves_of(tensor)]
    family = checked.base.checkpoint.family
    return Checkpoint(folder, config, tensors, tuple(dict.fromkeys(read)), family, nested=True)


def _tensor_of(output: Output, *, fits: bool) -> TensorInfo:
    make = output.make
    if fits and not isinstance(make, Copy):
        stored = tuple(stored_tensors([output]))
        return TensorInfo(output.spec, stored[0].file, 0, Unfitted(stored))
    if isinstance(make, Copy):
        source = make.source
        dtypes = (source.spec.dtype, output.spec.dtype)
        if dtypes[0] == dtypes[1] or not set(dtypes) <= set(FLOATS):
            return source
        make = make.combined
    assert isinstance(make, Combine), "a plan without fits"
    return TensorInfo(output.spec, make.tensors[0].file, 0, make)


def _measured(tensor: TensorInfo) -> tuple[int, int]:
    """Return the number of tensors and instructions behind a tensor, and their depth."""
    match tensor.form:
        case Combine() | Mean():
            inside = [*tensors_in(tensor.form)]
        case Adapted(base, _):
            inside = [base]
        case Aligned():
            inside = [*dict.fromkeys(tensors_in(tensor.form))]
        case _:
            return 1, 0
    inner = [_measured(each) for each in inside]
    return 1 + sum(size for size, _ in inner), 1 + max(depth for _, depth in inner)


# --------------------------------------------------------------------------------- quantised models


def dequantised(checked: Checked) -> tuple[Checked, list[Fault]]:
    """Return a plan with the models as it reads them, and a warning if dequantised, or faults."""
    plan, models = checked.resolved.declared, checked.models
    quantised = [
        name
        for name, model in models.items()
        if model.layout.quantised is not None and name in plan.models
    ]
    why = next(_reasons(checked), None) if quantised else None
    if why is None:
        return checked, []
    read, faults = dict(models), list[Fault]()
    for name in quantised:
        try:
            read[name] = dequantised_model(models[name])
        except CheckpointError as error:
            place: Place = ("models", name, "source")
            faults.append(Fault(error.code, f"'{name}': {error.message}", place, error.help))
    if faults:
        return checked, faults
    what, at = why
    subject = f"'{quantised[0]}'" if len(quantised) == 1 else f"{len(quantised)} models"
    are = "is" if len(quantised) == 1 else "are"
    message = f"{what}: {subject} {are} dequantised, and the output isn't quantised"
    help_ = "to keep quantised weights, only move layers"
    return replace(checked, models=read), [Fault("M309", message, at, help_, severity="warning")]


def _reasons(checked: Checked) -> Iterator[tuple[str, Place]]:
    """Yield each computation of a plan with quantised weights, and its place."""
    plan, computes = checked.plan, "computes with quantised weights"
    statements: list[tuple[object, str, Place]] = [
        (plan.dtype, f"'dtype {plan.dtype}' casts quantised weights", ("dtype",)),
        (plan.scales, f"'scale' {computes}", ("scales", 0)),
        (plan.width, f"a narrower MLP {computes}", ("width",)),
        (plan.bridges, f"a bridge {computes}", ("bridges", 0)),
        (plan.may_be_healed, f"'heal' {computes}", ("heal",)),
    ]
    yield from ((words, at) for stated, words, at in statements if stated)
    yield from _merged_or_mixed(checked)
    yield from _casts(checked)


def _merged_or_mixed(checked: Checked) -> Iterator[tuple[str, Place]]:
    mixed: set[str] = set()
    for at, recipe in output_recipes(checked.plan):
        names = {name for _, name, _ in named_models(recipe)}
        read = [checked.models[name] for name in {*names, "base"} & checked.models.keys()]
        if any(_holds_quantised(model, at[0]) for model in read):
            if merges(recipe):
                yield "a merge computes with quantised weights", at
            mixed |= names if at[0] != "tokenizer" else set()
    for name in sorted(mixed & checked.models.keys()):
        if what := _difference(checked.models[name], checked.base):
            yield f"'{name}' is {what}", ("models", name, "source")


def _difference(model: Opened, base: Opened) -> str:
    """Return how a model is quantised in another way than the base; empty where it isn't."""
    method, base_method = model.layout.quantised, base.layout.quantised
    if method != base_method:
        return f"{_method_in_words(method)}, but the base is {_method_in_words(base_method)}"
    same = quantisation(model.config) == quantisation(base.config)
    return "" if same else f"quantised ('{method}') differently from the base"


def _holds_quantised(model: Opened, where: object) -> bool:
    """Return whether a model's layers, or its embedding, norm or head, may be quantised."""
    if model.layout.quantised is None:
        return False
    if where not in {"embed", "norm", "head"}:
        return True
    tensors = model.rest(str(where)).values()
    packed = any(f"{t.spec.name}.absmax" in model.checkpoint.tensors for t in tensors)
    return not tensors or packed or any(t.spec.dtype not in FLOATS for t in tensors)


def _casts(checked: Checked) -> Iterator[tuple[str, Place]]:
    """Yield the models with layers that are cast to the base's dtypes, and the places."""
    base_dtypes = {
        name: tensor.spec.dtype
        for layer in range(checked.count)
        for part in BRANCHES
        for name, tensor in checked.base.part(layer, part).items()
    }
    for slot in checked.resolved.slots:
        for part in BRANCHES:
            for use in checked.uses(slot, part):
                tensors = use.tensors
                if any(
                    base_dtypes.get(name, t.spec.dtype) != t.spec.dtype
                    for name, t in tensors.items()
                ):
                    yield f"layers of '{use.model.name}' are cast to the base's dtypes", use.at


def _method_in_words(method: str | None) -> str:
    return "not quantised" if method is None else f"quantised ('{method}')"
