"""M315: all layers are other models', and the base's embedding, norm or head stays."""

from pathlib import Path

import pytest

import gptailor
from tests.support.tiny import tiny_models

HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n'


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    tiny_models(folder, "base", "math", layers=4, tie_word_embeddings=True)
    return folder


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("L0..L3 from math\n", "embedding, final norm and head are the base's"),
        ("whole from math\n", ""),
        ("whole from math\ndrop L2\n", ""),
        ("L0..L3 from math\nembed from math\nnorm from base\n", ""),
    ],
)
def test_a_declared_choice_gives_no_warning(tied: Path, text: str, kept: str) -> None:
    results = [f for f in gptailor.check(gptailor.loads(HEAD + text, folder=tied)) if f.code]
    messages = [fault.message for fault in results if fault.code == "M315"]
    assert len(messages) == bool(kept)
    assert all(kept in message for message in messages), messages
