"""Types of models whose layers can't be moved as a plan says, each with the reason: `REFUSED`."""

from collections.abc import Mapping

_ENCODER = "its layers are an encoder's, made to see the tokens after them too"
_HALF = "its decoder is half of a pair, whose layers attend to an encoder's output"
_DRAFTS = "it drafts tokens for another model, whose hidden states and cache its layers read"

REFUSED: Mapping[str, str] = {
    "bart": _HALF,
    "bert": _ENCODER,
    "bert-generation": _ENCODER,
    "big_bird": _ENCODER,
    "bigbird_pegasus": _HALF,
    "blenderbot": _HALF,
    "blenderbot-small": _HALF,
    "blt": "it has three stacks of layers, one that reads bytes, one of patches, one that writes",
    "camembert": _ENCODER,
    "cpmant": "its prompt and segments have positions of their own, which all its layers share",
    "data2vec-text": _ENCODER,
    "dory": "its middle layers run several times, so that a place is no single layer",
    "electra": _ENCODER,
    "ernie": _ENCODER,
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "git": "its layers attend to an image's patches beside the text",
    "hrm_text": "its layers run in cycles, so that a place in the model is no single layer",
    "inkling2_loop_text": "its middle layers run several times, so that a place is no single layer",
    "inkling2_text": "a layer attends to the blocks of layers before it, by their numbers",
    "marian": _HALF,
    "mbart": _HALF,
    "megatron-bert": _ENCODER,
    "minimax": "its linear layers decay by their number and by how many layers there are",
    "moshi": "it makes sound and text by two stacks of layers",
    "musicgen": _HALF,
    "musicgen_melody": _HALF,
    "mvp": _HALF,
    "pegasus": _HALF,
    "plbart": _HALF,
    "prophetnet": _HALF,
    "reformer": "its layers are reversible: each takes and gives two streams of hidden states",
    "rembert": _ENCODER,
    "roberta": _ENCODER,
    "roberta-prelayernorm": _ENCODER,
    "roc_bert": _ENCODER,
    "roformer": _ENCODER,
    "rwkv": "its first layer has a norm of its own, and all are rescaled by their number",
    "trocr": _HALF,
    "whisper": _HALF,
    "xlm": "its layers lie in four lists, one for each kind of module, and not one after another",
    "xlm-roberta": _ENCODER,
    "xlm-roberta-xl": _ENCODER,
    "xlnet": "its layers take two streams of hidden states, over tokens in permuted order",
    "xmod": _ENCODER,
    "zamba": "its attention layers share one block of weights",
    "zamba2": "its attention layers share blocks of weights, with adapters by their number",
    "zaya": "a layer's router reads the state of the router in the layer before it",
}
"""By the `model_type` of a configuration, in order: a clause that goes on after a colon."""
