"""`examples/paper_plans.py`: the paper's released search results as plans.

The documents here are made up, in their form.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import gptailor
from examples.paper_plans import from_paper, main
from gptailor.lang.importers import ConversionError
from gptailor.plan.plan import Plan

HEAD = 'model base = "./base"\n' + "".join(
    f'model candidate_{k} = "./candidate_{k}"\n' for k in range(3)
)


def tailor(body: str, head: str = HEAD) -> Plan:
    return gptailor.loads(f"tailor 1\n{head}{body}")


def pruning(chosen: dict[int, str], removed: list[int], scale: float = 0.5) -> dict[str, Any]:
    """A document of the pruning search: `{0: "101"}` chooses candidates 0 and 2 for layer 0."""
    document: dict[str, Any] = {f"remove_idx_{i}": layer for i, layer in enumerate(removed)}
    for layer, bits in chosen.items():
        for k, bit in enumerate(bits):
            document[f"layer_{layer}_candidate_{k}"] = int(bit)
        document[f"layer_{layer}_merge_scale_factor"] = scale
        document[f"layer_{layer}_output_scale"] = 1.0
    return document


CHOSEN = {0: "000", 1: "010", 2: "101", 4: "111", 5: "100"}


def test_layers_with_several_candidates_are_merged() -> None:
    plan, _ = from_paper(pruning(CHOSEN, [3]))
    body = """
        norm from candidate_0; head from candidate_0
        L1 from candidate_1
        L2 from candidate_0, candidate_2 by task_arithmetic(0.5)
        L4 from candidate_0, candidate_1, candidate_2 by task_arithmetic(0.5)
        L5 from candidate_0
        drop L3
    """
    assert plan == tailor(body)


def test_the_ends_are_those_of_the_first_and_the_last_kept_layer() -> None:
    plan, _ = from_paper(pruning({1: "010", 2: "110"}, [3, 0], 0.25))
    body = """
        embed from candidate_1
        norm from candidate_0, candidate_1 by task_arithmetic(0.25)
        head from candidate_0, candidate_1 by task_arithmetic(0.25)
        L1 from candidate_1
        L2 from candidate_0, candidate_1 by task_arithmetic(0.25)
        drop L0, L3
    """
    assert plan == tailor(body)


def test_an_output_scale_is_noted_and_not_applied() -> None:
    document = pruning(CHOSEN, [3])
    plan, before = from_paper(document)
    again, notes = from_paper(document | {"layer_2_output_scale": 0.9})
    assert again == plan
    (note,) = set(notes) - set(before)
    assert (note.place, plan.scales) == ("layer_2_output_scale", ())
    assert "0.9" in note.message


def test_another_base_index_is_noted_where_it_matters() -> None:
    notes = [n for n in from_paper(pruning(CHOSEN, [3]))[1] if "task vectors" in n.message]
    assert [note.place for note in notes] == ["layer_4_merge_scale_factor"]  # 3 · 0.5 isn't 1
    assert not [n for n in from_paper(pruning({**CHOSEN, 4: "110"}, [3]))[1] if "L4" in n.message]
    none_before = from_paper(pruning({**CHOSEN, 5: "000"}, [3]) | pruning({2: "111"}, [3]))[1]
    assert not [note for note in none_before if "L2" in note.message]  # nothing is removed before


def test_the_models_of_13b_are_the_papers() -> None:
    plan, notes = from_paper(pruning(dict.fromkeys(range(30), "001"), list(range(30, 40))))
    assert plan.models["base"].source == "meta-llama/Llama-2-13b-hf"
    assert list(plan.models) == ["base", "chat", "math", "code"]
    assert gptailor.format(plan).count("from code") == 4
    assert any("names no models" in note.message for note in notes)


def test_candidates_of_7b_are_placeholders_or_arguments() -> None:
    document = pruning(dict.fromkeys(range(23), "001"), list(range(23, 32)))
    plan, notes = from_paper(document)
    assert plan.models["candidate_2"].source == "./candidate_2"
    assert any("recorded nowhere" in note.message for note in notes)
    plan, notes = from_paper(document, models=["a/One-7B", "b/two", "c/two"])
    assert {name: model.source for name, model in plan.models.items()} == {
        "base": "meta-llama/Llama-2-7b-hf",
        "one_7b": "a/One-7B",
        "two": "b/two",
        "two_2": "c/two",
    }
    assert notes == []


def depth_wise(blocks: list[str], **others: Any) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for n, bits in enumerate(blocks):
        for k, bit in enumerate(bits):
            document[f"layer_{n}_block_{k}_selection"] = bit
        document[f"layer_{n}_permutation_selection"] = "0"
        document[f"scale_{n}"] = 1.0
    return document | others


def test_depth_wise_is_a_stack_of_ordered_subsets() -> None:
    document = depth_wise(["001", "000", "110"], layer_2_permutation_selection="2")
    plan, notes = from_paper(document)
    ends = "embed from candidate_2\nnorm from candidate_0\nhead from candidate_0\n"
    items = "stack { L0 candidate_2; L1 base; L2 candidate_1; L2 candidate_0 }"
    assert plan == tailor(ends + items)
    assert "layer_2_permutation_selection" in [note.place for note in notes]


def test_depth_wise_scales_are_noted() -> None:
    _, notes = from_paper(depth_wise(["001", "000"], scale_0=1.5, scale_1=0.5))
    messages = {note.place: note.message for note in notes}
    assert "multiplied by 1.5" in messages["scale_0"]
    assert "multiplied by 0.5" in messages["scale_1"]  # which is the base's


def fusion(methods: list[str]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for g, method in enumerate(methods):
        document[f"layer_selection_method_{g}"] = method
        for p, paramset in enumerate(("self_attn", "mlp", "base")):
            start = f"layer_{g}_paramset_{paramset}_method_"
            document[f"{start}task_arithmetic_param_scaling_coefficient"] = 0.25 + p
            document[f"{start}ties_param_scaling_coefficient"] = 0.5 + p
            document[f"{start}ties_param_param_value_mask_rate"] = 0.75
            for k, model in enumerate(("x/alpha", "y/beta")):
                key = f"model_{model}_{start}linear_param_weights"
                document[key] = 1.0 + 2 * k if paramset == "mlp" else 1.0
                document[key.replace("linear_param_weights", "slerp_param_slerp_t")] = 0.5
    return document


def test_layer_wise_fusion_is_a_method_for_each_group_and_branch() -> None:
    plan, notes = from_paper(fusion(["linear", "task_arithmetic", "ties"]), layers=6)
    head = 'model base = "./base"\nmodel alpha = "x/alpha"\nmodel beta = "y/beta"\n'
    body = """
        embed from alpha, beta by linear(0.5, 0.5)
        norm from alpha, beta by ties(0.25, 2.5)
        head from alpha, beta by ties(0.25, 2.5)
        L0..L1.attn from alpha, beta by linear(0.5, 0.5)
        L0..L1.mlp from alpha, beta by linear(0.25, 0.75)
        L0..L1.norms from alpha, beta by linear(0.5, 0.5)
        L2..L3.attn from alpha, beta by task_arithmetic(0.25)
        L2..L3.mlp from alpha, beta by task_arithmetic(1.25)
        L2..L3.norms from alpha, beta by task_arithmetic(2.25)
        L4..L5.attn from alpha, beta by ties(0.25, 0.5)
        L4..L5.mlp from alpha, beta by ties(0.25, 1.5)
        L4..L5.norms from alpha, beta by ties(0.25, 2.5)
    """
    assert plan == tailor(body, head)
    messages = {note.place: note.message for note in notes}
    assert "1 - density" in messages["layer_selection_method_2"]
    assert "sum of 1" in messages["layer_selection_method_0"]


@pytest.mark.parametrize(
    ("document", "place", "message"),
    [
        ({}, "", "unknown keys"),
        ([], "", "expected a JSON object"),
        ({"a": 1}, "", "unknown keys"),
        (pruning(CHOSEN, [3, 3]), "remove_idx", "twice"),
        (pruning(CHOSEN, []), "", "not the 6 layers"),
        (pruning(CHOSEN, [4]), "", "not the 6 layers"),
        (pruning(CHOSEN, [3]) | {"layer_0_candidate_1": 2}, "layer_0_candidate_1",
         "expected 0 or 1"),
        (pruning(CHOSEN, [3]) | {"remove_idx_0": "3"}, "remove_idx_0", "expected a whole number"),
        (pruning(CHOSEN, [3]) | {"layer_2_merge_scale_factor": None}, "layer_2_merge_scale_factor",
         "expected a number"),
        (depth_wise(["001", "2"]), "", "not every layer"),
        (depth_wise(["001", "211"]), "layer_1_block_0_selection", "expected 0 or 1"),
        (depth_wise(["111"], layer_0_permutation_selection="6"), "layer_0_permutation_selection",
         "expected one of 6 orders"),
        (fusion(["linear", "slerp"]), "layer_selection_method_1",
         "the two models of the largest t there, 'alpha' (0.5) and 'beta' (0.5)"),
        (fusion(["linear", "magic"]), "layer_selection_method_1", "no method 'magic'"),
        (fusion(["linear"] * 3), "layer_selection_method", "3 groups"),
    ],
)  # fmt: skip
def test_an_invalid_document_is_refused(document: Any, place: str, message: str) -> None:
    with pytest.raises(ConversionError) as caught:
        from_paper(document)
    assert message in str(caught.value)
    assert caught.value.place == place


def test_the_number_of_models_equals_the_number_of_candidates() -> None:
    with pytest.raises(ConversionError, match="3 candidates, and 1 are given"):
        from_paper(pruning(CHOSEN, [3]), models=["a/b"])


def test_the_script_writes_the_plan_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, plan = tmp_path / "found.json", tmp_path / "found.tailor"
    file.write_text(json.dumps(pruning({0: "1", 2: "1"}, [1])))
    main([str(file), "--layers", "3", "--candidate", "./math", "-o", str(plan)])
    assert plan.read_text() == (
        'tailor 1\n\nmodel base = "./base"\nmodel math = "./math"\n\n'
        "embed from math\nnorm from math\nhead from math\n\nL0 from math\nL2 from math\n\ndrop L1\n"
    )
    assert capsys.readouterr().err.startswith(f"note: {file}: the base of 3 layers is not known")
    with pytest.raises(SystemExit, match="File exists"):
        main([str(file), "--layers", "3", "-o", str(plan)])
    main([str(file), "--candidate", "./math"])
    assert capsys.readouterr().out == plan.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "error: .*found.json: Expecting"), ("{}", "error: .*found.json: unknown keys")],
)
def test_the_script_refuses_another_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(SystemExit, match=message):
        main([str(tmp_path / "found.json"), "-o", str(tmp_path / "new.tailor")])
    assert not (tmp_path / "new.tailor").exists()
