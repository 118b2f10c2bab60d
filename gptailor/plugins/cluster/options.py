"""The options of `gptailor search` for workers on other machines: `--ray`, `--workers`."""

from typing import Any

import click


def add_search_options(command: click.Command) -> None:
    """Add the options to `gptailor search`, behind the device's memory."""
    ray = click.Option(
        ["--ray"], is_flag=False, flag_value="local", is_eager=True, metavar="[ADDRESS]",
        help="Evaluate on a Ray cluster. Without ADDRESS, use a local cluster.",
    )  # fmt: skip
    workers = click.Option(
        ["--workers"], type=click.IntRange(min=1), callback=_with_ray, metavar="N",
        help="The number of workers of the cluster. Default: one for each GPU, or else one for "
        "each machine.",
    )  # fmt: skip
    at = [param.name for param in command.params].index("memory") + 1
    command.params[at:at] = [ray, workers]


def _with_ray(context: click.Context, _: click.Parameter, workers: Any) -> Any:
    """Return the number of workers. Raise a usage error without a cluster."""
    if workers is not None and context.params["ray"] is None:
        raise click.UsageError("--workers needs --ray", context)
    return workers
