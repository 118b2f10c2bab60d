"""A mergekit configuration as a plan, and what of it the plan can't say: `from_mergekit`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gptailor.checks.plan import check_alone
from gptailor.convert.mergekit.arranged import statements
from gptailor.convert.mergekit.bases import Base, Whereabouts
from gptailor.convert.mergekit.config import MergekitConfig, ModelReference, read_config
from gptailor.convert.mergekit.reading import (
    Reading,
    check_over,
    name_models,
    read_over,
    sources_of,
)
from gptailor.convert.mergekit.rest import (
    chat_template_of,
    dtype_of,
    notes_of_file,
    tokenizer_recipe,
)
from gptailor.convert.note import ConversionError, Note, gathered
from gptailor.convert.yaml import Document, read_documents
from gptailor.plan import plan as p
from gptailor.plan.faults import errors

_STAGES = "mergekit rounds what each stage makes; here the whole recipe is rounded once"


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
    """The plan of a configuration, and what differs or has no equivalent, by its keys.

    The base's configuration is looked for in `models` (folders by the file's or the plan's names
    of models), under `root`, where relative paths start, and, with `on_hub`, in the Hub's cache and
    on the Hub; `layers` is its number of layers where that is all that is known. `folder` is where
    the plan will stand, as seen from which its paths are written. With `strict` keys that mergekit
    passes over are errors. Raises ConversionError, with all keys and lines, for what can't be said.
    """
    documents = read_documents(text, name)
    for document in documents:
        _refuse_other_tools(document)
    read = [read_config(document) for document in documents]
    places = Whereabouts(root, models or {}, on_hub)
    *stages, last = _in_order([config for config, _ in read])
    reference = _base([last, *stages], {stage.name for stage in stages})
    base = Base(reference, places, layers)
    readings = [read_over(config, base, reference, places) for config in (*stages, last)]
    made, reading = readings[:-1], readings[-1]
    said = _with_models(readings, folder)
    reading.notes[:0] = [note for _, ignored in read for note in ignored]
    reading.models = said
    reading.stages = frozenset(reading.names[_by_name(stage.config)] for stage in made)
    for stage in made:
        said[reading.names[_by_name(stage.config)]] = _made(stage)
        reading.notes += stage.notes
    fields = statements(reading)
    dtype, tokenizer = dtype_of(reading), tokenizer_recipe(reading)
    template = chat_template_of(reading)
    _raise(reading)
    plan = p.Plan(models=said, dtype=dtype, tokenizer=tokenizer, chat_template=template, **fields)
    reading.notes += notes_of_file(reading)
    if strict:
        reading.errors += _passed_over(reading)
        _raise(reading)
    if faults := errors(check_alone(plan)):
        raise ConversionError(faults[0].message, name=name, help=faults[0].help)
    return plan, gathered(reading.notes)


def _by_name(config: MergekitConfig) -> ModelReference:
    """How other documents name what a document makes."""
    return ModelReference.model_validate(config.name)


def _in_order(configs: Sequence[MergekitConfig]) -> list[MergekitConfig]:
    """The documents, what others are made of before them; last the one without a name."""
    final = [config for config in configs if config.name is None] or [configs[-1]]
    if len(final) > 1:
        message = "two documents have no 'name', and one of them is made of the others"
        raise final[1].error(message)
    by_name = {str(config.name): config for config in configs}
    if len(by_name) < len(configs):
        raise configs[-1].error("two documents have one 'name'")
    found: list[MergekitConfig] = []

    def add(config: MergekitConfig, inside: tuple[MergekitConfig, ...]) -> None:
        if config in inside:
            raise config.error(f"'{config.name}' is made of itself", "name")
        for source in sources_of(config):
            if source.model.path in by_name and by_name[source.model.path] not in found:
                add(by_name[source.model.path], (*inside, config))
        found.append(config)

    add(final[0], ())
    if len(found) < len(configs):
        idle = next(config for config in configs if config not in found)
        message = f"'{idle.name}' is a model by itself, which nothing here is made of"
        raise idle.error(message, "name")
    return found


def _base(configs: Sequence[MergekitConfig], stages: Collection[str | None]) -> ModelReference:
    """The base of all documents: the last one's, or else the first model that isn't made here."""
    models = [model for config in configs for model in sources_of(config)]
    return next((model for model in models if model.model.path not in stages), models[0])


def _with_models(readings: Sequence[Reading], folder: Path | None) -> dict[str, p.Model]:
    """Give all documents the same names of models; the plan's models."""
    last = readings[-1]
    each = [model for reading in readings for model in sources_of(reading.config)]
    said: list[Note] = []
    last.names, models = name_models((last.reference, *each), last.places, folder, said)
    last.notes += said
    for reading in readings:
        reading.names = last.names
        check_over(reading)
    return models


def _made(stage: Reading) -> p.Model:
    """A document as a model that is made of others, by one recipe for everything."""
    fields = statements(stage)
    _raise(stage)
    whole = fields.pop("whole", p.Whole(recipe=p.Take(take=p.LayerOf(model="base"))))
    if any(fields.values()):
        message = f"'{stage.config.name}' isn't made by one recipe for everything"
        help_ = (
            "import that document by itself, into a plan of its own, and name that as the model: "
            'model NAME = "./stage.tailor"'
        )
        raise stage.config.error(message, "name", help=help_)
    if stage.config.dtype not in (None, "float32") or stage.config.out_dtype is not None:
        stage.notes.append(stage.config.note(_STAGES, "name"))
    return p.Model(made=whole.recipe)


_OTHER_TOOLS = {
    "experts": "this is a file of mergekit-moe, which makes a mixture of experts out of dense "
    "models with a router of its own: a plan's output has its base's architecture",
    "genome": "this is a file of mergekit-evolve, which searches: what it found is a "
    "configuration of its own, which can be imported; 'gptailor search' searches a space",
    "stages": "this lists other files that are to be merged one after the other: import each, "
    "or join them into one file of several documents, each with its 'name'",
}
"""Keys of files that are others' than mergekit-yaml's and mergekit-multi's."""


def _refuse_other_tools(document: Document) -> None:
    data = document.data
    for key, message in _OTHER_TOOLS.items() if isinstance(data, dict) else ():
        if data.get(key) and "merge_method" not in data:
            raise document.error((key,), message)


def _raise(reading: Reading) -> None:
    """Raise what is wrong, if anything; what mergekit passes over too, as it may be the reason."""
    if reading.errors:
        raise ConversionError.of_all([*reading.errors, *_passed_over(reading)])


def _passed_over(reading: Reading) -> list[ConversionError]:
    passed, name = (note for note in reading.notes if note.ignored), reading.config.error("").name
    return [
        ConversionError(note.message, name=name, place=note.place, line=note.line)
        for note in passed
    ]
