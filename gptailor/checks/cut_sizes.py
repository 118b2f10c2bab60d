"""Rules of cuts against the models: sizes and families that they allow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import Layout
from gptailor.checkpoint.families.mixture import Routing, routing, with_expert_count
from gptailor.checkpoint.families.width import no_width, with_width
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.token_cut import WholeTokenizer
from gptailor.checkpoint.vocabulary import counted, shown_tokens
from gptailor.checks.bridges import too_few_tokens
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault, listed
from gptailor.plan.plan import SizeCut
from gptailor.plan.registry import EXPERT_TOKENS, WIDTH_TOKENS
from gptailor.plan.sites import sizes_of
from gptailor.program.fits import expert_count, layer_width
from gptailor.program.sources import Checked, Use

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
            yield Fault("M240", message, ("vocabulary",), "leave it out")
            return


@rule("M241")
def the_vocabulary_can_be_cut(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a tokenizer that can't be cut, and for a size that it can't have."""
    if (cut := checked.plan.vocabulary) is None or checked.union is not None:
        return
    owner = checked.tokenizer_model
    try:
        whole = WholeTokenizer.of(owner.name, owner.checkpoint)
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
        yield Fault("M241", message, ("vocabulary",), "take them out of its tokenizer")
    sizes = sizes_of(checked.resolved.declared, cut.size)
    if sizes and sizes[0] < least:
        message = f"expected at least {least:,} tokens, got {sizes[0]:,}"
        help_ = "these are special tokens, and letters or bytes that any text needs"
        yield Fault("M241", message, ("vocabulary", "size"), help_)
    if sizes and sizes[-1] > total:
        message = f"expected at most {total:,} tokens, got {sizes[-1]:,}"
        yield Fault("M241", message, ("vocabulary", "size"), "the tokenizer has no more")


@rule("M240", "M241", "M220", "M317")
def layers_can_be_cut(checked: Checked) -> Iterator[Fault]:
    """Yield a fault for a size that the models' layers can't have, and a warning for an odd one."""
    for word, (own_size, further, names) in _LAYER_CUTS.items():
        if (cut := checked.plan.cuts.get(word)) is None:
            continue
        own = own_size(checked)
        faults = [*_size_faults(checked, word, cut, own, names)]
        yield from faults
        if not isinstance(own, Refusal):
            sizes = [size for size in sizes_of(checked.resolved.declared, cut.size) if size != own]
            yield from further(checked, cut, own, [] if faults else sizes)


def _odd_widths(_: Checked, cut: SizeCut, own: int, sizes: Sequence[int]) -> Iterator[Fault]:
    """Yield a warning for a width that kernels are slow at, a fault for too few tokens."""
    if odd := [size for size in sizes if size % _TILE]:
        message = f"{odd[0]:,} isn't a multiple of {_TILE}: kernels are slower at such a width"
        help_ = f"K-quants of GGUF need a multiple of {_BLOCK}"
        yield Fault("M317", message, ("width", "size"), help_, severity="warning")
    yield from too_few_tokens(cut.tokens, WIDTH_TOKENS, own, ("width",))


def _unroutable(checked: Checked, cut: SizeCut, own: int, sizes: Sequence[int]) -> Iterator[Fault]:
    """Yield a fault for a number of experts that a router can't have, and for too few tokens."""
    limits = routing(checked.base.layout, checked.base.config)
    if refused := [size for size in sizes if not limits.allows(size)]:
        message = f"a router can't choose among {refused[0]:,} experts: {_words(limits)}"
        help_ = _allowed(limits, refused[0], own)
        yield Fault("M241", message, ("experts", "size"), help_)
    tokens = EXPERT_TOKENS if cut.tokens is None else cut.tokens
    if tokens < own:
        message = f"{tokens:,} tokens can't compare {own:,} experts"
        yield Fault("M220", message, ("experts", "tokens"), f"give at least {own:,}")


def _size_faults(
    checked: Checked, word: str, cut: SizeCut, own: int | Refusal, names: tuple[str, str, str]
) -> Iterator[Fault]:
    """Yield a fault for a cut that isn't supported or too large, a warning for one of no effect.

    `own` is the size of the models' layers. `names` are its unit, what has so many, and the parts
    of the models that have them.
    """
    if isinstance(own, Refusal):
        message = f"'{word}' isn't supported: {own.reason}"
        yield Fault("M240", message, (word,), "leave it out")
        return
    unit, holder, parts = names
    sizes = sizes_of(checked.resolved.declared, cut.size)
    if sizes and sizes[-1] > own:
        message = f"expected at most {own:,} {unit}, those of {holder}, got {sizes[-1]:,}"
        yield Fault("M241", message, (word, "size"))
    elif [*sizes] == [own]:
        message = f"the models' {parts} have {own:,} {unit}, so '{word} {own}' changes nothing"
        yield Fault("M317", message, (word, "size"), severity="warning")


def _words(limits: Routing) -> str:
    """Return the limits of a router in words."""
    taken = f"a token takes {limits.taken:,}"
    if limits.groups == 1:
        return taken
    groups = f"of {limits.taken_groups:,} of {limits.groups:,} equal groups"
    return f"{taken}, {groups}, and a group has at least 2"


def _allowed(limits: Routing, size: int, own: int) -> str:
    """Return the nearest numbers of experts below and above one that is refused."""
    below = next((n for n in range(size - 1, 0, -1) if limits.allows(n)), None)
    above = next((n for n in range(size + 1, own + 1) if limits.allows(n)), None)
    nearest = [f"{n:,}" for n in (below, above) if n is not None]
    return (
        f"the nearest numbers are {listed(nearest)}"
        if len(nearest) > 1
        else (f"the nearest number is {nearest[0]}" if nearest else "leave it out")
    )


def model_experts(checked: Checked) -> int | Refusal:
    """Return the experts of each layer that has any, in all layers that a plan may take.

    A refusal says why they can't be left out.
    """
    base = checked.base
    if not base.layout.known:
        return Refusal(f"model type '{base.layout.model_type}' is not known")
    count = equal_in_layers(checked, expert_count, with_expert_count, "experts")
    return Refusal("the models have no experts") if count is None else count


def model_width(checked: Checked) -> int | Refusal:
    """Return the number of neurons of all MLPs that a plan may take, dropped layers' too.

    A refusal says why they can't be narrowed together.
    """
    base = checked.base
    if (reason := no_width(base.layout)) is not None:
        return Refusal(reason)
    width = equal_in_layers(checked, layer_width, with_width, "neurons")
    assert width is not None, "a model has layers"
    return width


def equal_in_layers(
    checked: Checked,
    count_of: Callable[[Use], int | Refusal | None],
    with_count: Callable[[Layout, Mapping[str, Any], int, int], dict[str, Any] | Refusal],
    noun: str,
) -> int | Refusal | None:
    """Return the count that the MLPs of all layers have that a plan may take, dropped ones too.

    `count_of` returns None for a layer to leave out. A refusal names the layer without a count, or
    two layers with different ones, as counts of `noun`; or it is that of `with_count`, which gives
    the configuration another count. None if no layer has one.
    """
    first: tuple[str, int] | None = None
    for slot in checked.resolved.slots:
        for use in checked.uses(slot, "mlp"):
            name, count = f"L{use.layer} of '{use.model.name}'", count_of(use)
            if isinstance(count, Refusal):
                return Refusal(f"{name} {count.reason}")
            if count is None:
                continue
            first = first or (name, count)
            if count != first[1]:
                return Refusal(f"{first[0]} has {first[1]:,} {noun}, and {name} has {count:,}")
    if first is None:
        return None
    changed = with_count(checked.base.layout, checked.base.config, first[1], first[1])
    return changed if isinstance(changed, Refusal) else first[1]


_LAYER_CUTS = {
    "width": (model_width, _odd_widths, ("neurons", "the models' MLPs", "MLPs")),
    "experts": (model_experts, _unroutable, ("experts", "a layer", "layers")),
}
"""For each cut of layers their own size, further rules, and the names of `_size_faults`."""
