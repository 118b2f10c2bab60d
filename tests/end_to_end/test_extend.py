"""Methods, objectives, strategies, families, fits and commands of other packages."""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gptailor
from gptailor.checkpoint.families.family_file import FAMILY_FILES
from gptailor.cli.main import COMMANDS, run
from gptailor.lang.importers import IMPORTERS
from gptailor.plan.doors import Door, _entry_point_files, _points
from gptailor.plan.registry import GAP_FITS, METHODS, OBJECTIVES, STRATEGIES
from gptailor.program.packages import search_packages
from gptailor.testing import ContractError, check_method, check_objective, check_strategy

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
EXAMPLE = Path(__file__).parents[2] / "examples" / "tpe.py"
pytestmark = pytest.mark.usefixtures("brief_answers")

Install = Callable[..., Path]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _doors_as_before() -> Iterator[None]:
    """Forget the entries of a test's packages."""
    tables = (METHODS, OBJECTIVES, STRATEGIES, FAMILY_FILES, GAP_FITS, IMPORTERS, COMMANDS)
    before = [(dict(table), dict(table._modules), dict(table._problems)) for table in tables]
    yield
    for table, (entries, modules, problems) in zip(tables, before, strict=True):
        for own, kept in ((table, entries), (table._modules, modules), (table._problems, problems)):
            own.clear()
            own.update(kept)
    Door.failures.clear()
    _points.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package as pip does: its module, and its metadata in the same folder."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(
        name: str, code: str, entries: dict[str, dict[str, str]], *, version: str = "1.0"
    ) -> Path:
        module = name.replace("-", "_")
        sys.modules.pop(module, None)
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        for old in site.glob(f"{module}-*.dist-info"):
            shutil.rmtree(old)
        metadata = site / f"{module}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        lines = [
            line
            for group, points in entries.items()
            for line in (f"[gptailor.{group}]", *(f"{n} = {at}" for n, at in points.items()))
        ]
        (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
        _points.cache_clear()
        return site

    return install


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([*map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return command


METHOD = """
    import gptailor
    import numpy as np

    @gptailor.merge_method("middle", formula="the mean of the extremes", least=2, by_entry=True)
    def middle(sources, base):
        return {result}
"""
MIDDLE = METHOD.format(result="(np.minimum(*sources) + np.maximum(*sources)) / 2")
AT = {"methods": {"middle": "mine:middle"}}


@pytest.fixture
def here(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan that uses the method `middle`."""
    text = f'tailor 1\nmodel base = "{family}/base"\nmodel math = "{family}/math"\n'
    (tmp_path / "p.tailor").write_text(f"{text}merge(L1 base, L1 math) by middle()\n")
    (tmp_path / "half.tailor").write_text(f"{text}merge(L1 base, L1 math, 0.5)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def page_package(folder: Path) -> tuple[str, dict[str, dict[str, str]]]:
    """The package of the page: its module with the example, and its entry points by group."""
    page = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    groups: dict[str, dict[str, str]] = {}
    for group, entries in re.findall(r'entry-points\."gptailor\.(\w+)"\]\n((?:\w+ = .*\n)+)', page):
        groups[group] = dict(re.findall(r'(\w+) = "(.*)"', entries))
    code = [block for block in blocks if "gptailor.testing" not in block]
    return "\n".join([*code, EXAMPLE.read_text()]), groups


@pytest.mark.slow
@pytest.mark.pages
def test_the_example_package_of_the_page_works(
    install: Install, here: Path, family: Path, command: Command
) -> None:
    code, groups = page_package(here)
    expected_groups = {"methods", "objectives", "strategies", "families", "fits", "importers"}
    assert groups.keys() == expected_groups
    site = install("gptailor-mine", code, groups)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if "gptailor.testing" in block:
            exec(block, {})  # the page's own tests
    rows = [{"context": "a b c", "answer": "d"} for _ in range(4)]
    (here / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (here / "t.txt").write_text("the cats sat on the mats. " * 300)
    head = (here / "half.tailor").read_text().partition("merge")[0]
    (here / "space.tailor").write_text(
        f"{head}L0 from base, math by median(mean=0.25)\nmaybe drop L1\nmaybe drop L2\n"
        'maybe drop L3\nsearch { minimize entropy("t.txt"); minimize brevity("a.jsonl")\n'
        "  trials 6; fidelity 2..3 }\n"
    )
    done = command("search", "space.tailor", "-o", "run", "--strategy", "tpe", "--device", "cpu")
    assert done[0] == 0, done[2]
    by = "gptailor-mine 1.0"
    expected = [f"{name} of {by}" for name in ("median", "entropy", "brevity", "tpe")]
    assert json.loads((here / "run" / "run.json").read_text())["packages"] == expected
    assert command("compile", "run/best.tailor", "-o", "out", "--locked")[0] == 0
    assert json.loads((here / "out" / "plan.tailor.lock").read_text())["methods"] == {"median": by}
    assert f"gptailor {gptailor.__version__} and {by}." in (here / "out" / "README.md").read_text()
    done = command("eval", "out", "-O", 'entropy("t.txt")', "--no-speed")
    assert done[0] == 0, done[2]
    assert f"tpe of {by}" in (here / "run" / "summary.md").read_text()
    assert FAMILY_FILES["my_llama"] == site / "my_llama.family.json"
    bridged = f'drop L2\nbridge by patch on "{here}/t.txt" tokens 512 ridge 0.1\n'
    (here / "bridged.tailor").write_text(head + bridged)
    assert command("compile", "bridged.tailor", "-o", "bridged", "--lock")[0] == 0
    assert json.loads((here / "bridged.tailor.lock").read_text())["methods"] == {"patch": by}
    assert "The gaps are closed by `patch`" in (here / "bridged" / "README.md").read_text()
    assert command("verify", "bridged")[0] == 0
    (here / "cut.txt").write_text("4 2\n")
    code, out, output = command("import", "cut.txt", "--from", "mytool")
    assert (code, out) == (0, 'tailor 1\n\nmodel base = "./base"\n\ndrop L2, L4\n')
    assert output == "note: cut.txt: base: the file names no model; './base' is assumed\n"
    code, _, output = command("import", "cut.txt", "--from", "mytol")
    assert code == 2
    assert "there is no importer for 'mytol'; did you mean 'mytool'?" in output


@pytest.mark.parametrize("options", [False, True])
def test_an_importer_receives_the_options_if_it_takes_them(
    install: Install, here: Path, command: Command, options: bool
) -> None:
    code = f"""
        import gptailor
        from gptailor.lang.importers import Importer

        def read(text, name, **given):
            print(sorted(given), *given.values())
            return gptailor.loads(text), []

        MINE = Importer(read, options={options})
    """
    install("mine", code, {"importers": {"mytool": "mine:MINE"}})
    flags = (
        "--layers",
        4,
        "--base",
        "b",
        "--model",
        "math=m",
        "--strict",
        "-o",
        "plans/new.tailor",
    )
    (here / "plans").mkdir()
    done, out, _ = command(
        "import", "half.tailor", "--from", "mytool", *flags, "-o", "plans/new.tailor"
    )
    assert done == 0
    names = ["folder", "layers", "models", "strict"]
    models = {"math": Path("m"), "base": Path("b")}
    received = f"{names} 4 plans {models} True" if options else "[]"
    assert out == f"{received}\nplans/new.tailor: written\n"


def test_a_method_of_a_package_merges_and_is_locked_with_its_version(
    install: Install, here: Path, command: Command
) -> None:
    install("mine", MIDDLE, AT)
    assert command("check", "p.tailor")[0] == 0
    assert command("lock", "p.tailor")[0] == 0
    assert command("compile", "p.tailor", "-o", "out", "--locked")[0] == 0
    command("compile", "half.tailor", "-o", "half")
    weights = "model.safetensors"
    assert (here / "out" / weights).read_bytes() == (here / "half" / weights).read_bytes()
    assert command("verify", "out")[0] == 0
    install("mine", MIDDLE, AT, version="1.1")
    code, _, output = command("compile", "p.tailor", "-o", "other", "--locked")
    differs = "method 'middle': expected the package mine 1.0 as in the lock, got mine 1.1"
    assert code == 3
    assert f"error[C703]: {differs}\n" in output
    assert not (here / "other").exists()
    result = gptailor.verify("out")
    (difference,) = result.differences
    assert difference.message == differs
    assert difference.path == Path("out/plan.tailor")
    assert command("verify", "out")[0] == 1
    assert command("verify", "out", "--tensors-only")[0] == 0
    assert command("lock", "p.tailor")[0] == 0
    locked = json.loads((here / "p.tailor.lock").read_text())
    assert locked.pop("methods") == {"middle": "mine 1.1"}
    (here / "p.tailor.lock").write_text(json.dumps(locked))
    output = command("compile", "p.tailor", "-o", "other", "--locked")[2]
    assert "method 'middle': expected the package gptailor as in the lock, got mine 1.1" in output


def test_the_lock_next_to_a_plan_names_a_missing_package(
    install: Install, here: Path, command: Command
) -> None:
    site = install("mine", MIDDLE, AT)
    assert command("compile", "p.tailor", "-o", "out", "--lock")[0] == 0
    shutil.rmtree(site / "mine-1.0.dist-info")
    _points.cache_clear()
    for table in (METHODS, METHODS._modules, METHODS._problems):
        table.pop("middle", None)
    missing = "there is no method 'middle', which the lock has from the package mine 1.0"
    output = command("check", "p.tailor")[2]
    assert output.count("error") == 1
    assert f"error[P301]: {missing}\n --> p.tailor:4:28\n" in output
    assert "  = help: pip install mine==1.0\n" in output
    (difference,) = gptailor.verify("out").differences
    assert missing in difference.message
    lock = here / "p.tailor.lock"
    for damaged in ("{", '{"methods": {"middle": "mine; rm 1"}}', '{"methods": {"middle": 1}}'):
        lock.write_text(damaged)
        output = command("check", "p.tailor")[2]
        assert "error[P301]: there is no method 'middle'\n" in output
        assert "help: the methods are" in output


@pytest.mark.parametrize("changed", ["the function", "what it calls", "the version"])
def test_an_output_of_changed_code_is_computed_again(
    changed: str, install: Install, here: Path, command: Command
) -> None:
    called = METHOD.format(result="scaled(sources[0])") + "    def scaled(x):\n        return x\n"
    install("mine", called if changed == "what it calls" else MIDDLE, AT)
    assert command("compile", "p.tailor", "-o", "out")[0] == 0
    assert "computed: 0 bytes" in command("compile", "p.tailor", "-o", "out")[1]
    doubled = METHOD.format(result="sources[0] * np.float32(2)")
    others = {
        "the function": doubled,
        "what it calls": called.replace("return x\n", "return x * np.float32(2)\n"),
        "the version": MIDDLE,
    }
    version = "1.1" if changed == "the version" else "1.0"
    install("mine", others[changed], AT, version=version)
    METHODS.pop("middle")
    METHODS._modules.pop("middle")
    METHODS._problems.pop("middle")
    done = command("compile", "p.tailor", "-o", "out")
    assert done[0] == 0, done[2]
    assert "computed: 0 bytes" not in done[1]
    assert command("verify", "out")[0] == 0


def test_a_module_that_fails_halfway_provides_nothing(
    install: Install, here: Path, command: Command
) -> None:
    install("mine", MIDDLE + "\n    raise RuntimeError('late')\n", AT)
    for _ in range(2):
        code, _, output = command("check", "p.tailor")
        assert code == 1
        assert "mine 1.0 provides it and can't be imported: RuntimeError: late" in output
    with pytest.raises(ContractError, match="can't be imported: RuntimeError: late"):
        check_method("middle")
    with pytest.raises(ContractError, match="there is no objective 'none'"):
        check_objective("none")


def test_an_entry_has_its_own_name(install: Install, here: Path, command: Command) -> None:
    install("mine", MIDDLE.replace('"middle"', '"other"'), AT)
    code, _, output = command("check", "p.tailor")
    assert code == 1
    assert "mine 1.0: expected the method 'middle', got the name 'other'" in output


STRATEGY = """
    import gptailor
    import numpy as np
    from dataclasses import dataclass
    from gptailor.searching.space.table import sample

    @gptailor.strategy("odd", "draws plans")
    @dataclass(frozen=True)
    class Odd(gptailor.Strategy):
        name: str = "odd"
        population: int = 2

        def _ask(self, table, state, key, weights):
            drawn = sample(table, key, 2)
            return {result}
"""


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("(drawn, np.ones(2))", "returned 2 values, expected genomes, shares"),
        ("(drawn, np.zeros(2), ())", "expected 2 shares in (0, 1], got array([0., 0.])"),
        ("(drawn._replace(bits=~drawn.bits), np.ones(2), ())", "drops too many or too few layers"),
    ],
)
@pytest.mark.slow
def test_a_wrong_strategy_is_one_message(
    result: str, says: str, install: Install, here: Path, command: Command
) -> None:
    install("mine", STRATEGY.format(result=result), {"strategies": {"odd": "mine:Odd"}})
    head = (here / "half.tailor").read_text().partition("merge")[0]
    (here / "t.txt").write_text("the cats sat on the mats. " * 300)
    (here / "space.tailor").write_text(
        f'{head}drop any 1 of L0..L3\nsearch {{ minimize nll("t.txt"); trials 20; fidelity 2 }}\n'
    )
    code, _, output = command("search", "space.tailor", "-o", "run", "--strategy", "odd")
    assert code == 3, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: the strategy 'odd' of mine 1.0 ")
    assert says in last
    with pytest.raises(gptailor.TailorError, match=r"'odd' of mine 1\.0 "):
        check_strategy("odd")


def test_a_plan_of_an_inner_plan_names_its_package(
    install: Install, here: Path, command: Command
) -> None:
    install("mine", MIDDLE, AT)
    (here / "outer.tailor").write_text('tailor 1\nmodel base = "./p.tailor"\ndrop L3\n')
    assert command("lock", "outer.tailor")[0] == 0
    assert json.loads((here / "outer.tailor.lock").read_text())["methods"] == {"middle": "mine 1.0"}


def test_a_plan_of_a_bridged_plan_names_the_package_of_its_fit(
    install: Install, bridged: Path, command: Command
) -> None:
    install("mine", FIT.format(adds="pass", change=ZERO), FIT_AT)
    (bridged / "outer.tailor").write_text('tailor 1\nmodel base = "./b.tailor"\ndrop L3\n')
    assert command("compile", "outer.tailor", "-o", "outer", "--lock")[0] == 0
    locked = json.loads((bridged / "outer.tailor.lock").read_text())
    assert locked["methods"] == {"zero": "mine 1.0"}
    assert "and mine 1.0." in (bridged / "outer" / "README.md").read_text()
    assert command("verify", "outer")[0] == 0


FIT = """
    import gptailor
    import torch

    class Fit(gptailor.GapFit):
        def add(self, x, missing, target):
            {adds}

        def change(self, ridge):
            return {change}
"""
ZERO = "torch.zeros(self.width_in, self.width_out)"
FIT_AT = {"fits": {"zero": "mine:Fit"}}


@pytest.fixture
def bridged(family: Path, here: Path) -> Path:
    """The folder with a plan with a gap that the fit `zero` closes."""
    (here / "t.txt").write_text("the cats sat on the mats. " * 100)
    text = f'tailor 1\nmodel base = "{family}/base"\ndrop L2\n'
    (here / "open.tailor").write_text(text)
    (here / "b.tailor").write_text(f'{text}bridge by zero on "t.txt" tokens 256\n')
    return here


def test_a_fit_of_a_package_closes_gaps_and_is_locked_with_its_version(
    install: Install, bridged: Path, command: Command
) -> None:
    install("mine", FIT.format(adds="pass", change=ZERO), FIT_AT)
    assert gptailor.load("b.tailor").bridges[0].by == "zero"
    words = 'bridge by zero on "t.txt" tokens 256\n'
    assert gptailor.format((bridged / "b.tailor").read_text()).endswith(words)
    packages = search_packages(gptailor.load("b.tailor"), [], "surrogate")
    assert packages == ("zero of mine 1.0",)
    assert command("compile", "b.tailor", "-o", "out", "--lock")[0] == 0
    assert command("compile", "open.tailor", "-o", "open")[0] == 0
    weights = "model.safetensors"
    assert (bridged / "out" / weights).read_bytes() == (bridged / "open" / weights).read_bytes()
    assert command("verify", "out")[0] == 0
    assert "mine 1.0" in (bridged / "out" / "README.md").read_text()
    install("mine", FIT.format(adds="pass", change=f"{ZERO} + 1"), FIT_AT, version="1.1")
    output = command("compile", "b.tailor", "-o", "other", "--locked")[2]
    assert "method 'zero': expected the package mine 1.0 as in the lock, got mine 1.1" in output
    GAP_FITS.pop("zero")
    GAP_FITS._problems.pop("zero")
    assert command("compile", "b.tailor", "-o", "out")[0] == 0
    assert (bridged / "out" / weights).read_bytes() != (bridged / "open" / weights).read_bytes()


def test_the_lock_next_to_a_plan_names_the_package_of_a_missing_fit(
    install: Install, bridged: Path, command: Command
) -> None:
    output = command("check", "b.tailor")[2]
    assert "error[P301]: there is no fit 'zero'\n --> b.tailor:4:11\n" in output
    assert "  = help: install its package\n" in output
    (bridged / "b.tailor.lock").write_text('{"methods": {"zero": "mine 1.0"}}')
    output = command("check", "b.tailor")[2]
    assert "there is no fit 'zero', which the lock has from the package mine 1.0" in output
    assert "  = help: pip install mine==1.0\n" in output


@pytest.mark.parametrize(
    ("adds", "change", "says"),
    [
        ("1 / 0", ZERO, "raised ZeroDivisionError: division by zero"),
        ("pass", "[1]", "expected a tensor of the shape [24, 16], got list []"),
        ("pass", "torch.zeros(2, 3)", "expected a tensor of the shape [24, 16], got Tensor [2, 3]"),
        ("pass", f"{ZERO} / 0", "returned NaN or infinity"),
    ],
)
def test_a_wrong_fit_is_one_message(
    adds: str, change: str, says: str, install: Install, bridged: Path, command: Command
) -> None:
    install("mine", FIT.format(adds=adds, change=change), FIT_AT)
    code, _, output = command("compile", "b.tailor", "-o", "out")
    assert code == 3
    assert "error[C808]: the gap after L1: the fit 'zero' of mine 1.0" in output
    assert says in output
    assert "Traceback" not in output
    assert not (bridged / "out").exists()


def test_a_plan_without_foreign_names_reads_no_entry_point(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(group: str, name: str | None = None) -> list[object]:
        raise AssertionError((group, name))

    monkeypatch.setattr("gptailor.plan.doors._points", refuse)
    assert command("check", "half.tailor")[0] == 0
    assert command("compile", "half.tailor", "-o", "out", "--dry-run")[0] == 0


def test_a_compilation_reads_the_entry_point_of_a_method_once(
    install: Install, here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("mine", MIDDLE, AT)
    command("check", "p.tailor")
    read = []

    def counted() -> Iterator[tuple[Path, str]]:
        read.append("entry points")
        yield from _entry_point_files()

    monkeypatch.setattr("gptailor.plan.doors._entry_point_files", counted)
    _points.cache_clear()
    assert command("compile", "p.tailor", "-o", "out", "--lock")[0] == 0
    assert len(read) == 1


@pytest.mark.parametrize("bad", ["bytes", "a folder", "a pipe", "a loop", "no metadata"])
def test_a_broken_package_stops_no_command(
    bad: str, install: Install, here: Path, command: Command
) -> None:
    site = install("mine", MIDDLE, AT)
    broken = site / "broken-1.0.dist-info"
    broken.mkdir()
    points = broken / "entry_points.txt"
    match bad:
        case "bytes":
            points.write_bytes(b"[gptailor.methods]\n\xff\xfe middle = x:y\n")
        case "a folder":
            points.mkdir()
        case "a pipe":
            os.mkfifo(points)
        case "a loop":
            points.symlink_to(points)
        case _:
            points.write_text("[gptailor.methods]\nmiddle = x:y\n")
    assert command("check", "p.tailor")[0] == 0
    assert "Set up:" in command("--help")[1]


def test_an_unknown_name_is_one_fault_at_its_place(here: Path, command: Command) -> None:
    code, _, output = command("check", "p.tailor")
    assert code == 1
    assert output.count("error[") == 1
    assert "error[P301]: there is no method 'middle'\n --> p.tailor:4:28" in output


def test_a_package_that_fails_is_one_line_and_a_traceback_on_request(
    install: Install, here: Path, command: Command
) -> None:
    install("mine", "raise RuntimeError('no\\nluck')", AT)
    code, _, output = command("check", "p.tailor")
    assert code == 1
    assert "= help: mine 1.0 provides it and can't be imported: RuntimeError: no\n" in output
    assert "Traceback" not in output
    assert "Traceback" in command("-v", "check", "p.tailor")[2]


def test_two_packages_of_one_name_are_a_fault(
    install: Install, here: Path, command: Command
) -> None:
    install("mine", MIDDLE, AT)
    install("yours", MIDDLE, {"methods": {"middle": "yours:middle"}}, version="2.0")
    code, _, output = command("check", "p.tailor")
    assert code == 1
    assert "= help: mine 1.0 and yours 2.0 provide it: uninstall one of them" in output


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ("sources[0][:1]", "returned the shape [1], expected [16]"),
        ("sources[0].sum()", "returned float32, expected an array of float32"),
        ("sources[0].astype(int)", "returned int64, expected an array of float32"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_result_of_a_method_is_one_message_and_no_output(
    result: str, says: str, install: Install, here: Path, command: Command
) -> None:
    install("mine", METHOD.format(result=result), AT)
    code, _, output = command("compile", "p.tailor", "-o", "out")
    assert code == 3
    assert output.splitlines()[-1] == f"error: the method 'middle' of mine 1.0 {says}"
    assert not (here / "out").exists()


def test_nan_of_a_method_names_its_package(install: Install, here: Path, command: Command) -> None:
    install("mine", METHOD.format(result="sources[0] * np.float32('nan')"), AT)
    code, _, output = command("compile", "p.tailor", "-o", "out")
    assert code == 1
    assert "error[M401]" in output
    assert (
        "= help: 'middle' comes from mine 1.0; correct the package, or choose another method"
        in output
    )
    assert not (here / "out").exists()


OBJECTIVE = """
    import gptailor

    @gptailor.objective("liking", direction="maximize")
    def liking(context, answer, text):
        return {result}
"""


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ("float('nan')", "failed"),
        ("'much'", "'liking' of mine 1.0 returned 'much', expected a number"),
        ("text.none", "raised AttributeError: 'str' object has no attribute 'none'"),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_a_wrong_result_of_an_objective_is_a_failure(
    result: str, says: str, install: Install, here: Path, command: Command
) -> None:
    install("mine", OBJECTIVE.format(result=result), {"objectives": {"liking": "mine:liking"}})
    (here / "a.jsonl").write_text('{"context": "a b", "answer": "c"}\n' * 2)
    code, out, output = command("eval", "half.tailor", "-O", 'liking("a.jsonl")', "--no-speed")
    assert code != 0
    assert says in re.sub(r"\s+", " ", out + output)
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ties", "the method 'ties' is gptailor's own: choose another name"),
        ("My Method", "expected a name in lower case, such as 'my_method', got 'My Method'"),
    ],
)
def test_a_name_that_cannot_be_taken_is_refused(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        gptailor.merge_method(name, formula="")(lambda sources, base: sources[0])


def test_a_strategy_is_a_class_of_its_kind() -> None:
    with pytest.raises(TypeError, match=r"'stray': expected a subclass of gptailor\.Strategy, got"):
        gptailor.strategy("stray", "asks for anything")(object)  # type: ignore[type-var]
    assert "stray" not in STRATEGIES


def test_a_default_is_within_its_bounds() -> None:
    with pytest.raises(ValueError, match=r"'mean': expected a default in \[0, 1\], got 2\.0"):
        gptailor.Parameter("mean", 2.0, low=0, high=1)


def test_only_the_same_function_may_replace_a_registered_method() -> None:
    def first(sources, base):  # type: ignore[no-untyped-def] # as a notebook has it
        return sources[0]

    def second(sources, base):  # type: ignore[no-untyped-def]
        return sources[1]

    for function in (first, second):
        gptailor.merge_method("own", formula="one source", least=2)(function)
    check_method("own")
    assert METHODS["own"].function is second
    second.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="has a method 'own', too: choose another name"):
        gptailor.merge_method("own", formula="one source")(second)


def test_contracts_name_the_broken_promise() -> None:
    def shifting(sources, base):  # type: ignore[no-untyped-def]
        sources[0] += 1
        return sources[0]

    def counting(sources, base):  # type: ignore[no-untyped-def]
        return sources[0] * len(sources[0])

    for name, function, says in (
        ("shifting", shifting, "'shifting' changes its inputs"),
        ("counting", counting, "'counting' gives other bytes in chunks of 5 entries"),
    ):
        gptailor.merge_method(name, formula="", by_entry=True)(function)
        with pytest.raises(ContractError, match=says):
            check_method(name)

    @gptailor.objective("spread", direction="minimize", reads="text")
    def spread(logits, targets):  # type: ignore[no-untyped-def]
        return (logits - logits.mean()).sum(-1)

    @gptailor.objective("blank", direction="minimize", reads="text")
    def blank(logits, targets):  # type: ignore[no-untyped-def]
        return logits[:, 0] * float("nan")

    with pytest.raises(ContractError, match="'blank' gives NaN or infinity"):
        check_objective("blank")
    with pytest.raises(ContractError, match="depends on the other tokens"):
        check_objective("spread")


@pytest.mark.parametrize("name", sorted(METHODS.own))
def test_own_methods_keep_the_contract(name: str) -> None:
    check_method(name)


def test_a_command_of_a_package_is_listed_and_runs(install: Install, command: Command) -> None:
    code = """
        import click

        @click.command("greet")
        def greet_command():
            click.echo("hello")
    """
    install("mine", code, {"commands": {"greet": "mine:greet_command", "fail": "nowhere:x"}})
    listed = command("--help")[1].partition("Plugins:\n")[2].splitlines()
    assert {"  fail", "  greet"} <= {*listed}
    assert command("greet") == (0, "hello\n", "")
    status, _, output = command("fail")
    assert status == 2
    assert "the command 'fail': mine 1.0 provides it and can't be imported" in output
