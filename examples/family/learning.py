"""Fine-tuning of a model on texts, low-rank or whole, and its loss on other texts."""

import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from texts import Text
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

if TYPE_CHECKING:
    from peft import PeftModel

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT's, not ours
logging.disable_progress_bar()

LONGEST = 384  # tokens of a text; later tokens are cut off
CHUNK = 1024  # tokens whose logits are in memory at once
EACH_READ = 16  # texts of a batch without training
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Row = tuple[list[int], int]  # the ids of a text, and how many of them are only its prompt


@dataclass(frozen=True, slots=True)
class Schedule:
    """The number of steps, the batch size and the learning rate; a tenth of the steps warms up."""

    steps: int
    batch: int
    rate: float

    def rate_at(self, step: int) -> float:
        """Return the learning rate: up in a straight line, then down a cosine."""
        warm = self.steps // 10
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (self.steps - warm)))


class Encoder:
    """An encoder of texts as token ids, with the length of the prompt."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def prompt(self, text: Text) -> str:
        """Return the prompt in the model's chat template."""
        if not text.prompt:
            return ""
        turn = [{"role": "user", "content": text.prompt}]
        template = self.tokenizer.apply_chat_template
        return str(template(turn, add_generation_prompt=True, tokenize=False))

    def __call__(self, text: Text) -> Row:
        """Return the row of a text; an answer ends with the token that ends a turn."""
        before = self.tokenizer(self.prompt(text))["input_ids"]
        after = self.tokenizer(text.answer)["input_ids"]
        if text.prompt:
            after.append(self.tokenizer.eos_token_id)
        return (before + after)[:LONGEST], len(before)


def loaded(folder: Path, device: str) -> PreTrainedModel:
    """Return the base model in bfloat16, frozen."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    nn.Module.to(model, device)
    return model.requires_grad_(False)


def adapted(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return the model with the adapter in `folder` on it."""
    from peft import PeftModel

    on: Any = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    return on.get_base_model()


def with_adapter(model: PreTrainedModel, rank: int) -> "PeftModel":
    """Return the model with a new adapter in bfloat16."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=4 * rank, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def learn(
    model: PreTrainedModel, rows: list[Row], schedule: Schedule, rank: int
) -> Iterator[tuple[int, float, "PeftModel"]]:
    """Fine-tune, and yield after each step its number, its loss and the model so far.

    Rank 0 trains the whole model, in its own dtype. An adapter is bfloat16, as the file will be;
    the optimiser moves a float32 copy of it, as bfloat16 would lose small steps.
    """
    torch.manual_seed(0)
    tuned: Any = with_adapter(model, rank) if rank else nn.Module.requires_grad_(model)
    tensors = [tensor for tensor in tuned.parameters() if tensor.requires_grad]
    masters = [tensor.detach().float().requires_grad_() for tensor in tensors]
    optimiser = torch.optim.AdamW(masters, betas=(0.9, 0.98), weight_decay=0.0)
    drawn = batches(rows, schedule.batch, Random(0))
    for step in range(schedule.steps):
        ids, counts = padded(next(drawn), model.device)
        loss = loss_sum(model, ids, counts) / counts.sum()
        loss.backward()
        for master, tensor in zip(masters, tensors, strict=True):
            assert tensor.grad is not None, "each tensor of the adapter has a gradient"
            master.grad, tensor.grad = tensor.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimiser.param_groups[0]["lr"] = schedule.rate_at(step)
        optimiser.step()
        with torch.no_grad():
            for master, tensor in zip(masters, tensors, strict=True):
                tensor.copy_(master)
        yield step, loss.item(), tuned


def train(
    folder: Path, texts: list[Text], schedule: Schedule, rank: int, device: str
) -> "PeftModel":
    """Return the model in `folder` with an adapter trained on `texts`, and print the progress."""
    encoder = Encoder(folder)
    rows = [encoder(text) for text in texts]
    begun, running = time.monotonic(), 0.0
    model = loaded(folder, device)
    if not rank:  # few processors compute gradients of whole matrices quickly in bfloat16
        model.float()
    for step, loss, tuned in learn(model, rows, schedule, rank):  # noqa: B007
        running = 0.95 * running + 0.05 * loss if step else loss
        if step % 20 == 0 or step + 1 == schedule.steps:
            spent = time.monotonic() - begun
            print(f"step {step + 1} loss {running:.3f} {spent:.0f} s", flush=True)
    return tuned


def batches(rows: list[Row], size: int, rng: Random) -> Iterator[list[Row]]:
    """Yield batches without end, each of texts of similar length, in the order of `rng`."""
    rows = list(rows)
    while True:
        rng.shuffle(rows)
        found = []
        for start in range(0, len(rows), 16 * size):
            near = sorted(rows[start : start + 16 * size], key=lambda row: len(row[0]))
            found += [near[i : i + size] for i in range(0, len(near), size)]
        rng.shuffle(found)
        yield from found


def padded(rows: list[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and a mask of the tokens that count, padded on the right."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
    ids = torch.zeros(shape, dtype=torch.long)
    counts = torch.zeros(shape, dtype=torch.bool)
    for i, (row, skipped) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        counts[i, max(skipped, 1) : len(row)] = True
    return ids.to(device), counts.to(device)


def loss_sum(model: PreTrainedModel, ids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the summed loss, in nats, of the tokens that count; only these get logits."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    hidden, wanted = hidden[:, :-1][counts[:, 1:]], ids[:, 1:][counts[:, 1:]]
    losses = (
        functional.cross_entropy(model.lm_head(part).float(), target, reduction="sum")
        for part, target in zip(hidden.split(CHUNK), wanted.split(CHUNK), strict=True)
    )
    return sum(losses, torch.zeros((), device=ids.device))


@torch.inference_mode()
def loss_on(model: PreTrainedModel, rows: list[Row]) -> tuple[float, int]:
    """Return the mean loss of the tokens that count, in nats, and their number."""
    total, number = 0.0, 0
    rows = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(rows), EACH_READ):
        ids, counts = padded(rows[start : start + EACH_READ], model.device)
        total += loss_sum(model, ids, counts).item()
        number += int(counts.sum())
    return total / number, number


def save(tuned: "PeftModel", base: str, folder: Path) -> None:
    """Write the adapter's two files, the same bytes each time, and keep the folder's model card."""
    card = folder / "README.md"
    kept = card.read_text("utf-8") if card.exists() else None
    tuned.peft_config["default"].base_model_name_or_path = base
    tuned.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "adapter_model.safetensors").chmod(0o644)
    config = folder / "adapter_config.json"
    content = json.loads(config.read_text("utf-8"))
    content["target_modules"].sort()  # PEFT writes a set
    config.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    card.unlink(missing_ok=True)
    if kept is not None:
        card.write_text(kept, "utf-8")
