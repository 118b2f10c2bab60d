"""What a configuration says besides its layers: dtype, tokenizer, and notes on the whole file."""

from collections.abc import Iterator
from typing import Literal

from gptailor.convert.mergekit.reading import Reading
from gptailor.convert.note import ConversionError, Note
from gptailor.plan import plan as p
from gptailor.plan.faults import listed, nearest
from gptailor.plan.registry import CHAT_TEMPLATES, DTYPES

_ROUNDS = "mergekit computes in {} and rounds at each step; gptailor in float32, and rounds once"
_WIDEST = (
    "no dtype is named: mergekit writes each tensor in the widest dtype of its sources, the plan "
    "in the base's; name one if the models have several"
)
_PROMOTED = (
    "no dtype is named, and the models have {}: mergekit writes the widest of each tensor's "
    "sources, and the plan float32"
)
_NO_BASE = (
    "no base_model is named: '{}' is the base, whose configuration and tokenizer the output "
    "gets; mergekit takes those of any of the models, which may differ from run to run"
)
_ROWS = (
    "rows of tokens that a model lacks are this tokenizer's model's; mergekit takes the base's "
    "where that has the token"
)
_SAY = "'chat_template from NAME' takes a model's, 'chat_template \"./FILE\"' a file"
_CONVERGES = "gptailor's karcher goes on until it has converged"


def dtype_of(reading: Reading) -> str | None:
    """The dtype of the output."""
    config = reading.config
    found = {"dtype": config.dtype, "out_dtype": config.out_dtype}
    names = {key: name.removeprefix("torch.") for key, name in found.items() if name is not None}
    for key, name in names.items():
        if name not in DTYPES:
            help_ = nearest(name, DTYPES) or f"the dtypes are {listed(DTYPES)}"
            message = f"'{name}' is no dtype of an output here"
            reading.errors.append(config.error(message, key, help=help_))
    computed = names.get("dtype")
    if computed not in (None, "float32"):
        reading.notes.append(config.note(_ROUNDS.format(computed), "dtype"))
    if not names and len(reading.names) > 1:
        return _widest(reading)
    return names.get("out_dtype", computed)


def _widest(reading: Reading) -> str | None:
    """The dtype of what mergekit writes where the file names none, if it isn't the base's."""
    found = {reading.dtype(reference) for reference in reading.names}
    if None in found or not found <= DTYPES.keys() or (len(found) > 1 and not reading.merges):
        reading.notes.append(reading.config.note(_WIDEST))
        return None
    if len(found) == 1:
        return None
    dtype = "float32"  # of two that are not the same, also of float16 and bfloat16
    reading.notes.append(reading.config.note(_PROMOTED.format(listed(sorted(map(str, found))))))
    return dtype


def tokenizer_recipe(reading: Reading) -> p.Take | Literal["union"] | None:
    """The model whose tokenizer the output has, if it isn't the base, or the union of all."""
    config = reading.config
    at: tuple[str, ...] = ("tokenizer_source",)
    model = config.tokenizer_source
    if config.tokenizer is not None:
        at, model = ("tokenizer", "source"), config.tokenizer.source
    if model is None:
        return None
    wanted: p.Take | Literal["union"] | None = None
    if str(model) == "union":
        wanted = _whole_vocabulary(reading)
    elif str(model) != "base" and model not in reading.names:
        message = f"'{model}' is none of the models that are merged"
        reading.errors.append(config.error(message, *at))
    elif str(model) != "base" and (name := reading.names[model]) != "base":
        wanted = p.Take(take=p.LayerOf(model=name))
        reading.notes += [config.note(_ROWS, *at)] if len(reading.names) > 2 else []
    if config.tokenizer is not None:
        reading.errors += _rows_of_tokens(reading, wanted)
    return wanted


def _rows_of_tokens(
    reading: Reading, wanted: p.Take | Literal["union"] | None
) -> Iterator[ConversionError]:
    """What is said of rows that no statement says: tokens of its own, rows beyond all tokens."""
    config = reading.config
    assert config.tokenizer is not None
    if config.tokenizer_source is not None:
        message = "tokenizer and tokenizer_source don't go together"
        yield config.error(message, "tokenizer_source")
    if config.tokenizer.tokens:
        help_ = "add the token to a model's tokenizer and embedding, and name that by its folder"
        message = "'tokens' changes the embedding's rows, which no statement does"
        yield config.error(message, "tokenizer", "tokens", help=help_)
    if (multiple := config.tokenizer.pad_to_multiple_of) and not _is_padded(
        reading, wanted, multiple
    ):
        message = "'pad_to_multiple_of' adds rows of no token, which no statement does"
        help_ = "leave it out; a number of rows changes no answer"
        yield config.error(message, "tokenizer", "pad_to_multiple_of", help=help_)


def _is_padded(
    reading: Reading, wanted: p.Take | Literal["union"] | None, multiple: object
) -> bool:
    """Whether the tokens of one model's tokenizer are such a number already."""
    name = wanted.take.model if isinstance(wanted, p.Take) else "base"
    reference = next(one for one, of in reading.names.items() if of == name)
    tokens = None if wanted == "union" else reading.vocabulary(reference)
    return isinstance(multiple, int) and tokens is not None and len(tokens) % multiple == 0


def _whole_vocabulary(reading: Reading) -> p.Take | Literal["union"] | None:
    """The model whose tokenizer has all tokens of all models, as the base numbers them; or a union.

    The base's own if it has them all, so that there is nothing to say.
    """
    every = [model for model, name in reading.names.items() if name not in reading.stages]
    found = {reading.names[model]: reading.vocabulary(model) for model in every}
    known = [ids for ids in found.values() if ids is not None]
    if len(known) < len(found):
        return "union"
    tokens = {token for ids in known for token in ids}
    base = found["base"] or {}
    for name in sorted(found, key=lambda one: one != "base"):
        ids = found[name] or {}
        if tokens <= ids.keys() and all(ids[token] == number for token, number in base.items()):
            return None if name == "base" else p.Take(take=p.LayerOf(model=name))
    return "union"


def chat_template_of(reading: Reading) -> str | None:
    """The chat template that has a name here; a note on others."""
    given = reading.config.chat_template
    if not given:
        return None
    if given in CHAT_TEMPLATES:
        return str(given)
    message = f"mergekit has a chat template of the name '{given}', and gptailor none"
    if given == "auto":
        message = "mergekit takes the template that most of the models have; here it is the "
        message += "tokenizer's own"
    elif "{" in str(given):
        message = 'write the template into a file, and say chat_template "./FILE"'
    reading.notes.append(reading.config.note(f"{message}; {_SAY}", "chat_template"))
    return None


def notes_of_file(reading: Reading) -> Iterator[Note]:
    """Notes on the method and the base."""
    config, method = reading.config, reading.method
    if method.differs and reading.merges:
        yield config.note(method.differs, "merge_method")
    for block in reading.blocks:
        for name in ("max_iter", "tol"):
            if name in block.parameters and name in method.shared:
                yield block.note(_CONVERGES, "parameters", name)
    if config.base_model is None and len(reading.names) > 1:
        yield config.note(_NO_BASE.format(reading.reference))
