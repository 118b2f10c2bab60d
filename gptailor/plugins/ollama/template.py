"""A chat template in the form of Ollama's TEMPLATE, derived from chats that it renders.

TEMPLATE is a Go template of one turn. Ollama fills it once for each turn: `.System` is the system
message before the turn, `.Prompt` the user's message and `.Response` the model's. The last turn
ends before the response.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

from gptailor.plan.faults import TailorError

_Message = dict[str, str]
Rendered = Callable[[Sequence[tuple[list[_Message], bool]]], list[str]]
"""Renders chats by a chat template, each with whether an answer begins."""

SYSTEM, USER, ANSWER = "qSystemq", "qUserq{}q", "qAnswerq{}q"
"""Words in place of messages. No chat template has them."""
RESPONSE: Final = "{{ .Response }}"
_IF = re.compile(r"\{\{ if \.(\w+) \}\}(.*?)\{\{ end \}\}", re.DOTALL)
_FIELD = re.compile(r"\{\{ \.(\w+) \}\}")


@final
@dataclass(frozen=True)
class OllamaTemplate:
    """A TEMPLATE, the system message of chats without one, and the text that ends an answer."""

    text: str
    system: str
    end: str

    def filled(self, turns: Sequence[str], system: str = "") -> str:
        """Return the text that Ollama makes of the messages of user and model in turn.

        The last message is the user's.
        """
        system, text = system or self.system, ""
        for number in range(0, len(turns) - 1, 2):
            text += _filled(self.text, system, turns[number], turns[number + 1])
            system = ""
        last = self.text[: self.text.index(RESPONSE)]
        return text + _filled(last, system, turns[-1], "")


def _filled(template: str, system: str, prompt: str, response: str) -> str:
    values = {"System": system, "Prompt": prompt, "Response": response}
    chosen = _IF.sub(lambda match: match[2] if values[match[1]] else "", template)
    return _FIELD.sub(lambda match: values[match[1]], chosen)


def ollama_template(render: Rendered, begin: str = "") -> OllamaTemplate | None:
    """Return a chat template as Ollama's TEMPLATE; None for a template without such a form.

    `begin` is the text that the file's tokenizer adds by itself, so TEMPLATE leaves it out. A
    template that refuses system messages gets a TEMPLATE without them. The result renders all
    `_checked` chats as the chat template does. Raises as `render` does.
    """
    for system in (True, False):
        chats = [_chat(1), (_chat(2)[0][:2], False), (_chat(1)[0], False), *_checked(system)]
        try:
            texts = [text.removeprefix(begin) for text in render(chats)]
        except TailorError:
            if not system:
                raise
            continue
        return _derived(texts, system=system)
    return None


def _chat(users: int, *, system: bool = False) -> tuple[list[_Message], bool]:
    """Return a chat with some messages of the user, which the model is to answer."""
    messages = [{"role": "system", "content": SYSTEM}] if system else []
    for number in range(1, users + 1):
        messages += [
            {"role": "user", "content": USER.format(number)},
            {"role": "assistant", "content": ANSWER.format(number)},
        ]
    return messages[:-1], True


def _checked(system: bool) -> list[tuple[list[_Message], bool]]:
    """Return the chats that TEMPLATE must render as the chat template does."""
    each = [_chat(users) for users in (1, 2, 3)]
    return each + [_chat(users, system=True) for users in (1, 2, 3) if system]


def _derived(texts: Sequence[str], *, system: bool) -> OllamaTemplate | None:
    """Return the TEMPLATE of the texts of `ollama_template`, if there is one."""
    first, ended, closed, *checked = texts
    user, answer, next_user = USER.format(1), ANSWER.format(1), USER.format(2)
    try:
        opening, begun = _apart(first, user)
        _, between, end = _apart(ended, user, answer)
        _, history, later, again = _apart(checked[1], user, answer, next_user)
        of_system = _apart(checked[3], SYSTEM, user) if system else None
        after_user = _apart(closed, user)[1]
    except ValueError:
        return None
    if later.endswith(opening):
        turn, end = opening, later.removesuffix(opening)
    else:
        turn = later.removeprefix(end)
    after_user = after_user if begun.startswith(after_user) else ""
    default, before, within = "", "", turn
    if of_system is not None:
        split = _split(turn, of_system[0], of_system[1])
        if split is None:
            return None
        before, within = split
        around = len(of_system[0]) + len(of_system[1])
        if opening != turn and opening.startswith(of_system[0]) and len(opening) > around:
            default = opening[len(of_system[0]) : len(opening) - len(of_system[1])]
    question = f"{within}{{{{ .Prompt }}}}{after_user}"
    if not before:
        question = f"{{{{ if .Prompt }}}}{question}{{{{ end }}}}"
    space = between.removeprefix(begun)
    text = f"{before}{question}{begun.removeprefix(after_user)}"
    if of_system is not None:
        start, stop = of_system[0].removeprefix(before), of_system[1].removesuffix(within)
        shown = f"{{{{ if .System }}}}{start}{{{{ .System }}}}{stop}{{{{ end }}}}"
        text = f"{before}{shown}{question}{begun.removeprefix(after_user)}"
    text += f"{{{{ if .Response }}}}{space}{{{{ end }}}}" * bool(space) + RESPONSE + end
    made = OllamaTemplate(text, default, end)
    fields = _FIELD.sub("", _IF.sub(r"\2", text))
    if any(sign in fields for sign in ("{{", "}}", '"""')) or history != between or again != begun:
        return None
    return made if _renders_alike(made, checked) and _is_printable(made) else None


def _apart(text: str, *words: str) -> list[str]:
    """Return the parts of a text around words. Raises ValueError unless each comes once."""
    parts = []
    for word in words:
        part, found, text = text.partition(word)
        if not found or word in text:
            raise ValueError(word)
        parts.append(part)
    return [*parts, text]


def _split(turn: str, start: str, stop: str) -> tuple[str, str] | None:
    """Split the text before a user's message where the system message stands in it.

    `start` is the text before the system message, and `stop` the text after it. A place at an end
    is preferred.
    """
    for at in (0, len(turn), *range(len(turn) - 1, 0, -1)):
        if start.startswith(turn[:at]) and stop.endswith(turn[at:]):
            return turn[:at], turn[at:]
    return None


def _renders_alike(made: OllamaTemplate, checked: Sequence[str]) -> bool:
    words = [form.format(n) for n in (1, 2, 3) for form in (USER, ANSWER)]
    found = [made.filled(words[:count], system)
             for system in ("", SYSTEM) for count in (1, 3, 5)]  # fmt: skip
    return found[: len(checked)] == list(checked)


def _is_printable(made: OllamaTemplate) -> bool:
    """Return whether Ollama's parser keeps all characters: it leaves out unprintable ones."""
    text = made.text + made.system
    return '"""' not in text and all(c.isprintable() or c in "\n\t" for c in text)
