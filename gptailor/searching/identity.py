"""The record of a search's settings in `run.json`. Another search there is refused."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path

import gptailor
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.folder import CONFIG, tokenizer_files
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.write.digest import KnownDigests
from gptailor.checkpoint.write.tensors import Crew
from gptailor.evaluation.space_trials import Trials
from gptailor.lang.format import format_plan
from gptailor.lang.words import objective_words, statement_words
from gptailor.output.output import plan_seen_from
from gptailor.plan.plan import Objective, Plan, Requirement
from gptailor.plan.registry import OBJECTIVES
from gptailor.prepare import commits_of
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.run.budget import Budget
from gptailor.searching.run.records import Aim, RunRecord, SearchDigests
from gptailor.searching.settings import Resources, Settings
from gptailor.searching.space.space import Space

_WORDS = {
    "space": "the plan has other choices, or its base has other layers",
    "models": "the files of {} differ",
    "data": "the text in {} differs",
    "objectives": "its objectives were {}",
    "samples": "its samples, from cheapest to full, were {}",
    "seed": "its seed was {}",
    "strategy": "its strategy was {}",
    "packages": "its packages were {}",
    "bridge": "it bridged {}",
    "race": "its races were {}",
    "dtype": "its models computed in {}",
    "limits": "it required {}",
    "starts": "its starting plans were chosen by the rules of version {}",
}
"""The message for each entry of an identity that differs."""


_STARTING_PLANS = 6
"""The version of the rules that choose starting plans; their trials are paired with them by place.
"""


_ASKED = (
    "trials", "seed", "strategy", "bridge", "heals", "finalists", "race", "packages",
)  # fmt: skip
"""The settings that a record has as they are."""


def _aims(trials: Trials, objectives: Sequence[Objective]) -> tuple[Aim, ...]:
    """Return a search's objectives with their units, and short labels that tell them apart."""
    names = [objective.name for objective in objectives]
    aims = []
    for (name, direction, scale), objective in zip(trials.objectives, objectives, strict=True):
        text = str(objective.arguments.get("file") or "")
        label = objective.name
        if names.count(objective.name) > 1:
            source = text or str(objective.arguments.get("task") or "")
            label = f"{objective.name} {Path(source).stem}".strip()
        spec = OBJECTIVES[objective.name]
        shown, label, text = map(escaped_control, (name, label, text))
        unit = spec.byte_unit or spec.unit if trials.by_byte else spec.unit
        fields = (shown, direction, scale, label, unit, spec.by != "samples", text)
        aims.append(Aim(*fields))  # type: ignore[arg-type] # as literals
    labels = [aim.label for aim in aims]
    return tuple(a._replace(label=a.name) if labels.count(a.label) > 1 else a for a in aims)


def record_of(  # noqa: PLR0913, PLR0917 (all that a search's trials depend on)
    plan: Plan,
    space: Space,
    models: Mapping[str, Opened],
    trials: Trials,
    chosen: Settings,
    where: Resources,
    place: Path | None,
) -> RunRecord:
    """Return the record of a search: its settings, its open plan, and digests of its inputs.

    Paths in the plan are seen from `place`, or absolute.
    """
    budget = Budget.of(chosen, trials.full)
    objectives = tuple(escaped_control(objective_words(each)) for each in chosen.objectives)
    moved = plan_seen_from(plan, models, commits_of(plan, models), place)
    return RunRecord(
        version=gptailor.__version__,
        plan=escaped_control(plan.origin.source.name if plan.origin else "<plan>"),
        **{name: getattr(chosen, name) for name in _ASKED},
        objectives=objectives,
        fidelity=None if chosen.fidelity is None else "{}..{}".format(*chosen.fidelity),
        prefer=None if chosen.prefer is None else objectives[chosen.prefer],
        requires=_requirements(chosen.requires),
        **{name: getattr(where, name) for name in ("device", "dtype")},
        layers=models["base"].layout.count,
        tied=tuple(sorted(name for name, model in models.items() if model.layout.tied)),
        low=budget.low,
        full=budget.full,
        limits=_requirements(r for r in chosen.requires if OBJECTIVES[r.name].by == "headers"),
        aims=_aims(trials, chosen.objectives),
        space=format_plan(moved.model_copy(update={"search": None})),
        digests=_digests(space, {**models, **trials.reference_models}, trials.files),
        starts=_STARTING_PLANS,
    )


def _requirements(requires: Iterable[Requirement]) -> tuple[str, ...]:
    return tuple(escaped_control(statement_words([each])) for each in requires)


def _digests(space: Space, models: Mapping[str, Opened], texts: Iterable[Path]) -> SearchDigests:
    """Return the digests of a space, models and texts.

    A model has one digest, of its weights, its configuration and its tokenizer; a text has its
    own, by its name, with a prime for each text before it of an equal name.
    """
    files = {name: list(_files(opened)) for name, opened in models.items()}
    texts = list(dict.fromkeys(texts))
    read = dict.fromkeys([*chain.from_iterable(files.values()), *texts])
    digests = _file_digests(read)
    of_models = {n: "\n".join(dict.fromkeys(digests[f] for f in its)) for n, its in files.items()}
    of_texts: dict[str, str] = {}
    for text in texts:
        name = text.name
        while name in of_texts:
            name += "'"
        of_texts[name] = digests[text]
    return SearchDigests(
        space=space.digest,
        models={name: sha256(text.encode()).hexdigest() for name, text in of_models.items()},
        data=of_texts,
    )


def refuse_other(before: RunRecord | None, record: RunRecord, place: Path) -> None:
    """Raise CheckpointError C902 where RUN has the record of another search, or of more trials."""
    if before is None:
        return
    was, now = _identity(before), _identity(record)
    messages = [
        _difference(was[name], now[name], words)
        for name, words in _WORDS.items()
        if was[name] != now[name]
    ]
    if before.trials > record.trials:
        messages.append(f"it began with {before.trials} trials, now fewer")
    if messages:
        message = f"contains another search: {'; '.join(messages)}"
        help_ = "restore its first arguments, or name another folder"
        raise CheckpointError("C902", message, place, help_)


def _identity(record: RunRecord) -> dict[str, Mapping[str, str] | tuple[object, ...]]:
    """Return all that a search's trials depend on. A difference makes another search."""
    return {
        "models": record.digests.models,
        "data": record.digests.data,
        "space": (record.digests.space,),
        "objectives": record.objectives,
        "samples": (f"{record.low}..{record.full}",),
        "seed": (record.seed,),
        "strategy": (record.strategy,),
        "packages": record.packages or ("gptailor alone",),
        "bridge": (record.bridge or "nothing",),
        "race": ("on" if record.race else "off",),
        "dtype": (record.dtype or "their own dtypes",),
        "limits": record.limits or ("no size",),
        "starts": (record.starts,),
    }


def _difference(
    before: Mapping[str, str] | tuple[object, ...],
    now: Mapping[str, str] | tuple[object, ...],
    words: str,
) -> str:
    """Return `words` with the names that differ, or the items of each list that the other lacks."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted(before.keys() | now.keys())
        which = [quoted(key) for key in keys if before.get(key) != now.get(key)]
        return words.format(", ".join(which))
    old = ", ".join(quoted(str(item), whole=True) for item in before if item not in now)
    new = ", ".join(quoted(str(item), whole=True) for item in now if item not in before)
    if old and new:
        return words.format(f"{old}, now {new}")
    if old:
        return words.format(f"{old} too")
    return words.format(f"without {new}" if new else "in another order")


def _file_digests(files: Collection[Path]) -> dict[Path, str]:
    """Return the sha256 of files, read by several threads. Raises C201 for one that can't be read.

    Files that didn't change since an earlier command aren't read again.
    """
    known, crew, found = KnownDigests(), Crew(), dict[Path, str]()
    go_on = crew.exclusive(lambda _: None)

    def read(file: Path) -> None:
        found[file] = known.of(file, go_on).sha256

    crew.do([partial(read, file) for file in files])
    known.keep()
    return {file: found[file] for file in files}


def _files(opened: Opened) -> Iterable[Path]:
    for file in opened.checkpoint.files:
        yield file
        for beside in (CONFIG, ADAPTER_CONFIG):
            if file.with_name(beside).exists():
                yield file.with_name(beside)
    yield from tokenizer_files(opened.checkpoint)
