"""Published packages contain the grammar, however they are built and installed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from gptailor.plan.optional_packages import EXTRAS

ROOT = Path(__file__).parents[2]
GRAMMAR = (ROOT / "grammar" / "tailor.lark").read_bytes()
TABLE = (ROOT / "gptailor" / "lang" / "tailor.json").read_bytes()
FAMILIES = "gptailor/families"
LOADS = (
    "import gptailor, gptailor.lang.parse as parse; "
    "assert parse.grammar().encode() == open({grammar!r}, 'rb').read(); "
    "assert gptailor.loads('tailor 1; model base = \"./b\"; drop L1').drops; "
    "print(gptailor.__file__)"
)


def built(source: Path, out: Path, *what: str) -> None:
    """Build without a network: the backend is the environment's own."""
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", out, source]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel from the tree, a source distribution, and a wheel from that."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    built(ROOT, out / "tree", "--sdist", "--wheel")
    (sdist,) = (out / "tree").glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        file.extractall(out / "source", filter="data")
    (unpacked,) = (out / "source").iterdir()
    built(unpacked, out / "again", "--wheel")
    (tree,), (again,) = ((out / name).glob("*.whl") for name in ("tree", "again"))
    return {"sdist": sdist, "source": unpacked, "tree": tree, "again": again}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["tree", "again"])
def test_a_wheel_holds_the_grammar_and_works(
    published: dict[str, Path], tmp_path: Path, name: str
) -> None:
    with zipfile.ZipFile(published[name]) as wheel:
        entry = wheel.getinfo("gptailor/lang/tailor.lark")
        assert wheel.read(entry) == GRAMMAR
        assert wheel.read("gptailor/lang/tailor.json") == TABLE
        files = sorted(path.name for path in (ROOT / FAMILIES).iterdir())
        assert len(files) > 100
        for file in files:
            assert wheel.read(f"{FAMILIES}/{file}") == (ROOT / FAMILIES / file).read_bytes()
        assert (entry.external_attr >> 16) & 0o170000 in (0, 0o100000)  # a file, no link
        assert "gptailor/py.typed" in wheel.namelist()
        assert all(n.startswith(("gptailor/", "gptailor-")) for n in wheel.namelist())
        wheel.extractall(tmp_path / "lib")
    where = run(tmp_path, PYTHONPATH=str(tmp_path / "lib"))
    assert Path(where).is_relative_to(tmp_path / "lib")


@pytest.mark.thorough
def test_both_wheels_have_the_same_files(published: dict[str, Path]) -> None:
    with zipfile.ZipFile(published["tree"]) as a, zipfile.ZipFile(published["again"]) as b:
        assert sorted(a.namelist()) == sorted(b.namelist())
        assert all(a.read(n) == b.read(n) for n in a.namelist() if n.startswith("gptailor/"))


@pytest.mark.thorough
def test_every_module_is_in_the_wheel(published: dict[str, Path]) -> None:
    with zipfile.ZipFile(published["tree"]) as wheel:
        names = set(wheel.namelist())
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "gptailor").rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    }
    assert ours <= names


@pytest.mark.thorough
def test_a_wheel_holds_the_compiled_library(published: dict[str, Path], tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    assert not published["tree"].name.endswith("-any.whl")
    with zipfile.ZipFile(published["tree"]) as wheel:
        wheel.extractall(tmp_path)
    code = "from gptailor.methods import native; print(native.library().source_digest())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


@pytest.mark.thorough
@pytest.mark.parametrize("setting", ["CC=false", "CC=/no/compiler", "GPTAILOR_NATIVE=off"])
def test_without_a_compiler_the_wheel_is_pure(
    published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv(*setting.split("="))
    built(published["source"], tmp_path, "--wheel")
    (path,) = tmp_path.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as wheel:
        assert "gptailor/methods/native.c" in wheel.namelist()
        assert "gptailor/methods/libnative.so" not in wheel.namelist()


@pytest.mark.thorough
def test_the_source_distribution_holds_both_grammars(published: dict[str, Path]) -> None:
    source = published["source"]
    assert (source / "grammar" / "tailor.lark").read_bytes() == GRAMMAR
    assert (source / "gptailor" / "lang" / "tailor.lark").read_bytes() == GRAMMAR
    for name in ("README.md", "LICENSE", "pyproject.toml", "tests/end_to_end/test_packaging.py"):
        assert (source / name).is_file(), name
    assert (source / "gptailor" / "lang" / "tailor.json").read_bytes() == TABLE


@pytest.mark.thorough
def test_the_source_distribution_is_a_checkout(published: dict[str, Path]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    kept = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    source = published["source"]
    there = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert sorted(kept - there) == [".ci/run"]


@pytest.mark.thorough
def test_the_wheel_does_its_work_without_torch(published: dict[str, Path], tmp_path: Path) -> None:
    """The light install: `examples/light.py` of the source distribution by the wheel."""
    with zipfile.ZipFile(published["tree"]) as wheel:
        wheel.extractall(tmp_path / "lib")
    brought = sorted({module for modules in EXTRAS.values() for module in modules})
    (tmp_path / "lib" / "sitecustomize.py").write_text(
        f"import sys; sys.modules.update(dict.fromkeys({brought}))"  # None: can't be imported
    )
    done = subprocess.run(
        [sys.executable, published["source"] / "examples" / "light.py"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all as it should be\n")


def test_a_package_without_its_table_reads_plans(tmp_path: Path) -> None:
    left_out = shutil.ignore_patterns("tailor.json", "__pycache__")
    shutil.copytree(ROOT / "gptailor", tmp_path / "lib" / "gptailor", ignore=left_out)
    where = run(tmp_path, PYTHONPATH=str(tmp_path / "lib"))
    assert Path(where).is_relative_to(tmp_path / "lib")


def test_the_installed_package_loads_the_grammar(tmp_path: Path) -> None:
    run(tmp_path)


def test_the_version_is_reported_once() -> None:
    import gptailor

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == gptailor.__version__


def test_a_checkout_that_was_never_built_knows_its_version(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gptailor", tmp_path / "gptailor")
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    (tmp_path / "pyproject.toml").write_text(
        re.sub(r"^version = .*$", 'version = "9.8.7"', text, flags=re.M)
    )
    command = [sys.executable, "-m", "gptailor", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "gptailor, version 9.8.7\n"


def run(cwd: Path, **environment: str) -> str:
    """Load a plan in a process of its own, outside the tree; where its package lies."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOADS.format(grammar=str(ROOT / "grammar" / "tailor.lark"))],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=clean | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
