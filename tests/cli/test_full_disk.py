"""A disk that is full while a plan is written: nothing is lost, and nothing is half-written."""

import subprocess
import sys
from pathlib import Path

import pytest

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
from gptailor.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
PLAN = 'tailor 1\nmodel   base = "./base"\n' + "# why\n" * 500
YAML = """
merge_method: passthrough
slices:
"""
SLICE = """- sources:
  - model: ./base
    layer_range: [{}, {}]
"""


@pytest.mark.parametrize("command", [["fmt", "p.tailor"], ["import", "m.yaml", "-o", "p2.tailor"]])
def test_a_full_disk_leaves_plans_as_they_were(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.tailor").write_text(PLAN)
    (tmp_path / "m.yaml").write_text(
        YAML + "".join(SLICE.format(n, n + 1) for n in range(0, 400, 2))
    )
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "error[C303]: cannot be written: File too large" in done.stderr
    assert f"--> {command[-1]}" in done.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "p.tailor").read_text() == PLAN
