"""Two models that are to differ in numbers alone: opened with their weights, and compared."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gptailor.checkpoint.families.compatibility import incompatible
from gptailor.checkpoint.families.family_file import family_for
from gptailor.checkpoint.families.layer_config import Refusal
from gptailor.checkpoint.files import CheckpointError, expanded, quoted
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.hub import Remote, open_hub
from gptailor.checkpoint.models import Opened, dequantised_model
from gptailor.checkpoint.tensor import TensorInfo
from gptailor.lang.plan_of import HUB_ID
from gptailor.prepare import fetched


def open_whole(name: str, source: str | Path) -> Opened:
    """Open a model with all of its weights, dequantised if it was quantised."""
    text, path = str(source), expanded(source)
    repo, _, revision = text.partition("@")
    on_hub = not path.exists() and HUB_ID.fullmatch(repo) is not None
    remotes: tuple[Remote, ...] = ()
    if on_hub:
        checkpoint, remote = open_hub(repo, revision or None)
        remotes = (remote,)
    else:
        checkpoint = open_checkpoint(path)
    family = family_for(checkpoint.config.get("model_type"), (), checkpoint.folder)
    checkpoint = replace(checkpoint, family=family) if family is not None else checkpoint
    layout = checkpoint.layout()
    if isinstance(layout, Refusal):
        raise CheckpointError("M204", layout.reason, checkpoint.folder, layout.help)
    opened = Opened(name, checkpoint, layout, remotes)
    if fetched({name: opened}, checkpoint.files):
        return open_whole(name, f"{repo}@{remotes[0].commit}")
    return dequantised_model(opened) if layout.quantised is not None else opened


def base_settings(source: str | Path, opened: Opened) -> dict[str, str]:
    """Return an adapter's settings that name its base."""
    if opened.remotes:
        remote = opened.remotes[0]
        return {"base_model_name_or_path": remote.repo, "revision": remote.commit}
    return {"base_model_name_or_path": str(expanded(source).absolute())}


def refuse_unlike(a: Opened, b: Opened) -> None:
    """Raise CheckpointError (C406) for models that differ in more than numbers."""
    for message, help_ in (*_other_settings(a, b), *_other_tensors(a, b)):
        raise CheckpointError("C406", message, b.checkpoint.folder, help_)


def _other_settings(a: Opened, b: Opened) -> Iterator[tuple[str, str]]:
    """Yield the differences of two configurations, each with a help."""
    base, tuned = a.layout, b.layout
    if base.model_type != tuned.model_type:
        yield f"is a '{tuned.model_type}' model, but the base is a '{base.model_type}' model", ""
        return
    if base.count != tuned.count:
        help_ = "compile a plan with only the drops, and give its folder as the base"
        yield f"has {tuned.count} layers, but the base has {base.count}", help_
        return
    for key in incompatible(base, a.config, b.config):
        if key.severity == "fault":
            yield f"has {key.key} {key.other_value}, but the base has {key.base_value}", ""
    if base.tied != tuned.tied:
        yield f"has a head that is {'' if tuned.tied else 'not '}tied, unlike the base's", ""
    for layer, (base_entry, entry) in enumerate(zip(a.entries, b.entries, strict=True)):
        if base_entry != entry:
            yield f"has a different kind of layer at L{layer} than the base", ""


def _other_tensors(a: Opened, b: Opened) -> Iterator[tuple[str, str]]:
    """Yield tensors that one of two models lacks, or has in another shape."""
    base, tuned = weights_read(a), weights_read(b)
    for name in sorted(base.keys() - tuned.keys()):
        yield f"has no tensor {quoted(name)}, which the base has", ""
    for name in sorted(tuned.keys() - base.keys()):
        yield f"has a tensor {quoted(name)}, which the base lacks", ""
    for name in sorted(base.keys() & tuned.keys()):
        shape, base_shape = (tensors[name].spec.shape for tensors in (tuned, base))
        if shape != base_shape:
            rows = name in (*a.layout.embed[:1], *a.layout.head)
            help_ = "as the base, compile a plan of it with `tokenizer from` the other"
            message = (
                f"{quoted(name)} has the shape {[*shape]}, expected {[*base_shape]} as in the base"
            )
            yield message, help_ if rows else ""


def weights_read(model: Opened) -> dict[str, TensorInfo]:
    """Return the tensors that the model reads: a tied head is its embedding."""
    unread = {*model.layout.predicting, *(model.layout.head[:1] if model.layout.tied else ())}
    return {n: tensor for n, tensor in model.checkpoint.tensors.items() if n not in unread}
