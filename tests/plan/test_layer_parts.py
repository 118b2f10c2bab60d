"""Parts of a layer: which is finer, which may share a tensor, and which tensors each holds."""

from itertools import product

import pytest

import gptailor
from gptailor.checkpoint.families import FAMILY_OF
from gptailor.plan.faults import PlanError
from gptailor.plan.layer_parts import NAMED_PARTS, Branch, holds, may_overlap, rank
from gptailor.plan.plan import Take
from gptailor.plan.resolved import Resolved, Slot
from gptailor.reporting.layer_view import layer_rows

HEAD = """tailor 1
model base = "./base"; model math = "./math"; model code = "./code"; model chat = "./chat"
"""
NORM_NAMES = ("input_layernorm", "post_attention_layernorm")
LAYER: dict[str, tuple[Branch, str | None]] = {
    "input_layernorm.weight": ("attn", "norms"),
    "self_attn.q_proj.weight": ("attn", "attn.q"),
    "self_attn.k_proj.bias": ("attn", "attn.k"),
    "self_attn.v_proj.weight": ("attn", "attn.v"),
    "self_attn.o_proj.weight": ("attn", "attn.o"),
    "self_attn.q_norm.weight": ("attn", None),
    "post_attention_layernorm.weight": ("mlp", "norms"),
    "mlp.gate_proj.weight": ("mlp", "mlp.gate"),
    "mlp.up_proj.weight": ("mlp", "mlp.up"),
    "mlp.down_proj.qweight": ("mlp", "mlp.down"),
}


def held(part: str | None) -> set[str]:
    """The tensors of a Qwen 3's layer that a part holds."""
    return {rest for rest, (branch, role) in LAYER.items() if holds(part, branch, role, rest)}


def test_a_tensor_has_its_branch_and_its_role() -> None:
    family = FAMILY_OF["qwen3"]
    assert {rest: (family.part(rest), family.role(rest)) for rest in LAYER} == LAYER


def test_two_parts_that_share_a_tensor_may_overlap_and_those_of_one_rank_do_not() -> None:
    parts = (None, *NAMED_PARTS)
    for a, b in product(parts, parts):
        assert may_overlap(a, b) == may_overlap(b, a)
        if held(a) & held(b):
            assert may_overlap(a, b), (a, b)
        if a != b and rank(a) == rank(b):
            assert not may_overlap(a, b), (a, b)
        assert may_overlap(a, '"*"')


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ('"*"', set(LAYER)),
        ('"*.q_proj.*"', {"self_attn.q_proj.weight"}),
        ('"self_attn.?_proj.weight"', {f"self_attn.{x}_proj.weight" for x in "qvo"}),
        ('"q_proj"', set()),  # of the whole name
        ('"*.Q_proj.*"', set()),
        ('"*.[qk]_proj.*"', set()),  # no brackets
        ('"input_layernorm.weight"', {"input_layernorm.weight"}),
    ],
)
def test_a_pattern_is_of_the_whole_name_in_its_case(pattern: str, expected: set[str]) -> None:
    assert held(pattern) == expected


def test_the_finest_part_that_holds_a_tensor_decides_it() -> None:
    text = (
        "L1 from math; L1.attn from code; L1.attn.q from math\n"
        'L1.norms = L2.norms code; L1."*_norm.*" from base'
    )
    [_, slot] = Resolved(gptailor.loads(HEAD + text), 2).slots
    part_of = {item.at: item.part for item in slot.part_recipes}
    parts = {rest: part_of[slot.tensor(*of, rest).at] for rest, of in LAYER.items()}
    assert parts == {
        "input_layernorm.weight": "norms",
        "self_attn.q_proj.weight": "attn.q",
        "self_attn.k_proj.bias": "attn",
        "self_attn.v_proj.weight": "attn",
        "self_attn.o_proj.weight": "attn",
        "self_attn.q_norm.weight": '"*_norm.*"',
        "post_attention_layernorm.weight": "norms",
        "mlp.gate_proj.weight": None,
        "mlp.up_proj.weight": None,
        "mlp.down_proj.qweight": None,
    }


def models_of(slot: Slot) -> dict[str, list[object]]:
    """The models that each tensor may be of: the first, and the models below a `maybe`."""
    made = {rest: slot.tensor(*of, rest) for rest, of in LAYER.items()}
    return {
        rest: [item.recipe.take.model for item in first.chain if isinstance(item.recipe, Take)]
        for rest, first in made.items()
    }


def test_a_position_overrides_others_and_others_overrides_whole() -> None:
    text = (
        "others.norms from code; others.mlp.up from code; others.attn from math; whole from chat\n"
        "L1.attn from base; L2 from base; maybe L3.mlp from base; maybe L4 from base"
    )
    results = [models_of(slot) for slot in Resolved(gptailor.loads(HEAD + text), 5).slots]
    q, norm, next_norm = (f"{name}.weight" for name in ("self_attn.q_proj", *NORM_NAMES))
    up, down = "mlp.up_proj.weight", "mlp.down_proj.qweight"
    assert [item[q] for item in results[:4]] == [["math"], ["base"], ["base"], ["math"]]
    assert results[4][q] == ["base", "math"]
    assert [item[norm] for item in results[:4]] == [["code"], ["base"], ["base"], ["code"]]
    assert [item[next_norm] for item in results[:3]] == [["code"], ["code"], ["base"]]
    assert results[3][next_norm] == results[3][up] == results[4][up] == ["base", "code"]
    assert [item[down] for item in results[:3]] == [["chat"], ["chat"], ["base"]]
    assert results[3][down] == results[4][down] == ["base", "chat"]


def test_two_patterns_in_others_are_a_fault() -> None:
    with pytest.raises(PlanError, match="P207"):
        gptailor.loads(HEAD + 'others."*.q_proj.*" from math; others."*.weight" from code')


def test_parts_are_shown_from_coarse_to_fine() -> None:
    text = "L0.attn.q from math; L1 from math; L1.norms from code; L2.mlp from code\n"
    plan = gptailor.loads(HEAD + text + 'L2."*" from math')
    labels = [row.what for row in layer_rows(Resolved(plan, 4).slots)]
    assert labels == [
        "base; attn.q: math",
        "math; norms: code",
        'attn: base; mlp: code; "*": math',
        "base",
    ]


def test_json_has_the_parts_of_the_text_and_refuses_unknown_parts() -> None:
    text = HEAD + 'L0.attn.q from math\nL0.norms from math\nL1."*.bias" from code\n'
    plan = gptailor.loads(text)
    json = plan.model_dump_json(exclude_none=True)
    assert [layer.part for layer in plan.layers] == ["attn.q", "norms", '"*.bias"']
    assert gptailor.loads(json) == plan
    for wrong in ("ffn", "attn.up", "*.bias", '\\"\\"', '\\"a\\nb\\"'):
        with pytest.raises(PlanError, match=r"P|S107"):
            gptailor.loads(json.replace("norms", wrong))
