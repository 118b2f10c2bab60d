"""A plan that is ready to be written: checked, its models opened, its program made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gptailor.checkpoint.files import Stamp, stamps
from gptailor.checkpoint.hub import fetch
from gptailor.checkpoint.models import Opened, folder_of, is_local, open_models, rebind
from gptailor.checkpoint.write.tensors import Shard, plan_shards
from gptailor.checks.models import check_models
from gptailor.checks.plan import check_alone
from gptailor.plan.faults import Fault, PlanError, errors, locate
from gptailor.plan.layers import Gap, gaps, kept
from gptailor.plan.plan import Model, Plan
from gptailor.plan.walk import open_choices
from gptailor.program.compile import Compiled, compile_plan
from gptailor.program.program import files

SHARD_SIZE = 5 * 10**9
"""Bytes of a shard, as transformers has it."""

ModelPaths = Mapping[str, str | Path]


@dataclass(frozen=True)
class Prepared:
    """A plan that is ready to be written: checked, its program made, nothing read or written.

    `declared` are its models as the plan's text has them, before `models` gave other folders;
    `stamps` tell the files that it reads from later ones of the same names.
    """

    plan: Plan
    declared: Mapping[str, Model]
    models: dict[str, Opened]
    compiled: Compiled
    shards: tuple[Shard, ...]
    warnings: tuple[Fault, ...]
    stamps: Mapping[Path, Stamp]

    @cached_property
    def layers(self) -> int:
        """The output's number of layers."""
        return len(kept(self.plan, self.models["base"].layout.count))

    @cached_property
    def gaps(self) -> list[Gap]:
        """The gaps that bridges close, which are fitted when the output is made."""
        return gaps(self.plan, self.models["base"].layout.count)

    @cached_property
    def texts(self) -> dict[str, Path]:
        """The calibration text of each gap, by the layer before it: `L19`."""
        return {f"L{gap.after}": calibration_path(self.plan, gap.on) for gap in self.gaps}

    @cached_property
    def counts(self) -> dict[str, tuple[int, int]]:
        """Layers and parameters, of the base and of the output."""
        base = self.models["base"]
        before = sum(t.spec.elements for t in base.checkpoint.tensors.values())
        return {
            "layers": (base.layout.count, self.layers),
            "parameters": (before, self.compiled.program.parameters),
        }

    @property
    def size(self) -> int:
        """Bytes that writing takes."""
        return sum(shard.size for shard in self.shards)

    def chain(self, name: str) -> list[str]:
        """The models that an adapter is on, the lowest first, and itself; else only itself."""
        return chain(self.plan, name)

    @cached_property
    def commits(self) -> dict[str, str]:
        """The commits of the models that were opened on the Hub, those under an adapter too."""
        return commits_of(self.plan, self.models)


def chain(plan: Plan, name: str) -> list[str]:
    """The models that an adapter is on, the lowest first, and itself; else only itself."""
    on = plan.models[name].on
    return [*(chain(plan, on) if on is not None else ()), name]


def commits_of(plan: Plan, models: Mapping[str, Opened]) -> dict[str, str]:
    """The commits of the models that were opened on the Hub, those under an adapter too."""
    found: dict[str, str] = {}
    for name, opened in models.items():
        there = [n for n in chain(plan, name) if not is_local(plan.models[n].source)]
        remotes = zip(there, opened.remotes, strict=True)
        found |= {n: remote.commit for n, remote in remotes}
    return found


def calibration_path(plan: Plan, name: str) -> Path:
    """A text that a plan names: relative paths start at the folder of the file that names them."""
    return folder_of(plan, name)


def checked(plan: Plan, models: ModelPaths | None) -> tuple[Plan, dict[str, Opened], list[Fault]]:
    """The plan with other folders under its models' names, its models opened, and all faults."""
    declared = plan.models
    plan, unknown = rebind(plan, {name: Path(path) for name, path in (models or {}).items()})
    faults = unknown + check_alone(plan)
    if errors(faults):
        return plan, {}, faults
    opened, more = open_models(plan, declared)
    against = check_models(plan, opened) if not errors(more) else []
    return plan, opened, locate(faults + more + against, plan.origin)


def prepare(
    plan: Plan,
    *,
    models: ModelPaths | None = None,
    dtype: str | None = None,
    shard_size: int = SHARD_SIZE,
) -> Prepared:
    """Check a plan and plan its output, from headers alone. Raises PlanError with all faults."""
    declared = plan.models
    if dtype is not None:
        origin = plan.origin
        plan = plan.model_copy(update={"dtype": dtype})
        plan = plan.read_from(origin) if origin else plan
    plan, opened, faults = checked(plan, models)
    if errors(faults):
        raise PlanError(faults)
    if impossible := _not_compilable(plan):
        raise PlanError(impossible)
    compiled = compile_plan(plan, opened)
    shards = plan_shards([output.spec for output in compiled.program.outputs], shard_size)
    stamped = stamps(files(compiled.program))
    return Prepared(plan, declared, opened, compiled, shards, tuple(faults), stamped)


def ready(
    plan: Plan,
    *,
    models: ModelPaths | None = None,
    dtype: str | None = None,
    shard_size: int = SHARD_SIZE,
) -> Prepared:
    """The same, with the weights that the output is made of fetched from the Hub."""
    prepared = prepare(plan, models=models, dtype=dtype, shard_size=shard_size)
    if not fetched(prepared.models, files(prepared.compiled.program)):
        return prepared
    plan = pinned(plan, prepared.commits)
    again = prepare(plan, models=models, dtype=dtype, shard_size=shard_size)
    return replace(again, declared=prepared.declared)


def fetched(models: Mapping[str, Opened], wanted: Iterable[Path]) -> bool:
    """Fetch those files of the models that aren't here from the Hub; whether there were any."""
    missing = [file for file in wanted if not file.exists()]
    for model in models.values():
        folder = model.checkpoint.folder
        theirs = [file for file in missing if file.is_relative_to(folder)]
        if model.remotes and theirs:
            fetch(model.remotes[0], folder, theirs)
    return bool(missing)


def pinned(plan: Plan, commits: Mapping[str, str]) -> Plan:
    """The plan with models of the Hub at these commits, should one move on."""
    models = {
        name: model.model_copy(update={"revision": commits[name]}) if name in commits else model
        for name, model in plan.models.items()
    }
    made = plan.model_copy(update={"models": models})
    return made.read_from(plan.origin) if plan.origin else made


def _not_compilable(plan: Plan) -> list[Fault]:
    count = open_choices(plan)
    if count:
        choices = "1 choice is" if count == 1 else f"{count} choices are"
        return [
            Fault(
                "P801",
                f"{choices} open, and a model has none",
                help="'gptailor search' closes them",
                source=plan.origin.source if plan.origin else None,
            )
        ]
    return []
