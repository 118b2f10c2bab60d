"""A plan that is ready to be written: checked, its models opened, its program made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from gptailor.checkpoint.files import Stamp, stamps
from gptailor.checkpoint.hub import fetch
from gptailor.checkpoint.models import Opened, folder_of, is_local, open_models, rebind
from gptailor.checkpoint.write.tensors import Shard, plan_shards
from gptailor.checks.models import check_models
from gptailor.checks.plan import check_alone
from gptailor.plan.faults import Fault, PlanError, errors, locate
from gptailor.plan.layers import Gap, Healing, gaps, healing, kept
from gptailor.plan.plan import Model, Plan
from gptailor.plan.walk import open_choices
from gptailor.program.compile import Compiled, compile_plan
from gptailor.program.program import files

SHARD_SIZE = 5 * 10**9
"""Bytes of a shard, as transformers has it."""

ModelPaths = Mapping[str, str | Path]


@final
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
    def healing(self) -> Healing | None:
        """What learns when the output is made; None: nothing does."""
        return healing(self.plan, self.models["base"].layout.count)

    @cached_property
    def texts(self) -> dict[str, Path]:
        """The calibration texts: by the layer before a gap, `L19`, or as `heal`."""
        named = {f"L{gap.after}": gap.on for gap in self.gaps}
        if self.healing is not None:
            named["heal"] = self.healing.on
        return {name: calibration_path(self.plan, on) for name, on in named.items()}

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

    @cached_property
    def commits(self) -> dict[str, str]:
        """The commits of the models that were opened on the Hub, those under an adapter too."""
        return commits_of(self.plan, self.models)


def check(plan: Plan, models: ModelPaths | None = None) -> list[Fault]:
    """All faults of a plan: by itself, and, if it has none, against its models.

    `models` gives other folders for the plan's names. Weights are not read.
    """
    return checked(plan, models)[2]


def checked(plan: Plan, models: ModelPaths | None) -> tuple[Plan, dict[str, Opened], list[Fault]]:
    """The plan with other folders under its models' names, its models opened, and all faults."""
    declared = plan.models
    plan, unknown = rebind(plan, {name: Path(path) for name, path in (models or {}).items()})
    faults = unknown + check_alone(plan)
    if errors(faults):
        return plan, {}, faults
    return plan, *_opened(plan, declared, faults)


def _opened(
    plan: Plan, declared: Mapping[str, Model], faults: list[Fault]
) -> tuple[dict[str, Opened], list[Fault]]:
    """A plan's models, and its faults against them after those that it has by itself."""
    opened, found = open_models(plan, declared)
    if not errors(found) and any(model.layout.quantised for model in opened.values()):
        from gptailor.program.unquantised import dequantised_models  # noqa: PLC0415 (few plans need it)

        opened, said = dequantised_models(plan, opened)
        found += said
    found += check_models(plan, opened) if not errors(found) else []
    return opened, locate(faults + found, plan.origin)


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
        plan = _changed(plan, dtype=dtype)
    return _prepared(*checked(plan, models), declared, shard_size)


def ready(
    plan: Plan,
    *,
    models: ModelPaths | None = None,
    dtype: str | None = None,
    shard_size: int = SHARD_SIZE,
) -> Prepared:
    """The same, with the weights that the output is made of fetched from the Hub.

    Models of which something was fetched are opened again, because offsets are known only then.
    """
    first = prepare(plan, models=models, dtype=dtype, shard_size=shard_size)
    wanted = files(first.compiled.program)
    if first.healing is not None and first.healing.teacher is not None:
        wanted += first.models[first.healing.teacher].checkpoint.files
    if not fetched(first.models, wanted):
        return first
    plan = pinned(first.plan, first.commits)
    again = _opened(plan, first.declared, check_alone(first.plan))
    return _prepared(plan, *again, first.declared, shard_size)


def _prepared(
    plan: Plan,
    opened: dict[str, Opened],
    faults: list[Fault],
    declared: Mapping[str, Model],
    shard_size: int,
) -> Prepared:
    if errors(faults):
        raise PlanError(faults)
    if count := open_choices(plan):
        choices = "1 choice is" if count == 1 else f"{count} choices are"
        message = f"{choices} open, and a model has none"
        source = plan.origin.source if plan.origin else None
        raise PlanError(
            [Fault("P801", message, help="'gptailor search' closes them", source=source)]
        )
    compiled = compile_plan(plan, opened)
    shards = plan_shards([output.spec for output in compiled.program.outputs], shard_size)
    stamped = stamps(files(compiled.program))
    return Prepared(plan, declared, opened, compiled, shards, tuple(faults), stamped)


# ---------------------------------------------------------------------------- models of the Hub


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
    if not commits:
        return plan
    models = {
        name: model.model_copy(update={"revision": commits[name]}) if name in commits else model
        for name, model in plan.models.items()
    }
    return _changed(plan, models=models)


def _changed(plan: Plan, **update: object) -> Plan:
    """The plan with other values, read from the same text."""
    made = plan.model_copy(update=update)
    return made.read_from(plan.origin) if plan.origin else made


def calibration_path(plan: Plan, name: str) -> Path:
    """A text that a plan names: relative paths start at the folder of the file that names them."""
    return folder_of(plan, name)
