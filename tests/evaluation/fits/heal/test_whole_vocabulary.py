"""A teacher with a whole vocabulary teaches a student with a smaller one."""

import json

import pytest
import torch
from tokenizers import Tokenizer

from gptailor.checkpoint.token_cut import TokenCut
from gptailor.evaluation.fits.heal.whole_vocabulary import WholeVocabulary
from tests.checkpoint.test_token_cut import cut_of, whole_of
from tests.support.vocabularies import TEXT, write_byte_level


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> TokenCut:
    folder = tmp_path_factory.mktemp("whole") / "model"
    return cut_of(whole_of(write_byte_level(folder)), 290, "the patience the about the " * 3)


def test_the_teacher_reads_the_same_text_in_its_own_tokens(cut: TokenCut) -> None:
    small = Tokenizer.from_str(json.dumps(cut.document))
    whole, sequence = WholeVocabulary(cut), small.encode(TEXT).ids
    read = whole.read(sequence)
    assert list(read.tokens) == cut.whole.tokenizer.encode(TEXT).ids
    assert len(read.tokens) < len(sequence)
    assert read.following == tuple(sequence[1:])
    for n, after in enumerate(read.after):
        if after >= 0:
            begun = small.decode(sequence[: n + 1], skip_special_tokens=False)
            theirs = list(read.tokens[: after + 1])
            assert cut.whole.tokenizer.decode(theirs, skip_special_tokens=False) == begun
    assert sum(after >= 0 for after in read.after) == len(read.tokens) - 1


def test_a_split_character_is_read_in_the_students_tokens(cut: TokenCut) -> None:
    small = Tokenizer.from_str(json.dumps(cut.document))
    torn = small.encode("日本").ids[1:]
    read = WholeVocabulary(cut).read(torn)
    assert read.tokens == tuple(cut.kept[number] for number in torn)
    assert read.after == tuple(range(len(torn) - 1))


def test_probabilities_go_to_the_first_token_of_a_split(cut: TokenCut) -> None:
    small = Tokenizer.from_str(json.dumps(cut.document))
    logits = torch.randn(3, 368, generator=torch.Generator().manual_seed(0))
    mapped = WholeVocabulary(cut).mapped(logits)
    wanted = torch.zeros(3, cut.size, dtype=torch.float64)
    given = logits[:, :360].double().softmax(1)
    for token, number in cut.whole.ids.items():
        known = cut.numbers.get(number)
        first = small.model.tokenize(token)[0].id if known is None else known
        wanted[:, first] += given[:, number]
    assert torch.allclose(mapped.exp().double(), wanted, atol=1e-6)
    assert torch.allclose(mapped.exp().sum(1), torch.ones(3), atol=1e-5)


def test_the_next_token_is_taught_inside_a_word(cut: TokenCut) -> None:
    small = Tokenizer.from_str(json.dumps(cut.document))
    read = WholeVocabulary(cut).read(small.encode(TEXT).ids)
    taught = torch.randn(len(read.tokens) - 1, 9, generator=torch.Generator().manual_seed(0))
    rows = WholeVocabulary.spread(read, taught, 4)
    assert len(rows) == len(read.after)
    for n, after in enumerate(read.after):
        if after >= 0:
            assert torch.equal(rows[n], taught[after])
        else:
            assert rows[n, 0] == read.following[n]
            assert len(set(rows[n, :4].tolist())) == 4
            assert rows[n, 4:].exp().sum() == pytest.approx(1, abs=1e-4)
