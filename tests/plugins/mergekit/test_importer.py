"""mergekit's YAML as plans: each configuration's plan, notes and refusals."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import gptailor
from gptailor.lang.importers import ConversionError, Note
from gptailor.plan.faults import errors
from gptailor.plan.plan import Plan
from gptailor.plan.written_out import written_out
from gptailor.plugins.mergekit.exporter import export_mergekit
from gptailor.plugins.mergekit.importer import from_mergekit
from tests.support.naive import interpret
from tests.support.thorough import drawn
from tests.support.tiny import tiny_model

FOLDER = Path(__file__).parent / "yaml"
FILES = sorted(FOLDER.glob("*.yml"))
NOT_EXPORTED = {"dare": "can't reproduce 'dare': mergekit drops other entries in each run"}
"""Configurations with plans that mergekit can't express, and why."""

TWO = "models: [{model: a/base}, {model: b/two}]\n"
SLERP = TWO + "merge_method: slerp\nbase_model: a/base\n"


_FOLDERS = tempfile.TemporaryDirectory()
UNTIED = {"model_type": "llama", "tie_word_embeddings": False}


@cache
def folder_of(layers: int, name: str = "llama", **config: Any) -> Path:
    """A folder with only the configuration of a base with this many layers."""
    folder = Path(_FOLDERS.name) / f"{name}-{layers}"
    folder.mkdir()
    text = json.dumps(UNTIED | {"num_hidden_layers": layers} | config)
    (folder / "config.json").write_text(text)
    return folder


def read(text: str, layers: int | None = 6, **others: Any) -> tuple[Plan, list[Note]]:
    """Import a configuration; the base has `layers` layers, or is missing if it is None."""
    given = {"models": {"base": folder_of(layers)}} if layers is not None else {}
    return from_mergekit(text, "file.yml", **(given | others))


def imported(text: str, layers: int | None = 6) -> Plan:
    return read(text, layers)[0]


def notes_of(text: str) -> str:
    return "\n".join(str(note) for note in read(text)[1])


def refused(text: str, layers: int | None = 6, **others: Any) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        read(text, layers, **others)
    return caught.value


def tailor(body: str, *, head: str = 'model base = "a/base"\nmodel two = "b/two"\n') -> Plan:
    return gptailor.loads(f"tailor 1\n{head}{body}")


# ------------------------------------------------------------------------------------ the examples


def test_there_are_fifteen_examples_or_more() -> None:
    assert len(FILES) >= 15


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_example_becomes_the_plan_next_to_it(path: Path) -> None:
    plan, notes = read(path.read_text(encoding="utf-8"))
    assert gptailor.format(plan) == path.with_suffix(".tailor").read_text(encoding="utf-8")
    text = "".join(f"{note}\n" for note in notes)
    assert text == path.with_suffix(".notes").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_imported_plan_has_no_faults_and_survives_its_text(path: Path) -> None:
    plan = imported(path.read_text(encoding="utf-8"))
    assert gptailor.loads(gptailor.format(plan)) == plan


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_imported_plan_survives_export_and_import(path: Path) -> None:
    plan = imported(path.read_text(encoding="utf-8"))
    if path.stem in NOT_EXPORTED:
        with pytest.raises(ConversionError, match=NOT_EXPORTED[path.stem]):
            export_mergekit(plan, 6)
        return
    again = imported(text := export_mergekit(plan, 6)).model_copy(update={"models": plan.models})
    if path.stem == "linear_gradient":  # a weight of 0 is left out on the way
        text = export_mergekit(again, 6)
        again = imported(text).model_copy(update={"models": plan.models})
    assert export_mergekit(again, 6) == text


# --------------------------------------------------------------------------------------- gradients


def test_a_gradient_interpolates_linearly_between_its_values() -> None:
    plan = imported(SLERP + "parameters: {t: [0.0, 1.0, 0.5]}", 5)
    body = "whole from base, two by slerp(curve(0.0, 1.0, 0.5))\nnorm from base\nhead from base"
    assert plan == tailor(body)
    shares = [layer.recipe.by.arguments["t"] for layer in written_out(plan, 5).layers]
    assert shares == [0.0, 0.5, 1.0, 0.75, 0.5]


def test_a_gradient_starts_again_in_each_slice() -> None:
    both = (
        "{{sources: [{{model: a/base, layer_range: [{0}]}}, {{model: b/two, layer_range: [{0}]}}]}}"
    )
    slices = ", ".join(both.format(span) for span in ("0, 2", "2, 3"))
    text = f"slices: [{slices}]\nmerge_method: slerp\nbase_model: a/base\nparameters: {{t: [0, 1]}}"
    assert imported(text, 3) == tailor(
        "L0..L1 from base, two by slerp(curve(0.0, 1.0))\n"
        "L2 from base, two by slerp(curve(0.0, 1.0))"
    )


def test_embedding_norm_and_head_are_where_gradients_start() -> None:
    plan = imported(SLERP + "parameters: {t: [0.25, 1]}", 2)
    ends = "".join(f"{w} from base, two by slerp(0.25)\n" for w in ("norm", "head"))
    assert plan == tailor(ends + "whole from base, two by slerp(curve(0.25, 1.0))")


def test_one_value_of_a_gradient_holds_everywhere() -> None:
    assert imported(SLERP + "parameters: {t: [0.5]}", 2) == imported(
        SLERP + "parameters: {t: 0.5}", 2
    )


# ----------------------------------------------------------------------------------------- filters


def test_a_filter_of_a_branch_and_its_norm_is_that_branch() -> None:
    text = SLERP + (
        "parameters:\n  t:\n  - {filter: mlp, value: 1}\n"
        "  - {filter: post_attention_layernorm, value: 1}\n  - value: 0\n"
    )
    assert imported(text, 2) == tailor("others.mlp from two")
    assert "norm" not in notes_of(text)


T = "parameters: {{t: [{{filter: {}, value: 1}}, {{value: 0}}]}}"


@pytest.mark.parametrize(
    ("filter_", "body"),
    [
        ("mlp", "others.mlp from two\nothers.norms from base"),
        ("q_proj", "others.attn.q from two"),
        ("_layernorm", "others.norms from two"),
        ("input_layernorm", 'others."input_layernorm.weight" from two'),
        ("down_proj.weight", "others.mlp.down from two"),
        ("_proj", "others.attn from two\nothers.mlp from two\nothers.norms from base"),
        ("layers.0.mlp", "L0.mlp from two\nL0.norms from base"),
    ],
)
def test_a_filter_becomes_its_parts(filter_: str, body: str) -> None:
    assert imported(SLERP + T.format(filter_), 2) == tailor(body)


def test_the_popular_slerp_file_becomes_four_statements() -> None:
    text = SLERP + (
        "parameters:\n  t:\n  - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}\n"
        "  - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}\n  - value: 0.5\n"
    )
    assert imported(text) == tailor(
        "whole from base, two by slerp(0.5)\n"
        "others.attn from base, two by slerp(curve(0.0, 0.5, 0.3, 0.7, 1.0))\n"
        "others.mlp from base, two by slerp(curve(1.0, 0.5, 0.7, 0.3, 0.0))\n"
        "others.norms from base, two by slerp(0.5)"
    )


def test_more_than_one_pattern_is_refused() -> None:
    qwen3 = {"base": folder_of(2, "qwen3", model_type="qwen3")}
    t = "parameters: {t: [{filter: q_norm, value: 0.5}, {filter: k_norm, value: 1}, {value: 0}]}"
    error = refused(SLERP + t, models=qwen3)
    assert (error.line, error.place) == (4, "parameters.t")
    assert "'self_attn.q_norm.weight' and 'self_attn.k_norm.weight'" in error.message
    both = read(SLERP + T.format("_norm"), models=qwen3)[0]
    assert both == tailor('others."self_attn.*_norm.weight" from two')


@pytest.mark.parametrize(
    ("filter_", "body"),
    [
        ("embed_tokens", "embed from two"),
        ("lm_head", "head from two"),
        ("model.norm", "norm from two"),
        ("layers.1.", "L1 from two"),
        ("layers.1.self_attn", "L1.attn from two\nL1.norms from base"),
    ],
)
def test_filters_name_the_rest_and_single_layers(filter_: str, body: str) -> None:
    text = SLERP + f"parameters: {{t: [{{filter: {filter_}, value: 1}}, {{value: 0}}]}}"
    assert imported(text, 2) == tailor(body)


def test_a_filter_of_no_tensor_is_noted() -> None:
    text = SLERP + "parameters: {t: [{filter: c_attn, value: 1}, {value: 0}]}"
    assert "no tensor has 'c_attn' in mergekit's name for it" in notes_of(text)


def test_filters_in_a_stack_are_refused() -> None:
    pair = "[{model: a/base, layer_range: [1, 2]}, {model: b/two, layer_range: [1, 2]}]"
    text = (
        f"slices: [{{sources: {pair}}}, {{sources: {pair}}}]\nmerge_method: slerp\n"
        "base_model: a/base\nparameters: {t: [{filter: mlp, value: 1}, {value: 0}]}"
    )
    assert "item of a stack" in refused(text).message


def test_filters_match_the_tensor_names_of_the_base(family: Path) -> None:
    text = (
        "models: [{model: ./qwen}, {model: ./qwen2}]\nmerge_method: slerp\nbase_model: ./qwen\n"
        "parameters: {t: [{filter: q_proj.bias, value: 1}, {value: 0}]}"
    )
    plan, _ = from_mergekit(text, "file.yml", root=family)
    assert 'others."self_attn.q_proj.bias" from qwen2' in gptailor.format(plan)


# ----------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("weights", "settings", "recipe"),
    [
        ((1, 3), "", "by linear(1.0, 3.0, normalize=yes)"),
        ((0.25, 0.75), "", "by linear(0.25, 0.75)"),
        ((2, 2), "", "by linear()"),
        ((1, 3), "normalize: false", "by linear(1.0, 3.0)"),
    ],
)
def test_linear(weights: tuple[float, float], settings: str, recipe: str) -> None:
    models = ", ".join(
        f"{{model: {m}, parameters: {{weight: {w}}}}}"
        for m, w in zip(("a/base", "b/two"), weights, strict=True)
    )
    text = f"models: [{models}]\nmerge_method: linear\nparameters: {{{settings}}}"
    assert imported(text, None) == tailor(f"whole from base, two {recipe}")


def task(method: str, of_two: str, of_three: str | None = None, settings: str = "") -> str:
    models = f"{{model: b/two, parameters: {{{of_two}}}}}"
    if of_three is not None:
        models += f", {{model: c/three, parameters: {{{of_three}}}}}"
    return (
        f"models: [{models}]\nmerge_method: {method}\nbase_model: a/base\n"
        f"parameters: {{{settings}}}\n"
    )


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        (task("task_arithmetic", "weight: 0.5"), "two by task_arithmetic(0.5)"),
        (
            task("task_arithmetic", "weight: 2", "weight: 1"),
            "two, three by task_arithmetic(2.0, 1.0)",
        ),
        (
            task("task_arithmetic", "weight: 3", "weight: 1", "normalize: true, lambda: 2"),
            "two, three by task_arithmetic(1.5, 0.5)",
        ),
        (task("task_arithmetic", "weight: 3", "weight: 0"), "two by task_arithmetic(3.0)"),
        (
            task("ties", "weight: 3, density: 0.5", "weight: 3, density: 0.5"),
            "two, three by ties(density=0.5)",
        ),
        (
            task("ties", "weight: 3, density: 0.5", settings="normalize: false, lambda: 2"),
            "two by ties(density=0.5, scale=6.0)",
        ),
        (
            task("dare_linear", "weight: 0.5, density: 0.25", settings="rescale: false"),
            "two by dare(density=0.25, scale=0.5, rescale=no)",
        ),
        (
            task("dare_ties", "weight: 0.5, density: 0.25", settings="normalize: true"),
            "two by dare(density=0.25, rescale=l1)",
        ),
        (
            task("breadcrumbs_ties", "weight: 1, density: 0.75, gamma: 0.5"),
            "two by breadcrumbs(density=0.75, gamma=0.25)",
        ),
        (
            task("ties", "weight: 1, density: 0.5", "weight: 2, density: 0.7"),
            "two, three by ties(density=(0.5, 0.7), weight=(1.0, 2.0))",
        ),
        (
            task("ties", "weight: 0.4", "weight: 0.4", "normalize: 0.0, lambda: 0.9"),
            "two, three by ties(density=1.0, scale=0.9, weight=0.4, normalize=no)",
        ),
        (
            task("dare_ties", "weight: 1, density: 0.5", "weight: 0.4, density: 0.7"),
            "two, three by dare_ties(density=(0.5, 0.7), weight=(1.0, 0.4), rescale=l1)",
        ),
        (
            task("dare_ties", "weight: 1", "weight: 1", "normalize: true"),
            "two, three by ties(density=1.0)",
        ),
        (
            task("dare_linear", "weight: 1, density: 0.5", "weight: 2, density: 0.5"),
            "two, three by dare(density=0.5, weight=(1.0, 2.0), rescale=l1)",
        ),
        (
            task("breadcrumbs_ties", "weight: 1, density: 0.9", "weight: 1, density: 0.5"),
            "two, three by breadcrumbs_ties(density=(0.9, 0.5), gamma=0.01)",
        ),
        (
            task("della", "weight: 1, density: 0.5", "weight: 0.4, density: 0.6, epsilon: 0.2"),
            "two, three by della(density=(0.5, 0.6), epsilon=(0.15, 0.2), "
            "weight=(1.0, 0.4), rescale=l1)",
        ),
        (
            task("della_linear", "weight: 0.5, density: 0.5", "weight: 0.5, density: 0.5"),
            "two, three by della_linear(density=0.5, epsilon=0.15, scale=0.5, rescale=l1)",
        ),
        (
            task("della", "weight: 0.5, density: 0.5, epsilon: 0.1", settings="rescale: false"),
            "two by della_linear(density=0.5, epsilon=0.1, rescale=no)",
        ),
        (task("sce", "", "", "select_topk: 0.7"), "two, three by sce(density=0.7, floor=1e-06)"),
        (task("sce", "", "", "int8_mask: true"), "two, three by sce(floor=1e-06)"),
        (task("ram", "", "", "epsilon: 0.001"), "two, three by ram(epsilon=0.001)"),
        (task("ramplus_tl", "", "", "r: 0.3"), "two, three by ram_plus(r=0.3)"),
        (
            task("model_stock", "", "", "filter_wise: true"),
            "two, three by model_stock(by=row)",
        ),
        (
            task("multislerp", "weight: 1", "weight: 3"),
            "two, three by multislerp(weight=(1.0, 3.0), of=task_vectors)",
        ),
        (
            task("nuslerp", "weight: 1", "weight: 3", "nuslerp_flatten: false"),
            "two, three by nuslerp(weight=(1.0, 3.0), of=task_vectors, by=row)",
        ),
        (task("nearswap", "", settings="t: 0.001"), "base, two by nearswap(t=0.001)"),
        (task("arcee_fusion", ""), "base, two by arcee_fusion()"),
    ],
)
def test_task_vectors(text: str, recipe: str) -> None:
    head = 'model base = "a/base"\nmodel two = "b/two"\n'
    head += 'model three = "c/three"\n' if "c/three" in text else ""
    assert imported(text, None) == tailor(f"whole from {recipe}", head=head)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (task("ties", "weight: 1, density: 0.5", settings="rescale: true"), "rescale: true"),
        (task("ties", "density: 0.5"), "needs 'weight' in mergekit"),
        (task("tise", "weight: 1"), "there is no merge_method 'tise'"),
        (task("della", "weight: 1, density: 0.9", "weight: 1"), "0.9 ± epsilon"),
        (task("nearswap", "", "", "t: 0.1"), "takes two sources"),
        (task("multislerp", "weight: 1", "weight: -1"), "the weights sum to 0"),
        (SLERP + "parameters: {t: 1.5}", "is out of bounds"),
        (SLERP, "needs 't'"),
        (TWO + "merge_method: passthrough", "takes one source"),
        (
            "slices: [{sources: [{model: b/two, layer_range: [0, 2]}]}]\nmerge_method: ram\n"
            "base_model: a/base",
            "needs one of its sources as base_model",
        ),
        (TWO + "merge_method: linear\nparameters: {weight: 0}", "sum to 0"),
    ],
)
def test_keys_without_an_equivalent_are_refused_by_name(text: str, message: str) -> None:
    assert message in refused(text).message


@pytest.mark.parametrize(
    ("method", "density", "body"),
    [
        ("ties", "[1, 0.7, 0.1]", "norm from two by ties(density=1.0)\nhead from two by "
         "ties(density=1.0)\nwhole from two by ties(density=curve(1.0, 0.7, 0.1))"),
        ("ties", "[{filter: mlp, value: 0.5}, {value: 1}]",
         "others.mlp from two by ties(density=0.5)\nothers.norms from two by ties(density=1.0)\n"
         "whole from two by ties(density=1.0)"),
        ("breadcrumbs", "[{filter: embed, value: 0.5}, {value: 1}]",
         "embed from two by breadcrumbs(density=0.5, gamma=0.01)\n"
         "whole from two by breadcrumbs(density=1.0, gamma=0.0)"),
    ],
)  # fmt: skip
def test_a_file_that_trims_some_tensors_has_one_method(
    method: str, density: str, body: str
) -> None:
    plan = imported(task(method, f"weight: 1, density: {density}"))
    assert plan == tailor(body)
    again = imported(export_mergekit(plan, 6))
    assert again.model_copy(update={"models": plan.models}) == plan


@pytest.mark.parametrize("method", ["ties", "slerp", "model_stock", "nearswap"])
def test_a_method_without_its_base_model_is_refused_at_its_line(method: str) -> None:
    two = method in {"slerp", "nearswap"}
    text = TWO + f"merge_method: {method}\nparameters: {{{'t: 0.5' if two else ''}}}\n"
    for layers in (6, None):
        error = refused(text, layers)
        assert (error.line, error.place) == (2, "merge_method")
        assert error.message == f"'{method}' needs a base_model, also in mergekit"
        assert error.help.endswith("its two sources" if two else "were trained from")


def test_a_base_that_mergekit_adds_to_the_sources_is_named() -> None:
    error = refused(SLERP.replace("base_model: a/base", "base_model: c/three\nparameters: {t: 1}"))
    assert error.message == "'slerp' takes two sources, got 3"
    assert "mergekit adds it to them" in error.help
    three = TWO.replace("]", ", {model: c/three}]") + "merge_method: slerp\nbase_model: a/base\n"
    assert not refused(three).help


def test_task_vectors_across_layers_are_refused() -> None:
    text = (
        "slices: [{sources: [{model: a/base, layer_range: [0, 2]}, "
        "{model: b/two, layer_range: [1, 3], parameters: {weight: 1}}]}]\n"
        "merge_method: task_arithmetic\nbase_model: a/base"
    )
    assert "L1 two against L0 of the base" in refused(text).message


def test_task_vectors_of_another_base_are_refused() -> None:
    text = (
        "slices: [{base_model: b/two, sources: [{model: a/base, layer_range: [0, 2], parameters: "
        "{weight: 1}}, {model: b/two, layer_range: [0, 2]}]}]\n"
        "merge_method: task_arithmetic\nbase_model: a/base"
    )
    assert "a plan has one base" in refused(text).message


# ------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "line", "place", "message"),
    [
        ("merge_method: [", 1, "", "invalid YAML"),
        ("- a", None, "", "expected a mapping"),
        ("", None, "", "empty"),
        ("merge_method: slerp", None, "", "got none of them"),
        (TWO + "slices: [1]\nmerge_method: linear", None, "", "got slices and models"),
        (TWO, None, "", "'merge_method' is missing"),
        (TWO + "merge_method: linear\nmerge_method: slerp", 3, "merge_method", "duplicate key"),
        (TWO + "merge_methd: linear", None, "", "'merge_method' is missing"),
        (TWO + "merge_method: linear\nparameters: {weight: heavy}", 3, "parameters.weight",
         "expected a number for"),
        (TWO + "merge_method: linear\nparameters: {weight: .nan}", 3, "parameters.weight",
         "expected a number for"),
        (TWO + "merge_method: linear\nparameters: {weight: []}", 3, "parameters.weight", "empty"),
        (TWO + "merge_method: linear\nparameters: {weight: [1, {value: 2}]}", 3,
         "parameters.weight", "got both"),
        (TWO + "merge_method: linear\nparameters: {normalize: 2}", 3, "parameters.normalize",
         "true or false"),
        ("models: [{model: a@b@c}]\nmerge_method: linear", 1, "models[0].model", "path@revision"),
        ("models: [{model: a+b+c}]\nmerge_method: linear", 1, "models[0].model", "one adapter"),
        ("models: [{model: a/b}, {model: a/b}]\nmerge_method: linear", 1, "models[1].model",
         "twice"),
        (SLERP + "parameters: {t: 0}\ndtype: float64", 5, "dtype", "there is no dtype 'float64'"),
        (SLERP + "parameters: {t: 0}\ntokenizer: {tokens: {x: {}}}", 5, "tokenizer.tokens", "rows"),
        (SLERP + "parameters: {t: 0}\ntokenizer_source: c/c", 5, "tokenizer_source", "isn't one"),
        (SLERP + "parameters: {t: 0}\nchat_template: [a, b]", 5, "chat_template",
         "expected a text, got a list"),
        ("modules: {a: {models: [1]}, b: {models: [1]}}\nmerge_method: linear", 1, "modules",
         "one module"),
    ],
)  # fmt: skip
def test_a_faulty_file_is_refused_with_its_key_and_line(
    text: str, line: int | None, place: str, message: str
) -> None:
    error = refused(text)
    assert message in error.message
    assert (error.line, error.place) == (line, place)
    assert str(error).startswith(f"file.yml:{line}: " if line else "file.yml: ")


@pytest.mark.parametrize(
    ("span", "message"),
    [("[3, 2]", "contains no layer"), ("[-1, 2]", "is negative"),
     ("[0, 9]", "the base has 6 layers"),
     ("[0]", "two whole numbers"), ("[0, 1.5]", "two whole numbers"), ("4", "expected a list")],
)  # fmt: skip
def test_a_faulty_range_is_refused(span: str, message: str) -> None:
    text = (
        f"slices: [{{sources: [{{model: a/b, layer_range: {span}}}]}}]\nmerge_method: passthrough"
    )
    assert message in refused(text).message
    assert refused(text).place == "slices[0].sources[0].layer_range"


IGNORED = """\
merge_method: linear
select_topk: 0.5
models:
- {model: a/base, revision: v1, parameters: {weight: 1, wieght: 2}}
- {model: b/two, parametrs: {weight: 3}, parameters: {weight: 1}}
parameters: {dtype: bfloat16}
"""


def test_keys_that_mergekit_passes_over_are_notes_and_faults_with_strict() -> None:
    notes = notes_of(IGNORED)
    ignores = "mergekit ignores the unknown"
    for message in (
        f"file.yml:2: select_topk: {ignores} key 'select_topk' here",
        f"file.yml:4: models[0].revision: {ignores} key",
        f"file.yml:5: models[1].parametrs: {ignores} key 'parametrs' here "
        "(did you mean 'parameters'?)",
        f"file.yml:4: models[0].parameters.wieght: {ignores} parameter 'wieght'",
        f"file.yml:6: parameters.dtype: {ignores} parameter",
    ):
        assert message in notes
    error = refused(IGNORED, strict=True)
    assert [each.line for each in (error, *error.others)] == [2, 4, 4, 5, 6]
    sources = "sources: [{model: a/b, layer_range: [0, 1]}]"
    text = f"slices: [{{merge_method: slerp, {sources}}}]\nmerge_method: passthrough"
    assert refused(text, strict=True).place == "slices[0].merge_method"


def test_an_unknown_key_of_a_filter_or_of_the_base_is_noted_too() -> None:
    base = "{model: {path: a/base, comit: x}, lroa: y}"
    text = f"{TWO}merge_method: slerp\nbase_model: {base}\n"
    noted = notes_of(text + "parameters:\n  t:\n  - {filtre: mlp, value: 0.3}\n")
    for place, key in (
        ("3: base_model.lroa", "lroa"),
        ("3: base_model.model.comit", "comit"),
        ("6: parameters.t[0].filtre", "filtre"),
    ):
        assert f"file.yml:{place}: mergekit ignores the unknown key '{key}' here" in noted


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("slef_attn", "self_attn"),
        ("down_porj", "down_proj"),
        ("embed_token_", "embed_tokens"),
        ("layer.1.mlp", "layers.1.mlp"),
        (".mpl.", "mlp"),
        ("model.nrom", "model.norm"),
    ],
)
def test_a_filter_of_no_tensor_is_a_fault_with_strict_and_names_the_nearest(
    word: str, near: str
) -> None:
    text = SLERP + f"parameters: {{t: [{{filter: {word}, value: 1}}, {{value: 0}}]}}"
    message = f"file.yml:4: parameters.t: no tensor has '{word}' in mergekit's name for it"
    assert message in notes_of(text)
    error = refused(text, 2, strict=True)
    assert str(error).startswith(message)
    assert error.message.endswith(f"(did you mean '{near}'?)")
    good = text.replace(word, near)
    assert read(good, 2, strict=True)[0] == imported(good, 2)


@pytest.mark.parametrize(
    ("t", "word"),
    [
        ("[{value: 0.5}, {filter: mlp, value: 1}]", "mlp"),
        ("[{filter: self_attn, value: 1}, {filter: q_proj, value: 0}, {value: 0.5}]", "q_proj"),
    ],
)
def test_a_filter_after_values_for_all_its_tensors_is_noted(t: str, word: str) -> None:
    text = SLERP + f"parameters: {{t: {t}}}"
    message = f"file.yml:4: parameters.t: values before '{word}' have all of its tensors"
    assert message in notes_of(text)
    assert str(refused(text, strict=True)).startswith(message)
    other_order = text.replace("[{value: 0.5}, ", "[").replace(
        "value: 1}]", "value: 1}, {value: 0}]"
    )
    assert word == "q_proj" or "values before" not in notes_of(other_order)


RANGES = """\
slices:
- sources: [{model: a/base, layer_range: [0, 4]}]
- sources: [{model: MODEL, layer_range: [2, 9]}]
merge_method: passthrough
"""


def test_a_range_beyond_the_base_is_found() -> None:
    beyond = refused(RANGES.replace("MODEL", "a/base+x/lora"))
    assert (beyond.line, beyond.place) == (3, "slices[1].sources[0].layer_range")
    assert beyond.message == "the base has 6 layers, but the range ends at 9"
    text = RANGES.replace("MODEL", "b/two")
    assert "file.yml:3: slices[1].sources[0].layer_range: the base has 6 layers" in notes_of(text)
    assert "--model two=FOLDER" in refused(text, strict=True).message
    folders = {"base": folder_of(6), "two": folder_of(8, "eight")}
    error = refused(text, models=folders)
    assert error.message == "'b/two' has 8 layers, but the range ends at 9"
    deeper = read(text, models=folders | {"two": folder_of(12, "twelve")}, strict=True)
    assert "L2..L8 two" in gptailor.format(deeper[0])
    assert "layer_range" not in str(deeper[1])


def test_the_base_is_followed_through_stages() -> None:
    stage = "name: mix\nmerge_method: slerp\nbase_model: a/base\nmodels: [{model: b/two}]\n"
    stage += "parameters: {t: 0.5}\ntokenizer_source: b/two\n---\n"
    last = "merge_method: slerp\nbase_model: mix\nmodels: [{model: c/three}]\n"
    plan, notes = from_mergekit(f"{stage}{last}parameters: {{t: 0.25}}\n", "f.yml", 4)
    assert plan.models["base"].source == "a/base"
    assert any("only the last document's tokenizer and template" in str(note) for note in notes)


def test_a_range_beyond_a_stage_is_found() -> None:
    stage = "name: mix\nmerge_method: linear\nmodels: [{model: a/base}, {model: b/two}]\n"
    text = f"{stage}parameters: {{weight: 1}}\n---\n{RANGES.replace('MODEL', 'mix')}"
    assert refused(text).message == "'mix' has 6 layers, but the range ends at 9"


def test_notes_are_sorted_by_line() -> None:
    notes = read(IGNORED + "lamda: 1\ndtype: bfloat16\n")[1]
    lines = [note.line or 0 for note in notes]
    assert lines == sorted(lines)
    assert {0, 2, 4, 5, 6, 7, 8} <= set(lines)
    assert all(str(note).startswith("file.yml") for note in notes)


def test_a_note_on_a_path_has_its_line() -> None:
    text = "models:\n- {model: a/base}\n- {model: 'E:\\m\\two', parameters: {weight: 1}}\n"
    notes = notes_of(text + "base_model: a/base\nmerge_method: task_arithmetic\n")
    assert "file.yml:3: E:\\m\\two: expected a path of this machine" in notes


def test_an_ignored_key_is_reported_with_the_missing_key() -> None:
    good = task("ties", "weight: 1", "weight: 1")
    error = refused(good.replace("parameters: {weight", "paramters: {weight", 1))
    messages = [item.message for item in (error, *error.others)]
    assert any("needs 'weight' in mergekit" in item for item in messages)
    assert any("unknown key 'paramters'" in item for item in messages)
    misspelt = refused(task("ties", "wieght: 1", "weight: 1"))
    assert any(
        "unknown parameter 'wieght'" in item.message for item in (misspelt, *misspelt.others)
    )


def test_all_faults_of_a_file_are_reported_together() -> None:
    text = (
        "models:\n- {model: a/base}\n- {model: b/two, parameters: {weight: heavy}}\n"
        "- {model: c@d@e}\nmerge_method: 3\n"
    )
    error = refused(text)
    assert [(each.line, each.place) for each in (error, *error.others)] == [
        (4, "models[2].model"),
        (5, "merge_method"),
    ]
    later = refused(text.replace("c@d@e", "c").replace("3", "ties") + "dtype: float64\n")
    lines = str(later).splitlines()
    faults = [line for line in lines if not line.startswith("  = ")]
    assert [line.partition(": ")[0] for line in faults] == ["file.yml:3", "error"]
    assert faults[1].startswith("error: file.yml:6: ")


def test_a_wrong_method_hides_no_other_mistake() -> None:
    text = "models:\n- {model: a/base}\n- {model: b/two, paramters: {weight: 1}}\n"
    error = refused(text + "merge_method: taks_arithmetic\ndtype: bf16\n")
    assert [(each.line, each.place) for each in (error, *error.others)] == [
        (3, "models[1].paramters"),
        (4, "merge_method"),
        (5, "dtype"),
    ]
    unread = refused(text + "merge_metod: linear\n")
    assert {each.place for each in (unread, *unread.others)} == {
        "", "models[1].paramters", "merge_metod",
    }  # fmt: skip


def test_models_need_the_number_of_layers() -> None:
    error = refused(task("breadcrumbs", "weight: 1, density: 0.5, gamma: [0, 0.1]"), None)
    assert "their number is unknown" in error.message
    assert "--base FOLDER" in error.help
    assert "--layers N" in error.help


SLICES = """\
slices:
- sources: [{model: a/base, layer_range: [0, 2]}]
- sources: [{model: b/two, layer_range: [2, 4]}]
merge_method: passthrough
"""


def test_only_keys_that_depend_on_an_unknown_base_are_refused() -> None:
    unknown = refused(SLICES, None).message
    assert "whether the head of 'a/base' is its embedding isn't known" in unknown
    same = SLICES.replace("b/two", "a/base")
    assert imported(same, None) == tailor("stack { L0..L3 base }", head='model base = "a/base"\n')
    filters = "parameters: {scale: [{filter: q_proj, value: 2}]}\n" + SLICES
    assert "filters need the names of tensors" in refused(filters, None).message


def test_a_tied_bases_head_is_its_embedding_which_is_the_first_slices() -> None:
    tied = {"base": folder_of(4, "tied", tie_word_embeddings=True)}
    body = "L2..L3 from two"
    assert read(SLICES, models=tied)[0] == tailor("norm from two\n" + body)
    assert imported(SLICES, 4) == tailor("norm from two\nhead from two\n" + body)


def test_filters_are_on_mergekits_names_of_the_base() -> None:
    gpt2 = {"base": folder_of(2, "gpt2", model_type="gpt2", n_layer=2)}
    text = SLERP + "parameters: {t: [{filter: FILTER, value: 1}, {value: 0}]}"
    plan, notes = read(text.replace("FILTER", "self_attn"), models=gpt2)
    assert plan == tailor("")
    assert "no tensor has 'self_attn' in mergekit's name for it" in str(notes)
    attention = "others.attn from two\nothers.norms from base"
    assert read(text.replace("FILTER", ".attn."), models=gpt2)[0] == tailor(attention)
    mixed = {"base": folder_of(2, "mixtral", model_type="mixtral", num_local_experts=2)}
    result, notes = read(text.replace("FILTER", "mlp"), models=mixed)
    assert result == tailor("others.mlp from two\nothers.norms from base")
    assert "block_sparse" not in str(notes)


def test_experts_that_mergekit_merges_as_one_are_refused_by_methods_that_see_it(
    tmp_path: Path,
) -> None:
    tiny_model("mixtral", tmp_path, layers=2)
    given = {"models": {"base": tmp_path}}
    text = SLERP + "parameters: {t: [{filter: mlp, value: 0.5}, {value: 0}]}"
    assert "all experts of a layer as one tensor" in refused(text, **given).message
    text = task("task_arithmetic", "weight: [{filter: mlp, value: 1}, {value: 0}]")
    body = "others.mlp from two by task_arithmetic(1.0)\nothers.norms from base"
    assert read(text, **given)[0] == tailor(body)
    text = task("task_arithmetic", "weight: [{filter: gate_up_proj, value: 1}, {value: 0}]")
    assert "one pattern at most" in refused(text, **given).message


def test_files_of_mergekits_other_tools_are_refused_by_the_tools_name() -> None:
    moe = "base_model: a/base\ngate_mode: hidden\nexperts: [{source_model: b/two}]"
    assert "mergekit-moe" in refused(moe).message
    evolved = "genome: {models: [a/base]}\ntasks: [{name: x}]"
    assert "mergekit-evolve" in refused(evolved).message


def test_equal_notes_of_several_places_are_one_note() -> None:
    text = task("ties", "weight: 1, lambda: 2", "weight: 1, lambda: 3")
    assert "models[0].parameters.lambda (and 1 more): 'lambda' of one source" in notes_of(text)


def test_windows_paths_and_snapshots_have_readable_names() -> None:
    commit = "221e5f92f9dc5fedaf4556b1be6b20642638643c"
    text = (
        "models:\n- {model: 'E:\\mergekit\\Sao10K_Lyra-v1', parameters: {weight: 1}}\n"
        f"- {{model: 'D:/hub/models--VAGO--Llama-3/snapshots/{commit}',\n"
        "   parameters: {weight: 1}}\n"
        "base_model: a/base\nmerge_method: task_arithmetic\n"
    )
    plan, notes = read(text)
    assert list(plan.models) == ["base", "sao10k_lyra_v1", "llama_3"]
    assert plan.models["sao10k_lyra_v1"].source == "./E:/mergekit/Sao10K_Lyra-v1"
    result = plan.models["llama_3"]
    assert (result.source, result.revision) == ("VAGO/Llama-3", commit)
    assert "Sao10K_Lyra-v1: expected a path of this machine" in "\n".join(map(str, notes))


def test_flags_may_be_numbers_and_words_as_mergekit_writes_them() -> None:
    for flag in ("true", "1.0", "'yes'"):
        flags = f"normalize: {flag}, int8_mask: 1.0"
        text = task("task_arithmetic", "weight: 3", "weight: 1", flags)
        assert "whole from two, three by task_arithmetic(0.75, 0.25)" in gptailor.format(
            imported(text)
        )


def test_nuslerp_without_a_base_is_slerp() -> None:
    weighed = "[{{model: a/base, {0}: {{weight: 3}}}}, {{model: b/two, {0}: {{weight: 1}}}}]"
    plan = imported(f"models: {weighed.format('parameters')}\nmerge_method: nuslerp")
    assert plan == imported(SLERP + "parameters: {t: 0.25}")


def test_a_dtype_that_is_absent_is_the_widest(tmp_path: Path) -> None:
    half, full = (folder_of(6, name, dtype=name) for name in ("bfloat16", "float32"))
    paths = {"base": half, "two": full}
    plan, notes = read(SLERP + "parameters: {t: 0.5}", models=paths)
    assert (plan.dtype, "the models have bfloat16 and float32" in str(notes)) == ("float32", True)
    plan, notes = read(SLERP + "parameters: {t: 0.5}", models=dict.fromkeys(paths, paths["base"]))
    assert (plan.dtype, "dtype" in str(notes)) == (None, False)


def test_a_union_of_tokenizers_is_that_of_the_model_which_has_all_tokens(tmp_path: Path) -> None:
    for name, extra in (("small", []), ("large", ["new"])):
        (tmp_path / name).mkdir()
        vocab = {token: i for i, token in enumerate(["a", "b", *extra])}
        tokenizer = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer))
        (tmp_path / name / "config.json").write_text(json.dumps(UNTIED | {"num_hidden_layers": 6}))
    text = SLERP + "parameters: {t: 0.5}\ntokenizer: {}"
    small, large = tmp_path / "small", tmp_path / "large"
    plan, _ = read(text, models={"base": small, "two": large})
    assert "tokenizer from two" in gptailor.format(plan)
    assert read(text, models={"base": large, "two": small})[0].tokenizer is None
    assert read(text, models={"base": small})[0].tokenizer == "union"


def test_the_number_of_layers_is_the_bases_where_it_is_at_hand(family: Path) -> None:
    text = "models: [{model: ./math}]\nmerge_method: linear\nparameters: {weight: 1}"
    plan, _ = from_mergekit(text, "file.yml", root=family)
    assert gptailor.check(plan, {"base": family / "math"}) == []
    with pytest.raises(ConversionError, match="expected 6 layers of the base, got 4"):
        from_mergekit(text, "file.yml", 4, root=family)


# ------------------------------------------------------------------------------------------- notes


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (SLERP + "parameters: {t: 0.5}\nchat_template: llama3", "file.yml:5: chat_template: "),
        (SLERP + "parameters: {t: 0.5}\ndtype: bfloat16", "file.yml:5: dtype: mergekit computes"),
        (SLERP + "parameters: {t: 0.5}", "file.yml:2: merge_method: where |cosθ|"),
        (SLERP + "parameters: {t: 0.5, weight: 1}", "file.yml:4: parameters.weight: 'slerp' has "),
        (SLERP + "parameters: {t: 0.5, embed_slerp: true}", "parameters.embed_slerp: "),
        (
            task("ties", "weight: 1", settings="int8_mask: true"),
            "parameters.int8_mask: it only saves",
        ),
        (task("ties", "weight: 1, lambda: 2"), "models[0].parameters.lambda: 'lambda' of one"),
        (
            task("dare_linear", "weight: 1, density: 0.5"),
            "merge_method: mergekit drops other entries",
        ),
        (TWO + "merge_method: linear\nparameters: {weight: 1}", "no base_model is named"),
        (TWO + "merge_method: karcher\nparameters: {max_iter: 3}", "parameters.max_iter: "),
    ],
)
def test_a_difference_is_noted(text: str, note: str) -> None:
    assert note in notes_of(text)


@pytest.mark.parametrize(("scale", "noted"), [("", False), ("parameters: {scale: 0.5}", True)])
def test_the_rounding_of_mergekit_is_noted_where_it_computes(scale: str, noted: bool) -> None:
    text = f"models:\n- model: ./base\nmerge_method: passthrough\ndtype: bfloat16\n{scale}"
    assert ("mergekit computes in bfloat16" in notes_of(text)) == noted


def test_a_file_that_is_the_same_has_no_notes() -> None:
    assert notes_of(task("task_arithmetic", "weight: 1") + "dtype: float32") == ""


# ------------------------------------------------------------------------------------------ models


def test_names_are_readable_and_unique() -> None:
    models = ["a/Llama-2-7b", "b/llama_2.7b", "c/one", "d/7B", "./deep/L3", "x/base"]
    listed = ", ".join(f"{{model: {m}, parameters: {{weight: 1}}}}" for m in models)
    plan = imported(f"models: [{listed}]\nmerge_method: linear\nbase_model: a/Llama-2-7b")
    assert list(plan.models) == ["base", "llama_2_7b", "model_one", "model_7b", "l3", "base_2"]
    assert plan.models["l3"].source == "./deep/L3"


def test_revisions_and_adapters_are_kept() -> None:
    text = task("task_arithmetic", "weight: 1").replace("a/base", "a/b@v1")
    plan = imported(text.replace("b/two", "a/b@v1+c/lora@v2"))
    lines = gptailor.format(plan).splitlines()
    assert 'model base = "a/b" @ "v1"' in lines
    assert 'model lora = base + "c/lora" @ "v2"' in lines


def test_a_model_may_be_a_mapping() -> None:
    text = (
        "models: [{model: {model: {path: a/b, revision: v1}, lora: c/lora}, "
        "parameters: {weight: 1}}]\nmerge_method: linear"
    )
    models = imported(text).models
    assert (models["base"].source, models["base"].on) == ("c/lora", "b")
    assert models["b"].revision == "v1"


def test_paths_are_seen_from_the_plan(tmp_path: Path) -> None:
    (tmp_path / "models" / "one").mkdir(parents=True)
    text = "models: [{model: b/hub}, {model: models/one}]\nmerge_method: linear\n"
    text += "parameters: {weight: 1}"
    plan, _ = from_mergekit(text, "f.yml", 4, root=tmp_path, folder=tmp_path / "plans")
    assert plan.models["model_one"].source == "../models/one"
    assert plan.models["base"].source == "b/hub"


# -------------------------------------------------------------------------------------- robustness

JUNK: list[Any] = [None, True, -1, 2.5, "x", "", [], {}, [1], {"a": 1}, [[1]], {"value": []}]


def _leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    result = [at] if at else []
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in pairs:
        result += _leaves(inner, (*at, key))
    return result


@settings(max_examples=drawn(50))
@given(st.sampled_from(FILES), st.data())
def test_a_damaged_file_is_imported_or_refused(path: Path, data: st.DataObject) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    *outer, last = data.draw(st.sampled_from(_leaves(document)))
    inner = document
    for key in outer:
        inner = inner[key]
    inner[last] = data.draw(st.sampled_from(JUNK))
    try:
        plan, _ = from_mergekit(json.dumps(document), "file.yml", 6)
    except ConversionError:
        return
    assert gptailor.loads(gptailor.format(plan)) == plan


@given(st.text(alphabet="abm:{}[]-,&*!|>'\"# \n\t\x00é0", max_size=40))
def test_any_text_is_imported_or_refused(text: str) -> None:
    refused(text)


def test_a_file_of_nested_aliases_is_refused_quickly() -> None:
    lines = ["a: &a [x, x]"] + [
        f"{c}: &{c} [*{b}, *{b}]" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert "got none of them" in refused("\n".join(lines)).message


# ---------------------------------------------------------------------------------- there and back

RECIPES = {
    "linear": ["base", "math", "code", "base, math by linear(0.3, 0.9)", "math, code by linear()"],
    "slerp": ["base", "math", "base, math by slerp(0.3)", "base, math by slerp(0.6)"],
    "task_arithmetic": ["base", "math by task_arithmetic(0.5)",
                        "math, code by task_arithmetic(0.5, 0.25)"],
    "ties": ["base", "math by ties(density=0.5)", "math, code by ties(0.25, 0.5)"],
    "breadcrumbs": ["base", "math, code by breadcrumbs(0.75, 0.125, 0.5)"],
}  # fmt: skip


@st.composite
def sayable(draw: st.DrawFn) -> str:
    recipe = st.sampled_from(RECIPES[draw(st.sampled_from(sorted(RECIPES)))])
    lines = [f"{w} from {draw(recipe)}" for w in ("embed", "norm", "head") if draw(st.booleans())]
    dropped = draw(st.sets(st.integers(0, 5), max_size=3))
    lines += [f"drop L{n}" for n in sorted(dropped)]
    for n in sorted(set(range(6)) - dropped):
        parts = [".attn", ".mlp"] if draw(st.booleans()) else [""]
        lines += [f"L{n}{part} from {draw(recipe)}" for part in parts]
    return "\n".join(lines)


@settings(max_examples=drawn(40))
@given(body=sayable())
def test_export_and_import_give_the_same_tensors(body: str, family: Path) -> None:
    folders = {name: family / name for name in ("base", "math", "code")}
    head = "".join(f'model {name} = "{folder}"\n' for name, folder in folders.items())
    plan = tailor(body, head=head)
    again = imported(export_mergekit(plan, 6)).model_copy(update={"models": plan.models})
    assert errors(gptailor.check(again)) == []
    before, after = interpret(plan, folders), interpret(again, folders)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.allclose(after[name], tensor, rtol=1e-6, atol=1e-6), name


def test_a_stack_needs_no_base_depth() -> None:
    plan = tailor("norm from two\nhead from two\nstack { L0..L3 base\nL2..L5 two }")
    text = export_mergekit(plan)
    assert yaml.safe_load(text)["slices"][1]["sources"][0]["layer_range"] == [2, 6]
    assert imported(text, 6) == plan


# ---------------------------------------------------------------------------------------- documents

STAGES = """\
name: first
merge_method: linear
models:
- {model: a/base}
- {model: b/two}
parameters: {weight: 0.5}
---
name: second
merge_method: slerp
base_model: first
models: [{model: c/three}]
parameters: {t: 0.25}
---
merge_method: ties
base_model: a/base
models:
- {model: second, parameters: {weight: 0.5, density: 0.5}}
- {model: b/two, parameters: {weight: 1, density: 1}}
"""


def test_documents_that_other_documents_use_become_made_models() -> None:
    head = (
        'model base = "a/base"\nmodel two = "b/two"\nmodel three = "c/three"\n'
        "model first = base, two by linear()\nmodel second = first, three by slerp(0.25)\n"
    )
    body = "whole from second, two by ties(density=(0.5, 1.0), weight=(0.5, 1.0))"
    assert imported(STAGES, None) == tailor(body, head=head)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{model: b/two}\n", "{model: second}\n", "depends on itself"),
        ("name: second", "name: first", "two documents have the same 'name'"),
        ("base_model: first", "base_model: first@v1", "file.yml:10: base_model: 'first' is made"),
        ("name: second\n", "", "two documents have no 'name'"),
        ("base_model: first", "base_model: b/two", "no other document uses 'first'"),
        ("{t: 0.25}", "{t: [0, 1]}", "has several recipes"),
        ("a/base\nmodels:\n- {model: second", "first\nmodels:\n- {model: second",
         "a plan has one base, 'a/base'"),
    ],
)  # fmt: skip
def test_documents_that_arent_made_models_are_refused(old: str, new: str, message: str) -> None:
    assert old in STAGES
    assert message in str(refused(STAGES.replace(old, new), 4))


def test_filters_in_a_stack_are_refused_with_the_way_around_them() -> None:
    zero = "parameters: {scale: [{filter: down_proj, value: 0}, {value: 1}]}"
    slices = [("[0, 2]", ""), ("[1, 2]", f", {zero}"), ("[2, 6]", "")]
    text = "slices:\n" + "".join(
        f"- sources: [{{model: a/base, layer_range: {ends}{more}}}]\n" for ends, more in slices
    )
    error = refused(f"{text}merge_method: passthrough\n")
    assert error.line == 3
    assert "'L1.mlp.down from base by linear(0)'" in error.help
    assert "docs/mergekit.md" in error.help
