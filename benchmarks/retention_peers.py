"""Peers of `benchmarks/retention.py` that do more than drop layers.

LaCo folds layers into an earlier one, and its result is a plan. ReplaceMe and a LoRA write models
into the folder.
"""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

import gptailor
from benchmarks.bridge_peer import influences, read, replace
from benchmarks.retention_lab import Found, Lab, NotMade, shown_layers
from benchmarks.search_texts import texts_of
from gptailor.evaluation.fits.heal.sources import file_source
from gptailor.evaluation.fits.heal.text import healing_texts
from gptailor.evaluation.objectives.tokens import TokenEncoder
from gptailor.plan.plan import Plan

# -------------------------------------------------------------------------------------------- LaCo

FOLDS, APART = (1, 2, 3), 2
"""Layers folded into one at once, and the distance of the next try below a fold."""
STEP = 0.05
"""Step of the wanted similarity, which falls until enough layers are folded."""


@dataclass(frozen=True)
class Layer:
    """An output layer: its position, and the layers of its sum."""

    position: int
    weights: Mapping[int, float]

    def folding(self, others: Sequence["Layer"]) -> "Layer":
        """Return the layer plus each other layer's difference from it."""
        total = {at: (1 - len(others)) * weight for at, weight in self.weights.items()}
        for other in others:
            for at, weight in other.weights.items():
                total[at] = total.get(at, 0.0) + weight
        return Layer(self.position, {at: weight for at, weight in total.items() if weight})


def laco(lab: Lab, count: int, seed: int) -> Found:
    """Run LaCo (arXiv 2402.11187): fold layers from the top while the output stays similar.

    The similarity is the mean cosine of final hidden states on one text of each domain. Several
    numbers of layers for a fold are tried, as its authors do for each model; the most similar
    result counts.
    """
    model = lab.specialist
    dense = _final(lab, _summed(lab, model, _alone(lab)))
    known: dict[str, float] = {}

    def similarity(layers: Sequence[Layer]) -> float:
        key = repr(layers)
        if key not in known:
            found = _final(lab, _summed(lab, model, layers))
            known[key] = float(cosine_similarity(found, dense, dim=-1).mean())
        return known[key]

    best, value, said = None, -1.0, 0
    for folded in FOLDS:
        wanted = 1 - STEP
        while wanted > value:
            layers = _folded(_alone(lab), count, folded, lambda some: similarity(some) > wanted)  # noqa: B023 (called at once)
            if len(layers) == lab.layers - count:
                if similarity(layers) > value:
                    best, value, said = layers, similarity(layers), folded
                break
            wanted -= STEP
    if best is None:
        raise NotMade("no fold leaves anything similar")
    places = ", ".join(f"L{one.position}" for one in best if one.weights != {one.position: 1.0})
    note = f"{said} folded at once, into {places}; similarity {value:.2f}"
    plan = gptailor.format(_summed(lab, model, best))
    return Found(plan, len(known) * lab.low / lab.full, note)


def _folded(
    layers: list[Layer], count: int, folded: int, similar: Callable[[Sequence[Layer]], bool]
) -> list[Layer]:
    """Fold a number of layers, or fewer if the output becomes too different."""
    fewest, at = len(layers) - count, len(layers) - folded - 1
    while at >= 0 and len(layers) > fewest:
        taken = min(folded, len(layers) - fewest, len(layers) - 1 - at)
        one = layers[at].folding(layers[at + 1 : at + 1 + taken])
        fewer = [*layers[:at], one, *layers[at + 1 + taken :]]
        if similar(fewer):
            layers = fewer
            at = min(at - APART, len(layers) - folded - 1)
        else:
            at -= 1
    return layers


def _alone(lab: Lab) -> list[Layer]:
    return [Layer(at, {at: 1.0}) for at in range(lab.layers)]


def _summed(lab: Lab, model: str, layers: Sequence[Layer]) -> Plan:
    """Return output layers as a plan of one model."""
    said = []
    for one in layers:
        if len(one.weights) == 1:
            [at] = one.weights
            source = f"L{one.position} = L{at} {model}"
            said.append(f"L{at} from {model}" if at == one.position else source)
            continue
        sources = ", ".join(f"L{at} {model}" for at in one.weights)
        weights = ", ".join(f"{weight:.1f}" for weight in one.weights.values())
        said.append(f"L{one.position} = merge({sources}) by linear({weights})")
    gone = sorted(set(range(lab.layers)) - {one.position for one in layers})
    drops = [f"drop {', '.join(f'L{at}' for at in gone)}"] if gone else []
    return lab.plan(*said, *drops)


@torch.inference_mode()
def _final(lab: Lab, plan: Plan) -> Tensor:
    """Return the final hidden states of a plan on the search's first texts, [tokens, width]."""
    model = lab.trials.meter.stitch(lab.trials.models, plan).model
    found = []
    for text in texts_of(lab.files.search)[: lab.low]:
        tokens = lab.tokenizer(text, return_tensors="pt")["input_ids"]
        found.append(model.base_model(tokens.to(model.device)).last_hidden_state[0].float())
    return torch.cat(found)


# --------------------------------------------------------------------------------- models by peers

CHOSEN_BY = 8192
"""Tokens for the choice of ReplaceMe's window."""


def replaceme(lab: Lab, count: int, seed: int) -> Found:
    """Run ReplaceMe (arXiv 2505.02819): its window, and least squares on a bridge's tokens."""
    model = _compiled(lab, lab.alone(lab.specialist), f"specialist-{count}")
    tokens, device = lab.asked.bridge_tokens, lab.asked.device
    few = read(model, lab.files.learned, min(tokens, CHOSEN_BY), device)
    windows = influences(few, count)["windows"]
    first = min(range(1, len(windows)), key=windows.__getitem__)
    out = lab.folder / "models" / f"replaceme-{count}"
    replace(read(model, lab.files.learned, tokens, device), first, count, "squares", out)
    shutil.rmtree(model)
    return _written(lab, out, f"L{first}..L{first + count - 1}")


RANK, ALPHA, DROPOUT = 16, 32, 0.05
RATE, WARM_UP = 2e-4, 0.05
STEP_TOKENS = 1024


def lora(lab: Lab, count: int, seed: int) -> Found:
    """Train a LoRA with PEFT on ShortGPT's cut: next-token loss on the tokens of `heal`."""
    try:
        import peft  # a peer that other methods don't need
    except ImportError as error:
        raise NotMade("the package peft isn't there") from error
    whole = lab.alone(lab.specialist)
    positions = lab.least(whole, count)
    folder = _compiled(lab, lab.without(whole, positions), f"cut-{count}-{seed}")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dtype = AutoConfig.from_pretrained(folder).dtype or torch.float32
    settings = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    nn.Module.to(model, lab.asked.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
        changed = peft.get_peft_model(model, settings)
    encoder = TokenEncoder(lab.tokenizer, model.config.max_position_embeddings)
    source = file_source(lab.files.learned, Fraction(1), encoder, seed)
    text = healing_texts([source], lab.asked.amounts.tokens, encoder, seed, exactly=True)
    loss = _trained(changed, text.learned.tokens, getattr(torch, lab.asked.dtype))
    out = lab.folder / "models" / f"lora-{count}-{seed}"
    merged: Any = changed.merge_and_unload()
    merged.to(dtype).save_pretrained(out)
    lab.tokenizer.save_pretrained(out)
    shutil.rmtree(folder)
    return _written(lab, out, f"{shown_layers(positions)}; {loss:.3f} nats in the end")


def _trained(model: nn.Module, sequences: Tensor, dtype: torch.dtype) -> float:
    """Learn from all sequences once; return the mean loss of the last ten steps."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    batches = sequences.split(max(1, STEP_TOKENS // sequences.shape[1]))
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    share = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(step, len(batches)))
    device = parameters[0].device
    narrow = torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
    losses = []
    model.train()
    for batch in batches:
        tokens = batch.to(device)
        with narrow:
            logits = model(input_ids=tokens).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        share.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    model.eval()
    return sum(losses[-10:]) / len(losses[-10:])


def _share(step: int, steps: int) -> float:
    """Return a step's learning rate as a share of the highest: a warm-up, then a cosine."""
    rising = max(1, int(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _compiled(lab: Lab, plan: Plan, name: str) -> Path:
    out = lab.folder / "models" / name
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(exist_ok=True)
    gptailor.compile(plan, out)
    return out


def _written(lab: Lab, out: Path, note: str) -> Found:
    lab.tokenizer.save_pretrained(out)
    said: list[Any] = ["tailor 1", f"model base = {json.dumps(str(out))}", ""]
    return Found("\n".join(said), 1, note, alone=True)
