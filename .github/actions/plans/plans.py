"""The action's steps: `check` and `test` plans, `comment` on the changes of a pull request.

python plans.py check      # PLANS, ALONE and CANONICAL say what; ends with 1 if there are faults
python plans.py test       # PLANS and OPTIONS; ends as gptailor test does, 0 without expectations
python plans.py comment    # PLANS, and what GitHub sets: GITHUB_EVENT_PATH, GITHUB_REPOSITORY, …
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

MARK = "<!-- gptailor plans -->"
"""The first line of the comment, which finds it again."""
LONGEST = 60_000
"""Characters of a comment; GitHub takes some more."""
A_PAGE = 100
DEPTHS = ("--depth=100", "--depth=1000", "--unshallow")
"""How much history a shallow clone fetches until two commits meet."""


class NotThereError(Exception):
    """A commit that is neither here nor can be fetched."""


def main() -> int:
    """Do what is asked; the exit code."""
    done = {"check": check, "test": test, "comment": comment}.get(
        sys.argv[1] if len(sys.argv) > 1 else ""
    )
    if done is None:
        print(__doc__, file=sys.stderr)
        return 2
    return done()


def check() -> int:
    """Say the faults of all plans, and which aren't in canonical form."""
    plans = list(tracked())
    if not plans:
        print("there are no plans")
        return 0
    alone = ["--alone"] if os.environ.get("ALONE", "true") == "true" else []
    done = gptailor("check", "--format", "github", *alone, *plans)
    print(done.stdout + done.stderr, end="")
    code = done.returncode
    if os.environ.get("CANONICAL", "true") == "true" and code == 0:
        for plan in plans:
            if text := uncanonical(plan):
                print(f"::error file={escaped(plan)}::{escaped(text, of='%')}")
                code = 1
    if code == 0:
        print(f"{len(plans)} plan{'s' * (len(plans) != 1)}, no faults")
    return code


def test() -> int:
    """Evaluate the expectations of the plans that state any; the run's summary has the table."""
    expecting = [plan for plan in tracked() if expects(plan)]
    if not expecting:
        print("no plan states an expectation")
        return 0
    options = shlex.split(os.environ.get("OPTIONS", ""))
    done = gptailor("test", "--format", "github", *options, *expecting)
    print(done.stdout + done.stderr, end="")
    table = [line for line in done.stdout.splitlines() if not line.startswith("::")]
    if (summary := os.environ.get("GITHUB_STEP_SUMMARY")) and table:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(section("gptailor test", "\n".join([*table, ""])) + "\n")
    return done.returncode


def expects(plan: str) -> bool:
    """Return whether a plan can be read and states an expectation."""
    done = gptailor("json", plan)
    return done.returncode == 0 and bool(json.loads(done.stdout).get("expects"))


def tracked() -> Iterator[str]:
    """The plans that git has, as arguments; a link is not followed."""
    for entry in git("ls-files", "--stage", "-z", "--", *patterns()).split("\0")[:-1]:
        mode, name = entry[:6], entry.partition("\t")[2]
        if is_file(mode):
            yield as_argument(name)
        else:
            print(f"::notice file={escaped(name)}::not checked: it isn't a plain file")


def uncanonical(plan: str) -> str:
    """Return the fault of a plan's form, if there is one."""
    done = gptailor("fmt", "--check", plan)
    if done.returncode in (0, 1):
        return "not in canonical form: run gptailor fmt" * done.returncode
    return f"gptailor fmt --check ended with {done.returncode}: {last_line(done.stderr)}"


def comment() -> int:
    """Write or renew the pull request's comment; the run's summary has the same text."""
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
    pull = event["pull_request"]
    try:
        before = start(pull["base"]["sha"], pull.get("head", {}).get("sha"))
    except NotThereError as error:
        print(f"::error::{error}: check out with fetch-depth: 0")
        return 1
    sections = list(changes(before))
    text = "\n\n".join(sections)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write((text or "No plan changes.") + "\n")
    while len(text) > LONGEST:
        sections.pop()
        text = "\n\n".join([*sections, "The run's summary has more."])
    try:
        publish(f"repos/{os.environ['GITHUB_REPOSITORY']}/issues", pull["number"], text)
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            raise
        print(f"::warning::the comment can't be written ({error}): it takes pull-requests: write")
    return 0


# --------------------------------------------------------------------------------- what changes


def start(base: str, head: str | None) -> str:
    """The commit from which a pull request's changes count. Raises NotThereError.

    base: what the pull request is to be merged into; it may be older than what was merged.
    head: the pull request's last commit.
    """
    parents = [
        line.removeprefix("parent ")  # which a shallow clone's HEAD^1 hides
        for line in git("cat-file", "-p", "HEAD").partition("\n\n")[0].split("\n")
        if line.startswith("parent ")
    ]
    try:
        if len(parents) == 2 and head in (parents[1], None):  # GitHub's merge, not the author's own
            fetch(parents[0])
            return parents[0]
        return fork(base)
    except NotThereError as error:
        fetch(base)
        print(f"::warning::changes are shown from {base}: {escaped(str(error), of='%')}")
        return base


def fork(base: str) -> str:
    """The last commit that HEAD and another have in common. Raises NotThereError."""
    fetch(base)
    for depth in (*DEPTHS, None):
        if found := asked("merge-base", base, "HEAD").stdout:
            return os.fsdecode(found).strip()
        if depth is None or not is_shallow():
            break
        fetched(depth, base, git("rev-parse", "HEAD").strip())
    raise NotThereError("it and the pull request have no commit in common")


def fetch(commit: str) -> None:
    """Have a commit, with its files. Raises NotThereError."""
    if asked("cat-file", "-e", f"{commit}^{{commit}}").returncode:
        fetched("--depth=1" if is_shallow() else None, commit)


def fetched(depth: str | None, *commits: str) -> None:
    """Fetch from where the clone is from, to a depth if it is shallow. Raises NotThereError."""
    depths = [] if depth is None else [depth]
    done = asked("fetch", "--quiet", "--no-tags", *depths, "origin", *commits)
    if done.returncode:
        why = last_line(done.stderr.decode("utf-8", "replace"))
        raise NotThereError(f"{commits[0]} can't be fetched ({why})")


def is_shallow() -> bool:
    """Return whether the clone lacks history."""
    return git("rev-parse", "--is-shallow-repository").strip() == "true"


def changes(base: str) -> Iterator[str]:
    """A section for each plan that is not as it was at a commit."""
    words = iter(git("diff", "-z", "--raw", "-M", base, "HEAD", "--", *patterns()).split("\0")[:-1])
    for said_of_it in words:
        mode_before, mode, _, _, status = said_of_it.removeprefix(":").split(" ")
        old = next(words)
        new = next(words) if status[0] in "RC" else old
        title = old if old == new else f"{old} → {new}"
        if status == "D":
            yield f"#### {code(old)}\n\nis removed"
        elif not is_file(mode):
            yield f"#### {code(title)}\n\nis no plain file, and isn't read"
        elif not is_file(mode_before):
            yield section(f"{new} (new)", said("show", as_argument(new)))
        else:
            yield section(title, difference(base, old, new))


def difference(base: str, old: str, new: str) -> str:
    """Return the output of `gptailor diff`. The old text lies in its folder, where paths start.

    Where a file or a link is in place of its folder now, it lies beside the new one.
    """
    folder = Path(old).parent
    above = [*reversed(folder.parents), folder]
    if any(one.is_symlink() or (one.exists() and not one.is_dir()) for one in above):
        folder = Path(new).parent
        above = []
    before = folder / f".{secrets.token_hex(8)}.before.tailor"
    text = git_bytes("show", f"{base}:{old}")
    made: list[Path] = []
    try:
        for one in above:
            if not one.exists():
                one.mkdir()
                made.append(one)
        with before.open("xb") as file:  # which follows no link
            made.append(before)
            file.write(text)
        text_of_it = said("diff", as_argument(str(before)), as_argument(new))
        shown = re.compile(rf"[^\s'\"]*{re.escape(before.name)}")
        return shown.sub(lambda _: readable(old), text_of_it.replace(str(before), readable(old)))
    finally:
        for one in reversed(made):
            one.unlink() if one == before else one.rmdir()


def last_line(text: str) -> str:
    """The line of a command's complaints that says most."""
    return (text.strip().splitlines() or [""])[-1]


def said(*words: str) -> str:
    """Return the output of a command, or its error message."""
    done = gptailor(*words)
    return (done.stdout.strip("\n") or done.stderr.strip()) + "\n"


def section(title: str, text: str) -> str:
    """A heading, and a text as it is."""
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"#### {code(title)}\n\n{fence}text\n{text}{fence}"


def escaped(text: str, *, of: str = "%:,") -> str:
    """A file's name, or a message (of="%"), in a line that GitHub reads."""
    signs = {ord(sign): f"%{ord(sign):02X}" for sign in f"{of}\r\n"}
    return readable(text).translate(signs)


def code(name: str) -> str:
    """A name as code, whatever is in it."""
    name = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    return f"`{name.replace('`', chr(39))}`"


def readable(name: str) -> str:
    """A file's name without bytes that are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "replace")


# ------------------------------------------------------------------------------------- the comment


def publish(issues: str, number: int, text: str) -> None:
    """Renew the comment that is there, or write one if there is something to say."""
    there = mine(issues, number)
    if there is None and not text:
        return
    body = {"body": f"{MARK}\n{text or 'No plan changes any more.'}"}
    if there is None:
        ask("POST", f"{issues}/{number}/comments", body)
    else:
        ask("PATCH", f"{issues}/comments/{there}", body)


def mine(issues: str, number: int) -> int | None:
    """The comment that was written before."""
    for page in count(1):
        found = ask("GET", f"{issues}/{number}/comments?per_page={A_PAGE}&page={page}")
        for one in found:
            is_a_bots = (one["user"] or {}).get("type") == "Bot"  # no user: deleted since
            if is_a_bots and (one["body"] or "").startswith(MARK):
                return int(one["id"])
        if len(found) < A_PAGE:
            break
    return None


def ask(method: str, path: str, body: object = None) -> Any:
    """Ask GitHub's API."""
    url = f"{os.environ.get('GITHUB_API_URL', 'https://api.github.com')}/{path}"
    headers = {
        "Accept": "application/vnd.github+json",
        "Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}",
        "Content-Type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    wanted = urllib.request.Request(url, data, headers, method=method)
    with urllib.request.urlopen(wanted, timeout=60) as answer:
        return json.load(answer)


# ------------------------------------------------------------------------------------- commands


def patterns() -> list[str]:
    """Which files are plans."""
    lines = (line.strip() for line in os.environ.get("PLANS", "").splitlines())
    return [line for line in lines if line] or ["*.tailor"]


def is_file(mode: str) -> bool:
    """Return whether git's mode is a plain file's; a link may lead out of the repository."""
    return mode.startswith("100")


def as_argument(name: str) -> str:
    """A file's name that is no option."""
    return f"./{name}" if name.startswith("-") else name


def git(*words: str) -> str:
    """Return git's output as text; bytes of names that aren't UTF-8 are escaped."""
    return os.fsdecode(git_bytes(*words))


def git_bytes(*words: str) -> bytes:
    """Return git's output unchanged."""
    return subprocess.run(["git", *words], check=True, stdout=subprocess.PIPE).stdout


def asked(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Return git's result, also after a failure."""
    return subprocess.run(["git", *words], check=False, capture_output=True)


def gptailor(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the gptailor of this Python: nothing of the pull request's, and not with its token."""
    kept = {name: value for name, value in os.environ.items() if name != "GITHUB_TOKEN"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "gptailor", *words],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={
            **kept,
            "COLUMNS": "100",
            "NO_COLOR": "1",
            "PYTHONIOENCODING": "utf-8:surrogateescape",  # of names
        },
    )


if __name__ == "__main__":
    sys.exit(main())
