"""Measure the share of a cut's loss that a bridge recovers, compared with ReplaceMe's own scheme.

    python benchmarks/bridge.py --family              # SmolLM2 and its fine-tunes, four cuts each
    python benchmarks/bridge.py --model /models/7b --calibration some.jsonl \\
        --held-out web=other.jsonl --device cuda --dtype bfloat16

The cuts are ReplaceMe's window, the layers with the lowest block influence (ShortGPT), and random
layers, or the cuts of `--drop`. gptailor's command line compiles each cut bare and with
`bridge on`. ReplaceMe's scheme, written here from its paper (arXiv 2505.02819), makes a model of
each window by least squares without a ridge, and with `--cosine` also by Adam. All use the same
calibration text. `gptailor eval` measures nats a token on held-out texts. The recovered share is
(bare − bridged) / (bare − uncut), and the aim is 40 %. Seconds and peak memory are of whole
processes.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.bridge_texts import EXAMPLES, write_texts
from benchmarks.measured import Failed, Run, run
from benchmarks.models import add_model, model_folder

HERE = Path(__file__).parent
AIM = 0.4
"""Share of a cut's loss to recover on text of every domain."""
ENOUGH = 8192
"""Tokens for the choice of cuts."""
FAMILY = ("arithmetic", "python", "conversation")


@dataclass(frozen=True)
class Cut:
    """Dropped layers, and the reason for their choice."""

    name: str
    layers: tuple[int, ...]

    @property
    def shown(self) -> str:
        """Return the layers as a plan writes them."""
        first, last = self.layers[0], self.layers[-1]
        return f"L{first}..L{last}" if self.window else ", ".join(f"L{one}" for one in self.layers)

    @property
    def window(self) -> bool:
        """Return whether the layers are neighbours and follow another layer."""
        first, last = self.layers[0], self.layers[-1]
        return first > 0 and last - first + 1 == len(self.layers)


@dataclass(frozen=True)
class Made:
    """A model, its cost, and its loss by domain."""

    name: str
    took: Run
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Bench:
    """The models, texts and device of a comparison."""

    folder: Path
    given: argparse.Namespace
    calibration: Path
    held_out: Mapping[str, Path]

    @property
    def log(self) -> Path:
        """Return the path of the last command's output."""
        return self.folder / "log"

    def compiled(self, base: Path, statements: Sequence[str], out: Path) -> Run:
        """Compile a plan of a base."""
        plan = self.folder / f"{out.name}.tailor"
        quoted = json.dumps(str(base.resolve()))
        plan.write_text("\n".join(["tailor 1", f"model base = {quoted}", *statements, ""]))
        command = [self.given.gptailor, "compile", str(plan), "-o", str(out)]
        return run([*command, "--device", self.given.device], self.log)

    def peer(self, *arguments: str, tokens: int) -> Run:
        """Run ReplaceMe's scheme, or compute the distances for the choice of cuts."""
        command = [sys.executable, str(HERE / "bridge_peer.py"), *arguments]
        more = ["--tokens", str(tokens), "--device", self.given.device]
        return run([*command, *more], self.log)

    def said(self) -> Any:
        """Return the last command's JSON, without any progress before it."""
        text = self.log.read_text(encoding="utf-8")
        return json.JSONDecoder().raw_decode(text[text.index("{") :])[0]

    def losses(self, model: Path) -> dict[str, float]:
        """Return nats a token by domain."""
        wishes = [f"nll({json.dumps(str(file))})" for file in self.held_out.values()]
        flags = [flag for wish in wishes for flag in ("--objective", wish)]
        kind = ["--dtype", self.given.dtype] if self.given.dtype else []
        command = [self.given.gptailor, "eval", str(model), *flags, *kind, "--no-speed"]
        run([*command, "--format", "json", "--device", self.given.device], self.log)
        found = self.said()["results"]
        return {name: one["score"] for name, one in zip(self.held_out, found, strict=True)}

    @cached_property
    def bridge(self) -> str:
        """Return the measured statement."""
        ridge = "" if self.given.ridge is None else f" ridge {self.given.ridge!r}"
        return f"bridge on {json.dumps(str(self.calibration))} tokens {self.given.tokens}{ridge}"


def cuts(bench: Bench, base: Path) -> list[Cut]:
    """Return the cuts of the command line, or the chosen and random ones."""
    if bench.given.drop:
        return [Cut("given", drop) for drop in bench.given.drop]
    count = bench.given.layers
    tokens = min(bench.given.tokens, ENOUGH)
    shared = [str(base), str(bench.calibration), "--count", str(count)]
    bench.peer("influences", *shared, tokens=tokens)
    found = bench.said()
    layers, windows = found["layers"], found["windows"]
    first = min(range(1, len(windows)), key=windows.__getitem__)
    chosen = [Cut("window", tuple(range(first, first + count)))]
    inner = sorted(range(1, len(layers)), key=layers.__getitem__)
    chosen.append(Cut("influence", tuple(sorted(inner[:count]))))
    for seed in range(bench.given.random):
        drawn = random.Random(seed).sample(range(1, len(layers)), count)
        chosen.append(Cut(f"random {seed}", tuple(sorted(drawn))))
    return chosen


def made(bench: Bench, base: Path, cut: Cut) -> Iterator[Made]:
    """Yield a cut's models: bare, bridged, the peer's. Remove each after its measurement."""
    out = bench.folder / "out"
    drop = f"drop {cut.shown}"
    for name, statements in (("bare", [drop]), ("bridge", [drop, bench.bridge])):
        took = bench.compiled(base, statements, out)
        yield Made(name, took, bench.losses(out))
        shutil.rmtree(out)
    fits = ("squares", "cosine") if bench.given.cosine else ("squares",)
    for by in fits if cut.window else ():
        shared = ["replace", str(base), str(bench.calibration), str(out), "--by", by]
        where = ["--first", str(cut.layers[0]), "--count", str(len(cut.layers))]
        took = bench.peer(*shared, *where, tokens=bench.given.tokens)
        yield Made(f"ReplaceMe, {by}", took, bench.losses(out))
        shutil.rmtree(out)


def rows(name: str, models: Iterable[Made], uncut: Mapping[str, float]) -> Iterator[str]:
    """Yield a line of the table for each model of a cut, the bare one first."""
    bare: Mapping[str, float] | None = None
    for one in models:
        cells, met = [f"{one.losses[domain]:.3f}" for domain in uncut], ""
        if bare is None:
            bare = one.losses
        else:
            shares = [share(one.losses[domain], bare[domain], uncut[domain]) for domain in uncut]
            cells = [f"{cell} ({100 * w:.0f} %)" for cell, w in zip(cells, shares, strict=True)]
            met = " ✓" if min(shares) >= AIM else " ✗"
        yield line(name, one.name + met, *cells, f"{one.took.seconds:.1f} s", _size(one.took.peak))


def share(loss: float, bare: float, uncut: float) -> float:
    """Return the recovered share of a cut's loss, or 0 if the cut has no loss."""
    return (bare - loss) / (bare - uncut) if bare > uncut else 0.0


def line(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def _size(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def bases(bench: Bench) -> Iterator[Path]:
    """Return the folders of the model and its fine-tunes, compiled."""
    model: Path = bench.given.model
    yield model
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    last = config["num_hidden_layers"] - 1
    for name in FAMILY if bench.given.family else ():
        adapter = json.dumps(str(EXAMPLES / "family" / name))
        statements = [f"model tuned = base + {adapter}", f"L0..L{last} from tuned"]
        bench.compiled(model, statements, bench.folder / name)
        yield bench.folder / name


def compare(bench: Bench) -> None:
    """Print the table, each line as soon as it is known."""
    print(f"{bench.bridge.replace(str(bench.calibration), bench.calibration.name)}\n")
    heads = ("model and cut", "", *bench.held_out, "time", "peak memory")
    print(line(*heads), line(*["---"] * len(heads)), sep="\n", flush=True)
    for base in bases(bench):
        uncut = bench.losses(base)
        cells = (f"{loss:.3f}" for loss in uncut.values())
        print(line(base.name, "uncut", *cells, "", ""), flush=True)
        for cut in cuts(bench, base):
            name = f"{base.name}, {cut.name}: {cut.shown}"
            for one in rows(name, made(bench, base, cut), uncut):
                print(one, flush=True)


def layers(text: str) -> tuple[int, ...]:
    """Return `L20..L26` or `L3,L12..L14` as numbers in ascending order."""
    found: list[int] = []
    for part in text.replace("L", "").split(","):
        first, _, last = part.partition("..")
        found += range(int(first), int(last or first) + 1)  # argparse says what isn't a number
    if not found or sorted(set(found)) != found:
        raise argparse.ArgumentTypeError(f"{text} is no rising list of layers")
    return tuple(found)


def named(text: str) -> tuple[str, Path]:
    """Split `NAME=FILE`."""
    name, equals, file = text.partition("=")
    if not equals or not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no NAME=FILE with a file that is there")
    return name, Path(file).resolve()


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_model(parser)
    add("--family", action="store_true", help="add the demo's three fine-tunes of SmolLM2")
    add("--layers", type=int, default=7, metavar="N", help="layers of each chosen cut (7)")
    add("--random", type=int, default=2, metavar="N", help="random cuts (2)")
    add("--drop", type=layers, action="append", metavar="LAYERS",
        help="a cut such as L20..L26 or L3,L12..L14; repeatable")  # fmt: skip
    add("--tokens", type=int, default=65536, metavar="N", help="calibration tokens (65536)")
    add("--ridge", type=float, metavar="R", help="ridge of bridges (the default)")
    add("--cosine", action="store_true", help="add ReplaceMe's fit by Adam")
    add("--calibration", type=Path, metavar="FILE",
        help="JSON Lines with 'text'; needs --held-out (texts of the project)")  # fmt: skip
    add("--held-out", type=named, action="append", metavar="NAME=FILE",
        help="a held-out domain; repeatable")  # fmt: skip
    add("--device", default="cpu", help="device for fits and losses (cpu)")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="dtype of the losses")
    add(
        "--folder",
        type=Path,
        metavar="DIR",
        help="folder for files (a temporary one)",
    )
    add("--gptailor", default=str(Path(sys.executable).parent / "gptailor"), metavar="COMMAND",
        help="gptailor (the one beside this Python)")  # fmt: skip
    given = parser.parse_args(arguments)
    if bool(given.calibration) != bool(given.held_out):
        parser.error("--calibration and --held-out are given together")
    if given.calibration and not given.calibration.is_file():
        parser.error(f"--calibration: {given.calibration} is no file")
    return given


def main(given: argparse.Namespace) -> None:
    """Compare all cuts in a temporary folder."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="gptailor-bench-", dir=given.folder) as folder:
        texts = Path(folder) / "texts"
        texts.mkdir()
        try:
            model_folder(given.model)
            calibration, held_out = given.calibration, dict(given.held_out or ())
            if calibration is None:
                calibration, held_out = write_texts(texts)
            compare(Bench(Path(folder), given, calibration.resolve(), held_out))
        except Failed as failure:
            sys.exit(str(failure))


if __name__ == "__main__":
    main(parsed(sys.argv[1:]))
