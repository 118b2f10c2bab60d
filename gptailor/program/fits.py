"""The statements that texts decide: `FITS` has a row for each.

A row marks the tensors that the fits decide. The words about a result are in
`gptailor.reporting.fit_words`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from math import prod
from typing import Any, TypeAlias, TypeVar, final

from gptailor.checkpoint.families import width as widths
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout, is_bridged
from gptailor.checkpoint.families.mixture import (
    LayerExperts,
    Stacked,
    experts_in,
    of_expert,
    with_expert_count,
)
from gptailor.checkpoint.tensor import Aligned, RowRange, TensorInfo, resized
from gptailor.checkpoint.token_cut import TokenCutReport
from gptailor.plan.events import FitResult, FitText
from gptailor.plan.layer_parts import BRANCHES
from gptailor.plan.plan import SizeCut, TextFit
from gptailor.plan.registry import EXPERT_TOKENS, WIDTH_TOKENS
from gptailor.plan.resolved import Gap, Healing
from gptailor.program import program as p
from gptailor.program.packages import fit_provider
from gptailor.program.sources import Checked, Use, kept_rows, unrefused

_T = TypeVar("_T")
FitPlan: TypeAlias = TextFit | Gap | Healing
"""A fit of a closed plan with its settings."""


@final
@dataclass(frozen=True)
class FitStatement:
    """A statement that texts decide, by its word.

    `mark` marks the tensors that the fit decides; a cut of layers changes their shapes too. `maker`
    is the class that makes the fit. A vocabulary has no such class, because headers and the text
    alone decide its rows.
    """

    word: str
    mark: Callable[[p.Program, Checked], p.Program] | None = None
    maker: str | None = None


@final
@dataclass(frozen=True)
class LayerCut:
    """A cut of all layers: the `noun` of the removed parts, and its default `tokens`.

    `refused` returns why a family's layers can't be cut. `count` returns the size of a layer as it
    is stored, a refusal, or None for a layer to leave out. `resized` returns the configuration for
    layers with another size.
    """

    noun: str
    tokens: int
    refused: Callable[[Layout], str | None]
    count: Callable[[Use], int | Refusal | None]
    resized: Callable[[Layout, Mapping[str, Any], int, int], dict[str, Any] | Refusal]


# ------------------------------------------------------------------------------------ a plan's fits


def _layer_width(use: Use) -> int | Refusal:
    """Return the number of neurons of a layer's MLP as it is stored; or a refusal."""
    shapes = {name: tensor.spec.shape for name, tensor in use.model.part(use.layer, "mlp").items()}
    return widths.mlp_width(use.model.layout, shapes)


def _expert_count(use: Use) -> int | Refusal | None:
    """Return the experts of a model's layer as it is stored; None for a dense layer."""
    shapes = {
        name: tensor.spec.shape
        for part in BRANCHES
        for name, tensor in use.model.part(use.layer, part).items()
    }
    experts = experts_in(use.model.layout, shapes)
    return experts.count if isinstance(experts, LayerExperts) else experts


def _unknown(layout: Layout) -> str | None:
    return None if layout.known else f"model type '{layout.model_type}' is unknown"


LAYER_CUTS: Mapping[str, LayerCut] = {
    "width": LayerCut("neurons", WIDTH_TOKENS, widths.no_width, _layer_width, widths.with_width),
    "experts": LayerCut("experts", EXPERT_TOKENS, _unknown, _expert_count, with_expert_count),
}
"""The cuts of all layers by their words."""


def layer_cuts(checked: Checked) -> dict[str, tuple[int, SizeCut]]:
    """Return the size of a plan's layers before each cut, and the cut: `width`, `experts`.

    A cut to the size that the layers have is left out, and one of experts where no sparse layer is
    kept.
    """
    found = {}
    for word, layers in LAYER_CUTS.items():
        if (cut := checked.resolved.plan.cuts.get(word)) is not None:
            sizes = (layers.count(checked.uses(slot, "mlp")[0]) for slot in checked.resolved.kept)
            own = next((size for size in sizes if isinstance(size, int)), cut.closed_size)
            if own != cut.size:
                found[word] = own, cut
    return found


def fits_of(checked: Checked) -> dict[str, Mapping[str, FitPlan]]:
    """Return a closed plan's fits by their words, each by its place: the word, or `L19` of a gap.

    A cut to the size that the models have is left out.
    """
    resolved, cuts = checked.resolved, [*layer_cuts(checked)]
    cuts += ["vocabulary"] * (checked.token_cut is not None)
    found: dict[str, Mapping[str, FitPlan]] = {
        word: {word: fit}
        for word, fit in resolved.plan.text_fits.items()
        if word in cuts or not isinstance(fit, SizeCut)
    }
    found["bridge"] = {f"L{gap.after}": gap for gap in resolved.gaps}
    found["heal"] = {} if resolved.healing is None else {"heal": resolved.healing}
    return found


# ---------------------------------------------------------------------------------- marked tensors


def narrow_mlps(program: p.Program, checked: Checked) -> p.Program:
    """Give the tensors of MLPs the plan's width, and mark them."""
    if (found := layer_cuts(checked).get("width")) is None:
        return program
    (_, cut), layout = found, checked.base.layout

    def narrowed(output: p.Output) -> p.Output:
        name, spec = output.place.name, output.spec
        neurons = widths.neurons_in(layout, name, spec.shape) if name else None
        if neurons is None:
            return output
        shape = resized(spec.shape, neurons.axis, cut.closed_size * neurons.copies)
        make = p.Marked("width", p.unfitted(output.make), cut)
        return replace(output, spec=replace(spec, shape=shape), make=make)

    return p.Program(tuple(map(narrowed, program.outputs)))


def keep_experts(program: p.Program, checked: Checked) -> p.Program:
    """Leave out the tensors of experts that don't stay, and number the others anew.

    Before a text has chosen the experts, their tensors are marked.
    """
    if "experts" not in (cuts := layer_cuts(checked)):
        return program
    (_, cut), resolved = cuts["experts"], checked.resolved
    kept = resolved.kept_experts
    numbers = [tuple(range(cut.closed_size))] * len(resolved.kept)
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
    cut: SizeCut | None,
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


def _marked(output: p.Output, cut: SizeCut | None) -> p.Output:
    if cut is None:
        return output
    return replace(output, make=p.Marked("experts", p.unfitted(output.make), cut))


def _ordered(outputs: Iterator[p.Output]) -> Iterator[p.Output]:
    """Yield the tensors of a layer by parts, and within a part by their names."""
    for _, part in groupby(outputs, lambda output: output.place.part):
        yield from sorted(part, key=lambda output: output.place.name)


def _cut_stack(output: p.Output, stacked: Stacked, kept: Sequence[int]) -> p.Output:
    """Return a tensor of all experts with the remaining experts."""
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


def mark_bridges(program: p.Program, checked: Checked) -> p.Program:
    """Mark the last projections of MLPs before a gap, and the norms after them."""
    layout = checked.base.layout
    decided = {
        output.spec.name: gap
        for gap in checked.resolved.gaps
        for output in program.layers[gap.index]
        if is_bridged(layout, output.place.name)
    }
    return marked(program, "bridge", decided)


def mark_healing(program: p.Program, checked: Checked) -> p.Program:
    """Mark the tensors that learn after the output is made."""
    decided: dict[str, FitPlan] = {}
    if (healing := checked.resolved.healing) is not None:
        for layer in (program.layers[index] for index in healing.indices):
            specs = {output.place.name: output.spec for output in layer}
            names = p.learning_tensors(healing.rank, specs)
            decided |= {o.spec.name: healing for o in layer if o.place.name in names}
    return marked(program, "heal", decided)


def marked(program: p.Program, word: str, decided: Mapping[str, FitPlan]) -> p.Program:
    """Return the program with some tensors, by their names, decided by fits of a word."""

    def mark(output: p.Output) -> p.Output:
        if (fit := decided.get(output.spec.name)) is None:
            return output
        provider = fit_provider(fit.by) if isinstance(fit, Gap) else ""
        return replace(output, make=p.Marked(word, output.make, fit, provider))

    return p.Program(tuple(map(mark, program.outputs)))


# ---------------------------------------------------------------------------------------- the table

_MAKERS = "gptailor.evaluation.fits"
FITS = (
    FitStatement("width", narrow_mlps, f"{_MAKERS}.narrower:Narrower"),
    FitStatement("experts", keep_experts, f"{_MAKERS}.expert_chooser:ExpertChooser"),
    FitStatement("bridge", mark_bridges, f"{_MAKERS}.bridge.fit:Bridger"),
    FitStatement("heal", mark_healing, f"{_MAKERS}.heal.heal:Healer"),
    FitStatement("vocabulary"),
)
"""All fits; those with a maker in their order of effect. No plan has `width` and `experts` both."""


def by_names(texts: Mapping[str, Sequence[_T]]) -> dict[str, _T]:
    """Return the texts of fits by their names: the fit's place, or `heal 1`, `heal 2` of several.

    They are given by the places of their fits.
    """
    return {
        at if len(several) == 1 else f"{at} {number}": text
        for at, several in texts.items()
        for number, text in enumerate(several, 1)
    }


def fit_texts(checked: Checked) -> dict[str, str]:
    """Return the texts of a closed plan's fits by their names, as the plan names them."""
    found = fits_of(checked)
    fits = {at: plan for fit in FITS for at, plan in found.get(fit.word, {}).items()}
    return by_names(
        {
            at: [text.file for text in plan.texts] if isinstance(plan, Healing) else [plan.on]
            for at, plan in fits.items()
        }
    )


def texts_read(results: Mapping[str, FitResult]) -> dict[str, FitText]:
    """Return the texts of results by their names."""
    return by_names({at: result.texts for at, result in results.items()})


def vocabulary_result(checked: Checked) -> dict[str, FitResult]:
    """Return the result of a smaller vocabulary by its place, if the plan has one."""
    if (cut := checked.token_cut) is None:
        return {}
    text = FitText(cut.digest.size, cut.digest.sha256, cut.report.before)
    numbers = asdict(cut.report)
    return {"vocabulary": FitResult("vocabulary", "vocabulary", (text,), numbers)}


def token_cut_report(result: FitResult) -> TokenCutReport:
    """Return the effect of a smaller vocabulary by its result."""
    return TokenCutReport(**{name: int(number) for name, number in result.numbers.items()})
