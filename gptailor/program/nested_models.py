"""Models without files of their own: one made of models, or another plan's output.

Its tensors are those of a plan's program before they are rounded. A combined tensor has the form
`Combine`, which is computed when the tensor is read, entry by entry. A plan that texts decide is
fitted once, and then it is what its compiled folder would be.
"""

from collections.abc import Mapping
from dataclasses import replace

from gptailor.checkpoint.cache_folder import kept_files
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.files import CheckpointError, is_gguf
from gptailor.checkpoint.folder import Checkpoint
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.checkpoint.models import InnerPlan, Opened, used
from gptailor.checkpoint.tensor import FLOATS, Adapted, Aligned, Mean, TensorInfo, tensors_in
from gptailor.plan import plan as p
from gptailor.plan import sites
from gptailor.plan.bounds import DEEPEST
from gptailor.plan.model_dependencies import needed
from gptailor.program.compile import (
    compile_plan,
    draft_program,
    fold_scales,
    output_configuration,
)
from gptailor.program.program import Combine, Copy, Output, Unfitted, leaves_of, stored_tensors
from gptailor.program.sources import Checked
from gptailor.program.unquantised import dequantised_models

MOST_NESTED = 1_000
"""The most instructions and tensors behind one tensor."""


def whole_plan(plan: p.Plan, recipe: p.Recipe) -> p.Plan:
    """Return the plan of `whole from …` with a recipe and the plan's tokenizer."""
    recipes = [r for r in (recipe, plan.rest("tokenizer")) if r is not None]
    names = [
        "base",
        *(name for each in recipes for _, name, _ in sites.named_models(each)),
    ]
    return p.Plan(
        models={name: plan.models[name] for name in needed(plan, names)},
        numbers=plan.numbers,
        whole=p.Whole(recipe=recipe),
        tokenizer=plan.tokenizer,
    )


def named_in(plan: p.Plan) -> set[str]:
    """Return the models that a plan's recipes name, and the base."""
    names = {
        name
        for _, recipe in sites.output_recipes(plan)
        for _, name, _ in sites.named_models(recipe)
    }
    return {"base", *names}


def any_closing(recipe: p.Recipe) -> p.Recipe:
    """Return a closed recipe for an open one: its tensors have the same shapes and names."""
    names = [s.model if isinstance(s.model, str) else s.model.one_of[0]
             for _, s in sites.sources(recipe)]  # fmt: skip
    sources = tuple(p.LayerOf(model=name) for name in names)
    if isinstance(recipe, p.Take):
        return p.Take(take=sources[0])
    return p.Merge(merge=sources, by=p.MethodCall(name="linear"))


def made_model(plan: p.Plan, name: str, models: Mapping[str, Opened]) -> Opened:
    """Return a model that is made of others, which are opened, by a recipe without choices."""
    recipe = plan.models[name].made
    assert recipe is not None, "a checkpoint"
    inner = whole_plan(plan, recipe)
    checked = Checked.of(inner, {n: models[n] for n in named_in(inner)})
    read, _ = dequantised_models(checked)
    return nested_model(name, replace(checked, models=read))


def with_made_models(plan: p.Plan, models: Mapping[str, Opened]) -> dict[str, Opened]:
    """Return the opened models of an open plan, those made of others as a closing decides."""
    result = dict(models)
    for name in needed(plan, sorted(used(plan))):
        if plan.models[name].made is not None:
            result[name] = made_model(plan, name, result)
    return result


def nested_model(name: str, checked: Checked, inner: InnerPlan | None = None) -> Opened:
    """Return the output of a closed plan without faults as an opened model.

    `inner` is the plan, if it is in a file. Raises CheckpointError (M204, M234) for an output whose
    layers can't be moved, and for a tensor with too many sources.
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
            message = f"'{tensor.spec.name}' is made of {size} tensors, {depth} deep"
            help_ = f"{MOST_NESTED} and {DEEPEST} are the most; compile a part of it first"
            raise CheckpointError("M234", message, folder, help_)
    its = owner.checkpoint.files[:1]
    read = [*its] if is_gguf(its[0]) else []  # such a file has the tokenizer in it
    read += [leaf.file for tensor in tensors.values() for leaf in leaves_of(tensor)]
    family = checked.base.checkpoint.family
    return Checkpoint(folder, config, tensors, tuple(dict.fromkeys(read)), family, nested=True)


def _tensor_of(output: Output, *, fits: bool) -> TensorInfo:
    make = output.make
    if fits and not isinstance(make, Copy):
        sources = tuple(stored_tensors([output]))
        return TensorInfo(output.spec, sources[0].file, 0, Unfitted(sources))
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
