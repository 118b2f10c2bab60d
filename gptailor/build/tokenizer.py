"""The output's tokenizer: whose it is, its files, and its chat template."""

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
from gptailor.checkpoint.models import folder_of
from gptailor.plan.optional_packages import packages_needed
from gptailor.plan.plan import Plan, TemplateOf
from gptailor.plan.sites import named_models
from gptailor.prepare import Prepared, chain, declaring


def tokenizer_model_name(plan: Plan) -> str:
    """The name of the model whose tokenizer the output has."""
    recipe = plan.rest("tokenizer")
    return "base" if recipe is None else next(named_models(recipe))[1]


def _teller(prepared: Prepared, name: str) -> str:
    """The model whose tokenizer a model has: of a plan's output that which the plan says."""
    while True:
        plan, before, short = declaring(prepared.plan, prepared.models, name)
        lowest = before + chain(plan, short)[0]
        inner = prepared.models[lowest].inner if lowest in prepared.models else None
        if inner is None:
            return name
        name = f"{lowest}.{tokenizer_model_name(inner.plan)}"


def tokenizer(prepared: Prepared) -> dict[str, bytes | Path]:
    """The output's tokenizer and how it generates: files, or what a GGUF file holds."""
    name = _teller(prepared, tokenizer_model_name(prepared.plan))
    model = prepared.models[name]
    checkpoint = model.checkpoint
    beside: dict[str, bytes | Path] = {
        str(path.relative_to(checkpoint.folder)): path
        for path in checkpoints.tokenizer_files(checkpoint)
    }
    if model.union is not None:
        beside = dict(model.union.files)
    if not beside and is_gguf(checkpoint.files[0]):
        from gptailor.evaluate.gguf_tokenizer import tokenizer_from_gguf

        with packages_needed("the tokenizer of a GGUF file"):
            beside |= tokenizer_from_gguf(checkpoint.files[0])
    if (path := checkpoints.generation_config(checkpoint)) is not None:
        beside[path.name] = path
    said = prepared.plan.chat_template
    return beside if said is None else with_templates(beside, _templates(prepared))


def _templates(prepared: Prepared) -> dict[str, str]:
    said = prepared.plan.chat_template
    if isinstance(said, TemplateOf):
        return templates_of(prepared.models[_teller(prepared, said.model)].checkpoint)
    path = template_file(prepared.plan)
    return {DEFAULT: NAMED_TEMPLATES[str(said)] if path is None else read_template(path)}


def template_file(plan: Plan) -> Path | None:
    """The file that the output's chat template is in, if the plan names one."""
    said = plan.chat_template
    named = isinstance(said, str) and said not in NAMED_TEMPLATES
    return folder_of(plan, str(said)) if named else None


def tokenizer_inputs(prepared: Prepared, name: str) -> Iterator[Path]:
    """What is read of a model for the output's tokenizer and its chat template."""
    plan, checkpoint = prepared.plan, prepared.models[name].checkpoint
    said = plan.chat_template
    tells = name == _teller(prepared, tokenizer_model_name(plan))
    templated = isinstance(said, TemplateOf) and name == _teller(prepared, said.model)
    inner = (one.inner.plan for one in prepared.models.values() if one.inner is not None)
    if tells or templated or any(one.tokenizer is not None for one in (plan, *inner)):
        yield from checkpoints.tokenizer_files(checkpoint)
    if tells and (generates := checkpoints.generation_config(checkpoint)) is not None:
        yield generates


def is_beside(name: str) -> bool:
    """Whether a model's file is one of its tokenizer, or of how it generates."""
    return (
        name in checkpoints.TOKENIZER_FILES
        or name == checkpoints.GENERATION_CONFIG
        or name.endswith(".jinja")
    )
