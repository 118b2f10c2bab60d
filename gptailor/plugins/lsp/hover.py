"""The text on the word under the cursor: recipes, models, methods, numbers, sizes."""

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from lsprotocol import types
from pygls.uris import from_fs_path

from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.models import Opened, folder_of, is_local, is_remote
from gptailor.lang import words as tailor
from gptailor.plan import plan as p
from gptailor.plan.fault_pages import FAULTS_FILE, fault_pages
from gptailor.plan.faults import Fault, Span
from gptailor.plan.layer_parts import is_pattern
from gptailor.plan.plan import is_at_url
from gptailor.plan.registry import METHODS, OBJECTIVES, Method, ObjectiveSpec, Parameter
from gptailor.plan.resolved import Resolved, Slot
from gptailor.plugins.lsp.names import NameKind, Occurrence
from gptailor.plugins.lsp.text import NOT_CACHED, EditedText, SeenModels, layers_named
from gptailor.program.compile import plan_size
from gptailor.program.sources import Checked
from gptailor.reporting.layer_view import layer_views
from gptailor.reporting.quantities import bytes_in_words

KEYWORDS = {
    "all": "all tokens of the texts count: loss all",
    "answers": "a teacher's own answers, answers(\"prompts.jsonl\"); only they count: loss answers",
    "any": "a choice: any subset, as in any of math, code",
    "bridge": "closes a gap by a fit on a text: bridge L11 on \"text.txt\"",
    "by": "the method that merges, or the number that scales",
    "chat_template": "the output's chat template: a file, a model's, or \"chatml\"",
    "drop": "these positions leave the model: drop L20..L25",
    "dtype": "the output's dtype: dtype bfloat16",
    "embed": "the sources of the embedding: embed from math",
    "experts": "the number of experts that each layer keeps: experts 64 on \"text.txt\"",
    "expect": "a bound that 'gptailor test' checks: expect nll(\"text.txt\") <= 1.1 * base",
    "fidelity": "the number of samples of a trial: fidelity 64..1024",
    "from": "the source model, at the same layer: L0..L9 from math; or the teacher",
    "full": "the weights themselves learn: rank full",
    "gguf": "a file for llama.cpp that compile writes: gguf q4_k_m, or gguf q4_k_m on \"text.txt\"",
    "head": "the sources of the output head: head from math",
    "heal": "the output learns on texts: heal on \"math.txt\" from math, \"chat.txt\" weight 2",
    "layers": "limit 50 layers",
    "let": "gives a number, or a choice of one, a name: let mix = 0.0..1.0",
    "limit": "the most layers of a stack; its last 'maybe' items go first: limit 50 layers",
    "loss": "which tokens count in healing: loss answers, or loss all",
    "maximize": "an objective; the largest score is best",
    "maybe": "a choice: the statement holds or doesn't",
    "merge": "several models' layers become one: merge(L12 base, L12 math, 0.5)",
    "minimize": "an objective; the smallest score is best: minimize nll(\"text.txt\")",
    "model": "gives a checkpoint a name: model math = \"./models/math\"",
    "norm": "the sources of the final norm: norm from math",
    "of": "before the items to choose from",
    "on": "before the text that is learned or fitted on",
    "one": "a choice: one of several, as in one of math, code",
    "others": "all positions that no layer statement names: others from math, code by linear()",
    "over": "the layers that a curve goes over: curve(0, 1) over L0..L31",
    "rank": "the rank of the learned change: rank 64",
    "repeat": "these layers come again: repeat L14..L17 times 2",
    "require": "a requirement of the found plan: require parameters() <= 0.75 * base",
    "ridge": "the regularisation of a bridge's fit: ridge 0.1",
    "scale": "the hidden state after a layer is multiplied: scale L12 by 0.9",
    "search": "a block: the settings of a search",
    "seed": "the seed of all random draws",
    "stack": "a block: the output's layers in order",
    "step": "the distance of sizes in a range: 16384..49152 step 4096",
    "tailor": "the version of the language, first in a file",
    "temperature": "how freely answers are drawn, 0 for the likeliest token: temperature=0.7",
    "tied": "one choice for all layers of the statement",
    "times": "the number of further runs of a block: times 2",
    "tokenizer": "the model that gives the tokenizer: tokenizer from math, or tokenizer union",
    "tokens": "the number of tokens to read: tokens 65536",
    "trials": "the number of plans that a search tries: trials 500",
    "union": "the tokens of all models",
    "vocabulary": "the most used tokens stay: vocabulary 24576 on \"text.txt\"",
    "weight": "a text's share of the tokens, relative to the other texts' weights: weight 2",
    "whole": "everything that no other statement names: whole from math, code by linear()",
    "width": "the number of neurons that each MLP keeps: width 1280 on \"text.txt\"",
    "window": "a choice: neighbours, as in drop window 7 of L5..L28",
}  # fmt: skip
"""The effect of each word of the grammar, in a clause."""

_DOTS = "\n\n"


def bounds_words(parameter: Parameter) -> str:
    """Return a parameter's bounds and default: `a number in (0, 1], 0.5 by default`."""
    if parameter.words:
        words = " or ".join(parameter.words)
    else:
        noun = "a whole number" if parameter.integer else "a number"
        words = noun if parameter.bounds == "(-∞, ∞)" else f"{noun} in {parameter.bounds}"
        words += ", or one for each source" * (parameter.each or parameter.variadic)
    return words if parameter.default is None else f"{words}; {parameter.default} by default"


def hovered(text: EditedText, offset: int, seen: SeenModels) -> tuple[str, Occurrence] | None:
    """Return Markdown on the word at an offset, and the word; None without a text on it."""
    word = text.word_at(offset) or text.keyword_at(offset)
    if word is None:
        return None
    describe = _DESCRIPTIONS.get(word.kind)
    markdown = describe(text, word, seen) if describe is not None else ""
    return (markdown, word) if markdown else None


# ------------------------------------------------------------------------------------------ layers


def _layer(text: EditedText, word: Occurrence, seen: SeenModels) -> str:
    if word.models:
        return _layer_of_models(text, word, seen)
    plan = text.plan
    if plan is None or plan.stack is not None:
        return ""
    base_layers = seen.layers(plan)
    count = base_layers or layers_named(text)
    if word.number >= count:
        return f"**L{word.number}**: the base has {count} layers, L0 to L{count - 1}"
    where = f"position {word.number} of {base_layers or 'the'} base{' layers' * bool(base_layers)}"
    if text.sound is None:
        return f"**L{word.number}**: {where}"  # its sources aren't certain
    resolved = Resolved(plan, count)
    layer = layer_views(resolved)[word.number]
    recipe = f"**L{word.number}**: `{layer.recipe}`"
    return _DOTS.join([recipe, f"{where}; {_in_output(resolved, layer.slot)}"])


def _in_output(resolved: Resolved, slot: Slot) -> str:
    """Return the numbers of a position in the output, as far as they are certain."""
    if slot.dropped == "yes":
        return "not in the output"
    if not resolved.layers_are_certain:
        return "where it is in the output depends on choices"
    kept = resolved.kept
    numbers = (i for i, other in enumerate(kept) if other.position == slot.position)
    return f"{' and '.join(f'L{i}' for i in numbers)} of the output's {len(kept)} layers"


def _layer_of_models(text: EditedText, word: Occurrence, seen: SeenModels) -> str:
    lines = []
    for name in word.models:
        model = seen.model(text.plan, name)
        of = f" of {model.layout.count}" if model is not None else ""
        lines.append(f"**L{word.number}** of `{name}`: layer {word.number}{of}")
    return _DOTS.join(lines)


# ------------------------------------------------------------------------------------------ models


def _model(text: EditedText, word: Occurrence, seen: SeenModels) -> str:
    plan = text.plan
    if plan is None or word.text not in plan.models:
        return f"`{word.text}` is not declared"
    declared = plan.models[word.text]
    paragraphs = [f"```tailor\nmodel {word.text} = {tailor.model_source(declared)}\n```"]
    opened = seen.model(plan, word.text)
    if opened is not None:
        paragraphs.append(_model_facts(opened))
        if opened.checkpoint.folder and not opened.checkpoint.nested:
            paragraphs.append(f"in `{opened.checkpoint.folder}`")
    elif declared.made is None:
        paragraphs.append(_not_there(plan, declared))
    if word.declares and word.text == "base":
        paragraphs += output_size(text, seen)
    return _DOTS.join(paragraphs)


def _model_facts(model: Opened) -> str:
    """Return `llama, 30 layers, 134,515,008 parameters, bfloat16`."""
    tensors = [info.spec for info in model.checkpoint.tensors.values()]
    dtypes = sorted({spec.dtype for spec in tensors})
    sum_ = sum(spec.elements for spec in tensors)
    family = model.config.get("model_type", "of no named family")
    return f"{family}, {model.layout.count} layers, {sum_:,} parameters, {', '.join(dtypes)}"


def _not_there(plan: p.Plan, declared: p.Model) -> str:
    if is_remote(declared):
        return "on the Hub, not in the cache"
    folder = folder_of(plan, declared.source)
    return f"`{folder}`" if folder.exists() else f"there is no `{folder}`"


def output_size(text: EditedText, seen: SeenModels) -> Iterator[str]:
    """Yield the output's size for a sound, closed plan with all models at hand."""
    plan = text.plan
    if plan is None or not seen.whole or seen.declared != plan.models:
        return
    checked = Checked.of(plan, seen.opened)
    if count := checked.resolved.choices:
        yield f"{count} choice{'s' * (count != 1)} open: `gptailor search` closes them"
        return
    try:
        size = plan_size(checked)
    except (CalibrationError, CheckpointError):  # a text of the vocabulary, which is a fault
        return
    counts = f"{size.layers} layers, {size.parameters:,} parameters"
    yield f"the output: {counts}, {bytes_in_words(size.bytes)}"
    if size.kv_cache is not None:
        yield f"its KV cache: {bytes_in_words(size.kv_cache)} a token"


# ------------------------------------------------------------------- methods, objectives, numbers


def _method(_: EditedText, word: Occurrence, __: SeenModels) -> str:
    method = METHODS.get(word.text)
    return method_markdown(method) if method is not None else ""


def method_markdown(method: Method) -> str:
    """Return a method's formula, sources and parameters."""
    more = " or more" if method.most is None else f" to {method.most}"
    sources = f"{method.least}{'' if method.most == method.least else more}"
    needs = "; it takes task vectors against the base" * method.needs_base
    lines = [f"**{method.name}**: {method.formula}", f"sources: {sources}{needs}"]
    lines += [f"- `{parameter.name}`: {bounds_words(parameter)}" for parameter in method.parameters]
    return _DOTS.join(lines[:2]) + "\n\n" * bool(lines[2:]) + "\n".join(lines[2:])


def _objective(_: EditedText, word: Occurrence, __: SeenModels) -> str:
    spec = OBJECTIVES.get(word.text)
    return objective_markdown(spec) if spec is not None else ""


def objective_markdown(spec: ObjectiveSpec) -> str:
    """Return an objective's direction, unit and arguments."""
    direction = f"to {spec.direction}" if spec.direction else "its metric has the direction"
    unit = f", in {spec.unit}" if spec.unit else ""
    lines = [f"**{spec.name}**: an objective {direction}{unit}"]
    lines += [
        f"- `{argument.name}`: a {argument.kind}{'' if argument.required else ', if wanted'}"
        for argument in spec.arguments
    ]
    return lines[0] + "\n\n" * bool(lines[1:]) + "\n".join(lines[1:])


def _parameter(_: EditedText, word: Occurrence, __: SeenModels) -> str:
    assert word.call is not None, "a parameter is a call's"
    name = word.call.name.text
    if word.measures:
        spec = OBJECTIVES.get(name)
        argument = spec.argument(word.text) if spec is not None else None
        return f"`{word.text}` of `{name}`: a {argument.kind}" if argument is not None else ""
    method = METHODS.get(name)
    parameter = method.parameter(method.called(word.text)) if method is not None else None
    return f"`{parameter.name}` of `{name}`: {bounds_words(parameter)}" if parameter else ""


def _number(text: EditedText, word: Occurrence, _: SeenModels) -> str:
    plan = text.plan
    if plan is None or word.text not in plan.numbers:
        return f"the number `{word.text}` is not defined"
    value = plan.numbers[word.text]
    uses = len(text.uses(word)) - 1
    declaration = f"```tailor\nlet {word.text} = {tailor.value_words(value)}\n```"
    choice = "" if isinstance(value, int | float) else "a choice, the same number everywhere; "
    return _DOTS.join([declaration, f"{choice}used {uses} time{'s' * (uses != 1)}"])


def _keyword(text: EditedText, word: Occurrence, seen: SeenModels) -> str:
    paragraphs = [f"**{word.text}**: {KEYWORDS[word.text]}"] if word.text in KEYWORDS else []
    if word.text == "tailor":
        paragraphs += output_size(text, seen)
    return _DOTS.join(paragraphs)


# ------------------------------------------------------------------------------- texts, and faults


def _source(text: EditedText, word: Occurrence, _: SeenModels) -> str:
    if text.plan is None or not is_local(word.text) or is_at_url(word.text):
        return ""
    return _file(folder_of(text.plan, word.text))


def _named_file(text: EditedText, word: Occurrence, _: SeenModels) -> str:
    return _file(text.named(word.text))


def _file(path: Path) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return f"there is no `{path}`"
    if stat.S_ISDIR(status.st_mode):
        return f"the folder `{path}`"
    return f"`{path}`, {bytes_in_words(status.st_size)}"


def _part(_: EditedText, word: Occurrence, __: SeenModels) -> str:
    if is_pattern(word.text):
        return "the tensors of a layer with matching names; `*` matches any characters"
    branch, _dot, role = word.text.partition(".")
    if role:
        return f"`{word.text}`: a projection of the branch `{branch}`"
    meanings = {
        "norms": "all norms of a layer",
        "attn": "attention",
        "mlp": "the feed-forward branch",
    }
    return f"`{branch}`: {meanings[branch]}" if branch in meanings else ""


_DESCRIPTIONS: dict[NameKind, Callable[[EditedText, Occurrence, SeenModels], str]] = {
    "layer": _layer,
    "model": _model,
    "method": _method,
    "objective": _objective,
    "parameter": _parameter,
    "number": _number,
    "keyword": _keyword,
    "source": _source,
    "file": _named_file,
    "part": _part,
}
"""The functions that describe a word, by its kind."""


def diagnostic(text: EditedText, fault: Fault) -> types.Diagnostic:
    """Return a fault as editors show it.

    A fault in the file of a plan that is a model is shown at the model's declaration.
    """
    message, related = fault.message, []
    span = fault.span or Span(0, 0)
    if fault.source is not None and fault.source.name != text.source.name:
        place = from_fs_path(fault.source.name) or text.uri
        other = EditedText(place, fault.source.text, text.encoding)
        related = [_related(other, other.lines.range(span), message)]
        span = _declaring(text, fault.source.name)
        message = f"{Path(fault.source.name).name}: {message}"
    for also in fault.also if not related else ():
        if also.span is not None:
            related.append(_related(text, text.lines.range(also.span), also.label))
    page = fault_pages().get(fault.code)
    link = f"{FAULTS_FILE.resolve().as_uri()}#L{page.line}" if page is not None else None
    return types.Diagnostic(
        text.lines.range(_seen_span(text, span)),
        f"{message}\n{fault.help}" if fault.help else message,
        severity=_severity(fault),
        code=fault.code,
        code_description=types.CodeDescription(link) if link is not None else None,
        source="gptailor",
        tags=[types.DiagnosticTag.Unnecessary] if fault.code in ("P115", "P507") else None,
        related_information=related or None,
    )


def _severity(fault: Fault) -> types.DiagnosticSeverity:
    if fault.severity == "error":
        return types.DiagnosticSeverity.Error
    excused = fault.code == NOT_CACHED
    return types.DiagnosticSeverity.Information if excused else types.DiagnosticSeverity.Warning


def _related(
    text: EditedText, where: types.Range, message: str
) -> types.DiagnosticRelatedInformation:
    return types.DiagnosticRelatedInformation(types.Location(text.uri, where), message)


def _declaring(text: EditedText, path: str) -> Span:
    """Return the span of the words that name a plan's file."""
    for word in text.words:
        if word.kind == "source" and text.named(word.text).resolve() == Path(path).resolve():
            return word.span
    return Span(0, 0)


def _seen_span(text: EditedText, span: Span) -> Span:
    """Return the span, widened to one character if it is empty and its line isn't."""
    if span.end > span.start:
        return span
    if text.text[span.start : span.start + 1].strip():
        return Span(span.start, span.start + 1)
    return Span(max(0, span.start - 1), span.start) if text.text[: span.start].strip() else span
