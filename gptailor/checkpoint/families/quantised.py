"""A quantisation's configuration of single layers, and how it moves with them.

`modules_to_not_convert`, `ignore`, `dynamic` and their like name modules by texts and by patterns.
A text with a layer's number in it gets the layer's new one. Where a pattern may mean layers by
their numbers in another way, it can't follow, and is refused.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from gptailor.checkpoint.families.layer_config import QUANTISATION_KEYS, Refusal, RuleError
from gptailor.checkpoint.families.layout import Layout, is_predicting
from gptailor.checkpoint.families.vision import roots

Places = Sequence[tuple[int, int]]
"""For each layer of the output, the layers that its attention and its MLP branch come from.

Layers that predict further tokens follow, if the output has any with numbers.
"""

_SIGNS = re.compile(r"re:|[+-]:|")
"""Marks of a pattern: compressed-tensors', and GPTQModel's."""
_DOT = r"(?:\\?\.)"
_ALL = r"(?:\*|\.\*|\.\+|\\d\+|\[0-9\]\+)"
_SPECIAL = re.compile(r"[*+?()\[\]{}|^$]|\\[^.]")


def requantised(layout: Layout, config: dict[str, Any], places: Places) -> dict[str, Any] | Refusal:
    """Return the configuration with the layers in its quantisation renumbered; or a refusal."""
    keys = [key for key in QUANTISATION_KEYS if isinstance(config.get(key), Mapping)]
    if not keys or all(place == (n, n) for n, place in enumerate(places)):
        return config
    moves = _Moves(layout, places)
    try:
        return config | {key: _renamed(config[key], moves) for key in keys}
    except RuleError as error:
        entry = f"'{str(error)[:80]}' in the quantisation's configuration"
        why = "names layers by number, and can't be rewritten for moved layers"
        return Refusal(f"{entry} {why}")


def _renamed(value: Any, moves: "_Moves") -> Any:
    """Return a value with each text of a list, and each key, renamed; layers that left go."""
    if isinstance(value, Mapping):
        return {new: _renamed(v, moves) for key, v in value.items() for new in moves.names(key)}
    if isinstance(value, list | tuple):
        items: list[Any] = []
        for item in value:
            items += moves.names(item) if isinstance(item, str) else [_renamed(item, moves)]
        return list(dict.fromkeys(items)) if all(isinstance(f, str) for f in items) else items
    return value


@final
class _Moves:
    """Places of moved layers, and patterns of names with one number, with all or with some."""

    def __init__(self, layout: Layout, places: Places) -> None:
        self.layout = layout
        self.places = places
        word = re.escape(layout.prefix.rstrip(".").rpartition(".")[2])  # `layers`, `h`
        before = rf"(?:.*[^A-Za-z0-9_])?{word}{_DOT}"
        after = rf"(?P<number>\d+)(?P<rest>(?:{_DOT}.*|\$)?)"
        self.numbered = re.compile(rf"(?P<before>{before}){after}")
        self.of_all = re.compile(rf"{before}{_ALL}(?:{_DOT}|$)")
        self.mentioned = re.compile(rf"(?<![A-Za-z0-9_]){word}{_DOT}")

    def names(self, text: str) -> list[str]:
        """Return an entry for the moved layers: itself, or one entry for each of them."""
        sign = _SIGNS.match(text)
        start = sign.end() if sign is not None else 0
        match = self.numbered.fullmatch(text, start)
        if match is None:
            self._check_of_no_layer(text, text[start:])
            return [text]
        if is_predicting(match["before"]) or self._is_of_a_tower(text, match["before"]):
            return [text]
        if _SPECIAL.search(match["before"].removeprefix("^").replace(".*", "")):
            raise RuleError(text)
        return list(self._renumbered(text, text[:start], match))

    def _is_of_a_tower(self, text: str, before: str) -> bool:
        """Return whether the numbers are a tower's layers', not the language model's."""
        family = self.layout.family
        plain = before.removeprefix("^").replace("\\", "")
        own = {root + family.stack for root in roots(family.base)}
        if not self.layout.wrapped or plain in own:
            return False
        if re.match(r"(model\.)?(vis|image|audio)", plain) is None:
            raise RuleError(text)
        return True

    def _renumbered(self, text: str, sign: str, match: re.Match[str]) -> Iterator[str]:
        number, suffix = int(match["number"]), match["rest"]
        numbers = {str(n) for n in range(max(self.layout.count, len(self.places)))}
        # `layers.1` means whatever begins so, perhaps another layer too.
        if not suffix and any(n.startswith(match["number"]) for n in numbers - {match["number"]}):
            raise RuleError(text)
        part = self.layout.family.part(suffix.replace("\\", "").lstrip(".").rstrip("$*") + ".")
        for n, (attn, mlp) in enumerate(self.places):
            froms = {"attn": {attn}, "mlp": {mlp}}.get(part or "", {attn, mlp})
            if number in froms and len(froms) > 1:
                raise RuleError(text)
            if number in froms:
                yield f"{sign}{match['before']}{n}{suffix}"

    def _check_of_no_layer(self, text: str, name: str) -> None:
        """Refuse an entry that may not mean the same in every layer."""
        if self.of_all.match(name):
            return
        by_number = re.search(r"\d|\\[dDwW]|\[", name) and _SPECIAL.search(name)
        if self.mentioned.search(name) or by_number or re.match(r"\d+\.", name):
            raise RuleError(text)
