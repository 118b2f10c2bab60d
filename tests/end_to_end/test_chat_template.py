"""Chat templates: a model's, a file's, by name; what output, lock and `verify` make of them."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.tokenizer_settings import read_template, templates_of
from gptailor.cli.main import run
from gptailor.plan.resolved import Resolved
from gptailor.reporting.show import plan_map
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("no_progress_bars")

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
TALK = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
HEAD = 'tailor 1\nmodel base = "./base"\nmodel chat = "./chat"\n'
OLD = {"default": "old", "tool_use": "old tools"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with two templates in its settings, and a model with two templates in files."""
    root = tmp_path_factory.mktemp("templates")
    base, chat = (tiny_model("llama", root / name, layers=1) for name in ("base", "chat"))
    path = base / "tokenizer_config.json"
    listed = [{"name": name, "template": text} for name, text in OLD.items()]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": listed}))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text("rag")
    (base / "chat_template.json").write_text('{"chat_template": "for a processor"}')
    (chat / "chat_template.jinja").write_text("chat: {{ messages[0].content }}")
    (chat / "additional_chat_templates").mkdir()
    (chat / "additional_chat_templates" / "tools.jinja").write_text("tools")
    (root / "ours.jinja").write_text(
        "ours{% generation %}{{ messages[1].content }}{% endgeneration %}"
    )
    return root


def test_a_named_template_replaces_all_others(models: Path, tmp_path: Path) -> None:
    plan = gptailor.loads(HEAD.replace("./", f"{models}/") + 'chat_template "chatml"\n')
    assert [fault.code for fault in gptailor.check(plan)] == ["M303", "M311"]
    gptailor.compile(plan, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == TALK
    asked = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert asked == f"{TALK}<|im_start|>assistant\n"
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == tokenizer.chat_template  # for those that look there only
    assert not (tmp_path / "out" / "additional_chat_templates").exists()
    assert not (tmp_path / "out" / "chat_template.json").exists()
    assert gptailor.verify(tmp_path / "out").result == "verified"


def test_all_templates_of_a_model_are_copied(models: Path, tmp_path: Path) -> None:
    text = HEAD.replace("./", f"{models}/") + "chat_template from chat\n"
    gptailor.compile(gptailor.loads(text), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == {
        "default": "chat: {{ messages[0].content }}",
        "tools": "tools",
    }
    assert (
        json.loads(json.dumps(tokenizer.get_vocab()))
        == AutoTokenizer.from_pretrained(models / "base").get_vocab()
    )


def test_a_file_s_template_is_locked_and_follows_the_plan(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = models / "plan.tailor"
    path.write_text(f'{HEAD}chat_template "./ours.jinja"  # ours\n')
    out = models / "made" / "out"
    assert run(["compile", str(path), "-o", str(out), "--lock"]) == 0
    assert (out / "chat_template.jinja").read_text() == (models / "ours.jinja").read_text()
    assert 'chat_template "../../ours.jinja"  # ours' in (out / "plan.tailor").read_text()
    assert gptailor.verify(out).result == "verified"
    capsys.readouterr()
    kept = (models / "ours.jinja").read_text()
    (models / "ours.jinja").write_text("theirs")
    result = gptailor.verify(out)
    assert "the chat template differs from the lock" in [
        difference.message for difference in result.differences
    ]
    lock = out / "plan.tailor.lock"
    assert run(["compile", str(out / "plan.tailor"), "-o", f"{out}2", "--locked"]) == 3
    assert "the chat template differs from the lock" in capsys.readouterr().err
    assert not Path(f"{out}2").exists()
    (models / "ours.jinja").write_text(kept)
    assert json.loads(lock.read_text())["chat_template"]
    plan = gptailor.load(path)
    assert gptailor.lock(plan).plan == gptailor.lock(gptailor.load(out / "plan.tailor")).plan


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b" \n", "a chat template is empty"),
        (b"\xff", "a chat template is not UTF-8: invalid byte at offset 0"),
        (b"a\n{% for x in y %}", "invalid chat template: line 2: "),
        (b"{{ x", "invalid chat template: line 1: "),
        (
            b"{{ %b }}" % (b"-" * 9999 + b"1"),
            "invalid chat template: its expressions are nested too deeply",
        ),
        (b"{{ %b }}" % (b"9" * 5000), "invalid chat template: Exceeds the limit"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_an_invalid_template_is_refused_before_any_output(
    content: bytes | None, says: str, models: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "a.jinja").write_bytes(content)
    text = HEAD.replace("./", f"{models}/") + f'chat_template "{tmp_path}/a.jinja"\n'
    faults = [f for f in gptailor.check(gptailor.loads(text)) if f.severity == "error"]
    assert [fault.code for fault in faults] == ["C602" if content else "C201"]
    assert says in faults[0].message
    with pytest.raises(gptailor.PlanError):
        gptailor.compile(gptailor.loads(text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_jinja_extensions_of_transformers_are_known(tmp_path: Path) -> None:
    text = (
        "{% for x in y %}{% if x %}{% break %}{% endif %}{% generation %}{{ x }}{% endgeneration %}"
    )
    (tmp_path / "a.jinja").write_text(text + "{% endfor %}")
    assert read_template(tmp_path / "a.jinja") == text + "{% endfor %}"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("one", {"default": "one"}),
        ([{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}],
         {"default": "a", "rag": "b"}),
        (None, {}),
        ("", {}),
        (3, None),
        ([{"name": "../x", "template": "a"}], None),
        ([{"name": "x"}], None),
    ],
)  # fmt: skip
def test_templates_in_the_tokenizer_s_settings(
    setting: object, expected: Mapping[str, str] | None, models: Path, tmp_path: Path
) -> None:
    for path in (models / "chat").iterdir():
        if path.is_file() and path.suffix != ".jinja":
            (tmp_path / path.name).symlink_to(path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": setting})
    )
    checkpoint = open_checkpoint(tmp_path)
    if expected is None:
        with pytest.raises(CheckpointError) as caught:
            templates_of(checkpoint)
        assert caught.value.code == "C602"
    else:
        assert templates_of(checkpoint) == expected


def test_show_prints_the_chat_template() -> None:
    plan = gptailor.loads(f'{HEAD}chat_template "chatml"\n')
    shown = [*plan_map("a plan", Resolved(plan, 2), known=False, width=80)]
    assert any(line.split() == ["chat_template", '"chatml"'] for line in shown)
