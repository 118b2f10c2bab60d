"""The statements that texts decide: `FITS` has a row for each.

A row finds a plan's fits, and marks the tensors that they decide. The words about a result are in
`gptailor.reporting.fit_words`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias, final

from gptailor.checkpoint.families import layout as layouts
from gptailor.checkpoint.families import mixture
from gptailor.checkpoint.families import width as widths
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.tensor import resized
from gptailor.checkpoint.token_cut import TokenCutReport
from gptailor.checkpoint.write.digest import of_file
from gptailor.plan.events import FitResult, FitText
from gptailor.plan.resolved import ClosedCut, Gap, Healing
from gptailor.program import program as p
from gptailor.program.layer_cuts import layer_cuts
from gptailor.program.mixtures import keep_experts
from gptailor.program.packages import fit_provider
from gptailor.program.sources import Checked

FitPlan: TypeAlias = ClosedCut | Gap | Healing
"""A fit of a closed plan with its settings."""


@final
@dataclass(frozen=True)
class FitStatement:
    """A statement that texts decide, by its word.

    `find` returns a closed plan's fits by their places: the word, or the layer before a gap.
    `mark` marks the tensors that the fit decides. A cut of layers changes their shapes too, and
    `resized` changes the number in the configuration. `maker` is the class that makes the fit. A
    vocabulary has none, because headers and the text alone decide its rows.
    """

    word: str
    find: Callable[[Checked], Mapping[str, FitPlan]]
    mark: Callable[[p.Program, Checked], p.Program] | None = None
    maker: str | None = None
    resized: Callable[..., dict[str, Any] | Refusal] | None = None


def _vocabulary(checked: Checked) -> Mapping[str, FitPlan]:
    return {} if checked.token_cut is None else {"vocabulary": checked.resolved.cuts["vocabulary"]}


def _layer_cut(word: str, checked: Checked) -> Mapping[str, FitPlan]:
    return {of: cut for of, (_, cut) in layer_cuts(checked).items() if of == word}


def _bridges(checked: Checked) -> Mapping[str, FitPlan]:
    return {f"L{gap.after}": gap for gap in checked.resolved.gaps}


def _healing(checked: Checked) -> Mapping[str, FitPlan]:
    return {} if checked.resolved.healing is None else {"heal": checked.resolved.healing}


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
        shape = resized(spec.shape, neurons.axis, cut.size * neurons.copies)
        make = p.Marked("width", p.unfitted(output.make), cut)
        return replace(output, spec=replace(spec, shape=shape), make=make)

    return p.Program(tuple(map(narrowed, program.outputs)))


def mark_bridges(program: p.Program, checked: Checked) -> p.Program:
    """Mark the last projections of MLPs before a gap."""
    layout = checked.base.layout
    decided = {
        output.spec.name: gap
        for gap in checked.resolved.gaps
        for output in program.layers[gap.index]
        if layouts.projection(layout, output.place.name) == "mlp"
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
    """Return a program in which fits of a word decide some tensors, by their names."""

    def mark(output: p.Output) -> p.Output:
        if (fit := decided.get(output.spec.name)) is None:
            return output
        provider = fit_provider(fit.by) if isinstance(fit, Gap) else ""
        return replace(output, make=p.Marked(word, output.make, fit, provider))

    return p.Program(tuple(map(mark, program.outputs)))


_MAKERS = "gptailor.evaluation.fits"
FITS = (
    FitStatement(
        "width",
        partial(_layer_cut, "width"),
        narrow_mlps,
        f"{_MAKERS}.narrower:Narrower",
        widths.with_width,
    ),
    FitStatement(
        "experts",
        partial(_layer_cut, "experts"),
        keep_experts,
        f"{_MAKERS}.expert_chooser:ExpertChooser",
        mixture.with_expert_count,
    ),
    FitStatement("bridge", _bridges, mark_bridges, f"{_MAKERS}.bridge.fit:Bridger"),
    FitStatement("heal", _healing, mark_healing, f"{_MAKERS}.heal.heal:Healer"),
    FitStatement("vocabulary", _vocabulary),
)
"""All fits, those with a maker in their order of effect."""


def text_names(at: str, count: int) -> tuple[str, ...]:
    """Return the names of a fit's texts: its place, or `heal 1`, `heal 2` for several texts."""
    return (at,) if count == 1 else tuple(f"{at} {i}" for i in range(1, count + 1))


def fit_texts(checked: Checked) -> dict[str, str]:
    """Return the texts of a closed plan's fits by their names, as the plan names them."""
    texts: dict[str, str] = {}
    for fit in FITS:
        for at, plan in fit.find(checked).items():
            read = [text.file for text in plan.texts] if isinstance(plan, Healing) else [plan.on]
            texts |= zip(text_names(at, len(read)), read, strict=True)
    return texts


def texts_read(results: Mapping[str, FitResult]) -> dict[str, FitText]:
    """Return the texts of results by their names."""
    texts: dict[str, FitText] = {}
    for at, result in results.items():
        texts |= zip(text_names(at, len(result.texts)), result.texts, strict=True)
    return texts


def vocabulary_result(checked: Checked) -> dict[str, FitResult]:
    """Return the result of a smaller vocabulary by its place, if the plan has one."""
    if (cut := checked.token_cut) is None:
        return {}
    file = of_file(cut.text)
    text = FitText(file.size, file.sha256, cut.report.before)
    numbers = asdict(cut.report)
    return {"vocabulary": FitResult("vocabulary", "vocabulary", (text,), numbers)}


def token_cut_report(result: FitResult) -> TokenCutReport:
    """Return the effect of a smaller vocabulary by its result."""
    return TokenCutReport(**{name: int(number) for name, number in result.numbers.items()})
