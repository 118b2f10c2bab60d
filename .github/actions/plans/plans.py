"""What the action does: `check` plans as annotations, `comment` on what a pull request changes.

python plans.py check      # PLANS, ALONE and CANONICAL say what; ends with 1 if there are faults
python plans.py comment    # PLANS, and what GitHub sets: GITHUB_EVENT_PATH, GITHUB_REPOSITORY, …
"""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

MARK = "<!-- gptailor plans -->"
"""What the comment begins with, by which it is found again."""
LONGEST = 60_000
"""Characters of a comment; GitHub takes some more."""
A_PAGE = 100


def main() -> int:
    """Do what is asked; the exit code."""
    done = {"check": check, "comment": comment}.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if done is None:
        print(__doc__, file=sys.stderr)
        return 2
    return done()


def check() -> int:
    """Say the faults of all plans, and which aren't in canonical form."""
    plans = [
        as_argument(name) for name in git("ls-files", "-z", "--", *patterns()).split("\0") if name
    ]
    if not plans:
        print("there are no plans")
        return 0
    alone = ["--alone"] if os.environ.get("ALONE", "true") == "true" else []
    done = gptailor("check", "--format", "github", *alone, *plans)
    print(done.stdout + done.stderr, end="")
    code = done.returncode
    if os.environ.get("CANONICAL", "true") == "true" and code == 0:
        for plan in plans:
            if gptailor("fmt", "--check", plan).returncode:
                print(f"::error file={escaped(plan)}::not in canonical form: run gptailor fmt")
                code = 1
    if code == 0:
        print(f"{len(plans)} plan{'s' * (len(plans) != 1)}, no faults")
    return code


def comment() -> int:
    """Write or renew the pull request's comment; the run's summary has the same text."""
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
    pull = event["pull_request"]
    sections = list(changes(pull["base"]["sha"]))
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


def changes(base: str) -> Iterator[str]:
    """A section for each plan that is not as it was at a commit."""
    if subprocess.run(["git", "cat-file", "-e", base], check=False, capture_output=True).returncode:
        git("fetch", "--quiet", "--depth=1", "origin", base)
    words = iter(
        git("diff", "-z", "--name-status", "-M", base, "HEAD", "--", *patterns()).split("\0")
    )
    for status in words:
        if status[:1] == "R":
            old, new = next(words), next(words)
            yield section(f"{old} → {new}", difference(base, old, new))
        elif status:
            name = next(words)
            if status == "D":
                yield f"#### {code(name)}\n\nis removed"
            elif status == "A":
                yield section(f"{name} (new)", said("show", as_argument(name)))
            else:
                yield section(name, difference(base, name, name))


def difference(base: str, old: str, new: str) -> str:
    """What `gptailor diff` says; the old text lies where it was, since paths start there."""
    before = Path(old).with_name(f".{Path(old).name}.before.tailor")
    made = not before.parent.exists()
    before.parent.mkdir(parents=True, exist_ok=True)
    try:
        before.write_text(git("show", f"{base}:{old}"), encoding="utf-8")
        return said("diff", as_argument(str(before)), as_argument(new)).replace(str(before), old)
    finally:
        before.unlink(missing_ok=True)
        if made:
            before.parent.rmdir()


def said(*words: str) -> str:
    """What a command prints, or what it says is wrong."""
    done = gptailor(*words)
    return (done.stdout.strip("\n") or done.stderr.strip()) + "\n"


def section(title: str, text: str) -> str:
    """A heading, and a text as it is."""
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"#### {code(title)}\n\n{fence}text\n{text}{fence}"


def escaped(name: str) -> str:
    """A file's name in a line that GitHub reads."""
    return name.translate({ord(c): f"%{ord(c):02X}" for c in "%\r\n:,"})


def code(name: str) -> str:
    """A name as code, whatever is in it."""
    return f"`{name.replace('`', chr(39))}`"


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
            if one["body"].startswith(MARK):
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
    return os.environ.get("PLANS", "*.tailor").split("\n")


def as_argument(name: str) -> str:
    """A file's name that is no option."""
    return f"./{name}" if name.startswith("-") else name


def git(*words: str) -> str:
    """What git prints."""
    return subprocess.run(
        ["git", *words], check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ).stdout


def gptailor(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the gptailor of this Python."""
    return subprocess.run(
        [sys.executable, "-m", "gptailor", *words],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )


if __name__ == "__main__":
    sys.exit(main())
