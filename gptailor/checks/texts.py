"""Faults of texts that a plan names: missing, of another form, and surely too short ones."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, final

from gptailor.checkpoint.datasets import CalibrationError, check_first_row
from gptailor.checkpoint.files import expanded
from gptailor.checkpoint.models import folder_of
from gptailor.checkpoint.token_cut import token_counter
from gptailor.checks.fit_sizes import least_tokens
from gptailor.plan.faults import Fault, Place, PlanError, locate, nearest_path
from gptailor.plan.plan import NO_TEXT, Plan, has_predictions
from gptailor.plan.registry import LEAST_IMPORTANCE_TOKENS, OBJECTIVES, RowForm
from gptailor.plan.sites import drops_by_choice, measured
from gptailor.program.sources import Checked

FEWER_TOKENS = "give more text, or fewer 'tokens'"
"""The remedy for a short text if the plan names the number of tokens."""


def refuse_unusable_texts(checked: Checked) -> None:
    """Raise PlanError (C801 to C804, C806) for unusable texts of fits and healing, with all."""
    plan = checked.plan
    faults = [*_unusable(plan, _learned(plan)), *_short_texts(plan, checked)]
    if faults:
        raise PlanError(faults)


def text_faults(plan: Plan, checked: Checked | None = None, *, whole: bool = True) -> list[Fault]:
    """Return a fault for each unusable text of a cut, bridge, healing, or measure.

    The first row of JSON lines must have the fields that are read. If the plan isn't `whole`, its
    drops may stand in statements that were not read. With its models in `checked`, the tokens of
    texts are counted.
    """
    unusable = _unusable(plan, [*_learned(plan, whole=whole), *_judged(plan)])
    return [*unusable, *_short_texts(plan, checked)]


@contextmanager
def text_errors_as_faults(plan: Plan) -> Iterator[None]:
    """Raise PlanError, with the place in the plan, for an error of a text that the plan names."""
    try:
        yield
    except CalibrationError as error:
        for text in (*_learned(plan), *_judged(plan)):
            if text.path == error.path:
                raise PlanError(locate([_text_fault(error, text.at)], plan.origin)) from error
        raise


def _text_fault(error: CalibrationError, at: Place) -> Fault:
    where = str(error.path) if error.line is None else f"{error.path}:{error.line}"
    return Fault(error.code, f"{error.message} ({where})", at, error.help)


_OPENED = 32
"""A sequence of a text has at least this many bytes for each special token that opens it."""
_BYTES_A_TOKEN = 8
"""A text with this many bytes for each token that is needed has enough tokens: its tokens are not
counted before it is used."""
_MOST_COUNTED = 2**23
"""Most bytes of a text for which tokens are counted before its use: some seconds."""


@final
class _Need(NamedTuple):
    """The tokens that a fit or healing needs of a text."""

    at: Place
    tokens: int
    user: str
    help: str = FEWER_TOKENS


def _short_texts(plan: Plan, checked: Checked | None = None) -> list[Fault]:
    """Return a fault (C806) for each text with fewer tokens than a bridge or healing needs.

    A token has at least a byte, in addition to the special tokens that open sequences. The tokens
    are counted if the models are known, the tokenizer is on this machine, and the package
    `tokenizers` is installed. A text that passes may still be too short by a few tokens.
    """
    paths = {text.at: text.path for text in _learned(plan)}
    counts = dict[Path, int | None]()
    faults = []
    for need in _needs(plan, checked):
        path = paths.get(need.at)
        if path is None or not path.is_file():
            continue
        most = (size := path.stat().st_size) + size // _OPENED
        if most < need.tokens:
            message = f"the text has {size:,} bytes, so fewer than {need.tokens:,} tokens"
        elif checked is None or size > min(_BYTES_A_TOKEN * need.tokens, _MOST_COUNTED):
            continue
        else:
            if path not in counts:
                counts[path] = _tokens_of(path, checked)
            count = counts[path]
            if count is None or count + count // _OPENED >= need.tokens:
                continue
            message = f"the text has {count:,} tokens, expected at least {need.tokens:,}"
        faults.append(Fault("C806", f"{message} for {need.user} ({path})", need.at, need.help))
    return locate(faults, plan.origin)


def _needs(plan: Plan, checked: Checked | None) -> Iterator[_Need]:
    """Yield the tokens that a plan needs of its texts; a fit's inputs if the models are known."""
    least = {} if checked is None else {fit.at: fit for fit in least_tokens(checked)}
    fits: list[tuple[Place, str, object]] = [
        *(((("bridges", i), "bridge", bridge.tokens)) for i, bridge in enumerate(plan.bridges)),
        *(((name,), name, fit.tokens) for name, fit in plan.text_fits.items()),
    ]
    for at, word, named in fits:
        asked = named if isinstance(named, int) else 0
        fit = least.get(at)
        if fit is not None and fit.least > asked:
            yield _Need((*at, "on"), fit.least, fit.user, fit.reason)
        elif asked:
            yield _Need((*at, "on"), asked, f"'{word}'")
    for i, file in enumerate(plan.gguf):
        if file.on is not None:
            yield _Need(
                ("gguf", i, "on"), LEAST_IMPORTANCE_TOKENS, "an importance matrix", "give more text"
            )
    if (heal := plan.heal) is not None and heal.tokens is not None:
        total = sum(text.weight for text in heal.on)
        for i, text in enumerate(heal.on):
            if text.answers is None and not text.predicted and text.weight > 0 and total > 0:
                share = int(heal.tokens * text.weight / total)
                yield _Need(("heal", "on", i, "file"), share, "'heal'")


def few_samples(plan: Plan, most: int, objective: str, size: int) -> Fault:
    """Return the fault (C815) for an objective with fewer samples than `fidelity` goes up to."""
    count = "1 sample" if size == 1 else f"{size:,} samples"
    message = f"'fidelity' goes up to {most:,} samples, but '{objective}' has {count}"
    help_ = f"give more rows, or a fidelity up to {size:,}"
    stated = plan.search is not None and (plan.search.fidelity or (0, 0))[1] == most
    fault = Fault("C815", message, ("search", "fidelity") if stated else (), help_)
    return locate([fault], plan.origin)[0]


def _tokens_of(path: Path, checked: Checked) -> int | None:
    """Return the tokens of a file's whole content, or None where they can't be counted.

    JSON Lines have more characters than their texts, so their count is too high by some tokens.
    Conversations are not counted, because a chat template adds tokens to them.
    """
    model = checked.tokenizer_model
    if model.union is not None or checked.plan.vocabulary is not None:
        return None  # a text has more tokens of a smaller vocabulary
    if (count := token_counter(model.checkpoint)) is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None  # reported when the text is read
    return None if '"messages"' in text[:_BEGIN] else count(text)


_BEGIN = 4096
"""Characters at the beginning of a file that show the form of its rows."""


@final
class _Text(NamedTuple):
    """A text that a plan reads, its place in the plan, and the form of its rows."""

    at: Place
    path: Path
    form: RowForm = "text"
    answered: bool = False


def _unusable(plan: Plan, texts: Iterable[_Text]) -> list[Fault]:
    """Return a fault for each missing text, each wrong first row, and predictions as a text.

    A file has one fault of a kind.
    """
    faults = []
    reported: set[tuple[Path, RowForm | None]] = set()
    for text in texts:
        path = text.path
        if (path, None) in reported or (path, text.form) in reported:
            continue
        if has_predictions(path.name) and text.at[0] != "heal":
            faults.append(Fault("C803", NO_TEXT, text.at, "name the file of the text"))
        elif not path.is_file():
            reported.add((path, None))
            why = "isn't a file" if path.exists() else "can't be read: No such file or directory"
            near = "" if path.exists() else nearest_path(path)
            faults.append(Fault("C801", f"the text {why} ({path})", text.at, near))
        elif not has_predictions(path.name):
            try:
                check_first_row(path, text.form, answered=text.answered)
            except CalibrationError as error:
                reported.add((path, text.form))
                faults.append(_text_fault(error, text.at))
    return locate(faults, plan.origin)


def _learned(plan: Plan, *, whole: bool = True) -> Iterator[_Text]:
    """Yield the texts that cuts, fits and healing read, without texts of bridges without a gap."""
    dropping = not whole or bool(plan.drops) or any(True for _ in drops_by_choice(plan))
    used = {"bridges": dropping, "heal": not whole or plan.may_be_healed}
    for at, file in plan.calibration_texts:
        if not file or not used.get(str(at[0]), True):
            continue
        path = folder_of(plan, file)
        if at[0] == "heal" and plan.heal is not None:
            answers = plan.heal.on[int(at[2])].answers is not None
            only_answers = plan.heal.loss == "answers" and not answers
            yield _Text(at, path, "prompt" if answers else "chat", only_answers)
        else:
            yield _Text(at, path, "chat" if at[0] == "vocabulary" else "text")


def _judged(plan: Plan) -> Iterator[_Text]:
    """Yield the texts that objectives, requirements and expectations read."""
    folder = plan.origin.folder if plan.origin else Path()
    for at, wish in measured(plan):
        spec = OBJECTIVES.get(wish.name)
        for argument in spec.arguments if spec is not None else ():
            file = wish.arguments.get(argument.name)
            if argument.kind == "path" and isinstance(file, str) and file:
                path = folder / expanded(file)
                yield _Text((*at, "arguments", argument.name), path, argument.rows)
