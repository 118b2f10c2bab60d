"""The words about fits in a model card."""

import gptailor
from gptailor.plan.events import FitResult, FitText
from gptailor.plan.resolved import Resolved
from gptailor.reporting.fit_words import fit_sections

PLAN = """tailor 1
model base = "./b"
width 64 on "w.txt"
drop L3..L5
bridge on "b.txt"
"""


def test_only_bridges_report_a_closed_gap() -> None:
    texts = (FitText(1, "a" * 64, 5000),)
    results = {
        "width": FitResult("width", "width", texts, {"recovered": 0.5}),
        "L2": FitResult("bridge", "L2", texts, {}),
    }
    plan = gptailor.loads(PLAN)
    [bridge] = plan.bridges
    plan = plan.model_copy(update={"bridges": (bridge.model_copy(update={"by": "patch"}),)})
    lines = list(fit_sections(Resolved(plan, 12), results))
    [closed] = [line for line in lines if "gaps are closed" in line]
    assert "`patch`" in closed
    assert "least squares" not in closed
