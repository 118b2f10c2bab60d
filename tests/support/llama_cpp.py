"""Asks the real llama.cpp about a GGUF file, in a process of its own: `python llama_cpp.py FILE`.

Its tokens of texts, its greedy continuations, and its log-probabilities of what comes next.
"""

import json
import math
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INSTALLED = find_spec("xllamacpp") is not None


@dataclass(frozen=True)
class Answers:
    """llama.cpp's answers, in the order of the questions.

    `logprobs` are of all tokens, by their numbers, after each of the prompts, which are token ids.
    """

    tokens: list[list[int]]
    greedy: list[list[int]]
    logprobs: list[list[float]]
    templated: list[str]


def ask(
    file: Path,
    *,
    texts: Sequence[str] = (),
    prompts: Sequence[Sequence[int]] = (),
    new_tokens: int = 0,
    vocabulary: int = 0,
    chats: Sequence[list[dict[str, str]]] = (),
) -> Answers:
    """Load the file in llama.cpp, in float32 and on the CPU, and ask."""
    asked = {
        "file": str(file), "texts": list(texts), "prompts": [list(p) for p in prompts],
        "new_tokens": new_tokens, "vocabulary": vocabulary, "chats": list(chats),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(asked), text=True, check=False,
        capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Answers(**json.loads(done.stdout.splitlines()[-1]))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    import xllamacpp  # type: ignore[import-not-found,import-untyped,unused-ignore]

    params = xllamacpp.CommonParams()
    params.model.path = asked["file"]
    params.n_ctx = 512
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.use_jinja = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # two would spin
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    disabled = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = disabled
    server = xllamacpp.Server(params)

    def post(path: str, body: dict[str, Any]) -> Any:
        kind = {"Content-Type": "application/json"}
        raw = json.dumps(body).encode()
        request = urllib.request.Request(server.listening_address + path, raw, kind)
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    greedy = {"temperature": 0, "samplers": ["temperature"], "cache_prompt": False}

    def continued(prompt: list[int]) -> list[int]:
        given = {"prompt": prompt, "n_predict": asked["new_tokens"], "return_tokens": True}
        tokens: list[int] = post("/completion", greedy | given)["tokens"]
        return tokens

    def logprobs(prompt: list[int]) -> list[float]:
        given = {"prompt": prompt, "n_predict": 1, "n_probs": asked["vocabulary"]}
        top = post("/completion", greedy | given)["completion_probabilities"][0]["top_logprobs"]
        results = {item["id"]: item["logprob"] for item in top}
        return [results.get(i, -math.inf) for i in range(asked["vocabulary"])]

    special = {"add_special": True, "parse_special": True}
    texts, prompts = asked["texts"], asked["prompts"]
    return {
        "tokens": [post("/tokenize", {"content": text, **special})["tokens"] for text in texts],
        "greedy": [continued(prompt) for prompt in prompts] if asked["new_tokens"] else [],
        "logprobs": [logprobs(prompt) for prompt in prompts] if asked["vocabulary"] else [],
        "templated": [
            post("/apply-template", {"messages": chat})["prompt"] for chat in asked["chats"]
        ],
    }


if __name__ == "__main__":
    print("\n" + json.dumps(answer(json.load(sys.stdin))))
