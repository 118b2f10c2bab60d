"""Models of the Hub, read from a small one on this machine: what goes over the wire, and faults."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import hub_desk
from tests.support.hub_desk import FIRST, PLAN, SECOND, Desk
from tests.support.hub_server import Hub, commit_of

WEIGHTS = {"model.safetensors", FIRST, SECOND}
PRIVATE = 'tailor 1\nmodel base = "org/private"\ndrop L1\n'


folders, hub, runs, desk = hub_desk.folders, hub_desk.hub, hub_desk.runs, hub_desk.desk


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


# --------------------------------------------------------------------------- what goes on the wire


def test_checking_reads_headers_and_compiling_only_the_files_that_are_used(
    desk: Desk, hub: Hub, folders: Path
) -> None:
    done = desk.check()
    assert (done.code, done.err) == (0, ""), done
    assert not WEIGHTS & set(hub.whole())
    ranges = {r.path.rpartition("/")[2] for r in hub.requests if r.range and r.method == "GET"}
    assert ranges >= WEIGHTS
    assert desk.cached() == set()

    hub.requests.clear()
    done = desk.compile()
    assert (done.code, done.err) == (0, ""), done
    assert WEIGHTS & set(hub.whole()) == {"model.safetensors", FIRST}
    assert desk.cached() == {"model.safetensors", FIRST}
    for repo in ("org/base", "org/math"):
        assert f'"{repo}" @ "{commit_of(repo)}"' in desk.plan()

    local = PLAN.replace('"org', f'"{folders}')
    assert desk.compile("local", local).code == 0
    assert same(desk.made(), desk.made("local"))
    assert not same(desk.made(), load_file(folders / "base" / "model.safetensors"))

    hub.requests.clear()
    done = desk.compile("again", HF_HUB_OFFLINE="1")
    assert (done.code, done.err) == (0, ""), done
    assert same(desk.made(), desk.made("again"))
    assert f'@ "{commit_of("org/math")}"' in desk.plan("again")
    assert hub.requests == []

    shutil.copy(desk.folder / "out" / "plan.tailor", desk.folder / "kept.tailor")
    done = desk.run("compile", "kept.tailor", "-o", "kept")
    assert (done.code, done.err) == (0, ""), done
    assert same(desk.made(), desk.made("kept"))


def test_a_branch_a_tag_and_a_commit_name_a_revision(desk: Desk, hub: Hub, folders: Path) -> None:
    last = hub.add("org/base", folders / "base", folders / "later")
    first = commit_of("org/base", 0)
    sound, later = (load_file(folders / n / "model.safetensors") for n in ("base", "later"))
    for n, (revision, commit, wanted) in enumerate(
        [("", last, later), ("v1", first, sound), ("pr/one", first, sound), (last, last, later)]
    ):
        at = f' @ "{revision}"' if revision else ""
        plan = f'tailor 1\nmodel base = "org/base"{at}\nscale L0 by 1.0\n'
        done = desk.compile(f"out{n}", plan)
        assert (done.code, done.err) == (0, ""), done
        assert same(desk.made(f"out{n}"), wanted), revision
        assert f'"org/base" @ "{commit}"' in desk.plan(f"out{n}")


def test_an_adapter_of_the_hub_is_applied_as_one_of_a_folder_is(
    desk: Desk, hub: Hub, folders: Path
) -> None:
    commit = hub.add("org/lora", folders / "lora")
    plan = 'tailor 1\nmodel base = "org/base"\nmodel fine = base + "org/lora"\nL0 from fine\n'
    done = desk.compile(plan=plan)
    assert (done.code, done.err.count("\n"), "M305" in done.err) == (0, 6, True), done
    assert f'"org/lora" @ "{commit}"' in desk.plan()
    assert desk.compile("local", plan.replace('"org', f'"{folders}')).code == 0
    assert same(desk.made(), desk.made("local"))
    name = "model.layers.0.self_attn.q_proj.weight"
    before = load_file(folders / "base" / "model.safetensors")[name]
    torch.testing.assert_close(desk.made()[name], before + 4.0)
    assert desk.compile("again", plan, HF_HUB_OFFLINE="1").code == 0
    assert same(desk.made(), desk.made("again"))


def test_a_cache_that_something_else_filled_is_read_offline(
    desk: Desk, hub: Hub, folders: Path
) -> None:
    for name in ("base", "math"):
        commit = commit_of(f"org/{name}")
        place = desk.folder / "home" / "hub" / f"models--org--{name}"
        snapshot = place / "snapshots" / commit
        for folder in (place / "refs", place / "blobs", snapshot):
            folder.mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        for n, file in enumerate(sorted((folders / name).iterdir())):
            shutil.copy(file, place / "blobs" / f"{n:064x}")
            (snapshot / file.name).symlink_to(Path("../../blobs") / f"{n:064x}")
    done = desk.compile(HF_HUB_OFFLINE="1")
    assert (done.code, done.err) == (0, ""), done
    assert f'"org/math" @ "{commit_of("org/math")}"' in desk.plan()
    assert hub.requests == []


def test_a_token_opens_a_private_model(desk: Desk, hub: Hub, folders: Path) -> None:
    hub.add("org/private", folders / "base", token="hf_secret")
    message = desk.compile(plan=PRIVATE).fault("C501")
    assert "hf auth login" in message
    assert "HF_TOKEN" in message
    assert "hf_wrong" not in desk.compile(plan=PRIVATE, HF_TOKEN="hf_wrong").fault("C501")
    done = desk.compile(plan=PRIVATE, HF_TOKEN="hf_secret")
    assert (done.code, done.err) == (0, ""), done
    assert "hf_secret" not in desk.plan()


# --------------------------------------------------------------------------------- refusals


def test_missing_and_gated_repositories_are_reported(desk: Desk, hub: Hub, folders: Path) -> None:
    hub.add("org/gated", folders / "base", gated=True)
    message = desk.compile(plan=PRIVATE.replace("private", "gated")).fault("C501")
    assert "is gated" in message
    assert "org/gated" in message
    assert "org/private" in desk.check(PRIVATE).fault("C501")
    missing = 'tailor 1\nmodel base = "org/base" @ "{}"\ndrop L1\n'
    assert "'v9'" in desk.compile(plan=missing.format("v9")).fault("C502")
    assert "b" * 40 in desk.check(missing.format("b" * 40)).fault("C502")


def test_a_folder_that_was_named_like_an_id_is_reported(desk: Desk) -> None:
    (desk.folder / "models" / "base").mkdir(parents=True)
    message = desk.check('tailor 1\nmodel base = "models/base"\ndrop L1\n').fault("C501")
    assert 'there is a folder of that name; write "./models/base"' in message


def test_a_file_that_was_named_like_an_id_is_reported(desk: Desk) -> None:
    (desk.folder / "gemma.gguf").write_bytes(b"GGUF")
    message = desk.check('tailor 1\nmodel base = "gemma.gguf"\ndrop L1\n').fault("C501")
    assert 'there is a file of that name; write "./gemma.gguf"' in message


def test_an_invalid_id_is_reported(desk: Desk) -> None:
    assert "a--b" in desk.check('tailor 1\nmodel base = "a--b"\ndrop L1\n').fault("C501")


def test_a_missing_cache_and_network_are_reported(desk: Desk, hub: Hub) -> None:
    plan = 'tailor 1\nmodel base = "org/base"\ndrop L1\n'
    message = desk.compile(plan=plan, HF_HUB_OFFLINE="1").fault("C503")
    assert "HF_HUB_OFFLINE is set" in message
    assert "--model NAME=PATH" in message
    assert hub.requests == []
    message = desk.compile(plan=plan, HF_ENDPOINT="http://127.0.0.1:9").fault("C503")
    assert "check the connection" in message
    assert desk.check(plan).code == 0
    done = desk.compile(plan=plan, HF_HUB_OFFLINE="1")  # its headers are known, not its weights
    assert "HF_HUB_OFFLINE is set" in done.err
    assert (done.code, done.err.count("error[C503]")) == (3, 1), done.err


def test_a_connection_that_breaks_after_the_small_files_is_reported(desk: Desk) -> None:
    plan = f'tailor 1\nmodel base = "org/base" @ "{commit_of("org/base")}"\ndrop L1\n'
    assert desk.check(plan).code == 0
    shutil.rmtree(desk.folder / "home" / "assets")
    message = desk.check(plan, HF_ENDPOINT="http://127.0.0.1:9").fault("C503")
    assert "check the connection" in message


def test_pickled_weights_are_fetched_whole_and_read_offline(
    desk: Desk, hub: Hub, folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "base", tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    hub.add("org/old", tmp_path / "old")
    plan = 'tailor 1\nmodel base = "org/old"\nscale L0 by 1.0\n'
    done = desk.compile(plan=plan)
    assert (done.code, done.err) == (0, ""), done
    assert same(desk.made(), tensors)
    done = desk.compile("again", plan, HF_HUB_OFFLINE="1")
    assert (done.code, done.err) == (0, ""), done
    assert same(desk.made("again"), tensors)


def test_the_single_file_wins_over_an_old_index(
    desk: Desk, hub: Hub, folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "base", tmp_path / "both")
    index = "model.safetensors.index.json"
    shutil.copy(folders / "math" / index, tmp_path / "both" / index)
    hub.add("org/both", tmp_path / "both")
    plan = 'tailor 1\nmodel base = "org/both"\nscale L0 by 1.0\n'
    assert desk.compile(plan=plan).code == 0
    assert same(desk.made(), load_file(folders / "base" / "model.safetensors"))


def test_several_gguf_files_are_refused_before_a_download(
    desk: Desk, hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "quants").mkdir()
    for name in ("a-q4.gguf", "a-q8.gguf"):
        (tmp_path / "quants" / name).write_bytes(b"GGUF" * 100)
    hub.add("org/quants", tmp_path / "quants")
    message = desk.check('tailor 1\nmodel base = "org/quants"\ndrop L1\n').fault("C104")
    assert "'a-q4.gguf' and 'a-q8.gguf'" in message
    assert not [name for name in hub.whole() if name.endswith(".gguf")]


def test_a_server_that_fails_is_reported(desk: Desk, hub: Hub) -> None:
    hub.broken = True
    desk.check('tailor 1\nmodel base = "org/base"\ndrop L1\n').fault("C503")


@pytest.mark.parametrize("size", [b"\xff" * 8, (40).to_bytes(8, "little")], ids=["huge", "no JSON"])
def test_invalid_weights_are_reported(
    desk: Desk, hub: Hub, folders: Path, tmp_path: Path, size: bytes
) -> None:
    shutil.copytree(folders / "base", tmp_path / "bad")
    (tmp_path / "bad" / "model.safetensors").write_bytes(size + b"no header" * 20)
    hub.add("org/bad", tmp_path / "bad")
    message = desk.check('tailor 1\nmodel base = "org/bad"\ndrop L1\n').fault("C204")
    assert "model.safetensors" in message


def test_an_index_with_a_missing_file_is_reported(
    desk: Desk, hub: Hub, folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "math", tmp_path / "lacking")
    (tmp_path / "lacking" / SECOND).unlink()
    hub.add("org/lacking", tmp_path / "lacking")
    plan = 'tailor 1\nmodel base = "org/lacking"\ndrop L1\n'
    assert SECOND in desk.check(plan).fault("C503")
