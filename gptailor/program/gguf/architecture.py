"""A configuration in GGUF's terms: llama.cpp's architecture, its settings, and tensors' names.

The configuration is read as transformers reads it, defaults included. llama.cpp has fixed in its
code much that a configuration may set; a setting that it would ignore is refused.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, final

from gptailor.checkpoint.families.layer_config import SLIDING
from gptailor.checkpoint.files import CheckpointError, quoted, shown
from gptailor.checkpoint.formats.gguf.architectures import (
    ARCHITECTURES,
    COUNTS,
    EPSILONS,
    LOCAL_BASE_KEY,
    PATTERN_KEY,
    WINDOW_KEY,
    WRITTEN,
    is_norm,
)
from gptailor.checkpoint.formats.gguf.file_facts import llama3_divisors, yarn_attention
from gptailor.plan.faults import listed
from gptailor.plan.registry import LARGEST_SINGLE
from gptailor.program.sources import Checked

GgufFacts = dict[str, int | float | bool | str | list[Any]]
"""The metadata of a GGUF file, by GGUF's keys; its numbers have 32 bits."""

_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None, "mscale_all_dim": None}
_LLAMA3 = ("factor", "rope_theta", "low_freq_factor", "high_freq_factor",
           "original_max_position_embeddings")  # fmt: skip
_CAP = "attn_logit_softcapping"
_COUNTS_END = 2**31
"""Counts in a GGUF file are below this."""


@final
class WrittenArchitecture:
    """A configuration in GGUF's form: `facts`, names of tensors, and `notes` for people.

    `frequencies` are the divisors of the rotary frequencies, for a tensor of their own; empty for
    plain frequencies. Raises CheckpointError (C306) about `target` for a model that llama.cpp can't
    compute. `unfit` is such an error about the number and the order of the layers, which changes
    no size.
    """

    def __init__(self, config: Mapping[str, Any], target: Path, checked: Checked) -> None:
        from transformers import AutoConfig

        kind = str(config.get("model_type"))
        if kind not in WRITTEN:
            raise CheckpointError(
                "C306",
                f"gptailor can't write the model type {quoted(kind)} as GGUF",
                target,
                f"gptailor writes {listed(map(quoted, WRITTEN))}",
            )
        self.target = target
        self._checked = checked
        self.name = WRITTEN[kind]
        self.architecture = ARCHITECTURES[self.name]
        self.notes: list[str] = []
        self.unfit: CheckpointError | None = None
        self.frequencies: tuple[float, ...] = ()
        settings = {key: value for key, value in config.items() if key != "model_type"}
        try:  # with the defaults of missing keys
            self._config: Any = AutoConfig.for_model(kind, **settings)
        except Exception as error:  # noqa: BLE001 (its checks raise any error)
            first = str(error).splitlines()[0]
            self.refuse(f"transformers can't read the configuration: {first}")
        self._type = kind
        self.facts: GgufFacts = {f"{self.name}.{key}": n for key, n in self._facts().items()}

    def refuse(self, message: str, help: str = "") -> NoReturn:
        """Raise CheckpointError (C306)."""
        raise CheckpointError("C306", message, self.target, help)

    def _real(self, settings: Mapping[str, Any], key: str) -> float:
        """Return a setting that must be a number above 0, which a GGUF file holds in float32."""
        value: Any = settings.get(key)
        if type(value) not in (int, float) or not 0 < value <= LARGEST_SINGLE:
            expected = "expected a number above 0 in float32"
            self.refuse(f"{quoted(key)} is {_short(value)}, {expected}")
        return float(value)

    def _count(self, key: str) -> int:
        """Return a setting that must be a whole number above 0."""
        value = getattr(self._config, key)
        if type(value) is not int or not 0 < value < _COUNTS_END:
            self.refuse(f"{quoted(key)} is {_short(value)}, expected a whole number above 0")
        return value

    # --------------------------------------------------------------------------------------- names

    def named(self, name: str) -> tuple[str, int, bool]:
        """Return a tensor's name in GGUF, by Hugging Face's, and the changes of its values.

        If llama.cpp wants a projection's rows interleaved, the number is the number of its heads,
        otherwise 0; the flag is true of norms that multiply by 1 + w.
        """
        own, row = self._config, self.architecture
        stem, _, kind = name.rpartition(".")
        number, _, inner = stem.removeprefix(row.prefix).partition(".")
        in_layer = stem.startswith(row.prefix)
        names, of = (row.stems, inner) if in_layer else (row.rest, stem)
        key = next((gguf for gguf, hf in names.items() if hf == of), "")
        biased = in_layer and key in row.written[self._type]
        is_known = kind == "weight" or (kind == "bias" and biased)
        if not key or not is_known or (key == "output" and "headless" in row.traits):
            self.refuse(
                f"llama.cpp's {quoted(self.name)} has no place for the tensor {quoted(name)}"
            )
        heads = {"attn_q": own.num_attention_heads, "attn_k": own.num_key_value_heads}
        return (
            f"blk.{number}.{key}.{kind}" if in_layer else f"{key}.{kind}",
            heads.get(key, 0) if "permuted" in row.traits else 0,
            "shifted" in row.traits and is_norm(key),
        )

    # --------------------------------------------------------------------------------------- facts

    def _facts(self) -> GgufFacts:
        own, row = self._config, self.architecture
        counts = {key: self._count(name) for key, name in COUNTS.items()}
        width, heads = counts["embedding_length"], counts["attention.head_count"]
        head = self._count("head_dim") if getattr(own, "head_dim", None) else width // heads
        self._check(head)
        facts: GgufFacts = {
            "vocab_size": self._count("vocab_size"),
            **counts,
            "context_length": self._context(),
            "attention.key_length": head,
            "attention.value_length": head,
            EPSILONS[row.epsilon]: self._real(vars(own), row.epsilon),
            "rope.dimension_count": head,
        }
        return facts | self._numbers() | self._sliding() | self._rope(head)

    def _check(self, head: int) -> None:
        own, row = self._config, self.architecture
        key = row.activation_keys[0]
        if (activation := getattr(own, key)) != row.activation:
            computed = f"llama.cpp uses {quoted(row.activation)}"
            self.refuse(f"{quoted(key)} is {shown(activation)}, but {computed}")
        if getattr(own, "use_bidirectional_attention", None):
            self.refuse("its attention isn't causal, but llama.cpp's is")
        if head % 2:
            self.refuse(f"a head has {head} entries, but llama.cpp rotates pairs")
        if row.layers_of_27b:
            layers, scalar = own.num_hidden_layers, own.query_pre_attn_scalar
            is_27b = layers == row.layers_of_27b
            scale = own.hidden_size // own.num_attention_heads if is_27b else head
            if scalar != scale:
                why = f"with {layers} layers llama.cpp divides attention by the root of {scale}"
                message = f"'query_pre_attn_scalar' is {scalar}, but {why}"
                self.unfit = CheckpointError("C306", message, self.target)

    def _numbers(self) -> GgufFacts:
        """Return the numbers of the architecture's row: limits of attention and logits."""
        settings = {n.name: getattr(self._config, n.name) for n in self.architecture.numbers}
        if any(settings[n.name] is None and not n.optional for n in self.architecture.numbers):
            caps = "caps attention and logits, but the model doesn't cap both"
            self.refuse(f"llama.cpp's {quoted(self.name)} {caps}")
        if _CAP not in settings and getattr(self._config, _CAP, None) is not None:
            self.refuse(
                f"its attention is capped, but that of llama.cpp's {quoted(self.name)} isn't"
            )
        return {
            number.key: self._real(settings, number.name)
            for number in self.architecture.numbers
            if settings[number.name] is not None
        }

    # ------------------------------------------------------------------------------------- windows

    @cached_property
    def _slides(self) -> list[bool]:
        """True for each layer with a window of attention; one entry if all layers are alike."""
        own = self._config
        types = getattr(own, "layer_types", None)
        if types is None:
            window = getattr(own, "sliding_window", None) if self._type == "mistral" else None
            types = ["full_attention" if window is None else "sliding_attention"]
        if unknown := sorted(set(types) - {"full_attention", "sliding_attention"}):
            self.refuse(f"it has layers of {quoted(unknown[0])}, which llama.cpp lacks")
        return [kind == "sliding_attention" for kind in types]

    def _context(self) -> int:
        """Return the largest number of tokens, at most the window that llama.cpp lacks.

        Up to there attention within a window is attention to all.
        """
        most, windows = self._count("max_position_embeddings"), self.architecture.windows
        window = self._count("sliding_window") if any(self._slides) else None
        unbounded = windows is not None and (
            windows.apart or self._period(self._slides) is not None
        )
        if window is None or unbounded or window >= most:
            return most
        why = f"llama.cpp's {quoted(self.name)} has no such windows in its layers"
        self.notes.append(f"the context is cut from {most} to the window's {window} tokens: {why}")
        return window

    def _period(self, slides: list[bool]) -> int | None:
        """Return the p such that all layers slide but every p-th, or None for another order.

        The usual period comes first: an older llama.cpp knows no other.
        """
        windows = self.architecture.windows
        periods: list[int] = [windows.period if windows else 1, *range(1, len(slides) + 2)]
        for period in periods:
            if slides == [i % period < period - 1 for i in range(len(slides))]:
                return period
        return None

    def _periodic_cut(self) -> str:
        """Return an example of one window of the base that can be dropped, for a cut.

        A window of whole periods leaves the order of all other layers.
        """
        slides = [entry.get("layer_types") == SLIDING for entry in self._checked.base.entries]
        period, drops = self._period(slides), self._checked.plan.drops
        size = (period or 0) * max(1, round(len(drops) / (period or 1)))
        if not drops or not 0 < size < len(slides):
            return ""
        first = min(drops[0].position, len(slides) - size)
        return f", for example by 'drop L{first}..L{first + size - 1}' alone"

    def _sliding(self) -> GgufFacts:
        windows = self.architecture.windows
        if windows is None:
            return {}
        period = self._period(self._slides)
        if windows.apart and not any(self._slides):
            return {}
        if period is None and windows.apart:
            help = "drop or reorder layers so that only every n-th layer has full attention"
            help += self._periodic_cut()
            slides = "".join("s" if slides else "F" for slides in self._slides)
            must = f"as llama.cpp's {quoted(self.name)} must"
            message = f"its sliding layers aren't periodic, {must}: {slides}"
            self.unfit = CheckpointError("C306", message, self.target, help)
        return {WINDOW_KEY: self._count("sliding_window"), PATTERN_KEY: period or windows.period}

    # -------------------------------------------------------------------------------------- rotary

    def _rope(self, head: int) -> GgufFacts:
        rope, windows = self._config.rope_parameters, self.architecture.windows
        if windows is None or not windows.apart:
            return self._scaled(rope, head)
        local, wide = rope["sliding_attention"], rope["full_attention"]
        if local.get("rope_type", "default") != "default":
            self.refuse("the rotary embeddings of its sliding layers are scaled")
        if not any(self._slides):
            return self._scaled(wide, head)
        return self._scaled(wide, head) | {LOCAL_BASE_KEY: self._real(local, "rope_theta")}

    def _scaled(self, rope: Mapping[str, Any], head: int) -> GgufFacts:
        """Return the base and the scaling; keep llama3's as divisors of the frequencies."""
        if (share := rope.get("partial_rotary_factor", 1.0)) not in (1.0, None):
            self.refuse(f"{_short(share)} of each head is rotated, but llama.cpp rotates all")
        plain: GgufFacts = {"rope.freq_base": self._real(rope, "rope_theta")}
        row, kind = self.architecture, rope.get("rope_type", "default")
        match kind:
            case "default":
                return plain
            case "linear":
                factor = self._real(rope, "factor")
                return plain | {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
            case "llama3" if "divided" in row.traits:
                factor, theta, low, high, length = (self._real(rope, key) for key in _LLAMA3)
                if low >= high:
                    self.refuse(
                        f"'low_freq_factor' is {low:g}, expected less than 'high_freq_factor'"
                    )
                self.frequencies = llama3_divisors(
                    theta, head, factor, low=low, high=high, length=length
                )
                return plain
            case "yarn" if not (row.windows and row.windows.apart):
                return plain | self._yarn(rope)
        self.refuse(
            f"rotary embeddings are scaled by {quoted(str(kind))}, which gptailor can't write"
        )

    def _yarn(self, rope: Mapping[str, Any]) -> GgufFacts:
        factor = self._real(rope, "factor")
        has_attention = rope.get("attention_factor") is not None
        usual = yarn_attention(factor)
        if has_attention and not math.isclose(self._real(rope, "attention_factor"), usual):
            self.refuse(f"YaRN's 'attention_factor' isn't the default for its factor {factor}")
        for key, default in _YARN.items():
            if (value := rope.get(key)) not in (None, default):
                self.refuse(f"YaRN's {quoted(key)} is {_short(value)}, which gptailor can't write")
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": int(
                self._real(rope, "original_max_position_embeddings")
            ),
        }


def _short(value: object) -> str:
    """Return a value for a message, without the digits of a number too long to print."""
    return "too large" if type(value) is int and abs(value) >= _COUNTS_END else shown(value)
