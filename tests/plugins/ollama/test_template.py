"""TEMPLATE of a Modelfile renders what transformers renders of the chat template."""

import re
from collections.abc import Sequence

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from gptailor.plan.faults import TailorError
from gptailor.plugins.ollama.template import OllamaTemplate, ollama_template

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 "
    "%}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set prefix = "
    "messages[0]['content'] + '\n\n' -%}{%- set rest = messages[1:] -%}{%- else -%}"
    "{%- set prefix = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for message in rest -%}{%- set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] -%}{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}"
    "{{ message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == "
    "'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] "
    "| trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('no system') }}{% endif %}"
    "{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = "
    "'<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}"
    "{% set system = '' %}{% endif %}{% for message in rest %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NUMBERED = (  # each turn has its number
    "{% for message in messages %}{{ loop.index ~ message.role ~ message.content ~ '\n' }}"
    "{% endfor %}"
)
ALWAYS_SYSTEM = (  # a system turn in the beginning even without a message
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set rest = "
    "messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}[sys]{{ s }}</s>"
    "{% for message in rest %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BRACES = "{% for m in messages %}{{ '{{' ~ m.role ~ '}}' ~ m.content ~ '\n' }}{% endfor %}"
DATED = "{% for m in messages %}{{ m.role ~ m.content ~ '\u200b' }}{% endfor %}"


def rendered(template: str, chats: Sequence[tuple[list[dict[str, str]], bool]]) -> list[str]:
    """The texts of chats by transformers."""
    texts = []
    for messages, begun in chats:
        try:
            made, _ = render_jinja_template(
                [messages], chat_template=template, add_generation_prompt=begun,
                bos_token="<s>", eos_token="</s>",
            )  # fmt: skip
        except Exception as error:
            raise TailorError(str(error)) from error
        texts.append(made[0])
    return texts


def derived(template: str, begin: str = "<s>") -> OllamaTemplate | None:
    return ollama_template(lambda chats: rendered(template, chats), begin)


def go(template: str, values: dict[str, str]) -> str:
    """A renderer of Go's templates with `if`, `end` and fields alone."""
    shown, text = [True], ""
    for part in re.split(r"(\{\{.*?\}\})", template):
        words = part[2:-2].split() if part.startswith("{{") else []
        match words:
            case ["if", field]:
                shown.append(shown[-1] and bool(values[field[1:]]))
            case ["end"]:
                shown.pop()
            case [field]:
                text += values[field[1:]] * shown[-1]
            case _:
                assert not words, part
                text += part * shown[-1]
    assert shown == [True]
    return text


def ollama(made: OllamaTemplate, chat: list[dict[str, str]]) -> str:
    """The prompt of a chat as Ollama's `Execute` makes it of a template without `.Messages`."""
    if chat[0]["role"] != "system" and made.system:
        chat = [{"role": "system", "content": made.system}, *chat]
    text, turn = "", dict.fromkeys(("System", "Prompt", "Response"), "")
    for message in chat:
        if message["role"] == "user" and turn["Response"]:
            text, turn = text + go(made.text, turn), dict.fromkeys(turn, "")
        role = {"system": "System", "user": "Prompt", "assistant": "Response"}[message["role"]]
        turn[role] = message["content"]
    return text + go(made.text[: made.text.index("{{ .Response }}")], turn)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Two\nlines"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]


@pytest.mark.parametrize(
    ("template", "text", "system", "end"),
    [
        (SMOLLM2, None, "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
         "<|im_end|>\n"),
        (CHATML,
         "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}"
         "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
         "{{ .Response }}<|im_end|>\n", "", "<|im_end|>\n"),
        (LLAMA3, None, "", "<|eot_id|>"),
        (GEMMA,
         "<start_of_turn>user\n{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}"
         "<end_of_turn>\n<start_of_turn>model\n{{ .Response }}<end_of_turn>\n", "",
         "<end_of_turn>\n"),
        (GEMMA2,
         "{{ if .Prompt }}<start_of_turn>user\n{{ .Prompt }}<end_of_turn>\n{{ end }}"
         "<start_of_turn>model\n{{ .Response }}<end_of_turn>\n", "", "<end_of_turn>\n"),
        (MISTRAL, "{{ if .Prompt }}[INST] {{ .Prompt }} [/INST]{{ end }}{{ .Response }}</s>", "",
         "</s>"),
        (LLAMA2,
         "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} "
         "[/INST]{{ if .Response }} {{ end }}{{ .Response }} </s><s>", "", " </s><s>"),
    ],
    ids=["smollm2", "chatml", "llama3", "gemma", "gemma2", "mistral", "llama2"],
)  # fmt: skip
def test_a_template_renders_as_transformers_does(
    template: str, text: str | None, system: str, end: str
) -> None:
    made = derived(template)
    assert made is not None
    assert text in (None, made.text)
    assert (made.system, made.end) == (system, end)
    for first, last in ((0, 2), (0, 4), (0, 6), (1, 2), (1, 4), (1, 6)):
        chat = CHAT[first:last]
        if first or ".System" in made.text:
            [wanted] = rendered(template, [(chat, True)])
            assert ollama(made, chat) == wanted.removeprefix("<s>")


@pytest.mark.parametrize(
    "template", [NUMBERED, ALWAYS_SYSTEM, BRACES, DATED, "{{ messages[0].content }}", "hello"]
)
def test_an_unsupported_template_is_not_converted(template: str) -> None:
    assert derived(template) is None


def test_a_begin_token_that_the_file_does_not_add_has_no_template() -> None:
    assert derived(MISTRAL, begin="") is None


def test_a_template_that_always_fails_is_an_error() -> None:
    with pytest.raises(TailorError, match="broken"):
        derived("{{ raise_exception('broken') }}")
