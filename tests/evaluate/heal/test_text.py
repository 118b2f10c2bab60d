"""The text of healing: sequences of one length, no token twice, a few held out."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from gptailor.checkpoint.write.digest import of_file
from gptailor.evaluate.heal.heal import HealingText, healing_text
from gptailor.evaluate.objectives.datasets import CalibrationError
from gptailor.evaluate.objectives.tokens import TokenEncoder
from tests.tiny import letters, write_tokenizer


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
) -> HealingText:
    encoder = TokenEncoder(AutoTokenizer.from_pretrained(folder), window)
    return healing_text(folder / name, tokens, encoder, seed, exactly=exactly)


def test_whole_sequences_of_so_many_tokens_are_learned_and_one_in_twenty_is_held_out(
    folder: Path,
) -> None:
    found = text(folder, "text.txt", 640)
    assert found.learned.shape == (40, 16)
    assert found.held.shape == (2, 16)
    assert found.tokens == 640
    assert found.digest == of_file(folder / "text.txt")
    few = text(folder, "text.txt", 40)
    assert (len(few.learned), len(few.held)) == (2, 1)


def test_the_tokens_are_the_texts_each_once(folder: Path) -> None:
    found = text(folder, "text.txt", 640)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = tokenizer.encode((folder / "text.txt").read_text().lower(), add_special_tokens=False)
    pieces = {tuple(whole[at : at + 16]) for at in range(0, len(whole) - 15, 16)}
    drawn = [tuple(row) for row in torch.cat([found.learned, found.held]).tolist()]
    assert len(set(drawn)) == len(drawn) == 42
    assert set(drawn) <= pieces


def test_rows_run_together_with_the_end_of_a_text_between_them(folder: Path) -> None:
    found = text(folder, "rows.jsonl", 400)
    flat = torch.cat([found.learned, found.held]).flatten().tolist()
    assert found.learned.shape[1] == 16
    assert 8 < flat.count(2) < 21


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl"])
def test_the_seed_alone_draws_the_order(folder: Path, name: str) -> None:
    one, same, other = (text(folder, name, 320, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.learned, same.learned)
    assert torch.equal(one.held, same.held)
    assert not torch.equal(one.learned, other.learned)


def test_a_text_that_is_shorter_says_both_numbers(folder: Path) -> None:
    with pytest.raises(CalibrationError) as caught:
        text(folder, "text.txt", 1000)
    said = "the text has 992 tokens in whole sequences of 16, and 'heal' needs 1,040"
    assert (caught.value.code, caught.value.message) == ("C806", said)
    assert caught.value.path == folder / "text.txt"


def test_without_a_number_a_shorter_text_gives_what_it_has(folder: Path) -> None:
    found = text(folder, "text.txt", 200_000, exactly=False)
    assert len(found.learned) + len(found.held) == 1000 // 16
    assert len(found.held) == 3
    (folder / "short.txt").write_text(letters(20))
    with pytest.raises(CalibrationError, match=r"has 16 tokens .* needs 32") as caught:
        text(folder, "short.txt", 200_000, exactly=False)
    assert caught.value.help == "give more text"


def test_a_window_is_no_longer_than_the_model_takes(folder: Path) -> None:
    assert text(folder, "text.txt", 256, window=128).learned.shape == (2, 128)
