"""Programs of plans as text, after each pass: `tests/golden/programs`.

Each `.tailor` there has a `.program`: the draft's lines, and the lines that each pass changes.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gptailor
from gptailor.prepare import prepare
from gptailor.program.compile import PASSES, compile_plan, draft_program
from gptailor.program.program import program_lines
from tests.support.hollow import llama, qwen3_moe, write_hollow
from tests.support.tiny import tiny_model

GOLDEN = Path(__file__).parents[1] / "golden" / "programs"
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8,
}

MIXED = {
    "num_experts": 3,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "head_dim": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Headers of `base` and `math` in bfloat16, of `wide` in float32, of `tied` and `mixed`."""
    folder = tmp_path_factory.mktemp("models")
    config, shapes = llama(**SIZES)
    for name, dtype in (("base", "BF16"), ("math", "BF16"), ("wide", "F32")):
        write_hollow(folder / name, config, shapes, dtype=dtype)
    config, shapes = llama(**SIZES, tie_word_embeddings=True)
    del shapes["lm_head.weight"]
    write_hollow(folder / "tied", config, shapes)
    config, shapes = qwen3_moe(**SIZES, **MIXED)
    write_hollow(folder / "mixed", config, shapes)
    (folder / "text.txt").write_text("some text")
    return folder


def listing(plan: Path, models: Path) -> str:
    """The draft's lines, and the lines that each pass changes."""
    prepared = prepare(gptailor.loads(plan.read_text(), folder=models))
    checked = prepared.checked
    program = draft_program(checked)
    before = program_lines(program)
    lines = ["draft", *(f"  {line}" for line in before)]
    for each in PASSES:
        program = each(program, checked)
        after = program_lines(program)
        lines.append(each.__name__)
        lines += [f"  {line}" for line in after if line not in before]
        before = after
    assert program == compile_plan(prepared.checked).program
    assert program == prepared.compiled.program
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("plan", sorted(GOLDEN.glob("*.tailor")), ids=lambda path: path.stem)
def test_a_program_after_each_pass(plan: Path, models: Path) -> None:
    assert listing(plan, models) == plan.with_suffix(".program").read_text()


def test_each_pass_is_shown() -> None:
    """There is a plan that it changes something of."""
    texts = [path.read_text() for path in GOLDEN.glob("*.program")]
    assert len(texts) >= 7
    for each in PASSES:
        assert any(f"\n{each.__name__}\n  " in text for text in texts), each.__name__


@pytest.mark.parametrize("kind", ["ctrl", "phi"])
@pytest.mark.parametrize("where", ["embed", "head", "norm"])
def test_a_tied_head_keeps_its_bias(kind: str, where: str, tmp_path: Path) -> None:
    """It comes with whichever of embedding and head is named, as the weight does."""
    head = "tailor 1\n"
    for seed, name in enumerate(("base", "math")):
        tiny_model(kind, tmp_path / name, seed=seed, layers=2, tie_word_embeddings=True)
        head += f'model {name} = "./{name}"\n'
    gptailor.compile(gptailor.loads(f"{head}{where} from math", folder=tmp_path), tmp_path / "out")
    files = {name: tmp_path / name / "model.safetensors" for name in ("base", "math", "out")}
    base, math, out = (load_file(file) for file in files.values())
    assert out.keys() == base.keys()
    theirs = math if where != "norm" else base
    embed = {"ctrl": "transformer.w.weight", "phi": "model.embed_tokens.weight"}[kind]
    for name in (embed, "lm_head.bias"):
        assert torch.equal(out[name], theirs[name])
