"""A plan's models, opened: from folders, from the Hub, with adapters on them; rows aligned."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any, final

from gptailor.checkpoint.cache_folder import copies_folder
from gptailor.checkpoint.families.family_file import family_for, read_family_file
from gptailor.checkpoint.families.layer_config import LayerEntry, Refusal
from gptailor.checkpoint.families.layout import Layout, layer_entries, split_name
from gptailor.checkpoint.files import CheckpointError, expanded, quoted
from gptailor.checkpoint.folder import CONFIG, Checkpoint, open_checkpoint
from gptailor.checkpoint.formats.lora import OTHER_BASE, apply_adapter
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.hub import Remote, open_adapter, open_hub
from gptailor.checkpoint.tensor import TensorInfo
from gptailor.checkpoint.token_cut import TokenCut
from gptailor.checkpoint.union import TokenUnion, UnitedModel
from gptailor.checkpoint.vocabulary import Vocabulary, read_vocabulary
from gptailor.plan.doors import Door
from gptailor.plan.faults import Fault, TailorError, listed
from gptailor.plan.fitted_plan import FittedPlan
from gptailor.plan.layer_parts import Branch
from gptailor.plan.model_dependencies import needed, of_inner_plans
from gptailor.plan.plan import PLAN_SUFFIX, Model, Plan, TemplateOf, is_at_url
from gptailor.plan.sites import compared_models, named_models, output_recipes


@final
@dataclass(frozen=True)
class InnerPlan:
    """A plan in a file that another plan uses as a model.

    `declared` are its models as the file has them, before others took their places. `fitted` are
    its fits, once they are made.
    """

    plan: Plan
    declared: Mapping[str, Model]
    file: Path
    fitted: FittedPlan | None = None


@final
@dataclass(frozen=True)
class Opened:
    """A model of a plan with everything known of it without reading its weights.

    `remotes` are the places of its files on the Hub, an adapter's last. `inner` is the plan of a
    model that is a plan's output. `united` are the models with tokens that a plan adds to its
    tokenizer, in order. `token_cut` is its tokenizer with fewer tokens, if a plan takes that.
    """

    name: str
    checkpoint: Checkpoint
    layout: Layout
    remotes: tuple[Remote, ...] = ()
    united: "tuple[Opened, ...] | None" = None
    inner: InnerPlan | None = None
    token_cut: TokenCut | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Return its configuration."""
        return self.checkpoint.config

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Return the tokens of its tokenizer, or None without a readable one."""
        return read_vocabulary(self.checkpoint.folder)

    @cached_property
    def union(self) -> TokenUnion | None:
        """Return the union of its tokenizer and the tokenizers of `united`, or None."""
        if self.united is None:
            return None
        sizes = ((model, model.rest("embed").get(0)) for model in (self, *self.united))
        return TokenUnion(
            tuple(
                UnitedModel(model.name, model.checkpoint, embed.spec.shape[0] if embed else 0)
                for model, embed in sizes
            )
        )

    @property
    def made_tokenizer(self) -> TokenUnion | TokenCut | None:
        """Return the tokenizer that a plan makes of its own; None where its files are taken."""
        return self.token_cut or self.union

    @property
    def alone(self) -> "Opened":
        """Return the model without `united`."""
        return self if self.united is None else replace(self, united=None)

    @cached_property
    def entries(self) -> list[LayerEntry]:
        """Return the configuration of each layer."""
        return layer_entries(self.layout, self.config)

    @cached_property
    def _by_place(self) -> dict[tuple[int, Branch], dict[str, TensorInfo]]:
        tensors: dict[tuple[int, Branch], dict[str, TensorInfo]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            place = split_name(self.layout, name)
            if isinstance(place, tuple):
                tensors.setdefault((place[0], place[1]), {})[place[2]] = tensor
        return tensors

    def part(self, layer: int, part: Branch) -> dict[str, TensorInfo]:
        """Return the tensors of a part of a layer, by their names within the layer."""
        return self._by_place.get((layer, part), {})

    @cached_property
    def others(self) -> dict[str, TensorInfo]:
        """Return the tensors that are neither a layer's nor embedding, norm or head.

        Tensors of layers that predict further tokens are left out.
        """
        return {
            name: tensor
            for name, tensor in self.checkpoint.tensors.items()
            if split_name(self.layout, name) is None and name not in self.layout.predicting
        }

    @cached_property
    def predicting(self) -> dict[str, TensorInfo]:
        """Return the tensors of layers that predict further tokens."""
        tensors = self.checkpoint.tensors
        return {name: tensors[name] for name in sorted(self.layout.predicting)}

    def rest(self, where: str) -> dict[int, TensorInfo]:
        """Return the tensors of `embed`, `norm` or `head` by their number in the layout.

        A tied head's weight is the embedding's; its bias, where it has one, is its own.
        """
        names = getattr(self.layout, where)
        tensors = self.checkpoint.tensors
        if where == "head" and self.layout.tied:
            names = (*self.layout.embed[:1], *names[1:])
        return {i: tensors[name] for i, name in enumerate(names) if name in tensors}


def is_local(source: str) -> bool:
    """Return whether a source is a folder, here or at a URL, not a Hub id."""
    return source[:1] in (".", "/", "~") or is_at_url(source)


def is_plan(model: Model) -> bool:
    """Return whether a model is the output of a plan in a file."""
    return model.made is None and model.on is None and model.source.endswith(PLAN_SUFFIX)


def is_remote(model: Model) -> bool:
    """Return whether a model, or an adapter, comes from the Hub."""
    return model.made is None and not is_local(model.source)


def folder_of(plan: Plan, source: str) -> Path:
    """Return a local source as a path: relative ones start at the plan's folder.

    The path of a source at a URL is the folder that it is fetched to.
    """
    if is_at_url(source):
        return kept_folder(source)
    return (plan.origin.folder if plan.origin else Path()) / expanded(source)


def kept_folder(url: str) -> Path:
    """Return the folder on this machine for the folder at a URL."""
    name = re.sub(r"[^\w.-]", "_", url.rstrip("/").rpartition("/")[2])[:40]
    return (
        copies_folder() / "models" / f"{name}-{sha256(url.rstrip('/').encode()).hexdigest()[:16]}"
    )


FETCHERS: Door[Callable[[str], Path]] = Door("fetchers", "fetcher", FunctionType, {})
"""Functions that fetch a model's folder to its `kept_folder` and return it, by the kind of its
address: `url`. They raise CheckpointError C503 for a folder that can't be fetched."""


def _fetched_folder(url: str) -> Path:
    """Fetch the folder at a URL, and return its copy here; unchanged files stay."""
    try:
        fetch = FETCHERS.required("url", "a model at a URL", "cluster")
    except TailorError as error:
        raise CheckpointError("C503", f"not available: {error}", Path(url)) from None
    return fetch(url)


def source_from_here(plan: Plan, source: str) -> str:
    """Return a model's source as people name it in the current folder."""
    if not is_local(source) or is_at_url(source):
        return source
    folder = folder_of(plan, source)
    if not Path(source).is_absolute() and folder == Path(source):
        return source
    absolute, path = os.path.abspath(folder), os.path.relpath(folder)  # noqa: PTH100 (links stay)
    choices = [path if path.startswith(".") else f"./{path}", absolute]
    return min([*choices, source] if source[0] in "/~" else choices, key=len)


def rebind(plan: Plan, paths: Mapping[str, Path]) -> tuple[Plan, list[Fault]]:
    """Return the plan with other checkpoints under its models' names, and faults.

    Another adapter in an adapter's place is on the same model; a whole model isn't on another
    model.
    """
    if not paths:
        return plan, []
    if derived := [name for name in paths if name in plan.models and plan.models[name].made]:
        message = f"'{derived[0]}' is a merge, which --model can't replace with a folder"
        return plan, [Fault("M105", message, help="replace one of its models")]
    inner = {name: path for name, path in paths.items() if is_inner(plan, name)}
    paths = {name: path for name, path in paths.items() if name not in inner}
    if inner:
        plan = of_inner_plans(plan, "inner", inner)
    if unknown := [name for name in paths if name not in plan.models]:
        names = listed(f"'{name}'" for name in plan.models)
        message = f"the plan has no model '{unknown[0]}'"
        return plan, [Fault("M105", message, help=f"its models are {names}")]
    bound = {name: _bound(plan.models[name], Path(os.path.abspath(p))) for name, p in paths.items()}  # noqa: PTH100 (links stay)
    copy = plan.model_copy(update={"models": {**plan.models, **bound}})
    return (copy.read_from(plan.origin) if plan.origin else copy), []


def is_inner(plan: Plan, name: str) -> bool:
    """Return whether a name belongs to a model of an inner plan: `deep.math`."""
    outer, dot, _ = name.partition(".")
    return bool(dot) and outer in plan.models and is_plan(plan.models[outer])


def _bound(declared: Model, folder: Path) -> Model:
    if folder.name.endswith(PLAN_SUFFIX):
        return Model(source=str(folder))
    complete = (folder / CONFIG).exists() or not (folder / ADAPTER_CONFIG).exists()
    return Model(source=str(folder), on=None if complete else declared.on)


def only_compared(plan: Plan) -> frozenset[str]:
    """Return the models that expectations compare scores with and that no output is made of."""
    output = plan.model_copy(update={"search": None, "expects": ()})
    compared = {name for _, name in compared_models(plan.model_copy(update={"search": None}))}
    searched = {name for _, name in compared_models(plan.model_copy(update={"expects": ()}))}
    return frozenset(compared - searched - {"base", *needed(output, used(output))})


def used(plan: Plan) -> set[str]:
    """Return the models from which a plan needs files: the base, recipes' sources, its teachers.

    Models that these are made of are included, except models that only an adapter is on.
    """
    teachers = plan.heal.named_teachers if plan.heal is not None else ()
    template = plan.chat_template.model if isinstance(plan.chat_template, TemplateOf) else "base"
    united = plan.models if plan.tokenizer == "union" else ()
    names = {"base", *teachers, template, *united, *taken(plan)}
    sources = {n for name in needed(plan, sorted(names)) for n in made_of(plan.models[name])}
    return (names | sources) & plan.models.keys()


def made_of(model: Model) -> set[str]:
    """Return the models that the recipe of a model names."""
    return set() if model.made is None else {name for _, name, _ in named_models(model.made)}


def taken(plan: Plan) -> set[str]:
    """Return the models that the recipes of a plan's output name."""
    return {name for _, recipe in output_recipes(plan) for _, name, _ in named_models(recipe)}


FoundModel = tuple[Checkpoint, tuple[Remote, ...]]
"""A checkpoint, and its places on the Hub, if it is there."""


@final
@dataclass(slots=True)
class Opener:
    """An opener that opens each model once, though several adapters are on it.

    A model without files must be in `found` before it is used.
    """

    plan: Plan
    declared: Mapping[str, Model]
    faults: list[Fault] = field(default_factory=list)
    found: dict[str, FoundModel | None] = field(default_factory=dict)

    def model(self, name: str) -> Opened | None:
        """Return the model of that name; None, with a fault, if it can't be opened."""
        for below in chain(self.plan, name):  # so that nothing recurs deep
            entry = self._checkpoint(below)
        if entry is None:
            return None
        checkpoint, remotes = entry
        layout = checkpoint.layout()
        if isinstance(layout, Refusal):
            help_ = self._of_types() if layout.help and checkpoint.family is None else ""
            at = ("models", name, "source")
            fault = Fault("M204", layout.reason, at, help_ or layout.help)
            self._report(fault, of_file=bool(checkpoint.family or help_))
            return None
        return Opened(name, checkpoint, layout, remotes)

    def _checkpoint(self, name: str) -> FoundModel | None:
        if name not in self.found:
            try:
                self.found[name] = self._read(name)
            except CheckpointError as error:
                byte = "" if error.offset is None else f", byte {error.offset}"
                message = f"{error.message} ({error.path}{byte})"
                at = ("models", name, "source")
                fault = Fault(error.code, message, at, self._folder(name) or error.help)
                self._report(fault, of_file=error.code in {"C111", "C112", "C113"})
                self.found[name] = None
        return self.found[name]

    def _report(self, fault: Fault, *, of_file: bool) -> None:
        """Add a fault; a fault of a family's file concerns all its models, and is added once."""
        if not of_file or fault.message not in {other.message for other in self.faults}:
            self.faults.append(fault)

    def _of_types(self) -> str:
        """Return help with the model types of the given family files; empty without files."""
        types = {f: listed(map(quoted, read_family_file(f).model_types)) for f in self._files}
        return "; ".join(f"the family in {quoted(str(f))} has {of}" for f, of in types.items())

    @property
    def _files(self) -> Sequence[Path]:
        """The family files that the user named."""
        return self.plan.origin.families if self.plan.origin else ()

    def _folder(self, name: str) -> str:
        """Return help for a local name that was written as if on the Hub, or an empty text."""
        model = self.plan.models[name]
        path = folder_of(self.plan, model.source)
        if not is_remote(model) or not path.exists():
            return ""
        kind = "folder" if path.is_dir() else "file"
        return f'there is a {kind} of that name; write "./{model.source}"'

    def _read(self, name: str) -> FoundModel | None:
        model = self.plan.models[name]
        if model.on is not None:
            under = self._checkpoint(model.on)
            return None if under is None else self._adapted(name, model, *under)
        if is_local(model.source):
            return self._known(open_checkpoint(self._here(model.source))), ()
        checkpoint, remote = open_hub(model.source, model.revision)
        return self._known(checkpoint), (remote,)

    def _here(self, source: str) -> Path:
        """Return a local source's folder, fetched if it is at a URL."""
        return _fetched_folder(source) if is_at_url(source) else folder_of(self.plan, source)

    def _known(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return the checkpoint with the family from a file, if one reads it."""
        family = family_for(checkpoint.config.get("model_type"), self._files, checkpoint.folder)
        return checkpoint if family is None else replace(checkpoint, family=family)

    def _adapted(
        self, name: str, model: Model, under: Checkpoint, remotes: tuple[Remote, ...]
    ) -> FoundModel:
        if is_local(model.source):
            folder = self._here(model.source)
        else:
            folder, remote = open_adapter(model.source, model.revision)
            remotes = (*remotes, remote)
        below = chain(self.plan, name)[:-1][::-1]
        also = [self.declared[each].source for each in below]
        rebound = also != [self.plan.models[each].source for each in below]
        layout = under.layout()
        if isinstance(layout, Layout) and layout.quantised is not None:
            under = _dequantised(under)
        checkpoint, warnings = apply_adapter(under, folder, None if rebound else also)
        at, earlier = ("models", name, "source"), {fault.message for fault in self.faults}
        for text in warnings:
            other = text.startswith(OTHER_BASE)
            help_ = f"ignore this if {quoted(under.folder.name)} is a copy of it" if other else ""
            if not other or text not in earlier:  # which is said of the first of several adapters
                self.faults.append(Fault("M305", text, at, help_, severity="warning"))
        return checkpoint, remotes


def _dequantised(checkpoint: Checkpoint) -> Checkpoint:
    from gptailor.checkpoint.formats.quantised import dequantise

    plain = dequantise.dequantised_checkpoint(
        checkpoint.config, checkpoint.tensors, checkpoint.folder
    )
    return replace(checkpoint, config=plain[0], tensors=plain[1])


def dequantised_model(model: Opened) -> Opened:
    """Return a quantised model as an unquantised model, from headers alone.

    Raises CheckpointError, as M213, where the files contradict the configuration.
    """
    checkpoint = _dequantised(model.checkpoint)
    layout = checkpoint.layout()
    if isinstance(layout, Refusal):
        raise CheckpointError("M213", layout.reason, checkpoint.folder)
    return replace(model, checkpoint=checkpoint, layout=layout)


def chain(plan: Plan, name: str) -> list[str]:
    """Return the models that an adapter is on, the lowest first, and itself; else only itself."""
    names = [name]
    while (on := plan.models[names[-1]].on) is not None:
        names.append(on)
    return names[::-1]
