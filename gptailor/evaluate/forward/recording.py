"""Stand-ins for a model's layers: some record how layers are called, one gives what comes after.

So the model's own forward does all that isn't a layer (embedding, masks, rotations, norm, head,
soft caps), whatever the family, and the caller runs the layers itself.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from gptailor.evaluate.live.template import decoder, decoder_layers, embeddings, standing_in


@final
@dataclass(frozen=True)
class Call:
    """How a layer is called but for the hidden state, which comes first."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def of(
        self, layer: nn.Module, hidden: Float[Tensor, " batch length width"]
    ) -> Float[Tensor, " batch length width"]:
        """The hidden state after the layer."""
        made = layer(hidden, *self.args, **self.kwargs)
        after: Tensor = made[0] if isinstance(made, tuple | list) else made
        return after


@final
class _StandIn(nn.Module):
    """Has the attributes of the layer in whose place it stands, none of its tensors, and a call."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple: not a submodule
        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"][0], name)


def wraps(model: PreTrainedModel, layer: nn.Module) -> bool:
    """Whether the model's layers return their hidden state in a tuple; runs one for a token."""
    found = []

    def probe(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        made = layer(hidden, *args, **kwargs)
        found.append(isinstance(made, tuple | list))
        return made

    with standing_in(model, [_StandIn(layer, probe)]):
        decoder(model)(input_ids=_token(model), use_cache=False)
    return found[0]


def record_calls(
    model: PreTrainedModel, batches: Iterable[Int64[Tensor, " batch length"]], *, wraps: bool
) -> tuple[list[Tensor], list[list[Call]]]:
    """The hidden states that enter the first layer, and how each layer is called, batch by batch.

    Equal tensors of the calls are kept once.
    """
    kept: dict[tuple[Any, ...], list[Tensor]] = {}
    noted: list[tuple[Tensor, Call]] = []

    def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        noted.append((hidden, Call(args, kwargs)))
        return (hidden, None) if wraps else hidden

    recorders = [_StandIn(layer, note) for layer in decoder_layers(model)]
    first: list[Tensor] = []
    calls: list[list[Call]] = []
    for tokens in batches:
        with standing_in(model, recorders):
            decoder(model)(input_ids=tokens, use_cache=False)
        once = cache(partial(_once, kept))
        first.append(noted[0][0])
        given = [(one.args, one.kwargs) for _, one in noted]
        calls.append([Call(*tree_map_only(Tensor, once, one)) for one in given])
        noted.clear()
    return first, calls


def _once(kept: dict[tuple[Any, ...], list[Tensor]], value: Tensor) -> Tensor:
    kin = kept.setdefault((value.shape, value.dtype, value.stride()), [])
    for known in kin:
        if torch.equal(known, value):
            return known
    kin.append(value)
    return value


def head_logits(
    model: PreTrainedModel, rows: Float[Tensor, " n width"], *, wraps: bool
) -> Float[Tensor, " n vocab"]:
    """The logits, in float32, of hidden states of any tokens after the last layer."""

    def inject(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        return (rows[:, None], None) if wraps else rows[:, None]

    last = _StandIn(decoder_layers(model)[-1], inject)
    tokens = _token(model).expand(len(rows), 1)  # texts of one token: each row's place is 0
    with standing_in(model, [last]):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.reshape(len(rows), -1).float()


def _token(model: PreTrainedModel) -> Tensor:
    return torch.zeros((1, 1), dtype=torch.int64, device=embeddings(model).device)
