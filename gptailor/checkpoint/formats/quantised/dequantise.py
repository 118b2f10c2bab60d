"""A quantised checkpoint's configuration and tensors as those of the one that it stands for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptailor.checkpoint.families.layer_config import QUANTISATION_KEYS, quantisation
from gptailor.checkpoint.families.vision import TEXT
from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.formats.quantised.bitsandbytes import read_bitsandbytes
from gptailor.checkpoint.formats.quantised.compressed import read_compressed
from gptailor.checkpoint.formats.quantised.fp8 import read_fp8
from gptailor.checkpoint.formats.quantised.gptq import read_awq, read_gptq
from gptailor.checkpoint.formats.quantised.mxfp4 import read_mxfp4
from gptailor.checkpoint.formats.quantised.pieces import QuantisedTensors
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
"""By `quant_method`: each takes what its format packs out of the pieces and adds the weights."""

_ENDS = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_scale",
    ".weight_scale_inv", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
    ".weight_global_scale", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB",
    "_blocks", "_scales",
)  # fmt: skip
"""How the names of tensors end that nothing reads but what reads a quantised weight."""


def dequantised_checkpoint(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], folder: Path
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """The configuration without its quantisation, and each quantised weight as one tensor.

    Weights have the name and shape that they have unquantised, and the dtype that the configuration
    names. Raises CheckpointError, as M213, where the format isn't known, or where the tensors
    aren't what it and the configuration say.
    """
    settings = quantisation(config)
    if not isinstance(settings, Mapping):
        message = "the weights are quantised, and the configuration doesn't say how"
        raise CheckpointError("M213", message, folder, _HELP)
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in _READERS:
        known = listed(map(quoted, _READERS))
        message = f"the weights are quantised by {shown(method)}, which isn't read; {known} are"
        raise CheckpointError("M213", message, folder, _HELP)
    pieces = QuantisedTensors(settings, tensors, _dtype(config), folder)
    _READERS[method](pieces)
    if not pieces.made:
        said = f"the configuration says that weights are quantised by '{method}'"
        pieces.refuse(f"{said}, and no tensor is", "the configuration is of another checkpoint")
    for name, tensor in pieces.left.items():
        if name.endswith(_ENDS):
            pieces.refuse(f"{quoted(name)} is there, and no quantised weight that it is of")
        if tensor.spec.dtype.startswith(("F8_", "F6_", "F4")):
            pieces.refuse(f"{quoted(name)} is {tensor.spec.dtype}, and has no scale")
    kept = {key: value for key, value in config.items() if key not in QUANTISATION_KEYS}
    return kept, pieces.left | pieces.made


_HELP = "use the checkpoint that it was made from"


def _dtype(config: Mapping[str, Any]) -> str:
    """The dtype of the weights: what the configuration names, or bfloat16."""
    text = config.get(TEXT)
    given = [config, text] if isinstance(text, Mapping) else [config]
    said = (each.get(key) for each in given for key in ("dtype", "torch_dtype"))
    named = next((name for name in said if name), None)
    dtype = DTYPES.get(named) if isinstance(named, str) else None
    return dtype if dtype in FLOATS else "BF16"
