"""What each command says of itself, pasted into docs/commands.md.

python docs/commands.py            # paste
python docs/commands.py --check    # end with 1 if the page isn't current
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_suffix(".md")
BLOCK = re.compile(r"(<!-- gptailor([ \w-]*) --help -->\n)(?:.*?)(<!-- end -->\n)", re.DOTALL)


def main() -> None:
    """Paste, or check."""
    text = PAGE.read_text(encoding="utf-8")
    current = pasted(text)
    if "--check" in sys.argv[1:]:
        sys.exit(int(text != current))
    PAGE.write_text(current, encoding="utf-8")


def pasted(page: str) -> str:
    """The page with what the commands say by now between its markers."""
    return BLOCK.sub(lambda found: f"{found[1]}```text\n{said(found[2])}```\n{found[3]}", page)


def said(command: str) -> str:
    """What a command says with `--help`, on a terminal of 80 columns."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "gptailor", *command.split(), "--help"]
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


if __name__ == "__main__":
    main()
