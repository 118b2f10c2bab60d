"""A GGUF file as a checkpoint: Hugging Face's configuration and tensor names for what it holds.

llama.cpp has permuted the rows of Llama's query and key projections; that is undone when they are
loaded. What a file says and is not known here is refused by name, and never ignored.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, final

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted, read_exactly, shown
from gptailor.checkpoint.formats.gguf_architectures import (
    ARCHITECTURES,
    FALCON_40B,
    MIXTRAL,
    OLMO_3,
)
from gptailor.checkpoint.formats.gguf_header import GgufTensor, GgufValue, Header, read_gguf
from gptailor.checkpoint.formats.gguf_names import FREQUENCIES
from gptailor.checkpoint.tensor import Dequantised, TensorInfo, TensorSpec
from gptailor.plan.faults import listed

_KNOWN = frozenset({
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "expert_count", "expert_used_count",
})  # fmt: skip
"""What is said of an architecture, and understood here."""
_ROTARY = frozenset({
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor",
})  # fmt: skip
"""The same, where something is rotated."""
_YARN = {
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
"""What llama.cpp's converter says of YaRN as the model has it."""
_HEAD_NORMS = frozenset({"attn_q_norm", "attn_k_norm"})

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """The configuration and the tensors, both as Hugging Face has them; no weight is read."""
    return _File(read_gguf(path)).checkpoint()


@final
class _File:
    """A GGUF file of a known architecture."""

    def __init__(self, header: Header) -> None:
        self.facts = header.facts
        self.path = header.path
        self.tensors = header.tensors
        name = header.facts.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            known = listed(map(quoted, ARCHITECTURES))
            self.refuse(f"is of the architecture {quoted(str(name))}", f"those read are {known}")
        self.name = name
        self.architecture = ARCHITECTURES[name]
        self.experts = self.count("expert_count") if self.fact("expert_count") else 0
        if self.experts and name == "llama":
            self.architecture = MIXTRAL
        if name == "falcon" and "blk.0.attn_norm_2.weight" in self.tensors:
            self.architecture = FALCON_40B
        if name == "olmo2" and self.fact("attention.sliding_window"):
            self.architecture = OLMO_3
        self.epsilon = "layer_norm_epsilon"
        if self.architecture.epsilon == "rms_norm_eps":
            self.epsilon = "layer_norm_rms_epsilon"
        self.stems = self._present()
        self._check_facts()
        self.hidden = self.count("embedding_length")
        self.heads = self.count("attention.head_count")
        self.kv = self.count("attention.head_count_kv", self.heads)
        self.head = self.count("attention.key_length", self.hidden // self.heads)
        self.layers = self.count("block_count")
        self.wide = self.count("feed_forward_length")
        self._check_heads()
        self.biased = self._biased()

    def refuse(self, message: str, help: str = "") -> NoReturn:
        raise CheckpointError("C109", message, self.path, help)

    def fact(self, key: str) -> GgufValue | None:
        return self.facts.get(f"{self.name}.{key}")

    def count(self, key: str, default: int | None = None) -> int:
        """A fact that is a positive whole number; a list of one number is that number."""
        value = default if self.fact(key) is None else self.fact(key)
        if isinstance(value, tuple) and len({*map(repr, value)}) == 1:
            value = value[0]
        if type(value) is not int or not 0 < value < 2**31:
            message = f"'{self.name}.{key}' is {shown(value)}"
            self.refuse(f"{message}, and should be a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A fact that is a positive number; a float32 in the fewest digits that mean it."""
        value = default if self.fact(key) is None else self.fact(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"'{self.name}.{key}' is {shown(value)}, and should be a number")
        if not math.isfinite(value) or value <= 0:
            self.refuse(f"'{self.name}.{key}' is {value!r}, and should be positive")
        return _short(float(value))

    def _check_facts(self) -> None:
        if self.facts.get("split.count", 1) not in {0, 1}:
            help = "join the parts with `llama-gguf-split --merge`"
            self.refuse("is one of several parts of a model", help)
        own, known = f"{self.name}.", _KNOWN | self.architecture.says
        known |= {f"attention.{self.epsilon}"}
        known |= _ROTARY if self.architecture.rotated != "none" else frozenset()
        for key in self.facts:
            if key.startswith(own) and key.removeprefix(own) not in known:
                self.refuse(f"says {quoted(key)}, whose meaning for its layers isn't known here")
        if self.experts and "ffn_gate_exps" not in self.stems:
            self.refuse(f"is a mixture of {self.experts} experts, which '{self.name}' can't say")

    def _check_heads(self) -> None:
        for key in ("attention.value_length", "rope.dimension_count"):
            said = self.count(key, self.head)
            part = self.architecture.rotated == "some" and key.startswith("rope.")
            if said > self.head or said % 2 or (said != self.head and not part):
                self.refuse(f"'{self.name}.{key}' is {said}, and a head has {self.head}")
        if self.heads % self.kv or self.head % 2:
            self.refuse(f"has {self.heads} heads of {self.head} for {self.kv} of keys and values")
        if self.architecture.square and self.heads * self.head != self.hidden:
            wide = f"{self.heads} heads of {self.head}"
            self.refuse(f"has {wide} beside a stream of {self.hidden}, which {self.name!r} can't")

    def _present(self) -> Mapping[str, str]:
        """The tensors of a layer, without those that no model of the architecture must have."""
        here = {key for key in self.architecture.stems if f"blk.0.{key}.weight" in self.tensors}
        absent = [each for each in self.architecture.optional if not each & here]
        without = frozenset[str]().union(*absent)
        return {k: stem for k, stem in self.architecture.stems.items() if k not in without}

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        wanted = dict(self._shapes())
        for name, shape in wanted.items():
            if name not in self.tensors:
                self.refuse(f"has no tensor {quoted(name)}, which its architecture needs")
            row = name.endswith("_inp_shexp.weight")  # of one row, which some write without it
            if self.tensors[name].shape not in {shape, shape[1:] if row else shape}:
                found = list(self.tensors[name].shape)
                self.refuse(f"{quoted(name)} has the shape {found}, and should have {list(shape)}")
        if extra := sorted(self.tensors.keys() - wanted.keys() - {FREQUENCIES}):
            self.refuse(f"has a tensor {quoted(extra[0])}, which isn't known in '{self.name}'")
        entries = [entry for entry in self.tensors.values() if entry.name in wanted]
        infos = (info for entry in entries for info in self._tensors_of(entry))
        tensors = {info.spec.name: info for info in infos}
        return self._config(tensors), tensors

    def _biased(self) -> frozenset[str]:
        """The projections that have a bias, as the architecture may have them."""
        keys = (key for key in self.stems if not self._is_norm(key))
        named = frozenset(key for key in keys if f"blk.0.{key}.bias" in self.tensors)
        if named not in self.architecture.biased:
            names = listed(sorted(named)) or "no projection"
            self.refuse(f"{names} of its first layer has a bias, which '{self.name}' can't say")
        return named

    @staticmethod
    def _is_norm(key: str) -> bool:
        return key.endswith(("norm", "norm_2"))

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """All tensors that there should be, and their shapes."""
        embedding = self.tensors.get("token_embd.weight")
        rows = embedding.shape[0] if embedding is not None and embedding.shape else 0
        hidden, rest = self.hidden, self.architecture.rest
        yield "token_embd.weight", (rows, hidden)
        yield "output_norm.weight", (hidden,)
        if "position_embd" in rest:
            yield "position_embd.weight", (self.count("context_length"), hidden)
        if "output" in rest and "output.weight" in self.tensors:
            yield "output.weight", (rows, hidden)
        norms = {key for key in self.stems if self._is_norm(key)} - _HEAD_NORMS
        biased = sorted(self.biased | (norms if self.architecture.norm_biases else set()))
        if self.architecture.norm_biases:
            yield "output_norm.bias", (hidden,)
        sizes = self._sizes()
        for layer in range(min(self.layers, len(self.tensors) + 1)):
            for key in self.stems:
                yield f"blk.{layer}.{key}.weight", sizes.get(key, (hidden,))
            for key in biased:
                yield f"blk.{layer}.{key}.bias", sizes.get(key, (hidden,))[:1]

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a layer's matrices, and of the norms that aren't as wide as the stream."""
        hidden, q, kv = self.hidden, self.heads * self.head, self.kv * self.head
        sizes: dict[str, tuple[int, ...]] = {
            "attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
            "attn_qkv": (q + 2 * kv, hidden), "attn_output": (hidden, q),
            **self._head_norms(),
            "ffn_gate": (self.wide, hidden), "ffn_up": (self.wide, hidden),
            "ffn_down": (hidden, self.wide),
        }  # fmt: skip
        if "gate_up" in self.stems.get("ffn_up", ""):
            sizes["ffn_up"] = (2 * self.wide, hidden)
        if self.experts:
            sizes |= self._expert_shapes()
        return sizes

    def _head_norms(self) -> dict[str, tuple[int, ...]]:
        heads = {"attn_q_norm": self.heads, "attn_k_norm": self.kv}
        match self.architecture.head_norms:
            case "one":
                return dict.fromkeys(heads, (self.head,))
            case "flat":
                return {key: (count * self.head,) for key, count in heads.items()}
            case _:
                return {key: (count, self.head) for key, count in heads.items()}

    def _expert_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, experts = self.hidden, self.experts
        wide = self.count("expert_feed_forward_length", self.wide)
        shared = self.count("expert_shared_feed_forward_length", self.wide)
        return {
            "ffn_gate_inp": (experts, hidden),
            "ffn_gate_exps": (experts, wide, hidden), "ffn_up_exps": (experts, wide, hidden),
            "ffn_down_exps": (experts, hidden, wide),
            "ffn_gate_inp_shexp": (1, hidden), "ffn_gate_shexp": (shared, hidden),
            "ffn_up_shexp": (shared, hidden), "ffn_down_shexp": (hidden, shared),
        }  # fmt: skip

    def _tensors_of(self, entry: GgufTensor) -> Iterator[TensorInfo]:
        """A tensor as Hugging Face has it; or, of experts' matrices, each of them."""
        stem, _, kind = entry.name.rpartition(".")
        key = stem.rpartition(".")[2]
        if stem in self.architecture.rest:
            yield self._tensor(entry, f"{self.architecture.rest[stem]}.{kind}", key)
            return
        number = stem.split(".")[1]
        name = f"{self.architecture.prefix}{number}.{self.stems[key]}.{kind}"
        each = "experts." if key.endswith("_exps") else ""
        if name.endswith("_layernorm.weight") and key in _HEAD_NORMS:
            name, each = name.replace("layernorm.", "layernorm.norms."), "norms."
        if not each:
            shape = (1, *entry.shape) if key.endswith("_inp_shexp") else entry.shape
            yield self._tensor(replace(entry, shape=shape[-2:]), name, key)
            return
        size = entry.kind.bytes * (math.prod(entry.shape[1:]) // entry.kind.block)
        for n in range(entry.shape[0]):
            one = replace(entry, shape=entry.shape[1:], offset=entry.offset + n * size)
            yield self._tensor(one, name.replace(each, f"{each}{n}."), key)

    def _tensor(self, entry: GgufTensor, name: str, key: str) -> TensorInfo:
        own, shape = self.architecture, entry.shape
        heads = {"attn_q": self.heads, "attn_k": self.kv} if own.permuted else {}
        shift = -1.0 if own.shifted and key.endswith("norm") else 0.0
        plain = entry.kind.plain
        groups = None
        if own.grouped and key == "attn_qkv" and self.kv > 1:  # of one group all are in order
            groups = (self.heads, self.kv)
        transposed = own.transposed and key in self.stems and len(shape) > 1
        form = Dequantised(entry.kind.name, heads.get(key, 0), shift, groups, transposed)
        spec = TensorSpec(name, plain or "F32", shape[::-1] if transposed else shape)
        same = plain and form == Dequantised(entry.kind.name)
        return TensorInfo(spec, self.path, entry.offset, None if same else form)

    def _config(self, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
        own = self.architecture
        vocabulary = self.tensors["token_embd.weight"].shape[0]
        specs = [tensor.spec for tensor in tensors.values()]
        matrices = {spec.dtype for spec in specs if len(spec.shape) > 1}
        config: dict[str, Any] = {
            "architectures": [own.model_class],
            "attention_dropout": 0.0,
            # That of all matrices, if they are plain and of one.
            "dtype": _DTYPES[matrices.pop()] if len(matrices) == 1 else "float32",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.wide,
            "max_position_embeddings": self.count("context_length"),
            "model_type": own.model_type,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv,
            own.epsilon: self.real(f"attention.{self.epsilon}"),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "use_cache": True,
            "vocab_size": vocabulary,
        }
        config |= {} if own.square else {"head_dim": self.head}
        config |= {} if own.rotated == "none" else _rotary(self.rope())
        for usual, name in own.renamed.items():
            value = config.pop(usual)
            config |= {} if name is None else {name: value}
        config |= own.settings(self)
        return dict(sorted((config | self._tokens(vocabulary)).items()))

    def _tokens(self, vocabulary: int) -> dict[str, int]:
        names = {"bos": "bos", "eos": "eos", "pad": "padding"}
        said = ((n, self.facts.get(f"tokenizer.ggml.{key}_token_id")) for n, key in names.items())
        valid = ((n, value) for n, value in said if type(value) is int and 0 <= value < vocabulary)
        return {f"{name}_token_id": value for name, value in valid}

    def rope(self) -> dict[str, Any]:
        """The rotary embeddings: plain, stretched as the file says, or as its factors show."""
        theta = self.real("rope.freq_base", 10_000.0)
        kind = self.fact("rope.scaling.type") or "none"
        if FREQUENCIES in self.tensors:
            if kind != "none":
                self.refuse(f"has {quoted(FREQUENCIES)} beside the scaling {quoted(str(kind))}")
            return self._llama3(theta)
        plain = {"rope_theta": theta, "rope_type": "default"}
        if kind == "none" and self.fact("rope.scale_linear") is None:
            return plain
        if kind in {"none", "linear"}:
            key = "rope.scaling.factor" if kind == "linear" else "rope.scale_linear"
            return plain | {"rope_type": "linear", "factor": self.real(key)}
        if kind != "yarn":
            self.refuse(f"'{self.name}.rope.scaling.type' is {shown(kind)}, which isn't read")
        return plain | self._yarn()

    def _yarn(self) -> dict[str, Any]:
        scaling = "rope.scaling."
        length = self.count(f"{scaling}original_context_length")
        factor = self.real(f"{scaling}factor")
        found: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
        found["original_max_position_embeddings"] = length
        for key, name in _YARN.items():
            if self.fact(f"{scaling}{key}") is not None:
                found[name] = self.real(f"{scaling}{key}")
        if self.real(f"{scaling}yarn_ext_factor", 1.0) != 1:
            self.refuse(f"'{self.name}.{scaling}yarn_ext_factor' isn't 1, which isn't read")
        if self.fact(f"{scaling}attn_factor") is not None:
            if "attention_factor" in found:
                self.refuse(f"says two factors of attention under '{self.name}.{scaling}'")
            usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
            # llama.cpp multiplies the usual one with it, transformers takes it instead.
            found["attention_factor"] = usual * self.real(f"{scaling}attn_factor")
        return found

    def _llama3(self, theta: float) -> dict[str, Any]:
        """Llama 3.1's scaling, of which a file holds the factors only: found, and checked."""
        entry, count = self.tensors[FREQUENCIES], self.head // 2
        if entry.kind.name != "F32" or entry.shape != (count,):
            self.refuse(f"{quoted(FREQUENCIES)} is not {count} numbers of float32")
        with open_regular(self.path) as file:
            file.seek(entry.offset)
            factors = struct.unpack(f"<{count}f", read_exactly(file, 4 * count, self.path, "C109"))
        if not all(0 < factor < math.inf for factor in factors):
            self.refuse(f"{quoted(FREQUENCIES)} are not all positive numbers")
        given: dict[str, Any] = {
            "rope_theta": theta, "rope_type": "llama3", "factor": _short(max(factors)),
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
        turns = [8192 / (2 * math.pi * theta ** (2 * i / self.head)) for i in range(count)]
        smooth = [min(1.0, max(0.0, (each - 1.0) / 3.0)) for each in turns]
        expected = [1.0 / ((1.0 - each) / given["factor"] + each) for each in smooth]
        pairs = zip(factors, expected, strict=True)
        if not all(math.isclose(a, b, rel_tol=1e-4) for a, b in pairs):
            self.refuse(f"{quoted(FREQUENCIES)} are not the factors of Llama 3.1's scaling")
        return given


def _short(value: float) -> float:
    """The number of the fewest digits that is this one in float32: 1e-05 for 9.99999974e-06."""
    single = struct.pack("<f", value) if abs(value) < 3e38 else b""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if single and struct.pack("<f", short) == single:
            return short
    return value


def _rotary(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embeddings under today's key and the older ones, which are all that some read.

    A program that knows neither takes 10 000 for what it doesn't find, and says nothing.
    """
    older: dict[str, Any] = {"rope_theta": rope["rope_theta"]}
    if rope["rope_type"] != "default":
        older["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
    return {"rope_parameters": dict(rope), **older}
