"""A compiled folder as a repository on the Hub: `publish`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from gptailor.build.lock import LOCK_FILE, PLAN_FILE
from gptailor.build.parents import CARD, licence_of
from gptailor.build.update import changed_since_written
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import CONFIG
from gptailor.checkpoint.models import is_local
from gptailor.evaluation.targets import HUB_ID
from gptailor.lang.parse import load
from gptailor.plan.plan import Plan


@final
@dataclass(frozen=True)
class PublishResult:
    """The upload of a folder: its repository, its files with their sizes in bytes, and remarks.

    `notes` name what readers of the repository would miss. `url` is the commit's page; None if
    nothing was uploaded.
    """

    folder: Path
    repo: str
    files: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    url: str | None = None

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(size for _, size in self.files)


def publish(
    folder: str | Path,
    repo: str,
    *,
    upload: bool = False,
    private: bool = False,
    message: str = "Upload a model compiled by gptailor",
) -> PublishResult:
    """Upload a compiled folder to a repository of the Hub, `org/name`; without `upload` only plan.

    The repository is made if it is missing, `private` if asked for. Hidden files stay here. The
    token is that of `huggingface_hub` (`hf auth login`, or HF_TOKEN).

    Raises CheckpointError: C101 for a folder that gptailor didn't compile, C501 for a token without
    the right to write or an invalid id, C503 if the Hub can't be reached; PlanError for a folder
    whose plan has faults.
    """
    place = Path(folder)
    if not HUB_ID.fullmatch(repo):
        raise CheckpointError("C501", "is no id of the Hub", Path(repo), "write ORG/NAME")
    for name in (CONFIG, PLAN_FILE):
        if not (place / name).is_file():
            lacking = f"expected a folder that 'gptailor compile' wrote, got one without {name}"
            raise CheckpointError("C101", lacking, place)
    found = sorted(
        (path.relative_to(place).as_posix(), path.stat().st_size)
        for path in place.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(place).parts)
    )
    planned = PublishResult(place, repo, tuple(found), tuple(_notes(place)))
    if not upload:
        return planned
    from gptailor.checkpoint.hub import upload_folder

    names = [name for name, _ in found]
    url = upload_folder(repo, place, names, private=private, message=message)
    return replace(planned, url=url)


def _notes(folder: Path) -> Iterator[str]:
    """Yield remarks on what readers of the repository would miss."""
    plan = load(folder / PLAN_FILE)
    for name, source in _local_models(plan):
        yield (
            f"the model '{name}' is the folder {source} of this machine: the card names no base of"
            " the Hub for it"
        )
    texts = [bridge.on for bridge in plan.bridges if bridge.on]
    texts += [text.file for text in plan.heal.on] if plan.heal is not None else []
    for text in dict.fromkeys(texts):
        yield f"the text {text} isn't part of the folder: nobody else can compile the plan again"
    if not (folder / LOCK_FILE).is_file():
        yield "there is no lock: 'gptailor compile --lock' records the digests of all inputs"
    if licence_of(folder) is None:
        yield f"{CARD} names no licence, since the base's card has none"
    if changed := changed_since_written(folder):
        yield f"changed since gptailor wrote the folder: {changed}"


def _local_models(plan: Plan) -> Iterator[tuple[str, str]]:
    for name, model in plan.models.items():
        if model.made is None and is_local(model.source):
            yield name, model.source
