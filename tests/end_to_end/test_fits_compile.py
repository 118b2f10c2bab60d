"""One contract over all fits: compiled, locked, verified, shown, interrupted and refused alike."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

import gptailor
from gptailor.checkpoint.files import CheckpointError
from gptailor.cli.main import run
from gptailor.evaluation.fits.repair import stitch
from gptailor.output.lock import read_lock
from gptailor.plan.events import Event, Progress
from gptailor.plan.faults import PlanError
from gptailor.plan.plan import Plan
from gptailor.plan.registry import GAP_FITS
from gptailor.prepare import prepare
from gptailor.program.fits import FITS
from gptailor.reporting.fit_words import FIT_WORDS
from tests.support.thorough import THOROUGH
from tests.support.tiny import letters, tiny_model
from tests.support.tiny_vision import tiny_vision
from tests.support.vocabularies import TEXT, write_byte_level

pytestmark = pytest.mark.usefixtures(
    "no_progress_bars", "one_thread", "own_cache", "renders_here", "brief_answers"
)

SHARE = r"(-?\d+\.\d%)"


class Case(NamedTuple):
    """A fit: its statements, its place, its name in refusals, and what people read of it."""

    statement: str
    at: str
    named: str
    tokens: int
    dry: str
    begins: str
    line: str
    card: str
    beside: str = ""
    base: str = "llama"
    fitted: bool = True


CASES = {
    "vocabulary": Case(
        'vocabulary 290 on "text.txt"', "vocabulary", "'vocabulary'", 2340,
        "vocabulary  290 on", "",
        rf"vocabulary: 290 of 360 tokens; the text that chose them keeps {SHARE} of its tokens",
        "| 290 | 360 | {} |", fitted=False,
    ),
    "experts": Case(
        'experts 3 on "text.txt" tokens 600', "experts", "'experts'", 600,
        "choosing experts  about", "comparing the experts of 6 layers, keeping 3 in each",
        rf"experts: 3 of a layer stay, chosen on 600 tokens; they have {SHARE} of the",
        "| 3 | `text.txt` | 600 | {} |", base="moe", fitted=False,
    ),
    "width": Case(
        'width 16 on "text.txt" tokens 600', "width", "'width'", 600,
        "narrowing   about", "narrowing 6 MLPs to 16 neurons",
        rf"width: fitted on 600 tokens; the fits recover {SHARE} of the error",
        "| 16 | `text.txt` | 600 | 0.1 | {} |",
    ),
    "bridge": Case(
        'bridge on "text.txt" tokens 600', "L1", "the bridge after L1", 600,
        "bridging    about", "bridging the gap after L1",
        rf"bridge after L1: fitted on 600 tokens; it recovers {SHARE} of the missing",
        "| L1 | `text.txt` | 600 | 0.1 | {} |", beside="drop L2",
    ),
    "a package's": Case(
        'bridge by ordinary on "text.txt" tokens 600', "L1", "the bridge after L1", 600,
        "bridging    about", "bridging the gap after L1", "bridge after (L1): fitted on 600 tokens",
        "| {} | `text.txt` | 600 | 0.1 | unknown |", beside="drop L2",
    ),
    "heal": Case(
        'heal on "text.txt" tokens 1024 rank 4', "heal", "'heal'", 1024,
        "healing     about", "healing: step 8 of 8, ",
        r"healed on (1,024) tokens: \d\.\d+ nats a token from the teacher, healed \d\.\d+ \(on 128",
        "| `text.txt` | {} | all layers | of rank 4, folded", beside="drop L2",
    ),
}  # fmt: skip


class Ordinary(gptailor.GapFit):
    """Least squares with equal weights of all tokens."""

    def __init__(self, width_in: int, width_out: int, device: torch.device) -> None:
        super().__init__(width_in, width_out, device)
        self.x = list[torch.Tensor]()
        self.missing = list[torch.Tensor]()

    def add(self, x: torch.Tensor, missing: torch.Tensor, target: torch.Tensor) -> None:
        self.x.append(x.double())
        self.missing.append(missing.double())

    def change(self, ridge: float) -> torch.Tensor:
        return torch.linalg.lstsq(torch.cat(self.x), torch.cat(self.missing)).solution


@pytest.fixture(autouse=True)
def _ordinary() -> Iterator[None]:
    GAP_FITS.add("ordinary", Ordinary, __name__)
    yield
    for table in (GAP_FITS, GAP_FITS._modules):
        del table["ordinary"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    for seed, name in enumerate(("base", "math")):
        ids = {"vocab_size": 368, "bos_token_id": 356, "eos_token_id": 358}
        tiny_model("llama", folder / "llama" / name, seed=seed, **ids)
        write_byte_level(folder / "llama" / name)
        tiny_model("mixtral", folder / "moe" / name, seed=seed, num_local_experts=6)
    return folder


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def here(case: Case, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the case's models, text and plan."""
    shutil.copytree(made / case.base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "text.txt").write_text(TEXT.replace("\r", "") * 12)
    plan_of(tmp_path, case.beside, case.statement)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan_of(folder: Path, *statements: str) -> Plan:
    lines = ('tailor 1\nmodel base = "./base"\nmodel math = "./math"', *statements, "")
    (folder / "plan.tailor").write_text("\n".join(lines))
    return gptailor.load(folder / "plan.tailor")


def same(one: Path, other: Path) -> bool:
    tensors, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert tensors.keys() == others.keys()
    return all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_each_fit_is_a_case() -> None:
    assert (
        CASES.keys() == {"a package's", *(fit.word for fit in FITS)} == {"a package's", *FIT_WORDS}
    )


def test_a_folder_is_shown_locked_verified_and_held_to(
    case: Case, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compile", "plan.tailor", "-o", "out", "--dry-run"]) == 0
    assert case.dry in capsys.readouterr().out
    assert not (here / "out").exists()
    assert run(["compile", "plan.tailor", "-o", "out", "--lock"]) == 0
    output = capsys.readouterr()
    assert case.begins in output.err
    result = re.search(rf"^{case.line}", output.out, re.MULTILINE)
    assert result is not None, output.out
    assert case.card.format(result[1]) in (here / "out" / "README.md").read_text()
    lock, plan = read_lock(here / "plan.tailor.lock"), gptailor.load("plan.tailor")
    assert {at: text.tokens for at, text in lock.texts.items()} == {case.at: case.tokens}
    sketched = {name for name, tensor in lock.tensors.items() if tensor.sketch}
    assert sketched == (prepare(plan).compiled.program.fitted if case.fitted else set())
    assert bool(sketched) == case.fitted
    assert gptailor.verify("out").result == "verified"
    again = gptailor.compile(gptailor.load("out/plan.tailor"), "again", locked=lock)
    assert [*again.fits] == [case.at]
    assert same(here / "out", here / "again")
    assert gptailor.lock(plan).tensors == lock.tensors, "made anew"
    assert run(["compile", "plan.tailor", "-o", "out"]) == 0
    assert "nothing changed" in capsys.readouterr().out
    (here / "text.txt").write_text(TEXT * 11)
    with pytest.raises(
        CheckpointError, match=f"calibration text of {case.named} differs"
    ) as caught:
        gptailor.compile(plan, "third", locked=lock)
    assert caught.value.code == "C704"
    assert not (here / "third").exists()
    (here / "text.txt").unlink()
    gone = gptailor.verify("out")
    assert gone.result == "unverified"
    if sketched:
        where = f"their calibration text is missing ({Path('out/../text.txt')})"
        assert gone.unverified == (f"{len(sketched)} fitted or healed tensors: {where}",)


@pytest.mark.parametrize("case", [name for name in CASES if name != "vocabulary"], indirect=True)
def test_an_interrupted_run_leaves_nothing_and_the_next_one_gives_the_same(
    case: Case, here: Path
) -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.done:
            raise KeyboardInterrupt

    before = set(here.iterdir())
    with pytest.raises(KeyboardInterrupt):
        gptailor.compile("plan.tailor", "out", on_event=on_event)
    assert set(here.iterdir()) == before
    gptailor.compile("plan.tailor", "out")
    steps = list[int]()
    gptailor.compile("plan.tailor", "again", on_event=lambda event: noted(event, steps))
    assert not any(steps), "a kept result takes no steps"
    assert same(here / "out", here / "again")


def noted(event: Event, steps: list[int]) -> None:
    if isinstance(event, Progress):
        steps.append(event.done)


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (name, text)
        for name in CASES
        for text in (None, "abc")
        if (name, text) != ("vocabulary", "abc")
    ],
    indirect=["case"],
)
def test_an_unusable_text_is_one_fault_and_writes_nothing(
    text: str | None, case: Case, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "text.txt").unlink()
    if text is not None:
        (here / "text.txt").write_text(text)
    code = "C801" if text is None else "C806"
    into = "plan.tailor", "-o", "out"
    for command in (["compile", *into], ["compile", *into, "--dry-run"], ["lock", "plan.tailor"]):
        assert run(command) == 1
        output = capsys.readouterr().err
        assert output.count("error[") == 1
        assert f"error[{code}]: " in output
        assert " --> plan.tailor:" in output
    with pytest.raises(PlanError):
        stitch(gptailor.load("plan.tailor"))
    assert not (here / "out").exists()


# ------------------------------------------------------------------------------- with other parts


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(torch.arange(40)[None]).logits
    return result


BESIDE = (
    'drop L2..L3\nbridge on "text.txt" tokens 800',
    'drop L1, L3\nheal on "text.txt" tokens 512 rank 2',
    "repeat L1..L2\nL4 from math",
    "L0..L5 from base, math by linear()",
    "dtype bfloat16",
    "scale L1 by 0.9",
)


CUTS = ("vocabulary", "experts", "width")
CUTS_BESIDE = [
    (name, beside)
    for number, name in enumerate(CUTS)
    for place, beside in enumerate(BESIDE)
    if THOROUGH or place % len(CUTS) == number
]
"""Each statement with one cut, and with all cuts in `make thorough`."""


@pytest.mark.parametrize(
    ("case", "beside"),
    [*((name, "") for name in CASES), *CUTS_BESIDE],
    indirect=["case"],
)
def test_a_live_model_equals_the_compiled_folder(beside: str, case: Case, here: Path) -> None:
    plan = plan_of(here, case.beside, beside, case.statement)
    gptailor.compile(plan, "out")
    live = stitch(plan)
    after = AutoModelForCausalLM.from_pretrained("out")
    assert live.config.to_diff_dict() == after.config.to_diff_dict()
    for name, tensor in live.state_dict().items():
        assert torch.equal(after.state_dict()[name], tensor)
    assert torch.equal(logits(live), logits(after))


@pytest.mark.parametrize(
    ("case", "tensor", "says"),
    [
        ("experts", "block_sparse_moe.experts.1.w3", "the experts of L2"),
        ("width", "mlp.up_proj", "the MLP of L2"),
        ("bridge", "mlp.down_proj", "the gap after L1"),
        ("heal", "mlp.down_proj", "'heal' can't learn"),
    ],
    indirect=["case"],
)
def test_nan_in_a_weight_is_named(tensor: str, says: str, here: Path, case: Case) -> None:
    file, name = here / "base" / "model.safetensors", f"model.layers.2.{tensor}.weight"
    tensors = load_file(file)
    tensors[name][3, 4] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(gptailor.TailorError) as caught:
        gptailor.compile("plan.tailor", "out")
    assert f"{says}: " in str(caught.value)
    assert f"{name}' in " in str(caught.value)
    assert "model.safetensors contains NaN" in str(caught.value)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("kind", "cut", "setting", "size"),
    [
        ("qwen3_5_moe", "experts 3", "num_experts", 3),
        ("llava", "width 16", "intermediate_size", 16),
        ("gemma3", "width 16", "intermediate_size", 16),
    ],
)
def test_the_language_model_of_a_wrapper_is_cut(
    kind: str, cut: str, setting: str, size: int, tmp_path: Path
) -> None:
    tiny_vision(kind, tmp_path / "base")
    (tmp_path / "text.txt").write_text(letters(600))
    text = f'tailor 1\nmodel base = "./base"\n{cut} on "text.txt"'
    plan = gptailor.loads(text, folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    after = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert getattr(after.config.get_text_config(), setting) == size
    assert torch.equal(logits(stitch(plan)), logits(after))
