"""Tokens of a healing's text give way to likely tokens that the student lacks."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from gptailor.checkpoint.token_cut import TokenCut
from gptailor.evaluation.fits.heal import whole_vocabulary
from gptailor.evaluation.fits.heal.text import PackedSequences
from gptailor.evaluation.fits.heal.whole_vocabulary import DroppedWords, WholeVocabulary
from gptailor.plan.events import Progress
from tests.checkpoint.test_token_cut import cut_of, whole_of
from tests.support.healing import CPU, Asked
from tests.support.tiny import tiny_model
from tests.support.vocabularies import TEXT, write_byte_level

LENGTH = 64
pytestmark = pytest.mark.usefixtures("no_progress_bars")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dropped")
    tiny_model("llama", folder / "base", vocab_size=368)
    write_byte_level(folder / "base")
    return folder


@pytest.fixture(scope="module")
def cut(folder: Path) -> TokenCut:
    return cut_of(whole_of(folder / "base"), 330, TEXT[:300])


@pytest.fixture(scope="module")
def sequences(cut: TokenCut) -> PackedSequences:
    small = Tokenizer.from_str(json.dumps(cut.document))
    ids = small.encode(f"<|im_start|>{TEXT[:300]}<|im_end|>" * 12).ids
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    counted = torch.ones(len(rows), LENGTH - 1, dtype=torch.bool)
    numbers = torch.arange(len(rows))
    return PackedSequences(rows, counted, torch.zeros_like(numbers), numbers)


def inside(whole: WholeVocabulary, sequences: PackedSequences) -> int:
    """Return how many of the predictions stand inside a token of the teacher's."""
    read = map(whole.read, sequences.tokens.tolist())
    return sum(after < 0 for each in read for after in each.after)


def test_more_words_are_split(
    folder: Path, cut: TokenCut, sequences: PackedSequences, tmp_path: Path
) -> None:
    whole, asked, events = WholeVocabulary(cut), Asked(folder), list[Progress]()
    words, file = DroppedWords(whole, CPU, 0), tmp_path / "made.safetensors"
    made = words.replace_tokens(sequences, asked, file, events.append)
    assert made.tokens.shape == sequences.tokens.shape
    assert bool(made.counted.all())
    assert inside(whole, made) > inside(whole, sequences) + len(sequences.tokens)
    assert events[0] == Progress("reading", 0, sequences.tokens.numel())
    again = words.replace_tokens(sequences, asked, file)
    assert asked.times == 1
    assert torch.equal(again.tokens, made.tokens)
    other = DroppedWords(whole, CPU, 1).replace_tokens(
        sequences, asked, tmp_path / "other.safetensors"
    )
    assert not torch.equal(other.tokens, made.tokens)


def test_replacement_tokens_are_probable_to_the_teacher(
    folder: Path, cut: TokenCut, sequences: PackedSequences, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(whole_vocabulary, "CANDIDATES", 1)
    monkeypatch.setattr(whole_vocabulary, "REPLACED_SHARE", 0.03)  # one or two of a sequence
    whole = WholeVocabulary(cut)
    made = DroppedWords(whole, CPU, 0).replace_tokens(sequences, Asked(folder), tmp_path / "file")
    model, changed = AutoModelForCausalLM.from_pretrained(folder / "base"), 0
    missing = sorted(whole.pieces)
    for old, new in zip(sequences.tokens.tolist(), made.tokens.tolist(), strict=True):
        if old == new:
            continue
        place = next(n for n in range(LENGTH) if old[n] != new[n])
        read = whole.read(old)
        possible = []  # the new token may begin with tokens that stood there before
        for before in range(max(1, place - 4), place + 1):
            if (after := read.after[before - 1]) >= 0:
                with torch.no_grad():
                    logits = model(torch.tensor([read.tokens[: after + 1]])).logits[0, -1]
                pieces = whole.pieces[missing[int(logits[missing].argmax())]]
                possible.append(new[before : before + len(pieces)] == [*pieces][: LENGTH - before])
        assert any(possible)
        changed += 1
    assert changed > len(sequences.tokens) // 2


def test_special_tokens_stay(
    folder: Path, cut: TokenCut, sequences: PackedSequences, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(whole_vocabulary, "REPLACED_SHARE", 1.0)
    whole = WholeVocabulary(cut)
    made = DroppedWords(whole, CPU, 0).replace_tokens(sequences, Asked(folder), tmp_path / "file")
    special, seen = torch.tensor(sorted(whole.added)), 0
    for old, new in zip(sequences.tokens, made.tokens, strict=True):
        kept = [row[torch.isin(row, special)].tolist() for row in (old, new)]
        assert kept[0][: len(kept[1])] == kept[1]  # a sequence's end is cut off
        seen += len(kept[1])
    assert seen > len(made.tokens) // 4


def test_only_counted_tokens_are_replaced(
    folder: Path, cut: TokenCut, sequences: PackedSequences, tmp_path: Path
) -> None:
    whole, half = WholeVocabulary(cut), LENGTH // 2
    sequences.counted[:, : half - 1] = False
    made = DroppedWords(whole, CPU, 0).replace_tokens(sequences, Asked(folder), tmp_path / "file")
    sequences.counted[:] = True
    assert torch.equal(made.tokens[:, :half], sequences.tokens[:, :half])
    assert not torch.equal(made.tokens[:, half:], sequences.tokens[:, half:])
    assert not made.counted[:, : half - 1].any()
    assert bool(made.counted[:, half:].all())


def test_tokens_without_whole_characters_replace_nothing(
    folder: Path, sequences: PackedSequences, tmp_path: Path
) -> None:
    """The only missing token is a part of a character."""
    torn = cut_of(whole_of(folder / "base"), 359, TEXT.encode().decode("ascii", "ignore"))
    whole, asked = WholeVocabulary(torn), Asked(folder)
    assert not whole.pieces
    assert DroppedWords(whole, CPU, 0).replace_tokens(sequences, asked, tmp_path / "x") is sequences
    assert not asked.times
