"""The arguments and options that several commands share."""

import os
import re
from pathlib import Path
from typing import Any

import click


class Rebinding(click.ParamType[tuple[str, Path]]):
    """`NAME=PATH`."""

    name = "NAME=PATH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        """The name and the path; a usage error if there aren't both."""
        name, equal, path = str(value).partition("=")
        if not (equal and name and path):
            self.fail(f"'{value}' is not NAME=PATH", param, ctx)
        return name, Path(os.path.expanduser(path))  # noqa: PTH111 (raises without a home)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


class ByteSize(click.ParamType[int]):
    """A number of bytes: `5GB`, `500MB`, `2GiB`."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes; a usage error if it is no size."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value), re.IGNORECASE)
        unit = _UNITS.get(found[2].upper()) if found else None
        size = int(float(found[1]) * unit) if found and unit else 0
        if size <= 0:
            self.fail(f"'{value}' is no size such as 5GB or 500MiB", param, ctx)
        return size


PLAN_ARGUMENT = click.argument("plan", metavar="PLAN", type=click.Path(allow_dash=True))
PLANS = click.argument(
    "plans", metavar="PLAN...", nargs=-1, required=True, type=click.Path(allow_dash=True)
)
MODEL = click.option(
    "models",
    "--model",
    type=Rebinding(),
    multiple=True,
    help="Take another folder for a model of the plan. May be given several times.",
)
DEVICE = click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="Where models live: cpu, cuda or cuda:1.",
)
DTYPE = click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="What models compute in. Without it: each in its own.",
)
MEMORY = click.option(
    "--memory",
    type=ByteSize(),
    metavar="SIZE",
    help="The most bytes of weights on the device; layers are streamed.",
)
