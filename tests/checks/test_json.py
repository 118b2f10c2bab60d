"""Plans from JSON keep the rules that the language's grammar keeps for texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptailor.lang.parse import read_json
from gptailor.plan.faults import Source, errors

MODELS = {"base": {"source": "./b"}, "math": {"source": "./m"}, "code": {"source": "./c"}}
TIES = {"name": "ties"}
SUBSET = {"any_of": ["math"], "layer": 2, "by": TIES}
CHOICE = {"model": {"one_of": ["base", "math"]}}
HUGE = 10**400


def take(layer: int | None = 1, model: Any = "math") -> dict[str, Any]:
    return {"take": {"model": model, "layer": layer}}


def layer(recipe: dict[str, Any], position: int = 1, **more: Any) -> dict[str, Any]:
    return {"layers": [{"position": position, "recipe": recipe, **more}]}


def merged(**more: Any) -> dict[str, Any]:
    return {"merge": [{"model": "base"}, {"model": "math"}], **more}


def items(*entries: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"stack": {"items": list(entries), **more}}


def two(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {"layers": [*first["layers"], *second["layers"]]}


DROP: dict[str, Any] = {"drops": [{"position": 1}]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a position below 0": ("S107", layer(take(), -1)),
    "a position past the last": ("S107", layer(take(), 10_000)),
    "a layer below 0": ("S107", layer(take(-1))),
    "a bridge after a layer below 0": ("S107", {"bridges": [{"after": -1, "on": "t"}]}),
    "a number that is none": ("S107", {"scales": [{"position": 1, "factor": True}]}),
    "a layer without a number": ("P218", layer(take(None))),
    "an embedding with a layer": ("P218", {"embed": take(3)}),
    "a subset of other layers": ("P219", layer(SUBSET)),
    "a subset in a stack": ("P219", items({"recipe": SUBSET})),
    "an embedding by a share": ("P219", {"embed": merged(share=0.5)}),
    "an embedding by nothing": ("P219", {"embed": merged()}),
    "an embedding of a choice and a model": (
        "P219",
        {"embed": {"merge": [CHOICE, {"model": "code"}], "by": TIES}},
    ),
    "a quote in a bridge": ("P219", {"bridges": [{"on": 'a"b'}], "drops": [{"position": 1}]}),
    "a line end in an objective": (
        "P219",
        {"search": {"objectives": [
            {"direction": "minimize", "name": "nll", "arguments": {"file": "a\nb"}}]}},
    ),
    "a model that is made and has a source": (
        "P109", {"models": {**MODELS, "mix": {"source": "./a", "made": take(None)}}}),
    "a model that is made of layers": ("P218", {"models": {**MODELS, "mix": {"made": take(1)}}}),
    "a quote in a source": ("P109", {"models": {"base": {"source": './"'}}}),
    "a name with a blank": ("P105", {"models": {**MODELS, "a b": {"source": "./b"}}}),
    "an empty name": ("P105", {"models": {**MODELS, "": {"source": "./b"}}}),
    "a huge scale": ("P306", {"scales": [{"position": 1, "factor": HUGE}]}),
    "a huge share": ("P306", layer({"merge": [take()["take"], take()["take"]], "share": HUGE})),
    "several numbers for one": (
        "P311",
        layer({"merge": [take()["take"], take()["take"]],
               "by": {"name": "slerp", "arguments": {"t": [0.1, 0.2]}}}),
    ),
    "a share for three": ("P308", layer({"merge": [take()["take"]] * 3, "share": 0.5})),
    "a merge of nothing": ("P304", layer({"merge": [], "by": TIES})),
    "a choice of no models": ("P505", layer(take(1, {"one_of": []}))),
    "a choice of no numbers": ("P505", {"scales": [{"position": 1, "factor": {"one_of": []}}]}),
    "a ridge of no numbers": ("P505", {"bridges": [{"on": "t", "ridge": {"one_of": []}}]}),
    "a choice of no methods": (
        "P505", layer({"merge": [take()["take"]] * 2, "by": {"one_of": []}})),
    "a subset of nothing": ("P505", layer({"any_of": [], "layer": 1, "by": TIES})),
    "breadcrumbs of no density": (
        "P505",
        layer({"merge": [take()["take"]] * 2,
               "by": {"name": "breadcrumbs", "arguments": {"density": {"one_of": []}}}}),
    ),
    "a tied drop any": ("P506", {"drop_any": [{"count": 1, "among": [1, 2], "tied": 0}]}),
    "a tied window": ("P506", {"windows": [{"count": 1, "among": [1, 2], "tied": 0}]}),
    "a window of a range of one": (
        "P504", {"windows": [{"count": {"between": [2, 2]}, "among": [1, 2, 3]}]}),
    "a window of words": ("S107", {"windows": [{"count": "2", "among": [1, 2, 3]}]}),
    "a position twice in a window": ("P202", {"windows": [{"count": 1, "among": [2, 1, 2]}]}),
    "a window of nothing": ("P503", {"windows": [{"count": 1, "among": []}]}),
    "a position twice in drop any": ("P202", {"drop_any": [{"count": 1, "among": [2, 1, 2]}]}),
    "a block that descends": ("P201", {"repeats": [{"first": 3, "last": 1}]}),
    "a position twice in a window of a block": (
        "P202", {"repeats": [{"count": 1, "among": [2, 1, 2]}]}),
    "a tied block": ("P506", {"repeats": [{"first": 1, "last": 2, "tied": 0}]}),
    "more drops than positions": ("P503", {"drop_any": [{"count": 1, "among": []}]}),
    "a quote in a text to heal on": ("P219", {"heal": {"on": 'a"b'}, **DROP}),
    "a healing on nothing": ("P706", {"heal": {"on": []}, **DROP}),
    "a healing on a number": ("S107", {"heal": {"on": 5}, **DROP}),
    "a quote in one of two texts": ("P219", {"heal": {"on": ["t", {"file": 'a"b'}]}, **DROP}),
    "a text of a negative weight": (
        "P706", {"heal": {"on": [{"file": "t", "weight": -1}]}, **DROP}),
    "a text that stands twice": (
        "P711", {"heal": {"on": ["t", {"file": "t", "weight": 2}]}, **DROP}),
    "answers of no tokens": (
        "P706", {"heal": {"on": [{"file": "t", "answers": {"tokens": 0}}]}, **DROP}),
    "answers that are too hot": (
        "P706", {"heal": {"on": [{"file": "t", "answers": {"temperature": 101}}]}, **DROP}),
    "an unknown loss": ("S107", {"heal": {"on": "t", "loss": "some"}, **DROP}),
    "a healing of no tokens": ("P706", {"heal": {"on": "t", "tokens": 0}, **DROP}),
    "a healing of no rank": ("P706", {"heal": {"on": "t", "rank": 0}, **DROP}),
    "a healing of a rank that is a word": ("S107", {"heal": {"on": "t", "rank": "all"}, **DROP}),
    "a healing with a choice": ("S107", {"heal": {"on": "t", "rank": CHOICE}, **DROP}),
    "a healing by a seed below 0": ("P706", {"heal": {"on": "t", "seed": -1}, **DROP}),
    "a tied bridge": ("P506", {"bridges": [{"on": "t", "tied": 0}], "drops": [{"position": 1}]}),
    "tied layers unlike each other": (
        "P508", two(layer(take(), tied=0), layer(take(1, "code"), 2, tied=0))),
    "tied layers from one layer": (
        "P508", two(layer(take(5), tied=0, maybe=True), layer(take(5), 2, tied=0, maybe=True))),
    "tied drops, one of them fixed": (
        "P508", {"drops": [{"position": 1, "tied": 0, "maybe": True}, {"position": 2, "tied": 0}]}),
    "tied scales by different numbers": (
        "P508",
        {"scales": [{"position": 1, "tied": 0, "factor": 2},
                    {"position": 2, "tied": 0, "factor": 3}]},
    ),
    "tied items apart": (
        "P508",
        items({"recipe": take(1), "tied": 0, "maybe": True}, {"recipe": take(2)},
              {"recipe": take(3), "tied": 0, "maybe": True}),
    ),
    "a limit of none": ("P310", items({"recipe": take()}, limit=0)),
    "a limit below what is fixed": ("P220", items({"recipe": take()}, {"recipe": take()}, limit=1)),
    "too many trials": ("P606", {"search": {"trials": 2**63}}),
    "a seed below 0": ("P606", {"search": {"seed": -1}}),
    "another version": ("P102", {"version": 2}),
    "others of a layer": ("P218", {"others": [{"recipe": take(1)}]}),
    "a whole of a layer": ("P218", {"whole": {"recipe": take(1)}}),
    "others by nothing": ("P219", {"others": [{"recipe": merged()}]}),
    "a whole by a share": ("P219", {"whole": {"recipe": merged(share=0.5)}}),
    "others twice": ("P401", {"others": [{"recipe": take(None)}, {"recipe": take(None)}]}),
    "a whole that may not be": ("P506", {"whole": {"recipe": take(None), "maybe": True}}),
    "a curve over nothing": ("P510", {"scales": [{"position": 1, "factor": {"curve": [1, 2]}}]}),
    "a ridge by a curve": (
        "P510", {**DROP, "bridges": [{"on": "t", "ridge": {"curve": [0, 1], "over": [0, 1]}}]},
    ),
    "an item that is the second of none": (
        "P510",
        items({"recipe": {"merge": [take()["take"]] * 2,
                          "share": {"curve": [0, 1], "over": [1, 1]}}}),
    ),
    "a bound of a huge number": (
        "P306",
        {"search": {"requires": [{"name": "parameters", "sign": "<=", "bound": {"number": HUGE}}]}},
    ),
    "a word for a number": (
        "P306",
        layer({"merge": [take()["take"]] * 2, "by": {"name": "slerp", "arguments": {"t": "half"}}}),
    ),
    "a name of a huge number": ("P306", {"numbers": {"mix": HUGE}}),
    "a name of a name": ("S107", {"numbers": {"mix": {"named": "late"}}}),
    "a choice as a knot": (
        "S107", {"scales": [{"position": 1, "factor": {"curve": [1, {"interval": [1, 2]}]}}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_invalid_json_fields_are_refused(name: str) -> None:
    code, fields = CASES[name]
    text = json.dumps({"models": MODELS, **fields})
    _, faults = read_json(Source("plan.json", text), Path())
    assert code in {fault.code for fault in errors(faults)}, faults


def test_the_number_of_a_variadic_parameter_is_held_in_a_tuple_by_todays_name() -> None:
    by = {"name": "task_arithmetic", "arguments": {"scales": 0.5}}
    text = json.dumps({"models": MODELS, **layer({"merge": [take()["take"]] * 2, "by": by})})
    plan, faults = read_json(Source("plan.json", text), Path())
    assert not faults
    assert plan is not None
    assert plan.layers[0].recipe.by.arguments == {"weight": (0.5,)}  # type: ignore[union-attr]


def test_an_integer_too_long_for_pythons_text_is_a_fault() -> None:
    text = json.dumps({"models": MODELS, "version": 1}).replace(
        '"version": 1', '"version": ' + "9" * 6000
    )
    _, faults = read_json(Source("plan.json", text), Path())
    assert {fault.code for fault in errors(faults)} <= {"S107", "P102"}
    assert errors(faults)


def test_faults_of_a_plan_without_a_text_come_rule_by_rule_and_in_one_order() -> None:
    single, down, same = {"one_of": [1]}, {"interval": [2, 1]}, [take()["take"]] * 2
    plan = {
        "models": MODELS,
        "embed": {"merge": [{"model": "base"}, {"model": "math"}], "share": single},
        "layers": [
            {"position": 0, "recipe": take(0, {"one_of": ["math"]})},
            {"position": 1, "tied": 0, "recipe": {"merge": same, "share": down}},
        ],
        "drops": [{"position": 2, "tied": 0}],
        "scales": [
            {"position": 3, "tied": 0, "factor": down},
            {"position": 4, "factor": single},
            {"position": 5, "factor": HUGE},
        ],
        "bridges": [{"on": "t", "ridge": single, "tokens": down}],
        "stack": {
            "items": [
                {"tied": 0, "recipe": take()},
                {"recipe": {"merge": same, "share": down}},
                {"recipe": {"merge": same, "share": HUGE}},
            ]
        },
    }
    _, faults = read_json(Source("plan.json", json.dumps(plan)), Path())
    places = [(fault.code, *fault.at) for fault in faults]
    assert [single for single in places if single[0] in ("P507", "P504", "P505", "P306")] == [
        ("P306", "stack", "items", 2, "recipe", "share"),
        ("P306", "scales", 2, "factor"),
        ("P507", "drops", 0, "tied"),
        ("P507", "stack", "items", 0, "tied"),
        ("P504", "layers", 1, "recipe", "share"),
        ("P504", "stack", "items", 1, "recipe", "share"),
        ("P504", "scales", 0, "factor"),
        ("P504", "bridges", 0, "tokens"),
        ("P505", "layers", 0, "recipe", "take", "model"),
        ("P505", "embed", "share"),
        ("P505", "scales", 1, "factor"),
        ("P505", "bridges", 0, "ridge"),
    ]


def test_a_requirement_has_the_json_of_the_contract() -> None:
    nll = {"name": "nll", "arguments": {"file": "a.txt"}}
    requires = [
        {"name": "parameters", "sign": "<=", "bound": {"number": 0.75, "of": "base"}},
        {**nll, "sign": "<=", "bound": {"of": "math"}},
        {"name": "kv_cache", "sign": "<=", "bound": {"number": 40_000}},
    ]
    objective = {"direction": "minimize", **nll}
    body = {"models": MODELS, "search": {"objectives": [objective], "requires": requires}}
    plan, faults = read_json(Source("p", json.dumps(body)), Path())
    assert not faults
    assert plan is not None
    assert json.loads(plan.model_dump_json(exclude_defaults=True)) == body
    for wrong in ({}, {"number": "many"}, {"of": 3}, {"number": 1, "times": 2}):
        body["search"]["requires"] = [{**requires[0], "bound": wrong}]
        plan, faults = read_json(Source("p", json.dumps(body)), Path())
        assert plan is None
        assert {fault.code for fault in faults} == {"S107"}


def test_names_and_curves_have_the_json_of_the_contract() -> None:
    t = {"curve": [0, {"named": "mix"}, 1], "over": [0, 7]}
    by = {"name": "slerp", "arguments": {"t": t}}
    body = {
        "numbers": {"mix": {"one_of": [0.3, 0.5]}},
        **layer({"merge": [take()["take"]] * 2, "by": by}),
        "others": [{"part": "mlp", "recipe": {"take": {"model": "math"}}}],
        "whole": {"recipe": {"take": {"model": {"one_of": ["base", "math"]}}}, "tied": 3},
    }
    plan, faults = read_json(Source("p", json.dumps({"models": MODELS, **body})), Path())
    assert not faults
    assert plan is not None
    written = json.loads(plan.model_dump_json(exclude_defaults=True))
    assert {name: written[name] for name in body} == {**body, "whole": {**body["whole"], "tied": 0}}
