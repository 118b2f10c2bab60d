"""Quantised weights, dequantised: each format against its formula and against its own library."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.quantised.dequantise import dequantised_checkpoint
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.checkpoint.tensor import TensorInfo, TensorSpec
from gptailor.methods.rounding import NotFiniteFault
from gptailor.program.load import load_tensor
from gptailor.program.program import Combine, Output
from gptailor.program.run import chunks
from tests.support.quantised import FORMATS, QuantisedMatrix, fp8, mxfp4, write_quantised
from tests.support.tiny import tiny_model

SHAPES = [(32, 64), (96, 32)]


def stored(folder: Path, stem: str, made: QuantisedMatrix) -> dict[str, TensorInfo]:
    """A matrix's tensors in a file, and what its header says."""
    tensors = {f"{stem}{end}": tensor.contiguous() for end, tensor in made.tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    return read_header(folder / "model.safetensors")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_equals_its_formula(format_: str, shape: tuple[int, int], tmp_path: Path) -> None:
    settings, make = FORMATS[format_]
    made = make(1, shape)
    tensors = stored(tmp_path, "m.", made)
    config = {"quantization_config": settings, "dtype": "float16"}
    after, result = dequantised_checkpoint(config, tensors, tmp_path)
    assert after == {"dtype": "float16"}
    assert result.keys() == {"m.weight"}
    assert result["m.weight"].spec == TensorSpec("m.weight", "F16", shape)
    assert load_tensor(result["m.weight"]).equal(made.values)
    assert read_in_chunks(result["m.weight"], 100).equal(made.values)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("wild", [float("inf"), float("nan")])
def test_a_scale_that_is_not_finite_is_refused(format_: str, wild: float, tmp_path: Path) -> None:
    settings, make = FORMATS[format_]
    made = make(1, (32, 64))
    ends = ("weight_scale_inv", "weight_scale", "scales", "SCB", "nested_absmax", "absmax")
    scales = {e: t for e, t in made.tensors.items() if e.endswith(ends) and t.is_floating_point()}
    (tensor,) = scales.values()
    tensor.reshape(-1)[-1] = wild
    config = {"quantization_config": settings, "dtype": "float32"}
    _, result = dequantised_checkpoint(config, stored(tmp_path, "m.", made), tmp_path)
    message = r"got (nan|-?inf) in 'm.weight'\[\d+, \d+\] of 'base' once it is dequantised"
    with pytest.raises(NotFiniteFault, match=message):
        read_in_chunks(result["m.weight"], 100)


def test_blocks_that_are_larger_than_the_matrix_are_the_matrix(tmp_path: Path) -> None:
    made = fp8(1, (32, 64), None)
    config = {"quant_method": "fp8", "weight_block_size": [10**30, 2**40]}
    assert read(config, stored(tmp_path, "m.", made), tmp_path).equal(made.values)


def read_in_chunks(tensor: TensorInfo, chunk_bytes: int) -> Tensor:
    """The tensor in float32 as compiling reads it."""
    make = Combine(
        "linear", (("weight", (1.0,)), ("normalize", "no")), (), (tensor,), ("base",), "m"
    )
    spec = TensorSpec("m", "F32", tensor.spec.shape)
    raw = b"".join(bytes(part) for part in chunks(Output(spec, make), chunk_bytes=chunk_bytes))
    return torch.frombuffer(bytearray(raw), dtype=torch.float32).reshape(tensor.spec.shape)


def test_experts_in_mxfp4_are_transposed(tmp_path: Path) -> None:
    made = mxfp4(2, 3, 64, 10)
    tensors = stored(tmp_path, "mlp.experts.gate_up_proj", made)
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    _, result = dequantised_checkpoint(config, tensors, tmp_path)
    (tensor,) = result.values()
    assert tensor.spec == TensorSpec("mlp.experts.gate_up_proj", "BF16", (3, 64, 10))
    assert load_tensor(tensor).equal(made.values)
    assert read_in_chunks(tensor, 100).equal(made.values)


# ------------------------------------------------------------------- the libraries' values

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "quantised.json").read_text()
)
"""Matrices that each format's own library quantised and dequantised; `made_by` says which."""


def decoded(entry: dict[str, Any]) -> Tensor:
    raw = bytearray.fromhex(entry["bytes"])
    flat = torch.frombuffer(raw, dtype=getattr(torch, entry["dtype"]))
    return flat.reshape(entry["shape"])


@pytest.mark.parametrize("name", GOLDEN)
def test_a_matrix_equals_the_result_of_its_library(name: str, tmp_path: Path) -> None:
    entry = GOLDEN[name]
    tensors = {f"m.{end}": decoded(tensor) for end, tensor in entry["tensors"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    result = read_header(tmp_path / "model.safetensors")
    assert read(entry["settings"], result, tmp_path).equal(decoded(entry["values"]))


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8, torch.float8_e8m0fnu])
def test_fp8_equals_the_result_of_transformers(kind: torch.dtype, tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    made = fp8(3, (48, 64), (16, 32))
    scales = made.tensors["weight_scale_inv"]
    if kind != torch.float32:
        drawn = torch.randint(110, 130, scales.shape, generator=torch.Generator().manual_seed(0))
        made.tensors["weight_scale_inv"] = drawn.to(torch.uint8).view(kind)
    settings = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    values = read(settings, stored(tmp_path, "m.", made), tmp_path)
    theirs = Fp8Dequantize(None)._dequantize_one(
        made.tensors["weight"], made.tensors["weight_scale_inv"], torch.float32
    )
    assert values.equal(theirs)


def test_mxfp4_equals_the_result_of_transformers(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    made = mxfp4(4, 2, 96, 6)
    result = stored(tmp_path, "m.weight", made)
    values = read({"quant_method": "mxfp4"}, result, tmp_path)
    blocks, scales = made.tensors["_blocks"], made.tensors["_scales"]
    assert values.equal(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))


# ------------------------------------------------------------------------------------- bad input

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]
"""A change to a quantisation's settings and a matrix's tensors."""


def reads(change: Change, format_: str, folder: Path) -> str:
    """Read a matrix after a change to its configuration and tensors; return the result in words."""
    settings, make = FORMATS[format_]
    settings = json.loads(json.dumps(settings))
    tensors = {f"m.{end}": tensor for end, tensor in make(1, (32, 64)).tensors.items()}
    change(settings, tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    result = read_header(folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        read(settings, result, folder)
    assert error.value.code == "M213"
    return error.value.message


def read(settings: dict[str, Any], result: dict[str, TensorInfo], folder: Path) -> Tensor:
    _, made = dequantised_checkpoint({"quantization_config": settings}, result, folder)
    return load_tensor(made["m.weight"])


def group_of(settings: dict[str, Any]) -> dict[str, Any]:
    weights: dict[str, Any] = settings["config_groups"]["group_0"]["weights"]
    return weights


def without(name: str) -> Change:
    return lambda settings, tensors: tensors.pop(name)


def with_(**changed: Any) -> Change:
    return lambda settings, tensors: settings.update(changed)


def shaped(name: str, *shape: int) -> Change:
    def change(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.ones(shape).to(tensors[name].dtype)

    return change


def weights_with(**changed: Any) -> Change:
    return lambda settings, tensors: group_of(settings).update(changed)


def state_with(**changed: Any) -> Change:
    def change(_: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        name = "m.weight.quant_state.bitsandbytes__nf4"
        state = json.loads(bytes(tensors[name].tolist())) | changed
        tensors[name] = torch.tensor(list(json.dumps(state).encode())).to(torch.uint8)

    return change


BAD: list[tuple[str, Change, str]] = [
    (
        "fp8-block",
        without("m.weight_scale_inv"),
        "'m.weight' is quantised, but 'm.weight_scale_inv' is missing",
    ),
    (
        "fp8-block",
        shaped("m.weight_scale_inv", 3, 6),
        "'m.weight_scale_inv' has the shape [3, 6], expected [3, 7]",
    ),
    ("fp8-block", with_(weight_block_size=None), "has the shape [3, 7], expected [1, 1]"),
    (
        "fp8-block",
        with_(weight_block_size="all"),
        "'weight_block_size' of its quantisation is 'all'",
    ),
    ("fp8-block", with_(quant_method="quip#"), "quantised by 'quip#', expected one of"),
    (
        "fp8-block",
        with_(quant_method="gptq", bits=4),
        "quantised by 'gptq', but no tensor is quantised",
    ),
    (
        "compressed-fp8-channel",
        without("m.weight_scale"),
        "quantised by 'compressed-tensors', but no tensor is quantised",
    ),
    (
        "compressed-fp8-channel",
        shaped("m.weight_scale", 31, 1),
        "has the shape [31, 1], expected [32, 1]",
    ),
    ("compressed-fp8-channel", weights_with(type="int"), "'m.weight' is F8_E4M3, expected I8"),
    (
        "compressed-fp8-channel",
        weights_with(strategy="token"),
        "'strategy' of its quantisation is 'token'",
    ),
    (
        "compressed-fp8-channel",
        with_(format="marlin-24"),
        "'format' of its quantisation is 'marlin-24'",
    ),
    (
        "compressed-fp8-channel",
        with_(config_groups={}),
        "'config_groups' of its quantisation is {}",
    ),
    (
        "compressed-fp8-channel",
        with_(transform_config={"a": 1}),
        "gptailor can't read rotated weights",
    ),
    (
        "compressed-fp8-channel",
        with_(sparsity_config={"format": "sparse-24-bitmask"}),
        "gptailor can't read sparse weights",
    ),
    ("compressed-int8-zeros", without("m.weight_zero_point"), "'m.weight' has no zero points"),
    ("compressed-int8-zeros", shaped("m.weight_zero_point", 32, 4), "expected [32, 8]"),
    (
        "compressed-int8-zeros",
        weights_with(group_size=24),
        "has 64 columns, which isn't a multiple of the group of 24",
    ),
    ("compressed-int4", without("m.weight_packed"), "'m.weight_packed' is missing"),
    (
        "compressed-int4",
        shaped("m.weight_shape", 2),
        "'m.weight_shape' is [1, 1], but it has 32 rows",
    ),
    ("compressed-int4", weights_with(num_bits=3), "its quantisation is to 'int' of 3 bits"),
    ("compressed-int4", weights_with(num_bits=8), "doesn't match 64 numbers of 8 bits"),
    ("gptq", without("m.scales"), "'m.weight' is quantised, but 'm.scales' is missing"),
    ("gptq", without("m.g_idx"), "has no 'g_idx', which"),
    (
        "gptq",
        with_(bits=8),
        "'m.qweight' has 8 rows of words for 64 inputs, but the configuration has 8 bits",
    ),
    ("gptq", with_(bits=5), "'bits' of its quantisation is 5"),
    ("gptq", with_(bits="4"), "'bits' of its quantisation is '4', expected a whole number"),
    ("gptq", with_(group_size=16), "'m.scales' has the shape [8, 32], expected [4, 32]"),
    (
        "gptq",
        with_(checkpoint_format="marlin"),
        "'checkpoint_format' of its quantisation is 'marlin'",
    ),
    ("gptq", shaped("m.qzeros", 8, 3), "'m.qzeros' has the shape [8, 3], expected [8, 4]"),
    (
        "gptq",
        lambda _, tensors: tensors["m.g_idx"].fill_(8),
        "'m.g_idx' names a group without a scale",
    ),
    (
        "gptq",
        lambda _, tensors: tensors["m.qzeros"].fill_(-1),
        "can't be read reliably",
    ),
    ("awq", with_(version="gemv"), "'version' of its quantisation is 'gemv'"),
    ("awq", with_(group_size=64), "'m.scales' has the shape [8, 32], expected [1, 32]"),
    (
        "awq",
        lambda _, tensors: tensors.update({"act.scales": torch.ones(3)}),
        "'act.scales' has no quantised weight",
    ),
    ("bitsandbytes-nf4", without("m.weight.absmax"), "'m.weight.absmax' is missing"),
    (
        "bitsandbytes-nf4",
        without("m.weight.nested_absmax"),
        "'m.weight.absmax' is U8, expected F32",
    ),
    (
        "bitsandbytes-nf4",
        shaped("m.weight", 512, 1),
        "'m.weight' has 512 bytes, but [32, 64] numbers of 4 bits need 1024",
    ),
    (
        "bitsandbytes-nf4",
        without("m.weight.quant_state.bitsandbytes__nf4"),
        "quantised by 'bitsandbytes', but no tensor is quantised",
    ),
    (
        "bitsandbytes-nf4",
        shaped("m.weight.quant_state.bitsandbytes__nf4", 9),
        "isn't a JSON object",
    ),
    ("compressed-int8", weights_with(type=["int"]), "its quantisation is to ['int'] of 8 bits"),
    ("compressed-int8", weights_with(strategy=[]), "'strategy' of its quantisation is []"),
    (
        "compressed-int8",
        with_(sparsity_config={"format": [1]}),
        "gptailor can't read sparse weights",
    ),
    (
        "compressed-fp8-block",
        weights_with(block_structure="9" * 5000 + "x1"),
        "'block_structure' of its quantisation is",
    ),
    ("gptq", with_(checkpoint_format=["gptq"]), "'checkpoint_format' of its quantisation is ['"),
    *(
        (
            "compressed-int8",
            with_(config_groups={"group_0": {"targets": [target], "weights": {}}}),
            "quick to match",
        )
        for target in ("re:(.*)*x", "re:((((.*)*)*)*)*$y")
    ),
    ("bitsandbytes-nf4", state_with(nested_offset=10**400), "'nested_offset' of 'm.weight.quant"),
    ("bitsandbytes-nf4", state_with(nested_offset=1e300), "'nested_offset' of 'm.weight.quant"),
    ("bitsandbytes-int8", shaped("m.SCB", 31), "'m.SCB' has the shape [31], expected [32]"),
]


@pytest.mark.parametrize(("format_", "change", "message"), BAD, ids=range(len(BAD)))
def test_unreadable_quantised_tensors_are_reported(
    format_: str,
    change: Change,
    message: str,
    tmp_path: Path,
) -> None:
    assert message in reads(change, format_, tmp_path)


def test_fp8_in_an_int8_checkpoint_has_no_scale(tmp_path: Path) -> None:
    def change(settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors["other.weight"] = torch.ones(3, 3).to(torch.float8_e4m3fn)

    message = reads(change, "compressed-int8", tmp_path)
    assert message == "'other.weight' is F8_E4M3, but has no scale"


def test_an_unreadable_tensor_is_reported_at_its_model(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", layers=2)
    write_quantised(tmp_path / "base", "fp8-tensor")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight_scale_inv"]
    save_file(tensors, file)
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndtype float16', folder=tmp_path)
    (fault,) = gptailor.check(plan)
    assert (fault.code, fault.at) == ("M213", ("models", "base", "source"))
    name = "'model.layers.1.mlp.up_proj.weight'"
    assert fault.message.startswith(f"'base': {name} is quantised, but ")
    moved = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L1', folder=tmp_path)
    assert gptailor.check(moved) == []
