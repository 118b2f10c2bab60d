"""`teach`: a teacher's predictions of texts as a file, for healing and other tools."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor

import gptailor
from gptailor.checkpoint.files import CheckpointError, refuse_changed, stamps
from gptailor.checkpoint.write.digest import of_file
from gptailor.checkpoint.write.output_file import writing
from gptailor.checkpoint.write.writer import free_space, new_output
from gptailor.evaluation.fits.heal.kept import working_folder
from gptailor.evaluation.fits.heal.sources import TeacherChats, file_source
from gptailor.evaluation.fits.heal.teacher import TAUGHT, Predictions, explaining_not_finite
from gptailor.evaluation.fits.heal.text import (
    HEALING_WINDOW,
    Packing,
    mixed_texts,
    sequence_counts,
)
from gptailor.evaluation.fits.kept_tensors import environment
from gptailor.evaluation.live.stitch import Stitcher
from gptailor.evaluation.live.template import configuration, position_count
from gptailor.evaluation.objectives.tokens import (
    TokenEncoder,
    tokenizer_digest,
    tokenizer_model,
    tokenizer_of,
)
from gptailor.evaluation.targets import find_targets
from gptailor.plan.arguments import NotNegative, Positive
from gptailor.plan.events import OnEvent, ignore_events
from gptailor.plan.faults import TailorError
from gptailor.plan.optional_packages import require
from gptailor.plan.plan import PREDICTIONS_SUFFIX, Plan, has_predictions
from gptailor.plan.registry import HEAL_SEED, HEAL_TOKENS
from gptailor.plugins.teach.predictions_file import (
    PredictedSequences,
    bytes_of_prediction,
    sequences_at_once,
    write_predictions,
)
from gptailor.prepare import Prepared
from gptailor.program.devices import device_of, dtype_of, healing_dtype
from gptailor.reporting.quantities import byte_count


@final
@dataclass(frozen=True)
class TeachResult:
    """A written file: its sequences of `length` tokens, each with `kept` log-probabilities."""

    file: Path
    sequences: int
    length: int
    kept: int
    bytes: int

    @property
    def tokens(self) -> int:
        """The number of tokens, each with a prediction after it."""
        return self.sequences * self.length


def teach(  # noqa: PLR0913 (the verb of the command line, and its flags)
    teacher: str | Path | Plan,
    texts: Sequence[str | Path] | str | Path,
    output: str | Path,
    *,
    models: Mapping[str, str | Path] | None = None,
    tokens: Positive | None = None,
    length: Positive | None = None,
    seed: NotNegative = HEAL_SEED,
    device: torch.device | str = "cpu",
    dtype: str | torch.dtype | None = None,
    memory: Positive | str | None = None,
    force: bool = False,
    on_event: OnEvent = ignore_events,
) -> TeachResult:
    """Write a teacher's predictions of texts to a Parquet file, all or nothing.

    The teacher is a plan or its file, a model's folder, a GGUF file or a Hub id. The texts have
    equal shares of `tokens`; without it there are at most 200,000, and fewer if a text is too short
    for its share. They are packed into sequences of `length` tokens, by default 512 or as many as
    the model takes, in the order that `seed` draws. A killed run continues. `on_event` receives
    the `Progress` of reading. Without a `dtype` the teacher computes as in healing. The other
    arguments are the same as in `evaluate`.

    Raises CalibrationError for unusable texts, CheckpointError for an output that can't be written,
    TailorError for a teacher that is bridged, healed or fails.
    """
    require("parquet", "gptailor.teach")
    target = Path(output)
    if not has_predictions(target.name):
        message = f"expected a name that ends in '{PREDICTIONS_SUFFIX}'"
        raise CheckpointError("C302", message, target, f"name it {target.name}{PREDICTIONS_SUFFIX}")
    named = [texts] if isinstance(texts, str | Path) else texts
    paths = list(dict.fromkeys(Path(text) for text in named))
    if not paths:
        raise ValueError("'texts': expected a text, got none")
    [found] = find_targets([teacher], models or {}, device=device, memory=byte_count(memory))
    prepared = found.prepared
    if prepared.repaired:
        what = "narrowed, bridged or healed, or has fewer experts"
        message = f"'{found.name}' is {what}: compile it, and name its folder"
        raise TailorError(message)
    sources = [file for model in prepared.models.values() for file in model.checkpoint.files]
    place = device_of(str(device))
    stitcher = Stitcher(
        prepared.models,
        device=place,
        dtype=dtype_of(dtype) or healing_dtype(prepared.models, place),
        memory=byte_count(memory),
    )
    with new_output(target, b"PAR1", force=force, protected=[*paths, *sources]) as new:
        stamped = stamps(paths)
        encoder = _encoder(prepared)
        sequences = _sequences(prepared, found.name, paths, encoder, tokens, length, seed)
        contents = stitcher.contents(prepared.resolved)
        vocabulary = int(configuration(contents.config).get_text_config().vocab_size)
        inputs = sequences[:, :-1]
        size = inputs.numel() * bytes_of_prediction(min(TAUGHT, vocabulary), vocabulary)
        if (free := free_space(target)) < size:
            message = f"the predictions take {size:,} bytes, but {free:,} are free"
            raise CheckpointError("C305", message, target)
        how = contents.instructions, str(place), stitcher.dtype, memory is None, environment()
        key = hashlib.sha256(repr(how).encode() + sequences.numpy().tobytes()).hexdigest()[:32]
        with working_folder(key) as folder:
            predictions = Predictions(folder / "predictions", sequences, vocabulary)
            with explaining_not_finite([contents], paths, "'teach' can't continue"):
                predictions.learn(partial(stitcher.live, contents), place, on_event)
            notes = _notes(prepared, found.name, paths, seed)
            refuse_changed(stamped)
            with writing(target):
                chunks = _chunks(predictions)
                write_predictions(new, chunks, predictions.kept, vocabulary, notes)
        count, read = inputs.shape
        written = TeachResult(target, count, read, predictions.kept, new.stat().st_size)
    return written


def _encoder(prepared: Prepared) -> TokenEncoder:
    positions = position_count(configuration(prepared.models["base"].config))
    return TokenEncoder(tokenizer_of(tokenizer_model(prepared)), positions)


def _sequences(  # noqa: PLR0913, PLR0917 (the arguments of `teach`)
    prepared: Prepared,
    teacher: str,
    paths: Sequence[Path],
    encoder: TokenEncoder,
    tokens: int | None,
    length: int | None,
    seed: int,
) -> Int64[Tensor, " n length_and_1"]:
    """Return the texts as sequences of one token more than is read, mixed evenly."""
    longest = encoder.positions
    if length is None:
        length = min(HEALING_WINDOW, longest or HEALING_WINDOW)
    if length < 1 or (longest is not None and length > longest):
        most = "" if longest is None else f" to {longest:,}, the model's longest text"
        raise TailorError(f"'length' must be a whole number from 1{most}")
    chats = TeacherChats(prepared.checked, teacher)
    share = Fraction(1, len(paths))
    sources = [file_source(path, share, encoder, seed, chats) for path in paths]
    needed = sequence_counts(sources, tokens or HEAL_TOKENS, length)
    packing = Packing(encoder, length + 1, seed)
    parts = packing.packed(sources, needed, 1, "'teach'", exactly=tokens is not None)
    return mixed_texts(parts).tokens


def _chunks(predictions: Predictions) -> Iterator[PredictedSequences]:
    """Yield the inputs of some sequences at once, with the predictions after each token."""
    step = sequences_at_once(predictions.per_sequence)
    for start in range(0, len(predictions.sequences), step):
        chunk = predictions.sequences[start : start + step]
        tokens, logs = predictions.of(start, start + len(chunk))
        yield chunk[:, :-1], tokens, logs[:, : predictions.kept]


def _notes(prepared: Prepared, teacher: str, paths: Sequence[Path], seed: int) -> dict[str, Any]:
    """Return the origin of the predictions, for the file's metadata."""
    return {
        "version": gptailor.__version__,
        "teacher": teacher,
        "tokenizer": tokenizer_digest(tokenizer_model(prepared)),
        "texts": [{"file": path.name, "sha256": of_file(path).sha256} for path in paths],
        "seed": seed,
    }
