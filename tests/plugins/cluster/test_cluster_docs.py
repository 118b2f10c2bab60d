"""The files of examples/cluster are what docs/cluster.md says, as far as no cluster is needed."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptailor.cli.main import cli

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
FOLDER = ROOT / "examples" / "cluster"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.iterdir())}
SLURM = FILES["search.sbatch"]


def documents() -> list[dict[str, Any]]:
    return [yaml.safe_load(FILES[name]) for name in ("search.yaml", "search.sky.yaml")]


def scripts() -> list[str]:
    """All that a shell gets: the page's blocks, a file, and what YAML hands to a shell."""
    shown = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    inside = [item[key] for item in documents() for key in ("setup", "run") if key in item]
    return [*shown, SLURM, *inside, documents()[0]["spec"]["entrypoint"]]


def searches() -> list[list[str]]:
    """The arguments of each `gptailor search`, as a shell would hand them on."""
    results = []
    for script in scripts():
        joined = script.replace("\\\n", " ")
        for arguments in re.findall(r"gptailor search (.*)", joined):
            whole = re.sub(r'"?\$\(\(.*?\)\)"?', "7", arguments)
            results.append(shlex.split(whole))
    return results


def test_three_kinds_of_cluster_have_files() -> None:
    assert SLURM.startswith("#!")
    assert "#SBATCH" in SLURM
    kube, sky = documents()
    assert (kube["kind"], kube["apiVersion"]) == ("RayJob", "ray.io/v1")
    assert {"setup", "run", "resources", "num_nodes"} <= sky.keys()
    assert len(searches()) == 3


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.split("\n")[0][:30])
def test_bash_parses_the_scripts(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", searches(), ids=lambda arguments: arguments[-4])
def test_the_files_of_clusters_use_current_options(arguments: list[str]) -> None:
    context = cli.make_context("gptailor", [], resilient_parsing=True)
    command = cli.get_command(context, "search")
    assert command is not None
    options = command.make_context("search", list(arguments), parent=context).params
    assert options["ray"]
    assert options["device"] == "cuda"
    assert options["workers"] == 7


def test_a_manifest_asks_for_a_gpu_for_the_search_and_each_worker() -> None:
    spec = documents()[0]["spec"]
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    gpus = group["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert f"--workers {gpus - spec['entrypointNumGpus']} " in spec["entrypoint"]
    names = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    assert names == {mount["name"] for mount in container["volumeMounts"]}


def test_the_files_of_clusters_name_existing_extras() -> None:
    project = ROOT / "pyproject.toml"
    extras = set(re.findall(r"^(\w+) = \[", project.read_text("utf-8"), re.MULTILINE))
    asked = re.findall(r"gptailor\[([\w,]+)\]", "\n".join([PAGE, *FILES.values()]))
    assert len(asked) >= 3
    assert {extra for extras_ in asked for extra in extras_.split(",")} <= extras


def test_the_page_links_every_file() -> None:
    assert set(re.findall(r"examples/cluster/([\w.]+)\)", PAGE)) == FILES.keys()
