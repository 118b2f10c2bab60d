"""Build the documentation site: this folder, the benchmarks' notes, the faults, the tree's top.

python docs/site.py                # build it strictly into build/docs/site
python docs/site.py --output DIR   # elsewhere
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "docs"
NOTES = ROOT / "benchmarks"
"""Measurements, with their own pages and pictures."""
AT_THE_TOP = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages that GitHub expects at the top of the tree."""
FAULTS = ROOT / "gptailor" / "plan" / "faults.md"
"""The explanation of each code, in the package that `gptailor explain` reads it from."""
SHOWN = (".md", ".svg", ".png", ".css", ".js", ".json", ".html")
SHIM = "https://unpkg.com/iframe-worker/shim"
"""Script of Zensical's search for pages that are opened from disk."""
OWN_SHIM = "assets/iframe-worker.js"
COLOUR = re.compile(r"\x1b\[[\d;]*m")
FENCE = re.compile(r"^```(\w+) +(\S.*)$", re.MULTILINE)
LINK = re.compile(r"\[([^]]+)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def main() -> None:
    """Build the site and print its address."""
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs")
    out = parser.parse_args().output.resolve()
    stage(out)
    code, said = built(out)
    print(said if code else (out / "site" / "index.html").as_uri())
    sys.exit(code)


def built(out: Path) -> tuple[int, str]:
    """Run the generator strictly; return its exit code and its output."""
    words = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    words += ["-f", str(out / "zensical.toml")]
    done = subprocess.run(words, check=False, cwd=out, capture_output=True, text=True)
    said = COLOUR.sub("", done.stdout + done.stderr).partition("Traceback (most recent")[0]
    for path in (out / "site").rglob("*.html"):
        root = os.path.relpath(out / "site", path.parent)
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(SHIM, f"{root}/{OWN_SHIM}"), encoding="utf-8")
    return done.returncode, said.strip()


def stage(out: Path) -> None:
    """Copy pages and configuration into one folder, as the generator needs them."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "pages").mkdir(parents=True)
    shutil.copy(HERE / "zensical.toml", out)
    folders = (*sorted(HERE.rglob("*")), *sorted(NOTES.rglob("*")))
    for path in (*folders, FAULTS, *(ROOT / name for name in AT_THE_TOP)):
        name = on_the_site(path)
        if name is None:
            continue
        target = out / "pages" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(page(path), encoding="utf-8")
        else:
            shutil.copy(path, target)


def on_the_site(path: Path) -> Path | None:
    """Return the path of a file on the site, or None if it isn't part of the site."""
    if path == ROOT / "README.md":
        return Path("index.md")
    if path == FAULTS or (path.parent == ROOT and path.name in AT_THE_TOP):
        return Path(path.name)
    if path.suffix not in SHOWN or not {HERE, NOTES} & {*path.parents}:
        return None
    return path.relative_to(HERE if HERE in path.parents else ROOT)


def page(path: Path) -> str:
    """Return the text of a page for the generator.

    GitHub reads only the first word of a fence. The generator needs the other words, a file's name
    or `refuse`, as a title.
    """

    def marked(found: re.Match[str]) -> str:
        language, rest = found.groups()
        title = "refused" if rest == "refuse" else rest
        return f'```{language} title="{title}"'

    return FENCE.sub(marked, led(path.read_text(encoding="utf-8"), path))


def title(path: Path) -> str:
    """Return a page's first heading, for links with a file's name as their label."""
    heading = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return heading[1] if heading else path.name


def led(text: str, path: Path) -> str:
    """Return a text with its links between files changed to links between pages of the site."""
    here = on_the_site(path)
    assert here is not None

    def moved(found: re.Match[str]) -> str:
        label, to, anchor = found.groups()
        there = (path.parent / to).resolve()
        there = there / "README.md" if there.is_dir() else there
        if not there.exists():
            return found[0]  # the generator reports it
        target = on_the_site(there)
        if target is None:
            return label
        if label in (to, there.name):
            label = title(there)
        return f"[{label}]({os.path.relpath(target, here.parent)}{anchor or ''})"

    return LINK.sub(moved, text)


if __name__ == "__main__":
    main()
