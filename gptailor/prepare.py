"""A plan prepared for writing: checked, its models opened, its program made."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, final

from gptailor.checkpoint.files import CheckpointError, Stamp, expanded, open_regular, stamps
from gptailor.checkpoint.hub import fetch
from gptailor.checkpoint.models import (
    InnerPlan,
    Opened,
    Opener,
    chain,
    folder_of,
    is_plan,
    is_remote,
    rebind,
    used,
)
from gptailor.checkpoint.write.tensors import Shard, plan_shards
from gptailor.checks.models import (
    check_compared_models,
    check_local_models,
    check_models,
    check_positions,
    checked_made_model,
    why_no_model,
)
from gptailor.checks.plan import check_alone
from gptailor.checks.texts import text_errors_as_faults, text_faults
from gptailor.lang.parse import plan_or_file, read_bytes
from gptailor.plan.bounds import DEEPEST, MOST_BYTES
from gptailor.plan.faults import Fault, Origin, Place, PlanError, Source, Span, errors, locate
from gptailor.plan.fitted_plan import FittedPlan
from gptailor.plan.model_dependencies import entries_inside, needed, of_inner_plans
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Model, Plan
from gptailor.plan.registry import DTYPES
from gptailor.plan.resolved import Resolved
from gptailor.plan.sites import sites
from gptailor.program.compile import (
    Compiled,
    compile_plan,
    compiled_size,
    draft_program,
)
from gptailor.program.fits import fit_texts
from gptailor.program.nested_models import dequantised, nested_model
from gptailor.program.packages import method_packages
from gptailor.program.program import Output, files, stored_tensors
from gptailor.program.sources import Checked

SHARD_SIZE = 5 * 10**9
"""Bytes of a shard, the default of transformers."""

ModelPaths = Mapping[str, str | Path]

if TYPE_CHECKING:
    import torch

    Dtype: TypeAlias = str | torch.dtype
else:
    Dtype = str  # verbs receive a dtype of torch as its name


@final
@dataclass(frozen=True)
class Prepared:
    """A plan prepared for writing: checked, its program made, nothing read or written.

    `declared` are its models in the plan's text, before `models` replaced folders. `stamps` tell
    the files that it reads from later ones of the same names.
    """

    checked: Checked
    declared: Mapping[str, Model]
    compiled: Compiled
    shards: tuple[Shard, ...]
    warnings: tuple[Fault, ...]
    stamps: Mapping[Path, Stamp]

    @property
    def resolved(self) -> Resolved:
        """Return the plan with everything derived from it."""
        return self.checked.resolved

    @property
    def plan(self) -> Plan:
        """Return the plan as declared, its models' folders replaced."""
        return self.resolved.declared

    @property
    def models(self) -> Mapping[str, Opened]:
        """Return the opened models by their names."""
        return self.checked.models

    @property
    def dtype(self) -> str | None:
        """Return the dtype of all outputs if they share one, else the plan's."""
        dtypes = {output.spec.dtype for output in self.compiled.program.outputs}
        names = [name for name, dtype in DTYPES.items() if dtypes == {dtype}]
        return names[0] if names else self.plan.dtype

    @property
    def repaired(self) -> bool:
        """Return whether tensors are fitted or trained when the output is written."""
        return bool(self.compiled.program.fitted) or self.resolved.healing is not None

    @cached_property
    def texts(self) -> dict[str, Path]:
        """Return the calibration texts: of cuts by their words, by the layer before a gap `L19`,
        healing's. Those of inner plans follow, such as `deep.L19`.
        """
        own = {
            name: calibration_path(self.plan, on) for name, on in fit_texts(self.checked).items()
        }
        return own | {
            f"{name}.{of}": path
            for name, inner in self.inner_plans.items()
            for of, path in inner.texts.items()
        }

    @cached_property
    def inner_plans(self) -> "dict[str, Prepared]":
        """The plans that are models and that texts decide, innermost first, each prepared."""
        inner = {name: model.inner for name, model in self.models.items()}
        return {
            name: prepare(of.plan)
            for name, of in reversed(inner.items())
            if of is not None and of.plan.is_fitted
        }

    @cached_property
    def packages(self) -> dict[str, str]:
        """The packages of methods and fits that aren't gptailor's own, also in inner plans."""
        found: dict[str, str] = {}
        for plan in (*self.inner_plans.values(), self):
            found |= method_packages(plan.compiled.program, plan.resolved.gaps)
        return dict(sorted(found.items()))

    @property
    def inner_fits(self) -> dict[str, FittedPlan]:
        """Return the fits of plans that are models, as far as they are made, innermost first."""
        inner = {name: self.models[name].inner for name in self.inner_plans}
        return {name: of.fitted for name, of in inner.items() if of is not None and of.fitted}

    @cached_property
    def refitted(self) -> dict[str, Output]:
        """The outputs that are made of fitted tensors of inner plans, by their names."""
        decided = {(fits.file, name) for fits in self.inner_fits.values() for name in fits.decided}
        return {
            output.spec.name: output
            for output in self.compiled.program.outputs
            if any((t.file, t.spec.name) in decided for t in stored_tensors([output]))
        }

    @cached_property
    def read_files(self) -> list[Path]:
        """The files of weights that the output, fits and healing read.

        These run the plan with nothing dropped. The fits of inner plans count too.
        """
        read = files(self.compiled.program)
        if self.repaired:
            read += files(draft_program(self.checked.undone))
        read += [file for inner in self.inner_plans.values() for file in inner.read_files]
        return list(dict.fromkeys(read))

    @cached_property
    def output_size(self) -> OutputSize:
        """The size of the output."""
        return compiled_size(self.checked, self.compiled)

    @cached_property
    def base_size(self) -> OutputSize:
        """The size of the stored base; its KV cache is not computed."""
        specs = [tensor.spec for tensor in self.models["base"].checkpoint.tensors.values()]
        parameters, size = sum(s.elements for s in specs), sum(s.size for s in specs)
        return OutputSize(parameters, size, None, self.models["base"].layout.count)

    @property
    def size(self) -> int:
        """Return the number of bytes to write."""
        return sum(shard.size for shard in self.shards)

    @cached_property
    def commits(self) -> dict[str, str]:
        """Return the commits of the models that were opened on the Hub, under adapters too."""
        return commits_of(self.plan, self.models)


def check(plan: Plan | str | Path, models: ModelPaths | None = None) -> list[Fault]:
    """Return all faults of a plan or its file: by itself, against its models, and of its texts.

    `models` has other folders for the plan's names. Only configurations, tokenizers and headers of
    the models are read, no weights. Warnings, by their `severity`, are among the faults. A plan
    without errors can be compiled, as far as headers can tell. A model that can't be opened is a
    fault too, and no error is raised for it. A file raises the errors of `load`.
    """
    return check_read(plan_or_file(plan), models)


def check_read(
    plan: Plan, models: ModelPaths | None, read: list[Fault] | None = None
) -> list[Fault]:
    """Return all faults of a plan; a text's errors are in `read` already.

    Of such a plan only local models are opened.
    """
    opened = open_plan(plan, models, read)
    sound = None if errors(opened.faults) else opened.checked
    compared = check_compared_models(opened.plan, opened.models)
    faults = opened.faults + compared + text_faults(opened.plan, sound, whole=read is None)
    if sound is not None:
        from gptailor.program.gguf.faults import gguf_faults

        faults += gguf_faults(sound)
    return locate(faults, opened.plan.origin)


@final
@dataclass(frozen=True)
class OpenedPlan:
    """A plan, its models that could be opened, and all its faults.

    `checked` is None where the base is not among the models, or the plan has faults by itself.
    """

    plan: Plan
    models: dict[str, Opened]
    faults: list[Fault]
    checked: Checked | None = None

    def sound(self) -> Checked:
        """Return the plan with its models. Raises PlanError with all faults."""
        if errors(self.faults) or self.checked is None:
            raise PlanError(self.faults)
        return self.checked


def open_plan(plan: Plan, models: ModelPaths | None, read: list[Fault] | None = None) -> OpenedPlan:
    """Open the models of a plan, with other folders for some names, and check the plan.

    Its faults by itself may be `read` already.
    """
    declared = plan.models
    plan, unknown = rebind(plan, {name: expanded(path) for name, path in (models or {}).items()})
    faults = unknown + (check_alone(plan) if read is None else read)
    if errors(faults):
        return OpenedPlan(
            plan, {}, locate(faults + check_local_models(plan, declared), plan.origin)
        )
    return _opened(plan, declared, faults)


def _opened(
    plan: Plan, declared: Mapping[str, Model], faults: list[Fault], within: tuple[str, ...] = ()
) -> OpenedPlan:
    """Open the models of a plan that has these faults by itself, and check it against them."""
    models, more = open_all_models(plan, declared, within)
    if "base" not in models:
        return OpenedPlan(plan, models, locate(faults + more, plan.origin))
    checked = Checked.of(plan, models)
    if not errors(more) and any(model.layout.quantised for model in models.values()):
        checked, warnings = dequantised(checked)
        models = dict(checked.models)
        more += warnings
    more += check_positions(plan, models) if errors(more) else check_models(checked)
    return OpenedPlan(plan, models, locate(faults + more, plan.origin), checked)


def open_all_models(
    plan: Plan, declared: Mapping[str, Model] | None = None, within: tuple[str, ...] = ()
) -> tuple[dict[str, Opened], list[Fault]]:
    """Return the opened models that a plan needs, nested ones too, and faults.

    In a plan with choices, a model made of others stands for all of its closings. The models of a
    plan that is a model are with it, as `deep.math`; `within` are the plans around this one.
    `declared` are the models before `rebind`: the names that an adapter may have for its base.
    """
    wanted = used(plan)
    order = sorted(wanted, key=lambda name: (name != "base", name))
    all_needed = needed(plan, order)
    if any(plan.models[name].made or is_plan(plan.models[name]) for name in all_needed):
        order = all_needed  # models without files come after the models that they are made of
    opener = Opener(plan, declared or plan.models)
    opened: dict[str, Opened] = {}
    faults: list[Fault] = []
    for name in order:
        model: Opened | None = None
        inner: dict[str, Opened] = {}
        new_faults: list[Fault] = []
        if plan.models[name].made is not None:
            model, new_faults = checked_made_model(plan, name, opened)
        elif is_plan(plan.models[name]):
            inner, new_faults = _planned(plan, name, within)
            model = inner.get(name)
        elif name in wanted:
            model = opener.model(name)
        else:
            continue  # an adapter alone is on it
        if model is not None:
            opener.found[name] = model.checkpoint, model.remotes
            opened |= {name: model, **inner}
        else:
            opener.found.setdefault(name, None)
        faults += new_faults
    if plan.tokenizer == "union" and wanted <= opened.keys():
        united = tuple(opened[name] for name in order if name != "base")
        opened["base"] = replace(opened["base"], united=united)
    return opened, opener.faults + faults


def _planned(
    plan: Plan, name: str, within: tuple[str, ...]
) -> tuple[dict[str, Opened], list[Fault]]:
    """Return the output of a plan in a file with its models, and faults with places there."""
    at: Place = ("models", name, "source")
    try:
        return _output_of(plan, name, within)
    except PlanError as error:
        return {}, [*error.faults]
    except CheckpointError as error:
        return {}, [Fault(error.code, f"{error.message} ({error.path})", at, error.help)]


def _output_of(
    plan: Plan, name: str, within: tuple[str, ...]
) -> tuple[dict[str, Opened], list[Fault]]:
    source, at = plan.models[name].source, ("models", name, "source")
    path = folder_of(plan, source)
    own = (os.path.realpath(plan.origin.source.name),) if plan.origin else ()
    within = (*(within or own), os.path.realpath(path))
    if within[-1] in within[:-1] or len(within) > DEEPEST:
        raise PlanError([Fault("M232", f"'{source}' depends on itself", at)])
    with open_regular(path) as file:
        inner, faults = read_bytes(file.read(MOST_BYTES + 1), str(path), path.parent)
    if inner is None or errors(faults):
        raise PlanError(_settled(faults))
    if refused := [
        Fault("M233", f"'{source}' {why}", at, help_)
        for why, help_ in why_no_model(plan, name, inner)
    ]:
        raise PlanError(refused)
    declared = inner.models
    inner, unknown = _as_inner(plan, name, inner)
    opened = _opened(inner, declared, unknown + check_alone(inner) + text_faults(inner), within)
    opened = replace(opened, faults=_settled(opened.faults))
    known = plan.origin.fitted.get(name) if plan.origin else None
    fitted = known if known and known.plan == path else None  # another plan may have its name
    with text_errors_as_faults(inner):
        model = nested_model(name, opened.sound(), InnerPlan(inner, declared, path, fitted))
    return {name: model, **{f"{name}.{n}": m for n, m in opened.models.items()}}, opened.faults


def _as_inner(plan: Plan, name: str, inner: Plan) -> tuple[Plan, list[Fault]]:
    """Return a plan in a file as a model of another, which may replace its models' folders."""
    outer = plan.origin or Origin(Source("<plan>", ""), Path())
    models, commits = dict(inner.models), entries_inside(outer.commits, name)
    for n, model in inner.models.items():
        commit = commits.get(n)
        if commit is not None and is_remote(model) and commit[:2] == (model.source, model.revision):
            models[n] = model.model_copy(update={"revision": commit[2]})
    dtype = inner.dtype if inner.is_fitted else None
    inner = _changed(inner, models=models, dtype=dtype, search=None, expects=(), gguf=())
    assert inner.origin is not None, "it was read from a file"
    fitted = entries_inside(outer.fitted, name)
    origin = replace(inner.origin, families=outer.families, commits=commits, fitted=fitted)
    return rebind(inner.read_from(origin), entries_inside(outer.inner, name))


def _settled(faults: Iterable[Fault]) -> list[Fault]:
    """Return faults with places in a text of their own, which no other plan's mapping changes."""
    first = Span(0, 0)
    return [
        replace(
            fault,
            at=(),
            span=fault.span or first,
            also=tuple(replace(a, at=(), span=a.span or first) for a in fault.also),
        )
        for fault in faults
    ]


def prepare(
    plan: Plan,
    *,
    models: ModelPaths | None = None,
    dtype: Dtype | None = None,
    shard_size: int = SHARD_SIZE,
) -> Prepared:
    """Check a plan and plan its output, from headers alone. Raises PlanError with all faults."""
    declared = plan.models
    if dtype is not None:
        plan = _changed(plan, dtype=str(dtype))
        if (read := plan.origin) is not None:  # the text has another dtype there, or no dtype
            spans = {at: span for at, span in read.spans.items() if at != ("dtype",)}
            plan = plan.read_from(replace(read, spans=spans))
    return _prepared(open_plan(plan, models), declared, shard_size)


def ready(
    plan: Plan,
    *,
    models: ModelPaths | None = None,
    dtype: Dtype | None = None,
    shard_size: int = SHARD_SIZE,
) -> Prepared:
    """Prepare a plan and fetch the weights that the output is made of from the Hub.

    Models with fetched files are opened again, because only then offsets are known.
    """
    first = prepare(plan, models=models, dtype=dtype, shard_size=shard_size)
    healing = first.resolved.healing
    names = healing.teachers if healing is not None else ()
    teachers = [first.models[name].checkpoint for name in names if name is not None]
    wanted = [*first.read_files, *(file for teacher in teachers for file in teacher.files)]
    if not fetched(first.models, wanted):
        return first
    return reopened(first, pinned(first.plan, first.commits, first.models))


def reopened(first: Prepared, plan: Plan) -> Prepared:
    """Prepare a plan again, with the files that are now present."""
    again = _opened(plan, first.declared, check_alone(plan))
    return replace(_prepared(again, first.declared, SHARD_SIZE), shards=first.shards)


def _prepared(opened: OpenedPlan, declared: Mapping[str, Model], shard_size: int) -> Prepared:
    checked, plan = opened.sound(), opened.plan
    if count := checked.resolved.choices:
        choices = "1 open choice" if count == 1 else f"{count} open choices"
        message = f"expected a closed plan, got {choices}"
        places = (site.place for site in sites(plan) if site.open)
        help_ = "'gptailor search' closes them"
        open_faults = [locate([Fault("P801", message, at, help_)], plan.origin)[0] for at in places]
        raise PlanError([min(open_faults, key=lambda f: f.span.start if f.span else 0)])
    with text_errors_as_faults(plan):
        compiled = compile_plan(checked)
    shards = plan_shards([output.spec for output in compiled.program.outputs], shard_size)
    inner = [model.inner.file for model in opened.models.values() if model.inner is not None]
    corpus = [] if checked.token_cut is None else [checked.token_cut.text]
    stamped = stamps([*files(compiled.program), *inner, *corpus])
    return Prepared(checked, declared, compiled, shards, tuple(opened.faults), stamped)


# ---------------------------------------------------------------------------- models of the Hub


def declaring(plan: Plan, models: Mapping[str, Opened], name: str) -> tuple[Plan, str, str]:
    """Return the plan that declares an opened model, the prefix of its name, and its name there.

    `deep.math` is the model `math` of the plan that `deep` is the output of.
    """
    outer, _, short = name.rpartition(".")
    if not outer:
        return plan, "", name
    inner = models[outer].inner
    assert inner is not None, "no plan's output"
    return inner.plan, f"{outer}.", short


def all_declared(declared: Mapping[str, Model], models: Mapping[str, Opened]) -> dict[str, Model]:
    """Return the declared models of a plan, with the models of its inner plans."""
    all_models = dict(declared)
    for name, opened in models.items():
        if opened.inner is not None:
            all_models |= {f"{name}.{n}": model for n, model in opened.inner.declared.items()}
    return all_models


def commits_of(plan: Plan, models: Mapping[str, Opened]) -> dict[str, str]:
    """Return the commits of the models that were opened on the Hub, under adapters too."""
    commits: dict[str, str] = {}
    for name, opened in models.items():
        here, before, short = declaring(plan, models, name)
        names = [before + n for n in chain(here, short) if is_remote(here.models[n])]
        remotes = zip(names, opened.remotes, strict=True)
        commits |= {n: remote.commit for n, remote in remotes}
    return commits


def fetched(models: Mapping[str, Opened], wanted: Iterable[Path]) -> bool:
    """Fetch the missing files of the models from the Hub; return whether there were any."""
    missing = [file for file in wanted if not file.exists()]
    for model in models.values():
        if model.checkpoint.nested:
            continue  # its files are other models'
        folder = model.checkpoint.folder
        files_of_model = [file for file in missing if file.is_relative_to(folder)]
        if model.remotes and files_of_model:
            fetch(model.remotes[0], folder, files_of_model)
    return bool(missing)


def pinned(
    plan: Plan, commits: Mapping[str, str], opened: Mapping[str, Opened] | None = None
) -> Plan:
    """Return the plan with models of the Hub at these commits, should one move on.

    Models of inner plans are found in `opened`.
    """
    if not commits:
        return plan
    models = {
        name: model.model_copy(update={"revision": commits[name]}) if name in commits else model
        for name, model in plan.models.items()
    }
    declared = all_declared({}, opened or {})
    inner = {n: (declared[n].source, declared[n].revision, c)
             for n, c in commits.items() if n in declared}  # fmt: skip
    result = _changed(plan, models=models)
    return of_inner_plans(result, "commits", inner) if inner else result


def _changed(plan: Plan, **update: object) -> Plan:
    """Return the plan with other values, read from the same text."""
    result = plan.model_copy(update=update)
    return result.read_from(plan.origin) if plan.origin else result


def calibration_path(plan: Plan, name: str) -> Path:
    """Return the path of a text that a plan names, relative to the plan's folder."""
    return folder_of(plan, name)
