"""The plan that a search writes of a trial."""

from pathlib import Path

import numpy as np
import pytest

import gptailor
from gptailor.evaluation.space_trials import opened
from gptailor.lang.format import format_plan
from gptailor.searching.results import without_vain_cut
from gptailor.searching.space.decode import decode
from gptailor.searching.space.genome import Genome
from gptailor.searching.space.space import space_of
from tests.support.tiny import tiny_model
from tests.support.vocabularies import TEXT, write_byte_level

SPACE = """\
tailor 1
model base = "./base"
let many = one of (300, 360)
vocabulary many on "corpus.txt"
maybe drop L1
"""


@pytest.mark.parametrize("rows", [360, 368])
def test_a_vocabulary_that_cuts_nothing_is_left_out(tmp_path: Path, rows: int) -> None:
    tiny_model("llama", tmp_path / "base", layers=2, vocab_size=rows)
    write_byte_level(tmp_path / "base")
    (tmp_path / "corpus.txt").write_text(TEXT)
    plan, models, _ = opened(gptailor.loads(SPACE, folder=tmp_path))
    space = space_of(plan, 2)
    texts = []
    for pick in range(2):
        genome = Genome(
            np.zeros(len(space.bits), np.bool_), np.full(1, pick, np.int32), np.zeros(0, np.float32)
        )
        texts.append(format_plan(without_vain_cut(decode(space, genome), models)))
    assert "let many = 300\n" in texts[0]
    assert 'vocabulary many on "corpus.txt"' in texts[0]
    padded = rows > 360  # then the rows without a token leave
    assert [word in texts[1] for word in ("vocabulary", "let many = 360")] == [padded, padded]
