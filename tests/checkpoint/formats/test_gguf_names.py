"""The map of names agrees with that of llama.cpp's own package."""

import pytest

from gptailor.checkpoint.formats.gguf_names import LAYER_STEMS, REST_STEMS

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")


@pytest.mark.parametrize("architecture", LAYER_STEMS)
def test_names_are_those_that_llama_cpp_gives_the_same_tensors(architecture: str) -> None:
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    theirs = gguf.get_tensor_name_map(kind, 2)
    for name, stem in REST_STEMS.items():
        assert theirs.get_name(stem) in {name, None}  # Gemma 1 and 2 have no head of their own
    for key, stem in LAYER_STEMS[architecture].items():
        assert theirs.get_name(f"model.layers.1.{stem}") == f"blk.1.{key}"
