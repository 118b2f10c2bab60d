"""The map of names agrees with the map of llama.cpp's own package."""

import pytest

from gptailor.checkpoint.formats.gguf.architectures import (
    ARCHITECTURES,
    FALCON_40B,
    MIXTRAL,
    Architecture,
)

gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")


@pytest.mark.parametrize(
    ("name", "own"), [*ARCHITECTURES.items(), ("llama", MIXTRAL), ("falcon", FALCON_40B)]
)
def test_names_are_those_that_llama_cpp_gives_the_same_tensors(
    name: str, own: Architecture
) -> None:
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[name]
    theirs = gguf.get_tensor_name_map(kind, 2)
    for key, stem in own.rest.items():
        assert theirs.get_name(stem) in {key, None}  # Gemma 1 and 2 have no head of their own
    for key, stem in own.stems.items():
        # It knows Mixtral's experts by the name that its converter gives them all.
        alike = stem.replace("block_sparse_moe.experts", "feed_forward.experts")
        prefix = "layers." if alike != stem else own.prefix
        assert theirs.get_name(f"{prefix}1.{alike}") == f"blk.1.{key}"
