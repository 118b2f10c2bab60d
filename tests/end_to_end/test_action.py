"""The GitHub Action: its reports about plans, and about a pull request's changes in them."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.tiny import tiny_model

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "plans"
PLAN = 'tailor 1\n\nmodel base = "./b"\n\ndrop L1\n'
NEW = 'tailor 1\nmodel base = "./one"\nmodel math = "./other"\nL0..L7 from math\ndrop L12..L14\n'

pytestmark = pytest.mark.thorough


class GitHub:
    """An API with the comments of one pull request."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.comments: list[dict[str, Any]] = [
            {"id": n, "body": f"comment {n}", "user": {"type": "Bot"}} for n in range(120)
        ]
        self.asked: list[str] = []
        api = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = int(self.path.partition("&page=")[2])
                self._answer(api.comments[(page - 1) * 100 : page * 100])

            def do_POST(self) -> None:
                self._answer({}) if not refuses else self.send_error(403)
                body = self._body()["body"]
                api.comments.append({"id": 1000, "body": body, "user": {"type": "Bot"}})

            def do_PATCH(self) -> None:
                self._answer({})
                there = {comment["id"]: comment for comment in api.comments}
                there[int(self.path.rpartition("/")[2])]["body"] = self._body()["body"]

            def _body(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def _answer(self, what: object) -> None:
                api.asked.append(f"{self.command} {self.path}")
                assert self.headers["Authorization"] == "Bearer secret"
                raw = json.dumps(what).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def github() -> Iterator[GitHub]:
    api = GitHub()
    yield api
    api.server.shutdown()
    api.server.server_close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with three plans and a file that isn't a plan."""
    folder = tmp_path / "repository"
    (folder / "deep er").mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in ("cut.tailor", "gone.tailor", "deep er/moved.tailor"):
        (folder / name).write_text(PLAN)
    (folder / "notes.txt").write_text("no plan\n")
    committed(folder)
    return folder


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false")
    command = ["git", *who, *words]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def committed(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "change")
    return git(folder, "rev-parse", "HEAD")


def run(folder: Path, what: str, **environment: str) -> tuple[int, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, ACTION / "plans.py", what],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def commented(folder: Path, api: GitHub, base: str, *, head: str = "HEAD", prints: str = "") -> str:
    """Run `comment` for a pull request from that commit; the run's summary."""
    event, summary = folder.parent / "event.json", folder.parent / "summary.md"
    shas = {"base": {"sha": base}, "head": {"sha": git(folder, "rev-parse", head)}}
    event.write_text(json.dumps({"pull_request": {"number": 7, **shas}}))
    summary.write_text("")
    code, printed = run(
        folder,
        "comment",
        GITHUB_EVENT_PATH=str(event),
        GITHUB_REPOSITORY="owner/plans",
        GITHUB_API_URL=api.url,
        GITHUB_TOKEN="secret",
        GITHUB_STEP_SUMMARY=str(summary),
    )
    assert (
        printed.startswith(prints) if prints else "::warning::the comment" in printed or not printed
    )
    assert code == (1 if prints.startswith("::error") else 0)
    return summary.read_text()


def headings(summary: str) -> list[str]:
    return [line.removeprefix("#### ") for line in summary.split("\n") if line[:5] == "#### "]


def test_faults_are_annotations_and_a_plan_is_canonical(repository: Path) -> None:
    assert run(repository, "check") == (0, "3 plans, no faults\n")
    (repository / "gone.tailor").write_text(PLAN.replace("\n\n", "\n"))
    code, output = run(repository, "check")
    assert (code, output) == (
        1,
        "::error file=gone.tailor::not in canonical form: run gptailor fmt\n",
    )
    (repository / "cut.tailor").write_text(PLAN + "L1 from maths\n")
    code, output = run(repository, "check")
    assert code == 1
    assert output.startswith("::error file=cut.tailor,line=")
    assert run(repository, "check", PLANS="*.none") == (0, "there are no plans\n")


def test_one_comment_shows_the_changes_of_a_pull_request(repository: Path, github: GitHub) -> None:
    base = git(repository, "rev-parse", "HEAD")
    (repository / "cut.tailor").write_text(PLAN.replace("L1", "L2..L3"))
    (repository / "gone.tailor").unlink()
    (repository / "deep er" / "moved.tailor").rename(repository / "deep er" / "to.tailor")
    (repository / "new.tailor").write_text(NEW)
    (repository / "notes.txt").write_text("still no plan\n")
    committed(repository)
    summary = commented(repository, github, base)
    (posted,) = github.comments[120:]
    assert posted["body"] == f"<!-- gptailor plans -->\n{summary.strip()}"
    parts = dict(part.split("\n", 1) for part in summary.split("#### ")[1:])
    assert list(parts) == ["`cut.tailor`", "`deep er/moved.tailor → deep er/to.tailor`",
                           "`gone.tailor`", "`new.tailor (new)`"]  # fmt: skip
    assert "L2..L3" in parts["`cut.tailor`"]
    assert ".before" not in summary
    assert "the plans are equal" in parts["`deep er/moved.tailor → deep er/to.tailor`"]
    assert parts["`gone.tailor`"].strip() == "is removed"
    assert "dropped" in parts["`new.tailor (new)`"]
    assert git(repository, "status", "--porcelain") == ""

    (repository / "cut.tailor").write_text(PLAN + "L1 from maths\n")
    committed(repository)
    commented(repository, github, base)
    assert len(github.comments) == 121
    assert "error[P106]" in github.comments[120]["body"]
    assert github.asked[-1] == "PATCH /repos/owner/plans/issues/comments/1000"


def test_unchanged_plans_give_no_comment_and_a_refusal_is_a_warning(
    repository: Path, github: GitHub
) -> None:
    base = git(repository, "rev-parse", "HEAD")
    (repository / "notes.txt").write_text("still no plan\n")
    committed(repository)
    assert commented(repository, github, base) == "No plan changes.\n"
    assert len(github.comments) == 120
    refusing = GitHub(refuses=True)
    (repository / "cut.tailor").write_text(PLAN.replace("L1", "L2"))
    committed(repository)
    assert "cut.tailor" in commented(repository, refusing, base)
    refusing.server.shutdown()
    refusing.server.server_close()


@pytest.mark.parametrize(
    "patterns", ["cut.tailor\n", "\r\ncut.tailor\r\n\r\n", "  cut.tailor\n \n"]
)
def test_patterns_are_a_block_of_lines(repository: Path, patterns: str) -> None:
    assert run(repository, "check", PLANS=patterns) == (0, "1 plan, no faults\n")


def test_an_empty_pattern_is_the_default(repository: Path) -> None:
    assert run(repository, "check", PLANS="\n") == (0, "3 plans, no faults\n")


@pytest.fixture
def pulled(repository: Path) -> Path:
    """A branch `pull` that changes one plan; since its fork, main has changed another and a new."""
    git(repository, "checkout", "--quiet", "-b", "pull")
    (repository / "cut.tailor").write_text(PLAN.replace("L1", "L2"))
    committed(repository)
    git(repository, "checkout", "--quiet", "main")
    (repository / "gone.tailor").write_text(PLAN.replace("L1", "L3"))
    committed(repository)
    (repository / "later.tailor").write_text(PLAN)
    committed(repository)
    git(repository, "config", "uploadpack.allowAnySHA1InWant", "true")
    return repository


def cloned(folder: Path, *options: str) -> Path:
    clone = folder.parent / "clone"
    git(folder, "clone", "--quiet", *options, f"file://{folder}", str(clone))
    return clone


@pytest.mark.parametrize("depth", [["--depth=1"], []])
@pytest.mark.parametrize("base", ["main", "main~1"])
def test_commits_of_the_base_branch_are_not_changes(
    pulled: Path, github: GitHub, depth: list[str], base: str
) -> None:
    base = git(pulled, "rev-parse", base)
    clone = cloned(pulled, "--branch=pull", "--single-branch", *depth)
    assert headings(commented(clone, github, base)) == ["`cut.tailor`"]


@pytest.mark.parametrize("depth", [["--depth=1"], []])
def test_githubs_merge_commit_is_compared_with_its_target_branch(
    pulled: Path, github: GitHub, depth: list[str]
) -> None:
    old = git(pulled, "rev-parse", "main~2")
    git(pulled, "checkout", "--quiet", "-b", "merge", "main")
    git(pulled, "merge", "--quiet", "--no-ff", "--message", "merged", "pull")
    head = git(pulled, "rev-parse", "pull")
    clone = cloned(pulled, "--branch=merge", "--single-branch", *depth)
    assert headings(commented(clone, github, old, head=head)) == ["`cut.tailor`"]


def test_the_authors_own_merge_is_a_commit_like_any(pulled: Path, github: GitHub) -> None:
    git(pulled, "checkout", "--quiet", "pull")
    git(pulled, "merge", "--quiet", "--message", "main is in", "main")
    clone = cloned(pulled, "--branch=pull", "--single-branch", "--depth=1")
    base = git(pulled, "rev-parse", "main")
    assert headings(commented(clone, github, base)) == ["`cut.tailor`"]


def test_a_commit_that_cannot_be_fetched_is_reported(pulled: Path, github: GitHub) -> None:
    base = git(pulled, "rev-parse", "main")
    clone = cloned(pulled, "--branch=pull", "--single-branch", "--depth=1")
    git(clone, "fetch", "--quiet", "--depth=1", "origin", base)
    git(clone, "remote", "set-url", "origin", str(pulled / "nowhere"))
    summary = commented(clone, github, base, prints=f"::warning::changes are shown from {base}: ")
    assert headings(summary) == ["`cut.tailor`", "`gone.tailor`", "`later.tailor`"]
    commented(clone, github, "1" * 40, prints=f"::error::{'1' * 40} can't be fetched (")


def test_names_and_texts_need_not_be_utf8(repository: Path, github: GitHub) -> None:
    odd = os.fsdecode(b"caf\xe9.tailor")
    (repository / "cut.tailor").write_bytes(b"tailor 1\n# caf\xe9\n")
    (repository / odd).write_bytes(b"tailor 1\n# caf\xe9\n")
    base = committed(repository)
    code, output = run(repository, "check")
    assert (code, output.count("not UTF-8")) == (1, 2)
    (repository / "cut.tailor").write_text(PLAN)
    (repository / odd).write_text(PLAN.replace("L1", "L2"))
    committed(repository)
    summary = commented(repository, github, base)
    assert headings(summary) == ["`caf\N{REPLACEMENT CHARACTER}.tailor`", "`cut.tailor`"]
    assert summary.count("not UTF-8") == 2
    assert ".before" not in summary


def test_no_file_of_the_pull_request_is_written_or_removed(
    repository: Path, github: GitHub
) -> None:
    base = git(repository, "rev-parse", "HEAD")
    outside = repository.parent / "outside"
    outside.write_text("mine\n")
    (repository / ".cut.tailor.before.tailor").symlink_to(outside)
    (repository / ".to.tailor.before.tailor").write_text(NEW)
    (repository / "cut.tailor").write_text(PLAN.replace("L1", "L2"))
    (repository / "deep er" / "moved.tailor").rename(repository / "to.tailor")
    (repository / "deep er").rmdir()
    (repository / "deep er").symlink_to(repository.parent)
    committed(repository)
    there = sorted(repository.parent.iterdir())
    summary = commented(repository, github, base)
    assert "`deep er/moved.tailor → to.tailor`" in headings(summary)
    assert summary.count("the plans are equal") == 1
    assert outside.read_text() == "mine\n"
    assert set(repository.parent.iterdir()) - set(there) <= {
        repository.parent / name for name in ("event.json", "summary.md")
    }
    assert git(repository, "status", "--porcelain") == ""


def test_all_folders_made_for_an_old_text_are_removed(repository: Path, github: GitHub) -> None:
    (repository / "a" / "b" / "c").mkdir(parents=True)
    (repository / "a" / "b" / "c" / "x.tailor").write_text(NEW)
    base = committed(repository)
    (repository / "a" / "b" / "c" / "x.tailor").rename(repository / "x.tailor")
    shutil.rmtree(repository / "a")
    committed(repository)
    assert headings(commented(repository, github, base)) == ["`a/b/c/x.tailor → x.tailor`"]
    assert not (repository / "a").exists()


def test_links_are_not_followed(repository: Path, github: GitHub) -> None:
    base = git(repository, "rev-parse", "HEAD")
    (repository / "environ.tailor").symlink_to("/proc/self/environ")
    (repository / "cut.tailor").unlink()
    (repository / "cut.tailor").symlink_to("/proc/self/environ")
    linked = committed(repository)
    summary = commented(repository, github, base)
    assert headings(summary) == ["`cut.tailor`", "`environ.tailor`"]
    assert summary.count("is no plain file, and isn't read") == 2
    assert "secret" not in summary
    code, output = run(repository, "check")
    assert code == 0
    assert output == (
        "::notice file=cut.tailor::not checked: it isn't a plain file\n"
        "::notice file=environ.tailor::not checked: it isn't a plain file\n"
        "2 plans, no faults\n"
    )
    (repository / "cut.tailor").unlink()
    (repository / "cut.tailor").write_text(PLAN)
    (repository / "environ.tailor").unlink()
    committed(repository)
    assert headings(commented(repository, github, linked)) == [
        "`cut.tailor (new)`", "`environ.tailor`"]  # fmt: skip


@pytest.fixture
def another_gptailor(tmp_path: Path) -> str:
    """A folder with a gptailor that says which token it has."""
    (tmp_path / "other" / "gptailor").mkdir(parents=True)
    (tmp_path / "other" / "gptailor" / "__init__.py").touch()
    (tmp_path / "other" / "gptailor" / "__main__.py").write_text(
        "import os\nprint('token', os.environ.get('GITHUB_TOKEN'))\n"
    )
    return str(tmp_path / "other")


def test_a_command_has_no_token_and_runs_no_code_of_the_pull_request(
    repository: Path, another_gptailor: str
) -> None:
    folder = repository / "gptailor"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('mine is run')\n")
    code, output = run(repository, "check", GITHUB_TOKEN="secret")
    assert (code, output) == (0, "3 plans, no faults\n")
    code, output = run(
        repository, "check", GITHUB_TOKEN="secret", CANONICAL="false", PYTHONPATH=another_gptailor
    )
    assert (code, output) == (0, "token None\n3 plans, no faults\n")


def test_a_check_of_form_that_breaks_isnt_a_fault_of_form(
    repository: Path, another_gptailor: str
) -> None:
    main = Path(another_gptailor) / "gptailor" / "__main__.py"
    main.write_text(
        "import sys\nif sys.argv[1] == 'fmt':\n"
        "    print('broken by 100%', file=sys.stderr)\n    sys.exit(3)\n"
    )
    code, output = run(repository, "check", PLANS="cut.tailor", PYTHONPATH=another_gptailor)
    assert (code, output) == (
        1,
        "::error file=cut.tailor::gptailor fmt --check ended with 3: broken by 100%25\n",
    )


def test_only_a_bots_comment_is_renewed(repository: Path, github: GitHub) -> None:
    base = git(repository, "rev-parse", "HEAD")
    mark = "<!-- gptailor plans -->\nby hand"
    github.comments = [
        {"id": 1, "body": mark, "user": {"type": "User"}},
        {"id": 2, "body": mark, "user": None},
        {"id": 3, "body": None, "user": {"type": "Bot"}},
    ]
    (repository / "cut.tailor").write_text(PLAN.replace("L1", "L2"))
    committed(repository)
    commented(repository, github, base)
    commented(repository, github, base)
    assert [comment["id"] for comment in github.comments] == [1, 2, 3, 1000]
    assert [comment["body"] for comment in github.comments[:2]] == [mark, mark]


def test_expectations_are_marked_and_listed_in_the_summary(repository: Path) -> None:
    assert run(repository, "test") == (0, "no plan states an expectation\n")
    tiny_model("llama", repository / "b", layers=2)
    (repository / "cut.tailor").write_text(f"{PLAN}expect parameters() < base\n")
    (repository / "gone.tailor").write_text(f"{PLAN}expect parameters() <= 1k\n")
    committed(repository)
    summary = repository.parent / "summary.md"
    code, output = run(repository, "test", GITHUB_STEP_SUMMARY=str(summary))
    assert code == 1
    assert "::error file=gone.tailor,line=6," in output
    text = summary.read_text("utf-8")
    assert "parameters() < base" in text
    assert "::error" not in text
    code, _ = run(repository, "test", PLANS="cut.tailor", OPTIONS="--samples 64 --seed 1")
    assert code == 0
    code, output = run(repository, "test", PLANS="cut.tailor", OPTIONS="--samples none")
    assert (code, "'none' is not a valid integer" in output) == (2, True)


def test_the_action_runs_this_script_and_is_given_no_text_to_run() -> None:
    action = yaml.safe_load((ACTION / "action.yml").read_text("utf-8"))
    steps = action["runs"]["steps"]
    scripts = [step["run"] for step in steps if "run" in step]
    assert not any(
        "${{" in line for line in scripts
    )  # what others write reaches the environment only
    for word in ("check", "test", "comment"):
        assert any(line.endswith(f'plans.py" {word}') for line in scripts)
    used = {value for step in steps for value in step.get("env", {}).values()}
    names = ("plans", "alone", "canonical", "test", "test-options", "token")
    assert used == {f"${{{{ inputs.{name} }}}}" for name in names}
    assert (ACTION / "../../..").resolve() == ROOT


def test_hooks_of_pre_commit_are_commands() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert [(hook["id"], hook["entry"]) for hook in hooks] == [
        ("gptailor-fmt", "gptailor fmt"),
        ("gptailor-check", "gptailor check"),
    ]
    for hook in hooks:
        assert (hook["language"], hook["files"]) == ("python", r"\.tailor$")
