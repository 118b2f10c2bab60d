"""What a GGUF file says of a configuration: llama.cpp's architecture and its settings.

The configuration is read as transformers reads it, defaults and all. llama.cpp has fixed in its
code much that a configuration may say otherwise; what it would compute otherwise is refused.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.formats.gguf_names import LAYER_STEMS, REST_STEMS
from gptailor.plan.faults import listed
from gptailor.plan.registry import LARGEST_SINGLE

GgufFacts = dict[str, int | float | bool | str | list[Any]]
"""What a GGUF file says, by GGUF's keys; its numbers have 32 bits."""

_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None, "mscale_all_dim": None}
_USUAL: Mapping[str, int] = {"gemma2": 2, "gemma3": 6}
"""Every so-manieth layer has full attention, where llama.cpp isn't told otherwise."""
_COUNTS_END = 2**31
"""Counts in a GGUF file are below this."""
_HF_LAYER = "model.layers."
_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v", "attn_output"})
_MLP = frozenset({"ffn_gate", "ffn_up", "ffn_down"})


@final
@dataclass(frozen=True)
class _Shape:
    """How one of transformers' model types stands in GGUF: its architecture, what is special."""

    architecture: str
    permuted: bool = False
    biased: frozenset[str] = frozenset()
    norms_add_one: bool = False
    head: bool = True
    heads_at: int = 0
    """Layers at which llama.cpp takes the scale of attention by the stream's width (27B)."""


_SHAPES: Mapping[str, _Shape] = {
    "llama": _Shape("llama", permuted=True, biased=_ATTENTION | _MLP),
    "mistral": _Shape("llama", permuted=True),
    "qwen2": _Shape("qwen2", biased=frozenset({"attn_q", "attn_k", "attn_v"})),
    "qwen3": _Shape("qwen3"),
    "gemma": _Shape("gemma", norms_add_one=True, head=False),
    "gemma2": _Shape("gemma2", norms_add_one=True, head=False, heads_at=46),
    "gemma3_text": _Shape("gemma3", norms_add_one=True, heads_at=62),
}


@final
@dataclass(frozen=True)
class GgufTensorName:
    """A tensor's name in GGUF, and how its values are changed on the way there.

    `heads` is above 0 for a projection whose rows llama.cpp wants interleaved, and then the number
    of its heads; `add_one` is for norms that multiply by 1 + w.
    """

    name: str
    heads: int = 0
    add_one: bool = False


@final
class WrittenArchitecture:
    """A configuration as GGUF has it: `facts`, names of tensors, and `notes` for people.

    `frequencies` are the divisors of the rotary frequencies, for a tensor of their own; empty where
    there is none. Raises CheckpointError (C306) about `target` for what llama.cpp can't compute.
    """

    def __init__(self, config: Mapping[str, Any], target: Path) -> None:
        kind = str(config.get("model_type"))
        if kind not in _SHAPES:
            message = f"there is no map to GGUF for the model type {quoted(kind)}"
            known = f"those written are {listed(map(quoted, _SHAPES))}"
            raise CheckpointError("C306", message, target, known)
        self.target = target
        self.shape = _SHAPES[kind]
        self.name = self.shape.architecture
        self.notes: list[str] = []
        self.frequencies: tuple[float, ...] = ()
        self._config = _resolved(config, self.refuse)
        self._type = kind
        self.facts = dict(self._facts())

    def refuse(self, message: str, help: str = "") -> NoReturn:
        """Raise CheckpointError (C306)."""
        raise CheckpointError("C306", message, self.target, help)

    def _real(self, said: Mapping[str, Any], key: str) -> float:
        """A setting that is a number above 0, which a GGUF file holds in float32."""
        match said.get(key):
            case int() | float() as value if (
                type(value) is not bool and 0 < value <= LARGEST_SINGLE
            ):
                return float(value)
            case value:
                wanted = "expected a number above 0 in float32"
                self.refuse(f"{quoted(key)} is {_short(value)}, {wanted}")

    def _count(self, key: str) -> int:
        """A setting that is a whole number above 0."""
        value = getattr(self._config, key)
        if type(value) is not int or not 0 < value < _COUNTS_END:
            self.refuse(f"{quoted(key)} is {_short(value)}, expected a whole number above 0")
        return value

    # --------------------------------------------------------------------------------------- names

    def named(self, name: str) -> GgufTensorName:
        """A tensor's name in GGUF, by Hugging Face's."""
        stem, _, kind = name.rpartition(".")
        rest = {hf: gguf for gguf, hf in REST_STEMS.items()}
        if stem in rest and kind == "weight" and (self.shape.head or stem != "lm_head"):
            return GgufTensorName(f"{rest[stem]}.weight", 0, self._adds_one(stem))
        number, _, inner = stem.removeprefix(_HF_LAYER).partition(".")
        keys = {hf: gguf for gguf, hf in LAYER_STEMS[self.name].items()}
        key = keys.get(inner, "") if stem.startswith(_HF_LAYER) else ""
        if not key or not (kind == "weight" or (kind == "bias" and key in self.shape.biased)):
            self.refuse(
                f"llama.cpp's {quoted(self.name)} has no place for the tensor {quoted(name)}"
            )
        own = self._config
        heads = {"attn_q": own.num_attention_heads, "attn_k": own.num_key_value_heads}
        count = heads.get(key, 0) if self.shape.permuted else 0
        return GgufTensorName(f"blk.{number}.{key}.{kind}", count, self._adds_one(stem))

    def _adds_one(self, stem: str) -> bool:
        return self.shape.norms_add_one and stem.endswith("norm")

    # --------------------------------------------------------------------------------------- facts

    def _facts(self) -> Iterator[tuple[str, int | float | bool | str | list[Any]]]:
        own, arch = self._config, self.name
        heads, kv = self._count("num_attention_heads"), self._count("num_key_value_heads")
        width = self._count("hidden_size")
        head = self._count("head_dim") if getattr(own, "head_dim", None) else width // heads
        self._check(head)
        said: GgufFacts = {
            "vocab_size": self._count("vocab_size"),
            "context_length": self._context(),
            "embedding_length": width,
            "block_count": self._count("num_hidden_layers"),
            "feed_forward_length": self._count("intermediate_size"),
            "attention.head_count": heads,
            "attention.head_count_kv": kv,
            "attention.key_length": head,
            "attention.value_length": head,
            "attention.layer_norm_rms_epsilon": self._real(vars(own), "rms_norm_eps"),
            "rope.dimension_count": head,
        }
        said |= self._softcaps() | self._sliding() | self._rope(head)
        yield from ((f"{arch}.{key}", value) for key, value in said.items())

    def _check(self, head: int) -> None:
        own, kind = self._config, self._type
        act, wanted = "hidden_act", "silu"
        if self.shape.norms_add_one:
            act = "hidden_act" if kind == "gemma" else "hidden_activation"
            wanted = "gelu_pytorch_tanh"
        if (said := getattr(own, act)) != wanted:
            self.refuse(f"{quoted(act)} is {shown(said)}, and llama.cpp computes {quoted(wanted)}")
        if getattr(own, "use_bidirectional_attention", None):
            self.refuse("its attention looks ahead, which llama.cpp's doesn't")
        if head % 2:
            self.refuse(f"a head has {head} entries, and llama.cpp rotates pairs")
        if hasattr(own, "query_pre_attn_scalar"):
            self._check_scale(head)

    def _check_scale(self, head: int) -> None:
        """llama.cpp scales by what it takes the model for, by the number of its layers."""
        own = self._config
        layers, said = own.num_hidden_layers, own.query_pre_attn_scalar
        is_27b = layers == self.shape.heads_at
        computed = own.hidden_size // own.num_attention_heads if is_27b else head
        if said != computed:
            why = f"with {layers} layers llama.cpp divides attention by the root of {computed}"
            self.refuse(f"'query_pre_attn_scalar' is {said}, and {why}")

    def _softcaps(self) -> GgufFacts:
        if self.name not in {"gemma2", "gemma3"}:
            return {}
        own = self._config
        attention, final = own.attn_logit_softcapping, own.final_logit_softcapping
        if self.name == "gemma2" and None in (attention, final):
            self.refuse(
                "llama.cpp's 'gemma2' caps attention and logits, and the model doesn't both"
            )
        if self.name == "gemma3" and attention is not None:
            self.refuse("its attention is capped, which llama.cpp's 'gemma3' isn't")
        caps = {"attn_logit_softcapping": attention, "final_logit_softcapping": final}
        return {key: self._real(caps, key) for key, value in caps.items() if value is not None}

    # ------------------------------------------------------------------------------------- windows

    def _types(self) -> list[str]:
        """Each layer's attention, in transformers' words."""
        own = self._config
        types = getattr(own, "layer_types", None)
        if types is None:
            window = getattr(own, "sliding_window", None) if self._type == "mistral" else None
            types = ["full_attention" if window is None else "sliding_attention"]
        if unknown := sorted(set(types) - {"full_attention", "sliding_attention"}):
            self.refuse(f"it has layers of {quoted(unknown[0])}, which llama.cpp doesn't compute")
        return list(types)

    def _context(self) -> int:
        """Tokens that the model takes: where llama.cpp has no window for it, no more than that.

        Up to there attention within a window is attention to all.
        """
        most = self._count("max_position_embeddings")
        window = self._count("sliding_window") if "sliding_attention" in self._types() else None
        known = self.name == "gemma3" or (self.name == "gemma2" and self._period() is not None)
        if window is None or known or window >= most:
            return most
        why = f"llama.cpp's {quoted(self.name)} has no such windows in its layers"
        self.notes.append(f"the context is cut from {most} to the window's {window} tokens: {why}")
        return window

    def _period(self) -> int | None:
        """The period p such that all layers slide but every p-th; None if there is none.

        The usual one comes first: an older llama.cpp knows no other.
        """
        slides = [kind == "sliding_attention" for kind in self._types()]
        periods: list[int] = [_USUAL.get(self.name, 1), *range(1, len(slides) + 2)]
        for period in periods:
            if slides == [i % period < period - 1 for i in range(len(slides))]:
                return period
        return None

    def _sliding(self) -> GgufFacts:
        if self.name not in _USUAL:
            return {}
        period = self._period()
        if "sliding_attention" not in self._types() and self.name == "gemma3":
            return {}
        if period is None and self.name == "gemma3":
            help = "drop or order layers so that every so-manieth alone has full attention"
            slides = "".join("s" if t == "sliding_attention" else "F" for t in self._types())
            message = f"its layers slide by no period, as llama.cpp's 'gemma3' must: {slides}"
            self.refuse(message, help)
        return {
            "attention.sliding_window": self._count("sliding_window"),
            "attention.sliding_window_pattern": period or _USUAL[self.name],
        }

    # -------------------------------------------------------------------------------------- rotary

    def _rope(self, head: int) -> GgufFacts:
        said = self._config.rope_parameters
        if self.name != "gemma3":
            return self._scaled(said, head)
        local, wide = said["sliding_attention"], said["full_attention"]
        if local.get("rope_type", "default") != "default":
            self.refuse("the rotary embeddings of its sliding layers are scaled")
        if "sliding_attention" not in self._types():
            return self._scaled(wide, head)
        return self._scaled(wide, head) | {"rope.freq_base_swa": self._real(local, "rope_theta")}

    def _scaled(self, said: Mapping[str, Any], head: int) -> GgufFacts:
        """The base and the scaling; llama3's as divisors of the frequencies."""
        if (share := said.get("partial_rotary_factor", 1.0)) not in (1.0, None):
            self.refuse(f"{_short(share)} of each head is rotated, and llama.cpp rotates all")
        plain: GgufFacts = {"rope.freq_base": self._real(said, "rope_theta")}
        kind = said.get("rope_type", "default")
        if kind == "default":
            return plain
        if kind == "linear":
            factor = self._real(said, "factor")
            return plain | {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        if kind == "llama3" and self.name == "llama":
            self.frequencies = self._llama3_divisors(said, head)
            return plain
        if kind == "yarn" and self.name != "gemma3":
            return plain | self._yarn(said)
        self.refuse(f"rotary embeddings are scaled by {quoted(str(kind))}, which isn't written")

    def _yarn(self, said: Mapping[str, Any]) -> GgufFacts:
        factor = self._real(said, "factor")
        usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        given = said.get("attention_factor") is not None
        if given and not math.isclose(self._real(said, "attention_factor"), usual):
            self.refuse(f"YaRN's 'attention_factor' is no function of its factor {factor}")
        for key, default in _YARN.items():
            if (value := said.get(key)) not in (None, default):
                self.refuse(f"YaRN's {quoted(key)} is {_short(value)}, which isn't written")
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": int(
                self._real(said, "original_max_position_embeddings")
            ),
        }

    def _llama3_divisors(self, said: Mapping[str, Any], head: int) -> tuple[float, ...]:
        """Llama 3.1: slow rotations are slowed by the factor, fast ones stay, between is a ramp."""
        factor, theta = self._real(said, "factor"), self._real(said, "rope_theta")
        low, high = self._real(said, "low_freq_factor"), self._real(said, "high_freq_factor")
        length = self._real(said, "original_max_position_embeddings")
        if low >= high:
            self.refuse(f"'low_freq_factor' is {low:g}, expected less than 'high_freq_factor'")
        found = []
        for i in range(0, head, 2):
            turns = length / (2 * math.pi * theta ** (i / head))
            smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
            found.append(1.0 / ((1.0 - smooth) / factor + smooth))
        return tuple(found)


def _resolved(config: Mapping[str, Any], refuse: Callable[[str], NoReturn]) -> Any:
    """The configuration as transformers has it, with all that it leaves unsaid."""
    from transformers import AutoConfig

    given = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(config["model_type"], **given)
    except Exception as error:  # noqa: BLE001 (its checks raise what they like)
        refuse(f"transformers doesn't take the configuration: {str(error).splitlines()[0]}")


def _short(value: object) -> str:
    """A value in a message; a whole number of more digits than can be printed is not."""
    return "too large" if type(value) is int and abs(value) >= _COUNTS_END else shown(value)
