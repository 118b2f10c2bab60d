"""A mergekit configuration as data, with its keys and types checked: `read_config`."""

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


def _invalid(message: str, help: str = "", *, key: str | None = None) -> ValidationError:
    """Return the error of a value, or of a key inside it."""
    error = PydanticCustomError("fault", "{message}", {"message": message, "help": help})
    details = InitErrorDetails(type=error, loc=() if key is None else (key,), input=None)
    return ValidationError.from_exception_data("", [details])


def _shown(value: object) -> str:
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "empty"}
    return kinds.get(type(value)) or f"{value!r}"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _invalid(f"expected a text, got {_shown(value)}")
    return value


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise _invalid(f"expected a number, a text, true or false, got {_shown(value)}")
    return value


def _layer_range(ends: object) -> range:
    if not isinstance(ends, list):
        raise _invalid(f"expected a list, got {_shown(ends)}")
    if not ends:
        raise _invalid("this list is empty")
    if len(ends) != 2 or any(type(end) is not int for end in ends):
        raise _invalid("a layer_range is two whole numbers, the second not included")
    start, end = ends
    if not 0 <= start < end:
        reason = "is negative" if min(start, end) < 0 else "holds no layer"
        raise _invalid(f"[{start}, {end}] {reason}", "[0, 8] is layers 0 to 7")
    return range(start, end)


def _blocks_at(key: str, value: Any) -> dict[Place, Any]:
    """Return the block at a key, or each block of its list or its modules, by place."""
    if isinstance(value, list):
        return {(key, number): block for number, block in enumerate(value)}
    if isinstance(value, dict) and key == "modules":
        return {(key, name): block for name, block in value.items()}
    return {(key,): value}


_Text = Annotated[str, BeforeValidator(_text)]
_Scalar = Annotated[Any, BeforeValidator(_scalar)]
_NotEmpty = Field(min_length=1)
_Values = Annotated[
    Annotated[list[_Scalar], _NotEmpty, Tag("a gradient")] | Annotated[_Scalar, Tag("a value")],
    Discriminator(lambda value: "a gradient" if isinstance(value, list) else "a value"),
]


class FileBlock(Closed, ABC):
    """A mapping of the file."""

    unsupported: ClassVar[dict[str, str]] = {}
    """mergekit's keys without an equivalent, and the reason."""
    nested: ClassVar[dict[str, "type[FileBlock]"]] = {}
    """The type of the block, or of the list of blocks, at a key."""

    @classmethod
    def ignored_keys(cls, block: Any) -> Iterator[tuple[Place, str]]:
        """Yield each key that mergekit passes over, and a help text with the nearest known key."""
        known = sorted(cls.model_fields, key="parameters".__eq__)
        for key, value in block.items() if isinstance(block, dict) else ():
            if key not in known:
                yield (key,), nearest(str(key), known)
            for at, inner in _blocks_at(key, value).items() if key in cls.nested else ():
                for place, help_ in cls.nested[key].ignored_keys(inner):
                    yield (*at, *place), help_

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        for key, value in block.items():
            if not isinstance(key, str):
                raise _invalid(f"the key {key!r} is no text")
            if key in cls.unsupported and value is not None:
                raise _invalid(cls.unsupported[key], key=key)
        known = {key: value for key, value in block.items() if key in cls.model_fields}
        return cls._validated_keys(known)

    @classmethod
    def _validated_keys(cls, block: dict[str, Any]) -> dict[str, Any]:
        """Return a block that has known keys only, after a check of their combination."""
        return block


@final
class ModelPath(FileBlock):
    """A model's path and revision: `path@revision`, or the equivalent mapping."""

    path: _Text
    revision: _Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _split(cls, block: Any) -> Any:
        if isinstance(block, dict):
            return block
        path, *revisions = _text(block).split("@")
        if len(revisions) > 1 or not path or revisions == [""]:
            raise _invalid(f"{block!r} is not of the form path@revision")
        return {"path": path, "revision": revisions[0] if revisions else None}

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@final
class ModelReference(FileBlock):
    """A model that the file names, with or without an adapter: `owner/name@revision+adapter`."""

    unsupported: ClassVar = {
        "override_architecture": "a plan reads a model as its own configuration says"
    }

    model: ModelPath
    lora: ModelPath | None = None
    override_architecture: None = None

    @model_validator(mode="before")
    @classmethod
    def _split(cls, block: Any) -> Any:
        if isinstance(block, dict):
            return block
        model, *adapters = _text(block).split("+")
        if len(adapters) > 1:
            raise _invalid("a model has one adapter at most after its '+'")
        return {"model": model, "lora": adapters[0] if adapters else None}

    @property
    def without_adapter(self) -> "ModelReference":
        """The model below the adapter."""
        return self.model_copy(update={"lora": None})

    def __str__(self) -> str:
        return "+".join(str(path) for path in (self.model, self.lora) if path is not None)


@final
class Filtered(FileBlock):
    """A value or a gradient for the tensors whose names contain a word; '' is in all names."""

    filter: Annotated[
        str, BeforeValidator(lambda word: "" if word in (None, "*") else _text(word))
    ] = ""
    value: _Values


def _setting_kind(setting: object) -> str:
    if isinstance(setting, dict):
        return "a filter"
    filters = {isinstance(item, dict) for item in setting} if isinstance(setting, list) else set()
    return "values" if True not in filters else "mixed" if False in filters else "filters"


Setting = Annotated[
    Annotated[list[Filtered], Tag("filters")]
    | Annotated[Filtered, Tag("a filter")]
    | Annotated[_Values, Tag("values")],
    Discriminator(_setting_kind),
]
"""A number or a flag, a list of them (a gradient), or several of these with filters."""


class ParameterBlock(FileBlock, ABC):
    """A block that may have parameters, and knows its place in the file."""

    parameters: Annotated[
        dict[str, Setting], BeforeValidator(lambda block: {} if block is None else block)
    ] = Field({})
    _document: Document = PrivateAttr()
    _at: Place = PrivateAttr(())

    def error(self, message: str, *inside: str | int, help: str = "") -> ConversionError:
        """Return an error at a place inside the block."""
        return self._document.error((*self._at, *inside), message, help)

    def note(self, message: str, *inside: str | int, ignored: bool = False) -> Note:
        """Return a note at a place inside the block."""
        return self._document.note((*self._at, *inside), message, ignored=ignored)

    def locate(self, document: Document, *at: str | int) -> None:
        """Set the place of the block, and of the blocks inside it."""
        self._document, self._at = document, at
        for key, value in self:
            pairs = enumerate(value) if isinstance(value, list) else ()
            for inner, block in value.items() if isinstance(value, dict) else pairs:
                if isinstance(block, ParameterBlock):
                    block.locate(document, *at, key, inner)


@final
class ModelBlock(ParameterBlock):
    """A model that is merged with all its layers."""

    nested: ClassVar = {"model": ModelReference}

    model: ModelReference


@final
class SourceBlock(ParameterBlock):
    """Layers of a model, from the first of the range up to the second, which is excluded."""

    nested: ClassVar = {"model": ModelReference}

    model: ModelReference
    layer_range: Annotated[Any, BeforeValidator(_layer_range)]


def _equally_long(sources: list[SourceBlock]) -> list[SourceBlock]:
    if len({len(source.layer_range) for source in sources}) > 1:
        raise _invalid("the sources have different numbers of layers")
    return sources


@final
class SliceBlock(ParameterBlock):
    """Output layers, each merged from one layer of each source."""

    nested: ClassVar = {"sources": SourceBlock}

    sources: Annotated[list[SourceBlock], _NotEmpty, AfterValidator(_equally_long)]
    base_model: ModelReference | None = None
    residual_weight: Any = None

    @property
    def length(self) -> int:
        """The number of output layers."""
        return len(self.sources[0].layer_range)


class BodyBlock(ParameterBlock, ABC):
    """The slices or whole models to merge, at the top of a file or in its module."""

    nested: ClassVar = {"slices": SliceBlock, "models": ModelBlock}

    slices: Annotated[list[SliceBlock], _NotEmpty] | None = None
    models: Annotated[list[ModelBlock], _NotEmpty] | None = None

    @classmethod
    def _validated_keys(cls, block: dict[str, Any]) -> dict[str, Any]:
        bodies = [key for key in ("slices", "models", "modules") if key in cls.model_fields]
        present = [key for key in bodies if block.get(key)]
        if len(present) != 1:
            got = f"it has {' and '.join(present)}" if present else "it has none"
            raise _invalid(f"one of {listed(bodies)} makes the model, and {got}")
        return {key: value for key, value in block.items() if value or key not in bodies}

    def slice_of_models(self, layers: int, base: ModelReference | None) -> SliceBlock:
        """Return the slice of all layers that equals `models`; mergekit adds the base, last."""
        models = [(block.model, block.parameters, block._at) for block in self.models or ()]
        if base is not None and all(model != base for model, _, _ in models):
            models.append((base, {}, ("base_model",)))
        sources = []
        for model, parameters, at in models:
            source = SourceBlock.model_construct(
                model=model, parameters=parameters, layer_range=range(layers)
            )
            source.locate(self._document, *at)
            sources.append(source)
        whole = SliceBlock.model_construct(sources=sources, parameters={})
        whole._document, whole._at = self._document, (*self._at, "models")
        return whole


@final
class ModuleBlock(BodyBlock):
    """The one module of a file."""


def _one_module(modules: object) -> object:
    if isinstance(modules, dict) and len(modules) != 1:
        names = ", ".join(str(name) for name in modules)
        raise _invalid(f"a plan is of one module, and these are {len(modules)}: {names}")
    return modules


@final
class TokenizerBlock(FileBlock):
    """The tokenizer of the output."""

    source: Annotated[ModelReference, BeforeValidator(lambda block: block or "union")] = (
        ModelReference.model_validate("union")
    )
    tokens: Any = None
    pad_to_multiple_of: Any = None


@final
class MergekitConfig(BodyBlock):
    """A whole file."""

    nested: ClassVar = {**BodyBlock.nested, "modules": ModuleBlock, "tokenizer": TokenizerBlock}

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
        """The block with the slices or models."""
        return next(iter((self.modules or {}).values()), self)

    def references(self) -> Iterator[tuple[ModelReference, ParameterBlock, str]]:
        """Yield each model with the block and the key that name it; bases first."""
        slices = self.body.slices or []
        owners: list[MergekitConfig | SliceBlock] = [self, *slices]
        for owner in owners:
            if owner.base_model is not None:
                yield owner.base_model, owner, "base_model"
        sources = [source for block in slices for source in block.sources]
        named: list[ModelBlock | SourceBlock] = [*(self.body.models or ()), *sources]
        yield from ((block.model, block, "model") for block in named)


_MISSING = {
    "layer_range": "this source has no layer_range",
    "merge_method": "the file names no merge_method",
    "model": "no model is named here",
    "sources": "this slice has no sources",
    "value": "this filter has no value",
}


def read_config(document: Document) -> tuple[MergekitConfig, list[Note]]:
    """Read a configuration, and a note for each key that mergekit passes over in silence.

    Raises ConversionError with all faults, their keys and lines.
    """
    try:
        config = MergekitConfig.model_validate(document.data)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise ConversionError.of_all(_error(document, fault) for fault in faults) from None
    config.locate(document)
    notes = []
    for place, help_ in MergekitConfig.ignored_keys(document.data):
        message = f"mergekit knows no key '{place[-1]}' here, and passes over it"
        message += f" ({help_})" if help_ else ""
        notes.append(document.note(place, message, ignored=True))
    return config, notes


def _error(document: Document, fault: ErrorDetails) -> ConversionError:
    """Return pydantic's error in words of the file, at the part of its place that exists."""
    place: Place = ()
    value_there = document.data
    for key in fault["loc"]:
        keys = range(len(value_there)) if isinstance(value_there, list) else value_there
        if isinstance(keys, range | dict) and key in keys:
            place, value_there = (*place, key), value_there[key]
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
        message = f"expected {expected}, got {_shown(value)}"
    return document.error(place, message, help_)
