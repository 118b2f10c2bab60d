"""Folders that must be refused: indices, configurations, adapters and tokenizers that lie."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptailor.checkpoint.folder import INDEX
from tests.hostile.case import HostileFolder
from tests.hostile.headers import framed

LAYER = ("self_attn.q_proj", "mlp.up_proj")
NAMES = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
         *(f"model.layers.0.{name}.weight" for name in LAYER))  # fmt: skip
CONFIG = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 4, "num_attention_heads": 2}


def tensors(*names: str) -> bytes:
    """A safetensors file with a matrix of four floats under each name."""
    entries = {
        name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [16 * n, 16 * n + 16]}
        for n, name in enumerate(names)
    }
    return framed(json.dumps(entries), bytes(16 * len(names)))


def model(folder: Path, config: object = CONFIG, *names: str) -> Path:
    """A sound folder, apart from the given parts."""
    folder.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text, "utf-8")
    (folder / "model.safetensors").write_bytes(tensors(*(names or NAMES)))
    return folder


# ----------------------------------------------------------------------------------------- indices


def sharded(folder: Path, weight_map: object = None) -> Path:
    """A sound folder of two shards, apart from the index's map."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "one.safetensors").write_bytes(tensors("a"))
    (folder / "two.safetensors").write_bytes(tensors("b"))
    given = {"a": "one.safetensors", "b": "two.safetensors"} if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"weight_map": given}))
    return folder


Make = Callable[[Path], object]


def _mapped(file: object) -> Make:
    return lambda folder: sharded(folder, {"a": "one.safetensors", "b": file})


def _index(text: str | bytes) -> Make:
    def make(folder: Path) -> None:
        raw = text if isinstance(text, bytes) else text.encode("utf-8")
        (sharded(folder) / INDEX).write_bytes(raw)

    return make


def _instead(place: Callable[[Path], object]) -> Make:
    """Something else in the second shard's place."""

    def make(folder: Path) -> None:
        path = sharded(folder) / "two.safetensors"
        path.unlink()
        place(path)

    return make


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has some hundred bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _outside(folder: Path) -> None:
    (sharded(folder).parent / "outside.safetensors").write_bytes(tensors("b"))
    _mapped("../outside.safetensors")(folder)


TWO = "two.safetensors"

FOLDERS = (
    HostileFolder("up", _outside, "C106", INDEX, None, "reads what isn't the model's"),
    HostileFolder("up_and_down", _mapped("x/../two.safetensors"), "C106", INDEX, None,
                  "stays within by its name, and leaves if x is a link"),
    HostileFolder("absolute", _mapped("/etc/passwd"), "C106", INDEX, None, "joined, it replaces"),
    HostileFolder("no_name", _mapped(""), "C106", INDEX, None, "joined, it is the folder"),
    HostileFolder("dot", _mapped("."), "C106", INDEX, None, "the folder itself"),
    HostileFolder("nul", _mapped("two\0.safetensors"), "C106", INDEX, None,
                  "the system's names end there"),
    HostileFolder("surrogate", _mapped("\ud800"), "C105", INDEX, 46, "has no bytes at all"),
    HostileFolder("long", _mapped("n" * 5000), "C106", INDEX, None, "longer than names may be"),
    HostileFolder("terminal", _mapped("\x1b[2J"), "C106", INDEX, None,
                  "the message would clear the screen"),
    HostileFolder("number", _mapped(1), "C105", INDEX, None, "a path is made of a text"),
    HostileFolder("missing", _mapped("three.safetensors"), "C106", INDEX, None, "not downloaded"),
    HostileFolder("below_a_file", _mapped("one.safetensors/b"), "C106", INDEX, None,
                  "a file is no folder"),
    HostileFolder("itself", _mapped(INDEX), "C202", INDEX, 0, "JSON read as a header's length"),
    HostileFolder("configuration", _mapped("config.json"), "C202", "config.json", 0, "the same"),
    HostileFolder("folder", _instead(Path.mkdir), "C201", TWO, None, "reading it fails late"),
    HostileFolder("fifo", _instead(os.mkfifo), "C201", TWO, None, "opening it waits for ever"),
    HostileFolder("socket", _instead(_socket), "C201", TWO, None, "it can't be opened"),
    HostileFolder("device", _instead(lambda path: path.symlink_to("/dev/zero")), "C201", TWO, None,
                  "it never ends"),
    HostileFolder("terminal_device", _instead(lambda path: path.symlink_to("/dev/tty")), "C201",
                  TWO, None, "it waits for the keyboard"),
    HostileFolder("process", _instead(lambda path: path.symlink_to("/proc/self/mem")), "C202", TWO,
                  0, "a regular file of no size with terabytes in it"),
    HostileFolder("link_to_nothing", _instead(lambda path: path.symlink_to("gone")), "C106", INDEX,
                  None, "the cache lost its blob"),
    HostileFolder("link_to_itself", _instead(lambda path: path.symlink_to(path)), "C106", INDEX,
                  None, "following it never ends"),
    HostileFolder("other_shard", _instead(lambda path: path.write_bytes(tensors("c"))), "C107",
                  INDEX, None, "the index's tensor is not in it"),
    HostileFolder("in_two_shards", _instead(lambda path: path.write_bytes(tensors("b", "a"))),
                  "C107", TWO, None, "which counts?"),
    HostileFolder("twice_in_the_index",
                  _index('{"weight_map":{"a":"one.safetensors","a":"two.safetensors"}}'), "C107",
                  INDEX, 1, "which counts?"),
    HostileFolder("no_map", _index('{"weight_map":null}'), "C105", INDEX, None, "no map"),
    HostileFolder("empty", _index(b""), "C105", INDEX, 0, "an aborted download"),
    HostileFolder("cut", _index('{"weight_map":{"a"'), "C105", INDEX, 18, "an aborted download"),
    HostileFolder("latin1", _index(b'{"\xe9":1}'), "C105", INDEX, 2, "bytes that are no UTF-8"),
    HostileFolder("deep", _index('{"weight_map":' + "[" * 100_000), "C105", INDEX, 1,
                  "recursion overflows the stack"),
    HostileFolder("deep_beside", _index('{"a":1,"b":' + "[" * 500 + "]" * 500 + "}"), "C105", INDEX,
                  7, "read well, it overflows the stack when it is printed"),
)  # fmt: skip


# ---------------------------------------------------------------------------------- configurations


def _says(*without: str, **changes: Any) -> Make:
    config = {k: v for k, v in (CONFIG | changes).items() if k not in without}
    return lambda folder: model(folder, config)


def _text(text: str) -> Make:
    return lambda folder: model(folder, text)


def _raw(raw: bytes) -> Make:
    def make(folder: Path) -> None:
        (model(folder) / "config.json").write_bytes(raw)

    return make


CONFIGURATIONS = (
    HostileFolder("empty", _text(""), "C103", "config.json", 0, "an aborted download"),
    HostileFolder("list", _text("[1]"), "C103", "config.json", 0, "JSON, but no object"),
    HostileFolder("cut", _text('{"a": [1'), "C103", "config.json", 8, "an aborted download"),
    HostileFolder("latin1", _raw(b'{"\xe9": 1}'), "C103", "config.json", 2, "no UTF-8"),
    HostileFolder("long_int", _text('{"a": 1, "hidden_size": ' + "9" * 5000 + "}"), "C103",
                  "config.json", 9, "quadratic to convert"),
    HostileFolder("deep", _text('{"model_type": ' + '{"a": ' * 300 + "1" + "}" * 301), "C103",
                  "config.json", 1, "read well, it overflows the stack when it is printed"),
    HostileFolder("type_missing", _says("model_type"), "M204", "", None, "nothing says what it is"),
    HostileFolder("type_list", _says(model_type=["llama"]), "M204", "", None, "not hashable"),
    HostileFolder("layers_10_12", _says(num_hidden_layers=10**12), "M204", "", None,
                  "lists of a million million entries"),
    HostileFolder("layers_10_400", _says(num_hidden_layers=10**400), "M204", "", None,
                  "no range has so many"),
    HostileFolder("layers_0", _says(num_hidden_layers=0), "M204", "", None, "no model"),
    HostileFolder("layers_negative", _says(num_hidden_layers=-1), "M204", "", None, "no model"),
    HostileFolder("layers_true", _says(num_hidden_layers=True), "M204", "", None,
                  "in Python True == 1"),
    HostileFolder("layers_float", _says(num_hidden_layers=1.0), "M204", "", None,
                  "in Python 1.0 == 1"),
    HostileFolder("layers_text", _says(num_hidden_layers="1"), "M204", "", None, "no number"),
    HostileFolder("layers_nan", _says(num_hidden_layers=float("nan")), "M204", "", None,
                  "compares with nothing"),
    HostileFolder("layers_infinite", _text('{"model_type": "llama", "num_hidden_layers": 1e999}'),
                  "M204", "", None, "int() of it raises OverflowError"),
    HostileFolder("nested", _says(text_config={"num_hidden_layers": 1}), "M204", "", None,
                  "which configuration counts?"),
    HostileFolder("types_number", _says(layer_types=3), "M204", "", None, "not a list"),
    HostileFolder("types_short", _says(layer_types=[]), "M204", "", None, "no entry for L0"),
    HostileFolder("types_long", _says(layer_types=["full_attention"] * 50_000), "M204", "", None,
                  "more entries than layers"),
    HostileFolder("window_list", _says(model_type="gemma2", sliding_window=[4096]), "M204", "",
                  None, "not hashable"),
    HostileFolder("window_text", _says(model_type="gemma2", sliding_window="4096"), "M204", "",
                  None, "compared with a number it raises TypeError"),
    HostileFolder("steps_0", _says(model_type="qwen3_moe", decoder_sparse_step=0), "M204", "", None,
                  "a division by 0"),
    HostileFolder("dense_number", _says(model_type="qwen3_moe", mlp_only_layers=1), "M204", "",
                  None, "not a list"),
)  # fmt: skip
"""M204 is a fault of the plan: the folder is read, and its claim is impossible."""


# ---------------------------------------------------------------------------------------- adapters

SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
PAIR = tuple(f"{MODULE}.lora_{factor}.weight" for factor in "AB")


def adapter(folder: Path, settings: object = SETTINGS, names: tuple[str, ...] = PAIR) -> Path:
    """A sound adapter on the sound model, apart from the given parts."""
    folder.mkdir(exist_ok=True)
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "adapter_config.json").write_text(text, "utf-8")
    (folder / "adapter_model.safetensors").write_bytes(tensors(*names))
    return folder


def _sets(**changes: Any) -> Make:
    return lambda folder: adapter(folder, SETTINGS | changes)


def _names(*names: str) -> Make:
    return lambda folder: adapter(folder, SETTINGS, names)


def _fifo(folder: Path) -> None:
    (adapter(folder) / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")


OF = "adapter_config.json"
HOLDS = "adapter_model.safetensors"

ADAPTERS = (
    HostileFolder("settings_empty", lambda f: adapter(f, ""), "C401", OF, 0, "an aborted download"),
    HostileFolder("settings_list", lambda f: adapter(f, "[]"), "C401", OF, 0, "no object"),
    HostileFolder("settings_fifo", _fifo, "C401", OF, None, "opening it waits for ever"),
    HostileFolder("kind_list", _sets(peft_type=["LORA"]), "C401", OF, None, "not a text"),
    HostileFolder("rank_0", _sets(r=0), "C401", OF, None, "a division by 0"),
    HostileFolder("rank_10_4000", _sets(r=10**4000), "C401", OF, None, "no float is so large"),
    HostileFolder("rank_true", _sets(r=True), "C401", OF, None, "in Python True == 1"),
    HostileFolder("rank_null", _sets(r=None), "C401", OF, None, "not a number"),
    HostileFolder("alpha_10_4000", _sets(lora_alpha=10**4000), "C401", OF, None,
                  "float() of it raises OverflowError"),
    HostileFolder("alpha_nan", _sets(lora_alpha=float("nan")), "C401", OF, None,
                  "every weight becomes NaN"),
    HostileFolder("alpha_text", _sets(lora_alpha="2"), "C401", OF, None, "'2' * 2 is '22'"),
    HostileFolder("targets_object", _sets(target_modules={"a": 1}), "C401", OF, None, "no list"),
    HostileFolder("bias_list", _sets(bias=["none"]), "C401", OF, None, "not hashable"),
    HostileFolder("layers_negative", _sets(layers_to_transform=[-1]), "C401", OF, None,
                  "in Python the last"),
    HostileFolder("tokens_object", _sets(trainable_token_indices={"embed": {"0": 1}}), "C401", OF,
                  None, "not a list"),
    HostileFolder("flag_text", _sets(use_dora="false"), "C401", OF, None,
            "in Python 'false' is true"),
    HostileFolder("long_setting", _sets(**{"x" * 1_000_000: 1}), "C402", OF, None,
                  "looking for the nearest name takes memory by its length"),
    HostileFolder("pattern_open", _sets(rank_pattern={"(": 2}), "C401", OF, None, "no pattern"),
    HostileFolder("pattern_nested", _sets(rank_pattern={"(?:[a-z_.0-9]+)*x": 2}), "C402", OF, None,
                  "matching it takes time by the power of the name's length"),
    HostileFolder("pattern_stars", _sets(alpha_pattern={".*.*.*.*.*.*x": 2}), "C402", OF, None,
                  "the same, with less of a power"),
    HostileFolder("pattern_maybes", _sets(alpha_pattern={"a?" * 40 + "a" * 40: 2}), "C402", OF,
                  None, "the same, by maybes"),
    HostileFolder("pattern_choices", _sets(alpha_pattern={"(a|a)" * 40 + "b": 2}), "C402", OF, None,
                  "the same, by choices"),
    HostileFolder("deep", _sets(layers_pattern=json.loads("[" * 500 + "]" * 500)), "C401", OF, 77,
                  "read well, it overflows the stack when it is printed"),
    HostileFolder("half", _names(PAIR[0]), "C405", HOLDS, None, "a product of one factor"),
    HostileFolder("elsewhere", _names(*(name.replace(".0.", ".7.") for name in PAIR)), "C403",
                  HOLDS, None, "a layer that the model hasn't"),
    HostileFolder("name_long", _names("a." * 5000 + "lora_A.weight"), "C403", HOLDS, None,
                  "patterns take time by a name's length"),
    HostileFolder("same_place", _names(*PAIR, PAIR[0].removeprefix("base_model.model.")), "C403",
                  HOLDS, None, "which counts?"),
)  # fmt: skip
"""Refused when they are put on the sound model."""


# -------------------------------------------------------------------------------------- tokenizers


def _tokenizer(raw: str | bytes, name: str = "tokenizer.json") -> Make:
    def make(folder: Path) -> None:
        content = raw if isinstance(raw, bytes) else raw.encode("utf-8")
        (model(folder) / name).write_bytes(content)

    return make


TOKENIZER = "tokenizer.json"

TOKENIZERS = (
    HostileFolder("empty", _tokenizer(b""), "C601", TOKENIZER, None, "an aborted download"),
    HostileFolder("list", _tokenizer("[]"), "C601", TOKENIZER, None, "no object"),
    HostileFolder("deep", _tokenizer("[" * 100_000), "C601", TOKENIZER, None,
                  "recursion overflows the stack"),
    HostileFolder("latin1", _tokenizer(b'{"\xe9": 1}'), "C601", TOKENIZER, None, "no UTF-8"),
    HostileFolder("model_list", _tokenizer('{"model": [1]}'), "C601", TOKENIZER, None, "no object"),
    HostileFolder("vocab_text", _tokenizer('{"model": {"vocab": "ab"}}'), "C601", TOKENIZER, None,
                  "iterates like a list"),
    HostileFolder("vocab_pairs", _tokenizer('{"model": {"vocab": [[["a"], 0]]}}'), "C601",
                  TOKENIZER, None, "not hashable"),
    HostileFolder("id_negative", _tokenizer('{"model": {"vocab": {"a": -1}}}'), "C601", TOKENIZER,
                  None, "in Python the last row"),
    HostileFolder("id_true", _tokenizer('{"model": {"vocab": {"a": true}}}'), "C601", TOKENIZER,
                  None, "in Python True == 1"),
    HostileFolder("id_float", _tokenizer('{"model": {"vocab": {"a": 1.0}}}'), "C601", TOKENIZER,
                  None, "in Python 1.0 == 1"),
    HostileFolder("id_long", _tokenizer('{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}"), "C601",
                  TOKENIZER, None, "quadratic to convert"),
    HostileFolder("added_number", _tokenizer('{"added_tokens": 3}'), "C601", TOKENIZER, None,
                  "not a list"),
    HostileFolder("added_bare", _tokenizer('{"added_tokens": [{}]}'), "C601", TOKENIZER, None,
                  "a token without a text"),
    HostileFolder("pieces_beyond", _tokenizer(b"\x0a\xff\xff\xff\xff\x07", "tokenizer.model"),
                  "C601", "tokenizer.model", None, "a piece of two gigabytes"),
    HostileFolder("pieces_varint", _tokenizer(b"\x0a" + b"\xff" * 99, "tokenizer.model"), "C601",
                  "tokenizer.model", None, "a number without an end"),
    HostileFolder("pieces_latin1", _tokenizer(b"\x0a\x03\x0a\x01\xe9", "tokenizer.model"), "C601",
                  "tokenizer.model", None, "no UTF-8"),
)  # fmt: skip
"""Folders with a refused vocabulary."""
