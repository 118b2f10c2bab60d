"""What all tests share: tiny models, fit ones and unfit ones, and how Hypothesis runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "default",
    deadline=None,
    max_examples=100,
    phases=set(Phase) - {Phase.explain},
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("default")

MATES: dict[str, dict[str, Any]] = {
    "base": {"seed": 0},
    "math": {"seed": 1},
    "code": {"seed": 2},
    "chat": {"seed": 3},
}
"""Models that go together: six layers of llama, differing in their weights alone."""

UNFIT: dict[str, dict[str, Any]] = {
    "short": {"layers": 4},
    "wide": {"hidden_size": 32},
    "broad": {"intermediate_size": 32},
    "theta": {"rope_theta": 500000.0},
    "eps": {"rms_norm_eps": 1e-05},
    "tied": {"tie_word_embeddings": True},
    "vocab": {"vocab_size": 80},
    "biased": {"attention_bias": True},
    "long": {"max_position_embeddings": 256},
}
"""Models of the base's family that differ from it in one thing each."""

STRANGERS: dict[str, str] = {
    "qwen": "qwen2",
    "gpt": "gpt2",
    "parallel": "gpt_neox",
    "mixed": "gemma3_text",
}
"""Models of other families."""


def pytest_configure(config: pytest.Config) -> None:
    # The type checker of the tests looks at one item of a list, drawn by `random`.
    line = "ignore:Do not use the `random` module inside strategies"
    config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models: `base` and its mates, unfit ones, and broken ones."""
    from transformers.utils import logging  # noqa: PLC0415 (most tests need no models)

    from tests.tiny import tiny_model  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("family")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for name, settings_ in {**MATES, **UNFIT}.items():
        tiny_model("llama", folder / name, **settings_)
    for name, kind in STRANGERS.items():
        tiny_model(kind, folder / name)
    _break(folder)
    return folder


def _break(folder: Path) -> None:
    """Folders that are no sound checkpoints, made from the base."""
    _copy(folder, "quantised", quantization_config={"quant_method": "gptq", "bits": 4})
    _copy(folder, "unknown", model_type="mystery")
    _copy(folder, "unsure", architectures=["MysteryForCausalLM"], model_type="mystery")
    _copy(folder, "numberless", num_hidden_layers=None)
    (folder / "empty").mkdir()


def _copy(folder: Path, name: str, **config: object) -> None:
    """The base under another name, its configuration changed; its weights are linked."""
    (folder / name).mkdir()
    for path in (folder / "base").iterdir():
        if path.name != "config.json":
            (folder / name / path.name).hardlink_to(path)
    settings_ = json.loads((folder / "base" / "config.json").read_text())
    (folder / name / "config.json").write_text(json.dumps(settings_ | config))
