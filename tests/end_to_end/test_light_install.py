"""Without torch and all that extras bring, plans are checked, shown, converted and compiled.

One process that can't import these packages runs all commands.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gptailor.cli.main import COMMANDS
from gptailor.plan.optional_packages import (
    DISTRIBUTIONS,
    EXTRAS,
    MissingPackageError,
    missing_package,
    packages_needed,
)
from tests.support.tiny_adapter import adapter

ROOT = Path(__file__).parents[2]
BROUGHT = sorted({"array_api_compat", "safetensors"} | {m for ms in EXTRAS.values() for m in ms})
SCRIPT = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))  # None: can't be imported
import gptailor
from gptailor.cli.main import run

found = {}
for line in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(line.split())
    found[line] = code, out.getvalue(), err.getvalue()
for verb, call in {
    "judge": lambda: gptailor.evaluate(["moves.tailor"], 'nll("text.txt")'),
    "search": lambda: gptailor.search(gptailor.load("open.tailor"), "run"),
    "compile": lambda: gptailor.compile(gptailor.load("healed.tailor"), "healed"),
    "on cuda": lambda: gptailor.compile(
        gptailor.load("moves.tailor"), "there", compute=gptailor.ComputeOptions(device="cuda")
    ),
}.items():
    try:
        call()
    except gptailor.TailorError as error:
        found[verb] = error.exit_code, "", str(error)
print(json.dumps(found))
"""
MOVES = """\
tailor 1
model base = "{family}/base"
model math = "{family}/math"
L0..L1 from math
L2.mlp from math
drop L4
"""
MERGEKIT = """\
slices:
  - sources:
      - model: {family}/base
        layer_range: [0, 4]
merge_method: passthrough
dtype: float32
"""
DONE = [
    "--help",
    "--version",
    "check moves.tailor merges.tailor healed.tailor open.tailor",
    "fmt moves.tailor",
    "show moves.tailor",
    "show --program merges.tailor",
    "json moves.tailor",
    "schema",
    "completion bash",
    "import mergekit.yml -o imported.tailor",
    "export imported.tailor",
    "compile merges.tailor -o dry --dry-run",
    "compile moves.tailor -o out --lock",
    "compile moves.tailor -o again --locked",
    "compile merges.tailor -o merged",
    "compile moves.tailor -o cast --dtype float16",
    "lock merges.tailor",
    "lock imported.tailor",
    "verify out",
    "show out",
    "diff moves.tailor out",
]
DONE = [line for line in DONE if not COMMANDS.problem(line.split()[0])]
TORCH = "needs torch: pip install 'gptailor[torch]'"
BOTH = "needs torch and transformers: pip install 'gptailor[torch]'"
ADAPTED = f"arithmetic with quantised, adapted or pickled weights {BOTH}"
REFUSED = {
    "compile adapted.tailor -o adapted": ADAPTED,
    "compile healed.tailor -o healed": f"a narrowed, bridged or healed plan {BOTH}",
    'eval moves.tailor --objective nll("text.txt")': f"this {TORCH}",
    "generate moves.tailor Tomatoes": f"this {TORCH}",
    "family out": f"this {TORCH}",
    "extract-lora out again -o lora": f"this {TORCH}",
    "search open.tailor -o run": "a search needs torch, transformers, jax and optax: "
    "pip install 'gptailor[search]'",
    "search open.tailor -o run --trials 3": "a search needs torch, transformers, jax and "
    "optax: pip install 'gptailor[search]'",
}
REFUSED = {line: said for line, said in REFUSED.items() if not COMMANDS.problem(line.split()[0])}
VERBS = {
    "judge": f"gptailor.evaluate {TORCH}",
    "search": "gptailor.search needs torch, transformers, jax and optax: "
    "pip install 'gptailor[search]'",
    "compile": f"a narrowed, bridged or healed plan {BOTH}",
    "on cuda": f"the device 'cuda' {BOTH}",
}


@pytest.fixture(scope="module")
def place(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light")
    moves = MOVES.format(family=family)
    plans = {
        "moves": moves,
        "merges": moves + "merge(L3 base, L3 math, 0.5)\n",
        "adapted": f'tailor 1\nmodel base = "{family}/base"\nmodel math = base + "./adapter"\n'
        "L0..L1 from math\n",
        "healed": moves + 'heal on "text.txt"\n',
        "open": moves.replace("drop L4", "drop any 1 of L3..L5")
        + 'search {\n  minimize nll("text.txt")\n}\n',
    }
    for name, text in plans.items():
        (folder / f"{name}.tailor").write_text(text)
    adapter(folder / "adapter")
    (folder / "text.txt").write_text("Tomatoes are red.\n")
    (folder / "mergekit.yml").write_text(MERGEKIT.format(family=family))
    return folder


@pytest.fixture(scope="module")
def said(place: Path) -> Mapping[str, tuple[int, str, str]]:
    """Return each command's exit code, output and errors."""
    lines = json.dumps([*DONE, *REFUSED, "compile moves.tailor -o out.gguf"])
    command = [sys.executable, "-c", SCRIPT, json.dumps(BROUGHT), lines]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("line", DONE)
def test_a_command_runs_without_extras(said: Mapping[str, tuple[int, str, str]], line: str) -> None:
    code, out, err = said[line]
    assert (code, err) == (0, ""), out


@pytest.mark.parametrize("name", [*REFUSED, *VERBS])
def test_a_missing_extra_is_reported_once_with_its_installation(
    said: Mapping[str, tuple[int, str, str]], name: str
) -> None:
    expected = f"error: {REFUSED[name]}\n" if name in REFUSED else VERBS[name]
    assert said[name] == [3, "", expected]


def test_a_gguf_file_names_its_package(said: Mapping[str, tuple[int, str, str]]) -> None:
    code, _, err = said["compile moves.tailor -o out.gguf"]
    assert code == 3
    assert "error[C110]" in err
    assert "help: pip install 'gptailor[gguf]'" in err


def test_refused_commands_leave_no_folder(
    said: Mapping[str, tuple[int, str, str]], place: Path
) -> None:
    there = {path.name for path in place.iterdir() if path.is_dir()}
    assert len(said) == len(DONE) + len(REFUSED) + 1 + len(VERBS)
    assert there == {"adapter", "out", "again", "merged", "cast"}


def test_every_extra_is_one_of_the_project_and_has_these_packages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]

    def brought(extra: str) -> set[str]:
        results = set()
        for wanted in extras[extra]:
            if inner := re.fullmatch(r"gptailor\[(.+)\]", wanted):
                results |= {name for item in inner[1].split(",") for name in brought(item)}
            else:
                results.add(re.split(r"[<>=\[]", wanted)[0].replace("-", "_"))
        return results

    for extra, modules in EXTRAS.items():
        packages = {DISTRIBUTIONS.get(module, module).replace("-", "_") for module in modules}
        assert packages <= brought(extra), extra
    assert brought("all") >= brought("torch") | brought("search") | brought("gguf")


def test_a_package_that_no_extra_brings_is_an_error_of_the_program() -> None:
    assert missing_package(ModuleNotFoundError("No module named 'x'", name="x")) is None
    with pytest.raises(ModuleNotFoundError, match="gptailor_absent"), packages_needed():
        import gptailor_absent  # noqa: F401
    error = ModuleNotFoundError(name="safetensors.torch")
    assert isinstance(missing_package(error), MissingPackageError)
