"""The model card of a compiled folder: its layers, its plan, and how to load it."""

import json
from typing import NamedTuple, final

from gptailor.lang.words import bounded_words, model_source, range_words
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved, TaughtText
from gptailor.reporting.layer_cells import (
    cell_row,
    cells,
    legend,
    map_lines,
    plain_lines,
    share_rows,
)
from gptailor.reporting.layer_view import layer_views, rows_with_runs


@final
class Parents(NamedTuple):
    """The models that an output is made of: their ids on the Hub, and the licence of all."""

    ids: tuple[str, ...] = ()
    license: str | None = None


def card(
    name: str,
    resolved: Resolved,
    text: str,
    sizes: tuple[OutputSize, OutputSize],
    version: str,
    parents: Parents | None = None,
) -> str:
    """Return the Markdown of `README.md`.

    `resolved` has the models with the paths of `text`. `sizes` are the sizes of the base and of the
    model.
    """
    plan = resolved.declared
    again = " or comes again" * bool(plan.repeats)
    return "\n".join(
        [
            *_front_matter(plan, parents or Parents()),
            f"# {name}",
            "",
            f"A language model stitched from the layers of others, {_trained(resolved)}, by "
            f"gptailor {version}.",
            "",
            "| | base | this model |",
            "|---|---|---|",
            *(_size_row(noun, *(getattr(size, noun) for size in sizes)) for noun in _COUNTS),
            "",
            "## Layers",
            "",
            "```text",
            *_map(resolved),
            "```",
            "",
            f"The numbers are those of the base's layers, before anything is dropped{again}."
            if plan.stack is None
            else "The numbers are those of the output's layers.",
            "",
            "| layers | made of |",
            "|---|---|",
            *(f"| {row.where} | {row.what} |" for row in rows_with_runs(resolved)),
            "",
            *_bridges(resolved),
            *_healed(resolved),
            *_expected(plan),
            "## Models",
            "",
            "| name | checkpoint |",
            "|---|---|",
            *(f"| {name} | `{model_source(model)}` |" for name, model in plan.models.items()),
            "",
            "## Plan",
            "",
            "The same is in `plan.tailor`, which compiles to this folder's tensors.",
            "",
            "```text",
            text.rstrip("\n"),
            "```",
            "",
            "## Use",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```",
            "",
        ]
    )


_COUNTS = ("layers", "parameters")


def _size_row(noun: str, before: int, after: int) -> str:
    change = "" if before == after else f" ({after / before - 1:+.1%})"
    return f"| {noun} | {before:,} | {after:,}{change} |"


def _map(resolved: Resolved) -> list[str]:
    views, models = layer_views(resolved), list(resolved.plan.models)
    drawn, below = cells(views, models), share_rows(views, models)
    lines = plain_lines(map_lines([cell_row(drawn), *below]))
    keys = "   ".join(" ".join(entry) for entry in legend(drawn, models, below))
    return [*(lines if below else (line[2:] for line in lines)), "", keys]


def _bridges(resolved: Resolved) -> list[str]:
    if not resolved.gaps:
        return []
    rows = (
        f"| L{gap.after} | `{gap.on}` | {gap.tokens:,} at most | {gap.ridge!r} |"
        for gap in resolved.gaps
    )
    return [
        "The gaps are closed by least squares: the MLP's output projection of the layer before "
        "each has been refitted on a text (after "
        "[ReplaceMe](https://arxiv.org/abs/2505.02819)).",
        "",
        "| layer before the gap | text | tokens | ridge |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _expected(plan: Plan) -> list[str]:
    if not plan.expects:
        return []
    return [
        "## Expectations",
        "",
        "`gptailor test plan.tailor` evaluates them.",
        "",
        *(f"- `{bounded_words(entry)}`" for entry in plan.expects),
        "",
    ]


def _trained(resolved: Resolved) -> str:
    healed = resolved.healing is not None
    return "and trained for a short while" if healed else "without training"


def _healed(resolved: Resolved) -> list[str]:
    healing = resolved.healing
    if healing is None:
        return []
    teachers = list(dict.fromkeys(map(_teacher_words, healing.texts)))
    several = len(healing.texts) > 1
    taught = "its teacher on each text" if len(teachers) > 1 else f"{teachers[0]} on "
    if len(teachers) == 1:
        taught += "these texts" if several else "a text"
    learning = "all layers"
    if len(healing.indices) < len(resolved.kept):
        learning = f"{range_words(healing.indices)} of the output"
    changes = "the weights themselves"
    changes = (
        changes if healing.rank is None else f"of rank {healing.rank}, folded into the weights"
    )
    only = " Only the tokens of answers counted." if healing.only_answers else ""
    shared = f"{healing.tokens:,} | {learning} | {changes} | {healing.seed}"
    if not several:
        [text] = healing.texts
        rows = [
            "| text | tokens | what learns | changes | seed |",
            "|---|---|---|---|---|",
            f"| {_text_words(text)} | {shared} |",
        ]
    else:
        rows = ["| text | teacher | share of the tokens |", "|---|---|---|"]
        rows += [
            f"| {_text_words(text)} | {_teacher_words(text)} | {float(text.share):.3g} |"
            for text in healing.texts
        ]
        rows += ["", "| tokens | what learns | changes | seed |", "|---|---|---|---|"]
        rows += [f"| {shared} |"]
    return [
        f"Healed: the layers were then trained to give the next-token distribution of {taught}."
        f"{only}",
        "",
        *rows,
        "",
    ]


def _teacher_words(text: TaughtText) -> str:
    """Return the teacher of a text of healing."""
    if text.predicted:
        return "the model that made the predictions"
    return "the same plan with nothing dropped" if text.teacher is None else f"`{text.teacher}`"


def _text_words(text: TaughtText) -> str:
    """Return a text of healing: its file, or the answers to its prompts and how they were made."""
    if (answers := text.answers) is None:
        return f"`{text.file}`"
    drawn = f"at most {answers.tokens:,} tokens each, temperature {answers.temperature:g}"
    return f"the teacher's answers to `{text.file}` ({drawn})"


def _front_matter(plan: Plan, parents: Parents) -> list[str]:
    """Return the front matter that the Hub reads: the licence, known parents and tags."""
    merged = len(plan.models) > 1
    relation = ["base_model_relation: merge"] if merged and parents.ids else []
    ids = [f"- {json.dumps(source)}" for source in parents.ids]
    return [
        "---",
        *([] if parents.license is None else [f"license: {parents.license}"]),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *(["base_model:", *ids] if ids else []),
        *relation,
        "tags:",
        "- gptailor",
        *(["- merge"] if merged else []),
        "---",
        "",
    ]
