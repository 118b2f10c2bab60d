"""The language server's answers without a server: positions, words, completion, hover, edits."""

import json
from pathlib import Path

import pytest
from lsprotocol import types

from gptailor.cli.main import run
from gptailor.lang.parse import spelled
from gptailor.plan.fault_pages import fault_pages
from gptailor.plan.registry import METHODS, OBJECTIVES
from gptailor.plugins.lsp.complete import completions, signature_help
from gptailor.plugins.lsp.edits import RenameError, canonical_edits, renamed
from gptailor.plugins.lsp.hover import KEYWORDS, diagnostic, hovered
from gptailor.plugins.lsp.remedies import edited, remedies
from gptailor.plugins.lsp.text import (
    NOT_SEEN,
    EditedText,
    TextLines,
    folds,
    layers_named,
    seen_models,
    semantic_tokens,
    symbols,
)
from tests.plugins.lsp.test_names import SAID
from tests.support.hollow import SMALL, llama, write_hollow

HEAD = """tailor 1
model base = "./base"
model math = "./math"
let mix = 0.5..1.0
"""
NOWHERE = Path("/nowhere")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two models that go together, a text, and a plan with a fault."""
    root = tmp_path_factory.mktemp("plans")
    for name in ("base", "math"):
        write_hollow(root / name, *llama(**SMALL))
    (root / "text.txt").write_text("some text\n")
    (root / "cut.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L9\n')
    return root


def opened(text, folder=NOWHERE):
    return EditedText((folder / "plan.tailor").as_uri(), text)


def marked(typed, folder=NOWHERE, head=HEAD):
    """A text, and the offset of the mark ‸ in it, which is taken out."""
    text = head + typed
    return opened(text.replace("‸", ""), folder), text.index("‸")


# --------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize(("encoding", "column"), [("utf-8", 7), ("utf-16", 5), ("utf-32", 4)])
def test_columns_are_counted_in_the_clients_units(encoding, column):
    lines = TextLines("# a\r\n# 😀x\r# b\n", encoding)
    offset = lines.text.index("x") + 1
    assert lines.position(offset) == types.Position(1, column)
    assert lines.offset(types.Position(1, column)) == offset


def test_positions_beyond_a_line_or_within_a_character_have_the_nearest_offset_before():
    lines = TextLines("# 😀x\nab")
    assert lines.offset(types.Position(0, 3)) == 2  # between the emoji's two units
    assert lines.offset(types.Position(0, 99)) == 4
    assert lines.offset(types.Position(7, 0)) == 7


def test_a_line_separator_of_unicode_ends_no_line():
    lines = TextLines("# a\u2028b\x85c\ndrop L1")
    assert lines.position(lines.text.index("drop")) == types.Position(1, 0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_each_offset_survives_the_conversion(encoding):
    text = "a\r\n\r# 😀é\u2028\n\nmodel base"
    lines = TextLines(text, encoding)
    for offset in range(len(text) + 1):
        if text[offset - 1 : offset + 1] != "\r\n":  # within a line's end
            assert lines.offset(lines.position(offset)) == offset


# -------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("typed", "there", "absent"),
    [
        ("‸", {"drop", "merge", "stack", "expect"}, {"minimize", "base"}),
        ("L1 from ‸", {"base", "math", "one", "any"}, {"mix", "linear"}),
        ("L1 from base, m‸", {"math"}, {"mix"}),
        ("L1 from base, math by ‸", {*METHODS, "one"}, {"base", "nll"}),
        ("L1 from base, math by slerp(‸", {"t", "mix", "curve"}, {"base"}),
        ("L1 from base, math by ties(density=‸", {"mix"}, {"scale", "base"}),
        ("L1 from base, math by ties(normalize=‸", {"yes", "no"}, {"mix", "base"}),
        ("L1 from base, math by ties(scale=1, ‸", {"density", "normalize"}, {"scale"}),
        ("merge(L1 base,\n  L1 ‸, 0.5)", {"base", "math"}, {"mix"}),
        ("merge(L1 base, L1 math, ‸", {"mix", "curve"}, {"math", "base"}),
        ("L1.‸", {"attn", "mlp", "norms", "attn.q"}, {"base"}),
        ("L1.mlp.‸ from math", {"down", "up"}, {"q", "attn"}),
        ("others.‸", {"attn", "norms"}, {"L1"}),
        ("dtype ‸", {"bfloat16"}, {"base"}),
        ("gguf ‸", {"q4_k_m", "f16"}, {"base", "bfloat16"}),
        ("gguf q4_k_m ‸", {"on"}, {"q8_0"}),
        ("scale L1 by ‸", {"mix", "curve"}, {"base"}),
        ("chat_template from ‸", {"base", "math"}, {"one"}),
        ("heal from ‸", {"math"}, {"mix"}),
        ('heal on "t", "u" from ‸', {"math"}, {"mix"}),
        ("heal on ‸", {"answers"}, {"math"}),
        ('heal on answers("t", ‸', {"tokens", "temperature"}, {"math"}),
        ('heal on "t" loss ‸', {"all", "answers"}, {"math"}),
        ("stack { L0 base; L1 ‸ }", {"base", "math"}, {"from"}),
        ("stack { ‸", {"merge", "limit", "maybe"}, {"drop"}),
        ("search { minimize ‸", {*OBJECTIVES.names()}, {"linear"}),
        ('search { minimize kl("a", from=‸', {"base", "math"}, {"mix"}),
        ("search { require parameters() <= 0.5 * ‸ }", {"base"}, {"mix"}),
        ("search { require bytes(gguf=‸", {"q4_k_m", "f16"}, {"base", "mix"}),
        ("expect ‸", {*OBJECTIVES.names()}, {"linear", "base"}),
        ('expect nll("t") <= ‸', {"base", "math"}, {"mix"}),
        ("drop L1  # ‸", set(), {"drop"}),
        ("model ‸", set(), {"base", "mix"}),
        ("L1 from §§ ‸", set(), {"base"}),
    ],
)
def test_completion_offers_fitting_words(typed, there, absent):
    text, offset = marked(typed)
    labels = {item.label for item in completions(text, offset, NOT_SEEN)}
    assert there <= labels
    assert not absent & labels


def test_a_completion_replaces_the_typed_word():
    text, offset = marked("L1 from ma‸")
    item = next(i for i in completions(text, offset, NOT_SEEN) if i.label == "math")
    assert item.text_edit.range == types.Range(types.Position(4, 8), types.Position(4, 10))
    assert item.text_edit.new_text == "math"


def test_calls_are_snippets_where_the_editor_has_them():
    text, offset = marked("L1 from base, math by sl‸")
    for snippets, made in ((True, "slerp($1)$0"), (False, "slerp()")):
        items = completions(text, offset, NOT_SEEN, snippets=snippets)
        assert next(i for i in items if i.label == "slerp").text_edit.new_text == made


@pytest.mark.parametrize(
    ("typed", "there", "absent"),
    [
        ('model x = "‸', {"./", "../"}, {"base/"}),
        ('model x = "./‸"', {"base/", "math/", "cut.tailor"}, {"text.txt"}),
        ('heal on "‸"', {"text.txt", "base/"}, set()),
        ('heal on "t", answers("‸")', {"text.txt", "base/"}, set()),
        ('search { minimize nll("t‸") }', {"text.txt"}, set()),
        ('chat_template "‸"', {"chatml", "./"}, set()),
        ('model x = "./nowhere/‸"', set(), {"base/"}),
        ('model x = "./base" @ "‸"', set(), {"base/"}),
    ],
)
def test_files_are_offered_in_quotes(folder, typed, there, absent):
    text, offset = marked(typed, folder)
    labels = {item.label for item in completions(text, offset, NOT_SEEN)}
    assert there <= labels
    assert not absent & labels


def test_the_bases_layers_are_offered(folder):
    text, offset = marked("drop L‸", folder)
    labels = [item.label for item in completions(text, offset, seen_models(text))]
    assert [entry for entry in labels if entry[0] == "L"] == [f"L{n}" for n in range(6)]


@pytest.mark.parametrize(
    ("typed", "name", "active"),
    [
        ("L1 from base, math by ties(‸", "ties", "density"),
        ("L1 from base, math by ties(0.5, ‸)", "ties", "scale"),
        ("L1 from base, math by ties(normalize=‸)", "ties", "normalize"),
        ("L1 from base, math by linear(0.5, 0.‸)", "linear", "weight"),
        ('search { minimize kl("a", ‸', "kl", "from"),
        ("L1 from base, math by ‸", None, None),
        ("L1 from base, math by nothing(‸", None, None),
        ("merge(L1 base, ‸", None, None),
    ],
)
def test_signature_help_marks_the_active_parameter(typed, name, active):
    result = signature_help(*marked(typed))
    if name is None:
        assert result is None
    else:
        shown = result.signatures[0]
        assert shown.label.startswith(f"{name}(")
        assert shown.parameters[result.active_parameter].label.startswith(f"{active}: ")
        assert shown.parameters[result.active_parameter].label in shown.label


# ------------------------------------------------------------------------------------------- hover


def said_at(typed, folder=NOWHERE, head=HEAD):
    text, offset = marked(typed, folder, head)
    result = hovered(text, offset, seen_models(text))
    return result[0] if result is not None else ""


def test_every_word_of_the_grammar_is_explained():
    assert {word for word in spelled().values() if word[0].isalpha()} == set(KEYWORDS)


def test_hover_shows_the_sources_and_output_position_of_a_layer(folder):
    plan = "drop L0\n‸L3 from math\nscale L4 by 0.5\n"
    assert "`math`" in said_at(plan, folder)
    assert "L2 of the output's 5 layers" in said_at(plan, folder)
    assert "dropped" in said_at("drop ‸L0", folder)
    assert "depends on choices" in said_at("maybe drop L0\n‸L3 from math", folder)
    assert "L0 to L5" in said_at("drop ‸L9", folder)
    assert "layer 5 of 6" in said_at("L1 = L‸5 math", folder)


def test_hover_describes_a_model(folder):
    hover = said_at("L1 from m‸ath", folder)
    assert "llama, 6 layers" in hover
    assert str(folder / "math") in hover
    assert "there is no" in said_at("L1 from m‸ath")
    assert "not declared" in said_at("L1 from m‸oth")


def test_hover_shows_the_size_of_the_output(folder):
    plan = 'model base = "./base"\ndrop L1..L2\n'
    assert "4 layers" in said_at(plan, folder, "tail‸or 1\n")
    assert "4 layers" in said_at(plan.replace("base =", "‸base ="), folder, "tailor 1\n")
    open_plan = 'tail‸or 1\nmodel base = "./base"\nmaybe drop L1'
    assert "1 choice open" in said_at(open_plan, folder, "")
    others = 'model math = "./math"\nothers from one of base, math'
    of_each = open_plan.replace("maybe drop L1", others)
    assert "6 choices open" in said_at(of_each, folder, "")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("L1 from base, math by s‸lerp(0.5)", "spherical interpolation"),
        ("L1 from base, math by ties(den‸sity=0.5)", "a number in (0, 1]"),
        ("L1 from base, math by ties(normal‸ize=no)", "yes or no"),
        ("scale L1 by mi‸x", "used 1 time"),
        ("L1.mlp.d‸own from math", "a projection of the branch `mlp`"),
        ('search { minimize n‸ll("t") }', "to minimize, in nats"),
        ("sc‸ale L1 by 0.5", "hidden state"),
        ("drop L1 # sc‸ale", ""),
    ],
)
def test_hover_describes_a_word(typed, expected):
    result = said_at(typed)
    assert expected in result if expected else result == ""


def test_a_file_in_the_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert "10 bytes" in said_at('search { minimize nll("~/te‸xt.txt") }')
    assert "there is no" in said_at('search { minimize nll("~no-such-user/te‸xt.txt") }')
    text = opened('tailor 1\nmodel base = "~/cut.tailor"\nmodel o = "~no-such-user/m"\ndrop L1\n')
    (fault,) = (f for f in seen_models(text).faults if f.source.name.endswith("cut.tailor"))
    assert diagnostic(text, fault).range.start == types.Position(1, 13)


def test_every_code_of_the_page_can_be_looked_up():
    pages = fault_pages()
    assert pages["P208"].title == "set and dropped"
    assert "](" not in pages["P301"].words  # links are words
    assert len(pages) > 100


# ------------------------------------------------------------------------------------------- edits


def test_rename_changes_all_uses_of_a_name_and_nothing_else():
    text = opened(f'{SAID}# m in a comment\nmodel x = "./m"\nL8 from x\n')
    made = edited(text.text, renamed(text, text.text.index("m = base"), "tuned"))
    assert made.count("tuned") == 9
    assert '# m in a comment\nmodel x = "./m"' in made
    assert [f.code for f in opened(made).faults] == [f.code for f in text.faults]


@pytest.mark.parametrize(
    ("typed", "name", "why"),
    [
        ("L1 from ma‸th", "mix", "there is a number 'mix' already"),
        ("scale L1 by m‸ix", "math", "there is a model 'math' already"),
        ("L1 from ma‸th", "L7", "the name of a layer"),
        ("L1 from ma‸th", "drop", "a reserved word"),
        ("L1 from ma‸th", "a-b", "letters, digits"),
        ("L1 from ma‸th", "", "letters, digits"),
        ("L1 from b‸ase", "other", "always named 'base'"),
        ("L1 from no‸ne", "other", "not declared"),
        ("dr‸op L1", "other", "only models and numbers can be renamed"),
        ("L1 from ma‸th\nL2 frm math", "other", "line 6 has a fault and contains 'math'"),
        ("stack {\nL1 ma‸th\nL2 math by\n}", "other", "line 7 has a fault and contains 'math'"),
    ],
)
def test_rename_is_refused_with_its_reason(typed, name, why):
    text, offset = marked(typed)
    with pytest.raises(RenameError, match=why):
        renamed(text, offset, name)


def test_a_parameter_of_the_same_name_isnt_an_use():
    text, offset = marked("L1 from base, math by ties(density=mix)\nscale L2 by m‸ix")
    made = edited(text.text, renamed(text, offset, "density"))
    assert "ties(density=density)\nscale L2 by density" in made


def test_formatting_is_that_of_fmt_and_leaves_faults_alone():
    text = opened('model base = "./b"\ntailor 1  # first\ndrop L2, L1\n')
    assert canonical_edits(text) == []  # 'tailor' isn't first
    text = opened('tailor 1  # first\ndrop L2, L1\nmodel base = "./b"\n')
    made = edited(text.text, canonical_edits(text))
    assert made == 'tailor 1  # first\n\nmodel base = "./b"\n\ndrop L1..L2\n'
    assert canonical_edits(opened(made)) == []
    assert canonical_edits(opened("tailor 1\nL1 frm base\n")) == []


# ---------------------------------------------------------------------------------- the whole text


def test_a_plan_has_symbols_folds_and_tokens():
    text = opened(f"# one\n# two\n{HEAD}stack {{\n  L0 base\n  L1 math\n}}\n")
    assert [s.name for s in symbols(text)] == ["tailor 1", "base", "math", "mix", "stack"]
    assert [s.name for s in symbols(text)[-1].children] == ["L0 base", "L1 math"]
    assert {(f.start_line, f.end_line) for f in folds(text)} == {(0, 1), (6, 9)}
    assert len(semantic_tokens(text).data) == 5 * 5  # three declared, two used


def test_the_models_of_a_plan_with_faults_are_found(folder):
    text = opened(f"{HEAD}drop L1\ndrop L1\n", folder)
    seen = seen_models(text)
    assert text.sound is None
    assert seen.layers(text.plan) == 6
    assert not seen.faults


def test_faults_against_models_are_found_and_those_of_a_plan_in_a_file(folder):
    assert seen_models(opened(f"{HEAD}drop L9\nscale L1 by mix", folder)).faults
    text = opened(f'{HEAD}model cut = "./cut.tailor"\nL1 from cut\nscale L2 by mix', folder)
    (fault,) = seen_models(text).faults
    assert fault.source.name.endswith("cut.tailor")


def test_a_plan_in_json_is_checked_and_has_no_words():
    plan = {"models": {"base": {"source": "./b"}}, "layers": [{"position": -1}]}
    text = opened(json.dumps(plan))
    assert [f.code for f in text.faults][:1] == ["S107"]
    assert text.words == ()
    assert canonical_edits(text) == []
    assert completions(text, 5, NOT_SEEN) == []


def test_a_byte_order_mark_isnt_a_fault():
    text = opened('\ufefftailor 1\nmodel base = "./b"\ndrop L1\n')
    assert text.faults == []
    assert layers_named(text) == 2


def test_the_command_names_its_missing_extra(monkeypatch, capsys):
    monkeypatch.setattr("gptailor.plan.optional_packages.find_spec", lambda name: None)
    assert run(["lsp"]) == 3
    message = "a language server needs pygls and lsprotocol: pip install 'gptailor[lsp]'"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", range(0, 75, 3))
def test_the_server_answers_any_text(number):
    refused = sorted((Path(__file__).parents[2] / "refused").glob("*.tailor"))
    whole = refused[number % len(refused)].read_text("utf-8")
    for share in (0.3, 0.8, 1.0):
        text = opened(whole[: int(len(whole) * share)])
        at = len(text.text)
        assert all(remedy.edits for remedy in remedies(text, text.faults[:2]))
        assert len(symbols(text)) == len(text.tree.statements)
        assert len(semantic_tokens(text).data) % 5 == 0
        assert isinstance(completions(text, at, NOT_SEEN), list)
        for word in text.words[:: max(1, len(text.words) // 5)]:
            hovered(text, word.span.start, NOT_SEEN)
            signature_help(text, word.span.end)
