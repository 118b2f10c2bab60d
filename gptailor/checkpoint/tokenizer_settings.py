"""Settings in a model's folder: chat templates, and names of code, which no output has.

A template is Jinja, as transformers renders it. A tokenizer may have several; its main one is
called `default`. Loaders offer to run the code that settings name (`auto_map`). It is not copied:
the class may be another's, and its file may be anywhere.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import (
    CheckpointError,
    is_gguf,
    json_content,
    open_regular,
    parse_object,
    quoted,
    read_object,
    reading,
)
from gptailor.checkpoint.folder import (
    GENERATION_CONFIG,
    PROCESSOR_FILES,
    Checkpoint,
    tokenizer_files,
)
from gptailor.checkpoint.formats.gguf.header import read_gguf

NAMED_TEMPLATES: Mapping[str, str] = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
}
"""The templates that a plan names: a message is between two marks, its role in line one."""

DEFAULT = "default"
_MAIN, _SETTINGS = "chat_template.jinja", "tokenizer_config.json"
_OTHERS, _FOR_PROCESSORS = "additional_chat_templates/", "chat_template.json"
_GGUF = "tokenizer.chat_template"

TokenizerFiles = Mapping[str, bytes | Path]
"""A tokenizer's files: their contents or their paths, by their path within the folder."""


def content_of(file: bytes | Path) -> bytes:
    """Return the bytes of a tokenizer's file. Raises CheckpointError."""
    if isinstance(file, bytes):
        return file
    with open_regular(file) as opened, reading(file):
        return opened.readall()


def templates_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return a model's chat templates by name, as transformers finds them; empty without any.

    Raises CheckpointError (C602) for an existing file that can't be read.
    """
    templates = {}
    if is_gguf(checkpoint.files[0]) and not tokenizer_files(checkpoint):
        for key, text in read_gguf(checkpoint.files[0]).facts.items():
            if (key == _GGUF or key.startswith(f"{_GGUF}.")) and isinstance(text, str):
                templates[key.removeprefix(f"{_GGUF}.") if key != _GGUF else DEFAULT] = text
        return templates
    files = {
        path.relative_to(checkpoint.folder).as_posix(): path for path in tokenizer_files(checkpoint)
    }
    for name, path in files.items():
        if name == _MAIN or name.startswith(_OTHERS):
            key = DEFAULT if name == _MAIN else path.name.removesuffix(".jinja")
            templates[key] = _decoded(content_of(path), path)
    if templates or _SETTINGS not in files:
        return templates
    return _listed(_settings(files).get("chat_template"), files[_SETTINGS])


def has_template(files: TokenizerFiles, *, processor: bool) -> bool:
    """Return whether a tokenizer, or a processor, has a chat template. Raises as `templates_of`."""
    if _MAIN in files or (processor and _FOR_PROCESSORS in files):
        return True
    return bool(_settings(files).get("chat_template"))


def _settings(files: TokenizerFiles) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json`; empty without that file."""
    file = files.get(_SETTINGS, b"{}")
    path = file if isinstance(file, Path) else Path(_SETTINGS)
    return parse_object(content_of(file), path, "C602", duplicate=None)


def _listed(setting: Any, path: Path) -> dict[str, str]:
    """Return the templates of `tokenizer_config.json`: one, several with names, or nothing."""
    if setting is None or isinstance(setting, str):
        return {DEFAULT: setting} if setting else {}
    templates: dict[str, str] = {}
    for entry in setting if isinstance(setting, list) else [setting]:
        name, text = (entry.get(k) if isinstance(entry, dict) else 0 for k in ("name", "template"))
        if not isinstance(name, str) or not isinstance(text, str):
            message = "'chat_template': expected a template or a list of templates"
            raise CheckpointError("C602", message, path)
        if not re.fullmatch(r"[\w-]+", name):
            raise CheckpointError("C602", f"invalid name of a chat template: {quoted(name)}", path)
        templates[name] = text
    return templates


def read_template(path: Path) -> str:
    """Return a template in a file. Raises CheckpointError (C602): missing, no text, no Jinja."""
    text = _decoded(content_of(path), path)
    if not text.strip():
        raise CheckpointError("C602", "a chat template is empty", path)
    if (wrong := _syntax_error(text)) is not None:
        raise CheckpointError("C602", f"invalid chat template: {wrong}", path)
    return text


def _decoded(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"a chat template is not UTF-8: invalid byte at offset {error.start}"
        raise CheckpointError("C602", message, path) from error


def _syntax_error(text: str) -> str | None:
    """Return the error of Jinja, with transformers' additions, in a text, or None."""
    try:
        from jinja2 import Environment, TemplateSyntaxError, nodes
        from jinja2.ext import Extension, loopcontrols
    except ImportError:  # transformers, which would render it, needs it too
        return None

    @final
    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}`, which transformers knows."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    try:
        Environment(extensions=[Generation, loopcontrols]).parse(text)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "its expressions are nested too deeply"
    except ValueError as error:  # of a number with thousands of digits
        return str(error)
    return None


def with_templates(files: TokenizerFiles, templates: Mapping[str, str]) -> dict[str, bytes | Path]:
    """Return a tokenizer's files with these chat templates in the place of its own.

    They are files by themselves. Where `tokenizer_config.json` had some, it has them too, for
    readers that look there only.
    """
    result = {
        name: file
        for name, file in files.items()
        if name not in (_MAIN, _FOR_PROCESSORS) and not name.startswith(_OTHERS)
    }
    for name, text in templates.items():
        result[_MAIN if name == DEFAULT else f"{_OTHERS}{name}.jinja"] = text.encode()
    configuration = _settings(result)
    if configuration.get("chat_template") is not None:
        entries = [{"name": name, "template": text} for name, text in templates.items()]
        alone = list(templates) == [DEFAULT]
        configuration["chat_template"] = templates[DEFAULT] if alone else entries
        result[_SETTINGS] = json_content(configuration)
    return result


# ------------------------------------------------------------------------------------ names of code


_SETTINGS_FILES = (
    _SETTINGS, "special_tokens_map.json", _FOR_PROCESSORS, GENERATION_CONFIG,
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
    for name in sorted(files.keys() & set(_SETTINGS_FILES)):
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
