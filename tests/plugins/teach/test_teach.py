"""Predictions as files: written by a teacher, read by healing, and refusals."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptailor
from gptailor.checkpoint.datasets import CalibrationError
from gptailor.checkpoint.files import CheckpointError
from gptailor.evaluation.fits.heal import heal as healing_module
from gptailor.evaluation.fits.heal import train
from gptailor.evaluation.fits.heal.process_group import ALONE, ProcessGroup, SharedWork
from gptailor.evaluation.fits.heal.teacher import Teachers
from gptailor.plan import optional_packages
from gptailor.plan.faults import TailorError
from gptailor.plugins.teach.predictions_file import ParquetPredictions, write_predictions
from gptailor.plugins.teach.teach import TeachResult, teach
from gptailor.prepare import prepare
from tests.support.healing import heal, healed_layers, said
from tests.support.said import in_process
from tests.support.second_device import second_device
from tests.support.tiny import letters, tiny_model

pytestmark = pytest.mark.usefixtures("no_progress_bars", "one_thread", "own_cache")

F32 = torch.float32
HEAL = 'drop L2\nheal on "taught.parquet" tokens 256 rank 4'


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LOW_RANK_RATE", 0.006)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama", tmp_path / "base", layers=4)
    rows = [{"text": letters(9 + n % 5, seed=n)} for n in range(300)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def taught(folder: Path, *, length: int = 16, tokens: int | None = 512) -> TeachResult:
    texts, file = folder / "text.jsonl", folder / "taught.parquet"
    return teach(folder / "base", texts, file, length=length, tokens=tokens, dtype=F32, force=True)


def noted(folder: Path, key: str, **notes: object) -> None:
    """Change a file's record of its format or its origin."""
    file = folder / "taught.parquet"
    table = parquet.read_table(file)
    metadata = dict(table.schema.metadata)
    metadata[key.encode()] = json.dumps(json.loads(metadata[key.encode()]) | notes)
    parquet.write_table(table.replace_schema_metadata(metadata), file)


# -------------------------------------------------------------------------------------- the file


def test_predictions_are_those_of_the_model(folder: Path) -> None:
    written = taught(folder)
    file = ParquetPredictions.open(folder / "taught.parquet")
    assert (written.sequences, written.tokens, written.kept) == (32, 512, 64)
    assert file.sequences.shape == (32, 16)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        logits = model(file.sequences).logits.log_softmax(-1)
    rows = list(range(31, -1, -1))
    results = {rows[place]: (tokens, logs) for place, tokens, logs in file.read(rows, 5)}
    for row, (tokens, logs) in results.items():
        expected, _ = logits[row].topk(5)
        torch.testing.assert_close(logs[:, :5], expected, atol=1e-5, rtol=1e-5)
        own = logits[row].gather(1, tokens.long())
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logs.exp().sum(1), torch.ones(16))


def test_a_file_is_decoded_by_its_format(folder: Path) -> None:
    taught(folder)
    table = parquet.read_table(folder / "taught.parquet")
    row = table.slice(3, 1).to_pylist()[0]
    file = ParquetPredictions.open(folder / "taught.parquet")
    [(_, tokens, logs)] = file.read([3], 64)
    assert row["input_ids"] == file.sequences[3].tolist()
    packed = int.from_bytes(bytes(row["bytepacked_indices"][7]), "big")
    bits = 8 * len(row["bytepacked_indices"][7])
    by_hand = [packed >> (bits - 6 * (n + 1)) & 63 for n in range(64)]  # 64 tokens: 6 bits each
    assert by_hand == tokens[7].tolist()
    raw = torch.frombuffer(bytearray(row["compressed_logprobs"][7]), dtype=torch.float32)
    assert torch.equal(raw, logs[7])
    assert torch.equal(raw, raw.sort(descending=True).values)
    settings = json.loads(table.schema.metadata[b"distillkit"])
    assert (settings["d"], settings["k"], settings["exact_k"]) == (64, 64, 64)


# ----------------------------------------------------------------------------------- learning


def test_healing_learns_from_a_file(folder: Path) -> None:
    taught(folder)
    result = heal(said(folder, HEAL))
    assert sum(text.tokens for text in result.result.texts) == 256
    assert result.result.numbers["healed"] < result.result.numbers["start"]
    again = heal(said(folder, HEAL))
    assert again.result.numbers["healed"] == result.result.numbers["healed"]


@pytest.mark.parametrize("text", ['"taught.parquet"', '"taught.parquet", "few.parquet" weight 2'])
def test_a_model_has_no_loss_against_its_own_predictions(folder: Path, text: str) -> None:
    """Each sequence has its own predictions, in any order, and next to a smaller file."""
    taught(folder)
    notes = json.loads(parquet.read_schema(folder / "taught.parquet").metadata[b"gptailor"])
    file = ParquetPredictions.open(folder / "taught.parquet")
    results = sorted(file.read(range(32), 5), key=lambda each: each[0])
    tokens, logs = (torch.cat([each[part] for each in results]) for part in (1, 2))
    chunks = [(file.sequences, tokens, logs[:, :5])]
    write_predictions(folder / "few.parquet", chunks, 5, 64, notes)
    learned = heal(said(folder, f"heal on {text} tokens 256 rank 4"))
    assert learned.result.numbers["start"] == pytest.approx(0, abs=1e-5)
    other = heal(said(folder, f"drop L2\nheal on {text} tokens 256 rank 4"))
    assert other.result.numbers["start"] > 0.001


def test_a_file_that_changes_before_several_processes_open_it_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def changed_first(work: SharedWork, *_: object) -> Iterator[ProcessGroup]:
        taught(folder, tokens=480)
        work(ALONE)  # as another process does
        yield ALONE

    taught(folder)
    prepared = prepare(said(folder, HEAL))
    monkeypatch.setattr(healing_module, "shared", changed_first)
    with pytest.raises(CheckpointError, match="C304"):
        healed_layers(prepared)


def test_the_teacher_is_not_needed_after_it_has_taught(folder: Path) -> None:
    tiny_model("llama", folder / "teacher", layers=6, seed=1)
    teach(folder / "teacher", folder / "text.jsonl", folder / "taught.parquet", length=16)
    result = heal(said(folder, 'heal on "taught.parquet" tokens 256 rank 4'))
    assert result.result.numbers["start"] > 0.01, "the base differs from its teacher"
    assert result.result.numbers["healed"] < result.result.numbers["start"]


def test_the_card_of_a_healed_folder_names_its_predictions(folder: Path) -> None:
    taught(folder)
    plan = said(folder, HEAL)
    written = gptailor.compile(plan, folder / "out", locking=True)
    card = (folder / "out" / "README.md").read_text()
    assert "distribution of the model that made the predictions on a text" in card
    assert "taught.parquet" in card
    assert gptailor.verify(folder / "out").result == "verified"
    (folder / "taught.parquet").unlink()
    teach(folder / "base", folder / "text.jsonl", folder / "taught.parquet", tokens=300, length=16)
    with pytest.raises(CheckpointError, match=r"C704.*the calibration text of 'heal'"):
        gptailor.compile(plan, folder / "again", locked=written.lock)


def test_files_and_texts_are_mixed(folder: Path) -> None:
    taught(folder)
    text = 'drop L2\nheal on "taught.parquet", "text.jsonl" tokens 512 rank 4'
    result = heal(said(folder, text))
    assert [text.tokens for text in result.result.texts] == [256, 256]
    assert result.result.numbers["healed"] < result.result.numbers["start"]


def test_an_unusable_file_is_refused_before_a_teacher_predicts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught(folder)
    path, loaded = folder / "taught.parquet", list[str | None]()
    monkeypatch.setattr(Teachers, "live", lambda _, name: loaded.append(name))
    table = parquet.read_table(path)
    rows = table.to_pylist()
    rows[3]["compressed_logprobs"][2] = [0] * 256
    parquet.write_table(pa.Table.from_pylist(rows, table.schema), path)
    with pytest.raises(CalibrationError, match=r"C814.*token 3 of row 4.*sum to more than 1"):
        heal(said(folder, 'drop L2\nheal on "taught.parquet", "text.jsonl" tokens 512 rank 4'))
    assert not loaded


def test_without_tokens_the_whole_text_is_taught(folder: Path) -> None:
    written = taught(folder, tokens=None)
    lengths = [9 + n % 5 + 1 for n in range(300)]
    assert written.sequences == sum(lengths) // 17


def test_a_killed_run_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = taught(folder)
    bytes_ = whole.file.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gptailor.plugins.teach.teach.write_predictions", killed)
        with pytest.raises(KeyboardInterrupt):
            taught(folder)
    assert whole.file.read_bytes() == bytes_, "the old file stays"
    monkeypatch.setattr("gptailor.evaluation.forward.evaluator.Evaluator.run", killed)
    assert taught(folder).bytes == len(bytes_), "nothing is predicted twice"
    assert whole.file.read_bytes() == bytes_


@pytest.mark.parametrize("old", [False, True])
def test_a_disk_that_fills_leaves_the_folder_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    if old:
        taught(folder, tokens=480)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    write_table = parquet.ParquetWriter.write_table

    def full(writer: parquet.ParquetWriter, table: pa.Table) -> None:
        write_table(writer, table)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetWriter, "write_table", full)
        with pytest.raises(CheckpointError, match=r"C303.*No space left on device") as error:
            taught(folder)
    assert error.value.exit_code == 3
    assert {f: f.stat().st_mtime_ns for f in folder.iterdir() if f.name != "cache"} == {
        f: time for f, time in before.items() if f.name != "cache"
    }
    monkeypatch.setattr("gptailor.evaluation.forward.evaluator.Evaluator.run", None)
    assert taught(folder).sequences == 32, "the predictions are kept"


def test_a_card_gives_the_predictions_of_the_cpu(folder: Path) -> None:
    def file(device: str) -> bytes:
        target = folder / f"{device}.parquet"
        texts = folder / "text.jsonl"
        teach(folder / "base", texts, target, tokens=128, device=device, dtype="float32")
        return target.read_bytes()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = file("cpu")
        with second_device() as card:
            assert file("cuda") == expected
    assert card.ran, "nothing ran on the card"


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("llama", 'drop L2\nheal on "text.jsonl" tokens 64'),
        ("llama", 'width 16 on "text.jsonl"'),
        ("mixtral", 'experts 3 on "text.jsonl"'),
    ],
)
def test_a_teacher_that_is_repaired_is_compiled_first(folder: Path, kind: str, body: str) -> None:
    tiny_model(kind, folder / "base", layers=4)
    plan = said(folder, body)
    with pytest.raises(TailorError, match="or has fewer experts: compile it, and name its folder"):
        teach(plan, folder / "text.jsonl", folder / "taught.parquet")


@pytest.mark.parametrize(("length", "why"), [(0, "from 1 to"), (10**6, "from 1 to")])
def test_a_length_beyond_the_model_is_refused(folder: Path, length: int, why: str) -> None:
    with pytest.raises(TailorError, match=why):
        taught(folder, length=length)
    assert not (folder / "taught.parquet").exists()


def test_a_file_is_replaced_only_by_force_and_ends_in_its_suffix(folder: Path) -> None:
    taught(folder)
    text, file = folder / "text.jsonl", folder / "taught.parquet"
    with pytest.raises(CheckpointError, match="--force"):
        teach(folder / "base", text, file)
    with pytest.raises(CheckpointError, match=r"name it taught\.parquet"):
        teach(folder / "base", text, folder / "taught")
    with pytest.raises(CalibrationError, match="C806"):
        teach(folder / "base", text, file, tokens=10**6, force=True)
    assert ParquetPredictions.open(file).length == 16
    file.write_text("mine")
    with pytest.raises(CheckpointError, match="begins with 'PAR1'"):
        taught(folder)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "notes", "why"),
    [
        ("distillkit", {"exact_k": 1}, "expected the metadata"),
        ("distillkit", {"delta_encoding": True}, "expected the metadata"),
        ("distillkit", {"k": None}, "expected the metadata|lacks the metadata"),
        ("distillkit", {"k": 0, "exact_k": 0}, "expected the metadata"),
        ("distillkit", {"k": 65, "exact_k": 65}, "expected the metadata"),
        ("distillkit", {"k": 5, "exact_k": 5}, "expected 20 bytes of a prediction in row 1"),
        ("distillkit", {"k": 64.0, "exact_k": 64.0}, "expected the metadata"),
        ("distillkit", {"d": 128}, "predicts 128 tokens, the plan's model 64"),
        ("gptailor", {"tokenizer": "another"}, "tokenizer differs"),
    ],
)
def test_a_file_in_another_format_is_refused(
    folder: Path, key: str, notes: dict[str, object], why: str
) -> None:
    taught(folder)
    noted(folder, key, **notes)
    with pytest.raises(CalibrationError, match=rf"C814.*({why})"):
        heal(said(folder, HEAL))


def test_a_file_without_notes_is_refused(folder: Path) -> None:
    taught(folder)
    file = folder / "taught.parquet"
    parquet.write_table(parquet.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(CalibrationError, match=r"C814.*lacks the metadata"):
        heal(said(folder, HEAL))


def test_sequences_have_one_length_within_the_models_limit(folder: Path) -> None:
    taught(folder)
    taught_again = folder / "other.parquet"
    teach(folder / "base", folder / "text.jsonl", taught_again, length=8, tokens=512)
    both = 'drop L2\nheal on "taught.parquet", "other.parquet" tokens 256'
    with pytest.raises(CalibrationError, match=r"C814.*8 tokens, but the rows of .* have 16"):
        heal(said(folder, both))
    file = folder / "taught.parquet"
    table = parquet.read_table(file)
    shorter = table.slice(0, 1).to_pylist()
    shorter[0] = {name: values[:9] for name, values in shorter[0].items()}
    rows = pa.Table.from_pylist(shorter, schema=table.schema)
    parquet.write_table(pa.concat_tables([table, rows]), file)
    with pytest.raises(CalibrationError, match="from 9 to 16 tokens"):
        heal(said(folder, HEAL))


def test_a_model_with_shorter_windows_is_refused(folder: Path) -> None:
    taught(folder, length=100, tokens=None)
    tiny_model("llama", folder / "short", layers=4, max_position_embeddings=64)
    plan = said(folder, HEAL)
    (folder / "base").rename(folder / "long")
    (folder / "short").rename(folder / "base")
    with pytest.raises(
        CalibrationError, match=r"100 tokens, but the model takes 64[^$]*--length 64"
    ):
        heal(plan)


def test_the_command_describes_the_written_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    call = in_process(capsys)
    said_ = call("teach", "base", "text.jsonl", "-o", "a.parquet", "--tokens", 512, "--length", 16)
    assert said_.code == 0
    assert "a.parquet: 32 sequences of 16 tokens, with 64 predictions after each" in said_.out
    again = call("teach", "base", "text.jsonl", "-o", "a.parquet", "--memory", "1MB", "--force")
    assert again.code == 0
    assert call("teach", "base", "text.jsonl", "-o", "a.parquet").code == 3
    for statement in ('bridge on "a.parquet"', 'search { minimize nll("a.parquet") }'):
        (folder / "plan.tailor").write_text(
            f'tailor 1\nmodel base = "./base"\ndrop any 1 of L1..L2\n{statement}\n'
        )
        checked = call("check", "plan.tailor")
        assert checked.code == 1
        assert "C803" in checked.err
    monkeypatch.setitem(optional_packages.EXTRAS, "parquet", ("no_such_module",))
    missing = call("teach", "base", "text.jsonl", "-o", "b.parquet")
    assert "pip install 'gptailor[parquet]'" in missing.err


@pytest.mark.parametrize("content", [b"", b"PAR1 is how they begin", b'{"text": "a"}\n'])
def test_an_invalid_parquet_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "taught.parquet").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"C814.*can't be read as Parquet"):
        heal(said(folder, HEAL))


def test_a_parquet_file_of_something_else_is_refused(folder: Path) -> None:
    parquet.write_table(pa.table({"text": ["a", "b"]}), folder / "taught.parquet")
    with pytest.raises(CalibrationError, match=r"C814.*'input_ids'"):
        heal(said(folder, HEAL))


def test_only_healing_reads_predictions(folder: Path) -> None:
    taught(folder)
    with pytest.raises(TailorError, match=r"C803.*only 'heal' learns from it"):
        gptailor.evaluate(folder / "base", f'nll("{folder / "taught.parquet"}")')


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('drop L2\nheal on "t.parquet" from base', "can't have another teacher"),
        ('drop L2\nheal from base on "t.parquet"', "can't have another teacher"),
        ('drop L2\nheal on answers("t.parquet")', "not prompts"),
        ('drop L2\nheal on "t.parquet" loss answers', "mark the tokens of answers"),
    ],
)
def test_predictions_have_their_own_teacher(folder: Path, text: str, why: str) -> None:
    with pytest.raises(gptailor.PlanError) as error:
        said(folder, text)
    [fault] = error.value.faults
    assert fault.code == "P712"
    assert why in fault.message


def test_the_tokenizer_is_that_of_the_teacher(folder: Path) -> None:
    taught(folder)
    file = ParquetPredictions.open(folder / "taught.parquet")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    text = tokenizer.decode(file.sequences[0])
    assert set(text.replace(tokenizer.eos_token or "", "")) - {" "} <= set(letters(500, seed=1))
