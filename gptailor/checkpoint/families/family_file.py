"""A family in a file: the draft that `gptailor family` made of an architecture, and its proof.

Reading one takes no torch. It is used if nothing failed in its proof, and if nothing in it was
changed after that: a digest tells.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, final

import pydantic
from pydantic import Field

from gptailor.checkpoint.families.compatibility import UNSPOKEN, ConfigKey, rope
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.layer_config import Config, RuleError
from gptailor.checkpoint.families.layer_rules import AtMost, First, LayerRule, Listed, Numbered
from gptailor.checkpoint.files import CheckpointError, quoted, read_object, shown
from gptailor.checkpoint.records import fault_of
from gptailor.plan.layer_parts import Branch
from gptailor.plan.plan import Closed, Several

_FILE_VERSION = 1
_AGAIN = "'gptailor family MODEL' makes it anew, with its proof"

_KINDS = ("plain", "special")
"""Kinds of layers, where a list of numbers, or a number of first layers, has the special ones."""

_ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")
"""Older keys of the rotary embeddings, which are read together with `rope_parameters`."""


_Words = Annotated[str, Field(max_length=1000, pattern=r"^\P{C}*$")]
"""A name or a reason that fits into a message: no control characters."""

ModelType = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""A model type, as the name of a file may begin with it."""


@final
class MovedKey(Closed):
    """A key of the configuration that states something of each layer, as a `LayerRule` in JSON.

    `entries` is a list with a value for each layer (`Listed`), `numbers` a list of the layers that
    have something (`Numbered`), `first` how many of the first layers do (`First`). `tried` are the
    entries that the proof saw; `absent` is what transformers derives for a model of as many layers
    without the key. With `every_kind` a layer of each kind must remain.
    """

    kind: Literal["entries", "numbers", "first"]
    part: Branch
    tried: Several[Any] = ()
    absent: Several[Any] | None = None
    every_kind: bool = False

    def rule(self, key: str) -> LayerRule:
        """Return the rule of the configuration's key."""
        match self.kind:
            case "entries":
                needed = (self.absent or ()) if self.every_kind else None
                absent = partial(self._entries, key)
                return Listed(key, self.part, absent, tried=self.tried, needed=needed)
            case "numbers":
                return Numbered(
                    key, self.part, key, _KINDS, partial(self._numbers, key), strict=True,
                    every_kind=self.every_kind,
                )  # fmt: skip
            case "first":
                number = self.absent[0] if self.absent else None
                return First(key, self.part, key, _KINDS[::-1], number, every_kind=self.every_kind)

    def _entries(self, key: str, _: Config, count: int) -> list[Any]:
        """Return the entries of a configuration of this depth without the key."""
        if self.absent is None or len(self.absent) != count:
            raise RuleError(f"'{key}' is missing, and the model has {count} layers")
        return list(self.absent)

    def _numbers(self, key: str, config: Config, count: int) -> list[Any]:
        """Return the kinds of layers of a configuration without the key."""
        if self.absent is None:
            raise RuleError(f"'{key}' is missing, and should be a list of layers")
        listed = Numbered(key, self.part, key, _KINDS, partial(self._numbers, key), strict=True)
        return listed.read({**config, key: list(self.absent)}, count)


@final
class NotProven(Closed):
    """Reasons why parts of layers, `scale` and `bridge` are refused; None: they are not."""

    parts: _Words | None
    scale: _Words | None = "it is not proven of a family from a file"
    bridge: _Words | None = "it is not proven of a family from a file"


@final
class Case(Closed):
    """A thing that was tried: how far apart the logits were, and why it fails if it does.

    With a `note` it could not be tried, and the note says why that proves nothing wrong.
    """

    name: str
    difference: float | None = None
    failure: str | None = None
    note: str | None = None


@final
class Proof(Closed):
    """Cases that were tried, with the versions and the tiny models' configuration."""

    gptailor: str
    transformers: str
    torch: str
    source: str
    seed: int
    configuration: dict[str, Any]
    cases: Several[Case]

    @property
    def failures(self) -> list[Case]:
        """The cases that failed."""
        return [case for case in self.cases if case.failure is not None]


@final
class FamilyFile(Closed):
    """An architecture as data, in the form of `Family`, with its proof.

    `agree` are the keys that must be equal where layers are exchanged, with what their absence
    means. `modes` are those of them whose values the proof holds for, and no others; `plain` the
    other keys that it had. `deepest` is how many layers a model can have at most, if there is such
    a number.
    """

    version: Literal[1] = 1
    name: _Words
    model_types: Several[ModelType]
    base: _Words
    stack: _Words
    count_key: _Words
    embed: Several[_Words]
    norm: Several[_Words]
    head: Several[_Words]
    attn: Several[_Words]
    mlp: Several[_Words]
    tied: bool
    transposed: bool = False
    deepest: int | None = None
    moved: dict[_Words, MovedKey] = Field(default_factory=dict)
    agree: dict[str, Any] = Field(default_factory=dict)
    modes: dict[str, Any] = Field(default_factory=dict)
    plain: Several[str] = ()
    refused: NotProven
    proof: Proof
    digest: str = ""

    def content_digest(self) -> str:
        """Return the sha256 of the whole content but for the digest."""
        content = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """Return the file as JSON, with the digest of its content. Equal files, equal texts."""
        content = self.model_dump(mode="json") | {"digest": self.content_digest()}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def families(self) -> dict[str, Family]:
        """Return the family by each of its model types."""
        return dict.fromkeys(self.model_types, self.family())

    def family(self) -> Family:
        """Return the family in the form of the release's own."""
        rotary = _rotary(self.agree)
        rotary_names = {key.name for key in rotary}
        plain_keys = [
            _agreeing(key, value) for key, value in self.agree.items() if key not in rotary_names
        ]
        return Family(
            self.model_types,
            (*plain_keys, *rotary),
            (
                *(moved.rule(key) for key, moved in self.moved.items()),
                *([] if self.deepest is None else [AtMost("deepest", "attn", self.deepest)]),
            ),
            base=self.base,
            stack=self.stack,
            count_key=self.count_key,
            embed=self.embed,
            norm=self.norm,
            head=self.head,
            attn=self.attn,
            mlp=self.mlp,
            attn_out=(),
            mlp_out=(),
            roles=None,
            no_bridge=self.refused.bridge,
            no_parts=self.refused.parts,
            no_scale=lambda config: self.refused.scale,
            unfit=self._unfit,
            seen=frozenset({self.count_key, *self.moved, *self.agree, *self.plain} | UNSPOKEN),
            transposed=self.transposed,
            tied=self.tied,
        )

    def _unfit(self, config: Config) -> str | None:
        """Return why the proof doesn't hold for a configuration, or None."""
        for key, proven in self.modes.items():
            if (value := config.get(key, self.agree.get(key))) != proven:
                return (
                    f"{quoted(key)} is {shown(value)}, and its family was proven with "
                    f"{shown(proven)}; 'gptailor family MODEL' proves it for this model"
                )
        return None


def is_plain(key: str) -> bool:
    """Return whether a key doesn't change a layer's arithmetic, or is read with another key."""
    return key in UNSPOKEN and key != "rope_parameters"


# ------------------------------------------------------------------------------------ as a family


def _agreeing(key: str, default: Any) -> ConfigKey:
    return ConfigKey(key, lambda config: config.get(key, default))


def _rotary(agree: Mapping[str, Any]) -> list[ConfigKey]:
    """Return the rotary embeddings, in one form unless kinds of layers have their own."""
    parameters = agree.get("rope_parameters")
    if isinstance(parameters, Mapping):
        if any(isinstance(value, Mapping) for value in parameters.values()):
            return [
                _agreeing("rope_parameters", parameters),
                *(_agreeing(key, None) for key in _ROTARY),
            ]
        base = {
            key: parameters[key]
            for key in ("rope_theta", "partial_rotary_factor")
            if key in parameters
        }
        return [rope()(base)]
    return [rope()({})]


# ------------------------------------------------------------------------------------- from a file


def read_family_file(path: Path, *, proven: bool = True) -> FamilyFile:
    """Return the family in a file.

    Raises CheckpointError: C111 for an invalid file. If it must be `proven`, C112 for a failed
    proof, or for a change after the proof.
    """
    document = read_object(path, "C111", duplicate="C111")
    version = document.get("version")
    if type(version) is int and version != _FILE_VERSION:
        message = f"is a family file of version {version}, and this gptailor reads {_FILE_VERSION}"
        raise CheckpointError("C111", message, path, _AGAIN)
    try:
        file = FamilyFile.model_validate(document)
    except pydantic.ValidationError as error:
        message = f"invalid family file: {fault_of(error)}"
        raise CheckpointError("C111", message, path, _AGAIN) from None
    if not file.model_types:
        raise CheckpointError("C111", "invalid family file: no model type", path, _AGAIN)
    if proven:
        check_proof(file, path)
    return file


def check_proof(file: FamilyFile, path: Path) -> None:
    """Raise CheckpointError (C112) for a file with a failed proof, or changed since its proof."""
    if failures := file.proof.failures:
        case = failures[0]
        why = f"{quoted(case.name)}: {quoted(case.failure or '')}"
        message = f"holds a draft that failed its proof: {why}"
        raise CheckpointError("C112", message, path)
    if not file.proof.cases:
        raise CheckpointError("C112", "holds an unproven draft", path, _AGAIN)
    if file.digest != file.content_digest():
        raise CheckpointError("C112", "was changed after it was proven", path, _AGAIN)
