"""The output's tokenizer: the model it is from, its files, and its chat template."""

from collections.abc import Iterator
from pathlib import Path

from gptailor.checkpoint import folder as checkpoints
from gptailor.checkpoint.chat_template import (
    DEFAULT,
    NAMED_TEMPLATES,
    read_template,
    templates_of,
    with_templates,
)
from gptailor.checkpoint.files import is_gguf
from gptailor.checkpoint.models import chain, folder_of
from gptailor.plan.optional_packages import packages_needed
from gptailor.plan.plan import Plan, TemplateOf
from gptailor.plan.sites import named_models
from gptailor.prepare import Prepared, declaring


def tokenizer_model_name(plan: Plan) -> str:
    """Return the name of the model that gives the output's tokenizer."""
    recipe = plan.rest("tokenizer")
    return "base" if recipe is None else next(named_models(recipe))[1]


def _teller(prepared: Prepared, name: str, *, cut: bool = False) -> str:
    """Return the model that gives a model's tokenizer, following plans that are models.

    With `cut` a plan with a smaller vocabulary gives its own.
    """
    while True:
        plan, before, short = declaring(prepared.plan, prepared.models, name)
        lowest = before + chain(plan, short)[0]
        inner = prepared.models[lowest].inner if lowest in prepared.models else None
        if inner is None or (cut and inner.plan.vocabulary is not None):
            return name
        name = f"{lowest}.{tokenizer_model_name(inner.plan)}"


def tokenizer(prepared: Prepared) -> dict[str, bytes | Path]:
    """Return the output's tokenizer and generation settings: files, or a GGUF file's content."""
    name = _teller(prepared, tokenizer_model_name(prepared.plan), cut=True)
    model = prepared.models[name]
    checkpoint = model.checkpoint
    beside: dict[str, bytes | Path] = {
        str(path.relative_to(checkpoint.folder)): path
        for path in checkpoints.tokenizer_files(checkpoint)
    }
    if model.union is not None:
        beside = dict(model.union.files)
    if (cut := prepared.checked.token_cut) is not None:
        beside = dict(cut.files)
    if not beside and is_gguf(checkpoint.files[0]):
        from gptailor.evaluation.gguf_tokenizer import tokenizer_from_gguf

        with packages_needed("the tokenizer of a GGUF file"):
            beside |= tokenizer_from_gguf(checkpoint.files[0])
    if (path := checkpoints.generation_config(checkpoint)) is not None:
        beside.setdefault(path.name, path)
    template = prepared.plan.chat_template
    return beside if template is None else with_templates(beside, _templates(prepared))


def _templates(prepared: Prepared) -> dict[str, str]:
    template = prepared.plan.chat_template
    if isinstance(template, TemplateOf):
        return templates_of(prepared.models[_teller(prepared, template.model)].checkpoint)
    path = template_file(prepared.plan)
    return {DEFAULT: NAMED_TEMPLATES[str(template)] if path is None else read_template(path)}


def template_file(plan: Plan) -> Path | None:
    """Return the file of the output's chat template, if the plan names one."""
    template = plan.chat_template
    is_file = isinstance(template, str) and template not in NAMED_TEMPLATES
    return folder_of(plan, str(template)) if is_file else None


def tokenizer_inputs(prepared: Prepared, name: str) -> Iterator[Path]:
    """Yield the files that are read of a model for the output's tokenizer and chat template."""
    plan, checkpoint = prepared.plan, prepared.models[name].checkpoint
    template = plan.chat_template
    tells = name == _teller(prepared, tokenizer_model_name(plan))
    templated = isinstance(template, TemplateOf) and name == _teller(prepared, template.model)
    inner = (model.inner.plan for model in prepared.models.values() if model.inner is not None)
    if tells or templated or any(each.tokenizer is not None for each in (plan, *inner)):
        yield from checkpoints.tokenizer_files(checkpoint)
    if tells and (generates := checkpoints.generation_config(checkpoint)) is not None:
        yield generates


def is_beside(name: str) -> bool:
    """Return whether a model's file belongs to its tokenizer or its generation settings."""
    return (
        name in checkpoints.TOKENIZER_FILES
        or name == checkpoints.GENERATION_CONFIG
        or name.endswith(".jinja")
    )
