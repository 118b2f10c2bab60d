"""`gptailor publish` into a small Hub on this machine: the files, the card, scores and refusals."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from gptailor.checkpoint.files import CheckpointError, stamps
from gptailor.plugins.publish.publish import upload_folder
from tests.support import hub_desk
from tests.support.hub_desk import PLAN, Desk
from tests.support.hub_server import Hub

folders, hub, runs, desk = hub_desk.folders, hub_desk.hub, hub_desk.runs, hub_desk.desk


def published(desk: Desk) -> dict[str, bytes]:
    return desk.hub.uploads.get("me/model", {})


def test_the_command_has_a_help(desk: Desk) -> None:
    done = desk.run("publish", "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: gptailor publish")
    assert done.out == desk.run("publish", "-h").out


def test_publish_uploads_only_with_the_flag(desk: Desk) -> None:
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
    out = "is a link out of the folder"
    for i, (name, to, reason) in enumerate((
        ("tokenizer.json", "../secret", out),
        ("README.md", "../secret", out),
        ("plan.tailor", "../p.tailor", out),
        ("plan.tailor.lock", str(desk.folder / "secret"), out),
        ("model.safetensors", "../weights", out),
        ("vocab.json", "chain", out),
        ("vocab.json", "gone", "cannot be read"),
        ("vocab.json", "vocab.json", "cannot be read"),
        ("vocab.json", ".", "expected a regular file, got a folder"),
    )):  # fmt: skip
        folder = shutil.copytree(desk.folder / "out", desk.folder / f"got{i}")
        (folder / "chain").symlink_to("../secret")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(to)
        done = desk.run("publish", f"got{i}", "me/model", "--upload", HF_TOKEN="hf_writer")
        assert (done.code, desk.hub.uploads) == (3, {}), name
        assert done.err.startswith(f"error[C201]: {reason}"), done.err
        assert f"--> got{i}/{name}\n" in f"{done.err}\n"


def test_a_file_that_gptailor_did_not_write_is_uploaded_only_by_name(desk: Desk) -> None:
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
    assert (done.code, "is a link out of the folder" in done.err) == (3, True)
    done = desk.run(*upload, "--include", "linked", HF_TOKEN="hf_writer")
    assert (done.code, "expected a regular file, got a folder" in done.err) == (3, True)
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
    note = "note: plan.tailor is uploaded without this machine's paths: "
    assert f"{note}model 'base' is org/base and 'math' is ./base there" in done.err
    for name, content in files.items():
        (desk.folder / "got" / name).parent.mkdir(parents=True, exist_ok=True)
        (desk.folder / "got" / name).write_bytes(content)
    for name, place in (("rows.jsonl", "one"), ("2-rows.jsonl", "two")):
        shutil.copy(desk.folder / place / "rows.jsonl", desk.folder / "got" / name)
    models = (*models, "--model", f"math={desk.folder / 'two' / 'base'}")
    done = desk.run("verify", "got", *models)
    assert (done.code, "got: verified" in done.out) == (0, True), done.out + done.err


def test_missing_facts_are_reported_before_publishing(desk: Desk, folders: Path) -> None:
    plan = PLAN.replace('"org/base"', f'"{folders / "base"}"')
    assert desk.compile(plan=plan).code == 0
    output = desk.run("publish", "out", "me/model").err
    assert "the card doesn't name 'base' (" in output
    assert "there is no lock" in output
    assert "the model 'math'" not in output
    assert "names no licence" in output


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
    output = desk.run("publish", "out", "me/model", "--scores", "scores.json").err
    assert "note: the folder was written after scores.json: evaluate it again" in output


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
    refused = "can't be written: the Hub needs a token with write access"
    assert f"error[C501]: {refused}" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("out", "me/model", "--base-model", "no id"), "error[C501]: expected a Hub id"),
        (("out", "model"), "error[C501]: expected a Hub id such as ORG/NAME"),
        (("nowhere", "me/model"), "error[C101]: expected a folder that 'gptailor compile' wrote"),
        (("out/model.safetensors", "me/model"), "'hf upload ORG/NAME model.safetensors' uploads"),
    ],
)
def test_a_wrong_publication_is_refused(desk: Desk, words: tuple[str, ...], message: str) -> None:
    assert desk.compile().code == 0
    done = desk.run("publish", *words, "--upload", HF_TOKEN="hf_writer")
    assert (done.code, message in done.err) == (3, True)


def test_an_unreachable_hub_is_one_message(desk: Desk) -> None:
    assert desk.compile().code == 0
    done = desk.run("publish", "out", "me/model", "--upload", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.code == 3
    assert "error[C503]" in done.err
    assert "Traceback" not in done.err
