"""A family in a file: what `gptailor family` drafted of an architecture, and its proof.

Reading one takes no torch. It is used if nothing failed in its proof, and if it still says what was
proven: a digest tells that.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

import pydantic
from pydantic import Field

from gptailor.checkpoint.families.compatibility import UNSPOKEN, ConfigKey, rope
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.layer_config import Config, LayerRule, RuleError, Values
from gptailor.checkpoint.files import CheckpointError, quoted, read_object, shown
from gptailor.plan.parts import Branch
from gptailor.plan.plan import Closed, Several

_FILE_VERSION = 1
_AGAIN = "'gptailor family MODEL' makes it anew, with its proof"

_ROTARY = ("rope_theta", "rope_scaling", "partial_rotary_factor")
"""Older keys of the rotary embeddings, which are read together with `rope_parameters`."""


ModelType = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""A model type, as the name of a file may begin with it."""


@final
class MovedKey(Closed):
    """A key of the configuration that says something of each layer.

    `entries` is a list with a value for each layer, `numbers` a list of the layers that have
    something, `first` how many of the first layers do. `tried` are the entries that the proof saw;
    `absent` is what transformers derives where a model of as many layers doesn't have the key.
    With `every_kind` a layer of each kind must remain.
    """

    kind: Literal["entries", "numbers", "first"]
    part: Branch
    tried: Several[Any] = ()
    absent: Several[Any] | None = None
    every_kind: bool = False


@final
class NotProven(Closed):
    """Why parts of layers, `scale` and `bridge` are refused; None: they are not."""

    parts: str | None
    scale: str | None = "it is not proven of a family from a file"
    bridge: str | None = "it is not proven of a family from a file"


@final
class Case(Closed):
    """One thing that was tried: how far apart the logits were, and why it fails if it does.

    With a `note` it could not be tried, and the note says why that proves nothing wrong.
    """

    name: str
    difference: float | None = None
    failure: str | None = None
    note: str | None = None


@final
class Proof(Closed):
    """What was tried, by which versions, on tiny models of which configuration."""

    gptailor: str
    transformers: str
    torch: str
    source: str
    seed: int
    configuration: dict[str, Any]
    cases: Several[Case]

    @property
    def failures(self) -> list[Case]:
        """What failed."""
        return [case for case in self.cases if case.failure is not None]


@final
class FamilyFile(Closed):
    """An architecture as data, as `Family` has it, and the proof of it.

    `agree` are the keys that must be equal where layers are exchanged, with what their absence
    means. `modes` are those of them whose values the proof holds for, and no others; `plain` the
    other keys that it had. `deepest` is how many layers a model can have at most, if there is such
    a number.
    """

    version: Literal[1] = 1
    name: str
    model_types: Several[ModelType]
    base: str
    stack: str
    count_key: str
    embed: Several[str]
    norm: Several[str]
    head: Several[str]
    attn: Several[str]
    mlp: Several[str]
    tied: bool
    transposed: bool = False
    deepest: int | None = None
    moved: dict[str, MovedKey] = Field(default_factory=dict)
    agree: dict[str, Any] = Field(default_factory=dict)
    modes: dict[str, Any] = Field(default_factory=dict)
    plain: Several[str] = ()
    refused: NotProven
    proof: Proof
    digest: str = ""

    def content_digest(self) -> str:
        """The sha256 of all that it says but for the digest."""
        said = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """It as JSON, with the digest of its content. Equal files, equal texts."""
        said = self.model_dump(mode="json") | {"digest": self.content_digest()}
        return json.dumps(said, indent=2, ensure_ascii=False) + "\n"

    def families(self) -> dict[str, Family]:
        """The family by each of its model types."""
        return dict.fromkeys(self.model_types, self.family())

    def family(self) -> Family:
        """It as the release's own families are."""
        rotary = _rotary(self.agree)
        named = {key.name for key in rotary}
        others = [_agreeing(key, value) for key, value in self.agree.items() if key not in named]
        return Family(
            self.model_types,
            (*others, *rotary),
            (
                *(_moving(key, moved) for key, moved in self.moved.items()),
                *([] if self.deepest is None else [_no_deeper(self.deepest)]),
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
        """Why a configuration is none that the proof holds for."""
        for key, proven in self.modes.items():
            if (value := config.get(key, self.agree.get(key))) != proven:
                return (
                    f"{quoted(key)} is {shown(value)}, and its family was proven with "
                    f"{shown(proven)}; 'gptailor family MODEL' proves it for this model"
                )
        return None


def is_plain(key: str) -> bool:
    """Whether a key says nothing of a layer's arithmetic, or what it says is read by another."""
    return key in UNSPOKEN and key != "rope_parameters"


# ------------------------------------------------------------------------------------ as a family


def _agreeing(key: str, default: Any) -> ConfigKey:
    return ConfigKey(key, lambda config: config.get(key, default))


def _rotary(agree: Mapping[str, Any]) -> list[ConfigKey]:
    """The rotary embeddings, in one form unless kinds of layers have their own."""
    given = agree.get("rope_parameters")
    if isinstance(given, Mapping):
        if any(isinstance(value, Mapping) for value in given.values()):
            return [_agreeing("rope_parameters", given), *(_agreeing(key, None) for key in _ROTARY)]
        theta = given.get("rope_theta", 10_000.0)
        partial = given.get("partial_rotary_factor", 1.0)
        return [rope(theta, partial)]
    return [rope()]


def _moving(key: str, moved: MovedKey) -> LayerRule:
    match moved.kind:
        case "entries":
            return _entries(key, moved)
        case "numbers":
            return _numbers(key, moved)
        case "first":
            return _first(key, moved)


def _entries(key: str, moved: MovedKey) -> LayerRule:
    def read(config: Config, count: int) -> list[Any]:
        values = _value(config, key, moved, count)
        if not isinstance(values, list | tuple):
            raise RuleError(f"'{key}' is {shown(values)}, and the model has {count} layers")
        if len(values) != count:
            raise RuleError(f"'{key}' has {len(values)} entries, and the model has {count} layers")
        for i, value in enumerate(values):
            if value not in moved.tried:
                said = f"'{key}' of L{i} is {shown(value)}, and its family was proven with"
                raise RuleError(f"{said} {', '.join(map(shown, moved.tried))}")
        return list(values)

    def write(config: Config, values: Values) -> dict[str, Any]:
        _check_kinds(key, moved, config.get(key) or moved.absent or (), values)
        return {**config, key: list(values)}

    return LayerRule(key, moved.part, read, write)


def _numbers(key: str, moved: MovedKey) -> LayerRule:
    def read(config: Config, count: int) -> list[Any]:
        values = _value(config, key, moved, count)
        if not isinstance(values, list | tuple) or any(type(v) is not int for v in values):
            raise RuleError(f"'{key}' is {shown(values)}, and should be a list of layers")
        if strange := [v for v in values if not 0 <= v < count]:
            raise RuleError(f"'{key}' names layer {strange[0]}, and the model has {count} layers")
        return [i in values for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        if moved.every_kind and len(set(values)) < 2:
            raise RuleError(f"'{key}' would name all layers, or none: its family needs both kinds")
        return {**config, key: [i for i, value in enumerate(values) if value]}

    return LayerRule(key, moved.part, read, write)


def _first(key: str, moved: MovedKey) -> LayerRule:
    def read(config: Config, count: int) -> list[Any]:
        first = _value(config, key, moved, count)
        if type(first) is not int or first < 0:
            raise RuleError(f"'{key}' is {shown(first)}, and should be a number of layers")
        return [i < first for i in range(count)]

    def write(config: Config, values: Values) -> dict[str, Any]:
        first = list(values).index(False) if False in values else len(values)
        for i, value in enumerate(values):
            if value != (i < first):
                said = f"'{key}' counts the first layers of one kind, and L{i} of that kind would"
                raise RuleError(f"{said} come after L{first} of the other")
        if moved.every_kind and first in {0, len(values)}:
            raise RuleError(f"'{key}' would count all layers, or none: its family needs both kinds")
        return {**config, key: first}

    return LayerRule(key, moved.part, read, write)


def _no_deeper(deepest: int) -> LayerRule:
    """Says nothing of a layer, and refuses more of them than are proven."""

    def write(config: Config, values: Values) -> dict[str, Any]:
        if len(values) > deepest:
            said = f"the model would have {len(values)} layers"
            raise RuleError(f"{said}, and its family is proven for {deepest} at most")
        return dict(config)

    return LayerRule("deepest", "attn", lambda config, count: [None] * count, write)


def _value(config: Config, key: str, moved: MovedKey, count: int) -> Any:
    """What a configuration says by a key, or what its absence means in a model of this depth."""
    value = config.get(key)
    if value is None and moved.absent is not None:
        if moved.kind == "first":
            return moved.absent[0]
        if moved.kind == "numbers" or len(moved.absent) == count:
            return list(moved.absent)
    return value


def _check_kinds(key: str, moved: MovedKey, before: Sequence[Any], values: Values) -> None:
    if moved.every_kind and (gone := [value for value in before if value not in values]):
        said = f"'{key}' would have no {shown(gone[0])} any more"
        raise RuleError(f"{said}, and its family needs a layer of each kind")


# ------------------------------------------------------------------------------------- from a file


def read_family_file(path: Path, *, proven: bool = True) -> FamilyFile:
    """The family in a file.

    Raises CheckpointError: C111 if it is none; where it should be `proven`, C112 if its proof
    failed, or if it was changed after that.
    """
    document = read_object(path, "C111", duplicate="C111")
    version = document.get("version")
    if type(version) is int and version != _FILE_VERSION:
        message = f"is a family file of version {version}, and this gptailor reads {_FILE_VERSION}"
        raise CheckpointError("C111", message, path, _AGAIN)
    try:
        found = FamilyFile.model_validate(document)
    except pydantic.ValidationError as error:
        said = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = quoted(".".join(map(str, said["loc"])))
        text = said["msg"][:1].lower() + said["msg"][1:]
        raise CheckpointError("C111", f"is no family file: {place}: {text}", path, _AGAIN) from None
    if not found.model_types:
        raise CheckpointError("C111", "is no family file: it names no model type", path, _AGAIN)
    if proven:
        check_proof(found, path)
    return found


def check_proof(found: FamilyFile, path: Path) -> None:
    """Raise CheckpointError (C112) for a file whose proof failed or is not of what it says."""
    if failures := found.proof.failures:
        case = failures[0]
        message = f"holds a draft that failed its proof: {case.name}: {case.failure}"
        raise CheckpointError("C112", message, path)
    if not found.proof.cases:
        raise CheckpointError("C112", "holds a draft of which nothing was proven", path, _AGAIN)
    if found.digest != found.content_digest():
        raise CheckpointError("C112", "was changed after it was proven", path, _AGAIN)
