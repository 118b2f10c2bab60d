"""The tensors of a quantised checkpoint: the packed ones, and the weights they stand for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, final

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, read_exactly, shown
from gptailor.checkpoint.tensor import FLOATS, Quantised, TensorInfo, TensorSpec


@final
class QuantisedTensors:
    """Tensors of a checkpoint that a format's reader turns into weights.

    `made` are the weights and `left` the tensors that no weight has used. `settings` are the
    quantisation's; `dtype` is the weights' dtype. Every fault is a CheckpointError (M213).
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        dtype: str,
        folder: Path,
    ) -> None:
        self.settings = settings
        self.left = dict(tensors)
        self.made: dict[str, TensorInfo] = {}
        self.dtype = dtype
        self.folder = folder

    def refuse(self, message: str, help: str = "") -> NoReturn:
        """Raise CheckpointError with a message."""
        raise CheckpointError("M213", message, self.folder, help)

    def refuse_setting(self, key: str, value: object, wanted: str) -> NoReturn:
        """Raise CheckpointError for a setting that isn't read."""
        self.refuse(f"'{key}' of its quantisation is {shown(value)}, {wanted}")

    def stems(self, suffix: str) -> list[str]:
        """Return the names of all tensors with the suffix, without it."""
        return [name.removesuffix(suffix) for name in self.left if name.endswith(suffix)]

    def number(self, key: str, default: int | None = None) -> int:
        """Return a setting that is a whole number."""
        value = self.settings.get(key)
        value = default if value is None else value
        if type(value) is not int:
            self.refuse_setting(key, value, "expected a whole number")
        return value

    def sides(self, key: str, value: object) -> tuple[int, int]:
        """Return a setting's value that is the numbers of rows and columns of a block."""
        match value:
            case [int(rows), int(columns)] if rows > 0 and columns > 0:
                return rows, columns
        self.refuse_setting(key, value, "expected two whole numbers")

    def find(self, name: str) -> TensorInfo | None:
        """Take a tensor, if it exists."""
        return self.left.pop(name, None)

    def take(self, name: str, of: str, dtypes: Sequence[str] = FLOATS) -> TensorInfo:
        """Take a tensor that `of` needs; it must have one of these dtypes."""
        tensor = self.find(name)
        if tensor is None:
            self.refuse(f"{quoted(of)} is quantised, but {quoted(name)} is missing")
        if tensor.spec.dtype not in dtypes:
            wanted = " or ".join(dtypes)
            self.refuse(f"{quoted(name)} is {tensor.spec.dtype}, expected {wanted}")
        return tensor

    def content(self, tensor: TensorInfo) -> bytes | None:
        """Return the bytes of a short tensor; None without its file."""
        if tensor.form is not None or not tensor.file.exists():
            return None
        with open_regular(tensor.file) as file:
            file.seek(tensor.offset)
            return read_exactly(file, tensor.spec.size, tensor.file, "C304")

    def check_shape(self, tensor: TensorInfo, *wanted: tuple[int, ...]) -> None:
        """Refuse a tensor with another shape than these."""
        spec = tensor.spec
        if spec.shape not in wanted:
            sizes = f"{list(spec.shape)}, expected {list(wanted[0])}"
            help = "download the model again; its configuration and tensors don't match"
            self.refuse(f"{quoted(spec.name)} has the shape {sizes}", help)

    def check_matrix(self, tensor: TensorInfo) -> tuple[int, int]:
        """Return the rows and columns of a tensor; refuse one that isn't a matrix."""
        if len(tensor.spec.shape) != 2 or not tensor.spec.elements:
            shape = list(tensor.spec.shape)
            self.refuse(f"{quoted(tensor.spec.name)} has the shape {shape}, expected a matrix")
        return tensor.spec.shape[0], tensor.spec.shape[1]

    def add(self, name: str, shape: tuple[int, ...], form: Quantised) -> None:
        """Add a weight in its unquantised form."""
        if name in self.left or name in self.made:
            self.refuse(f"{quoted(name)} is present twice, quantised and plain")
        spec = TensorSpec(name, self.dtype, shape)
        self.made[name] = TensorInfo(spec, form.values.file, form.values.offset, form)
