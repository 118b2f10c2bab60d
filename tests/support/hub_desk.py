"""Models of a small Hub, and a folder where commands use it, as fixtures too."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.forked import Runs, forking
from tests.support.hub_server import Hub, serving
from tests.support.tiny import tiny_model

LAYERS = 3
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PLAN = 'tailor 1\nmodel base = "org/base"\nmodel math = "org/math"\nL0 from math\n'


def write_models(folder: Path) -> Path:
    """`base` in one file, `math` in two, and `lora`, an adapter on the base."""
    tiny_model("llama", folder / "base", layers=LAYERS)
    tiny_model("llama", folder / "math", layers=LAYERS, seed=1)
    tiny_model("llama", folder / "later", layers=LAYERS, seed=2)
    split(folder / "math")
    (folder / "lora").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {
        f"{module}.lora_A.weight": torch.ones(2, 16),
        f"{module}.lora_B.weight": torch.ones(16, 2),
    }
    save_file(pair, folder / "lora" / "adapter_model.safetensors")
    return folder


def split(folder: Path) -> None:
    """Two files of weights: layer 0 in the first, all else in the second."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {name: FIRST if name.startswith("model.layers.0.") else SECOND for name in tensors}
    for file in (FIRST, SECOND):
        part = {name: tensor for name, tensor in tensors.items() if index[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def fault(self, code: str) -> str:
        """Return the output, which is one fault alone."""
        output = self.out + self.err
        assert self.code == 1, output
        assert output.count("error[") == 1, output
        assert f"error[{code}]: " in output, output
        assert "Traceback" not in output, output
        return output


@dataclass
class Desk:
    """A folder with a plan in it, and gptailor run there on a cache of its own."""

    folder: Path
    hub: Hub
    runs: Runs

    def run(self, *arguments: str, plan: str = PLAN, **environment: str) -> Done:
        """Run gptailor in its own process, which has no module of the Hub's library yet.

        That reads its settings once.
        """
        (self.folder / "p.tailor").write_text(plan)
        names = ("HF_", "HUGGING", "HTTP_", "HTTPS_", "ALL_", "http_", "https_", "all_")
        settings = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        settings |= {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        }
        return Done(*self.runs.command(*arguments, folder=self.folder, environment=settings))

    def check(self, plan: str = PLAN, **environment: str) -> Done:
        return self.run("check", "p.tailor", plan=plan, **environment)

    def compile(self, out: str = "out", plan: str = PLAN, **environment: str) -> Done:
        done = self.run("compile", "p.tailor", "-o", out, plan=plan, **environment)
        assert (self.folder / out).exists() == (done.code == 0), done.err
        return done

    def made(self, out: str = "out") -> dict[str, torch.Tensor]:
        return load_file(self.folder / out / "model.safetensors")

    def plan(self, out: str = "out") -> str:
        return (self.folder / out / "plan.tailor").read_text()

    def cached(self) -> set[str]:
        """The weights in the cache."""
        result = (self.folder / "home").rglob("snapshots/*/*.safetensors")
        return {path.name for path in result if path.exists()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the models."""
    return write_models(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(folders: Path) -> Iterator[Hub]:
    """A Hub with `org/base` and `org/math`."""
    with serving() as served:
        served.add("org/base", folders / "base")
        served.add("org/math", folders / "math")
        yield served


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """Processes that run gptailor."""
    with forking("gptailor.program.run") as started:
        yield started


@pytest.fixture
def desk(tmp_path: Path, hub: Hub, runs: Runs) -> Desk:
    """A folder where commands use the Hub."""
    return Desk(tmp_path, hub, runs)
