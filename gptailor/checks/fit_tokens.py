"""The tokens that fits read, and the least numbers of them that the models need."""

from collections.abc import Iterator
from typing import NamedTuple, final

from gptailor.checks.bridges import inputs_of_bridges
from gptailor.checks.cut_sizes import layers_size
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place
from gptailor.plan.registry import BRIDGE_TOKENS
from gptailor.program.fits import LAYER_CUTS
from gptailor.program.sources import Checked


@final
class FitTokens(NamedTuple):
    """The number of tokens of a fit's text: by the plan, by default, and at least.

    `at` is the fit's place in the plan, and `user` its name in messages. `named` is None where the
    plan names no number, and may be a choice.
    """

    at: Place
    user: str
    named: object
    default: int
    least: int

    @property
    def reason(self) -> str:
        """The reason for the least number, and a better one."""
        if self.at == ("experts",):
            compared = f"{self.least} experts are compared"
            return f"{compared}; a hundred times as many tokens are a good start"
        return f"a fit on {self.least:,} inputs needs them; ten times as many are a good start"


def least_tokens(checked: Checked) -> Iterator[FitTokens]:
    """Yield the tokens of each fit that needs a least number of them: an input, or expert, each."""
    plan = checked.plan
    for i, least in inputs_of_bridges(checked).items():
        yield FitTokens(("bridges", i), "a bridge", plan.bridges[i].tokens, BRIDGE_TOKENS, least)
    for word, cut in plan.cuts.items():
        if word in LAYER_CUTS and isinstance(own := layers_size(checked, word), int):
            yield FitTokens((word,), f"'{word}'", cut.tokens, LAYER_CUTS[word].tokens, own)


@rule("M220")
def _fits_have_enough_tokens(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for each fit with fewer tokens than it needs."""
    for fit in least_tokens(checked):
        tokens = fit.default if fit.named is None else fit.named
        if not isinstance(tokens, int) or tokens >= fit.least:
            continue
        at = fit.at if fit.named is None else (*fit.at, "tokens")
        help_ = f"give at least {fit.least:,}"
        if fit.at == ("experts",):
            message = f"{tokens:,} tokens can't compare {fit.least:,} experts"
            yield Fault("M220", message, at, help_)
        else:
            message = f"{tokens:,} tokens can't determine a fit on {fit.least:,} inputs"
            yield Fault("M220", message, at, f"{help_}; ten times as many are a good start")
