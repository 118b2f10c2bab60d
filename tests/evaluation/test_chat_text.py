"""Chats as text: what transformers renders, and within bounds."""

from datetime import datetime

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gptailor.evaluation.chat_text import chat_texts
from gptailor.plan.faults import TailorError
from tests.support.tiny import write_tokenizer

ASKED = [{"role": "user", "content": "a cat <b> & é"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The tokenizer of the tiny models, which has no template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_a_chat_is_rendered_as_transformers_does(tokenizer: PreTrainedTokenizerBase) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% generation %}\n  {{- m | tojson }}"
        "{% endgeneration %}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}\n\n"
    )
    tokenizer.chat_template = {"default": template, "tools": "other"}
    wanted = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert chat_texts(tokenizer, [(ASKED, True)], "base", "") == [wanted]


def test_the_date_of_a_template_can_be_set(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = "{{ strftime_now('%d %B %Y') }}"
    chats = [(ASKED, True)]
    assert chat_texts(tokenizer, chats, "base", "", date="2024-07-26") == ["26 July 2024"]
    today = [f"{datetime.now():%d %B %Y}"]
    result = chat_texts(tokenizer, chats, "base", "")
    assert result == today or today != [f"{datetime.now():%d %B %Y}"], "midnight passed"


NESTED = "{% for i in range(9999) %}" * 4 + "{% endfor %}" * 4


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 'a' * (10**10) }}", "needs more than 1024 MiB of memory"),
        ("{{ 'a' * 20000000 }}", "gives 20,000,000 characters, more than 10,000,000"),
        (NESTED, "needs more than 1 s"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself endlessly"),
        ("{{ raise_exception('no system\\nrole') }}", "fails: no system"),
        ({"tools": "x"}, "has no chat template called 'default', only 'tools'"),
        ([1], "expected a text as the chat template of 'base'"),
    ],
)
def test_a_template_without_bounds_is_one_message(
    tokenizer: PreTrainedTokenizerBase, template: object, why: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TailorError) as caught:
        chat_texts(tokenizer, [(ASKED, True)], "base", "", seconds=1)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
