"""The lock of a plan: digests of its inputs and outputs, and the lock's file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, create_model

from gptailor.checkpoint.files import CheckpointError, fault_of, parse_object, read_object
from gptailor.checkpoint.write.digest import FileDigest, Sha256, TensorDigest
from gptailor.checkpoint.write.output_file import write_whole
from gptailor.plan.faults import PLAN_FILE
from gptailor.plan.plan import Closed, Model, Several
from gptailor.program.fits import FITS, by_names

_LOCK_VERSION = 1
"""The version of the lock's format."""
SUFFIX = ".lock"
"""The suffix of a lock's name after the plan's."""
LOCK_FILE = PLAN_FILE + SUFFIX
"""The lock in a compiled folder."""


@final
class LockedModel(Closed):
    """A model of the plan: its declaration, its commit on the Hub, the files read.

    `files` are named by their path within the model's folder.
    """

    source: str
    revision: str | None = None
    on: str | None = None
    commit: str | None = None
    files: dict[str, FileDigest]


@final
class LockedText(Closed):
    """The calibration text of a fit: its file, and the tokens used.

    The text of a smaller vocabulary has further `counts` of `TokenCutReport`.
    """

    file: FileDigest
    tokens: int
    counts: dict[str, int] = Field(default_factory=dict)


@final
class LockedGguf(Closed):
    """The plan's output as a GGUF file: the requested type, the metadata, the tensors.

    `imatrix` is the text of an importance matrix. `facts` is a digest of the metadata. A tensor's
    `dtype` is GGUF's name of its type (`Q8_0`).
    """

    quantize: str | None = None
    imatrix: LockedText | None = None
    facts: Sha256
    tensors: dict[str, TensorDigest]


@final
class Lock(Closed):
    """The inputs and outputs of a compilation.

    `plan` is a digest of the plan without the settings of the machine. `dtype` is the dtype of all
    output tensors, if they share one. `config` is a digest of the output's configuration.
    `texts` are the calibration texts of fits by their names in `Prepared.texts`: `width`, `heal`,
    the layer before a gap such as `L19`, and `deep.L19` of an inner plan. The file has an entry for
    each fit.
    `chat_template` is the digest of the template's file. `gguf` is the entry of a GGUF file;
    `tensors` and `config` are a folder's even then. `gguf_files` are the entries of the GGUF files
    that the plan states, by their types. `stripped` are the files beside the weights
    without the names of code. `families` are the digests of the family files by model type.
    `methods` are the packages and versions of methods that aren't gptailor's own.
    """

    version: Literal[1] = 1
    plan: Sha256
    dtype: str | None
    models: dict[str, LockedModel]
    families: dict[str, Sha256] = Field(default_factory=dict)
    methods: dict[str, str] = Field(default_factory=dict)
    config: Sha256
    texts: dict[str, LockedText] = Field(default_factory=dict)
    chat_template: Sha256 | None = None
    stripped: dict[str, FileDigest] = Field(default_factory=dict)
    tensors: dict[str, TensorDigest]
    gguf: LockedGguf | None = None
    gguf_files: dict[str, LockedGguf] = Field(default_factory=dict)

    _path: Path = PrivateAttr(default=Path(LOCK_FILE))

    @property
    def path(self) -> Path:
        """The file that the lock was read from, or its default name."""
        return self._path

    def gguf_of_type(self, file_type: str | None) -> LockedGguf | None:
        """Return the entry of a GGUF file of a type, if there is one."""
        is_alone = self.gguf is not None and self.gguf.quantize == file_type
        return self.gguf if is_alone else self.gguf_files.get(file_type or "")

    def with_sources(self, models: Mapping[str, Model]) -> "Lock":
        """Return the lock of a plan that has other places of the same models."""
        moved = {
            name: locked.model_copy(update={"source": models[name].source})
            if name in models
            else locked
            for name, locked in self.models.items()
        }
        return self.model_copy(update={"models": moved})

    def __eq__(self, other: object) -> bool:
        """Return whether two locks have the same content; their files don't matter."""
        if not isinstance(other, Lock):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment] # it holds dictionaries

    def text(self) -> str:
        """Return the lock as JSON: sorted names, a line per file and tensor.

        Equal locks have equal texts.
        """
        fields = self.model_dump(exclude_defaults=True)
        fields |= {"dtype": self.dtype, "version": self.version}
        fields |= _entries_of(fields.pop("texts", {}))
        return _rendered(fields) + "\n"

    def write(self, path: str | Path) -> None:
        """Write the lock, all or nothing; replace an old one.

        Raises CheckpointError (C303) if the lock can't be written.
        """
        raw, path = self.text().encode(), Path(path)
        place = Path(os.path.realpath(path))
        if os.path.lexists(place) and not place.is_file():
            raise CheckpointError("C303", "expected a regular file for the lock", path)
        write_whole(place, raw, path)


# ---------------------------------------------------------------------------------------- the file


def refuse_other_file(path: Path) -> None:
    """Raise CheckpointError (C303) for a path without a folder, or of a file that isn't a lock.

    A file named `….lock` counts as a lock, even if it is damaged.
    """
    if not path.absolute().parent.is_dir():
        raise CheckpointError("C303", "the folder of the lock is missing", path, "make the folder")
    if path.is_file() and path.suffix != SUFFIX:
        try:
            read_lock(path)
        except CheckpointError:
            message, help_ = "the file isn't a lock", f"name a file that ends in {SUFFIX}"
            raise CheckpointError("C303", message, path, help_) from None


def read_lock(path: Path) -> Lock:
    """Return the lock in a file.

    Raises CheckpointError: C701 for an invalid lock, C702 for another version.
    """
    return _lock_of(read_object(path, "C701", duplicate="C701"), path)


def parse_lock(raw: bytes, path: Path) -> Lock:
    """Return the lock in the text of a file. Raises the errors of `read_lock`."""
    return _lock_of(parse_object(raw, path, "C701", duplicate="C701"), path)


def _lock_of(document: dict[str, Any], path: Path) -> Lock:
    version = document.get("version")
    if type(version) is not int:
        raise CheckpointError("C701", "invalid lock: no field 'version'", path, _ANEW)
    if version != _LOCK_VERSION:
        message = f"expected a lock of version {_LOCK_VERSION}, got version {str(version)[:20]}"
        newer = "update gptailor, or run 'gptailor lock' again"
        raise CheckpointError("C702", message, path, newer if version > _LOCK_VERSION else _ANEW)
    if "texts" in document:  # the file has an entry for each fit
        raise CheckpointError("C701", "invalid lock: unknown key 'texts'", path, _ANEW)
    entries = {name: document.pop(name) for name in _Entries.model_fields if name in document}
    try:
        texts = _texts_of(_Entries.model_validate(entries).model_dump(exclude_defaults=True))
        lock = Lock.model_validate({**document, "texts": texts})
    except ValidationError as error:
        raise CheckpointError("C701", f"invalid lock: {fault_of(error)}", path, _ANEW) from None
    lock._path = path
    return lock


# --------------------------------------------------------------------- the entries of texts in it


@final
class _TextEntry(Closed):
    file: FileDigest
    tokens: int


@final
class _VocabularyEntry(Closed):
    file: FileDigest
    kept: int
    total: int
    before: int
    unchanged: int
    after: int


def _listed(value: object) -> object:
    """Return one text, which isn't a list in a lock, as a list."""
    return [value] if isinstance(value, dict) else value


_BY_WORD = tuple(fit.word for fit in FITS if fit.word != "bridge")
"""The entries that have the texts of one fit."""
_ENTRIES: dict[str, Any] = {
    "bridges": (dict[Annotated[str, Field(pattern=r"^L\d+$")], _TextEntry], {}),
    "inner": (dict[Annotated[str, Field(pattern=r"\.")], _TextEntry], {}),
    **dict.fromkeys(_BY_WORD, (_TextEntry | None, None)),
    "heal": (Annotated[Several[_TextEntry], BeforeValidator(_listed)], ()),
    "vocabulary": (_VocabularyEntry | None, None),
}
_Entries = create_model("_Entries", __base__=Closed, **_ENTRIES)
"""The texts of fits as a lock's file has them: an entry for each fit, and for inner plans."""


def _texts_of(entries: dict[str, Any]) -> dict[str, Any]:
    """Return texts of the file's entries by their names in `Prepared.texts`."""
    texts: dict[str, Any] = entries.pop("bridges", {}) | entries.pop("inner", {})
    if (counts := entries.pop("vocabulary", None)) is not None:
        file, tokens = counts.pop("file"), counts.pop("before")
        texts["vocabulary"] = {"file": file, "tokens": tokens, "counts": counts}
    return texts | by_names({"heal": entries.pop("heal", ())}) | entries


def _entries_of(texts: dict[str, Any]) -> dict[str, Any]:
    """Return texts by the entries of the file."""
    entries = dict[str, Any]()
    for name, text in texts.items():
        word = name.partition(" ")[0]
        if name == "vocabulary":
            entries[name] = {"file": text["file"], "before": text["tokens"], **text["counts"]}
        elif name in _BY_WORD:
            entries[name] = text
        elif word in _BY_WORD:
            entries.setdefault(word, []).append(text)
        else:
            entries.setdefault("inner" if "." in name else "bridges", {})[name] = text
    return entries


def _rendered(value: Any, indent: str = "") -> str:
    """JSON with each innermost object on one line."""
    if not isinstance(value, dict) or not any(isinstance(v, dict) for v in value.values()):
        return json.dumps(value, sort_keys=True)
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(key)}: {_rendered(value[key], inner)}" for key in sorted(value)]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


_ANEW = "run 'gptailor lock' again"
