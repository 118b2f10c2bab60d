"""Bridges of branches that end in a norm, compared with NumPy and with the written model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import gptailor
from gptailor.evaluation.fits.bridge import fit as module
from gptailor.evaluation.fits.bridge.fit import NormedBranch, fit_normed
from gptailor.evaluation.fits.repair import fit, stitch
from gptailor.evaluation.live.template import decoder_layers
from gptailor.plan.plan import Plan
from gptailor.plan.registry import GAP_FITS
from gptailor.prepare import prepare
from tests.evaluation.fits.bridge.test_bridge import rows
from tests.support.tiny import letters, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = 'drop L2..L3; bridge on "text.txt" tokens 800 ridge 0.1'


def said(folder: Path, text: str) -> Plan:
    return gptailor.loads(f'tailor 1\nmodel base = "./base"\n{text}\n', folder=folder)


def made(kind: str, folder: Path) -> Path:
    """A tiny model in a folder with its calibration text."""
    tiny_model(kind, folder / "base")
    (folder / "text.txt").write_text(letters(2000))
    return folder


def naive(
    x: np.ndarray, wished: np.ndarray, omega: np.ndarray, start: NormedBranch, ridge: float
) -> tuple[list[np.ndarray], dict[str, float]]:
    """A, g and the shares as docs/bridge_internals.md has them."""
    block = max(1, min(128, len(x) // 8))
    left = np.arange(len(x)) // block % 8 == 7
    gram = (x[~left].T * omega[~left]) @ x[~left]
    gram += ridge * np.sort(gram.diagonal())[(len(gram) - 1) // 2] * np.eye(len(gram))

    def normed(a: np.ndarray) -> np.ndarray:
        out = x @ a
        return out / np.sqrt((out**2).mean(1, keepdims=True) + start.epsilon)

    def error(a: np.ndarray, g: np.ndarray, of: np.ndarray) -> float:
        return float((omega[:, None] * (wished - g * normed(a)) ** 2)[of].sum())

    g = start.gain.numpy()
    tried = [(start.projection.numpy(), g)]
    for _ in range(6):
        wanted = wished * g / (g**2 + 1e-3 * (g**2).mean())
        wanted /= np.sqrt((wanted**2).mean(1, keepdims=True))
        a = np.linalg.solve(gram, (x[~left].T * omega[~left]) @ wanted[~left])
        n, w = normed(a)[~left], omega[~left][:, None]
        g = (w * n * wished[~left]).sum(0) / (w * n * n).sum(0)
        tried.append((a, g))
    best = min(tried, key=lambda each: error(*each, left))
    whole = np.ones(len(x), dtype=bool)
    shares = {
        name: 1 - error(*best, of) / error(*tried[0], of)
        for name, of in (("explained", whole), ("held_out", left))
    }
    return list(best), shares


@pytest.mark.parametrize(("count", "seed"), [(8, 0), (90, 1), (1500, 2)])
def test_the_fit_is_the_formula(count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 64)
    draw = np.random.default_rng(seed)
    x, mixing = draw.normal(size=(count, 6)), draw.normal(size=(6, 5))
    wished = np.tanh(x @ mixing) * [1.0, 2.0, 0.5, -1.0, 3.0] + 0.1 * draw.normal(size=(count, 5))
    omega = draw.random(count) + 0.1
    start = NormedBranch(torch.from_numpy(draw.normal(size=(6, 5))), torch.ones(5).double(), 1e-6)
    tokens = torch.from_numpy(x), torch.from_numpy(wished), torch.from_numpy(omega)

    branch, numbers = fit_normed(tokens, start, 0.1)

    (projection, gain), shares = naive(x, wished, omega, start, 0.1)
    np.testing.assert_allclose(branch.projection, projection, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(branch.gain, gain, rtol=1e-6, atol=1e-9)
    assert numbers == pytest.approx(shares, abs=1e-9)
    assert count < 90 or numbers["held_out"] > 0.5


def test_a_branch_that_already_fits_is_kept() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=draw)
    start = NormedBranch(torch.eye(6).double(), torch.full((6,), 2.0).double(), 1e-6)
    wished = start.gain * start.normed(x)
    branch, numbers = fit_normed((x, wished, torch.ones(64).double()), start, 0.1)
    assert branch is start
    assert numbers == {"explained": 0.0, "held_out": 0.0}


def test_an_output_channel_of_zeros_stays_finite() -> None:
    draw = torch.Generator().manual_seed(0)
    x, wished = torch.randn(64, 6, generator=draw), torch.randn(64, 6, generator=draw)
    wished[:, 2] = 0
    wished[5] = 0
    gain = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0]).double()
    start = NormedBranch(torch.eye(6).double(), gain, 1e-6)
    branch, _ = fit_normed((x, wished, torch.ones(64).double()), start, 0.1)
    assert branch.projection.isfinite().all()
    assert branch.gain.isfinite().all()


class Seen:
    """The inputs of a layer's last projection and the states around its MLP, of all tokens."""

    def __init__(self, model: torch.nn.Module, layer: int, norm: str) -> None:
        self.x: list[Tensor] = []
        self.added: list[Tensor] = []
        self.after: list[Tensor] = []
        seen = decoder_layers(model)[layer]
        seen.mlp.down_proj.register_forward_pre_hook(lambda _, given: self.x.append(given[0][0]))
        seen.get_submodule(norm).register_forward_hook(lambda _, __, out: self.added.append(out[0]))
        seen.register_forward_hook(lambda _, __, out: self.after.append(out[0]))


@pytest.mark.parametrize(("kind", "offset"), [("gemma3_text", 1.0), ("olmo2", 0.0)])
def test_the_stored_tensors_are_those_of_the_fit(kind: str, offset: float, tmp_path: Path) -> None:
    """Gemma's norms multiply by 1 + w, OLMo's by w."""
    folder, norm = made(kind, tmp_path), "post_feedforward_layernorm"
    full, cut = stitch(said(folder, "")), stitch(said(folder, "drop L2..L3"))
    student, teacher = Seen(cut, 1, norm), Seen(full, 3, norm)
    with torch.inference_mode():
        for tokens in rows(folder / "base"):
            full(tokens)
            cut(tokens)
    x, added, after, target = (
        torch.cat(each).double()
        for each in (student.x, student.added, student.after, teacher.after)
    )
    layer = decoder_layers(cut)[1]
    weight = layer.get_submodule(norm).weight.detach().double()
    start = NormedBranch(
        layer.mlp.down_proj.weight.detach().double().T, offset + weight, cut.config.rms_norm_eps
    )
    wished = target - after + added
    omega = 1 / target.square().sum(1)
    (projection, gain), shares = naive(x.numpy(), wished.numpy(), omega.numpy(), start, 0.1)

    result = fit(prepare(said(folder, ONE)))

    stem = "model.layers.1"
    assert result.tensors.keys() == {f"{stem}.mlp.down_proj.weight", f"{stem}.{norm}.weight"}
    np.testing.assert_allclose(
        result.tensors[f"{stem}.mlp.down_proj.weight"], projection.T, atol=1e-3, rtol=1e-2
    )
    np.testing.assert_allclose(
        result.tensors[f"{stem}.{norm}.weight"], gain - offset, atol=1e-3, rtol=1e-2
    )
    assert result.results["L1"].numbers == pytest.approx(shares, abs=1e-3)


@pytest.mark.parametrize("kind", ["gemma3_text", "olmo2"])
def test_the_live_model_equals_the_folder_and_is_closer_to_the_uncut_model(
    kind: str, tmp_path: Path
) -> None:
    folder = made(kind, tmp_path)
    gptailor.compile(said(folder, ONE), tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    live, bare, full = (stitch(said(folder, text)) for text in (ONE, "drop L2..L3", ""))
    own = written.state_dict()
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    last = [
        torch.cat([states(each, row) for row in rows(folder / "base", 1600)])
        for each in (live, bare, full)
    ]
    assert (last[0] - last[2]).norm() < 0.95 * (last[1] - last[2]).norm()


def states(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(tokens, output_hidden_states=True).hidden_states[-1][0]


def test_another_packages_fit_has_no_norm(tmp_path: Path) -> None:
    GAP_FITS.add("ordinary", object, __name__)
    try:
        plan = said(
            made("gemma3_text", tmp_path), ONE.replace("bridge on", "bridge by ordinary on")
        )
        [fault] = gptailor.check(plan)
    finally:
        for table in (GAP_FITS, GAP_FITS._modules):
            del table["ordinary"]
    assert fault.code == "M219"
    assert "L0 of 'base' has a norm after its MLP, which 'ordinary' can't fit" in fault.message
    assert fault.help == "remove 'by ordinary'"
