"""The words of a text: their kinds, and all uses of a name."""

from inspect import signature
from pathlib import Path

import pytest

from gptailor.lang import lower, tree
from gptailor.plugins.lsp import names
from gptailor.plugins.lsp.plan_text import PlanText

SAID = """tailor 1
model base = "./b"
model m = base + "./a"
let mix = 0.5
chat_template from m
L1..L3.mlp from base, m by ties(density=(mix, 0.3), normalize=yes)
L4 = merge(L5 base, L6 one of (m, base), curve(0, mix, 1) over L0..L3)
scale L9 by mix
bridge on "t.txt" ridge mix
heal L1 on "t" from m, answers("u", tokens=9) from base rank full loss answers
search { minimize kl("f.txt", from=m); require nll("x") <= 1.1 * m }
expect kl("f.txt", from=m) < 2 * m
"""


def test_all_uses_of_a_name_are_found_and_nothing_else():
    text = PlanText(Path("plan.tailor"), SAID)
    named = [word for word in text.words if word.named]
    uses = {name: [word for word in named if word.text == name] for name in ("m", "base", "mix")}
    assert {word.text for word in named} == uses.keys()
    assert len(uses["m"]) == 9  # declared, template, two recipes, teacher, twice compared, bound
    assert len(uses["base"]) == 6
    assert len(uses["mix"]) == 5
    assert all(text.text[w.span.start : w.span.end] == name for name in uses for w in uses[name])


def test_argument_words_are_settings_and_layers_have_their_models():
    results = {(word.kind, word.text): word for word in PlanText(Path("plan.tailor"), SAID).words}
    assert ("setting", "yes") in results
    assert results["layer", "L5"].models == ("base",)
    assert results["layer", "L6"].models == ("m", "base")
    assert results["layer", "L4"].models == ()


@pytest.mark.parametrize(("node", "part"), [*names._WORDS, *((n, "") for n in names._STRINGS)])
def test_kinds_are_of_rules_and_parts_that_the_language_has(
    node: type[tree.TreeNode] | str, part: str
) -> None:
    if isinstance(node, str):
        parts = {*list(signature(lower._LOWER[node]).parameters)[2:]}
    else:
        parts = {*node._fields}
    assert part in parts | {""}
