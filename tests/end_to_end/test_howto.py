"""The how-to pages: their files are written, their commands run, one after another."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from gptailor.cli import main as cli
from tests.support.kitchen import files_and_commands, lay_out
from tests.support.thorough import THOROUGH

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

PAGES = Path(__file__).parents[2] / "docs" / "howto"
ELSEWHERE = {
    "index": "has no commands",
    "vocabulary": "test_vocabulary.py, with a tokenizer of bytes",
    "search": "the cookbook's searches are run",
    "pick": "the cookbook's is run",
    "family": "below, and tests/plugins/adopt",
    "report": "tests/plugins/report",
    "shrink": "tests/plugins/shrink, with little to measure",
    "ci": "test_action.py",
    "completion": "tests/plugins/completion",
    "lsp": "tests/plugins/lsp",
}
"""Pages with commands that other tests run."""
FEWER = ("tokens 16384", "tokens 1024")
"""A number of tokens in pages, and the one for the tests' short texts."""
COSTLY = set() if THOROUGH else {"eval", "generate"}
"""Pages with commands that the cookbook's test runs too; `make thorough` runs them here as well."""
NAMES = sorted({page.stem for page in PAGES.glob("*.md")} - ELSEWHERE.keys() - COSTLY)


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("howto"))


@pytest.fixture
def kitchen(laid_out: Path, tmp_path: Path) -> Path:
    """Files of the page's own: pages write folders of the same names."""
    return shutil.copytree(laid_out, tmp_path / "kitchen", symlinks=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_page_succeed(
    name: str, kitchen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if cli.COMMANDS.problem(name):
        pytest.skip("the command's plugin was removed")
    monkeypatch.chdir(kitchen)
    ran = 0
    for file, text, commands in files_and_commands((PAGES / f"{name}.md").read_text("utf-8")):
        if file:
            (kitchen / file).write_text(text.replace(*FEWER))
        for command in commands:
            words = shlex.split(command)
            code = cli.run(words[1:])
            assert code == int(words[1] == "diff"), f"{command}\n{capsys.readouterr().err}"
            ran += 1
    assert ran


RENAMED = {
    "model.embed_tokens.": "ember.tokens.",
    "model.norm.": "ember.last_norm.",
    "lm_head.": "out.",
    "model.layers.": "ember.blocks.",
    "input_layernorm.": "norm_1.",
    "post_attention_layernorm.": "norm_2.",
    "self_attn.q_proj.": "mix.wq.",
    "self_attn.k_proj.": "mix.wk.",
    "self_attn.v_proj.": "mix.wv.",
    "self_attn.o_proj.": "mix.wo.",
    "mlp.gate_proj.": "feed.gate.",
    "mlp.up_proj.": "feed.up.",
    "mlp.down_proj.": "feed.down.",
}
"""Names of Llama's tensors in the made-up family of the page."""


def renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def test_a_family_is_written_from_the_page_alone(
    kitchen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The made-up model is a Llama by other names, so its cut is the Llama's."""
    monkeypatch.chdir(kitchen)
    base, ember = kitchen / "models" / "base", kitchen / "models" / "ember"
    shutil.copytree(base, ember)
    config = json.loads((base / "config.json").read_text())
    count = config.pop("num_hidden_layers")
    config = {key: value for key, value in config.items() if key != "layer_types"}
    config |= {"model_type": "ember", "num_blocks": count, "wide_blocks": [2, 9, 12]}
    (ember / "config.json").write_text(json.dumps(config))
    tensors = load_file(base / "model.safetensors")
    named = {renamed(name): tensor for name, tensor in tensors.items()}
    save_file(named, ember / "model.safetensors", {"format": "pt"})

    for file, text, commands in files_and_commands((PAGES / "family.md").read_text("utf-8")):
        if file:
            (kitchen / file).write_text(text)
        for command in commands if "ember" in "".join(commands) else ():
            assert cli.run(shlex.split(command)[1:]) == 0, capsys.readouterr().err
            assert "warning[M301]" in capsys.readouterr().err

    plan = (kitchen / "ember.tailor").read_text().replace("models/ember", "models/base")
    (kitchen / "llama.tailor").write_text(plan)
    assert cli.run(["compile", "llama.tailor", "-o", "llama-12"]) == 0
    made, wanted = (
        load_file(kitchen / f"{x}-12" / "model.safetensors") for x in ("ember", "llama")
    )
    assert made.keys() == {renamed(name) for name in wanted}
    assert all(made[renamed(name)].equal(tensor) for name, tensor in wanted.items())
    config = json.loads((kitchen / "ember-12" / "config.json").read_text())
    assert (config["num_blocks"], config["wide_blocks"]) == (count - 4, [2, 5, 8])
