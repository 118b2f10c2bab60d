"""The Modelfile of a GGUF file: its template, its stops and its parameters of generation."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from gptailor.checkpoint.formats.gguf.reader import CONTROL
from gptailor.checkpoint.tokenizer_settings import content_of
from gptailor.checkpoint.write.output_file import write_whole
from gptailor.output.gguf.file import GgufFile
from gptailor.output.output import beside_weights
from gptailor.plan.faults import TailorError
from gptailor.plugins.ollama.template import OllamaTemplate, ollama_template

_SUFFIX = ".Modelfile"
PARAMETERS: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Ollama's names of the settings of generation_config.json."""
_KEPT = re.compile(r"# A changed file is kept \((\w+)\)\.\n")
"""The line with the digest of the lines below it."""


def write_modelfile(file: GgufFile) -> list[str]:
    """Write the Modelfile of a written GGUF file beside it; return a note if it is not written.

    A model without a chat template gets no file. A file that gptailor didn't write, or that
    somebody changed since, is kept, unless the GGUF file was replaced by force. Raises
    CheckpointError (C303) if the file can't be written.
    """
    template = file.facts.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        return []
    path = file.path.with_suffix(_SUFFIX)
    forced = file.force and file.update is None
    if os.path.lexists(path) and not (path.is_file() and (forced or _is_own(path))):
        return [f"{path.name} is kept, because it isn't as gptailor wrote it (--force replaces it)"]
    files = beside_weights(file.prepared)
    raw = files.get("generation_config.json")
    generation = {} if raw is None else json.loads(content_of(raw))
    form = _form(file.facts, template)
    text = modelfile_text(file.path.name, file.facts, form, generation)
    write_whole(path, text.encode(), path)
    return []


def modelfile_text(
    name: str,
    facts: Mapping[str, Any],
    form: OllamaTemplate | None,
    generation: Mapping[str, Any],
) -> str:
    """Return the Modelfile of the GGUF file with this name.

    `generation` is the content of generation_config.json. Without a `form` TEMPLATE is left out.
    """
    lines = [f"FROM ./{name}"]
    if form is None:
        lines += [
            "# TEMPLATE is left out: the chat template isn't the same text around each message.",
            f"# Ollama uses the template in {name} itself.",
        ]
    else:
        lines += [f'TEMPLATE """{form.text}"""']
        lines += [f'SYSTEM """{form.system}"""'] if form.system else []
    lines += [f'PARAMETER stop "{stop}"' for stop in _stops(facts, form, generation)]
    for key, parameter in PARAMETERS.items():
        value = generation.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            lines.append(f"PARAMETER {parameter} {value}")
    body = "\n".join(lines) + "\n"
    made = f"# Written by gptailor: {_command(Path(name).with_suffix(_SUFFIX))}\n"
    return f"{made}# A changed file is kept ({_digest(body)}).\n{body}"


def _stops(
    facts: Mapping[str, Any], form: OllamaTemplate | None, generation: Mapping[str, Any]
) -> list[str]:
    """Return the texts of the end tokens, and of the token that ends a turn in the template."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    own = generation.get("eos_token_id")
    numbers = [facts.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    numbers += own if isinstance(own, list) else [own]
    stops = [tokens[n] for n in numbers if isinstance(n, int) and 0 <= n < len(tokens)]
    if form is not None and form.end.strip():
        special = (t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL and t)
        places = [(form.end.index(t), -len(t), t) for t in special if t in form.end]
        stops.append(min(places)[2] if places else form.end.strip())
    return [s for s in dict.fromkeys(stops) if s.isprintable() and not s.endswith('"')]


def _form(facts: Mapping[str, Any], template: str) -> OllamaTemplate | None:
    """Return the chat template in Ollama's form; None without a template, or if it fails."""
    if "strftime_now" in template:  # it shows the day
        return None
    tokens = facts["tokenizer.ggml.tokens"]

    def special(kind: str) -> str | None:
        number = facts.get(f"tokenizer.ggml.{kind}_token_id")
        return tokens[number] if isinstance(number, int) else None

    named = {"bos_token": special("bos"), "eos_token": special("eos"),
             "unk_token": special("unknown"), "pad_token": special("padding")}  # fmt: skip
    begin = named["bos_token"] if facts.get("tokenizer.ggml.add_bos_token") else None
    known = tuple((key, token) for key, token in named.items() if token)
    return _rendered_form(template, known, begin or "")


@lru_cache(maxsize=8)
def _rendered_form(
    template: str, tokens: tuple[tuple[str, str], ...], begin: str
) -> OllamaTemplate | None:
    """Return the form of a template with these special tokens; a process renders it."""
    from transformers import PreTrainedTokenizerBase  # slow

    from gptailor.evaluation.chat_text import chat_texts  # imports transformers

    make: Any = PreTrainedTokenizerBase
    tokenizer = make(chat_template=template, **dict(tokens))

    def render(chats: Any) -> list[str]:
        return chat_texts(tokenizer, chats, "the output", "remove it")

    try:
        return ollama_template(render, begin)
    except TailorError:
        return None


def _is_own(path: Path) -> bool:
    """Return whether a Modelfile is as gptailor wrote it."""
    _, _, rest = path.read_text("utf-8", errors="replace").partition("\n")
    found = _KEPT.match(rest)
    return found is not None and _digest(rest[found.end() :]) == found[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _command(path: Path) -> str:
    """Return the command that makes Ollama's model of a Modelfile in the current folder."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-.") or "model"
    return f"ollama create {name} -f {shlex.quote(path.name)}"
