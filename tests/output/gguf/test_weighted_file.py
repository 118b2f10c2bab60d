"""GGUF files with an importance matrix: bytes, metadata, locks, verification, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gptailor
from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.formats.gguf.header import read_gguf
from gptailor.checkpoint.formats.gguf.kinds import KINDS
from gptailor.checkpoint.tensor import TensorSpec
from gptailor.cli import main as cli
from gptailor.evaluation.fits import importance
from gptailor.evaluation.fits.importance import ImportanceMatrix, importance_matrix, importance_text
from gptailor.output.gguf.file import TEXT_KEY, GgufFile
from gptailor.prepare import prepare
from gptailor.program.load import load_tensor
from tests.output.gguf.test_file import expected, read
from tests.support.tiny_bytes import model
from tests.support.vocabularies import TEXT

pytest.importorskip("gguf", reason="the package 'gguf' is not installed")

from gptailor.output.gguf.quantise import quantised

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a plan, its model, and a text of 780 tokens."""
    model(tmp_path / "base", layers=9, intermediate_size=256)
    (tmp_path / "p.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L1\n')
    (tmp_path / "text.txt").write_text(TEXT * 4, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compiled(name: str, **how: Any) -> gptailor.CompileResult:
    return gptailor.compile(gptailor.load("p.tailor"), name, imatrix="text.txt", **how)


def matrix() -> ImportanceMatrix:
    plan = prepare(gptailor.load("p.tailor"))
    return importance_matrix(plan, importance_text(plan, Path("text.txt")), None)


@pytest.mark.parametrize(
    "quantize", ["q3_k_m", "q4_k_m", "q5_k_s", "q6_k", "iq4_nl", "q4_0", "q5_1"]
)
def test_each_matrix_of_a_layer_is_weighted_by_its_columns(here: Path, quantize: str) -> None:
    columns = matrix()
    file = compiled("out.gguf", quantize=quantize).folder
    wanted = expected(gptailor.compile(gptailor.load("p.tailor"), "out").folder, "llama")
    plain = gptailor.compile(gptailor.load("p.tailor"), "p.gguf", quantize=quantize)
    without = read(plain.folder, "llama")
    same = set()
    for name, tensor in read(file, "llama").items():
        kind = KINDS[tensor.tensor_type.name]
        own = columns.get(name)
        assert (own is not None) == (".layers." in name and wanted[name].ndim == 2), name
        raw = quantised(wanted[name], kind, None if own is None else own.numpy())
        found_bytes = tensor.data.reshape(-1).view(np.uint8)
        np.testing.assert_array_equal(found_bytes, raw.reshape(-1), err_msg=name)
        if np.array_equal(tensor.data, without[name].data):
            same.add(name)
        assert (name in same) == (own is None or not kind.weighted), name
    assert len(same) < len(without)


def test_the_first_projections_of_q4_0_have_another_type(here: Path) -> None:
    tensors = read_gguf(compiled("out.gguf", quantize="q4_0").folder).tensors
    assert tensors["blk.0.ffn_down.weight"].spec.dtype == "Q4_1"
    assert tensors["blk.1.ffn_down.weight"].spec.dtype == "Q4_0"


def test_metadata_names_the_matrix_with_llama_cpps_keys(here: Path) -> None:
    written = compiled("sub", gguf=["q4_k_m", "q8_0"])
    weighted, other = (read_gguf(file.folder).facts for file in written.gguf)
    expected = {
        TEXT_KEY: "text.txt", "quantize.imatrix.entries_count": 7 * 8,
        "quantize.imatrix.chunks_count": 7,
    }  # fmt: skip
    assert {key: weighted[key] for key in expected} == expected
    assert weighted["quantize.imatrix.file"] == "gptailor computed the matrix"
    words = "quantised with an importance matrix of 780 tokens of 'text.txt'"
    assert str(weighted["general.description"]).endswith(words)
    assert words in written.gguf[0].notes
    assert not [key for key in other if "imatrix" in key]
    assert words not in written.gguf[1].notes


def test_a_matrix_without_any_input_is_quantised_as_without(here: Path) -> None:
    plan = prepare(gptailor.load("p.tailor"))
    text = importance_text(plan, Path("text.txt"))
    file = GgufFile(plan, here / "out.gguf", "q4_k_m", text)
    tensor = file.tensors["blk.0.ffn_down.weight"]
    assert tensor.source is not None
    spec = tensor.source
    values = load_tensor(plan.models["base"].checkpoint.tensors[spec.name])

    def blocks(columns: torch.Tensor) -> bytes:
        def make(_: TensorSpec) -> list[bytes]:
            return [values.numpy().tobytes()]

        payload = file.payloads(make, importance={spec.name: columns})(tensor.spec)
        return b"".join(map(bytes, payload))

    some = torch.zeros(values.shape[1])
    plain = quantised(values.numpy(), KINDS[tensor.spec.dtype]).tobytes()
    assert blocks(some) == plain
    some[3] = 1.0
    assert blocks(some) != plain


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("how", "got"),
    [
        ({"quantize": "q8_0"}, "q8_0"),
        ({"quantize": "f16"}, "f16"),
        ({}, "no type"),
    ],
)
def test_a_matrix_that_changes_nothing_is_refused(
    here: Path, how: dict[str, str], got: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        compiled("out.gguf", **how)
    assert caught.value.code == "C306"
    assert caught.value.message.endswith(f"that can use an importance matrix, got {got}")
    assert not Path("out.gguf").exists()


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_text_that_is_too_short_is_refused_before_anything(here: Path, *, dry_run: bool) -> None:
    Path("text.txt").write_text("A few words.")
    with pytest.raises(CalibrationError) as caught:
        compiled("out", gguf=["q4_0"], dry_run=dry_run)
    assert caught.value.code == "C806"
    assert not Path("out").exists()


def test_the_command_takes_the_text_and_prints_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        code = cli.run(["compile", "p.tailor", "--imatrix", "text.txt", *arguments])
        return code, " ".join("".join(capsys.readouterr()).split())

    code, printed = run("-o", "out", "--gguf", "q4_k_m", "--dry-run")
    assert code == 0, printed
    assert "importance matrix about " in printed
    assert "for 780 tokens, estimated" in printed
    code, printed = run("-o", "out", "--gguf", "q4_k_m")
    assert code == 0, printed
    assert "quantised with an importance matrix of 780 tokens of 'text.txt'" in printed
    code, printed = run("-o", "other")
    assert code == 2
    assert "--imatrix needs --gguf or --quantize" in printed
    Path("text.txt").write_text("A few words.")
    code, printed = run("-o", "other", "--gguf", "q4_k_m")
    assert code == 3
    assert "error[C806]" in printed


# ---------------------------------------------------------------------------------- lock and verify


def test_a_lock_has_the_text_and_a_file_is_verified(here: Path) -> None:
    made = compiled("sub.gguf", quantize="q4_k_m", locking=True)
    assert made.lock is not None
    assert made.lock.gguf is not None
    assert made.lock.gguf.imatrix is not None
    assert made.lock.gguf.imatrix.tokens == 780
    result = gptailor.verify("sub.gguf")
    assert result.result == "verified", (result.differences, result.unverified)
    assert any("tensors with the plan's output" in words for words in result.compared)
    Path("deep").mkdir()
    compiled("deep/again.gguf", quantize="q4_k_m", locked=made.lock)
    assert read_gguf(Path("deep/again.gguf")).facts[TEXT_KEY] == "../text.txt"
    assert gptailor.verify("deep/again.gguf").result == "verified"
    plan = gptailor.load("p.tailor")
    with pytest.raises(CheckpointError) as caught:
        gptailor.compile(plan, "x.gguf", quantize="q4_k_m", locked=made.lock, dry_run=True)
    assert caught.value.code == "C704"
    assert "the lock has an importance matrix, but the file lacks one" in caught.value.message
    plain = gptailor.compile(plan, "plain.gguf", quantize="q4_k_m", locking=True).lock
    with pytest.raises(CheckpointError) as caught:
        compiled("x.gguf", quantize="q4_k_m", locked=plain)
    assert "the file has an importance matrix, but the lock lacks one" in caught.value.message


def test_a_text_that_differs_from_the_lock_is_refused(here: Path) -> None:
    made = compiled("out.gguf", quantize="q4_k_m", locking=True)
    Path("text.txt").write_text(TEXT * 4 + "More.", encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        compiled("x.gguf", quantize="q4_k_m", locked=made.lock)
    assert caught.value.code == "C704"
    assert "the text of the importance matrix differs from the lock" in caught.value.message
    result = gptailor.verify("out.gguf")
    assert result.result == "unverified"
    assert "the text of the importance matrix is not the locked one" in result.unverified[0]
    Path("text.txt").unlink()
    result = gptailor.verify("out.gguf")
    assert result.result == "unverified"
    assert "can't be read" in result.unverified[0]


@pytest.mark.parametrize(("factor", "accepted"), [(1.001, True), (1.2, False)])
def test_tensors_may_differ_as_much_as_their_columns_nearly_agree(
    here: Path, monkeypatch: pytest.MonkeyPatch, factor: float, *, accepted: bool
) -> None:
    made = compiled("out.gguf", quantize="q4_0", locking=True)

    def elsewhere(*arguments: Any, **how: Any) -> ImportanceMatrix:
        result = importance_matrix(*arguments, **how)
        odd = {name: torch.arange(len(columns)) % 2 for name, columns in result.items()}
        return {name: result[name] * factor ** odd[name] for name in result}

    monkeypatch.setattr(importance, "importance_matrix", elsewhere)
    if accepted:
        again = compiled("again.gguf", quantize="q4_0", locked=made.lock).folder
        assert again.read_bytes() != Path("out.gguf").read_bytes()
        assert gptailor.verify("out.gguf").result == "verified"
        return
    with pytest.raises(CheckpointError) as caught:
        compiled("again.gguf", quantize="q4_0", locked=made.lock)
    assert caught.value.code == "C705"
    assert "% off" in caught.value.message


def test_without_a_lock_weighted_tensors_can_not_be_compared(here: Path) -> None:
    compiled("out.gguf", quantize="q4_0")
    result = gptailor.verify("out.gguf")
    assert result.differences == ()
    assert result.unverified == ("56 fitted, healed or weighted tensors: there is no lock",)


def test_bridged_and_weighted_tensors_have_the_sketches_of_both(here: Path) -> None:
    Path("p.tailor").write_text(
        'tailor 1\nmodel base = "./base"\ndrop L1..L2\nbridge on "text.txt" tokens 512\n'
    )
    made = compiled("out.gguf", quantize="q4_k_m", locking=True)
    assert made.lock is not None
    assert made.lock.gguf is not None
    tensors = made.lock.gguf.tensors
    lengths = {n: len(t.sketch) for n, t in tensors.items() if t.sketch is not None}
    assert lengths.pop("blk.0.ffn_down.weight") == 2 * 64
    assert set(lengths.values()) == {64}
    assert "token_embd.weight" not in lengths
    result = gptailor.verify("out.gguf")
    assert result.result == "verified", (result.differences, result.unverified)
