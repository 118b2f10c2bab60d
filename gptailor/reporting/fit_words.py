"""The words about fits' results: `FIT_WORDS` has each fit's words, in the order of the card."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

from gptailor.lang.words import range_words
from gptailor.plan.events import FitResult
from gptailor.plan.faults import listed
from gptailor.plan.plan import HealText
from gptailor.plan.resolved import Resolved
from gptailor.program.fits import token_cut_report

_ENOUGH = 50_000
"""Tokens that healing won on in all measured cases (benchmarks/notes/heal.md)."""
_FEW_HELD = 1_000
"""The least number of held-out tokens that measures a healing well."""


@final
@dataclass(frozen=True)
class FitWords:
    """The words about the results of a fit.

    `line` is a line about one result, and `card` are the lines of the model card. `openings` are
    the lines before the first layer, by the work that `Progress` names.
    """

    line: Callable[[FitResult], str]
    card: Callable[[Resolved, Sequence[FitResult]], list[str]]
    openings: Mapping[str, str] = field(default_factory=dict)


def fit_in_words(result: FitResult) -> str:
    """Return the result of a fit in words; of healing also if no step helped."""
    return FIT_WORDS[result.word].line(result)


def fit_sections(resolved: Resolved, results: Mapping[str, FitResult]) -> Iterator[str]:
    """Yield the lines of a model card about the results of all fits.

    `resolved` has no paths of this machine.
    """
    for word, words in FIT_WORDS.items():
        if own := [result for result in results.values() if result.word == word]:
            yield from words.card(resolved, own)


# --------------------------------------------------------------------------------- cuts and bridges


def _line(done: str, good: str, result: FitResult) -> str:
    """Return the fit in words, with its known quality."""
    numbers = {"at": result.at, "tokens": result.tokens, **result.numbers}
    known = result.numbers and all(map(math.isfinite, result.numbers.values()))
    return (done + good if known else done).format(**numbers)


def _section(
    words: str, columns: Mapping[str, str], resolved: Resolved, results: Sequence[FitResult]
) -> list[str]:
    """Return sentences, and a table with a row for each result; `columns` are cells by headers."""
    plans = {**resolved.plan.text_fits, **{f"L{gap.after}": gap for gap in resolved.gaps}}
    by = (f"`{gap.by}`" if gap.by else "least squares" for gap in resolved.gaps)
    rows = []
    for result in results:
        numbers = {name: _Number(number) for name, number in result.numbers.items()}
        numbers.setdefault("held_out", _Number("nan"))  # another package's fit has no numbers
        cells = " | ".join(columns.values())
        facts = {"plan": plans[result.at], "at": result.at, "tokens": result.tokens, **numbers}
        rows.append(f"| {cells.format_map(facts)} |")
    return [
        words.format(plan=plans[results[0].at], by=listed(dict.fromkeys(by))),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *rows,
        "",
    ]


@final
class _Number(float):
    """A number of a result, which is unknown if it is NaN."""

    def __format__(self, form: str) -> str:
        return "unknown" if math.isnan(self) else super().__format__(form)


# --------------------------------------------------------------------------------------- vocabulary


_MOSTLY_BYTES = 0.1
"""The share of bytes and unknown tokens above which a text is not of the tokenizer's scripts."""


def _vocabulary_line(result: FitResult) -> str:
    """Return the effect of a smaller vocabulary on its text, with a warning for another script."""
    cut = token_cut_report(result)
    before, after = cut.bytes_a_token
    words = (
        f"vocabulary: {cut.kept:,} of {cut.total:,} tokens; the text that chose them keeps "
        f"{cut.unchanged_share:.1%} of its tokens and has {cut.growth:.1%} more; "
        f"{before:.2f} → {after:.2f} bytes a token"
    )
    if cut.bytewise_share > _MOSTLY_BYTES:
        words += (
            f"\nwarning: {cut.bytewise_share:.0%} of the text's tokens are bytes or unknown: the "
            "tokenizer has few tokens for its script"
        )
    return words


def _vocabulary(resolved: Resolved, results: Sequence[FitResult]) -> list[str]:
    report, text = token_cut_report(results[0]), resolved.plan.cuts["vocabulary"].on
    before, after = report.bytes_a_token
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


# ------------------------------------------------------------------------------------------ healing


def _healed_line(end: FitResult) -> str:
    bare, start, healed = (end.numbers[name] for name in ("bare", "start", "healed"))
    bridged = f", bridged {start:.3f}" if start != bare else ""
    result = f", healed {healed:.3f}"
    if end.in_vain:
        result = "; no step came nearer, so the layers stay as they were: "
        few = end.tokens < _ENOUGH
        result += f"{_ENOUGH:,} tokens are a good start" if few else "more tokens may help"
    if math.isnan(bare):  # the loss without bridges; healing begins with them
        begun = f"{start:.3f} nats a token from the teacher bridged, no numbers unbridged"
    else:
        begun = f"{bare:.3f} nats a token from the teacher{bridged}"
    held = f"(on {_held_words(end)})"
    return f"healed on {end.tokens:,} tokens: {begun}{result} {held}"


def _held_words(end: FitResult) -> str:
    """Return `2,048 tokens held out`, and a warning if these are few."""
    few = ", so few that the numbers are rough" * (end.numbers["held"] < _FEW_HELD)
    return f"{end.numbers['held']:,.0f} tokens held out{few}"


def _healed(resolved: Resolved, results: Sequence[FitResult]) -> list[str]:
    healing, [end] = resolved.healing, results
    assert healing is not None, "a plan that heals"
    teachers = list(dict.fromkeys(map(_teacher_words, healing.texts)))
    several = len(healing.texts) > 1
    taught = "its teacher on each text" if len(teachers) > 1 else f"{teachers[0]} on "
    if len(teachers) == 1:
        taught += "these texts" if several else "a text"
    learning = "all layers"
    if len(healing.indices) < len(resolved.kept):
        learning = f"{range_words(healing.indices)} of the output"
    changes = "the weights themselves"
    if healing.rank is not None:
        changes = f"of rank {healing.rank}, folded into the weights"
    begun = "Healing was tried: the layers were" if end.in_vain else "Healed: the layers were then"
    only = " Only the tokens of answers counted." if healing.only_answers else ""
    shared = f"{end.tokens:,} | {learning} | {changes} | {healing.seed}"
    if not several:
        [text] = healing.texts
        rows = [
            "| text | tokens | what learns | changes | seed |",
            "|---|---|---|---|---|",
            f"| {_text_words(text)} | {shared} |",
        ]
    else:
        rows = ["| text | teacher | tokens |", "|---|---|---|"]
        rows += [
            f"| {_text_words(text)} | {_teacher_words(text)} | {read.tokens:,} |"
            for text, read in zip(healing.texts, end.texts, strict=True)
        ]
        rows += ["", "| tokens | what learns | changes | seed |", "|---|---|---|---|"]
        rows += [f"| {shared} |"]
    return [
        f"{begun} trained to give the next-token distribution of {taught}.{only}",
        "",
        *rows,
        "",
        _distances(end),
        "",
    ]


def _distances(end: FitResult) -> str:
    """Return the result of healing: the distances from the teacher."""
    bare, start, healed = (end.numbers[name] for name in ("bare", "start", "healed"))
    where = (
        f"The distance from the teacher is measured on {_held_words(end)} "
        "(KL divergence in nats a token)"
    )
    if end.in_vain:
        return f"{where}: {start:.3f}. No step reduced it, so the layers stay as they were."
    before = [] if math.isnan(bare) else [f"{bare:.3f} bare"]
    before += [f"{start:.3f} bridged"] if start != bare else []
    return f"{where}: {', '.join(before)}, {healed:.3f} healed."


def _teacher_words(text: HealText) -> str:
    """Return the teacher of a text of healing."""
    if text.predicted:
        return "the model that made the predictions"
    return "the same plan with nothing dropped" if text.teacher is None else f"`{text.teacher}`"


def _text_words(text: HealText) -> str:
    """Return a text of healing: its file, or the answers to its prompts and how they were made."""
    if (answers := text.answers) is None:
        return f"`{text.file}`"
    drawn = f"at most {answers.closed_tokens:,} tokens each"
    drawn += f", temperature {answers.closed_temperature:g}"
    return f"the teacher's answers to `{text.file}` ({drawn})"


FIT_WORDS: Mapping[str, FitWords] = {
    "vocabulary": FitWords(_vocabulary_line, _vocabulary),
    "experts": FitWords(
        partial(
            _line,
            "experts: {stay:,.0f} of a layer stay, chosen on {tokens:,} tokens",
            "; they have {share:.1%} of the weighted outputs",
        ),
        partial(
            _section,
            "Each layer with experts has {plan.size:,} of them, those with the largest mean of "
            "router weight times norm of the output on a text "
            "([REAP](https://arxiv.org/abs/2510.13999)). The share is theirs in the sum over all "
            "experts and tokens, the mean of all layers.",
            {
                "experts": "{plan.size:,}",
                "text": "`{plan.on}`",
                "tokens": "{tokens:,}",
                "share": "{share:.1%}",
            },
        ),
        {
            "comparing experts": "comparing the experts of {0.total} layers, keeping "
            "{0.numbers[size]:,} in each"
        },
    ),
    "width": FitWords(
        partial(
            _line,
            "width: fitted on {tokens:,} tokens",
            "; the fits recover {recovered:.1%} of the error of leaving neurons out, on text left "
            "out",
        ),
        partial(
            _section,
            "Each MLP has the {plan.size:,} neurons that a text needs most. Its output "
            "projection has been refitted by least squares. The recovered share of the error of "
            "leaving neurons out is the mean of all layers, measured on text that a fit left out.",
            {
                "neurons": "{plan.size:,}",
                "text": "`{plan.on}`",
                "tokens": "{tokens:,}",
                "ridge": "{plan.closed_ridge!r}",
                "recovered": "{recovered:.1%}",
            },
        ),
        {"narrowing": "narrowing {0.total} MLPs to {0.numbers[size]:,} neurons"},
    ),
    "bridge": FitWords(
        partial(
            _line,
            "bridge after {at}: fitted on {tokens:,} tokens",
            "; it recovers {held_out:.1%} of the missing state on text left out",
        ),
        partial(
            _section,
            "The gaps are closed by {by}: the MLP's output projection of the layer before each, "
            "with the norm after it if there is one, has been refitted on a text (after "
            "[ReplaceMe](https://arxiv.org/abs/2505.02819)). The recovered share of the missing "
            "hidden state was measured on text that a fit left out.",
            {
                "layer before the gap": "{at}",
                "text": "`{plan.on}`",
                "tokens": "{tokens:,}",
                "ridge": "{plan.ridge!r}",
                "recovered": "{held_out:.1%}",
            },
        ),
        {"bridging": "bridging {0.at}"},
    ),
    "heal": FitWords(_healed_line, _healed),
}
