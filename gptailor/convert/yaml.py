"""A YAML file as plain data that knows the line of each of its keys: `read_documents`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import yaml  # type: ignore[import-untyped,unused-ignore]

from gptailor.convert.note import ConversionError, Note
from gptailor.plan.faults import Place, dotted

_DEEPEST = 50
"""Levels of a file; mergekit's files have about seven."""


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
            children = {at: (marked, value) for at, marked, value in _children(node)}
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


def read_documents(text: str, name: str) -> list[Document]:
    """Read the documents of a YAML text; empty documents are left out, unless all are empty.

    Raises ConversionError for invalid YAML, and for a key that stands twice.
    """
    try:
        roots = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        for root in roots:
            _refuse_repeated_keys(root, name)
        pairs = zip(yaml.safe_load_all(text), roots, strict=False)
        documents = [Document(name, data, root) for data, root in pairs if data is not None]
        return documents or [Document(name, None, None)]
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = mark.line + 1 if mark is not None else None
        raise ConversionError(f"invalid YAML: {problem or error}", name=name, line=line) from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"invalid YAML: {error}", name=name) from None


def _refuse_repeated_keys(root: Any, name: str) -> None:
    """Raise ConversionError for a mapping with a key twice, and for a tree that is too deep."""
    seen: set[int] = set()
    todo = [(root, 0)]
    for node, depth in todo:  # which grows on the way
        children = [] if id(node) in seen else list(_children(node))
        seen.add(id(node))
        if children and depth > _DEEPEST:
            line = node.start_mark.line + 1
            raise ConversionError("this is nested too deeply", name=name, line=line)
        keys: set[str | int] = set()
        for key, marked, value in children:
            if key in keys:
                line, place = marked.start_mark.line + 1, str(key)
                raise ConversionError("duplicate key", name=name, place=place, line=line)
            keys |= {key} if key is not None else set()
            todo.append((value, depth + 1))


def _children(node: Any) -> Iterator[tuple[str | int | None, Any, Any]]:
    """Yield each key (None if it isn't a scalar) or index, the node with its line, its value."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (key.value if isinstance(key, yaml.ScalarNode) else None), key, value
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield i, value, value
