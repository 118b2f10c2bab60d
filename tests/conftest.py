"""Fixtures of all tests: tiny models, sound and unsound ones, and Hypothesis's settings."""

import gc
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import providers

from tests.support import checked
from tests.support.preloaded import Preloaded, preloaded
from tests.support.seeded import ORDER, order, seed
from tests.support.thorough import PAGES, THOROUGH, drawn, is_left_out

# Before torch is imported, and for the processes that tests start: on tiny tensors its threads
# only wait for each other, and pytest-xdist keeps the cores busy. The tests' JAX is on the CPU.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Hundreds of small searches compile the same: once, for all processes and for the next run too.
COMPILED = Path(tempfile.gettempdir()) / "gptailor-jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# Nothing of the user's is read or written: a process of tests has a home of its own, and each test
# a cache (`own_cache`). `KEPT` has the values that sessions' fixtures keep.
OWN = Path(tempfile.mkdtemp(prefix="gptailor-tests-"))
HOME, KEPT = OWN / "home", OWN / "kept"
HOME.mkdir()
for variable in [name for name in os.environ if name.startswith(("XDG_", "HF_", "HUGGINGFACE_"))]:
    del os.environ[variable]
os.environ |= {"HOME": str(HOME), "XDG_CACHE_HOME": str(KEPT)}

checked.install()
gc.disable()  # until all tests are collected: imported objects stay

TESTS = Path(__file__).parent


def _there(fd: Any) -> None:
    os.fstat(fd if isinstance(fd, int) else fd.fileno())


FSYNC = os.fsync
"""The real `fsync`. A compilation calls it for each of its ten files, which takes milliseconds."""
os.fsync = _there

settings.register_profile(
    "default",
    deadline=None,
    max_examples=drawn(100),
    derandomize=not THOROUGH,  # `make test` judges the change, `make thorough` draws anew
    print_blob=THOROUGH,
    phases=set(Phase) - {Phase.explain},
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("default")
if not THOROUGH:  # Hypothesis draws constants of the modules that this process has imported so far
    vars(providers)["_get_local_constants"] = vars(providers)["Constants"]

# A script's background jobs ignore Ctrl-C, and so would the processes that tests start: tests of
# interrupts need one that acts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
}
"""Models of the base's family that differ from it in one thing each."""

STRANGERS: dict[str, str] = {
    "qwen": "qwen2",  # another architecture
    "mixed": "gemma3_text",  # layers of two kinds
    "deep": "deepseek_v3",  # a dense layer first, sparse ones after it
    "scalar": "gemma4_text",  # a number on each layer's output
    "joint": "cohere",  # both branches of a layer read one norm's output
}
"""Models of other families."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Don't even import the files that `make test` leaves out."""
    left_out = "not pages" in config.option.markexpr
    return True if left_out and str(collection_path.relative_to(TESTS)) in PAGES else None


def pytest_report_header() -> str:
    return f"the order of the tests again: SEED={ORDER}"


@pytest.hookimpl(tryfirst=True)  # pytest then brings tests of one parameter of a module together
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The type checker of the tests looks at one item of a list, drawn by `random`.
    quiet = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
    cases: Counter[str] = Counter()
    for item in items:
        item.add_marker(quiet)
        if item.get_closest_marker("wrong_types") and config.getoption("jaxtyping_packages"):
            item.add_marker(pytest.mark.skip(reason="types are checked at each call"))
        file, _, name = item.nodeid.removeprefix("tests/").partition("::")
        test = f"{file}::{name.partition('[')[0]}"
        if file in PAGES:
            item.add_marker(pytest.mark.pages)
        if is_left_out(file, name, cases[test]):
            item.add_marker(pytest.mark.thorough)
        cases[test] += 1
    items.sort(key=lambda item: order(item.nodeid))


def pytest_unconfigure() -> None:
    shutil.rmtree(OWN, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: Any) -> None:
    """Seed by the fixture: the test that first asks for a shared one depends on xdist's split."""
    seed(f"{fixturedef.baseid}::{fixturedef.argname}[{request.param_index}]")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Seed by the test."""
    seed(item.nodeid)


def pytest_collection_finish() -> None:
    # Some million objects stay: looking for garbage among them takes 6 % of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    gc.enable()


ended = count(1)
caches = count(1)


def pytest_runtest_logfinish() -> None:
    # Fits, healing and evaluators collect each time, and what tests import is looked through again.
    if next(ended) % 5 == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models: `base` and its mates, unfit ones, and broken ones."""
    from transformers.utils import logging

    from tests.support.tiny import tiny_model
    from tests.support.tiny_vision import tiny_vision
    from tests.support.vocabularies import write_byte_level

    folder = tmp_path_factory.mktemp("family")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for name, wanted in {**MATES, **UNFIT}.items():
        tiny_model("llama", folder / name, **wanted)
    for name, kind in STRANGERS.items():
        tiny_model(kind, folder / name)
    tiny_vision("qwen3_vl", folder / "eyes")
    tiny_model("llama", folder / "bytes", vocab_size=368)
    write_byte_level(folder / "bytes")
    tiny_model("mixtral", folder / "mixture", layers=1)
    make_broken(folder)
    for text in ("a.txt", "b.txt"):  # which plans of tests name
        (folder / text).write_text("a text\n")
    (folder / "t.txt").write_text("a text\n" * 9)  # enough tokens for a bridge
    return folder


@pytest.fixture(scope="module")
def no_progress_bars() -> Iterator[None]:
    """Bars of transformers are off here, and as before afterwards."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if shown:
        logging.enable_progress_bar()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    import torch  # most tests need no torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _cache_of_the_module() -> Iterator[None]:
    """A cache for the fixtures of a module."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(OWN / f"module {next(caches)}"))
        yield


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, without anything learned before; and the home stays empty."""
    folder = OWN / f"test {next(caches)}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    left = sorted(str(path.relative_to(HOME)) for path in HOME.rglob("*"))
    for path in HOME.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not left, "a test wrote to the home"


@pytest.fixture(scope="module")
def to_the_disk() -> Iterator[None]:
    """Sync files to the disk; other tests don't ask for the effect of a power failure."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", FSYNC)
        yield


@pytest.fixture
def renders_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chats are rendered in this process, not in one that imports transformers for each text."""
    from gptailor.evaluation import chat_renderer
    from gptailor.evaluation import chat_text as chat

    def render(request: str, _: int) -> dict[str, Any]:
        return dict(chat_renderer._answer(json.loads(request)))

    monkeypatch.setattr(chat, "_render", render)


@pytest.fixture(scope="module")
def brief_answers() -> Iterator[None]:
    """The answers that commands show in the end are two tokens long: each is a forward pass."""
    from gptailor.evaluation import generate  # imports torch

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generate, "SHORT_TOKENS", 2)
        yield


@pytest.fixture(scope="session", name="preloaded")
def _preloaded() -> Iterator[Preloaded]:
    """A process that has imported the modules of a search, and runs scripts in its forks."""
    with preloaded() as started:
        yield started


def make_broken(folder: Path) -> None:
    """Folders made from sound ones, wrong in one thing each, one that is quantised, and plans."""
    from safetensors.torch import load_file, save_file

    from tests.support.quantised import write_quantised  # imports torch

    copy(folder, "quantised", quantization_config={"quant_method": "gptq", "bits": 4})
    copy(folder, "fp8")
    write_quantised(folder / "fp8", "fp8-block")
    copy(folder, "unknown", model_type="mystery", architectures=["MysteryForCausalLM"])
    copy(folder, "predicting", num_nextn_predict_layers=1)
    tensors = load_file(folder / "base" / "model.safetensors")
    tensors["model.layers.6.eh_proj.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "predicting" / "model.safetensors", {"format": "pt"})
    copy(folder, "numberless", num_hidden_layers=None)
    copy(folder, "integers")
    down_projection(folder / "integers", lambda tensor: tensor.char())
    copy(folder, "lacking")
    down_projection(folder / "lacking", lambda _: None)
    copy(folder, "mute", source="vocab")
    for path in (folder / "mute").glob("tokenizer*"):
        path.unlink()
    copy(folder, "extended")
    tokens(folder / "extended", lambda ids: {**ids, "€": len(ids)})
    copy(folder, "overfull")
    tokens(folder / "overfull", lambda ids: {**ids, "€": 64, "£": 65})
    copy(folder, "foreign")
    tokens(folder / "foreign", lambda ids: {**ids, "a": ids["b"], "b": ids["a"]})
    copy(folder, "blind", source="eyes")
    copy(folder, "coded")
    names_code(folder / "coded" / "tokenizer_config.json")
    moved = {60: 61, 61: 60}
    tokens(folder / "blind", lambda ids: {token: moved.get(n, n) for token, n in ids.items()})
    (folder / "empty").mkdir()
    head = 'tailor 1\nmodel base = "./base"\n'
    (folder / "open.tailor").write_text(f"{head}maybe drop L1\n")
    circle = f'{head}model again = "./circle.tailor"\nL0 from again\n'
    (folder / "circle.tailor").write_text(circle)


def copy(folder: Path, name: str, *, source: str = "base", **config: object) -> None:
    """A model under another name, its configuration changed."""
    shutil.copytree(folder / source, folder / name)
    path = folder / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def names_code(path: Path) -> None:
    """Let a file of settings name code, which would end the process, at two depths."""
    (path.parent / "code.py").write_text("raise SystemExit('the code was run')")
    settings_ = json.loads(path.read_text()) if path.exists() else {}
    named = {"auto_map": {"AutoTokenizer": ["code.Own", None]}}
    path.write_text(json.dumps({**settings_, **named, "inner": {"list": [{"a": 1, **named}]}}))


def tokens(folder: Path, change: Callable[[dict[str, int]], dict[str, int]]) -> None:
    """Give the tokenizer of a folder another vocabulary."""
    path = folder / "tokenizer.json"
    settings_ = json.loads(path.read_text())
    settings_["model"]["vocab"] = change(settings_["model"]["vocab"])
    path.write_text(json.dumps(settings_))


def down_projection(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change a tensor of L1, or leave it out."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = change(tensors[name])
    made = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_file(made, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(
    params=[
        pytest.param("pretended", marks=pytest.mark.wrong_types),
        pytest.param("real", marks=pytest.mark.gpu),
    ]
)
def cuda(request: pytest.FixtureRequest) -> Iterator[str]:
    """A CUDA device's name: a pretended card's, and the machine's card's if it has one."""
    import torch

    from tests.support.second_device import second_device

    if request.param == "pretended":
        with second_device():
            yield "cuda"
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.skip("there is no CUDA device")
