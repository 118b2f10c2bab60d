"""A YAML file as plain data that knows the line of each of its keys: `read_documents`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import yaml  # type: ignore[import-untyped,unused-ignore]

from gptailor.convert.note import ConversionError, Note, dotted
from gptailor.plan.faults import Place

_DEEPEST = 50
"""Levels of a file; these files have some seven."""


@final
@dataclass(frozen=True)
class Document:
    """A file's data, and the tree that it was made from."""

    name: str
    data: Any
    root: Any

    def line(self, place: Place) -> int | None:
        """The line of a place, or of the nearest one around it."""
        node, line = self.root, None
        for key in place:
            inside = {at: (of, value) for at, of, value in _children(node)}
            if key not in inside:
                break
            of, node = inside[key]
            line = of.start_mark.line + 1
        return line

    def error(self, place: Place, message: str, help: str = "") -> ConversionError:
        """What is wrong at a place."""
        return ConversionError(
            message, name=self.name, place=dotted(place), line=self.line(place), help=help
        )

    def note(self, place: Place, message: str, *, ignored: bool = False) -> Note:
        """What differs at a place."""
        return Note(dotted(place), message, self.line(place), ignored)


def read_documents(text: str, name: str) -> list[Document]:
    """The data of a text's documents; a ConversionError if it is no YAML, or has a key twice.

    A text of nothing is one document without data; empty ones beside others don't count.
    """
    try:
        roots = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        for root in roots:
            _no_key_twice(root, name)
        pairs = zip(yaml.safe_load_all(text), roots, strict=False)
        found = [Document(name, data, root) for data, root in pairs if data is not None]
        return found or [Document(name, None, None)]
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = mark.line + 1 if mark is not None else None
        message = f"this is no YAML: {problem or error}"
        raise ConversionError(message, name=name, line=line) from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"this is no YAML: {error}", name=name) from None


def _no_key_twice(root: Any, name: str) -> None:
    seen: set[int] = set()
    todo = [(root, 0)]
    while todo:
        node, depth = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        children = list(_children(node))
        if children and depth > _DEEPEST:
            line = node.start_mark.line + 1
            raise ConversionError("this is nested too deeply", name=name, line=line)
        keys: set[str | int] = set()
        for key, of, value in children:
            if key in keys:
                line, place = of.start_mark.line + 1, str(key)
                raise ConversionError("this key stands twice", name=name, place=place, line=line)
            keys |= {key} if key is not None else set()
            todo.append((value, depth + 1))


def _children(node: Any) -> Iterator[tuple[str | int | None, Any, Any]]:
    """Each key (None if it is no scalar) or index, the node that has its line, and its value."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (key.value if isinstance(key, yaml.ScalarNode) else None), key, value
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield i, value, value
