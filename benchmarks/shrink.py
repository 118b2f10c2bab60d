"""Judge the plans of `gptailor shrink` on texts of other sources than those that it chose by.

    python benchmarks/shrink.py MODEL --to 150MB --to 100MB --to 75MB --faster 1.25 \\
        --text prose.jsonl questions.jsonl --judge other_prose.jsonl maths.jsonl -o FOLDER

For each goal `shrink` runs on the texts. Then each row of its table is written and measured on the
judging texts, as many samples of each, and so are the rows that `shrink` only predicted. Losses are
differences from the uncut model in bits a byte, sample by sample. The rival in each table is the
whole model in fewer bits; `--types` adds a table of it alone.

With `--data` each row also answers sums and requests for Python functions, greedily and as many as
`--problems`: the shares of right sums and of answers with a function.

`--rescale` first writes a copy of the model with other scales of its channels, in pairs that
cancel: the copy computes the same, but its weights are not the rounded ones of a quantised file,
which the same type would hold without any loss. Finished measurements are kept in the user's cache.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402 (the folder above is found first)
from jaxtyping import Float  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import heal_texts  # noqa: E402
from benchmarks.heal_answers import Answers, answer_cell, answers_of  # noqa: E402
from benchmarks.models import MODELS, model_folder, named_folder  # noqa: E402
from benchmarks.search_texts import rows_of  # noqa: E402
from gptailor.checkpoint.formats.gguf.kinds import is_weighted  # noqa: E402
from gptailor.evaluation.objectives.tokens import tokenizer_model, tokenizer_of  # noqa: E402
from gptailor.evaluation.scores import PerSample, paired_difference  # noqa: E402
from gptailor.plugins.shrink.candidates import Drafts, ShrinkCandidate  # noqa: E402
from gptailor.plugins.shrink.comparison import EFFORTS, ShrinkRow  # noqa: E402
from gptailor.plugins.shrink.losses import Losses  # noqa: E402
from gptailor.plugins.shrink.results import loss_in_words  # noqa: E402
from gptailor.plugins.shrink.shrink import effort_of, shrink  # noqa: E402
from gptailor.plugins.shrink.texts import ShrinkTexts  # noqa: E402
from gptailor.reporting.measure import Estimate  # noqa: E402
from gptailor.reporting.quantities import (  # noqa: E402
    bytes_from_words,
    bytes_in_words,
    millions,
    with_error,
)

PIECE = 1000
"""Characters of a judging sample."""
SPREAD = 1.25
"""The largest factor of a rescaled channel; the least is its inverse."""
SPOKEN = {"sums": "sums", "functions": "MBPP written"}
"""Measures of generated answers by their titles."""


def rescaled(model: Path, folder: Path) -> Path:
    """Write a copy of a Llama-like model or Gemma 3, with channels of other scales."""
    if folder.exists():
        return folder
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((model / "config.json").read_text())
    shift = 1.0 if config["model_type"].startswith("gemma") else 0.0
    second = "pre_feedforward_layernorm" if shift else "post_attention_layernorm"
    repeats = config["num_attention_heads"] // config["num_key_value_heads"]
    tensors: dict[str, Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors |= {name: tensor.float() for name, tensor in load_file(file).items()}
    draw = torch.Generator().manual_seed(0)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            (second, ("mlp.gate_proj", "mlp.up_proj")),
        ):
            weight = tensors[f"{layer}{norm}.weight"]
            scale = _scales(len(weight), draw)
            tensors[f"{layer}{norm}.weight"] = (weight + shift) * scale - shift
            for reader in readers:
                tensors[f"{layer}{reader}.weight"] /= scale
        up, down = f"{layer}mlp.up_proj.weight", f"{layer}mlp.down_proj.weight"
        scale = _scales(len(tensors[up]), draw)
        tensors[up] *= scale[:, None]
        tensors[down] /= scale
        value, out = f"{layer}self_attn.v_proj.weight", f"{layer}self_attn.o_proj.weight"
        scale = _scales(len(tensors[value]), draw)
        tensors[value] *= scale[:, None]
        heads = scale.reshape(config["num_key_value_heads"], -1)
        tensors[out] /= heads.repeat_interleave(repeats, 0).flatten()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config["dtype"] = "float32"
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def _scales(count: int, draw: torch.Generator) -> Float[Tensor, " count"]:
    return ((2 * torch.rand(count, generator=draw) - 1) * math.log(SPREAD)).exp()


def judging_text(files: Sequence[Path], samples: int, file: Path) -> int:
    """Write samples of each source by turns, and return their number."""
    sources = [list(_pieces(each))[:samples] for each in files]
    rows = [row for turn in zip(*sources, strict=True) for row in turn]
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return len(rows)


def _pieces(file: Path) -> Iterator[str]:
    for line in file.read_text("utf-8").splitlines():
        text = json.loads(line)["text"]
        if len(text) >= PIECE // 4:
            yield text[:PIECE]


class Speaker:
    """Generates the answers of rows to problems, and keeps them."""

    def __init__(
        self, drafts: Drafts, judge: Losses, problems: Sequence[Mapping[str, Any]]
    ) -> None:
        self.drafts, self.judge, self.problems = drafts, judge, problems
        self.known: dict[ShrinkCandidate, Answers] = {}

    def of(self, candidate: ShrinkCandidate) -> Answers:
        """Return the answers of a candidate as it is written."""
        if candidate not in self.known:
            with self.judge.target(self.drafts, candidate) as (meter, target):
                live = meter.stitch(target.prepared.models, target.prepared.plan)
                tokenizer = tokenizer_of(tokenizer_model(target.prepared))
                self.known[candidate] = answers_of(live.model, tokenizer, self.problems)
        return self.known[candidate]

    def cells(self, candidate: ShrinkCandidate) -> list[str]:
        """Return the shares of right sums and of written functions, with their errors."""
        if not self.problems:
            return []
        return [answer_cell([self.of(candidate)], measure) for measure in SPOKEN.values()]

    @property
    def titles(self) -> list[str]:
        """The titles of the cells."""
        return list(SPOKEN) if self.problems else []


def whole_rows(speaker: Speaker, kinds: Sequence[str]) -> list[ShrinkRow]:
    """Return rows of the whole model in some types, without and with an importance matrix."""
    drafts = speaker.drafts
    files = [
        ShrinkCandidate(kind=kind.upper(), weighted=weighted)
        for kind in kinds
        for weighted in (False, True)
        if not weighted or is_weighted(kind.upper())
    ]
    speed = speaker.judge.llama_ratios(drafts, drafts, files)
    costs = [(each, drafts.cost(each)) for each in files]
    return [ShrinkRow(each, cost, True, llama=speed.get(each)) for each, cost in costs if cost]


def spoken_problems(data: Path, model: Path, count: int, folder: Path) -> list[dict[str, Any]]:
    """Return the sums and the requests for functions."""
    amounts = heal_texts.Amounts(1, count, 0)
    rows = rows_of(heal_texts.write_files(folder, model, data, amounts).problems)
    return [row for row in rows if row["task"] in ("sums", "MBPP")]


class Judged:
    """The rows of one goal, each with its loss on the judging texts, by source and as a mean."""

    def __init__(
        self,
        rows: Sequence[ShrinkRow],
        chosen: ShrinkRow | None,
        speaker: Speaker,
        sources: int,
    ) -> None:
        self.rows, self.chosen, self.speaker = rows, chosen, speaker
        drafts, judge = speaker.drafts, speaker.judge
        uncut = judge.of(drafts, ShrinkCandidate())
        assert isinstance(uncut, PerSample), uncut
        self.losses: dict[ShrinkCandidate, list[Estimate]] = {}
        for row in rows:
            found = judge.of(drafts, row.candidate)
            if isinstance(found, PerSample):
                self.losses[row.candidate] = [
                    paired_difference(_part(found, n, sources), _part(uncut, n, sources))
                    for n in range(sources)
                ]

    def mean(self, row: ShrinkRow) -> Estimate | None:
        """Return the mean over the sources, with its error."""
        if (found := self.losses.get(row.candidate)) is None:
            return None
        error = math.sqrt(sum(each.stderr**2 for each in found)) / len(found)
        return Estimate(sum(each.value for each in found) / len(found), error)

    def lines(self, names: Sequence[str]) -> Iterator[str]:
        """Yield a table of the rows."""
        head = ["plan", "bytes", "parameters", "own text", "other sources", *names]
        head += [*self.speaker.titles, "llama.cpp"]
        yield "| " + " | ".join(head) + " |"
        yield "|---|" + "--:|" * (len(head) - 1)
        for row in self.rows:
            mean, parts = self.mean(row), self.losses.get(row.candidate, [])
            name = row.candidate.words + ("" if row.met else " (misses the goal)")
            cells = [
                f"**{name}**" if row is self.chosen else name,
                bytes_in_words(row.cost.bytes),
                millions(row.cost.parameters),
                loss_in_words(row),
                "?" if mean is None else with_error(*mean),
                *([f"{part.value:.3f}" for part in parts] or ["?"] * len(names)),
                *(self.speaker.cells(row.candidate) if parts else ["?"] * len(self.speaker.titles)),
                f"×{row.llama[1]:.2f}" if row.llama else "",
            ]
            yield "| " + " | ".join(cells) + " |"

    def verdict(self) -> str:
        """Return how the chosen row compares with the others that meet the goal."""
        chosen = self.chosen
        if chosen is None or (own := self.mean(chosen)) is None:
            return "nothing was chosen"
        words = []
        others = [row for row in self.rows if row.met and row is not chosen]
        pairs = [(row, mean) for row in others if (mean := self.mean(row)) is not None]
        for title, rows in (
            ("best other row", pairs),
            ("whole model", [p for p in pairs if not p[0].candidate.cuts]),
        ):
            if rows:
                row, mean = min(rows, key=lambda pair: pair[1].value)
                gap = Estimate(own.value - mean.value, math.hypot(own.stderr, mean.stderr))
                words.append(f"beyond the {title} ({row.candidate.words}): {with_error(*gap)}")
        return "; ".join(words) or "no other row meets the goal"


def _part(each: PerSample, number: int, sources: int) -> PerSample:
    return PerSample(each.sums[number::sources], each.counts[number::sources])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `shrink` for each goal, judge its rows, and print a table for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=named_folder, help=f"{', '.join(MODELS)} or a folder")
    parser.add_argument("--to", action="append", default=[], help="a goal of bytes; repeatable")
    parser.add_argument("--faster", action="append", default=[], type=float)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--judge", nargs="+", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=12, help="of each judging text")
    parser.add_argument("--types", nargs="+", default=[], help="first a table of the whole model")
    parser.add_argument("--data", type=Path, metavar="DIR", help="public texts with problems")
    parser.add_argument("--problems", type=int, default=40, help="of each kind (40)")
    parser.add_argument("--effort", choices=list(EFFORTS), default="normal")
    parser.add_argument("--rescale", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    given = parser.parse_args(arguments)
    folder = given.output.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    model = model_folder(given.model).absolute()
    if given.rescale:
        model = rescaled(model, folder / f"{model.name}-rescaled")
    judging = folder / "judge.jsonl"
    count = judging_text(given.judge, given.samples, judging)
    texts = ShrinkTexts.of(given.text, EFFORTS[given.effort].calibrated)
    names = texts.write(folder, "judged")
    head = f'tailor 1\nmodel base = "{model}"'
    drafts = Drafts(head, folder, fit=names["fit"], calibration=names["calibration"])
    judge = Losses(judging.name, texts.digest + judging.read_text(), count)
    problems: list[dict[str, Any]] = []
    if given.data:
        problems = spoken_problems(given.data, model, given.problems, folder / "problems")
    speaker = Speaker(drafts, judge, problems)
    if problems:
        cells = zip(speaker.titles, speaker.cells(ShrinkCandidate()), strict=True)
        print("uncut: " + ", ".join(f"{title} {cell}" for title, cell in cells), flush=True)
    sources = [file.stem for file in given.judge]
    if given.types:
        whole = Judged(whole_rows(speaker, given.types), None, speaker, len(sources))
        print("\n" + "\n".join(whole.lines(sources)), flush=True)
    goals: list[Mapping[str, float]] = [{"to": bytes_from_words(size)} for size in given.to]
    goals += [{"faster": times} for times in given.faster]
    for goal in goals:
        name = "-".join(f"{key}-{value}" for key, value in goal.items())
        begun, used = time.monotonic(), time.process_time()
        result = shrink(
            str(model), **goal, text=given.text, effort=effort_of(given.effort),  # type: ignore[arg-type]
            plan=folder / f"{name}.tailor", force=True,
        )  # fmt: skip
        wall, cpu = time.monotonic() - begun, time.process_time() - used
        (folder / f"{name}.json").write_text(result.record())
        judged = Judged(result.rows, result.chosen, speaker, len(sources))
        print(f"\n{result.goal.words}: {wall / 60:.1f} min, {cpu / 60:.1f} CPU min\n")
        print("\n".join(judged.lines(sources)))
        print(f"\n{result.reason}\n{judged.verdict()}", flush=True)
        for file in (*folder.glob("*.gguf"), *folder.glob("*.Modelfile")):
            file.unlink()


if __name__ == "__main__":
    main()
