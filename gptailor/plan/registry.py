"""Merge methods and objectives that a plan may name, with their parameters. Plain data.

A merge method is one `Method` here and one `Kernel` of the same name in `gptailor.methods`;
the checks, the docs and the contract tests read this table. Installed packages extend the tables
(`doors.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, final

from gptailor.plan.doors import Door

LARGEST_SINGLE = (2 - 2**-23) * 2.0**127
"""The largest float32, in which merges are computed."""


@final
@dataclass(frozen=True)
class Parameter:
    """A parameter of a method: an ASCII name, bounds (closed unless `open_low`), a default.

    A parameter with `words` takes one of these words, and no number.
    """

    name: str
    default: int | float | str | None
    low: int | float = float("-inf")
    high: int | float = float("inf")
    open_low: bool = False  # the lower bound itself is not allowed
    integer: bool = False
    variadic: bool = False  # takes all positional arguments, one for each source
    one_serves_all: bool = False  # of a variadic one: a single number stands for every source
    each: bool = False  # takes a number for all sources, or a list with one for each
    words: tuple[str, ...] = ()
    named: bool = False  # is given by its name alone
    before: str = ""  # its old name, which is read but not written

    def __post_init__(self) -> None:
        if isinstance(self.default, int | float) and not self.admits(self.default):
            raise ValueError(
                f"'{self.name}': expected a default in {self.bounds}, got {self.default}"
            )

    def admits(self, value: int | float) -> bool:
        """Return whether the value lies within the bounds."""
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high

    @property
    def bounds(self) -> str:
        """Return the bounds as an interval, `(0, 1]`."""
        left = "(" if self.open_low or self.low == float("-inf") else "["
        right = ")" if self.high == float("inf") else "]"
        return f"{left}{_short(self.low)}, {_short(self.high)}{right}"


def _short(value: int | float) -> str:
    return f"{value:g}".replace("inf", "∞")


@final
@dataclass(frozen=True)
class Method:
    """A merge method: its name and the number of its sources. θ_b is the base's tensor.

    `function` computes a method that isn't gptailor's own (`gptailor.merge_method`).
    """

    name: str
    formula: str
    parameters: tuple[Parameter, ...] = ()
    least: int = 1
    most: int | None = None
    needs_base: bool = False
    elects: bool = False  # entry by entry only sources that agree on a sign count
    function: Callable[..., Any] | None = None
    by_entry: bool = False  # the function computes each entry alone, so it receives stretches

    @property
    def variadic(self) -> Parameter | None:
        """Return the parameter that takes all positional arguments, if there is one."""
        return next((p for p in self.parameters if p.variadic), None)

    @property
    def positional(self) -> tuple[Parameter, ...]:
        """Return the parameters that may be given without their names, in order."""
        return tuple(p for p in self.parameters if not p.named)

    @property
    def takes_any_number(self) -> bool:
        """Return whether every number of sources from two up will do, as `any of` needs."""
        return self.least <= 2 and self.most is None

    def parameter(self, name: str) -> Parameter | None:
        """Return the parameter of that name, or None."""
        return next((p for p in self.parameters if p.name == name), None)

    def called(self, name: str) -> str:
        """Return today's name of a parameter, which may be given by its former one."""
        return next((p.name for p in self.parameters if p.before == name), name)

    def takes_base(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether θ_b is read: always, or for these arguments."""
        return self.needs_base or arguments.get("of") == "task_vectors"

    def argument(self, arguments: Mapping[str, Any], name: str) -> Any:
        """Return the argument for a parameter, or its default; None for an unknown parameter."""
        parameter = self.parameter(name)
        return arguments.get(name, parameter.default) if parameter is not None else None


def _density(default: float) -> Parameter:
    """Return the parameter for the share of a task vector's entries that are kept."""
    return Parameter("density", default, low=0.0, high=1.0, open_low=True, each=True)


def _normalize(default: Literal["yes", "no"]) -> Parameter:
    """Return the parameter that divides a sum by the sum of its weights."""
    return Parameter("normalize", default, words=("yes", "no"), named=True)


def _named(*parameters: Parameter) -> tuple[Parameter, ...]:
    """Return the parameters as ones that are given by their names alone."""
    return tuple(replace(parameter, named=True) for parameter in parameters)


_SCALE = Parameter("scale", 1.0)
_WEIGHT = Parameter("weight", 1.0, each=True, named=True)
_SEED = Parameter("seed", 0, low=0, high=2**53, integer=True)
_GAMMA = Parameter("gamma", 0.01, low=0.0, high=1.0, each=True)
_EPSILON = Parameter("epsilon", 0.15, low=0.0, high=0.5, each=True)
_ACTIVE = Parameter("epsilon", 1e-05, low=0.0)
_RESCALE = Parameter("rescale", "density", words=("density", "l1", "no"), named=True)
_OF = Parameter("of", "weights", words=("weights", "task_vectors"), named=True)

_METHODS = {
    method.name: method
    for method in (
        Method(
            "linear",
            "Σ w_i θ_i; without weights the mean",
            (Parameter("weight", None, variadic=True, before="weights"), _normalize("no")),
        ),
        Method(
            "slerp",
            "spherical interpolation; the share t is the second source's",
            (Parameter("t", 0.5, low=0.0, high=1.0),),
            least=2,
            most=2,
        ),
        Method(
            "task_arithmetic",
            "θ_b + Σ w_i (θ_i − θ_b)",
            (
                Parameter("weight", 1.0, variadic=True, one_serves_all=True, before="scales"),
                _normalize("no"),
            ),
            needs_base=True,
        ),
        Method(
            "ties",
            "θ_b + scale · the mean of the trimmed task vectors that agree with the elected sign",
            (_density(0.5), _SCALE, _WEIGHT, _normalize("yes")),
            needs_base=True,
            elects=True,
        ),
        Method(
            "dare",
            "θ_b + scale · Σ of the task vectors, dropped at random and rescaled",
            (_density(0.5), _SCALE, _SEED, _WEIGHT, _normalize("no"), _RESCALE),
            needs_base=True,
        ),
        Method(
            "dare_ties",
            "θ_b + scale · Σ of the task vectors, dropped at random, that agree with the sign",
            _named(_density(0.5), _SCALE, _SEED, _WEIGHT, _normalize("no"), _RESCALE),
            needs_base=True,
            elects=True,
        ),
        Method(
            "breadcrumbs",
            "θ_b + scale · Σ of the task vectors without their largest and smallest entries",
            (_density(0.9), _GAMMA, _SCALE, _WEIGHT, _normalize("no")),
            needs_base=True,
        ),
        Method(
            "breadcrumbs_ties",
            "θ_b + scale · Σ of what breadcrumbs keeps that agrees with the elected sign",
            _named(_density(0.9), _GAMMA, _SCALE, _WEIGHT, _normalize("no")),
            needs_base=True,
            elects=True,
        ),
        Method(
            "della_linear",
            "θ_b + scale · Σ of the task vectors, dropped at random by their rank and rescaled",
            _named(_density(0.5), _EPSILON, _SCALE, _SEED, _WEIGHT, _normalize("no"), _RESCALE),
            needs_base=True,
        ),
        Method(
            "della",
            "θ_b + scale · the mean of what della_linear keeps that agrees with the elected sign",
            _named(_density(0.5), _EPSILON, _SCALE, _SEED, _WEIGHT, _normalize("yes"), _RESCALE),
            needs_base=True,
            elects=True,
        ),
        Method(
            "sce",
            "θ_b + the mean, by size, of the task vectors that agree, where sources differ most",
            _named(replace(_density(1.0), each=False), Parameter("floor", 0.0, low=0.0)),
            least=2,
            needs_base=True,
        ),
        Method(
            "ram",
            "θ_b + what one source alone has changed, and the mean of what several have",
            _named(_ACTIVE),
            needs_base=True,
        ),
        Method(
            "ram_plus",
            "ram, what one source alone has changed made larger by its share of common changes",
            _named(_ACTIVE, Parameter("r", 0.1, low=0.0), Parameter("alpha", 0.2, low=0.0)),
            needs_base=True,
        ),
        Method(
            "model_stock",
            "the mean of the sources pulled towards θ_b by their measured angle",
            (Parameter("by", "tensor", words=("tensor", "row"), named=True),),
            least=2,
            needs_base=True,
        ),
        Method("karcher", "the Riemannian mean on the sphere, times the mean norm", least=2),
        Method(
            "nuslerp",
            "spherical interpolation by weights, of tensors, rows or columns",
            (
                _WEIGHT,
                _OF,
                Parameter("by", "tensor", words=("tensor", "row", "column"), named=True),
            ),
            least=2,
            most=2,
        ),
        Method(
            "multislerp",
            "the weighted mean of directions, times the weighted mean norm",
            (_WEIGHT, _normalize("yes"), _OF),
            least=2,
        ),
        Method(
            "nearswap",
            "the first source, with the near entries of the second",
            _named(Parameter("t", 0.0001, low=0.0)),
            least=2,
            most=2,
        ),
        Method(
            "arcee_fusion",
            "the first source, with the changes of the second that matter most",
            least=2,
            most=2,
        ),
    )
}

METHODS: Door[Method] = Door("methods", "method", Method, _METHODS)

RowForm = Literal["text", "chat", "prompt", "choice", "answer", "opening"]
"""The fields of the rows of a file, as `checkpoint/datasets.py` reads them."""


@final
@dataclass(frozen=True)
class Argument:
    """An argument of an objective: its name, its kind, whether it must be given, a file's rows.

    A text with one of the `endings` is a file's path, too.
    """

    name: str
    kind: Literal["path", "text", "number", "model", "file type"]
    required: bool = False
    rows: RowForm = "text"
    endings: tuple[str, ...] = ()

    def is_file(self, value: str) -> bool:
        """Return whether a value is the path of a file."""
        return self.kind == "path" or value.endswith(self.endings)


@final
@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective: the direction that is better, and its arguments in order.

    `unit` is the unit of its scores. With `share_of_base` scores to maximise are shown as a share
    of the base's, too. `byte_unit` is the unit of scores that count by bytes. `function` computes
    an objective of a function (`gptailor.objective`). `prepare` prepares the samples of any other
    objective outside of the core, as `PREPARE` in `gptailor.evaluation.objectives` does.
    """

    name: str
    direction: Literal["minimize", "maximize"] | None  # None: by its metric
    arguments: tuple[Argument, ...] = ()
    by: Literal["samples", "headers", "clock"] = "samples"  # its value's source
    unit: str = ""
    byte_unit: str = ""
    share_of_base: bool = False
    function: Callable[..., Any] | None = None
    prepare: Callable[..., Any] | None = None

    def argument(self, name: str) -> Argument | None:
        """Return the argument of that name, or None."""
        return next((a for a in self.arguments if a.name == name), None)


_FILE = Argument("file", "path", required=True)
_CHOICES = Argument("file", "path", required=True, rows="choice")
_ANSWERS = Argument("file", "path", required=True, rows="answer")
_REFERENCE = Argument("from", "model")

_OBJECTIVES = {
    spec.name: spec
    for spec in (
        ObjectiveSpec("nll", "minimize", (_FILE,), unit="nats", byte_unit="bits a byte"),
        ObjectiveSpec("perplexity", "minimize", (_FILE,)),
        ObjectiveSpec(
            "kl",
            "minimize",
            (_FILE, _REFERENCE),
            unit="nats",
            byte_unit="nats a byte",
        ),
        ObjectiveSpec("acceptance", "maximize", (_FILE, _REFERENCE), unit="accuracy"),
        ObjectiveSpec(
            "multiple_choice",
            "maximize",
            (_CHOICES, Argument("metric", "text")),
            unit="accuracy",
            share_of_base=True,
        ),
        ObjectiveSpec("margin", "maximize", (_CHOICES,), unit="nats a byte"),
        ObjectiveSpec("generate", "maximize", (_ANSWERS,), unit="accuracy", share_of_base=True),
        ObjectiveSpec("parameters", "minimize", by="headers", unit="parameters"),
        ObjectiveSpec(
            "bytes", "minimize", (Argument("gguf", "file type"),), by="headers", unit="bytes"
        ),
        ObjectiveSpec("kv_cache", "minimize", by="headers", unit="bytes a token"),
        ObjectiveSpec("latency", "minimize", by="clock", unit="seconds a token"),
    )
}

OBJECTIVES: Door[ObjectiveSpec] = Door("objectives", "objective", ObjectiveSpec, _OBJECTIVES)


@final
@dataclass(frozen=True)
class StrategySpec:
    """A way to search, in a clause; `make` returns a strategy of another package."""

    words: str
    make: Callable[[], Any] | None = None


_STRATEGIES = {
    "surrogate": StrategySpec("learns a linear model of what layers and recipes are worth"),
    "random": StrategySpec("draws plans from the whole space"),
}
STRATEGIES: Door[StrategySpec] = Door("strategies", "strategy", StrategySpec, _STRATEGIES)
"""The ways to search, by name; the first one is the default, chosen by `benchmarks/search.py`."""

GAP_FITS: Door[type] = Door("fits", "fit", type, {})
"""Fits of gaps by other packages: subclasses of `gptailor.GapFit`, by the name after `by`."""

BRIDGE_TOKENS = 65_536
"""Default number of a bridge's calibration tokens."""
BRIDGE_RIDGE = 0.1
"""Default ridge of a bridge."""

WIDTH_TOKENS = 16_384
"""Default number of calibration tokens of a narrower MLP."""
WIDTH_RIDGE = 0.1
"""Default ridge of a narrower MLP."""
EXPERT_TOKENS = 16_384
"""Default number of calibration tokens that choose experts."""
IMPORTANCE_TOKENS = 16_384
"""The number of tokens of an importance matrix, unless its text has fewer."""
LEAST_IMPORTANCE_TOKENS = 512
"""The fewest tokens of a text for an importance matrix: one sequence."""

HEAL_TOKENS = 200_000
"""Default number of tokens that a plan is healed on."""
HEAL_RANK: int | None = 64
"""Default rank of healing's changes; None: the weights themselves learn."""
HEAL_SEED = 0
"""Default seed for the order of healing's texts, and for answers that are drawn."""
HEAL_ANSWER_TOKENS, HEAL_TEMPERATURE = 256, 0.7
"""Default number of tokens of a teacher's answer, and the temperature that it is drawn at."""

DTYPES: dict[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Dtypes that an output may have, and their names in safetensors."""

CHAT_TEMPLATES: Mapping[str, tuple[str, ...]] = {"chatml": ("<|im_start|>", "<|im_end|>")}
"""Chat templates that have a name, and the tokens that they write."""

WORDS = frozenset([
    "tailor", "model", "from", "by", "merge", "drop", "scale", "bridge", "on", "tokens", "ridge",
    "embed", "norm", "head", "tokenizer", "dtype", "stack", "search", "limit", "layers", "one",
    "any", "of", "maybe", "tied", "minimize", "maximize", "fidelity", "trials", "seed",
])  # fmt: skip
"""The language's own words: no model may be named so."""
