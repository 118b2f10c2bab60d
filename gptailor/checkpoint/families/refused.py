"""Models with layers that can't be moved: `REFUSED` types, and unfamiliar ones."""

import re
from collections.abc import Collection, Mapping

from gptailor.checkpoint.families.family import Family
from gptailor.checkpoint.families.layer_config import Config, Refusal

_ENCODER = "its layers belong to an encoder, and attend to later tokens too"
_HALF = "the layers of its decoder attend to the output of an encoder"
_DRAFTS = "it drafts tokens from the hidden states and the cache of another model"
_STREAMS = "its layers pass on several streams of hidden states"
_UNPROVEN = "no test proves yet that the states of its layers move with them"

REFUSED: Mapping[str, str] = {
    "bart": _HALF,
    "beam": "the weights of a layer's branches depend on its number",
    "bert": _ENCODER,
    "bert-generation": _ENCODER,
    "big_bird": _ENCODER,
    "bigbird_pegasus": _HALF,
    "blenderbot": _HALF,
    "blenderbot-small": _HALF,
    "blt": "it has three stacks of layers, for reading bytes, for patches and for writing bytes",
    "camembert": _ENCODER,
    "cpmant": "it puts a learned prompt before each text, and its layers process both",
    "data2vec-text": _ENCODER,
    "deepseek_v4": _STREAMS,
    "dory": "its middle layers run several times, so a position isn't a single layer",
    "dots3_note_text": "each kind of layer has its own ranks and rotations",
    "electra": _ENCODER,
    "ergo": _UNPROVEN,
    "ernie": _ENCODER,
    "gemma3n": "its layers share keys, values and one tensor of inputs",
    "gemma3n_text": "its layers share keys, values and one tensor of inputs",
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "git": "its layers attend to the text and to the patches of an image",
    "hrm_text": "its layers run in cycles, so a position isn't a single layer",
    "hy_v4": _STREAMS,
    "inkling2_loop_text": "its middle layers run several times, so a position isn't a single layer",
    "inkling2_text": "a layer attends to earlier blocks of layers, by their numbers",
    "inkling_text": _UNPROVEN,
    "kolibri1_1": "its layers share keys, values and pools of tokens to attend to",
    "longcat_flash": "one layer counts as two, with two attentions and three MLPs",
    "marian": _HALF,
    "mbart": _HALF,
    "megatron-bert": _ENCODER,
    "minicpm5_moe": _UNPROVEN,
    "minimax": "the decay of a linear layer depends on its number and on the number of layers",
    "minimax_m3_vl_text": _UNPROVEN,
    "mllama": "some layers attend to the features of an image instead of the text",
    "moshi": "it makes sound and text with two stacks of layers",
    "musicgen": _HALF,
    "musicgen_melody": _HALF,
    "mvp": _HALF,
    "param2moe": _UNPROVEN,
    "pegasus": _HALF,
    "plbart": _HALF,
    "prophetnet": _HALF,
    "qwen4_exp_text": _STREAMS,
    "reformer": "its reversible layers pass on two streams of hidden states",
    "rembert": _ENCODER,
    "roberta": _ENCODER,
    "roberta-prelayernorm": _ENCODER,
    "roc_bert": _ENCODER,
    "roformer": _ENCODER,
    "rwkv": "its first layer has an extra norm, and the layers are rescaled by their numbers",
    "trocr": _HALF,
    "whisper": _HALF,
    "xlm": "its layers are in four lists, one for each kind of module",
    "xlm-roberta": _ENCODER,
    "xlm-roberta-xl": _ENCODER,
    "xlnet": "its layers read two streams of hidden states, with tokens in permuted order",
    "xlstm": _UNPROVEN,
    "xmod": _ENCODER,
    "zamba": "its attention layers share one block of weights",
    "zamba2": "its attention layers share blocks of weights, with adapters by layer number",
    "zaya": "the router of a layer reads the state of the router before it",
}
"""Reasons by `model_type`, in order: clauses that follow a colon in a message."""


# ------------------------------------------------------------------------- types that aren't listed

LEARN = (
    "if transformers has the type, run 'gptailor family MODEL'; if not, write a family file and "
    "name it by --family"
)
"""The remedy for an unknown type."""

_POSITIONAL = re.compile(
    r"layer|block|pattern|interval|every|freq|sparse|dense|window|expert|depth"
)
"""Words in a key that may make a layer's arithmetic depend on its place."""

_PLAIN = re.compile(
    r"num_hidden_layers|.*layer_?norm.*|.*layer_norm_eps.*|layerdrop|.*initializer.*"
)
"""Keys with such a word that don't."""

_LISTS = re.compile(r"architectures|.*_token_ids?|keys_to_ignore.*")
"""Keys with lists that are about no layer."""

_NEEDED = {
    "input_layernorm.weight", "self_attn.o_proj.weight",
    "post_attention_layernorm.weight", "mlp.down_proj.weight",
}  # fmt: skip
_ALLOWED = re.compile(
    r"(input_layernorm|post_attention_layernorm)\.(weight|bias)"
    r"|self_attn\.\w+\.(weight|bias)|self_attn\.rotary_emb\.inv_freq|mlp\.\w+\.(weight|bias)"
)
"""The tensors of a layer like Llama's."""

_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")


def unfamiliar(config: Config) -> str | None:
    """Return which key may make layers depend on their places, or runs code of its own."""
    if config.get("auto_map"):
        return "the code in its folder ('auto_map') is never run"
    count = config.get("num_hidden_layers")
    for key, value in config.items():
        if isinstance(value, list | tuple) and len(value) == count and not _LISTS.fullmatch(key):
            return f"'{key}' may have an entry for each layer"
        if value and _POSITIONAL.search(key) and not _PLAIN.fullmatch(key):
            return f"'{key}' may make a layer depend on its position"
    return None


def unproven(family: Family, config: Config) -> Refusal | None:
    """Return a refusal for keys that a family file's proof lacked and that may be by layers."""
    unseen = {key: value for key, value in config.items() if key not in family.seen}
    why = unfamiliar({**unseen, "num_hidden_layers": config.get(family.count_key)})
    file = f"the family file of model type '{config['model_type']}'"
    known = "was proven without it" if family.proof else "doesn't name it"
    return None if why is None else Refusal(f"{why}, and {file} {known}")


def unlike_llama(names: Collection[str]) -> str | None:
    """Return the difference of the tensors from the tensors of a model like Llama."""
    by_layer: dict[str, set[str]] = {}
    for name in names:
        if (match := _LAYER_NAME.fullmatch(name)) is not None:
            by_layer.setdefault(match[1], set()).add(match[2])
    kinds = list(by_layer.values())
    if not kinds or not kinds[0] >= _NEEDED:
        return "its layers are not built like Llama's"
    if any(kind != kinds[0] for kind in kinds):
        return "its layers don't have the same tensors"
    strange = sorted(rest for rest in kinds[0] if not _ALLOWED.fullmatch(rest))
    return f"its layers have a tensor '{strange[0]}'" if strange else None
