"""Exports to mergekit: numbers for each source, tokenizers, templates, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]
from hypothesis import given
from hypothesis import strategies as st

import gptailor
from gptailor.lang.importers import ConversionError
from gptailor.plan import plan as p
from gptailor.plan.written_out import curve_at
from gptailor.plugins.mergekit.exporter import export_mergekit, knots_of, mergekit_text
from gptailor.plugins.mergekit.importer import from_mergekit

HEAD = 'tailor 1\nmodel base = "a/b"\nmodel math = "a/math"\nmodel code = "a/code"\n'


def exported(body: str, layers: int = 2, folder: Path = Path()) -> dict[str, Any]:
    plan = gptailor.loads(HEAD + body, folder=folder)
    result: dict[str, Any] = yaml.safe_load(export_mergekit(plan, layers))
    return result


def tailor(body: str, *, head: str = 'model base = "a/base"\nmodel two = "b/two"\n') -> p.Plan:
    return gptailor.loads(f"tailor 1\n{head}{body}")


def test_ties_has_numbers_for_each_source() -> None:
    body = "whole from math, code by ties((0.5, 0.7), 0.8, weight=(1.0, 0.3), normalize=no)"
    assert exported(body) == {
        "merge_method": "ties",
        "base_model": "a/b",
        "models": [
            {"model": "a/b"},
            {"model": "a/math", "parameters": {"weight": 1.0, "density": 0.5}},
            {"model": "a/code", "parameters": {"weight": 0.3, "density": 0.7}},
        ],
        "parameters": {"normalize": False, "lambda": 0.8},
    }


def test_expectations_are_not_exported() -> None:
    body = "whole from math, code by linear(0.5, 0.5)"
    assert exported(f'{body}\nexpect nll("t.txt") <= 1.1 * base') == exported(body)


# ---------------------------------------------------------------------------------- along the depth


def test_the_popular_slerp_plan_becomes_the_popular_file() -> None:
    body = (
        "others.attn from base, math by slerp(curve(0.0, 0.5, 0.3, 0.7, 1.0))\n"
        "others.mlp from base, math by slerp(curve(1.0, 0.5, 0.7, 0.3, 0.0))\n"
        "whole from base, math by slerp(0.5)"
    )
    document = exported(body, 32)
    assert document["models"] == [{"model": "a/b"}, {"model": "a/math"}]
    assert document["parameters"] == {
        "t": [
            {"filter": "self_attn", "value": [0.0, 0.5, 0.3, 0.7, 1.0]},
            {"filter": "input_layernorm", "value": [0.0, 0.5, 0.3, 0.7, 1.0]},
            *({"filter": f, "value": 0.5} for f in ("embed_tokens", "model.norm", "lm_head")),
            {"value": [1.0, 0.5, 0.7, 0.3, 0.0]},
        ]
    }


def test_curves_and_plain_layers_are_slices() -> None:
    body = (
        "L0..L3 from base, math by linear(curve(0.2, 0.8), 0.5)\n"
        "L4..L6 from math\ndrop L7, L8\nL9, L11 from math\nhead from math"
    )
    slices = exported(body, 12)["slices"]
    ranges = [[source["layer_range"] for source in item["sources"]] for item in slices]
    assert ranges == [[[0, 4]] * 2, [[4, 7]], [[9, 10]], [[10, 11]], [[11, 12]] * 2]
    weight = slices[0]["sources"][0]["parameters"]["weight"]
    assert weight == [{"filter": "embed_tokens", "value": 1.0}, {"value": [0.2, 0.8]}]
    assert slices[0]["sources"][1]["parameters"]["weight"][-1] == {"value": 0.5}


@given(
    knots=st.lists(st.floats(-2, 2).map(lambda x: round(x, 3)), min_size=2, max_size=6),
    layers=st.integers(2, 40),
)
def test_a_list_gives_each_layer_its_number_to_the_bit(knots: list[float], layers: int) -> None:
    values = [curve_at(knots, i, 0, layers - 1) for i in range(layers)]
    result = knots_of(values)
    if isinstance(result, list):
        assert not result or [curve_at(result, i, 0, layers - 1) for i in range(layers)] == values
        assert len(result) <= layers
    else:
        assert values == [result] * layers


def test_numbers_off_a_line_are_separate_slices() -> None:
    body = "\n".join(f"L{n} from math by task_arithmetic({x})" for n, x in enumerate((0.1, 0.7)))
    assert len(exported(body)["slices"]) == 2
    assert knots_of([0.1, 0.2, 0.1, 0.4, 0.1]) == [0.1, 0.2, 0.1, 0.4, 0.1]
    assert knots_of([True, False, True]) == []
    assert knots_of([0.0, 0.5, 1.0]) == [0.0, 1.0]


def test_a_union_is_one_where_its_rows_are_made_of_all_models() -> None:
    document = exported("tokenizer union\nwhole from math, code by ties()")
    assert document["tokenizer_source"] == "union"
    assert exported("tokenizer union\nL0, L1 from base, math, code by linear()")[
        "tokenizer_source"
    ] == "union"  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        "L0 from base, math, code by linear()",  # the last layer is the base's alone
        "L0, L1 from base, math by linear()",
        "L0, L1 from base, math, code by linear()\nembed from base, math by linear()",
        "L0, L1 from base, math, code by linear()\nhead from code",
    ],
)
def test_a_union_with_other_rows_is_refused(body: str) -> None:
    with pytest.raises(ConversionError, match="mergekit makes missing rows of the") as caught:
        exported(f"tokenizer union\n{body}")
    assert caught.value.place == "tokenizer"


def test_a_chat_template_is_written_by_name_or_whole(tmp_path: Path) -> None:
    assert exported('chat_template "chatml"')["chat_template"] == "chatml"
    (tmp_path / "t.jinja").write_text("{{ messages }}\n{# ours #}\n")
    document = exported('chat_template "./t.jinja"', folder=tmp_path)
    assert document["chat_template"] == "{{ messages }}\n{# ours #}\n"
    with pytest.raises(ConversionError, match="not a model's template") as caught:
        exported("chat_template from math")
    assert caught.value.place == "chat_template"
    with pytest.raises(ConversionError, match="cannot be read"):
        exported('chat_template "./gone.jinja"', folder=tmp_path)


def test_a_model_made_by_a_plan_is_not_exported() -> None:
    plan = gptailor.loads(f"{HEAD}L0 from math")
    models = {**plan.models, "math": p.Model(source="./other.tailor")}
    with pytest.raises(ConversionError, match="a plan's output") as caught:
        export_mergekit(plan.model_copy(update={"models": models}), 2)
    assert caught.value.place == "models.math"


# ------------------------------------------------------------------------------------- finer parts


def test_separate_norms_become_the_popular_file() -> None:
    body = (
        "others.attn from base, math by slerp(curve(0.0, 0.5, 0.3, 0.7, 1.0))\n"
        "others.mlp from base, math by slerp(curve(1.0, 0.5, 0.7, 0.3, 0.0))\n"
        "others.norms from base, math by slerp(0.5)\n"
        "whole from base, math by slerp(0.5)"
    )
    assert exported(body, 32)["parameters"] == {
        "t": [
            {"filter": "self_attn", "value": [0.0, 0.5, 0.3, 0.7, 1.0]},
            {"filter": ".mlp.", "value": [1.0, 0.5, 0.7, 0.3, 0.0]},
            {"value": 0.5},
        ]
    }


def test_a_projection_has_its_own_filter_before_its_branch() -> None:
    body = (
        "whole from base, math by slerp(0.5)\nL0..L1.attn from base, math by slerp(0.25)\n"
        "L0..L1.attn.q from base, math by slerp(0.5)\nL0..L1.mlp.down from math"
    )
    assert exported(body)["parameters"] == {
        "t": [
            {"filter": ".q_proj", "value": 0.5},
            {"filter": "self_attn", "value": 0.25},
            {"filter": "input_layernorm", "value": 0.25},
            {"filter": ".down_proj", "value": 1.0},
            {"value": 0.5},
        ]
    }


@pytest.mark.parametrize(
    ("part", "message"), [('"*.bias"', "the pattern"), ("mlp.router", "isn't one of Llama's parts")]
)
def test_a_part_that_filters_cant_tell_is_refused(part: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        exported(f"L0.{part} from math")
    assert caught.value.place == "layers[0]"


# --------------------------------------------------------------------------- models made of models


def known_base(folder: Path, layers: int) -> Path:
    text = {"model_type": "llama", "tie_word_embeddings": False, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(text))
    return folder


def test_models_that_are_made_are_documents_before_those_that_name_them(tmp_path: Path) -> None:
    body = (
        "model two = mix, math by slerp(0.25)\nmodel mix = math, code by ties(density=0.5)\n"
        "model idle = math\ndtype bfloat16\nL0 from two, code by linear(0.7, 0.3)\nhead from mix"
    )
    plan = gptailor.loads(HEAD + body)
    text = export_mergekit(plan, 2)
    mix, two, last = yaml.safe_load_all(text)
    assert (mix["name"], two["name"], "name" in last) == ("mix", "two", False)
    assert two == {
        "name": "two",
        "merge_method": "slerp",
        "base_model": "a/b",
        "slices": [
            {
                "sources": [
                    {"model": "mix", "layer_range": [0, 2]},
                    {"model": "a/math", "layer_range": [0, 2]},
                ],
                "base_model": "mix",
                "parameters": {"t": 0.25},
            }
        ],
        "dtype": "float32",
    }
    assert mix["models"][0] == {"model": "a/b"}
    assert (last["dtype"], last["out_dtype"]) == ("float32", "bfloat16")
    again, notes = from_mergekit(text, "f.yml", models={"base": known_base(tmp_path, 2)})
    models = {name: model for name, model in plan.models.items() if name != "idle"}
    assert again == plan.model_copy(update={"models": models})
    assert "mergekit rounds the output of each stage" not in str(notes)


@pytest.mark.parametrize(
    "body",
    [
        "model mix = math, code by linear(curve(0.0, 0.3, 1.0), 0.5)\nwhole from mix",
        "model mix = base\nmodel own = math\nL1 from own, mix, code by linear()",
        'model mix = math, code by linear()\nmodel lora = mix + "./lora"\nL1 from lora',
    ],
)
def test_made_models_survive_export_and_import(body: str, tmp_path: Path) -> None:
    plan = gptailor.loads(f"{HEAD}dtype float32\n{body}")
    text = export_mergekit(plan, 4)
    again, _ = from_mergekit(text, "f.yml", models={"base": known_base(tmp_path, 4)})
    assert again.model_copy(update={"models": plan.models}) == plan
    made = {name: model.made for name, model in plan.models.items() if model.made is not None}
    assert {name: again.models[name].made for name in made} == made
    assert again.models.get("lora") == plan.models.get("lora")


MIX = "model mix = math, code by linear()\n"


@pytest.mark.parametrize(
    ("body", "place", "message"),
    [
        (f"{MIX}whole from mix", "dtype", "without a dtype"),
        (f"{MIX}dtype float32\ntokenizer from math\nwhole from mix", "tokenizer", "of its own"),
        ('model ties = base\nmodel x = "ties"\ndtype float32\nL0 from ties, x by linear()',
         "models.x", "would use the merged model in place of 'ties'"),
        ("model linear = math, code by linear()\ndtype float32\nwhole from linear",
         "models.linear", "the document's merge_method"),
        ("model mix = math, code by dare(0.5)\ndtype float32\nwhole from mix",
         "models.mix", "can't reproduce 'dare'"),
        ("model mix = one of math, code\ndtype float32\nwhole from mix", "", "open choices"),
    ],
)  # fmt: skip
def test_stages_that_mergekit_lacks_are_refused(body: str, place: str, message: str) -> None:
    with pytest.raises(ConversionError) as caught:
        exported(body)
    assert message in caught.value.message
    assert caught.value.place == place


def test_a_template_that_mergekit_reads_as_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ 'a@b@c' }}")
    with pytest.raises(ConversionError, match="several '@'"):
        exported(f'{MIX}chat_template "./t.jinja"\ndtype float32\nwhole from mix', folder=tmp_path)


def test_a_stage_of_unknown_depth_is_refused_where_it_needs_layers() -> None:
    body = "dtype float32\nnorm from math\nhead from math\nstack {\nL0..L3 mix\nL2..L5 mix\n}"
    known = gptailor.loads(f"{HEAD}model mix = math by ties()\n{body}")
    assert "models" in next(iter(yaml.safe_load_all(export_mergekit(known))))
    for made in ("math, code by linear()", "math by ties(density=curve(0.2, 0.8))"):
        with pytest.raises(ConversionError, match="number of layers is unknown") as caught:
            export_mergekit(gptailor.loads(f"{HEAD}model mix = {made}\n{body}"))
        assert caught.value.place == "models.mix"


def test_a_base_that_isnt_merged_is_not_added_to_the_models() -> None:
    document = exported("whole from math, code by linear()")
    assert "models" not in document
    assert [source["model"] for source in document["slices"][0]["sources"]] == ["a/math", "a/code"]


# ------------------------------------------------------------------------------- what can't be said


@pytest.mark.parametrize(
    ("body", "place", "message"),
    [
        ("scale L1 by 0.9", "scales[0]", "can't express 'scale'"),
        ('bridge on "x.txt"', "bridges[0]", "can't express 'bridge'"),
        ('drop L5\nheal on "x.txt"', "heal", "can't express 'heal'"),
        ("drop any 1 of L0..L5", "", "open choices"),
        ("drop L0..L5", "drops[0]", "drops all layers"),
        ("L0 from base, two by slerp(0.5)\nL1 from two by linear(0.5)", "layers[1]", "'slerp' and"),
        ("L0 from two by dare(0.5)", "layers[0]", "can't reproduce 'dare'"),
        ("merge(L0 base, L1 base, 0.5)".join(["L0 = ", ""]), "layers[0]", "two layers of 'base'"),
        ("L0 from two\nL1 from two by task_arithmetic()", "layers[0]", "'two' taken unchanged"),
        ("L0 from base, two by karcher()", "layers[0]", "always merges all models"),
    ],
)
def test_a_statement_that_mergekit_lacks_is_refused_at_its_place(
    body: str, place: str, message: str
) -> None:
    with pytest.raises(ConversionError) as caught:
        export_mergekit(tailor(body), 6)
    assert message in caught.value.message
    assert caught.value.place == place


def test_an_overlay_needs_the_number_of_layers() -> None:
    with pytest.raises(ConversionError, match="number of layers is unknown") as caught:
        export_mergekit(tailor("L0 from two"))
    assert "--layers N" in (caught.value.help or "")


def test_local_models_are_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = 'tailor 1\nmodel base = "./models/base"\nmodel two = "../two"\n'
    plan = gptailor.loads(f"{head}L0 from base, two by linear()", folder=tmp_path / "plans")
    monkeypatch.chdir(tmp_path)
    text = export_mergekit(plan, 2)
    assert yaml.safe_load(text)["base_model"] == "./plans/models/base"
    assert "model: ./two" in text
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert f"model: {tmp_path}/two" in export_mergekit(plan, 2)


def test_dtype_tokenizer_revisions_and_adapters_are_reported() -> None:
    head = 'model base = "a/b" @ "v1"\nmodel two = base + "./lora"\n'
    plan = tailor("dtype bfloat16\ntokenizer from two\nL0 from base, two by linear()", head=head)
    document = yaml.safe_load(export_mergekit(plan, 2))
    assert (document["dtype"], document["out_dtype"]) == ("float32", "bfloat16")
    assert document["base_model"] == "a/b@v1"
    assert document["tokenizer_source"] == "a/b@v1+./lora"


def test_a_refusal_has_the_line_of_its_statement_and_a_remedy() -> None:
    head = 'model base = "a"\nmodel two = "b"\nmodel three = "c"\n'
    made = "L0 from two, three by ties()\nrepeat L1..L2\nL3 from two, three by "
    for body, line in ((made + "linear()", 7), ("dtype float32\nL0 from two by dare(0.5)", 6)):
        plan = gptailor.loads(f"tailor 1\n{head}{body}\n", "cut.tailor")
        with pytest.raises(ConversionError) as caught:
            export_mergekit(plan, 6)
        assert str(caught.value) == (
            f"cut.tailor:{line}: {caught.value.message}\n  = help: compile the plan, and name its "
            "folder as a model in mergekit's file"
        )


def test_a_frankenmerge_of_a_tied_base_is_two_slices() -> None:
    plan = tailor("norm from two\nstack {\nL0..L3 base\nL2..L5 two\n}")
    document = yaml.safe_load(mergekit_text(plan, 6, tied=True))
    assert document["merge_method"] == "passthrough"
    assert [item["sources"] for item in document["slices"]] == [
        [{"model": "a/base", "layer_range": [0, 4]}],
        [{"model": "b/two", "layer_range": [2, 6]}],
    ]
    assert yaml.safe_load(mergekit_text(plan, 6))["merge_method"] == "linear"  # the base's head
    other = tailor("stack {\nL0..L3 base\nL2..L5 two\n}")  # the base's norm
    assert yaml.safe_load(mergekit_text(other, 6, tied=True))["merge_method"] == "linear"
    headed = tailor("norm from two\nhead from two\nstack {\nL0..L3 base\nL2..L5 two\n}")
    assert yaml.safe_load(mergekit_text(headed, 6)) == document
