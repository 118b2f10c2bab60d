"""A GGUF file as a checkpoint: its configuration and tensors as Hugging Face names them.

llama.cpp has permuted the rows of Llama's query and key projections; that is undone when they are
loaded. An unknown key or tensor of a file is refused by name, and never ignored.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.formats.gguf.architectures import (
    ARCHITECTURES,
    COUNTS,
    EPSILONS,
    EXPERT_SHAPES,
    HEAD_NORMS,
    LOCAL_BASE_KEY,
    PATTERN_KEY,
    SHAPES,
    WINDOW_KEY,
    is_norm,
)
from gptailor.checkpoint.formats.gguf.file_facts import (
    FREQUENCIES,
    ROTARY_KEYS,
    FileFacts,
    read_rotary,
)
from gptailor.checkpoint.formats.gguf.header import Header, read_gguf
from gptailor.checkpoint.formats.gguf.kinds import KINDS
from gptailor.checkpoint.tensor import Dequantised, TensorInfo, TensorSpec
from gptailor.plan.faults import listed

_KNOWN = COUNTS.keys() | {
    "vocab_size", "attention.key_length", "attention.value_length", "expert_count",
    "expert_used_count",
}  # fmt: skip
"""The keys that are read of every architecture."""

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Return the configuration and the tensors as Hugging Face has them; no weight is read."""
    return _File(read_gguf(path)).checkpoint()


@final
class _File(FileFacts):
    """A GGUF file of a known architecture."""

    def __init__(self, header: Header) -> None:
        name = header.facts.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            known = listed(map(quoted, ARCHITECTURES))
            raise CheckpointError(
                "C109",
                f"has the architecture {quoted(str(name))}",
                header.path,
                f"gptailor reads {known}",
            )
        if header.facts.get("split.count", 1) not in {0, 1}:
            raise CheckpointError(
                "C109",
                "is one of several parts of a model",
                header.path,
                "join the parts with `llama-gguf-split --merge`",
            )
        super().__init__(header, name)
        self.tensors = header.tensors
        self.experts = self.count("expert_count") if self.fact("expert_count") else 0
        own = ARCHITECTURES[name]
        shown = [
            row for sign, row in own.variants.items() if self.fact(sign) or sign in self.tensors
        ]
        self.architecture = own = (*shown, own)[0]
        present = {key for key in own.stems if self.has(f"{key}.weight")}
        without = {key for group in own.optional if not group & present for key in group}
        self.stems = {key: stem for key, stem in own.stems.items() if key not in without}
        """The tensors of a layer, without the optional groups that the file lacks."""
        self._check_keys()
        self._check_heads()
        layer = [key for key in self.stems if not is_norm(key)]
        self.biased = frozenset(key for key in layer if self.has(f"{key}.bias"))
        """The projections that have a bias."""
        if self.biased not in own.biased:
            names = listed(sorted(self.biased)) or "no projection"
            self.refuse(f"{names} of its first layer has a bias, which '{name}' can't have")

    def _check_keys(self) -> None:
        name, known = self.name, _KNOWN | self.architecture.keys
        known |= ROTARY_KEYS if self.architecture.rotated != "none" else frozenset()
        for key in self.header.facts:
            if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in known:
                self.refuse(f"has the unknown key {quoted(key)}")
        if self.experts and "ffn_gate_exps" not in self.stems:
            self.refuse(f"has {self.experts} experts, which '{name}' can't have")

    def _check_heads(self) -> None:
        hidden, heads, kv, head = self.hidden, self.heads, self.kv, self.head
        for key in ("attention.value_length", "rope.dimension_count"):
            count = self.count(key, head)
            part = self.architecture.rotated == "some" and key.startswith("rope.")
            if count > head or count % 2 or (count != head and not part):
                self.refuse(f"'{self.name}.{key}' is {count}, but a head has {head}")
        if heads % kv or head % 2:
            self.refuse(f"has {heads} heads of {head} for {kv} of keys and values")
        if "square" in self.architecture.traits and heads * head != hidden:
            wide = f"{heads} heads of {head}"
            self.refuse(f"has {wide} and hidden states of {hidden}, which {self.name!r} can't have")

    # ------------------------------------------------------------------------------------ tensors

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        """Return the configuration and the tensors, after a check of all names and shapes."""
        shapes = dict(self._shapes())
        for name, shape in shapes.items():
            if name not in self.tensors:
                self.refuse(f"has no tensor {quoted(name)}, which its architecture needs")
            row = name.endswith("_inp_shexp.weight")  # of one row, which some write without it
            if self.tensors[name].spec.shape not in {shape, shape[1:] if row else shape}:
                actual = list(self.tensors[name].spec.shape)
                self.refuse(f"{quoted(name)} has the shape {actual}, expected {list(shape)}")
        if extra := sorted(self.tensors.keys() - shapes.keys() - {FREQUENCIES}):
            self.refuse(f"has the unknown tensor {quoted(extra[0])} for '{self.name}'")
        entries = [entry for entry in self.tensors.values() if entry.spec.name in shapes]
        infos = (info for entry in entries for info in self._tensors_of(entry))
        tensors = {info.spec.name: info for info in infos}
        return self._config(tensors), tensors

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the names and shapes of all tensors that the file must have."""
        own, sizes = self.architecture, self._sizes()
        words = {**SHAPES, **(EXPERT_SHAPES if self.experts else {}), **own.shapes}

        def shape(key: str) -> tuple[int, ...]:
            return tuple(sizes[word] for word in words.get(key, "hidden").split())

        for stem in own.rest:
            if stem != "output" or "output.weight" in self.tensors:
                yield f"{stem}.weight", shape(stem)
        biased = set(self.biased)
        if "norm_biases" in own.traits:
            biased |= {key for key in self.stems if is_norm(key)} - HEAD_NORMS
            yield "output_norm.bias", shape("output_norm")
        for layer in range(min(self.layers, len(self.tensors) + 1)):
            for key in self.stems:
                yield f"blk.{layer}.{key}.weight", shape(key)
            for key in sorted(biased):
                yield f"blk.{layer}.{key}.bias", shape(key)[:1]

    def _sizes(self) -> dict[str, int]:
        """Return the sizes of the model, by the words of `SHAPES`."""
        embedding = self.tensors.get("token_embd.weight")
        q, kv = self.heads * self.head, self.kv * self.head
        sizes = {
            "rows": next(iter(embedding.spec.shape), 0) if embedding is not None else 0,
            "hidden": self.hidden, "head": self.head, "heads": self.heads, "kvs": self.kv,
            "q": q, "kv": kv, "qkv": q + 2 * kv, "wide": self.wide, "wide+wide": 2 * self.wide,
        }  # fmt: skip
        if "position_embd" in self.architecture.rest:
            sizes["context"] = self.count("context_length")
        if self.experts:
            for word in ("expert", "expert_shared"):
                sizes[word] = self.count(f"{word}_feed_forward_length", self.wide)
        return sizes | {"experts": self.experts, "one": 1}

    def _tensors_of(self, entry: TensorInfo) -> Iterator[TensorInfo]:
        """Yield a tensor in Hugging Face's form, or each matrix of a tensor of experts."""
        spec = entry.spec
        stem, _, kind = spec.name.rpartition(".")
        if stem in self.architecture.rest:
            yield self._tensor(entry, f"{self.architecture.rest[stem]}.{kind}", stem)
            return
        _, number, key = stem.split(".")
        name = f"{self.architecture.prefix}{number}.{self.stems[key]}.{kind}"
        each = "experts." if key.endswith("_exps") else ""
        if name.endswith("_layernorm.weight") and key in HEAD_NORMS:
            name, each = name.replace("layernorm.", "layernorm.norms."), "norms."
        if not each:
            shape = (1, *spec.shape) if key.endswith("_inp_shexp") else spec.shape
            yield self._tensor(replace(entry, spec=replace(spec, shape=shape[-2:])), name, key)
            return
        matrix = replace(spec, shape=spec.shape[1:])
        for n in range(spec.shape[0]):
            part = TensorInfo(matrix, entry.file, entry.offset + n * matrix.size)
            yield self._tensor(part, name.replace(each, f"{each}{n}."), key)

    def _tensor(self, entry: TensorInfo, name: str, key: str) -> TensorInfo:
        traits, shape = self.architecture.traits, entry.spec.shape
        heads = {"attn_q": self.heads, "attn_k": self.kv} if "permuted" in traits else {}
        # A single group is in order.
        grouped = "grouped" in traits and key == "attn_qkv" and self.kv > 1
        form = Dequantised(
            entry.spec.dtype,
            heads.get(key, 0),
            -1.0 if "shifted" in traits and is_norm(key) else 0.0,
            (self.heads, self.kv) if grouped else None,
            transposed="transposed" in traits and key in self.stems and len(shape) > 1,
        )
        plain = KINDS[entry.spec.dtype].plain
        spec = TensorSpec(name, plain or "F32", shape[::-1] if form.transposed else shape)
        same = plain and form == Dequantised(entry.spec.dtype)
        return TensorInfo(spec, entry.file, entry.offset, None if same else form)

    # ------------------------------------------------------------------------------ configuration

    def _config(self, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
        own = self.architecture
        vocabulary = self.tensors["token_embd.weight"].spec.shape[0]
        specs = [tensor.spec for tensor in tensors.values()]
        matrices = {spec.dtype for spec in specs if len(spec.shape) > 1}
        config: dict[str, Any] = {
            "architectures": [own.model_class],
            "attention_dropout": 0.0,
            # The dtype of all matrices, if they are plain and of one dtype.
            "dtype": _DTYPES[matrices.pop()] if len(matrices) == 1 else "float32",
            "model_type": own.model_type,
            own.epsilon: self.real(EPSILONS[own.epsilon]),
            "num_key_value_heads": self.kv,
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "use_cache": True,
            "vocab_size": vocabulary,
            **dict.fromkeys(own.activation_keys, own.activation),
        }
        config |= {name: self.count(key) for key, name in COUNTS.items() if name not in config}
        config |= {} if "square" in own.traits else {"head_dim": self.head}
        for usual, name in own.renamed.items():
            value = config.pop(usual)
            config |= {} if name is None else {name: value}
        config |= {} if own.rotated == "none" else self._rotary()
        config |= deepcopy(dict(own.constants)) | self._numbers() | self._layer_types()
        ids = {
            f"{name}_token_id": self.header.facts.get(f"tokenizer.ggml.{key}_token_id")
            for name, key in SPECIAL_TOKENS.items()
            if name != "unk"
        }
        ids = {key: n for key, n in ids.items() if type(n) is int and 0 <= n < vocabulary}
        present = {key: self.has(*names) for key, names in own.present.items()}
        return dict(sorted((config | present | own.settings(self) | ids).items()))

    def _numbers(self) -> dict[str, int | float]:
        own = self.architecture
        numbers: dict[str, int | float] = {
            number.name: self.count(number.key)
            if number.whole
            else self.real(number.key, number.default)
            for number in own.numbers
            if not number.optional or self.fact(number.key) is not None
        }
        if own.layers_of_27b:
            is_27b = self.layers == own.layers_of_27b
            scalar = self.hidden // self.heads if is_27b else self.head
            numbers["query_pre_attn_scalar"] = scalar
        return numbers

    def _layer_types(self) -> dict[str, Any]:
        windows = self.architecture.windows
        if windows is None:
            return {}
        if windows.apart and self.fact(WINDOW_KEY) is None:
            return {"layer_types": ["full_attention"] * self.layers}
        pattern = self.fact(PATTERN_KEY)
        if not isinstance(pattern, tuple):
            period = self.count(PATTERN_KEY, windows.period)
            pattern = tuple((number + 1) % period != 0 for number in range(self.layers))
        elif len(pattern) != self.layers or not all(each in (0, 1) for each in pattern):
            self.refuse(f"expected a list of {self.layers} booleans for '{PATTERN_KEY}'")
        types = ["sliding_attention" if each else "full_attention" for each in pattern]
        return {"layer_types": types, "sliding_window": self.count(WINDOW_KEY)}

    def _rotary(self) -> dict[str, Any]:
        """Return the rotary embeddings under today's key and the older ones.

        Some programs know the older keys alone. A program that knows neither assumes 10 000 for a
        missing base, without a message.
        """
        rope, windows = read_rotary(self), self.architecture.windows
        theta = rope["rope_theta"]
        config: dict[str, Any] = {"rope_parameters": dict(rope), "rope_theta": theta}
        if rope["rope_type"] != "default":
            config["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
        if windows is not None and windows.apart:
            base = self.real(LOCAL_BASE_KEY, windows.local_base or theta)
            local = {"rope_theta": base, "rope_type": "default"}
            config["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
            if windows.local_base is not None:
                config["rope_local_base_freq"] = base
        return config


SPECIAL_TOKENS: Mapping[str, str] = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding",
}  # fmt: skip
"""The special tokens by their names in a configuration, and GGUF's names."""

NORMAL, UNKNOWN, CONTROL, DEFINED, UNUSED, BYTE = range(1, 7)
"""The kinds of tokens."""

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Patterns of the tokenizers of Qwen 2, Llama 3 and Mistral."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_SPLIT = (_GPT2,)
DIGITS_SPLIT = (r"\p{N}", _GPT2)
"""Patterns that transformers has as steps of their own: `ByteLevel`, and `Digits` before it."""


@final
@dataclass(frozen=True)
class Split:
    """A way to split a text: regular expressions, applied in turn.

    `whole`: a word that is a token stays whole, and a text begins with a token by default.
    `written`: the name in written files for a tokenizer that splits so.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    written: bool = False


SPLITS: Mapping[str, Split] = {
    "smollm": Split(DIGITS_SPLIT, written=True),
    "starcoder": Split(DIGITS_SPLIT),
    "refact": Split(DIGITS_SPLIT),
    "command-r": Split(DIGITS_SPLIT),
    "gpt-2": Split(GPT2_SPLIT, written=True),
    "mpt": Split(GPT2_SPLIT),
    "olmo": Split(GPT2_SPLIT),
    "falcon": Split((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "qwen2": Split((QWEN_SPLIT,), written=True),
    "stablelm2": Split((QWEN_SPLIT,)),
    "llama-bpe": Split((LLAMA3_SPLIT,), whole=True, written=True),
    "llama3": Split((LLAMA3_SPLIT,), whole=True),
    "dbrx": Split((LLAMA3_SPLIT,)),
    "smaug-bpe": Split((LLAMA3_SPLIT,), written=True),
    "tekken": Split((TEKKEN_SPLIT,), whole=True, written=True),
}
"""All names that are read; a file is written under the names that are marked."""
