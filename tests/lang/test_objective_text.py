"""One objective by itself: read as in a search block, its faults at their places in its text."""

import pytest

from gptailor.lang.parse import read_objective
from gptailor.plan.faults import PlanError
from gptailor.plan.registry import OBJECTIVES


@pytest.mark.parametrize("name", sorted(OBJECTIVES.own))
def test_an_objective_knows_its_direction(name: str) -> None:
    spec = OBJECTIVES[name]
    required = [argument for argument in spec.arguments if argument.required]
    call = f'{spec.name}("a")' if required else f"{spec.name}()"
    result, stated = read_objective(call)
    assert (result.name, result.direction, stated) == (
        spec.name,
        spec.direction or "maximize",
        False,
    )
    again, stated = read_objective(f"{result.direction} {call}")
    assert (again, stated) == (result, True)


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ('nl("a")', "P601", "1:1"),
        ("nll(", "S104", "1:4"),
        ('nll("a)', "S104", "1:5"),
        ('nll("a") } drop L3', "S101", "1:10"),
        ('} search { nll("a")', "S104", "1:10"),
        ('nll("a"); trials 5', "P601", "1:1"),
        ('nll("a")\nkl("b")', "P601", "1:1"),
        ("", "P601", "1:1"),
        ("nll(a.txt)", "S101", "1:6"),
        ("nll()", "P604", "1:1"),
        ('maximize nll("a")', "P602", "1:1"),
        ("maximize kv_cache()", "P602", "1:1"),
        ('latency("a")', "P305", "1:9"),
        ('kl("a", from=code)', "P106", "1:14"),
        ('multiple_choice("a", metrc="x")', "P603", "1:28"),
        ("bytes(gguf=q9_k)", "P603", "1:12"),
        ("bytes(gguf=4)", "P603", "1:12"),
    ],
)
def test_a_fault_has_its_place(text: str, code: str, place: str) -> None:
    with pytest.raises(PlanError) as caught:
        read_objective(text, ("base", "math"), name="--objective")
    [fault] = caught.value.faults
    assert fault.code == code
    assert f"--> --objective:{place}" in str(caught.value)


def test_an_objective_may_name_a_declared_model() -> None:
    result, _ = read_objective('kl("a", from=math)', ("base", "math"))
    assert result.arguments == {"file": "a", "from": "math"}
