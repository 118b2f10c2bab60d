"""The output's tokenizer: the model it is from, its files, and its chat template."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from gptailor.checkpoint import folder as checkpoints
from gptailor.checkpoint.files import Stamp, is_gguf, stamps
from gptailor.checkpoint.models import chain, folder_of
from gptailor.checkpoint.tokenizer_settings import (
    DEFAULT,
    NAMED_TEMPLATES,
    read_template,
    templates_of,
    with_templates,
)
from gptailor.plan.optional_packages import packages_needed
from gptailor.plan.plan import Plan, TemplateOf
from gptailor.plan.sites import named_models
from gptailor.prepare import declaring
from gptailor.program.sources import Checked


def tokenizer_model_name(plan: Plan) -> str:
    """Return the name of the model that gives the output's tokenizer."""
    recipe = plan.rest("tokenizer")
    return "base" if recipe is None else next(named_models(recipe))[1]


def _teller(checked: Checked, name: str, *, cut: bool = False) -> str:
    """Return the model that gives a model's tokenizer, following plans that are models.

    With `cut` a plan with a smaller vocabulary gives its own.
    """
    while True:
        plan, before, short = declaring(checked.resolved.declared, checked.models, name)
        lowest = before + chain(plan, short)[0]
        inner = checked.models[lowest].inner if lowest in checked.models else None
        if inner is None or (cut and inner.plan.vocabulary is not None):
            return name
        name = f"{lowest}.{tokenizer_model_name(inner.plan)}"


def tokenizer(checked: Checked) -> dict[str, bytes | Path]:
    """Return the output's tokenizer and generation settings: files, or a GGUF file's content."""
    plan = checked.resolved.declared
    name = _teller(checked, tokenizer_model_name(plan), cut=True)
    model = checked.models[name]
    checkpoint = model.checkpoint
    beside: dict[str, bytes | Path] = {
        str(path.relative_to(checkpoint.folder)): path
        for path in checkpoints.tokenizer_files(checkpoint)
    }
    if model.union is not None:
        beside = dict(model.union.files)
    if (cut := checked.token_cut) is not None:
        beside = dict(cut.files)
    if not beside and is_gguf(checkpoint.files[0]):
        beside |= _of_gguf(checkpoint.files[0], tuple(stamps(checkpoint.files[:1]).values()))
    if (path := checkpoints.generation_config(checkpoint)) is not None:
        beside.setdefault(path.name, path)
    return beside if plan.chat_template is None else with_templates(beside, _templates(checked))


@lru_cache(maxsize=8)
def _of_gguf(file: Path, _: tuple[Stamp, ...]) -> Mapping[str, bytes]:
    """Return the tokenizer of a GGUF file, kept while the file is unchanged."""
    from gptailor.evaluation.gguf_tokenizer import tokenizer_from_gguf

    with packages_needed("the tokenizer of a GGUF file"):
        return tokenizer_from_gguf(file)


def _templates(checked: Checked) -> dict[str, str]:
    template = checked.resolved.declared.chat_template
    if isinstance(template, TemplateOf):
        return templates_of(checked.models[_teller(checked, template.model)].checkpoint)
    path = template_file(checked.resolved.declared)
    return {DEFAULT: NAMED_TEMPLATES[str(template)] if path is None else read_template(path)}


def template_file(plan: Plan) -> Path | None:
    """Return the file of the output's chat template, if the plan names one."""
    template = plan.chat_template
    is_file = isinstance(template, str) and template not in NAMED_TEMPLATES
    return folder_of(plan, str(template)) if is_file else None


def tokenizer_inputs(checked: Checked, name: str) -> Iterator[Path]:
    """Yield the files that are read of a model for the output's tokenizer and chat template."""
    plan, checkpoint = checked.resolved.declared, checked.models[name].checkpoint
    template = plan.chat_template
    tells = name == _teller(checked, tokenizer_model_name(plan))
    templated = isinstance(template, TemplateOf) and name == _teller(checked, template.model)
    inner = (model.inner.plan for model in checked.models.values() if model.inner is not None)
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
