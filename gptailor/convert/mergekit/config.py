"""A mergekit configuration as data: its keys and types checked, nothing decided: `read_config`."""

from abc import ABC
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gptailor.convert.note import ConversionError, Note
from gptailor.convert.yaml import Document
from gptailor.plan.faults import Place, listed, nearest
from gptailor.plan.plan import Closed


def _fault(message: str, help: str = "", *, key: str | None = None) -> ValidationError:
    """What is wrong with a value, or with a key inside it."""
    error = PydanticCustomError("fault", "{message}", {"message": message, "help": help})
    details = InitErrorDetails(type=error, loc=() if key is None else (key,), input=None)
    return ValidationError.from_exception_data("", [details])


def _said(value: object) -> str:
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "empty"}
    return kinds.get(type(value)) or f"{value!r}"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _fault(f"this is {_said(value)}, and not a text")
    return value


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise _fault(f"this is {_said(value)}, and not a number, a text, true or false")
    return value


def _span(ends: object) -> range:
    if not isinstance(ends, list):
        raise _fault(f"this is {_said(ends)}, and not a list")
    if not ends:
        raise _fault("this list is empty")
    if len(ends) != 2 or any(type(end) is not int for end in ends):
        raise _fault("a layer_range is two whole numbers, the second not included")
    start, end = ends
    if not 0 <= start < end:
        why = "is negative" if min(start, end) < 0 else "holds no layer"
        raise _fault(f"[{start}, {end}] {why}", "[0, 8] is layers 0 to 7")
    return range(start, end)


def blocks_at(at: Place, value: Any) -> dict[Place, Any]:
    """What stands at a key, or each of what stands in its list or among its modules."""
    if isinstance(value, list):
        return {(*at, number): one for number, one in enumerate(value)}
    modules = isinstance(value, dict) and at[-1] == "modules"
    return {(*at, name): one for name, one in value.items()} if modules else {at: value}


_Text = Annotated[str, BeforeValidator(_text)]
_Scalar = Annotated[Any, BeforeValidator(_scalar)]
_Filled = Field(min_length=1)
_Values = Annotated[
    Annotated[list[_Scalar], _Filled, Tag("a gradient")] | Annotated[_Scalar, Tag("a value")],
    Discriminator(lambda value: "a gradient" if isinstance(value, list) else "a value"),
]


class FileBlock(Closed, ABC):
    """A mapping of the file."""

    refused: ClassVar[dict[str, str]] = {}
    """Keys that mergekit has, and why they can't be said."""
    inside: ClassVar[dict[str, "type[FileBlock]"]] = {}
    """The blocks, or lists of blocks, that stand at a key."""

    @classmethod
    def ignored(cls, given: Any) -> Iterator[tuple[Place, str]]:
        """The keys of a mapping that mergekit passes over, and the nearest known ones, if any."""
        keys = sorted(cls.model_fields, key="parameters".__eq__)
        for key, value in given.items() if isinstance(given, dict) else ():
            if key not in keys:
                yield (key,), nearest(str(key), keys)
            for at, one in blocks_at((key,), value).items() if key in cls.inside else ():
                yield from (((*at, *place), near) for place, near in cls.inside[key].ignored(one))

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for key, value in given.items():
            if not isinstance(key, str):
                raise _fault(f"the key {key!r} is no text")
            if key in cls.refused and value is not None:
                raise _fault(cls.refused[key], key=key)
        known = {key: value for key, value in given.items() if key in cls.model_fields}
        return cls._with_known_keys(known)

    @classmethod
    def _with_known_keys(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The same, once its keys are known."""
        return given


@final
class ModelPath(FileBlock):
    """`path@revision`, or the mapping that says the same."""

    path: _Text
    revision: _Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return given
        path, *revisions = _text(given).split("@")
        if len(revisions) > 1 or not path or revisions == [""]:
            raise _fault(f"{given!r} is not of the form path@revision")
        return {"path": path, "revision": revisions[0] if revisions else None}

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@final
class ModelReference(FileBlock):
    """A model that the file names, an adapter on it perhaps: `owner/name@revision+adapter`."""

    refused: ClassVar = {
        "override_architecture": "a plan reads a model as its own configuration says"
    }

    model: ModelPath
    lora: ModelPath | None = None
    override_architecture: None = None

    @model_validator(mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return given
        words = _text(given).split("+")
        if len(words) > 2:
            raise _fault("a model has one adapter at most after its '+'")
        return {"model": words[0], "lora": words[1] if len(words) == 2 else None}

    @property
    def bare(self) -> "ModelReference":
        """The same model without an adapter."""
        return self.model_copy(update={"lora": None})

    def __str__(self) -> str:
        return "+".join(str(path) for path in (self.model, self.lora) if path is not None)


@final
class Filtered(FileBlock):
    """A value, or a gradient, for the tensors with a word in their names; '' is in all."""

    filter: Annotated[
        str, BeforeValidator(lambda word: "" if word in (None, "*") else _text(word))
    ] = ""
    value: _Values


def _kind(setting: object) -> str:
    if isinstance(setting, dict):
        return "a filter"
    filters = {isinstance(item, dict) for item in setting} if isinstance(setting, list) else set()
    return "values" if True not in filters else "mixed" if False in filters else "filters"


Setting = Annotated[
    Annotated[list[Filtered], Tag("filters")]
    | Annotated[Filtered, Tag("a filter")]
    | Annotated[_Values, Tag("values")],
    Discriminator(_kind),
]
"""A number or a flag, a list of them (a gradient), or one or more of these with filters."""


class ParameterBlock(FileBlock, ABC):
    """A block that may have parameters, and knows its place in the file."""

    parameters: Annotated[
        dict[str, Setting], BeforeValidator(lambda given: {} if given is None else given)
    ] = Field({})
    _document: Document = PrivateAttr()
    _at: Place = PrivateAttr(())

    def error(self, message: str, *inside: str | int, help: str = "") -> ConversionError:
        """What is wrong at a place inside it."""
        return self._document.error((*self._at, *inside), message, help)

    def note(self, message: str, *inside: str | int, ignored: bool = False) -> Note:
        """What differs at a place inside it."""
        return self._document.note((*self._at, *inside), message, ignored=ignored)

    def place(self, document: Document, *at: str | int) -> None:
        """Tell it, and the blocks inside it, where it is."""
        self._document, self._at = document, at
        for key, value in self:
            pairs = enumerate(value) if isinstance(value, list) else ()
            for inner, block in value.items() if isinstance(value, dict) else pairs:
                if isinstance(block, ParameterBlock):
                    block.place(document, *at, key, inner)


@final
class ModelBlock(ParameterBlock):
    """A model of which all layers are merged."""

    inside: ClassVar = {"model": ModelReference}

    model: ModelReference


@final
class SourceBlock(ParameterBlock):
    """A model's layers, from the first of the range up to the second, which isn't one of them."""

    inside: ClassVar = {"model": ModelReference}

    model: ModelReference
    layer_range: Annotated[Any, BeforeValidator(_span)]


def _equally_long(sources: list[SourceBlock]) -> list[SourceBlock]:
    if len({len(source.layer_range) for source in sources}) > 1:
        raise _fault("the sources have different numbers of layers")
    return sources


@final
class SliceBlock(ParameterBlock):
    """Output layers that are made in step of the sources' layers."""

    inside: ClassVar = {"sources": SourceBlock}

    sources: Annotated[list[SourceBlock], _Filled, AfterValidator(_equally_long)]
    base_model: ModelReference | None = None
    residual_weight: Any = None

    @property
    def length(self) -> int:
        """How many layers it makes."""
        return len(self.sources[0].layer_range)


class BodyBlock(ParameterBlock, ABC):
    """What is merged: slices, or models as they are; a file may have it within a module."""

    inside: ClassVar = {"slices": SliceBlock, "models": ModelBlock}

    slices: Annotated[list[SliceBlock], _Filled] | None = None
    models: Annotated[list[ModelBlock], _Filled] | None = None

    @classmethod
    def _with_known_keys(cls, given: dict[str, Any]) -> dict[str, Any]:
        bodies = [key for key in ("slices", "models", "modules") if key in cls.model_fields]
        have = [key for key in bodies if given.get(key)]
        if len(have) != 1:
            said = f"it has {' and '.join(have)}" if have else "it has none"
            raise _fault(f"one of {listed(bodies)} makes the model, and {said}")
        return {key: value for key, value in given.items() if value or key not in bodies}

    def whole(self, count: int, base: ModelReference | None) -> SliceBlock:
        """The slice of all layers that `models` are, to which mergekit adds the base, last."""
        found = [(block.model, block.parameters, block._at) for block in self.models or ()]
        if base is not None and all(model != base for model, _, _ in found):
            found.append((base, {}, ("base_model",)))
        made, span = SourceBlock.model_construct, range(count)
        sources = [made(model=m, parameters=given, layer_range=span) for m, given, _ in found]
        piece = SliceBlock.model_construct(sources=sources, parameters={})
        piece.place(self._document, *self._at, "models")
        for source, (_, _, at) in zip(sources, found, strict=True):
            source.place(self._document, *at)
        return piece


@final
class ModuleBlock(BodyBlock):
    """The one module of a file."""


def _one_module(modules: object) -> object:
    if isinstance(modules, dict) and len(modules) != 1:
        names = ", ".join(str(name) for name in modules)
        raise _fault(f"a plan is of one module, and these are {len(modules)}: {names}")
    return modules


@final
class TokenizerBlock(FileBlock):
    """The tokenizer of the output."""

    source: Annotated[ModelReference, BeforeValidator(lambda given: given or "union")] = (
        ModelReference.model_validate("union")
    )
    tokens: Any = None
    pad_to_multiple_of: Any = None


@final
class MergekitConfig(BodyBlock):
    """A whole file."""

    inside: ClassVar = {**BodyBlock.inside, "modules": ModuleBlock, "tokenizer": TokenizerBlock}

    name: _Text | None = None
    merge_method: _Text
    base_model: ModelReference | None = None
    dtype: _Text | None = None
    out_dtype: _Text | None = None
    tokenizer_source: ModelReference | None = None
    tokenizer: TokenizerBlock | None = None
    chat_template: Any = None
    modules: Annotated[dict[str, ModuleBlock], BeforeValidator(_one_module)] | None = None

    @property
    def body(self) -> BodyBlock:
        """The block that has the slices or models."""
        return next(iter((self.modules or {}).values()), self)


_MISSING = {
    "layer_range": "this source has no layer_range",
    "merge_method": "the file names no merge_method",
    "model": "no model is named here",
    "sources": "this slice has no sources",
    "value": "this filter has no value",
}


def read_config(document: Document) -> tuple[MergekitConfig, list[Note]]:
    """What a file says, and what of it mergekit passes over in silence.

    A ConversionError with all that is wrong, its keys and lines, where it is no configuration.
    """
    data = document.data
    try:
        config = MergekitConfig.model_validate(data)
    except ValidationError as wrong:
        errors = wrong.errors(include_url=False)
        raise ConversionError.of_all(_error(document, fault) for fault in errors) from None
    config.place(document)
    notes = []
    for place, near in MergekitConfig.ignored(data):
        message = f"mergekit knows no key '{place[-1]}' here, and passes over it"
        message += f" ({near})" if near else ""
        notes.append(document.note(place, message, ignored=True))
    return config, notes


def _error(document: Document, fault: ErrorDetails) -> ConversionError:
    """pydantic's fault in words of the file; of its place, what the file has."""
    place: Place = ()
    inside = document.data
    for key in fault["loc"]:
        keys = range(len(inside)) if isinstance(inside, list) else inside
        if isinstance(keys, range | dict) and key in keys:
            place, inside = (*place, key), inside[key]
    kind, last, value, help_ = fault["type"], fault["loc"][-1:], fault["input"], ""
    if kind == "fault":
        message, help_ = fault["ctx"]["message"], fault["ctx"]["help"]
    elif kind == "missing":
        message = _MISSING.get(str(last[0]), f"there is no '{last[0]}' here")
    elif kind == "union_tag_invalid":
        message = "values and filters are mixed in this list"
    elif kind == "too_short":
        message = "this list is empty"
    elif last == ("[key]",):
        message, place = f"the key {value!r} is no text", place[:-1]
    else:
        expected = "a list" if kind == "list_type" else "a mapping of keys to values"
        message = f"this is {_said(value)}, and not {expected}"
    return document.error(place, message, help_)
