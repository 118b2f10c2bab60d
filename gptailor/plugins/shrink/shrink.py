"""From a goal to a plan: compare all ways to make a model smaller, and write the best one."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, final

from gptailor.checkpoint.families.vision import text_of
from gptailor.checkpoint.files import CheckpointError, expanded, is_gguf
from gptailor.checkpoint.formats.gguf.kinds import FILE_TYPES
from gptailor.checkpoint.write.output_file import refuse_output, write_whole
from gptailor.lang.parse import loads
from gptailor.output.compile import compile as compile_to
from gptailor.plan.arguments import Positive
from gptailor.plan.events import OnEvent, Progress, ignore_events
from gptailor.plan.faults import TailorError, nearest_path
from gptailor.plan.optional_packages import installed, require
from gptailor.plugins.shrink.candidates import Drafts, ShrinkCandidate
from gptailor.plugins.shrink.comparison import EFFORTS, Effort, ShrinkComparison, ShrinkRow
from gptailor.plugins.shrink.goal import CONTEXT, PlanCost, ShrinkGoal, sliding_layers
from gptailor.plugins.shrink.plan_text import PlanTexts
from gptailor.plugins.shrink.results import ShrinkResult, choice
from gptailor.plugins.shrink.texts import OWN_TEXT, PIECE, ShrinkTexts
from gptailor.plugins.shrink.ways import ways_of
from gptailor.prepare import Prepared, ready
from gptailor.program.compile import plan_size
from gptailor.reporting.quantities import duration

if TYPE_CHECKING:
    from gptailor.plugins.shrink.losses import Losses

EffortName = Literal["quick", "normal", "thorough"]
_SURPRISING = 2.2
"""Bits a byte of the uncut model above which it doesn't know the language of the text."""
_WAYS = 3
"""Ways to cut that most models have, for the estimate of the time."""


def shrink(  # noqa: PLR0913 (the verb of the command line, and its flags)
    models: Sequence[str | Path] | str | Path,
    *,
    to: Positive | None = None,
    parameters: Positive | None = None,
    memory: Positive | None = None,
    faster: float | None = None,
    text: Sequence[str | Path] | str | Path = (),
    output: str | Path | None = None,
    plan: str | Path | None = None,
    effort: EffortName = "normal",
    device: str = "cpu",
    force: bool = False,
    on_event: OnEvent = ignore_events,
) -> ShrinkResult:
    """Compare the ways to make a model smaller, and write the plan that loses least on a text.

    The goal bounds the bytes of the output (`to`), its `parameters`, the bytes of `memory` with a
    KV cache, or the speed, as a multiple of the model's (`faster`). `models` are folders, GGUF
    files or Hub ids; several of one architecture are also merged. Without a `text` a small one
    of gptailor's own is used. The plan is called `MODEL-shrunk.tailor` unless `plan` names it;
    its texts and a space for `search` are written beside it. With an `output`, a folder or a
    `.gguf` file, the plan is compiled. `on_event` receives the progress.

    Finished measurements are kept in the user's cache. Raises PlanError and TailorError for models
    that can't be read or compared, CalibrationError for an unusable text, ValueError without a
    goal.
    """
    goal = ShrinkGoal(to, parameters, memory, faster)
    sources = [models] if isinstance(models, str | Path) else list(models)
    if not sources:
        raise ValueError("'models': expected a model, got none")
    texts = [text] if isinstance(text, str | Path) else list(text)
    return _Shrinking(
        [str(source) for source in sources],
        goal,
        [expanded(file) for file in texts],
        EFFORTS[effort],
        None if plan is None else Path(plan),
        device,
        force,
        on_event,
    ).run(None if output is None else Path(output))


def effort_of(name: str | None) -> EffortName:
    """Return the name of an effort; `normal` for None and unknown names."""
    names: tuple[EffortName, ...] = ("quick", "thorough")
    return next((each for each in names if each == name), "normal")


@final
class _Shrinking:
    """One run of `shrink`, with its temporary folder of texts."""

    def __init__(  # noqa: PLR0913, PLR0917 (the arguments of the verb)
        self,
        sources: list[str],
        goal: ShrinkGoal,
        texts: list[Path],
        effort: Effort,
        plan: Path | None,
        device: str,
        force: bool,
        on_event: OnEvent,
    ) -> None:
        self.sources, self.goal, self.effort = sources, goal, effort
        self.device, self.force, self.on_event = device, force, on_event
        self.name = _name(sources[0])
        self.file = plan or Path(f"{self.name}-shrunk.tailor")
        self.stem = self.file.name.removesuffix(".tailor")
        for source in sources:
            _refuse_missing(source)
        self.notes: list[str] = []
        if not texts:
            self.notes.append(
                "measured on a small English text of gptailor's own; --text names yours"
            )
        self.texts = ShrinkTexts.of(texts or [OWN_TEXT], effort.calibrated)
        for path in (self.file, *map(self.beside, ("-space.tailor", "-fit.jsonl"))):
            refuse_output(path, force=force)
        self._done = self._total = 0

    def beside(self, ending: str) -> Path:
        """Return a file beside the plan."""
        return self.file.with_name(self.stem + ending)

    def run(self, output: Path | None) -> ShrinkResult:
        """Compare, choose, write the plan, and compile it."""
        heads = [*self._heads(absolute=True)]
        whole = ready(loads(heads[0], "<shrink>", Path()))
        uncut = _uncut_cost(whole, expanded(self.sources[0]))
        context = text_of(whole.compiled.config).get("max_position_embeddings", CONTEXT)
        self.goal = replace(self.goal, context=min(int(context), CONTEXT))
        if self.goal.excess(uncut) <= 1:
            reason = f"the model already meets the goal of {self.goal.words}"
            return ShrinkResult(self.goal, uncut, None, (), None, reason, already=True)
        text = f"{len(self.texts.fit)} rows of text to fit on, {len(self.texts.held)} held out"
        self._say(f"goal: {self.goal.words}; {text}")
        if self.effort is EFFORTS["quick"]:
            self.notes.append(
                "measured quickly: without --quick more types, importance matrices and text count"
            )
        if uncut.is_gguf or whole.models["base"].layout.quantised is not None:
            self.notes.append("the model is already quantised; these losses come on top of its own")
        with TemporaryDirectory(prefix="gptailor-shrink-") as folder:
            names = self.texts.write(Path(folder), self.stem)
            every = [
                Drafts(head, Path(folder), fit=names["fit"], calibration=names["calibration"])
                for head in heads
            ]
            if not installed("torch"):
                return self._sizes_alone(every[0], uncut)
            if every[0].no_gguf is None:
                require("gguf", "gptailor shrink")
            if (smallest := self._misses(every[0], uncut)) is not None:
                reason = choice([smallest], [], self.goal)[1]
                return ShrinkResult(
                    self.goal, uncut, None, (smallest,), None, reason, impossible=True
                )
            result, texts = self._compared(every, names["held"], uncut)
            if result.chosen is None or texts is None:
                return result
            number = heads.index(texts.drafts.head)
            result = self._written(result, texts, [*self._heads(absolute=False)][number])
        if output is not None and result.chosen is not None:
            self._compile(result.chosen, output, texts.drafts)
        return result

    def _heads(self, *, absolute: bool) -> Iterator[str]:
        """Yield the text of the models and of each recipe: each model alone, then their mean."""
        sources = [_source(source, None if absolute else self.file) for source in self.sources]
        for source in sources:
            yield f'tailor 1\nmodel base = "{source}"'
        if len(sources) > 1:
            names = ["base", *(f"model{number}" for number in range(2, len(sources) + 1))]
            models = (f'model {n} = "{s}"' for n, s in zip(names, sources, strict=True))
            yield "\n".join(["tailor 1", *models, f"whole from {', '.join(names)} by linear()"])

    def _sizes_alone(self, drafts: Drafts, uncut: PlanCost) -> ShrinkResult:
        comparison = ShrinkComparison(self.goal, drafts, self.effort, uncut)
        rows = [*comparison.whole(), *comparison.cut(ways_of(drafts, {}), 0.0)]
        notes = (*self.notes, *_refusals(drafts, rows))
        reason = "no choice: losses need torch: pip install 'gptailor[torch]'"
        return ShrinkResult(self.goal, uncut, None, tuple(rows), None, reason, notes)

    def _misses(self, drafts: Drafts, uncut: PlanCost) -> ShrinkRow | None:
        """Return the plan with the largest cuts of all ways, if even that is too large.

        Headers can't tell whether a speed is met.
        """
        if self.goal.faster is not None:
            return None
        comparison = ShrinkComparison(self.goal, drafts, self.effort, uncut)
        most = [way.make(way.sizes[-1]) for way in ways_of(drafts, {})]
        cuts = tuple(cut for cut in most if cut is not None)
        kinds = [None] if drafts.no_gguf or not self.goal.sized else [*FILE_TYPES]
        rows = (comparison.sized(ShrinkCandidate(cuts, kind)) for kind in kinds)
        known = [row for row in rows if row is not None]
        if not known or any(row.met for row in known):
            return None
        return min(known, key=lambda row: self.goal.excess(row.cost))

    # ------------------------------------------------------------------------------ comparison

    def _compared(
        self, every: list[Drafts], held: str, uncut: PlanCost
    ) -> tuple[ShrinkResult, PlanTexts | None]:
        from gptailor.evaluation.scores import PerSample
        from gptailor.plugins.shrink.losses import Losses

        losses = Losses(
            held, self.texts.digest, self.effort.samples, device=self.device,
            on_event=self.on_event,
        )  # fmt: skip
        losses.expect(every)
        self._estimate(every, losses.pace(every[0]))
        base = losses.of(every[0], ShrinkCandidate())
        if not isinstance(base, PerSample):
            raise TailorError(f"the uncut model can't be measured: {base.message}")
        bits = base.score().value
        self._step(f"the uncut model: {bits:.3f} bits a byte")
        if bits > _SURPRISING:
            self.notes.append(
                f"the model has {bits:.2f} bits a byte on this text: it hardly knows its language"
            )
        drafts = self._best_recipe(every, losses, base)
        comparison = ShrinkComparison(self.goal, drafts, self.effort, uncut, losses, self._step)
        comparison.uncut_losses = base
        rows = comparison.whole()
        met = [row.loss.value for row in rows if row.loss is not None and row.met]
        if met and min(met) <= self.effort.settled:
            sizes = ShrinkComparison(self.goal, drafts, self.effort, uncut)
            rows += sizes.cut(ways_of(drafts, {}), 0.0)
            self.notes.append("cuts are not measured (--quick): fewer bits alone lose very little")
        else:
            ways = ways_of(drafts, losses.distances(every[0]))
            if self.goal.faster is not None:
                comparison.learn_speeds(ways, every[0])
            rows += comparison.cut(ways, min(met, default=0.0))
        if self.effort.heals:
            rows += self._healed(comparison, rows)
        rows = self._with_speeds(rows, losses, every[0], drafts)
        self.notes += [
            f"{row.candidate.kind.lower()} changes nothing; the weights are already rounded to it"
            for row in rows
            if row.candidate.kind and not row.candidate.cuts and row.loss == (0.0, 0.0)
        ]
        tied = self._tied(rows, losses, drafts)
        chosen, reason = choice(rows, tied, self.goal)
        self.notes += [
            *_refusals(drafts, rows),
            *(drafts.notes(chosen.candidate) if chosen else ()),
        ]
        result = ShrinkResult(
            self.goal, uncut, bits, tuple(rows), chosen, reason, tuple(self.notes)
        )
        if chosen is None:
            return result, None
        others = [row for row in rows if row is not chosen and row.met and row.loss is not None]
        others.sort(key=lambda row: row.loss.value if row.loss else 0.0)
        texts = PlanTexts(
            self.name, self.file.name, self.goal, chosen, drafts,
            loss=bits, held=held, others=others[:1],
        )  # fmt: skip
        return result, texts

    def _estimate(self, every: list[Drafts], speed: float) -> None:
        """Report the number of models to measure, and about how long it takes."""
        effort, cuts = self.effort, _WAYS * self.effort.cut
        whole = 1 + effort.whole + effort.weighted + effort.cut
        passes = (whole + effort.built + len(every) - 1) * effort.samples + cuts * effort.screened
        fitted = (cuts + effort.weighted * (1 + effort.built)) * effort.calibrated
        tokens = (PIECE * passes + 3 * fitted) / 3.5  # fits are passes in float32, some twice
        self._total = whole + effort.built + len(every) - 1 + cuts
        words = f"about {self._total} models to measure, {duration(tokens / speed)}"
        self._say(words)

    def _say(self, words: str) -> None:
        self.on_event(Progress("shrinking", 0, self._total, words))

    def _step(self, words: str) -> None:
        self._done += 1
        self.on_event(Progress("shrinking", self._done, max(self._done, self._total), words))

    def _best_recipe(self, every: list[Drafts], losses: "Losses", base: object) -> Drafts:
        """Return the recipe with the least loss before any cut, the simplest of equal ones."""
        from gptailor.evaluation.scores import PerSample, paired_difference

        assert isinstance(base, PerSample)
        best, least = every[0], base
        for drafts in every[1:]:
            found = None if drafts.prepared(()) is None else losses.of(drafts, ShrinkCandidate())
            recipe = drafts.head.splitlines()[-1].removeprefix("model ")
            if not isinstance(found, PerSample):
                why = found.message if found else drafts.refusals.get("whole", "it has faults")
                self.notes.append(f"'{recipe}' can't be measured: {why}")
                continue
            change = paired_difference(found, least)
            self._step(f"{recipe}: {change.value:+.3f} ± {change.stderr:.3f} bits a byte")
            if change.reversed.sure:
                best, least = drafts, found
        if len(every) > 1:
            self.notes.append(f"all plans start from '{best.head.splitlines()[-1]}'")
        return best

    def _healed(self, comparison: ShrinkComparison, rows: Sequence[ShrinkRow]) -> list[ShrinkRow]:
        """Return the best cut plan again, healed."""
        cut = [row for row in rows if row.candidate.cuts and row.loss is not None and row.met]
        if not cut:
            return []
        best = min(cut, key=lambda row: row.loss.value if row.loss else 0.0)
        sized = comparison.sized(replace(best.candidate, healed=True))
        return [] if sized is None else [comparison.measured(sized)]

    def _with_speeds(
        self, rows: Sequence[ShrinkRow], losses: "Losses", uncut: Drafts, drafts: Drafts
    ) -> list[ShrinkRow]:
        """Return the rows, built ones with their speeds and whether they meet the goal."""
        built = [row for row in rows if row.loss is not None]
        if not built or (self.effort is EFFORTS["quick"] and self.goal.faster is None):
            return list(rows)
        plain = [*dict.fromkeys(ShrinkCandidate(row.candidate.cuts) for row in built)]
        try:
            ratios = dict(zip(plain, losses.speed_ratios(uncut, drafts, plain), strict=True))
            files = losses.llama_ratios(uncut, drafts, [row.candidate for row in built])
        except Exception as error:  # noqa: BLE001 (torch's, llama.cpp's; losses stay valid)
            first = str(error).partition("\n")[0] or type(error).__name__
            self.notes.append(f"speeds can't be measured: {first}")
            return list(rows)
        return [self._timed(row, ratios, files) for row in rows]

    def _timed(
        self,
        row: ShrinkRow,
        ratios: dict[ShrinkCandidate, float],
        files: dict[ShrinkCandidate, tuple[float, float]],
    ) -> ShrinkRow:
        """Return a row with its speeds; llama.cpp's decides about the goal of a GGUF file."""
        speed = ratios.get(ShrinkCandidate(row.candidate.cuts))
        llama = files.get(row.candidate)
        if row.loss is None or speed is None:
            return row
        met = self.goal.excess(row.cost, llama[1] if llama else speed) <= 1
        return replace(row, decoding=speed, llama=llama, met=met)

    def _tied(self, rows: Sequence[ShrinkRow], losses: "Losses", drafts: Drafts) -> list[ShrinkRow]:
        """Return the best measured row that meets the goal, and the rows within an error of it."""
        from gptailor.evaluation.scores import PerSample, paired_difference

        met = [row for row in rows if row.met and row.loss is not None]
        met.sort(key=lambda row: row.loss.value if row.loss else 0.0)
        found = []
        for row in met:
            best = losses.of(drafts, met[0].candidate)
            own = losses.of(drafts, row.candidate)
            if isinstance(best, PerSample) and isinstance(own, PerSample):
                change = paired_difference(own, best)
                found += [row] if row is met[0] or change.value <= change.stderr else []
        return found

    # ---------------------------------------------------------------------------- written files

    def _written(self, result: ShrinkResult, texts: PlanTexts, head: str) -> ShrinkResult:
        """Write the plan, its texts and the space beside it."""
        space = self.beside("-space.tailor")
        plan_text, space_text = texts.plan(head), texts.space(head)
        names = self.texts.write(self.file.parent, self.stem)
        write_whole(self.file, plan_text.encode(), self.file)
        write_whole(space, space_text.encode(), space)
        others = (self.file.with_name(name) for name in dict.fromkeys(names.values()))
        return replace(result, plan=self.file, files=(self.file, space, *others))

    def _compile(self, row: ShrinkRow, output: Path, drafts: Drafts) -> None:
        """Write the model: a folder, with its GGUF file beside it, or the GGUF file alone."""
        kind = row.candidate.kind
        matrix = self.file.with_name(drafts.calibration) if row.candidate.weighted else None
        alone = output.suffix.lower() == ".gguf"
        compile_to(
            self.file, output, quantize=kind if alone else None,
            gguf=() if alone or kind is None else (kind,), imatrix=matrix,
            force=self.force, on_event=self.on_event,
        )  # fmt: skip


def _refuse_missing(source: str) -> None:
    """Refuse a folder or file that doesn't exist; other words are ids of the Hub."""
    path = expanded(source)
    if not path.exists() and (path.is_absolute() or source.startswith(".")):
        raise CheckpointError("C101", "there is no such folder or file", path, nearest_path(path))


def _name(source: str) -> str:
    """Return a name for files from a model's source."""
    path = expanded(source)
    name = path.resolve().name if path.exists() else source.rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", name.removesuffix(".gguf")) or "model"


def _source(source: str, plan: Path | None) -> str:
    """Return a model's source as a plan writes it: absolute, or as seen from the plan's folder."""
    path = expanded(source)
    if not path.exists():
        return source
    if plan is None or path.is_absolute():
        return str(path.absolute())
    seen = os.path.relpath(path, plan.absolute().parent)
    return seen if seen.startswith(".") else f"./{seen}"


def _uncut_cost(whole: Prepared, source: Path) -> PlanCost:
    """Return the sizes of the uncut model: of the GGUF file that it is, or of its folder."""
    size, is_file = plan_size(whole.checked), is_gguf(source)
    kept = source.stat().st_size if is_file else whole.size
    share, window = sliding_layers(text_of(whole.compiled.config))
    return PlanCost(
        kept, size.parameters, size.kv_cache, is_gguf=is_file, sliding=share, window=window
    )


def _refusals(drafts: Drafts, rows: Sequence[ShrinkRow]) -> Iterator[str]:
    """Yield why ways to cut have no row."""
    shown = {way for row in rows for way in row.candidate.way.split(" + ")}
    if drafts.no_gguf is not None:
        yield f"no GGUF file, so the sizes are the folders': {drafts.no_gguf}"
    for way, why in drafts.refusals.items():
        if way not in shown and "+" not in way:
            yield f"no {way}: {why}"
