"""Layers that predict further tokens (MTP) learn from the healed model itself.

A predictor reads the hidden state of a token, which another last layer or cut layers before it have
changed, and the next token. It learns the distribution that the healed model has for the token
after these, so its drafts are accepted more often. transformers' `MtpModel` computes it.
"""

import copy
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from jaxtyping import Bool, Float, Int64
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from gptailor.checkpoint.families.layout import Layout
from gptailor.checkpoint.tensor import TensorSpec
from gptailor.evaluation.forward.recording import normed_states
from gptailor.evaluation.forward.requests import LiveModel
from gptailor.evaluation.heal.kept import HealingStore, KnownHealing, working_folder
from gptailor.evaluation.heal.learning import HealError, LowRankChanges, in_dtype, matched
from gptailor.evaluation.heal.teacher import TAUGHT
from gptailor.evaluation.heal.text import STEP_TOKENS, HealingTexts, PackedSequences
from gptailor.evaluation.heal.train import Student, Training, head_divergence, head_loss
from gptailor.evaluation.kept_tensors import kept_home
from gptailor.evaluation.live.content_keys import TensorMaker, instructions
from gptailor.evaluation.objectives.kl import grouped
from gptailor.plan.events import OnEvent, PredictorsBegun, ignore_events
from gptailor.plan.resolved import Healing
from gptailor.program.predictors import predictor_place
from gptailor.program.program import Output, Program, learning_tensors

if TYPE_CHECKING:
    from transformers.modeling_layers import MtpModel

_FILE = "model.safetensors"
_RANK = 64
"""The rank of a predictor's changes where the layers' weights themselves learn."""
_SHARED = ("embed_tokens.weight", "shared_head.head.weight")
"""Tensors that a predictor in a file has too, and that it shares with the model."""


@final
@dataclass(frozen=True)
class PredictorOutputs:
    """The output's tensors of predictors, by their numbers and their names in DeepSeek's layers."""

    layers: Mapping[int, Mapping[str, Output]]

    @classmethod
    def of(cls, layout: Layout, program: Program) -> "PredictorOutputs":
        """Return those of a program; `layout` is that of the output."""
        layers: dict[int, dict[str, Output]] = {}
        for output in program.outputs:
            if output.place.part == "predictor":
                place = predictor_place(layout, output.spec.name)
                if place is not None and place[1] not in _SHARED:
                    layers.setdefault(place[0], {})[place[1]] = output
        return cls(dict(sorted(layers.items())))

    @property
    def all(self) -> list[Output]:
        """All tensors."""
        return [output for layer in self.layers.values() for output in layer.values()]

    @property
    def specs(self) -> dict[int, dict[str, TensorSpec]]:
        """The tensors' shapes and dtypes."""
        return {
            number: {name: output.spec for name, output in layer.items()}
            for number, layer in self.layers.items()
        }


def live_predictors(
    model: PreTrainedModel, tensors: Mapping[int, Mapping[str, Tensor]]
) -> "MtpModel":
    """Return predictors beside a live model, whose embedding, head and rotation they share.

    `tensors` are those of each predictor, by their names in DeepSeek's layers. Raises HealError
    (C810) for predictors that transformers can't compute.
    """
    with tempfile.TemporaryDirectory(prefix="gptailor-mtp-") as folder:
        first = model.config.get_text_config().num_hidden_layers
        stored = {
            f"model.layers.{first + number}.{name}": tensor.contiguous().clone()
            for number, named in tensors.items()
            for name, tensor in named.items()
        }
        save_file(stored, Path(folder) / _FILE, metadata={"format": "pt"})
        try:
            from transformers.modeling_layers import MtpModel  # not in older versions

            with _loading(model, folder, len(tensors)):
                predictors = MtpModel.from_pretrained(model)
        except (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as e:
            message = f"transformers can't compute the layers that predict further tokens: {e}"
            help_ = "install its newest version, or leave 'heal' out"
            raise HealError("C810", message, help_) from None
    for parameter in predictors.layers.parameters():
        parameter.requires_grad_(False)
    predictors.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]
    return predictors


@contextmanager
def _loading(model: PreTrainedModel, folder: str, count: int) -> Iterator[None]:
    """Let transformers look for the predictors of a live model in a folder."""
    own = model.config
    changed = copy.deepcopy(own)
    changed.name_or_path = folder
    text = changed.get_text_config()
    first = text.num_hidden_layers
    text.num_mtp_layers = count
    if getattr(text, "layer_types", None) is not None:
        text.mtp_layer_types = ["full_attention"] * count
    if getattr(text, "mlp_layer_types", None) is not None:
        text.mtp_mlp_layer_types = ["sparse"] * count
    numbers = "|".join(str(first + number) for number in range(count))
    try:
        model.config = changed
        model._keys_to_ignore_on_load_unexpected = [rf"layers\.({numbers})\."]
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
    def device(self) -> torch.device:
        """The model's device."""
        return self.student.device

    @property
    def count(self) -> int:
        """The number of sequences to learn from."""
        return len(self.learned.tokens)

    @property
    def length(self) -> int:
        """The number of tokens of each."""
        return self.learned.tokens.shape[1]

    @property
    def digest(self) -> str:
        """The digest of the sequences, and of the predictions that count."""
        digest = hashlib.sha256()
        for part in (self.learned, self.held):
            for tensor in (part.tokens, part.counted):
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

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
        torch.autograd.backward(ends, slopes)
        return total / count

    @torch.no_grad()
    def held_out(self) -> float:
        """Return the mean divergence of the held-out sequences' predictions."""
        total, count = 0.0, 0
        batch = max(1, STEP_TOKENS // self.length)
        for start in range(0, len(self.held.tokens), batch):
            for hidden, states in self._taught(self.held, start, start + batch, learning=False):
                own = self._own(states)
                total += float(head_divergence(self._head, hidden, *own, self.student.step))
                count += len(hidden)
        return total / max(1, count)

    def _taught(
        self, sequences: PackedSequences, start: int, stop: int, *, learning: bool
    ) -> Iterator[tuple[Float[Tensor, " n width"], Float[Tensor, " n width"]]]:
        """Yield each predictor's states, and the model's states before its norm that it learns."""
        tokens = sequences.tokens[start:stop].to(self.device)
        counted = sequences.counted[start:stop].to(self.device)
        last = self.student.last_states(sequences.tokens[start:stop])
        state = self._normed(last)
        for number in range(len(self.predictors.layers)):
            later = number + 1
            many = last.shape[1] - later
            if many < 1:
                return
            places = torch.arange(later, later + many, device=self.device)[None]
            ids = tokens[:, later : later + many]
            with torch.set_grad_enabled(learning), self.student.autocast():
                state = self.predictors.forward_layer(
                    number, state[:, :many], places, None, input_ids=ids
                )
            mask: Bool[Tensor, " batch many"] = counted[:, later:]
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
        parts = []
        for start in range(0, len(states), self.student.step):
            rows = states[start : start + self.student.step]
            logits = self.student.head(rows)
            tokens = logits.topk(min(TAUGHT, logits.shape[1]), dim=1).indices
            parts.append((tokens, grouped(logits, tokens)))
        likeliest, logs = (torch.cat(part) for part in zip(*parts, strict=True))
        return likeliest, logs

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
    """A live model at the end of its healing, whose `key` covers all that decided it.

    With `anew` no earlier result is reused.
    """

    live: LiveModel
    tensors: TensorMaker
    healing: Healing
    texts: HealingTexts
    key: str
    anew: bool


def train_predictors(
    outputs: PredictorOutputs, model: HealedModel, on_event: OnEvent = ignore_events
) -> HealedPredictors | None:
    """Train the predictors of a healed model; None if it has none that learn.

    Raises HealError (C809) if a loss isn't finite, C810 for predictors that can't be computed.
    """
    if not outputs.layers:
        return None
    healing, device = model.healing, model.live.model.device
    tensors = {
        number: {name: model.tensors.make(output) for name, output in layer.items()}
        for number, layer in outputs.layers.items()
    }
    predictors = live_predictors(model.live.model, tensors)
    modules: dict[int, nn.Module] = dict(enumerate(predictors.layers))
    rank = healing.rank or _RANK
    names = {
        number: matched(learning_tensors(rank, specs), tensors[number], modules[number], number)
        for number, specs in outputs.specs.items()
    }
    learning = LowRankChanges(modules, names, rank, healing.seed, device)
    key = hashlib.sha256(f"{model.key} {instructions(outputs.all)}".encode()).hexdigest()[:32]
    store = HealingStore(kept_home() / "healed")
    result = None if model.anew else store.get(key)
    if result is not None:
        learning.take(result.parameters)
    else:
        on_event(PredictorsBegun(len(tensors)))
        texts, student = model.texts, Student(model.live, 0, recompute=False)
        lessons = PredictorLessons(student, predictors, texts.learned, texts.held)
        with working_folder(key) as folder:
            training = Training(lessons, learning, folder, key)
            training.run(on_event)
            losses = (training.start, training.start, training.best)
            result = KnownHealing(learning.parameters, *losses)
            store.put(key, result)
    learned = {
        outputs.layers[number][name].spec.name: in_dtype(
            name,
            learning.folded(number, name, tensors[number][name]),
            outputs.layers[number][name].spec.dtype,
        )
        for number, learned_names in names.items()
        for name in learned_names
    }
    return HealedPredictors(learned, result.start, result.healed)
