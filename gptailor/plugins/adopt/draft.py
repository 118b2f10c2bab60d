"""A family drafted: names from saved tensors, places from calls, rules from the lists."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from gptailor.checkpoint.families.layer_config import UNSPOKEN
from gptailor.checkpoint.families.layer_rules import First, Listed, Numbered
from gptailor.checkpoint.families.layout import PREDICTORS, place_in
from gptailor.plan.layer_parts import Branch
from gptailor.plugins.adopt.layer_kinds import kind_of, kinds_of, part_of, unlike
from gptailor.plugins.adopt.shrink import Tiny, unshrunk
from gptailor.plugins.adopt.tiny_model import (
    IDS,
    RunByHand,
    Tensors,
    UnprovenError,
    first_of,
    hollow,
    logits,
    stack_of,
)

Moved = Listed | Numbered | First
"""A rule that can be drafted."""


@final
@dataclass(frozen=True)
class Origins:
    """A model's configuration: its file's, transformers' complete one, and the defaults."""

    model_type: str
    given: Mapping[str, Any]
    full: Mapping[str, Any]
    defaults: Mapping[str, Any]
    count_key: str

    @property
    def count(self) -> int:
        """Return the model's number of layers."""
        count: int = self.full[self.count_key]
        return count


@final
@dataclass(frozen=True)
class Names:
    """The names of a checkpoint's tensors, as a family has them."""

    base: str
    stack: str
    embed: tuple[str, ...]
    norm: tuple[str, ...]
    head: tuple[str, ...]


@final
@dataclass(frozen=True)
class Branches:
    """The branch of each module of a layer, by name, and the modules that make each one's sum."""

    part_of: Mapping[str, Branch]
    outputs: Mapping[Branch, Sequence[str]]


@final
@dataclass(frozen=True)
class _Call:
    """A module that was called: its name, whether it has matrices, its input and its output."""

    name: str
    wide: bool
    read: torch.Tensor | None
    made: torch.Tensor | None


@final
@dataclass(frozen=True)
class BranchNames:
    """The prefixes of both branches, or of the whole layer with the reason why."""

    attn: tuple[str, ...]
    mlp: tuple[str, ...]
    refused: str | None
    branches: tuple[Branches, ...] = ()


# ------------------------------------------------------------------------------------------- names


def named(subject: RunByHand, tensors: Tensors) -> Names:
    """Return the names of the tensors of a saved tiny model by their roles."""
    prefix = _prefix(subject.path, tensors, len(subject.layers))
    base = f"{subject.model.base_model_prefix}."
    base = base if prefix.startswith(base) else ""
    modules = {id(module): name for name, module in subject.model.named_modules()}
    model: Any = subject.model
    embeddings = model.get_input_embeddings(), model.get_output_embeddings()
    token, output = (modules.get(id(end)) for end in embeddings)
    if token is None or output is None:
        raise UnprovenError("transformers names no embedding or no head of the model")
    sides = _sides(subject)
    by_side: dict[str, list[str]] = {"embed": [], "before": [], "after": [], "head": []}
    for name in tensors:
        if place_in(prefix, name) is None:
            owner = _owner(subject, name, tensors[name])
            side = "embed" if owner == token else "head" if owner == output else sides.get(owner)
            if side not in by_side:
                expected = "expected a tensor of the embedding, a layer, the last norm or the head"
                raise UnprovenError(f"{expected}, got '{name}'")
            by_side[side].append(name)
    under = [*by_side["embed"], *by_side["before"], *by_side["after"]]
    if not by_side["embed"]:
        raise UnprovenError("no embedding is saved")
    if strange := [name for name in under if not name.startswith(base)]:
        raise UnprovenError(f"tensor '{strange[0]}' is not under '{base}'")
    embed = tuple(name.removeprefix(base) for name in by_side["embed"] + by_side["before"])
    norm = tuple(name.removeprefix(base) for name in by_side["after"])
    head = tuple(sorted(by_side["head"], key=lambda name: not name.endswith("weight")))
    return Names(base, prefix.removeprefix(base), embed, norm, head or (f"{output}.weight",))


def _prefix(path: str, names: Collection[str], count: int) -> str:
    """Return the prefix of a layer's number on disk."""
    candidates = {
        name[: match.start()] for name in names if (match := re.search(r"(?<=\.)\d+\.", name))
    }
    numbers = {
        prefix: {at[0] for name in names if (at := place_in(prefix, name)) is not None}
        for prefix in candidates
    }
    complete = [prefix for prefix in candidates if numbers[prefix] == set(range(count))]
    if f"{path}." in complete:
        return f"{path}."
    if len(complete) != 1:
        raise UnprovenError(f"no tensors are saved as '{path}.0.…' to '{path}.{count - 1}.…'")
    return complete[0]


def _owner(subject: RunByHand, name: str, tensor: torch.Tensor) -> str:
    """Return the module of a saved tensor: by its name, else by its values."""
    state = subject.model.state_dict()
    if name not in state:
        same = [n for n, t in state.items() if t.shape == tensor.shape and torch.equal(t, tensor)]
        if not same:
            raise UnprovenError(f"tensor '{name}' is saved, but belongs to no module")
        name = same[0]
    return name.rpartition(".")[0]


def _sides(subject: RunByHand) -> dict[str, str]:
    """Return which modules outside of the layers run before the first or after the last."""
    done: list[nn.Module] = []
    sides_of: dict[str, str] = {}

    def noting(name: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            sides = {0: "before", len(subject.layers): "after"}
            sides_of[name] = sides.get(len(done), "between")

        return called

    with ExitStack() as hooks:
        for layer in subject.layers:
            hooks.enter_context(layer.register_forward_hook(lambda *_: done.append(_[0])))
        for name, module in subject.model.named_modules():
            inside = name.startswith(f"{subject.path}.")
            if not inside and any(True for _ in module.parameters(False)):
                hooks.enter_context(module.register_forward_pre_hook(noting(name)))
        logits(subject.model)
    return sides_of


# ------------------------------------------------------------------------------------------- parts


def parted(subject: RunByHand, tensors: Tensors, prefix: str) -> BranchNames:
    """Return the branches of all layers."""
    try:
        hidden, branches = subject.embedded, []
        for layer in range(len(subject.layers)):
            branches.append(branches_of(subject, layer, hidden))
            hidden = subject.run(layer, hidden)
        attn, mlp = prefixes(branches, _stems(subject, tensors, prefix))
    except UnprovenError as error:
        return BranchNames(_whole(tensors, prefix), (), str(error))
    return BranchNames(attn, mlp, None, tuple(branches))


def _whole(tensors: Tensors, prefix: str) -> tuple[str, ...]:
    """Return the prefixes of all of a layer's tensors."""
    located = [at for name in tensors if (at := place_in(prefix, name)) is not None]
    return tuple(sorted({"".join(inner_name.partition(".")[:2]) for _, inner_name in located}))


def _stems(subject: RunByHand, tensors: Tensors, prefix: str) -> dict[str, str]:
    """Return the first words of a layer's tensors on disk, and their modules."""
    places = [at for name in tensors if (at := place_in(prefix, name)) is not None]
    stems: dict[str, str] = {}
    for layer, module in enumerate(subject.layers):
        words = {inner_name.partition(".")[0] for number, inner_name in places if number == layer}
        children = {name for name, child in module.named_children() if child.state_dict()}
        odd, without = words - children, children - words
        if odd and (len(odd), len(without)) != (1, 1):
            raise UnprovenError(f"tensors '{min(odd)}.…' are saved under another name")
        stems |= {word: word for word in words & children}
        stems |= {word: min(without) for word in odd}
    return stems


# ---------------------------------------------------------------------------- modules of branches


def branches_of(subject: RunByHand, layer: int, hidden: torch.Tensor) -> Branches:
    """Return the branches of a layer. Raises UnprovenError where they can't be distinguished."""
    calls = _calls(subject, layer, hidden)
    wide = [call for call in calls if call.wide]
    if len(wide) < 2:
        raise UnprovenError("a layer has no two modules that could be its branches")
    attn, *mlp = wide
    if any(_same(attn.read, call.read) for call in mlp):
        raise UnprovenError("both branches of a layer read the output of one norm")
    called = {call.name for call in calls}
    for name, module in subject.layers[layer].named_children():
        if name not in called and module.state_dict():
            raise UnprovenError(f"module '{name}' of a layer belongs to neither branch")
    if any(True for _ in subject.layers[layer].parameters(recurse=False)):
        raise UnprovenError("a layer has tensors of its own, which belong to neither branch")
    parts = {call.name: _part(calls, i, attn.name) for i, call in enumerate(calls)}
    return Branches(parts, {"attn": [attn.name], "mlp": [call.name for call in mlp]})


def _part(calls: Sequence[_Call], at: int, attn: str) -> Branch:
    """Return the branch of a module; a norm has the branch that it reads, else the next one."""
    call = calls[at]
    before = [other for other in calls[:at] if other.wide and _same(call.read, other.made)]
    after = [other for other in calls[at:] if other.wide]
    near = call if call.wide else before[-1] if before else after[0] if after else None
    return "attn" if near is not None and near.name == attn else "mlp"


def _calls(subject: RunByHand, layer: int, hidden: torch.Tensor) -> list[_Call]:
    calls: list[_Call] = []
    with ExitStack() as hooks:
        for name, module in subject.layers[layer].named_children():
            shapes = [tensor.dim() for tensor in module.parameters()]
            if not shapes:
                continue

            def called(
                _: nn.Module, args: Any, kwargs: Any, output: Any,
                name: str = name, wide: bool = max(shapes) > 1,
            ) -> None:  # fmt: skip
                inputs = (v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
                first = first_of(output)
                made = first if isinstance(first, torch.Tensor) else None
                calls.append(_Call(name, wide, next(inputs, None), made))

            hooks.enter_context(module.register_forward_hook(called, with_kwargs=True))
        subject.run(layer, hidden)
    return calls


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


def prefixes(
    layers: Sequence[Branches], stems: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the prefixes of both branches' tensors on disk.

    `stems` has the module of each first word. Raises UnprovenError for a word of neither branch, or
    of both.
    """
    sides: dict[Branch, list[str]] = {"attn": [], "mlp": []}
    for stem, module in sorted(stems.items()):
        parts = {layer.part_of[module] for layer in layers if module in layer.part_of}
        if len(parts) != 1:
            raise UnprovenError(f"tensors '{stem}.…' belong to neither branch of a layer")
        sides[parts.pop()].append(f"{stem}.")
    return tuple(sides["attn"]), tuple(sides["mlp"])


# ------------------------------------------------------------------------------- the configuration


def moved_keys(
    origins: Origins, tiny: Mapping[str, Any], layers: Sequence[nn.Module]
) -> dict[str, Moved]:
    """Return the keys that move with the layers: lists, and a count of first layers.

    The count is included if it tells layers apart. `tiny` is the tiny model's saved configuration.
    Raises UnprovenError where layers differ and no key explains it.
    """
    lists = {key: kind for key in origins.full
             if key in tiny and (kind := kind_of(origins.full, key, origins.count))}  # fmt: skip
    moved: dict[str, Moved] = {}
    for key, kind in lists.items():
        tried = tuple(_distinct(tiny[key])) if kind == "entries" else ()
        absent = None if origins.given.get(key) is not None else tuple(origins.full[key])
        moved[key] = (
            Listed(kind="entries", part=part_of(key), tried=tried, absent=absent)
            if kind == "entries"
            else Numbered(kind="numbers", part=part_of(key), absent=absent)
        )
    values = {key: said_by(kind, tiny[key], len(layers)) for key, kind in lists.items()}
    why = unlike(layers, kinds_of(values, len(layers)))
    if why is None:
        return moved
    counts = _first_key(origins, tiny, layers, values)
    if counts is None:
        raise UnprovenError(f"{why}, but no list of the configuration has it")
    absent = None if origins.given.get(counts) is not None else (origins.full[counts],)
    return moved | {counts: First(kind="first", part=part_of(counts), absent=absent)}


def said_by(kind: str, value: Any, count: int) -> list[Any]:
    """Return the value of a key of this kind for each layer."""
    if kind == "entries":
        return list(value)
    return [i in value if kind == "numbers" else i < value for i in range(count)]


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _first_key(
    origins: Origins, tiny: Mapping[str, Any], layers: Sequence[nn.Module], values: dict[str, Any]
) -> str | None:
    """Return the key that counts first layers of a kind.

    Adding one to it makes one more such layer.
    """
    count = len(layers)
    keys = [key for key, value in tiny.items() if type(value) is int and 0 < value < count - 1]
    for key in keys:
        with_key = {**values, key: said_by("first", tiny[key], count)}
        if unlike(layers, kinds_of(with_key, count)) is not None:
            continue
        try:
            other = stack_of(hollow(origins.model_type, {**tiny, key: tiny[key] + 1}), count)[1]
        except Exception:  # noqa: BLE001 (transformers has its reasons against that number)
            continue
        moved = {**values, key: said_by("first", tiny[key] + 1, count)}
        if unlike(other, kinds_of(moved, count)) is None and unlike(
            other, kinds_of(with_key, count)
        ):
            return key
    return None


def agreed_keys(
    origins: Origins, tiny: Tiny, saved: Mapping[str, Any], moved: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return keys that must agree between models, with defaults, and keys with proven values."""
    if (wide := unshrunk(saved, IDS.shape[1])) is not None:
        raise UnprovenError(f"{wide} can't be made small, so its effect can't be tested")
    apart = {origins.count_key, "num_hidden_layers", *moved, *PREDICTORS}
    agree, modes = {}, {}
    for key, value in saved.items():
        if key in apart or (key in UNSPOKEN and key != "rope_parameters"):
            continue
        agree[key] = origins.defaults.get(key)
        if key not in tiny.sizes and not isinstance(value, float) and key != "rope_parameters":
            modes[key] = value
    return agree, modes


def unlike_at_depth(origins: Origins, tiny: Tiny, moved: Mapping[str, Moved]) -> str | None:
    """Return the difference between layers of the model's own depth that should be alike.

    The model is built on meta. Sizes that the configuration leaves open are the tiny model's.
    """
    still = {key: tiny.config[key] for key in tiny.sizes if origins.full[key] is None}
    full = {**origins.full, **still}
    values = {
        key: said_by(moved_key.kind, full[key], origins.count) for key, moved_key in moved.items()
    }
    layers = stack_of(hollow(origins.model_type, full), origins.count)[1]
    return unlike(layers, kinds_of(values, origins.count))
