"""The command `test`: the expectations of plans, for people, for programs and for GitHub."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptailor.checkpoint.files import CheckpointError
from gptailor.cli import options
from gptailor.cli.event_lines import RepairLines, bar_or_lines
from gptailor.plan.faults import PlanError, to_github, to_json

if TYPE_CHECKING:
    from gptailor.evaluation.targets import Target
    from gptailor.plugins.expect.results import ExpectationResult

_EXAMPLE = """
\b
Example, with a report for a CI system:
  gptailor test cut.tailor --samples 64 --junit results.xml
"""


@click.command("test", short_help="Evaluate the expectations of plans.", epilog=_EXAMPLE)
@options.PLANS
@click.option("--samples", type=click.IntRange(min=2), metavar="N",
              help="The maximum number of samples of each measure. Default: all.")  # fmt: skip
@options.SEED
@options.MODEL
@options.SET
@options.FAMILY
@options.DEVICE
@options.DTYPE
@options.MEMORY
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE",
              help="Also write the results as JUnit XML. An older file is replaced.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json", "github"]), default="text",
              show_default=True, help="text for people, json for programs, github for text and "
              "GitHub annotations.")  # fmt: skip
def test_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    plans: tuple[str, ...],
    samples: int | None,
    seed: int,
    models: tuple[tuple[str, Path], ...],
    lets: options.Lets,
    families: tuple[Path, ...],
    device: str,
    dtype: str | None,
    memory: int | None,
    junit: Path | None,
    form: str,
) -> None:
    """Evaluate the expectations of each PLAN: a plan, a compiled folder or a GGUF file.

    An expectation is a line of a plan, such as: expect nll("code.jsonl") <= 1.1 * base

    Plans are stitched in memory, and bridged and healed as they declare. Each plan, and each model
    of a bound, is evaluated once on each text. Relative paths start at the plan's folder.

    A score is compared with a share of another model's score sample by sample. An expectation
    fails if its bound is missed by more than two standard errors. A smaller difference is a tie,
    and passes. Sizes are exact.

    The exit code is 1 if an expectation fails, and 3 if none fails and a score is missing. Without
    any expectation it is 2.
    """
    if junit is not None:
        from gptailor.checkpoint.write.output_file import refuse_output

        refuse_output(junit, force=True)
        if any(junit.exists() and Path(n).exists() and junit.samefile(n) for n in plans):
            raise CheckpointError("C302", "is a plan to test", junit)
    try:
        targets = _targets(plans, models, lets, families, device, memory)
        # torch takes seconds to import; faults of plans are reported before
        from gptailor.evaluation.meter import Placement, Samples
        from gptailor.plugins.expect.expectations import Expectations

        drawn, place = Samples(Path(), samples, seed), Placement.of(device, dtype, memory)
        with bar_or_lines("testing") as on_event:
            results = Expectations(targets, drawn, place, on_event).results()
    except PlanError as error:
        if form == "text":
            raise
        faults = [to_json(error.faults)] if form == "json" else map(to_github, error.faults)
        for fault in faults:
            options.say(fault)
        sys.exit(1)
    _report(results, form, junit)
    verdicts = {result.verdict for result in results}
    sys.exit(1 if "fail" in verdicts else 3 if "unknown" in verdicts else 0)


def _targets(
    plans: tuple[str, ...],
    models: tuple[tuple[str, Path], ...],
    lets: options.Lets,
    families: tuple[Path, ...],
    device: str,
    memory: int | None,
) -> "list[Target]":
    """Return the plans that have expectations. Raise a usage error if no plan has any."""
    from gptailor.evaluation import targets as targeting

    found = targeting.find_targets(
        options.swept(plans, lets),
        dict(models),
        families,
        device=device,
        memory=memory,
        on_event=RepairLines(),
    )
    options.say_faults(targeting.warnings(found))
    expecting = [target for target in found if target.origin.expects]
    if not expecting:
        line = 'expect nll("text.txt") <= 1.1 * base'
        raise click.UsageError(f"no plan has an expectation; write one such as {line}")
    for target in found:
        if not target.origin.expects:
            options.say(f"{target.name}: no expectations", err=True)
    return expecting


def _report(results: "Sequence[ExpectationResult]", form: str, junit: Path | None) -> None:
    """Print the results, and write them as JUnit XML."""
    from gptailor.plugins.expect.results import expectation_lines, expectations_json
    from gptailor.plugins.expect.results import junit as junit_xml

    if form == "json":
        options.say(expectations_json(results))
    else:
        for line in expectation_lines(results, options.width(), options.output_encoding()):
            options.say_drawn(line)
    for result in results if form == "github" else ():
        if result.fault is not None:
            options.say(to_github(result.fault))
    if junit is not None:
        from gptailor.checkpoint.write.output_file import write_whole

        write_whole(Path(os.path.realpath(junit)), junit_xml(results).encode(), junit)
