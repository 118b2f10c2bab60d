"""What a configuration says besides its layers: dtype, tokenizer, and notes on the whole file."""

from collections.abc import Iterator

from gptailor.convert.mergekit.config import MergekitConfig
from gptailor.convert.mergekit.reading import Reading
from gptailor.convert.note import ConversionError, Note
from gptailor.plan import plan as p
from gptailor.plan.faults import listed, nearest
from gptailor.plan.registry import DTYPES

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
_NO_TEMPLATE = "a plan sets no chat template; the tokenizer's own stays"
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


def tokenizer_recipe(reading: Reading) -> p.Take | None:
    """The model whose tokenizer the output has, if it isn't the base."""
    config = reading.config
    at: tuple[str, ...] = ("tokenizer_source",)
    model = config.tokenizer_source
    if config.tokenizer is not None:
        reading.errors += _rows_of_tokens(config)
        at, model = ("tokenizer", "source"), config.tokenizer.source
    if model is None:
        return None
    if str(model) == "union":
        return _whole_vocabulary(reading, at)
    if str(model) == "base":
        return None
    if model not in reading.names:
        message = f"'{model}' is none of the models that are merged"
        reading.errors.append(config.error(message, *at))
        return None
    name = reading.names[model]
    if name != "base" and len(reading.names) > 2:
        reading.notes.append(config.note(_ROWS, *at))
    return None if name == "base" else p.Take(take=p.LayerOf(model=name))


def _rows_of_tokens(config: MergekitConfig) -> Iterator[ConversionError]:
    if config.tokenizer_source is not None:
        message = "tokenizer and tokenizer_source don't go together"
        yield config.error(message, "tokenizer_source")
    for key in ("tokens", "pad_to_multiple_of"):
        if getattr(config.tokenizer, key):
            message = f"'{key}' changes the embedding's rows, which no statement does"
            yield config.error(message, "tokenizer", key)


def _whole_vocabulary(reading: Reading, at: tuple[str, ...]) -> p.Take | None:
    """The model whose tokenizer has all tokens of all models, the base first."""
    config = reading.config
    found = {name: reading.vocabulary(reference) for reference, name in reading.names.items()}
    unknown = [name for name, vocabulary in found.items() if vocabulary is None]
    if unknown:
        whose = listed(f"'{name}'" for name in unknown)
        message = f"a union of tokenizers is asked for, and that of {whose} isn't known"
        help_ = "give folders with their tokenizers, by --model NAME=PATH"
        reading.errors.append(config.error(message, *at, help=help_))
        return None
    every = {token for vocabulary in found.values() for token in (vocabulary or {})}
    for name in sorted(found, key=lambda one: one != "base"):
        if every <= (found[name] or {}).keys():
            return None if name == "base" else p.Take(take=p.LayerOf(model=name))
    message = "no model's tokenizer has the tokens of all, and a plan makes no new one"
    help_ = "name the model whose tokenizer it is to be, by 'tokenizer_source'"
    reading.errors.append(config.error(message, *at, help=help_))
    return None


def notes_of_file(reading: Reading) -> Iterator[Note]:
    """Notes on the method, the base and the chat template."""
    config, method = reading.config, reading.method
    if config.chat_template:
        yield config.note(_NO_TEMPLATE, "chat_template")
    if method.differs and reading.merges:
        yield config.note(method.differs, "merge_method")
    for block in reading.blocks:
        for name in ("max_iter", "tol"):
            if name in block.parameters and name in method.shared:
                yield block.note(_CONVERGES, "parameters", name)
    if config.base_model is None and len(reading.names) > 1:
        yield config.note(_NO_BASE.format(reading.reference))
