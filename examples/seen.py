"""Losses and continuations of the demo's models, in a table and in words."""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT = "The three most important things to know about growing tomatoes are"
QUESTION = "How can I learn a new language?"
NEW_TOKENS = 32
TEXT = Path(__file__).resolve().with_name("text.txt")


@dataclass(frozen=True)
class Seen:
    """Measurements of one model: layers, parameters, loss in nats a token, a continuation."""

    name: str
    layers: int
    parameters: int
    loss: float
    text: str


def look(name: str, folder: Path) -> Seen:
    """Load a model, measure its loss on the text, and let it continue the prompt."""
    import torch  # takes seconds; a missing model is reported before

    model, tokenizer = loaded(folder, folder)
    text = TEXT.read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    parameters = sum(p.numel() for p in model.parameters())
    words = continuation(model, tokenizer, PROMPT)
    return Seen(name, model.config.num_hidden_layers, parameters, loss, words)


def loaded(source: Path, base: Path) -> tuple[Any, Any]:
    """Return the model of a folder or of a stitched plan, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if source.suffix == ".tailor":
        import gptailor as verbs

        model = verbs.stitch(verbs.load(source), dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(base)


def continuation(model: Any, tokenizer: Any, prompt: str) -> str:
    """Return the greedy continuation of the prompt, at most NEW_TOKENS tokens."""
    import torch

    given = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)
    text: str = tokenizer.decode(out[0, given.input_ids.shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def continued(models: dict[str, Path], base: Path) -> None:
    """Print the models' greedy answers to a question, side by side."""
    print(f'\nGreedy answers to "{QUESTION}":')
    for name, source in models.items():
        model, tokenizer = loaded(source, base)
        asked = [{"role": "user", "content": QUESTION}]
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        words = continuation(model, tokenizer, prompt).strip() or "(nothing)"
        print(textwrap.fill(words, 92, initial_indent=f"  {name:<8} ", subsequent_indent=" " * 11))


def report(seen: list[Seen]) -> None:
    """Print the table, the continuations, and their meaning."""
    base = seen[0]
    print(f"\n{'model':<8}{'layers':>8}{'parameters':>14}{'loss':>9}{'':>4}against the base")
    for s in seen:
        change = "" if s is base else f"{s.loss - base.loss:+.3f} nats a token"
        print(f"{s.name:<8}{s.layers:>8}{s.parameters / 1e6:>12.1f} M{s.loss:>9.3f}{'':>4}{change}")
    print(f'\nGreedy continuations of "{PROMPT} …":')
    for s in seen:
        words = " ".join(s.text.split())
        print(textwrap.fill(words, 92, initial_indent=f"  {s.name:<6} ", subsequent_indent=" " * 9))
    print("\n" + textwrap.fill(in_words(base, {s.name: s for s in seen[1:]}), 92))


def in_words(base: Seen, made: dict[str, Seen]) -> str:
    """Return the table's meaning in a paragraph."""
    cut, fold, stack = (made[name] for name in ("cut", "fold", "stack"))
    fewer, folded, more = (abs(base.layers - s.layers) for s in (cut, fold, stack))
    return (
        "The loss is in nats a token on one English text (examples/text.txt); less is better. "
        "Nothing was trained. "
        f"Without {fewer} of its {base.layers} layers the model loses {cut.loss - base.loss:.2f} "
        "nats a token and still writes English. "
        f"Folding {folded} layers into their neighbours costs {fold.loss - base.loss:.2f}: "
        "a plain average of two layers is not free. "
        f"The stack runs {more} layers twice, which costs {stack.loss - base.loss:.2f}: order and "
        "repetition are free to choose, and a search chooses them better. "
        "Each of these plans has a few lines."
    )
