"""Plans that are too large are refused by their size, before work that grows with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptailor.lang import lower, parse
from gptailor.lang.parse import read_bytes, read_json, read_text
from gptailor.plan import bounds, faults, model_dependencies
from gptailor.plan.faults import Fault, Source, errors
from gptailor.plan.plan import Model, Plan, Repeat
from gptailor.prepare import check
from tests.support.hollow import llama, write_hollow

HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n'


def faults_of(text: str) -> list[Fault]:
    return read_text(Source("plan.tailor", HEAD + text), Path())[1]


def listed(entry: str, count: int) -> str:
    return ", ".join(entry.format(i) for i in range(count))


def chained(head: str, tail: str, count: int) -> str:
    before = ["base", *(f"m{i}" for i in range(count))]
    return "".join(f"model m{i} = {head.format(before[i])}{tail}\n" for i in range(count))


TOO_LARGE = {
    "merges of merges": (chained("{}, math", " by linear()", 500), "P116", "500"),
    "adapters on adapters": (chained("{}", ' + "./lora"', 500), "P116", "40 deep"),
    "statements": ("drop L1\n" * 10_001, "P116", "10,000 statements"),
    "faulty statements": ("L1 frm math\n" * 20_000, "P116", "10,000 statements"),
    "numbers with names": (
        "".join(f"let n{i} = 1\n" for i in range(50_000)),
        "P116",
        "10,000 statements",
    ),
    "items of a block": ("stack {\n" + "L0 base\n" * 10_001 + "}", "P116", "10,000 statements"),
    "layers of a stack": ("stack {\n" + "L0..L9999 base\n" * 2 + "}", "P214", "10,000 layers"),
    "layers of a long stack": ("stack {\n" + "L0..L9999 base\n" * 18 + "}", "P214", "10,000"),
    "layers of an endless stack": ("stack {\n" + "L0..L9999 base\n" * 21 + "}", "P116", "200,000"),
    "sizes": ('width 1..9999 on "a.txt"', "P116", "1,000 sizes"),
    "windows": ("drop window 1..9999 of L0..L9999", "P116", "200,000 windows"),
    "windows that come again": (
        "repeat window 1..99 of L0..L9998 times 1",
        "P116",
        "200,000 windows",
    ),
    "layers that come again": (
        "repeat L0 times 9000\nrepeat L1 times 9000",
        "P214",
        "18,000",
    ),
    "layers of statements": ("drop L0..L9999\n" * 21, "P116", "200,000 layers"),
    "ranges of a list": (f"drop {listed('L1', 10_001)}", "P214", "10,000 layers in one list"),
    "knots of a curve": (
        f"others from base, math by slerp(curve({listed('0', 1001)}))",
        "P116",
        "1,000 entries",
    ),
    "knots for many layers": (
        f"L0..L9999 from base, math by slerp(curve({listed('0', 21)}))",
        "P116",
        "200,000",
    ),
    "knots of scales": (f"scale L0..L9999 by curve({listed('1', 21)})", "P116", "200,000"),
    "sources": (f"L0 from {listed('math', 1001)} by linear()", "P116", "1,000 entries"),
    "sources for many layers": (
        f"L0..L999 = merge({listed('L0..L999 math', 201)}) by linear()",
        "P116",
        "200,000",
    ),
    "models of a choice": (f"L0 from one of {listed('math', 1001)}", "P116", "1,000 entries"),
    "numbers of a choice": (f"let a = one of ({listed('{}', 1001)})", "P116", "1,000 entries"),
    "objectives": (
        "search {\n" + "".join(f'minimize nll("t{i}")\n' for i in range(1001)) + "}",
        "P116",
        "1,000 entries",
    ),
}


@pytest.mark.parametrize(("text", "code", "limit"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_an_oversized_plan_is_one_error(text: str, code: str, limit: str) -> None:
    [fault] = errors(faults_of(text))
    assert fault.code == code
    assert limit in fault.message
    assert fault.span is not None


def test_no_items_are_made_beyond_a_stacks_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counting(monkeypatch, lower.p, "built")
    assert [f.code for f in errors(faults_of("stack {\nL0..L9999 base\n}"))] == []
    at_most = len(made)
    made.clear()
    assert errors(faults_of("stack {\n" + "L0..L9999 base\n" * 18 + "}"))[0].code == "P214"
    assert len(made) < 3 * at_most


AT_THE_LIMIT = {
    "adapters": chained("{}", ' + "./lora"', 40),
    "curve": f"others from base, math by slerp(curve({listed('0', 1000)}))",
    "stack": "stack {\nL0..L9999 base\n}",
    "sources": f"L0 from {listed('math', 1000)} by linear()",
}


@pytest.mark.parametrize("text", AT_THE_LIMIT.values(), ids=AT_THE_LIMIT)
def test_a_plan_at_the_limit_is_read(text: str) -> None:
    assert not errors(faults_of(text))


def test_a_file_that_is_too_large_is_not_decoded() -> None:
    plan, [fault] = read_bytes(b"\xff" * (bounds.MOST_BYTES + 1), "plan.tailor", Path())
    assert plan is None
    assert (fault.code, "4,000,000 bytes" in fault.message) == ("P116", True)


def test_no_more_of_a_file_is_read_than_a_plan_may_have(tmp_path: Path) -> None:
    path = tmp_path / "plan.tailor"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole
    with pytest.raises(faults.PlanError, match="P116"):
        parse.load(path)


def test_errors_are_looked_for_up_to_a_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = counting(monkeypatch, parse.syntax_errors, "fault")
    reported = faults_of("L1 frm math\n" * 2_000)
    assert len(counted) == bounds.MOST_FAULTS + 1
    assert [f.code for f in reported[:2]] == ["S108", "S101"]
    assert len(errors(reported)) == bounds.MOST_FAULTS + 1


@pytest.mark.parametrize(
    "text",
    ["drop L9..L1\n" * 2_000, "L0..L9999 from x\n", '"\n' * 2_000, "drop L1\n" * 2_000],
    ids=["lowered", "one of many layers", "quotes", "of a rule"],
)
def test_no_text_has_more_than_a_thousand_errors(text: str) -> None:
    reported = errors(faults_of(text))
    assert len(reported) <= bounds.MOST_FAULTS + 1
    assert (reported[0].code == "S108") == (len(reported) > 1)


def test_warnings_never_hide_an_error() -> None:
    idle = "".join(f"let n{i} = 1\n" for i in range(3_000))
    reported = faults_of(idle + "dtype float17")
    assert [f.code for f in errors(reported)] == ["P403"]


def test_json_has_the_same_limits() -> None:
    models = {"base": Model(source="./base")}
    models |= {f"m{i}": Model(on=f"m{i - 1}" if i else "base", source="./a") for i in range(500)}
    plans = [
        Plan(models=models),
        Plan(
            models={"base": models["base"]},
            repeats=tuple(Repeat(first=i, last=i, times=9_999) for i in range(100)),
        ),
    ]
    for plan in plans:
        _, reported = read_json(Source("plan.json", plan.model_dump_json()), Path())
        assert len(reported) == 1
        assert reported[0].code in ("P116", "P214")


def counting(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    """Return a list that grows by each call of a function from now on."""
    function: Callable[..., Any] = getattr(module, name)
    calls: list[None] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        return function(*arguments, **named)

    monkeypatch.setattr(module, name, counted)
    return calls


@pytest.mark.parametrize("count", [10, 40])
def test_each_model_of_a_chain_is_visited_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = counting(monkeypatch, model_dependencies, "below")
    text = chained("{}", ' + "./lora"', count) + f"L0 from m{count - 1}\n"
    assert not errors(faults_of(text))
    assert len(counted) <= 8 * (count + 2)


def test_a_misspelt_name_is_compared_with_few_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    matches = faults.difflib.get_close_matches

    def counted(name: str, known: tuple[str, ...], **named: Any) -> list[str]:
        compared.append(len(known))
        return matches(name, known, **named)

    monkeypatch.setattr(faults.difflib, "get_close_matches", counted)
    models = "".join(f'model likely{i} = "./m"\n' for i in range(1_000))
    [fault] = errors(faults_of(f"{models}L0..L99 from likley7\n"))
    assert "likely7" in fault.help
    assert compared == [bounds.MOST_COMPARED]


def test_one_pass_finds_repeated_objectives() -> None:
    wishes = 'minimize nll("./t")\nmaximize nll("t")\nminimize nll("t")\n'
    required = 'require nll("t") <= 1\nrequire nll("./t") <= 1.0\n'
    reported = [f.code for f in faults_of("search {\n" + wishes + required + "}")]
    assert reported.count("P607") == 2


def test_a_configuration_has_no_more_layers_than_an_output(tmp_path: Path) -> None:
    config, shapes = llama(**SMALL)
    write_hollow(tmp_path / "base", {**config, "num_hidden_layers": 180_000}, shapes)
    (tmp_path / "plan.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\n')
    [fault] = errors(check(parse.load(tmp_path / "plan.tailor")))
    assert "at most 10,000 layers, but the configuration has 180,000" in fault.message


SMALL = {
    "num_hidden_layers": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
