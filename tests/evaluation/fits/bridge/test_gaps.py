"""The error that a bridge over each gap would leave, compared with fitted bridges."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

import gptailor
from gptailor.evaluation.fits.bridge import gaps as module
from gptailor.evaluation.fits.repair import fit
from gptailor.evaluation.space_trials import Trials, opened
from gptailor.lang.parse import read_objective
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from gptailor.searching.measuring import gap_errors_of
from tests.support.tiny import letters, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

RIDGE = 0.01
BRIDGE = f'bridge on "text.txt" tokens 4096 ridge {RIDGE}'
LAYERS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gaps")
    tiny_model("llama", made / "base")
    (made / "text.txt").write_text(letters(6000))
    return made


def said(folder: Path, text: str) -> Plan:
    return gptailor.loads(f'tailor 1\nmodel base = "./base"\n{text}\n', folder=folder)


def errors(folder: Path) -> list[list[float]]:
    plan = said(folder, f"drop any 2 of L1..L3\n{BRIDGE}")
    bound, models, _ = opened(plan)
    wish = read_objective('nll("text.txt")', plan.models)
    trials = Trials(bound, models, objectives=[wish], folder=folder)
    return gap_errors_of(trials, said(folder, ""), 2)


def gaps_of(layers: int) -> Iterator[tuple[int, int]]:
    for after in range(layers):
        yield from ((after, width) for width in (1, 2) if after + 1 + width <= layers)


def test_each_gap_has_an_error(folder: Path) -> None:
    result = errors(folder)
    assert [len(row) for row in result] == [2] * (len(result) - 2) + [1, 0]
    assert all(item >= 0 for row in result for item in row)


def test_a_gap_error_agrees_with_the_explained_share_of_its_fit(folder: Path) -> None:
    """`explained` of a fit is 1 - left / whole; the whole is the error with an endless ridge."""
    result = errors(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_LEAST_RIDGE", 1e15)
        wholes = errors(folder)
    for after, width in gaps_of(len(result)):
        cut = f"L{after + 1}..L{after + width}" if width > 1 else f"L{after + 1}"
        fitted = fit(prepare(said(folder, f"drop {cut}\n{BRIDGE}")))
        (bridge,) = fitted.results.values()
        explained = 1 - result[after][width - 1] / wholes[after][width - 1]
        assert explained == pytest.approx(bridge.numbers["explained"], abs=2e-3)


def test_random_mixtures_keep_the_order(folder: Path) -> None:
    exact = errors(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "INPUTS", 24)
        patch.setattr(module, "OUTPUTS", 12)
        mixed = errors(folder)
    pairs = [
        (one, other)
        for row, others in zip(exact, mixed, strict=True)
        for one, other in zip(row, others, strict=True)
    ]
    ordered = sorted(pairs)
    agreeing = sum((b[1] > a[1]) for i, a in enumerate(ordered) for b in ordered[i + 1 :])
    assert agreeing >= 0.8 * len(ordered) * (len(ordered) - 1) / 2


def test_long_states_have_a_proportional_share(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With equal weights that sum to 1 over all squared lengths, both parts are the same share."""

    def equal(states: Tensor) -> Tensor:
        squares = states.double().square().sum()
        return (len(states) / squares).expand(len(states))

    monkeypatch.setattr(module, "weights", equal)
    both = errors(folder)
    monkeypatch.setattr(module, "_LONGEST_TOKENS", 0.0)
    share = errors(folder)
    for row, other in zip(both, share, strict=True):
        assert row == pytest.approx([1.05 * item for item in other])
