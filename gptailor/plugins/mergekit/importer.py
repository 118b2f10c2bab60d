"""A mergekit configuration as a plan, with notes on each difference: `from_mergekit`."""

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, final

from gptailor.checks.plan import check_alone
from gptailor.lang.importers import ConversionError, Importer, Note
from gptailor.plan import plan as p
from gptailor.plan.arguments import Positive
from gptailor.plan.faults import Origin, Source, errors, listed, nearest
from gptailor.plan.registry import CHAT_TEMPLATES, DTYPES, WORDS
from gptailor.plugins.mergekit.base import MODEL_ID, Base, ModelFolders, is_windows
from gptailor.plugins.mergekit.config import (
    Document,
    MergekitConfig,
    ModelPath,
    ModelReference,
    ignored_errors,
    read_config,
    read_documents,
)
from gptailor.plugins.mergekit.context import ImportContext
from gptailor.plugins.mergekit.statements import statements

_WINDOWS = "expected a path of this machine; give it by --model NAME=PATH"
_SNAPSHOT = "this folder is missing, so the plan names the Hub's model at that commit"
_ROUNDS = "mergekit computes in {} and rounds at each step; gptailor in float32, and rounds once"
_PROMOTED = (
    "no dtype is named, and the models have {}: mergekit writes the widest of each tensor's "
    "sources, and the plan float32"
)
_STAGE_TOKENIZER = "the output has only the last document's tokenizer and template"
_NO_BASE = (
    "no base_model is named: '{}' is the base of configuration and tokenizer; "
    "mergekit takes them from any of the models, which may differ from run to run"
)
_ROWS = (
    "rows of tokens that a model lacks are this tokenizer's model's; mergekit takes the base's "
    "where that has the token"
)
_NAME_TEMPLATE = "'chat_template from NAME' takes a model's, 'chat_template \"./FILE\"' a file"

_Tokenizer = p.Take | Literal["union"] | None


@final
class ConversionWarning(UserWarning):
    """A part of another tool's file that a plan expresses differently."""


def import_mergekit(
    text: str,
    *,
    layers: Positive | None = None,
    models: Mapping[str, str | Path] | None = None,
    folder: str | Path = ".",
    strict: bool = False,
) -> p.Plan:
    """Return the plan of a mergekit configuration's text.

    `models` are folders with the models' configurations, by the names in the text, and `layers` is
    the base's number of layers if there is no configuration. Relative paths start at `folder`. Each
    part that the plan expresses differently is a warning (`ConversionWarning`); with `strict` keys
    and filters that mergekit ignores are refused.

    Raises ConversionError for a configuration that can't be converted.
    """
    folders = {name: Path(path) for name, path in (models or {}).items()}
    place = Path(folder)
    plan, notes = from_mergekit(
        text, "<text>", layers, root=place, folder=place, models=folders, strict=strict
    )
    for note in notes:
        warnings.warn(str(note), ConversionWarning, stacklevel=3)  # of the verb's caller
    return plan.read_from(Origin(Source("<text>", text), place))


def from_mergekit(  # noqa: PLR0913 (the verb of the command line, and its flags)
    text: str,
    name: str,
    layers: int | None = None,
    *,
    root: Path | None = None,
    folder: Path | None = None,
    models: Mapping[str, Path] | None = None,
    on_hub: bool = False,
    strict: bool = False,
) -> tuple[p.Plan, list[Note]]:
    """Return the plan of a configuration, and notes on differences and missing equivalents.

    The base's configuration is looked for in `models` (folders by the file's or the plan's names
    of models), under `root`, where relative paths start, and, with `on_hub`, in the Hub's cache and
    on the Hub; `layers` is its number of layers if there is no configuration. `folder` is the
    plan's own, from which it names paths. With `strict` keys and filters that mergekit passes over
    are errors. Raises ConversionError, with all keys and lines that a plan can't express.
    """
    if name.endswith(p.PLAN_SUFFIX):
        raise ConversionError(
            "expected a mergekit configuration, got a plan",
            name=name,
            help="compile it directly: gptailor compile PLAN -o DIR",
        )
    documents = read_documents(text, name)
    for document in documents:
        _refuse_other_tools(document)
    read = [read_config(document) for document in documents]
    *stage_configs, last = _in_order([config for config, _ in read])
    reference = _base_of({str(config.name): config for config in stage_configs}, last)
    base = Base(reference, ModelFolders(root, models or {}, on_hub), layers)
    try:
        contexts = [ImportContext.of(config, base) for config in (*stage_configs, last)]
    except ConversionError as error:
        further = ((*_dtype_errors(config), *ignored_errors(notes)) for config, notes in read)
        raise ConversionError.of_all([error, *chain.from_iterable(further)]) from None
    *stages, context = contexts
    context.notes += [note for _, notes in read for note in notes]
    plan_models = _name_models(contexts, folder)
    for stage in stages:
        plan_models[stage.names[_stage_reference(stage.config)]] = _made_model(stage)
        context.notes += stage.notes
    fields = statements(context)
    dtype, tokenizer = _dtype(context), _tokenizer(context)
    template = _chat_template(context)
    _raise_errors(context)
    plan = p.Plan(
        models=plan_models, dtype=dtype, tokenizer=tokenizer, chat_template=template, **fields
    )
    context.notes += _file_notes(context)
    _raise_errors(context, strict=strict)
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, name=name, help=faults[0].help)
    return plan, grouped_notes(context.notes)


def _read_file(text: str, name: str, **options: Any) -> tuple[p.Plan, list[Note]]:
    """Return the plan of a configuration, for `gptailor import`.

    Relative paths start in the working folder, as mergekit's do.
    """
    return from_mergekit(text, name, root=Path.cwd(), on_hub=True, **options)


MERGEKIT = Importer(_read_file, options=True)
"""The importer of mergekit's configurations."""


def grouped_notes(notes: Iterable[Note]) -> list[Note]:
    """Return notes in order of their lines, with one note for all places of a message."""
    groups: dict[tuple[str, bool], list[Note]] = {}
    for note in sorted(dict.fromkeys(notes), key=lambda note: note.line or 0):
        groups.setdefault((note.message, note.ignored), []).append(note)
    return [replace(first, more=len(others)) for first, *others in groups.values()]


def _raise_errors(context: ImportContext, *, strict: bool = False) -> None:
    """Raise a context's errors, if any, with the ignored keys, which may be their reason.

    With `strict` ignored keys and filters are errors themselves.
    """
    ignored = ignored_errors(context.notes)
    if context.errors or (strict and ignored):
        raise ConversionError.of_all([*context.errors, *ignored])


# --------------------------------------------------------------------------------------- documents

_OTHER_TOOLS = {
    "experts": "this is a file of mergekit-moe, which makes a mixture of experts out of dense "
    "models with a router of its own: a plan's output has its base's architecture",
    "genome": "this is a file of mergekit-evolve, which searches: its result is a "
    "configuration of its own, which can be imported; 'gptailor search' searches a space",
    "modules": "this merges the modules of a model separately: write the slices or the models of "
    "one module at the top of the file",
    "stages": "this lists files for several merges: import each, or join them into one file of "
    "several documents, each with a 'name'",
}
"""Keys of files without slices or models at the top, most of them of mergekit's other tools."""


def _refuse_other_tools(document: Document) -> None:
    data = document.data
    for key, message in _OTHER_TOOLS.items() if isinstance(data, dict) else ():
        if data.get(key) and not (data.get("slices") or data.get("models")):
            raise document.error((key,), message)


def _references(config: MergekitConfig) -> list[ModelReference]:
    return [reference for reference, _, _ in config.references()]


def _base_of(stages: Mapping[str, MergekitConfig], last: MergekitConfig) -> ModelReference:
    """Return the base: the last document's, through the documents that it is made of.

    Without a `base_model` it is the first model that no document makes.
    """
    config, reference = last, last.base_model
    while reference is not None and reference.model.path in stages:
        config = stages[reference.model.path]
        reference = config.base_model or _references(config)[0]
    if reference is not None:
        return reference
    references = [r for one in (last, *stages.values()) for r in _references(one)]
    return next((r for r in references if r.model.path not in stages), references[0])


def _stage_reference(config: MergekitConfig) -> ModelReference:
    """Return the reference in other documents to a document's model."""
    return ModelReference.model_validate(config.name)


def _in_order(configs: Sequence[MergekitConfig]) -> list[MergekitConfig]:
    """Return the documents, each after the documents that it names; the last has no name."""
    final = [config for config in configs if config.name is None] or [configs[-1]]
    if len(final) > 1:
        raise final[1].error("two documents have no 'name', and one of them uses others")
    by_name = {str(config.name): config for config in configs}
    if len(by_name) < len(configs):
        raise configs[-1].error("two documents have the same 'name'")
    ordered: list[MergekitConfig] = []

    def add(config: MergekitConfig, inside: tuple[MergekitConfig, ...]) -> None:
        if config in inside:
            raise config.error(f"'{config.name}' depends on itself", "name")
        for reference, block, key in config.references():
            stage = by_name.get(reference.model.path)
            if stage is not None and reference.model.revision is not None:
                raise block.error(
                    f"'{stage.name}' is made in this file, so it can't have a revision",
                    key,
                    help=f"remove '@{reference.model.revision}'",
                )
            if stage is not None and stage not in ordered:
                add(stage, (*inside, config))
        ordered.append(config)

    add(final[0], ())
    if len(ordered) < len(configs):
        unused = next(config for config in configs if config not in ordered)
        raise unused.error(f"no other document uses '{unused.name}'", "name")
    return ordered


def _made_model(stage: ImportContext) -> p.Model:
    """Return a document as a model that one recipe makes of other models."""
    fields = statements(stage)
    _raise_errors(stage)
    whole = fields.pop("whole", p.Whole(recipe=p.Take(take=p.LayerOf(model="base"))))
    if any(fields.values()):
        raise stage.config.error(
            f"'{stage.config.name}' has several recipes, expected one for all its tensors",
            "name",
            help="import that document into a plan of its own, and name the plan as the "
            'model: model NAME = "./stage.tailor"',
        )
    if stage.config.dtype not in (None, "float32") or stage.config.out_dtype is not None:
        stage.notes.append(
            stage.config.note(
                "mergekit rounds the output of each stage; here the whole recipe is rounded once",
                "name",
            )
        )
    keys = ("tokenizer_source", "tokenizer", "chat_template")
    given = (key for key in keys if getattr(stage.config, key) is not None)
    stage.notes += [stage.config.note(_STAGE_TOKENIZER, key) for key in given]
    return p.Model(made=whole.recipe)


# ------------------------------------------------------------------------------------------ models


def _name_models(contexts: Sequence[ImportContext], folder: Path | None) -> dict[str, p.Model]:
    """Set the contexts' names of models, check the contexts, and return the plan's models.

    The model below an adapter is a model too. The plan names paths as seen from `folder`.
    """
    *stages, last = contexts
    base, folders = last.base.reference, last.base.folders
    names, models = {base: "base"}, dict[str, p.Model]()
    references = [base, *(r for context in contexts for r in _references(context.config))]
    both = (r for reference in references for r in (reference.without_adapter, reference))
    for reference in dict.fromkeys(both):
        here = reference.lora or reference.model
        name = names.setdefault(reference, short_name(here.path, names.values()))
        model = _model(here, folders, folder)
        if is_windows(here.path) and model.source.startswith("./"):
            last.notes.append(_path_note(contexts, here, _WINDOWS))
        if snapshot_of(here.path) and not model.source.startswith((".", "/", "~")):
            last.notes.append(_path_note(contexts, here, _SNAPSHOT))
        on = names[reference.without_adapter] if reference.lora else None
        models[name] = model.model_copy(update={"on": on})
    made = [names[_stage_reference(stage.config)] for stage in stages]
    for context in contexts:
        context.names, context.stages = names, frozenset(made)
        context.check()
    return models


_CACHE_FOLDER = re.compile(r".*models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?")


def snapshot_of(path: str) -> tuple[str, str] | None:
    """Return the commit and the model's id of a folder in the Hub's cache; None for other paths."""
    match = _CACHE_FOLDER.fullmatch(path)
    return None if match is None else (match[2], match[1].replace("--", "/", 1))


def short_name(path: str, used: Iterable[str]) -> str:
    """Return an unused name for a model: the last part of its path, as letters, digits and `_`.

    A snapshot in the Hub's cache gets the name of its model, not of its commit.
    """
    snapshot = snapshot_of(path)
    model = snapshot[1] if snapshot else path.rstrip("/\\")
    last = re.split(r"[/\\]", model)[-1]
    name = re.sub(r"\W+", "_", last.lower(), flags=re.ASCII).strip("_") or "model"
    if name[0].isdigit() or re.fullmatch(r"L\d+", name) or name in WORDS:
        name = f"model_{name}"
    used = {"base", *used}
    numbered = (f"{name}_{number}" for number in count(2))
    return next(candidate for candidate in chain([name], numbered) if candidate not in used)


def _path_note(contexts: Sequence[ImportContext], path: ModelPath, message: str) -> Note:
    """Return a note on a model's path, at the line of the first block that names it."""
    note = next(
        block.note(message, key)
        for context in contexts
        for reference, block, key in context.config.references()
        if path in (reference.model, reference.lora)
    )
    return Note(path.path, message, note.line, name=note.name)


def _model(here: ModelPath, folders: ModelFolders, folder: Path | None) -> p.Model:
    """Return a plan's model: a folder, or a model of the Hub at a revision."""
    source, root = here.path, folders.root
    on_disk = root is not None and not is_windows(source) and (root / source).is_dir()
    if not on_disk and (snapshot := snapshot_of(source)) is not None:
        return p.Model(source=snapshot[1], revision=snapshot[0])
    if not on_disk and not source.startswith((".", "/", "~")) and MODEL_ID.fullmatch(source):
        return p.Model(source=source, revision=here.revision)
    if is_windows(source):
        source = source.replace("\\", "/")
    elif root is not None and folder is not None and not source.startswith(("/", "~")):
        source = os.path.relpath(root / source, folder)
    return p.Model(source=source if source.startswith((".", "/", "~")) else f"./{source}")


# ---------------------------------------------------------------------------- the rest of the model


def _dtypes(config: MergekitConfig) -> dict[str, str]:
    """Return the dtypes of a configuration by their keys."""
    values = {"dtype": config.dtype, "out_dtype": config.out_dtype}
    return {key: name.removeprefix("torch.") for key, name in values.items() if name is not None}


def _dtype_errors(config: MergekitConfig) -> list[ConversionError]:
    return [
        config.error(
            f"there is no dtype '{name}' for an output",
            key,
            help=nearest(name, DTYPES) or f"the dtypes are {listed(DTYPES)}",
        )
        for key, name in _dtypes(config).items()
        if name not in DTYPES
    ]


def _dtype(context: ImportContext) -> str | None:
    """Return the dtype of the output; None where it is the base's."""
    config = context.config
    dtypes = _dtypes(config)
    context.errors += _dtype_errors(config)
    computed = dtypes.get("dtype")
    if computed not in (None, "float32") and context.merges:
        context.notes.append(config.note(_ROUNDS.format(computed), "dtype"))
    if not dtypes and len(context.names) > 1:
        return _widest_dtype(context)
    return dtypes.get("out_dtype", computed)


def _widest_dtype(context: ImportContext) -> str | None:
    """Return the dtype that mergekit writes by default; None where it is the base's."""
    dtypes = {
        context.base.folders.dtype(reference, name) for reference, name in context.names.items()
    }
    if None in dtypes or not dtypes <= DTYPES.keys() or (len(dtypes) > 1 and not context.merges):
        context.notes.append(
            context.config.note(
                "no dtype is named: mergekit writes each tensor in the widest dtype of its "
                "sources, the plan in the base's; name one if the models have several"
            )
        )
        return None
    if len(dtypes) == 1:
        return None
    context.notes.append(context.config.note(_PROMOTED.format(listed(sorted(map(str, dtypes))))))
    return "float32"  # of any two that differ, also of float16 and bfloat16


def _tokenizer(context: ImportContext) -> _Tokenizer:
    """Return the model that gives the tokenizer, or a union; None where it is the base's."""
    config = context.config
    at = ("tokenizer_source",) if config.tokenizer is None else ("tokenizer", "source")
    source = config.tokenizer_source if config.tokenizer is None else config.tokenizer.source
    if source is None:
        return None
    tokenizer: _Tokenizer = None
    if str(source) == "union":
        tokenizer = _union(context)
    elif str(source) != "base" and source not in context.names:
        context.errors.append(config.error(f"'{source}' isn't one of the merged models", *at))
    elif str(source) != "base" and (name := context.names[source]) != "base":
        tokenizer = p.Take(take=p.LayerOf(model=name))
        context.notes += [config.note(_ROWS, *at)] if len(context.names) > 2 else []
    context.errors += _unsupported_rows(context, tokenizer)
    return tokenizer


def _union(context: ImportContext) -> _Tokenizer:
    """Return the model with the tokens of all models, numbered as in the base.

    None if it is the base; `union` if no model has all tokens, or a tokenizer is missing.
    """
    vocabularies: dict[str, Mapping[str, int]] = {}
    for reference, name in context.names.items():
        if name not in context.stages:
            vocabulary = context.base.folders.vocabulary(reference, name)
            if vocabulary is None:
                return "union"
            vocabularies[name] = vocabulary
    tokens = {token for vocabulary in vocabularies.values() for token in vocabulary}
    base = vocabularies.get("base", {})
    for name in sorted(vocabularies, key=lambda name: name != "base"):
        ids = vocabularies[name]
        if tokens <= ids.keys() and all(ids[token] == number for token, number in base.items()):
            return None if name == "base" else p.Take(take=p.LayerOf(model=name))
    return "union"


def _unsupported_rows(context: ImportContext, tokenizer: _Tokenizer) -> Iterator[ConversionError]:
    """Yield an error for each setting of the embedding's rows that no statement expresses."""
    config = context.config
    if config.tokenizer is None:
        return
    if config.tokenizer_source is not None:
        yield config.error(
            "expected 'tokenizer' or 'tokenizer_source', got both", "tokenizer_source"
        )
    if config.tokenizer.tokens:
        yield config.error(
            "'tokens' changes the embedding's rows, which a plan can't do",
            "tokenizer",
            "tokens",
            help="add the token to a model's tokenizer and embedding, and name its folder",
        )
    multiple = config.tokenizer.pad_to_multiple_of
    if multiple and not _is_padded(context, tokenizer, multiple):
        yield config.error(
            "'pad_to_multiple_of' adds rows without tokens, which a plan can't do",
            "tokenizer",
            "pad_to_multiple_of",
            help="remove it; the number of rows doesn't change the output's answers",
        )


def _is_padded(context: ImportContext, tokenizer: _Tokenizer, multiple: object) -> bool:
    """Return whether the tokenizer of one model has a multiple of that many tokens already."""
    if tokenizer == "union" or not isinstance(multiple, int):
        return False
    model = tokenizer.take.model if isinstance(tokenizer, p.Take) else "base"
    reference, name = next(pair for pair in context.names.items() if pair[1] == model)
    vocabulary = context.base.folders.vocabulary(reference, name)
    return vocabulary is not None and len(vocabulary) % multiple == 0


def _chat_template(context: ImportContext) -> str | None:
    """Return the name of the chat template; note any other template."""
    template = context.config.chat_template
    if template is None or template in CHAT_TEMPLATES:
        return template
    message = f"gptailor doesn't have mergekit's chat template '{template}'"
    if template == "auto":
        message = (
            "mergekit takes the template that most of the models have; here it is the tokenizer's "
            "own"
        )
    elif "{" in template:
        message = 'write the template into a file, and then chat_template "./FILE" in the plan'
    context.notes.append(context.config.note(f"{message}; {_NAME_TEMPLATE}", "chat_template"))
    return None


def _file_notes(context: ImportContext) -> Iterator[Note]:
    """Yield the notes on the method and the base."""
    config, method = context.config, context.method
    if method.differs and context.merges:
        yield config.note(method.differs, "merge_method")
    for name in ("max_iter", "tol"):
        if name in config.parameters and name in method.shared:
            yield config.note("gptailor's karcher iterates until it converges", "parameters", name)
    if config.base_model is None and len(context.names) > 1:
        yield config.note(_NO_BASE.format(context.base.reference))
