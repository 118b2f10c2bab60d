"""The commands about locks: `lock`, `verify`, and what `compile` takes of a lock."""

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptailor.cli.options import MODEL, PLAN_ARGUMENT
from gptailor.cli.plans import read_plan
from gptailor.cli.terminal import MOST_SHOWN, report, say

if TYPE_CHECKING:
    from gptailor.build.lock import Difference, Lock
    from gptailor.build.verify import Verified

EXIT_CODES = {"verified": 0, "differs": 1, "unverified": 3}


def lock_file(plan: str, given: Path | None) -> Path:
    """Where a plan's lock is: as given, else beside the plan."""
    if given is not None:
        return given
    if plan == "-":
        raise click.UsageError("a plan from standard input has no lock beside it; name its file")
    from gptailor.build.lock import SUFFIX  # noqa: PLC0415

    return Path(plan + SUFFIX)


def asked(
    plan: str, *, lock: bool, locked: bool, given: Path | None, dry_run: bool
) -> "tuple[Path | None, Lock | None]":
    """Of `compile`'s flags: where a lock is to be written, and the one that the output is held to.

    Raises a usage error for flags that don't go together.
    """
    if lock and locked:
        raise click.UsageError("--lock makes a lock, --locked holds to one; give one of them")
    if given is not None and not (lock or locked):
        raise click.UsageError("--lock-file names a file for --lock or --locked; give one of them")
    if not (lock or locked):
        return None, None
    if lock and dry_run:
        raise click.UsageError("--dry-run makes no lock; 'gptailor lock' makes one of a plan alone")
    path = lock_file(plan, given)
    if lock:
        return path, None
    from gptailor.build.lock import read_lock  # noqa: PLC0415

    return None, read_lock(path)


@click.command("lock", short_help="Write down what a plan is made from, and what comes out.")
@PLAN_ARGUMENT
@click.option("-o", "--output", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
              help="The file to write, or - to print. Without it: PLAN.lock.")  # fmt: skip
@MODEL
@click.option("--dtype", metavar="DTYPE", help="float32, float16 or bfloat16, over the plan's.")
def lock_command(
    plan: str, output: Path | None, models: tuple[tuple[str, Path], ...], dtype: str | None
) -> None:
    """Write the lock of PLAN: digests of all files that it reads and of each tensor it makes.

    The tensors are computed, and not kept. 'gptailor compile PLAN -o DIR --locked' then takes the
    same inputs and makes the same bytes, or refuses. An old lock is replaced.
    """
    from gptailor.build.output import work  # noqa: PLC0415
    from gptailor.build.record import lock  # noqa: PLC0415
    from gptailor.prepare import ready  # noqa: PLC0415

    path = lock_file(plan, output)
    prepared = ready(read_plan(plan), models=dict(models), dtype=dtype)
    report(prepared.warnings)
    with _progress(work(prepared), "locking") as advance:
        made = lock(prepared, progress=advance)
    if str(path) == "-":
        say(made.text(), newline=False)
        return
    made.write(path)
    say(f"{path}: {locked_in_words(made)}")


def locked_in_words(lock: "Lock") -> str:
    """What a lock holds: `12 files of 2 models, 57 tensors`."""
    files = sum(len(model.files) for model in lock.models.values())
    models = "1 model" if len(lock.models) == 1 else f"{len(lock.models)} models"
    return f"{files} files of {models}, {len(lock.tensors)} tensors"


@click.command("verify", short_help="Say whether a compiled folder is what its plan gives.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@MODEL
@click.option("--tensors-only", is_flag=True,
              help="Compare the tensors with the lock, and leave the models alone.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
              show_default=True, help="For people, or for programs.")  # fmt: skip
def verify_command(
    folder: Path, models: tuple[tuple[str, Path], ...], tensors_only: bool, form: str
) -> None:
    """Say whether the folder DIR is what its plan and its lock say.

    Its tensors and other files are compared with the lock, the models' files too, and then with
    what the plan makes, which is computed again and not kept. Without a lock only with that.

    Ends with 0 if all is so, with 1 if something differs, and with 3 if nothing is known to differ
    but something could not be compared, as where a model is gone.
    """
    from gptailor.build.verify import begin, verified  # noqa: PLC0415

    begun = begin(folder, models=dict(models), tensors_only=tensors_only)
    with _progress(begun.work, "verifying") as advance:
        found = verified(begun, advance)
    if form == "json":
        say(_json(found))
    else:
        _print(found)
    sys.exit(EXIT_CODES[found.result])


def _print(found: "Verified") -> None:
    for one in found.differences[:MOST_SHOWN]:
        say(f"differs: {one.message}")
    if len(found.differences) > MOST_SHOWN:
        say(f"… and {len(found.differences) - MOST_SHOWN} more differences")
    for said in found.unverified:
        say(f"could not be verified: {said}")
    count = len(found.differences)
    ends = {
        "verified": "verified",
        "differs": "1 difference" if count == 1 else f"{count} differences",
        "unverified": "no difference found, but not all could be verified",
    }
    compared = f"; compared: {', '.join(found.compared)}" if found.compared else ""
    say(f"{found.folder}: {ends[found.result]}{compared}")


def _json(found: "Verified") -> str:
    record = {
        "folder": str(found.folder),
        "result": found.result,
        "compared": list(found.compared),
        "differences": [_record(one) for one in found.differences],
        "unverified": list(found.unverified),
    }
    return json.dumps(record, ensure_ascii=False, indent=2)


def _record(one: "Difference") -> dict[str, str | None]:
    path = str(one.path) if one.path is not None else None
    return {
        "kind": one.kind,
        "name": one.name,
        "model": one.model,
        "file": path,
        "message": one.message,
    }


def _progress(total: int, what: str) -> AbstractContextManager[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        return nullcontext(lambda _: None)
    from gptailor.report.progress import bar  # noqa: PLC0415

    return bar(total, what)
