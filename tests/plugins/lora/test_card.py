"""An adapter is extracted on a card as on the CPU."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptailor.plugins.lora.extract import extract_lora
from tests.support.second_device import second_device


@pytest.mark.wrong_types  # the card's events and streams aren't torch's
def test_a_card_gives_the_adapter_of_the_cpu(family: Path, tmp_path: Path) -> None:
    def extracted(device: str) -> dict[str, torch.Tensor]:
        target = tmp_path / device
        extract_lora(
            family / "base", family / "math", target, rank=2, device=device, randomised=True
        )
        return load_file(target / "adapter_model.safetensors")

    expected = extracted("cpu")
    with second_device() as card:
        result = extracted("cuda")
    assert card.ran, "nothing ran on the card"
    assert expected.keys() == result.keys()
    assert all(torch.equal(expected[name], result[name]) for name in expected)
