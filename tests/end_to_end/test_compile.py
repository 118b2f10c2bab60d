"""Whole compilations: the output equals the plan's meaning, to the bit, and can be loaded.

The naive interpreter of `tests.support.naive` computes a plan's meaning.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import gptailor
from gptailor.plan.faults import TailorError
from gptailor.plan.layer_parts import is_pattern
from gptailor.plan.plan import Plan
from tests.support.events import sizes
from tests.support.naive import interpret, read
from tests.support.structures import structure
from tests.support.thorough import drawn, one_of_each
from tests.support.tiny import tiny_model

COUNT = 4
NAMES = ("base", "math", "code", "chat")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
BASES = ("float32", "bfloat16", "float16", "mixed")


pytestmark = pytest.mark.usefixtures("no_progress_bars")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three variants of three dtypes, and a base of each dtype and of two at once."""
    root = tmp_path_factory.mktemp("models")
    made = {
        name: tiny_model("llama", root / name, seed=seed, layers=COUNT, dtype=dtype)
        for seed, (name, dtype) in enumerate(
            [
                ("math", "float32"),
                ("code", "bfloat16"),
                ("chat", "float16"),
                ("base-float32", "float32"),
                ("base-bfloat16", "bfloat16"),
                ("base-float16", "float16"),
            ]
        )
    }
    made["base-mixed"] = shutil.copytree(made["base-bfloat16"], root / "base-mixed")
    file = root / "base-mixed" / "model.safetensors"
    tensors = load_file(file)
    wide = {
        name: t.float() if "norm" in name or ".2." in name else t for name, t in tensors.items()
    }
    save_file(wide, file, {"format": "pt"})
    return made


@pytest.fixture(scope="module", params=one_of_each(FAMILIES, structure))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two models of a family."""
    root = tmp_path_factory.mktemp(request.param)
    for seed, name in enumerate(("base", "math")):
        tiny_model(request.param, root / name, seed=seed)
    return root


def plan_of(text: str, folder: Path) -> Plan:
    """A plan over the models `base` and `math` of a folder, and those it declares."""
    head = 'tailor 1; model base = "./base"; model math = "./math"\n'
    return gptailor.loads(head + text, folder=folder)


def loaded(folder: Path) -> Any:
    """The model as transformers has it, all of its weights from the folder and all of those."""
    model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values()), notes
    return model.eval()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same tensors to the bit: names, dtypes, shapes, entries."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        ours = actual[name]
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape), name
        same = ours.contiguous().view(torch.uint8).equal(tensor.contiguous().view(torch.uint8))
        assert same, f"{name}: {(ours.double() - tensor.double()).abs().max()} apart"


def logits(model: Any, length: int = 9) -> Tensor:
    """Of some tokens."""
    tokens = torch.arange(3, 3 + 5 * length, 5).unsqueeze(0) % 61
    with torch.no_grad():
        result: Tensor = model(tokens).logits
    return result


# --------------------------------------------------------------------------- against the naive one

coefficients = st.floats(-2, 2).map(lambda x: round(x, 3)) | st.sampled_from([0.0, 1.0, 0.5, 1])
shares = st.floats(0, 1).map(lambda x: round(x, 3))
densities = st.floats(0.05, 1)


def source(
    at: int | None, names: tuple[str, ...] = (*NAMES, "soup", "two")
) -> st.SearchStrategy[dict[str, Any]]:
    """A layer of any model by its number; for embedding, norm and head without a number."""
    numbers = st.none() if at is None else st.just(at) | st.integers(0, COUNT - 1)
    return st.fixed_dictionaries({"model": st.sampled_from(names), "layer": numbers})


@st.composite
def calls(draw: st.DrawFn, count: int) -> dict[str, Any]:
    """A method for this many sources, with some of its arguments."""
    one_each = st.lists(coefficients, min_size=count, max_size=count)
    choices: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "linear": {"weight": one_each},
        "task_arithmetic": {"scales": one_each | coefficients},
        "ties": {
            "density": densities | st.lists(densities, min_size=count, max_size=count),
            "scale": coefficients,
            "weight": st.lists(shares, min_size=count, max_size=count),
            "normalize": st.sampled_from(["yes", "no"]),
        },
        "dare": {"density": densities, "scale": coefficients, "seed": st.integers(0, 9)},
        "breadcrumbs": {"density": st.floats(0.05, 0.9), "gamma": st.floats(0, 0.1)},
    }
    if count >= 2:
        choices |= {"model_stock": {}, "karcher": {}}
    if count == 2:
        choices["slerp"] = {"t": shares}
    name = draw(st.sampled_from(sorted(choices)))
    return {"name": name, "arguments": draw(st.fixed_dictionaries({}, optional=choices[name]))}


@st.composite
def recipes(
    draw: st.DrawFn,
    at: int | None,
    *,
    stacked: bool = False,
    names: tuple[str, ...] = (*NAMES, "soup", "two"),
) -> dict[str, Any]:
    """A layer taken, or a merge of one to three; in a stack of one layer number."""
    kind = draw(st.sampled_from(["take", "share", "by", "plain"]))
    if kind == "take":
        return {"take": draw(source(at, names))}
    count = 2 if kind == "share" else draw(st.integers(1, 3))
    merge = draw(st.lists(source(at, names), min_size=count, max_size=count))
    if stacked:
        merge = [{**item, "layer": at} for item in merge]
    if kind == "share":
        return {"merge": merge, "share": draw(coefficients)}
    return {"merge": merge, "by": draw(calls(count))} if kind == "by" else {"merge": merge}


PARTS = st.sampled_from(
    [
        *[None, "attn", "mlp", "norms", "attn.q", "attn.k", "attn.v", "attn.o"],
        *["mlp.gate", "mlp.up", "mlp.down", '"*proj*"', '"self_attn.?_proj.*"', '"*weight"'],
    ]
)
"""Parts that a Llama's layer has."""


def one(part: str | None) -> str | None:
    """Return a key that occurs once at a position: a part, or `pattern`."""
    return "pattern" if is_pattern(part) else part


@st.composite
def overlays(draw: st.DrawFn) -> dict[str, Any]:
    """Draw recipes, drops and scales of positions; at least one position is kept."""
    layers, drops, scales = [], [], []
    kept = draw(st.integers(0, COUNT - 1))
    for position in range(COUNT):
        kind = draw(st.sampled_from(["base", "whole", "parts", "parts", "drop"]))
        if kind == "drop" and position != kept:
            drops.append({"position": position})
            continue
        parts = {"whole": st.just([None]), "parts": st.lists(PARTS, max_size=4, unique_by=one)}
        for part in draw(parts[kind]) if kind in parts else []:
            recipe = draw(recipes(position))
            layers.append({"position": position, "part": part, "recipe": recipe})
        if draw(st.booleans()):
            factor = draw(st.sampled_from([0.5, 0.9, 1.1, 3, 1.0]))
            scales.append({"position": position, "factor": factor})
    levels: dict[str, Any] = {}
    if draw(st.booleans()):
        parts_said = draw(st.lists(PARTS, max_size=4, unique_by=one))
        others = [{"part": part, "recipe": draw(said())} for part in parts_said]
        levels = {"others": others, "whole": {"recipe": draw(said())}}
        levels["whole"] = draw(st.sampled_from([None, levels["whole"]]))
    gone = {drop["position"] for drop in drops}
    again, start = [], 0
    for _ in range(draw(st.integers(0, 2))):
        first = start + draw(st.integers(0, 2))
        last = first + draw(st.integers(0, 2))
        if last < COUNT and not {first, last} & gone:
            again.append({"first": first, "last": last, "times": draw(st.integers(1, 3))})
        start = last + 1
    return {"layers": layers, "drops": drops, "repeats": again, "scales": scales, **levels}


@st.composite
def said(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a recipe that names no layers, sometimes with a curve."""
    if draw(st.booleans()):
        return {"take": draw(source(None))}
    count = draw(st.integers(1, 3))
    by = draw(calls(count))
    if by["name"] == "slerp":
        by["arguments"]["t"] = {"curve": draw(st.lists(shares, min_size=2, max_size=4))}
    return {"merge": draw(st.lists(source(None), min_size=count, max_size=count)), "by": by}


def with_names(body: dict[str, Any]) -> dict[str, Any]:
    """The same plan with one named number as its shares, and with curves in its slerps."""
    last = COUNT - 1
    for i, layer in enumerate(body.get("layers", ())):
        recipe = layer["recipe"]
        if "share" in recipe:
            recipe["share"] = {"named": "mix"}
            body["numbers"] = {"mix": 0.3}
        elif recipe.get("by", {}).get("name") == "slerp":
            over = [0, last] if i % 2 else [layer["position"], layer["position"]]
            recipe["by"]["arguments"]["t"] = {"curve": [0.1, 0.7, 0.4], "over": over}
    for scale in body.get("scales", ())[:1]:
        scale["factor"] = {"curve": [0.5, 1.5], "over": [0, last]}
    return body


@st.composite
def stacks(draw: st.DrawFn) -> dict[str, Any]:
    """Layers in any order, repeats among them."""
    numbers = draw(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=6))
    items = [{"recipe": draw(recipes(number, stacked=True))} for number in numbers]
    return {"stack": {"items": items}}


@st.composite
def closed_plans(draw: st.DrawFn) -> dict[str, Any]:
    """Any plan that leaves nothing open, as its JSON has it."""
    body: dict[str, Any] = draw(overlays() | stacks())
    for where in ("embed", "norm", "head"):
        if draw(st.booleans()):
            body[where] = draw(recipes(None))
    body["dtype"] = draw(st.sampled_from([None, None, "float32", "float16", "bfloat16"]))
    body["models"] = {
        **{name: {"source": f"./{name}"} for name in NAMES},
        "two": {"made": draw(recipes(None, names=(*NAMES, "soup")))},
        "soup": {"made": draw(recipes(None, names=NAMES))},
    }
    return with_names(body) if draw(st.booleans()) else body


def bound(folders: dict[str, Path], base: str) -> dict[str, Path]:
    return {name: folders[f"base-{base}" if name == "base" else name] for name in NAMES}


@settings(
    max_examples=drawn(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=closed_plans(), base=st.sampled_from(BASES))
def test_the_output_has_the_tensors_of_the_naive_interpreter(
    folders: dict[str, Path], tmp_path: Path, body: dict[str, Any], base: str
) -> None:
    plan = Plan.model_validate(body)
    models = bound(folders, base)
    again = gptailor.loads(gptailor.format(plan))
    rest = [body[where] for where in ("embed", "norm", "head") if where in body]
    rest += [model["made"] for model in body["models"].values() if "made" in model]
    assert again == plan or any("merge" in r and "by" not in r for r in rest)  # JSON alone says it
    written = gptailor.compile(again, tmp_path / "out", models=models, force=True)
    expected = interpret(plan, models)
    assert_same(read(tmp_path / "out"), expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    layers = len({name.split(".")[2] for name in expected if ".layers." in name})
    assert config["num_hidden_layers"] == written.layers == layers
    assert written.parameters == sum(tensor.numel() for tensor in expected.values())
    model = loaded(tmp_path / "out")
    assert model.config.num_hidden_layers == len(model.model.layers) == layers
    if plan.dtype is not None:
        assert model.dtype is getattr(torch, plan.dtype)


def test_the_plan_in_the_folder_compiles_to_it_again(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    plan = Plan.model_validate(
        {
            "models": {n: {"source": str(p)} for n, p in bound(folders, "bfloat16").items()},
            "layers": [{"position": 1, "recipe": {"take": {"model": "math", "layer": 2}}}],
            "drops": [{"position": 2}],
        }
    )
    gptailor.compile(plan, tmp_path / "a" / "out")
    again = gptailor.load(tmp_path / "a" / "out" / "plan.tailor")
    gptailor.compile(again, tmp_path / "out")
    assert_same(read(tmp_path / "out"), read(tmp_path / "a" / "out"))


# ----------------------------------------------------------------------------------- every family


def test_a_plan_without_changes_is_the_base(pair: Path, tmp_path: Path) -> None:
    gptailor.compile(plan_of("", pair), tmp_path / "out")
    assert_same(read(tmp_path / "out"), read(pair / "base"))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (pair / "base" / name).read_bytes()
    before, after = (
        AutoConfig.from_pretrained(f).to_dict() for f in (pair / "base", tmp_path / "out")
    )
    before.pop("_name_or_path", None), after.pop("_name_or_path", None)
    assert after == before
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(pair / "base")))


def test_a_cut_and_stitched_model_equals_its_plan(pair: Path, tmp_path: Path) -> None:
    plan = plan_of(
        "L0 from math; L4.mlp from math; merge(L5 base, L5 math, 0.3); drop L1..L2", pair
    )
    gptailor.compile(plan, tmp_path / "out")
    folders = {"base": pair / "base", "math": pair / "math"}
    assert_same(read(tmp_path / "out"), interpret(plan, folders))
    model = loaded(tmp_path / "out")
    base, math = loaded(pair / "base"), loaded(pair / "math")
    for number, (donor, layer) in enumerate([(math, 0), (base, 3)]):
        theirs = donor.model.layers[layer].state_dict()
        assert_same(model.model.layers[number].state_dict(), theirs)
    assert len(model.model.layers) == 4


def test_each_layer_keeps_its_kind_of_attention(tmp_path: Path) -> None:
    tiny_model("smollm3", tmp_path / "base", seed=1)
    plan = gptailor.loads('tailor 1; model base = "./base"; drop L1..L2', folder=tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    before, after = (loaded(tmp_path / name) for name in ("base", "out"))
    kept = [before.config.no_rope_layers[n] for n in (0, 3, 4, 5)]
    assert after.config.no_rope_layers == kept == [1, 0, 1, 1]
    for n in (2, 1):
        del before.model.layers[n]
    for n, layer in enumerate(before.model.layers):
        layer.self_attn.layer_idx = n
    before.config.num_hidden_layers = len(before.model.layers)
    before.config.layer_types = before.config.layer_types[:4]
    assert torch.allclose(logits(after), logits(before), atol=1e-5)


def test_generation_with_a_cache_gives_the_same_tokens(pair: Path, tmp_path: Path) -> None:
    gptailor.compile(plan_of("drop L2..L3; L4 from math", pair), tmp_path / "out")
    model, tokenizer = loaded(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer("stitch", return_tensors="pt").input_ids
    generated = [
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            use_cache=cache,
        )
        for cache in (True, False)
    ]
    assert torch.equal(*generated)
    assert generated[0].shape[1] == tokens.shape[1] + 8


def test_a_scale_is_the_hidden_state_multiplied(pair: Path, tmp_path: Path) -> None:
    factors = {0: 1.7, 2: 0.4, 4: 2.5}
    lines = "\n".join(f"scale L{n} by {factor}" for n, factor in factors.items())
    gptailor.compile(plan_of(lines, pair), tmp_path / "out")
    base = loaded(pair / "base")
    plain = logits(base)
    for n, factor in factors.items():
        base.model.layers[n].register_forward_hook(lambda m, i, out, f=factor: scaled(out, f))
    wanted = logits(base)
    assert (wanted - plain).abs().max() > 0.1
    assert torch.allclose(logits(loaded(tmp_path / "out")), wanted, atol=1e-4, rtol=1e-4)
    before, after = read(pair / "base"), read(tmp_path / "out")
    changed = {
        name.split(".", 3)[3] for name in before if not torch.equal(before[name], after[name])
    }
    assert {name.rsplit(".", 1)[0] for name in changed} == {"self_attn.o_proj", "mlp.down_proj"}
    assert all(torch.equal(before[n], after[n]) for n in before if ".layers.0." in n)


def scaled(output: Any, factor: float) -> Any:
    """Return a layer's output with its hidden state multiplied."""
    return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor


def test_the_last_layers_scale_vanishes_in_the_norm(pair: Path, tmp_path: Path) -> None:
    gptailor.compile(plan_of("scale L5 by 3.0", pair), tmp_path / "out")
    assert_same(read(tmp_path / "out"), read(pair / "base"))


# ---------------------------------------------------------------------------------- the vocabulary


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied base, another tied model, an untied one."""
    root = tmp_path_factory.mktemp("tied")
    wanted = {"base": True, "math": True, "code": False}
    return {
        name: tiny_model("qwen2", root / name, seed=seed, layers=2, tie_word_embeddings=ties)
        for seed, (name, ties) in enumerate(wanted.items())
    }


@pytest.mark.parametrize(
    ("text", "heads", "warns"),
    [
        ("", 0, 0),
        ("embed from math", 0, 0),
        ("head from math", 0, 0),
        ("embed from code", 0, 1),
        ("head from code", 0, 1),
        ("embed from math; head from math", 0, 0),
        ("embed from math; head from base", 1, 0),
        ("embed from code; head from code", 1, 0),
        ("embed from base; head from code", 1, 0),
        ("embed from base, math by linear(); head from math", 1, 0),
        ("embed from base, math by ties(0.5)", 0, 0),
        ("head from base, code by task_arithmetic(0.5)", 0, 1),
    ],
)
def test_embedding_and_head_of_a_tied_model(
    tied: dict[str, Path], tmp_path: Path, text: str, heads: int, warns: int
) -> None:
    names = "; ".join(f'model {name} = "{path}"' for name, path in tied.items())
    plan = gptailor.loads(f"tailor 1; {names}; {text}")
    warned = gptailor.check(plan)
    results = [(f.code, f.severity) for f in warned if f.code != "M303"]  # an unused model
    assert results == [("M304", "warning")] * warns
    gptailor.compile(plan, tmp_path / "out")
    results = read(tmp_path / "out")
    assert_same(results, interpret(plan, tied))
    model = loaded(tmp_path / "out")
    assert model.config.tie_word_embeddings is not bool(heads)
    head = results["lm_head.weight" if heads else "model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.model.embed_tokens.weight, results["model.embed_tokens.weight"])


def test_embedding_and_tokenizer_of_a_model_with_more_tokens_are_used(tmp_path: Path) -> None:
    tiny_model("llama", tmp_path / "base", layers=2)
    tiny_model("llama", tmp_path / "math", seed=1, layers=2, vocab_size=72, eos_token_id=5)
    plan = plan_of("embed from math; head from math; tokenizer from math", tmp_path)
    gptailor.compile(plan, tmp_path / "out")
    model = loaded(tmp_path / "out")
    assert (model.config.vocab_size, model.config.eos_token_id) == (72, 5)
    assert_same(
        read(tmp_path / "out"), interpret(plan, {n: tmp_path / n for n in ("base", "math")})
    )


# --------------------------------------------------------------------------------------- the files


PLAN = "L0 from math; merge(L1 base, L1 math, 0.25); L2 = L0 math; drop L3; dtype bfloat16"


def test_shards_hold_the_tensors_of_the_single_file(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    models = {"base": folders["base-float32"], "math": folders["math"]}
    plan = plan_of(PLAN, tmp_path)
    single = gptailor.compile(plan, tmp_path / "single", models=models)
    small = gptailor.ComputeOptions(shard_size=4_000)
    several = gptailor.compile(plan, tmp_path / "several", models=models, compute=small)
    assert single.shards == ("model.safetensors",)
    assert several.size == single.size
    assert len(several.shards) > 2
    assert_same(read(tmp_path / "several"), read(tmp_path / "single"))
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(several.shards)
    for name, shard in index["weight_map"].items():
        assert name in load_file(tmp_path / "several" / shard)
    sizes = [(tmp_path / "several" / shard).stat().st_size for shard in several.shards]
    assert max(sizes) < 4_000 + 2_000  # and a header
    assert torch.equal(logits(loaded(tmp_path / "several")), logits(loaded(tmp_path / "single")))


def test_sharded_models_are_read_like_single_files(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    models = {"base": folders["base-float32"], "math": folders["math"]}
    sharded = {}
    for name, folder in models.items():
        sharded[name] = tmp_path / name
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(
            tmp_path / name, max_shard_size="8KB"
        )
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 2
        shutil.copy(folder / "tokenizer.json", tmp_path / name)
    gptailor.compile(plan_of(PLAN, tmp_path), tmp_path / "a", models=models)
    gptailor.compile(plan_of(PLAN, tmp_path), tmp_path / "b", models=sharded)
    assert_same(read(tmp_path / "b"), read(tmp_path / "a"))


def test_progress_counts_every_byte(folders: dict[str, Path], tmp_path: Path) -> None:
    counts: list[int] = []
    models = {"base": folders["base-float32"], "math": folders["math"]}
    on_event = sizes(counts.append)
    gptailor.compile(plan_of(PLAN, tmp_path), tmp_path / "out", models=models, on_event=on_event)
    assert sum(counts) == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())


def test_the_same_plan_gives_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    models = {"base": folders["base-float32"], "math": folders["math"]}
    threads = torch.get_num_threads()
    plan = plan_of("L0..L3 from base, math by karcher()", tmp_path)
    try:
        for name, count in (("a", 1), ("b", 4)):
            torch.set_num_threads(count)
            gptailor.compile(plan, tmp_path / name / "out", models=models)
    finally:
        torch.set_num_threads(threads)
    for file in (tmp_path / "a" / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "out" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("text", ["", "L0..L1 from base, math by linear(1.0, 0.0)"])
def test_an_overflow_is_refused_and_names_its_place(tmp_path: Path, text: str) -> None:
    for name in ("base", "math"):
        tiny_model("llama", tmp_path / name, layers=2)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = -1e6
    save_file(tensors, file, {"format": "pt"})
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(TailorError, match=r"layers\.1\.mlp\.up_proj\.weight'\[2, 3\] is -1000000"):
        gptailor.compile(plan_of(text, tmp_path), tmp_path / "out", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    gptailor.compile(plan_of(text, tmp_path), tmp_path / "out", dtype="bfloat16")


def test_infinity_is_refused_where_it_is_read(tmp_path: Path) -> None:
    for name in ("base", "math"):
        tiny_model("llama", tmp_path / name, layers=2)
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(TailorError, match=r"got inf in '.*up_proj\.weight'\[2, 3\] of 'base'"):
        gptailor.compile(plan_of("dtype float16", tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    plan = plan_of("drop L0", tmp_path)  # tensors that are only copied aren't read
    gptailor.compile(plan, tmp_path / "out")
    assert_same(
        read(tmp_path / "out"), interpret(plan, {n: tmp_path / n for n in ("base", "math")})
    )
