"""A cut plan's layers learn what the plan with nothing dropped predicts: `heal`."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

import gptailor
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.write.digest import FileDigest
from gptailor.evaluate.forward.requests import LiveModel
from gptailor.evaluate.heal.learning import HealError, Learning, LowRankChanges, WholeWeights
from gptailor.evaluate.heal.teacher import Predictions
from gptailor.evaluate.heal.text import HealingText, healing_text
from gptailor.evaluate.heal.train import HealStep, Student, Training
from gptailor.evaluate.live.contents import Content, ModelContents
from gptailor.evaluate.live.template import configuration, decoder_layers, position_count
from gptailor.evaluate.objectives.tokens import TokenEncoder, tokenizer_of
from gptailor.plan.layers import Healing
from gptailor.plan.plan import Model, Plan
from gptailor.prepare import calibration_path
from gptailor.program.compile import Checked
from gptailor.program.load import TORCH_DTYPES
from gptailor.program.program import Output, Program, files, learning_tensors

NUMBER_BYTES = 20
"""Bytes of a number that learns: itself, its gradient, Adam's two means, and the best so far."""


@runtime_checkable
class Stitching(Protocol):
    """What healing needs of a `Stitcher`."""

    def bare(self, plan: Plan) -> ModelContents:
        """What a closed plan is made of, with neither bridges nor healing."""

    def with_tensors(self, content: Content, fitted: Mapping[str, Tensor]) -> Content:
        """A layer with some tensors in the place of its own."""

    def live(self, contents: ModelContents) -> LiveModel:
        """The live model."""

    def make(self, output: Output) -> Shaped[Tensor, "..."]:
        """One of its tensors."""


@final
@dataclass(frozen=True)
class HealingStart:
    """What healing is about to do: how many numbers learn from how many tokens, and its memory.

    `bytes` are those on the device beside the model's weights.
    """

    layers: int
    numbers: int
    tokens: int
    bytes: int


@final
@dataclass(frozen=True)
class OnHealing:
    """Whom to tell: what is to be done, tokens that the teacher predicted from, and steps."""

    start: Callable[[HealingStart], None] = lambda _: None
    teacher: Callable[[int, int], None] = lambda done, total: None
    step: Callable[[HealStep], None] = lambda _: None


@final
@dataclass(frozen=True, eq=False)
class HealedLayers:
    """What was learned: the tensors of each layer of the output, by their names within it.

    The tensors are on the CPU in the output's dtypes. Losses are the mean KL divergence from the
    teacher in nats a token, over sequences that are held out: of the bare plan, of what learning
    began with (the same where nothing is bridged), and in the end. `held` are their tokens.
    """

    tensors: Mapping[int, Mapping[str, Tensor]]
    digest: FileDigest
    tokens: int
    held: int
    bare: float
    start: float
    healed: float


@final
class Healer:
    """Heals plans over some models.

    `stitching` makes a stitcher of models in a dtype: teacher and student each have their own, one
    after the other. `memory` is how many bytes may be on the device, None all that there are.
    """

    def __init__(
        self,
        models: Mapping[str, Opened],
        stitching: Callable[[Mapping[str, Opened], torch.dtype], Stitching],
        device: torch.device,
        memory: int | None = None,
    ) -> None:
        self.models = models
        self.stitching = stitching
        self.device = device
        self.memory = memory
        self.layout = models["base"].layout

    def heal(
        self,
        plan: Plan,
        healing: Healing,
        bridged: Mapping[int, Mapping[str, Tensor]],
        on: OnHealing | None = None,
    ) -> HealedLayers:
        """Heal a closed plan; `bridged` are the tensors that bridges give to the output's layers.

        The same plan, text and bridges give the same tensors in any process on one machine with the
        same number of threads. A run that is killed goes on from its last kept state.
        Raises CalibrationError for a text that doesn't serve, HealError for what can't learn.
        """
        on = on or OnHealing()
        text = self._text(plan, healing)
        student = self.stitching(self.models, self._dtype())
        begun = student.bare(plan)
        layers = list(begun.layers)
        for index, tensors in bridged.items():
            layers[index] = student.with_tensors(layers[index], tensors)
        contents = replace(begun, layers=tuple(layers))
        with torch.inference_mode(mode=False), self._kept(contents, healing, text) as folder:
            learned, held = self._taught(plan, healing, text, folder, on)
            bare = _held_out(student.live(begun), held) if bridged else None
            live = student.live(contents)
            learning = self._learning(live, contents, healing)
            numbers = sum(one.numel() for one in learning.parameters.values())
            size = numbers * NUMBER_BYTES
            on.start(HealingStart(len(healing.indices), numbers, text.tokens, size))
            runner = Student(live, min(healing.indices), recompute=self.memory is not None)
            training = Training(runner, learning, (learned, held), folder)
            training.run(on.step)
            healed = {i: _folded(student, learning, layers[i], i) for i in healing.indices}
        before = training.start if bare is None else bare
        count = text.held.numel()
        return HealedLayers(
            healed, text.digest, text.tokens, count, before, training.start, training.best
        )

    # ------------------------------------------------------------------------------- what is needed

    def _text(self, plan: Plan, healing: Healing) -> HealingText:
        path = calibration_path(plan, healing.on)
        tokenizer = tokenizer_of(Checked(plan, self.models).tokenizer_model)
        encoder = TokenEncoder(tokenizer, position_count(configuration(self._config)))
        given = plan.heal is not None and plan.heal.tokens is not None
        return healing_text(path, healing.tokens, encoder, healing.seed, exactly=given)

    @property
    def _config(self) -> Mapping[str, object]:
        return self.models["base"].config

    def _dtype(self) -> torch.dtype:
        """bfloat16 where the device multiplies it faster than float32.

        Not with experts, whose sums transformers makes in the weights' own dtype.
        """
        names = self.models["base"].checkpoint.tensors
        if any(".experts." in name for name in names):
            return torch.float32
        native = self.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if native else torch.float32

    def _taught(
        self,
        plan: Plan,
        healing: Healing,
        text: HealingText,
        folder: Path,
        on: OnHealing,
    ) -> tuple[Predictions, Predictions]:
        """The teacher's predictions, of what is learned and of what is held out."""
        stitcher: Stitching | None = None

        def teacher() -> LiveModel:
            nonlocal stitcher
            models, taught = self.models, undone(plan)
            if healing.teacher is not None:
                models = {"base": replace(self.models[healing.teacher], name="base")}
                taught = Plan(models={"base": Model(source="base")})
            stitcher = stitcher or self.stitching(models, self._dtype())
            return stitcher.live(stitcher.bare(taught))

        vocabulary = int(configuration(self._config).get_text_config().vocab_size)
        made = []
        for name, sequences in (("learned", text.learned), ("held", text.held)):
            place = folder / name
            place.mkdir(exist_ok=True)
            predictions = Predictions(place, sequences, vocabulary)
            predictions.learn(teacher, self.device, on.teacher)
            made.append(predictions)
        return made[0], made[1]

    def _learning(self, live: LiveModel, contents: ModelContents, healing: Healing) -> Learning:
        modules = list(decoder_layers(live.model))
        layers: dict[int, nn.Module] = {index: modules[index] for index in healing.indices}
        names = {}
        for index in healing.indices:
            specs = {output.spec.name: output.spec for output in contents.layers[index].outputs}
            names[index] = learning_tensors(healing, specs)
        if healing.rank is None:
            return WholeWeights(layers, names)
        return LowRankChanges(layers, names, healing.rank, healing.seed, self.device)

    # --------------------------------------------------------------------------------- on the disk

    @contextmanager
    def _kept(self, contents: ModelContents, healing: Healing, text: HealingText) -> Iterator[Path]:
        """The folder of this healing, which a killed run leaves and a finished one takes away."""
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (raises without a home)
        folder = Path(home) / "gptailor" / "heal" / self._key(contents, healing, text)
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((folder / "lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # nowhere to keep it, or another process heals the same: on its own
                own = tempfile.TemporaryDirectory(prefix="gptailor-heal-")
                yield Path(stack.enter_context(own))
                return
            yield folder
            shutil.rmtree(folder, ignore_errors=True)

    def _key(self, contents: ModelContents, healing: Healing, text: HealingText) -> str:
        """What decides the result, as a name: what is read, what is learned, and by what."""
        outputs = [*contents.rest, *(one for layer in contents.layers for one in layer.outputs)]
        read = (file.stat() for file in files(Program(tuple(outputs))))
        said = (
            [(output.spec, output.make) for output in outputs],
            [(one.st_ino, one.st_size, one.st_mtime_ns) for one in read],
            text.digest, replace(healing, on=""), self.device.type, self._dtype(),
            torch.get_num_threads(), torch.__version__, gptailor.__version__,
        )  # fmt: skip
        key = hashlib.sha256(repr(said).encode())
        for number, layer in enumerate(contents.layers):
            for name, tensor in sorted(layer.fitted.items()):
                raw = tensor.contiguous().view(torch.uint8).numpy()
                key.update(f"{number}.{name}".encode() + raw.tobytes())
        return key.hexdigest()[:32]


def undone(plan: Plan) -> Plan:
    """The plan with nothing dropped."""
    return plan.model_copy(update={"drops": ()})


def _held_out(live: LiveModel, held: Predictions) -> float:
    """The mean divergence of a model from the teacher on the held-out sequences."""
    student = Student(live, 0, recompute=True)
    total = 0.0
    for at in range(len(held.sequences)):
        total += student.divergence(held.sequences[at : at + 1], held.of(at, at + 1))
    return total / (len(held.sequences) * held.each)


def _folded(
    stitching: Stitching, learning: Learning, content: Content, index: int
) -> dict[str, Tensor]:
    """A layer's learned tensors in the output's dtypes, rounded once, on the CPU.

    Raises HealError (C809) where one can't hold a value.
    """
    made = {}
    names = set(learning.names[index])
    for output in content.outputs:
        name = output.spec.name
        if name not in names:
            continue
        own = content.fitted.get(name)
        own = stitching.make(output) if own is None else own
        rounded = learning.folded(index, name, own).to(TORCH_DTYPES[output.spec.dtype])
        if not bool(torch.isfinite(rounded).all()):
            message = f"'{name}' healed has values that {output.spec.dtype} can't hold"
            raise HealError("C809", message, "choose a dtype that reaches further")
        made[name] = rounded.contiguous().cpu()
    return made
