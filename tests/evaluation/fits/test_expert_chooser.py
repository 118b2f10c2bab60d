"""Fewer experts: the families, the choice, live models, compiled folders, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import gptailor
from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.mixture import LayerExperts, experts_in
from gptailor.checkpoint.models import Opened
from gptailor.evaluation.fits.expert_chooser import ExpertValues
from gptailor.evaluation.fits.repair import fit, stitch
from gptailor.plan.plan import Plan
from gptailor.prepare import prepare
from tests.support.hollow import QWEN_3_30B, qwen3_moe, write_hollow
from tests.support.quantised import mxfp4, write_quantised
from tests.support.thorough import one_of_each
from tests.support.tiny import CONFIGURATIONS, VOCABULARY, letters, tiny_model
from tests.support.tiny_vision import tiny_vision

ROWS = [letters(16, seed) for seed in range(24)]
TOKENS = torch.tensor([[VOCABULARY.index(letter) for letter in row] for row in ROWS])
"""The tokens of the calibration text; no token takes an unused expert."""
GROUPED = {
    "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "glm4_moe_lite", "glm_moe_dsa", "kimi_linear", "sarvam_mla",
}  # fmt: skip
"""Families with tiny routers that take one of two groups of experts."""
ALONE = {
    "afmoe", "aria_text", "cohere2_moe", "dbrx", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo",
    "flint", "glm4_moe", "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid",
    "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "jamba", "kolibri1", "laguna", "lara_mini",
    "lfm2_moe", "llama4_text", "mellum", "mimo_v2_flash", "minimax_m2", "mixtral", "nemotron_h",
    "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "sarvam_moe",
    "solar_open",
}  # fmt: skip
"""The other families with experts that can be left out."""
REFUSED = {
    "jetmoe": "L0 of 'base' has experts in its attention",
    "llama": "the models have no experts",
}
LAYOUTS = {
    "aria_text", "dbrx", "deepseek_v3", "ernie4_5_moe", "gpt_oss", "granitemoe", "laguna",
    "llama4_text", "mixtral", "nemotron_h", "qwen2_moe",
}  # fmt: skip
"""Families that have experts and routers in other tensors, or call them in another way."""
FIRSTS = one_of_each(sorted(ALONE | GROUPED), lambda _: None, besides=LAYOUTS)
FEW = {**QWEN_3_30B, "num_hidden_layers": 3, "num_experts": 4, "num_experts_per_tok": 2}
FAR = 8.0
"""An entry of each token's embedding, with which a router can give any expert a low score."""

Say = Callable[[str], Plan]

pytestmark = pytest.mark.usefixtures("one_thread")


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS).logits


def write_rows(file: Path) -> None:
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS), encoding="utf-8")


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


def unused(model: Path, opened: Opened, dead: list[int]) -> None:
    """Give the routers weights so that no token takes the experts of these numbers."""
    file, layout = model / "model.safetensors", opened.layout
    tensors = load_file(file)
    tensors[layout.embed[0]][:, 0] = FAR
    for layer in range(layout.count):
        named = {n: t for part in ("attn", "mlp") for n, t in opened.part(layer, part).items()}
        experts = experts_in(layout, {n: t.spec.shape for n, t in named.items()})
        for name in experts.stacks if isinstance(experts, LayerExperts) else ():
            if layout.family.role(name) == "mlp.router":
                router = tensors[named[name].spec.name]
                if name.endswith(".weight"):
                    router[:, 0] = 0
                    router[dead] = 0
                    router[dead, 0] = -100.0
                else:
                    router.view(-1)[dead] = -1.0
    save_file(tensors, file, {"format": "pt"})


def kept_experts(plan: Plan, *, anew: bool = False) -> tuple[tuple[int, ...], ...]:
    """The numbers of the experts that stay in each layer, () for a dense one."""
    kept = fit(prepare(plan), anew=anew).resolved.kept_experts
    assert kept is not None
    return kept


@pytest.mark.parametrize("family", FIRSTS)
def test_dropping_unused_experts_changes_no_score(family: str, tmp_path: Path) -> None:
    own = 8 if family in GROUPED else 4
    keys = ("n_routed_experts", "num_local_experts", "num_experts")
    more = {key: own for key in keys if CONFIGURATIONS[family].get(key) is not None}
    base = tiny_model(family, tmp_path / "base", **more)
    write_rows(tmp_path / "rows.jsonl")
    text = 'tailor 1\nmodel base = "./base"\n'
    opened = prepare(gptailor.loads(text, folder=tmp_path)).models["base"]
    unused(base, opened, list(range(0, own, 2)))
    cut = gptailor.loads(f'{text}experts {own // 2} on "rows.jsonl"', folder=tmp_path)
    result = gptailor.compile(cut, tmp_path / "out")
    kept = {kept for kept in kept_experts(cut) if kept}
    assert kept == {tuple(range(1, own, 2))} or family in GROUPED  # no token may take a group
    assert result.fits["experts"].numbers["share"] == pytest.approx(1.0)
    before, after = loaded(base), loaded(tmp_path / "out")
    assert after.num_parameters() < before.num_parameters()
    assert result.parameters == prepare(cut).output_size.parameters
    assert torch.allclose(logits(after), logits(before), rtol=1e-5, atol=1e-5)
    assert torch.allclose(logits(stitch(cut)), logits(after), rtol=1e-6, atol=1e-6)


def test_gemma_4_with_experts_and_mlps_is_cut(tmp_path: Path) -> None:
    sizes = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 12}
    base = tiny_model("gemma4_text", tmp_path / "base", enable_moe_block=True, **sizes)
    write_rows(tmp_path / "rows.jsonl")
    text = 'tailor 1\nmodel base = "./base"\nexperts 3 on "rows.jsonl"'
    plan = gptailor.loads(text, folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    before, after = (load_file(d / "model.safetensors") for d in (base, tmp_path / "out"))
    for layer, kept in enumerate(kept_experts(plan)):
        name = f"model.layers.{layer}.router.per_expert_scale"
        assert torch.equal(before[name][list(kept)], after[name])
    assert loaded(tmp_path / "out").config.num_experts == 3
    assert torch.equal(logits(stitch(plan)), logits(loaded(tmp_path / "out")))


def test_a_wrapper_without_a_causal_language_model_is_refused(tmp_path: Path) -> None:
    tiny_vision("qwen3_vl_moe", tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl")
    text = 'tailor 1\nmodel base = "./base"\nexperts 3 on "rows.jsonl"'
    with pytest.raises(gptailor.TailorError, match=r"no language model for .* 'qwen3_vl_moe_text'"):
        gptailor.compile(gptailor.loads(text, folder=tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_mixture_is_among_these_families() -> None:
    """A family with a router is cut or refused by name."""
    routed = {name for name, settings in CONFIGURATIONS.items() if "_experts" in str(settings)}
    assert routed <= ALONE | GROUPED | REFUSED.keys()
    assert FAMILY_OF.keys() >= ALONE | GROUPED


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_without_such_experts_is_refused_with_the_reason(
    family: str, tmp_path: Path
) -> None:
    tiny_model(family, tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl")
    text = 'tailor 1\nmodel base = "./base"\nexperts 2 on "rows.jsonl"'
    [fault] = gptailor.check(gptailor.loads(text, folder=tmp_path))
    assert (fault.code, fault.message) == ("M240", f"'experts' isn't supported: {REFUSED[family]}")


# --------------------------------------------------------------------------------------- the choice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    write_rows(folder / "rows.jsonl")
    tiny_model("mixtral", folder / "base", num_local_experts=6)
    tiny_model("mixtral", folder / "math", seed=1, num_local_experts=6)
    return folder


@pytest.fixture
def say(folder: Path) -> Say:
    def said(statements: str) -> Plan:
        text = f'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n{statements}\n'
        return gptailor.loads(text, folder=folder)

    return said


@torch.no_grad()
def test_the_experts_of_the_largest_weighted_outputs_stay(say: Say, folder: Path) -> None:
    """By the definition: g and f of each token and expert, from the modules of transformers."""
    rows = [row[: 2 + number % 15] for number, row in enumerate(ROWS)]
    lines = [json.dumps({"text": row}) + "\n" for row in rows]
    (folder / "uneven.jsonl").write_text("".join(lines), encoding="utf-8")
    model, wanted = loaded(folder / "base"), []
    for layer in model.model.layers:
        inputs: list[torch.Tensor] = []
        hook = layer.mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))  # noqa: B023
        for row in rows:
            model(torch.tensor([[VOCABULARY.index(letter) for letter in row]]))
        hook.remove()
        states, experts = torch.cat([each.reshape(-1, 16) for each in inputs]), layer.mlp.experts
        weights, taken = (states @ layer.mlp.gate.weight.T).softmax(-1).topk(2)
        weights /= weights.sum(-1, keepdim=True)
        values = []
        for number in range(6):
            gate, up = (states @ experts.gate_up_proj[number].T).chunk(2, dim=-1)
            output = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[number].T
            at, place = (taken == number).nonzero(as_tuple=True)
            values.append(float((weights[at, place] * output[at].norm(dim=-1)).mean()))
        ranked = sorted(range(6), key=lambda number: -values[number])
        wanted.append(tuple(sorted(ranked[:4])))
    assert kept_experts(say('experts 4 on "uneven.jsonl"'), anew=True) == tuple(wanted)
    assert len(set(wanted)) > 1


def test_groups_keep_as_many_experts_each() -> None:
    values = ExpertValues(
        torch.tensor([9.0, 8, 7, 6, 1, 2, 3, 4]).double(), torch.ones(8, dtype=torch.int64)
    )
    assert values.kept(4, 1) == (0, 1, 2, 3)
    assert values.kept(4, 2) == (0, 1, 6, 7)
    assert values.share((0, 1, 6, 7)) == 24 / 40


# ------------------------------------------------------------------------------- with other parts


def test_experts_follow_their_layer(say: Say, folder: Path, tmp_path: Path) -> None:
    plan = say('drop L2\nexperts 3 on "rows.jsonl"')
    gptailor.compile(plan, tmp_path / "out")
    kept = kept_experts(plan)
    before, after = (
        load_file(d / "model.safetensors") for d in (folder / "base", tmp_path / "out")
    )
    for layer, position in enumerate((0, 1, 3, 4, 5)):
        names = (f"model.layers.{n}.block_sparse_moe.gate.weight" for n in (layer, position))
        new, old = names
        assert torch.equal(after[new], before[old][list(kept[position])])


def test_a_bridge_is_fitted_on_the_experts_that_stay(say: Say) -> None:
    plan = say('drop L2\nexperts 3 on "rows.jsonl"\nbridge on "rows.jsonl"')
    prepared = prepare(plan)
    bridged = fit(prepared, anew=True).tensors
    experts = [name for name in bridged if ".experts." in name]
    assert all(name.startswith("model.layers.1.") for name in bridged)
    assert {int(name.split(".")[5]) for name in experts} == {0, 1, 2}


def test_stacked_experts_of_a_merge_are_cut_after_it(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "math")):
        tiny_model("granitemoe", tmp_path / name, seed=seed)
    write_rows(tmp_path / "rows.jsonl")
    text = (
        'tailor 1\nmodel base = "./base"\nmodel math = "./math"\n'
        "L0..L5 from base, math by linear(0.3, 0.7)\nscale L0 by 0.5\n"
    )
    whole = gptailor.loads(text, folder=tmp_path)
    plan = gptailor.loads(f'{text}experts 3 on "rows.jsonl"', folder=tmp_path)
    gptailor.compile(whole, tmp_path / "whole")
    gptailor.compile(plan, tmp_path / "out")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "out"))
    for layer, kept in enumerate(kept_experts(plan)):
        for module in ("input_linear", "output_linear", "router.layer"):
            name = f"model.layers.{layer}.block_sparse_moe.{module}.weight"
            assert torch.equal(before[name][list(kept)], after[name])


# -------------------------------------------------------------------------------- quantised weights


def test_packed_experts_of_four_bits_move_as_bytes(tmp_path: Path) -> None:
    base = tiny_model("gpt_oss", tmp_path / "base", layers=2, hidden_size=32, intermediate_size=64)
    packed = load_file(base / "model.safetensors")
    for number, name in enumerate(sorted(packed)):
        if name.endswith("_proj") and ".experts." in name:
            made = mxfp4(number, *packed.pop(name).shape)
            packed |= {name + end: tensor.contiguous() for end, tensor in made.tensors.items()}
    save_file(packed, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (base / "config.json").write_text(json.dumps(config))
    write_rows(tmp_path / "rows.jsonl")
    text = 'tailor 1\nmodel base = "./base"\nexperts 2 on "rows.jsonl"'
    plan = gptailor.loads(text, folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    after, stay = load_file(tmp_path / "out" / "model.safetensors"), kept_experts(plan)
    assert after.keys() == packed.keys()
    for name, tensor in after.items():
        if "mlp." in name and "norm" not in name:
            kept = stay[int(name.split(".")[2])]
            assert tensor.dtype == packed[name].dtype
            assert torch.equal(tensor, packed[name][list(kept)])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["quantization_config"] == {"quant_method": "mxfp4"}
    assert written["num_local_experts"] == 2


def test_quantised_experts_move_as_bytes(tmp_path: Path) -> None:
    base = tiny_model("qwen3_moe", tmp_path / "base")
    write_quantised(base, "fp8-block")
    write_rows(tmp_path / "rows.jsonl")
    text = 'tailor 1\nmodel base = "./base"\nexperts 2 on "rows.jsonl"'
    plan = gptailor.loads(text, folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    before, after = (load_file(d / "model.safetensors") for d in (base, tmp_path / "out"))
    moved = 0
    for layer, kept in enumerate(kept_experts(plan)):
        for place, number in enumerate(kept):
            start = f"model.layers.{layer}.mlp.experts."
            for name in (name for name in before if name.startswith(f"{start}{number}.")):
                new = name.replace(f"{start}{number}.", f"{start}{place}.")
                assert torch.equal(after[new].view(torch.uint8), before[name].view(torch.uint8))
                moved += 1
    assert moved == 6 * 2 * 3 * 2
    assert len(after) < len(before)


# ---------------------------------------------------------------------------------- refusals


def faults_of(folder: Path, statements: str) -> list[tuple[str, str, str | None]]:
    text = f'tailor 1\nmodel base = "./base"\n{statements}'
    result = gptailor.check(gptailor.loads(text, folder=folder))
    return [(fault.code, fault.message, fault.help) for fault in result]


def test_a_number_that_a_router_allows(folder: Path) -> None:
    assert faults_of(folder, 'experts 4 on "rows.jsonl"') == []
    [(code, message, _)] = faults_of(folder, 'experts 7 on "rows.jsonl"')
    assert (code, message) == ("M241", "expected at most 6 experts, the models' own number, got 7")
    [(code, message, help_)] = faults_of(folder, 'experts 1 on "rows.jsonl"')
    assert code == "M241"
    assert message == "a router can't have 1 expert: each token uses 2"
    assert help_ == "the nearest valid number is 2"
    [(code, message, _)] = faults_of(folder, 'experts 6 on "rows.jsonl"')
    assert (code, "'experts 6' changes nothing" in message) == ("M317", True)
    [(code, _, help_)] = faults_of(folder, 'experts 2 on "rows.jsonl" tokens 5')
    assert (code, help_) == ("M220", "give at least 6 tokens, one for each expert; better 600")


def test_a_number_that_groups_allow(tmp_path: Path) -> None:
    tiny_model("deepseek_v3", tmp_path / "base", n_routed_experts=12)
    write_rows(tmp_path / "rows.jsonl")
    [(code, message, help_)] = faults_of(tmp_path, 'experts 7 on "rows.jsonl"')
    assert code == "M241"
    reason = "each token uses 2 from 1 of 2 equal groups of at least 2"
    assert message == f"a router can't have 7 experts: {reason}"
    assert help_ == "the nearest valid numbers are 6 and 8"
    assert faults_of(tmp_path, 'experts 4..12 step 2 on "rows.jsonl"') == []
    tiny_model("deepseek_v3", tmp_path / "base", n_routed_experts=12, topk_group=2)
    assert [code for code, *_ in faults_of(tmp_path, 'experts 2 on "rows.jsonl"')] == ["M241"]


def test_layers_with_other_numbers_of_experts_are_refused(tmp_path: Path) -> None:
    config, shapes = qwen3_moe(**FEW)
    shapes = {name: shape for name, shape in shapes.items() if "1.mlp.experts.3." not in name}
    write_hollow(tmp_path / "router", config, shapes)
    shapes["model.layers.1.mlp.gate.weight"] = (3, FEW["hidden_size"])
    write_hollow(tmp_path / "layers", config, shapes)
    write_rows(tmp_path / "rows.jsonl")
    for name, reason in (
        ("router", "L1 of 'base' has 3 experts, but a router for 4"),
        ("layers", "L0 of 'base' has 4 experts, but L1 of 'base' has 3"),
    ):
        text = f'tailor 1\nmodel base = "./{name}"\nexperts 2 on "rows.jsonl"'
        faults = gptailor.check(gptailor.loads(text, folder=tmp_path))
        messages = [fault.message for fault in faults if fault.code == "M240"]
        assert messages == [f"'experts' isn't supported: {reason}"]


def test_models_with_other_numbers_of_experts_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny_model("mixtral", tmp_path / "math")
    text = (
        f'tailor 1\nmodel base = "{folder}/base"\nmodel math = "./math"\nL1 from math\n'
        f'experts 2 on "{folder}/rows.jsonl"'
    )
    results = [fault.message for fault in gptailor.check(gptailor.loads(text, folder=tmp_path))]
    assert "'math' has num_local_experts 4, but the base has 6" in results


def test_a_text_with_too_few_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abc", encoding="utf-8")
    text = f'tailor 1\nmodel base = "{folder}/base"\nexperts 3 on "short.txt"'
    plan = gptailor.loads(text, folder=tmp_path)
    with pytest.raises(gptailor.PlanError, match=r"C806.*fewer than 6 tokens for 'experts'"):
        gptailor.compile(plan, tmp_path / "out")
    with pytest.raises(gptailor.PlanError, match="it compares 6 experts"):
        stitch(plan)


def test_the_files_of_dropped_layers_are_read(tmp_path: Path) -> None:
    """The choice runs the plan with nothing dropped."""
    write_hollow(tmp_path / "base", *qwen3_moe(**FEW), shards=6)
    write_rows(tmp_path / "rows.jsonl")
    dropped = 'tailor 1\nmodel base = "./base"\ndrop L1'
    read = [
        prepare(gptailor.loads(text, folder=tmp_path)).read_files
        for text in (dropped, f'{dropped}\nexperts 2 on "rows.jsonl"')
    ]
    assert len(read[0]) < len(read[1]) == 6
