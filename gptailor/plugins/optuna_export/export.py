"""A search's trials as an Optuna study, for its dashboard and its plots: `exporter`."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.write.output_file import write_whole
from gptailor.reporting.measure import finite_or_none
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run.trials import Trial
from gptailor.searching.run_reading import read_run
from gptailor.searching.space.genome import Gene, Pick, Real, genome_to_json
from gptailor.searching.space.space import Space
from gptailor.searching.space.table import active

NAME = "gptailor"
"""The name of an exported study."""
_BEGIN = b'{"op_code"'
"""The first bytes of Optuna's journals."""


def exporter(file: Path) -> Callable[[str | Path], None]:
    """Return a function that writes the trials of a RUN into `file`, an Optuna study's journal.

    An earlier export is replaced. Raises CheckpointError C301 for a file of something else.
    """
    if file.is_dir() or (file.exists() and file.read_bytes()[: len(_BEGIN)] != _BEGIN):
        message = "expected a new file or an exported study, got another file"
        raise CheckpointError("C301", message, file, "name another file")
    return partial(_export, file)


def _export(file: Path, run: str | Path) -> None:
    """Write the study. Raises CheckpointError: C903 for a RUN without a search, C303 for a disk."""
    reading = read_run(run)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        place = Path(folder) / "study.journal"
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(place))),
            study_name=NAME,
            directions=[aim.direction for aim in reading.record.aims],
        )
        study.set_metric_names([aim.name for aim in reading.record.aims])
        study.add_trials([_frozen(trial, reading.space) for trial in reading.ledger.trials])
        write_whole(file, place.read_bytes(), file)


def _frozen(trial: Trial, space: Space) -> FrozenTrial:
    """Return Optuna's trial: pruned below full fidelity, failed without values."""
    now = datetime.now().astimezone()
    state = TrialState.COMPLETE if trial.full else TrialState.PRUNED
    values = trial.values or ()
    genes = [*_genes(trial, space)]
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.FAIL if trial.values is None else state,
        value=None,
        values=trial.values if trial.full else None,
        datetime_start=now - timedelta(seconds=trial.seconds),
        datetime_complete=now,
        params={name: value for name, value, _ in genes},
        distributions={name: kind for name, _, kind in genes},
        user_attrs=_attributes(trial),
        system_attrs={},
        intermediate_values={trial.samples: values[0]} if len(values) == 1 else {},
    )


def _genes(trial: Trial, space: Space) -> Iterator[tuple[str, Any, BaseDistribution]]:
    """Yield the genes that count in a trial's plan, with their values in the plan's own terms."""
    genome = trial.request.genome
    kinds: tuple[tuple[Gene, ...], ...] = (space.bits, space.picks, space.reals)
    for genes, values, counts in zip(kinds, genome, active(space.table, genome), strict=True):
        for gene, value, counting in zip(genes, values, counts, strict=True):
            if not counting:
                continue
            match gene:
                case Real(low=low, high=high, log=log):
                    yield gene.name, gene.value(float(value)), FloatDistribution(low, high, log=log)
                case Pick(labels=labels):
                    yield gene.name, labels[int(value)], CategoricalDistribution(labels)
                case _:
                    yield gene.name, bool(value), CategoricalDistribution((False, True))


def _attributes(trial: Trial) -> dict[str, Any]:
    request = trial.request
    attributes = {
        "phase": request.phase,
        "ask": request.ask,
        "slot": request.slot,
        "origin": origin_words(request.origin),
        "samples": request.samples,
        "share": trial.share,
        "stage": request.stage,
        "plan": trial.plan,
        "genome": genome_to_json(request.genome),
        "seconds": trial.seconds,
        "values": trial.values,
        "stderrs": trial.stderrs and [finite_or_none(error) for error in trial.stderrs],
        "failure": None if trial.failure is None else str(trial.failure),
        "same_as": trial.same_as,
        "stopped": trial.stopped,
    }
    return {name: value for name, value in attributes.items() if value is not None}
