"""A plan's models opened: folders, the Hub, adapters on other models; headers only."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptailor.checkpoint.error import CheckpointError
from gptailor.checkpoint.hub import Remote, open_adapter, open_hub
from gptailor.checkpoint.layout import Unknown, layout_of
from gptailor.checkpoint.opened import Opened
from gptailor.checkpoint.source import Checkpoint, open_checkpoint
from gptailor.checks.places import named_models, recipes
from gptailor.diagnostics import Fault, listed
from gptailor.plan import Model, Plan


def is_local(source: str) -> bool:
    """Whether a source is a folder, not a Hub id."""
    return source[:1] in (".", "/", "~")


def folder_of(plan: Plan, source: str) -> Path:
    """A local source as a path: relative ones start at the folder of the file that names them."""
    path = Path(os.path.expanduser(source))  # noqa: PTH111 (Path.expanduser raises without a home)
    return (plan.origin.folder if plan.origin else Path()) / path


def rebind(plan: Plan, paths: Mapping[str, Path]) -> tuple[Plan, list[Fault]]:
    """The plan with other checkpoints under its models' names."""
    unknown = [name for name in paths if name not in plan.models]
    if unknown:
        names = listed(f"'{name}'" for name in plan.models)
        message = f"there is no model '{unknown[0]}' in the plan to rebind"
        return plan, [Fault("M105", message, help=f"its models are {names}")]
    bound = {name: Model(source=str(Path(os.path.abspath(p)))) for name, p in paths.items()}  # noqa: PTH100 (links stay)
    copy = plan.model_copy(update={"models": {**plan.models, **bound}})
    return (copy.read_from(plan.origin) if plan.origin else copy), []


def used(plan: Plan) -> set[str]:
    """The models whose files a plan needs: the base, and what its recipes name."""
    names = {name for _, recipe in recipes(plan) for _, name, _ in named_models(recipe)}
    return ({"base"} | names) & plan.models.keys()


def open_models(
    plan: Plan, declared: Mapping[str, Model] | None = None
) -> tuple[dict[str, Opened], list[Fault]]:
    """The models that a plan needs, opened, and a fault for each that can't be; also warnings.

    `declared` are the models as they were before `rebind`: what an adapter calls its base by.
    """
    opener = _Opener(plan, declared or plan.models)
    opened: dict[str, Opened] = {}
    for name in sorted(used(plan), key=lambda n: (n != "base", n)):
        if (found := opener.model(name)) is not None:
            opened[name] = found
    return opened, opener.faults


@dataclass(slots=True)
class _Found:
    """A checkpoint, and where it is on the Hub, if it is there."""

    checkpoint: Checkpoint
    remotes: tuple[Remote, ...] = ()


@dataclass(slots=True)
class _Opener:
    """Opens each model once, though several adapters are on it."""

    plan: Plan
    declared: Mapping[str, Model]
    faults: list[Fault] = field(default_factory=list)
    found: dict[str, _Found | None] = field(default_factory=dict)

    def model(self, name: str) -> Opened | None:
        """The model of that name; None, and a fault, if it can't be opened."""
        for below in reversed(self._chain(self.plan.models, name)):  # so that nothing recurs deep
            found = self._checkpoint(below)
        if found is None:
            return None
        layout = layout_of(found.checkpoint.config, found.checkpoint.tensors)
        if isinstance(layout, Unknown):
            self.faults.append(Fault("M204", layout.reason, ("models", name, "source")))
            return None
        return Opened(name, found.checkpoint, layout, found.remotes)

    def _checkpoint(self, name: str) -> _Found | None:
        if name not in self.found:
            try:
                self.found[name] = self._read(name)
            except CheckpointError as error:
                byte = "" if error.offset is None else f", byte {error.offset}"
                message = f"{error.message} ({error.path}{byte})"
                at = ("models", name, "source")
                self.faults.append(Fault(error.code, message, at, error.help))
                self.found[name] = None
        return self.found[name]

    def _read(self, name: str) -> _Found | None:
        model = self.plan.models[name]
        if model.on is not None:
            return self._adapted(name, model)
        if is_local(model.source):
            return _Found(open_checkpoint(folder_of(self.plan, model.source)))
        checkpoint, remote = open_hub(model.source, model.revision)
        return _Found(checkpoint, (remote,))

    def _names(self, name: str) -> tuple[str, ...]:
        """What a model and those that it is on are called where they are declared."""
        return tuple(self.declared[each].source for each in self._chain(self.declared, name))

    def _chain(self, models: Mapping[str, Model], name: str) -> list[str]:
        """The model, and those that it is on, the last of which is no adapter."""
        chain = [name]
        while (on := models[chain[-1]].on) is not None:
            chain.append(on)
        return chain

    def _adapted(self, name: str, model: Model) -> _Found | None:
        from gptailor.checkpoint.adapter import apply_adapter  # noqa: PLC0415 (few plans need it)

        assert model.on is not None
        under = self._checkpoint(model.on)
        if under is None:
            return None
        remotes = under.remotes
        if is_local(model.source):
            folder = folder_of(self.plan, model.source)
        else:
            folder, remote = open_adapter(model.source, model.revision)
            remotes = (*remotes, remote)
        checkpoint, warnings = apply_adapter(under.checkpoint, folder, self._names(model.on))
        at = ("models", name, "source")
        self.faults += [Fault("M305", text, at, severity="warning") for text in warnings]
        return _Found(checkpoint, remotes)
