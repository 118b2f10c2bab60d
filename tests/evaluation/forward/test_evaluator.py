"""One plan through the evaluator: the model's own numbers, whatever the batches; or a Failure."""

import gc
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gptailor.evaluation.forward.evaluator import LOGITS, Evaluator, attempt, rotation_edge
from gptailor.evaluation.forward.requests import (
    Request,
    Results,
    Work,
)
from gptailor.evaluation.live.template import decoder_layers
from gptailor.evaluation.scores import Failure
from tests.evaluation.lent import broken, lent, likelihood, loaded, requests, whole
from tests.support.structures import structure
from tests.support.thorough import one_of_each
from tests.support.tiny import CONFIGURATIONS, VOCAB_SIZE
from tests.support.tiny_mixed import MIXED

HUGE = 2**46
"""Bytes that no machine has."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return loaded("llama", tmp_path_factory.mktemp("pool"))


def results(result: Results | Failure) -> Results:
    assert not isinstance(result, Failure), result
    return result


def same(one: Results, other: Results) -> bool:
    pairs = [zip(a, b, strict=True) for a, b in zip(one, other, strict=True)]
    return all(torch.equal(a, b) for pair in pairs for a, b in pair)


def own_logits(model: PreTrainedModel, request: Request) -> Tensor:
    logits = model(input_ids=torch.tensor([request.tokens]), use_cache=False).logits[0]
    return logits[request.first - 1 : -1].float()


# ------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("family", one_of_each(CONFIGURATIONS, structure))
def test_logits_are_those_of_the_models_own_forward(family: str, tmp_path: Path) -> None:
    model = loaded(family, tmp_path)
    asked = requests(12)
    plan = lent(model, range(6))
    result = results(Evaluator(batch_tokens=96).run(plan, [Work(asked, whole)]))
    near = {"rtol": 1e-3, "atol": 2e-4} if family in MIXED else {"rtol": 1e-4, "atol": 2e-5}
    for request, logits in zip(asked, result[0], strict=True):
        torch.testing.assert_close(logits, own_logits(model, request), **near)


def test_numbers_do_not_depend_on_the_order_of_requests(pool: PreTrainedModel) -> None:
    asked, plan = requests(20), lent(pool, range(6))
    forth = results(Evaluator(batch_tokens=64).run(plan, [Work(asked, likelihood)]))
    back = results(Evaluator(batch_tokens=64).run(plan, [Work(asked[::-1], likelihood)]))
    assert same(forth, [back[0][::-1]])


def test_each_row_has_its_request_number(pool: PreTrainedModel) -> None:
    asked = requests(15)

    def told(logits: Tensor, targets: Tensor, numbers: Tensor) -> Tensor:
        return torch.stack([targets, numbers], dim=1)

    [result] = results(Evaluator(batch_tokens=64).run(lent(pool, [0]), [Work(asked, told)]))
    number = 0
    for request, rows in zip(asked, result, strict=True):
        for token, row in zip(request.tokens[request.first :], rows, strict=True):
            assert row.tolist() == [token, number]
            number += 1


def test_several_works_have_separate_results(pool: PreTrainedModel) -> None:
    asked, plan = requests(12), lent(pool, range(4))
    works = [Work(asked, likelihood), Work([], whole), Work(asked[3:6], whole)]
    result = results(Evaluator(batch_tokens=64).run(plan, works))
    assert [len(item) for item in result] == [12, 0, 3]
    for request, values, logits in zip(asked[3:6], result[0][3:6], result[2], strict=True):
        targets = torch.tensor(request.tokens[request.first :])
        assert torch.equal(values, likelihood(logits, targets, targets))


def test_two_texts_of_a_work_may_need_the_same_row(pool: PreTrainedModel) -> None:
    letters = [Request((7, 8, 1), 2), Request((7, 8, 2), 2)]
    works = [Work(letters, whole), Work([Request((7, 8, 3), 1)], whole)]
    result = results(Evaluator().run(lent(pool, range(3)), works))
    for logits in result[0]:
        assert torch.equal(logits, result[1][0][1:])


def test_empty_requests_give_empty_results(pool: PreTrainedModel) -> None:
    assert Evaluator().run(lent(pool, [0]), []) == []
    assert Evaluator().run(lent(pool, [0]), [Work([], whole)]) == [[]]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_logits_are_made_in_chunks(
    pool: PreTrainedModel, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGITS, "cpu", 4 * VOCAB_SIZE * step)
    sizes: list[int] = []

    def sized(logits: Tensor, targets: Tensor, numbers: Tensor) -> Tensor:
        sizes.append(len(logits))
        return likelihood(logits, targets, numbers)

    asked = [*requests(6), *(Request((5, 6, 7, token), 3) for token in range(8, 16))]
    plan = lent(pool, [0])
    result = results(Evaluator(batch_tokens=64).run(plan, [Work(asked, sized)]))
    assert max(sizes) <= step
    for request, values in zip(asked, result[0], strict=True):
        targets = torch.tensor(request.tokens[request.first :])
        wanted = likelihood(own_logits(plan.model, request), targets, targets)
        torch.testing.assert_close(values, wanted)


def test_a_layer_is_lent_once_for_all_batches(pool: PreTrainedModel) -> None:
    plan = lent(pool, [3, 1, 2])
    evaluator = Evaluator(batch_tokens=32)
    works = [Work(requests(20), likelihood)]
    results(evaluator.run(plan, works))
    results(evaluator.run(plan, works))
    assert plan.lendings[-6:] == [0, 1, 2, 0, 1, 2]  # before them perhaps 0: how layers return
    assert len(plan.lendings) <= 7


def test_rotations_that_depend_on_length_are_each_texts_own(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.0],
        "long_factor": [2.0, 3.0],
        "original_max_position_embeddings": 16,
    }
    model = loaded("phi3", tmp_path, rope_parameters=rope, original_max_position_embeddings=16)
    assert rotation_edge(model.config) == 16
    long = Request(tuple(range(3, 33)), 5)
    asked = [long, Request(long.tokens[:9], 5), Request((5, 4, 3, 5, 6), 1)]
    result = results(Evaluator().run(lent(model, range(6)), [Work(asked, whole)]))
    for request, logits in zip(asked, result[0], strict=True):
        torch.testing.assert_close(logits, own_logits(model, request), rtol=1e-4, atol=2e-5)


def test_a_model_without_such_rotations_has_no_edge(pool: PreTrainedModel) -> None:
    assert rotation_edge(pool.config) is None


# ------------------------------------------------------------------------------------ the failures


@pytest.fixture
def asked() -> list[Request]:
    return requests(20)


@pytest.fixture
def evaluator(pool: PreTrainedModel, asked: list[Request]) -> Iterator[Evaluator]:
    """After whatever failed, the next trial has the numbers of a first one."""
    evaluator = Evaluator(batch_tokens=64, cache=2**20)
    first = results(evaluator.run(lent(pool, range(6)), [Work(asked, likelihood)]))
    yield evaluator
    plan = lent(pool, range(6))
    layers = list(decoder_layers(plan.model))
    again = results(evaluator.run(plan, [Work(asked, likelihood)]))
    assert same(first, again)
    assert list(decoder_layers(plan.model)) == layers


def reject(hidden: Tensor) -> None:
    raise RuntimeError("no such thing")


def test_an_exception_in_a_layer(
    pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator
) -> None:
    plan = broken(lent(pool, range(6)), 3, reject)
    result = evaluator.run(plan, [Work(asked, likelihood)])
    assert result == Failure("error", "RuntimeError: no such thing")
    assert len(decoder_layers(plan.model)) == 6


def test_an_exception_in_a_measure(
    pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator
) -> None:
    def raising(logits: Tensor, targets: Tensor, numbers: Tensor) -> Tensor:
        raise KeyError("gone")

    result = evaluator.run(lent(pool, range(6)), [Work(asked, raising)])
    assert result == Failure("error", "KeyError: 'gone'")


def test_a_measure_with_a_wrong_shape_fails(
    pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator
) -> None:
    def summed(logits: Tensor, targets: Tensor, numbers: Tensor) -> Tensor:
        return logits.sum(0, keepdim=True)

    result = evaluator.run(lent(pool, range(6)), [Work([Request((3, 4, 5), 1)], summed)])
    assert result == Failure(
        "error", f"ValueError: a measure of 2 rows returned [1, {VOCAB_SIZE}] numbers"
    )


def test_nan_in_a_layer(pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator) -> None:
    plan = broken(lent(pool, range(6)), 5, lambda hidden: hidden[0].fill_(float("nan")))
    result = evaluator.run(plan, [Work(asked[:1], whole), Work(asked, likelihood)])
    assert isinstance(result, Failure)
    assert result.reason == "nan"
    assert re.fullmatch(r"\d+ of \d+ predictions are NaN", result.message)


def test_too_little_memory_for_one_row_fails(
    pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator
) -> None:
    plan = broken(lent(pool, range(6)), 2, lambda _: torch.empty(HUGE, dtype=torch.uint8))
    result = evaluator.run(plan, [Work(asked, likelihood)])
    assert isinstance(result, Failure)
    assert result.reason == "memory"
    assert plan.lendings == [0, 1, 2, 0, 1, 2]  # twice


def test_a_batch_is_halved_if_memory_is_short(
    pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator
) -> None:
    def eats(hidden: Tensor) -> None:
        if hidden.shape[0] * hidden.shape[1] > 32:
            torch.empty(HUGE, dtype=torch.uint8)

    plan = broken(lent(pool, range(6)), 2, eats)
    result = results(evaluator.run(plan, [Work(asked, likelihood)]))
    small = Evaluator(batch_tokens=32).run(lent(pool, range(6)), [Work(asked, likelihood)])
    assert same(result, results(small))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
)
def test_errors_of_allocators_are_memory_failures(error: Exception) -> None:
    def do() -> None:
        raise error

    failed = attempt(do)
    assert isinstance(failed, Failure)
    assert failed.reason == "memory"


def test_an_unknown_token(
    pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator
) -> None:
    work = Work([Request((3, VOCAB_SIZE), 1)], likelihood)
    result = evaluator.run(lent(pool, range(6)), [work])
    words = f"ValueError: token {VOCAB_SIZE} is outside the model's {VOCAB_SIZE} embeddings"
    assert result == Failure("error", words)


def test_an_interruption_isnt_a_failure(
    pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator
) -> None:
    def interrupted(hidden: Tensor) -> None:
        raise KeyboardInterrupt

    plan = broken(lent(pool, range(6)), 3, interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluator.run(plan, [Work(asked, likelihood)])
    assert len(decoder_layers(plan.model)) == 6


def test_a_failed_plan_leaves_no_tensor_behind(
    pool: PreTrainedModel, asked: list[Request], evaluator: Evaluator
) -> None:
    seen: list[weakref.ref[Tensor]] = []

    def noted(hidden: Tensor) -> None:
        seen.append(weakref.ref(hidden))
        if len(seen) > 3:
            reject(hidden)

    plan = broken(lent(pool, range(6)), 3, noted)
    gc.disable()  # the tensors go with the last reference to them
    try:
        assert isinstance(evaluator.run(plan, [Work(asked, likelihood)]), Failure)
        assert [item() for item in seen] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.parametrize("first", [-1, 0, 3, 4])
def test_a_request_without_context_or_target_is_refused(first: int) -> None:
    with pytest.raises(ValueError, match="can't be predicted"):
        replace(Request((3, 4, 5), 1), first=first)
