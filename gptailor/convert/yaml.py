"""A YAML file as plain data that knows the line of each of its keys: `read_document`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from gptailor.convert.note import ConversionError, Note, dotted
from gptailor.plan.faults import Place, nearest

DEEPEST = 50
"""Levels of a file; these files have some seven."""


@dataclass(frozen=True)
class Document:
    """A file's data, and the tree that it was made from."""

    name: str
    data: dict[str, Any]
    root: Any

    def line(self, place: Place) -> int | None:
        """The line of a place, or of the nearest one around it."""
        node, line = self.root, None
        for key in place:
            found = _inside(node, key)
            if found is None:
                break
            line, node = found
        return line

    def error(self, place: Place, message: str, help: str = "") -> ConversionError:
        """What is wrong at a place."""
        return ConversionError(
            message, name=self.name, place=dotted(place), line=self.line(place), help=help
        )

    def note(self, place: Place, message: str) -> Note:
        """What differs at a place."""
        return Note(dotted(place), message, self.line(place))

    # ------------------------------------------------------------------------------ typed access

    def mapping(self, value: object, place: Place) -> dict[str, Any]:
        """The value, if it is a mapping with texts as keys."""
        if not isinstance(value, dict):
            raise self.error(place, f"this is {said(value)}, and not a mapping of keys to values")
        for key in value:
            if not isinstance(key, str):
                raise self.error(place, f"the key {key!r} is no text")
        return value

    def items(self, value: object, place: Place) -> list[Any]:
        """The value, if it is a list with something in it."""
        if not isinstance(value, list):
            raise self.error(place, f"this is {said(value)}, and not a list")
        if not value:
            raise self.error(place, "this list is empty")
        return value

    def text(self, value: object, place: Place) -> str:
        """The value, if it is a text."""
        if not isinstance(value, str) or not value:
            raise self.error(place, f"this is {said(value)}, and not a text")
        return value

    def known(self, value: dict[str, Any], keys: tuple[str, ...], place: Place) -> None:
        """Refuse keys that aren't among these."""
        for key in value:
            if key not in keys:
                help_ = nearest(key, keys) or f"the keys here are {', '.join(keys)}"
                raise self.error((*place, key), f"there is no key '{key}'", help_)


def said(value: object) -> str:
    """What a value is, for messages."""
    if value is None:
        return "empty"
    kinds = {bool: "true or false", dict: "a mapping", list: "a list", str: "a text"}
    kind = kinds.get(type(value))
    if kind in ("a mapping", "a list"):
        return kind
    return f"{value!r}"


def read_document(text: str, name: str) -> Document:
    """The data of a text; a ConversionError if it is no YAML, or has a key twice."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _no_key_twice(root, name)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _syntax(error, name) from None
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"this is no YAML: {error}", name=name) from None
    document = Document(name, {}, root)
    return Document(name, document.mapping(data, ()), root)


def _syntax(error: yaml.YAMLError, name: str) -> ConversionError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    line = mark.line + 1 if mark is not None else None
    return ConversionError(f"this is no YAML: {problem}", name=name, line=line)


def _no_key_twice(root: Any, name: str) -> None:
    seen: set[int] = set()
    todo = [(root, 0)] if root is not None else []
    while todo:
        node, depth = todo.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if depth > DEEPEST:
            line = node.start_mark.line + 1
            raise ConversionError("this is nested too deeply", name=name, line=line)
        keys: set[str] = set()
        for key, value in _pairs(node):
            if key is not None and key.value in keys:
                line, place = key.start_mark.line + 1, key.value
                raise ConversionError("this key stands twice", name=name, place=place, line=line)
            keys |= {key.value} if key is not None else set()
            todo.append((value, depth + 1))


def _pairs(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (key if isinstance(key, yaml.ScalarNode) else None), value
    else:
        for value in node.value:
            yield None, value


def _inside(node: Any, key: str | int) -> tuple[int, Any] | None:
    """The line and the node of a key or an index."""
    if isinstance(node, yaml.MappingNode):
        for k, value in node.value:
            if isinstance(k, yaml.ScalarNode) and k.value == key:
                return k.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        value = node.value[key]
        return value.start_mark.line + 1, value
    return None
