"""mergekit as the peer of the benchmarks: its command line, run in an environment of its own."""

import argparse
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "0.1.5"
"""The release that the benchmarks' remarks are about."""


def add_peer_option(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Give a command line `--mergekit PYTHON`."""
    parser.add_argument(
        "--mergekit",
        type=Path,
        required=required,
        metavar="PYTHON",
        help=f"the python of an environment that has mergekit {VERSION}",
    )


def command(python: Path, plan: Path, out: Path, *options: str) -> list[str]:
    """What merges a configuration into a folder, in silence."""
    return [str(python.parent / "mergekit-yaml"), str(plan), str(out), "--quiet", *options]


def run_mergekit(
    python: Path, plan: Path, out: Path, folder: Path
) -> subprocess.CompletedProcess[str]:
    """mergekit's command line, its relative paths from the folder."""
    return subprocess.run(
        command(python, plan, out), capture_output=True, text=True, check=False, cwd=folder
    )


def merge(python: Path, plan: Path, out: Path, folder: Path) -> None:
    """The same for a configuration that mergekit must take; it ends this program if not."""
    done = run_mergekit(python, plan, out, folder)
    if done.returncode:
        raise SystemExit(f"mergekit failed on {plan.name}:\n{done.stderr[-2000:]}")


def tensors_of(folder: Path) -> "dict[str, Tensor]":
    """All tensors of a model's folder."""
    from safetensors.torch import load_file

    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
