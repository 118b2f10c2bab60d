"""How many of the package's files somebody opens to follow what happens."""

from pathlib import Path

import pytest

from benchmarks.trace import FLOWS, models

MOST = {"compile": 43, "trial": 45}
"""Files that run. A compilation is to need 35."""


@pytest.mark.parametrize("flow", FLOWS)
def test_few_files_run(tmp_path: Path, flow: str) -> None:
    models(tmp_path)
    files = FLOWS[flow](tmp_path)
    assert len(files) <= MOST[flow], "\n".join(files)
    assert {"compile": "build/compile.py", "trial": "search/search.py"}[flow] in files
