"""Models that are made of others, as documents of their own: what refers to them, and what can't.

mergekit-multi makes a document with a `name` before those that name it as a model. Whatever text of
a document is such a name it takes for that model.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptailor.convert.note import ConversionError
from gptailor.plan.plan import Plan, Whole
from gptailor.plan.registry import DTYPES

STAGE_DTYPE = "float32"
"""What stages are computed and written in, so that nothing is rounded between them."""

_REFERENCES = ("model", "base_model")


def stage_plan(plan: Plan, name: str) -> Plan:
    """A plan whose output is a model that is made of others."""
    recipe = plan.models[name].made
    assert recipe is not None
    whole = Whole(recipe=recipe)
    return Plan(models=plan.models, numbers=plan.numbers, dtype=STAGE_DTYPE, whole=whole)


def stages_of(plan: Plan, document: Mapping[str, Any]) -> list[str]:
    """The models that are made of others, of those that a document is made of."""
    paths = (text.partition("+")[0] for key, text in _texts(document) if key in _REFERENCES)
    return [path for path in dict.fromkeys(paths) if _is_made(plan, path)]


def refuse_beside_stages(
    plan: Plan, stages: Sequence[str], documents: Sequence[Mapping[str, Any]]
) -> None:
    """Raise ConversionError for what mergekit would understand otherwise where it has stages."""
    if plan.tokenizer is not None:
        message = "each of mergekit's stages has a tokenizer of its own, the base's"
        help_ = f"compile '{stages[0]}' by itself, and name its folder"
        raise ConversionError(message, place="tokenizer", help=help_)
    if plan.dtype is None:
        message = (
            f"'{stages[0]}' is made of models, as a stage in {STAGE_DTYPE}, and without a dtype "
            "mergekit writes the output as wide as its sources are, not as the base is"
        )
        help_ = f"say 'dtype' with what the base has: {', '.join(DTYPES)}"
        raise ConversionError(message, place="dtype", help=help_)
    _refuse_names(plan, stages, [one for document in documents for one in _texts(document)])


def _refuse_names(plan: Plan, stages: Sequence[str], texts: Sequence[tuple[str, str]]) -> None:
    """Raise ConversionError for what would be taken for a stage, or for a model at all."""
    for name, model in plan.models.items():
        if model.made is None and model.on is None and model.source in stages:
            message = f"mergekit takes '{model.source}' for the model that is made of others"
            raise ConversionError(message, place=f"models.{name}", help=_rename(model.source))
    for key, text in (one for one in texts if one[0] not in (*_REFERENCES, "name")):
        if (path := text.partition("+")[0].partition("@")[0]) in stages:
            message = f"mergekit takes '{text}' for the model, where it is the document's {key}"
            raise ConversionError(message, place=f"models.{path}", help=_rename(path))
        if text.count("@") > 1 and text.count("+") < 2:  # it stops at what can be no model
            message = "mergekit takes a template with several '@' for a model, where it has stages"
            help_ = f"compile '{stages[0]}' by itself, and name its folder"
            raise ConversionError(message, place=key, help=help_)


def _rename(name: str) -> str:
    return f"give 'model {name}' another name"


def _is_made(plan: Plan, name: str) -> bool:
    return name in plan.models and plan.models[name].made is not None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a document, each with the key that it stands at."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _texts(one, inner)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _texts(one, key)
