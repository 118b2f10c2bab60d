"""How many of the package's files somebody opens to follow what happens."""

from pathlib import Path

import pytest

from benchmarks.trace import FLOWS, models

MOST = {"compile": 50, "mix": 53, "trial": 56}
"""Files that run; those of a mix read what two models must agree on besides."""


@pytest.mark.parametrize("flow", FLOWS)
def test_few_files_run(tmp_path: Path, flow: str) -> None:
    models(tmp_path)
    files = FLOWS[flow](tmp_path)
    assert len(files) <= MOST[flow], "\n".join(files)
    assert ("search/search.py" if flow == "trial" else "build/compile.py") in files
