"""Matrices quantised as each format has it, by its published formula, and their values.

The packing here is in numpy, number by number, and knows nothing of how gptailor unpacks. A
matrix's values are computed in float64 and rounded to float32 once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import load, save_file
from torch import Tensor

Numbers = np.ndarray[Any, Any]

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""bitsandbytes' table, as its `functional.py` prints it."""

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""OCP's E2M1 without signs."""


@final
@dataclass(frozen=True)
class QuantisedMatrix:
    """The tensors of a quantised weight by their names after the module's, and its numbers."""

    tensors: dict[str, Tensor]
    values: Tensor


def _rounded(values: Numbers) -> Tensor:
    return torch.from_numpy(values.astype(np.float64).astype(np.float32))


def _grid(each: Numbers, height: int, width: int, shape: tuple[int, ...]) -> Numbers:
    """A number for each block, for each of its entries."""
    rows = [each[i // height] for i in range(shape[0])]
    results = [[row[j // width] for j in range(shape[1])] for row in rows]
    return np.array(results, dtype=np.float64)


def fp8(
    seed: int, shape: tuple[int, int], block: tuple[int, int] | None, suffix: str = "_inv"
) -> QuantisedMatrix:
    """FP8 with a scale for each block of a matrix."""
    drawn = np.random.default_rng(seed)
    values = torch.from_numpy(drawn.normal(size=shape) * 100).to(torch.float8_e4m3fn)
    height, width = block or shape
    grid = (-(-shape[0] // height), -(-shape[1] // width))
    scales = torch.from_numpy(drawn.uniform(1e-4, 1e-3, grid)).float()
    spread = _grid(scales.double().numpy(), height, width, shape)
    result = _rounded(values.double().numpy() * spread)
    return QuantisedMatrix({"weight": values, f"weight_scale{suffix}": scales}, result)


def int8(
    seed: int, shape: tuple[int, int], block: tuple[int, int], *, symmetric: bool
) -> QuantisedMatrix:
    """compressed-tensors' INT8, with zero points or without."""
    drawn = np.random.default_rng(seed)
    values = drawn.integers(-128, 128, shape)
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    scales = torch.from_numpy(drawn.uniform(1e-4, 1e-3, grid)).bfloat16()
    zeros = np.zeros(grid, np.int64) if symmetric else drawn.integers(-100, 100, grid)
    spread = _grid(scales.double().numpy(), *block, shape)
    result = _rounded((values - _grid(zeros, *block, shape)) * spread)
    tensors = {"weight": torch.from_numpy(values).to(torch.int8), "weight_scale": scales}
    if not symmetric:
        tensors["weight_zero_point"] = torch.from_numpy(zeros).to(torch.int8)
    return QuantisedMatrix(tensors, result)


def _words(rows: Numbers, bits: int) -> Tensor:
    """Each row's numbers one after another in the bits of 32-bit words, the lowest first."""
    out = []
    for row in rows:
        line = sum(int(number) << (i * bits) for i, number in enumerate(row))
        count = -(-len(row) * bits // 32)
        out.append([(line >> (32 * i)) & 0xFFFFFFFF for i in range(count)])
    return torch.from_numpy(np.array(out, dtype=np.uint32).view(np.int32))


def packed_int(
    seed: int, shape: tuple[int, int], bits: int, group: int, *, symmetric: bool
) -> QuantisedMatrix:
    """compressed-tensors' pack-quantized."""
    drawn = np.random.default_rng(seed)
    half = 1 << (bits - 1)
    values = drawn.integers(-half, half, shape)
    grid = (shape[0], shape[1] // group)
    scales = torch.from_numpy(drawn.uniform(1e-2, 1e-1, grid)).bfloat16()
    zeros = np.zeros(grid, np.int64) if symmetric else drawn.integers(-half, half, grid)
    spread = _grid(scales.double().numpy(), 1, group, shape)
    result = _rounded((values - _grid(zeros, 1, group, shape)) * spread)
    tensors = {
        "weight_packed": _words(values + half, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = _words((zeros + half).T, bits).T.contiguous()
    return QuantisedMatrix(tensors, result)


def gptq(
    seed: int, shape: tuple[int, int], bits: int, group: int, *, first: bool, ordered: bool
) -> QuantisedMatrix:
    """GPTQ's first and second form; with columns in an order of their own, or not."""
    drawn = np.random.default_rng(seed)
    rows, columns = shape
    count = columns // group
    values = drawn.integers(0, 1 << bits, shape)
    zeros = drawn.integers(1, 1 << bits, (rows, count))
    scales = torch.from_numpy(drawn.uniform(1e-2, 1e-1, (rows, count))).half()
    groups = np.arange(columns) // group
    if ordered:
        groups = drawn.permutation(groups)
    spread = scales.double().numpy()[:, groups]
    result = _rounded((values - zeros[:, groups]) * spread)
    tensors = {
        "qweight": _words(values, bits).T.contiguous(),
        "qzeros": _words((zeros - int(first)).T, bits),
        "scales": scales.T.contiguous(),
        "g_idx": torch.from_numpy(groups).int(),
    }
    return QuantisedMatrix(tensors, result)


def awq(seed: int, shape: tuple[int, int], group: int) -> QuantisedMatrix:
    """AWQ's `gemm`: in a word of eight columns the even ones come first."""
    drawn = np.random.default_rng(seed)
    rows, columns = shape
    values = drawn.integers(0, 16, shape)
    zeros = drawn.integers(0, 16, (rows, columns // group))
    scales = torch.from_numpy(drawn.uniform(1e-2, 1e-1, zeros.shape)).half()
    spread = _grid(scales.double().numpy(), 1, group, shape)
    result = _rounded((values - _grid(zeros, 1, group, shape)) * spread)
    order = np.concatenate([np.arange(rows).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]]]).ravel()
    tensors = {
        "qweight": _words(values.T[:, order], 4),
        "qzeros": _words(zeros.T[:, order], 4),
        "scales": scales.T.contiguous(),
    }
    return QuantisedMatrix(tensors, result)


def bnb_4bit(
    seed: int, shape: tuple[int, int], kind: str, block: int, nested: int = 0
) -> QuantisedMatrix:
    """bitsandbytes' NF4 and FP4, with maxima that are quantised too, or not."""
    drawn = np.random.default_rng(seed)
    entries = shape[0] * shape[1]
    signed = [*FP4, *(-number for number in FP4)]
    table = torch.tensor(NF4 if kind == "nf4" else signed) / (1.0 if kind == "nf4" else 6.0)
    values = drawn.integers(0, 16, entries)
    padded = np.append(values, np.zeros(entries % 2, np.int64))
    count = -(-entries // block)
    state: dict[str, Any] = {
        "quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(shape),
    }  # fmt: skip
    tensors = {
        "weight": torch.from_numpy((padded[::2] << 4) | padded[1::2]).to(torch.uint8)[:, None],
        "weight.quant_map": table,
    }
    if nested:
        codes = drawn.integers(0, 256, count)
        inner = torch.from_numpy(np.sort(drawn.uniform(-1, 1, 256))).float()
        outer = torch.from_numpy(drawn.uniform(1e-3, 1e-2, -(-count // nested))).float()
        offset = 0.0625
        each = outer.numpy()[np.arange(count) // nested]
        maxima = (inner.numpy()[codes] * each + np.float32(offset)).astype(np.float32)
        tensors |= {
            "weight.absmax": torch.from_numpy(codes).to(torch.uint8),
            "weight.nested_absmax": outer,
            "weight.nested_quant_map": inner,
        }
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": offset}
    else:
        tensors["weight.absmax"] = torch.from_numpy(drawn.uniform(0.01, 0.1, count)).float()
        maxima = tensors["weight.absmax"].numpy()
    text = json.dumps(state).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text)).to(torch.uint8)
    each = maxima.astype(np.float64)[np.arange(entries) // block]
    result = table.double().numpy()[values] * each
    return QuantisedMatrix(tensors, _rounded(result.reshape(shape)))


def bnb_int8(seed: int, shape: tuple[int, int]) -> QuantisedMatrix:
    """bitsandbytes' INT8: rows scaled by their maximum, in two products of float32."""
    drawn = np.random.default_rng(seed)
    values = torch.from_numpy(drawn.integers(-127, 128, shape)).to(torch.int8)
    maxima = torch.from_numpy(drawn.uniform(0.01, 0.1, shape[0])).float()
    once = values.numpy().astype(np.float32) * maxima.numpy()[:, None]
    result = once * np.float32(7.874015718698502e-3)
    tensors = {"weight": values, "SCB": maxima, "weight_format": torch.tensor(0).to(torch.uint8)}
    return QuantisedMatrix(tensors, torch.from_numpy(result))


def mxfp4(seed: int, experts: int, inputs: int, outputs: int) -> QuantisedMatrix:
    """gpt-oss's experts: each output's inputs in blocks of 32 with an exponent."""
    drawn = np.random.default_rng(seed)
    codes = drawn.integers(0, 16, (experts, outputs, inputs // 32, 32))
    exponents = drawn.integers(100, 130, codes.shape[:-1])
    signed = np.array([*FP4, *(-number for number in FP4)])
    result = signed[codes] * np.exp2(exponents - 127.0)[..., None]
    tensors = {
        "_blocks": torch.from_numpy(codes[..., ::2] | (codes[..., 1::2] << 4)).to(torch.uint8),
        "_scales": torch.from_numpy(exponents).to(torch.uint8),
    }
    flat = result.reshape(experts, outputs, inputs)
    return QuantisedMatrix(tensors, _rounded(np.swapaxes(flat, 1, 2).copy()))


def _compressed(format_: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


FORMATS: Mapping[str, tuple[dict[str, Any], Callable[[int, tuple[int, int]], QuantisedMatrix]]] = {
    "fp8-block": (
        {"quant_method": "fp8", "weight_block_size": [12, 10], "activation_scheme": "dynamic"},
        lambda seed, shape: fp8(seed, shape, (12, 10)),
    ),
    "fp8-tensor": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        lambda seed, shape: fp8(seed, shape, None),
    ),
    "compressed-fp8-channel": (
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        lambda seed, shape: fp8(seed, shape, (1, shape[1]), ""),
    ),
    "compressed-fp8-block": (
        _compressed(
            "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[12, 10]
        ),
        lambda seed, shape: fp8(seed, shape, (12, 10), ""),
    ),
    "compressed-int8": (
        _compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
        lambda seed, shape: int8(seed, shape, (1, shape[1]), symmetric=True),
    ),
    "compressed-int8-zeros": (
        _compressed(
            "int-quantized", num_bits=8, type="int", strategy="group", group_size=8, symmetric=False
        ),
        lambda seed, shape: int8(seed, shape, (1, 8), symmetric=False),
    ),
    "compressed-int4": (
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=8),
        lambda seed, shape: packed_int(seed, shape, 4, 8, symmetric=True),
    ),
    "compressed-int4-zeros": (
        _compressed("pack-quantized", num_bits=4, type="int", strategy="channel", symmetric=False),
        lambda seed, shape: packed_int(seed, shape, 4, shape[1], symmetric=False),
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": True, "sym": False},
        lambda seed, shape: gptq(seed, shape, 4, 8, first=True, ordered=True),
    ),
    "gptq-2": (
        {"quant_method": "gptq", "bits": 2, "group_size": 16, "checkpoint_format": "gptq_v2"},
        lambda seed, shape: gptq(seed, shape, 2, 16, first=False, ordered=False),
    ),
    "gptq-3": (
        {"quant_method": "gptq", "bits": 3, "group_size": 32, "checkpoint_format": "gptq_v2"},
        lambda seed, shape: gptq(seed, shape, 3, 32, first=False, ordered=False),
    ),
    "gptq-8": (
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq"},
        lambda seed, shape: gptq(seed, shape, 8, shape[1], first=True, ordered=False),
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "zero_point": True},
        lambda seed, shape: awq(seed, shape, 8),
    ),
    "bitsandbytes-nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        lambda seed, shape: bnb_4bit(seed, shape, "nf4", 64, 4),
    ),
    "bitsandbytes-fp4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        lambda seed, shape: bnb_4bit(seed, shape, "fp4", 64),
    ),
    "bitsandbytes-int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        bnb_int8,
    ),
}
"""Each format's configuration, and a matrix in it by a seed and a shape."""


def write_quantised(folder: Path, format_: str, seed: int = 0) -> dict[str, Tensor]:
    """Quantise the projections of the model in a folder; its tensors as they are unquantised.

    The projections' numbers are new ones, of a size that a model can run with.
    """
    settings, make = FORMATS[format_]
    file = folder / "model.safetensors"
    packed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for number, (name, tensor) in enumerate(sorted(load(file.read_bytes()).items())):
        if "_proj.weight" not in name:
            packed[name] = plain[name] = tensor
            continue
        rows, columns = tensor.shape
        made = make(seed * 1000 + number, (rows, columns))
        stem = name.removesuffix("weight")
        packed |= {stem + end: tensor.contiguous() for end, tensor in made.tensors.items()}
        plain[name] = made.values
    save_file(packed, file, {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": settings}))
    return plain
