"""Speeds of GGUF files in llama.cpp, from its own server; `python llama_speed.py` is one process.

The process reads the files' names as JSON, and prints tokens a second of prompt and of decoding.
"""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

_PROMPT = 128
"""Tokens of the prompt."""
_ANSWER = 32
"""Tokens generated after the prompt."""
_ROUNDS = 3
"""Rounds of a median; a round before them doesn't count."""


def llama_speeds(files: Sequence[Path], threads: int) -> list[tuple[float, float]] | None:
    """Return tokens a second of prompt and of decoding of each file, measured by turns.

    Return None without the package `xllamacpp`, or if llama.cpp can't run a file.
    """
    if find_spec("xllamacpp") is None:
        return None
    asked = json.dumps({"files": [str(file) for file in files], "threads": threads})
    done = subprocess.run(
        [sys.executable, "-P", __file__], input=asked, text=True, check=False, capture_output=True
    )
    if done.returncode:
        return None
    return [(prompt, decoding) for prompt, decoding in json.loads(done.stdout.splitlines()[-1])]


def _measured(files: Sequence[str], threads: int) -> list[tuple[float, float]]:
    servers = [_server(file, threads) for file in files]
    times: list[list[tuple[float, float]]] = [[] for _ in files]
    for number in range(_ROUNDS + 1):
        order = range(len(files)) if number % 2 else reversed(range(len(files)))
        for at in order:
            times[at].append(_round(servers[at].listening_address))
    found = []
    for rows in times:
        prompt, decoding = (median(each) for each in zip(*rows[1:], strict=True))
        found.append((prompt, decoding))
    return found


def _server(file: str, threads: int) -> Any:
    import xllamacpp  # type: ignore[import-not-found,import-untyped,unused-ignore]

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 2 * (_PROMPT + _ANSWER)
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def _round(address: str) -> tuple[float, float]:
    body = {
        "prompt": list(range(5, 5 + _PROMPT)), "n_predict": _ANSWER, "cache_prompt": False,
        "temperature": 0, "samplers": ["temperature"], "ignore_eos": True,
    }  # fmt: skip
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/completion", json.dumps(body).encode(), kind)
    with urllib.request.urlopen(request) as response:
        timings = json.load(response)["timings"]
    return timings["prompt_per_second"], timings["predicted_per_second"]


if __name__ == "__main__":
    given = json.load(sys.stdin)
    sys.stdout.write("\n" + json.dumps(_measured(given["files"], given["threads"])) + "\n")
