"""Live plans over the layers of one tiny model, without the stitcher."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from gptailor.evaluation.forward.requests import Request
from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.live.template import decoder_layers, replace_layers
from tests.support.tiny import VOCAB_SIZE, tiny_model


@dataclass(frozen=True, eq=False)
class Lent(Stitched):  # type: ignore[misc]  # it is final, and this notes which layers are lent
    lendings: list[int] = field(default_factory=list)

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        self.lendings.append(index)
        yield decoder_layers(self.model)[index]


def loaded(family: str, folder: Path, **config: Any) -> PreTrainedModel:
    tiny_model(family, folder, **config)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model.eval().requires_grad_(False)


def lent(pool: PreTrainedModel, order: Sequence[int]) -> Lent:
    """The pool's layers in another order; embeddings, norm and head are the pool's."""
    own = decoder_layers(pool)
    replace_layers(pool, [])
    try:
        model = copy.deepcopy(pool)
    finally:
        replace_layers(pool, own)
    replace_layers(model, [own[index] for index in order])
    model.config.num_hidden_layers = len(order)
    return Lent(model, "start", tuple(order))


def broken(plan: Lent, at: int, do: Callable[[Tensor], object]) -> Lent:
    """The plan with something done to the hidden state before one of its layers."""
    layers = list(decoder_layers(plan.model))
    layers[at] = Before(layers[at], do)
    replace_layers(plan.model, layers)
    return Lent(plan.model, "start", (*plan.layers[:at], object(), *plan.layers[at + 1 :]))


class Before(nn.Module):
    def __init__(self, layer: nn.Module, do: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.layer = layer
        self.do = do

    def forward(self, hidden: Tensor, *args: object, **kwargs: object) -> object:
        self.do(hidden)
        return self.layer(hidden, *args, **kwargs)


def likelihood(
    logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], numbers: Int64[Tensor, " n"]
) -> Float[Tensor, " n 1"]:
    return logits.log_softmax(-1).gather(1, targets[:, None])


def whole(
    logits: Float[Tensor, " n vocab"], targets: Int64[Tensor, " n"], numbers: Int64[Tensor, " n"]
) -> Float[Tensor, " n vocab"]:
    return logits.clone()


def requests(count: int, *, seed: int = 0, longest: int = 30) -> list[Request]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest, (count,), generator=generator).tolist()
    firsts = [int(torch.randint(1, length, (), generator=generator)) for length in lengths]
    return [
        Request(tuple(torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()), first)
        for length, first in zip(lengths, firsts, strict=True)
    ]
