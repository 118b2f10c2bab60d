"""Run ReplaceMe (arXiv 2505.02819), and choose cuts for `benchmarks/bridge.py`.

    python benchmarks/bridge_peer.py influences MODEL TEXT
    python benchmarks/bridge_peer.py replace MODEL TEXT OUT --first 20 --count 7 --by squares

`influences` prints JSON with 1 − cos of the input and output of each layer (ShortGPT's block
influence, arXiv 2403.03853) and of each window of `--count` layers (ReplaceMe's criterion).

`replace` cuts one window. M is the output of the MLP branch before it, Y the hidden state that M is
added to, and T the hidden state after the window, over all tokens. It fits T − Y by MW, and folds W
into the branch's output projection. `squares` computes W by least squares without a ridge. `cosine`
starts from the identity, and reduces the mean cosine distance by Adam (rate 1e-4, 10 epochs of
batches of 1024 tokens). Both need a model with Llama's modules.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

sys.path[:0] = [str(Path(__file__).parents[1])]

from benchmarks.search_texts import texts_of  # noqa: E402 (the folder above is found first)

Rows = Float[Tensor, " n width"]

WINDOW = 512
BATCH = 1024
EPOCHS = 10
RATE = 1e-4


@dataclass(frozen=True)
class Text:
    """Token rows and a model in float32 on the device, with the dtype of the model's file."""

    model: PreTrainedModel
    dtype: torch.dtype
    rows: Sequence[Sequence[int]]
    device: str

    def run(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield each row's hidden states, [length, width]: each layer's input, the last output.

        The last one is the input of the final norm.
        """
        caught: list[Tensor] = []
        final = self.model.get_submodule("model.norm")
        hook = final.register_forward_pre_hook(lambda _, taken: caught.append(taken[0]))
        for row in self.rows:
            tokens = torch.tensor([row], device=self.device)
            with torch.no_grad():
                states = self.model(tokens, output_hidden_states=True, logits_to_keep=1)
            yield tuple(one[0] for one in (*states.hidden_states[:-1], caught.pop()))
        hook.remove()


def read(model: Path, file: Path, tokens: int, device: str) -> Text:
    """Return a model and tokens of a JSON Lines file, its rows joined in random order."""
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    rows = texts_of(file)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    found: list[int] = []
    for at in order:
        found += [*tokenizer(rows[at])["input_ids"], tokenizer.eos_token_id]
        if len(found) >= tokens:
            break
    cut = [found[at : at + WINDOW] for at in range(0, min(tokens, len(found)), WINDOW)]
    loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    dtype = AutoConfig.from_pretrained(str(model)).dtype or torch.float32
    nn.Module.to(loaded, device)
    return Text(loaded.eval(), dtype, [row for row in cut if len(row) > 1], device)


def influences(text: Text, count: int) -> dict[str, list[float]]:
    """Return mean cosine distances over each layer, and over each window by its first layer."""
    sums: dict[str, Tensor] = {}
    for states in text.run():
        layers = range(1, len(states))
        over = {"layers": [_distance(states[i - 1], states[i]) for i in layers]}
        over["windows"] = [_distance(states[i - count], states[i]) for i in layers if i >= count]
        for name, found in over.items():
            sums[name] = sums.get(name, torch.zeros(())) + torch.stack(found).double().cpu()
    return {name: (total / len(text.rows)).tolist() for name, total in sums.items()}


def _distance(before: Rows, after: Rows) -> Tensor:
    """Return the mean cosine distance without the first token, which is an outlier."""
    return 1 - cosine_similarity(before[1:], after[1:], dim=-1).mean()


def pairs(text: Text, first: int, count: int) -> tuple[Rows, Rows]:
    """Return M and T − Y of all tokens, on the host."""
    branch, wanted = [], []
    caught: list[Tensor] = []
    mlp = text.model.get_submodule(f"model.layers.{first - 1}.mlp")
    hook = mlp.register_forward_hook(lambda _, __, made: caught.append(made[0]))
    for states in text.run():
        made = caught.pop()
        branch.append(made.cpu())
        wanted.append((states[first + count] - states[first] + made).cpu())
    hook.remove()
    return torch.cat(branch), torch.cat(wanted)


def by_squares(branch: Rows, wanted: Rows, device: str) -> Tensor:
    """Return (MᵀM)⁻¹Mᵀ(T − Y), in float64."""
    m, r = branch.to(device).double(), wanted.to(device).double()
    return torch.linalg.solve(m.T @ m, m.T @ r)


def by_cosine(branch: Rows, wanted: Rows, device: str) -> Tensor:
    """Return W with a small mean of 1 − cos(MW, T − Y), starting from the identity."""
    w = torch.eye(branch.shape[1], device=device, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for some in torch.randperm(len(branch), generator=generator).split(BATCH):
            m, r = branch[some].to(device), wanted[some].to(device)
            loss = 1 - cosine_similarity(m @ w, r, dim=-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return w.detach().double()


FITS = {"squares": by_squares, "cosine": by_cosine}


def replace(text: Text, first: int, count: int, by: str, out: Path) -> None:
    """Write the model without the window, with the map folded in and its dtype unchanged."""
    w = FITS[by](*pairs(text, first, count), text.device)
    projection = text.model.get_submodule(f"model.layers.{first - 1}.mlp.down_proj")
    for parameter in projection.parameters():
        parameter.data = (w.T @ parameter.data.double()).float()
    stack: Any = text.model.get_submodule("model")
    stack.layers = nn.ModuleList([*stack.layers[:first], *stack.layers[first + count :]])
    config: Any = text.model.config
    config.num_hidden_layers -= count
    if (types := getattr(config, "layer_types", None)) is not None:
        config.layer_types = [*types[:first], *types[first + count :]]
    nn.Module.to(text.model, text.dtype)
    text.model.save_pretrained(out)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("model", type=Path)
    shared.add_argument("text", type=Path, help="JSON Lines with 'text'")
    shared.add_argument("--tokens", type=int, default=65536)
    shared.add_argument("--count", type=int, default=7, help="layers of the window (7)")
    shared.add_argument("--device", default="cpu")
    verbs.add_parser("influences", parents=[shared])
    replacing = verbs.add_parser("replace", parents=[shared])
    replacing.add_argument("out", type=Path)
    replacing.add_argument("--first", type=int, required=True, help="the window's first layer")
    replacing.add_argument("--by", choices=list(FITS), default="squares")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Print distances, or write a model."""
    given = parsed(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    text = read(given.model, given.text, given.tokens, given.device)
    if given.verb == "influences":
        print(json.dumps(influences(text, given.count)))
    else:
        replace(text, given.first, given.count, given.by, given.out)
        AutoTokenizer.from_pretrained(str(given.model)).save_pretrained(given.out)


if __name__ == "__main__":
    main(sys.argv[1:])
