"""Rules of cuts against the models: sizes and families that they allow."""

from collections.abc import Iterator

from gptailor.checks.rule import Rule, rule
from gptailor.plan.faults import Fault
from gptailor.program.sources import Checked


@rule("M240")
def every_cut_is_supported(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each cut that can't be made of this base."""
    for name in ("experts", "width"):
        if name in checked.plan.cuts:
            kind = checked.base.config.get("model_type")
            message = f"'{name}' isn't supported for a model of the type '{kind}'"
            yield Fault("M240", message, (name,), "leave it out")


CUT_SIZES: tuple[Rule[Checked], ...] = (every_cut_is_supported,)
"""Rules of cuts against the models."""
