"""Stand-ins for a model's layers: some record the calls of layers, another injects hidden states.

The model's own forward computes all except the layers (embedding, masks, rotations, norm, head,
soft caps), for every family. The caller runs the layers itself.
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

from gptailor.evaluation.live.stitch import Stitched
from gptailor.evaluation.live.template import decoder, decoder_layers, embeddings, standing_in


@final
@dataclass(frozen=True)
class Call:
    """The arguments of a layer's call after the hidden state, which comes first."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def of(
        self, layer: nn.Module, hidden: Float[Tensor, " batch length width"]
    ) -> Float[Tensor, " batch length width"]:
        """Return the hidden state after the layer."""
        result = layer(hidden, *self.args, **self.kwargs)
        after: Tensor = result[0] if isinstance(result, tuple | list) else result
        return after


@final
class _StandIn(nn.Module):
    """A module with a call and the attributes of the layer that it replaces, without tensors."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple: not a submodule
        self.forward = forward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"][0], name)


_WRAPS: dict[type, bool] = {}
"""True for kinds of models with layers that wrap their hidden state in a tuple."""


def _wraps(live: Stitched) -> bool:
    """Return whether a model's layers wrap their hidden state, as its first one on one token."""
    kind = type(live.model)
    if kind in _WRAPS:
        return _WRAPS[kind]
    with live.layer(0) as layer:

        def probe(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = layer(hidden, *args, **kwargs)
            _WRAPS[kind] = isinstance(result, tuple | list)
            return result

        with standing_in(live.model, [_StandIn(layer, probe)]):
            decoder(live.model)(input_ids=_token(live.model), use_cache=False)
    return _WRAPS[kind]


def record_calls(
    live: Stitched, batches: Iterable[Int64[Tensor, " batch length"]]
) -> tuple[list[Tensor], list[list[Call]]]:
    """Return the hidden states before the first layer, and each layer's calls, by batch.

    Equal tensors of the calls are kept once.
    """
    model, wrapped = live.model, _wraps(live)
    kept: dict[tuple[Any, ...], list[Tensor]] = {}
    noted: list[tuple[Tensor, Any]] = []

    def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        noted.append((hidden, (args, kwargs)))
        return (hidden, None) if wrapped else hidden

    recorders = [_StandIn(layer, note) for layer in decoder_layers(model)]
    first: list[Tensor] = []
    calls: list[list[Call]] = []
    for tokens in batches:
        with standing_in(model, recorders):
            decoder(model)(input_ids=tokens, use_cache=False)
        once = cache(partial(_once, kept))
        first.append(noted[0][0])
        calls.append([Call(*tree_map_only(Tensor, once, pair)) for _, pair in noted])
        noted.clear()
    return first, calls


def _once(kept: dict[tuple[Any, ...], list[Tensor]], value: Tensor) -> Tensor:
    kin = kept.setdefault((value.shape, value.dtype, value.stride()), [])
    for tensor in kin:
        if torch.equal(tensor, value):
            return tensor
    kin.append(value)
    return value


def head_logits(live: Stitched, rows: Float[Tensor, " n width"]) -> Float[Tensor, " n vocab"]:
    """Return float32 logits of hidden states, of any tokens, after the last layer."""
    model, wrapped = live.model, _wraps(live)

    def inject(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        return (rows[:, None], None) if wrapped else rows[:, None]

    last = _StandIn(decoder_layers(model)[-1], inject)
    tokens = _token(model).expand(len(rows), 1)  # texts of one token: each row's position is 0
    with standing_in(model, [last]):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.reshape(len(rows), -1).float()


def _token(model: PreTrainedModel) -> Tensor:
    return torch.zeros((1, 1), dtype=torch.int64, device=embeddings(model).device)
