"""A compiled folder as a repository on the Hub: `publish`."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, final

import yaml  # type: ignore[import-untyped,unused-ignore]

import gptailor
from gptailor.checkpoint.families.family_file import FAMILY_SUFFIX
from gptailor.checkpoint.files import (
    CheckpointError,
    Stamp,
    escaped,
    open_regular,
    quoted,
    refuse_changed,
    stamps,
)
from gptailor.checkpoint.folder import CONFIG, INDEX, PROCESSOR_FILES, SINGLE
from gptailor.checkpoint.hub import talking
from gptailor.checkpoint.models import is_local, is_remote, only_compared
from gptailor.evaluation.tokenizer_files import is_beside
from gptailor.lang.parse import load, loads
from gptailor.lang.plan_of import HUB_ID
from gptailor.output.inputs import CARD
from gptailor.output.lock import LOCK_FILE, read_lock
from gptailor.output.output import commented_text, without_paths
from gptailor.output.update import changed_entries, written_record
from gptailor.plan.arguments import check_fields
from gptailor.plan.faults import PLAN_FILE, PlanError, first_names, listed
from gptailor.plan.plan import Model, Plan
from gptailor.plugins.publish.published_scores import (
    RESULTS_FILE,
    benchmark_results,
    model_index,
    read_scores,
    scores_section,
)


@final
@dataclass(frozen=True)
class CardFacts:
    """Facts that a published model card has in place of the facts that `compile` found.

    `license` is an identifier of the Hub, such as `apache-2.0`; languages are codes such as `en`;
    datasets and base models are ids of the Hub.
    """

    title: str | None = None
    license: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


@final
@dataclass(frozen=True)
class PublishResult:
    """The upload of a folder: its repository, its files with their sizes in bytes, and remarks.

    `card` is the text of the published model card, which differs from the folder's. `notes` name
    facts that the repository lacks. `url` is the commit's page; None if nothing was uploaded.
    """

    folder: Path
    repo: str
    files: tuple[tuple[str, int], ...]
    card: str
    notes: tuple[str, ...]
    url: str | None = None

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(size for _, size in self.files)


def publish(  # noqa: PLR0913 (the verb of the command line, and its flags)
    folder: str | Path,
    repo: str,
    *,
    facts: CardFacts | None = None,
    include: Sequence[str] = (),
    scores: str | Path | None = None,
    benchmarks: Mapping[str, str] | None = None,
    upload: bool = False,
    private: bool = False,
    message: str = "Upload a model compiled by gptailor",
) -> PublishResult:
    """Upload a compiled folder to a repository of the Hub, `org/name`; without `upload` only plan.

    The model card is published with `facts`, and its example loads the repository; the folder
    doesn't change. `scores` is a file of `gptailor eval FOLDER … --format json`: the card has a
    table and the `model-index` of these scores. `benchmarks` has datasets of the Hub,
    `ORG/NAME:TASK`, by the name of a measured task or file: those scores are in the repository's
    `.eval_results` too.

    Files have the names of files that `compile` writes, or match one of the patterns of `include`,
    such as `images/*.png`. All other files stay here, and hidden ones always. The plan and its lock
    are published without paths of this machine.

    The repository is made if it is missing, `private` if asked for. The token is
    `huggingface_hub`'s (`hf auth login`, or HF_TOKEN).

    Raises CheckpointError: C101 for a folder that gptailor didn't compile, C201 for a link that
    leads out of the folder and a pattern that matches nothing, C304 for a file that changed before
    it was uploaded, C501 for a token without
    the right to write or an invalid id, C503 if the Hub can't be reached, C605 for a card or a file
    of scores that can't be read; PlanError for a folder with a faulty plan.
    """
    place, facts, benchmarks = Path(folder), facts or CardFacts(), benchmarks or {}
    _refuse_ids([repo, *facts.base_models, *(of.partition(":")[0] for of in benchmarks.values())])
    _refuse_other_folder(place)
    if benchmarks and scores is None:
        raise ValueError("benchmarks need scores: give the file of the scores")
    found, left_out = _chosen_files(place, include)
    seen = stamps(found.values())
    matter, body = _card_parts(place)
    plan = load(place / PLAN_FILE)
    contents, renamed = _without_paths(place, plan, body)
    measured = () if scores is None else read_scores(scores, place)
    if measured:
        body = f"{body.rstrip()}\n\n{scores_section(measured)}"
        if index := model_index(repo.partition("/")[2], measured):
            matter |= {"model-index": index}
    card = _published_card(matter, body, repo, facts)
    contents[CARD] = card.encode()
    if benchmarks:
        results = benchmark_results(measured, benchmarks, gptailor.__version__)
        contents[RESULTS_FILE] = results.encode()
    sizes = {name: path.stat().st_size for name, path in found.items()}
    sizes |= {name: len(content) for name, content in contents.items()}
    notes = [*_notes(place, plan, matter, facts), *renamed]
    if left_out:
        uploads = "--include PATTERN uploads such files"
        notes.append(f"left out: {first_names(left_out)}; {uploads}")
    if scores is not None and (place / PLAN_FILE).stat().st_mtime > Path(scores).stat().st_mtime:
        notes.append(f"the folder was written after {scores}: evaluate it again")
    planned = PublishResult(place, repo, tuple(sorted(sizes.items())), card, tuple(notes))
    if not upload:
        return planned
    url = upload_folder(repo, {**found, **contents}, seen, private=private, message=message)
    return replace(planned, url=url)


def upload_folder(
    repo: str,
    files: Mapping[str, Path | bytes],
    seen: Mapping[Path, Stamp],
    *,
    private: bool,
    message: str,
) -> str:
    """Upload files, or contents, as one commit, make the repository if need be; return its URL.

    `seen` are the stamps of the files that were checked.

    Raises CheckpointError: C304 for another file in the place of one that was seen, C501 for a
    token without the right to write, C503.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, errors

    hub = HfApi()
    with talking(repo, None):
        try:
            hub.create_repo(repo, private=private, exist_ok=True)
            added = [CommitOperationAdd(name, content) for name, content in files.items()]
            refuse_changed(seen)
            made = hub.create_commit(repo, added, commit_message=message)
        except errors.HfHubHTTPError as error:
            if getattr(error.response, "status_code", None) not in (401, 403):
                raise
            refused = "can't be written: the Hub needs a token with write access"
            help_ = "log in with 'hf auth login' and a token with write access, or set HF_TOKEN"
            raise CheckpointError("C501", refused, Path(repo), help_) from error
    return str(made.commit_url)


def _chosen_files(folder: Path, include: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Return the files to upload by their names, and the names of the files that stay.

    Files have the names of files that `compile` writes, or match a pattern of `include`. Hidden
    files are in neither. A path has no links.

    Raises CheckpointError (C201) for a link that leads out of the folder, for anything but a
    regular file, and for a pattern that matches nothing.
    """
    root = folder.resolve()
    paths = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    names = sorted(path.relative_to(root).as_posix() for path in paths)
    names = [name for name in names if not any(p.startswith(".") for p in name.split("/"))]
    for pattern in include:
        if not any(fnmatchcase(name, pattern) for name in names):
            message = f"expected a file that matches {quoted(pattern)}, got none"
            help_ = "patterns match paths in the folder, such as 'images/*.png'"
            raise CheckpointError("C201", message, folder, help_)
    chosen = [
        name
        for name in names
        if _is_written(name) or any(fnmatchcase(name, pattern) for pattern in include)
    ]
    files = {}
    for name in chosen:
        path = Path(os.path.realpath(root / name))
        if not path.is_relative_to(root):
            message = f"is a link out of the folder, to {path}"
            help_ = "replace the link by a file, or remove it"
            raise CheckpointError("C201", message, folder / name, help_)
        open_regular(folder / name).close()
        files[name] = path
    return files, [escaped(name) for name in names if name not in files]


def _is_written(name: str) -> bool:
    """Return whether `compile` writes files of this name."""
    return (
        name in _WRITTEN
        or is_beside(name)
        or name.endswith(FAMILY_SUFFIX)
        or _SHARD.fullmatch(name) is not None
    )


_WRITTEN = {CARD, CONFIG, INDEX, LOCK_FILE, PLAN_FILE, *PROCESSOR_FILES, SINGLE}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def _without_paths(folder: Path, plan: Plan, card: str) -> tuple[dict[str, bytes], list[str]]:
    """Return the contents of a folder's plan and lock without paths of this machine, and a note.

    A model has the id that the plan on the card has for it. Both are empty for a plan without
    paths.
    """
    lock = read_lock(folder / LOCK_FILE) if (folder / LOCK_FILE).is_file() else None
    locked = {} if lock is None else lock.models
    inner = {name: Model(source=model.source, on=model.on) for name, model in locked.items()}
    models = {**inner, **plan.models}
    public = without_paths(plan.model_copy(update={"models": models}), _ids_on_card(card))
    own = public.model_copy(update={"models": {name: public.models[name] for name in plan.models}})
    if own == plan:
        return {}, []
    contents = {PLAN_FILE: commented_text(own, plan.origin).encode()}
    if lock is not None:
        contents[LOCK_FILE] = lock.with_sources(public.models).text().encode()
    moved = ((name, model.source, own.models[name].source) for name, model in plan.models.items())
    renamed = [f"'{name}' is {source}" for name, path, source in moved if path != source]
    there = f": model {listed(renamed)} there" if renamed else ""
    return contents, [f"{PLAN_FILE} is uploaded without this machine's paths{there}"]


def _ids_on_card(card: str) -> dict[str, str]:
    """Return the models' ids in the plan on a card; empty if somebody removed the plan."""
    if (found := _PLAN.search(card)) is None:
        return {}
    with suppress(PlanError):
        models = loads(found["plan"]).models
        return {name: model.source for name, model in models.items() if is_remote(model)}
    return {}


_PLAN = re.compile(r"^## Plan\n.*?^```text\n(?P<plan>.*?)^```$", re.MULTILINE | re.DOTALL)


def _refuse_ids(ids: Iterable[str]) -> None:
    """Raise CheckpointError (C501) for an invalid id of the Hub."""
    for named in ids:
        if not HUB_ID.fullmatch(named):
            message = "expected a Hub id such as ORG/NAME"
            raise CheckpointError("C501", message, Path(named))


def _refuse_other_folder(folder: Path) -> None:
    """Raise CheckpointError (C101) for a file, and a folder that gptailor didn't compile."""
    if folder.is_file():
        help_ = (
            f"'hf upload ORG/NAME {folder.name}' uploads one file; --include '*.gguf' adds those "
            "inside a compiled folder"
        )
        file = "expected a folder that 'gptailor compile' wrote, got a file"
        raise CheckpointError("C101", file, folder, help_)
    for name in (CONFIG, PLAN_FILE):
        if not (folder / name).is_file():
            lacking = f"expected a folder that 'gptailor compile' wrote, got one without {name}"
            raise CheckpointError("C101", lacking, folder)


def _card_parts(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the front matter of a folder's card, and the text below it; both may be empty."""
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise CheckpointError("C605", "is not UTF-8", path) from error
    text = text if text.endswith("\n") else f"{text}\n"
    _, opened, rest = text.partition("---\n")
    front, closed, body = rest.partition("\n---\n")
    if not (opened and closed) or not text.startswith("---\n"):
        return {}, text
    try:
        matter = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise CheckpointError("C605", f"its front matter is not YAML: {error}", path) from error
    if not isinstance(matter, dict):
        raise CheckpointError("C605", "expected a YAML mapping as front matter", path)
    return matter, body


def _published_card(matter: Mapping[str, Any], body: str, repo: str, facts: CardFacts) -> str:
    """Return a card with these facts and an example that loads the repository."""
    stated: dict[str, Any] = {
        "license": facts.license,
        "language": list(facts.languages),
        "datasets": list(facts.datasets),
        "base_model": list(facts.base_models),
    }
    stated = {key: value for key, value in stated.items() if value}
    if facts.base_models and "merge" in (matter.get("tags") or ()):
        stated["base_model_relation"] = "merge"
    matter = {**stated, **{key: value for key, value in matter.items() if key not in stated}}
    if facts.title is not None:
        body, count = re.subn(r"^# .*$", lambda _: f"# {facts.title}", body, count=1, flags=re.M)
        body = body if count else f"\n# {facts.title}\n{body}"
    body = _LOADED.sub(lambda found: found[1] + f'"{repo}")', body)
    front = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n{body}"


_LOADED = re.compile(r'^(\w+ = pipeline\("[\w-]+", )"[^"]*"\)', re.MULTILINE)
"""The line of a card's example that loads the model."""


def _notes(folder: Path, plan: Plan, matter: Mapping[str, Any], facts: CardFacts) -> Iterator[str]:
    """Yield the facts that the repository lacks; `matter` is the card's."""
    stated = matter.get("base_model") or []
    named = [stated] if isinstance(stated, str) else stated
    folders = [f"'{name}' ({source})" for name, source in _local_models(plan)]
    if folders and not facts.base_models and len(named) < len(plan.models):
        yield (
            f"the card doesn't name {listed(folders)}, as local folders have no id:"
            " give every model of the card by --base-model ORG/NAME"
        )
    for text in dict.fromkeys(text for _, text in plan.calibration_texts if text):
        yield f"the text {text} isn't part of the folder: nobody else can compile the plan again"
    if not (folder / LOCK_FILE).is_file():
        yield "there is no lock: 'gptailor compile --lock' records the digests of all inputs"
    if not (facts.license or matter.get("license")):
        named = "give it by --license"
        yield f"{CARD} names no licence, because the base's card names no licence: {named}"
    written = written_record(folder)
    if written is not None and (changed := changed_entries(written.files, folder)):
        yield f"changed since gptailor wrote the folder: {changed}"


def _local_models(plan: Plan) -> Iterator[tuple[str, str]]:
    compared = only_compared(plan)
    for name, model in plan.models.items():
        if name not in compared and model.made is None and is_local(model.source):
            yield name, model.source
