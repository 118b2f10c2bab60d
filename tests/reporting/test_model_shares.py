"""The share of each model in a layer, by the layer's recipe."""

import pytest

import gptailor
from gptailor.plan.resolved import Resolved
from gptailor.reporting.layer_view import slot_shares

HEAD = """\
tailor 1
model base = "./base"
model math = "./math"
model code = "./code"
"""


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("", {"base": 1}),
        ("L0 from math", {"math": 1}),
        ("merge(L0 base, L0 math, 0.25)", {"base": 0.75, "math": 0.25}),
        ("L0 from base, math by slerp(0.4)", {"base": 0.6, "math": 0.4}),
        ("L0 from base, math by linear()", {"base": 0.5, "math": 0.5}),
        ("L0 from math, code by linear(1, 3)", {"math": 0.25, "code": 0.75}),
        ("L0 from math, code by linear(3, -1)", {"math": 0.75, "code": 0.25}),
        ("L0 from math by task_arithmetic(0.7)", {"math": 0.7, "base": 0.3}),
        ("L0 from math, code by task_arithmetic(0.25)", {"math": 0.25, "code": 0.25, "base": 0.5}),
        ("L0 from math, code by task_arithmetic(2.0)", {"math": 0.5, "code": 0.5}),
        ("L0 from math, code by ties(0.5)", {"math": 0.5, "code": 0.5}),
        ("L0 from math, code by ties(0.5, 0.5)", {"math": 0.25, "code": 0.25, "base": 0.5}),
        ("L0 from base, math by dare(0.5, scale=0.5)", {"base": 0.5, "math": 0.5}),
        ("L0 from math, code by model_stock()", {"math": 0.5, "code": 0.5}),
        ("L0 = merge(L0 math, L1 math)", {"math": 1}),
        ("L0.mlp from math", {"base": 0.5, "math": 0.5}),
        ("L0.attn from base, math by slerp(0.5)", {"base": 0.75, "math": 0.25}),
        ("L0 from base, math by nearswap(t=0.1)", None),
        ("L0 from base, math by slerp(0.1..0.5)", None),
        ("maybe L0 from math", None),
        ("L0 from any of math, code by linear()", None),
        ("L0 from one of math, code", None),
    ],
)
def test_shares_follow_the_recipe(body: str, wanted: dict[str, float] | None) -> None:
    result = slot_shares(Resolved(gptailor.loads(HEAD + body), 2).slots[0])
    assert result == (None if wanted is None else pytest.approx(wanted))
