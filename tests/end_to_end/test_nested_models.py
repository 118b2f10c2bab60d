"""Models that no folder holds, made of models or plans: they equal a folder of them.

To the bit: nothing of them is rounded before the output's tensor is.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gptailor
from gptailor.plan.faults import Fault, errors
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from gptailor.program.program import Combine, Output
from gptailor.program.run import chunks
from tests.support.tiny import tiny_model
from tests.support.tiny_adapter import adapter

pytestmark = pytest.mark.usefixtures("no_progress_bars", "brief_answers")

COUNT = 3
HEAD = 'tailor 1; model base = "./base"; model code = "./code"; model chat = "./chat"\n'
TIES = "math, code by ties(density=0.5)"
INNER = """tailor 1
model base = "../base"
model math = "./math"
model code = "../code"
model mix = math, code by dare(density=0.5)
L1 from mix
merge(L2 base, L2 math, 0.25)
drop L0
scale L1 by 0.5
embed from math
dtype float16
search { trials 3 }
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants of several dtypes, and a plan next to one of them."""
    folder = tmp_path_factory.mktemp("models")
    dtypes = {"base": "bfloat16", "sub/math": "float32", "code": "bfloat16", "chat": "float16"}
    for seed, (name, dtype) in enumerate(dtypes.items()):
        tiny_model("llama", folder / name, seed=seed, layers=COUNT, dtype=dtype)
    (folder / "sub" / "deep.tailor").write_text(INNER)
    return folder


def said(text: str, folder: Path, head: str = HEAD) -> Plan:
    """A plan in the folder of the models."""
    return gptailor.loads(head + text, folder=folder)


def read(folder: Path) -> dict[str, Tensor]:
    """A folder's tensors."""
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Names, dtypes and bits."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def test_a_made_model_is_the_folder_that_it_would_be_in_float32(root: Path, tmp_path: Path) -> None:
    math = 'model math = "./sub/math"\n'
    all_of_it = "".join(f"{what} from {TIES}\n" for what in ("L0..L2", "embed", "norm", "head"))
    gptailor.compile(said(f"{math}{all_of_it}dtype float32", root), tmp_path / "mix")
    body = """model two = mix, chat by dare(density=0.6)
L0 from mix
L1 = merge(L2 mix, L2 two) by ties()
L2.mlp from mix, chat by slerp(0.3)
embed from mix
head from two
"""
    made = said(f"{math}model mix = {TIES}\n{body}", root)
    gptailor.compile(made, tmp_path / "made", locking=True)
    folder = said(f'{math}model mix = "{tmp_path / "mix"}"\n{body}', root)
    gptailor.compile(folder, tmp_path / "folder")
    result = read(tmp_path / "made")
    assert_same(result, read(tmp_path / "folder"))

    live = gptailor.stitch(made).state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in result.items())

    lock = json.loads((tmp_path / "made" / "plan.tailor.lock").read_text())
    assert sorted(lock["models"]) == ["base", "chat", "code", "math"]
    assert not gptailor.verify(tmp_path / "made").differences
    card = (tmp_path / "made" / "README.md").read_text()
    assert f"| mix | `{TIES}` |" in card
    again = gptailor.load(tmp_path / "made" / "plan.tailor")
    assert again.models["two"] == made.models["two"]
    gptailor.compile(again, tmp_path / "again", locked=tmp_path / "made" / "plan.tailor.lock")
    assert_same(read(tmp_path / "again"), result)


def test_a_plan_with_zeros_expands_blocks(root: Path, tmp_path: Path) -> None:
    (root / "zero.tailor").write_text(
        'tailor 1\nmodel base = "./base"\nL1.attn.o from base by linear(0)\n'
        "L1.mlp.down from base by linear(0)\n"
    )
    head = 'tailor 1; model base = "./base"; model zero = "./zero.tailor"\n'
    plan = said("stack { L0..L1 base; L1 zero; L2 base }", root, head)
    gptailor.compile(plan, tmp_path / "out")
    tensors, base = read(tmp_path / "out"), read(root / "base")
    for name, tensor in tensors.items():
        if ".layers.2." in name:
            zeros = name.endswith(("o_proj.weight", "down_proj.weight"))
            same = base[name.replace(".2.", ".1.")]
            assert torch.equal(tensor, torch.zeros_like(same) if zeros else same), name
    assert torch.equal(
        tensors["model.layers.3.mlp.down_proj.weight"], base["model.layers.2.mlp.down_proj.weight"]
    )


def test_a_plan_is_the_folder_that_it_would_be_in_float32(root: Path, tmp_path: Path) -> None:
    inner = gptailor.load(root / "sub" / "deep.tailor")
    gptailor.compile(inner, tmp_path / "deep", dtype="float32")
    body = """
L0 from deep
L1 = merge(L1 deep, L2 chat) by ties()
L2 = L1 deep
embed from deep
norm from deep, chat by linear(0.5, 0.5)
"""
    plan = said('model deep = "./sub/deep.tailor"\ntokenizer from deep' + body, root)
    gptailor.compile(plan, tmp_path / "out", locking=True)
    gptailor.compile(said(f'model deep = "{tmp_path / "deep"}"' + body, root), tmp_path / "folder")
    result = read(tmp_path / "out")
    assert_same(result, read(tmp_path / "folder"))
    live = gptailor.stitch(plan).state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in result.items())

    lock = json.loads((tmp_path / "out" / "plan.tailor.lock").read_text())
    inside = {"deep", "deep.base", "deep.code", "deep.math"}
    assert lock["models"].keys() == {"base", "chat", *inside}
    assert [*lock["models"]["deep"]["files"]] == ["deep.tailor"]
    assert not gptailor.verify(tmp_path / "out").differences
    assert "| deep.math |" in (tmp_path / "out" / "README.md").read_text()
    gptailor.compile(gptailor.load(tmp_path / "out" / "plan.tailor"), tmp_path / "again")
    assert_same(read(tmp_path / "again"), result)

    gptailor.compile(plan, tmp_path / "bound", models={"deep.math": root / "chat"})
    assert not torch.equal(read(tmp_path / "bound")["model.embed_tokens.weight"],
                           result["model.embed_tokens.weight"])  # fmt: skip
    with pytest.raises(gptailor.TailorError, match=r"'deep\.math'"):
        gptailor.compile(
            plan,
            tmp_path / "held",
            models={"deep.math": root / "chat"},
            locked=tmp_path / "out" / "plan.tailor.lock",
        )
    (root / "sub" / "deep.tailor").write_text(INNER.replace("0.25", "0.5"))
    differing = gptailor.verify(tmp_path / "out").differences
    (root / "sub" / "deep.tailor").write_text(INNER)
    assert any(item.name == "deep.tailor" for item in differing)


def test_the_base_may_be_a_plan(root: Path, tmp_path: Path) -> None:
    """Its positions are the plan's output's, and its dtypes the plan's base's."""
    gptailor.compile(gptailor.load(root / "sub" / "deep.tailor"), tmp_path / "deep",
                     dtype="float32")  # fmt: skip
    body = "merge(L1 base, L1 chat) by task_arithmetic(0.5)\nL0.mlp from chat\nembed from base"
    head = 'tailor 1; model base = "{}"; model chat = "./chat"\n'
    plan = said(body, root, head.format("./sub/deep.tailor"))
    gptailor.compile(plan, tmp_path / "out")
    folder = said(f"{body}\ndtype bfloat16", root, head.format(tmp_path / "deep"))
    gptailor.compile(folder, tmp_path / "folder")
    assert_same(read(tmp_path / "out"), read(tmp_path / "folder"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == COUNT - 1


def test_an_adapter_may_be_on_a_model_that_nothing_else_reads(root: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "adapter")
    plan = said(
        f'model deep = "./sub/deep.tailor"\nmodel tuned = code + "{tmp_path / "adapter"}"\n'
        "L0 from tuned\nL1 from deep",
        root,
        'tailor 1; model base = "./base"; model code = "./code"\n',
    )
    assert not errors(gptailor.check(plan))
    gptailor.compile(plan, tmp_path / "out")
    expected = read(root / "code")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(read(tmp_path / "out")["model.layers.0.mlp.up_proj.weight"], expected)


def found(text: str, folder: Path) -> list[Fault]:
    """Return a plan's errors against its models."""
    return errors(gptailor.check(said(text, folder)))


def test_a_plans_faults_have_their_places_in_its_file(root: Path) -> None:
    (root / "cold.tailor").write_text(HEAD + "L9 from code\nL0 from chat")
    faults = found('model deep = "./cold.tailor"\nL0 from deep', root)
    assert [fault.code for fault in faults] == ["M201", "M202"]
    for fault in faults:
        assert fault.source is not None
        assert fault.source.name.endswith("cold.tailor")
        assert fault.span is not None
        assert fault.source.position(fault.span.start)[0] == 2
    (root / "cold.tailor").write_text(HEAD + "L0 from cod")
    assert [f.code for f in found('model deep = "./cold.tailor"\nL0 from deep', root)] == ["P106"]


@pytest.mark.parametrize(
    ("inner", "code", "message"),
    [
        ('model same = "./other.tailor"\nL0 from same', "M232", "depends on itself"),
        ("maybe drop L1", "M233", "has 1 open choice"),
        ("tokenizer union", "M233", "has a tokenizer that only its compiled folder has"),
    ],
)
def test_a_plan_that_isnt_a_model_is_refused(
    root: Path, inner: str, code: str, message: str
) -> None:
    (root / "other.tailor").write_text(HEAD + inner)
    [fault] = found('model deep = "./other.tailor"\nL0 from deep', root)
    assert (fault.code, message in fault.message) == (code, True)


def test_a_missing_plan_or_one_of_another_architecture_is_refused(
    root: Path, tmp_path: Path
) -> None:
    tiny_model("qwen2", tmp_path / "qwen", layers=COUNT)
    (tmp_path / "qwen.tailor").write_text('tailor 1\nmodel base = "./qwen"\ndrop L0\n')
    [fault] = found(f'model deep = "{tmp_path / "qwen.tailor"}"\nL0 from deep', root)
    assert fault.code == "M205"
    [fault] = found('model deep = "./nowhere.tailor"\nL0 from deep', root)
    assert fault.code == "C201"
    [fault] = found('model deep = "./sub/deep.tailor"\nL0 = L2 deep', root)
    assert "which has 2 layers" in fault.message
    for name in ("deep.no", "deeper.math"):
        plan = said('model deep = "./sub/deep.tailor"\nL0 from deep', root)
        assert [f.code for f in errors(gptailor.check(plan, {name: root / "chat"}))] == ["M105"]
    plan = said("model mix = code, chat by linear()\nL0 from mix", root)
    assert [f.code for f in errors(gptailor.check(plan, {"mix": root / "chat"}))] == ["M105"]


def test_a_made_models_tensors_are_read_in_chunks(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is loaded whole: each of its files is read in stretches of a chunk's size."""
    plan = said(f'model math = "./sub/math"\nmodel mix = {TIES}\n'
                "L1 from mix, chat by linear(0.7, 0.3)", root)  # fmt: skip
    program = prepare(plan).compiled.program
    [output] = [o for o in program.outputs if o.spec.name == "model.layers.1.mlp.up_proj.weight"]
    assert isinstance(output.make, Combine)
    whole = b"".join(bytes(part) for part in chunks(output))
    sizes = []
    monkeypatch.setattr("gptailor.program.run.read_into", seen(sizes))
    monkeypatch.setattr("gptailor.program.load.read_into", seen(sizes))
    assert b"".join(bytes(part) for part in chunks(output, chunk_bytes=256)) == whole
    assert max(sizes) <= 256 < output.spec.size
    assert isinstance(output, Output)


def seen(sizes: list[int]):  # type: ignore[no-untyped-def]
    """Reads as before, and notes how much."""
    from gptailor.checkpoint.files import read_into

    def noting(view: memoryview, *rest: object) -> None:
        sizes.append(len(view))
        read_into(view, *rest)  # type: ignore[arg-type]

    return noting
