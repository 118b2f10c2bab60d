"""Render chats with a tokenizer's chat template, within bounds."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gptailor.checkpoint.files import quoted
from gptailor.checkpoint.tokenizer_settings import DEFAULT
from gptailor.plan.faults import TailorError, listed

_RENDERER = Path(__file__).with_name("chat_renderer.py")
_MEMORY = 2**30
"""Bytes that rendering may take."""
_SECONDS = 10
"""Seconds of a processor that rendering may take."""
_LONGEST = 10_000_000
"""Characters that a rendered chat may have."""


Message = Mapping[str, str]
"""A message of a chat: its `role` and its `content`."""


def chat_texts(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[tuple[Sequence[Message], bool]],
    name: str,
    remedy: str,
    *,
    seconds: int = _SECONDS,
    date: str | None = None,
) -> list[str]:
    """Return chats as the tokenizer's template renders them, each with whether an answer begins.

    A template that shows the date shows `date`, such as "2024-07-26", or today.

    Raises TailorError, with the `name` of the model and the `remedy`, for a template that is
    missing, that fails, or that exceeds the bounds of memory, time or length.
    """
    template = _template(tokenizer, name, remedy)
    request = {
        "template": template,
        "chats": chats,
        "tokens": tokenizer.special_tokens_map,
        "memory": _MEMORY,
        "seconds": seconds,
        "longest": _LONGEST,
        "date": date,
    }
    answer = _render(json.dumps(request, default=str), seconds)
    if "error" in answer:
        why = quoted(answer["error"], whole=True)[1:-1]
        raise TailorError(f"the chat template of '{name}' {why}; {remedy}, or correct it")
    texts: list[str] = answer["texts"]
    return texts


def _template(tokenizer: PreTrainedTokenizerBase, name: str, remedy: str) -> str:
    """Return the tokenizer's main template."""
    template = tokenizer.chat_template
    if not template:
        raise TailorError(f"'{name}' has no chat template; {remedy}")
    if isinstance(template, dict):
        if DEFAULT not in template:
            names = listed(f"'{key}'" for key in template)
            message = f"'{name}' has no chat template called '{DEFAULT}', only {names}"
            raise TailorError(f"{message}; {remedy}")
        template = template[DEFAULT]
    if not isinstance(template, str):
        raise TailorError(f"expected a text as the chat template of '{name}', got {template!r:.60}")
    return template


def _render(request: str, seconds: int) -> dict[str, Any]:
    """Return the renderer's answer, or an error that tells how the renderer ended."""
    command = [sys.executable, "-P", str(_RENDERER)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    try:
        process = subprocess.run(
            command, input=request, capture_output=True, encoding="utf-8",
            env=environment, timeout=30 + 10 * seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"needs more than {seconds} s"}
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return {"error": f"needs more than {seconds} s or {_MEMORY >> 20} MiB of memory"}
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        return {"error": f"can't be rendered: {last[0]}"}
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer
