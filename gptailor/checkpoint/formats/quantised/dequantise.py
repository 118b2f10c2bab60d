"""A quantised checkpoint's configuration and tensors as they are unquantised."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptailor.checkpoint.families.layer_config import QUANTISATION_KEYS, quantisation
from gptailor.checkpoint.families.vision import TEXT
from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.formats.quantised.bitsandbytes import read_bitsandbytes
from gptailor.checkpoint.formats.quantised.compressed import read_compressed
from gptailor.checkpoint.formats.quantised.gptq import read_awq, read_gptq
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
from gptailor.checkpoint.formats.quantised.small_floats import read_fp8, read_mxfp4
from gptailor.checkpoint.tensor import FLOATS, TensorInfo
from gptailor.plan.faults import listed
from gptailor.plan.registry import DTYPES

_READERS: Mapping[str, Callable[[QuantisedTensors], None]] = {
    "fp8": read_fp8,
    "compressed-tensors": read_compressed,
    "gptq": read_gptq,
    "awq": read_awq,
    "mxfp4": read_mxfp4,
    "bitsandbytes": read_bitsandbytes,
}
"""By `quant_method`: each takes the packed tensors out of the pieces and adds the weights."""

_ENDS = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_scale",
    ".weight_scale_inv", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
    ".weight_global_scale", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB",
    "_blocks", "_scales",
)  # fmt: skip
"""Endings of the names of tensors that only the readers of quantised weights use."""


def dequantised_checkpoint(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], folder: Path
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Return the configuration without its quantisation, each quantised weight as one tensor.

    Weights have the name and shape that they have unquantised, and the dtype that the configuration
    names. Raises CheckpointError (M213) for an unknown format, and for tensors that disagree with
    the format or the configuration.
    """
    settings = quantisation(config)
    if not isinstance(settings, Mapping):
        message = "the weights are quantised, but the configuration names no method"
        raise CheckpointError("M213", message, folder, _HELP)
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _READERS:
        methods = listed(map(quoted, _READERS))
        message = f"the weights are quantised by {shown(method)}, expected one of {methods}"
        raise CheckpointError("M213", message, folder, _HELP)
    pieces = QuantisedTensors(settings, tensors, _dtype(config), folder)
    _READERS[method](pieces)
    if not pieces.made:
        claim = f"the configuration declares weights quantised by '{method}'"
        pieces.refuse(
            f"{claim}, but no tensor is quantised",
            "remove 'quantization_config' from config.json, or download the model again",
        )
    for name, tensor in pieces.left.items():
        if name.endswith(_ENDS):
            pieces.refuse(f"{quoted(name)} has no quantised weight")
        if tensor.spec.dtype.startswith(("F8_", "F6_", "F4")):
            pieces.refuse(f"{quoted(name)} is {tensor.spec.dtype}, but has no scale")
    kept = {key: value for key, value in config.items() if key not in QUANTISATION_KEYS}
    return kept, pieces.left | pieces.made


_HELP = "use the checkpoint that it was made from"


def _dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype of the weights: the configuration's, or bfloat16."""
    text = config.get(TEXT)
    configs = [config, text] if isinstance(text, Mapping) else [config]
    names = (each.get(key) for each in configs for key in ("dtype", "torch_dtype"))
    stated = next((name for name in names if name), None)
    dtype = DTYPES.get(stated) if isinstance(stated, str) else None
    return dtype if dtype in FLOATS else "BF16"
