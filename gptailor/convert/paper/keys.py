"""The keys of the paper's files, and the models that they don't name: `numbered`, `family_of`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptailor.convert.naming import short_name
from gptailor.convert.note import ConversionError, Note
from gptailor.plan.plan import Model

BASES = {32: "meta-llama/Llama-2-7b-hf", 40: "meta-llama/Llama-2-13b-hf"}
"""The paper's bases, by their number of layers."""

CANDIDATES_13B = {
    "chat": "WizardLMTeam/WizardLM-13B-V1.2",
    "math": "vanillaOVO/WizardMath-13B-V1.0",
    "code": "layoric/llama-2-13b-code-alpaca",
}
"""The candidates of the paper's 13B searches, in order."""

_SELECTION = r"layer_selection_method_(\d+)"


@dataclass(frozen=True)
class PaperFamily:
    """The plan's models, and the names of the candidates in order."""

    models: dict[str, Model]
    candidates: tuple[str, ...]


def numbered(document: dict[str, Any], pattern: str) -> dict[tuple[int, ...], str]:
    """The keys of a form, by the numbers in them, in order."""
    found = {}
    for key in document:
        match = re.fullmatch(pattern, key)
        if match is not None:
            found[tuple(int(number) for number in match.groups())] = key
    return dict(sorted(found.items()))


def is_fusion(document: dict[str, Any]) -> bool:
    """Whether this is a layer-wise fusion."""
    return bool(numbered(document, _SELECTION))


def selections(document: dict[str, Any]) -> list[str]:
    """The method of each group of layers, in order."""
    keys = numbered(document, _SELECTION)
    if [number for (number,) in keys] != list(range(len(keys))):
        raise ConversionError(
            "the groups aren't numbered from 0 on", place="layer_selection_method"
        )
    return [str(document[key]) for key in keys.values()]


def family_of(layers: int, count: int, models: Sequence[str]) -> tuple[PaperFamily, list[Note]]:
    """The models of a file that names none: those that are given, the paper's, or placeholders."""
    if models and len(models) != count:
        raise ConversionError(f"the file has {count} candidates, and {len(models)} are given")
    notes = []
    sources = BASES.get(layers, "./base"), *models
    if layers not in BASES:
        notes.append(Note("", f"the base of {layers} layers is not known: './base' stands for it"))
    if models:
        names: list[str] = []
        for model in models:
            names.append(short_name(model, names))
        candidates = dict(zip(names, models, strict=True))
    elif layers == 40 and count == 3:
        candidates = dict(CANDIDATES_13B)
        notes.append(Note("", "the file names no models: these are those of the paper's 13B runs"))
    else:
        candidates = {f"candidate_{k}": f"./candidate_{k}" for k in range(count)}
        notes.append(Note("", "the candidates are recorded nowhere: placeholders stand for them"))
    found = {"base": Model(source=sources[0])}
    found |= {name: Model(source=source) for name, source in candidates.items()}
    return PaperFamily(found, tuple(candidates)), notes
