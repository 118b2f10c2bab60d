"""Healing: a cut plan's layers learn the predictions of the undropped plan."""

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from gptailor.checkpoint.cache_folder import kept_home
from gptailor.checkpoint.files import Stamp, refuse_changed, stamps
from gptailor.checkpoint.folder import generation_config
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.token_cut import TokenCut
from gptailor.evaluation.dtype import healing_dtype
from gptailor.evaluation.fits.fit import fit_texts, in_dtype
from gptailor.evaluation.fits.heal.dropped_words import DroppedWords
from gptailor.evaluation.fits.heal.kept import working_folder
from gptailor.evaluation.fits.heal.learning import (
    HealError,
    Learning,
    LowRankChanges,
    ModuleNames,
    WholeWeights,
    matched,
)
from gptailor.evaluation.fits.heal.process_group import ALONE, ProcessGroup, processes, shared
from gptailor.evaluation.fits.heal.sources import (
    AnsweringTeacher,
    PredictionsFile,
    answers_to,
    open_predictions,
    unusable_predictions,
)
from gptailor.evaluation.fits.heal.teacher import (
    TAUGHT,
    Predictions,
    TaughtSequences,
    Teachers,
    explaining_not_finite,
)
from gptailor.evaluation.fits.heal.teacher_chats import TeacherChats
from gptailor.evaluation.fits.heal.text import (
    HealingSource,
    HealingTexts,
    file_source,
    healing_texts,
    sequence_length,
)
from gptailor.evaluation.fits.heal.train import HealingMemory, Student, Training
from gptailor.evaluation.fits.heal.whole_vocabulary import WholeVocabulary
from gptailor.evaluation.fits.kept_tensors import (
    KEPT_BYTES,
    Kept,
    KeptTensors,
    TensorStore,
    environment,
)
from gptailor.evaluation.live.content_keys import Content, ModelContents, TensorMaker
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import configuration, decoder_layers, position_count
from gptailor.evaluation.objectives.tokens import TokenEncoder, tokenizer_digest, tokenizer_of
from gptailor.methods.rounding import LONGER_DTYPE
from gptailor.plan.events import (
    FitResult,
    HealingStart,
    OnEvent,
    Progress,
    ignore_events,
)
from gptailor.plan.plan import Model, Plan
from gptailor.plan.resolved import Healing, Resolved
from gptailor.prepare import calibration_path, open_plan
from gptailor.program.nested_models import with_made_models
from gptailor.program.output_tokenizer import output_tokenizer, with_token_cut
from gptailor.program.program import learning_tensors
from gptailor.program.sources import Checked


@final
@dataclass(frozen=True, eq=False)
class HealedLayers:
    """The learned tensors of each layer of the output, by their names within it.

    The tensors are on the CPU in the output's dtypes. If no step came nearer to the teacher, the
    layers are unchanged.
    """

    tensors: Mapping[int, Mapping[str, Tensor]]
    result: FitResult


@final
@dataclass(frozen=True, eq=False)
class HealingJob:
    """A plan that heals with its other fits, and the texts that it learns from.

    `narrowed` and `bridged` are fitted tensors of the output's layers. `room` are the bytes of
    weights that the student may have on the device. `stamps` belong to the files of texts and
    predictions, which mustn't change.
    """

    resolved: Resolved
    narrowed: Mapping[int, Mapping[str, Tensor]]
    bridged: Mapping[int, Mapping[str, Tensor]]
    texts: HealingTexts
    vocabulary: int
    room: int | None
    stamps: Mapping[Path, Stamp]

    @property
    def healing(self) -> Healing:
        """The plan's healing."""
        assert self.resolved.healing is not None, "a plan that heals"
        return self.resolved.healing


PredictionSources = tuple[Teachers, Mapping[int, PredictionsFile]]
"""Sources of a healing's predictions: its teachers, and files by the numbers of their texts."""


@final
class Healer:
    """Heals plans over some models.

    Teacher and student each have a stitcher, one after the other. `memory` bounds the bytes on the
    device; None sets no bound. `dtype` is that of the products. With `anew` no earlier result is
    reused. Processes that were started together learn together (`process_group.join`).
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
        self.dtype = dtype or healing_dtype(models, device)
        self.anew = anew

    def heal(
        self,
        resolved: Resolved,
        narrowed: Mapping[int, Mapping[str, Tensor]],
        bridged: Mapping[int, Mapping[str, Tensor]],
        on_event: OnEvent = ignore_events,
    ) -> HealedLayers:
        """Heal a closed plan; `narrowed` and `bridged` are fitted tensors of the output's layers.

        The same plan, text and fits give the same tensors in any process on one machine with the
        same number of threads. A killed run continues from its last kept state, and a finished
        run's result is kept.
        Raises CalibrationError for an unusable text, HealError for a plan that can't learn.
        """
        healing = resolved.healing
        assert healing is not None, "a plan that heals"
        plan = resolved.declared
        encoder = self._encoder(plan)
        unlearned = self._stitcher(self.models, None).contents(resolved)
        config = configuration(unlearned.config).get_text_config()
        vocabulary = int(config.vocab_size)
        stamped = stamps(calibration_path(plan, text.file) for text in healing.texts)
        predicted = self._predicted(plan, healing, encoder, vocabulary)
        lengths = (file.length for file in predicted.values())
        least = healing.tokens if _exactly(plan) else 0
        length = sequence_length(encoder.positions, least, lengths)
        planned = replace(healing, tokens=least)
        memory = HealingMemory(unlearned, planned, self.dtype, length, self.memory)
        memory.weights()  # too little memory is refused before a teacher answers
        teachers = self._teachers(resolved, predicting=False)
        texts = self._texts(plan, healing, encoder, teachers, predicted, on_event)
        refuse_changed(stamped)
        planned = replace(healing, tokens=texts.tokens)
        memory = replace(memory, healing=planned, length=texts.learned.tokens.shape[1])
        room = memory.weights()
        job = HealingJob(resolved, narrowed, bridged, texts, vocabulary, room, stamped)
        if self._cut(resolved) is not None:
            teachers.release()
            teachers = self._teachers(resolved, predicting=True)
        contents = self._student(job)[2]
        key = self._key(contents, teachers, healing, texts)
        learning: Learning | None = None

        def learn() -> KeptTensors:
            nonlocal learning
            numbers = memory.numbers, texts.tokens, memory.bytes
            on_event(HealingStart(len(healing.indices), *numbers))
            folder = unfinished.enter_context(working_folder(key))
            sources = teachers, predicted
            work = partial(_learn_with, job, key, folder, self.memory, self.dtype)
            with shared(work, self.device, len(texts.learned.tokens)) as group:
                learned, learning = self.learn(job, key, folder, sources, on_event, group)
            return learned

        with torch.inference_mode(mode=False):
            with ExitStack() as unfinished:  # the folder stays until the result is kept
                known = Kept("healed", anew=self.anew)(key, learn)
            if learning is None:
                on_event(Progress("healing", 0, 0, reused=True))
                teachers.release()
                learning = self._taken(job, known)
            layers = contents.layers
            tensors = TensorMaker(self.device, keep=False)  # the live model has its own
            healed = {i: _folded(tensors, learning, layers[i], i) for i in healing.indices}
        read = fit_texts(*((text.digest, text.tokens) for text in texts.files))
        losses = {name: known.numbers[name] for name in ("bare", "start", "healed")}
        numbers = {"held": texts.held.tokens.numel(), **losses}
        return HealedLayers(healed, FitResult("heal", "heal", read, numbers))

    def _taken(self, job: HealingJob, known: KeptTensors) -> Learning:
        """Return a plan's learning that takes over what is known."""
        student, _, contents = self._student(job)
        learning = self._learning(student, student.live(contents), contents, job.healing)
        learning.take(known.tensors)
        return learning

    def learn(
        self,
        job: HealingJob,
        key: str,
        folder: Path,
        sources: PredictionSources | None = None,
        on_event: OnEvent = ignore_events,
        group: ProcessGroup = ALONE,
    ) -> tuple[KeptTensors, Learning]:
        """Learn from opened sources, or from those of the job, alone or with a group's processes.

        Return the parameters at the end of learning, with its losses, and the learning.

        Unfinished work is kept in `folder`, under `key`.
        """
        healing, texts = job.healing, job.texts
        student, begun, contents = self._student(job)
        learned, held = self._taught(job, folder, sources or self._sources(job), on_event, group)
        bare = None
        if job.bridged:
            unbridged = Student(student.live(begun), 0, recompute=True)
            bare = unbridged.mean_divergence(held, group)
            del unbridged
        live = student.live(contents)
        learning = self._learning(student, live, contents, healing)
        runner = Student(live, min(healing.indices), recompute=self.memory is not None)
        training = Training(runner, learning, (learned, held), folder, key, group)
        with explaining_not_finite([contents], texts.paths):
            training.run(on_event)
        bare = training.start if bare is None else bare
        losses = {"bare": bare, "start": training.start, "healed": training.best}
        return KeptTensors(learning.parameters, losses), learning

    # ------------------------------------------------------------------------------- preparation

    def _student(self, job: HealingJob) -> tuple[Stitcher, ModelContents, ModelContents]:
        """Return the student's stitcher, and its contents without and with bridges."""
        student = self._stitcher(self.models, job.room)
        begun = student.table.with_fitted(student.contents(job.resolved), job.narrowed)
        return student, begun, student.table.with_fitted(begun, job.bridged)

    def _teachers(self, resolved: Resolved, *, predicting: bool) -> Teachers:
        """Return the teachers; those that predict have the whole vocabulary."""
        assert resolved.healing is not None, "a plan that heals"
        plans = {name: self._teacher(resolved, name) for name in resolved.healing.teachers}
        if predicting and self._cut(resolved) is not None:
            plans = {name: _uncut(checked) for name, checked in plans.items()}
        return Teachers(plans, partial(self._stitcher, memory=self.memory))

    def _sources(self, job: HealingJob) -> PredictionSources:
        plan = job.resolved.declared
        files = self._predicted(plan, job.healing, self._encoder(plan), job.vocabulary)
        refuse_changed(job.stamps)
        return self._teachers(job.resolved, predicting=True), files

    def _cut(self, resolved: Resolved) -> TokenCut | None:
        """Return the smaller vocabulary if the tokens that replace a dropped one are known.

        WordPiece splits a token by its place in a word.
        """
        cut = output_tokenizer(resolved.declared, self.models).token_cut
        return cut if cut is not None and cut.splits_tokens else None

    def _stitcher(self, models: Mapping[str, Opened], memory: int | None) -> Stitcher:
        """Return a stitcher with at most `memory` bytes of weights on the device (None: all)."""
        return Stitcher(models, device=self.device, dtype=self.dtype, memory=memory)

    def _encoder(self, plan: Plan) -> TokenEncoder:
        tokenizer = tokenizer_of(output_tokenizer(plan, self.models))
        return TokenEncoder(tokenizer, position_count(configuration(self.models["base"].config)))

    def _predicted(
        self, plan: Plan, healing: Healing, encoder: TokenEncoder, vocabulary: int
    ) -> Mapping[int, PredictionsFile]:
        """Return the files of predictions by the numbers of their texts.

        Raises CalibrationError (C814) for a file of another tokenizer or length than is needed.
        """
        files = {
            number: open_predictions(calibration_path(plan, text.file))
            for number, text in enumerate(healing.texts)
            if text.predicted
        }
        tokenizer = tokenizer_digest(output_tokenizer(plan, self.models))
        first = next(iter(files.values()), None)
        for file in files.values():
            file.refuse_other_tokens(tokenizer, vocabulary)
            assert first is not None, "one of the files"
            longest = encoder.positions or file.length
            if file.length > longest:
                message = f"its sequences have {file.length} tokens, and the model takes {longest}"
                help_ = f"make the file with 'gptailor teach --length {longest}'"
                raise unusable_predictions(message, file.path, help_)
            if file.length != first.length:
                message = f"its sequences have {file.length} tokens, and those of {first.path}"
                help_ = f"make the file with 'gptailor teach --length {first.length}'"
                raise unusable_predictions(f"{message} have {first.length}", file.path, help_)
        return files

    def _texts(
        self,
        plan: Plan,
        healing: Healing,
        encoder: TokenEncoder,
        teachers: Teachers,
        predicted: Mapping[int, PredictionsFile],
        on_event: OnEvent,
    ) -> HealingTexts:
        """Return the sequences of all texts; teachers answer prompts where the plan asks for it."""
        store = TensorStore(kept_home() / "answers", KEPT_BYTES)
        tokenizer = tokenizer_digest(output_tokenizer(plan, self.models))
        sources, answering = list[HealingSource](), list[ModelContents]()
        for number, text in enumerate(healing.texts):
            path, name = calibration_path(plan, text.file), text.teacher
            if text.predicted:
                sources.append(predicted[number].source(text.share, healing.seed))
                continue
            checked = teachers.plans[name]
            chats = TeacherChats(checked, name or checked.tokenizer_model.name)
            if text.answers is None:
                sources.append(
                    file_source(
                        path,
                        text.share,
                        encoder,
                        healing.seed,
                        chats,
                        only_answers=healing.only_answers,
                    )
                )
                continue
            answering.append(teachers.contents(name))
            settings = generation_config(checked.base.checkpoint)
            parts = (
                self._computing, answering[-1].instructions, answering[-1].generation, tokenizer,
                chats.template, settings and settings.read_bytes(),
            )  # fmt: skip
            teacher = AnsweringTeacher(partial(teachers.live, name), chats, repr(parts))
            answers = answers_to(path)(
                path, text.answers, teacher, encoder, healing.seed, store, on_event
            )
            sources.append(answers.source(text.share))
        with explaining_not_finite(answering, [source.path for source in sources]):
            return healing_texts(
                sources, healing.tokens, encoder, healing.seed,
                exactly=_exactly(plan), only_answers=healing.only_answers,
            )  # fmt: skip

    @property
    def _computing(self) -> tuple[object, ...]:
        """Return the settings and versions that a model's results depend on, beside its inputs."""
        return self.device.type, self.dtype, self.memory is not None, environment()

    def _teacher(self, resolved: Resolved, name: str | None) -> Checked:
        """Return a teacher as a plan beside its models."""
        if name is None:
            return Checked(resolved.undone, self.models)
        models = with_made_models(resolved.declared, self.models)
        alone = {"base": replace(models[name], name="base")}
        plan = Plan(models={"base": Model(source="base")})
        cut = output_tokenizer(resolved.plan, self.models).token_cut
        return Checked.of(with_token_cut(plan, cut), alone)

    def _taught(
        self,
        job: HealingJob,
        folder: Path,
        sources: PredictionSources,
        on_event: OnEvent,
        group: ProcessGroup,
    ) -> tuple[TaughtSequences, TaughtSequences]:
        """Return the learned and the held-out sequences with their teachers' predictions.

        Files are read first, so that an unusable file is refused before a teacher predicts. One
        teacher after the other is on the device.
        """
        healing, texts, vocabulary = job.healing, job.texts, job.vocabulary
        (teachers, predicted), cut = sources, self._cut(job.resolved)
        makers: list[str | PredictionsFile | None] = [*predicted.values(), *teachers.plans]
        of_text = torch.tensor(
            [
                makers.index(predicted.get(number, text.teacher))
                for number, text in enumerate(healing.texts)
            ]
        )
        kept = [file.kept for file in predicted.values()]
        kept += [TAUGHT] if teachers.plans else []
        sets = {"learned": texts.learned, "held": texts.held}
        parts: dict[str, list[Predictions]] = {name: [] for name in sets}
        whole = None if cut is None else WholeVocabulary(cut)
        readings = 1 if whole is None else 2
        total = readings * sum(sequences.tokens.numel() for sequences in sets.values())
        read = 0

        def on_reading(event: object) -> None:
            """Report the tokens that all teachers have read."""
            assert isinstance(event, Progress)
            on_event(replace(event, done=read + event.done, total=total))

        for number, maker in enumerate(makers):
            for name, sequences in sets.items():
                mask = of_text[sequences.texts] == number
                own, place = sequences.rows(mask), folder / f"{name}-{number}"
                if isinstance(maker, PredictionsFile):
                    predictions = Predictions(place, own.tokens, vocabulary, min(kept))
                    predictions.take(maker, maker.drawn(healing.seed, own.numbers.tolist()))
                    parts[name].append(predictions)
                    read += readings * own.tokens.numel()
                    continue
                live = partial(teachers.live, maker)
                with explaining_not_finite([teachers.contents(maker)], texts.paths):
                    if whole is not None:
                        words = DroppedWords(whole, self.device, healing.seed)
                        file = place.with_suffix(".safetensors")
                        replace_tokens = partial(words.replace_tokens, own, live, file, on_reading)
                        own = group.from_first(replace_tokens)
                        sets[name] = sequences.with_rows(mask, own)
                        read += own.tokens.numel()
                    predictions = Predictions(place, own.tokens, vocabulary, min(kept))
                    predictions.learn(live, self.device, on_reading, whole, group)
                parts[name].append(predictions)
                read += own.tokens.numel()
        teachers.release()
        learned, held = (
            TaughtSequences(sequences, parts[name], of_text[sequences.texts])
            for name, sequences in sets.items()
        )
        return learned, held

    def _learning(
        self, stitcher: Stitcher, live: Stitched, contents: ModelContents, healing: Healing
    ) -> Learning:
        modules = list(decoder_layers(live.model))
        layers: dict[int, nn.Module] = {index: modules[index] for index in healing.indices}
        names: dict[int, ModuleNames] = {}
        for index in healing.indices:
            content = contents.layers[index]
            tensors = {o.spec.name: stitcher.tensors.of_layer(content, o) for o in content.outputs}
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
        teachers: Teachers,
        healing: Healing,
        texts: HealingTexts,
    ) -> str:
        """Return a hash of everything that decides the result."""
        taught = [teachers.contents(name).instructions for name in teachers.plans]
        unnamed = tuple(replace(text, file="") for text in healing.texts)
        parts = (
            contents.instructions, taught, [file.digest for file in texts.files],
            replace(healing, texts=unnamed), (*self._computing, processes()),
        )  # fmt: skip
        key = hashlib.sha256(repr(parts).encode())
        for part in (texts.learned, texts.held):
            for tensor in (part.tokens, part.counted, part.texts):
                key.update(repr(tensor.shape).encode() + tensor.contiguous().numpy().tobytes())
        for number, layer in enumerate(contents.layers):
            key.update(f"{number}".encode() + layer.fitted_digest)
        return key.hexdigest()[:32]


def _exactly(plan: Plan) -> bool:
    """Return whether the plan names a number of tokens, which its texts must have."""
    return plan.heal is not None and plan.heal.tokens is not None


def _uncut(checked: Checked) -> Checked:
    """Return a teacher with its whole vocabulary."""
    plan = checked.resolved.declared.model_copy(update={"vocabulary": None})
    return Checked(replace(checked.resolved, declared=plan), checked.models)


def _learn_with(
    job: HealingJob,
    key: str,
    folder: Path,
    memory: int | None,
    dtype: torch.dtype,
    group: ProcessGroup,
) -> None:
    """Learn with the first process of a group, which keeps unfinished work in `folder`."""
    models = open_plan(job.resolved.declared, None).sound().models
    Healer(models, group.device, memory, dtype).learn(job, key, folder, group=group)


def _folded(
    makes: TensorMaker, learning: Learning, content: Content, index: int
) -> dict[str, Tensor]:
    """Return a layer's learned tensors in the output's dtypes, rounded once, on the CPU.

    Raises HealError (C809) where a dtype can't hold a value.
    """
    tensors = {}
    for output in content.outputs:
        name, dtype = output.spec.name, output.spec.dtype
        if name in learning.names[index]:
            folded = learning.folded(index, name, makes.of_layer(content, output))
            message = f"'{name}' healed has values that {dtype} can't hold"
            tensors[name] = in_dtype(folded, dtype, HealError("C809", message, LONGER_DTYPE))
    return tensors
