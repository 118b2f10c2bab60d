"""The model card of a compiled folder: its layers, its plan, and how to load it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from types import MappingProxyType

import click

from gptailor.lang.words import bounded_words, model_source
from gptailor.plan.events import FitResult, FitText
from gptailor.plan.output_size import OutputSize
from gptailor.plan.plan import Plan
from gptailor.plan.resolved import Resolved
from gptailor.reporting.fit_words import fit_sections
from gptailor.reporting.layer_cells import LayerGrid
from gptailor.reporting.layer_view import (
    LayerKind,
    block_rows,
    layer_rows,
    layer_views,
    made_words,
    short_rows,
)

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
    inner: Sequence[InnerFit] = (),
    chats: bool = False,
    images: bool = False,
) -> str:
    """Return the Markdown of `README.md`.

    `resolved` and `text` have no paths of this machine. `sizes` are the sizes of the base and of
    the model, and `parents` the ids on the Hub of the models that it is made of, and their licence.
    `fits` are the results of fits by their places. `inner` are the fits of inner plans, in their
    order. With `chats` the tokenizer has a chat template, and with `images` the model reads images
    too. The model is loaded from `folder`.
    """
    plan = resolved.declared
    again = " or comes again" * bool(plan.repeats)
    drawn = resolved
    if any(result.in_vain for result in fits.values()):
        drawn = replace(resolved, declared=plan.model_copy(update={"heal": None}))
    healed = drawn.healing is not None or any(of.startswith("heal") for _, _, of, _, _ in inner)
    trained = "and trained for a short while" if healed else "without training"
    merged = any(view.kind is LayerKind.MERGED for view in layer_views(drawn))
    rows = [*short_rows(layer_rows(drawn.slots)), *block_rows(drawn.plan)]
    return "\n".join(
        [
            *_front_matter(plan, *parents, _TASKS[images]),
            f"# {title}",
            "",
            f"A language model {'merged' if merged else 'stitched'} from the layers of other "
            f"models, {trained}, by gptailor {version}.",
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
            f"The layers have the base's numbers, before anything is dropped{again}."
            if plan.stack is None
            else "The layers have the output's numbers.",
            "",
            "| layers | made of |",
            "|---|---|",
            *(f"| {row.where} | {row.what} |" for row in rows),
            "",
            *(_inner_fits(inner) if inner else ()),
            *fit_sections(resolved, fits),
            *(_gguf_files(folder, plan) if plan.gguf else []),
            *(_expected(plan) if plan.expects else []),
            *_search(text, resolved),
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
    lines, alone = map(click.unstyle, grid.lines()), not any(row.head for row in grid.rows)
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


FOUND = "Found by gptailor search:"
"""The first words of the comment above a plan that a search found."""


def _search(text: str, resolved: Resolved) -> list[str]:
    """Return the scores in the comment above a plan that a search found; [] for another plan.

    The comment ends with the layers in words. If the plan has others, it was changed since.
    """
    comment = [line[2:] for line in takewhile(lambda line: line[:2] == "# ", text.splitlines())]
    made = f"{made_words(resolved)}."
    if not text.startswith(f"# {FOUND}") or comment[-1].lower() != made.lower():
        return []
    return [
        "## Search",
        "",
        "The search wrote this above the plan:",
        "",
        *(f"- {line}" for line in comment),
        "",
    ]


def _gguf_files(folder: str, plan: Plan) -> list[str]:
    """Return the section of the GGUF files that the plan states."""
    weighed = (f", by an importance matrix of `{f.on}`" if f.on else "" for f in plan.gguf)
    return [
        "## GGUF files",
        "",
        "The plan states these files for llama.cpp; they were written beside the folder.",
        "",
        *(
            f"- `{folder}-{file.type.upper()}.gguf`{words}"
            for file, words in zip(plan.gguf, weighed, strict=True)
        ),
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
