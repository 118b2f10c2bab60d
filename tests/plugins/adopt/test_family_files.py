"""The command `family`, and the files that it writes: found, read, told, and refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.family_file import check_proof, family_text, read_family_file
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli.main import run
from tests.support.tiny import LLAMA, randomise, write_tokenizer

NAMED = ("--family", "newday.family.json")
PLAN = 'tailor 1\nmodel base = "./base"\ndrop L2..L3\n'


class NewConfig(LlamaConfig):
    """An architecture of a day to come: its layers have one of two gains, as a list says."""

    model_type = "newday"
    gains: list[str] | None = None
    by_number: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.gains is None:
            self.gains = ["soft" if i % 3 else "loud" for i in range(self.num_hidden_layers)]
        super().__post_init__(**kwargs)


class NewLayer(LlamaDecoderLayer):
    def __init__(self, config: NewConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        number = layer_idx if config.by_number else 0
        self.gain = {"soft": 0.5, "loud": 1.5}[config.gains[layer_idx]] + 0.1 * number

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states + self.gain * (
            super().forward(hidden_states, *args, **kwargs) - hidden_states
        )


class NewModel(LlamaModel):
    config_class = NewConfig

    def __init__(self, config: NewConfig) -> None:
        super().__init__(config)
        count = config.num_hidden_layers
        self.layers = nn.ModuleList([NewLayer(config, i) for i in range(count)])
        self.post_init()


class NewForCausalLM(LlamaForCausalLM):
    config_class = NewConfig

    def __init__(self, config: NewConfig) -> None:
        super().__init__(config)
        self.model = NewModel(config)
        self.post_init()


@pytest.fixture(scope="module", autouse=True)
def _newday() -> Iterator[None]:
    """transformers as it is on the day that it has the architecture."""
    AutoConfig.register("newday", NewConfig)
    AutoModelForCausalLM.register(NewConfig, NewForCausalLM)
    yield
    CONFIG_MAPPING._extra_content.pop("newday")
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(NewConfig)


def new_model(folder: Path, **config: Any) -> None:
    made = NewConfig(**{**LLAMA, "num_hidden_layers": 8, **config})
    model = NewForCausalLM(made)
    randomise(model, 0)
    model.save_pretrained(folder)
    write_tokenizer(folder)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, _newday: None) -> Path:
    """A folder with a model of the new architecture, a plan, and the family file beside them."""
    folder = tmp_path_factory.mktemp("learned")
    new_model(folder / "base")
    (folder / "cut.tailor").write_text(PLAN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["family", "base"]) == 0
    return folder


@pytest.fixture
def here(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be changed: the current folder."""
    (tmp_path / "base").symlink_to(learned / "base")
    (tmp_path / "cut.tailor").write_text(PLAN)
    text = (learned / "newday.family.json").read_text()
    (tmp_path / "newday.family.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Return a function that returns the new output of both streams."""

    def both() -> str:
        out, err = capsys.readouterr()
        return out + err

    return both


# --------------------------------------------------------------------------------- a new day


def test_a_new_architecture_is_learned_and_its_layers_are_cut(here: Path) -> None:
    assert run(["compile", "cut.tailor", *NAMED, "-o", "out"]) == 0

    config = json.loads(Path("out/config.json").read_text())
    assert config["num_hidden_layers"] == 6
    assert config["gains"] == ["loud", "soft", "soft", "soft", "loud", "soft"]
    cut = AutoModelForCausalLM.from_pretrained("out").eval()
    whole = AutoModelForCausalLM.from_pretrained("base").eval()
    whole.model.layers = nn.ModuleList([whole.model.layers[i] for i in (0, 1, 4, 5, 6, 7)])
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        wanted = whole(ids, use_cache=False).logits
        torch.testing.assert_close(cut(ids, use_cache=False).logits, wanted)


def test_the_file_has_drafted_settings_and_their_proof(here: Path) -> None:
    file = read_family_file(here / "newday.family.json")
    assert file.moved.keys() == {"gains"}
    assert set(file.moved["gains"].tried) == {"loud", "soft"}
    assert file.refused.parts is not None  # a gain on both branches is told apart from no branch
    assert file.proof.failures == []
    differences = [case.difference for case in file.proof.cases if case.difference is not None]
    assert len(differences) > 10
    assert max(differences) < 1e-3


def test_a_layer_that_computes_with_its_number_is_not_drafted(here: Path, said: Said) -> None:
    new_model(here / "numbered", by_number=True)
    assert run(["family", "numbered", "-o", "numbered.family.json"]) == 3
    shown = said()
    assert "error[C114]: can't draft a family for 'newday': layers 1 and 2 differ" in shown
    assert "('gain'), but no list of the configuration has it" in shown
    assert not Path("numbered.family.json").exists()


def test_a_model_with_another_switch_is_not_read_by_the_proof(here: Path, said: Said) -> None:
    new_model(here / "numbered", by_number=True)
    assert run(["check", "cut.tailor", *NAMED, "--model", "base=numbered"]) == 1
    assert "'by_number' is True, but its family was proven with False" in said()


def test_a_kind_that_was_not_tried_is_refused(here: Path, said: Said) -> None:
    new_model(here / "other")
    config = json.loads(Path("other/config.json").read_text())
    config["gains"][4] = "shrill"
    Path("other/config.json").write_text(json.dumps(config))
    assert run(["check", "cut.tailor", *NAMED, "--model", "base=other"]) == 1
    assert "'gains' of L4 is 'shrill', but its family was proven with 'loud', 'soft'" in said()


# ------------------------------------------------------------------------------- where it is found


def test_without_a_file_the_type_is_refused_and_the_command_is_named(
    here: Path, said: Said
) -> None:
    Path("newday.family.json").unlink()
    assert run(["check", "cut.tailor"]) == 1
    shown = said()
    assert "M204" in shown
    assert "if transformers has the type, run 'gptailor family MODEL'" in shown


def test_a_file_is_found_where_it_is_named_and_in_the_user_s_folder(here: Path) -> None:
    file = Path("newday.family.json")
    assert run(["check", "cut.tailor"]) == 1, "neither the plan's folder nor this one is searched"
    moved = file.rename(here / "elsewhere.json")
    assert run(["check", "cut.tailor", "--family", "elsewhere.json"]) == 0
    user = here / "config" / "gptailor" / "families"
    user.mkdir(parents=True)
    moved.rename(user / "newday.family.json")
    assert run(["check", "cut.tailor"]) == 0


def test_a_built_in_family_overrides_a_file_that_is_not_named(
    here: Path, said: Said, tmp_path: Path
) -> None:
    document = json.loads(Path("newday.family.json").read_text())
    lying = Family.model_validate(document | {"model_types": ["llama"], "stack": "nowhere."})
    Path("llama.family.json").write_text(family_text(lying))
    made = LlamaForCausalLM(LlamaConfig(**LLAMA, num_hidden_layers=8))
    made.save_pretrained(here / "llama")
    assert run(["check", "cut.tailor", "--model", "base=llama"]) == 0
    assert (
        run(["check", "cut.tailor", "--model", "base=llama", "--family", "llama.family.json"]) == 1
    )
    assert "error[M204]" in said()


def test_the_lock_holds_the_family_and_the_output_carries_it(here: Path, said: Said) -> None:
    assert run(["compile", "cut.tailor", *NAMED, "-o", "out", "--lock"]) == 0
    digest = read_family_file(here / "newday.family.json").digest
    assert json.loads(Path("cut.tailor.lock").read_text())["families"] == {"newday": digest}
    Path("newday.family.json").unlink()
    assert run(["verify", "out"]) == 0
    (here / "again.tailor").write_text('tailor 1\nmodel base = "./out"\ndrop L0\n')
    assert run(["check", "again.tailor"]) == 0

    document = json.loads(Path("out/newday.family.json").read_text())
    other = Family.model_validate(document | {"name": "another"})
    Path("newday.family.json").write_text(family_text(other))
    said()
    assert run(["compile", "cut.tailor", *NAMED, "-o", "locked", "--locked"]) == 3
    assert "the family file of 'newday' differs from the lock" in said()
    assert not Path("locked").exists()


# ----------------------------------------------------------------------------------- files that lie


def lie(here: Path, **changes: Any) -> None:
    """A file with other content and a correct digest."""
    path = here / "newday.family.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(family_text(Family.model_validate(document)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed": ["wte.weight"]}, "there is no tensor 'model.wte.weight' of 'embed'"),
        ({"attn": ["attention."]}, "belongs to neither branch of its layer"),
        ({"stack": "blocks."}, "no tensor begins with 'model.blocks.'"),
        ({"count_key": "intermediate_size"}, "but the configuration has 24 layers"),
        ({"moved": {}}, "'gains' may have an entry for each layer"),
    ],
)
def test_the_header_refutes_a_wrong_family_file(
    here: Path, said: Said, changes: dict[str, Any], message: str
) -> None:
    lie(here, **changes)
    assert run(["check", "cut.tailor", *NAMED]) == 1
    assert message in said()


def test_a_file_that_was_edited_is_to_be_proven_again(here: Path, said: Said) -> None:
    path = here / "newday.family.json"
    path.write_text(path.read_text().replace('"stack": "layers."', '"stack": "blocks."'))
    assert run(["check", "cut.tailor", *NAMED]) == 1
    shown = said()
    assert "error[C112]: was changed after it was proven" in shown
    assert "run 'gptailor family MODEL' to make and prove it again" in shown


def test_a_draft_that_failed_is_never_used(here: Path, said: Said) -> None:
    document = json.loads((here / "newday.family.json").read_text())
    document["proof"]["cases"][3] |= {"difference": 2.0, "failure": "logits are 2 apart"}
    (here / "newday.family.json").write_text(family_text(Family.model_validate(document)))
    assert run(["check", "cut.tailor", *NAMED]) == 1
    assert "C112" in (shown := said())
    assert "logits are 2 apart" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "invalid family file: 'name': field required"),
        ('{"name": "x", "model_types": ["../../x"]}', "'model_types.0': string should match"),
        ('{"version": 9}', "expected a family file of version 1, got version 9"),
    ],
)
def test_an_invalid_file_is_named(here: Path, said: Said, text: str, message: str) -> None:
    (here / "newday.family.json").write_text(text)
    assert run(["check", "cut.tailor", *NAMED]) == 1
    shown = said()
    assert "C111" in shown
    assert message in shown
    assert "newday.family.json" in shown


def test_two_files_of_one_type_are_refused(here: Path, said: Said) -> None:
    user = here / "config" / "gptailor" / "families"
    user.mkdir(parents=True)
    for name in ("first", "second"):
        (user / f"{name}.family.json").write_text(Path("newday.family.json").read_text())
    assert run(["check", "cut.tailor"]) == 1
    assert "error[C113]" in (shown := said())
    assert "name one of them by --family" in shown
    assert run(["check", "cut.tailor", *NAMED]) == 0


# --------------------------------------------------------------------------- what can't be learned


def configured(folder: Path, **config: Any) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "none_such", "transformers_version": "9.1.0"},
            "saved by transformers 9.1.0",
        ),
        (
            {"model_type": "none_such", "auto_map": {"AutoModel": "m.M"}},
            "('auto_map') is never run",
        ),
        ({"model_type": "clip"}, "has no causal language model of it"),
        ({}, "its configuration names no 'model_type'"),
        ({"model_type": "llama", "num_hidden_layers": "six"}, "its configuration can't be read"),
    ],
)
def test_a_type_unknown_to_transformers_is_not_drafted(
    here: Path, said: Said, config: dict[str, Any], message: str
) -> None:
    configured(here / "model", **config)
    assert run(["family", "model"]) == 3
    shown = said()
    assert "error[C114]" in shown
    assert message in shown
    assert list(here.glob("none_such*")) == []


def test_an_existing_file_is_replaced_only_by_force(here: Path, said: Said) -> None:
    assert run(["family", "base", "-o", "newday.family.json"]) == 3
    assert "C301" in said()
    Path("newday.family.json").write_text("")
    assert run(["family", "base", "--force"]) == 0
    read_family_file(here / "newday.family.json")


def test_a_header_s_other_tensors_fail_the_proof(here: Path, said: Said) -> None:
    new_model(here / "odd")
    tensors = load_file("odd/model.safetensors")
    save_file({**tensors, "model.layers.2.adapter.weight": torch.ones(2)}, "odd/model.safetensors")
    assert run(["family", "odd", "-o", "odd.family.json"]) == 1
    assert "model.layers.2.adapter.weight" in said()
    path = here / "odd.family.json"
    with pytest.raises(CheckpointError, match="failed its proof"):
        check_proof(read_family_file(path), path)
