"""The files that people and services read about the project: they are there, parse, and agree."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import gptailor

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
YAML = ["CITATION.cff", ".pre-commit-config.yaml", ".github/workflows/ci.yml",
        ".github/workflows/docs.yml", ".github/workflows/release.yml"]  # fmt: skip
DECISIONS = (ROOT / "docs" / "decisions").glob("*.md")
PAGES = ["CONTRIBUTING.md", "SECURITY.md", "news/README.md",
         *(str(page.relative_to(ROOT)) for page in DECISIONS)]  # fmt: skip


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


@pytest.mark.parametrize("name", YAML)
def test_a_file_for_services_parses(name: str) -> None:
    assert isinstance(read(name), dict)


def test_all_files_have_the_same_version() -> None:
    assert read("CITATION.cff")["version"] == PROJECT["project"]["version"] == gptailor.__version__


def test_the_citation_names_the_licence_and_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["license"] == PROJECT["project"]["license"]
    assert "2506.20480" in citation["references"][0]["url"]


def test_the_full_run_has_every_python_and_the_lowest_dependencies() -> None:
    matrix = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    least = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(least.split(".")[1]), 15)]
    assert {"python": least, "resolution": "lowest-direct"} in matrix["include"]


def test_a_release_is_checked_attested_and_published_without_a_token() -> None:
    jobs = read(".github/workflows/release.yml")["jobs"]
    steps = [step.get("uses") or step["run"] for job in jobs.values() for step in job["steps"]]
    for part in ("twine check", "attest-build-provenance", "gh-action-pypi-publish"):
        assert any(part in step for step in steps)
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["needs"] == "install"
    assert jobs["install"]["needs"] == ["build", "native"]
    full = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert jobs["install"]["strategy"]["matrix"]["python"] == full["python"]
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text("utf-8")


def test_a_commit_is_checked_as_make_lint_checks() -> None:
    hooks = [hook["id"] for repo in read(".pre-commit-config.yaml")["repos"]
             for hook in repo["hooks"]]  # fmt: skip
    assert hooks == ["ruff", "ruff-format", "mypy", "lint-imports"]


def test_fragments_have_a_known_kind_and_a_text() -> None:
    kinds = {kind["directory"] for kind in PROJECT["tool"]["towncrier"]["type"]}
    for fragment in (ROOT / "news").iterdir():
        if fragment.name != "README.md":
            assert re.fullmatch(rf"[\w+-]+\.({'|'.join(kinds)})\.md", fragment.name)
            assert fragment.read_text("utf-8").strip()
    assert PROJECT["tool"]["towncrier"]["start_string"] in (ROOT / "CHANGELOG.md").read_text(
        "utf-8"
    )


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_of_a_page_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / link).exists(), link
    for path in re.findall(r"`((?:tests|docs|benchmarks|examples)/[\w/.]+\w/?)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:[a-z]+/)+[a-z_]+\.py)`", text):
        assert (ROOT / path).exists() or (ROOT / "gptailor" / path).exists(), path


def test_an_image_and_a_wheel_are_built_from_the_same_files() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    project = PROJECT["project"]
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    linked = (ROOT / "gptailor" / "lang" / "tailor.lark").readlink().parts[-2]
    needed = {"pyproject.toml", "hatch_build.py", project["readme"], linked}
    assert kept == {*needed, *project["license-files"], *wheel}
    text = (ROOT / "Containerfile").read_text("utf-8")
    asked = re.findall(r"whl\)\[(\w+)\]", text)
    assert asked == ["all"]
    assert set(asked) <= set(project["optional-dependencies"])
    assert text.rindex("\nUSER 1000\n") > text.rindex("\nRUN ")
    assert 'ENTRYPOINT ["gptailor"]' in text
