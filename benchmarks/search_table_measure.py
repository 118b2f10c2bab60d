"""Measure the table of `benchmarks/search.py --table`: plans of SmolLM2's family.

    python benchmarks/search_table_measure.py --data DATA              # 3,240 plans and 27 uncut
    python benchmarks/search_table_measure.py --data DATA --math 0 0.6 --chat 0 0.6 --code 0 0.6
    python benchmarks/search_table_measure.py --data DATA --check benchmarks/search_table.npz

A plan drops three of ten layers and merges the demo's three fine-tunes by task arithmetic with one
weight for each. A merge takes 35 s of a core. DATA holds public texts; without it the project's own
texts are used. The losses of a merge are kept in the folder, so that an interrupted run goes on.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch  # noqa: E402 (the folder above is found first)
from torch import Tensor  # noqa: E402
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402
from transformers.utils import logging  # noqa: E402

import gptailor  # noqa: E402
from benchmarks.models import add_model, model_folder  # noqa: E402
from benchmarks.search_table import (  # noqa: E402
    CUTS,
    DROPPED,
    FILE,
    FIRST,
    LAST,
    LAYERS,
    MODELS,
    Table,
    space_text,
)
from benchmarks.search_texts import code, domains, general  # noqa: E402
from gptailor.evaluation.meter import Meter, Placement  # noqa: E402
from gptailor.evaluation.objectives.base import Forward  # noqa: E402
from gptailor.evaluation.scores import Score  # noqa: E402
from gptailor.evaluation.space_trials import Trials, opened  # noqa: E402
from gptailor.lang.parse import read_objective  # noqa: E402
from gptailor.plan.plan import Plan  # noqa: E402
from gptailor.searching.space.space import space_of  # noqa: E402
from gptailor.searching.starts.compositions import wholes  # noqa: E402

ADAPTERS: Final = {"math": "arithmetic", "chat": "conversation", "code": "python"}
SAMPLES: Final = 6
"""Samples of a source."""
PROMPT, TOKENS = 9, 18
"""Given tokens of a sample, and all its tokens; the model predicts the others."""
TOGETHER: Final = 12
"""The number of cuts that run their hidden states as one batch."""
ROWS: Final = 16
"""Rows of logits converted to float32 at once."""
SOURCES: Final[Mapping[str, tuple[str, str]]] = {
    "general": ("text/wikitext2_valid.txt", "text/c4_demo.jsonl"),
    "maths": ("math/gsm8k_train.jsonl", "math/svamp.jsonl"),
    "code": ("", "code/mbpp.jsonl"),
}
"""The files of a domain for the search, and held out; the standard library has no file."""
FIELDS: Final = ("question", "context", "text", "code", "answer")
"""The fields of a row's text, in order."""


def sources(data: Path | None) -> Mapping[str, tuple[Sequence[str], Sequence[str]]]:
    """Return the texts of each domain: for the search, and held out."""
    if data is None:
        return domains()
    return {
        name: (_texts(data / seen) if seen else code()[0], _texts(data / held))
        for name, (seen, held) in SOURCES.items()
    }


def _texts(file: Path) -> list[str]:
    if file.suffix != ".jsonl":
        return [text for side in general(file) for text in side]
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return ["\n".join(str(row[field]) for field in FIELDS if field in row) for row in rows]


def rows(
    texts: Sequence[str], name: str, tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, str]]:
    """Yield rows of a prompt and a response, each from a text of its own."""
    order = list(texts)
    random.Random(name).shuffle(order)
    count = 0
    for text in order:
        tokens = tokenizer.encode(text[: 20 * TOKENS].strip())
        pieces = [str(tokenizer.decode([token])) for token in tokens[:TOKENS]]
        cuts = [at for at in range(PROMPT, len(pieces)) if pieces[at][:1].isspace()]
        if len(pieces) == TOKENS and cuts:
            yield {"prompt": "".join(pieces[: cuts[0]]), "response": "".join(pieces[cuts[0] :])}
            count += 1
        if count == SAMPLES:
            return
    raise ValueError(f"{name}: expected {SAMPLES} texts of {TOKENS} tokens, got {count}")


def write_samples(folder: Path, model: Path, data: Path | None) -> list[Path]:
    """Write a file for each domain and source, the search's sources first."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    files = []
    for side, kind in enumerate(("search", "held")):
        for name, texts in sources(data).items():
            file = folder / f"{kind}-{name}.jsonl"
            found = rows(texts[side], file.stem, tokenizer)
            file.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
            files.append(file)
    return files


# ---------------------------------------------------------------------------------------- the plans


def models_text(model: Path) -> list[str]:
    """Return the statements that name the base and the fine-tunes."""
    family = ROOT / "examples" / "family"
    lines = [f"model base = {json.dumps(str(model.resolve()))}"]
    return lines + [
        f"model {name} = base + {json.dumps(str(family / ADAPTERS[name]))}" for name in MODELS
    ]


def closed(model: Path, recipe: Sequence[float], cut: Sequence[int]) -> Plan:
    """Return the plan of a recipe and a cut."""
    weights = ", ".join(map(str, recipe))
    lines = ["tailor 1", *models_text(model)]
    lines.append(f"whole from {', '.join(MODELS)} by task_arithmetic(weight=({weights}))")
    lines += ["drop " + ", ".join(f"L{layer}" for layer in cut)] if cut else []
    return gptailor.loads("\n".join(lines) + "\n")


class Samples:
    """The samples of all sources as one batch, and gptailor's own trials on them."""

    def __init__(
        self, folder: Path, model: Path, data: Path | None, weights: Sequence[Sequence[float]]
    ) -> None:
        self.model, self.weights = model, weights
        files = write_samples(folder, model, data)
        self.open = gptailor.loads(space_text(models_text(model), weights))
        bound, models, _ = opened(self.open)
        self.trials = Trials(
            bound,
            models,
            objectives=[read_objective(f'nll("{file.resolve()}")') for file in files],
            meter=Meter(Placement(dtype=torch.bfloat16)),
            fidelity=(1, SAMPLES),
        )
        read = [one.requests(SAMPLES) for one in self.trials.seen if isinstance(one, Forward)]
        requests = [read[source][sample] for source, sample in _turns()]
        longest = max(len(request.tokens) for request in requests)
        self.tokens = torch.zeros((len(requests), longest), dtype=torch.long)  # padded at the end
        self.predicted = torch.zeros_like(self.tokens, dtype=torch.bool)
        for row, request in enumerate(requests):
            self.tokens[row, : len(request.tokens)] = torch.tensor(request.tokens)
            self.predicted[row, request.first : len(request.tokens)] = True
        self.counts = self.predicted.sum(1).numpy()

    def scores(self, plan: Plan) -> np.ndarray:
        """Return a plan's nats a token by gptailor's own trial, `[sample]`."""
        [(_, outcomes)] = self.trials.run([plan], SAMPLES, stage="bare")
        each = [outcome.each for outcome in outcomes if isinstance(outcome, Score)]
        sums = [[] if one is None else one.sums for one in each]
        return np.array([sums[source][sample] for source, sample in _turns()]) / self.counts

    def influence(self) -> dict[str, tuple[float, ...]]:
        """Return the block influence of each whole model and merge, by its name."""
        space = space_of(self.open, LAYERS)
        return {
            name: self.trials.block_influence(plan, SAMPLES) for name, plan in wholes(space).items()
        }


def _turns() -> list[tuple[int, int]]:
    """Return sources and samples: a sample of each domain, and so on; the search's come first."""
    of_side = range(len(SOURCES))
    return [
        (side * len(of_side) + domain, sample)
        for side in (0, 1)
        for sample in range(SAMPLES)
        for domain in of_side
    ]


@torch.no_grad()
def all_cuts(model: PreTrainedModel, samples: Samples) -> np.ndarray:
    """Return the nats a token of a model uncut and with each cut, `[1 + cut, sample]`.

    Cuts that begin alike share hidden states, and all cuts run through a layer as one batch.
    """
    body: Any = model.model
    start = body.embed_tokens(samples.tokens)
    places = torch.arange(samples.tokens.shape[1])[None]
    rotations = body.rotary_emb(start, places)
    states: dict[tuple[int, ...], Tensor] = {(): start}
    for number, layer in enumerate(body.layers):
        dropped = {}
        if FIRST <= number <= LAST:
            dropped = {(*cut, number): state for cut, state in states.items() if len(cut) < DROPPED}
            possible = range(DROPPED - (LAST - number), DROPPED + 1)
            states = {
                cut: state for cut, state in states.items() if not cut or len(cut) in possible
            }
        cuts = list(states)
        for at in range(0, len(cuts), TOGETHER):
            some = cuts[at : at + TOGETHER]
            hidden = torch.cat([states[cut] for cut in some])
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotations)
            states.update(zip(some, hidden.split(len(start)), strict=True))
        states |= dropped
    ordered = [states[cut] for cut in ((), *CUTS)]
    groups = [ordered[at : at + TOGETHER] for at in range(0, len(ordered), TOGETHER)]
    return np.concatenate([losses(model, group, samples) for group in groups])


def losses(model: PreTrainedModel, states: Sequence[Tensor], samples: Samples) -> np.ndarray:
    """Return nats a token from the hidden states after the last layer, `[state, sample]`."""
    body: Any = model.model
    wanted = samples.predicted[:, 1:]
    targets = samples.tokens[:, 1:][wanted].repeat(len(states)).split(ROWS)
    hidden = torch.cat([state[:, :-1][wanted] for state in states])
    logits = model.lm_head(body.norm(hidden)).split(ROWS)
    nats = torch.cat(
        [
            torch.nn.functional.cross_entropy(some.float(), of, reduction="none")
            for some, of in zip(logits, targets, strict=True)
        ]
    )
    sums = torch.zeros(len(states), len(samples.tokens), dtype=torch.float64)
    sums.index_add_(1, wanted.nonzero()[:, 0], nats.double().reshape(len(states), -1))
    return sums.numpy() / samples.counts


def measure(samples: Samples, folder: Path) -> Table:
    """Measure all recipes of the models' weights, and return their table."""
    parts, weights = [], samples.weights
    for recipe in product(*weights):
        kept = folder / f"recipe-{'-'.join(map(str, recipe))}.npy"
        if not kept.exists():
            begun = time.perf_counter(), time.process_time()
            trials, plan = samples.trials, closed(samples.model, recipe, ())
            model = trials.meter.stitch(trials.models, plan).model
            found = all_cuts(model, samples)
            np.save(kept, found)
            wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
            print(f"{recipe}: {found[0].mean():.4f} uncut, {wall:.0f} s ({cpu:.0f} s of the CPU)",
                  flush=True)  # fmt: skip
        parts.append(np.load(kept))
    stacked = np.stack(parts)
    losses = stacked.reshape(*map(len, weights), *stacked.shape[1:])
    return Table(losses, samples.counts, weights, samples.influence())


def check(samples: Samples, table: Table, count: int) -> None:
    """Compare the table with gptailor's own trials of some plans."""
    chance = random.Random(0)
    for _ in range(count):
        recipe = tuple(map(chance.choice, table.weights))
        cut = chance.choice(CUTS)
        found, stored = samples.scores(closed(samples.model, recipe, cut)), table.at(recipe, cut)
        print(
            f"{recipe} without {cut}: {stored.mean():.4f} in the table, {found.mean():.4f} by a "
            f"trial; a sample differs by {np.abs(found - stored).max():.4f} at most"
        )


def parsed(arguments: Sequence[str]) -> Any:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=ROOT / ".table", metavar="DIR", help="samples and losses")
    add_model(parser)
    add("--data", type=Path, metavar="DIR", help="public texts (the project's own)")
    for name in MODELS:
        add(f"--{name}", type=float, nargs="+", default=[0.0, 0.3, 0.6], metavar="WEIGHT",
            help=f"measured weights of '{name}' (0 0.3 0.6)")  # fmt: skip
    add("--check", type=Path, metavar="TABLE", help="compare a table with plans scored alone")
    add("-o", "--output", type=Path, default=FILE, metavar="TABLE", help="the table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Measure the table, or check it."""
    options = parsed(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    model_folder(options.model)
    options.folder.mkdir(parents=True, exist_ok=True)
    weights = [getattr(options, name) for name in MODELS]
    samples = Samples(options.folder, options.model, options.data, weights)
    if options.check:
        check(samples, Table.read(options.check), 6)
    else:
        measure(samples, options.folder).write(options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
