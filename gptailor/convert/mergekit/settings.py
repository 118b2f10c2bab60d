"""What a mergekit configuration says besides its recipes: parameters unread, dtype, tokenizer."""

from gptailor.convert.mergekit.config import ModelReference, Scope, reference
from gptailor.convert.mergekit.parameters import filter_matches, filters_of, unread
from gptailor.convert.mergekit.reading import Reading
from gptailor.plan.faults import Place, listed, nearest
from gptailor.plan.plan import LayerOf, Take
from gptailor.plan.registry import DTYPES

_PLAIN = ("weight", "density")
"""Parameters that task vectors have, and the base hasn't."""

_ROUNDS = "mergekit computes in {} and rounds at each step; gptailor in float32, and rounds once"
_ROWS = (
    "mergekit moves the embeddings' rows to fit that tokenizer; gptailor moves none, and wants "
    "models whose vocabularies are equal"
)
_NO_BASE = (
    "no base_model is named: '{}' is the base, whose configuration and tokenizer the output "
    "gets; mergekit takes those of any of the models, which may differ from run to run"
)

# ------------------------------------------------------------------------------------- parameters


def check_parameters(reading: Reading) -> None:
    """Name the parameters that do nothing, and the filters that no tensor has."""
    for scope in reading.scopes():
        for name, why in unread(
            reading.document, scope, reading.method.parameters, reading.config.method
        ).items():
            reading.note((*scope.at, name), why)
        _check_filters(reading, scope)
        if scope.values.get("int8_mask") is True and "int8_mask" in reading.method.shared:
            reading.note((*scope.at, "int8_mask"), "it saves mergekit memory, and changes nothing")
    for piece in reading.config.slices:
        for source in piece.sources:
            base = reading.is_base(piece, source) and "lambda" in reading.method.shared
            _check_of_source(reading, source.scope, is_base=base)


def _check_of_source(reading: Reading, scope: Scope, *, is_base: bool) -> None:
    for name in scope.values:
        if name in reading.method.shared:
            message = f"'{name}' of one source does nothing, in mergekit neither"
            reading.note((*scope.at, name), message)
        elif is_base and name in _PLAIN:
            reading.note((*scope.at, name), f"the base's own '{name}' does nothing")


def _check_filters(reading: Reading, scope: Scope) -> None:
    count = max(source.end for piece in reading.config.slices for source in piece.sources)
    names = reading.tensors.all(max(count, reading.config.length))
    for parameter, setting in scope.values.items():
        for filter_ in filters_of(setting):
            if any(filter_matches(filter_, name) for name in names):
                continue
            at = (*scope.at, parameter)
            if not reading.tensors.read:
                message = f"the filter '{filter_}' is of no tensor of a model such as Llama"
                help_ = "with the base's folder at hand its own tensors' names would count"
                raise reading.document.error(at, message, help_)
            reading.note(at, f"the filter '{filter_}' is of no tensor, and does nothing")


def check_slices(reading: Reading) -> None:
    """Refuse models that stand twice in a slice, and layers that the base hasn't."""
    count = reading.tensors.layers
    for piece in reading.config.slices:
        if piece.residual:
            reading.note((*piece.at, "residual_weight"), "it does nothing, in mergekit neither")
        seen: set[ModelReference] = set()
        for source in piece.sources:
            if source.model in seen:
                message = f"'{source.model}' stands twice in one slice, which mergekit refuses"
                raise reading.document.error((*source.at, "model"), message)
            seen.add(source.model)
            if count is not None and source.model == reading.base and source.end > count:
                message = f"the base has {count} layers, and the range ends at {source.end}"
                raise reading.document.error((*source.at, "layer_range"), message)


# -------------------------------------------------------------------------------- the output's rest


def dtype(reading: Reading) -> str | None:
    """The output's dtype."""
    computed, out = (_known_dtype(reading, key) for key in ("dtype", "out_dtype"))
    if computed not in (None, "float32"):
        reading.note(("dtype",), _ROUNDS.format(computed))
    return out or computed


def _known_dtype(reading: Reading, key: str) -> str | None:
    value = reading.config.say(key)
    if value is None:
        return None
    name = reading.document.text(value, (key,)).removeprefix("torch.")
    if name not in DTYPES:
        help_ = nearest(name, DTYPES) or f"the dtypes are {listed(DTYPES)}"
        raise reading.document.error((key,), f"'{name}' is no dtype of an output here", help_)
    return name


def tokenizer(reading: Reading) -> Take | None:
    """The model whose tokenizer the output has, if it isn't the base."""
    at, source = _tokenizer_source(reading)
    if source is None:
        return None
    reading.note(at, _ROWS)
    if source in ("union", "base"):
        return None
    model = reference(reading.document, source, at)
    if model not in reading.names:
        message = f"'{model}' is none of the models that are merged"
        raise reading.document.error(at, message)
    name = reading.names[model]
    return None if name == "base" else Take(take=LayerOf(model=name))


def _tokenizer_source(reading: Reading) -> tuple[Place, object]:
    document = reading.document
    source, settings = reading.config.say("tokenizer_source"), reading.config.say("tokenizer")
    if settings is None:
        return ("tokenizer_source",), source
    if source is not None:
        message = "tokenizer and tokenizer_source don't go together"
        raise document.error(("tokenizer_source",), message)
    settings = document.mapping(settings, ("tokenizer",))
    document.known(settings, ("source", "tokens", "pad_to_multiple_of"), ("tokenizer",))
    for key in ("tokens", "pad_to_multiple_of"):
        if settings.get(key):
            message = f"'{key}' changes the embedding's rows, which no statement does"
            raise document.error(("tokenizer", key), message)
    return ("tokenizer", "source"), settings.get("source") or "union"


def tell_of_the_rest(reading: Reading) -> None:
    """Note what holds for the file as a whole."""
    if reading.config.say("chat_template"):
        message = "a plan sets no chat template; the tokenizer's own stays"
        reading.note(("chat_template",), message)
    if reading.method.differs and reading.merges:
        reading.note(("merge_method",), reading.method.differs)
    for scope in reading.config.scopes:
        for name in ("max_iter", "tol"):
            if name in scope.values and name in reading.method.shared:
                message = "gptailor's karcher goes on until it has converged"
                reading.note((*scope.at, name), message)
    if reading.config.base is None and len(reading.names) > 1:
        reading.note((), _NO_BASE.format(reading.base))
