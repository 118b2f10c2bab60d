"""Settings that name code beside a model's weights (`auto_map`): no output has them.

Loaders offer to run such code, and it is not copied: the class may be another's, and its file
may be anywhere.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptailor.checkpoint.chat_template import TokenizerFiles
from gptailor.checkpoint.files import json_content, parse_object, read_object
from gptailor.checkpoint.folder import GENERATION_CONFIG, PROCESSOR_FILES

_SETTINGS = (
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.json", GENERATION_CONFIG,
    *PROCESSOR_FILES,
)  # fmt: skip
"""The settings files among the copied files; the rest hold tokens, by any name."""


def names_code(value: object) -> bool:
    """Return whether settings name code, at any depth."""
    return bool(without_code(value) != value)


def without_code(value: Any) -> Any:
    """Return the settings without entries that name code, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_code(each) for key, each in value.items() if key != "auto_map"}
    return [without_code(each) for each in value] if isinstance(value, list) else value


def files_with_code(files: TokenizerFiles) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the settings of each file that names code.

    Raises CheckpointError (C604) for a file of settings that holds no JSON object.
    """
    for name in sorted(files.keys() & set(_SETTINGS)):
        file = files[name]
        if isinstance(file, bytes):
            settings = parse_object(file, Path(name), "C604", duplicate=None)
        else:
            settings = read_object(file, "C604", duplicate=None)
        if names_code(settings):
            yield name, settings


def files_without_code(files: TokenizerFiles) -> dict[str, bytes]:
    """Return the contents of the files that name code, without it. Raises CheckpointError."""
    return {name: json_content(without_code(settings)) for name, settings in files_with_code(files)}
