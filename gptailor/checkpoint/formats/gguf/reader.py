"""A GGUF file as a checkpoint: its configuration and tensors as Hugging Face names them.

llama.cpp has permuted the rows of Llama's query and key projections; that is undone when they are
loaded. An unknown key or tensor of a file is refused by name, and never ignored.
"""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, final

from gptailor.checkpoint.files import CheckpointError, quoted
from gptailor.checkpoint.formats.gguf.architectures import (
    ARCHITECTURES,
    COUNTS,
    EPSILONS,
    HEAD_NORMS,
    LOCAL_BASE_KEY,
    PATTERN_KEY,
    WINDOW_KEY,
    Architecture,
    is_norm,
)
from gptailor.checkpoint.formats.gguf.file_facts import FileFacts
from gptailor.checkpoint.formats.gguf.header import GgufTensor, Header, read_gguf
from gptailor.checkpoint.formats.gguf.rotary import FREQUENCIES, ROTARY_KEYS, read_rotary
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
class _File:
    """A GGUF file of a known architecture."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.path = header.path
        self.tensors = header.tensors
        name = header.facts.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            known = listed(map(quoted, ARCHITECTURES))
            message = f"is of the architecture {quoted(str(name))}"
            raise CheckpointError("C109", message, header.path, f"those read are {known}")
        if header.facts.get("split.count", 1) not in {0, 1}:
            message = "is one of several parts of a model"
            help = "join the parts with `llama-gguf-split --merge`"
            raise CheckpointError("C109", message, header.path, help)
        self.name = name
        self.facts = FileFacts(header, name)
        self.experts = self.facts.count("expert_count") if self.facts.fact("expert_count") else 0
        self.architecture = self._row()
        self.stems = self._present()
        self._check_keys()
        self._check_heads()
        self.biased = self._biased()

    def refuse(self, message: str, help: str = "") -> NoReturn:
        self.facts.refuse(message, help)

    def _row(self) -> Architecture:
        """Return the architecture's row, or the row of the variant that the file shows."""
        own = ARCHITECTURES[self.name]
        for sign, variant in own.variants.items():
            if self.facts.fact(sign) or sign in self.tensors:
                return variant
        return own

    def _check_keys(self) -> None:
        own, known = f"{self.name}.", _KNOWN | self.architecture.keys
        known |= ROTARY_KEYS if self.architecture.rotated != "none" else frozenset()
        for key in self.header.facts:
            if key.startswith(own) and key.removeprefix(own) not in known:
                self.refuse(f"says {quoted(key)}, whose meaning for its layers isn't known here")
        if self.experts and "ffn_gate_exps" not in self.stems:
            self.refuse(f"is a mixture of {self.experts} experts, which '{self.name}' can't say")

    def _check_heads(self) -> None:
        facts = self.facts
        hidden, heads, kv, head = facts.hidden, facts.heads, facts.kv, facts.head
        for key in ("attention.value_length", "rope.dimension_count"):
            count = facts.count(key, head)
            part = self.architecture.rotated == "some" and key.startswith("rope.")
            if count > head or count % 2 or (count != head and not part):
                self.refuse(f"'{self.name}.{key}' is {count}, and a head has {head}")
        if heads % kv or head % 2:
            self.refuse(f"has {heads} heads of {head} for {kv} of keys and values")
        if self.architecture.square and heads * head != hidden:
            wide = f"{heads} heads of {head}"
            self.refuse(f"has {wide} beside a stream of {hidden}, which {self.name!r} can't")

    def _present(self) -> Mapping[str, str]:
        """Return the tensors of a layer, without the optional groups that the file lacks."""
        present = {key for key in self.architecture.stems if self.facts.has(f"{key}.weight")}
        absent = [each for each in self.architecture.optional if not each & present]
        without = frozenset[str]().union(*absent)
        return {k: stem for k, stem in self.architecture.stems.items() if k not in without}

    def _biased(self) -> frozenset[str]:
        """Return the projections that have a bias; refuse a set that the architecture lacks."""
        keys = (key for key in self.stems if not is_norm(key))
        biased = frozenset(key for key in keys if self.facts.has(f"{key}.bias"))
        if biased not in self.architecture.biased:
            names = listed(sorted(biased)) or "no projection"
            self.refuse(f"{names} of its first layer has a bias, which '{self.name}' can't say")
        return biased

    # ------------------------------------------------------------------------------------ tensors

    def checkpoint(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        """Return the configuration and the tensors, after a check of all names and shapes."""
        shapes = dict(self._shapes())
        for name, shape in shapes.items():
            if name not in self.tensors:
                self.refuse(f"has no tensor {quoted(name)}, which its architecture needs")
            row = name.endswith("_inp_shexp.weight")  # of one row, which some write without it
            if self.tensors[name].shape not in {shape, shape[1:] if row else shape}:
                actual = list(self.tensors[name].shape)
                self.refuse(f"{quoted(name)} has the shape {actual}, and should have {list(shape)}")
        if extra := sorted(self.tensors.keys() - shapes.keys() - {FREQUENCIES}):
            self.refuse(f"has a tensor {quoted(extra[0])}, which isn't known in '{self.name}'")
        entries = [entry for entry in self.tensors.values() if entry.name in shapes]
        infos = (info for entry in entries for info in self._tensors_of(entry))
        tensors = {info.spec.name: info for info in infos}
        return self._config(tensors), tensors

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the names and shapes of all tensors that the file must have."""
        embedding = self.tensors.get("token_embd.weight")
        rows = embedding.shape[0] if embedding is not None and embedding.shape else 0
        hidden, own = self.facts.hidden, self.architecture
        yield "token_embd.weight", (rows, hidden)
        yield "output_norm.weight", (hidden,)
        if "position_embd" in own.rest:
            yield "position_embd.weight", (self.facts.count("context_length"), hidden)
        if "output" in own.rest and "output.weight" in self.tensors:
            yield "output.weight", (rows, hidden)
        norms = {key for key in self.stems if is_norm(key)} - HEAD_NORMS
        biased = sorted(self.biased | (norms if own.norm_biases else set()))
        if own.norm_biases:
            yield "output_norm.bias", (hidden,)
        sizes = self._sizes()
        for layer in range(min(self.facts.layers, len(self.tensors) + 1)):
            for key in self.stems:
                yield f"blk.{layer}.{key}.weight", sizes.get(key, (hidden,))
            for key in biased:
                yield f"blk.{layer}.{key}.bias", sizes.get(key, (hidden,))[:1]

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a layer's matrices, and of norms narrower than the stream."""
        facts = self.facts
        hidden, wide = facts.hidden, facts.wide
        q, kv = facts.heads * facts.head, facts.kv * facts.head
        sizes: dict[str, tuple[int, ...]] = {
            "attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
            "attn_qkv": (q + 2 * kv, hidden), "attn_output": (hidden, q),
            **self._head_norms(),
            "ffn_gate": (wide, hidden), "ffn_up": (wide, hidden), "ffn_down": (hidden, wide),
        }  # fmt: skip
        if "gate_up" in self.stems.get("ffn_up", ""):
            sizes["ffn_up"] = (2 * wide, hidden)
        if self.experts:
            sizes |= self._expert_shapes()
        return sizes

    def _head_norms(self) -> dict[str, tuple[int, ...]]:
        head = self.facts.head
        heads = {"attn_q_norm": self.facts.heads, "attn_k_norm": self.facts.kv}
        match self.architecture.head_norms:
            case "one":
                return dict.fromkeys(heads, (head,))
            case "flat":
                return {key: (count * head,) for key, count in heads.items()}
            case _:
                return {key: (count, head) for key, count in heads.items()}

    def _expert_shapes(self) -> dict[str, tuple[int, ...]]:
        hidden, experts = self.facts.hidden, self.experts
        wide = self.facts.count("expert_feed_forward_length", self.facts.wide)
        shared = self.facts.count("expert_shared_feed_forward_length", self.facts.wide)
        return {
            "ffn_gate_inp": (experts, hidden),
            "ffn_gate_exps": (experts, wide, hidden), "ffn_up_exps": (experts, wide, hidden),
            "ffn_down_exps": (experts, hidden, wide),
            "ffn_gate_inp_shexp": (1, hidden), "ffn_gate_shexp": (shared, hidden),
            "ffn_up_shexp": (shared, hidden), "ffn_down_shexp": (hidden, shared),
        }  # fmt: skip

    def _tensors_of(self, entry: GgufTensor) -> Iterator[TensorInfo]:
        """Yield a tensor in Hugging Face's form, or each matrix of a tensor of experts."""
        stem, _, kind = entry.name.rpartition(".")
        key = stem.rpartition(".")[2]
        if stem in self.architecture.rest:
            yield self._tensor(entry, f"{self.architecture.rest[stem]}.{kind}", key)
            return
        number = stem.split(".")[1]
        name = f"{self.architecture.prefix}{number}.{self.stems[key]}.{kind}"
        each = "experts." if key.endswith("_exps") else ""
        if name.endswith("_layernorm.weight") and key in HEAD_NORMS:
            name, each = name.replace("layernorm.", "layernorm.norms."), "norms."
        if not each:
            shape = (1, *entry.shape) if key.endswith("_inp_shexp") else entry.shape
            yield self._tensor(replace(entry, shape=shape[-2:]), name, key)
            return
        size = entry.kind.bytes * (math.prod(entry.shape[1:]) // entry.kind.block)
        for n in range(entry.shape[0]):
            part = replace(entry, shape=entry.shape[1:], offset=entry.offset + n * size)
            yield self._tensor(part, name.replace(each, f"{each}{n}."), key)

    def _tensor(self, entry: GgufTensor, name: str, key: str) -> TensorInfo:
        own, shape = self.architecture, entry.shape
        heads = {"attn_q": self.facts.heads, "attn_k": self.facts.kv} if own.permuted else {}
        shift = -1.0 if own.shifted and is_norm(key) else 0.0
        plain = entry.kind.plain
        groups = None
        if own.grouped and key == "attn_qkv" and self.facts.kv > 1:  # one group is in order
            groups = (self.facts.heads, self.facts.kv)
        transposed = own.transposed and key in self.stems and len(shape) > 1
        form = Dequantised(entry.kind.name, heads.get(key, 0), shift, groups, transposed)
        spec = TensorSpec(name, plain or "F32", shape[::-1] if transposed else shape)
        same = plain and form == Dequantised(entry.kind.name)
        return TensorInfo(spec, self.path, entry.offset, None if same else form)

    # ------------------------------------------------------------------------------ configuration

    def _config(self, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
        own, facts = self.architecture, self.facts
        vocabulary = self.tensors["token_embd.weight"].shape[0]
        specs = [tensor.spec for tensor in tensors.values()]
        matrices = {spec.dtype for spec in specs if len(spec.shape) > 1}
        config: dict[str, Any] = {
            "architectures": [own.model_class],
            "attention_dropout": 0.0,
            # The dtype of all matrices, if they are plain and of one dtype.
            "dtype": _DTYPES[matrices.pop()] if len(matrices) == 1 else "float32",
            "model_type": own.model_type,
            own.epsilon: facts.real(EPSILONS[own.epsilon]),
            "num_key_value_heads": facts.kv,
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "use_cache": True,
            "vocab_size": vocabulary,
            **dict.fromkeys(own.activation_keys, own.activation),
        }
        config |= {name: facts.count(key) for key, name in COUNTS.items() if name not in config}
        config |= {} if own.square else {"head_dim": facts.head}
        for usual, name in own.renamed.items():
            value = config.pop(usual)
            config |= {} if name is None else {name: value}
        config |= {} if own.rotated == "none" else self._rotary()
        config |= deepcopy(dict(own.constants)) | self._numbers() | self._layer_types()
        config |= own.settings(facts) | self._tokens(vocabulary)
        return dict(sorted(config.items()))

    def _numbers(self) -> dict[str, int | float]:
        own, facts = self.architecture, self.facts
        numbers: dict[str, int | float] = {
            number.name: facts.count(number.key)
            if number.whole
            else facts.real(number.key, number.default)
            for number in own.numbers
            if not number.optional or facts.fact(number.key) is not None
        }
        if own.layers_of_27b:
            is_27b = facts.layers == own.layers_of_27b
            scalar = facts.hidden // facts.heads if is_27b else facts.head
            numbers["query_pre_attn_scalar"] = scalar
        return numbers

    def _tokens(self, vocabulary: int) -> dict[str, int]:
        keys, facts = {"bos": "bos", "eos": "eos", "pad": "padding"}, self.header.facts
        ids = {name: facts.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
        valid = {name: n for name, n in ids.items() if type(n) is int and 0 <= n < vocabulary}
        return {f"{name}_token_id": number for name, number in valid.items()}

    def _slides(self) -> bool:
        """Return whether any layer has a window: always, but where the file may lack windows."""
        windows = self.architecture.windows
        return windows is not None and not (windows.apart and self.facts.fact(WINDOW_KEY) is None)

    def _layer_types(self) -> dict[str, Any]:
        windows, facts = self.architecture.windows, self.facts
        if windows is None:
            return {}
        if not self._slides():
            return {"layer_types": ["full_attention"] * facts.layers}
        pattern = facts.fact(PATTERN_KEY)
        if not isinstance(pattern, tuple):
            period = facts.count(PATTERN_KEY, windows.period)
            slides = [(number + 1) % period != 0 for number in range(facts.layers)]
        elif len(pattern) == facts.layers and all(each in (0, 1) for each in pattern):
            slides = [bool(each) for each in pattern]
        else:
            self.refuse(f"'{PATTERN_KEY}' is no list of {facts.layers} yes or no")
        types = ["sliding_attention" if each else "full_attention" for each in slides]
        return {"layer_types": types, "sliding_window": facts.count(WINDOW_KEY)}

    def _rotary(self) -> dict[str, Any]:
        """Return the rotary embeddings under today's key and the older ones.

        Some programs know the older keys alone. A program that knows neither assumes 10 000 for a
        missing base, without a message.
        """
        rope, windows = read_rotary(self.facts), self.architecture.windows
        theta = rope["rope_theta"]
        config: dict[str, Any] = {"rope_parameters": dict(rope), "rope_theta": theta}
        if rope["rope_type"] != "default":
            config["rope_scaling"] = {key: rope[key] for key in rope if key != "rope_theta"}
        if windows is not None and windows.apart:
            base = self.facts.real(LOCAL_BASE_KEY, windows.local_base or theta)
            local = {"rope_theta": base, "rope_type": "default"}
            config["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
            if windows.local_base is not None:
                config["rope_local_base_freq"] = base
        return config
