"""Vision-language models against transformers: the language model's layers move, towers stay.

The reference calls the original model's own layer modules by hand, with the masks and rotations
that the original gave each of them for an image, and adds the tower's features after the first
layers where the original does.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

import gptailor
from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.layout import Layout, layout_of
from gptailor.checkpoint.families.vision import WRAPPERS, text_of, with_text
from gptailor.plan.plan import Plan
from tests.checkpoint.families.test_families import close, first
from tests.support.tiny import tiny_model
from tests.support.tiny_vision import VISION, VisionMaker, image_inputs, tiny_vision, vision_maker

COUNT = 6
CUT = (0, 1, 3, 5)
Tensors = dict[str, torch.Tensor]


def plan_of(text: str, **models: Path) -> Plan:
    named = "\n".join(f'model {name} = "{path}"' for name, path in models.items())
    return gptailor.loads(f"tailor 1\n{named}\n{text}\n")


def compiled(text: str, out: Path, **models: Path) -> Path:
    gptailor.compile(plan_of(text, **models), out)
    return out


def stacked(order: Sequence[int], model: str = "base") -> str:
    return "stack { " + "; ".join(f"L{i} {model}" for i in order) + " }"


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def tensors_of(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def layout_at(folder: Path) -> Layout:
    layout = layout_of(settings_of(folder), tensors_of(folder).keys())
    assert isinstance(layout, Layout), layout
    return layout


def load(folder: Path) -> PreTrainedModel:
    """The model; assert that its tensors are exactly the tensors on disk."""
    model, found = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    faults = {key: value for key, value in found.items() if value}
    assert not faults, faults
    for parameter in model.parameters():  # addresses in a file decide the last bit of a product
        parameter.data = parameter.data.clone()
    if model.config.model_type == "llama4":  # transformers 5.24 reads a missing output
        model.language_model.register_forward_hook(
            lambda _, __, output: setattr(output, "image_outputs", None)
        )
    return model.eval()


def run(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs, use_cache=False).logits
        return found


def language_model_of(model: PreTrainedModel) -> Any:
    inner: Any = getattr(model, "model", model)
    found = inner.text_model if hasattr(inner, "text_model") else inner.language_model
    return getattr(found, "model", found)


class Seen:
    """A model's layers for an image, each with the arguments of its call."""

    def __init__(self, folder: Path) -> None:
        self.model = load(folder)
        self.inputs = image_inputs(self.model.config.model_type)
        self.language = language_model_of(self.model)
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.features: dict[str, Any] = {}
        hooks = [
            self.language.register_forward_pre_hook(self._outside, with_kwargs=True),
            *(
                layer.register_forward_pre_hook(self._called, with_kwargs=True)
                for layer in self.language.layers
            ),
        ]
        self.unchanged = run(self.model, self.inputs)
        for hook in hooks:
            hook.remove()

    def _outside(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("visual_pos_masks", "deepstack_visual_embeds")
        self.features = {name: kwargs[name] for name in names if kwargs.get(name) is not None}

    def _called(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args, kwargs))

    def by_hand(self, layers: Sequence[tuple[Any, int]]) -> torch.Tensor:
        """These modules in order, each called as the model's layer of that number was."""
        hidden = self.calls[0][0][0]
        embeds = self.features.get("deepstack_visual_embeds", ())
        with torch.no_grad():
            for place, (module, number) in enumerate(layers):
                (_, *args), kwargs = self.calls[number]
                hidden = first(module(hidden, *args, **kwargs))
                if place < len(embeds):
                    mask = self.features["visual_pos_masks"]
                    hidden = hidden.clone()
                    hidden[mask, :] += embeds[place]

        def instead(_: Any, __: Any, output: Any) -> Any:
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        hook = self.language.layers[-1].register_forward_hook(instead)
        try:
            return run(self.model, self.inputs)
        finally:
            hook.remove()

    def own(self, order: Sequence[int]) -> list[tuple[Any, int]]:
        return [(self.language.layers[i], i) for i in order]


pytestmark = pytest.mark.usefixtures("no_progress_bars")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> VisionMaker:
    return vision_maker(tmp_path_factory)


@pytest.fixture(scope="module")
def seen(made: Any) -> Callable[..., Seen]:
    return cache(lambda kind: Seen(made(kind)))


# ----------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("kind", VISION)
def test_an_uncut_vision_model_computes_the_same(
    kind: str, made: Any, seen: Any, tmp_path: Path
) -> None:
    out = compiled("", tmp_path / "out", base=made(kind))

    model, original = load(out), seen(kind)

    torch.testing.assert_close(run(model, original.inputs), original.unchanged, atol=0, rtol=0)
    said = [
        one.generate(**original.inputs, max_new_tokens=6, do_sample=False)
        for one in (model, original.model)
    ]
    assert torch.equal(*said)
    assert settings_of(out)["vision_config"] == settings_of(made(kind))["vision_config"]
    assert (out / "preprocessor_config.json").read_bytes() == (
        made(kind) / "preprocessor_config.json"
    ).read_bytes()
    ours, theirs = tensors_of(out), tensors_of(made(kind))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", VISION)
def test_a_vision_model_without_some_layers_equals_one_cut_by_hand(
    kind: str, made: Any, seen: Any, tmp_path: Path
) -> None:
    out = compiled("drop L2; drop L4", tmp_path / "out", base=made(kind))

    found, original = load(out), seen(kind)

    wanted = original.by_hand(original.own(CUT))
    close(run(found, original.inputs), wanted)
    assert (original.unchanged - wanted).abs().max() > 0.05
    assert len(language_model_of(found).layers) == len(CUT)
    layout, disk = layout_at(made(kind)), tensors_of(made(kind))
    towers = [name for name in disk if not name.startswith(layout.prefix)]
    assert len(towers) > 20
    ours = tensors_of(out)
    assert all(torch.equal(ours[name], disk[name]) for name in towers)
    before, after = settings_of(made(kind)), settings_of(out)
    assert after.pop("text_config")["num_hidden_layers"] == len(CUT)
    before.pop("text_config")
    assert after == before


@pytest.mark.parametrize("kind", VISION)
def test_a_vision_model_with_reordered_layers_equals_one_made_by_hand(
    kind: str, made: Any, seen: Any, tmp_path: Path
) -> None:
    order = (3, 0, 5, 5, 1)
    out = compiled(stacked(order), tmp_path / "out", base=made(kind))

    found, original = load(out), seen(kind)

    wanted = original.by_hand(original.own(order))
    close(run(found, original.inputs), wanted)
    assert (original.unchanged - wanted).abs().max() > 0.05


@pytest.mark.parametrize("kind", VISION)
def test_layers_of_another_model_of_the_type(
    kind: str, made: Any, seen: Any, tmp_path: Path
) -> None:
    other = made(kind, 1)
    out = compiled("L3..L4 from math", tmp_path / "out", base=made(kind), math=other)

    found, original = load(out), seen(kind)

    theirs = language_model_of(load(other)).layers
    layers = original.own(range(COUNT))
    layers[3:5] = [(theirs[3], 3), (theirs[4], 4)]
    close(run(found, original.inputs), original.by_hand(layers))


# ------------------------------------------------------------------------------ the files on disk

ROOTS = {
    "qwen2_5_vl": "model.",
    "qwen3_vl": "model.language_model.",
    "gemma3": "language_model.model.",
    "mistral3": "language_model.model.",
    "smolvlm": "model.text_model.",
}


def rewritten(source: Path, out: Path, names: Callable[[str], str], config: Any = None) -> Path:
    """The checkpoint under other names, and with another configuration."""
    shutil.copytree(source, out)
    renamed = {names(name): t for name, t in tensors_of(source).items()}
    save_file(renamed, out / "model.safetensors", {"format": "pt"})
    if config is not None:
        (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("kind", ROOTS)
def test_names_are_found_on_the_disk(kind: str, made: Any) -> None:
    layout = layout_at(made(kind))
    head = "language_model." if kind == "mistral3" else ""
    assert layout.prefix == f"{ROOTS[kind]}layers."
    assert layout.embed == (f"{ROOTS[kind]}embed_tokens.weight",)
    assert layout.head[0] == f"{head or ''}lm_head.weight" or layout.tied
    assert layout.tied == (kind == "gemma3")
    assert layout.model_type == kind


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "gemma3", "mistral3", "llava"])
def test_names_as_they_are_in_memory(kind: str, made: Any, seen: Any, tmp_path: Path) -> None:
    """Some versions of transformers save them so."""
    state = {name: t.contiguous() for name, t in load(made(kind)).state_dict().items()}
    shutil.copytree(made(kind), tmp_path / "memory")
    if kind == "gemma3":
        del state["lm_head.weight"]
    save_file(state, tmp_path / "memory" / "model.safetensors", {"format": "pt"})
    assert layout_at(tmp_path / "memory").prefix == "model.language_model.layers."
    out = compiled("drop L2; drop L4", tmp_path / "out", base=tmp_path / "memory")
    original = seen(kind)
    close(run(load(out), original.inputs), original.by_hand(original.own(CUT)))


def test_a_flat_configuration_as_the_hub_has_it(made: Any, seen: Any, tmp_path: Path) -> None:
    """Qwen 2.5 VL's first configurations have the language model's keys next to `vision_config`."""
    config = settings_of(made("qwen2_5_vl"))
    text = {k: v for k, v in config.pop("text_config").items() if k != "model_type"}
    rotary = text.pop("rope_parameters")
    text["rope_theta"] = rotary.pop("rope_theta")
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rotary["mrope_section"]}
    del text["layer_types"]
    flat = rewritten(made("qwen2_5_vl"), tmp_path / "flat", str, {**text, **config})
    out = compiled("drop L2; drop L4", tmp_path / "out", base=flat)

    original = seen("qwen2_5_vl")
    close(run(load(out), original.inputs), original.by_hand(original.own(CUT)))
    changed = settings_of(out)
    assert "text_config" not in changed
    assert changed["num_hidden_layers"] == len(CUT)
    assert changed["image_token_id"] == config["image_token_id"]
    together = compiled("L1 from math", tmp_path / "two", base=flat, math=made("qwen2_5_vl", 1))
    assert settings_of(together)["rope_scaling"] == text["rope_scaling"]


def test_keys_outside_text_config_change_with_it(made: Any) -> None:
    """transformers 4.52 and on wrote both; it reads what stands in `text_config`."""
    config = settings_of(made("qwen2_5_vl"))
    both = {**config["text_config"], **config}
    text = {**text_of(both), "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    changed = with_text(both, text)
    for one in (changed, changed["text_config"]):
        assert (one["num_hidden_layers"], one["layer_types"]) == (3, ["full_attention"] * 3)
    assert {k for k in both if both[k] != changed[k]} == {
        "num_hidden_layers", "layer_types", "text_config",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"'num_hidden_layers' is 9, but 6 in 'text_config'"):
        with_text({**both, "num_hidden_layers": 9}, text)


@pytest.mark.parametrize("beside", [True, False])
def test_a_removed_key_is_removed_from_text_config(made: Any, beside: bool) -> None:
    config = settings_of(made("qwen2_5_vl"))
    config["text_config"]["pad_token_id"] = 63
    if beside:
        config["pad_token_id"] = 63
    text = {key: value for key, value in text_of(config).items() if key != "pad_token_id"}
    changed = with_text(config, text)
    assert "pad_token_id" not in changed["text_config"]
    assert "pad_token_id" not in changed


def test_a_configuration_that_leaves_the_number_of_layers_to_a_default(
    made: Any, seen: Any, tmp_path: Path
) -> None:
    """Llava 1.5's says hardly more of its language model than that it is a Llama."""
    config = settings_of(made("llava"))
    del config["text_config"]["num_hidden_layers"], config["text_config"]["model_type"]
    sparse = rewritten(made("llava"), tmp_path / "sparse", str, config)
    assert layout_at(sparse).count == COUNT
    out = compiled("drop L2; drop L4", tmp_path / "out", base=sparse)
    assert settings_of(out)["text_config"]["num_hidden_layers"] == len(CUT)
    original = seen("llava")
    close(run(load(out), original.inputs), original.by_hand(original.own(CUT)))


@pytest.mark.parametrize("kind", VISION)
def test_a_wrapper_s_defaults_are_transformers_s(kind: str) -> None:
    specification = type(AutoConfig.for_model(kind)).sub_configs_defaults["text_config"]
    assert WRAPPERS[kind].text == specification.model_type
    assert WRAPPERS[kind].only == (specification.config_class is not AutoConfig)
    assert WRAPPERS[kind].tied == bool(AutoConfig.for_model(kind).tie_word_embeddings)


def test_every_wrapper_has_a_case_and_a_family() -> None:
    assert WRAPPERS.keys() == VISION.keys()
    assert {wrapper.text for wrapper in WRAPPERS.values()} <= FAMILY_OF.keys()


def test_a_head_on_the_disk_isnt_an_embedding(made: Any, tmp_path: Path) -> None:
    """Mistral 3 is tied where nothing is said, and transformers leaves heads that differ apart."""
    config = settings_of(made("mistral3"))
    del config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]
    silent = rewritten(made("mistral3"), tmp_path / "silent", str, config)
    assert not layout_at(silent).tied
    out = compiled("drop L2", tmp_path / "out", base=silent)
    assert "language_model.lm_head.weight" in tensors_of(out)


@pytest.mark.parametrize("kind", ["gemma3", "paligemma", "llava"])
def test_embedding_and_head_of_two_models_are_untied(kind: str, made: Any, tmp_path: Path) -> None:
    base = made(kind)
    if kind == "llava":
        tied = {"tie_word_embeddings": True}
        base = tiny_vision(kind, tmp_path / "tied", text=tied, **tied)
    assert layout_at(base).tied
    other = made(kind, 1)
    out = compiled("embed from math; head from base", tmp_path / "out", base=base, math=other)

    model = load(out)

    embed, head = layout_at(other).embed[0], layout_at(base).embed[0]
    assert torch.equal(model.get_input_embeddings().weight, tensors_of(other)[embed])
    assert torch.equal(model.get_output_embeddings().weight, tensors_of(base)[head])


# ------------------------------------------------------------------ with models of a text alone


TEXTS = {
    "qwen2_5_vl": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen3_vl": "qwen3",
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "llava": "llama",
}


def text_model(kind: str, folder: Path, seed: int, **more: Any) -> Path:
    """A model of the same language model alone."""
    text = {k: v for k, v in VISION[kind]["text_config"].items() if k != "model_type"}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    if kind == "gemma3":
        del text["rope_parameters"]
    if TEXTS[kind] == "qwen2":
        text["rms_norm_eps"] = 1e-5
    return tiny_model(TEXTS[kind], folder, seed=seed, **{**text, **more})


@pytest.mark.parametrize("kind", TEXTS)
def test_a_vision_model_takes_layers_of_a_text_model(
    kind: str, made: Any, seen: Any, tmp_path: Path
) -> None:
    math = text_model(kind, tmp_path / "math", 7)
    out = compiled("L2..L3 from math", tmp_path / "out", base=made(kind), math=math)

    found, original = load(out), seen(kind)

    # The text model's weights in modules of the original's own.
    theirs = load(
        compiled(stacked(range(COUNT), "math"), tmp_path / "all", base=made(kind), math=math)
    )
    tensors, ours = tensors_of(math), tensors_of(tmp_path / "all")
    assert all(
        torch.equal(ours[name.replace("model.layers.", layout_at(made(kind)).prefix)], tensor)
        for name, tensor in tensors.items()
        if name.startswith("model.layers.")
    )
    layers = original.own(range(COUNT))
    layers[2:4] = [(language_model_of(theirs).layers[i], i) for i in (2, 3)]
    close(run(found, original.inputs), original.by_hand(layers))


@pytest.mark.parametrize("kind", TEXTS)
def test_a_vision_model_s_layers_in_a_text_model(kind: str, made: Any, tmp_path: Path) -> None:
    base = text_model(kind, tmp_path / "base", 7)
    text = stacked(range(COUNT), "eyes") + "; embed from eyes; norm from eyes; head from eyes"
    text = text.removesuffix("; head from eyes") if kind == "gemma3" else text
    out = compiled(text, tmp_path / "out", base=base, eyes=made(kind))

    found = AutoModelForCausalLM.from_pretrained(out).eval()
    assert settings_of(out)["model_type"] == TEXTS[kind]
    assert not any("vis" in name for name in tensors_of(out))
    ids = {"input_ids": torch.arange(3, 20)[None]}
    torch.testing.assert_close(run(found, ids), run(load(made(kind)), ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "text", "code"),
    [
        ("qwen2_5_vl", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "M206"),
        ("qwen2_5_vl", {"num_key_value_heads": 4}, "M206"),
        ("qwen3_vl", {"head_dim": 4}, "M206"),
        ("mistral3", {"intermediate_size": 40}, "M208"),
    ],
)
def test_a_text_model_that_computes_otherwise_is_refused(
    kind: str, text: dict[str, Any], code: str, made: Any, tmp_path: Path
) -> None:
    math = text_model(kind, tmp_path / "math", 7, **text)
    for base, other in ((made(kind), math), (math, made(kind))):
        faults = gptailor.check(plan_of("L1 from other", base=base, other=other))
        assert {fault.code for fault in faults if fault.severity == "error"} == {code}


def test_sections_of_two_vision_models_have_to_agree(made: Any, tmp_path: Path) -> None:
    rotary = {**VISION["qwen3_vl"]["text_config"]["rope_parameters"], "mrope_section": [2, 2, 0]}
    other = tiny_vision("qwen3_vl", tmp_path / "other", text={"rope_parameters": rotary})
    (fault,) = gptailor.check(plan_of("L1 from other", base=made("qwen3_vl"), other=other))
    assert fault.code == "M206"
    assert fault.message == "'other' has mrope_section [2, 2, 0], but the base has [2, 1, 1]"


def test_a_layer_with_a_window_is_refused_where_no_layer_has_a_window(
    made: Any, tmp_path: Path
) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
    math = text_model("qwen3_vl", tmp_path / "math", 7, **windows)
    (fault,) = gptailor.check(plan_of("L3 from math", base=made("qwen3_vl"), math=math))
    assert fault.code == "M217"
    assert fault.message == ("the model's layers have no window, but the new L3 has one")


def test_another_language_model_is_another_architecture(made: Any, tmp_path: Path) -> None:
    math = text_model("llava", tmp_path / "math", 7)
    (fault,) = gptailor.check(plan_of("L1 from math", base=made("llava_next"), math=math))
    assert fault.code == "M205"
    assert fault.message == (
        "'math' is a 'llama' model, but the base is a 'llava_next' ('mistral') model"
    )
