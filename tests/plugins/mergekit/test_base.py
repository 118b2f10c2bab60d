"""Facts from a base's configuration: layers, a tied head, the tensors that filters match."""

from pathlib import Path

import pytest

from gptailor.plugins.mergekit.base import Base, ModelFolders
from gptailor.plugins.mergekit.config import ModelReference
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "mixtral", "gpt2"])
def test_a_configuration_tells_the_tensors_that_a_checkpoint_has(
    family: str, tmp_path: Path
) -> None:
    tiny_model(family, tmp_path / "whole", layers=2)
    (tmp_path / "alone").mkdir()
    config = (tmp_path / "whole" / "config.json").read_text(encoding="utf-8")
    (tmp_path / "alone" / "config.json").write_text(config, encoding="utf-8")
    reference = ModelReference.model_validate("a/base")
    whole, alone = (
        Base(reference, ModelFolders(given={"base": tmp_path / name}), None).facts
        for name in ("whole", "alone")
    )
    assert whole == alone or family == "mixtral"
    assert (whole.names.branches, whole.tied) == (alone.names.branches, alone.tied)
    assert whole.names.fused == alone.names.fused == (family == "mixtral")
