"""A family unknown to the release: shrunk, built, drafted and proven, all in seconds."""

import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from gptailor import __version__
from gptailor.checkpoint.families.family import Case, Family, NotProven, Proof
from gptailor.checkpoint.families.family_file import NO_PROOF, content_digest, layout_by
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.families.layout import split_name
from gptailor.checkpoint.files import CheckpointError, expanded, quoted, read_object
from gptailor.checkpoint.folder import CONFIG, is_weights, open_checkpoint
from gptailor.checkpoint.hub import open_hub
from gptailor.checkpoint.models import is_local
from gptailor.plugins.adopt.contract import ONE_KIND, Contract, read_by
from gptailor.plugins.adopt.draft import (
    BranchNames,
    Moved,
    Names,
    Origins,
    agreed_keys,
    moved_keys,
    named,
    parted,
    unlike_at_depth,
)
from gptailor.plugins.adopt.shrink import Tiny, shrunken, with_layers
from gptailor.plugins.adopt.tiny_model import (
    RunByHand,
    Tensors,
    UnprovenError,
    configured,
    random_model,
    saved,
    words,
)

_SEEDS = (0, 1)
_COUNT_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_blocks")


def adopt(model: str) -> Family:
    """Return the family of a model: a folder, with its weights or without, or a Hub id.

    Raises CheckpointError: C114 where there is nothing to prove, else as for opening the model.
    """
    config, tensors, path = _read(model)
    model_type = config.get("model_type")
    try:
        _check_class(model_type, config)
        file = adopted(str(model_type), config, model)
    except UnprovenError as error:
        message = f"can't draft a family for {quoted(str(model_type))}: {error}"
        raise CheckpointError("C114", message, path) from error
    if not tensors:
        return file
    return _proven(file, [_own_tensors(file, config, tensors)])


def _proven(family: Family, cases: Collection[Case]) -> Family:
    """Return a family with more cases in its proof, and with the digest of its content."""
    assert family.proof is not None, "drafted with one"
    proof = family.proof.model_copy(update={"cases": (*family.proof.cases, *cases)})
    proven = family.model_copy(update={"proof": proof})
    return proven.model_copy(update={"digest": content_digest(proven)})


def _read(model: str) -> tuple[dict[str, Any], Collection[str], Path]:
    """Return a model's configuration, the names of its tensors if it has weights, and its path."""
    if not is_local(model) and not Path(model).is_dir():
        checkpoint, _ = open_hub(model, None)
        return checkpoint.config, checkpoint.tensors, checkpoint.folder
    folder = expanded(model)
    if folder.is_dir() and not any(is_weights(file.name) for file in folder.iterdir()):
        return read_object(folder / CONFIG, "C103", duplicate=None), (), folder
    checkpoint = open_checkpoint(folder)
    return checkpoint.config, checkpoint.tensors, folder


def _check_class(model_type: object, config: Mapping[str, Any]) -> None:
    """Raise UnprovenError for a type that transformers has no class of."""
    version = transformers.__version__
    if not isinstance(model_type, str):
        raise UnprovenError("its configuration names no 'model_type'")
    if model_type not in CONFIG_MAPPING:
        why = f"transformers {version} doesn't have it"
        if config.get("auto_map"):
            why += ", and the code in its folder ('auto_map') is never run"
        elif (
            isinstance(saved_by := config.get("transformers_version"), str) and saved_by != version
        ):
            why += f"; the model was saved by transformers {saved_by[:20]}"
        raise UnprovenError(why)
    if CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnprovenError(f"transformers {version} has no causal language model of it")


def _own_tensors(file: Family, config: dict[str, Any], tensors: Collection[str]) -> Case:
    """Return the case that the model's own tensors have the names of the family."""
    name = "the model's own tensors"
    layout = layout_by(file, config, tensors)
    if isinstance(layout, Refusal):
        return Case(name=name, failure=layout.reason)
    for tensor in sorted(tensors):
        if split_name(layout, tensor) is None and tensor not in layout.predicting:
            return Case(name=name, failure=f"tensor {quoted(tensor)} has no place")
    return Case(name=name, difference=0.0)


def adopted(model_type: str, configuration: Mapping[str, Any], source: str) -> Family:
    """Return the family of a model type, drafted and proven with a model's configuration.

    `configuration` is the content of the model's file, `source` the name of the model. The family
    file has all cases with their results. Raises UnprovenError without a draft to prove.
    """
    origins = origins_of(model_type, configuration)
    with tempfile.TemporaryDirectory(prefix="gptailor-family-") as name, _in_silence():
        tiny, subjects = _subjects(origins)
        return _Adoption(origins, tiny, subjects, Path(name), source).file()


def origins_of(model_type: str, configuration: Mapping[str, Any]) -> Origins:
    """Return a model's configuration as transformers reads it. Raises UnprovenError without one."""
    try:
        config = configured(model_type, configuration)
        defaults = CONFIG_MAPPING[model_type]().to_dict()
    except Exception as error:
        raise UnprovenError(f"its configuration can't be read: {words(error)}") from error
    full = config.to_dict()
    for key in ("text_config", "vision_config", "audio_config", "decoder_config"):
        if isinstance(full.get(key), dict):
            raise UnprovenError(f"it contains further models ('{key}')")
    mapped = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    keys = [key for key in (mapped, *_COUNT_KEYS) if type(full.get(key)) is int]
    if not keys:
        raise UnprovenError("its configuration has no number of layers")
    return Origins(config.model_type, configuration, full, defaults, keys[0])


def _subjects(origins: Origins) -> tuple[Tiny, tuple[RunByHand, RunByHand]]:
    """Return two tiny models, of the first sizes that work."""
    why: list[str] = []
    for tiny in shrunken(origins.full, origins.count_key):
        try:
            a, b = (
                RunByHand(random_model(origins.model_type, tiny.config, seed), len(tiny.layers))
                for seed in _SEEDS
            )
        except Exception as error:  # noqa: BLE001 (whatever transformers raises is the reason)
            why.append(words(error))
        else:
            return tiny, (a, b)
    raise UnprovenError(f"can't make a tiny model of it: {why[0]}")


@final
@dataclass(frozen=True)
class _Adoption:
    """A draft on its way to its proof."""

    origins: Origins
    tiny: Tiny
    subjects: tuple[RunByHand, RunByHand]
    folder: Path
    source: str

    def file(self) -> Family:
        """Return the family file, with all cases that were tried."""
        saves = [saved(s.model, self.folder / str(i)) for i, s in enumerate(self.subjects)]
        config, tensors = saves[0]
        names = named(self.subjects[0], tensors)
        parts = parted(self.subjects[0], tensors, names.base + names.stack)
        moved = moved_keys(self.origins, config, self.subjects[0].layers)
        if (why := self._unlike_at_depth(moved)) is not None:
            raise UnprovenError(f"{why} at the model's depth, undeclared in its configuration")
        drafted = self._drafted(names, parts, moved, config)
        cases = list(self._contract(drafted, saves, parts).cases())
        if kept := _needs_every_kind(cases):
            every = {
                key: moved_key.model_copy(update={"every_kind": True})
                for key, moved_key in moved.items()
            }
            drafted = drafted.model_copy(update={"moved": every})
            again = self._contract(drafted, saves, parts).cases()
            cases = [case for case in again if not case.name.startswith(ONE_KIND)] + kept
        if parts.refused is None:
            shown = list(self._contract(drafted, saves, parts).part_cases())
            if (failed := next((case for case in shown if case.failure), None)) is not None:
                note = f"not proven: {failed.name}: {failed.failure}"
                drafted = _without_parts(drafted, note)
            else:
                cases += shown
        deep = self._at_depth(drafted, parts)
        if deep and deep[-1].failure is not None and deep[0].failure is None:
            drafted = drafted.model_copy(update={"deepest": self.origins.count})
            note = f"{deep[-1].failure}; so a model can't become deeper"
            deep[-1] = Case(name=deep[-1].name, note=note)
        cases += deep
        if not any(case.difference is not None for case in cases if "layers cut" in case.name):
            cases.append(Case(name="layers cut", failure="no layers can be cut"))
        return _proven(drafted, cases)

    def _drafted(
        self, names: Names, parts: BranchNames, moved: dict[str, Moved], config: dict[str, Any]
    ) -> Family:
        origins, first = self.origins, self.subjects[0].layers[0]
        agree, modes = agreed_keys(origins, self.tiny, config, moved)
        used = {origins.count_key, *agree, *moved}
        return Family(
            version=1,
            name=origins.model_type,
            model_types=(origins.model_type,),
            base=names.base,
            stack=names.stack,
            count_key=origins.count_key,
            embed=names.embed,
            norm=names.norm,
            head=names.head,
            attn=parts.attn,
            mlp=parts.mlp,
            tied=bool(origins.defaults.get("tie_word_embeddings", False)),
            transposed=any(type(module).__name__ == "Conv1D" for module in first.modules()),
            moved={**moved},
            agree=agree,
            modes=modes,
            plain=tuple(sorted(config.keys() - used)),
            refused=NotProven(parts=parts.refused, scale=NO_PROOF, bridge=NO_PROOF),
            proof=Proof(
                gptailor=__version__,
                transformers=transformers.__version__,
                torch=torch.__version__,
                source=self.source,
                seed=_SEEDS[0],
                configuration=config,
                cases=(),
            ),
        )

    def _contract(
        self, drafted: Family, saves: list[tuple[dict[str, Any], Tensors]], parts: BranchNames
    ) -> Contract:
        a, b = (
            read_by(drafted, config, tensors, subject)
            for (config, tensors), subject in zip(saves, self.subjects, strict=True)
        )
        return Contract(drafted, (a, b), parts.branches, self.folder)

    def _unlike_at_depth(self, moved: dict[str, Moved]) -> str | None:
        try:
            return unlike_at_depth(self.origins, self.tiny, moved)
        except UnprovenError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 (whatever transformers raises is the reason)
            return f"the model can't be built without its weights: {words(error)}"

    def _at_depth(self, drafted: Family, parts: BranchNames) -> list[Case]:
        """Return the cases of tiny sizes and the model's own number of layers, if that differs."""
        origins, tiny = self.origins, self.tiny
        if origins.count == len(tiny.layers):
            return []
        name = "layers reversed, at the model's depth"
        try:
            every = range(origins.count)
            config = with_layers(tiny.config, origins.full, every, origins.count_key)
            subject = RunByHand(random_model(origins.model_type, config, _SEEDS[0]), origins.count)
            checkpoint = read_by(drafted, *saved(subject.model, self.folder / "deep"), subject)
            return list(
                Contract(
                    drafted, (checkpoint, checkpoint), parts.branches, self.folder
                ).deep_cases()
            )
        except Exception as error:  # noqa: BLE001 (whatever transformers raises is the reason)
            return [Case(name=name, failure=words(error))]


def _needs_every_kind(cases: list[Case]) -> list[Case]:
    """Return notes on failures with layers of one kind alone, if nothing else fails."""
    failed = [case for case in cases if case.failure is not None]
    if any(not case.name.startswith(ONE_KIND) for case in failed):
        return []
    consequence = "so a layer of each kind must remain"
    return [Case(name=case.name, note=f"{case.failure}; {consequence}") for case in failed]


def _without_parts(drafted: Family, why: str) -> Family:
    refused = drafted.refused.model_copy(update={"parts": why})
    every = tuple(sorted((*drafted.attn, *drafted.mlp)))
    return drafted.model_copy(update={"attn": every, "mlp": (), "refused": refused})


@contextmanager
def _in_silence() -> Iterator[None]:
    """Use one thread, which is faster for tiny tensors, and silence transformers."""
    quiet: Any = logging
    threads, verbosity = torch.get_num_threads(), quiet.get_verbosity()
    bars = quiet.is_progress_bar_enabled()
    torch.set_num_threads(1)
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        quiet.set_verbosity(verbosity)
        if bars:
            quiet.enable_progress_bar()
