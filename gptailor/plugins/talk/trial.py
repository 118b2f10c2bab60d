"""`compile --try`: a written model and its base answer three prompts, and their answers are judged.

An answer ends if an end token follows it, and loops as `loop_of` defines it. It follows the
chat template if it ends by the token that ends a turn there, without a special token inside.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

from transformers import PreTrainedTokenizerBase

from gptailor.checkpoint.datasets import read_rows
from gptailor.evaluation.chat_text import chat_texts
from gptailor.evaluation.forward.evaluator import attempt
from gptailor.evaluation.generate import loop_of, target_continuations
from gptailor.evaluation.meter import Meter, Placement
from gptailor.evaluation.objectives.generate import Continuation
from gptailor.evaluation.scores import Failure
from gptailor.evaluation.targets import Target, find_targets
from gptailor.plan.faults import TailorError, listed
from gptailor.reporting.terminal_encoding import escaped_control, wrapped

if TYPE_CHECKING:
    from gptailor.output.compile import ComputeOptions

PROMPTS = Path(__file__).with_name("prompts.jsonl")
"""The prompts, as rows of `loops` and `ends`."""
_TOKENS = 96
"""The most tokens of an answer."""
_MARK = "qAnswerq"
"""A word that no chat template has."""


@final
@dataclass(frozen=True)
class JudgedAnswer:
    """An answer to a prompt: its text, the words about its loop, and special tokens in it.

    `end` is the token behind it, and `turn_end` the token that ends a turn in the chat template;
    each is None if it is missing. `chats` tells whether there is a template.
    """

    text: str
    loop: str
    inside: tuple[str, ...]
    end: str | None
    turn_end: str | None
    chats: bool

    @property
    def follows(self) -> bool:
        """Return whether the answer follows the chat template."""
        return self.end is not None and not self.inside and self.turn_end in (None, self.end)

    @property
    def words(self) -> str:
        """The faults of the answer, or that it ends."""
        end, inside = self.end, listed(list(self.inside))
        words = ["ends" if self.text.strip() else "ends at once"]
        if end is None:
            words = [f"no end within {_TOKENS} tokens"]
        elif self.chats and self.turn_end not in (None, end):
            words = [f"ends by {end}, not by the template's {self.turn_end}"]
        words += [self.loop] if self.loop else []
        return "; ".join(words + ([f"special tokens inside: {inside}"] if inside else []))


def try_output(output: Path, compute: "ComputeOptions", width: int) -> Iterator[str]:
    """Yield lines about the answers of a written output, in `width` columns.

    The last line compares their counts with the base's counts, if it is available. Raises
    TailorError for an output that can't answer.
    """
    place = Placement.of(compute.device, None, compute.memory)
    [target] = find_targets([output], {}, device=place.device, memory=place.memory)
    meter = Meter(place)
    prompts = [str(row.messages[0]["content"]) for row in read_rows(PROMPTS, "opening")]
    answers = attempt(partial(judged_answers, meter, target, prompts))
    if isinstance(answers, Failure):
        raise TailorError(f"'{output}' is written, but it can't be tried: {answers.message}")
    for prompt, answer in zip(prompts, answers, strict=True):
        yield f"  {prompt}"
        yield from textwrap.wrap(
            _one_line(answer.text), max(20, width), initial_indent="    ",
            subsequent_indent="    ", max_lines=2, placeholder=" …",
        )  # fmt: skip
        yield from wrapped(_one_line(f"({answer.words})"), width, "    ", "      ")
    counts = f"{output}: {_counts(answers)}"
    if target.base is not None and not target.plain:
        base = replace(target, name="base", prepared=target.base)
        found = attempt(partial(judged_answers, meter, base, prompts))
        if not isinstance(found, Failure):
            counts += f" (the base: {_counts(found)})"
    yield from wrapped(counts, width, later="  ")


def judged_answers(meter: Meter, target: Target, prompts: Sequence[str]) -> list[JudgedAnswer]:
    """Return a target's answers to prompts. Raises TailorError for a target that fails."""
    meter.family(target.prepared.models)
    tokenizer, made = target_continuations(meter, target, prompts, _TOKENS, chat=None)
    turn_end = _turn_end(tokenizer, target.name)
    return [judged(tokenizer, each, turn_end) for each in made]


def judged(
    tokenizer: PreTrainedTokenizerBase, made: Continuation, turn_end: int | None
) -> JudgedAnswer:
    """Return the judgement of a continuation; `turn_end` is the token that ends a turn."""

    def named(number: int | None) -> str | None:
        return None if number is None else str(tokenizer.convert_ids_to_tokens(number))

    text = str(tokenizer.decode([*made.tokens], skip_special_tokens=True))
    inside = dict.fromkeys(number for number in made.tokens if number in _special(tokenizer))
    return JudgedAnswer(
        text, loop_of(text), tuple(str(named(number)) for number in inside), named(made.end),
        named(turn_end), bool(tokenizer.chat_template),
    )  # fmt: skip


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the numbers of the special tokens."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


def _turn_end(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    """Return the first special token after an answer in the chat template, if there is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    [text] = chat_texts(tokenizer, [(turns, False)], name, "remove --try")
    after = tokenizer.encode(text.rpartition(_MARK)[2], add_special_tokens=False)
    return next((number for number in after if number in _special(tokenizer)), None)


def _counts(answers: Sequence[JudgedAnswer]) -> str:
    """Return the counts of answers that end, that loop and that follow the template."""
    loops = sum(bool(answer.loop) for answer in answers)
    words = f"{sum(answer.end is not None for answer in answers)} of {len(answers)} end, {loops} "
    words += "loops" if loops == 1 else "loop"
    if answers[0].chats:
        words += f", {sum(answer.follows for answer in answers)} follow the template"
    return words


def _one_line(text: str) -> str:
    return escaped_control(" ".join(text.split()))
