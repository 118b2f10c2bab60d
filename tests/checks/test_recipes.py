"""Rules of methods and their arguments: the remedies of their faults."""

from pathlib import Path

import pytest

from gptailor.lang.parse import read_bytes


@pytest.mark.parametrize(
    ("call", "code", "help_"),
    [("dare_linear(0.5)", "P301", "did you mean 'dare'?"),
     ("ramplus_tl()", "P301", "did you mean 'ram_plus'?"),
     ("passthrough()", "P301", "remove 'by'"),
     ("scale(0.5)", "P301", "by linear(0.5)"),
     ("ties(lambda=0.5)", "P302", "use 'scale'"),
     ("ties(int8_mask=true)", "P302", "remove it"),
     ("sce(select_topk=0.5)", "P302", "did you mean 'density'?"),
     ("ties(normalize=true)", "P312", "did you mean 'yes'?"),
     ("dare(rescale=True)", "P312", "did you mean 'l1'?"),
     ("ties(normalize=false)", "P312", "did you mean 'no'?"),
     ("ties(normalize=yess)", "P312", "did you mean 'yes'?")],
)  # fmt: skip
def test_mergekits_names_have_their_own_remedies(call: str, code: str, help_: str) -> None:
    text = f'tailor 1\nmodel base = "a"\nmodel b = "b"\nmodel c = "c"\nL1 from b, c by {call}\n'
    [fault] = read_bytes(text.encode(), "a.tailor", Path())[1]
    assert fault.code == code
    assert help_ in fault.help
