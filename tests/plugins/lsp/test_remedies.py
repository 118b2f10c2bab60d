"""Changes of a text that mend its faults."""

from pathlib import Path

import pytest

from gptailor.plan.faults import Fault, Span
from gptailor.plugins.lsp.plan_text import PlanText
from gptailor.plugins.lsp.remedies import edited, remedies

HEAD = """tailor 1
model base = "./base"
model math = "./math"
let mix = 0.5..1.0
"""


def opened(text):
    return PlanText(Path("/nowhere/plan.tailor"), text)


@pytest.mark.parametrize(
    ("typed", "mended"),
    [
        ("L1 frm math", "L1 from math"),
        ("L1 from maths", "L1 from math"),
        ("l1 from math", "L1 from math"),
        ("L1 from base, math by liner()", "L1 from base, math by linear()"),
        ("L1 from base, math by ties(densty=0.5)", "L1 from base, math by ties(density=0.5)"),
        ("L1 from base, math by linear", "L1 from base, math by linear()"),
        ("L1 from base, math", "L1 from base, math by linear()"),
        ("L1 from any of base, math", "L1 from any of base, math by linear()"),
        ("L1 from base, math by slerp(0.7..0.3)", "L1 from base, math by slerp(0.3..0.7)"),
        ("drop L4..L2", "drop L2..L4"),
        ("L0-L9 from math", "L0..L9 from math"),
        ("scale L1 by .5", "scale L1 by 0.5"),
        ("model a = './x'", 'model a = "./x"'),
        ("model a = “./x”", 'model a = "./x"'),
        ('model a = "x/y/z"', 'model a = "./x/y/z"'),
        ("tied L1 from math", "L1 from math"),
        ("maybe embed from math", "embed from math"),
        ("merge(L1 base, L1 math, 0.5  # why", "merge(L1 base, L1 math, 0.5)  # why"),
        ("dtype bfloat61", "dtype bfloat16"),
        ("drop L1 // why", "drop L1 # why"),
        ("drop\u00a0L1", "drop L1"),
    ],
)
def test_helps_that_are_changes_are_quick_fixes(typed, mended):
    text = opened(f"{HEAD}scale L30 by mix\n{typed}\n")
    made = [edited(text.text, remedy.edits) for remedy in remedies(text, text.faults)]
    assert made == [f"{HEAD}scale L30 by mix\n{mended}\n"]


def test_remedies_add_missing_statements():
    text = opened("L1 from zzz\n")
    made = {r.title: edited(text.text, r.edits) for r in remedies(text, text.faults)}
    assert made["write 'tailor 1' at the top"] == "tailor 1\nL1 from zzz\n"
    assert made["declare the base"] == 'model base = "./models/base"\nL1 from zzz\n'
    text = opened(f"{HEAD}L1 from zzz\n")
    (remedy,) = (r for r in remedies(text, text.faults) if r.fault.code == "P106")
    assert 'model math = "./math"\nmodel zzz = "./zzz"\n' in edited(text.text, remedy.edits)


def test_a_number_that_is_never_used_can_be_removed():
    text = opened(f"{HEAD}drop L1\n")
    (remedy,) = remedies(text, text.faults)
    assert edited(text.text, remedy.edits) == f"{HEAD}drop L1\n".replace("let mix = 0.5..1.0\n", "")


def test_a_useless_change_is_not_offered():
    text = opened(f"{HEAD}bring L1 from math\nscale L2 by mix\n")
    assert text.faults[0].help == "did you mean 'bridge'?"
    assert list(remedies(text, text.faults)) == []


def test_a_misspelled_word_is_changed_where_it_is_a_word():
    text = opened(f"{HEAD}L1 from base, math by linear(weigth=mix)\n")
    span = Span(text.text.index("L1"), len(text.text) - 1)
    fault = Fault("M999", "'mat' and 'mix' do not go together", (), "did you mean 'm'?", span=span)
    (remedy,) = remedies(text, [fault])
    assert "L1 from base, math by linear(weigth=m)" in edited(text.text, remedy.edits)


def test_a_fix_of_a_fault_against_models_is_not_preferred():
    text = opened(f'{HEAD}model x = "some/folder"\nL1 from x\nscale L2 by mix\n')
    span = Span(text.text.index('"some'), text.text.index('"some') + 13)
    help_ = 'there is a folder of that name; write "./some/folder"'
    (remedy,) = remedies(text, [Fault("C503", "is not here", (), help_, span=span)])
    assert (remedy.title[-15:], remedy.sure) == ('"./some/folder"', False)
    worse = Fault("M999", "there is no 'math'", (), "did you mean '§'?", span=Span(31, 37))
    assert list(remedies(text, [worse])) == []
    text = opened(f"{HEAD}L1 from maths\nscale L2 by mix\n")
    (remedy,) = remedies(text, text.faults)
    assert remedy.sure
