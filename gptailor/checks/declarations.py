"""Rules of declarations in a plan by itself: its version, names, sources, and models of models."""

import re
from collections.abc import Iterator

from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place, listed, nearest
from gptailor.plan.model_dependencies import below, needed, undecided_models
from gptailor.plan.plan import PLAN_SUFFIX, Model, Plan, TemplateOf, is_at_url
from gptailor.plan.registry import WORDS
from gptailor.plan.sites import compared_models, named_models, recipes


@rule("P102")
def _the_version_is_known(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a version of the language that doesn't exist."""
    if plan.version != 1:
        message = f"unknown version {plan.version} of the language"
        yield Fault("P102", message, ("version",), "write 'tailor 1', or update gptailor")


@rule("P103", missing_in=("model",))
def _base_is_declared(plan: Plan) -> Iterator[Fault]:
    """Yield a fault if no model is named `base`, which gives all that the plan leaves out."""
    if "base" not in plan.models:
        help_ = 'add a line such as model base = "./models/base"'
        near = next((name for name in plan.models if nearest("base", [name])), None)
        help_ = help_ if near is None else f"rename '{near}' to 'base', or {help_}"
        yield Fault("P103", "no model is named 'base'", ("models",), help_)


@rule("P105")
def _every_name_is_valid(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each name that isn't an identifier, or that the language has as a word."""
    names = [("model", ("models", name, "name"), name) for name in plan.models]
    names += [("number", ("numbers", name, "name"), name) for name in plan.numbers]
    for what, at, name in names:
        if re.fullmatch(r"L\d+", name):
            yield Fault("P105", f"'{name}' is the name of a layer", at, "choose another name")
        elif name in WORDS:
            yield Fault("P105", f"'{name}' is a reserved word", at, "choose another name")
        elif not re.fullmatch(r"[^\W\d]\w*", name):
            help_ = "use letters, digits and '_', and don't begin with a digit"
            yield Fault("P105", f"'{name}' is not a valid name for a {what}", at, help_)


@rule("P106", missing_in=("model",))
def _every_model_is_declared(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each undeclared model in recipes, adapters, objectives and healing."""
    references = [
        (at + inner, name) for at, r in recipes(plan) for inner, name, _ in named_models(r)
    ]
    if plan.heal is not None:
        references += [(at, name) for name, at in plan.heal.named_teachers.items()]
    if isinstance(plan.chat_template, TemplateOf):
        references.append((("chat_template", "model"), plan.chat_template.model))
    references += [(("models", n, "on"), m.on) for n, m in plan.models.items() if m.on is not None]
    references += compared_models(plan)
    for at, name in references:
        if name not in plan.models:
            models = listed(f"'{model}'" for model in list(plan.models)[:8])
            declared = f"declared: {models}" if models else "no model is declared"
            help_ = nearest(name, plan.models) or declared
            yield Fault("P106", f"the model '{name}' is not declared", at, help_)


@rule("P109", "P110")
def _every_source_is_valid(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each source that isn't a folder, URL or Hub id, and misplaced revision."""
    for name, model in plan.models.items():
        at = ("models", name, "source")
        local = model.source[:1] in (".", "/", "~")
        at_url = is_at_url(model.source)
        if model.made is not None:
            if model.source or model.on is not None or model.revision is not None:
                message = f"'{name}' has both a recipe and a source"
                yield Fault("P109", message, ("models", name), "keep one of the two")
        elif re.search(r'["\r\n]', model.source + (model.revision or "")) or "\0" in model.source:
            yield Fault(
                "P109", "a source can't contain quotes or line ends", at, "rename the folder"
            )
        elif not model.source:
            yield Fault(
                "P109", f"the source of '{name}' is empty", at, "name a folder, a URL or a Hub id"
            )
        elif (local or at_url) and model.revision is not None:
            kind = "a URL" if at_url else "a local path"
            message = f"'{model.source}' is {kind}, which can't have a revision"
            yield Fault("P110", message, ("models", name, "revision"), "remove the revision")
        elif model.source.endswith(PLAN_SUFFIX):
            yield from _misplaced_plan_file(model, at, local)
        elif not (local or at_url) and not re.fullmatch(
            r"[\w.-]+(/[\w.-]+)?", model.source, re.ASCII
        ):
            help_ = f"begin the path of a local folder with '.', '/' or '~': \"./{model.source}\""
            yield Fault("P109", f"'{model.source}' is not a valid Hub id", at, help_)


def _misplaced_plan_file(model: Model, at: Place, local: bool) -> Iterator[Fault]:
    """Yield a fault for a plan as an adapter, and for a plan without a local path."""
    if model.on is not None:
        message = f"expected a folder for an adapter, got the plan '{model.source}'"
        yield Fault("P109", message, at, "name the adapter's folder")
    elif not local:
        help_ = f"begin the path of a plan with '.', '/' or '~': \"./{model.source}\""
        yield Fault(
            "P109", f"expected a model on the Hub, got the plan '{model.source}'", at, help_
        )


# ---------------------------------------------------------------------------- models made of models


@rule("P107")
def _no_model_is_made_of_itself(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each circle of models that are made of, or adapt, each other."""
    done: set[str] = set()
    for name in plan.models:
        chain: dict[str, None] = {}  # the way from the name to the model that is looked at
        ahead = [iter((name,))]
        while ahead:
            at = next(ahead[-1], None)
            if at is None:
                ahead.pop()
                done.add(chain.popitem()[0] if chain else name)
            elif at in chain:
                names = list(chain)
                yield _circle(plan, [*names[names.index(at) :], at])
                done.update(chain)
            elif at in plan.models and at not in done:
                chain[at] = None
                ahead.append(iter(below(plan.models[at])))


def _circle(plan: Plan, names: list[str]) -> Fault:
    """Return the fault of a circle of models; its first name is also its last."""
    help_ = "end the chain at a folder or a model on the Hub"
    at = next((name for name in names if plan.models[name].made is not None), names[-1])
    field = "on" if plan.models[at].made is None else "made"
    message = f"the model '{at}' depends on itself: {' -> '.join(names)}"
    return Fault("P107", message, ("models", at, field), help_)


@rule("P111")
def _the_base_is_a_checkpoint(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for a base made of models: task vectors are taken against the base."""
    base = plan.models.get("base")
    if base is not None and (base.made is not None or base.on is not None):
        for name in needed(plan, ["base"]):
            if plan.models[name].made is not None:
                help_ = "name a folder, a model on the Hub, or the file of a plan"
                message = "expected a checkpoint as the base, got a merge of models"
                yield Fault("P111", message, ("models", name, "made"), help_)


@rule("P112")
def _every_adapter_is_on_one_model(plan: Plan) -> Iterator[Fault]:
    """Yield a fault for each adapter on a model with choices, which opening it doesn't close."""
    chosen = undecided_models(plan)
    for name, model in plan.models.items():
        if model.on in chosen:
            message = f"expected one model for the adapter, got '{model.on}' with choices"
            help_ = "put the adapter on one of its models, or close its choices"
            yield Fault("P112", message, ("models", name, "on"), help_)


@rule("P402")
def _a_union_is_of_checkpoints(plan: Plan) -> Iterator[Fault]:
    """Yield a fault, with a union, for a model that no folder holds: it has no tokens."""
    for name, model in plan.models.items() if plan.tokenizer == "union" else ():
        plan_of = model.made is None and model.source.endswith(PLAN_SUFFIX)
        if model.made is not None or plan_of:
            what = "is a plan" if plan_of else "is a merge"
            message = f"expected model folders for a union of tokenizers, but '{name}' {what}"
            help_ = "compile it and name the folder, or write 'tokenizer from' a model"
            yield Fault("P402", message, ("tokenizer",), help_)
            return
