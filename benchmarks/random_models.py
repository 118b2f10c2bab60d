"""Write random bfloat16 models in the shape of TinyLlama: a base, and variants close to it.

    python benchmarks/random_models.py FOLDER --models base math code --layers 22

Each model is a complete folder: one file of weights, config.json and a tiny tokenizer. The numbers
come from a pool of normal draws that is longer than any matrix of a layer. Each tensor starts at
another place in the pool. A variant is the base plus noise of a tenth of its size, as after
fine-tuning.
"""

import argparse
import json
import math
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.llama import LlamaConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.tinyllama import BYTES, Shape
from tests.support.tiny import write_tokenizer

POOL = 2**24
DEVIATION = 0.02
NOISE = 0.002


def write_models(folder: Path, names: Sequence[str], shape: Shape) -> None:
    """Write the models tensor by tensor, side by side; the first model is the base."""
    pools = _pools(len(names))
    with ExitStack() as stack:
        files = []
        for name in names:
            _write_beside(folder / name, shape)
            weights = (folder / name / "model.safetensors").open("wb")
            files.append(stack.enter_context(weights))
            files[-1].write(_header(shape.tensors))
        for place, size in enumerate(shape.tensors.values()):
            for chunk in _chunks(math.prod(size), place):
                for file, numbers in zip(
                    files, _variants(pools, chunk, norm=len(size) == 1), strict=True
                ):
                    file.write(numbers.view(torch.uint8).numpy().data)


def _pools(count: int) -> list[Tensor]:
    """Return numbers for the base, and noise for each variant."""
    generator = torch.Generator().manual_seed(0)
    pools = []
    for i in range(count):
        pool = torch.empty(POOL, dtype=torch.bfloat16)
        pools.append(pool.normal_(0, NOISE if i else DEVIATION, generator=generator))
    return pools


def _chunks(elements: int, place: int) -> Iterator[slice]:
    """Yield a tensor's ranges in the pools; each tensor starts at another place."""
    start = place * 7_368_787 % POOL
    while elements:
        count = min(elements, POOL - start)
        yield slice(start, start + count)
        elements -= count
        start = 0


def _variants(pools: Sequence[Tensor], chunk: slice, *, norm: bool) -> Iterator[Tensor]:
    base = pools[0][chunk] + 1 if norm else pools[0][chunk]
    yield base
    for noise in pools[1:]:
        yield base + noise[chunk]


def _header(tensors: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return the header of a safetensors file."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + BYTES * math.prod(shape)
        described[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_beside(folder: Path, shape: Shape) -> None:
    """Write the configuration and the tokenizer."""
    write_tokenizer(folder)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        vocab_size=shape.vocabulary,
        num_hidden_layers=shape.layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ).save_pretrained(folder)


def main(arguments: Sequence[str]) -> None:
    """Write the models of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder for the models' folders")
    parser.add_argument("--models", nargs="+", default=["base"], help="their names, the base first")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--scale", type=float, default=1.0, help="scale of the widths (1)")
    given = parser.parse_args(arguments)
    write_models(given.folder, given.models, Shape(given.layers, given.scale))


if __name__ == "__main__":
    main(sys.argv[1:])
