"""Hostile files and folders: refused by a code and at a byte, in little memory and in little time.

There is no third outcome. `tests/hostile` describes each file, and why somebody would make it.
"""

import os
import signal
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.files import MAX_JSON, CheckpointError, read_object
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.formats import safetensors as header
from gptailor.checkpoint.formats.gguf import header as gguf_header
from gptailor.checkpoint.formats.gguf.reader import open_gguf
from gptailor.checkpoint.formats.lora import apply_adapter
from gptailor.checkpoint.formats.pytorch import read_pickled
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.checkpoint.vocabulary import read_vocabulary
from gptailor.cli import main as cli
from gptailor.plan.faults import errors
from tests.hostile import folders, ggufs, headers, pickles
from tests.hostile.case import Hostile, HostileFolder

Read = Callable[[Path], object]

READERS: dict[str, tuple[Read, tuple[Hostile, ...], bytes]] = {
    "x.safetensors": (read_header, headers.HOSTILE, headers.several((0, 4), (4, 6), size=6)),
    "x.gguf": (open_gguf, ggufs.HOSTILE, ggufs.llama()),
    "x.bin": (read_pickled, pickles.HOSTILE, pickles.GOOD),
}
"""By a file's name: how it is read, the hostile ones, and a sound one."""

FILES = [(name, hostile) for name, (_, files, _) in READERS.items() for hostile in files]
LITTLE = 50_000_000
"""Bytes that reading a hostile file may take on its way; the files have a few millions at most."""


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    """End a test that hangs."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(read: Read, path: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read(path)
    message = str(caught.value)
    message.encode("utf-8")
    assert all(c.isprintable() or c == "\n" for c in message)
    assert len(message) < 1000 + len(str(path))
    return caught.value


def ids(value: object) -> str | None:
    return getattr(value, "name", None)


@pytest.mark.parametrize(("name", "hostile"), FILES, ids=ids)
def test_a_file_is_refused_at_its_byte(tmp_path: Path, name: str, hostile: Hostile) -> None:
    path = tmp_path / name
    path.write_bytes(hostile.content)
    error = refused(READERS[name][0], path)
    assert (error.code, error.offset, error.path) == (hostile.code, hostile.offset, path), hostile


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read_and_cut_ones_are_not(tmp_path: Path, name: str) -> None:
    read, _, sound = READERS[name]
    (tmp_path / name).write_bytes(sound)
    read(tmp_path / name)
    for length in range(len(sound)):
        os.truncate(tmp_path / name, 0)
        (tmp_path / name).write_bytes(sound[:length])
        refused(read, tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_shrinks_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, _, sound = READERS[name]
    path = tmp_path / name
    path.write_bytes(sound)
    fstat = os.fstat

    def then_shrinks(fd: int) -> os.stat_result:
        result = fstat(fd)
        if result.st_size == len(sound):
            shrinks(len(sound) // 3)
        return result

    shrinks = partial(os.truncate, path)
    monkeypatch.setattr(os, "fstat", then_shrinks)
    assert refused(read, path).code[:2] in {"C2", "C1"}


@pytest.mark.parametrize(("name", "hostile"), FILES, ids=ids)
def test_a_hostile_file_takes_little_memory(tmp_path: Path, name: str, hostile: Hostile) -> None:
    path = tmp_path / name
    path.write_bytes(hostile.content)
    tracemalloc.start()
    try:
        refused(READERS[name][0], path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LITTLE


LIMITED = """
import resource, sys
from pathlib import Path
from gptailor.checkpoint.files import MAX_JSON, CheckpointError, read_object
from gptailor.checkpoint.formats.{module} import {reader}
limit = 1_500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in map(Path, sys.argv[1:]):
    try:
        {reader}(path)
    except CheckpointError as error:
        print(error.code, error.message)
"""


@pytest.mark.parametrize(
    ("module", "reader", "name"),
    [("safetensors", "read_header", "x.safetensors"), ("gguf.reader", "open_gguf", "x.gguf"),
     ("pytorch", "read_pickled", "x.bin")],
)  # fmt: skip
def test_sparse_files_of_terabytes_and_bombs_fit_into_a_process(
    tmp_path: Path, module: str, reader: str, name: str
) -> None:
    paths = []
    for hostile in READERS[name][1]:
        paths.append(tmp_path / f"{hostile.name}-{name}")
        paths[-1].write_bytes(hostile.content)
        os.truncate(paths[-1], 2**40)
    for hostile in pickles.BOMBS if module == "pickled" else ():
        paths.append(tmp_path / hostile.name)
        paths[-1].write_bytes(hostile.content)
    sound = tmp_path / name
    sound.write_bytes(READERS[name][2])
    os.truncate(sound, 2**40)
    program = LIMITED.format(module=module, reader=reader)
    done = subprocess.run([sys.executable, "-c", program, *paths, sound], capture_output=True,
                          text=True, check=True, timeout=60)  # fmt: skip
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= len(paths)
    bombs = len(pickles.BOMBS) if module == "pickled" else 0
    assert sum(line.endswith(" instructions") for line in lines) == bombs


def test_headers_of_sparse_files_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    array = ggufs.fact("a", ggufs.ARRAY, struct.pack("<IQ", ggufs.U8, 2**39))
    path.write_bytes(ggufs.gguf([array]))
    os.truncate(path, 2**40)
    assert str(gguf_header.MAX_GGUF_HEADER) in refused(open_gguf, path).message
    path.write_bytes((header.MAX_HEADER + 1).to_bytes(8, "little"))
    os.truncate(path, 2**40)
    assert refused(read_header, path).code == "C203"
    os.truncate(path, MAX_JSON + 1)
    assert refused(partial(read_object, code="C103", duplicate=None), path).code == "C103"


# ----------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("hostile", folders.FOLDERS, ids=ids)
def test_a_folder_is_refused(tmp_path: Path, hostile: HostileFolder) -> None:
    hostile.make(tmp_path / "model")
    error = refused(open_checkpoint, tmp_path / "model")
    assert (error.code, error.offset) == (hostile.code, hostile.offset), hostile.why
    assert error.path == tmp_path / "model" / hostile.file


@pytest.mark.parametrize("hostile", folders.TOKENIZERS, ids=ids)
def test_a_tokenizer_is_refused(tmp_path: Path, hostile: HostileFolder) -> None:
    hostile.make(tmp_path / "model")
    error = refused(read_vocabulary, tmp_path / "model")
    assert (error.code, error.offset) == (hostile.code, hostile.offset), hostile.why
    assert error.path == tmp_path / "model" / hostile.file


@pytest.mark.parametrize("hostile", folders.ADAPTERS, ids=ids)
def test_an_adapter_is_refused(tmp_path: Path, hostile: HostileFolder) -> None:
    base = open_checkpoint(folders.model(tmp_path / "model"))
    apply_adapter(base, folders.adapter(tmp_path / "sound"))
    hostile.make(tmp_path / "adapter")
    error = refused(partial(apply_adapter, base), tmp_path / "adapter")
    assert (error.code, error.offset) == (hostile.code, hostile.offset), hostile.why
    assert error.path == tmp_path / "adapter" / hostile.file


@pytest.mark.parametrize("hostile", folders.CONFIGURATIONS, ids=ids)
def test_a_configuration_is_refused(tmp_path: Path, hostile: HostileFolder) -> None:
    hostile.make(tmp_path / "model")
    plan = gptailor.loads('tailor 1\nmodel base = "./model"\nL0 = L0 base\n', folder=tmp_path)
    (fault,) = errors(gptailor.check(plan))
    assert fault.code == hostile.code, hostile.why
    assert len(fault.message) < 1000 + len(str(tmp_path))
    place = f"({tmp_path / 'model' / hostile.file}, byte {hostile.offset})"
    assert hostile.offset is None or fault.message.endswith(place)


PLAN = 'tailor 1\nmodel base = "./sound"\nmodel other = {}\nL0 = L0 other\ntokenizer from other\n'
SAID = [
    *((PLAN.format('"./model"'), each) for each in (*folders.FOLDERS, *folders.CONFIGURATIONS)),
    *((PLAN.format('"./model"'), each) for each in folders.TOKENIZERS),
    *((PLAN.format('base + "./model"'), each) for each in folders.ADAPTERS),
]


@pytest.mark.parametrize(("text", "hostile"), SAID, ids=ids)
def test_the_command_line_reports_a_hostile_folder_and_leaves_no_output(
    tmp_path: Path, text: str, hostile: HostileFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    folders.model(tmp_path / "sound")
    hostile.make(tmp_path / "model")
    (tmp_path / "cut.tailor").write_text(text)
    before = set(tmp_path.iterdir())
    for arguments in (["check"], ["compile", "-o", str(tmp_path / "out")]):
        command = [arguments[0], str(tmp_path / "cut.tailor"), *arguments[1:]]
        assert cli.run(command) == 1, hostile.why
        assert f"error[{hostile.code}]" in capfd.readouterr().err
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("name", "hostile"), FILES, ids=ids)
def test_the_command_line_reports_a_hostile_file(
    tmp_path: Path, name: str, hostile: Hostile, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = {"x.bin": "pytorch_model.bin", "x.safetensors": "model.safetensors"}.get(name, name)
    (folders.model(tmp_path / "model") / "model.safetensors").unlink()
    (tmp_path / "model" / weights).write_bytes(hostile.content)
    (tmp_path / "cut.tailor").write_text('tailor 1\nmodel base = "./model"\nL0 = L0 base\n')
    assert cli.run(["check", str(tmp_path / "cut.tailor")]) == 1
    output = capfd.readouterr().err
    assert f"error[{hostile.code}]" in output
    assert hostile.offset is None or f", byte {hostile.offset})" in output


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("llama", "rope_scaling", True),
        ("llama", "rope_scaling", {"rope_type": ["x"]}),
        ("llama", "hidden_size", None),
        ("gemma3_text", "rope_scaling", True),
    ],
)
def test_settings_of_another_type_are_a_difference(
    tmp_path: Path, kind: str, key: str, value: object
) -> None:
    config = folders.CONFIG | {"model_type": kind}
    folders.model(tmp_path / "sound", config)
    folders.model(tmp_path / "other", config | {key: value})
    plan = gptailor.loads(
        'tailor 1\nmodel base = "./sound"\nmodel other = "./other"\nL0 from other\n',
        folder=tmp_path,
    )
    assert {fault.code for fault in errors(gptailor.check(plan))} == {"M206"}


def test_a_layer_number_of_thousands_of_digits_is_ignored(tmp_path: Path) -> None:
    name = "model.layers." + "9" * 5000 + ".self_attn.q_proj.weight"
    folders.model(tmp_path / "model", folders.CONFIG, *folders.NAMES, name)
    plan = gptailor.loads('tailor 1\nmodel base = "./model"\nL0 = L0 base\n', folder=tmp_path)
    gptailor.check(plan)


def test_the_longest_chain_of_adapters_overflows_no_stack(tmp_path: Path) -> None:
    folders.model(tmp_path / "sound")
    folders.adapter(tmp_path / "adapter")
    chain = "".join(f'model m{n} = m{n - 1} + "./adapter"\n' for n in range(1, 40))
    text = f'tailor 1\nmodel base = "./sound"\nmodel m0 = base + "./adapter"\n{chain}L0 from m39\n'
    assert not errors(gptailor.check(gptailor.loads(text, folder=tmp_path)))
