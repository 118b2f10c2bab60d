"""The command `family`: an unknown architecture, drafted and proven."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptailor.cli.options import say

if TYPE_CHECKING:
    from gptailor.checkpoint.families.family_file import FamilyFile


@click.command("family", short_help="Learn a new architecture from transformers, and prove it.")
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="The file to write. Without it: TYPE.family.json here.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def family_command(model: str, output: Path | None, force: bool) -> None:
    """Draft the family of MODEL, a folder or a Hub id, from transformers' own class, and prove it.

    What layers are, what moves with them and which of a layer's branches is which is found out on
    a tiny random model of the same configuration. The proof moves its layers on disk, and compares
    what the new models compute with the original's layers, run by hand. No weights are needed, and
    no code beside them is run.

    A file beside a plan, or in ~/.config/gptailor/families, is then read as the release's own
    families are; --family FILE names one. Ends with 1 if the proof fails: the file says why, and is
    never used.
    """
    from gptailor.checkpoint.families import FAMILY_OF
    from gptailor.checkpoint.families.lookup import FAMILY_SUFFIX
    from gptailor.checkpoint.files import CheckpointError
    from gptailor.checkpoint.write.output_file import write_whole
    from gptailor.prove.adopt import adopt

    if output is not None:
        _check_free(output, force)
    family = adopt(model)
    path = output or Path(family.name + FAMILY_SUFFIX)
    _check_free(path, force)
    if not os.access(path.parent, os.W_OK):
        raise CheckpointError("C303", "cannot be written there", path)
    write_whole(Path(os.path.realpath(path)), family.text().encode(), path)
    for line in _result_lines(family, path):
        say(line)
    if family.proof.failures:
        sys.exit(1)
    if any(kind in FAMILY_OF for kind in family.model_types):
        say("the release has a family of this type, which goes first; --family takes this one")


def _check_free(path: Path, force: bool) -> None:
    from gptailor.checkpoint.files import CheckpointError

    if os.path.lexists(path) and not path.is_file():
        raise CheckpointError("C302", "is not a regular file", path)
    if os.path.lexists(path) and not force:
        raise CheckpointError("C301", "is there already", path, "--force replaces it")


def _result_lines(family: "FamilyFile", path: Path) -> list[str]:
    """Return the result for a draft, in lines."""
    cases, failures = family.proof.cases, family.proof.failures
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
