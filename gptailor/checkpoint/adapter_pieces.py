"""The tensors of a LoRA adapter's file, sorted: pieces of deltas, and whole tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, final

from gptailor.checkpoint.adapter_settings import LoraSettings
from gptailor.checkpoint.error import CheckpointError, quoted
from gptailor.checkpoint.header import TensorInfo

ADAPTER_FLOATS = ("F64", "F32", "F16", "BF16")
LONGEST_NAME = 300
"""Characters of a tensor's name, which the settings' patterns are matched against."""

ROWS = "token_adapter.trainable_tokens_delta"
MAGNITUDE = "lora_magnitude_vector"
BIAS = "lora_B.bias"

_ROOT = "base_model.model."
_NAME = r"(?:\.(?!weight$|bias$)[^.]+)?"  # the adapter's own, which some programs leave in
_PIECE = re.compile(
    rf"(?P<module>.+)\.(?:(?P<factor>lora_[AB]){_NAME}\.weight|(?P<bias>lora_B){_NAME}\.bias|"
    rf"(?P<plain>lora_embedding_[AB]|{re.escape(ROWS)}){_NAME}|"
    rf"(?P<magnitude>{MAGNITUDE}){_NAME}(?:\.weight)?)"
)
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")


@final
@dataclass(slots=True)
class AdapterPieces:
    """What an adapter has for one module, by what each tensor is: `lora_A`, `lora_B` and so on."""

    module: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether the delta is an embedding's."""
        return any(kind.startswith("lora_embedding") for kind in self.tensors)

    @property
    def pair(self) -> tuple[str, str]:
        """What the delta's two factors are called."""
        kind = "lora_embedding_" if self.embedded else "lora_"
        return f"{kind}A", f"{kind}B"


def sort_tensors(
    file: Path, found: Mapping[str, TensorInfo]
) -> tuple[list[AdapterPieces], dict[str, TensorInfo]]:
    """The pieces of deltas, and whole tensors by the name that the model may have for them."""
    pieces: dict[str, AdapterPieces] = {}
    whole: dict[str, TensorInfo] = {}
    for key, tensor in found.items():
        if tensor.spec.dtype not in ADAPTER_FLOATS:
            message = f"{quoted(key)} is {tensor.spec.dtype}, which is no float"
            raise CheckpointError("C402", message, file)
        if len(key) > LONGEST_NAME:
            message = f"{quoted(key)} has {len(key)} characters, more than any module's name"
            raise CheckpointError("C403", message, file)
        name = key.removeprefix(_ROOT)
        if (match := _PIECE.fullmatch(name)) is not None:
            part = pieces.setdefault(match["module"], AdapterPieces(match["module"]))
            first = part.tensors.setdefault(_kind(match), tensor)
        else:
            first = whole.setdefault(_WRAPPED.sub("", name), tensor)
        if first is not tensor:
            message = f"{quoted(key)} and {quoted(first.spec.name)} are for the same place"
            raise CheckpointError("C403", message, file)
    return list(pieces.values()), whole


def _kind(match: re.Match[str]) -> str:
    return BIAS if match["bias"] else match["factor"] or match["plain"] or match["magnitude"]


def check_pieces(file: Path, part: AdapterPieces, settings: LoraSettings) -> None:
    """Nothing is missing of a module's delta, and nothing is there that the settings deny."""

    def refuse(code: str, message: str) -> NoReturn:
        raise CheckpointError(code, f"{quoted(part.module)} {message}", file)

    there = part.tensors.keys()
    for kind in part.pair:
        if kind not in there:
            refuse("C405", f"has no {kind}, and so only a part of a delta")
    wanted = set(part.pair)
    for kind, setting, on in (
        (MAGNITUDE, "use_dora", settings.dora),
        (BIAS, "lora_bias", settings.lora_bias and not part.embedded),
    ):
        if on and kind not in there:
            refuse("C405", f"has no {kind}, and '{setting}' is true")
        if not on and kind in there:
            refuse("C402", f"has a {kind}, and '{setting}' is not true")
        wanted |= {kind} & there
    if surplus := there - wanted:
        refuse("C402", f"has a {min(surplus)} beside its {part.pair[0]}")
