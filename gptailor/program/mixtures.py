"""Layers with fewer experts: the tensors of those that stay, as instructions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from math import prod

from gptailor.checkpoint.families.mixture import LayerExperts, Stacked, experts_in, of_expert
from gptailor.checkpoint.tensor import Aligned, RowRange, TensorInfo, resized
from gptailor.plan.resolved import ClosedCut
from gptailor.program import program as p
from gptailor.program.layer_cuts import layer_cuts
from gptailor.program.sources import Checked, unrefused
from gptailor.program.vocabulary_rows import kept_rows


def keep_experts(program: p.Program, checked: Checked) -> p.Program:
    """Leave out the tensors of experts that don't stay, and number the others anew.

    Before a text has chosen the experts, their tensors are marked.
    """
    if "experts" not in (cuts := layer_cuts(checked)):
        return program
    (_, cut), resolved = cuts["experts"], checked.resolved
    kept = resolved.kept_experts
    numbers = [tuple(range(cut.size))] * len(resolved.kept)
    if kept is not None:
        numbers = [kept[number] for number in resolved.undone_numbers]
    outputs: list[p.Output] = []
    for number, group in groupby(program.outputs, lambda output: output.place.layer):
        layer = list(group)
        shapes = {output.place.name: output.spec.shape for output in layer}
        experts = None if number is None else unrefused(experts_in(checked.base.layout, shapes))
        if number is None or experts is None:
            outputs += layer
        else:
            mark = None if kept is not None else cut
            outputs += _ordered(_cut_layer(layer, experts, numbers[number], mark))
    return p.Program(tuple(outputs))


def _cut_layer(
    layer: Sequence[p.Output],
    experts: LayerExperts,
    kept: Sequence[int],
    cut: ClosedCut | None,
) -> Iterator[p.Output]:
    """Yield the tensors of a layer with the experts `kept`; with a `cut` as marked ones."""
    places = {number: place for place, number in enumerate(kept)}
    for output in layer:
        name = output.place.name
        if (stacked := experts.stacks.get(name)) is not None:
            yield _marked(_cut_stack(output, stacked, kept), cut)
        elif (number := experts.numbers.get(name)) is None:
            yield output
        elif number in places:
            new = of_expert(name, places[number])
            spec = replace(output.spec, name=output.spec.name.removesuffix(name) + new)
            placed = replace(output, spec=spec, place=replace(output.place, name=new))
            yield _marked(placed, cut)


def _marked(output: p.Output, cut: ClosedCut | None) -> p.Output:
    if cut is None:
        return output
    return replace(output, make=p.Marked("experts", p.unfitted(output.make), cut))


def _ordered(outputs: Iterator[p.Output]) -> Iterator[p.Output]:
    """Yield the tensors of a layer by parts, and within a part by their names."""
    for _, part in groupby(outputs, lambda output: output.place.part):
        yield from sorted(part, key=lambda output: output.place.name)


def _cut_stack(output: p.Output, stacked: Stacked, kept: Sequence[int]) -> p.Output:
    """Return a tensor of all experts with those that stay."""
    make, spec, each = output.make, output.spec, stacked.entries
    rows = [number * each + entry for number in kept for entry in range(each)]
    shape = resized(spec.shape, stacked.axis, len(rows))
    if isinstance(make, p.Copy):
        make = replace(make, source=_kept_entries(make.source, stacked, rows, shape))
    else:
        assert isinstance(make, p.Combine), "experts are cut before fits"
        whole = TensorInfo(spec, make.tensors[0].file, 0, make)
        source = _kept_entries(whole, stacked, rows, shape)
        make = p.Copy(source, make.models[0], make.place).combined
    return replace(output, spec=replace(spec, shape=shape), make=make)


def _kept_entries(
    tensor: TensorInfo, stacked: Stacked, rows: Sequence[int], shape: tuple[int, ...]
) -> TensorInfo:
    """Return a tensor with some entries of an axis, before which all axes have one entry."""
    sides = tensor.spec.shape
    assert prod(sides[: stacked.axis]) == 1, "entries that follow one another"
    flat = replace(tensor.spec, shape=sides[stacked.axis :])
    if tensor.form is None:
        tensor = replace(tensor, spec=flat)
    elif stacked.axis:
        whole = Aligned((RowRange(tensor, 0, sides[0]),))
        tensor = TensorInfo(flat, tensor.file, tensor.offset, whole)
    result = kept_rows(tensor, rows)
    return replace(result, spec=replace(result.spec, shape=shape))
