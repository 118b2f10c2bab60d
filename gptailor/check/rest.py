"""Rules of the rest of a model: embedding, norm, head, and the tokenizer that they go with."""

from collections.abc import Callable, Iterable, Iterator

from gptailor import outline
from gptailor.check.fitting import Checked
from gptailor.check.places import layer_recipes, named_models
from gptailor.checkpoint.opened import Opened
from gptailor.checkpoint.rows import can_be_aligned, has_rows
from gptailor.checkpoint.vocabulary import relation, same_files
from gptailor.diagnostics import Fault, Place, listed


def the_rest_fits(checked: Checked) -> Iterator[Fault]:
    """Embedding, norm and head have the base's shapes, but for the number of tokens."""
    for where in ("embed", "norm", "head"):
        recipe = checked.plan.rest(where)
        for at, name, _ in named_models(recipe) if recipe is not None else ():
            if name in checked.models:
                yield from _rest_misfit(checked, where, (where, *at), checked.models[name])


def _rest_misfit(checked: Checked, where: str, at: Place, model: Opened) -> Iterator[Fault]:
    theirs, ours = model.rest(where), checked.base.rest(where)
    if theirs.keys() != ours.keys():
        yield Fault("M209", f"the {where} of '{model.name}' has not the base's tensors", at)
        return
    for i, tensor in ours.items():
        a, b = theirs[i].spec.shape, tensor.spec.shape
        if a == b or (has_rows(where, i) and a[1:] == b[1:]):
            continue
        message = f"the {where} of '{model.name}' has the shape {list(a)}, and the base's {list(b)}"
        yield Fault("M208", message, at)


def every_token_has_a_row(checked: Checked) -> Iterator[Fault]:
    """Embedding and head get the rows of the output's tokenizer, where vocabularies are known."""
    teller = checked.teller
    for where in ("embed", "head"):
        recipe = checked.plan.rest(where) or outline.own(0)
        for at, name, _ in named_models(recipe):
            model = checked.models.get(name, teller)
            ours, theirs = model.rest(where).get(0), teller.rest(where).get(0)
            if ours is None or theirs is None or can_be_aligned(model, teller):
                continue
            if ours.spec.shape[0] != theirs.spec.shape[0]:
                message = (
                    f"the {where} of '{name}' has {ours.spec.shape[0]} tokens, and that of "
                    f"'{teller.name}', whose tokenizer the output has, {theirs.spec.shape[0]}"
                )
                unknown = model.name if model.vocabulary is None else teller.name
                help_ = f"'{unknown}' has no tokenizer to say which is which"
                said = checked.plan.rest(where) is not None
                yield Fault("M210", message, (where, *at) if said else ("tokenizer",), help_)


def the_tokenizer_is_there(checked: Checked) -> Iterator[Fault]:
    """A model that gives its tokenizer has one."""
    if checked.plan.tokenizer is not None and checked.teller.vocabulary is None:
        message = f"'{checked.teller.name}' has no tokenizer that can be read"
        yield Fault("M211", message, ("tokenizer",))


def tokenizers_agree(checked: Checked) -> Iterator[Fault]:
    """Layers read the tokens that they were trained on; other vocabularies are told."""
    teller = checked.teller
    for name in sorted(_in_layers(checked)):
        model = checked.models[name]
        folders = (model.checkpoint.folder, teller.checkpoint.folder)
        if name == teller.name or same_files(*folders) or not can_be_aligned(model, teller):
            continue
        assert teller.vocabulary is not None
        assert model.vocabulary is not None
        how = relation(teller.vocabulary, model.vocabulary)
        at = ("models", name, "source")
        if how == "extension":
            more = [t for t in model.vocabulary.ids if t not in teller.vocabulary.ids]
            shown = listed([f"'{token}'" for token in more[:3]] + ["…"] * (len(more) > 3))
            tokens = f"{len(more)} token{'s' if len(more) > 1 else ''}"
            message = f"'{name}' has {tokens} that the output's tokenizer lacks: {shown}"
            help_ = f"'tokenizer from {name}' brings them"
            yield Fault("M306", message, at, help_, severity="warning")
        elif how == "other":
            message = f"'{name}' has another vocabulary than the output's tokenizer"
            help_ = "its layers were trained on other tokens"
            yield Fault("M307", message, at, help_, severity="warning")


def _in_layers(checked: Checked) -> set[str]:
    """The models that layers are taken from."""
    named = {n for _, r in layer_recipes(checked.plan) for _, n, _ in named_models(r)}
    return {name for name in named if name in checked.models}


def a_tied_head_is_said(checked: Checked) -> Iterator[Fault]:
    """In a tied model naming one of embedding and head decides both."""
    if not checked.base.layout.tied:
        return
    plan = checked.plan
    named = [where for where in ("embed", "head") if plan.rest(where) is not None]
    if len(named) != 1:
        return
    for _, name, _ in named_models(plan.rest(named[0]) or outline.own(0)):
        model = checked.models.get(name)
        if model is not None and not model.layout.tied:
            message = (
                f"the base's embedding and head are one tensor, and those of '{name}' are two: "
                f"its {named[0]} serves as both"
            )
            yield Fault("M304", message, (named[0],), "name both to untie them", severity="warning")


REST_RULES: tuple[Callable[[Checked], Iterable[Fault]], ...] = (
    the_rest_fits,
    the_tokenizer_is_there,
    every_token_has_a_row,
    tokenizers_agree,
    a_tied_head_is_said,
)
