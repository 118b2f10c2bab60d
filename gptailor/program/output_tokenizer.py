"""The tokenizer of a plan's output, and its smaller vocabulary, kept while files are unchanged."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from gptailor.checkpoint.files import Stamp, stamps
from gptailor.checkpoint.models import Opened, folder_of
from gptailor.checkpoint.token_cut import TokenCut, WholeTokenizer
from gptailor.plan.plan import Named, Plan, SizeCut
from gptailor.plan.sites import named_models


def tokenizer_owner(plan: Plan, models: Mapping[str, Opened]) -> Opened:
    """Return the model that supplies a plan's tokenizer: the one it names, or the base."""
    recipe = plan.rest("tokenizer")
    base = models["base"]
    if recipe is None:
        return base if plan.tokenizer == "union" and base.union is not None else base.alone
    names = [name for _, name, _ in named_models(recipe)]
    return models.get(names[0], base)


def output_tokenizer(plan: Plan, models: Mapping[str, Opened]) -> Opened:
    """Return the model with the output's tokenizer: `tokenizer_owner`, its vocabulary cut.

    Raises CheckpointError as `token_cut_of`.
    """
    owner = tokenizer_owner(plan, models)
    cut = token_cut_of(plan, models)
    return owner if cut is None else replace(owner, token_cut=cut)


def token_cut_of(plan: Plan, models: Mapping[str, Opened]) -> TokenCut | None:
    """Return the smaller vocabulary of a plan; None if its size is open.

    None too for the tokenizer's own size, if the embedding has no padding rows that could leave.

    Raises CheckpointError (C601, C603) for a tokenizer that can't be cut.
    """
    if (cut := plan.vocabulary) is None:
        return None
    size = plan.numbers.get(cut.size.named) if isinstance(cut.size, Named) else cut.size
    if not isinstance(size, int):
        return None
    owner = tokenizer_owner(plan, models)
    whole = WholeTokenizer.of(owner.name, owner.checkpoint)
    whole = _known_tokenizer(whole, tuple(stamps(whole.files).items()))
    embed = owner.rest("embed").get(0)
    padded = embed is not None and embed.spec.shape[0] > whole.total
    if size >= whole.total + padded:
        return None
    made = TokenCut(whole, size, folder_of(plan, cut.on), cut.tokens)
    return _known_cut(made, tuple(stamps([*whole.files, made.text]).items()))


def with_token_cut(plan: Plan, cut: TokenCut | None) -> Plan:
    """Return a plan with a smaller vocabulary, found anywhere; the plan itself without one."""
    if cut is None:
        return plan
    on = os.path.abspath(cut.text)  # noqa: PTH100 (links stay)
    vocabulary = SizeCut(size=cut.size, on=on, tokens=cut.most)
    changed = plan.model_copy(update={"vocabulary": vocabulary})
    return changed.read_from(plan.origin) if plan.origin else changed


@lru_cache(maxsize=8)
def _known_tokenizer(whole: WholeTokenizer, _: tuple[tuple[Path, Stamp], ...]) -> WholeTokenizer:
    """Return one object for equal tokenizers of unchanged files, which reads them once."""
    return whole


@lru_cache(maxsize=64)
def _known_cut(cut: TokenCut, _: tuple[tuple[Path, Stamp], ...]) -> TokenCut:
    """Return one object for equal cuts of unchanged files, which reads them once."""
    return cut
