"""PyTorch's `.bin` files: what torch saves is read, and whatever else a pickle says is not run."""

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import open_checkpoint
from gptailor.checkpoint.formats.pytorch import read_pickled
from gptailor.checkpoint.tensor import Pickled
from gptailor.program.load import load_tensor
from tests.support.tiny import tiny_model

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8,
          torch.uint8, torch.bool, torch.float8_e4m3fn, torch.uint16)  # fmt: skip


def assert_read(file: Path, expected: dict[str, Tensor]) -> None:
    """Names, dtypes, shapes and every byte."""
    result = read_pickled(file)
    assert list(result) == list(expected)
    for name, tensor in expected.items():
        value = load_tensor(result[name])
        assert (value.dtype, value.shape) == (tensor.dtype, tensor.shape), name
        ours, theirs = value.contiguous(), tensor.detach().contiguous()
        assert torch.equal(ours.view(-1).view(torch.uint8), theirs.view(-1).view(torch.uint8)), name


def refused(file: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pickled(file)
    assert caught.value.code == "C108"
    return caught.value.message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_is_read_where_it_lies(tmp_path: Path, protocol: int) -> None:
    tensors = {str(d): torch.arange(12).reshape(3, 4).to(d) for d in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 3), "one": torch.ones(1, 1)}
    torch.save(tensors, tmp_path / "w.bin", pickle_protocol=protocol)
    assert_read(tmp_path / "w.bin", tensors)
    assert all(tensor.form is None for tensor in read_pickled(tmp_path / "w.bin").values())


def test_views_are_read(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"whole": whole, "rows": whole[1:3], "turned": whole.T, "column": whole[:, 2:3],
               "wide": torch.ones(1).expand(5), "every": whole[::2]}  # fmt: skip
    torch.save(tensors, tmp_path / "w.bin")
    assert_read(tmp_path / "w.bin", tensors)
    forms = {n for n, t in read_pickled(tmp_path / "w.bin").items() if t.form is not None}
    assert forms == {"turned", "column", "wide", "every"}


def test_a_modules_state_and_parameters_are_read(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    torch.save(module.state_dict(), tmp_path / "w.bin")
    assert_read(tmp_path / "w.bin", dict(module.state_dict()))
    torch.save(OrderedDict(p=module.weight), tmp_path / "w.bin")
    assert_read(tmp_path / "w.bin", {"p": module.weight})


# ----------------------------------------------------------------------------------- hostile ones


class Calls:
    """Pickled, a call of something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def archive(file: Path, pickled: bytes, *, method: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    with zipfile.ZipFile(file, "w", method) as out:
        out.writestr("w/data.pkl", pickled)
        for name, content in more.items():
            out.writestr(f"w/{name.replace('_', '/')}", content)
    return file


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_never_runs(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "it-ran"
    hostile = {"a": Calls(os.system, f"touch {mark}")}
    torch.save({"a": torch.ones(1)}, tmp_path / "w.bin")
    file = archive(tmp_path / "x.bin", pickle.dumps(hostile, protocol=protocol))
    message = refused(file)
    assert not mark.exists()
    assert protocol == 0 or "system" in message


@pytest.mark.parametrize(
    "value",
    [
        [torch.ones(1)],
        {"state_dict": {"a": 1}},
        {1: 2},
        {"a": Calls(eval, "1")},
        {"a": Calls(getattr, "a", "b")},
        {"a": Calls(OrderedDict, [("a", 1)])},
        3,
    ],
)
def test_only_a_state_dict_is_read(tmp_path: Path, value: object) -> None:
    pickled = pickle.dumps(value, protocol=2) if not isinstance(value, list) else b"\x80\x02]."
    refused(archive(tmp_path / "x.bin", pickled))


@pytest.mark.parametrize(
    "pickled",
    [b"", b"\x80\x02", b"\x80\x02}", b".", b"\x80\x02s.", b"\x80\x02h\x09.", b"\x80\x02u.",
     b"\x80\x02r\xff\xff\xff\x7f.", b"\x80\x02ctorch\nload\n.", b"\x80\x02X\xff\xff\xff\xff",
     b"\x80\x02" + b"(" * 9999 + b".", b"\x80\x02)" + b"\x85" * 99999 + b"."],
)  # fmt: skip
def test_damaged_pickles_are_refused(tmp_path: Path, pickled: bytes) -> None:
    refused(archive(tmp_path / "x.bin", pickled))


def rebuilt(key: str, count: int, offset: Any, shape: Any, strides: Any) -> bytes:
    """The pickle of a dictionary with one tensor, made by hand."""

    class Storage:
        """An object that is pickled by its id."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("storage", torch.FloatStorage, key, "cpu", count) if obj is held else None

    held = Storage()
    out = io.BytesIO()
    call = Calls(torch._utils._rebuild_tensor_v2, held, offset, shape, strides, False, None)
    Pickler(out, 2).dump({"a": call})
    return out.getvalue()


def test_tensors_lie_within_their_storage(tmp_path: Path) -> None:
    data = {"data_0": bytes(24)}
    good = archive(tmp_path / "w.bin", rebuilt("0", 6, 0, (2, 3), (3, 1)), **data)
    assert load_tensor(read_pickled(good)["a"]).equal(torch.zeros(2, 3))
    for wrong in [
        ("1", 6, 0, (2, 3), (3, 1)),
        ("../data.pkl", 6, 0, (2, 3), (3, 1)),
        ("0", 6, 1, (2, 3), (3, 1)),
        ("0", 6, 0, (2, 3), (4, 1)),
        ("0", 6, -1, (2, 3), (3, 1)),
        ("0", 6, 0, (2, 3), (3,)),
        ("0", 6, 0, (-2, -3), (3, 1)),
        ("0", 6, 0, (2**61, 2**61), (1, 1)),
        ("0", 6, 0.0, (2, 3), (3, 1)),
    ]:
        refused(archive(tmp_path / "x.bin", rebuilt(*wrong), **data))


def test_archives_that_torch_never_writes_are_refused(tmp_path: Path) -> None:
    good = rebuilt("0", 6, 0, (2, 3), (3, 1))
    packed = archive(tmp_path / "x.bin", good, method=zipfile.ZIP_DEFLATED, data_0=bytes(24))
    assert "compressed" in refused(packed)
    assert "byte order" in refused(archive(packed, good, data_0=bytes(24), byteorder=b"big"))
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("other", b"")
    assert "data.pkl" in refused(packed)
    torch.save({"a": torch.ones(3)}, packed, _use_new_zipfile_serialization=False)
    assert "isn't a zip archive" in refused(packed)
    packed.write_bytes(b"")
    refused(packed)


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "w.bin")
    whole = (tmp_path / "w.bin").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "x.bin").write_bytes(whole[:length])
        refused(tmp_path / "x.bin")


# -------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two models as safetensors, as one `.bin` file, and in two."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "math")):
        folder = tiny_model("llama", root / name, seed=seed, layers=4)
        tensors = load_file(folder / "model.safetensors")
        turned = {n: t.T.contiguous().T if "q_proj" in n else t for n, t in tensors.items()}
        for kind in ("bin", "bins"):
            (root / f"{name}-{kind}").mkdir()
            for path in folder.iterdir():
                if path.suffix != ".safetensors":
                    (root / f"{name}-{kind}" / path.name).hardlink_to(path)
        torch.save(turned, root / f"{name}-bin" / "pytorch_model.bin")
        _shards(root / f"{name}-bins", turned)
    return root


def _shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = sorted(tensors)
    files = {n: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, n in enumerate(names)}
    for file in set(files.values()):
        torch.save({n: tensors[n] for n in names if files[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


PLAN = """tailor 1
model base = "./base{0}"
model math = "./math{0}"
L0 from math
drop L1
L2 from base, math by ties(0.5)
scale L0 by 0.5
"""


@pytest.mark.parametrize("kind", ["-bin", "-bins"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_pickle_compiles_to_the_same_tensors(
    models: Path, tmp_path: Path, kind: str, dtype: str | None
) -> None:
    for name, suffix in (("a", ""), ("b", kind)):
        plan = gptailor.loads(PLAN.format(suffix), folder=models)
        gptailor.compile(plan, tmp_path / name, dtype=dtype)
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype
        assert tensor.equal(b[name]), name
    turned = open_checkpoint(models / f"base{kind}").tensors[
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert isinstance(turned.form, Pickled)


def test_safetensors_win(models: Path, tmp_path: Path) -> None:
    for path in (models / "base").iterdir():
        (tmp_path / path.name).hardlink_to(path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    assert open_checkpoint(tmp_path).files == (tmp_path / "model.safetensors",)


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 3).T}, tmp_path / "w.bin")
    info = read_pickled(tmp_path / "w.bin")["a"]
    torch.save({"a": torch.ones(2, 2).T}, tmp_path / "w.bin")
    with pytest.raises(CheckpointError) as caught:
        load_tensor(info)
    assert caught.value.code == "C304"
    (tmp_path / "w.bin").write_bytes(b"gone")
    with pytest.raises(CheckpointError) as caught:
        load_tensor(info)
    assert caught.value.code == "C108"
