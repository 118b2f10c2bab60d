"""A page about a search, a plan or a model, and its pictures: `report`."""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import gptailor
from gptailor.checkpoint.files import CheckpointError, is_gguf
from gptailor.checkpoint.write.output_file import REPLACE, refuse_output
from gptailor.lang.plan_of import plan_of, read_target
from gptailor.output.lock import LOCK_FILE, SUFFIX, Lock, parse_lock, read_lock
from gptailor.plan.arguments import Positive
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import PLAN_FILE, PlanError, errors
from gptailor.plan.optional_packages import missing_package
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.plugins.report import plan_sections as of
from gptailor.prepare import ModelPaths
from gptailor.reporting.known_layers import resolved_by_headers

if TYPE_CHECKING:
    from gptailor.plugins.report.section import Section
    from gptailor.searching.results import SearchResult
    from gptailor.searching.run_reading import RunReading


@final
@dataclass(frozen=True)
class ReportResult:
    """The page that `report` wrote, its size in bytes, and its pictures."""

    file: Path
    size: int
    pictures: tuple[Path, ...]


def report(  # noqa: PLR0913 (the verb of the command line, and its flags)
    target: "str | Path | Plan | SearchResult",
    output: str | Path,
    *,
    models: ModelPaths | None = None,
    families: Sequence[str | Path] = (),
    prompt: str | None = "Once upon a time",
    tokens: Positive = 48,
    pictures: str | Path | None = None,
    force: bool = False,
    on_event: OnEvent = ignore_events,
) -> ReportResult:
    """Write a page of HTML about a search, a plan or a model's folder; it needs no network.

    `target` is a search's result or folder, a plan or its file, or a model's folder. `models` gives
    other folders for the plan's names, and `families` are family files. The base and the result
    continue `prompt` by at most `tokens` tokens, and with None they don't. `pictures` is a folder
    for each chart as .svg and .png. `force` replaces an existing page and pictures. `on_event`
    receives the progress of bridging and healing.

    Raises CheckpointError for an output that exists or can't be written (C301 to C303), PlanError
    for faults of the plan, OSError for a missing file, MissingPackageError without altair.
    """
    from gptailor.plugins.report.charts import require_charts
    from gptailor.plugins.report.page import page_html

    require_charts()
    place = Path(output)
    subject = target if isinstance(target, str | Path | Plan) else target.run
    name = None if isinstance(subject, Plan) else str(subject)
    read = str(subject)
    if isinstance(subject, Plan):
        read = "" if subject.origin is None else subject.origin.source.name
    if place.exists() and Path(read).is_file() and place.samefile(read):
        raise CheckpointError("C302", "is the input of this report", place, "name another file")
    refuse_output(place, force=force)
    speech = None if prompt is None else of.Speech(prompt, tokens, on_event)
    paths = {name: Path(path) for name, path in (models or {}).items()}
    given = _Given(paths, families, speech)
    run = name if name is not None and is_run(name) else None
    page = _of_plan(subject, given) if run is None else _of_run(run, given)
    names = [] if pictures is None else list(_pictures(page))
    files = tuple(Path(pictures or "") / each for each in names)
    for file in files:
        _refuse_picture(file, force=force)
    foot = f"Made by gptailor {escape(gptailor.__version__)}."
    raw = page_html(page.title, page.lead, page.sections, foot).encode()
    if pictures is not None:
        _write_pictures(Path(pictures), page)
    _write(place, raw)
    return ReportResult(place, len(raw), files)


@final
class _Page(NamedTuple):
    """A page before it is HTML; only its `lead` is HTML."""

    title: str
    lead: str
    sections: "list[Section]"


@final
class _Given(NamedTuple):
    """The models' folders, the family files, and the prompt, as the caller gave them."""

    models: dict[str, Path]
    families: Sequence[str | Path]
    speech: of.Speech | None


def _refuse_picture(path: Path, *, force: bool) -> None:
    if os.path.lexists(path) and not (force and path.is_file()):
        code, message = ("C302", "is not a regular file") if force else ("C301", "exists already")
        raise CheckpointError(code, message, path, "" if force else REPLACE)


def _pictures(page: _Page) -> Iterator[str]:
    """Return the names of a page's pictures."""
    drawn = (section.anchor for section in page.sections if section.chart is not None)
    return (f"{name}.{kind}" for name in drawn for kind in ("svg", "png"))


def _write(path: Path, raw: bytes) -> None:
    from gptailor.checkpoint.write.output_file import write_whole

    write_whole(Path(os.path.realpath(path)), raw, path)


def _write_pictures(folder: Path, page: _Page) -> None:
    from gptailor.checkpoint.write.output_file import writing
    from gptailor.plugins.report.charts import picture

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    drawn = [section for section in page.sections if section.chart is not None]
    for section in drawn:
        assert section.chart is not None
        svg, png = picture(section.chart, section.title, section.note)
        _write(folder / f"{section.anchor}.svg", svg.encode())
        _write(folder / f"{section.anchor}.png", png)


# ------------------------------------------------------------------------------ a plan, or a model


def _of_plan(target: str | Path | Plan, given: _Given) -> _Page:
    name, plan = plan_of(target)
    plan = plan.with_families(given.families) if given.families else plan
    path = Path(plan.origin.source.name if isinstance(target, Plan) and plan.origin else name)
    folder = path.is_dir()
    file = path / PLAN_FILE if folder else path
    lock_file = path / LOCK_FILE if folder else path.with_name(path.name + SUFFIX)
    lock = read_lock(lock_file) if path.exists() and lock_file.exists() else None
    subject = of.subject(name, plan, _text_of(plan), given.models, _alone(path, given.families))
    again = []
    if file.exists() and not is_gguf(file):
        locked = lock is not None and not folder
        again = [of.compile_command_of(str(file), given.models, locked=locked)]
        again += [shlex.join(["gptailor", "verify", str(path)])] if folder else []
    title = path.resolve().name if folder else name
    return _Page(title, _lead_of_plan(subject), _plan_sections(subject, given.speech, lock, again))


def _alone(path: Path, families: Sequence[str | Path]) -> Plan | None:
    """Return the plan of an unchanged model folder or GGUF file, or None for a plan's file."""
    if not (path.is_dir() or path.suffix == ".gguf"):
        return None
    _, plan, _ = read_target(path)
    return plan.with_families(families) if families else plan


def _text_of(plan: Plan) -> str:
    from gptailor.lang.format import format_plan

    if plan.origin is not None and plan.origin.tree is not None:
        return str(plan.origin.source.text)
    return format_plan(plan)


def _lead_of_plan(subject: of.Reported) -> str:
    sizes = of.sizes_in_words(subject)
    return f"<strong>{escape(sizes[:1].upper() + sizes[1:])}.</strong>"


def _plan_sections(
    subject: of.Reported,
    speech: of.Speech | None,
    lock: Lock | None,
    again: list[str],
    run: "RunReading | None" = None,
) -> "list[Section]":
    no_lock = "There is no lock; 'gptailor lock PLAN' makes one."
    return [
        _map(subject, None if run is None else run.record.layers),
        of.sizes_section(subject, run),
        of.continuations(subject, speech),
        of.text_section(subject),
        *of.expectation_sections(subject),
        *of.lock_sections(lock, no_lock),
        *([of.commands(again)] if again else []),
    ]


def _map(subject: of.Reported, layers: int | None) -> "Section":
    """Return the layer map. `layers` is the base's number of layers if its files are missing."""
    from gptailor.plugins.report.layer_map import layer_map

    if subject.base is not None:
        return layer_map(Resolved(subject.plan, len(subject.base.resolved.kept)))
    if layers is None:
        resolved, known = resolved_by_headers(subject.plan, {})
    else:
        resolved, known = Resolved(subject.plan, layers), True
    section = layer_map(resolved)
    if known or subject.plan.stack is not None:
        return section
    return replace(section, words=f"{section.words} {_ONLY_NAMED}")


_ONLY_NAMED = "The base can't be read here, so it may have more layers than the plan names."


_IN_VAIN = "Healing changed nothing: the layers that learn stayed as they were."


# ---------------------------------------------------------------------------------- a search's RUN

_RUN_FILES = ("run.json", "journal.jsonl")


def is_run(target: str) -> bool:
    """Return whether a report's target is a search's folder, or a URL of one."""
    if "://" in target:
        return True
    path = Path(target)
    return path.is_dir() and any((path / name).exists() for name in _RUN_FILES)


def _of_run(target: str, given: _Given) -> _Page:
    from gptailor.lang.parse import read_bytes
    from gptailor.searching.run_files import RunFiles
    from gptailor.searching.search_text import HEALED_IN_VAIN, stage_words

    files = RunFiles(target)
    best = files.read("best.tailor")
    subject = None
    if best is not None:
        file = files.path / "best.tailor"
        plan, faults = read_bytes(best, str(file), files.path)
        if plan is None or errors(faults):
            raise PlanError(faults)
        plan = plan.with_families(given.families) if given.families else plan
        subject = of.subject("best.tailor", plan, best.decode(), given.models)
    run, lead, sections, tried = _tried(target)
    if subject is not None:
        name = f"best.tailor{SUFFIX}"
        lock = files.read(name)
        held = None if lock is None else parse_lock(lock, files.path / name)
        again = [
            of.compile_command_of(f"{target}/best.tailor", given.models, locked=held is not None)
        ]
        again = again if files.storage is None else []
        of_plan = _plan_sections(subject, given.speech, held, again, run)
        verdict = None if run is None or run.notes.result is None else run.verdict
        if run and verdict and stage_words(verdict.best, run.ledger) == HEALED_IN_VAIN:
            of_plan[0] = replace(of_plan[0], words=f"{of_plan[0].words} {_IN_VAIN}")
        at = next(i for i, section in enumerate(of_plan) if section.anchor == "plan")
        tried = [*of_plan[:at], *tried, *of_plan[at:]]
    sections += tried
    title = f"Search of {target if run is None else run.record.plan}"
    return _Page(title, lead, sections)


def _tried(target: str) -> "tuple[RunReading | None, str, list[Section], list[Section]]":
    """Return the contents of RUN, the page's lead, and the sections on scores and on all trials.

    Without a readable RUN, the last section has the reason.
    """
    from gptailor.plugins.report.run_sections import run_sections
    from gptailor.plugins.report.section import Section

    try:
        from gptailor.plugins.report.layer_effects import run_effects  # imports JAX
        from gptailor.plugins.report.scores_section import scores_sections
        from gptailor.searching.run_reading import read_run

        run = read_run(target)
        scores = [] if run.notes.result is None else scores_sections(run)
        return run, _lead_of_run(run), scores, run_sections(run, run_effects(run))
    except ImportError as error:
        missing = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
        why = str(missing or error)
    except CheckpointError as error:
        why = "; ".join(filter(None, (f"{error.path} {error.message}", error.help)))
    reason = Section("trials", "Every trial", f"The trials aren't shown: {why}.")
    return None, "The search's trials can't be read.", [], [reason]


def _lead_of_run(run: "RunReading") -> str:
    from gptailor.searching.search_text import headline

    if run.notes.result is not None:
        return f"<strong>{escape(headline(run))}</strong>"
    if run.notes.handed is not None:
        files = "<code>summary.md</code> and the plans in its folder"
        return f"The search went on after its last end: {files} belong to that end."
    return "The search has no summary: it was ended before it wrote one."
