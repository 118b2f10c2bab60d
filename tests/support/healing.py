"""Tiny plans that are healed, and their measurements by transformers alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import gptailor
from gptailor.evaluation.fits.fit import Fitted, LayerChanges
from gptailor.evaluation.fits.heal import heal as heal_module
from gptailor.evaluation.fits.heal.sources import file_source
from gptailor.evaluation.fits.heal.text import HealingTexts, healing_texts
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import configuration, position_count
from gptailor.evaluation.objectives.tokens import TokenEncoder, tokenizer_of
from gptailor.plan.events import FitResult, OnEvent, ignore_events
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Healing
from gptailor.prepare import Prepared, prepare
from tests.support.tiny import letters, tiny_model

CPU = torch.device("cpu")


def said(folder: Path, text: str) -> Plan:
    """The plan of this text over the model in `base`, its file in the folder."""
    (folder / "plan.tailor").write_text(f'tailor 1\nmodel base = "./base"\n{text}\n')
    return gptailor.load(folder / "plan.tailor")


def two_models(folder: Path) -> Path:
    """Write two tiny models and a text into a folder, for plans that are healed; return it."""
    tiny_model("llama", folder / "base", layers=4)
    tiny_model("llama", folder / "other", layers=4, seed=1)
    (folder / "text.txt").write_text(letters(1500))
    return folder


class Asked:
    """The base as a teacher, and how often it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.plan = said(folder, "")
        self.times = 0

    def __call__(self) -> Stitched:
        self.times += 1
        return Stitcher(prepare(self.plan).models).stitch(self.plan)


class HealedLayers(NamedTuple):
    """The learned tensors of each layer of the output, by their names within it; the result."""

    tensors: LayerChanges
    result: FitResult


def healed_layers(
    prepared: Prepared,
    bridged: LayerChanges | None = None,
    *,
    device: torch.device = CPU,
    memory: int | None = None,
    dtype: torch.dtype = torch.float32,
    on_event: OnEvent = ignore_events,
) -> HealedLayers:
    """Heal a plan after its bridges; no earlier result is reused."""
    stitcher = Stitcher(prepared.models, device=device, memory=memory)
    fitted = Fitted(prepared.checked, changes={"bridge": bridged or {}})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(heal_module, "healing_dtype", lambda *_: dtype)
        result = heal_module.Healer(stitcher, anew=True).run(fitted, on_event)
    return HealedLayers(result.changes["heal"], result.results["heal"])


def wanted(prepared: Prepared) -> Healing:
    """How the plan is healed."""
    result = prepared.resolved.healing
    assert result is not None
    return result


def heal(
    plan: Plan,
    *,
    memory: int | None = None,
    dtype: torch.dtype = torch.float32,
    on_event: OnEvent = ignore_events,
) -> HealedLayers:
    """Heal a plan's layers, with nothing bridged."""
    return healed_layers(prepare(plan), memory=memory, dtype=dtype, on_event=on_event)


def with_layers(plan: Plan, tensors: Mapping[int, Mapping[str, Tensor]]) -> PreTrainedModel:
    """The plan's live model, neither bridged nor healed, with some tensors of its layers."""
    prepared = prepare(plan)
    stitcher = Stitcher(prepared.models)
    contents = stitcher.contents(prepared.resolved)
    layers = list(contents.layers)
    for index, its in tensors.items():
        layers[index] = replace(layers[index], fitted=its)
    return stitcher.live(replace(contents, layers=tuple(layers))).model


def text_of(plan: Plan, *, only_answers: bool = False) -> HealingTexts:
    """The sequences that the plan is healed on, of texts that are files."""
    prepared = prepare(plan)
    base, how = prepared.models["base"], wanted(prepared)
    encoder = TokenEncoder(tokenizer_of(base), position_count(configuration(base.config)))
    assert plan.origin is not None
    folder = plan.origin.folder
    sources = [
        file_source(folder / text.file, share, encoder, how.seed, only_answers=only_answers)
        for text, share in zip(how.texts, how.shares, strict=True)
    ]
    return healing_texts(
        sources, how.tokens, encoder, how.seed, exactly=True, only_answers=only_answers
    )


@torch.no_grad()
def divergence(teacher: PreTrainedModel, model: PreTrainedModel, tokens: Tensor) -> float:
    """KL(teacher || model) of whole distributions, in nats a token."""
    p, q = (item(tokens[:, :-1]).logits.double().log_softmax(-1) for item in (teacher, model))
    return float((p.exp() * (p - q)).sum(-1).mean())
