"""Keys of a family file are rules of the same forms as the release's own."""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import gptailor
from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.family_file import (
    check_proof,
    content_digest,
    layout_by,
    read_family_file,
)
from gptailor.checkpoint.families.layer_config import Refusal, RuleError
from gptailor.checkpoint.families.layer_rules import First, LayerRule, Listed, Numbered
from gptailor.checkpoint.families.layout import Layout
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import open_checkpoint


def moved(rule: LayerRule, config: dict[str, Any], order: list[int], count: int = 4) -> Any:
    """The value of the key once layers are in another order."""
    rule.bound("key", {})
    values = rule.read(config, count)
    return rule.write(config, [values[i] for i in order])["key"]


def test_a_list_moves_with_its_layers_and_keeps_its_words() -> None:
    key = Listed(tried=("mamba", None), absent=("mamba",) * 4)
    assert moved(key, {"key": ["mamba", None, "mamba", None]}, [1, 2]) == [None, "mamba"]
    assert moved(key, {"key": None}, [0, 1]) == ["mamba", "mamba"]
    with pytest.raises(RuleError, match="'key' is missing, but the model has 3 layers"):
        moved(key, {}, [0], count=3)
    with pytest.raises(RuleError, match="'key' of L0 is 'conv', but its family was proven with"):
        moved(key, {"key": ["conv", "mamba"]}, [0], count=2)
    untried = Listed(tried=())
    with pytest.raises(RuleError, match="'key' of L0 is 'mamba'"):
        moved(untried, {"key": ["mamba"] * 4}, [0])


def test_numbers_of_layers_follow_them() -> None:
    key = Numbered(part="mlp", absent=(0, 2))
    assert moved(key, {"key": [1, 3]}, [3, 0, 1]) == [0, 2]
    assert moved(key, {}, [1, 2]) == [1]
    with pytest.raises(RuleError, match="'key' names layer 4, but the model has 4 layers"):
        moved(key, {"key": [4]}, [0])
    with pytest.raises(RuleError, match="'key' is missing, expected a list of layers"):
        moved(Numbered(part="mlp"), {}, [0])


def test_a_number_of_first_layers_is_counted_again() -> None:
    key = First(part="mlp", absent=(1,))
    assert moved(key, {"key": 2}, [1, 2, 3]) == 1
    assert moved(key, {"key": None}, [2, 3]) == 0
    with pytest.raises(RuleError, match="but a special layer would be L1, after the plain L0"):
        moved(key, {"key": 2}, [2, 0])
    for absent in (None, ()):
        with pytest.raises(RuleError, match="'key' is None, expected an integer of at least 0"):
            moved(First(part="mlp", absent=absent), {}, [0])


@pytest.mark.parametrize(
    ("kind", "value"), [(Listed, ["a", "b", "a"]), (Numbered, [0, 2]), (First, 1)]
)
def test_a_layer_of_each_kind_remains_where_it_has_to(kind: Any, value: Any) -> None:
    key = kind(tried=("a", "b"), every_kind=True)
    assert moved(key, {"key": value}, [0, 1], count=3) is not None
    with pytest.raises(RuleError, match="its family needs"):
        moved(key, {"key": value}, [1], count=3)


# ------------------------------------------------------------------------- files of strangers

LLAMA: dict[str, Any] = {
    "name": "mystery", "model_types": ["mystery"], "base": "model.", "stack": "layers.",
    "count_key": "num_hidden_layers", "embed": ["embed_tokens.weight"], "norm": ["norm.weight"],
    "head": ["lm_head.weight"], "attn": ["self_attn.", "input_layernorm."],
    "mlp": ["mlp.", "post_attention_layernorm."], "tied": False, "refused": {"parts": None},
}  # fmt: skip
"""A family file of the model `unknown`, which has llama's tensors."""


def write_signed(path: Path, config: Path, **changed: Any) -> Path:
    """Write the family file with changes, and with the digest that is right for them."""
    names = json.loads(config.read_text()).keys() - {"num_hidden_layers"}
    tried = changed.pop("case", {"name": "moved"})
    proof = {"gptailor": "0", "transformers": "5", "torch": "2", "source": "x", "seed": 0,
             "configuration": {}, "cases": [tried]}  # fmt: skip
    content = {**LLAMA, "agree": dict.fromkeys(names), "proof": proof, **changed}
    content = {key: value for key, value in content.items() if value is not ...}
    with suppress(ValidationError):
        content["digest"] = content_digest(Family.model_validate(content))
    path.write_text(json.dumps(content))
    return path


ESCAPE = "\x1b[31m"
FIRST = {"kind": "first", "part": "mlp", "absent": []}


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({}, None, ""),
        ({"moved": {"other": FIRST}}, "M204", "'other' is None, expected an integer"),
        ({"proof": None}, "M301", "the family file of 'mystery' has no proof"),
        ({"layrs": "layers."}, "C111", "unknown key 'layrs'"),
        ({"count_key": ..., "count_kye": "n"}, "C111", "unknown key 'count_kye'"),
        ({"head": "lm_head.weight"}, "C111", "'head': expected a list, got 'lm_head.weight'"),
        (
            {"moved": {"x": {"kind": "last"}}},
            "C111",
            "'moved.x': expected the kind 'entries', 'numbers', ",
        ),
        ({"moved": {"x": {"part": "mlp"}}}, "C111", "or 'function', got None"),
        ({"moved": {"x": {**FIRST, "keys": 1}}}, "C111", "unknown key 'moved.x.keys'"),
        (
            {"moved": {"x": {"kind": "entries", "derived": {**FIRST, "keys": 1}}}},
            "C111",
            "unknown key 'moved.x.derived.keys'",
        ),
        ({"moved": {"x": {"kind": "function", "function": "no"}}}, "C111", "'moved.x.function"),
        ({"moved": {"x": {"kind": "function", "function": "same"}}}, "C111", "functions read, got"),
        ({"moved": {"x": {"kind": "function", "function": "chunked"}}}, "M204", "needs 'of'"),
        ({"agree": {"x": 1}, "read": {"x": "settings"}}, "C111", "functions read, got Attribute"),
        ({"read": {"x": "no"}}, "C111", "'read.x': input should be 'gelu', 'gated_window'"),
        ({"count_of": "no"}, "C111", "'count_of': input should be '' or 'letters', got 'no'"),
        ({"model_types": []}, "C111", "'model_types': "),
        ({"moved": {"x": {"kind": "window"}}}, "C111", "expected the name of an earlier rule"),
        ({"attn_out": ["attn.o_proj"]}, "C111", "'attn.o_proj' of 'attn_out' matches no tensor"),
        ({"roles": {"ffn.up": "mlp.up"}}, "C111", "'ffn.up' of 'roles' matches no tensor"),
        ({"mlp": ["mlp.", "self_attn."]}, "C111", "'self_attn.' of 'mlp' give a tensor two roles"),
        (
            {"proof": None, "attn_out": ["self_attn.o"]},
            "M204",
            "no tensor of a layer matches 'self_attn.o' of 'attn_out'",
        ),
        (
            {"mlp_out": ["mlp.up"], "roles": {"mlp.up": "mlp.up"}},
            "C111",
            "'mlp.up' of 'mlp_out' has",
        ),
        (
            {"attn_out": ["mlp.*"], "roles": {"mlp": "norms"}, "attn": ["mlp."], "mlp": ["n."]},
            "C111",
            "another role in 'roles', 'norms'",
        ),
        (
            {"roles": {"mlp.up": "mlp.upper"}},
            "C111",
            "'roles.mlp.up': expected a role, one of 'attn.q'",
        ),
        (
            {"proof": None, "head": ["nope.weight"]},
            "M204",
            "no tensor 'nope.weight' of 'head', which",
        ),
        (
            {"proof": None, "norm": ["norm.wait"]},
            "M204",
            "no tensor 'model.norm.wait' of 'norm', which",
        ),
        (
            {"proof": None, "embed": ["wte.weight"]},
            "M204",
            "no tensor 'model.wte.weight' of 'embed', which",
        ),
        (
            {"proof": None, "head": []},
            "M204",
            "'lm_head.weight' has no place: name it under 'embed'",
        ),
        ({"proof": None, "norm": []}, "M204", "'model.norm.weight' has no place"),
        (
            {"proof": None, "base": "modle."},
            "M204",
            "begins with 'modle.layers.', the family file's 'base'",
        ),
        ({"norm": ["norm.weight"] * 2}, "C111", "'model.norm.weight' has two roles"),
        ({"norm": ["embed_tokens.weight"]}, "C111", "'model.embed_tokens.weight' has two roles"),
        ({"embed": ["layers.0.mlp.up_proj.weight"]}, "C111", "mlp.up_proj.weight' has two roles"),
        ({"stack": ESCAPE}, "C111", "'stack': "),
        ({"base": "b" * 2000}, "C111", "'base': "),
        ({"embed": [ESCAPE]}, "C111", "'embed.0': "),
        ({"count_key": "a\nb"}, "C111", "'count_key': "),
        ({"refused": {"parts": ESCAPE}}, "C111", "'refused.parts': "),
        ({"moved": {ESCAPE: FIRST}}, "C111", "'moved."),
        ({"case": {"name": ESCAPE, "failure": "x\n" * 999}}, "C112", r"'\x1b[31m': 'x\nx\n"),
    ],
)
def test_a_family_file_of_a_stranger_is_one_fault(
    changed: dict[str, Any], code: str | None, said: str, family: Path, tmp_path: Path
) -> None:
    file = write_signed(tmp_path / "f.family.json", family / "unknown" / "config.json", **changed)
    text = f'tailor 1\nmodel base = "{family / "unknown"}"\ndrop L2\n'
    plan = gptailor.loads(text).with_families([file])
    faults = gptailor.check(plan)
    assert [fault.code for fault in faults] == ([] if code is None else [code])
    for fault in faults:
        assert said in fault.message
        assert str(file) in f"{fault.message} {fault.help}" or code in {"M301", "M204"}
        assert code != "C111" or "'gptailor schema --family' prints its form" in fault.help
        assert fault.message.isprintable()
        assert len(fault.message) < 600
    if code not in {None, "M301"}:
        with pytest.raises(gptailor.PlanError):
            gptailor.compile(plan, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_pattern_that_a_checkpoint_lacks_is_named_with_its_file(
    family: Path, tmp_path: Path
) -> None:
    config = family / "unknown" / "config.json"
    for changed in ({"mlp_out": ["mlp.out"]}, {"mlp": [*LLAMA["mlp"], "mlp.out"]}):
        file = write_signed(tmp_path / "f.family.json", config, proof=None, **changed)
        plan = gptailor.loads(f'tailor 1\nmodel base = "{family / "unknown"}"\ndrop L2\n')
        [fault] = gptailor.check(plan.with_families([file]))
        assert (fault.code, fault.help) == ("M204", f"the family is in '{file}'")
        assert "no tensor of a layer matches 'mlp.out' of 'mlp" in fault.message


def test_a_file_without_a_proof_is_read_only_where_it_is_named(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    user = tmp_path / "config" / "gptailor" / "families"
    user.mkdir(parents=True)
    plan = gptailor.loads(f'tailor 1\nmodel base = "{family / "unknown"}"\ndrop L2\n')
    config = family / "unknown" / "config.json"
    without = [fault.code for fault in gptailor.check(plan)]
    write_signed(tmp_path / "here.family.json", config, stack="blocks.")
    assert [fault.code for fault in gptailor.check(plan)] == without
    write_signed(user / "mystery.family.json", config, proof=None)
    [fault] = gptailor.check(plan)
    assert (fault.code, "contains an unproven draft" in fault.message) == ("C112", True)
    assert "--family" in fault.help


def test_a_key_that_may_depend_on_the_layer_must_be_declared(family: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(family / "unknown", model)
    config = json.loads((model / "config.json").read_text())
    plan = gptailor.loads(f'tailor 1\nmodel base = "{model}"\ndrop L2\n')
    (model / "config.json").write_text(json.dumps(config | {"dense_freq": 1, "dense": 0}))
    names: dict[str, Any] = {"proof": None, "agree": {}, "plain": [*config]}
    file = write_signed(tmp_path / "f.family.json", model / "config.json", **names)
    [fault] = gptailor.check(plan.with_families([file]))
    assert fault.code == "M204"
    assert "'dense_freq' may make a layer depend on its position" in fault.message
    assert "doesn't name it" in fault.message
    moved = {"mlp": {**FIRST, "key": "dense", "step_key": "dense_freq"}}
    file = write_signed(tmp_path / "f.family.json", model / "config.json", **names, moved=moved)
    assert [fault.code for fault in gptailor.check(plan.with_families([file]))] == ["M301"]


def test_a_file_of_an_earlier_release_is_read_with_its_proof(tmp_path: Path) -> None:
    """It has all of its keys, and the digest of all."""
    rule = {"part": "mlp", "absent": [1], "tried": [], "every_kind": False}
    content: dict[str, Any] = {
        **LLAMA, "version": 1, "transposed": False, "deepest": None, "agree": {"hidden_size": 8},
        "moved": {kind: {**rule, "kind": kind} for kind in ("entries", "numbers", "first")},
        "modes": {}, "plain": [], "refused": {"parts": None, "scale": "no", "bridge": "no"},
        "proof": {
            "gptailor": "0.2.0", "transformers": "5", "torch": "2", "source": "x", "seed": 0,
            "configuration": {},
            "cases": [{"name": "cut", "difference": 0.5, "failure": None, "note": None}],
        },
    }  # fmt: skip
    content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = tmp_path / "old.family.json"
    path.write_text(json.dumps(content))
    assert [rule.name for rule in read_family_file(path).rules] == ["entries", "numbers", "first"]
    check_proof(read_family_file(path), path)
    path.write_text(json.dumps(content | {"base": "other."}))
    with pytest.raises(CheckpointError, match="was changed after it was proven"):
        check_proof(read_family_file(path), path)


# ------------------------------------------------------------------------ files without a proof


def two_models(family: Path, file: Path, *statements: str) -> list[gptailor.Fault]:
    """The faults of a plan with two models of the type, by a family file."""
    models = f'model base = "{family / "unknown"}"\nmodel chat = "{family / "unknown"}"\n'
    text = "tailor 1\n" + models + "\n".join(("L1 from chat", *statements)) + "\n"
    return list(gptailor.check(gptailor.loads(text).with_families([file])))


@pytest.mark.parametrize("changed", [{"layrs": 1}, {"mlp_out": ["mlp.out"]}, {"case": {"name": 1}}])
def test_a_fault_of_a_file_is_reported_once_for_all_models(
    changed: dict[str, Any], family: Path, tmp_path: Path
) -> None:
    proof = {} if "case" in changed else {"proof": None}
    config = family / "unknown" / "config.json"
    file = write_signed(tmp_path / "f.family.json", config, **proof, **changed)
    assert len(two_models(family, file)) == 1


def test_a_checkpoint_without_a_head_or_with_constants_has_all_its_names(family: Path) -> None:
    checkpoint = open_checkpoint(family / "unknown")
    file = Family.model_validate({**LLAMA, "plain": [*checkpoint.config]})
    names = {*checkpoint.tensors}
    bare = {name.removeprefix("model.") for name in names - {"lm_head.weight"}}
    tied = checkpoint.config | {"tie_word_embeddings": True}
    untied = checkpoint.config | {"tie_word_embeddings": False}
    assert isinstance(layout_by(file, untied, bare), Layout)
    assert isinstance(layout_by(file, tied, names - {"lm_head.weight"}), Layout)
    assert isinstance(layout_by(file, untied, {*names, "model.rotary_emb.inv_freq"}), Layout)
    assert isinstance(layout_by(file, untied, names - {"lm_head.weight"}), Refusal)
    loose = layout_by(file.model_copy(update={"tied": True}), untied, names)
    assert isinstance(loose, Layout), "a configuration goes before the file"
    assert not loose.tied


def test_an_unproven_file_has_no_scale_and_no_bridge(family: Path, tmp_path: Path) -> None:
    config = family / "unknown" / "config.json"
    file = write_signed(tmp_path / "f.family.json", config, proof=None)
    for statement in ("scale L2 by 0.5", 'bridge on "t.txt"'):
        said = [fault.message for fault in two_models(family, file, statement)]
        assert any("a family from a file has no proof of it" in each for each in said), said


def test_a_key_that_no_model_has_is_named(family: Path, tmp_path: Path) -> None:
    config = family / "unknown" / "config.json"
    names = dict.fromkeys(json.loads(config.read_text()).keys() - {"num_hidden_layers"})
    names |= {"epz": None, "num_key_value_heads": None, "epsilons": 1e-6}
    file = write_signed(tmp_path / "f.family.json", config, proof=None, agree=names)
    said = [fault.message for fault in two_models(family, file)]
    assert f"no model has the key 'epz' under 'agree' in the family file {file}" in said
    assert len(said) == 2
    why = {"epz": "A model without it has the usual one."}
    file = write_signed(tmp_path / "f.family.json", config, proof=None, agree=names, why=why)
    assert len(two_models(family, file)) == 1


def test_a_misspelt_key_has_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "f.family.json"
    rule = {"kind": "entries", "dervied": None}
    for changed, name in (
        ({"count_kye": "n"}, "count_key"),
        ({"refused": {"scales": "no"}}, "scale"),
        ({"moved": {"x": rule}}, "derived"),
    ):
        path.write_text(json.dumps({**LLAMA, **changed}))
        with pytest.raises(CheckpointError) as error:
            read_family_file(path)
        assert error.value.help.startswith(f"did you mean '{name}'? 'gptailor schema --family'")


def test_invalid_json_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "f.family.json"
    for text in ('{\n "name": 1,\n x}', '{\n "a": 1,\n "a": 2}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match="line 3: ") as error:
            read_family_file(path)
        assert (error.value.code, error.value.offset) == ("C111", None)


def test_a_given_file_of_another_type_is_named(family: Path, tmp_path: Path) -> None:
    model = shutil.copytree(family / "unknown", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"block_types": [1]}))
    file = write_signed(tmp_path / "f.family.json", model / "config.json", model_types=["mysteri"])
    plan = gptailor.loads(f'tailor 1\nmodel base = "{model}"\ndrop L2\n')
    [fault] = gptailor.check(plan.with_families([file]))
    assert (fault.code, fault.help) == ("M204", f"the family in '{file}' has 'mysteri'")
    [fault] = gptailor.check(plan)
    assert "--family" in fault.help


def test_the_schema_describes_each_key() -> None:
    properties = Family.model_json_schema()["properties"]
    assert [key for key, value in properties.items() if "description" not in value] == []
