"""The proof: layers moved on disk compute the same as the original's own modules, run by hand.

The reference knows nothing of families: it calls a tiny model's layers with the inputs that the
model itself gave each of them.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from gptailor.checkpoint.families.family import Case, Family
from gptailor.checkpoint.families.layer_config import LayerEntry, Refusal
from gptailor.checkpoint.families.layout import (
    Layout,
    joined_entry,
    layer_entries,
    layout_of,
    moved_config,
    name_of,
    split_name,
)
from gptailor.plan.layer_parts import Branch
from gptailor.plugins.adopt.draft import Branches
from gptailor.plugins.adopt.layer_kinds import differing, shared_keys, unnumbered
from gptailor.plugins.adopt.tiny_model import (
    IDS,
    RunByHand,
    Tensors,
    UnprovenError,
    by_hand,
    loaded,
    logits,
    stack_of,
    words,
    zeroed,
)

_TOLERANCE = 1e-4
"""The largest difference of two logits near 1, absolute and relative."""
_LEAST_EFFECT = 0.01
"""The least change of a logit that an order of layers must cause, to show anything."""

ONE_KIND = "only layers of one kind"
"""The first words of the cases that fail if a layer of each kind must remain."""


@final
@dataclass(frozen=True)
class TinyCheckpoint:
    """A tiny model: on disk, as a family reads it, and live."""

    layout: Layout
    config: dict[str, Any]
    tensors: Tensors
    subject: RunByHand

    @property
    def entries(self) -> list[LayerEntry]:
        """Return the configuration of each layer."""
        return layer_entries(self.layout, self.config)

    def names(self, layer: int, part: Branch | None = None) -> dict[str, str]:
        """Return the tensors of a layer: their names within it, and their full names."""
        split = {name: split_name(self.layout, name) for name in self.tensors}
        return {
            place[2]: name
            for name, place in split.items()
            if isinstance(place, tuple) and place[0] == layer and part in {None, place[1]}
        }


def read_by(
    drafted: Family, config: dict[str, Any], tensors: Tensors, subject: RunByHand
) -> TinyCheckpoint:
    """Return a checkpoint as a family reads it.

    Raises UnprovenError for a tensor without a place.
    """
    layout = layout_of(config, tensors.keys(), drafted)
    if isinstance(layout, Refusal):
        raise UnprovenError(layout.reason)
    for name in tensors:
        if split_name(layout, name) is None:
            raise UnprovenError(f"tensor '{name}' has no place")
    return TinyCheckpoint(layout, config, tensors, subject)


Order = Sequence[int]


def orders(kinds: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return orders with each layer at many places;

    `cut` leaves a layer of each kind.
    """
    n = len(kinds)
    kept = {kinds.index(kind) for kind in kinds} | set(range(0, n, 2))
    dropped = kept == set(range(n)) and next(i for i in range(n) if kinds.count(kinds[i]) > 1)
    several = {
        "cut": tuple(sorted(kept - ({dropped} if dropped is not False else set()))),
        "reversed": tuple(reversed(range(n))),
        "repeated and reordered": (0, n - 1, *(n // 2,) * 2, *(i for i in range(n) if i % 2)),
        "longer": (*range(n), *range(n // 2, n)),
    }
    return several | {f"rotated by {k}": (*range(k, n), *range(k)) for k in range(1, n)}


@final
class Contract:
    """A family on two tiny models of one configuration and different weights.

    `branches` are each layer's, if parts are to be proven; `folder` is for written models.
    """

    def __init__(
        self,
        drafted: Family,
        models: tuple[TinyCheckpoint, TinyCheckpoint],
        branches: Sequence[Branches],
        folder: Path,
    ) -> None:
        self.drafted = drafted
        self.model, self.second = models
        self.branches = branches
        self.folder = folder
        self.kinds = [repr(sorted(entry.items())) for entry in self.model.entries]

    def cases(self) -> Iterator[Case]:
        """Yield all cases of whole layers, one after another."""
        yield _case("the layers by hand, in order", self._in_order_by_hand)
        yield _case("all layers in order, bit for bit", self._itself)
        for name, order in orders(self.kinds).items():
            yield _case(f"layers {name}", partial(self._moved, order))
        yield _case("layers of a second model", self._exchanged)
        yield _case("a layer merged of two models", self._merged)
        yield _case("layers reversed, with a cache", partial(self._cached, self._reversed()))
        yield from self._one_kind()

    def _one_kind(self) -> Iterator[Case]:
        distinct = list(dict.fromkeys(self.kinds))
        for kind in distinct if len(distinct) > 1 else ():
            order = [i for i in range(len(self.kinds)) if self.kinds[i] == kind]
            order = order if len(order) > 1 else order * 2
            shown = f"{ONE_KIND} (L{order[0]}'s)"
            yield _case(shown, partial(self._moved, order))
            yield _case(f"{shown}, with a cache", partial(self._cached, order))

    def part_cases(self) -> Iterator[Case]:
        """Yield the cases of one branch of a layer."""
        yield _case("the MLP branch of a second model", partial(self._part, "mlp"))
        yield _case("the attention branch of a second model", partial(self._part, "attn"))
        if len(set(self.kinds)) > 1:
            yield _case("branches of two kinds of layers in one", self._joined)

    def deep_cases(self) -> Iterator[Case]:
        """Yield the cases of a model of tiny sizes and its own depth.

        Thresholds of layers may lie deep.
        """
        order = self._reversed()
        yield _case("layers reversed, at the model's depth", partial(self._moved, order))
        yield _case(
            "each layer twice, at the model's depth", partial(self._moved, (*order, *order))
        )

    # ------------------------------------------------------------------------------ the cases

    def _in_order_by_hand(self) -> float:
        subject = self.model.subject
        layers = [(subject, i) for i in range(self.model.layout.count)]
        return _apart(by_hand(subject, layers), subject.unchanged)

    def _itself(self) -> float:
        model = self._reordered(range(self.model.layout.count))
        by = float((logits(model) - self.model.subject.unchanged).abs().max())
        if by:
            raise _ApartError(by)
        return by

    def _moved(self, order: Order) -> float:
        order = self._writable(order)
        if list(order) == list(range(self.model.layout.count)):
            raise _NotTriedError(
                "grouping layers by kind changes nothing, so there is nothing to try"
            )
        subject = self.model.subject
        expected = by_hand(subject, [(subject, i) for i in order])
        model = self._reordered(order)
        self._check_alike(order, stack_of(model, len(order))[1])
        by = _apart(logits(model), expected)
        if (effect := float((expected - subject.unchanged).abs().max())) < _LEAST_EFFECT:
            raise UnprovenError(f"this order moves no logit by more than {effect:.2g}")
        return by

    def _check_alike(self, order: Order, layers: Sequence[nn.Module]) -> None:
        """Raise UnprovenError for a layer that differs at another place.

        Attributes that all layers of a model share are the model's: its number of layers, for
        example.
        """
        before, after = unnumbered(self.model.subject.layers), unnumbered(layers)
        shared = shared_keys(before) & shared_keys(after)
        for new, old in enumerate(order):
            was, is_now = before[old], after[new]
            a = {key: value for key, value in was.items() if key not in shared}
            b = {key: value for key, value in is_now.items() if key not in shared}
            if (what := differing(a, b)) is not None:
                raise UnprovenError(f"'{what}' of layer {old} changes when it becomes layer {new}")

    def _exchanged(self) -> float:
        models = (self.model, self.second)
        order = [(models[i % 2], i) for i in range(self.model.layout.count)]
        expected = by_hand(self.model.subject, [(model.subject, i) for model, i in order])
        return _apart(logits(self._written(self.model.entries, self._stitched(order))), expected)

    def _merged(self) -> float:
        at = self.model.layout.count // 2
        tensors = dict(self.model.tensors)
        for name in self.model.names(at).values():
            if tensors[name].is_floating_point():
                tensors[name] = (tensors[name] + self.second.tensors[name]) / 2
        actual = logits(self._written(self.model.entries, tensors))
        subject, layer = self.model.subject, self.model.subject.layers[at]
        kept = {name: value.clone() for name, value in layer.state_dict().items()}
        second = self.second.subject.layers[at].state_dict()
        mean = {n: (v + second[n]) / 2 if v.is_floating_point() else v for n, v in kept.items()}
        try:
            layer.load_state_dict(mean)
            expected = by_hand(subject, [(subject, i) for i in range(len(subject.layers))])
        finally:
            layer.load_state_dict(kept)
        return _apart(actual, expected)

    def _cached(self, order: Order) -> float:
        """Compare generation with and without a cache, if the original's agree."""
        try:
            a, b = (_generated(self.model.subject.model, cached) for cached in (True, False))
        except Exception as error:
            raise _NotTriedError(f"the original doesn't generate: {words(error)}") from error
        if not torch.allclose(a, b, atol=10 * _TOLERANCE, rtol=10 * _TOLERANCE):
            raise _NotTriedError("the original generates other text with a cache")
        model = self._reordered(self._writable(order))
        return _apart(_generated(model, True), _generated(model, False), 10 * _TOLERANCE)

    # --------------------------------------------------------------------------------------- parts

    def _part(self, part: Branch) -> float:
        at = self.model.layout.count // 2
        tensors = dict(self.model.tensors)
        for name in self.model.names(at, part).values():
            tensors[name] = self.second.tensors[name]
        actual = logits(self._written(self.model.entries, tensors))
        a, b = self.model.subject, self.second.subject
        a, b = (a, b) if part == "mlp" else (b, a)
        return self._apart_from_joined(actual, (a, at), (b, at), at)

    def _joined(self) -> float:
        """Compare the attention of one kind of layer joined with the MLP of another."""
        attn = 0
        mlp = next(i for i, kind in enumerate(self.kinds) if kind != self.kinds[0])
        layout, entries = self.model.layout, self.model.entries
        entries[attn] = joined_entry(layout, entries[attn], entries[mlp])
        replaced = set(self.model.names(attn, "mlp").values())
        tensors = {name: t for name, t in self.model.tensors.items() if name not in replaced}
        for inner_name, name in self.model.names(mlp, "mlp").items():
            tensors[name_of(layout, attn, inner_name)] = self.model.tensors[name]
        subject = self.model.subject
        actual = logits(self._written(entries, tensors))
        return self._apart_from_joined(actual, (subject, attn), (subject, mlp), attn)

    def _apart_from_joined(
        self, actual: torch.Tensor, attn: tuple[RunByHand, int], mlp: tuple[RunByHand, int], at: int
    ) -> float:
        """Return the difference from one attention and another MLP, in series or in parallel."""
        base = self.model.subject
        hidden = base.embedded
        for i in range(at):
            hidden = base.run(i, hidden)
        between = self._without("mlp", *attn, hidden)
        serial = self._without("attn", *mlp, between)
        parallel = between + self._without("attn", *mlp, hidden) - hidden
        by = []
        for state in (serial, parallel):
            after = state
            for i in range(at + 1, len(base.layers)):
                after = base.run(i, after)
            by.append(float((actual - base.finish(after)).abs().max()))
        if min(by) > 10 * _TOLERANCE:
            raise _ApartError(min(by))
        return min(by)

    def _without(
        self, part: Branch, subject: RunByHand, layer: int, hidden: torch.Tensor
    ) -> torch.Tensor:
        with ExitStack() as stack:
            for name in self.branches[layer].outputs[part]:
                stack.enter_context(zeroed(subject.layers[layer].get_submodule(name)))
            return subject.run(layer, hidden)

    # ------------------------------------------------------------------------------------- on disk

    def _reversed(self) -> Order:
        return tuple(reversed(range(self.model.layout.count)))

    def _config(self, entries: Sequence[LayerEntry]) -> dict[str, Any] | Refusal:
        return moved_config(self.model.layout, self.model.config, entries)

    def _writable(self, order: Order) -> Order:
        """Return the order, or one with layers of a kind together if a rule refuses it."""
        entries = self.model.entries
        if not isinstance(refusal := self._config([entries[i] for i in order]), Refusal):
            return order
        together = sorted(order, key=lambda i: self.kinds.index(self.kinds[i]))
        if isinstance(self._config([entries[i] for i in together]), Refusal):
            raise _NotTriedError(f"refused: {refusal.reason}")
        return together

    def _stitched(self, order: Sequence[tuple[TinyCheckpoint, int]]) -> Tensors:
        layout, tensors = self.model.layout, self.model.tensors
        out = {n: t for n, t in tensors.items() if not isinstance(split_name(layout, n), tuple)}
        for new, (model, old) in enumerate(order):
            for inner_name, name in model.names(old).items():
                out[name_of(layout, new, inner_name)] = model.tensors[name]
        return out

    def _reordered(self, order: Order) -> PreTrainedModel:
        entries = self.model.entries
        stitched = self._stitched([(self.model, i) for i in order])
        return self._written([entries[i] for i in order], stitched)

    def _written(self, entries: Sequence[LayerEntry], tensors: Tensors) -> PreTrainedModel:
        """Return a model of these layers and tensors, written, read by the family, and loaded."""
        config = self._config(entries)
        if isinstance(config, Refusal):
            raise _NotTriedError(f"refused: {config.reason}")
        folder = self.folder / "moved"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(own, folder / "model.safetensors", {"format": "pt"})
        checkpoint = read_by(self.drafted, config, tensors, self.model.subject)
        if checkpoint.entries != list(entries):
            raise UnprovenError("the written configuration describes different layers")
        return loaded(folder)


# ---------------------------------------------------------------------------------------- results


def _case(name: str, run: Callable[[], float]) -> Case:
    """Return the result of a case; any error of transformers is a failure."""
    try:
        return Case(name=name, difference=run())
    except _NotTriedError as reason:
        return Case(name=name, note=str(reason))
    except _ApartError as apart:
        message = f"logits are {apart.by:.2g} apart from the logits of the layers run by hand"
        return Case(name=name, difference=apart.by, failure=message)
    except Exception as error:  # noqa: BLE001 (whatever transformers raises is the reason)
        return Case(name=name, failure=words(error))


@final
class _ApartError(Exception):
    """A difference of two results that should be equal."""

    def __init__(self, by: float) -> None:
        super().__init__(by)
        self.by = by


@final
class _NotTriedError(Exception):
    """A case that can't be tried, and shows nothing wrong."""


def _apart(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = _TOLERANCE) -> float:
    """Return the largest difference of two results that are equal but for rounding."""
    by = float((actual - expected).abs().max())
    if actual.shape != expected.shape or not torch.allclose(actual, expected, tolerance, tolerance):
        raise _ApartError(by)
    return by


def _generated(model: PreTrainedModel, cached: bool) -> torch.Tensor:
    """Return the logits of each of six tokens that a model generates greedily."""
    live: Any = model
    settings = live.generation_config
    settings.eos_token_id, settings.pad_token_id = None, 0
    start = IDS[:1, :7]
    with torch.no_grad():
        out = live.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=6, do_sample=False,
            num_beams=1, use_cache=cached, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return torch.stack(out.logits)
