"""Continue prompts greedily with one consumer of compiled folders, and print JSON.

The script runs in the consumer's environment, and imports nothing of gptailor:

    PYTHON benchmarks/consumer.py vllm JOB.json

A job has a `folder` (and a `gguf` file for llama.cpp), `prompts` as lists of token ids, and the
number of `tokens` to add. The answer has the consumer's `version`, and `found`: ids by prompt.
"""

# mypy: ignore-errors
import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]
Found = list[list[int]]


def by_transformers(job: Job) -> Found:
    """Continue with `generate` of transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()
    found = []
    for prompt in job["prompts"]:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=job["tokens"],
            do_sample=False,
            pad_token_id=0,
        )
        found.append(made[0, len(prompt) :].tolist())
    return found


def by_vllm(job: Job) -> Found:
    """Continue with vLLM's engine, on the CPU."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    engine = LLM(
        job["folder"],
        dtype="float32",
        max_model_len=128,
        max_num_seqs=4,
        enforce_eager=True,
        disable_log_stats=True,
    )
    wanted = SamplingParams(temperature=0.0, max_tokens=job["tokens"])
    given = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]
    return [list(each.outputs[0].token_ids) for each in engine.generate(given, wanted)]


def by_mlx(job: Job) -> Found:
    """Continue with mlx-lm, on the CPU in float32."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load

    mx.set_default_device(mx.cpu)
    model, tokenizer = load(job["folder"])
    model.set_dtype(mx.float32)
    found = []
    for prompt in job["prompts"]:
        ids: list[int] = []
        for token, _ in generate_step(mx.array(prompt), model, max_tokens=job["tokens"]):
            ids.append(int(token))
            if ids[-1] in tokenizer.eos_token_ids:
                break
        found.append(ids)
    return found


def by_llama_cpp(job: Job) -> Found:
    """Continue with llama.cpp from the compiled GGUF file."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.llama_cpp import answer

    asked = {"file": job["gguf"], "prompts": job["prompts"], "new_tokens": job["tokens"]}
    found: Found = answer({**asked, "texts": [], "vocabulary": 0, "chats": []})["greedy"]
    return found


def by_lm_eval(job: Job) -> Found:
    """Continue with lm-eval's model of a folder, as its tasks do."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    made: dict[tuple[int, ...], list[int]] = {}

    class Heard(HFLM):
        """A model that keeps the ids, because its answer has only text."""

        def _model_generate(self, context: Any, *args: Any, **more: Any) -> Any:
            out = super()._model_generate(context, *args, **more)
            made[tuple(context[0].tolist())] = out[0, context.shape[1] :].tolist()
            return out

    model = Heard(pretrained=job["folder"], dtype="float32", device="cpu", batch_size=1)
    settings = {"until": [], "max_gen_toks": job["tokens"], "do_sample": False}
    asked = [
        Instance("generate_until", {}, (model.tokenizer.decode(prompt), settings), i)
        for i, prompt in enumerate(job["prompts"])
    ]
    model.generate_until(asked, disable_tqdm=True)
    return [made[tuple(prompt)] for prompt in job["prompts"]]


CONSUMERS: dict[str, tuple[str, Callable[[Job], Found]]] = {
    "transformers": ("transformers", by_transformers),
    "vllm": ("vllm-cpu", by_vllm),
    "mlx-lm": ("mlx-lm", by_mlx),
    "llama.cpp": ("xllamacpp", by_llama_cpp),
    "lm-eval": ("lm_eval", by_lm_eval),
}
"""Package and function of each consumer."""


def main() -> None:
    """Do one job. The answer is the last line, because libraries print other lines."""
    name, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    package, ask = CONSUMERS[name]
    found = ask(job)
    print("\n@" + json.dumps({"version": version(package), "found": found}), flush=True)
    os._exit(0)  # some engines don't end by themselves


if __name__ == "__main__":
    main()
