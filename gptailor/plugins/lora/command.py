"""The command `extract-lora`: the difference of two models as a LoRA adapter."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptailor.cli import options
from gptailor.cli.event_lines import bar_or_lines
from gptailor.cli.memory import keep_memory
from gptailor.reporting.quantities import bytes_in_words

if TYPE_CHECKING:
    from gptailor.plugins.lora.extract import ExtractResult


@click.command("extract-lora", short_help="Make a LoRA adapter from the difference of two models.")
@click.argument("base", metavar="A")
@click.argument("tuned", metavar="B")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="The folder to write. It must not exist, unless --force is given.")  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), default=64, show_default=True, metavar="R",
              help="The rank of each projection's change, at most its smaller side.")  # fmt: skip
@click.option("--save", type=click.Choice(["biases", "norms", "embed", "head"]), multiple=True,
              help="Store these tensors whole if they differ. May be given several "
              "times.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32",
              show_default=True, help="The dtype of the low-rank factors.")  # fmt: skip
@click.option("--randomised", is_flag=True,
              help="Use random projections. Faster, and nearly as accurate.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE",
              help="The device that computes: cpu, cuda or cuda:1.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="Replace the output if it is a model, after the new model is "
              "complete.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
              show_default=True, help="text for people, json for programs.")  # fmt: skip
def extract_lora_command(  # noqa: PLR0913 (one argument a flag)
    base: str,
    tuned: str,
    output: Path,
    rank: int,
    save: tuple[str, ...],
    dtype: str,
    *,
    randomised: bool,
    device: str,
    force: bool,
    form: str,
) -> None:
    """Write the difference between A and B as a low-rank adapter on A, in PEFT's format.

    A and B are model folders, GGUF files, or ids on the Hub (owner/name@revision). They need the
    same architecture and shape. Each projection that differs gets the two factors of rank R that
    are nearest to its difference. The command measures and prints the error: the share of the
    difference that is missing, by the Frobenius norm. The folder's README.md contains the error of
    each module.

    Biases, norms, embedding and head are not projections. The command reports their differences.
    --save puts them whole into the adapter.
    """
    from gptailor.plugins.lora.extract import extract_lora  # imports transformers

    keep_memory()
    with bar_or_lines("extracting") as on_event:
        adapter = extract_lora(
            base, tuned, output, rank=rank, save=save, dtype=dtype, randomised=randomised,
            device=device, force=force, on_event=on_event,
        )  # fmt: skip
    if form == "json":
        options.say(json.dumps(_as_record(adapter), ensure_ascii=False, indent=2))
        return
    for line in _result_lines(adapter):
        options.say(line)


def _as_record(adapter: "ExtractResult") -> dict[str, object]:
    return {
        "folder": str(adapter.folder),
        "bytes": adapter.size,
        "error": adapter.error,
        "error_of_modules": adapter.error_of_modules,
        "modules": [
            {"name": m.name, "rank": m.rank, "difference": m.difference, "error": m.error}
            for m in adapter.modules
        ],
        "others": [
            {"name": o.name, "kind": o.kind, "difference": o.difference, "saved": o.saved}
            for o in adapter.others
        ],
    }


def _result_lines(adapter: "ExtractResult") -> Iterator[str]:
    """Yield the result in lines: errors by module name, other differences, and totals."""
    alike: dict[str, list[tuple[float, str]]] = {}
    for module in adapter.modules:
        last = module.name.rpartition(".")[2]
        alike.setdefault(last, []).append((module.error, module.name))
    width = max(map(len, alike))
    for last, errors in alike.items():
        least, (most, worst) = min(errors)[0], max(errors)
        modules = "1 module" if len(errors) == 1 else f"{len(errors)} modules"
        both = dict.fromkeys(map(small_percent, (least, most)))
        error_range = " to ".join(both) + (f", the most in {worst}" if len(errors) > 1 else "")
        yield f"{last:<{width}}  {modules}, error {error_range}"
    for kind in dict.fromkeys(other.kind for other in adapter.others):
        its = [other for other in adapter.others if other.kind == kind]
        names = its[0].name if len(its) == 1 else f"{its[0].name} and {len(its) - 1} more"
        how = "in the adapter, whole" if its[0].saved else f"left out{_way(kind)}"
        yield f"{kind} {'differ' if kind.endswith('s') else 'differs'} ({names}): {how}"
    count = "1 module" if len(adapter.modules) == 1 else f"{len(adapter.modules)} modules"
    size = bytes_in_words(adapter.size)
    own = (
        f"{small_percent(adapter.error_of_modules)} of the projections, " if adapter.others else ""
    )
    every = f"{small_percent(adapter.error)} of all that differs"
    yield f"{adapter.folder}: {count}, {size}; error {own}{every}"


def _way(kind: str) -> str:
    """Return the help for a kind that was left out."""
    return (
        ", because PEFT can't hold them" if kind == "others" else f"; --save {kind} includes them"
    )


def small_percent(share: float) -> str:
    """Return `0.52%`, or `under 0.01%`."""
    return "under 0.01%" if 0 < share < 1e-4 else f"{share:.2%}"
