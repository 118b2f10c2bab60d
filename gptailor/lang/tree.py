"""The tree of a `.tailor` text: what was written, with the span of every word."""

from dataclasses import dataclass

from gptailor.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Word:
    """A name or keyword."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class String:
    """A text in double quotes, without them."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Fixed:
    """A number. `value` is infinite where the digits say more than a float holds."""

    value: int | float
    span: Span


@dataclass(frozen=True, slots=True)
class Between:
    """`0.0..1.0`."""

    low: Fixed
    high: Fixed
    span: Span


@dataclass(frozen=True, slots=True)
class OneNumber:
    """`one of (0.3, 0.5)`."""

    options: tuple[Fixed, ...]
    span: Span


Numeral = Fixed | Between | OneNumber


@dataclass(frozen=True, slots=True)
class LayerWord:
    """`L12`."""

    number: int
    span: Span


@dataclass(frozen=True, slots=True)
class Range:
    """`L0..L9.mlp`, or one layer."""

    first: LayerWord
    last: LayerWord
    part: Word | None
    span: Span


@dataclass(frozen=True, slots=True)
class Layers:
    """`L0..L4, L7`."""

    ranges: tuple[Range, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Names:
    """Models: all of these, one of them, or any of them."""

    how: str  # "all", "one" or "any"
    names: tuple[Word, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class ArgumentNode:
    """An argument as it was given."""

    name: Word | None
    value: Numeral | String | Word
    span: Span


@dataclass(frozen=True, slots=True)
class CallNode:
    """A method or an objective with its arguments."""

    name: Word
    arguments: tuple[ArgumentNode, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class OneCall:
    """`one of slerp(0.3), linear()`."""

    options: tuple[CallNode, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class From:
    """`math, code by linear()`."""

    models: Names
    by: CallNode | OneCall | None
    span: Span


@dataclass(frozen=True, slots=True)
class Picked:
    """`L12 code`: layers of a model."""

    layers: Layers
    model: Names
    span: Span


@dataclass(frozen=True, slots=True)
class Merging:
    """`merge(L12 code, L12 chat, 0.5) by …`."""

    sources: tuple[Picked, ...]
    shares: tuple[Numeral, ...]
    by: CallNode | OneCall | None
    span: Span


# -------------------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True)
class Version:
    """`tailor 1`."""

    number: Fixed


@dataclass(frozen=True, slots=True)
class Declare:
    """`model NAME = SOURCE @ REVISION`, or `model NAME = ON + SOURCE`."""

    name: Word
    source: String
    on: Word | None
    revision: String | None


@dataclass(frozen=True, slots=True)
class Dtype:
    """`dtype bfloat16`."""

    name: Word


@dataclass(frozen=True, slots=True)
class RestNode:
    """`embed from chat`."""

    where: Word
    origin: From


@dataclass(frozen=True, slots=True)
class Select:
    """`L0..L9 from math`."""

    layers: Layers
    origin: From


@dataclass(frozen=True, slots=True)
class PlaceNode:
    """`L12 = L14 chat`, `L12 = merge(…)`."""

    layers: Layers
    source: Picked | Merging


@dataclass(frozen=True, slots=True)
class MergeHere:
    """`merge(L12 code, L12 chat, 0.5)`."""

    merge: Merging


@dataclass(frozen=True, slots=True)
class Dropping:
    """`drop L30..L39`."""

    layers: Layers


@dataclass(frozen=True, slots=True)
class DroppingAny:
    """`drop any 10 of L0..L39`."""

    count: Fixed
    layers: Layers


@dataclass(frozen=True, slots=True)
class Scaling:
    """`scale L12 by 0.9`."""

    layers: Layers
    factor: Numeral


@dataclass(frozen=True, slots=True)
class BridgeNode:
    """`bridge L11 on "text" tokens 65536 ridge 0.1`."""

    after: LayerWord | None
    on: String
    settings: tuple[tuple[Word, Numeral], ...]


@dataclass(frozen=True, slots=True)
class ItemTake:
    """An item of a stack: `L0..L15 base`."""

    picked: Picked


@dataclass(frozen=True, slots=True)
class Limit:
    """`limit 50 layers`."""

    count: Fixed


@dataclass(frozen=True, slots=True)
class ObjectiveNode:
    """`minimize nll("text")`."""

    direction: Word
    measure: CallNode


@dataclass(frozen=True, slots=True)
class BudgetNode:
    """`fidelity 64..1024`, `trials 500`, `seed 0`."""

    name: Word
    numbers: tuple[Fixed, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """`stack { … }` or `search { … }`."""

    name: Word
    statements: "tuple[Statement, ...]"
    closing: tuple[str, ...]  # comments before the brace that closes


Body = (
    Version
    | Declare
    | Dtype
    | RestNode
    | Select
    | PlaceNode
    | MergeHere
    | Dropping
    | DroppingAny
    | Scaling
    | BridgeNode
    | ItemTake
    | Limit
    | ObjectiveNode
    | BudgetNode
    | Block
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement with its comments: those on lines before it, and the one behind it."""

    body: Body
    span: Span
    tied: Span | None = None
    maybe: Span | None = None
    above: tuple[str, ...] = ()
    behind: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """A whole text."""

    statements: tuple[Statement, ...]
    closing: tuple[str, ...]  # comments after the last statement
