"""What commands print, and how: faults, progress, numbers in words; and memory that is kept."""

import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptailor.plan.faults import Fault, show

if TYPE_CHECKING:
    from gptailor.prepare import Prepared

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**28
LARGEST_KEPT = 2**25


def keep_memory() -> None:
    """Have the C library give no memory back that arithmetic takes again a moment later.

    Chunks come and go by the thousand; that each were new pages would cost as much as the
    arithmetic. Where the C library has no such setting nothing happens.
    """
    import ctypes  # noqa: PLC0415 (few commands compute)

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)


MOST_SHOWN = 100
"""Faults that are shown to people; machines get all."""


def report(faults: Iterable[Fault]) -> None:
    """Faults for people, on standard error."""
    faults = list(faults)
    for fault in faults[:MOST_SHOWN]:
        say(_coloured(fault) + "\n", err=True)
    if len(faults) > MOST_SHOWN:
        say(f"… and {len(faults) - MOST_SHOWN} more faults", err=True)


def _coloured(fault: Fault) -> str:
    first, _, rest = show(fault).partition("\n")
    label, _, message = first.partition(": ")
    colour = "red" if fault.severity == "error" else "yellow"
    head = click.style(label, fg=colour, bold=True) + click.style(f": {message}", bold=True)
    return head + (f"\n{rest}" if rest else "")


def print_dry_run(prepared: "Prepared", output: Path) -> None:
    """Print what would be written: layers, parameters, bytes, and what each position is."""
    from gptailor.plan.layers import slots  # noqa: PLC0415
    from gptailor.report.plan_map import Row, described_rows, table  # noqa: PLC0415

    (layers_before, layers), (before, after) = prepared.counts.values()
    say(f"would write {output}: {layers} layers (the base has {layers_before})")
    shards = len(prepared.shards)
    files = "1 file" if shards == 1 else f"{shards} files"
    rows = [
        Row("parameters", f"{after:,} (the base has {before:,})"),
        Row("weights", f"{prepared.size:,} bytes in {files}"),
        *described_rows(slots(prepared.plan, prepared.models["base"].layout.count)),
    ]
    for line in table(rows, width()):
        say(line)


def width() -> int:
    """The terminal's columns; 80 where there is none."""
    import shutil  # noqa: PLC0415 (few commands fill lines)

    return shutil.get_terminal_size().columns


def say(text: str, *, newline: bool = True, err: bool = False) -> None:
    """Print; colours are for terminals, and for people who don't mind them."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    try:
        click.echo(text, nl=newline, err=err, color=False if plain else None)
    except BrokenPipeError:
        raise ReaderLeft from None


class ReaderLeft(Exception):  # noqa: N818 (no error: `gptailor schema | head`)
    """Nobody reads what is printed any more. Click would make it exit code 1."""


def progress(total: int, what: str = "writing") -> AbstractContextManager[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return nullcontext(lambda _: None)
    from gptailor.report.progress import bar  # noqa: PLC0415

    return bar(total, what)


def millions(count: int) -> str:
    """A number of parameters: `134.5 M`, `7.24 B`."""
    return f"{count / 1e9:.2f} B" if count >= 10**9 else f"{count / 1e6:.1f} M"


def size_in_words(size: int) -> str:
    """A number of bytes: `269.0 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
