"""The text of healing: sequences of one length, no token twice, a few held out."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.write.digest import of_file
from gptailor.evaluation.fits.heal.sources import TeacherChats, file_source
from gptailor.evaluation.fits.heal.text import HealingTexts, healing_texts
from gptailor.evaluation.objectives.tokens import TokenEncoder
from tests.support.tiny import letters, write_tokenizer

pytestmark = pytest.mark.usefixtures("renders_here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("text")
    write_tokenizer(made)
    (made / "text.txt").write_text(letters(1000))
    lines = [json.dumps({"text": letters(30 + n, seed=n)}) for n in range(20)]
    lines += [json.dumps({"context": "ab", "answer": "cd"})]
    (made / "rows.jsonl").write_text("\n".join(lines))
    return made


def text(
    folder: Path, name: str, tokens: int, *, seed: int = 0, window: int = 16, exactly: bool = True
) -> HealingTexts:
    encoder = TokenEncoder(AutoTokenizer.from_pretrained(folder), window)
    source = file_source(folder / name, Fraction(1), encoder, seed)
    return healing_texts([source], tokens, encoder, seed, exactly=exactly)


def test_one_in_twenty_sequences_is_held_out(
    folder: Path,
) -> None:
    result = text(folder, "text.txt", 640)
    assert result.learned.tokens.shape == (40, 16)
    assert result.held.tokens.shape == (2, 16)
    assert result.tokens == 640
    assert result.read[0][:2] == tuple(dict(of_file(folder / "text.txt")).values())
    few = text(folder, "text.txt", 40)
    assert (len(few.learned.tokens), len(few.held.tokens)) == (2, 1)


def test_each_piece_of_the_text_is_used_once(folder: Path) -> None:
    result = text(folder, "text.txt", 640)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = tokenizer.encode((folder / "text.txt").read_text().lower(), add_special_tokens=False)
    pieces = {tuple(whole[at : at + 16]) for at in range(0, len(whole) - 15, 16)}
    drawn = [tuple(row) for row in torch.cat([result.learned.tokens, result.held.tokens]).tolist()]
    assert len(set(drawn)) == len(drawn) == 42
    assert set(drawn) <= pieces


def test_rows_run_together_with_the_end_of_a_text_between_them(folder: Path) -> None:
    result = text(folder, "rows.jsonl", 400)
    flat = torch.cat([result.learned.tokens, result.held.tokens]).flatten().tolist()
    assert result.learned.tokens.shape[1] == 16
    assert 8 < flat.count(2) < 21


def mixture(
    folder: Path, shares: dict[str, Fraction], tokens: int, *, exactly: bool = True
) -> HealingTexts:
    encoder = TokenEncoder(AutoTokenizer.from_pretrained(folder), 16)
    sources = [file_source(folder / name, share, encoder, 0) for name, share in shares.items()]
    return healing_texts(sources, tokens, encoder, 0, exactly=exactly)


def test_texts_have_their_shares_and_are_evenly_mixed(folder: Path) -> None:
    shares = {"text.txt": Fraction(3, 4), "rows.jsonl": Fraction(1, 4)}
    result = mixture(folder, shares, 640)
    assert result.tokens == 640
    assert [file.tokens for file in result.read] == [480, 160]
    assert result.learned.texts.tolist() == [0, 0, 1, 0] * 10
    assert sorted(result.held.texts.tolist()) == [0, 1]
    for number, name in enumerate(shares):
        alone = text(folder, name, 640 * shares[name].numerator // 4)
        for own, mixed in ((alone.learned, result.learned), (alone.held, result.held)):
            assert torch.equal(mixed.tokens[mixed.texts == number], own.tokens)


def test_every_token_of_the_total_is_given_to_a_text(folder: Path) -> None:
    thirds = dict.fromkeys(("text.txt", "rows.jsonl"), Fraction(1, 3))
    (folder / "more.txt").write_text(letters(700, seed=5))
    result = mixture(folder, {**thirds, "more.txt": Fraction(1, 3)}, 16 * 40)
    assert [file.tokens // 16 for file in result.read] == [13, 13, 14]


def test_a_text_shorter_than_its_share_is_refused(folder: Path) -> None:
    shares = {"text.txt": Fraction(1, 10), "rows.jsonl": Fraction(9, 10)}
    with pytest.raises(CalibrationError) as caught:
        mixture(folder, shares, 2000)
    assert caught.value.path == folder / "rows.jsonl"
    assert "and its share of 'heal' needs 1,888" in caught.value.message
    fewer = mixture(folder, shares, 2000, exactly=False)
    sizes = [file.tokens for file in fewer.read]
    assert sizes[1] / sum(sizes) == pytest.approx(0.9, abs=0.05)
    assert sum(sizes) < 1000


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl"])
def test_the_seed_alone_draws_the_order(folder: Path, name: str) -> None:
    one, same, other = (text(folder, name, 320, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.learned.tokens, same.learned.tokens)
    assert torch.equal(one.held.tokens, same.held.tokens)
    assert not torch.equal(one.learned.tokens, other.learned.tokens)


def test_the_message_about_a_short_text_has_both_numbers(folder: Path) -> None:
    with pytest.raises(CalibrationError) as caught:
        text(folder, "text.txt", 1000)
    message = "the text has 992 tokens in whole sequences of 16, and 'heal' needs 1,040"
    assert (caught.value.code, caught.value.message) == ("C806", message)
    assert caught.value.path == folder / "text.txt"


def test_a_short_text_is_used_whole_without_a_number(folder: Path) -> None:
    result = text(folder, "text.txt", 200_000, exactly=False)
    assert len(result.learned.tokens) + len(result.held.tokens) == 1000 // 16
    assert len(result.held.tokens) == 3
    (folder / "short.txt").write_text(letters(20))
    with pytest.raises(CalibrationError, match=r"has 16 tokens .* needs 32") as caught:
        text(folder, "short.txt", 200_000, exactly=False)
    assert caught.value.help == "give more text"


@pytest.mark.parametrize("name", ["long.txt", "long.jsonl"])
def test_the_default_length_depends_on_the_number_of_tokens(folder: Path, name: str) -> None:
    (folder / "long.txt").write_text(letters(30_000))
    lines = [json.dumps({"text": letters(299, seed=n)}) for n in range(100)]
    (folder / "long.jsonl").write_text("\n".join(lines))
    (folder / "little.txt").write_text(letters(25_000))
    little = text(folder, "little.txt", 200_000, window=1024, exactly=False)
    assert little.learned.tokens.shape[1] == 128, "fewer than 96 steps of 256 are learned"
    for wanted, length in ((200_000, 256), (20_000, 128)):
        result = text(folder, name, wanted, window=1024, exactly=False)
        assert result.learned.tokens.shape[1] == length
        stated = text(folder, name, result.tokens, window=1024)
        assert torch.equal(stated.learned.tokens, result.learned.tokens)
    (folder / "few.txt").write_text(letters(300))
    assert text(folder, "few.txt", 200_000, window=1024, exactly=False).tokens == 128


# ------------------------------------------------------------------------------------- answers

CHAT = (
    "{% for m in messages %}{{ '[' + m['role'][0] + ']' + m['content'] + '.' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[a]' }}{% endif %}"
)


ANSWERED = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "xyz"}]


def counted_text(folder: Path, name: str, *, template: str | None = None) -> list[str]:
    """The letters of each sequence; letters with counting predictions are capitals."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    encoder = TokenEncoder(tokenizer, 16)
    chats = TeacherChats.__new__(TeacherChats)
    chats.__dict__.update(name="math", _tokenizer=tokenizer)
    source = file_source(folder / name, Fraction(1), encoder, 0, chats, only_answers=True)
    result = healing_texts([source], 16, encoder, 0, exactly=False, only_answers=True)
    shown = []
    for part in (result.learned, result.held):
        for tokens, counted in zip(part.tokens.tolist(), part.counted.tolist(), strict=True):
            letters_of = [tokenizer.decode([token]) for token in tokens]
            marked = zip(letters_of, [False, *counted], strict=True)
            shown.append("".join(c.upper() if marks else c for c, marks in marked))
    return shown


def rows(folder: Path, *written: object) -> str:
    (folder / "some.jsonl").write_text("\n".join(map(json.dumps, written)))
    return "some.jsonl"


def test_only_answers_count_in_rows_of_prompts(folder: Path) -> None:
    name = rows(folder, *[{"prompt": "abcdefg", "response": "xyz"}] * 6)
    assert "".join(counted_text(folder, name)).startswith("abcdefg XYZ</S>abcdefg XYZ</S>")


def test_sequences_without_an_answer_are_left_out(folder: Path) -> None:
    prompt = "abcdefgh" * 6
    name = rows(folder, *[{"context": prompt, "answer": "xyz"}] * 6)
    shown = counted_text(folder, name)
    assert all(any(c.isupper() for c in item) for item in shown)


def test_the_last_answer_of_messages_counts(folder: Path) -> None:
    said_by = [("user", "ab"), ("assistant", "cd"), ("user", "ef"), ("assistant", "xyz")]
    messages = [{"role": role, "content": content} for role, content in said_by]
    name = rows(folder, *[{"messages": messages}] * 9)
    shown = "".join(counted_text(folder, name, template=CHAT))
    assert "XYZ" in shown
    assert not set("ABCDEF") & set(shown)


@pytest.mark.parametrize(
    ("row", "template", "code", "message"),
    [
        ({"text": "abc"}, None, "C804", "the row has no answer"),
        ({"messages": [{"role": "user", "content": "abc"}]}, CHAT, "C804", "has no answer"),
        ({"messages": ANSWERED}, None, "C812",
         "rows of 'messages' need a chat template, but 'math' has no chat template"),
        ({"messages": ANSWERED}, "{{ raise_exception('no') }}", "C812",
         "the chat template of 'math' fails: no; give rows of 'prompt' or 'text'"),
        ({"messages": []}, CHAT, "C804", "'messages' must be a list of messages"),
        ({"messages": ["abc"]}, CHAT, "C804", "a message must be an object with 'role' and"),
        ({"messages": [{"role": "user"}]}, CHAT, "C804", "the row has no 'content'"),
    ],
)  # fmt: skip
def test_rows_that_have_no_answers_are_refused(
    folder: Path, row: object, template: str | None, code: str, message: str
) -> None:
    with pytest.raises(CalibrationError) as caught:
        counted_text(folder, rows(folder, *[row] * 9), template=template)
    assert caught.value.code == code
    assert message in caught.value.message


def test_plain_text_has_no_answers(folder: Path) -> None:
    with pytest.raises(CalibrationError, match="the row has no answer"):
        counted_text(folder, "text.txt")


def test_a_window_has_at_most_the_models_length(folder: Path) -> None:
    assert text(folder, "text.txt", 256, window=128).learned.tokens.shape == (2, 128)
