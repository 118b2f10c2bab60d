"""Outputs with another tokenizer: each token's row, checked one by one; the other files."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptailor
from gptailor.cli.main import run
from gptailor.plan.faults import Fault, errors
from gptailor.plan.plan import Plan
from tests.checkpoint.test_vocabulary import sentencepiece
from tests.support.tiny import VOCABULARY, tiny_model

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ORDER = [*VOCABULARY]
SWAPPED = [*VOCABULARY[:3], *reversed(VOCABULARY[3:])]
EXTENDED = [*VOCABULARY, "<|im_start|>", "<|im_end|>"]
FEWER = [*VOCABULARY[:50]]
CHAT = {"eos_token_id": 64, "bos_token_id": 63, "pad_token_id": 5}


pytestmark = pytest.mark.usefixtures("no_progress_bars")


@dataclass(frozen=True)
class Made:
    """A model that a test made: the number of each of its tokens, and its tensors."""

    ids: Mapping[str, int]
    tensors: Mapping[str, Tensor]

    def row(self, where: str, token: str) -> Tensor | None:
        """The row of a token, in float32."""
        tensor = self.tensors.get(where, self.tensors[EMBED])
        number = self.ids.get(token)
        return tensor[number].float() if number is not None and number < len(tensor) else None


def model(
    root: Path,
    name: str,
    tokens: list[str] | None = None,
    *,
    rows: int = 64,
    family: str = "llama",
    **config: Any,
) -> Made:
    """Write a model; its tokenizer has these tokens in this order, or is missing without tokens."""
    seed = sorted(("base", "math", "chat")).index(name)
    folder = tiny_model(family, root / name, seed=seed, layers=2, vocab_size=rows, **config)
    path = folder / "tokenizer.json"
    if tokens is None:
        for file in folder.glob("tokenizer*"):
            file.unlink()
        return Made({}, load_file(folder / "model.safetensors"))
    ids = {token: number for number, token in enumerate(tokens)}
    document = json.loads(path.read_text())
    document["model"]["vocab"] = ids
    for entry in document["added_tokens"]:
        entry["id"] = ids[entry["content"]]
    document["added_tokens"] += [
        {**document["added_tokens"][0], "content": token, "id": ids[token]}
        for token in tokens
        if token.startswith("<|")
    ]
    path.write_text(json.dumps(document))
    (folder / "chat_template.jinja").write_text(f"{name} says: {{{{ messages }}}}")
    return Made(ids, load_file(folder / "model.safetensors"))


def checked(root: Path, text: str) -> tuple[Plan, list[Fault]]:
    """A plan over the models that are there, and its faults."""
    names = [name for name in ("base", "math", "chat") if (root / name).is_dir()]
    head = "".join(f'model {name} = "./{name}"\n' for name in names)
    path = root / "plan.tailor"
    path.write_text(f"tailor 1\n{head}{text}\n")
    plan = gptailor.load(path)
    return plan, [f for f in gptailor.check(plan) if f.code != "M303"]


def compiled(root: Path, text: str, *warnings: str) -> Mapping[str, Tensor]:
    """The tensors that a plan makes, which has these warnings and no other faults."""
    plan, faults = checked(root, text)
    assert [fault.code for fault in faults] == [*warnings]
    assert not errors(faults)
    gptailor.compile(plan, root / "out")
    return load_file(root / "out" / "model.safetensors")


def assert_rows(result: Tensor, owner: Made, rows: Mapping[str, Tensor]) -> None:
    """Each token's row is the one that is told; rows of no token are the owner's."""
    by_number = {owner.ids[token]: row for token, row in rows.items()}
    own = owner.tensors[EMBED if result.shape == owner.tensors[EMBED].shape else HEAD]
    assert len(result) == len(own)
    for number, row in enumerate(result):
        if number in by_number:
            assert torch.equal(row.float(), by_number[number]), f"row {number}"


def by_token(where: str, owner: Made, *models: Made) -> dict[str, Tensor]:
    """For each token of the owner of the tokenizer, the mean of the models' rows, or its own."""
    made = {}
    for token in owner.ids:
        own = owner.row(where, token)
        rows = [m.row(where, token) for m in models]
        rows = [own if row is None else row for row in rows]
        if all(row is not None for row in rows):
            made[token] = sum(row / len(rows) for row in rows if row is not None)
    return made


def assert_whole(root: Path, owner: str, size: int) -> Any:
    """The output loads, and all that goes with a tokenizer is that model's."""
    out = root / "out"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(root / owner).get_vocab()
    assert tokenizer.chat_template == f"{owner} says: {{{{ messages }}}}"
    config, theirs = (json.loads((f / "config.json").read_text()) for f in (out, root / owner))
    assert config["vocab_size"] == size
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config.get(key) == theirs.get(key), key
    generation = [f / "generation_config.json" for f in (out, root / owner)]
    assert generation[0].read_bytes() == generation[1].read_bytes()
    made = AutoModelForCausalLM.from_pretrained(out)
    assert made.get_input_embeddings().num_embeddings == size
    ids = tokenizer("stitch", return_tensors="pt").input_ids
    assert made(ids).logits.shape == (1, 6, size)
    return made


# ---------------------------------------------------------------------- the rows' models, token by
# token

VARIANTS: dict[str, tuple[list[str], int, tuple[str, ...]]] = {
    "same": (ORDER, 64, ()),
    "same, padded": (ORDER, 80, ()),
    "same, less padded": (ORDER, 63, ()),
    "extension": (EXTENDED, 65, ()),
    "extension within the padding": (EXTENDED, 72, ()),
    "permuted": (SWAPPED, 64, ("M307",)),
    "permuted, padded": (SWAPPED, 70, ("M307",)),
    "fewer": (FEWER, 64, ("M306",)),
    "fewer rows": (FEWER, 50, ("M306",)),
}
"""The other model's tokens, the rows of its embedding, the message if it gives the tokenizer."""


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tokenizer_brings_its_embedding_rows(variant: str, tied: bool, tmp_path: Path) -> None:
    tokens, rows, warnings = VARIANTS[variant]
    tie = {"tie_word_embeddings": tied}
    base = model(tmp_path, "base", ORDER, **tie)
    settings = CHAT if rows > 64 else {"eos_token_id": 4}
    chat = model(tmp_path, "chat", tokens, rows=rows, **settings, **tie)
    result = compiled(tmp_path, "tokenizer from chat", *warnings)
    for where in (EMBED,) if tied else (EMBED, HEAD):
        assert_rows(result[where], chat, by_token(where, chat, base))
        padding = torch.tensor([n for n in range(rows) if n >= len(tokens)], dtype=torch.long)
        ours = base.tensors[where] if variant == "same" else chat.tensors[where]
        assert torch.equal(result[where][padding], ours[padding])
    assert (HEAD in result) is not tied
    assert_whole(tmp_path, "chat", rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_put_in_the_base_s_order(variant: str, tmp_path: Path) -> None:
    tokens, rows, _ = VARIANTS[variant]
    base = model(tmp_path, "base", ORDER)
    chat = model(tmp_path, "chat", tokens, rows=rows)
    result = compiled(tmp_path, "embed from chat")
    assert_rows(result[EMBED], base, by_token(EMBED, base, chat))
    assert torch.equal(result[HEAD], base.tensors[HEAD])
    assert_whole(tmp_path, "base", 64)


def test_a_third_model_s_embedding_fits_the_tokenizer(tmp_path: Path) -> None:
    base = model(tmp_path, "base", ORDER)
    math = model(tmp_path, "math", SWAPPED, rows=66)
    chat = model(tmp_path, "chat", EXTENDED, rows=65)
    result = compiled(tmp_path, "tokenizer from chat; embed from math")
    assert_rows(result[EMBED], chat, by_token(EMBED, chat, math))
    assert_rows(result[HEAD], chat, by_token(HEAD, chat, base))
    assert_whole(tmp_path, "chat", 65)


def test_merged_rows_are_those_of_one_token(tmp_path: Path) -> None:
    base = model(tmp_path, "base", ORDER)
    math = model(tmp_path, "math", SWAPPED, rows=66)
    chat = model(tmp_path, "chat", EXTENDED, rows=65)
    text = (
        "tokenizer from chat; embed from math, base by linear(); head from base, chat by linear()"
    )
    result = compiled(tmp_path, text)
    assert_rows(result[EMBED], chat, by_token(EMBED, chat, math, base))
    assert_rows(result[HEAD], chat, by_token(HEAD, chat, base, chat))


def test_a_task_vector_is_taken_token_by_token(tmp_path: Path) -> None:
    base = model(tmp_path, "base", ORDER)
    math = model(tmp_path, "math", SWAPPED, rows=66)
    chat = model(tmp_path, "chat", EXTENDED, rows=65)
    text = "tokenizer from chat; embed from math, chat by task_arithmetic(0.5, 0.0)"
    result = compiled(tmp_path, text)[EMBED]
    theirs, ours = by_token(EMBED, chat, math), by_token(EMBED, chat, base)
    for token, number in chat.ids.items():
        wanted = ours[token] + 0.5 * (theirs[token] - ours[token])
        torch.testing.assert_close(result[number], wanted)


@pytest.mark.parametrize("asked", ["", "dtype bfloat16; ", "dtype float32; "])
def test_rows_of_several_dtypes(asked: str, tmp_path: Path) -> None:
    base = model(tmp_path, "base", ORDER, dtype="bfloat16")
    chat = model(tmp_path, "chat", EXTENDED, rows=65, dtype="float32")
    result = compiled(tmp_path, f"{asked}tokenizer from chat")
    dtype = torch.float32 if "32" in asked else torch.bfloat16
    for where in (EMBED, HEAD):
        assert result[where].dtype == dtype
        rows = {t: row.to(dtype).float() for t, row in by_token(where, chat, base).items()}
        assert_rows(result[where], chat, rows)


@pytest.mark.parametrize("ties", [(True, False), (False, True)], ids=["base", "chat"])
def test_a_tied_and_an_untied_model_exchange_rows(ties: tuple[bool, bool], tmp_path: Path) -> None:
    base = model(tmp_path, "base", ORDER, tie_word_embeddings=ties[0])
    chat = model(tmp_path, "chat", EXTENDED, rows=65, tie_word_embeddings=ties[1])
    result = compiled(tmp_path, "tokenizer from chat")
    assert (HEAD in result) is ties[1]
    for where in result.keys() & {EMBED, HEAD}:
        assert_rows(result[where], chat, by_token(where, chat, base))
    assert_whole(tmp_path, "chat", 65)


def test_positions_arent_tokens(tmp_path: Path) -> None:
    """GPT-2's embedding has rows for tokens and rows for positions."""
    base = model(tmp_path, "base", ORDER, family="gpt2")
    chat = model(tmp_path, "chat", EXTENDED, rows=65, family="gpt2", **CHAT)
    result = compiled(tmp_path, "tokenizer from chat")
    for number, token in enumerate(EXTENDED):
        whose = base if token in base.ids else chat
        row = whose.tensors["transformer.wte.weight"][number]
        assert torch.equal(result["transformer.wte.weight"][number], row)
    positions = "transformer.wpe.weight"
    assert torch.equal(result[positions], base.tensors[positions])
    assert_whole(tmp_path, "chat", 65)


@pytest.mark.parametrize(
    ("text", "tokens", "positions"),
    [
        ("L1 from chat", "base", "base"),
        ("head from chat", "chat", "base"),
        ("embed from chat", "chat", "chat"),
    ],
)
def test_positions_go_with_the_embedding(
    text: str, tokens: str, positions: str, tmp_path: Path
) -> None:
    made = {name: model(tmp_path, name, ORDER, family="gpt2") for name in ("base", "chat")}
    result = compiled(tmp_path, text)
    for where, name in (("wte", tokens), ("wpe", positions)):
        tensor = f"transformer.{where}.weight"
        assert torch.equal(result[tensor], made[name].tensors[tensor])


def test_settings_that_the_tokenizer_s_model_lacks_are_left_out(tmp_path: Path) -> None:
    model(tmp_path, "base", ORDER, pad_token_id=7)
    model(tmp_path, "chat", EXTENDED, rows=65)
    path = tmp_path / "chat" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "pad_token_id"}))
    compiled(tmp_path, "tokenizer from chat")
    assert "pad_token_id" not in json.loads((tmp_path / "out" / "config.json").read_text())


# ---------------------------------------------------------------------- other files of a tokenizer


def test_a_sentencepiece_model_gives_the_tokens(tmp_path: Path) -> None:
    base, chat = model(tmp_path, "base", ORDER), model(tmp_path, "chat", SWAPPED, rows=66)
    for name, tokens in (("base", ORDER), ("chat", SWAPPED)):
        (tmp_path / name / "tokenizer.json").unlink()
        (tmp_path / name / "tokenizer.model").write_bytes(sentencepiece(tokens))
    added = json.dumps({"<|x|>": 63, "<|y|>": 64})
    (tmp_path / "chat" / "added_tokens.json").write_text(added)
    result = compiled(tmp_path, "tokenizer from chat", "M307")
    for number, token in enumerate([*SWAPPED, "<|x|>", "<|y|>"]):
        row = base.row(EMBED, token)
        wanted = chat.tensors[EMBED][number] if row is None else row
        assert torch.equal(result[EMBED][number], wanted), token
    for name in ("tokenizer.model", "added_tokens.json"):
        out, theirs = tmp_path / "out" / name, tmp_path / "chat" / name
        assert out.read_bytes() == theirs.read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").exists()


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
def test_equal_vocabularies_with_different_added_tokens_differ(file: str, tmp_path: Path) -> None:
    base = model(tmp_path, "base", ORDER)
    chat = model(tmp_path, "chat", ORDER)
    path = tmp_path / "chat" / file
    if file == "added_tokens.json":
        path.write_text(json.dumps({"<|x|>": 63}))
    else:
        decoder = {"63": {"content": "<|x|>"}}
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings | {"added_tokens_decoder": decoder}))
    _, faults = checked(tmp_path, "L1 from chat")
    assert [fault.code for fault in faults] == ["M306"]
    assert "'<|x|>'" in faults[0].message
    result = compiled(tmp_path, "L1 from chat; tokenizer from chat")
    assert torch.equal(result[EMBED][:63], base.tensors[EMBED][:63])
    assert torch.equal(result[EMBED][63], chat.tensors[EMBED][63])


# ------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize(
    ("tokens", "code", "says"),
    [
        (ORDER, None, ""),
        (FEWER, None, ""),
        (None, None, ""),
        (EXTENDED[:-1], "M306", "'chat' has 1 token that .* lacks: '<|im_start|>'"),
        (EXTENDED, "M306", "2 tokens that .* lacks: '<|im_start|>' and '<|im_end|>'"),
        ([*ORDER, *"€£¥§"], "M306", "4 tokens that .*: '€', '£', '¥' and …"),
        (
            SWAPPED,
            "M307",
            "differs from the output's tokenizer in 60 tokens with other numbers: '#'",
        ),
        (
            [*SWAPPED[:3], *"€£¥"],
            "M307",
            "differs from the output's tokenizer in 3 tokens that it lacks: '€'",
        ),
    ],
)
def test_layers_of_a_model_with_other_tokens_give_a_warning(
    tokens: list[str] | None, code: str | None, says: str, tmp_path: Path
) -> None:
    model(tmp_path, "base", ORDER)
    model(tmp_path, "chat", tokens)
    _, faults = checked(tmp_path, "L1 from chat")
    assert [fault.code for fault in faults] == ([code] if code else [])
    for fault in faults:
        assert fault.severity == "warning"
        assert fault.at == ("models", "chat", "source")
        pattern = says.replace("|", r"\|")
        assert re.search(pattern, fault.message), fault.message


NFC = {"type": "NFC"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BLANKS = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]
METASPACE = {
    "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False,
}  # fmt: skip


def with_parts(folder: Path, **parts: Any) -> None:
    """Give a model's tokenizer another normalizer or pre-tokenizer, or merges."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"] |= {"merges": parts.pop("merges", [])}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = parts.pop("kind", "TokenizersBackend")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    path.write_text(json.dumps({**document, "normalizer": None, "pre_tokenizer": None, **parts}))


@pytest.mark.parametrize("text", ["L1 from chat", "L1 from chat\ntokenizer union"])
@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ({"normalizer": NFC}, {}, "with other normalizers"),
        ({"pre_tokenizer": BYTES}, {"pre_tokenizer": METASPACE}, "with other pre-tokenizers"),
        ({"merges": [["a", "b"]]}, {"merges": [["b", "a"]]}, "with other merges"),
        (
            {"merges": ["a b"], "normalizer": NFC},
            {"pre_tokenizer": BYTES},
            "with other merges, normalizers and pre-tokenizers",
        ),
        ({"kind": "GPT2Tokenizer"}, {"kind": "GPT2TokenizerFast", "pre_tokenizer": BYTES}, ""),
        ({"kind": "GPT2Tokenizer"}, {"pre_tokenizer": BYTES}, "with other pre-tokenizers"),
        ({"merges": ["a b"]}, {"merges": [["a", "b"]]}, ""),
        ({"padding": None}, {"padding": {"strategy": "BatchLongest"}, "truncation": {}}, ""),
        ({"post_processor": None}, {"post_processor": {"type": "ByteLevel"}}, ""),
        ({"normalizer": NFC}, {"normalizer": {"type": "Sequence", "normalizers": [NFC]}}, ""),
        ({"pre_tokenizer": BYTES}, {"pre_tokenizer": BYTES | {"trim_offsets": False}}, ""),
        (
            {"normalizer": {"type": "Sequence", "normalizers": BLANKS}},
            {"pre_tokenizer": METASPACE},
            "",
        ),
    ],
)
def test_equal_tokens_that_are_split_otherwise_are_a_warning(
    ours: dict[str, Any], theirs: dict[str, Any], says: str, text: str, tmp_path: Path
) -> None:
    for name, parts in (("base", ours), ("chat", theirs)):
        model(tmp_path, name, ORDER)
        with_parts(tmp_path / name, **parts)
    _, faults = checked(tmp_path, text)
    assert [fault.code for fault in faults] == (["M307"] if says else [])
    assert all(fault.message.endswith(says) and fault.severity == "warning" for fault in faults)


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "Qwen2Tokenizer", "GemmaTokenizer"])
def test_a_tokenizer_saved_again_by_transformers_splits_the_same(kind: str, tmp_path: Path) -> None:
    import transformers

    for name in ("base", "chat"):
        model(tmp_path, name, ORDER)
    special = {"unk_token": ORDER[0], "bos_token": ORDER[0], "eos_token": ORDER[0]}
    tokenizer = getattr(transformers, kind)(
        vocab={token: number for number, token in enumerate(ORDER)}, merges=[], **special,
        pad_token=ORDER[0], mask_token=None,
    )  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "base")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    again("a", padding="max_length", truncation=True, max_length=8)
    again.save_pretrained(tmp_path / "chat")
    assert (tmp_path / "base/tokenizer.json").read_bytes() != (
        tmp_path / "chat/tokenizer.json"
    ).read_bytes()
    _, faults = checked(tmp_path, "L1 from chat")
    assert [fault.code for fault in faults] == []


def test_control_characters_of_a_token_are_not_shown(tmp_path: Path) -> None:
    model(tmp_path, "base", ORDER)
    model(tmp_path, "chat", [*ORDER, "\x1b[2J"])
    _, faults = checked(tmp_path, "L1 from chat")
    assert r"\x1b" in faults[0].message
    assert "\x1b" not in faults[0].message


@pytest.mark.parametrize("unknown", ["base", "chat"])
@pytest.mark.parametrize("where", ["embed", "head"])
def test_unknown_vocabularies_must_be_of_equal_size(
    unknown: str, where: str, tmp_path: Path
) -> None:
    names = {name: None if name == unknown else ORDER for name in ("base", "chat")}
    model(tmp_path, "base", names["base"])
    chat = model(tmp_path, "chat", names["chat"])
    result = compiled(tmp_path, f"{where} from chat")
    name = EMBED if where == "embed" else HEAD
    assert torch.equal(result[name], chat.tensors[name])
    model(tmp_path, "chat", names["chat"], rows=72)
    _, faults = checked(tmp_path, f"{where} from chat")
    assert [fault.code for fault in faults] == ["M210"]
    assert "72 rows" in faults[0].message
    assert f"add the tokenizer of '{unknown}'" in faults[0].help


def test_a_task_vector_s_base_has_to_fit_too(tmp_path: Path) -> None:
    model(tmp_path, "base", None)
    for name in ("math", "chat"):
        model(tmp_path, name, EXTENDED, rows=65)
    text = "tokenizer from chat; head from chat; embed from math, chat by ties(0.5)"
    _, faults = checked(tmp_path, text)
    assert [fault.code for fault in faults] == ["M210"]


def test_a_tokenizer_from_a_model_without_one_is_a_fault(tmp_path: Path) -> None:
    model(tmp_path, "base", ORDER)
    model(tmp_path, "chat", None)
    _, faults = checked(tmp_path, "tokenizer from chat")
    assert [fault.code for fault in faults] == ["M211"]


def test_tokens_beyond_the_embedding_are_reported(tmp_path: Path) -> None:
    model(tmp_path, "base", ORDER)
    chat = model(tmp_path, "chat", EXTENDED, rows=64)
    _, faults = checked(tmp_path, "tokenizer from chat")
    assert [(fault.code, fault.severity) for fault in faults] == [("M308", "warning")]
    assert "1 token beyond its embedding's 64 rows: '<|im_end|>'" in faults[0].message
    result = compiled(tmp_path, "tokenizer from chat", "M308")
    assert result[EMBED].shape == chat.tensors[EMBED].shape


def test_a_token_beyond_a_model_s_rows_is_the_tokenizer_s(tmp_path: Path) -> None:
    base = model(tmp_path, "base", EXTENDED, rows=64)
    chat = model(tmp_path, "chat", EXTENDED, rows=65)
    result = compiled(tmp_path, "tokenizer from chat")
    assert torch.equal(result[EMBED][:64], base.tensors[EMBED])
    assert torch.equal(result[EMBED][64], chat.tensors[EMBED][64])


@pytest.mark.parametrize("broken", ["base", "chat"])
@pytest.mark.parametrize("file", ["tokenizer.json", "added_tokens.json"])
@pytest.mark.parametrize("text", ["L1 from chat", "embed from chat", "tokenizer from chat"])
def test_a_broken_tokenizer_is_a_fault(
    text: str, file: str, broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "chat"):
        model(tmp_path, name, ORDER)
    (tmp_path / broken / file).write_text('{"model": ')
    _, faults = checked(tmp_path, text)
    assert [(f.code, f.at) for f in faults] == [("C601", ("models", broken, "source"))]
    assert file in faults[0].message
    assert run(["compile", str(tmp_path / "plan.tailor"), "-o", str(tmp_path / "out")]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
