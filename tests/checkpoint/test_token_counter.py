"""Counts of tokens by a folder's `tokenizer.json`, whatever it cuts or pads."""

import json
from pathlib import Path

import pytest

from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.token_counter import token_counter
from tests.support.tiny import tiny_model

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
