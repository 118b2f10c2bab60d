"""What is written for mergekit: numbers for each source, tokenizers, templates; and what isn't."""

from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]

import gptailor
from gptailor.convert.mergekit.exporter import to_mergekit
from gptailor.convert.note import ConversionError
from gptailor.plan import plan as p

HEAD = 'tailor 1\nmodel base = "a/b"\nmodel math = "a/math"\nmodel code = "a/code"\n'


def exported(body: str, layers: int = 2, folder: Path = Path()) -> dict[str, object]:
    plan = gptailor.loads(HEAD + body, folder=folder)
    found: dict[str, object] = yaml.safe_load(to_mergekit(plan, layers))
    return found


def test_ties_has_numbers_for_each_source() -> None:
    body = "whole from math, code by ties((0.5, 0.7), 0.8, weight=(1.0, 0.3), normalize=no)"
    said = exported(body)
    assert said["merge_method"] == "ties"
    assert said["slices"] == [
        {
            "sources": [
                {"model": "a/b", "layer_range": [0, 2]},
                {
                    "model": "a/math",
                    "layer_range": [0, 2],
                    "parameters": {"weight": 1.0, "density": 0.5},
                },
                {
                    "model": "a/code",
                    "layer_range": [0, 2],
                    "parameters": {"weight": 0.3, "density": 0.7},
                },
            ],
            "parameters": {"normalize": False, "lambda": 0.8},
        }
    ]


def test_a_union_is_one_where_its_rows_are_made_of_all_models() -> None:
    said = exported("tokenizer union\nwhole from math, code by ties()")
    assert said["tokenizer_source"] == "union"
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
    with pytest.raises(ConversionError, match="mergekit makes the rows that the") as caught:
        exported(f"tokenizer union\n{body}")
    assert caught.value.place == "tokenizer"


def test_a_chat_template_is_written_by_name_or_whole(tmp_path: Path) -> None:
    assert exported('chat_template "chatml"')["chat_template"] == "chatml"
    (tmp_path / "t.jinja").write_text("{{ messages }}\n{# ours #}\n")
    said = exported('chat_template "./t.jinja"', folder=tmp_path)
    assert said["chat_template"] == "{{ messages }}\n{# ours #}\n"
    with pytest.raises(ConversionError, match="not the one of a model") as caught:
        exported("chat_template from math")
    assert caught.value.place == "chat_template"
    with pytest.raises(ConversionError, match="cannot be read"):
        exported('chat_template "./gone.jinja"', folder=tmp_path)


def test_what_is_made_by_a_plan_is_no_model_there() -> None:
    plan = gptailor.loads(f"{HEAD}L0 from math")
    models = {**plan.models, "math": p.Model(source="./other.tailor")}
    with pytest.raises(ConversionError, match="made by a plan") as caught:
        to_mergekit(plan.model_copy(update={"models": models}), 2)
    assert caught.value.place == "models.math"
