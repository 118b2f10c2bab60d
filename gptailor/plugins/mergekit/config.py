"""A mergekit file: YAML that knows its lines, and configurations of checked keys and types.

`read_documents` reads the YAML, and `read_config` a document's configuration, in one walk.
"""

from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import yaml  # type: ignore[import-untyped,unused-ignore]

from gptailor.lang.importers import ConversionError, Note
from gptailor.plan.faults import Place, dotted, listed, nearest

# --------------------------------------------------------------------------------------- documents


@final
@dataclass(frozen=True)
class Document:
    """A document's data, and the tree of nodes that it was built from."""

    name: str
    data: Any
    root: Any

    def line(self, place: Place) -> int | None:
        """Return the line of a place, or of the nearest place around it."""
        node, line = self.root, None
        for key in place:
            children = _children(node)
            if key not in children:
                break
            marked, node = children[key]
            line = marked.start_mark.line + 1
        return line

    def error(self, place: Place, message: str, help: str = "") -> ConversionError:
        """Return an error at a place."""
        return ConversionError(
            message, name=self.name, place=dotted(place), line=self.line(place), help=help
        )

    def note(self, place: Place, message: str, *, ignored: bool = False) -> Note:
        """Return a note at a place."""
        return Note(dotted(place), message, self.line(place), ignored, name=self.name)


@final
class _Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """A reader of plain data that refuses a key that is twice in a mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    line = key.start_mark.line + 1
                    raise ConversionError(
                        "duplicate key", name=self.name, place=key.value, line=line
                    )
                keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_documents(text: str, name: str) -> list[Document]:
    """Read the documents of a YAML text; empty documents are left out, unless all are empty.

    Raises ConversionError for invalid YAML, and for a repeated key.
    """
    roots = []
    try:
        loader = _Loader(text)
        loader.name = name
        while loader.check_node():
            roots.append(loader.get_node())
        documents = [Document(name, loader.construct_document(root), root) for root in roots]
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = mark.line + 1 if mark is not None else None
        raise ConversionError(f"invalid YAML: {problem or error}", name=name, line=line) from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"invalid YAML: {error}", name=name) from None
    filled = [document for document in documents if document.data is not None]
    return filled or [Document(name, None, None)]


def _children(node: Any) -> dict[str | int, tuple[Any, Any]]:
    """Return the node with the line, and the value, of each key that is a scalar, or index."""
    if isinstance(node, yaml.MappingNode):
        pairs = (pair for pair in node.value if isinstance(pair[0], yaml.ScalarNode))
        return {key.value: (key, value) for key, value in pairs}
    items = node.value if isinstance(node, yaml.SequenceNode) else ()
    return {i: (value, value) for i, value in enumerate(items)}


# ------------------------------------------------------------------------------------------ values


def _shown(value: object) -> str:
    kinds: dict[type, str] = {dict: "a mapping", list: "a list", type(None): "empty"}
    return kinds.get(type(value)) or f"{value!r}"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConversionError(f"expected a text, got {_shown(value)}")
    return value


def _filter(word: object) -> str:
    return "" if word in (None, "*") else _text(word)


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float | str):
        raise ConversionError(f"expected a number, a text, true or false, got {_shown(value)}")
    return value


def _layer_range(ends: object) -> range:
    if not isinstance(ends, list):
        raise ConversionError(f"expected a list, got {_shown(ends)}")
    if not ends:
        raise ConversionError("this list is empty")
    if len(ends) != 2 or any(type(end) is not int for end in ends):
        raise ConversionError("expected two whole numbers as layer_range, the second one excluded")
    start, end = ends
    if not 0 <= start < end:
        reason = "is negative" if min(start, end) < 0 else "contains no layer"
        raise ConversionError(f"[{start}, {end}] {reason}", help="[0, 8] is layers 0 to 7")
    return range(start, end)


@final
@dataclass(frozen=True)
class ModelPath:
    """A model's path and revision: `path@revision`, or the equivalent mapping."""

    path: str
    revision: str | None = None

    @classmethod
    def of(cls, text: object) -> "ModelPath":
        """Read `path@revision`. Raises ConversionError without a place."""
        path, *revisions = _text(text).split("@")
        if len(revisions) > 1 or not path or revisions == [""]:
            raise ConversionError(f"expected path@revision, got {text!r}")
        return cls(path, *revisions)

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@final
@dataclass(frozen=True)
class ModelReference:
    """A model that the file names, with or without an adapter: `owner/name@revision+adapter`."""

    model: ModelPath
    lora: ModelPath | None = None

    @classmethod
    def model_validate(cls, text: object) -> "ModelReference":
        """Read `path@revision+adapter`. Raises ConversionError without a place."""
        paths = _text(text).split("+")
        if len(paths) > 2:
            raise ConversionError("expected at most one adapter after the '+' of a model")
        return cls(*map(ModelPath.of, paths))

    @property
    def without_adapter(self) -> "ModelReference":
        """The model below the adapter."""
        return ModelReference(self.model)

    def __str__(self) -> str:
        return "+".join(str(path) for path in (self.model, self.lora) if path is not None)


@final
@dataclass(frozen=True)
class Setting:
    """The values of a parameter for tensors with a word in their names; '' is in all names.

    Several values are a gradient. Each has its place in the file.
    """

    filter: str
    values: Sequence[tuple[Any, Place]]


# ------------------------------------------------------------------------------------------ blocks


@dataclass(frozen=True, eq=False)
class ParameterBlock(ABC):
    """A block that may have parameters, and knows its place in the file."""

    document: Document
    at: Place
    parameters: Mapping[str, Sequence[Setting]] = field(default_factory=dict, kw_only=True)

    def error(self, message: str, *inside: str | int, help: str = "") -> ConversionError:
        """Return an error at a place inside the block."""
        return self.document.error((*self.at, *inside), message, help)

    def note(self, message: str, *inside: str | int, ignored: bool = False) -> Note:
        """Return a note at a place inside the block."""
        return self.document.note((*self.at, *inside), message, ignored=ignored)

    def filters(self, name: str) -> list[str]:
        """Return the filters of a parameter."""
        return [setting.filter for setting in self.parameters.get(name, ()) if setting.filter]


@final
@dataclass(frozen=True, eq=False)
class SourceBlock(ParameterBlock):
    """Layers of a model, from the first of the range up to the second, which is excluded.

    A model that is merged with all its layers has no range.
    """

    model: ModelReference
    layer_range: range = range(0)


@final
@dataclass(frozen=True, eq=False)
class SliceBlock(ParameterBlock):
    """Output layers, each merged from one layer of each source."""

    sources: Sequence[SourceBlock]
    base_model: ModelReference | None = None
    residual_weight: Any = None

    @property
    def length(self) -> int:
        """The number of output layers."""
        return len(self.sources[0].layer_range)


@final
@dataclass(frozen=True)
class TokenizerBlock:
    """The tokenizer of the output."""

    source: ModelReference = ModelReference(ModelPath("union"))
    tokens: Any = None
    pad_to_multiple_of: Any = None


BASE_AT: Place = ("base_model",)
"""The place of a source that mergekit adds to `models`: their base, if it is not one of them."""


@final
@dataclass(frozen=True, eq=False)
class MergekitConfig(ParameterBlock):
    """A whole file."""

    merge_method: str
    slices: Sequence[SliceBlock] = ()
    models: Sequence[SourceBlock] = ()
    """The whole models to merge, in place of slices."""
    name: str | None = None
    base_model: ModelReference | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: ModelReference | None = None
    tokenizer: TokenizerBlock | None = None
    chat_template: str | None = None

    def references(self) -> Iterator[tuple[ModelReference, ParameterBlock, str]]:
        """Yield each model with the block and the key that name it; bases first."""
        owners: list[MergekitConfig | SliceBlock] = [self, *self.slices]
        for owner in owners:
            if owner.base_model is not None:
                yield owner.base_model, owner, "base_model"
        sources = [source for block in self.slices for source in block.sources]
        yield from ((block.model, block, "model") for block in (*self.models, *sources))

    def slice_of_models(self, layers: int) -> SliceBlock:
        """Return the slice of all layers that equals `models`; mergekit adds the base, last."""
        sources = [replace(block, layer_range=range(layers)) for block in self.models]
        base = self.base_model
        if base is not None and all(block.model != base for block in self.models):
            sources.append(SourceBlock(self.document, BASE_AT, base, range(layers)))
        return SliceBlock(self.document, (*self.at, "models"), sources)


# ----------------------------------------------------------------------------------------- reading

_MISSING = {
    "layer_range": "this source has no layer_range",
    "merge_method": "'merge_method' is missing",
    "model": "'model' is missing",
    "path": "'path' is missing",
    "sources": "this slice has no sources",
    "value": "this filter has no value",
}
"""Messages for mandatory keys."""


@final
@dataclass(frozen=True)
class _Walk:
    """A walk through a document that keeps its errors, and notes on unknown keys.

    A reader returns None where it keeps an error.
    """

    document: Document
    errors: list[ConversionError] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def fail(self, at: Place, message: str, help: str = "") -> Any:
        self.errors.append(self.document.error(at, message, help))


_Read = Callable[[_Walk, Any, Place], Any]
"""A reader of the value at a place."""


def _value(read: Callable[[Any], Any]) -> _Read:
    """Return the reader by a function that raises ConversionError without a place."""

    def read_value(walk: _Walk, value: Any, at: Place) -> Any:
        try:
            return read(value)
        except ConversionError as error:
            return walk.fail(at, error.message, error.help)

    return read_value


def _optional(read: _Read) -> _Read:
    return lambda walk, value, at: None if value is None else read(walk, value, at)


def _either(read_text: _Read, read_block: _Read) -> _Read:
    return lambda walk, value, at: (read_block if isinstance(value, dict) else read_text)(
        walk, value, at
    )


def _any(walk: _Walk, value: Any, at: Place) -> Any:
    return value


def _each(read: _Read) -> _Read:
    """Return the reader of a list."""

    def read_list(walk: _Walk, items: Any, at: Place) -> Any:
        if not isinstance(items, list):
            return walk.fail(at, f"expected a list, got {_shown(items)}")
        if not items:
            return walk.fail(at, "this list is empty")
        return [read(walk, item, (*at, i)) for i, item in enumerate(items)]

    return read_list


def _block(
    make: Callable[..., Any],
    known: Mapping[str, _Read] | _Read,
    *needed: str,
    bodies: Sequence[str] = (),
) -> _Read:
    """Return the reader of a mapping: of known keys, or of any keys that are read alike.

    One of the `bodies` must be there; empty ones are left out. `make` gets the walk, the place and
    the values by their keys.
    """

    def read_block(walk: _Walk, block: Any, at: Place) -> Any:
        if not isinstance(block, dict):
            return walk.fail(at, f"expected a mapping of keys to values, got {_shown(block)}")
        for key in block:
            if not isinstance(key, str):
                return walk.fail(at, f"the key {key!r} isn't a text")
        present = [key for key in bodies if block.get(key)]
        if bodies and len(present) != 1:
            got = f"got {' and '.join(present)}" if present else "got none of them"
            return walk.fail(at, f"expected one of {listed(bodies)}, {got}")
        readers = dict.fromkeys(block, known) if callable(known) else known
        before = len(walk.errors)
        for key in (key for key in block if key not in readers):
            near = nearest(key, readers)
            message = f"mergekit ignores the unknown key '{key}' here"
            message += f" ({near})" if near else ""
            walk.notes.append(walk.document.note((*at, key), message, ignored=True))
        fields = {}
        for key, read in readers.items():
            if key in block and (block[key] or key not in bodies):
                fields[key] = read(walk, block[key], (*at, key))
            elif key in needed:
                walk.fail(at, _MISSING[key])
        return make(walk, at, **fields) if len(walk.errors) == before else None

    return read_block


def _placed(made: Callable[..., Any]) -> Callable[..., Any]:
    return lambda walk, at, **fields: made(walk.document, at, **fields)


def _plain(made: Callable[..., Any]) -> Callable[..., Any]:
    return lambda walk, at, **fields: made(**fields)


def _several(read: _Read) -> _Read:
    """Return the reader of a value, or a list of values, as a list."""
    return lambda walk, value, at: (
        _each(read)(walk, value, at) if isinstance(value, list) else [read(walk, value, at)]
    )


_values = _several(lambda walk, value, at: (_value(_scalar)(walk, value, at), at))
"""The reader of a value or a gradient, each number with its place."""


def _settings(walk: _Walk, value: Any, at: Place) -> Any:
    """Read a parameter: a value or a gradient, or several of these with filters."""
    kinds = {isinstance(each, dict) for each in (value if isinstance(value, list) else [value])}
    if len(kinds) > 1:
        return walk.fail(at, "expected values or filters in this list, got both")
    if True not in kinds:
        values = _values(walk, value, at)
        return values and [Setting("", values)]
    return _several(_FILTERED)(walk, value, at)


def _slice(walk: _Walk, at: Place, sources: Any, **fields: Any) -> SliceBlock:
    if len({len(source.layer_range) for source in sources}) > 1:
        walk.fail((*at, "sources"), "the sources have different numbers of layers")
    return SliceBlock(walk.document, at, sources, **fields)


def _override(value: object) -> None:
    if value is not None:
        raise ConversionError("remove it; gptailor uses the model's own configuration")


# The keys of each block, with their readers.
_TEXT = _value(_text)
_PATH = _either(
    _value(ModelPath.of),
    _block(_plain(ModelPath), {"path": _TEXT, "revision": _optional(_TEXT)}, "path"),
)
_REFERENCE = _either(
    _value(ModelReference.model_validate),
    _block(
        lambda walk, at, model, lora=None, override_architecture=None: ModelReference(model, lora),
        {"model": _PATH, "lora": _optional(_PATH), "override_architecture": _value(_override)},
        "model",
    ),
)
_FILTERED = _block(
    lambda walk, at, value, filter="": Setting(filter, value),
    {"filter": _value(_filter), "value": _values},
    "value",
)
_SETTINGS = _block(lambda walk, at, **fields: fields, _settings)
_PARAMETERS = {
    "parameters": lambda walk, block, at: _SETTINGS(walk, {} if block is None else block, at)
}
_MODEL = _block(_placed(SourceBlock), {"model": _REFERENCE, **_PARAMETERS}, "model")
_SOURCE = _block(
    _placed(SourceBlock),
    {"model": _REFERENCE, "layer_range": _value(_layer_range), **_PARAMETERS},
    "model",
    "layer_range",
)
_SLICE = _block(
    _slice,
    {
        "sources": _each(_SOURCE),
        "base_model": _optional(_REFERENCE),
        "residual_weight": _any,
        **_PARAMETERS,
    },
    "sources",
)
_TOKENIZER = _block(
    _plain(TokenizerBlock),
    {
        "source": lambda walk, value, at: _REFERENCE(walk, value or "union", at),
        "tokens": _any,
        "pad_to_multiple_of": _any,
    },
)
_CONFIG = _block(
    _placed(MergekitConfig),
    {
        "slices": _each(_SLICE),
        "models": _each(_MODEL),
        "name": _optional(_TEXT),
        "merge_method": _TEXT,
        "base_model": _optional(_REFERENCE),
        "dtype": _optional(_TEXT),
        "out_dtype": _optional(_TEXT),
        "tokenizer_source": _optional(_REFERENCE),
        "tokenizer": _optional(_TOKENIZER),
        "chat_template": lambda walk, value, at: _TEXT(walk, value, at) if value else None,
        **_PARAMETERS,
    },
    "merge_method",
    bodies=("slices", "models"),
)


def read_config(document: Document) -> tuple[MergekitConfig, list[Note]]:
    """Read a configuration, and a note for each key that mergekit passes over in silence.

    Raises ConversionError with all faults, their keys and lines.
    """
    walk = _Walk(document)
    config: MergekitConfig = _CONFIG(walk, document.data, ())
    if walk.errors:
        raise ConversionError.of_all([*walk.errors, *ignored_errors(walk.notes)])
    return config, walk.notes


def ignored_errors(notes: Iterable[Note]) -> list[ConversionError]:
    """Return the notes on keys that the other tool ignores, as errors."""
    return [
        ConversionError(note.message, name=note.name, place=note.place, line=note.line)
        for note in notes
        if note.ignored
    ]
