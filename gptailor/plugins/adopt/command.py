"""The command `family`: the draft and the proof of an unknown architecture."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptailor.cli.options import say

if TYPE_CHECKING:
    from gptailor.checkpoint.families.family import Family, Proof


@click.command("family", short_help="Learn a new architecture from transformers, and prove it.")
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="The file to write. Default: TYPE.family.json in the current "
              "folder.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing file.")
def family_command(model: str, output: Path | None, force: bool) -> None:
    """Draft the family of MODEL, a folder or a Hub id, from transformers' own class, and prove it.

    The command uses a tiny random model of the same configuration. On this model it finds the
    layers, the parts that move with the layers, and the role of each branch of a layer. The proof
    moves the tiny model's layers on disk. It compares the outputs of the new models with the
    original layers, run by hand. The command needs no weights, and runs no code of the model.

    Commands read the file of --family FILE, and files in ~/.config/gptailor/families, like
    gptailor's own families. If the proof fails, the exit code is 1. The file then contains the
    reason, and is never used.
    """
    from gptailor.checkpoint.families import FAMILY_OF
    from gptailor.checkpoint.families.family_file import FAMILY_SUFFIX, family_text
    from gptailor.checkpoint.files import CheckpointError
    from gptailor.checkpoint.write.output_file import refuse_output, write_whole
    from gptailor.plugins.adopt.adopt import adopt

    if output is not None:
        refuse_output(output, force=force)
    family = adopt(model)
    path = output or Path(family.name + FAMILY_SUFFIX)
    refuse_output(path, force=force)
    if not os.access(path.parent, os.W_OK):
        raise CheckpointError("C303", "cannot be written there", path)
    write_whole(Path(os.path.realpath(path)), family_text(family).encode(), path)
    assert family.proof is not None, "drafted with one"
    for line in _result_lines(family, family.proof, path):
        say(line)
    if family.proof.failures:
        sys.exit(1)
    if any(kind in FAMILY_OF for kind in family.model_types):
        say("the release has a family of this type; to use this one, give --family")


def _result_lines(family: "Family", proof: "Proof", path: Path) -> list[str]:
    """Return the result for a draft, in lines."""
    cases, failures = proof.cases, proof.failures
    if failures:
        count = f"{len(failures)} of {len(cases)} cases fail"
        lines = [f"{path}: a draft of '{family.name}' that is not used: {count}"]
        return lines + [f"  {case.name}: {case.failure}" for case in failures[:5]]
    far = max((case.difference for case in cases if case.difference is not None), default=0.0)
    tried = sum(case.note is None for case in cases)
    off = f"logits are at most {far:.1e} off"
    lines = [f"{path}: layers of '{family.name}' can be moved, proven in {tried} cases; {off}"]
    if family.moved:
        lines.append(f"  moves with the layers: {', '.join(sorted(family.moved))}")
    for what, why in family.refused:
        if why is not None:
            lines.append(f"  no {what}: {why}")
    for case in cases:
        if case.note is not None:
            lines.append(f"  not tried: {case.name}: {case.note}")
    return lines
