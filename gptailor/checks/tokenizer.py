"""Rules of the output's tokenizer: its tokens, their rows, a union, a chat template."""

from collections.abc import Iterator

from gptailor.checkpoint.files import CheckpointError, is_gguf
from gptailor.checkpoint.folder import CONFIG, generation_config, processor_files, tokenizer_files
from gptailor.checkpoint.models import Opened, folder_of, is_local
from gptailor.checkpoint.tokenizer_settings import (
    files_with_code,
    names_code,
    read_template,
    templates_of,
)
from gptailor.checkpoint.vocabulary import (
    Vocabulary,
    counted,
    differing_splits,
    relation,
    same_files,
    shown_tokens,
)
from gptailor.checks.embedding_norm_head import END_NAMES
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place, listed
from gptailor.plan.plan import TemplateOf
from gptailor.plan.registry import CHAT_TEMPLATES
from gptailor.plan.resolved import own
from gptailor.plan.sites import layer_recipes, named_models
from gptailor.program.sources import AlignedRest, Checked, has_rows, needs_base

_ADD = "add its tokenizer.json"


@rule(stage=2)
def _every_tokenizer_can_be_read(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each unreadable tokenizer that the output's tokens depend on."""
    owner = checked.tokenizer_model
    names = {"base", owner.name} | _in_layers(checked)
    names |= checked.plan.heal.named_teachers.keys() if checked.plan.heal is not None else set()
    for where in ("embed", "head"):
        names |= {name for _, name, _ in named_models(checked.plan.rest(where) or own(0))}
    names |= set() if checked.union is None else checked.models.keys()
    models = sorted((names & checked.models.keys()) - {owner.name})
    for name in (owner.name, *models):
        model = checked.models[name]
        try:
            if name == owner.name or not same_files(
                model.checkpoint.folder, owner.checkpoint.folder
            ):
                _ = model.vocabulary
        except CheckpointError as error:
            message = f"{error.message} ({error.path})"
            yield Fault(error.code, message, ("models", name, "source"), error.help)
            if name == owner.name:  # nothing to compare the others with
                return


def _has_tokenizer(model: Opened) -> bool:
    """Return whether a model has a tokenizer that can be read, maybe in its GGUF file."""
    return model.vocabulary is not None or is_gguf(model.checkpoint.files[0])


# ------------------------------------------------------------------------------------------- unions


@rule("M208", "M211", "M226")
def the_union_can_be_made(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each tokenizer that a union can't take, and for tokens without a row."""
    union = checked.union
    if union is None:
        return
    unread = [model for model in checked.models.values() if model.vocabulary is None]
    for model in unread:
        message = f"'{model.name}' has no readable tokenizer, which a union needs"
        yield Fault("M211", message, ("models", model.name, "source"), _ADD)
    misfits = [*_misfits(checked)]
    yield from misfits
    if unread or misfits:
        return
    try:
        _ = union.files
    except CheckpointError as error:
        yield Fault(error.code, f"{error.message} ({error.path})", ("tokenizer",), error.help)
        return
    lacking = AlignedRest(checked, frozenset({"base"}))
    read = [(where, i) for where in ("embed", "head") for i in checked.base.rest(where)]
    missing_rows = (
        lacking.rows(where, i, union).missing for where, i in read if has_rows(where, i)
    )
    if missing := next(filter(None, missing_rows), None):
        tokens = [union.vocabulary.tokens.get(number, f"number {number}") for number in missing]
        message = f"no model has a row for {counted(tokens)} of the base: {shown_tokens(tokens)}"
        help_ = "remove them from the base's tokenizer"
        yield Fault("M226", message, ("tokenizer",), help_)


def _misfits(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each model with wider or narrower rows than the base."""
    for model in checked.models.values():
        for where in ("embed", "head"):
            base_tensor, tensor = (m.rest(where).get(0) for m in (checked.base, model))
            if (
                base_tensor is None
                or tensor is None
                or base_tensor.spec.shape[1:] == tensor.spec.shape[1:]
            ):
                continue
            shapes = f"{list(tensor.spec.shape)}, expected {list(base_tensor.spec.shape)}"
            message = (
                f"the {END_NAMES[where]} of '{model.name}' has the shape {shapes} as in the base"
            )
            help_ = "use a model with the same shapes"
            yield Fault("M208", message, ("models", model.name, "source"), help_)
            break


@rule("M312")
def _vocabularies_are_extended_not_mixed(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for each vocabulary with tokens that would split a text first."""
    union = checked.union
    if union is None or any(model.vocabulary is None for model in checked.models.values()):
        return
    for name, tokens in union.strangers.items():
        ordinary = counted(tokens).replace("token", "ordinary token")
        message = f"the union adds {ordinary} of '{name}': "
        help_ = "added tokens match anywhere in a text, even within words"
        at = ("models", name, "source")
        yield Fault("M312", message + shown_tokens(tokens), at, help_, severity="warning")


# ----------------------------------------------------------------------------------- chat templates


@rule("M211", "M225")
def the_chat_template_can_be_taken(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a template that can't be read, and for one without a tokenizer."""
    template, at = checked.plan.chat_template, ("chat_template",)
    if template is None:
        return
    try:
        if isinstance(template, TemplateOf):
            model = checked.models.get(template.model)
            if model is not None and not templates_of(model.checkpoint):
                message = f"'{template.model}' has no chat template"
                yield Fault("M225", message, (*at, "model"), "name another model or a file")
        elif is_local(template):
            read_template(folder_of(checked.plan, template))
    except CheckpointError as error:
        yield Fault(error.code, f"{error.message} ({error.path})", at, error.help)
    if not _has_tokenizer(checked.tokenizer_model):
        name = checked.tokenizer_model.name
        message = f"'{name}' has no readable tokenizer, which a chat template needs"
        yield Fault("M211", message, at, _ADD)


@rule("M311")
def _a_named_template_has_its_tokens(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for marks of a named template that aren't tokens of the output's."""
    template, union = checked.plan.chat_template, checked.union
    marks = CHAT_TEMPLATES.get(template, ()) if isinstance(template, str) else ()
    if not marks:
        return
    vocabulary = checked.tokenizer_model.vocabulary if union is None else union.vocabulary
    missing = [mark for mark in marks if vocabulary is not None and mark not in vocabulary.ids]
    if missing:
        are = "is not a token" if len(missing) == 1 else "are not tokens"
        which = listed(f"'{mark}'" for mark in missing)
        message = f"{which} {are} of the output's tokenizer"
        help_ = "use a model's tokenizer that has them; this one splits them like ordinary text"
        yield Fault("M311", message, ("chat_template",), help_, severity="warning")


# ------------------------------------------------------------------------------------------- tokens


def _has_its_tokenizer(checked: Checked) -> bool:
    """Return whether the model of a plan's `tokenizer` has one."""
    return checked.plan.tokenizer is None or _has_tokenizer(checked.tokenizer_model)


@rule("M211")
def _the_tokenizer_exists(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a model that gives its tokenizer and lacks one."""
    if not _has_its_tokenizer(checked):
        message = f"'{checked.tokenizer_model.name}' has no readable tokenizer"
        yield Fault("M211", message, ("tokenizer",), f"name another model, or {_ADD}")


@rule("M210")
def _every_token_has_a_row(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each embedding or head with other rows than the output's tokenizer.

    Known vocabularies are aligned and may differ.
    """
    owner = checked.tokenizer_model
    if checked.union is not None or not _has_its_tokenizer(checked):
        return
    for where in ("embed", "head"):
        recipe = checked.plan.rest(where) or own(0)
        references = [(at, name) for at, name, _ in named_models(recipe)]
        if needs_base(recipe):
            references.append(((), "base"))
        for at, name in references:
            model = checked.models.get(name, owner)
            tensor, owner_tensor = model.rest(where).get(0), owner.rest(where).get(0)
            known = model.vocabulary is not None and owner.vocabulary is not None
            if tensor is None or owner_tensor is None or known:
                continue
            if tensor.spec.shape[0] != owner_tensor.spec.shape[0]:
                message = (
                    f"the {END_NAMES[where]} of '{name}' has {tensor.spec.shape[0]} rows, expected "
                    f"{owner_tensor.spec.shape[0]} as in '{owner.name}', which gives the tokenizer"
                )
                unknown = model.name if model.vocabulary is None else owner.name
                help_ = f"add the tokenizer of '{unknown}', so that rows can be matched by token"
                is_named = checked.plan.rest(where) is not None
                yield Fault("M210", message, (where, *at) if is_named else ("tokenizer",), help_)


@rule("M308")
def _every_token_has_a_number_within(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for tokens beyond the embedding's rows."""
    owner = checked.tokenizer_model
    embed = owner.rest("embed").get(0)
    if owner.vocabulary is None or embed is None or checked.union is not None:
        return
    rows = embed.spec.shape[0]
    beyond = [token for token, number in owner.vocabulary.ids.items() if number >= rows]
    if beyond:
        at = ("tokenizer",) if checked.plan.tokenizer is not None else ("models", "base", "source")
        message = (
            f"the tokenizer of '{owner.name}' has {counted(beyond)} beyond its embedding's "
            f"{rows} rows: {shown_tokens(beyond)}"
        )
        help_ = "the output can't read them; use another tokenizer, or remove them from this one"
        yield Fault("M308", message, at, help_, severity="warning")


@rule("M306", "M307")
def _tokenizers_agree(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for each model with layers that were trained on other tokens."""
    owner = checked.tokenizer_model
    for name in sorted(_in_layers(checked)):
        model = checked.models[name]
        if name == owner.name or same_files(model.checkpoint.folder, owner.checkpoint.folder):
            continue
        if owner.vocabulary is not None and model.vocabulary is not None:
            if checked.union is None:
                yield from _disagreement(name, model.vocabulary, owner.vocabulary)
            yield from _other_splits(name, model.vocabulary, owner.vocabulary)


def _disagreement(name: str, vocabulary: Vocabulary, output: Vocabulary) -> Iterator[Fault]:
    """Yield a warning for a vocabulary that extends the output's, or that differs from it."""
    how = relation(output, vocabulary)
    at = ("models", name, "source")
    more = [token for token in vocabulary.ids if token not in output.ids]
    if how == "extension":
        message = (
            f"'{name}' has {counted(more)} that the output's tokenizer lacks: {shown_tokens(more)}"
        )
        help_ = f"write 'tokenizer from {name}' to take its tokens"
        yield Fault("M306", message, at, help_, severity="warning")
    elif how == "other":
        moved = [token for token, n in vocabulary.ids.items() if output.ids.get(token, n) != n]
        why = f"{counted(more)} that it lacks: {shown_tokens(more)}"
        why = f"{counted(moved)} with other numbers: {shown_tokens(moved)}" if moved else why
        message = f"the vocabulary of '{name}' differs from the output's tokenizer in {why}"
        help_ = "its layers were trained on other tokens; use a model with the output's vocabulary"
        yield Fault("M307", message, at, help_, severity="warning")


def _other_splits(name: str, vocabulary: Vocabulary, output: Vocabulary) -> Iterator[Fault]:
    """Yield a warning for a tokenizer that splits texts otherwise, if its tokens agree."""
    parts = differing_splits(output, vocabulary)
    if parts and relation(output, vocabulary) != "other":  # which is a warning already
        message = (
            f"the tokenizer of '{name}' splits texts differently from the output's, with other "
        )
        help_ = "its layers were trained on differently split texts"
        at = ("models", name, "source")
        yield Fault("M307", message + listed(parts), at, help_, severity="warning")


def _in_layers(checked: Checked) -> set[str]:
    """Return the models that layers are taken from; the base's fill the positions left out."""
    names = {n for _, r in layer_recipes(checked.plan) for _, n, _ in named_models(r)}
    names |= {"base"} if checked.plan.stack is None else set()
    return {name for name in names if name in checked.models}


@rule("M313")
def _the_copied_files_name_no_code(checked: Checked) -> Iterator[Fault]:
    """Yield a warning for each file in the weights' folder that names code."""
    owner, base = checked.tokenizer_model, checked.base
    source = ("models", "base", "source")
    at = ("tokenizer",) if checked.plan.tokenizer is not None else source
    if names_code(base.config):
        yield _code_left_out(CONFIG, base, source)
    copied = [(owner, at, path) for path in tokenizer_files(owner.checkpoint)]
    copied += [(owner, at, path) for path in [generation_config(owner.checkpoint)] if path]
    processor = processor_files(base.checkpoint) if base.layout.wrapped else ()
    copied += [(base, source, path) for path in processor]
    for model, place, path in copied:
        try:
            coded = [name for name, _ in files_with_code({path.name: path})]
        except CheckpointError as error:
            yield Fault(error.code, f"{error.message} ({error.path})", place, error.help)
            continue
        yield from (_code_left_out(name, model, place) for name in coded)


def _code_left_out(name: str, model: Opened, at: Place) -> Fault:
    """Return the warning about a file that names code."""
    message = f"{name} of '{model.name}' refers to Python code by 'auto_map'"
    help_ = "gptailor never runs it, and removes 'auto_map' from the output"
    return Fault("M313", message, at, help_, severity="warning")
