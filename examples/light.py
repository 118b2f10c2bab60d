"""The light install on a tiny model that is made here: needs gptailor alone.

python examples/light.py    # in an environment with gptailor, whatever else it has
"""

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

LAYERS, HIDDEN, INNER, VOCABULARY = 6, 32, 64, 48
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
PLAN = """\
tailor 1
model base = "./base"
model math = "./math"
L0..L1 from math
L2.mlp from math
merge(L3 base, L3 math, 0.5)
drop L4
"""
COMMANDS = (
    "--version",
    "check plan.tailor",
    "fmt plan.tailor",
    "show plan.tailor",
    "compile plan.tailor -o out --lock",
    "verify out",
    "json plan.tailor",
    "diff plan.tailor out",
)


def main() -> int:
    """Run the commands; the exit code is 1 if one doesn't end as it should."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, model in enumerate(("base", "math")):
            write_model(folder / model, seed)
        (folder / "plan.tailor").write_text(PLAN, encoding="utf-8")
        ended = [run(folder, command) == 0 for command in COMMANDS]
        if any(find_spec(package) is None for package in ("torch", "transformers")):
            ended.append(run(folder, "generate out word") == 3)  # it names the missing extra
    print("all as it should be" if all(ended) else "this isn't as it should be")
    return 0 if all(ended) else 1


def run(folder: Path, command: str) -> int:
    """Run a command of the gptailor that this Python has, shown as it would be typed."""
    print(f"\n$ gptailor {command}", flush=True)
    words = [sys.executable, "-m", "gptailor", *command.split()]
    here = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(words, cwd=folder, env=here, check=False).returncode


def write_model(folder: Path, seed: int) -> None:
    """Write a model's folder with random weights, without any library."""
    drawn = random.Random(seed)
    header, data = {}, bytearray()
    for name, shape in shapes():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        raw = struct.pack(f"<{count}f", *(drawn.gauss(0, 0.05) for _ in range(count)))
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    whole = struct.pack("<Q", len(text)) + text + bytes(data)
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2), encoding="utf-8")


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors."""
    square, wide, high = (HIDDEN, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        inside = dict.fromkeys([f"self_attn.{role}_proj" for role in "qkvo"], square)
        inside |= {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": high}
        for name, shape in inside.items():
            yield f"model.layers.{layer}.{name}.weight", shape
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


if __name__ == "__main__":
    sys.exit(main())
