"""Layers that predict further tokens (MTP) learn from the healed model itself.

A predictor reads the hidden state of a token, which another last layer or cut layers before it have
changed, and the next token. It learns the distribution that the healed model has for the token
after these, so its drafts are accepted more often. transformers' `MtpModel` computes it.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, modeling_layers

from gptailor.evaluation.forward.recording import normed_states
from gptailor.evaluation.forward.requests import LiveModel
from gptailor.evaluation.heal.kept import HealingStore, KnownHealing, working_folder
from gptailor.evaluation.heal.learning import (
    HealError,
    LowRankChanges,
    NotFiniteError,
    in_dtype,
    matched,
)
from gptailor.evaluation.heal.teacher import TAUGHT, likeliest
from gptailor.evaluation.heal.text import STEP_TOKENS, HealingTexts, PackedSequences
from gptailor.evaluation.heal.train import Student, Training, head_divergence, head_loss
from gptailor.evaluation.kept_tensors import kept_home
from gptailor.evaluation.live.content_keys import TensorMaker, instructions
from gptailor.evaluation.live.template import decoder_layers, standing_in
from gptailor.plan.events import OnEvent, PredictorsBegun, ignore_events
from gptailor.plan.faults import TailorError
from gptailor.plan.resolved import Healing
from gptailor.program.predictors import TrainedPredictors

if TYPE_CHECKING:
    from transformers.modeling_layers import MtpModel

_FILE = "model.safetensors"
_REMEDY = "install its newest version, or leave 'heal' out"


def require_predictors() -> None:
    """Raise HealError (C810) if this version of transformers can't compute predictors."""
    if not hasattr(modeling_layers, "MtpModel"):
        message = "this version of transformers can't compute layers that predict further tokens"
        raise HealError("C810", message, _REMEDY)


def live_predictors(
    model: PreTrainedModel, tensors: Mapping[int, Mapping[str, Tensor]], folder: Path
) -> "MtpModel":
    """Return predictors that share a live model's embedding, head and rotation.

    `tensors` has the tensors of each predictor, by their names in DeepSeek's layers. They are
    written to the folder for transformers. Raises HealError (C810) for predictors that transformers
    can't compute, TailorError if the folder has no room.
    """
    stored = {
        f"model.layers.{number}.{name}": tensor.cpu().contiguous()
        for number, named in tensors.items()
        for name, tensor in named.items()
    }
    try:
        save_file(stored, folder / _FILE, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise TailorError(f"the predictors can't be written to {folder}: {error}") from None
    try:
        with _loading(model, folder, sorted(tensors)):
            predictors = modeling_layers.MtpModel.from_pretrained(model)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        message = f"transformers can't compute the layers that predict further tokens: {error}"
        raise HealError("C810", message, _REMEDY) from None
    finally:
        (folder / _FILE).unlink(missing_ok=True)
    predictors.layers.to(model.device)  # embedding, head and rotation are the model's own
    for parameter in predictors.layers.parameters():
        parameter.requires_grad_(False)
    return predictors


@contextmanager
def _loading(model: PreTrainedModel, folder: Path, numbers: list[int]) -> Iterator[None]:
    """Let transformers look for the predictors of a live model in a folder."""
    own = model.config
    changed = copy.deepcopy(own)
    changed.name_or_path = str(folder)
    changed.dtype = model.dtype
    text, count = changed.get_text_config(), len(numbers)
    text.num_mtp_layers = count
    if getattr(text, "layer_types", None) is not None:
        text.mtp_layer_types = ["full_attention"] * count
    if getattr(text, "mlp_layer_types", None) is not None:
        text.mtp_mlp_layer_types = ["sparse"] * count
    wanted = rf"layers\.({'|'.join(map(str, numbers))})\."
    # transformers makes predictors of the last layer's class and of its first norm's
    full = [layer for layer in decoder_layers(model) if hasattr(layer, "self_attn")]
    with standing_in(model, full[-1:]):
        try:
            model.config = changed
            model._keys_to_ignore_on_load_unexpected = [wanted]
            yield
        finally:
            model.config = own
            del model._keys_to_ignore_on_load_unexpected


@final
@dataclass(frozen=True, eq=False)
class PredictorLessons:
    """Lessons of a healed model's predictors by its own predictions.

    Predictor k reads the state of a token and the token k + 1 places after it, and learns the
    model's distribution of the next one. Each reads the output of the one before it.
    """

    student: Student
    predictors: "MtpModel"
    learned: PackedSequences
    held: PackedSequences

    @property
    def tokens(self) -> Int64[Tensor, " sequences length"]:
        """The sequences to learn from."""
        return self.learned.tokens

    def learn(self, start: int, stop: int) -> float:
        """Learn from some sequences, and return the mean divergence."""
        taught = list(self._taught(self.learned, start, stop, learning=True))
        count = max(1, sum(len(hidden) for hidden, _ in taught))
        total, ends, slopes = 0.0, list[Tensor](), list[Tensor]()
        for hidden, states in taught:
            loss, slope = head_loss(self._head, hidden, *self._own(states), self.student.step)
            total += float(loss)
            ends.append(hidden)
            slopes.append(slope / count)
        if ends:
            torch.autograd.backward(ends, slopes)
        return total / count

    @torch.no_grad()
    def held_out(self) -> float:
        """Return the mean divergence of the held-out sequences' predictions."""
        total, count = 0.0, 0
        batch = max(1, STEP_TOKENS // self.held.tokens.shape[1])
        for start in range(0, len(self.held.tokens), batch):
            for hidden, states in self._taught(self.held, start, start + batch, learning=False):
                own = self._own(states)
                total += float(head_divergence(self._head, hidden, *own, self.student.step))
                count += len(hidden)
        return total / max(1, count)

    def _taught(
        self, sequences: PackedSequences, start: int, stop: int, *, learning: bool
    ) -> Iterator[tuple[Float[Tensor, " n width"], Float[Tensor, " n width"]]]:
        """Yield each predictor's states, and the model's states before its norm that it learns.

        A predictor without a token that counts is left out.
        """
        device = self.student.device
        tokens = sequences.tokens[start:stop].to(device)
        counted = sequences.counted[start:stop].to(device)
        last = self.student.last_states(sequences.tokens[start:stop])
        state = self._normed(last)
        for number in range(len(self.predictors.layers)):
            later = number + 1
            many = last.shape[1] - later
            if many < 1:
                return
            places = torch.arange(later, later + many, device=device)[None]
            ids = tokens[:, later : later + many]
            with torch.set_grad_enabled(learning), self.student.autocast():
                state = self.predictors.forward_layer(
                    number, state[:, :many], places, None, input_ids=ids
                )
            mask: Bool[Tensor, " batch many"] = counted[:, later:]
            if bool(mask.any()):
                yield state[mask].float(), last[:, later:][mask]

    @torch.no_grad()
    def _normed(self, last: Float[Tensor, " batch n width"]) -> Float[Tensor, " batch n width"]:
        model, wraps = self.student.live.model, self.student.wrapped
        with self.student.autocast():
            return normed_states(model, last.flatten(0, 1), wraps=wraps).view_as(last)

    @torch.no_grad()
    def _own(
        self, states: Float[Tensor, " n width"]
    ) -> tuple[Int64[Tensor, " n kept"], Float[Tensor, " n groups"]]:
        """Return the model's likeliest tokens, and the log-probabilities of these and the rest."""
        step = self.student.step
        chunks = (states[start : start + step] for start in range(0, len(states), step))
        parts = [likeliest(self.student.head(rows), TAUGHT) for rows in chunks]
        tokens, logs = (torch.cat(part) for part in zip(*parts, strict=True))
        return tokens, logs

    def _head(self, rows: Float[Tensor, " n width"]) -> Float[Tensor, " n vocab"]:
        with self.student.autocast():
            logits: Tensor = self.predictors.shared_head(rows.to(self.predictors.dtype))
        return logits.float()


# -------------------------------------------------------------------------------- the learning


@final
@dataclass(frozen=True, eq=False)
class HealedPredictors:
    """Layers that predict further tokens, by the names of their learned tensors in the output.

    The losses are nats a token from the healed model's own predictions, before and after.
    """

    tensors: Mapping[str, Tensor]
    start: float
    healed: float


@final
@dataclass(frozen=True, eq=False)
class HealedModel:
    """A live model at the end of its healing. The key covers everything that decided the model.

    With `anew` no earlier result is reused.
    """

    live: LiveModel
    tensors: TensorMaker
    healing: Healing
    texts: HealingTexts
    key: str
    anew: bool


def train_predictors(
    further: TrainedPredictors, model: HealedModel, on_event: OnEvent = ignore_events
) -> HealedPredictors:
    """Train the predictors of a healed model.

    Raises HealError: C809 if a loss isn't finite, C810 for predictors that can't be computed.
    """
    live = model.live.model
    tensors = {
        number: {name: model.tensors.make(output) for name, output in layer.items()}
        for number, layer in further.layers.items()
    }
    key = hashlib.sha256(f"{model.key} {instructions(further.outputs)}".encode()).hexdigest()[:32]
    store = HealingStore(kept_home() / "healed")
    with working_folder(key) as folder:
        predictors = live_predictors(live, tensors, folder)
        modules: dict[int, nn.Module] = dict(zip(tensors, predictors.layers, strict=True))
        names = {
            number: matched(learning, tensors[number], modules[number], number)
            for number, learning in further.learning.items()
        }
        learning = LowRankChanges(modules, names, further.rank, model.healing.seed, live.device)
        result = None if model.anew else store.get(key)
        if result is not None:
            learning.take(result.parameters)
        else:
            on_event(PredictorsBegun(len(tensors)))
            texts, student = model.texts, Student(model.live, 0, recompute=False)
            lessons = PredictorLessons(student, predictors, texts.learned, texts.held)
            training = Training(lessons, learning, folder, key)
            try:
                training.run(on_event)
            except NotFiniteError:
                message = "the layers that predict further tokens compute values that aren't finite"
                help_ = "fetch the base's files again, or use other text"
                raise HealError("C809", message, help_) from None
            losses = (training.start, training.start, training.best)
            result = KnownHealing(learning.parameters, *losses)
            store.put(key, result)
    learned = {}
    for number, learned_names in names.items():
        for name in learned_names:
            spec = further.layers[number][name].spec
            folded = learning.folded(number, name, tensors[number][name])
            learned[spec.name] = in_dtype(spec.name, folded, spec.dtype)
    return HealedPredictors(learned, result.start, result.healed)
