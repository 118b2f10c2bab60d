"""mergekit as a peer of the benchmarks: its command line in its own environment."""

import argparse
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "0.1.5"
"""The release for the benchmarks' remarks."""


def add_peer_option(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the option `--mergekit PYTHON` to a parser."""
    parser.add_argument(
        "--mergekit",
        type=Path,
        required=required,
        metavar="PYTHON",
        help=f"the Python of an environment with mergekit {VERSION}",
    )


def command(python: Path, plan: Path, out: Path, *options: str) -> list[str]:
    """Return the command that merges a configuration into a folder without output."""
    return [str(python.parent / "mergekit-yaml"), str(plan), str(out), "--quiet", *options]


def run_mergekit(
    python: Path, plan: Path, out: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run mergekit's command line in the folder."""
    return subprocess.run(
        command(python, plan, out), capture_output=True, text=True, check=False, cwd=folder
    )


def merge(python: Path, plan: Path, out: Path, folder: Path) -> None:
    """Merge a configuration, and exit if mergekit fails."""
    done = run_mergekit(python, plan, out, folder)
    if done.returncode:
        raise SystemExit(f"mergekit failed on {plan.name}:\n{done.stderr[-2000:]}")


def tensors_of(folder: Path) -> "dict[str, Tensor]":
    """Return all tensors of a model's folder."""
    from safetensors.torch import load_file

    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
