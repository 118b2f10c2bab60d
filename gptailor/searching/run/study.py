"""All trials of a search on disk, as Optuna has them: `Study`. Failures are texts there."""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from gptailor.checkpoint.files import CheckpointError, quoted, reason
from gptailor.checkpoint.records import fault_of
from gptailor.evaluation.scores import Failure
from gptailor.searching.run import trials as records
from gptailor.searching.run.journal import (
    RESTORE,
    JournalLine,
    JournalLines,
    damaged,
    first_damaged,
    first_trial,
    journal_lines,
    with_beginning,
)
from gptailor.searching.run.notes import BASE_SCORES, HeldScoresNote, StudyNotes, TrialNote
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.records import Aim
from gptailor.searching.run.scores import per_sample_to_json
from gptailor.searching.space.genome import Active, Gene, Genome, Pick, Real
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import active


@final
class Naming:
    """Names of a space's active genes, as a function of genomes."""

    def __init__(self, space: Space) -> None:
        self._genes: tuple[tuple[Gene, ...], ...] = (space.bits, space.picks, space.reals)
        self._table = space.table
        self._distributions = {gene.name: _distribution(gene) for of in self._genes for gene in of}

    def __call__(self, genome: Genome) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """Return the values of active genes in the plan's own terms, and their distributions."""
        counts: Active = active(self._table, genome)
        values = {
            gene.name: _value(gene, genes[i])
            for of, genes, says in zip(self._genes, genome, counts, strict=True)
            for i, gene in enumerate(of)
            if says[i]
        }
        return values, {name: self._distributions[name] for name in values}


def _distribution(gene: Gene) -> BaseDistribution:
    if isinstance(gene, Real):
        return FloatDistribution(gene.low, gene.high, log=gene.log)
    return CategoricalDistribution(gene.labels if isinstance(gene, Pick) else (False, True))


def _value(gene: Gene, gene_value: Any) -> bool | str | float:
    if isinstance(gene, Real):
        return gene.value(float(gene_value))
    return gene.labels[int(gene_value)] if isinstance(gene, Pick) else bool(gene_value)


_Direction = Literal["minimize", "maximize"]

Parameters = Callable[[Genome], tuple[dict[str, Any], dict[str, BaseDistribution]]]
"""Returns the names and values of a genome's active genes, and their distributions."""


@final
class Study:
    """Told trials, in their order, and notes about the whole.

    Messages name its `place`: a file, or a storage's URL. `notes` are JSON, `typed` are the notes
    that have a meaning. `first_trial` is the number of the first line of its journal with a trial.
    """

    def __init__(
        self,
        study: optuna.Study,
        place: Path,
        parameters: Parameters,
        lines: Sequence[JournalLine] = (),
    ) -> None:
        self.place = place
        self.first_trial = first_trial(lines)
        self._study = study
        self._parameters = parameters
        self._typed: StudyNotes | None = None
        with self._reading():
            self._count = len(study.get_trials(deepcopy=False))
            self.notes: dict[str, Any] = dict(study.user_attrs)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # storages of many makers raise errors of many kinds
            raise self.error(f"holds no study of a search: {_error_text(error)}") from error

    @property
    def typed(self) -> StudyNotes:
        """Return the notes that have a meaning. Raises CheckpointError C903 for damaged ones."""
        if self._typed is None:
            try:
                self._typed = StudyNotes.model_validate(self.notes)
            except ValidationError as error:
                raise self.error(f"has a damaged note: {fault_of(error)}") from None
        return self._typed

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            message = f"cannot be written: {_error_text(error)}"
            help_ = "all trials before are kept, and the same command goes on"
            raise CheckpointError("C303", message, self.place, help_) from error

    def error(self, message: str, help: str = RESTORE) -> CheckpointError:
        """Return an error about the study."""
        return CheckpointError("C903", message, self.place, help)

    def trials(self) -> list[records.Trial]:
        """Return all told trials, in order."""
        with self._reading():
            frozen = self._study.get_trials(deepcopy=False)
        trials = [self._trial(trial) for trial in frozen]
        keys = [trial.request.key for trial in trials]
        if len(set(keys)) < len(keys):
            raise self.error("holds an evaluation twice; did two searches write into it?")
        return trials

    def add(self, trial: records.Trial) -> None:
        """Write down the next trial. Raises C303."""
        assert trial.number == self._count, "trials are told in order"
        with self._writing():
            self._study.add_trial(_frozen(trial, *self._parameters(trial.request.genome)))
        self._count += 1

    def note(self, name: str, value: Any) -> None:
        """Write down something about the whole, as JSON. Raises C303."""
        with self._writing():
            self._study.set_user_attr(name, value)
        self.notes[name] = value
        self._typed = None

    def note_base(self, samples: int, values: Sequence[float], stderrs: Sequence[float]) -> None:
        """Write down the uncut base's scores on so many samples. Raises C303."""
        note = {"values": list(values), "stderrs": records.json_numbers(stderrs)}
        self.note(f"{BASE_SCORES} {samples}", note)

    def recall(self, ledger: records.Ledger) -> None:
        """Put all told trials into a ledger, and the scores that values are measured by.

        Raises CheckpointError C903 for scores that aren't by the ledger's objectives.
        """
        count = len(ledger.aims)
        for samples, note in self.typed.bases.items():
            self._refuse_unlike(f"the base on {samples} samples", note.values, count)
            for aim, value in zip(ledger.aims, note.values, strict=True):
                if aim.scale == "base" and value <= 0:
                    raise self.error(f"has {value:g} as the base's score by {aim.name}: {_ABOVE}")
            ledger.references[samples] = tuple(map(float, note.values))
        for key, held in self.typed.held_out.items():
            if isinstance(held, HeldScoresNote):
                self._refuse_unlike(f"held-out scores of {quoted(key)}", held.values, count)
        for trial in self.trials():
            name = f"trial {trial.number}"
            self._refuse_unlike(name, trial.values, count)
            if trial.values is not None and trial.samples not in ledger.references:
                raise self.error(f"has {name} on {trial.samples} samples, and no score of the base")
            if trial.request.samples > ledger.full:
                raise self.error(f"has {name} on more samples than the search's {ledger.full}")
            ledger.add(trial)

    def _refuse_unlike(self, name: str, values: Sequence[float] | None, count: int) -> None:
        if values is not None and len(values) != count:
            raise self.error(f"has {len(values)} scores of {name}, expected {count}")

    def _trial(self, frozen: FrozenTrial) -> records.Trial:
        """Return the trial that was written. Raises CheckpointError C903 for a damaged one."""
        number = frozen.number
        try:
            note = TrialNote.model_validate(frozen.user_attrs)
        except ValidationError as error:
            raise self.error(f"has a damaged trial {number}: {fault_of(error)}") from None
        if note.asked_after > number or (note.same_as is not None and note.same_as >= number):
            raise self.error(f"has trial {number} before the trials that it follows")
        stderrs = note.stderrs
        return records.Trial(
            number=number,
            request=records.TrialRequest(
                genome=records.genome_from_json(note.genome.model_dump()),
                **{name: getattr(note, name) for name in _REQUEST},
                stage=note.stage,
            ),
            plan=note.plan,
            share=float(note.share),
            values=None if note.values is None else tuple(map(float, note.values)),
            stderrs=None if stderrs is None else tuple(map(_infinite, stderrs)),
            failure=_failure(note.failure),
            seconds=float(note.seconds),
            same_as=note.same_as,
            per_sample=note.per_sample,
            stopped=note.stopped,
        )

    @property
    def empty(self) -> bool:
        """Return whether nothing was told yet."""
        return self._count == 0


_ABOVE = "expected a number above 0, by which others are measured"


def _infinite(stderr: float | None) -> float:
    return math.inf if stderr is None else float(stderr)


def open_study(
    storage: Path | str | BaseJournalBackend,
    name: str,
    aims: Sequence[Aim],
    parameters: Parameters,
    *,
    begun: bool = False,
) -> Study:
    """Return the study of that name in a journal, or in a storage by its URL; begin a new one.

    The caller must hold the lock of a file's folder. Raises CheckpointError: C903 for anything but
    a study of such aims and for a missing study of a search that has `begun`, C303 for a failed
    write.
    """
    place = Path(storage) if isinstance(storage, Path | str) else Path(getattr(storage, "url", "."))
    directions: list[_Direction] = [aim.direction for aim in aims]
    lines: list[JournalLine] = []
    try:
        lines = _lines(storage)
        with quiet():
            study = _loaded(_storage(storage), name, directions, place if begun else None)
            stored = [direction.name.lower() for direction in study.directions]
            names = study.metric_names or []
            if len(names) != len(stored):
                names = [f"objective {n}" for n in range(1, len(stored) + 1)]
            if stored == directions and study.metric_names is None:
                study.set_metric_names([aim.name for aim in aims])
        opened = Study(study, place, parameters, lines)
        read_whole(opened)
    except OSError as error:
        raise CheckpointError("C303", f"cannot be written: {_error_text(error)}", place) from error
    except Exception as error:
        raise refusal(error, lines, name, place) from error
    if stored != directions:
        before = [f"{how} {what}" for how, what in zip(stored, names, strict=True)]
        now = [f"{aim.direction} {aim.name}" for aim in aims]
        raise another_search(f"its objectives were {_difference_of_lists(before, now)}", place)
    return opened


def read_study(storage: BaseStorage, name: str, place: Path) -> Study:
    """Return the study of that name, read completely; nothing is written into it."""
    study = Study(optuna.load_study(storage=storage, study_name=name), place, _nothing)
    read_whole(study)
    return study


def read_whole(study: Study) -> None:
    """Read all of a study. Raises CheckpointError C903 for damage."""
    _ = study.typed
    study.trials()


def refusal(
    error: Exception, lines: Sequence[JournalLine], name: str, place: Path
) -> CheckpointError:
    """Return the refusal of a study that can't be read, by the line of its journal if it has one.

    The line is the last one of the fewest lines that can't be read either.
    """
    message = f"holds no study: {_error_text(error)}"
    if isinstance(error, CheckpointError):
        message = error.message
        if error.code != "C903" or not lines:
            return error

    def refused(first: Sequence[JournalLine]) -> bool:
        try:
            with quiet():
                storage = JournalStorage(JournalLines(first))
                with suppress(KeyError):  # no line begins the study yet
                    read_study(storage, name, place)
        except Exception:  # noqa: BLE001 (whatever Optuna raises of such lines)
            return True
        return False

    if lines and refused(lines):
        return damaged(first_damaged(lines, refused), message, place)
    return CheckpointError("C903", message, place, RESTORE)


def _nothing(genome: Genome) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    return {}, {}


def _lines(storage: Path | str | BaseJournalBackend) -> list[JournalLine]:
    """Return the lines of a journal; none of another storage."""
    if isinstance(storage, Path):
        return with_beginning(journal_lines(mend(storage), storage), storage)
    if isinstance(storage, str):
        return []
    return with_beginning(list(storage.read_logs(0)), Path(getattr(storage, "url", ".")))


def _loaded(
    storage: BaseStorage | str, name: str, directions: list[_Direction], begun: Path | None
) -> optuna.Study:
    """Return the study, begun if missing: Optuna would write a line into the journal each time.

    Raises CheckpointError C903 for a missing study that has `begun` at that place.
    """
    with suppress(KeyError):
        return optuna.load_study(storage=storage, study_name=name)
    if begun is not None:
        message = f"holds no study {quoted(name)}, but 'run.json' has the settings of its search"
        raise CheckpointError("C903", message, begun, RESTORE)
    return optuna.create_study(storage=storage, study_name=name, directions=directions)


def _storage(storage: Path | str | BaseJournalBackend) -> BaseStorage | str:
    if isinstance(storage, str):
        return storage
    if isinstance(storage, BaseJournalBackend):
        return JournalStorage(storage)
    return JournalStorage(JournalFileBackend(os.path.abspath(storage)))  # noqa: PTH100 (links stay)


def mend(journal: Path) -> bytes:
    """Remove the leftovers of a dead process: the torn end of a line, the lock of a write.

    Return the complete lines. Optuna reads past a torn end, but the next line would then be part of
    it.
    """
    lock = journal.with_name(journal.name + ".lock")
    if lock.is_symlink():
        lock.unlink()
    if not journal.exists():
        return b""
    with journal.open("r+b") as file:
        raw = file.read()
        lines = raw[: raw.rfind(b"\n") + 1]
        file.truncate(len(lines))
    return lines


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna about new studies, and about functions that may change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _error_text(error: Exception) -> str:
    """Return one line about an error; storages of many makers raise errors of many kinds."""
    if isinstance(error, OSError):
        return reason(error)
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, KeyError):
        return f"{text} is missing" if text.isprintable() else "a key is missing"
    return quoted(text) if text else type(error).__name__


# ------------------------------------------------------------------------------ trials and Optuna's


def _frozen(
    trial: records.Trial, params: dict[str, Any], distributions: dict[str, BaseDistribution]
) -> FrozenTrial:
    """Return Optuna's trial: pruned below full fidelity, failed without values."""
    now = datetime.now().astimezone()
    state = TrialState.COMPLETE if trial.full else TrialState.PRUNED
    values = trial.values or ()
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.FAIL if trial.values is None else state,
        value=None,
        values=trial.values if trial.full else None,
        datetime_start=now - timedelta(seconds=trial.seconds),
        datetime_complete=now,
        params=params,
        distributions=distributions,
        user_attrs=_attributes(trial),
        system_attrs={},
        intermediate_values={trial.samples: values[0]} if len(values) == 1 else {},
    )


_REQUEST = ("phase", "ask", "slot", "origin", "asked_after", "samples")


def _attributes(trial: records.Trial) -> dict[str, Any]:
    request = trial.request
    attributes = {name: getattr(request, name) for name in _REQUEST}
    attributes |= {
        "origin": request.origin.model_dump(mode="json"),
        "origin_words": origin_words(request.origin),
        "share": trial.share,
        "stage": request.stage,
        "plan": trial.plan,
        "genome": records.genome_to_json(request.genome),
        "seconds": round(trial.seconds, 3),
    }
    if trial.values is not None and trial.stderrs is not None:
        attributes |= {"values": list(trial.values), "stderrs": records.json_numbers(trial.stderrs)}
    if trial.per_sample:
        attributes["per_sample"] = per_sample_to_json(trial.per_sample)
    if trial.failure is not None:
        attributes["failure"] = str(trial.failure)
    if trial.same_as is not None:
        attributes["same_as"] = trial.same_as
    if trial.stopped is not None:
        attributes["stopped"] = trial.stopped
    return attributes


def _failure(text: str | None) -> Failure | None:
    """Return the failure with a text."""
    for reason_ in ("memory", "nan", "error"):
        if text is not None and text.startswith(f"{reason_}: "):
            return Failure(reason_, text.removeprefix(f"{reason_}: "))
    return None if text is None else Failure("search", text)


# ----------------------------------------------------------------------------- a study's identity


def agree(
    study: Study, identity: Mapping[str, Any], words: Mapping[str, str], version: str = ""
) -> None:
    """Write down the identity of a search; refuse another search (C902).

    `words` has the message for each entry that differs: `the space is another`. `version` is the
    other version of gptailor that began the search, if one did. Raises CheckpointError C903 for
    trials without an entry of the identity, which is written before them.
    """
    for name, value in identity.items():
        if name not in study.notes:
            if not study.empty:
                raise _lost(study, name, version)
            study.note(name, value)
    differing = [
        _difference(study.notes[name], value, words[name])
        for name, value in identity.items()
        if json.dumps(study.notes[name], sort_keys=True) != json.dumps(value, sort_keys=True)
    ]  # as JSON, where a tuple is a list
    if differing:
        raise another_search("; ".join(differing), study.place)


def _lost(study: Study, name: str, version: str) -> CheckpointError:
    """Return the refusal of a study with trials and without an entry of the search's identity."""
    if version:
        message = f"holds trials of a search without its {name}"
        return study.error(
            message, f"gptailor {quoted(version)} began it: go on with that, or name another RUN"
        )
    if study.first_trial is None:
        return study.error(f"is damaged: it holds trials, and lost the search's {name}")
    line = f"lost a line before line {study.first_trial}"
    return study.error(f"is damaged: the journal {line}: the search's {name}")


def another_search(message: str, place: Path) -> CheckpointError:
    """Return the refusal of a folder or a study of another search."""
    help_ = "give what it was begun with, or another RUN"
    return CheckpointError("C902", f"holds another search: {message}", place, help_)


def _difference(before: Any, now: Any, words: str) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        which = [quoted(key) for key in keys if before.get(key) != now.get(key)]
        return words.format(", ".join(which))
    if isinstance(before, str) and isinstance(now, str) and "; " in before + now:
        return words.format(_difference_of_lists(before.split("; "), now.split("; ")))
    return words.format(f"{_short(before)}, and now {_short(now)}")


def _difference_of_lists(before: Sequence[str], now: Sequence[str]) -> str:
    """Return the items of each list that the other lacks, as far as there are any."""
    old = ", ".join(quoted(item, whole=True) for item in before if item not in now)
    new = ", ".join(quoted(item, whole=True) for item in now if item not in before)
    if old and new:
        return f"{old}, and now {new}"
    if old:
        return f"{old} too"
    return f"without {new}" if new else "in another order"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    long = len(text) > 60 and " " not in text
    return quoted(text[:12]) if long else quoted(text, whole=True)


def refuse_misfit(study: Study, ledger: records.Ledger, space: Space) -> None:
    """Raise CheckpointError C903 for a trial with a genome of another space."""
    for trial in ledger.trials:
        if not fits(space, trial.request.genome):
            raise study.error(f"has trial {trial.number} of another space")


def fits(space: Space, genome: Genome) -> bool:
    """Return whether a genome has a value of the space for each gene."""
    sizes = (len(space.bits), len(space.picks), len(space.reals))
    if tuple(map(len, genome)) != sizes:
        return False
    return all(
        0 <= int(n) < len(pick.options) for n, pick in zip(genome.picks, space.picks, strict=True)
    )
