"""Models of the Hub, read from a small one on this machine: what goes over the wire, and faults."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gptailor.checkpoint.files import CheckpointError, stamps
from gptailor.checkpoint.hub import upload_folder
from tests.forked import Runs, forking
from tests.hub_server import Hub, commit_of, serving
from tests.tiny import tiny_model

LAYERS = 3
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WEIGHTS = {"model.safetensors", FIRST, SECOND}
PLAN = 'tailor 1\nmodel base = "org/base"\nmodel math = "org/math"\nL0 from math\n'
PRIVATE = 'tailor 1\nmodel base = "org/private"\ndrop L1\n'


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` in one file, `math` in two, and `lora`, an adapter on the base."""
    folder = tmp_path_factory.mktemp("hub")
    tiny_model("llama", folder / "base", layers=LAYERS)
    tiny_model("llama", folder / "math", layers=LAYERS, seed=1)
    tiny_model("llama", folder / "later", layers=LAYERS, seed=2)
    split(folder / "math")
    (folder / "lora").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    pair = {
        f"{module}.lora_A.weight": torch.ones(2, 16),
        f"{module}.lora_B.weight": torch.ones(16, 2),
    }
    save_file(pair, folder / "lora" / "adapter_model.safetensors")
    return folder


def split(folder: Path) -> None:
    """Two files of weights: layer 0 in the first, all else in the second."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {name: FIRST if name.startswith("model.layers.0.") else SECOND for name in tensors}
    for file in (FIRST, SECOND):
        part = {name: tensor for name, tensor in tensors.items() if index[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.fixture
def hub(folders: Path) -> Iterator[Hub]:
    with serving() as served:
        served.add("org/base", folders / "base")
        served.add("org/math", folders / "math")
        yield served


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def fault(self, code: str) -> str:
        """Return the output, which is one fault alone."""
        said = self.out + self.err
        assert self.code == 1, said
        assert said.count("error[") == 1, said
        assert f"error[{code}]: " in said, said
        assert "Traceback" not in said, said
        return said


@dataclass
class Desk:
    """A folder with a plan in it, and gptailor run there on a cache of its own."""

    folder: Path
    hub: Hub
    runs: Runs

    def run(self, *arguments: str, plan: str = PLAN, **environment: str) -> Done:
        """Run gptailor in its own process, which has no module of the Hub's library yet.

        That reads its settings once.
        """
        (self.folder / "p.tailor").write_text(plan)
        names = ("HF_", "HUGGING", "HTTP_", "HTTPS_", "ALL_", "http_", "https_", "all_")
        settings = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        settings |= {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        }
        return Done(*self.runs.command(*arguments, folder=self.folder, environment=settings))

    def check(self, plan: str = PLAN, **environment: str) -> Done:
        return self.run("check", "p.tailor", plan=plan, **environment)

    def compile(self, out: str = "out", plan: str = PLAN, **environment: str) -> Done:
        done = self.run("compile", "p.tailor", "-o", out, plan=plan, **environment)
        assert (self.folder / out).exists() == (done.code == 0), done.err
        return done

    def made(self, out: str = "out") -> dict[str, torch.Tensor]:
        return load_file(self.folder / out / "model.safetensors")

    def plan(self, out: str = "out") -> str:
        return (self.folder / out / "plan.tailor").read_text()

    def cached(self) -> set[str]:
        """The weights in the cache."""
        found = (self.folder / "home").rglob("snapshots/*/*.safetensors")
        return {path.name for path in found if path.exists()}


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    with forking("gptailor.program.run") as started:
        yield started


@pytest.fixture
def desk(tmp_path: Path, hub: Hub, runs: Runs) -> Desk:
    return Desk(tmp_path, hub, runs)


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
    said = desk.compile(plan=PRIVATE).fault("C501")
    assert "hf auth login" in said
    assert "HF_TOKEN" in said
    assert "hf_wrong" not in desk.compile(plan=PRIVATE, HF_TOKEN="hf_wrong").fault("C501")
    done = desk.compile(plan=PRIVATE, HF_TOKEN="hf_secret")
    assert (done.code, done.err) == (0, ""), done
    assert "hf_secret" not in desk.plan()


# --------------------------------------------------------------------------------- what is refused


def test_what_is_not_there_is_said(desk: Desk, hub: Hub, folders: Path) -> None:
    hub.add("org/gated", folders / "base", gated=True)
    said = desk.compile(plan=PRIVATE.replace("private", "gated")).fault("C501")
    assert "is gated" in said
    assert "org/gated" in said
    assert "org/private" in desk.check(PRIVATE).fault("C501")
    missing = 'tailor 1\nmodel base = "org/base" @ "{}"\ndrop L1\n'
    assert "'v9'" in desk.compile(plan=missing.format("v9")).fault("C502")
    assert "b" * 40 in desk.check(missing.format("b" * 40)).fault("C502")


def test_a_folder_that_was_named_like_an_id_is_said(desk: Desk) -> None:
    (desk.folder / "models" / "base").mkdir(parents=True)
    said = desk.check('tailor 1\nmodel base = "models/base"\ndrop L1\n').fault("C501")
    assert 'there is a folder of that name; a folder\'s name starts so: "./models/base"' in said


def test_an_id_that_is_none_is_said(desk: Desk) -> None:
    assert "a--b" in desk.check('tailor 1\nmodel base = "a--b"\ndrop L1\n').fault("C501")


def test_without_cache_and_network_it_says_so(desk: Desk, hub: Hub) -> None:
    plan = 'tailor 1\nmodel base = "org/base"\ndrop L1\n'
    said = desk.compile(plan=plan, HF_HUB_OFFLINE="1").fault("C503")
    assert "HF_HUB_OFFLINE is set" in said
    assert "--model NAME=PATH" in said
    assert hub.requests == []
    said = desk.compile(plan=plan, HF_ENDPOINT="http://127.0.0.1:9").fault("C503")
    assert "check the connection" in said
    assert desk.check(plan).code == 0
    done = desk.compile(plan=plan, HF_HUB_OFFLINE="1")  # its headers are known, not its weights
    assert "HF_HUB_OFFLINE is set" in done.err
    assert (done.code, done.err.count("error[C503]")) == (3, 1), done.err


def test_a_connection_that_breaks_after_the_small_files_is_said(desk: Desk) -> None:
    plan = f'tailor 1\nmodel base = "org/base" @ "{commit_of("org/base")}"\ndrop L1\n'
    assert desk.check(plan).code == 0
    shutil.rmtree(desk.folder / "home" / "assets")
    said = desk.check(plan, HF_ENDPOINT="http://127.0.0.1:9").fault("C503")
    assert "check the connection" in said


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


def test_of_several_gguf_files_none_is_fetched(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "quants").mkdir()
    for name in ("a-q4.gguf", "a-q8.gguf"):
        (tmp_path / "quants" / name).write_bytes(b"GGUF" * 100)
    hub.add("org/quants", tmp_path / "quants")
    said = desk.check('tailor 1\nmodel base = "org/quants"\ndrop L1\n').fault("C104")
    assert "'a-q4.gguf' and 'a-q8.gguf'" in said
    assert not [name for name in hub.whole() if name.endswith(".gguf")]


def test_a_server_that_fails_is_said(desk: Desk, hub: Hub) -> None:
    hub.broken = True
    desk.check('tailor 1\nmodel base = "org/base"\ndrop L1\n').fault("C503")


@pytest.mark.parametrize("size", [b"\xff" * 8, (40).to_bytes(8, "little")], ids=["huge", "no JSON"])
def test_weights_that_are_none_are_said(
    desk: Desk, hub: Hub, folders: Path, tmp_path: Path, size: bytes
) -> None:
    shutil.copytree(folders / "base", tmp_path / "bad")
    (tmp_path / "bad" / "model.safetensors").write_bytes(size + b"no header" * 20)
    hub.add("org/bad", tmp_path / "bad")
    said = desk.check('tailor 1\nmodel base = "org/bad"\ndrop L1\n').fault("C204")
    assert "model.safetensors" in said


def test_an_index_of_a_file_that_is_not_there_is_said(
    desk: Desk, hub: Hub, folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(folders / "math", tmp_path / "lacking")
    (tmp_path / "lacking" / SECOND).unlink()
    hub.add("org/lacking", tmp_path / "lacking")
    plan = 'tailor 1\nmodel base = "org/lacking"\ndrop L1\n'
    assert SECOND in desk.check(plan).fault("C503")


# ------------------------------------------------------------------------------------- publishing


def published(desk: Desk) -> dict[str, bytes]:
    return desk.hub.uploads.get("me/model", {})


def test_publishing_only_plans_until_it_is_told_to_upload(desk: Desk) -> None:
    assert desk.compile().code == 0
    done = desk.run("publish", "out", "me/model", HF_TOKEN="hf_writer")
    assert done.code == 0, done.err
    assert "nothing was uploaded" in done.out
    assert desk.hub.uploads == {}


def test_an_upload_has_the_folders_files_and_no_others(desk: Desk) -> None:
    assert desk.compile().code == 0
    (desk.folder / "out" / ".hidden").write_text("mine")
    done = desk.run("publish", "out", "me/model", "--upload", "--private", HF_TOKEN="hf_writer")
    assert done.code == 0, done.err
    folder = desk.folder / "out"
    wanted = {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
    card = wanted["README.md"].decode()
    assert 'pipeline("text-generation", "out")' in card
    uploaded = published(desk)
    assert 'pipeline("text-generation", "me/model")' in uploaded.pop("README.md").decode()
    assert uploaded == {name: content for name, content in wanted.items() if name != "README.md"}
    assert desk.hub.private == {"me/model"}
    assert f"uploaded: {desk.hub.endpoint}/me/model/commit/" in done.out
    assert "changed since gptailor wrote the folder: .hidden" in done.err


def test_a_link_out_of_the_folder_is_refused(desk: Desk) -> None:
    assert desk.compile().code == 0
    (desk.folder / "secret").write_text("a key")
    shutil.copy(desk.folder / "out" / "model.safetensors", desk.folder / "weights")
    out = "leads out of the folder"
    for i, (name, to, reason) in enumerate((
        ("tokenizer.json", "../secret", out),
        ("README.md", "../secret", out),
        ("plan.tailor", "../p.tailor", out),
        ("plan.tailor.lock", str(desk.folder / "secret"), out),
        ("model.safetensors", "../weights", out),
        ("vocab.json", "chain", out),
        ("vocab.json", "gone", "cannot be read"),
        ("vocab.json", "vocab.json", "cannot be read"),
        ("vocab.json", ".", "is a folder"),
    )):  # fmt: skip
        folder = shutil.copytree(desk.folder / "out", desk.folder / f"got{i}")
        (folder / "chain").symlink_to("../secret")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)
        done = desk.run("publish", f"got{i}", "me/model", "--upload", HF_TOKEN="hf_writer")
        assert (done.code, desk.hub.uploads) == (3, {}), name
        assert done.err.startswith(f"error[C201]: {reason}"), done.err
        assert f"--> got{i}/{name}\n" in f"{done.err}\n"


def test_a_file_of_others_is_uploaded_only_by_its_name(desk: Desk) -> None:
    assert desk.compile().code == 0
    folder = desk.folder / "out"
    (folder / "special_tokens.txt").symlink_to("../secret")
    (desk.folder / "secret").write_text("a key")
    (folder / "runs").mkdir()
    (folder / "runs" / "log.txt").write_text("mine")
    (folder / "runs" / ".hidden.txt").write_text("mine")
    (folder / "a\x1b[2J.jinja").write_text("{{ 1 }}")
    (folder / "zz\x1b[2J").write_text("mine")
    (folder / "linked").symlink_to("runs")
    (folder / "vocab.txt").symlink_to("runs/log.txt")
    upload = ("publish", "out", "me/model", "--upload")
    done = desk.run(*upload, HF_TOKEN="hf_writer")
    assert done.code == 0, done.err
    assert "note: left out: linked, runs/log.txt and special_tokens.txt and 1 more" in done.err
    assert "\x1b" not in done.out + done.err
    assert "  a\\x1b[2J.jinja " in done.out
    uploaded = published(desk)
    assert uploaded["vocab.txt"] == b"mine", "a link within the folder is its content"
    assert uploaded.keys() & {"linked", "runs/log.txt", "special_tokens.txt"} == set()
    done = desk.run(*upload, "--include", "runs/*", HF_TOKEN="hf_writer")
    assert "note: left out: linked, special_tokens.txt and zz\\x1b[2J;" in done.err
    assert uploaded.pop("runs/log.txt") == b"mine"
    assert not [name for name in uploaded if "runs" in name]
    done = desk.run(*upload, "--include", "special*", HF_TOKEN="hf_writer")
    assert (done.code, "leads out of the folder" in done.err) == (3, True)
    done = desk.run(*upload, "--include", "linked", HF_TOKEN="hf_writer")
    assert (done.code, "is a folder" in done.err) == (3, True)
    done = desk.run(*upload, "--include", "*.md5", HF_TOKEN="hf_writer")
    assert (done.code, "expected a file that matches '*.md5', got none" in done.err) == (3, True)


def test_a_file_that_changes_before_the_upload_stays(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("words")
    seen = stamps([file])
    (tmp_path / "secret").write_text("a key")
    file.unlink()
    file.symlink_to("secret")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with pytest.raises(CheckpointError, match="C304"):
        upload_folder("me/model", {"vocab.txt": file}, seen, private=False, message="")
    assert hub.uploads.get("me/model", {}) == {}


def test_an_upload_has_no_paths_of_the_machine_and_verifies(desk: Desk, folders: Path) -> None:
    """Equal names stay apart, the ids of the plan are kept, and the lock's digests hold."""
    text = "\n".join(json.dumps({"text": f"the cat {n} sat on the mat"}) for n in range(64))
    for place in ("one", "two"):
        (desk.folder / place).mkdir()
        (desk.folder / place / "rows.jsonl").write_text(text.replace("cat", place))
    shutil.copytree(folders / "math", desk.folder / "two" / "base")
    plan = (
        'tailor 1\nmodel base = "org/base" # mine\nmodel math = "./two/base"\nL0 from math\n'
        'drop L1\nheal on ("one/rows.jsonl", "two/rows.jsonl") tokens 256 rank 4\n'
        f'expect nll("{desk.folder}/one/rows.jsonl") <= 90\n'
        f'search {{\n  minimize nll("{desk.folder}/one/rows.jsonl")\n}}\n'
    )
    (desk.folder / "p.tailor").write_text(plan)
    models = ("--model", f"base={folders / 'base'}")
    done = desk.run("compile", "p.tailor", "-o", "out", "--lock", *models, plan=plan)
    assert done.code == 0, done.err
    before = desk.plan()
    done = desk.run("publish", "out", "me/model", "--upload", HF_TOKEN="hf_writer")
    assert done.code == 0, done.err
    assert desk.plan() == before
    files = published(desk)
    uploaded = files["plan.tailor"].decode()
    assert 'model base = "org/base"  # mine\nmodel math = "./base"' in uploaded
    assert 'heal on "rows.jsonl", "2-rows.jsonl"' in uploaded
    assert 'expect nll("rows.jsonl") <= 90' in uploaded
    locked = json.loads(files["plan.tailor.lock"])["models"]
    assert [locked[name]["source"] for name in ("base", "math")] == ["org/base", "./base"]
    texts = [content for name, content in files.items() if not name.endswith(".safetensors")]
    assert not [text for text in texts if b"../" in text or bytes(desk.folder) in text]
    note = "note: plan.tailor is uploaded without paths of this machine: "
    assert f"{note}model 'base' is org/base and 'math' is ./base there" in done.err
    for name, content in files.items():
        (desk.folder / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (desk.folder / "got" / name).write_bytes(content)
    for name, place in (("rows.jsonl", "one"), ("2-rows.jsonl", "two")):
        shutil.copy(desk.folder / place / "rows.jsonl", desk.folder / "got" / name)
    models = (*models, "--model", f"math={desk.folder / 'two' / 'base'}")
    done = desk.run("verify", "got", *models)
    assert (done.code, "got: verified" in done.out) == (0, True), done.out + done.err


def test_what_readers_would_miss_is_said(desk: Desk, folders: Path) -> None:
    plan = PLAN.replace('"org/base"', f'"{folders / "base"}"')
    assert desk.compile(plan=plan).code == 0
    said = desk.run("publish", "out", "me/model").err
    assert "the model 'base' is the folder" in said
    assert "there is no lock" in said
    assert "the model 'math'" not in said
    assert "names no licence" in said


def test_a_published_card_has_the_stated_facts(desk: Desk, folders: Path) -> None:
    plan = PLAN.replace('"org/base"', f'"{folders / "base"}"')
    assert desk.compile(plan=plan).code == 0
    before = (desk.folder / "out" / "README.md").read_bytes()
    facts = ["--title", "A \\1 model", "--license", "mit", "--language", "en", "--language", "de"]
    facts += ["--dataset", "org/texts", "--base-model", "org/base"]
    done = desk.run("publish", "out", "me/model", *facts, "--upload", HF_TOKEN="hf_writer")
    assert done.code == 0, done.err
    assert "note: the model" not in done.err
    assert "licence" not in done.err
    card = published(desk)["README.md"].decode()
    _, matter, body = card.split("---\n", 2)
    assert yaml.safe_load(matter) == {
        "license": "mit",
        "language": ["en", "de"],
        "datasets": ["org/texts"],
        "base_model": ["org/base"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gptailor", "merge"],
    }
    assert body.lstrip().startswith("# A \\1 model\n")
    assert str(folders) not in body
    assert (desk.folder / "out" / "README.md").read_bytes() == before
    shown = desk.run("publish", "out", "me/model", *facts, "--show-card")
    assert card in shown.out


def measured(desk: Desk) -> Path:
    """The JSON of an evaluation of the compiled folder."""
    rows = [json.dumps({"text": f"the cat {n} sat on the mat"}) for n in range(6)]
    (desk.folder / "rows.jsonl").write_text("\n".join(rows))
    objectives = ("-O", 'nll("rows.jsonl")', "-O", "parameters()")
    done = desk.run("eval", "out", *objectives, "--format", "json", "--no-speed")
    assert done.code == 0, done.err
    (desk.folder / "scores.json").write_text(done.out)
    return desk.folder / "scores.json"


def test_scores_are_on_the_card_and_in_the_hubs_results(desk: Desk, folders: Path) -> None:
    plan = PLAN.replace('"org/base"', f'"{folders / "base"}"')
    assert desk.compile(plan=plan).code == 0
    scores = json.loads(measured(desk).read_text())
    value = next(row["score"] for row in scores["results"] if row["objective"].startswith("nll"))
    of = ("--scores", "scores.json", "--benchmark", "rows.jsonl=org/bench:cats")
    done = desk.run("publish", "out", "me/model", *of, "--upload", HF_TOKEN="hf_writer")
    assert done.code == 0, done.err
    uploaded = published(desk)
    _, matter, body = uploaded["README.md"].decode().split("---\n", 2)
    (index,) = yaml.safe_load(matter)["model-index"]
    assert index["name"] == "model"
    (result,) = index["results"]
    assert result["dataset"] == {"name": "rows.jsonl", "type": "rows.jsonl"}
    assert result["metrics"] == [{"type": "nll", "value": value, "name": 'nll("rows.jsonl")'}]
    assert '| `nll("rows.jsonl")` | 6 |' in body
    assert "| `parameters()` |" in body
    (entry,) = yaml.safe_load(uploaded[".eval_results/gptailor.yaml"])
    assert entry["dataset"] == {"id": "org/bench", "task_id": "cats"}
    assert entry["value"] == value
    assert "6 samples" in entry["notes"]


def test_a_cards_scores_are_from_the_folders_own_base(desk: Desk, folders: Path) -> None:
    plan = PLAN.replace('"org/base"', f'"{folders / "base"}"')
    assert desk.compile(plan=plan).code == 0
    rows = str((desk.folder / "rows.jsonl").resolve())
    objective = f'nll("{rows}")'
    own = {"target": "out", "objective": objective, "score": 2.5, "stderr": None, "samples": 1}
    own |= {"against": "b", "difference": {"value": -0.5, "stderr": None}}
    bases = [
        {"target": name, "objective": objective, "score": s} for name, s in (("a", 7), ("b", 3))
    ]
    scores = desk.folder / "scores.json"
    scores.write_text(json.dumps({"results": [own], "bases": bases}))
    shown = desk.run("publish", "out", "me/model", "--scores", "scores.json", "--show-card").out
    assert '| `nll("rows.jsonl")` | 1 | 3 | 2.5 | -0.5 |' in shown
    assert rows not in shown
    own["against"] = "another target"
    scores.write_text(json.dumps({"results": [own], "bases": bases}))
    shown = desk.run("publish", "out", "me/model", "--scores", "scores.json", "--show-card")
    assert '| `nll("rows.jsonl")` | 1 |  | 2.5 |  |' in shown.out
    assert "was written after" not in shown.err
    os.utime(scores, (1.0, 1.0))
    said = desk.run("publish", "out", "me/model", "--scores", "scores.json").err
    assert "note: the folder was written after scores.json: evaluate it again" in said


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("{", (), "expected the JSON of 'gptailor eval DIR"),
        ('{"results": [], "bases": []}', (), "expected scores of 'out', got scores of nothing"),
        (
            '{"results": [{"target": "other", "objective": "parameters()", "score": 3}],'
            ' "bases": []}',
            (),
            "expected scores of 'out', got scores of 'other'",
        ),
        (
            '{"results": [{"target": "out", "objective": "nll(", "score": 3}], "bases": []}',
            (),
            "expected the JSON of 'gptailor eval DIR",
        ),
        (
            '{"results": [{"target": "out", "objective": "nll(\\"a.txt\\")", "score": 3,'
            ' "stderr": null, "samples": 2}], "bases": []}',
            ("--benchmark", "b.txt=org/bench"),
            "expected one score of 'b.txt', got 0",
        ),
    ],
)
def test_wrong_scores_are_refused(
    desk: Desk, text: str, more: tuple[str, ...], message: str
) -> None:
    assert desk.compile().code == 0
    (desk.folder / "scores.json").write_text(text)
    of = ("--scores", "scores.json", *more, "--upload")
    done = desk.run("publish", "out", "me/model", *of, HF_TOKEN="hf_writer")
    assert (done.code, published(desk)) == (3, {})
    assert "error[C605]: " in done.err
    assert message in done.err


@pytest.mark.parametrize("token", ["hf_reader", ""])
def test_a_token_that_may_not_write_is_refused(desk: Desk, token: str) -> None:
    assert desk.compile().code == 0
    done = desk.run("publish", "out", "me/model", "--upload", HF_TOKEN=token)
    assert (done.code, published(desk)) == (3, {})
    refused = "can't be written: the Hub expects a token with the right to write"
    assert f"error[C501]: {refused}" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("out", "me/model", "--base-model", "no id"), "error[C501]: expected an id of the Hub"),
        (("out", "model"), "error[C501]: expected an id of the Hub such as ORG/NAME"),
        (("nowhere", "me/model"), "error[C101]: expected a folder that 'gptailor compile' wrote"),
    ],
)
def test_a_wrong_publication_is_refused(desk: Desk, words: tuple[str, ...], message: str) -> None:
    assert desk.compile().code == 0
    done = desk.run("publish", *words, "--upload", HF_TOKEN="hf_writer")
    assert (done.code, message in done.err) == (3, True)


def test_a_hub_that_is_away_is_one_message(desk: Desk) -> None:
    assert desk.compile().code == 0
    done = desk.run("publish", "out", "me/model", "--upload", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.code == 3
    assert "error[C503]" in done.err
    assert "Traceback" not in done.err
