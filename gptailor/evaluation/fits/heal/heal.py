"""Healing: a cut plan's layers learn the predictions of the undropped plan."""

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, product
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from gptailor.checkpoint.cache_folder import kept_home
from gptailor.checkpoint.files import Stamp, refuse_changed, stamps
from gptailor.checkpoint.folder import generation_config
from gptailor.checkpoint.models import Opened
from gptailor.checkpoint.token_cut import TokenCut
from gptailor.evaluation.fits.bridge.states import plan_encoder
from gptailor.evaluation.fits.fit import (
    Fit,
    Fitted,
    LayerChanges,
    PlanSizes,
    RepairEstimate,
    heal_passes,
    healed_tokens,
    in_dtype,
)
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
    HealingSource,
    PredictionsFile,
    TeacherChats,
    answers_to,
    file_source,
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
from gptailor.evaluation.fits.heal.text import HealingTexts, healing_texts, sequence_length
from gptailor.evaluation.fits.heal.train import HealingMemory, Student, Training
from gptailor.evaluation.fits.heal.whole_vocabulary import DroppedWords, WholeVocabulary
from gptailor.evaluation.fits.kept_tensors import KeptTensors, TensorStore, environment
from gptailor.evaluation.live.content_keys import Content, ModelContents, TensorMaker
from gptailor.evaluation.live.stitch import Stitched, Stitcher
from gptailor.evaluation.live.template import configuration, decoder_layers, position_count
from gptailor.evaluation.objectives.tokens import TokenEncoder, tokenizer_digest
from gptailor.methods.rounding import LONGER_DTYPE
from gptailor.plan.events import FitResult, OnEvent, Progress, ignore_events
from gptailor.plan.plan import HealText, Model, Plan
from gptailor.plan.resolved import Healing, Resolved
from gptailor.prepare import calibration_path, open_plan
from gptailor.program.devices import healing_dtype
from gptailor.program.nested_models import with_made_models
from gptailor.program.program import learning_tensors
from gptailor.program.sources import Checked, output_tokenizer, with_token_cut


@final
class Healer(Fit):
    """Heals plans, and keeps the layers of the last one.

    Teacher and student each have a stitcher of their own, one after the other, within the memory of
    the healer's. Processes that were started together learn together (`process_group.join`).
    """

    folder = "healed"
    wide = False

    _healed: tuple[Hashable, LayerChanges, FitResult] | None = None

    @staticmethod
    def cost(sizes: PlanSizes) -> RepairEstimate:
        """Estimate the cost of reading the texts, and of learning."""
        models, where = sizes.prepared.models, sizes.device
        dtype = healing_dtype(models, where)
        job = HealingJob(sizes.plan, models, {}, where, sizes.memory, dtype, {})
        plan, tokens = job.plan, healed_tokens(job.plan)
        shared_by = 1 if where.type == "cpu" else processes()
        parameters = sizes.prepared.base_size.parameters
        work = 2 * parameters * tokens * heal_passes(plan) / shared_by
        predicted = [text.file for text in job.healing.texts if text.predicted]
        lengths = [open_predictions(calibration_path(plan, file)).length for file in predicted]
        length = sequence_length(position_count(sizes.config), tokens, lengths)
        size = dtype.itemsize * parameters + job.memory(tokens, length).bytes
        return sizes.estimate("healing", tokens, work, size, dtype)

    def run(self, fitted: Fitted, on_event: OnEvent) -> Fitted:
        """Return a plan with its healed layers, after its other fits.

        The same plan, text and fits give the same tensors in any process on one machine with the
        same number of threads. A killed run continues from its last kept state, and a finished
        run's result is kept. If no step came nearer to the teacher, the layers are unchanged.
        """
        plan = fitted.resolved.declared  # equal plans in two folders have different texts
        key = plan, tuple(calibration_path(plan, file) for _, file in plan.calibration_texts)
        if self._healed is None or self._healed[0] != key:
            self._healed = key, *self._heal(fitted, on_event)
        _, changes, result = self._healed
        return fitted.having(changes, result)

    def _heal(self, fitted: Fitted, on_event: OnEvent) -> tuple[LayerChanges, FitResult]:
        """Return the learned tensors on the CPU in the output's dtypes, and the result."""
        plan, healing = fitted.resolved.declared, fitted.resolved.healing
        assert healing is not None, "a plan that heals"
        stamped = stamps(calibration_path(plan, text.file) for text in healing.texts)
        models, device = self.table.models, self.stitcher.device
        limit, dtype = self.stitcher.memory, healing_dtype(models, device)
        job = HealingJob(fitted.resolved, models, fitted.changes, device, limit, dtype, stamped)
        least = healing.tokens if job.exactly else 0
        lengths = (file.length for file in job.predicted.values())
        length = sequence_length(job.encoder.positions, least, lengths)
        job.memory(least, length).weights()  # too little is refused before a teacher answers
        texts = job.texts(on_event)
        refuse_changed(stamped)
        memory = job.memory_of(texts)
        if job.cut is not None:
            job.answering.release()
        contents = job.student(texts)[2]
        key = job.key(contents, texts)
        with torch.inference_mode(mode=False):
            known = self.kept.get(key)
            if known is None:
                sizes = {"numbers": memory.numbers, "bytes": memory.bytes, "tokens": texts.tokens}
                on_event(Progress("learning", 0, len(healing.indices), numbers=sizes))
                with working_folder(key) as folder:
                    work = partial(_learn_with, replace(job, models={}), texts, key, folder)
                    with shared(work, device, len(texts.learned.tokens)) as group:
                        known, learning = job.learn(texts, key, folder, on_event, group)
                    self.kept.put(key, known)
            else:
                on_event(Progress("healing", 0, 0, reused=True))
                job.teachers.release()
                student, _, contents = job.student(texts)
                learning = _learning(healing, student, student.live(contents), contents)
                learning.take(known.tensors)
            tensors = TensorMaker(device, keep=False)  # the live model has its own
            layers = contents.layers
            healed = {i: _folded(tensors, learning, layers[i], i) for i in healing.indices}
        losses = {name: known.numbers[name] for name in ("bare", "start", "healed")}
        numbers = {"held": texts.held.tokens.numel(), **losses}
        return healed, FitResult("heal", "heal", texts.read, numbers)


@final
@dataclass(frozen=True, eq=False)
class HealingJob:
    """The healing of a closed plan with its other fits, on a device.

    `changes` are fitted tensors of the output's layers by the words of fits. `limit` bounds the
    bytes on the device. `stamps` belong to the files of texts and predictions, which mustn't
    change. Files and teachers are opened when they are needed.
    """

    resolved: Resolved
    models: Mapping[str, Opened]
    changes: Mapping[str, LayerChanges]
    device: torch.device
    limit: int | None
    dtype: torch.dtype
    stamps: Mapping[Path, Stamp]

    @property
    def plan(self) -> Plan:
        """The plan as its text has it."""
        return self.resolved.declared

    @property
    def healing(self) -> Healing:
        """The plan's healing."""
        assert self.resolved.healing is not None, "a plan that heals"
        return self.resolved.healing

    @property
    def exactly(self) -> bool:
        """Return whether the plan names a number of tokens, which its texts must have."""
        return self.plan.heal is not None and self.plan.heal.tokens is not None

    # ----------------------------------------------------------------------------------- texts

    @cached_property
    def _owner(self) -> Opened:
        return output_tokenizer(self.plan, self.models)

    @cached_property
    def encoder(self) -> TokenEncoder:
        """The encoder of the student's tokens."""
        return plan_encoder(self.plan, self.models)

    @cached_property
    def predicted(self) -> Mapping[int, PredictionsFile]:
        """The files of predictions by the numbers of their texts.

        Raises CalibrationError (C814) for a file of another tokenizer or length than is needed.
        """
        files = {
            number: open_predictions(calibration_path(self.plan, text.file))
            for number, text in enumerate(self.healing.texts)
            if text.predicted
        }
        tokenizer = tokenizer_digest(self._owner)
        first = next(iter(files.values()), None)
        for file in files.values():
            file.refuse_other_tokens(tokenizer, self._vocabulary)
            assert first is not None, "one of the files"
            longest = min(file.length, self.encoder.positions or file.length)
            taken = f"the model takes {longest}"
            like = f"the rows of {first.path} have {first.length}"
            for wanted, why in ((longest, taken), (first.length, like)):
                if file.length != wanted:
                    message = f"its sequences have {file.length} tokens, but {why}"
                    help_ = f"make the file with 'gptailor teach --length {wanted}'"
                    raise unusable_predictions(message, file.path, help_)
        return files

    def texts(self, on_event: OnEvent) -> HealingTexts:
        """Return the sequences of all texts; teachers answer prompts where the plan asks for it."""
        healing = self.healing
        sources = [self._source(*item, on_event) for item in enumerate(healing.texts)]
        answering = [text.teacher for text in healing.texts if text.answers is not None]
        models = [self.answering.contents(name) for name in answering]
        with explaining_not_finite(models, [source.path for source in sources]):
            return healing_texts(
                sources, healing.tokens, self.encoder, healing.seed,
                exactly=self.exactly, only_answers=healing.only_answers,
            )  # fmt: skip

    def _source(self, number: int, text: HealText, on_event: OnEvent) -> HealingSource:
        """Return the source of the rows of a text."""
        path, seed, name = calibration_path(self.plan, text.file), self.healing.seed, text.teacher
        share = self.healing.shares[number]
        if text.predicted:
            return self.predicted[number].source(share, seed)
        checked = self.answering.plans[name]
        chats = TeacherChats(checked, name or checked.tokenizer_model.name)
        if text.answers is None:
            only_answers = self.healing.only_answers
            return file_source(path, share, self.encoder, seed, chats, only_answers=only_answers)
        contents = self.answering.contents(name)
        settings = generation_config(checked.base.checkpoint)
        parts = (
            self._computing, contents.instructions, contents.generation,
            tokenizer_digest(self._owner), chats.template, settings and settings.read_bytes(),
        )  # fmt: skip
        teacher = AnsweringTeacher(partial(self.answering.live, name), chats, repr(parts))
        store = TensorStore(kept_home() / "answers")
        answers = answers_to(path)(path, text.answers, teacher, self.encoder, seed, store, on_event)
        return answers.source(share)

    # -------------------------------------------------------------------------------- teachers

    @cached_property
    def answering(self) -> Teachers:
        """The teachers with the output's tokens."""
        plans = {name: self._teacher(name) for name in self.healing.teachers}
        return Teachers(plans, partial(self._stitcher, memory=self.limit))

    @cached_property
    def teachers(self) -> Teachers:
        """The teachers that predict, with their whole vocabulary."""
        if self.cut is None:
            return self.answering
        plans = {name: _uncut(checked) for name, checked in self.answering.plans.items()}
        return Teachers(plans, partial(self._stitcher, memory=self.limit))

    @property
    def cut(self) -> TokenCut | None:
        """The smaller vocabulary if the tokens that replace a dropped one are known.

        WordPiece splits a token by its place in a word.
        """
        cut = self._owner.token_cut
        return cut if cut is not None and cut.splits_tokens else None

    def _teacher(self, name: str | None) -> Checked:
        """Return a teacher as a plan with its models."""
        if name is None:
            return Checked(self.resolved.undone, self.models)
        models = with_made_models(self.plan, self.models)
        alone = {"base": replace(models[name], name="base")}
        plan = Plan(models={"base": Model(source="base")})
        cut = output_tokenizer(self.resolved.plan, self.models).token_cut
        return Checked.of(with_token_cut(plan, cut), alone)

    def _taught(
        self, texts: HealingTexts, folder: Path, on_event: OnEvent, group: ProcessGroup
    ) -> tuple[TaughtSequences, TaughtSequences]:
        """Return the learned and the held-out sequences with their teachers' predictions.

        Files are read first, so that an unusable file is refused before a teacher predicts. One
        teacher after the other is on the device.
        """
        teachers, predicted, seed = self.teachers, self.predicted, self.healing.seed
        refuse_changed(self.stamps)
        makers: list[str | PredictionsFile | None] = [*predicted.values(), *teachers.plans]
        of_text = torch.tensor(
            [
                makers.index(predicted.get(number, text.teacher))
                for number, text in enumerate(self.healing.texts)
            ]
        )
        kept = min(m.kept if isinstance(m, PredictionsFile) else TAUGHT for m in makers)
        sets = {"learned": texts.learned, "held": texts.held}
        parts: dict[str, list[Predictions]] = {name: [] for name in sets}
        whole = None if self.cut is None else WholeVocabulary(self.cut)
        readings = 1 if whole is None else 2
        total = readings * sum(sequences.tokens.numel() for sequences in sets.values())
        read = 0

        def on_reading(event: object) -> None:
            """Report the tokens that all teachers have read."""
            assert isinstance(event, Progress)
            on_event(replace(event, done=read + event.done, total=total))

        for (number, maker), name in product(enumerate(makers), sets):
            mask = of_text[sets[name].texts] == number
            own, place = sets[name].rows(mask), folder / f"{name}-{number}"
            if isinstance(maker, PredictionsFile):
                predictions = Predictions(place, own.tokens, self._vocabulary, kept)
                predictions.take(maker, maker.drawn(seed, own.numbers.tolist()))
                read += (readings - 1) * own.tokens.numel()
            else:
                live = partial(teachers.live, maker)
                with explaining_not_finite([teachers.contents(maker)], texts.paths):
                    if whole is not None:
                        words = DroppedWords(whole, self.device, seed)
                        file = place.with_suffix(".safetensors")
                        replace_tokens = partial(words.replace_tokens, own, live, file, on_reading)
                        own = group.from_first(replace_tokens)
                        sets[name] = sets[name].with_rows(mask, own)
                        read += own.tokens.numel()
                    predictions = Predictions(place, own.tokens, self._vocabulary, kept)
                    predictions.learn(live, self.device, on_reading, whole, group)
            parts[name].append(predictions)
            read += own.tokens.numel()
        teachers.release()
        learned, held = (
            TaughtSequences(sequences, parts[name], of_text[sequences.texts])
            for name, sequences in sets.items()
        )
        return learned, held

    # --------------------------------------------------------------------------------- student

    @cached_property
    def _unlearned(self) -> ModelContents:
        """The contents of the plan's model without fits."""
        return self._stitcher(self.models, None).contents(self.resolved)

    @cached_property
    def _vocabulary(self) -> int:
        return int(configuration(self._unlearned.config).get_text_config().vocab_size)

    def memory(self, tokens: int, length: int) -> HealingMemory:
        """Return the memory of a student that learns from this many tokens, in these sequences."""
        planned = replace(self.healing, tokens=tokens)
        return HealingMemory(self._unlearned, planned, self.dtype, length, self.limit)

    def memory_of(self, texts: HealingTexts) -> HealingMemory:
        """Return the memory of a student that learns from these texts."""
        return self.memory(texts.tokens, texts.learned.tokens.shape[1])

    def student(self, texts: HealingTexts) -> tuple[Stitcher, ModelContents, ModelContents]:
        """Return the student's stitcher, and its contents without and with bridges.

        Fits after the bridges build on them, and are left out with them.
        """
        student = self._stitcher(self.models, self.memory_of(texts).weights())
        with_fitted, begun = student.table.with_fitted, student.contents(self.resolved)
        stages = [*accumulate(self.changes.values(), with_fitted, initial=begun)]
        return student, stages[[*self.changes, "bridge"].index("bridge")], stages[-1]

    def learn(
        self,
        texts: HealingTexts,
        key: str,
        folder: Path,
        on_event: OnEvent = ignore_events,
        group: ProcessGroup = ALONE,
    ) -> tuple[KeptTensors, Learning]:
        """Learn from texts, alone or with a group's processes.

        Return the parameters at the end of learning, with its losses, and the learning.

        Unfinished work is kept in `folder`, under `key`.
        """
        student, begun, contents = self.student(texts)
        learned, held = self._taught(texts, folder, on_event, group)
        bare = None
        if self.changes.get("bridge"):
            unbridged = Student(student.live(begun), 0, recompute=True)
            bare = unbridged.mean_divergence(held, group)
            del unbridged
        live = student.live(contents)
        learning = _learning(self.healing, student, live, contents)
        runner = Student(live, min(self.healing.indices), recompute=self.limit is not None)
        training = Training(runner, learning, (learned, held), folder, key, group)
        with explaining_not_finite([contents], texts.paths):
            training.run(on_event)
        bare = training.start if bare is None else bare
        losses = {"bare": bare, "start": training.start, "healed": training.best}
        return KeptTensors(learning.parameters, losses), learning

    # --------------------------------------------------------------------------------- on the disk

    @property
    def _computing(self) -> tuple[object, ...]:
        """Return the settings and versions that results depend on, in addition to inputs."""
        return self.device.type, self.dtype, self.limit is not None, environment()

    def key(self, contents: ModelContents, texts: HealingTexts) -> str:
        """Return a hash of everything that decides the result."""
        taught = [self.teachers.contents(name).instructions for name in self.teachers.plans]
        unnamed = tuple(text.model_copy(update={"file": ""}) for text in self.healing.texts)
        parts = (
            contents.instructions, taught, texts.read, replace(self.healing, texts=unnamed),
            (*self._computing, processes()),
        )  # fmt: skip
        key = hashlib.sha256(repr(parts).encode())
        for part in (texts.learned, texts.held):
            for tensor in (part.tokens, part.counted, part.texts):
                key.update(repr(tensor.shape).encode() + tensor.contiguous().numpy().tobytes())
        for number, layer in enumerate(contents.layers):
            key.update(f"{number}".encode() + layer.fitted_digest)
        return key.hexdigest()[:32]

    def _stitcher(self, models: Mapping[str, Opened], memory: int | None) -> Stitcher:
        """Return a stitcher with at most `memory` bytes of weights on the device (None: all)."""
        return Stitcher(models, device=self.device, dtype=self.dtype, memory=memory)


def _uncut(checked: Checked) -> Checked:
    """Return a teacher with its whole vocabulary."""
    plan = checked.resolved.declared.model_copy(update={"vocabulary": None})
    return Checked(replace(checked.resolved, declared=plan), checked.models)


def _learn_with(
    job: HealingJob, texts: HealingTexts, key: str, folder: Path, group: ProcessGroup
) -> None:
    """Learn with the first process of a group, which keeps unfinished work in `folder`."""
    models = open_plan(job.plan, None).sound().models
    replace(job, models=models, device=group.device).learn(texts, key, folder, group=group)


def _learning(
    healing: Healing, stitcher: Stitcher, live: Stitched, contents: ModelContents
) -> Learning:
    """Return the parameters that a live student learns."""
    modules = list(decoder_layers(live.model))
    layers: dict[int, nn.Module] = {index: modules[index] for index in healing.indices}
    names: dict[int, ModuleNames] = {}
    for index in healing.indices:
        content = contents.layers[index]
        tensors = {o.spec.name: stitcher.tensors.of_layer(content, o) for o in content.outputs}
        specs = {output.spec.name: output.spec for output in content.outputs}
        with live.layer(index) as layer:
            names[index] = matched(learning_tensors(healing.rank, specs), tensors, layer, index)
    if healing.rank is None:
        return WholeWeights(layers, names)
    return LowRankChanges(layers, names, healing.rank, healing.seed, stitcher.device)


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
            message = f"the healed '{name}' has values that {dtype} can't represent"
            tensors[name] = in_dtype(folded, dtype, HealError("C809", message, LONGER_DTYPE))
    return tensors
