"""Stand-ins for a model's layers: some record how layers are called, one gives what comes after.

So the model's own forward does all that isn't a layer (embedding, masks, rotations, norm, head,
soft caps), whatever the family, and the layers are called by who has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
        after: Tensor = made[0] if isinstance(made, tuple) else made
        return after


class _StandIn(nn.Module):
    """Has the attributes of the layer in whose place it stands, and none of its tensors."""

    def __init__(self, layer: nn.Module, wraps: bool) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple: not a submodule
        self.wraps = wraps

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"][0], name)

    def give(self, hidden: Tensor) -> Tensor | tuple[Any, ...]:
        """What the layer would return."""
        return (hidden,) if self.wraps else hidden


@final
class _Recorder(_StandIn):
    """Notes how it is called; the hidden state leaves as it came."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        self.hidden = (hidden,)
        self.call = Call(args, kwargs)
        return self.give(hidden)


@final
class _Injector(_StandIn):
    """Returns the rows that it was given, whatever came."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        return self.give(self.rows[0])

    def put(self, rows: Float[Tensor, " n width"]) -> None:
        """Give these rows from now on."""
        self.rows = (rows[None],)


@final
class _Probe(_StandIn):
    """Calls its layer, and notes whether that returns a tuple."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Any, ...]:
        made: Tensor | tuple[Any, ...] = self.layer[0](hidden, *args, **kwargs)
        self.found = isinstance(made, tuple)
        return made


def wraps(model: PreTrainedModel, layer: nn.Module) -> bool:
    """Whether the model's layers return their hidden state in a tuple; runs one for a token."""
    probe = _Probe(layer, wraps=False)
    with standing_in(model, [probe]):
        decoder(model)(input_ids=_token(model), use_cache=False)
    return bool(probe.found)


@final
class Calls:
    """How a model calls its layers, batch by batch; equal tensors are kept once."""

    def __init__(self, model: PreTrainedModel, *, wraps: bool) -> None:
        self.model = model
        self.recorders = [_Recorder(layer, wraps) for layer in decoder_layers(model)]
        self.kept: dict[tuple[Any, ...], list[Tensor]] = {}

    def record(
        self, tokens: Int64[Tensor, " batch length"]
    ) -> tuple[Float[Tensor, " batch length width"], list[Call]]:
        """The hidden state that enters the first layer, and how each layer is called."""
        with standing_in(self.model, self.recorders):
            decoder(self.model)(input_ids=tokens, use_cache=False)
        seen: dict[int, Tensor] = {}

        def once(value: Tensor) -> Tensor:
            if id(value) not in seen:
                seen[id(value)] = self._same(value)
            return seen[id(value)]

        recorded = [recorder.call for recorder in self.recorders]
        calls = [Call(*tree_map_only(Tensor, once, (one.args, one.kwargs))) for one in recorded]
        hidden: Tensor = self.recorders[0].hidden[0]
        for recorder in self.recorders:
            del recorder.hidden, recorder.call
        return hidden, calls

    def _same(self, value: Tensor) -> Tensor:
        kin = self.kept.setdefault((value.shape, value.dtype, value.stride()), [])
        for known in kin:
            if torch.equal(known, value):
                return known
        kin.append(value)
        return value


@final
class Head:
    """What the model does after its layers, for hidden states of any tokens."""

    def __init__(self, model: PreTrainedModel, *, wraps: bool) -> None:
        self.model = model
        self.injector = _Injector(decoder_layers(model)[-1], wraps)
        self.token = _token(model)

    def logits(self, rows: Float[Tensor, " n width"]) -> Float[Tensor, " n vocab"]:
        """The logits, in float32, of hidden states after the last layer."""
        self.injector.put(rows)
        with standing_in(self.model, [self.injector]):
            logits: Tensor = self.model(input_ids=self.token, use_cache=False).logits
        return logits.reshape(len(rows), -1).float()


def _token(model: PreTrainedModel) -> Tensor:
    return torch.zeros((1, 1), dtype=torch.int64, device=embeddings(model).device)
