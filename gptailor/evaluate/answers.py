"""Answers of plans and models to a prompt, side by side; nothing is compiled."""

from collections.abc import Iterator, Sequence
from functools import partial

from gptailor.checkpoint.files import shown
from gptailor.evaluate.chat import chat_text
from gptailor.evaluate.forward.evaluator import attempt
from gptailor.evaluate.objectives.generate import greedy
from gptailor.evaluate.objectives.tokens import Prompt, TokenEncoder, tokenizer_model, tokenizer_of
from gptailor.evaluate.samples import context_length
from gptailor.evaluate.scores import Failure
from gptailor.evaluate.session import Placement, Session
from gptailor.evaluate.targets import Target
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import TailorError


def spoken(
    targets: Sequence[Target],
    prompt: str,
    most: int,
    place: Placement,
    *,
    chat: bool = False,
    on_event: OnEvent = ignore_events,
) -> Iterator[tuple[str, str | Failure]]:
    """Yield each target's name and its answer of at most `most` tokens.

    The answer has the likeliest token at each step, up to the end token. With `chat` the prompt is
    a user's message in the target's own chat template. A target that fails has a Failure instead.
    """
    session = Session(place, on_event)
    for target in targets:
        session.family(target.prepared.models)
    for target in targets:
        yield target.name, attempt(partial(_answer, session, target, prompt, most, chat))


def _answer(session: Session, target: Target, prompt: str, most: int, chat: bool) -> str:
    prepared = target.prepared
    tokenizer = tokenizer_of(tokenizer_model(prepared))
    encoder = TokenEncoder(tokenizer, context_length(prepared.compiled.config))
    if chat:
        if prepared.plan.chat_template is not None:
            message = "the plan names a chat template, which stands in its compiled folder"
            raise TailorError(f"{message}: compile it, and name that")
        text = chat_text(tokenizer, [{"role": "user", "content": prompt}], target.name)
        tokens = encoder.plain(text)
        if not tokens:
            message = f"the chat template of '{target.name}' gives no tokens for this prompt"
            raise TailorError(f"{message}, only the text {shown(text)}")
    else:
        tokens = encoder.prompt(prompt)
    if encoder.positions is not None:
        most = min(most, encoder.positions - 1)
        tokens = tokens[most - encoder.positions :]
    live = session.stitch(prepared.models, prepared.plan).model
    [answer] = greedy(live, tokenizer, [Prompt(tuple(tokens), most)], len(tokens) + most)
    return answer
