"""Blocks that come again: compiled, live, bridged, shown, compared, exported, searched."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped,unused-ignore]
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import gptailor
from gptailor.cli.main import run
from gptailor.evaluation.fits.repair import stitch
from gptailor.plan.plan import Plan
from gptailor.searching.run.origin import origin_words
from gptailor.searching.run_reading import read_run
from gptailor.searching.summary import best_starts
from tests.support.tiny import tiny_model

HEAD = 'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n'
SPACE = """
maybe repeat window 1..2 of L1..L4 times 1..2
search { minimize nll("rows.jsonl"); fidelity 2..8; trials 8 }
"""

pytestmark = pytest.mark.usefixtures("one_thread", "brief_answers")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repeats")
    for seed, name in enumerate(("base", "math")):
        tiny_model("llama", folder / name, seed=seed)
    text = "a stitch in time saves nine, said the tailor, and cut the thread. " * 30
    (folder / "text.txt").write_text(text)
    rows = [{"text": f"a cat and {n} dogs " * (1 + n % 3)} for n in range(16)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "space.tailor").write_text(HEAD + SPACE)
    return folder


def plan_of(body: str, folder: Path) -> Plan:
    return gptailor.loads(HEAD + body, folder=folder)


def bytes_of(folder: Path) -> dict[str, bytes]:
    names = ("config.json", "model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


AS_STACKS = {
    "L1 from math; repeat L1..L2": "L0 base; L1 math; L2 base; L1 math; L2 base; L3..L5 base",
    "repeat L4 times 3": "L0..L4 base; L4 base; L4 base; L4 base; L5 base",
    "repeat L0..L1; repeat L5": "L0..L1 base; L0..L5 base; L5 base",
    "drop L2; repeat L1..L3": "L0..L1 base; L3 base; L1 base; L3..L5 base",
    "L2 from base, math by slerp(0.3); repeat L2..L3": (
        "L0..L1 base; merge(L2 base, L2 math) by slerp(0.3); L3 base; "
        "merge(L2 base, L2 math) by slerp(0.3); L3..L5 base"
    ),
}


@pytest.mark.parametrize("body", AS_STACKS)
def test_a_repeated_block_has_the_bytes_of_its_stack(
    body: str, world: Path, tmp_path: Path
) -> None:
    gptailor.compile(plan_of(body, world), tmp_path / "again")
    gptailor.compile(plan_of(f"stack {{ {AS_STACKS[body]} }}", world), tmp_path / "stack")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "stack")


def test_the_runs_of_a_repeated_layer_have_equal_random_draws(world: Path, tmp_path: Path) -> None:
    plan = plan_of("L1 from math, base by dare(density=0.5); repeat L1 times 2", world)
    gptailor.compile(plan, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(tensors[name.format(1)], tensors[name.format(2)])
    assert torch.equal(tensors[name.format(1)], tensors[name.format(3)])
    assert not torch.equal(tensors[name.format(1)], tensors[name.format(0)])


def test_the_live_model_equals_the_folder_and_each_run_has_its_own_cache(
    world: Path, tmp_path: Path
) -> None:
    plan = plan_of("L3.mlp from math; repeat L2..L3 times 2; scale L2 by 0.9", world)
    gptailor.compile(plan, tmp_path / "out")
    model, live = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), stitch(plan)
    assert model.config.num_hidden_layers == 10
    assert [layer.self_attn.layer_idx for layer in live.model.layers] == list(range(10))
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, live(tokens).logits)
    cached, plain = (
        live.generate(tokens, max_new_tokens=5, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)


def test_a_scale_in_a_block_applies_in_every_run(world: Path) -> None:
    """The hidden state after L2 is halved twice, which the layers after it are divided by."""
    with torch.no_grad():
        tokens = torch.arange(3, 12)[None]
        scaled = stitch(plan_of("repeat L2; scale L2 by 0.5", world))
        bare = stitch(plan_of("repeat L2", world))
        seen: list[list[torch.Tensor]] = []
        for model in (scaled, bare):
            result = model(tokens, output_hidden_states=True).hidden_states
            seen.append(list(result))
    ratio = {n: (seen[0][n] / seen[1][n]).median() for n in (1, 2)}
    assert ratio[1] == ratio[2] == 1
    assert not torch.allclose(seen[0][4], seen[1][4])


def test_a_bridge_after_a_block_changes_its_last_run_alone(world: Path, tmp_path: Path) -> None:
    body = "repeat L1..L2; drop L3"
    bridged = f'{body}\nbridge L2 on "text.txt" tokens 600'
    gptailor.compile(plan_of(body, world), tmp_path / "bare")
    gptailor.compile(plan_of(bridged, world), tmp_path / "bridged")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("bare", "bridged"))
    changed = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert changed == ["model.layers.4.mlp.down_proj.weight"]
    live = stitch(plan_of(bridged, world)).state_dict()
    assert torch.equal(live[changed[0]], other[changed[0]])


def test_a_gap_inside_a_block_stays_open_and_one_before_it_is_bridged(
    world: Path, tmp_path: Path
) -> None:
    body = "repeat L2..L4; drop L1, L3"
    gptailor.compile(plan_of(body, world), tmp_path / "bare")
    bridged = plan_of(f'{body}\nbridge on "text.txt" tokens 600', world)
    assert "P710" in [fault.code for fault in gptailor.check(bridged)]
    gptailor.compile(bridged, tmp_path / "bridged")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("bare", "bridged"))
    changed = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    assert changed == ["model.layers.0.mlp.down_proj.weight"]


def test_a_locked_plan_verifies(world: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world, tmp_path / "work"))
    (folder / "plan.tailor").write_text(HEAD + "repeat L1..L2 times 2")
    assert run(["lock", str(folder / "plan.tailor")]) == 0
    command = ["compile", str(folder / "plan.tailor"), "-o", str(folder / "out"), "--locked"]
    assert run(command) == 0
    assert run(["verify", str(folder / "out")]) == 0
    again = gptailor.load(folder / "out" / "plan.tailor")
    assert again.repeats == gptailor.load(folder / "plan.tailor").repeats


def test_show_prints_the_number_of_runs(world: Path, tmp_path: Path, capsys: Any) -> None:
    plan = world / "shown.tailor"
    plan.write_text(HEAD + "repeat L1..L2 times 2\nmaybe repeat window 1..2 of L4..L5")
    assert run(["show", str(plan)]) == 0
    output = capsys.readouterr().out
    assert "4 more by 'repeat': 10 layers" in output
    assert re.search(r"repeat +L1\.\.L2 times 2: 3 runs", output)
    assert re.search(r"repeat +maybe window 1\.\.2 of L4\.\.L5: 2 runs", output)


def test_an_output_is_described_with_its_runs(world: Path, tmp_path: Path, capsys: Any) -> None:
    plan = world / "again.tailor"
    plan.write_text(HEAD + "repeat L1..L2 times 2")
    assert run(["compile", str(plan), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    assert re.search(r"repeat +L1\.\.L2 times 2: 3 runs", capsys.readouterr().out)
    assert run(["compile", str(plan), "-o", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| L1..L2 | 3 runs |" in card
    assert "b b³b³b b b\n" in card
    capsys.readouterr()
    assert run(["show", str(tmp_path / "out")]) == 0
    output = " ".join(capsys.readouterr().out.split())  # a long path goes on in the next line
    assert re.search(r"out: 10 layers \(the base '.*' has 6\)", output)
    assert run(["diff", str(plan), str(tmp_path / "out")]) == 0


def test_mergekit_has_a_block_as_slices(world: Path) -> None:
    document = yaml.safe_load(gptailor.export_mergekit(plan_of("repeat L1..L2", world), 6))
    ranges = [item["sources"][0]["layer_range"] for item in document["slices"]]
    assert ranges == [[0, 3], [1, 6]]
    whole = plan_of("whole from base, math by linear(0.5, 0.5); repeat L1..L2", world)
    ranges = [
        s["sources"][0]["layer_range"]
        for s in yaml.safe_load(gptailor.export_mergekit(whole, 6))["slices"]
    ]
    assert ranges == [[0, 3], [1, 6]]


# -------------------------------------------------------------------------------------- searched


@pytest.mark.slow
def test_a_search_begins_with_the_base_and_chooses_a_block_as_it_chooses_anything(
    world: Path, tmp_path: Path
) -> None:
    assert run(["search", str(world / "space.tailor"), "--run", str(tmp_path / "run")]) == 0
    ledger = read_run(tmp_path / "run").ledger
    [plain] = best_starts(ledger)
    assert origin_words(plain.request.origin) == "the plan's layers", "repeat nothing is the start"
    assert plain.values == ledger.references[ledger.full], "and it is the base"
    study = (tmp_path / "run" / "journal.jsonl").read_text()
    assert '"kind":"strategy"' in study
    assert not list((tmp_path / "run").glob("blocks.*"))
    assert (tmp_path / "run" / "best.tailor").exists()
