"""The folder of a search, and its identity: models, texts, settings. Another search is refused."""

import fcntl
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, final

from optuna.storages.journal import BaseJournalBackend

import gptailor
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.folder import CONFIG, tokenizer_files
from gptailor.checkpoint.formats.lora_config import ADAPTER_CONFIG
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.write.digest import KnownDigests
from gptailor.checkpoint.write.output_file import write_whole, writing
from gptailor.checkpoint.write.tensors import Crew
from gptailor.lang.format import format_plan
from gptailor.lang.words import objective_words, requirement_words
from gptailor.output.used_plan import plan_seen_from
from gptailor.plan.plan import Plan
from gptailor.prepare import commits_of
from gptailor.reporting.terminal_encoding import escaped_control
from gptailor.searching.pick import BEST
from gptailor.searching.run.records import Aim, RunRecord
from gptailor.searching.run.schedule import Budget
from gptailor.searching.run.study import another_search
from gptailor.searching.run_files import (
    JOURNAL,
    LOCK,
    SETTINGS,
    SUMMARY,
    EarlierRun,
    file_inside,
    path_inside,
    run_record,
)
from gptailor.searching.settings import Resources, Settings
from gptailor.searching.space.space import Space
from gptailor.searching.storage import Storage, local_or_url, storage_at

IDENTITY_WORDS = {
    "space": "the plan leaves other things open, or its base has other layers",
    "models": "other files of {}",
    "data": "another text in {}",
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


def search_identity(
    folder: "Folder",
    space: Space,
    models: Mapping[str, Opened],
    texts: Iterable[Path],
    chosen: Settings,
    asked: tuple[Budget, Resources],
) -> dict[str, Any]:
    """Return all that a search's trials depend on. A difference makes another search.

    A model has one digest, of its weights, its configuration and its tokenizer; a text has its
    own, by its name, with a prime for each text before it of an equal name.
    """
    files = {name: list(_files(opened)) for name, opened in models.items()}
    texts = list(dict.fromkeys(texts))
    read = dict.fromkeys([*chain.from_iterable(files.values()), *texts])
    digests = file_digests(read)
    of_models = {n: "\n".join(dict.fromkeys(digests[f] for f in its)) for n, its in files.items()}
    of_texts: dict[str, str] = {}
    for text in texts:
        name = text.name
        while name in of_texts:
            name += "'"
        of_texts[name] = digests[text]
    budget, where = asked
    return {
        "space": space.digest,
        "models": {name: sha256(text.encode()).hexdigest() for name, text in of_models.items()},
        "data": of_texts,
        "objectives": "; ".join(map(objective_words, chosen.objectives)),
        "samples": f"{budget.low}..{budget.full}",
        "seed": chosen.seed,
        "strategy": chosen.strategy,
        "packages": "; ".join(chosen.packages) or "gptailor alone",
        "bridge": chosen.bridge or "nothing",
        "race": "on" if chosen.race else "off",
        "dtype": where.dtype or "their own dtypes",
        "limits": "; ".join(map(requirement_words, chosen.limits)) or "no size",
        "starts": _STARTING_PLANS,
    }


_STARTING_PLANS = 4
"""The version of the rules that choose starting plans; their trials are paired with them by place.
"""


def file_digests(files: Collection[Path]) -> dict[Path, str]:
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


START = "start.tailor"
SPACE = "space.tailor"
"""The open plan that is searched, without its `search` block."""
SIZES = "sizes.json"
"""The sizes of the plans that could be handed over, by their digests, and of the base."""
FRONT = "front"
_SIDE = re.compile(r"\..+\.[0-9a-f]{8}")
"""The name of a file while it is written."""
_OURS = frozenset([LOCK, SETTINGS, JOURNAL, f"{JOURNAL}.lock", BEST, f"{BEST}.lock",
                   START, SPACE, SIZES, FRONT, f"{SUMMARY}.json", f"{SUMMARY}.md"])  # fmt: skip


@final
class Folder:
    """A context that holds RUN. Raises CheckpointError: C901 if another process has it.

    A RUN at a URL has its copy in the folder `path` while it is held. Messages call it `shown`.
    """

    def __init__(self, run: str | Path) -> None:
        self.shown = local_or_url(run)
        self._lock: int | None = None
        self._storage: Storage | None = None
        if isinstance(self.shown, str):
            self._storage = storage_at(self.shown)
            self.path = self._storage.copy
        else:
            self.path = self.shown

    @property
    def place(self) -> Path | None:
        """The folder where paths in its plans start; None where they must be absolute."""
        return None if self._storage else self.path

    @property
    def journal(self) -> Path | BaseJournalBackend:
        """The study's journal, for a study without a storage of its own."""
        return self._storage.journal(JOURNAL) if self._storage else self.path / JOURNAL

    def __enter__(self) -> "Folder":
        if self._storage is not None:
            self._storage.refuse_unwritable()
        with writing(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise CheckpointError(
                    "C902", "expected a folder for the search, got a file", self.path
                )
            self.path.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in self.path.iterdir()}
        self._refuse_links(names)
        strange, begun = sorted(names - _OURS), (self.path / SETTINGS).exists()
        if strange and not begun:
            message = f"expected the folder of a search, found {quoted(strange[0])}"
            raise CheckpointError("C902", message, self.path, "name a new folder")
        self._hold()
        for side in (*self.path.glob(".*"), *(self.path / FRONT).glob(".*")):
            if _SIDE.fullmatch(side.name):  # a killed process was writing it
                side.unlink(missing_ok=True)
        if self._storage is not None:
            self._storage.bring(_OURS, self._write)
        return self

    def _refuse_links(self, names: Collection[str]) -> None:
        """Raise CheckpointError C903 for a name that is written and leads out of RUN."""
        for name in sorted(names):
            if name in _OURS - {f"{JOURNAL}.lock"}:
                path_inside(self.path, name)

    def send(self) -> None:
        """Copy the folder into the storage, where RUN is at a URL."""
        if self._storage is not None:
            self._storage.send(_OURS)

    def __exit__(self, *exception: object) -> None:
        if self._lock is None:
            return
        if {path.name for path in self.path.iterdir()} == {LOCK}:  # it never began
            with suppress(OSError):
                (self.path / LOCK).unlink()
                self.path.rmdir()
        os.close(self._lock)
        self._lock = None

    def _hold(self) -> None:
        path = self.path / LOCK
        with writing(path):
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(lock).st_nlink > 0  # else its last holder removed it meanwhile
        except BlockingIOError:
            held = False
        except OSError:  # a file system without locks
            held = True
        if not held:
            os.close(lock)
            message = "another search uses this folder"
            help_ = "wait, or give another -o"
            raise CheckpointError("C901", message, Path(self.shown), help_)
        self._lock = lock

    def put(self, name: str, text: str) -> Path:
        """Write a file whole or not at all, in the place of an old one. Raises C303."""
        raw = text.encode()
        place = self._write(name, raw)
        if self._storage is not None:
            self._storage.put(name, raw)
        return place

    def _write(self, name: str, raw: bytes) -> Path:
        place = path_inside(self.path, name)
        with writing(place):
            place.parent.mkdir(exist_ok=True)
        write_whole(place, raw, place)
        return place

    def put_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write JSON into a file, as `put` does."""
        self.put(name, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")

    def get_text(self, name: str) -> str | None:
        """Return the text in a file, or None without the file."""
        raw = file_inside(self.path, name)
        return None if raw is None else raw.decode(errors="replace")

    def earlier(self) -> EarlierRun | None:
        """Return the settings that the search began with, or None. Raises CheckpointError C903."""
        raw = file_inside(self.path, SETTINGS)
        help_ = "remove it: the same search command writes it anew"
        return None if raw is None else run_record(EarlierRun, raw, self.path / SETTINGS, help_)


def begun_with(plan: Plan, chosen: Settings, where: Resources) -> dict[str, Any]:
    """Return the settings of a search that are known before its models."""
    return {
        "version": gptailor.__version__,
        "plan": escaped_control(plan.origin.source.name if plan.origin else "<plan>"),
        **chosen.record(),
        "device": where.device,
        "dtype": where.dtype,
        "storage": where.storage if where.storage is None else escaped_control(where.storage),
        "study": escaped_control(where.study),
    }


def put_record(
    folder: Folder,
    record: Mapping[str, Any],
    plan: Plan,
    models: Mapping[str, Opened],
    aims: Iterable[Aim],
) -> RunRecord:
    """Write the record of a search, for readers of RUN without the models.

    It is the open plan, and a `run.json` with the number of the base's layers, the models with a
    tied head, and the measures of scores.
    """
    moved = plan_seen_from(plan, models, commits_of(plan, models), folder.place)
    folder.put(SPACE, format_plan(moved.model_copy(update={"search": None})))
    tied = tuple(sorted(name for name, model in models.items() if model.layout.tied))
    layers = models["base"].layout.count
    full_record = RunRecord(**record, layers=layers, tied=tied, aims=tuple(aims))
    folder.put_json(SETTINGS, full_record.model_dump(mode="json"))
    return full_record


def refuse_other(folder: Folder, record: Mapping[str, Any]) -> None:
    """Raise CheckpointError C902 where a folder's search has its study elsewhere, or more trials.

    `agree` compares what trials depend on with the study itself.
    """
    before = folder.earlier()
    if before is None:
        return
    for name, old, new in (
        ("storage", before.storage, record["storage"]), ("study", before.study, record["study"])
    ):  # fmt: skip
        if old != new:
            was, now = ("the folder's own" if v is None else quoted(v) for v in (old, new))
            raise another_search(f"its {name} is {was}, not {now}", Path(folder.shown))
    if before.trials is not None and before.trials > record["trials"]:
        message = f"it was begun with {before.trials} trials, and now is to have fewer"
        raise another_search(message, Path(folder.shown))
