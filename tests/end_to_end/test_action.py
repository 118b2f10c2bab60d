"""The GitHub Action: what it says of plans, and of what a pull request changes in them."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "plans"
PLAN = 'tailor 1\n\nmodel base = "./b"\n\ndrop L1\n'
NEW = 'tailor 1\nmodel base = "./one"\nmodel math = "./other"\nL0..L7 from math\ndrop L12..L14\n'


class GitHub:
    """An API with the comments of one pull request."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.comments = [{"id": n, "body": f"comment {n}"} for n in range(120)]
        self.asked: list[str] = []
        api = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = int(self.path.partition("&page=")[2])
                self._answer(api.comments[(page - 1) * 100 : page * 100])

            def do_POST(self) -> None:
                self._answer({}) if not refuses else self.send_error(403)
                api.comments.append({"id": 1000, "body": self._body()["body"]})

            def do_PATCH(self) -> None:
                self._answer({})
                there = {one["id"]: one for one in api.comments}
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
    """A repository with three plans and a file that is none."""
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


def commented(folder: Path, api: GitHub, base: str) -> str:
    """Run `comment` for a pull request from that commit; the run's summary."""
    event, summary = folder.parent / "event.json", folder.parent / "summary.md"
    event.write_text(json.dumps({"pull_request": {"number": 7, "base": {"sha": base}}}))
    summary.write_text("")
    code, _ = run(
        folder,
        "comment",
        GITHUB_EVENT_PATH=str(event),
        GITHUB_REPOSITORY="owner/plans",
        GITHUB_API_URL=api.url,
        GITHUB_TOKEN="secret",
        GITHUB_STEP_SUMMARY=str(summary),
    )
    assert code == 0
    return summary.read_text()


def test_faults_are_annotations_and_a_plan_is_canonical(repository: Path) -> None:
    assert run(repository, "check") == (0, "3 plans, no faults\n")
    (repository / "gone.tailor").write_text(PLAN.replace("\n\n", "\n"))
    code, said = run(repository, "check")
    assert (code, said) == (
        1,
        "::error file=gone.tailor::not in canonical form: run gptailor fmt\n",
    )
    (repository / "cut.tailor").write_text(PLAN + "L1 from maths\n")
    code, said = run(repository, "check")
    assert code == 1
    assert said.startswith("::error file=cut.tailor,line=")
    assert run(repository, "check", PLANS="*.none") == (0, "there are no plans\n")


def test_a_pull_request_is_told_what_it_changes_in_one_comment(
    repository: Path, github: GitHub
) -> None:
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
    assert "the plans say the same" in parts["`deep er/moved.tailor → deep er/to.tailor`"]
    assert parts["`gone.tailor`"].strip() == "is removed"
    assert "dropped" in parts["`new.tailor (new)`"]
    assert git(repository, "status", "--porcelain") == ""

    (repository / "cut.tailor").write_text(PLAN + "L1 from maths\n")
    committed(repository)
    commented(repository, github, base)
    assert len(github.comments) == 121
    assert "error[P106]" in github.comments[120]["body"]
    assert github.asked[-1] == "PATCH /repos/owner/plans/issues/comments/1000"


def test_nothing_is_said_where_no_plan_changes_and_a_refusal_is_a_warning(
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


def test_the_action_runs_this_script_and_is_given_no_text_to_run() -> None:
    action = yaml.safe_load((ACTION / "action.yml").read_text("utf-8"))
    steps = action["runs"]["steps"]
    said = [step["run"] for step in steps if "run" in step]
    assert not any("${{" in line for line in said)  # what others write reaches the environment only
    for word in ("check", "comment"):
        assert any(line.endswith(f'plans.py" {word}') for line in said)
    used = {value for step in steps for value in step.get("env", {}).values()}
    names = ("plans", "alone", "canonical", "token")
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
