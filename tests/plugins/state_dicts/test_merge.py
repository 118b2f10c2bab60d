"""`gptailor.merge`: tensors in memory, merged to the bytes that `compile` writes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gptailor
from gptailor.plan.plan import Merge, MethodCall
from gptailor.plan.registry import METHODS
from tests.end_to_end.test_same_bytes import METHOD

State = dict[str, Tensor]
PARTS = {"attn": "self_attn.v_proj.weight", "mlp": "mlp.up_proj.weight"}
"""Parts of a layer, and one tensor of each."""


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same dtype, shape and bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


@pytest.fixture(scope="module")
def states(family: Path) -> dict[str, State]:
    return {n: load_file(family / n / "model.safetensors") for n in ("base", "math", "code")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_method_gives_the_bytes_that_compile_writes(
    dtype: str, family: Path, states: dict[str, State], tmp_path: Path
) -> None:
    assert METHOD.keys() == METHODS.keys()
    kind = getattr(torch, dtype)
    head = "".join(f'model {name} = "{family / name}"\n' for name in states)
    slots = [(layer, part) for layer in range(6) for part in PARTS]
    names = list(METHOD)
    for first in range(0, len(names), len(slots)):
        placed = list(zip(slots, names[first : first + len(slots)], strict=False))
        lines = [f"L{layer}.{part} from {METHOD[name]}\n" for (layer, part), name in placed]
        plan = gptailor.loads(f"tailor 1\n{head}{''.join(lines)}dtype {dtype}\n")
        gptailor.compile(plan, tmp_path / str(first))
        written = load_file(tmp_path / str(first) / "model.safetensors")
        for entry, ((layer, part), name) in zip(plan.layers, placed, strict=True):
            assert isinstance(entry.recipe, Merge)
            assert isinstance(entry.recipe.by, MethodCall)
            key = f"model.layers.{layer}.{PARTS[part]}"
            made = gptailor.merge(
                {source.model: {key: states[source.model][key]} for source in entry.recipe.merge},
                name_of(entry.recipe),
                base={key: states["base"][key]},
                dtype=kind,
                **entry.recipe.by.arguments,
            )
            assert same(made[key], written[key]), name


def name_of(recipe: Merge) -> str:
    assert isinstance(recipe.by, MethodCall)
    return recipe.by.name


def test_the_result_has_the_type_and_dtype_of_the_sources(states: dict[str, State]) -> None:
    sources = {name: {k: t.half() for k, t in states[name].items()} for name in ("math", "code")}
    before = {name: {k: t.clone() for k, t in state.items()} for name, state in sources.items()}
    made = gptailor.merge(sources, weights=[0.25, 0.75])
    assert list(made) == list(sources["math"])
    for key, tensor in made.items():
        wanted = 0.25 * before["math"][key].float() + 0.75 * before["code"][key].float()
        assert same(tensor, wanted.half())
    assert all(same(before[n][k], t) for n, state in sources.items() for k, t in state.items())
    key = next(iter(made))
    one = gptailor.merge({n: s[key] for n, s in sources.items()}, "linear", weights=(0.25, 0.75))
    assert isinstance(one, Tensor)
    assert same(one, made[key])
    made[key].zero_()
    assert same(sources["math"][key], before["math"][key])


def test_draws_depend_on_the_names_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, base = (torch.randn(40, 30, generator=generator) for _ in range(3))
    how: dict[str, Any] = {"density": 0.5, "seed": 3}
    whole = gptailor.merge({"a": {"w": a}, "b": {"w": b}}, "dare", base={"w": base}, **how)["w"]
    sources = {"a": a, "b": b}
    assert same(gptailor.merge(sources, "dare", base=base, name="w", **how), whole)
    assert not same(gptailor.merge(sources, "dare", base=base, name="v", **how), whole)
    assert not same(gptailor.merge({"c": a, "b": b}, "dare", base=base, name="w", **how), whole)


def test_keys_that_share_memory_share_it_in_the_result() -> None:
    class Tied(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.embed = nn.Embedding(8, 4)
            self.head = nn.Linear(4, 8, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("steps", torch.tensor(7))
            self.register_buffer("empty", torch.empty(0))

    with torch.random.fork_rng(devices=[]):
        base, one, two = (Tied(seed).state_dict() for seed in range(3))
    made = gptailor.merge({"one": one, "two": two}, "dare", base=base, density=0.5)
    assert made["embed.weight"].data_ptr() == made["head.weight"].data_ptr()
    assert int(made["steps"]) == 7
    assert made["steps"].data_ptr() != one["steps"].data_ptr()
    assert made["empty"].shape == (0,)
    apart = {**two, "head.weight": two["head.weight"].clone()}
    parted = gptailor.merge({"one": one, "two": apart}, "dare", base=base, density=0.5)
    assert same(parted["embed.weight"], made["embed.weight"])
    assert not same(parted["embed.weight"], parted["head.weight"])  # draws by its own name


W = torch.ones(2, 3)
WRONG_TYPES = pytest.mark.wrong_types


@pytest.mark.parametrize(
    ("sources", "how", "message"),
    [
        ({}, {}, "P304"),
        ({"a": {"w": W}}, {"by": "slerp"}, "P304"),
        ({"a": {"w": W}}, {"by": "tie"}, "there is no method 'tie'"),
        ({"a": {"w": W}}, {"by": "ties", "base": {"w": W}, "dense": 1}, "no parameter 'dense'"),
        ({"a": {"w": W}}, {"by": "ties", "base": {"w": W}, "density": 2.0}, "must be in (0, 1]"),
        ({"a": {"w": W}}, {"by": "ties", "density": float("nan")}, "'density': expected a number"),
        ({"a": {"w": W}}, {"by": "ties", "density": None}, "'density': expected a number"),
        ({"a": {"w": W}}, {"by": "ties", "scale": True}, "P306"),
        ({"a": {"w": W}}, {"by": "ties", "base": {"w": W}, "normalize": "on"}, "P312"),
        ({"a": {"w": W}}, {"by": "ties", "base": {"w": W}, "density": [0.5, 0.5]}, "P311"),
        ({"a": {"w": W}}, {"by": "ties"}, "'ties' needs the base's tensors"),
        ({"a": {"w": W}, "b": {"w": W}}, {"weights": [1, 2, 3]}, "P311"),
        ({"a": {"w": W}, "b": W}, {}, "'b' has the type Tensor, but 'a' has a state dict"),
        ({"a": W}, {"base": {"w": W}}, "'base' has the type dict, but 'a' has one tensor"),
        ({"a": {"w": W}}, {"name": "w"}, "'name' is for single tensors"),
        ({"a": {"w": W, "v": W, "u": W}, "b": {"w": W}}, {}, "'b' has no tensor 'v' and 1 more"),
        ({"a": {"w": W}, "b": {"w": W, "v": W}}, {}, "'a' has no tensor 'v', which 'b' has"),
        ({"a": {"w": W}}, {"base": {"w": W, "v": W}}, "'a' has no tensor 'v', which 'base' has"),
        ({"a": {"w": W}, "b": {"w": W.t()}}, {}, "shape of 'w' is [3, 2] in 'b', but [2, 3] in"),
        ({"a": {"w": W}, "b": {"w": W.half()}}, {}, "dtype of 'w' is float16 in 'b', but float32"),
        ({"a": {"w": W}, "b": {"w": W.int()}}, {"dtype": torch.float32}, "is int32 in 'b'"),
        ({"a": {"w": W}}, {"dtype": torch.int32}, "got 'int32'"),
        ({"a": {"w": W.int()}, "b": {"w": 2 * W.int()}}, {}, "'w' is int32, which can't be merged"),
        ({"a": {"w": W}}, {"weights": {1.0}}, "'weights': expected a number or a list of numbers"),
        ({"a": {"w": W}}, {"weights": b"a"}, "'weights': expected a number or a list of numbers"),
        ({"a": W.int(), "b": 2 * W.int()}, {}, "the tensor is int32, which can't be merged"),
        ({"a": W, "b": W.t()}, {}, "the shape of the tensor is [3, 2] in 'b', but [2, 3] in 'a'"),
        *(
            pytest.param(sources, {}, said, marks=WRONG_TYPES)
            for sources, said in (
                ({"a": {"w": "x"}}, "'w' of 'a': expected a tensor of torch, got str"),
                ({"a": {"w": W.numpy()}}, "got ndarray; torch.as_tensor makes one"),
                ({"a": W.numpy(), "b": W}, "the tensor of 'a': expected a tensor of torch, got nd"),
                ({"a": {"w": W}, "b": W.numpy()}, "'b' has the type ndarray, but 'a' has a state"),
                ({"a": torch.nn.Linear(2, 2)}, "the tensor of 'a': expected a tensor of torch, go"),
            )
        ),
        ({"a": {"w": W.to_sparse()}}, {}, "'w' of 'a' is not a dense tensor"),
        ({"a": {"w": W.to("meta")}}, {}, "'w' of 'a' is not a dense tensor"),
        ({"a": {"w": W * 1e38}}, {"weights": [9.0]}, "choose a smaller 'weight'"),
        ({"a": {"w": W}}, {"weights": [1e300]}, "P306"),
        ({"a": W, "b": 3 * W}, {"by": "nearswap", "t": 1e300}, "P306"),
        (
            {"a": {"w": W}},
            {"by": "dare", "base": {"w": 0 * W}, "density": 1e-300, "rescale": "density"},
            "a coefficient of dare(",
        ),
        ({"a": {"w": W / 0}}, {}, "got inf in 'w'[0, 0] of 'a'"),
    ],
)
def test_incompatible_arguments_are_refused_by_name(
    sources: Any, how: dict[str, Any], message: str
) -> None:
    by, rest = [how["by"]] if "by" in how else [], {**how}
    rest.pop("by", None)
    with pytest.raises(gptailor.TailorError) as caught:
        gptailor.merge(sources, *by, **rest)
    assert message in str(caught.value)


def test_numbers_for_each_source_are_a_list_and_words_texts_or_truths() -> None:
    sources, base = {"a": 3 * W, "b": -W}, torch.zeros_like(W)
    made = gptailor.merge(sources, "ties", base=base, weight=[1, 2], density=1, normalize=False)
    assert same(made, 3 * W)  # the elected sign is a's, and its weight is 1
    for yes in (True, "yes"):
        by_weights = gptailor.merge(sources, "ties", base=base, weight=[2, 1], normalize=yes)
        assert same(by_weights, 3 * W)
    assert same(gptailor.merge(sources, "ties", base=base, weight=[2, 1], normalize="no"), 6 * W)


def test_arrays_and_tensors_are_numbers() -> None:
    sources = {"a": W, "b": 3 * W}
    halves = (torch.tensor([0.5, 0.5]), np.array([0.5, 0.5]), [torch.tensor(0.5), np.float32(0.5)])
    for weights in halves:
        assert same(gptailor.merge(sources, weights=weights), 2 * W)
    for density in (torch.tensor(1), np.array(1.0), np.float64(1), torch.tensor(1.0)):
        made = gptailor.merge(sources, "ties", base=0 * W, density=density)
        assert same(made, gptailor.merge(sources, "ties", base=0 * W, density=1))


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([{"w": W}],), "'sources': expected Mapping[str, Tensor | dict[str, Tensor]], got [{'w"),
        ((None,), "'sources': expected Mapping[str, Tensor | dict[str, Tensor]], got None"),
        (({0: {"w": W}},), "'sources': expected Mapping[str, Tensor | dict[str, Tensor]], got {0"),
        (({"a": {"w": W}}, None), "'by': expected str, got None"),
    ],
)
def test_sources_and_methods_have_their_types(given: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        gptailor.merge(*given)
    assert str(caught.value).startswith(message)


def test_other_dtypes_are_merged_where_the_results_is_reported() -> None:
    sources = {"a": W.half(), "b": 3 * W.double()}
    made = gptailor.merge(sources, dtype=torch.bfloat16)
    assert same(made, 2 * W.bfloat16())


def test_naming_the_verb_is_all_that_imports_torch() -> None:
    code = "import gptailor, sys; assert 'merge' in gptailor.__all__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_without_torch_the_verb_names_the_extra() -> None:
    code = "import gptailor, sys; sys.modules['torch'] = None; gptailor.merge({}, 'ties')"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith("gptailor.merge needs torch: pip install 'gptailor[torch]'")
