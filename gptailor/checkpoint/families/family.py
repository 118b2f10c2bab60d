"""An architecture as data: `Family`, the form of a family's file, and the roles of its tensors."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, Literal, final

from pydantic import AfterValidator, Field, model_validator

from gptailor.checkpoint.families.layer_config import (
    UNSPOKEN,
    Config,
    Rotary,
    RuleError,
    stated_value,
)
from gptailor.checkpoint.families.layer_rules import LayerRule, MovedRule, trusted_rule, tuples
from gptailor.checkpoint.files import quoted, shown
from gptailor.plan.layer_parts import NORMS, PROJECTIONS, Branch
from gptailor.plan.plan import Closed, Several

How = Literal["divide", "multiply", "divide_offset"]
"""The change of a tensor in a layer that receives 1/c of the original's hidden state.

`divide` is w/c, `multiply` is w·c, and `divide_offset` is (1 + w)/c - 1, for a norm that multiplies
by 1 + w.
"""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"expected a text without control characters, got {shown(text)}")
    return text


_Words = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""A name or a reason that fits into a message."""


def _known_role(role: str) -> str:
    if role not in _ROLE_NAMES:
        names = ", ".join(map(quoted, _ROLE_NAMES))
        raise ValueError(f"expected a role, one of {names}, got {shown(role)}")
    return role


_ROLE_NAMES = (*PROJECTIONS, NORMS, "")
_Role = Annotated[
    str, Field(json_schema_extra={"enum": [*_ROLE_NAMES]}), AfterValidator(_known_role)
]

_KeyReader = Literal[
    "gelu", "gated_window", "head_scale", "if_set", "kimi", "of_heads", "own_scale",
    "partly_rotated", "sections", "settings", "state_rank", "time_steps", "value_width",
    "window",
]  # fmt: skip
_What = Literal["model", "parts", "scale", "bridge"]


@final
class RefusedWhen(Closed):
    """A reason to refuse some configurations: the configurations with all values of `when`.

    True and false are compared with the truth of a key's value. `absent` are values of missing
    keys, if they aren't the family's. In `why`, `{value}` is the value of the first key.
    """

    what: _What
    when: dict[_Words, Any] = Field(min_length=1)
    absent: dict[str, Any] = Field(default_factory=dict)
    why: _Words

    def reason(self, config: Config, agree: Mapping[str, Any]) -> str | None:
        """Return the reason, or None for another configuration."""
        defaults = {**agree, **self.absent}
        values = {key: config.get(key, defaults.get(key)) for key in self.when}
        holds = all(
            (bool(values[key]) if isinstance(wanted, bool) else values[key]) == wanted
            for key, wanted in self.when.items()
        )
        return self.why.replace("{value}", shown(next(iter(values.values())))) if holds else None


@final
class NotProven(Closed):
    """Reasons why parts of layers, `scale` and `bridge` are refused; None: they are not."""

    parts: _Words | None = None
    scale: _Words | None = None
    bridge: _Words | None = None


@final
class Case(Closed):
    """A thing that was tried: how far apart the logits were, and why it fails if it does.

    With a `note` it could not be tried; the note gives the reason.
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
class Family(Closed):
    """An architecture: its tensors' names, and the configuration that its layers depend on.

    Names within a layer start after its number and dot; in patterns `*` is one part between dots.
    `functions.READERS` has the functions for `read`; `count_of` calls `lettered_layers` there. A
    file from `gptailor family` has a `proof` and a `digest`; tests prove the release's families.
    """

    version: Literal[1] = Field(default=1, description="Version of the form of this file.")
    name: _Words = Field(description="Name of the family, for messages.")
    # The name of a file may begin with a model type.
    model_types: Several[Annotated[str, Field(pattern=r"^\w[\w.-]*$")]] = Field(
        min_length=1, description="Values of `model_type` in configurations."
    )
    why: dict[str, str] = Field(
        default_factory=dict, description="Reasons for values that surprise, by their keys."
    )
    base: _Words = Field(description="Beginning of all tensors' names but the head's.")
    stack: _Words = Field(description="What stands between `base` and a layer's number.")
    count_key: _Words = Field(description="Key of the configuration with the number of layers.")
    count_of: Literal["", "letters"] = Field(
        default="", description="Function that counts layers where no number is under `count_key`."
    )
    embed: Several[_Words] = Field(description="Tensors before the layers, without `base`.")
    norm: Several[_Words] = Field(description="Tensors after the layers, without `base`.")
    head: Several[_Words] = Field(description="Tensors of the head, with their full names.")
    attn: Several[_Words] = Field(description="Beginnings of names of the attention branch.")
    mlp: Several[_Words] = Field(description="Beginnings of names of the MLP branch.")
    attn_out: Several[_Words] = Field(
        default=(),
        description="Projections whose output attention adds to the hidden state; none: no roles.",
    )
    mlp_out: Several[_Words] = Field(
        default=(), description="Projections whose output the MLP adds to the hidden state."
    )
    roles: dict[_Words, _Role] = Field(
        default_factory=dict, description="Roles of modules with unusual names; '' for no role."
    )
    folds: dict[_Words, How] = Field(
        default_factory=dict,
        description="Changes of tensors for `scale`, if it doesn't divide the projections above.",
    )
    tied: bool = Field(
        default=False,
        description="Whether the head is the embedding, if the configuration doesn't say.",
    )
    transposed: bool = Field(
        default=False, description="Whether projections are stored as (inputs, outputs)."
    )
    overflows_float16: bool = Field(
        default=False,
        description="Whether hidden states exceed float16's range, so that predictions are NaN.",
    )
    deepest: int | None = Field(default=None, description="Most layers that a model can have.")
    like: _Words = Field(
        default="", description="Other model type that computes the same from a text."
    )
    rotary: Rotary = Field(
        default_factory=Rotary, description="Forms of the rotary embeddings' settings."
    )
    agree: dict[str, Any] = Field(
        default_factory=dict,
        description="Keys that must be equal where layers of two models meet, each with the value "
        "that its absence means.",
    )
    read: dict[str, _KeyReader] = Field(
        default_factory=dict, description="Functions that read some keys of `agree`."
    )
    warn: Several[str] = Field(default=(), description="Keys whose difference is a warning only.")
    moved: dict[_Words, MovedRule] = Field(
        default_factory=dict, description="Settings by layer, which move with the layers."
    )
    modes: dict[str, Any] = Field(
        default_factory=dict, description="Keys with the only values that the family holds for."
    )
    plain: Several[str] = Field(
        default=(), description="Other keys, which say nothing of single layers."
    )
    refused: NotProven = Field(
        default_factory=NotProven, description="Reasons why parts, `scale` or `bridge` are refused."
    )
    refused_when: Several[RefusedWhen] = Field(
        default=(), description="Reasons why some configurations are refused."
    )
    proof: Proof | None = Field(default=None, description="What `gptailor family` tried.")
    digest: str = Field(default="", description="SHA-256 of the proven content.")

    @model_validator(mode="after")
    def _check_names(self) -> "Family":
        """Refuse a tensor with two roles, and a pattern that matches nothing."""
        ends = [*(self.base + name for name in (*self.embed, *self.norm)), *self.head]
        for i, name in enumerate(ends):
            if name in ends[:i] or name.startswith(self.base + self.stack):
                raise ValueError(f"{quoted(name)} has two roles: name each tensor once")
        for name in self.attn:
            if both := [
                other for other in self.mlp if name.startswith(other) or other.startswith(name)
            ]:
                raise ValueError(
                    f"{quoted(name)} of 'attn' and {quoted(both[0])} of 'mlp' give a tensor two "
                    "roles"
                )
        for key, pattern in self.patterns():
            prefixes = {"attn_out": self.attn, "mlp_out": self.mlp}.get(key, self.attn + self.mlp)
            if not f"{pattern}.".startswith(prefixes):
                raise ValueError(
                    f"{quoted(pattern)} of '{key}' matches no tensor of a layer: expected a name "
                    f"that begins with {' or '.join(map(quoted, prefixes)) or 'a prefix'}"
                )
            roles = self.roles.items() if key in {"attn_out", "mlp_out"} else ()
            for name, role in roles:
                if matches(pattern, name) and role not in {"attn.o", "mlp.down"}:
                    raise ValueError(
                        f"{quoted(pattern)} of '{key}' has another role in 'roles', {quoted(role)}"
                    )
        self._bound()._check_values()
        return self

    def _check_values(self) -> None:
        """Refuse values that a rule or a function can't read, with an empty configuration."""
        try:
            for key in self.agree:
                self.value(key, {})
            for rule in self.rules:
                with suppress(RuleError):
                    _ = rule.read({}, 4)[3]
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"expected values that its functions read, got {error!r}") from error

    def _bound(self) -> "Family":
        """Return the family with rules that know their names and each other."""
        before: dict[str, LayerRule] = {}
        for name, rule in self.moved.items():
            before[name] = rule.bound(name, before)
        return self

    @classmethod
    def trusted(cls, document: Mapping[str, Any]) -> "Family":
        """Return the family of a valid document at once: building the validators takes longer."""
        when = document.get("refused_when", ())
        content = tuples(document) | {
            "moved": {name: trusted_rule(rule) for name, rule in document.get("moved", {}).items()},
            "refused": NotProven.model_construct(**document.get("refused", {})),
            "refused_when": tuple(RefusedWhen.model_construct(**each) for each in when),
            "rotary": Rotary.model_construct(**tuples(document.get("rotary", {}))),
        }
        return cls.model_construct({*document}, **content)._bound()

    def patterns(self) -> Iterator[tuple[str, str]]:
        """Yield prefixes and patterns of names within a layer, each with its key in the file."""
        for key in ("attn", "mlp", "attn_out", "mlp_out", "roles", "folds"):
            yield from ((key, pattern) for pattern in getattr(self, key))

    def value(self, key: str, config: Config) -> Any:
        """Return the value of a key of `agree` in a configuration, which may lack the key."""
        if key in self.read:
            from gptailor.checkpoint.families.functions import READERS  # only few families have one

            return READERS[self.read[key]](config, key, self.agree[key])
        if key == "rope_parameters":
            return self.rotary.read(config, self.agree[key])
        return stated_value(config, key, self.agree[key])

    @property
    def rules(self) -> tuple[LayerRule, ...]:
        """The rules of the settings that move with a layer."""
        return tuple(self.moved.values())

    @property
    def seen(self) -> Collection[str]:
        """The keys of configurations that the file names, and the keys without a meaning here."""
        own = {key for rule in self.rules for key in rule.named_keys()}
        own |= {key for each in self.refused_when for key in each.when}
        return {self.count_key, *self.moved, *own, *self.agree, *self.plain, *UNSPOKEN}

    def why_not(self, what: _What, config: Config) -> str | None:
        """Return the reason why a configuration is refused, or has no such statements; or None."""
        own = (each.reason(config, self.agree) for each in self.refused_when if each.what == what)
        return getattr(self.refused, what, None) or next(filter(None, own), None)

    def unfit(self, config: Config) -> str | None:
        """Return why the family doesn't hold for a configuration, or None."""
        for key, proven in self.modes.items():
            if (value := config.get(key, self.agree.get(key))) != proven:
                return (
                    f"{quoted(key)} is {shown(value)}, but its family was proven with "
                    f"{shown(proven)}; run 'gptailor family MODEL' to prove it for this model"
                )
        return self.why_not("model", config)

    def counted(self, config: Config) -> int | None:
        """Return the number of layers by `count_of`, or None. Raises RuleError."""
        if not self.count_of:
            return None
        # Only few families have one.
        from gptailor.checkpoint.families.functions import lettered_layers

        listed = lettered_layers(config)
        return None if listed is None else len(listed)

    def part(self, suffix: str) -> Branch | None:
        """Return the part of a layer that a tensor belongs to, by its name within the layer."""
        if suffix.startswith(self.attn):
            return "attn"
        return "mlp" if suffix.startswith(self.mlp) else None

    def role(self, suffix: str) -> str | None:
        """Return `norms` or a projection such as `mlp.down`, by a tensor's name within the layer.

        Return None for other tensors: norms of queries and keys, convolutions, a router's
        neighbours.
        """
        branch = self.part(suffix)
        if branch is None or not self.attn_out:
            return None
        for name, role in self.roles.items():  # before all others
            if matches(suffix, name):
                return role or None
        prefixes = (*self.attn, *self.mlp)
        if suffix.startswith(tuple(each for each in prefixes if _OF_NORMS.search(each))):
            return NORMS
        outputs, end = (self.attn_out, "attn.o") if branch == "attn" else (self.mlp_out, "mlp.down")
        if any(matches(suffix, name) for name in outputs):
            return end
        usual = _BY_WORD[branch]
        for word in reversed(suffix.split(".")):
            if projection := usual.get(word) or usual.get(_PIECE.sub("", word)):
                return projection
        return None


SCALED_SUM = "each layer scales the sum of its branches by a number of its own"
"""The reason why such a family has no bridges, in its file; a narrower MLP is possible there."""


# ------------------------------------------------------------------------------------------ roles

_ROLES: dict[Branch, dict[str, str]] = {
    "attn": {
        "q": "q_proj q_a_proj q_b_proj Wq",
        "k": "k_proj Wk",
        "v": "v_proj Wv",
        "qkv": "qkv_proj query_key_value c_attn Wqkv in_proj_qkv",
    },
    "mlp": {
        "gate": "gate_proj w1 c_fc_0",
        "up": "up_proj w3 v1 fc1 c_fc c_fc_1 dense_h_to_4h fc_in",
        "down": "down_proj w2",
        "gate_up": "gate_up_proj Wi input_linear",
        "router": "gate router expert_bias e_score_correction_bias moe_statics",
    },
}
"""Usual names of modules by their role. A family has the names of the modules that end a branch,
and so of `attn.o` and `mlp.down`, itself."""

_BY_WORD = {
    branch: {word: f"{branch}.{role}" for role, words in roles.items() for word in words.split()}
    for branch, roles in _ROLES.items()
}

_PIECE = re.compile(r"_(bias|blocks|scales)$")
"""Ends of tensors' names that no dot parts from their module's."""

_OF_NORMS = re.compile(r"(norm|(^|\.)ln_)[^.]*\.?$")
"""The end of a prefix of norms over the hidden state."""


@lru_cache(maxsize=1024)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"[^.]+") + r"(\..*|_bias|_blocks|_scales)?")


def matches(suffix: str, pattern: str) -> bool:
    """Return whether a tensor, by its name within the layer, belongs to a pattern's module."""
    return _pattern(pattern).fullmatch(suffix) is not None
