"""The sections of a report about one plan: map, sizes, answers, text, lock and command."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, final

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import rebind
from gptailor.evaluation.targets import base_of
from gptailor.lang.words import bounded_words
from gptailor.output.lock import Lock
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import PlanError, TailorError
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Plan
from gptailor.plugins.report.page import text_html
from gptailor.plugins.report.section import Section, ShownTable
from gptailor.prepare import Prepared, prepare
from gptailor.reporting.known_layers import left_open
from gptailor.reporting.quantities import bytes_in_words, percent

if TYPE_CHECKING:
    from gptailor.searching.run_reading import RunReading


@final
class Reported(NamedTuple):
    """The subject of a report: a plan, its name and its text.

    `prepared` is its output, from headers: the plan's output, or the folder that was compiled from
    the plan. `why` is the reason for a missing output. `base` is the base alone, if it is
    available.
    """

    name: str
    plan: Plan
    text: str
    prepared: Prepared | None
    why: str
    base: Prepared | None


@final
class Speech(NamedTuple):
    """A prompt, the maximum number of tokens of an answer, and a receiver of the progress."""

    prompt: str
    tokens: int
    on_event: OnEvent = ignore_events


def subject(
    name: str, plan: Plan, text: str, models: Mapping[str, Path], folder: Plan | None = None
) -> Reported:
    """Return the plan with its available facts. `folder` is its output as a plan by itself.

    Raises PlanError for models of unknown names.
    """
    plan, faults = rebind(plan, dict(models))
    if faults:
        raise PlanError(faults)
    base, _ = _prepared(base_of(plan))
    if still := left_open(plan, {}):
        why = f"the plan leaves {still}"
        return Reported(name, plan, text, None, why, base)
    prepared, why = _prepared(plan if folder is None else folder)
    return Reported(name, plan, text, prepared, why, base)


def _prepared(plan: Plan) -> tuple[Prepared | None, str]:
    try:
        return prepare(plan), ""
    except (PlanError, CheckpointError) as error:
        return None, first_line(error)


def first_line(error: TailorError | OSError) -> str:
    """Return an error's message in one line, without its code and place."""
    if isinstance(error, PlanError) and error.faults:
        return error.faults[0].message
    if isinstance(error, CheckpointError):
        return f"{error.message} ({error.path})"
    return str(error).partition("\n")[0]


# ------------------------------------------------------------------------------------------- sizes


def sizes_section(subject: Reported, run: "RunReading | None" = None) -> Section:
    """Return the section of layers, parameters, bytes and KV cache, with the base's counts.

    If models are missing, the sizes are the sizes that the search wrote.
    """
    if subject.prepared is None:
        counts: _Counts = {} if run is None else _written(run)
        if run is None or not counts:
            return Section("size", _SIZE, f"Nothing is known of its size: {subject.why}.")
        written = run.notes.sizes
        base: _Counts = {"layers": run.record.layers, **_counts(written and written.base)}
        return _size_section(counts, base, f"As the search wrote it down; here {subject.why}.")
    base = _counts(None if subject.base is None else subject.base.output_size)
    words = "From the models' headers; no weights are read."
    return _size_section(_counts(subject.prepared.output_size), base, words)


_SIZE = "Size"


_Counts: TypeAlias = Mapping[str, int | None]
"""The known counts of an output's size, by their names."""


def _counts(size: OutputSize | None) -> _Counts:
    return {} if size is None else size._asdict()


def _written(run: "RunReading") -> _Counts:
    verdict = None if run.notes.result is None else run.verdict
    return {} if verdict is None else _counts(run.size(verdict.best))


def _size_section(counts: _Counts, base: _Counts, words: str) -> Section:
    shown: dict[str, Callable[[int], str]] = {
        **dict.fromkeys(("layers", "parameters"), "{:,}".format),
        **dict.fromkeys(("bytes", "kv_cache"), bytes_in_words),
    }
    rows = []
    for name, show in shown.items():
        own, base_count = counts.get(name), base.get(name)
        share = percent(own / base_count) if own is not None and base_count else ""
        cells = ("unknown" if count is None else show(count) for count in (base_count, own))
        rows.append((_SIZE_WORDS[name], *cells, share))
    table = ShownTable(("", "base", "this model", "of the base's"), tuple(rows))
    return Section("size", _SIZE, words, table=table)


_SIZE_WORDS = {"layers": "layers", "parameters": "parameters", "bytes": "weights",
               "kv_cache": "KV cache of a token"}  # fmt: skip


def sizes_in_words(subject: Reported) -> str:
    """Return `26 layers, 120,354,048 parameters, 240.7 MB`, or the reason for a missing size."""
    if subject.prepared is None:
        return subject.why
    size = subject.prepared.output_size
    return f"{size.layers} layers, {size.parameters:,} parameters, {bytes_in_words(size.bytes)}"


# ----------------------------------------------------------------------------------- continuations


def continuations(subject: Reported, speech: Speech | None) -> Section:
    """Return the answers of the base and the model to a prompt, by their likeliest tokens."""
    title = "Continuations"
    if speech is None:
        return Section("says", title, "This report was made without a prompt.")
    if subject.prepared is None:
        return Section("says", title, f"No continuations: {subject.why}.")
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        return Section("says", title, f"No continuations without {' and '.join(missing)}.")
    rows, failed = _spoken(subject, speech)
    if not rows:
        return Section("says", title, f"No continuations: {failed}.")
    words = f"At most {speech.tokens} tokens, the likeliest one at each step."
    words += " The base is missing." * (subject.base is None)
    quotes = "\n".join(
        f'<h3>{escape(name)}</h3>\n<blockquote><span class="prompt">{escape(speech.prompt)}</span>'
        f"{escape(text)}</blockquote>"
        for name, text in rows
    )
    return Section("says", title, words, html=quotes)


def _spoken(subject: Reported, speech: Speech) -> tuple[list[tuple[str, str]], str]:
    """Return names and texts, or the reason why they are missing."""
    from gptailor.evaluation.generate import answers  # imports torch
    from gptailor.evaluation.meter import Meter, Placement
    from gptailor.evaluation.targets import find_targets

    prepared, base = subject.prepared, subject.base
    assert prepared is not None
    plans = {} if base is None or base.plan == prepared.plan else {"base": base.plan}
    plans["this model"] = prepared.plan
    try:
        targets = find_targets(list(plans.values()), {})
        found = answers(targets, speech.prompt, speech.tokens, Meter(Placement(), speech.on_event))
        rows = [
            (name, answer.text if answer.failure is None else f" (failed: {answer.failure})")
            for name, answer in zip(plans, found, strict=True)
        ]
    except (TailorError, OSError) as error:
        return [], first_line(error)
    return rows, ""


# ------------------------------------------------------------------------- text, lock and commands


def text_section(subject: Reported) -> Section:
    """Return the section with the plan's text."""
    return Section("plan", "Plan", "", html=text_html(subject.text, f"The plan {subject.name}"))


def expectation_sections(subject: Reported) -> Iterator[Section]:
    """Yield the section of a plan's expectations, if it states any."""
    if subject.plan.expects:
        rows = tuple((bounded_words(entry),) for entry in subject.plan.expects)
        words = f"'gptailor test {subject.name}' evaluates them."
        table = ShownTable(("expectation",), rows)
        yield Section("expectations", "Expectations", words, table=table, open=True)


def lock_sections(lock: Lock | None, why: str) -> Iterator[Section]:
    """Yield the digests of the files read and of the output's tensors, from the lock."""
    title = "Lock"
    if lock is None:
        yield Section("lock", title, why)
        return
    files = [
        (f"{name}: {file}", f"{digest.size:,} bytes", digest.sha256)
        for name, model in lock.models.items()
        for file, digest in model.files.items()
    ]
    files += [
        (f"text of {name}", f"{text.file.size:,} bytes", text.file.sha256)
        for name, text in lock.texts.items()
    ]
    words = (
        f"Digests (SHA-256) of the {len(files)} files that the model was made from; 'gptailor"
        " compile --locked' refuses other files."
    )
    files.append(("the plan", "", lock.plan))
    files.append(("config.json of the output", "", lock.config))
    yield Section("lock", title, words, table=ShownTable(("file", "size", "SHA-256"), tuple(files)))
    tensors = tuple(
        (name, f"{tensor.dtype} {'×'.join(map(str, tensor.shape))}", tensor.sha256)
        for name, tensor in lock.tensors.items()
    )
    yield Section(
        "tensors", "Tensors", "Digests of the output's tensors, from the lock.",
        table=ShownTable(("tensor", "dtype and shape", "SHA-256"), tensors),
    )  # fmt: skip


def commands(lines: Sequence[str]) -> Section:
    """Return the section of commands that make the output again."""
    text = "\n".join(lines)
    return Section("again", "Commands", "", html=text_html(text, "The commands"))


def compile_command_of(file: str, models: Mapping[str, Path], *, locked: bool) -> str:
    """Return a plan's command, `gptailor compile cut.tailor -o DIR --locked`."""
    model_flags = [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    return shlex.join(
        ["gptailor", "compile", file, "-o", "DIR", *model_flags, *["--locked"] * locked]
    )
