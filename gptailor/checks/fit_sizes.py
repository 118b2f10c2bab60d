"""Rules of cuts and bridges against the models: families, sizes, and the least tokens of fits."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.mixture import Routing, routing
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.vocabulary import counted, shown_tokens
from gptailor.checks.repairs import inputs_of_bridges
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, Place, listed
from gptailor.plan.registry import BRIDGE_TOKENS
from gptailor.plan.sites import sizes_of
from gptailor.program.fits import LAYER_CUTS
from gptailor.program.sources import Checked, whole_tokenizer

_TILE, _BLOCK = 64, 256
"""Neurons of a tile of matrix kernels, and of a block of GGUF's K-quants."""


@rule("M240")
def only_embedding_and_head_have_tokens(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a cut vocabulary of a model with another tensor of a row for each token."""
    base = checked.base
    embed = base.rest("embed").get(0)
    if checked.plan.vocabulary is None or embed is None:
        return
    for name, tensor in base.others.items():
        if tensor.spec.shape[:1] == embed.spec.shape[:1]:
            message = f"'vocabulary' isn't supported: {quoted(name)} has a row for each token too"
            yield Fault("M240", message, ("vocabulary",), "remove it")
            return


@rule("M241")
def _the_vocabulary_can_be_cut(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a tokenizer that can't be cut, and for a size that it can't have."""
    if (cut := checked.plan.vocabulary) is None or checked.union is not None:
        return
    owner = checked.tokenizer_model
    try:
        whole = whole_tokenizer(owner)
        least, total = whole.least, whole.total
    except CheckpointError as error:
        message = f"{error.message} ({error.path})"
        yield Fault(error.code, message, ("vocabulary",), error.help)
        return
    embed = owner.rest("embed").get(0)
    rows = total if embed is None else embed.spec.shape[0]
    if beyond := [token for token, number in whole.ids.items() if number >= rows]:
        message = (
            f"the tokenizer of '{owner.name}' has {counted(beyond)} beyond its embedding's "
            f"{rows} rows: {shown_tokens(beyond)}"
        )
        yield Fault("M241", message, ("vocabulary",), "remove them from its tokenizer")
    sizes = sizes_of(checked.resolved.declared, cut.size)
    if sizes and sizes[0] < least:
        message = f"expected at least {least:,} tokens, got {sizes[0]:,}"
        help_ = "special tokens, and the letters or bytes that any text needs, can't be removed"
        yield Fault("M241", message, ("vocabulary", "size"), help_)
    if sizes and sizes[-1] > total:
        message = f"expected at most {total:,} tokens, got {sizes[-1]:,}"
        yield Fault("M241", message, ("vocabulary", "size"), "the tokenizer has no more")


@rule("M240", "M241", "M317")
def _layers_can_be_cut(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a size that the models' layers can't have, and a warning for an odd one."""
    for word, cut in checked.plan.cuts.items():
        if word not in LAYER_CUTS:
            continue
        own = layers_size(checked, word)
        if isinstance(own, Refusal):
            message = f"'{word}' isn't supported: {own.reason}"
            yield Fault("M240", message, (word,), "remove it")
            continue
        noun, (parts, further) = LAYER_CUTS[word].noun, _NAMES[word]
        sizes = sizes_of(checked.resolved.declared, cut.size)
        if sizes and sizes[-1] > own:
            message = f"expected at most {own:,} {noun}, the models' own number, got {sizes[-1]:,}"
            yield Fault("M241", message, (word, "size"), f"give at most {own:,}")
        elif [*sizes] == [own]:
            message = f"the models' {parts} have {own:,} {noun}, so '{word} {own}' changes nothing"
            yield Fault("M317", message, (word, "size"), severity="warning")
        else:
            yield from further(checked, [size for size in sizes if size != own], own)


def _odd_widths(_: Checked, sizes: Sequence[int], _own: int) -> Iterator[Fault]:
    """Yield a warning for a width that kernels are slow at."""
    if odd := [size for size in sizes if size % _TILE]:
        message = f"{odd[0]:,} isn't a multiple of {_TILE}, so kernels are slower"
        help_ = f"use a multiple of {_TILE}, or of {_BLOCK} for K-quants of GGUF"
        yield Fault("M317", message, ("width", "size"), help_, severity="warning")


def _unroutable(checked: Checked, sizes: Sequence[int], own: int) -> Iterator[Fault]:
    """Yield a fault for a number of experts that a router can't have."""
    limits = routing(checked.base.layout, checked.base.config)
    if refused := [size for size in sizes if not limits.allows(size)]:
        message = (
            f"a router can't have {refused[0]:,} expert{'s' * (refused[0] != 1)}: {_words(limits)}"
        )
        help_ = _allowed(limits, refused[0], own)
        yield Fault("M241", message, ("experts", "size"), help_)


_NAMES = {
    "width": ("MLPs", _odd_widths),
    "experts": ("layers", _unroutable),
}
"""By cut of layers: the words for its parts, and a further rule.

The rule receives the sizes that change something, and the models' own size.
"""


def _words(limits: Routing) -> str:
    """Return the limits of a router in words."""
    taken = f"each token uses {limits.taken:,}"
    if limits.groups == 1:
        return taken
    groups = f"from {limits.taken_groups:,} of {limits.groups:,} equal groups"
    return f"{taken} {groups} of at least 2"


def _allowed(limits: Routing, size: int, own: int) -> str:
    """Return the nearest numbers of experts below and above a refused number."""
    below = next((n for n in range(size - 1, 0, -1) if limits.allows(n)), None)
    above = next((n for n in range(size + 1, own + 1) if limits.allows(n)), None)
    nearest = [f"{n:,}" for n in (below, above) if n is not None]
    return (
        f"the nearest valid numbers are {listed(nearest)}"
        if len(nearest) > 1
        else (f"the nearest valid number is {nearest[0]}" if nearest else "remove it")
    )


def layers_size(checked: Checked, word: str) -> int | Refusal:
    """Return the size of all layers that a plan may take, dropped ones too, before a cut.

    A refusal says why they can't be cut. It names the layer without a size, or two layers with
    different ones.
    """
    cut, base = LAYER_CUTS[word], checked.base
    if (reason := cut.refused(base.layout)) is not None:
        return Refusal(reason)
    first: tuple[str, int] | None = None
    for slot in checked.resolved.slots:
        for use in checked.uses(slot, "mlp"):
            name, count = f"L{use.layer} of '{use.model.name}'", cut.count(use)
            if isinstance(count, Refusal):
                return Refusal(f"{name} {count.reason}")
            if count is None:
                continue
            first = first or (name, count)
            if count != first[1]:
                return Refusal(f"{first[0]} has {first[1]:,} {cut.noun}, but {name} has {count:,}")
    if first is None:
        return Refusal(f"the models have no {cut.noun}")
    changed = cut.resized(base.layout, base.config, first[1], first[1])
    return changed if isinstance(changed, Refusal) else first[1]


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
            each, better = "expert", 100 * self.least
        else:
            each, better = "input of the fit", 10 * self.least
        return f"give at least {self.least:,} tokens, one for each {each}; better {better:,}"


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
        help_ = fit.reason
        if fit.at == ("experts",):
            message = f"{tokens:,} tokens can't compare {fit.least:,} experts"
            yield Fault("M220", message, at, help_)
        else:
            message = f"{tokens:,} tokens can't determine a fit on {fit.least:,} inputs"
            yield Fault("M220", message, at, help_)
