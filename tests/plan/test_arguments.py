"""The arguments of verbs in Python: each is checked before the verb does anything."""

import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptailor
from gptailor.plan.arguments import checked

VERBS = [name for name in gptailor.__all__ if inspect.isfunction(getattr(gptailor, name, None))]
ANYTHING = {("merge", "sources"), ("merge", "base")}
"""Arguments that the verb checks itself: their tensors are of several types."""


def named(verb: str) -> list[str]:
    """The names of a verb's arguments that its annotations describe."""
    parameters = inspect.signature(getattr(gptailor, verb)).parameters.values()
    return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]


@pytest.mark.parametrize("verb", VERBS)
def test_each_argument_of_a_verb_is_checked_by_name(verb: str) -> None:
    function = getattr(gptailor, verb)
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    fine = dict.fromkeys(needed, "x") | ({"direction": "minimize"} if verb == "objective" else {})
    for name in named(verb):
        for wrong in (5j, b"p.tailor", [object()]):
            if (verb, name) in ANYTHING:
                continue
            given = {**fine, name: wrong}
            first = [given.pop(p.name) for p in parameters
                     if p.kind is p.POSITIONAL_ONLY and p.name in given]  # fmt: skip
            first = [{"a": torch.ones(1)}, *first[1:]] if verb == "merge" else first
            with pytest.raises(TypeError, match=f"^'{name}': expected .*, got "):
                function(*first, **given)


NUMBERS: list[tuple[Callable[[Any], object], str, str]] = [
    (lambda n: gptailor.ComputeOptions(threads=n), "threads", "int >= 1 | None"),
    (lambda n: gptailor.ComputeOptions(shard_size=n), "shard_size", "int >= 1"),
    (lambda n: gptailor.ComputeOptions(memory=n), "memory", "int >= 1 | str | None"),
    (lambda n: gptailor.Flags(fidelity=(n, 2)), "fidelity", "tuple[int >= 1, int >= 1] | None"),
    (lambda n: gptailor.Flags(finalists=n), "finalists", "int >= 1 | None"),
    (lambda n: gptailor.Flags(trials=n), "trials", "int >= 1 | None"),
    (lambda n: gptailor.Resources(workers=n), "workers", "int >= 1 | None"),
    (lambda n: gptailor.Resources(gpus_per_worker=n), "gpus_per_worker", "int >= 1"),
    (lambda n: gptailor.lock("p", threads=n), "threads", "int >= 1 | None"),
    (lambda n: gptailor.evaluate("p", "o", samples=n), "samples", "int >= 1 | None"),
    (lambda n: gptailor.evaluate_expectations("p", samples=n), "samples", "int >= 2 | None"),
    (lambda n: gptailor.evaluate("p", "o", memory=n), "memory", "int >= 1 | str | None"),
    (lambda n: gptailor.generate("p", "a", tokens=n), "tokens", "int >= 1"),
    (lambda n: gptailor.show("p", width=n), "width", "int >= 1"),
    (lambda n: gptailor.extract_lora("a", "b", "c", rank=n), "rank", "int >= 1"),
    (lambda n: gptailor.export_mergekit("p", layers=n), "layers", "int >= 1 | None"),
    (lambda n: gptailor.import_mergekit("p", layers=n), "layers", "int >= 1 | None"),
    (lambda n: gptailor.teach("m", "t", "o.parquet", tokens=n), "tokens", "int >= 1 | None"),
    (lambda n: gptailor.teach("m", "t", "o.parquet", length=n), "length", "int >= 1 | None"),
    (lambda n: gptailor.report("p", "o", tokens=n), "tokens", "int >= 1"),
    (lambda n: gptailor.search("p", "r", trials=n), "trials", "int >= 1 | None"),
    (lambda n: gptailor.Flags(seed=n - 1), "seed", "int >= 0 | None"),
    (lambda n: gptailor.evaluate("p", "o", seed=n - 1), "seed", "int >= 0"),
    (lambda n: gptailor.evaluate_expectations("p", seed=n - 1), "seed", "int >= 0"),
    (lambda n: gptailor.teach("m", "t", "o.parquet", seed=n - 1), "seed", "int >= 0"),
]


def called(call: Callable[..., object], *arguments: object) -> None:
    """Call a verb, unless its plugin is missing."""
    try:
        call(*arguments)
    except AttributeError as error:
        if "needs the plugin" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize(("call", "name", "expected"), NUMBERS)
def test_numbers_have_their_range(call: Callable[[Any], object], name: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^'{name}': expected {re.escape(expected)}, got "):
        called(call, 0)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gptailor.check("p", ["a"]), r"'models': expected Mapping\[str, str \| Path\] \| "
         r"None, got \['a'\]"),
        (lambda: gptailor.check("p", {"base": None}), r"'models': .*, got \{'base': None\}"),
        (lambda: gptailor.compile("p", "out", gguf="q8_0"), "'gguf': .*, got 'q8_0'"),
        (lambda: gptailor.compile("p", "out", force="no"), "'force': expected bool, got 'no'"),
        (lambda: gptailor.generate("p", "a", tokens=True), "'tokens': expected int >= 1, got True"),
        (lambda: gptailor.Flags(objectives="nll()"), "'objectives': .*, got 'nll"),
        (lambda: gptailor.CardFacts(languages="en"), "'languages': .*, got 'en'"),
        (lambda: gptailor.Resources(dtype=16), r"'dtype': expected str \| None, got 16"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named_with_the_expected_one(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        called(call)


@pytest.mark.wrong_types
def test_an_unknown_word_is_a_wrong_value() -> None:
    with pytest.raises(ValueError, match=r"'bridge': expected 'each' \| .* \| None, got 'none'"):
        gptailor.Flags(bridge="none")  # type: ignore[arg-type]


@pytest.mark.wrong_types
def test_names_of_torch_are_texts_and_iterators_are_read_once() -> None:
    seen: list[object] = []

    @checked
    def verb(dtype: str, device: str, targets: list[str], count: int) -> None:
        seen.extend((dtype, device, targets, count))

    verb(torch.float16, torch.device("cpu"), (t for t in "ab"), np.int64(3))  # type: ignore[arg-type]
    assert seen == ["float16", "cpu", ("a", "b"), 3]
    assert type(seen[3]) is int
    assert gptailor.Resources(dtype=torch.bfloat16).dtype == "bfloat16"


def test_a_verb_keeps_its_signature_and_can_be_sent_to_another_process(tmp_path: Path) -> None:
    assert list(inspect.signature(gptailor.check).parameters) == ["plan", "models"]
    assert "Return all faults of a plan" in str(gptailor.check.__doc__)
    assert pickle.loads(pickle.dumps(gptailor.check)) is gptailor.check
    with pytest.raises(TypeError, match=r"check\(\) got an unexpected keyword argument"):
        gptailor.check("p", on_event=print)  # type: ignore[call-arg]


def test_a_wrong_target_of_report_names_the_allowed_types() -> None:
    with pytest.raises(TypeError, match=r"'target': expected str \| Path \| Plan \| SearchResult"):
        called(lambda: gptailor.report(None, "out.html"))  # type: ignore[arg-type]


@pytest.mark.wrong_types
def test_a_function_in_place_of_a_name_has_the_decorator_that_names_it() -> None:
    def brevity(text: str) -> float:
        return len(text)

    with pytest.raises(TypeError, match=r"'strategy': .*; @gptailor\.strategy registers a class"):
        gptailor.Flags(strategy=brevity)  # type: ignore[arg-type]
    for objectives in (brevity, [brevity]):
        with pytest.raises(TypeError, match=r"; @gptailor\.objective registers a function"):
            gptailor.evaluate("cut.tailor", objectives)  # type: ignore[arg-type]
