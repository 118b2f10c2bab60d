"""Readers of bytes from anywhere: each of them takes or refuses them.

`tests/end_to_end/test_fuzz.py` draws them by Hypothesis, `benchmarks/fuzz.py` by atheris.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptailor.checkpoint.families.layout import Layout, layer_entries, layout_of, moved_config
from gptailor.checkpoint.folder import INDEX, open_checkpoint
from gptailor.checkpoint.formats.gguf.reader import open_gguf
from gptailor.checkpoint.formats.lora_config import read_settings
from gptailor.checkpoint.formats.pytorch import read_pickled
from gptailor.checkpoint.formats.safetensors import read_header
from gptailor.lang.format import format_plan
from gptailor.lang.parse import read_bytes
from gptailor.plan.faults import TailorError, errors, to_text
from gptailor.plan.plan import Plan
from tests.hostile import folders, ggufs, headers, pickles
from tests.hostile.case import Hostile, HostileFolder

CUT = b"\n---\n"
"""The separator between the files of a folder, for targets that take a folder."""


def header(raw: bytes, folder: Path) -> None:
    """A safetensors file: read tensors lie within it, and don't overlap."""
    path = folder / "x.safetensors"
    path.write_bytes(raw)
    end = 0
    for name, info in read_header(path).items():
        assert name == info.spec.name
        assert end in {0, info.offset}
        end = info.offset + info.spec.size
        assert 8 <= info.offset <= end <= len(raw)


def source(raw: bytes, folder: Path) -> None:
    """A folder: an index, two shards and a configuration."""
    pieces = [*raw.split(CUT), b"", b"", b""]
    for name, content in zip((INDEX, "one.st", "two.st", "config.json"), pieces, strict=False):
        (folder / name).write_bytes(content)
    result = open_checkpoint(folder)
    assert all(info.file in result.files for info in result.tensors.values())


def gguf(raw: bytes, folder: Path) -> None:
    """A GGUF file; its configuration is JSON, and its tensors lie within it."""
    path = folder / "x.gguf"
    path.write_bytes(raw)
    config, tensors = open_gguf(path)
    json.dumps(config, allow_nan=False)
    assert all(0 < info.offset <= len(raw) for info in tensors.values())


def pickle(raw: bytes, folder: Path) -> None:
    """A `.bin` file, or a pickle that is put into one; plain tensors lie within the file."""
    path = folder / "x.bin"
    path.write_bytes(raw if raw.startswith(b"PK") else pickles.archive(raw))
    size = path.stat().st_size
    for info in read_pickled(path).values():
        end = info.offset + (info.spec.size if info.form is None else 0)
        assert 0 < info.offset <= end <= size


def parser(raw: bytes, folder: Path) -> None:
    """A plan as text; one without faults is written and read again as the same."""
    plan, faults = read_bytes(raw, "fuzz.tailor", folder)
    for fault in faults:
        to_text(fault).encode("utf-8")
    if plan is not None and not errors(faults):
        _same_again(plan, folder)


def _same_again(plan: Plan, folder: Path) -> None:
    again, faults = read_bytes(format_plan(plan).encode("utf-8"), "fuzz.tailor", folder)
    assert not errors(faults)
    assert again == plan


def plan_json(raw: bytes, folder: Path) -> None:
    """A plan in JSON."""
    parser(b"{" + raw.removeprefix(b"{"), folder)


def config(raw: bytes, folder: Path) -> None:
    """A configuration, and an adapter's."""
    folders.model(folder)
    (folder / "config.json").write_bytes(raw)
    (folder / "adapter_config.json").write_bytes(raw)
    try:
        read_settings(folder)
    except TailorError as error:
        str(error).encode("utf-8")
    result = open_checkpoint(folder)
    layout = layout_of(result.config, result.tensors)
    if isinstance(layout, Layout):
        moved_config(layout, result.config, 2 * layer_entries(layout, result.config))


@dataclass(frozen=True)
class Target:
    """Something that takes bytes, examples of them, and the words that they consist of."""

    run: Callable[[bytes, Path], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()

    def once(self, raw: bytes, folder: Path) -> bool:
        """Return True if the bytes were taken, False if a printable message refused them."""
        try:
            self.run(raw, folder)
        except TailorError as error:
            str(error).encode("utf-8")
            return False
        return True


def _small(files: Iterable[HostileFolder | Hostile]) -> tuple[bytes, ...]:
    contents = (f.content for f in files if isinstance(f, Hostile))
    return tuple(content for content in contents if len(content) < 4000)


SHARDS = CUT.join((
    b'{"weight_map":{"a":"one.st","b":"two.st"}}', folders.tensors("a"), folders.tensors("b"),
    b'{"model_type": "llama"}',
))  # fmt: skip
TEXT = b"""tailor 1
model base = "./base"
model math = base + "org/name" @ "main"
L0..L3, L5.mlp from any of base, math by ties(0.3..0.5)
tied merge(L7 base, L7 math, one of (0.3, 0.5))
maybe drop L8..L9
drop any 2 of L10..L12
scale L13 by 0.5
bridge after L14 from "./text"
embed from math
search { objective perplexity("./text"); trials 3 }
"""
PLAN = json.dumps({
    "models": {"base": {"source": "./base"}, "math": {"source": "./math"}},
    "layers": [{"position": 1, "recipe": {"merge": [{"model": "base", "layer": 1},
                {"model": "math", "layer": 1}], "by": {"name": "slerp",
                "arguments": {"t": {"interval": [0.2, 0.5]}}}}}],
    "drops": [{"position": 2}], "scales": [{"position": 3, "factor": 0.5}],
}).encode()  # fmt: skip
STACK = b'tailor 1\nmodel base = "./b"\nstack { L0..L2 base; maybe L1 base; limit 3 layers }\n'
FAMILIES = ("llama", "gemma2", "gemma3_text", "qwen3_moe", "deepseek_v3", "smollm3", "mystery")

JSON = (b'"', b"{", b"}", b"[", b"]", b"null", b"true", b"NaN", b"1e999", b"-1", b"\\ud800")
FIELDS = (b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"BF16"')

TARGETS: Mapping[str, Target] = {
    "header": Target(header, (headers.several((0, 4), (4, 6), size=6), *_small(headers.HOSTILE)),
                     JSON + FIELDS),
    "source": Target(source, (SHARDS,), (*JSON, *FIELDS, CUT, b"../", b"config.json")),
    "gguf": Target(gguf, (ggufs.llama(), *_small(ggufs.HOSTILE)), (b"llama", b"GGUF", b"blk.0.")),
    "pickle": Target(pickle, (pickles.GOOD, pickles.state(pickles.rebuilt()),
                              *_small(pickles.HOSTILE)), (b"ctorch\n", b"_rebuild_tensor_v2\n")),
    "parser": Target(parser, (TEXT, STACK), (b"from", b"merge(", b"L1", b" by ", b"maybe ", b"..")),
    "plan-json": Target(plan_json, (PLAN,), (*JSON, b'"one_of"', b'"interval"', b'"stack"')),
    "config": Target(config, (
        json.dumps(folders.SETTINGS | {"rank_pattern": {"q_proj": 4}}).encode(),
        *(json.dumps(folders.CONFIG | {"model_type": family}).encode() for family in FAMILIES),
    ), (*JSON, b'"sliding_window"', b'"layer_types"', b'"mlp_only_layers"')),
}  # fmt: skip
