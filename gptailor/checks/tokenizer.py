"""Rules of the output's tokenizer where it is no one model's: a union, a chat template."""

from collections.abc import Callable, Iterable, Iterator

from gptailor.checkpoint.chat_template import read_template, templates_of
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import folder_of, is_local
from gptailor.checkpoint.vocabulary import counted, shown_tokens
from gptailor.plan.faults import Fault, listed
from gptailor.plan.plan import TemplateOf
from gptailor.plan.registry import CHAT_TEMPLATES
from gptailor.program.rows import AlignedRest, has_rows
from gptailor.program.sources import Checked


def the_chat_template_can_be_taken(checked: Checked) -> Iterator[Fault]:
    """The file is a template, the model has one, and there is a tokenizer that it is for."""
    said, at = checked.plan.chat_template, ("chat_template",)
    if said is None:
        return
    try:
        if isinstance(said, TemplateOf):
            model = checked.models.get(said.model)
            if model is not None and not templates_of(model.checkpoint):
                yield Fault("M225", f"'{said.model}' has no chat template", (*at, "model"))
        elif is_local(said):
            read_template(folder_of(checked.plan, said))
    except CheckpointError as error:
        yield Fault(error.code, f"{error.message} ({error.path})", at, error.help)
    if checked.tokenizer_model.vocabulary is None:
        name = checked.tokenizer_model.name
        message = f"'{name}' has no tokenizer that can be read, and a chat template is one's"
        yield Fault("M211", message, at)


def a_named_template_has_its_tokens(checked: Checked) -> Iterator[Fault]:
    """What a template with a name writes between messages should be tokens of the output's."""
    said, union = checked.plan.chat_template, checked.union
    vocabulary = checked.tokenizer_model.vocabulary if union is None else union.vocabulary
    marks = CHAT_TEMPLATES.get(said, ()) if isinstance(said, str) else ()
    missing = [mark for mark in marks if vocabulary is not None and mark not in vocabulary.ids]
    if missing:
        are = "is no token" if len(missing) == 1 else "are no tokens"
        which = listed(f"'{mark}'" for mark in missing)
        message = f"{which} {are} of the output's tokenizer"
        help_ = "they are then written as other texts are; 'tokenizer from' a model that has them"
        yield Fault("M311", message, ("chat_template",), help_, severity="warning")


def the_union_can_be_made(checked: Checked) -> Iterator[Fault]:
    """All tokenizers can be read, the base's can be added to, and each token has a row."""
    union = checked.union
    if union is None:
        return
    unread = [model for model in checked.models.values() if model.vocabulary is None]
    for model in unread:
        message = f"'{model.name}' has no tokenizer that can be read, and a union takes all"
        yield Fault("M211", message, ("models", model.name, "source"))
    misfits = [*_misfits(checked)]
    yield from misfits
    if unread or misfits:
        return
    try:
        _ = union.files
    except CheckpointError as error:
        yield Fault(error.code, f"{error.message} ({error.path})", ("tokenizer",), error.help)
        return
    lacking = AlignedRest(checked.models, checked.base, union, frozenset({"base"}))
    read = [(where, i) for where in ("embed", "head") for i in checked.base.rest(where)]
    found = (lacking.rows(where, i, union).missing for where, i in read if has_rows(where, i))
    if missing := next(filter(None, found), None):
        tokens = [union.vocabulary.tokens.get(number, f"number {number}") for number in missing]
        message = f"no model has a row for {counted(tokens)} of the base's: {shown_tokens(tokens)}"
        help_ = "they are beyond its embedding: take them out of its tokenizer"
        yield Fault("M226", message, ("tokenizer",), help_)


def _misfits(checked: Checked) -> Iterator[Fault]:
    """Models whose rows are of another width than the base's."""
    for model in checked.models.values():
        for where in ("embed", "head"):
            ours, theirs = (m.rest(where).get(0) for m in (checked.base, model))
            if ours is None or theirs is None or ours.spec.shape[1:] == theirs.spec.shape[1:]:
                continue
            both = f"{list(theirs.spec.shape)}, and the base's {list(ours.spec.shape)}"
            message = f"the {where} of '{model.name}' has the shape {both}"
            yield Fault("M208", message, ("models", model.name, "source"))
            break


def vocabularies_are_extended_not_mixed(checked: Checked) -> Iterator[Fault]:
    """Tokens of another vocabulary proper are taken for what they aren't: whole words of a text."""
    union = checked.union
    if union is None or any(model.vocabulary is None for model in checked.models.values()):
        return
    for name, tokens in union.strangers.items():
        message = f"{counted(tokens)} of the vocabulary of '{name}' become added ones: "
        help_ = "those are found anywhere in a text, before it is split into the base's tokens"
        at = ("models", name, "source")
        yield Fault("M312", message + shown_tokens(tokens), at, help_, severity="warning")


UNITED: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    the_union_can_be_made,
    vocabularies_are_extended_not_mixed,
)
"""Rules of a plan with `tokenizer union`."""

TEMPLATE: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    the_chat_template_can_be_taken,
    a_named_template_has_its_tokens,
)
"""Rules of a plan with a chat template."""
