"""Healing: a cut plan's layers learn the predictions of the undropped plan."""

import gc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, final

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.write.digest import FileDigest, of_file
from gptailor.evaluate.dtype import halves_are_quick
from gptailor.evaluate.forward.requests import LiveModel
from gptailor.evaluate.heal.kept import HealingStore, KnownHealing, working_folder
from gptailor.evaluate.heal.learning import (
    HealError,
    Learning,
    LowRankChanges,
    ModuleNames,
    NotFiniteError,
    WholeWeights,
    matched,
)
from gptailor.evaluate.heal.teacher import Predictions
from gptailor.evaluate.heal.train import HealingMemory, Student, Training
from gptailor.evaluate.kept_tensors import environment, kept_home
from gptailor.evaluate.live.content_keys import Content, ModelContents, not_finite
from gptailor.evaluate.live.stitch import Stitcher
from gptailor.evaluate.live.template import configuration, decoder_layers, position_count
from gptailor.evaluate.objectives.datasets import (
    FEWER_TOKENS,
    Exchange,
    Passage,
    order,
    read_texts,
    too_short,
    whole_text,
)
from gptailor.evaluate.objectives.tokens import TokenEncoder, tokenizer_of
from gptailor.methods import rounding
from gptailor.plan.events import (
    HealingEnd,
    HealingReused,
    HealingStart,
    OnEvent,
    ignore_events,
)
from gptailor.plan.plan import Model, Plan
from gptailor.plan.resolved import Healing, Resolved
from gptailor.prepare import calibration_path
from gptailor.program.load import TORCH_DTYPES
from gptailor.program.nested_models import with_made_models
from gptailor.program.program import Output, learning_tensors
from gptailor.program.sources import Checked, tokenizer_owner

HEALING_WINDOW = 512
"""Tokens of a sequence, special ones included, unless the model takes fewer."""
HELD_OUT_EVERY = 20
"""One in so many sequences is held out: the last one."""


@final
@dataclass(frozen=True, eq=False)
class HealingText:
    """Sequences to learn from, in order, and held-out sequences that judge the result."""

    path: Path
    digest: FileDigest
    learned: Int64[Tensor, " sequences length"]
    held: Int64[Tensor, " held length"]

    @property
    def tokens(self) -> int:
        """The number of tokens to learn from."""
        return self.learned.numel()


@final
@dataclass(frozen=True, eq=False)
class HealedLayers:
    """The learned tensors of each layer of the output, by their names within it.

    The tensors are on the CPU in the output's dtypes. The numbers are those of `HealingEnd`. If no
    step came nearer to the teacher, the layers are unchanged.
    """

    tensors: Mapping[int, Mapping[str, Tensor]]
    digest: FileDigest
    tokens: int
    held: int
    bare: float
    start: float
    healed: float

    @property
    def end(self) -> HealingEnd:
        """The numbers alone."""
        return HealingEnd(self.tokens, self.held, self.bare, self.start, self.healed)


@final
class Healer:
    """Heals plans over some models.

    Teacher and student each have a stitcher, one after the other. `memory` bounds the bytes on the
    device; None sets no bound. `dtype` is that of the products. With `anew` no earlier result is
    reused.
    """

    def __init__(
        self,
        models: Mapping[str, Opened],
        device: torch.device,
        memory: int | None = None,
        dtype: torch.dtype | None = None,
        *,
        anew: bool = False,
    ) -> None:
        self.models = models
        self.device = device
        self.memory = memory
        self.dtype = dtype or self._fast()
        self.anew = anew

    def heal(
        self,
        resolved: Resolved,
        bridged: Mapping[int, Mapping[str, Tensor]],
        on_event: OnEvent = ignore_events,
    ) -> HealedLayers:
        """Heal a closed plan; `bridged` are the tensors that bridges give to the output's layers.

        The same plan, text and bridges give the same tensors in any process on one machine with the
        same number of threads. A killed run continues from its last kept state, and a finished
        run's result is kept.
        Raises CalibrationError for an unusable text, HealError for a plan that can't learn.
        """
        healing = resolved.healing
        assert healing is not None, "a plan that heals"
        plan = resolved.declared
        text = self._text(plan, healing)
        teacher = self._teacher(resolved, healing)
        unlearned = self._stitcher(self.models, None).contents(resolved)
        memory = HealingMemory(unlearned, healing, self.dtype, text.learned.shape[1], self.memory)
        room = memory.weights()
        start = HealingStart(len(healing.indices), memory.numbers, text.tokens, memory.bytes)
        student = self._stitcher(self.models, room)
        begun = student.contents(resolved)
        layers = list(begun.layers)
        for index, tensors in bridged.items():
            layers[index] = replace(layers[index], fitted=tensors)
        contents = replace(begun, layers=tuple(layers))
        key = self._key(contents, teacher, healing, text)
        store = HealingStore(kept_home() / "healed")
        healing_result = None if self.anew else store.get(key)
        with torch.inference_mode(mode=False):
            if healing_result is not None:
                on_event(HealingReused())
                learning = self._learning(student, student.live(contents), contents, healing)
                learning.take(healing_result.parameters)
            else:
                on_event(start)
                with working_folder(key) as folder:
                    learned, held = self._taught(teacher, contents, text, folder, on_event)
                    gc.collect()
                    bare = None
                    if bridged:
                        unbridged = Student(student.live(begun), 0, recompute=True)
                        bare = unbridged.mean_divergence(held)
                    live = student.live(contents)
                    learning = self._learning(student, live, contents, healing)
                    runner = Student(live, min(healing.indices), recompute=self.memory is not None)
                    training = Training(runner, learning, (learned, held), folder, key)
                    with _explained(contents, text):
                        training.run(on_event)
                    losses = (training.start if bare is None else bare, training.start)
                    healing_result = KnownHealing(learning.parameters, *losses, training.best)
                    store.put(key, healing_result)
            healed = {i: _folded(student, learning, layers[i], i) for i in healing.indices}
        result_losses = (healing_result.bare, healing_result.start, healing_result.healed)
        return HealedLayers(healed, text.digest, text.tokens, text.held.numel(), *result_losses)

    # ------------------------------------------------------------------------------- preparation

    def _stitcher(self, models: Mapping[str, Opened], memory: int | None) -> Stitcher:
        """Return a stitcher with at most `memory` bytes of weights on the device (None: all)."""
        return Stitcher(models, device=self.device, dtype=self.dtype, memory=memory)

    def _text(self, plan: Plan, healing: Healing) -> HealingText:
        path = calibration_path(plan, healing.on)
        tokenizer = tokenizer_of(tokenizer_owner(plan, self.models))
        encoder = TokenEncoder(tokenizer, position_count(configuration(self._config)))
        exactly = plan.heal is not None and plan.heal.tokens is not None
        return healing_text(path, healing.tokens, encoder, healing.seed, exactly=exactly)

    @property
    def _config(self) -> Mapping[str, object]:
        return self.models["base"].config

    def _fast(self) -> torch.dtype:
        """Return bfloat16 if the device multiplies it faster than float32, else float32.

        With experts it is float32, as transformers sums them in the weights' own dtype.
        """
        specs = [tensor.spec for tensor in self.models["base"].checkpoint.tensors.values()]
        stacked = (len(spec.shape) == 3 and min(spec.shape) > 1 for spec in specs)
        if any(stacked) or any(".experts." in spec.name for spec in specs):
            return torch.float32
        return torch.bfloat16 if halves_are_quick(self.device) else torch.float32

    def _teacher(self, resolved: Resolved, healing: Healing) -> Checked:
        """Return the teacher as a plan beside its models."""
        if healing.teacher is None:
            return Checked(resolved.undone, self.models)
        models = with_made_models(resolved.declared, self.models)
        alone = {"base": replace(models[healing.teacher], name="base")}
        return Checked.of(Plan(models={"base": Model(source="base")}), alone)

    def _taught(
        self,
        teacher: Checked,
        contents: ModelContents,
        text: HealingText,
        folder: Path,
        on_event: OnEvent,
    ) -> tuple[Predictions, Predictions]:
        """Return the teacher's predictions for the learned and for the held-out sequences."""
        stitcher = self._stitcher(teacher.models, self.memory)
        taught = stitcher.contents(teacher.resolved)

        def live() -> LiveModel:
            return stitcher.live(taught)

        vocabulary = int(configuration(contents.config).get_text_config().vocab_size)
        taught_parts = []
        for name, sequences in (("learned", text.learned), ("held", text.held)):
            predictions = Predictions(folder / name, sequences, vocabulary)
            with _explained(taught, text):
                predictions.learn(live, self.device, on_event)
            taught_parts.append(predictions)
        return taught_parts[0], taught_parts[1]

    def _learning(
        self, stitcher: Stitcher, live: LiveModel, contents: ModelContents, healing: Healing
    ) -> Learning:
        modules = list(decoder_layers(live.model))
        layers: dict[int, nn.Module] = {index: modules[index] for index in healing.indices}
        names: dict[int, ModuleNames] = {}
        for index in healing.indices:
            content = contents.layers[index]
            tensors = {o.spec.name: _own(stitcher, content, o) for o in content.outputs}
            specs = {output.spec.name: output.spec for output in content.outputs}
            with live.layer(index) as layer:
                learn = learning_tensors(healing.rank, specs)
                names[index] = matched(learn, tensors, layer, index)
        if healing.rank is None:
            return WholeWeights(layers, names)
        return LowRankChanges(layers, names, healing.rank, healing.seed, self.device)

    # --------------------------------------------------------------------------------- on the disk

    def _key(
        self,
        contents: ModelContents,
        teacher: Checked,
        healing: Healing,
        text: HealingText,
    ) -> str:
        """Return a hash of everything that decides the result."""
        taught = self._stitcher(teacher.models, None).contents(teacher.resolved)
        parts = (
            contents.instructions, taught.instructions, text.digest, replace(healing, on=""),
            self.device.type, self.dtype, self.memory is None, environment(),
        )  # fmt: skip
        key = hashlib.sha256(repr(parts).encode())
        for tokens in (text.learned, text.held):
            key.update(repr(tokens.shape).encode() + tokens.contiguous().numpy().tobytes())
        for number, layer in enumerate(contents.layers):
            key.update(f"{number}".encode() + layer.fitted_bytes)
        return key.hexdigest()[:32]


@contextmanager
def _explained(contents: ModelContents, text: HealingText) -> Iterator[None]:
    """Turn NotFiniteError into HealError, which names the tensor that isn't finite or the text."""
    try:
        yield
    except NotFiniteError as error:
        if (broken := not_finite(contents)) is not None:
            help_ = "fetch the file again, or name another model"
            raise HealError("C809", f"'heal' can't learn: {error}: {broken}", help_) from None
        message = f"'heal' can't learn: {error} on {text.path}, and all stored tensors are finite"
        raise HealError("C809", message, "heal on other text, or from another model") from None


def _own(stitcher: Stitcher, content: Content, output: Output) -> Tensor:
    """Return a tensor of a layer before learning."""
    fitted = content.fitted.get(output.spec.name)
    return stitcher.tensors.make(output) if fitted is None else fitted


def _folded(
    stitcher: Stitcher, learning: Learning, content: Content, index: int
) -> dict[str, Tensor]:
    """Return a layer's learned tensors in the output's dtypes, rounded once, on the CPU.

    Raises HealError (C809) where a dtype can't hold a value.
    """
    tensors = {}
    names = set(learning.names[index])
    for output in content.outputs:
        name = output.spec.name
        if name not in names:
            continue
        own = _own(stitcher, content, output)
        folded, dtype = learning.folded(index, name, own), output.spec.dtype
        result = rounding.rounded(folded, TORCH_DTYPES[dtype], partial(_refuse, name, dtype))
        tensors[name] = result.contiguous().cpu()
    return tensors


def _refuse(name: str, dtype: str, _: int) -> NoReturn:
    message = f"'{name}' healed has values that {dtype} can't hold"
    raise HealError("C809", message, rounding.LONGER_DTYPE)


# -------------------------------------------------------------------------------------- text


def healing_text(
    path: Path, tokens: int, encoder: TokenEncoder, seed: int, *, exactly: bool
) -> HealingText:
    """Return sequences of a file's text with `tokens` tokens in all, and further ones held out.

    The rows run together in the order that `seed` draws. An end-of-text token stands between two
    rows, and a sequence begins with the tokenizer's opening tokens. So there is no padding, and no
    token is used twice. Without `exactly` a shorter text gives all its sequences.

    Raises CalibrationError: C806 for a text that is too short, and as `read_texts` does.
    """
    rows = read_texts(path)
    digest = of_file(path)
    length = min(HEALING_WINDOW, encoder.positions or HEALING_WINDOW)
    learned = max(1, tokens // length)
    every = HELD_OUT_EVERY - 1
    needed = learned + max(1, learned // every)
    sequences = []
    for sequence in _sequences(rows, encoder, length, seed):
        sequences.append(sequence)
        if len(sequences) == needed:
            break
    if len(sequences) < (needed if exactly else 2):
        available = f"{length * len(sequences):,} tokens in whole sequences of {length}"
        if exactly:
            share = f"every {HELD_OUT_EVERY}th of these sequences is held out"
            help_ = f"{FEWER_TOKENS}; {share}"
            raise too_short(path, available, "'heal'", length * needed, help_)
        raise too_short(path, available, "'heal'", 2 * length)
    table = torch.tensor(sequences)
    held = torch.arange(len(sequences)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    if not bool(held.any()):
        held[-1] = True
    return HealingText(path, digest, table[~held], table[held])


def _sequences(
    rows: Sequence[Passage | Exchange], encoder: TokenEncoder, length: int, seed: int
) -> Iterator[list[int]]:
    """Yield a text's sequences in drawn order. A file without rows is cut before the drawing."""
    room = length - len(encoder.opening)
    end = encoder.tokenizer.eos_token_id
    between = [] if end is None else [int(end)]
    waiting: list[int] = []
    if rows[0].line is None:
        waiting = [token for row in rows for token in encoder.plain(whole_text(row))]
        starts = range(0, len(waiting) - room + 1, room)
        for at in order(len(starts), seed):
            yield [*encoder.opening, *waiting[starts[at] : starts[at] + room]]
        return
    for number in order(len(rows), seed):
        waiting += [*encoder.plain(whole_text(rows[number])), *between]
        while len(waiting) >= room:
            yield [*encoder.opening, *waiting[:room]]
            del waiting[:room]
