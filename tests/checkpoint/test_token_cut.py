"""A smaller vocabulary reads every text, gives it back, and keeps the most used tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import Checkpoint, open_checkpoint
from gptailor.checkpoint.token_cut import TokenCut, WholeTokenizer, token_counter
from tests.support.tiny import tiny_model
from tests.support.vocabularies import TEXT, TRICKY, write_byte_level, write_pieces


def whole_of(folder: Path, **config: Any) -> WholeTokenizer:
    return WholeTokenizer.of("base", Checkpoint(folder, config, {}, ()))


def cut_of(whole: WholeTokenizer, size: int, text: str = TEXT, **more: Any) -> TokenCut:
    path = whole.folder / "corpus.txt"
    path.write_text(text, encoding="utf-8")
    return TokenCut(whole, size, path, **more)


def tokenizer_of(cut: TokenCut) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(cut.document))


def write_unigram(folder: Path, *, bytes_: bool) -> Path:
    """A tokenizer of pieces with probabilities, as SentencePiece trains them."""
    letters = sorted({*TEXT.replace(" ", "▁")})
    pieces = sorted({TEXT.replace(" ", "▁")[at : at + n] for n in (2, 3, 5) for at in range(200)})
    tokens = ["<unk>", "<s>", "</s>", *([f"<0x{n:02X}>" for n in range(256)] if bytes_ else [])]
    scored = [(token, 0.0) for token in tokens]
    scored += [(token, -8.0) for token in letters] + [(token, -5.0) for token in pieces]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=bytes_))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>", "</s>", "<extra>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_word_pieces(folder: Path) -> Path:
    """A tokenizer of the longest pieces of words. The letter z stands in one piece alone."""
    words = sorted({*TEXT.lower().split()})
    letters = sorted({letter for word in words for letter in word} - {"z"})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    tokens += [word for word in words if len(word) > 1] + ["##ing", "##th", "jazz"]
    ids = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in ids), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["bytes", "llama3", "pieces", "unigram", "letters", "words"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> WholeTokenizer:
    """A tokenizer of each kind."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    make = {
        "bytes": write_byte_level,
        "llama3": lambda path: write_byte_level(path, "llama-bpe", begins=True),
        "pieces": write_pieces,
        "unigram": lambda path: write_unigram(path, bytes_=True),
        "letters": lambda path: write_unigram(path, bytes_=False),
        "words": write_word_pieces,
    }
    return whole_of(make[request.param](folder), bos_token_id=1)


@pytest.fixture(scope="module", params=["least", "middle"])
def cut(request: pytest.FixtureRequest, whole: WholeTokenizer) -> TokenCut:
    more = 0 if request.param == "least" else (whole.total - whole.least) // 2
    return cut_of(whole, whole.least + more)


@given(st.text(max_size=60))
@example("".join(TRICKY))
@example("jazz zoo z 'z")
def test_every_text_decodes_as_before(cut: TokenCut, text: str) -> None:
    before, after = cut.whole.tokenizer, tokenizer_of(cut)
    old, new = (t.encode(text, add_special_tokens=False) for t in (before, after))
    assert after.decode(new.ids) == before.decode(old.ids)
    unknown = cut.whole.selection.model.get("unk_token")
    assert new.tokens.count(unknown) <= old.tokens.count(unknown)


def test_a_text_of_kept_tokens_is_split_as_before(cut: TokenCut) -> None:
    after = tokenizer_of(cut)
    for text in (TEXT, *TRICKY, *TEXT.split()):
        old = cut.whole.tokenizer.encode(text, add_special_tokens=False)
        chained = cut.whole.selection.model["type"] != "BPE" or "▁" not in cut.whole.ids
        if chained and all(number in cut.numbers for number in old.ids):
            new = after.encode(text, add_special_tokens=False)
            assert new.tokens == old.tokens


def test_kept_tokens_have_the_numbers_from_0_on_in_their_order(cut: TokenCut) -> None:
    after, ids = tokenizer_of(cut), cut.whole.ids
    assert len(cut.kept) == cut.size == after.get_vocab_size()
    assert list(cut.kept) == sorted(cut.kept)
    tokens = {number: token for token, number in ids.items()}
    assert after.get_vocab() == {tokens[old]: new for new, old in enumerate(cut.kept)}
    assert cut.vocabulary.ids == after.get_vocab()


def test_special_tokens_stay_around_a_text(cut: TokenCut) -> None:
    before, after = cut.whole.tokenizer, tokenizer_of(cut)
    whole_text, cut_text = (t.encode("the") for t in (before, after))
    special = cut.whole.tokenizer.get_added_tokens_decoder().values()
    texts = {token.content for token in special}
    assert [t for t in whole_text.tokens if t in texts] == [
        t for t in cut_text.tokens if t in texts
    ]
    added = [token.content for token in before.get_added_tokens_decoder().values()]
    assert added == [token.content for token in after.get_added_tokens_decoder().values()]


def test_all_tokens_are_the_whole_tokenizer(whole: WholeTokenizer) -> None:
    cut = cut_of(whole, whole.total)
    assert cut.kept == tuple(range(whole.total))
    assert json.loads(json.dumps(cut.document))["model"] == whole.selection.document["model"]


def test_the_most_used_tokens_stay_and_then_those_of_lower_numbers(tmp_path: Path) -> None:
    whole = whole_of(write_byte_level(tmp_path / "model"))
    used = cut_of(whole, whole.least + 4, "about about patience")
    counts = whole.tokenizer.encode("about about patience").ids
    first = max(set(counts) - set(whole.selection.fixed), key=counts.count)
    assert first in used.kept
    unused = cut_of(whole, whole.least + 3, "q")
    others = sorted(set(range(whole.total)) - whole.selection.fixed)
    assert set(unused.kept) == whole.selection.fixed | set(others[:3])


def test_each_kept_token_can_be_merged(tmp_path: Path) -> None:
    cut = cut_of(whole_of(write_byte_level(tmp_path / "model")), 300)
    document, tokens = cut.document, set(cut.vocabulary.ids)
    made = {first + second for first, second in document["model"]["merges"]}
    letters = {token for token in tokens if len(token) == 1}
    added = {token["content"] for token in document["added_tokens"]}
    assert tokens == made | letters | added


def test_only_the_first_tokens_of_a_text_count(tmp_path: Path) -> None:
    whole = whole_of(write_byte_level(tmp_path / "model"))
    text = "about " * 5 + "patience " * 50
    few, all_ = (cut_of(whole, whole.least + 5, text, most=most) for most in (5, None))
    assert whole.ids["Ġabout"] in few.kept
    assert few.kept != all_.kept


def test_configurations_get_the_new_numbers(tmp_path: Path) -> None:
    folder = write_byte_level(tmp_path / "model")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [356, 357], "suppress_tokens": [300, 356], "top_k": 356})
    )
    whole = whole_of(folder, bos_token_id=356, text_config={"pad_token_id": 357, "vocab_size": 360})
    cut = cut_of(whole, whole.least)
    new = cut.numbers
    assert 300 not in new
    generation = json.loads(bytes(cut.files["generation_config.json"]))
    wanted = {"eos_token_id": [new[356], new[357]], "suppress_tokens": [new[356]], "top_k": 356}
    assert generation == wanted
    assert cut.renumbered({"bos_token_id": 356, "text_config": {"pad_token_id": 357}}) == {
        "bos_token_id": new[356], "text_config": {"pad_token_id": new[357]},
    }  # fmt: skip
    rowless = {"pad_token_id": 365, "eos_token_id": [357, 365], "image_token_index": -1}
    wanted = {"pad_token_id": None, "eos_token_id": [new[357]], "image_token_index": -1}
    assert cut.renumbered(rowless) == wanted
    biased = {"sequence_bias": [[[356], -1.0], [[300, 356], 2.0]], "stop_words_ids": [[357]]}
    wanted = {"sequence_bias": [[[new[356]], -1.0]], "stop_words_ids": [[new[357]]]}
    assert cut.renumbered(biased) == wanted


def test_an_added_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = write_byte_level(tmp_path / "model")
    document = json.loads((folder / "tokenizer.json").read_text())
    step = {"type": "BertProcessing", "sep": ["<x>", 900], "cls": ["<x>", 900]}
    document["post_processor"] = step
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="no token has the number 900"):
        _ = whole_of(folder).least


def test_files_of_older_readers_have_the_kept_tokens(tmp_path: Path) -> None:
    folder = write_byte_level(tmp_path / "model")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": 359}))
    cut = cut_of(whole_of(folder), 300)
    files, document = cut.files, cut.document
    assert "tokenizer.model" not in files
    assert json.loads(bytes(files["vocab.json"])) == document["model"]["vocab"]
    assert json.loads(bytes(files["added_tokens.json"])) == {"<tool>": cut.numbers[359]}
    lines = bytes(files["merges.txt"]).decode().splitlines()
    assert lines[1:] == [" ".join(pair) for pair in document["model"]["merges"]]


def test_the_report_counts_the_whole_text(tmp_path: Path) -> None:
    whole = whole_of(write_byte_level(tmp_path / "model"))
    text = TEXT.replace("\r", "") + "日本語"  # a file has no carriage return alone
    report = cut_of(whole, whole.least + 10, text).report
    before = len(whole.tokenizer.encode(text).ids)
    assert (report.kept, report.total, report.before) == (whole.least + 10, whole.total, before)
    assert report.size == len(text.encode())
    assert 0 < report.unchanged_share < 1
    assert report.growth > 0
    assert report.after > report.bytewise > 0
    assert cut_of(whole, whole.total).report.growth == 0


def test_a_changed_text_is_counted_again(tmp_path: Path) -> None:
    whole = whole_of(write_byte_level(tmp_path / "model"))
    assert (
        cut_of(whole, whole.least + 2, "about " * 9).kept
        != cut_of(whole, whole.least + 2, "patience " * 9).kept
    )


TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 64},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<unk>",
}


@pytest.mark.parametrize("more", [{}, {"truncation": TRUNCATION}, {"padding": PADDING}])
def test_all_tokens_are_counted(tmp_path: Path, more: dict[str, object]) -> None:
    folder = tiny_model("llama", tmp_path / "model", layers=2)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    count = token_counter(open_checkpoint(folder))
    assert count is not None
    assert count("the cat sat on the mat") == len("the cat sat on the mat")
