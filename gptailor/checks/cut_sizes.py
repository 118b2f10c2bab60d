"""Rules of cuts against the models: sizes and families that they allow."""

from collections.abc import Callable, Iterator

from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.token_cut import WholeTokenizer
from gptailor.checkpoint.vocabulary import counted, shown_tokens
from gptailor.checks.rule import rule
from gptailor.plan.faults import Fault
from gptailor.plan.sites import sizes_of
from gptailor.program.sources import Checked, Use


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


def equal_in_layers(
    checked: Checked, count_of: Callable[[Use], int | Refusal | None], noun: str
) -> int | Refusal | None:
    """Return the count that the MLPs of all layers have that a plan may take, dropped ones too.

    `count_of` returns None for a layer to leave out. A refusal names the layer without a count, or
    two layers with different ones, as counts of `noun`. None if no layer has one.
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
    return None if first is None else first[1]
