"""Each rule declares the codes that it yields, and runs in one place."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

import gptailor.checks
from gptailor.checks import models, plan
from gptailor.checks.rule import ANYWHERE, Rule
from gptailor.lang.parse import read_json
from gptailor.plan.faults import TOO_LARGE, Fault, Source
from tests.checks import test_json, test_sizes
from tests.checks.test_refused import REFUSED, faults_of
from tests.checks.test_sizes import HEAD
from tests.support.codes import codes_of, plan_codes


def declared_rules() -> dict[str, Rule[Any]]:
    """Return the rules that the modules of `checks` define, by name."""
    infos = iter_modules(gptailor.checks.__path__, "gptailor.checks.")
    modules = [import_module(module.name) for module in infos]
    return {
        value.check.__name__: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Rule)
    }


RULES = declared_rules()

TEXTS = {
    "a union with a model of models": (
        "model mix = base, math by linear()\nL0 from mix\ntokenizer union\n"
    ),
    "many adapters": test_sizes.TOO_LARGE["adapters on adapters"][0],
    "long repeats": test_sizes.TOO_LARGE["layers that come again"][0],
    "many windows": "drop window 1..9999 of L0..L9999\n",
    "many sizes": test_sizes.TOO_LARGE["sizes"][0],
    "many sources": test_sizes.TOO_LARGE["sources"][0],
}
"""Plans that show codes of rules which no refused file shows."""

UNSHOWN = {
    "statements_and_layers_are_few": {"P116"},  # the same as many statements of a text
    "small_floats_only_move": {"M215"},  # checkpoints: tests/end_to_end
    "some_scale_does_something": {"M214"},
    "only_embedding_and_head_have_tokens": {"M240"},  # tests/end_to_end/test_vocabulary.py
    "the_rest_fits": {"M208", "M209"},
    "the_union_can_be_made": {"M208", "M211"},
    "the_chat_template_can_be_taken": {"M211"},
    "the_undropped_plan_has_a_configuration": {"M217"},
}
"""Codes that take checkpoints, or plans of a size, that this test does without."""


def test_every_rule_runs_in_one_place() -> None:
    placed = Counter(rule.check.__name__ for rule in (*plan.PLAN_RULES, *models.MODEL_RULES))
    assert placed == Counter(dict.fromkeys(RULES, 1))
    assert {rule.stage for rule in plan.PLAN_RULES} == {0, 3}
    assert {rule.stage for rule in models.MODEL_RULES} == {0, 1, 2, 3}


def test_a_rule_yields_exactly_the_codes_that_it_declares(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yielded: dict[str, set[str]] = {name: set() for name in RULES}

    def recorded(rules: Iterable[Rule[Any]], subject: object, stage: int = 3) -> Iterator[Fault]:
        for rule in rules:
            for fault in rule.check(subject) if rule.stage == stage else ():
                yielded[rule.check.__name__].add(fault.code)
                yield fault

    for module in (plan, models):
        monkeypatch.setattr(module, "run_rules", recorded)
    for text in [path.read_text(encoding="utf-8") for path in REFUSED]:
        faults_of(text, family)
    for text in TEXTS.values():
        faults_of(HEAD + text, family)
    for _, fields in test_json.CASES.values():
        text = json.dumps({"models": test_json.MODELS, **fields})
        read_json(Source("plan.json", text), family)
    shown = {name: {c for c in codes if c[0] != "C"} for name, codes in yielded.items()}
    unshown = {name: set(rule.codes) - shown[name] for name, rule in RULES.items()}
    assert {name: codes for name, codes in unshown.items() if codes} == UNSHOWN
    assert [name for name, rule in RULES.items() if shown[name] - set(rule.codes)] == []


def test_every_code_of_a_plan_is_declared_by_a_rule_or_used_outside_of_checks() -> None:
    package = Path(gptailor.__file__).parent
    outside = [p for p in package.rglob("*.py") if p.parent != package / "checks"]
    elsewhere = set[str]().union(*map(codes_of, outside))
    declared = {code for rule in RULES.values() for code in rule.codes}
    assert {code for code in plan_codes() if code[0] in "PM"} <= declared | elsewhere
    inside = set[str]().union(*map(codes_of, (package / "checks").glob("*.py")))
    assert {code for code in inside if code[0] in "PM"} == declared - {TOO_LARGE}


@pytest.mark.parametrize(
    ("missing_in", "unread", "skipped"),
    [
        ((), {"drop", ""}, False),
        (("drop",), set(), False),
        (("drop",), {"model"}, False),
        (("drop",), {"model", "drop"}, True),
        (("drop",), {""}, True),
        (ANYWHERE, set(), False),
        (ANYWHERE, {"model"}, True),
    ],
)
def test_a_rule_is_skipped_if_an_unread_statement_may_hold_what_it_misses(
    missing_in: tuple[str, ...], unread: set[str], skipped: bool
) -> None:
    assert Rule((), lambda _: (), missing_in).is_unread(frozenset(unread)) is skipped
