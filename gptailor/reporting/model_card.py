"""The model card of a compiled folder: its layers, its plan, and how to load it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import click

from gptailor.checkpoint.token_cut import TokenCutReport
from gptailor.lang.words import bounded_words, model_source, range_words
from gptailor.plan.events import FitResult, FitText
from gptailor.plan.faults import listed
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Plan
from gptailor.plan.registry import WIDTH_RIDGE
from gptailor.plan.resolved import Resolved, TaughtText
from gptailor.reporting.layer_cells import LayerGrid
from gptailor.reporting.layer_view import block_rows, layer_rows, layer_views, short_rows

InnerFit = tuple[str, str, str, str, FitText]
"""A text of a fit of an inner plan: the model, the plan's file, the fit, the text's file."""


def card(  # noqa: PLR0913, PLR0917 (the facts that the card has)
    title: str,
    folder: str,
    resolved: Resolved,
    text: str,
    sizes: tuple[OutputSize, OutputSize],
    version: str,
    parents: tuple[Sequence[str], str | None] = ((), None),
    fits: Mapping[str, FitResult] = MappingProxyType({}),
    *,
    vocabulary: TokenCutReport | None = None,
    inner: Sequence[InnerFit] = (),
    chats: bool = False,
    images: bool = False,
) -> str:
    """Return the Markdown of `README.md`.

    `resolved` and `text` have no paths of this machine. `sizes` are the sizes of the base and of
    the model, and `parents` the ids on the Hub of the models that it is made of, and their licence.
    `fits` are the results of fits by their places, and `vocabulary` is the effect of a
    smaller one. `inner` are the fits of inner plans, in their order. With `chats` the tokenizer has
    a chat template, and with `images` the model reads images too. The model is loaded from
    `folder`.
    """
    plan = resolved.declared
    again = " or comes again" * bool(plan.repeats)
    drawn = resolved
    if any(result.in_vain for result in fits.values()):
        drawn = replace(resolved, declared=plan.model_copy(update={"heal": None}))
    healed = drawn.healing is not None or any(of.startswith("heal") for _, _, of, _, _ in inner)
    trained = "and trained for a short while" if healed else "without training"
    rows = [*short_rows(layer_rows(drawn.slots)), *block_rows(drawn.plan)]
    return "\n".join(
        [
            *_front_matter(plan, *parents, _TASKS[images]),
            f"# {title}",
            "",
            f"A language model stitched from the layers of others, {trained}, by "
            f"gptailor {version}.",
            "",
            "| | base | this model |",
            "|---|---|---|",
            *(_size_row(noun, *(getattr(size, noun) for size in sizes)) for noun in _COUNTS),
            "",
            "## Use",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            f'generate = pipeline("{_TASKS[images]}", "{folder}")',
            *(_CHAT if chats else _CONTINUED)[images].splitlines(),
            "```",
            "",
            "## Layers",
            "",
            "```text",
            *_map(drawn),
            "```",
            "",
            f"The numbers are those of the base's layers, before anything is dropped{again}."
            if plan.stack is None
            else "The numbers are those of the output's layers.",
            "",
            "| layers | made of |",
            "|---|---|",
            *(f"| {row.where} | {row.what} |" for row in rows),
            "",
            *(_inner_fits(inner) if inner else ()),
            *(_vocabulary(resolved, vocabulary) if vocabulary is not None else []),
            *(_experts(resolved, fits["experts"]) if "experts" in fits else []),
            *(_narrowed(resolved, fits["width"]) if "width" in fits else []),
            *(_bridges(resolved, fits) if resolved.gaps else []),
            *_healed(resolved, fits.get("heal")),
            *(_expected(plan) if plan.expects else []),
            "## Models",
            "",
            "| name | checkpoint |",
            "|---|---|",
            *(f"| {name} | `{model_source(model)}` |" for name, model in plan.models.items()),
            "",
            "## Plan",
            "",
            "`plan.tailor` is this plan; in a folder that wasn't published it has the paths that "
            "the model was compiled from.",
            "",
            "```text",
            text.rstrip("\n"),
            "```",
            "",
        ]
    )


_TASKS = ("text-generation", "image-text-to-text")
"""transformers' tasks of models that read text, and of models that read images too."""
_CONTINUED = (
    """\
print(generate("Tomatoes are", max_new_tokens=40)[0]["generated_text"])
""",
    """\
found = generate(images="tomato.jpg", text="<image>A photo of", max_new_tokens=40)
print(found[0]["generated_text"])
""",
)
"""The example of a tokenizer without a chat template, for each task."""
_CHAT = (
    """\
messages = [{"role": "user", "content": "How do tomatoes grow?"}]
print(generate(messages, max_new_tokens=200)[0]["generated_text"][-1]["content"])
""",
    """\
image = {"type": "image", "url": "tomato.jpg"}
question = {"type": "text", "text": "How ripe is this tomato?"}
messages = [{"role": "user", "content": [image, question]}]
print(generate(text=messages, max_new_tokens=200)[0]["generated_text"][-1]["content"])
""",
)
"""The same with a chat template."""


_COUNTS = ("layers", "parameters")


def _size_row(noun: str, before: int, after: int) -> str:
    change = "" if before == after else f" ({after / before - 1:+.1%})"
    return f"| {noun} | {before:,} | {after:,}{change} |"


def _map(resolved: Resolved) -> list[str]:
    grid = LayerGrid.of(layer_views(resolved), list(resolved.plan.models))
    lines, alone = map(click.unstyle, grid.lines()), len(grid.rows) == 1
    keys = "   ".join(" ".join(entry) for entry in grid.legend())
    return [*((line[2:] for line in lines) if alone else lines), "", keys]


def _inner_fits(inner: Sequence[InnerFit]) -> list[str]:
    rows = (
        f"| {plan} | `{file}` | {f'bridge after {of}' if of[:1] == 'L' else of} | `{name}` | "
        f"{text.tokens:,} | `{text.sha256}` |"
        for plan, file, of, name, text in inner
    )
    return [
        "Plans inside this plan were fitted before it, in this order.",
        "",
        "| model | plan | fit | text | tokens | sha256 of the text |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _experts(resolved: Resolved, result: FitResult) -> list[str]:
    cut, share = resolved.cuts["experts"], _share_words(result.numbers["share"])
    return [
        f"Each layer with experts has {cut.size:,} of them, those with the largest mean of router "
        "weight times norm of the output on a text "
        "([REAP](https://arxiv.org/abs/2510.13999)). The share is theirs in the sum over all "
        "experts and tokens, the mean of all layers.",
        "",
        "| experts | text | tokens | share |",
        "|---|---|---|---|",
        f"| {cut.size:,} | `{cut.on}` | {result.tokens:,} | {share} |",
        "",
    ]


def _narrowed(resolved: Resolved, result: FitResult) -> list[str]:
    cut, share = resolved.cuts["width"], _share_words(result.numbers["recovered"])
    ridge = WIDTH_RIDGE if cut.ridge is None else cut.ridge
    return [
        f"Each MLP has {cut.size:,} neurons, those that a text needs most. Its output projection "
        "has been refitted by least squares. The recovered share of the error of leaving neurons "
        "out is the mean of all layers, measured on text that a fit left out.",
        "",
        "| neurons | text | tokens | ridge | recovered |",
        "|---|---|---|---|---|",
        f"| {cut.size:,} | `{cut.on}` | {result.tokens:,} | {ridge!r} | {share} |",
        "",
    ]


def _bridges(resolved: Resolved, fits: Mapping[str, FitResult]) -> list[str]:
    found = {at: (fit.tokens, fit.numbers.get("held_out", math.nan)) for at, fit in fits.items()}
    fits_used = dict.fromkeys(f"`{gap.by}`" if gap.by else "least squares" for gap in resolved.gaps)
    return [
        f"The gaps are closed by {listed(fits_used)}: the MLP's output projection of the layer "
        "before each has been refitted on a text (after "
        "[ReplaceMe](https://arxiv.org/abs/2505.02819)). The recovered share of the missing "
        "hidden state was measured on text that a fit left out.",
        "",
        "| layer before the gap | text | tokens | ridge | recovered |",
        "|---|---|---|---|---|",
        *(
            f"| L{gap.after} | `{gap.on}` | {tokens:,} | {gap.ridge!r} | {_share_words(share)} |"
            for gap in resolved.gaps
            for tokens, share in [found.get(f"L{gap.after}", (gap.tokens, math.nan))]
        ),
        "",
    ]


def _vocabulary(resolved: Resolved, report: TokenCutReport) -> list[str]:
    text = resolved.declared.cuts["vocabulary"].on
    before, after = (report.size / max(1, count) for count in (report.before, report.after))
    return [
        f"The vocabulary has the special tokens, all letters or bytes, and the most used tokens of "
        f"`{text}` with the tokens that they are merged from. Texts are read and written as "
        "before, some in more tokens.",
        "",
        "| kept tokens | of | unchanged tokens of the text | more tokens | bytes a token |",
        "|---|---|---|---|---|",
        f"| {report.kept:,} | {report.total:,} | {report.unchanged_share:.1%} "
        f"| {report.growth:.1%} | {before:.2f} → {after:.2f} |",
        "",
    ]


def _expected(plan: Plan) -> list[str]:
    return [
        "## Expectations",
        "",
        "`gptailor test plan.tailor` evaluates them.",
        "",
        *(f"- `{bounded_words(entry)}`" for entry in plan.expects),
        "",
    ]


def _share_words(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{share:.1%}"


def _healed(resolved: Resolved, end: FitResult | None) -> list[str]:
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
    in_vain = end is not None and end.in_vain
    begun = "Healing was tried: the layers were" if in_vain else "Healed: the layers were then"
    only = " Only the tokens of answers counted." if healing.only_answers else ""
    used = healing.tokens if end is None else end.tokens
    shared = f"{used:,} | {learning} | {changes} | {healing.seed}"
    if not several:
        [text] = healing.texts
        rows = [
            "| text | tokens | what learns | changes | seed |",
            "|---|---|---|---|---|",
            f"| {_text_words(text)} | {shared} |",
        ]
    else:
        rows = ["| text | teacher | tokens |", "|---|---|---|"]
        counts = [int(used * text.share) for text in healing.texts]
        counts = counts if end is None else [text.tokens for text in end.texts]
        rows += [
            f"| {_text_words(text)} | {_teacher_words(text)} | {count:,} |"
            for text, count in zip(healing.texts, counts, strict=True)
        ]
        rows += ["", "| tokens | what learns | changes | seed |", "|---|---|---|---|"]
        rows += [f"| {shared} |"]
    return [
        f"{begun} trained to give the next-token distribution of {taught}.{only}",
        "",
        *rows,
        "",
        *([] if end is None else [_result(end), ""]),
    ]


def _result(end: FitResult) -> str:
    """Return the result of healing: the distances from the teacher."""
    bare, start, healed = (end.numbers[name] for name in ("bare", "start", "healed"))
    where = f"The distance from the teacher is measured on {end.numbers['held']:,.0f} tokens held"
    where += " out (KL divergence in nats a token)"
    if end.in_vain:
        return f"{where}: {start:.3f}. No step reduced it, so the layers stay as they were."
    before = [] if math.isnan(bare) else [f"{bare:.3f} bare"]
    before += [f"{start:.3f} bridged"] if start != bare else []
    return f"{where}: {', '.join(before)}, {healed:.3f} healed."


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


def _front_matter(
    plan: Plan, parent_ids: Sequence[str], license: str | None, task: str
) -> list[str]:
    """Return the front matter that the Hub reads: the licence, task, known parents and tags."""
    merged = len(plan.models) > 1
    relation = ["base_model_relation: merge"] if merged and parent_ids else []
    ids = [f"- {json.dumps(source)}" for source in parent_ids]
    return [
        "---",
        *([] if license is None else [f"license: {license}"]),
        "library_name: transformers",
        f"pipeline_tag: {task}",
        *(["base_model:", *ids] if ids else []),
        *relation,
        "tags:",
        "- gptailor",
        *(["- merge"] if merged else []),
        "---",
        "",
    ]
