"""The command `search`: closes an open plan's choices by trials."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptailor.cli.options import DEVICE, DTYPE, MEMORY, MODEL, PLAN_ARGUMENT, read_plan
from gptailor.cli.terminal import keep_memory, say, width

if TYPE_CHECKING:
    from gptailor.search.search import OnEvent, Searched

INTERRUPTED = 130

_SEARCH_EXAMPLE = """
\b
Example; the same command goes on where it was interrupted:
  gptailor search space.tailor -o run --trials 200
  gptailor compile run/best.tailor -o out --locked
"""


class _SampleRange(click.ParamType[tuple[int, int]]):
    """`64..1024`."""

    name = "A..B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Both ends; a usage error if it is no range that ascends from 1."""
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", str(value))
        low, high = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= low <= high:
            self.fail(f"'{value}' is no range of samples such as 64..1024", param, ctx)
        return low, high


@click.command("search", short_help="Close a plan's choices by trials.", epilog=_SEARCH_EXAMPLE)
@PLAN_ARGUMENT
@click.option("-o", "--output", "run", required=True, type=click.Path(path_type=Path),
              metavar="RUN", help="The search's folder; one that is there goes on.")  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), metavar="N",
              help="The budget, in evaluations on all samples. Without it: 200.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), metavar="N",
              help="Of samples and strategy. Without it: 0.")  # fmt: skip
@click.option("--strategy", metavar="NAME",
              help="surrogate (as without it), evolution, distribution or random.")  # fmt: skip
@click.option("-O", "--objective", "objectives", multiple=True, metavar="OBJECTIVE",
              help="Instead of the search block's; may be given several times.")  # fmt: skip
@click.option("--prefer", metavar="OBJECTIVE",
              help="The objective, or its number, that says which plan is the best.")  # fmt: skip
@click.option("--fidelity", type=_SampleRange(),
              help="Samples of a trial, from the cheapest to all.")  # fmt: skip
@click.option("--bridge", type=click.Choice(["each", "from-full", "finalists"]),
              help="Which trials are bridged. Without it: the finalists, in the end.")  # fmt: skip
@click.option("--compare-random", is_flag=True,
              help="Random search at the same cost, on top of the budget.")  # fmt: skip
@MODEL
@DEVICE
@DTYPE
@MEMORY
@click.option("--storage", metavar="URL",
              help="A storage of Optuna's, instead of a journal in RUN.")  # fmt: skip
@click.option("--study-name", default="gptailor", show_default=True, metavar="NAME",
              help="What the study is called in the storage.")  # fmt: skip
@click.option("--ray", is_flag=False, flag_value="local", metavar="[ADDRESS]",
              help="Evaluate on a Ray cluster; without an address on a local one.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), metavar="N",
              help="Of the cluster. Without it: its GPUs, or its machines.")  # fmt: skip
@click.option("--no-live", is_flag=True, help="Plain lines on a terminal too.")
def search_command(  # noqa: PLR0913, PLR0917 (one argument a flag)
    plan: str,
    run: Path,
    trials: int | None,
    seed: int | None,
    strategy: str | None,
    objectives: tuple[str, ...],
    prefer: str | None,
    fidelity: tuple[int, int] | None,
    bridge: Any,
    compare_random: bool,
    models: tuple[tuple[str, Path], ...],
    device: str,
    dtype: str | None,
    memory: int | None,
    storage: str | None,
    study_name: str,
    ray: str | None,
    workers: int | None,
    no_live: bool,
) -> None:
    """Close the choices that PLAN leaves open, by trials of what it could be.

    The folder RUN holds the best plan, the front of several objectives, a lock, a summary and the
    study, which optuna-dashboard reads. Starting plans that people make without a search come
    first. Flags win over the plan's search block; relative paths in --objective start at the
    current folder.

    Ctrl-C ends it with everything kept. The same command goes on where it ended, with a larger
    --trials beyond that; a RUN of another search is refused.
    """
    from gptailor.search.settings import Flags, Resources, settings  # noqa: PLC0415

    if workers is not None and ray is None:
        raise click.UsageError("--workers are those of a Ray cluster; give --ray too")

    flags = Flags(
        objectives, fidelity, trials, seed, strategy, bridge, prefer, compare_random=compare_random
    )
    wanted = read_plan(plan)
    settings(wanted, flags)  # what is wrong is said before seconds of imports
    _need_packages()
    _set_up_jax()
    from gptailor.search.search import search  # noqa: PLC0415

    keep_memory()
    where = Resources(device, dtype, memory, storage, study_name, ray, workers)
    with _view(live=not no_live and sys.stderr.isatty()) as view:
        found = search(wanted, run, flags, models=dict(models), where=where, on_event=view)
    _print(found)
    if found.ended == "interrupted":
        say("interrupted; all trials are kept, and the same command goes on", err=True)
        sys.exit(INTERRUPTED)


def _need_packages() -> None:
    missing = [name for name in ("jax", "optax", "optuna") if find_spec(name) is None]
    if missing:
        from gptailor.plan.faults import TailorError, listed  # noqa: PLC0415

        raise TailorError(f"a search needs {listed(missing)}: pip install 'gptailor[search]'")


def _set_up_jax() -> None:
    """On the CPU, whatever models live on; what it compiles is kept for the next time."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (raises without a home)
    if Path(home).is_absolute():
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(home, "gptailor", "jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@contextmanager
def _view(*, live: bool) -> "Iterator[OnEvent]":
    """A live view on a terminal, lines elsewhere; on standard error, where results are not."""
    from gptailor.cli.search_view import Lines, Screen  # noqa: PLC0415

    if not live:
        yield Lines()
        return
    with Screen() as screen:
        yield screen


def _print(found: "Searched") -> None:
    from gptailor.report.scores import summary_lines  # noqa: PLC0415

    for line in summary_lines(found.summary, width()):
        say(line)
