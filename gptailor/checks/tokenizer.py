"""Rules of the output's tokenizer beyond the tokens' rows: its chat template."""

from collections.abc import Callable, Iterable, Iterator

from gptailor.checkpoint.chat_template import read_template, templates_of
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import folder_of, is_local
from gptailor.plan.faults import Fault, listed
from gptailor.plan.plan import TemplateOf
from gptailor.plan.registry import CHAT_TEMPLATES
from gptailor.program.compile import Checked


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
    said, vocabulary = checked.plan.chat_template, checked.tokenizer_model.vocabulary
    marks = CHAT_TEMPLATES.get(said, ()) if isinstance(said, str) else ()
    missing = [mark for mark in marks if vocabulary is not None and mark not in vocabulary.ids]
    if missing:
        are = "is no token" if len(missing) == 1 else "are no tokens"
        which = listed(f"'{mark}'" for mark in missing)
        message = f"{which} {are} of the output's tokenizer"
        help_ = "they are then written as other texts are; 'tokenizer from' a model that has them"
        yield Fault("M311", message, ("chat_template",), help_, severity="warning")


TEMPLATE: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    the_chat_template_can_be_taken,
    a_named_template_has_its_tokens,
)
"""Rules of a plan with a chat template."""
