"""A mergekit configuration as data: what it says, its keys and types checked, nothing decided."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptailor.convert.yaml import Document, said
from gptailor.plan.faults import Place

_SETTINGS = ("merge_method", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
             "tokenizer", "chat_template")  # fmt: skip
_BODIES = ("slices", "models", "modules")


@dataclass(frozen=True)
class ModelReference:
    """A model that the file names, an adapter on it perhaps."""

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def __str__(self) -> str:
        on = f"{self.path}@{self.revision}" if self.revision else self.path
        if self.lora is None:
            return on
        return f"{on}+{self.lora}" + (f"@{self.lora_revision}" if self.lora_revision else "")


@dataclass(frozen=True)
class Scope:
    """A block of parameters and its place."""

    values: Mapping[str, Any]
    at: Place


@dataclass(frozen=True)
class SliceSource:
    """A model's layers from `start` on, up to `end`, which isn't one of them."""

    model: ModelReference
    start: int
    end: int
    scope: Scope
    at: Place


@dataclass(frozen=True)
class Slice:
    """Output layers that are made in step of the sources' layers."""

    sources: tuple[SliceSource, ...]
    base: ModelReference | None
    scope: Scope
    at: Place
    residual: bool = False
    """Whether it has a residual_weight."""

    @property
    def length(self) -> int:
        """How many layers it makes."""
        return self.sources[0].end - self.sources[0].start


@dataclass(frozen=True)
class MergekitConfig:
    """A whole file. `whole` says that its models are merged as they are, all layers in step."""

    document: Document
    method: str
    base: ModelReference | None
    slices: tuple[Slice, ...]
    whole: bool
    scopes: tuple[Scope, ...]

    @property
    def length(self) -> int:
        """How many layers the output has."""
        return sum(piece.length for piece in self.slices)

    def say(self, key: str) -> Any:
        """What the file says at the top level."""
        return self.document.data.get(key)

    def references(self) -> dict[ModelReference, Place]:
        """All models, each where it is first named, those of the slices in order."""
        found: dict[ModelReference, Place] = {}
        for piece in self.slices:
            for source in piece.sources:
                found.setdefault(source.model, (*source.at, "model"))
        if self.base is not None:
            found.setdefault(self.base, ("base_model",))
        return found


def read_config(document: Document) -> MergekitConfig:
    """What a file says; a ConversionError with key and line where it is not one."""
    data = document.data
    document.known(data, (*_SETTINGS, *_BODIES), ())
    bodies = [key for key in _BODIES if data.get(key)]
    if len(bodies) != 1:
        have = f"it has {' and '.join(bodies)}" if bodies else "it has none"
        raise document.error((), f"one of slices, models and modules makes the model, and {have}")
    if "merge_method" not in data:
        raise document.error((), "the file names no merge_method")
    method = document.text(data["merge_method"], ("merge_method",))
    base = _optional_reference(document, data, ())
    body, scopes = data, [_scope(document, data, ())]
    at: Place = ()
    if bodies == ["modules"]:
        body, at = _module(document)
        scopes.insert(0, _scope(document, body, at))
    whole = bool(body.get("models"))
    slices = _models(document, body, at) if whole else _slices(document, body, at)
    config = MergekitConfig(document, method, base, slices, whole, tuple(scopes))
    return _with_base(config) if whole else config


def _with_base(config: MergekitConfig) -> MergekitConfig:
    """mergekit adds the base to `models`, last, where it isn't among them."""
    (piece,) = config.slices
    if config.base is None or any(s.model == config.base for s in piece.sources):
        return config
    base = SliceSource(config.base, 0, 0, Scope({}, ("base_model",)), ("base_model",))
    return replace(config, slices=(replace(piece, sources=(*piece.sources, base)),))


def _module(document: Document) -> tuple[dict[str, Any], Place]:
    modules = document.mapping(document.data["modules"], ("modules",))
    if len(modules) != 1:
        message = f"a plan is of one module, and these are {len(modules)}: {', '.join(modules)}"
        raise document.error(("modules",), message)
    name = next(iter(modules))
    at: Place = ("modules", name)
    module = document.mapping(modules[name], at)
    document.known(module, ("slices", "models", "parameters"), at)
    if bool(module.get("slices")) == bool(module.get("models")):
        raise document.error(at, "a module has either slices or models")
    return module, at


def _models(document: Document, body: dict[str, Any], at: Place) -> tuple[Slice, ...]:
    sources = []
    for i, item in enumerate(document.items(body["models"], (*at, "models"))):
        here = (*at, "models", i)
        source = document.mapping(item, here)
        document.known(source, ("model", "parameters"), here)
        scope = _scope(document, source, here)
        sources.append(SliceSource(_reference_in(document, source, here), 0, 0, scope, here))
    return (Slice(tuple(sources), None, Scope({}, at), (*at, "models")),)


def _slices(document: Document, body: dict[str, Any], at: Place) -> tuple[Slice, ...]:
    return tuple(
        _slice(document, item, (*at, "slices", i))
        for i, item in enumerate(document.items(body["slices"], (*at, "slices")))
    )


def _slice(document: Document, item: object, at: Place) -> Slice:
    data = document.mapping(item, at)
    if "merge_method" in data:
        message = "mergekit has one merge_method for a file; it would not read this one"
        raise document.error((*at, "merge_method"), message)
    document.known(data, ("sources", "base_model", "parameters", "residual_weight"), at)
    if "sources" not in data:
        raise document.error(at, "this slice has no sources")
    items = document.items(data["sources"], (*at, "sources"))
    sources = tuple(_source(document, s, (*at, "sources", i)) for i, s in enumerate(items))
    lengths = {source.end - source.start for source in sources}
    if len(lengths) > 1:
        raise document.error((*at, "sources"), "the sources have different numbers of layers")
    base = _optional_reference(document, data, at)
    residual = data.get("residual_weight") is not None
    return Slice(sources, base, _scope(document, data, at), at, residual)


def _source(document: Document, item: object, at: Place) -> SliceSource:
    data = document.mapping(item, at)
    document.known(data, ("model", "layer_range", "parameters"), at)
    model = _reference_in(document, data, at)
    if "layer_range" not in data:
        raise document.error(at, "this source has no layer_range")
    here = (*at, "layer_range")
    span = document.items(data["layer_range"], here)
    if len(span) != 2 or any(type(end) is not int for end in span):
        raise document.error(here, "a layer_range is two whole numbers, the second not included")
    start, end = span
    if not 0 <= start < end:
        why = "is negative" if min(start, end) < 0 else "holds no layer"
        raise document.error(here, f"[{start}, {end}] {why}", "[0, 8] is layers 0 to 7")
    return SliceSource(model, start, end, _scope(document, data, at), at)


# ------------------------------------------------------------------------------------- the models


def _reference_in(document: Document, data: dict[str, Any], at: Place) -> ModelReference:
    if "model" not in data:
        raise document.error(at, "no model is named here")
    return reference(document, data["model"], (*at, "model"))


def _optional_reference(
    document: Document, data: dict[str, Any], at: Place
) -> ModelReference | None:
    if data.get("base_model") is None:
        return None
    return reference(document, data["base_model"], (*at, "base_model"))


def reference(document: Document, value: object, at: Place) -> ModelReference:
    """`owner/name@revision+adapter`, or the mapping that says the same."""
    if isinstance(value, dict):
        data = document.mapping(value, at)
        if data.get("override_architecture") is not None:
            message = "a plan reads a model as its own configuration says"
            raise document.error((*at, "override_architecture"), message)
        document.known(data, ("model", "lora", "override_architecture"), at)
        model = _path(document, data.get("model"), (*at, "model"))
        lora = data.get("lora")
        adapter = (None, None) if lora is None else _path(document, lora, (*at, "lora"))
        return ModelReference(*model, *adapter)
    words = document.text(value, at).split("+")
    if len(words) > 2:
        raise document.error(at, "a model has one adapter at most after its '+'")
    adapter = _path(document, words[1], at) if len(words) == 2 else (None, None)
    return ModelReference(*_path(document, words[0], at), *adapter)


def _path(document: Document, value: object, at: Place) -> tuple[str, str | None]:
    if isinstance(value, dict):
        document.known(value, ("path", "revision"), at)
        revision = value.get("revision")
        said_ = None if revision is None else document.text(revision, (*at, "revision"))
        return document.text(value.get("path"), (*at, "path")), said_
    path, *revisions = document.text(value, at).split("@")
    if len(revisions) > 1 or not path or revisions == [""]:
        raise document.error(at, f"{value!r} is not of the form path@revision")
    return path, revisions[0] if revisions else None


# --------------------------------------------------------------------------------- the parameters


def _scope(document: Document, data: dict[str, Any], at: Place) -> Scope:
    here = (*at, "parameters")
    given = data.get("parameters")
    if given is None:
        return Scope({}, here)
    values = document.mapping(given, here)
    for name, setting in values.items():
        _setting(document, setting, (*here, name))
    return Scope(values, here)


def _setting(document: Document, setting: object, at: Place) -> None:
    """A number, a list of them (a gradient), or one or more of these with filters."""
    if isinstance(setting, dict):
        _conditional(document, setting, at)
    elif isinstance(setting, list):
        conditional = [isinstance(item, dict) for item in document.items(setting, at)]
        if any(conditional) and not all(conditional):
            raise document.error(at, "values and filters are mixed in this list")
        for i, item in enumerate(setting):
            if conditional[i]:
                _conditional(document, item, (*at, i))
            else:
                _scalar(document, item, (*at, i))
    else:
        _scalar(document, setting, at)


def _conditional(document: Document, item: dict[str, Any], at: Place) -> None:
    document.known(document.mapping(item, at), ("filter", "value"), at)
    if "value" not in item:
        raise document.error(at, "this filter has no value")
    if item.get("filter") is not None:
        document.text(item["filter"], (*at, "filter"))
    value, here = item["value"], (*at, "value")
    if not isinstance(value, list):
        _scalar(document, value, here)
        return
    for i, one in enumerate(document.items(value, here)):
        _scalar(document, one, (*here, i))


def _scalar(document: Document, value: object, at: Place) -> None:
    if not isinstance(value, bool | int | float | str):
        message = f"this is {said(value)}, and not a number, a text, true or false"
        raise document.error(at, message)
