"""The tree of a `.tailor` text: the text as written, with the span of every word.

A node comes from the grammar's rule of the same name (lark's `ast_utils`): its fields are the
rule's parts in order, and an absent `[part]` is None. A list's node has one field.
"""

from abc import ABC
from typing import Any, ClassVar, dataclass_transform, final

from lark import ast_utils

from gptailor.plan.faults import Span


@dataclass_transform(eq_default=False)
class _Fields:
    """An object made of its fields, as a dataclass is; a dataclass's code is made at start-up."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._fields = (*cls._fields, *cls.__annotations__)

    def __init__(self, *parts: Any, **named: Any) -> None:
        fields = zip(self._fields[: len(parts)], parts, strict=True)
        self.__dict__.update(fields, **named)


class TreeNode(_Fields, ast_utils.Ast, ABC):
    """A part of the text."""

    span: Span


@final
class Word(TreeNode):
    """A name or keyword."""

    text: str


@final
class String(TreeNode):
    """A text in double quotes, without them."""

    text: str


@final
class Fixed(TreeNode):
    """A number. `value` is infinite where the digits exceed a float."""

    value: int | float


@final
class LayerWord(TreeNode):
    """`L12`. Above the largest number that a layer may have, `number` is the next one."""

    number: int


# ------------------------------------------------------------- numbers, layers, models, methods


@final
class Between(TreeNode):
    """`0.0..1.0`."""

    low: Fixed
    high: Fixed


@final
class SizesNode(TreeNode):
    """`16384..49152 step 4096`."""

    low: Fixed
    high: Fixed
    step: Fixed | None


@final
class OneNumber(TreeNode, ast_utils.AsList):
    """`one of (0.3, 0.5)`."""

    options: tuple[Fixed, ...]


@final
class Curving(TreeNode):
    """`curve(0.0, mix, 1.0)`, `curve(0, 1) over L0..L31`; `name` is what stands for `curve`."""

    name: Word
    knots: "tuple[Fixed | Between | OneNumber | Word, ...]"
    over: "Range | None"


Numeral = Fixed | Between | OneNumber | Curving


@final
class EachSource(TreeNode, ast_utils.AsList):
    """`(0.5, 0.3..0.7)`: a number for each source."""

    numbers: tuple[Numeral | Word, ...]


@final
class Range(TreeNode):
    """`L0..L9.mlp`, `L3."*.q_proj.*"`, or one layer; a part is one word, a pattern in quotes."""

    first: LayerWord
    end: LayerWord | None
    part: Word | None = None

    @property
    def last(self) -> LayerWord:
        """Return the end, or the one layer."""
        return self.end or self.first


@final
class Layers(TreeNode, ast_utils.AsList):
    """`L0..L4, L7`."""

    ranges: tuple[Range, ...]


@final
class AllOf(TreeNode, ast_utils.AsList):
    """`math, code`: one model, or all of several."""

    names: tuple[Word, ...]


@final
class OneOf(TreeNode, ast_utils.AsList):
    """`one of math, code`."""

    names: tuple[Word, ...]


@final
class AnyOf(TreeNode, ast_utils.AsList):
    """`any of math, code`."""

    names: tuple[Word, ...]


@final
class ArgumentNode(TreeNode):
    """An argument as it was given."""

    name: Word | None
    value: Numeral | EachSource | String | Word


@final
class CallNode(TreeNode):
    """A method or an objective with its arguments."""

    name: Word
    arguments: tuple[ArgumentNode, ...]


@final
class OneCall(TreeNode, ast_utils.AsList):
    """`by one of slerp(0.3), linear()`."""

    options: tuple[CallNode, ...]


@final
class From(TreeNode):
    """`math, code by linear()`."""

    models: AllOf | OneOf | AnyOf
    by: CallNode | OneCall | None


# -------------------------------------------------------------------------------------- statements


@final
class Picked(TreeNode):
    """`L12 code`: layers of a model; an item of a stack by itself."""

    layers: Layers
    model: Word | OneOf


@final
class Merging(TreeNode):
    """`merge(L12 code, L12 chat, 0.5) by …`; a statement by itself."""

    sources: tuple[Picked, ...]
    shares: tuple[Numeral | Word, ...]
    by: CallNode | OneCall | None


@final
class Version(TreeNode):
    """`tailor 1`."""

    number: Fixed


@final
class Declare(TreeNode):
    """`model NAME = SOURCE @ REVISION`, `… = ON + SOURCE`, `… = math, code by linear()`."""

    name: Word
    on: Word | None
    source: String | From
    revision: String | None


@final
class LetNode(TreeNode):
    """`let mix = 0.0..1.0`."""

    name: Word
    value: Fixed | Between | OneNumber


@final
class OthersNode(TreeNode):
    """`others.mlp from code`."""

    part: Word | None
    origin: From


@final
class WholeNode(TreeNode):
    """`whole from math, code by linear()`."""

    origin: From


@final
class Dtype(TreeNode):
    """`dtype bfloat16`."""

    name: Word


@final
class Rest(TreeNode):
    """`embed from chat`, `tokenizer union`, `chat_template "chatml"`, `chat_template from chat`."""

    where: Word
    origin: From | Word | String


@final
class Select(TreeNode):
    """`L0..L9 from math`."""

    layers: Layers
    origin: From


@final
class Assign(TreeNode):
    """`L12 = L14 chat`, `L12 = merge(…)`."""

    layers: Layers
    source: Picked | Merging


@final
class Dropping(TreeNode):
    """`drop L30..L39`."""

    layers: Layers


@final
class DroppingSome(TreeNode):
    """`drop any 4..10 of L0..L39`, `drop window n of L5..L28`."""

    what: Word
    count: Fixed | Between | Word
    layers: Layers


@final
class Repeating(TreeNode):
    """`repeat L14..L17 times 2`."""

    block: Range
    times: Fixed | Between | None


@final
class RepeatingWindow(TreeNode):
    """`repeat window 3..8 of L10..L30 times 1..2`."""

    count: Fixed | Between
    layers: Layers
    times: Fixed | Between | None


@final
class Scaling(TreeNode):
    """`scale L12 by 0.9`."""

    layers: Layers
    factor: Numeral | Word


@final
class SettingNode(TreeNode):
    """`tokens 65536`, `rank full`."""

    name: Word
    value: Numeral | Word


@final
class Cutting(TreeNode):
    """`width 1280 on "text" tokens 65536`."""

    what: Word
    size: Fixed | SizesNode | Word
    on: String
    settings: tuple[SettingNode, ...]


@final
class Bridging(TreeNode):
    """`bridge L11 by patch on "text" tokens 65536 ridge 0.1`."""

    after: LayerWord | None
    by: Word | None
    on: String
    settings: tuple[SettingNode, ...]


@final
class AnswersNode(TreeNode):
    """`answers("prompts", tokens=256, temperature=0.7)`."""

    file: String
    settings: tuple[SettingNode, ...]


@final
class HealTextNode(TreeNode):
    """`"text" from math weight 2`, `answers("prompts") from code`."""

    text: String | AnswersNode
    teacher: Word | None
    weight: Numeral | None


@final
class HealNode(TreeNode):
    """`heal L12..L20 from chat on "text", "other" tokens 200000 rank full seed 0`."""

    layers: Layers | None
    teacher: Word | None
    on: tuple[HealTextNode, ...]
    settings: tuple[SettingNode, ...]


@final
class Limit(TreeNode):
    """`limit 50 layers`."""

    count: Fixed


@final
class ObjectiveNode(TreeNode):
    """`minimize nll("text")`; by itself an objective needs no direction."""

    direction: Word | None
    measure: CallNode


@final
class BoundNode(TreeNode):
    """`40000`, `110M`, `0.75 * base` or `base`."""

    number: Fixed | None
    of: Word | None


@final
class BoundedNode(TreeNode):
    """`require parameters() <= 0.75 * base`, `expect nll("text") < base`."""

    keyword: Word
    measure: CallNode
    sign: Word
    bound: BoundNode


@final
class BudgetNode(TreeNode):
    """`fidelity 64..1024`, `trials 500`, `seed 0`."""

    name: Word
    first: Fixed
    last: Fixed | None = None


@final
class Block(TreeNode):
    """`stack { … }` or `search { … }`."""

    name: Word
    statements: "tuple[Statement, ...]"
    closing: tuple[str, ...]  # comments before the brace that closes


@final
class Statement(TreeNode):
    """A statement with its comments: those on lines before it, and the one behind it."""

    body: TreeNode
    tied: Word | None = None
    maybe: Word | None = None
    above: tuple[str, ...] = ()
    behind: str = ""


@final
class File(TreeNode):
    """A whole text."""

    statements: tuple[Statement, ...]
    closing: tuple[str, ...]  # comments after the last statement
