"""The command `export`: a plan as a mergekit configuration."""

from pathlib import Path

import click

from gptailor.cli import options
from gptailor.plan.faults import PlanError


@click.command("export", short_help="Convert a plan to another tool's format.")
@options.PLAN_ARGUMENT
@options.MODEL
@options.SET
@options.FAMILY
@click.option("--to", "tool", type=click.Choice(["mergekit"]), default="mergekit",
              show_default=True, help="The format to write.")  # fmt: skip
@click.option("--layers", type=click.IntRange(min=1), metavar="N",
              help="The number of layers of the base.")  # fmt: skip
def export_command(
    plan: str,
    models: tuple[tuple[str, Path], ...],
    lets: options.Lets,
    families: tuple[Path, ...],
    tool: str,
    layers: int | None,
) -> None:
    """Print PLAN as a mergekit configuration, if mergekit can express it."""
    from gptailor.checkpoint.models import rebind
    from gptailor.plugins.mergekit.exporter import mergekit_text
    from gptailor.reporting.known_layers import resolved_by_headers

    del tool  # there is one
    declared, faults = rebind(options.read_plan(plan, families, lets), dict(models))
    if faults:
        raise PlanError(faults)
    resolved, known = resolved_by_headers(declared, {})
    layers = layers or (resolved.count if known else None)
    text = mergekit_text(declared, layers, tied="base" in resolved.tied)
    options.say(text, newline=False)
