"""The command `report`: a page about a search, a plan or a model, and its pictures."""

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import click

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli import options
from gptailor.plan.faults import PlanError, errors
from gptailor.plan.optional_packages import missing_package
from gptailor.report.quantities import bytes_in_words

if TYPE_CHECKING:
    from gptailor.build.lock import Lock
    from gptailor.cli.report_sections import Reported, Speech
    from gptailor.plan.plan import Plan
    from gptailor.report.page.run_report import RunReport
    from gptailor.report.page.section import Section
    from gptailor.report.summary import SearchSummary

_REPORT_EXAMPLE = """
\b
Examples:
  gptailor report run -o report.html
  gptailor report cut.tailor -o cut.html --pictures pictures
  gptailor report ./models/cut -o cut.html --prompt "Once upon a time"
"""


@click.command("report", short_help="Make a page about a search, a plan or a model.",
               epilog=_REPORT_EXAMPLE)  # fmt: skip
@click.argument("target", metavar="RUN|PLAN|DIR", type=click.Path(allow_dash=True))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="The page to write. It must not exist, unless --force is given.")  # fmt: skip
@click.option(
    "--force",
    is_flag=True,
    help="Replace an existing page, after the new page is complete, and existing pictures.",
)
@click.option("--pictures", type=click.Path(path_type=Path), metavar="DIR",
              help="Also write each chart as .svg and .png into this folder.")  # fmt: skip
@click.option("--prompt", default="Once upon a time", show_default=True, metavar="TEXT",
              help="The prompt that the base and the model continue.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), default=48, show_default=True, metavar="N",
              help="The maximum number of tokens of each continuation.")  # fmt: skip
@click.option("--storage", metavar="URL",
              help="Read a search's study from this SQLite database (sqlite:///FILE), instead of "
                   "RUN's own journal. The database is opened read-only.")  # fmt: skip
@click.option("--study-name", "study", metavar="NAME",
              help="The name of the study in that database. Default: the name in "
              "run.json.")  # fmt: skip
@click.option("--no-continuations", is_flag=True, help="Don't continue the prompt.")
@options.MODEL
@options.FAMILY
def report_command(  # noqa: PLR0913 (one argument a flag)
    target: str,
    output: Path,
    *,
    force: bool,
    pictures: Path | None,
    prompt: str,
    tokens: int,
    storage: str | None,
    study: str | None,
    no_continuations: bool,
    models: tuple[tuple[str, Path], ...],
    families: tuple[Path, ...],
) -> None:
    """Make one page of HTML about a search's folder, a plan, or a model's folder.

    The page opens from disk without a network. It can be printed, and read on a phone. It has a
    light and a dark mode.

    The page of a search compares its result with the base, and shows all trials. Nothing is
    evaluated again. The page of a plan contains the map of its layers, its size, text and lock. If
    the models are available, the base and the result continue a prompt.

    The command needs altair and vl-convert-python: pip install 'gptailor[report]'.
    """
    from gptailor.cli.report_sections import Speech
    from gptailor.report.page.charts import require_charts
    from gptailor.report.page.page import page_html

    require_charts()
    _refuse_output(output, force=force)
    if output.exists() and Path(target).exists() and output.samefile(target):
        raise CheckpointError("C302", "is the input of this report", output)
    speech = None if no_continuations else Speech(prompt, tokens)
    if _is_run(target):
        page = _of_run(target, dict(models), families, speech, _Stored(storage, study))
    elif storage is not None or study is not None:
        raise click.UsageError("--storage and --study-name are a search's; the target is no RUN")
    else:
        page = _of_plan(target, dict(models), families, speech)
    if pictures is not None:
        for name in _pictures(page):
            _refuse_picture(pictures / name, force=force)
    foot = f"Made by gptailor {escape(gptailor.__version__)}."
    raw = page_html(page.title, page.lead, page.sections, foot).encode()
    _write(output, raw)
    options.say(f"{output}: written, {bytes_in_words(len(raw))}")
    if pictures is not None:
        count = _write_pictures(pictures, page)
        options.say(f"{pictures}: {count} pictures written, each as .svg and .png")


@final
class _Page(NamedTuple):
    """A page before it is HTML; only its `lead` is HTML."""

    title: str
    lead: str
    sections: "list[Section]"


@final
class _Stored(NamedTuple):
    """The user's storage of a search's study, and the study's name there, if given."""

    storage: str | None
    study: str | None


_Models = Mapping[str, Path]


def _refuse_output(output: Path, *, force: bool) -> None:

    if os.path.lexists(output) and not output.is_file():
        raise CheckpointError("C302", "is not a regular file", output)
    if os.path.lexists(output) and not force:
        raise CheckpointError("C301", "exists already", output, "--force replaces it")
    if not output.absolute().parent.is_dir():
        raise CheckpointError("C303", "cannot be written: there is no such folder", output)


def _refuse_picture(path: Path, *, force: bool) -> None:
    if os.path.lexists(path) and not (force and path.is_file()):
        code, message = ("C302", "is not a regular file") if force else ("C301", "exists already")
        raise CheckpointError(code, message, path, "" if force else "--force replaces it")


def _pictures(page: _Page) -> Iterator[str]:
    """Return the names of a page's pictures."""
    drawn = (section.anchor for section in page.sections if section.chart is not None)
    return (f"{name}.{kind}" for name in drawn for kind in ("svg", "png"))


def _write(path: Path, raw: bytes) -> None:
    from gptailor.checkpoint.write.output_file import write_whole

    write_whole(Path(os.path.realpath(path)), raw, path)


def _write_pictures(folder: Path, page: _Page) -> int:
    from gptailor.checkpoint.write.output_file import writing
    from gptailor.report.page.charts import picture

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    drawn = [section for section in page.sections if section.chart is not None]
    for section in drawn:
        assert section.chart is not None
        svg, png = picture(section.chart, section.title, section.note)
        _write(folder / f"{section.anchor}.svg", svg.encode())
        _write(folder / f"{section.anchor}.png", png)
    return len(drawn)


# ------------------------------------------------------------------------------ a plan, or a model


def _of_plan(
    target: str, models: _Models, families: tuple[Path, ...], speech: "Speech | None"
) -> _Page:
    from gptailor.build.lock import LOCK_FILE, PLAN_FILE, SUFFIX, read_lock
    from gptailor.checkpoint.files import is_gguf
    from gptailor.cli import report_sections as of

    path = Path(target)
    plan = options.read_plan_or_folder(target, families)
    folder = target != "-" and path.is_dir()
    file = path / PLAN_FILE if folder else path
    lock_file = path / LOCK_FILE if folder else Path(target + SUFFIX)
    lock = read_lock(lock_file) if target != "-" and lock_file.exists() else None
    name = options.shown_name(target)
    text = _text_of(plan)
    subject = of.subject(name, plan, text, models, _alone(target, families))
    again = []
    if target != "-" and file.exists() and not is_gguf(file):
        again = [of.compile_command_of(str(file), models, locked=lock is not None and not folder)]
        again += [shlex.join(["gptailor", "verify", target])] if folder else []
    title = path.resolve().name if folder else name
    return _Page(title, _lead_of_plan(subject), _plan_sections(subject, speech, lock, again))


def _alone(target: str, families: tuple[Path, ...]) -> "Plan | None":
    """Return the plan of an unchanged model folder or GGUF file, or None for a plan's file."""
    path = Path(target)
    if target == "-" or not (path.is_dir() or path.suffix == ".gguf"):
        return None
    from gptailor.evaluate.targets import read_target

    _, plan, _ = read_target(target)
    return plan.with_families(families) if families else plan


def _text_of(plan: Any) -> str:
    from gptailor.lang.format import format_plan

    if plan.origin is not None and plan.origin.tree is not None:
        return str(plan.origin.source.text)
    return format_plan(plan)


def _lead_of_plan(subject: "Reported") -> str:
    from gptailor.cli.report_sections import sizes_in_words

    sizes = sizes_in_words(subject)
    return f"<strong>{escape(sizes[:1].upper() + sizes[1:])}.</strong>"


def _plan_sections(
    subject: "Reported",
    speech: "Speech | None",
    lock: "Lock | None",
    again: list[str],
    report: "RunReport | None" = None,
) -> "list[Section]":
    from gptailor.cli import report_sections as of

    no_lock = "There is no lock; 'gptailor lock PLAN' makes one."
    return [
        _map(subject, None if report is None else report.layers),
        of.sizes_section(subject, report),
        of.continuations(subject, speech),
        of.text_section(subject),
        *of.lock_sections(lock, no_lock),
        *([of.commands(again)] if again else []),
    ]


def _map(subject: "Reported", layers: int | None) -> "Section":
    """Return the layer map. `layers` is the base's number of layers if its files are missing."""
    from gptailor.plan.resolved import Resolved
    from gptailor.report.page.layer_map import layer_map

    if subject.base is not None:
        return layer_map(Resolved(subject.plan, subject.base.layers))
    known = layers is not None
    if layers is None:
        layers, known = options.known_layer_count(subject.plan, {})
    section = layer_map(Resolved(subject.plan, layers))
    if known or subject.plan.stack is not None:
        return section
    return replace(section, words=f"{section.words} {_ONLY_NAMED}")


_ONLY_NAMED = (
    "The base can't be read here, so that it may have more layers than those that the plan names."
)


# ---------------------------------------------------------------------------------- a search's RUN

_RUN_FILES = ("run.json", "summary.json", "study.journal")


def _is_run(target: str) -> bool:
    if "://" in target:
        return True
    path = Path(target)
    return path.is_dir() and any((path / name).exists() for name in _RUN_FILES)


def _of_run(
    target: str,
    models: _Models,
    families: tuple[Path, ...],
    speech: "Speech | None",
    stored: _Stored,
) -> _Page:
    from gptailor.build.lock import SUFFIX, parse_lock
    from gptailor.cli import report_sections as of
    from gptailor.lang.parse import read_bytes
    from gptailor.report.page.scores_section import scores_sections
    from gptailor.report.summary import SearchSummary
    from gptailor.search.run_files import RunFiles

    files = RunFiles(target)
    summary = files.record(SearchSummary, "summary.json")
    best = files.read("best.tailor")
    subject = None
    if best is not None:
        file = files.path / "best.tailor"
        plan, faults = read_bytes(best, str(file), files.path)
        if plan is None or errors(faults):
            raise PlanError(faults)
        plan = plan.with_families(families) if families else plan
        subject = of.subject("best.tailor", plan, best.decode(), models)
    sections = [] if summary is None else scores_sections(summary)
    report, tried = _tried(target, stored)
    if subject is not None:
        name = f"best.tailor{SUFFIX}"
        lock = files.read(name)
        held = None if lock is None else parse_lock(lock, files.path / name)
        again = [of.compile_command_of(f"{target}/best.tailor", models, locked=held is not None)]
        again = again if files.storage is None else []
        of_plan = _plan_sections(subject, speech, held, again, report)
        at = next(i for i, section in enumerate(of_plan) if section.anchor == "plan")
        tried = [*of_plan[:at], *tried, *of_plan[at:]]
    sections += tried
    record = report.record if summary is None and report is not None else summary
    title = f"Search of {target if record is None else record.plan}"
    return _Page(title, _lead_of_run(summary), sections)


def _tried(target: str, stored: _Stored) -> "tuple[RunReport | None, list[Section]]":
    """Return the report of RUN, and charts of all trials or the reason why they are missing."""
    from gptailor.report.page.run_sections import run_sections
    from gptailor.report.page.section import Section

    try:
        from gptailor.search.run_report import run_report  # imports Optuna

        report = run_report(target, storage=stored.storage, study=stored.study)
        return report, run_sections(report)
    except ImportError as error:
        missing = missing_package(error) if isinstance(error, ModuleNotFoundError) else None
        why = str(missing or error)
    except CheckpointError as error:
        if stored.storage is not None:
            raise
        why = "; ".join(filter(None, (f"{error.path} {error.message}", error.help)))
    return None, [Section("trials", "Every trial", f"The trials aren't shown: {why}.")]


def _lead_of_run(summary: "SearchSummary | None") -> str:
    from gptailor.report.search_text import ended_words, verdict_words

    if summary is None:
        return "The search has no summary: it was ended before it wrote one."
    return f"<strong>{escape(verdict_words(summary))}</strong> {escape(ended_words(summary))}."
