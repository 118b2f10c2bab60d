"""The tensors of a plan's GGUF file: their names, types and sizes, without a value."""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from gptailor.checkpoint.families.layout import is_constant
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.formats.gguf.file_facts import FREQUENCIES
from gptailor.checkpoint.tensor import FLOATS, TensorSpec
from gptailor.plan.faults import listed
from gptailor.program.compile import Compiled
from gptailor.program.gguf.architecture import WrittenArchitecture
from gptailor.program.gguf.tensor_types import matrix_types, type_of_rows
from gptailor.program.program import Program


@final
@dataclass(frozen=True)
class GgufTensorPlan:
    """A tensor of a GGUF file, its dtype the type's name, and its source in the program.

    `heads` is above 0 for a projection whose rows llama.cpp wants interleaved, and then the number
    of its heads; `add_one` is for norms that multiply by 1 + w. A tensor with `content` has these
    bytes, and the program doesn't have its source.
    """

    spec: TensorSpec
    source: TensorSpec
    heads: int = 0
    add_one: bool = False
    content: bytes = b""

    @property
    def in_layer(self) -> bool:
        """Return whether the tensor is a matrix of a layer, which an importance matrix has."""
        return self.spec.name.startswith("blk.") and len(self.spec.shape) > 1

    @property
    def is_copy(self) -> bool:
        """Return whether the tensor's bytes equal its source's."""
        same = self.spec.dtype == self.source.dtype
        return same and not (self.heads or self.add_one or self.content)


def weights_size(compiled: Compiled, file_type: str, target: Path) -> int:
    """Return the bytes of all tensors in a GGUF file of a type, such as `Q4_K_M`.

    Raises CheckpointError (C306) about `target` for a model that llama.cpp can't compute.
    """
    architecture = WrittenArchitecture(compiled.config, target)
    planned, _ = planned_tensors(compiled.program, architecture, file_type)
    return sum(tensor.spec.size for tensor in planned)


def planned_tensors(
    program: Program,
    architecture: WrittenArchitecture,
    file_type: str | None,
    *,
    weighted: bool = False,
) -> tuple[list[GgufTensorPlan], list[str]]:
    """Return the tensors of a GGUF file in the program's order, and notes about their types.

    Matrices keep the program's dtypes without a `file_type`. The file is `weighted` by an
    importance matrix, or not. Raises CheckpointError (C306) for a
    tensor that the architecture or the format doesn't have.
    """
    # A file has no layers that predict further tokens: no architecture written has places.
    specs = [output.spec for output in program.outputs if output.place.part != "predictor"]
    # llama.cpp computes the constants of rotary embeddings.
    named = {spec: architecture.named(spec.name) for spec in specs if not is_constant(spec.name)}
    rows = {new: spec.shape[-1] for spec, (new, _, _) in named.items() if len(spec.shape) > 1}
    wanted: Mapping[str, str] = {}
    if file_type is not None:
        facts = architecture.facts
        wanted = matrix_types(file_type, architecture.name, facts, rows, weighted=weighted)
    planned, kept, shorter = [], [], Counter[tuple[str, str]]()
    for spec, (new, heads, add_one) in named.items():
        if spec.dtype not in FLOATS:
            raise CheckpointError(
                "C306",
                f"{quoted(spec.name)} is {spec.dtype}, which GGUF doesn't have",
                architecture.target,
            )
        # llama.cpp wants vectors in float32.
        kind = "F32" if spec.dtype == "F64" or len(spec.shape) == 1 else spec.dtype
        if (most := wanted.get(new)) is not None:
            fitting = type_of_rows(most, rows[new])
            if fitting is None:
                kept.append(spec.name)
            elif fitting != most:
                shorter[fitting, most] += 1
            kind = fitting or kind
        planned.append(GgufTensorPlan(TensorSpec(new, kind, spec.shape), spec, heads, add_one))
    if divisors := architecture.frequencies:
        raw = struct.pack(f"<{len(divisors)}f", *divisors)
        spec = TensorSpec(FREQUENCIES, "F32", (len(divisors),))
        planned.append(GgufTensorPlan(spec, spec, content=raw))
    return planned, list(_notes(kept, shorter, file_type))


def _notes(
    kept: Sequence[str], shorter: Mapping[tuple[str, str], int], file_type: str | None
) -> Iterator[str]:
    if kept:
        yield (
            f"{len(kept)} tensors keep the plan's dtype instead of {file_type}: their rows "
            f"are no whole blocks of 32 entries (the first is {quoted(kept[0])})"
        )
    if shorter:
        others = [f"{n} {kind} instead of {most}" for (kind, most), n in shorter.items()]
        yield f"tensors with rows that are no whole blocks of 256 entries: {listed(others)}"
