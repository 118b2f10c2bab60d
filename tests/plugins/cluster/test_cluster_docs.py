"""The files of docs/cluster.md are what they are said to be, as far as no cluster is needed."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptailor.cli.main import cli

PAGE = (Path(__file__).parents[3] / "docs/cluster.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def documents() -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in blocks("yaml")]


def scripts() -> list[str]:
    """All that a shell gets: blocks of bash, and what YAML hands to one."""
    inside = [one[key] for one in documents() for key in ("setup", "run") if key in one]
    return [*blocks("bash"), *inside, documents()[0]["spec"]["entrypoint"]]


def searches() -> list[list[str]]:
    """The arguments of each `gptailor search`, as a shell would hand them on."""
    found = []
    for script in scripts():
        joined = script.replace("\\\n", " ")
        for said in re.findall(r"gptailor search (.*)", joined):
            whole = re.sub(r'"?\$\(\(.*?\)\)"?', "7", said)
            found.append(shlex.split(whole))
    return found


def test_there_are_files_for_three_kinds_of_cluster() -> None:
    slurm = next(block for block in blocks("bash") if block.startswith("#!"))
    assert "#SBATCH" in slurm
    kube, sky = documents()
    assert (kube["kind"], kube["apiVersion"]) == ("RayJob", "ray.io/v1")
    assert {"setup", "run", "resources", "num_nodes"} <= sky.keys()
    assert len(searches()) == 3


@pytest.mark.parametrize("script", scripts(), ids=lambda script: script.split("\n")[0][:30])
def test_a_shell_reads_them(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", searches(), ids=lambda arguments: arguments[-4])
def test_their_searches_are_of_todays_options(arguments: list[str]) -> None:
    context = cli.make_context("gptailor", [], resilient_parsing=True)
    command = cli.get_command(context, "search")
    assert command is not None
    said = command.make_context("search", list(arguments), parent=context).params
    assert said["ray"]
    assert said["device"] == "cuda"
    assert said["workers"] == 7


def test_a_manifest_asks_for_a_gpu_for_the_search_and_each_worker() -> None:
    spec = documents()[0]["spec"]
    [group] = spec["rayClusterSpec"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    gpus = group["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert f"--workers {gpus - spec['entrypointNumGpus']} " in spec["entrypoint"]
    names = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
    assert names == {mount["name"] for mount in container["volumeMounts"]}


def test_it_uses_extras_that_there_are() -> None:
    project = Path(__file__).parents[3] / "pyproject.toml"
    extras = set(re.findall(r"^(\w+) = \[", project.read_text("utf-8"), re.MULTILINE))
    for asked in re.findall(r"gptailor\[([\w,]+)\]", PAGE):
        assert set(asked.split(",")) <= extras
