"""LoRA adapters: every tensor finds its place, and what isn't understood is refused by name."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptailor.checkpoint.files import CheckpointError
from gptailor.checkpoint.folder import Checkpoint, open_checkpoint
from gptailor.checkpoint.formats.lora import apply_adapter
from gptailor.checkpoint.formats.lora_config import read_settings
from gptailor.checkpoint.models import rebind
from gptailor.checkpoint.tensor import Adapted, LowRank
from gptailor.plan.plan import Layer, LayerOf, Model, Plan, Take
from gptailor.prepare import open_all_models
from gptailor.program.load import load_tensor
from tests.support.tiny_adapter import HIDDEN, Q, adapter, pair

V = "model.layers.3.self_attn.v_proj"
HEAD, EMBED = "lm_head", "model.embed_tokens"
VOCAB, KV = 64, 8


@pytest.fixture
def base(family: Path) -> Checkpoint:
    return open_checkpoint(family / "base")


def refused(model: Checkpoint, folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        apply_adapter(model, folder)
    return caught.value


def changed(before: Checkpoint, after: Checkpoint) -> set[str]:
    tensors = after.tensors.items()
    return {name for name, tensor in tensors if tensor != before.tensors.get(name)}


def delta(model: Checkpoint, module: str = Q) -> LowRank:
    form = model.tensors[f"{module}.weight"].form
    assert isinstance(form, Adapted)
    (only,) = form.deltas
    assert isinstance(only, LowRank)
    return only


# ------------------------------------------------------------------------------------ the results


def test_a_delta_replaces_one_tensor_and_keeps_its_spec(base: Checkpoint, tmp_path: Path) -> None:
    made, messages = apply_adapter(base, adapter(tmp_path / "a"))
    assert changed(base, made) == {f"{Q}.weight"}
    old, new = base.tensors[f"{Q}.weight"], made.tensors[f"{Q}.weight"]
    assert new.spec == old.spec
    assert isinstance(new.form, Adapted)
    assert new.form.base == old
    assert delta(made).scale == 2.0
    assert not delta(made).transposed
    assert (made.config, made.folder, messages) == (base.config, base.folder, [])
    assert made.files == (*base.files, tmp_path / "a/adapter_model.safetensors")
    hash(new)


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace("base_model.model.model.", "base_model.model."),
    ],
)
def test_other_spellings_of_keys_are_understood(
    rename: Any, base: Checkpoint, tmp_path: Path
) -> None:
    tensors = {rename(key): tensor for key, tensor in pair(Q).items()}
    made, _ = apply_adapter(base, adapter(tmp_path / "a", tensors))
    assert changed(base, made) == {f"{Q}.weight"}


def test_a_model_saved_without_its_head_has_other_names(family: Path, tmp_path: Path) -> None:
    model = open_checkpoint(family / "base")
    bare = {name.removeprefix("model."): t for name, t in model.tensors.items() if name != HEAD}
    bare = {n: t for n, t in bare.items() if not n.startswith("lm_head")}
    made, _ = apply_adapter(
        Checkpoint(model.folder, model.config, bare, model.files), adapter(tmp_path / "a")
    )
    assert isinstance(made.tensors[f"{Q.removeprefix('model.')}.weight"].form, Adapted)


@pytest.mark.parametrize("wrapper", ["", ".modules_to_save", ".modules_to_save.default"])
def test_a_module_to_save_is_the_adapters_own_tensor(
    wrapper: str, base: Checkpoint, tmp_path: Path
) -> None:
    key = f"base_model.model.lm_head{wrapper}.weight"
    tensors = pair(Q) | {key: torch.zeros(VOCAB, HIDDEN)}
    made, _ = apply_adapter(base, adapter(tmp_path / "a", tensors, modules_to_save=[HEAD]))
    new = made.tensors["lm_head.weight"]
    assert new.spec == base.tensors["lm_head.weight"].spec
    assert new.file == tmp_path / "a/adapter_model.safetensors"
    assert new.form is None


def test_a_saved_tensor_of_another_dtype_is_cast_to_the_models(
    base: Checkpoint, tmp_path: Path
) -> None:
    tensors = {"base_model.model.lm_head.weight": torch.zeros(VOCAB, HIDDEN, dtype=torch.float16)}
    made, _ = apply_adapter(base, adapter(tmp_path / "a", tensors, modules_to_save=[HEAD]))
    new = made.tensors["lm_head.weight"]
    assert new.spec.dtype == "F32"
    assert isinstance(new.form, Adapted)
    assert new.form.base.spec.dtype == "F16"
    assert new.form.deltas == ()


@pytest.mark.parametrize(
    ("named", "warned"),
    [
        (None, False),
        ("", False),
        ("base", False),
        ("someone/BASE", False),
        ("C:\\models\\base\\", False),
        ("/elsewhere/base/", False),
        ("someone/base-v2", True),
        ("math", True),
    ],
)
def test_another_base_name_is_a_warning(
    named: str | None, warned: bool, base: Checkpoint, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "a", base_model_name_or_path=named)
    _, messages = apply_adapter(base, folder)
    assert len(messages) == warned
    assert not warned or "another base" in messages[0]


def test_the_hubs_cache_and_the_configuration_name_a_base_too(family: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Some-One--Llama-7b-hf" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(family / "base", snapshot)
    model = open_checkpoint(snapshot)
    folder = adapter(tmp_path / "a", base_model_name_or_path="some-one/llama-7B-hf")
    assert apply_adapter(model, folder)[1] == []
    model.config["_name_or_path"] = "/home/me/mine"
    adapter(folder, base_model_name_or_path="they/Mine")
    assert apply_adapter(model, folder)[1] == []


def test_targets_without_a_delta_are_a_warning(base: Checkpoint, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", target_modules=["q_proj"])
    (message,) = apply_adapter(base, folder)[1]
    assert "'model.layers.1.self_attn.q_proj.weight' and 4 more" in message
    adapter(folder, target_modules=["q_proj"], layers_to_transform=[0])
    assert apply_adapter(base, folder)[1] == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, "'layers_to_transform' [0]"),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, "'layers_to_transform' 0"),
        ({"target_modules": [], "layers_to_transform": [0]}, "'layers_to_transform' [0]"),
        ({"target_modules": ["k_proj", "0.self_attn.q_proj"]}, "'target_modules' ['k_proj', '0."),
        ({"target_modules": r".*\.0\..*"}, r"'target_modules' '.*\\.0\\..*'"),
        ({"exclude_modules": ["2.self_attn.q_proj"]}, "'exclude_modules' ['2.self_attn.q_proj']"),
        ({"exclude_modules": r".*[2-5]\..*"}, r"'exclude_modules' '.*[2-5]\\..*'"),
        (
            {"rank_pattern": {"q_proj": 4, "k_proj": 8}},
            "no module for 'k_proj' of its 'rank_pattern'",
        ),
        (
            {"alpha_pattern": {"7.self_attn.q_proj": 8}},
            "no module for '7.self_attn.q_proj' of its 'alpha_pattern'",
        ),
        ({"trainable_token_indices": [3]}, "the tokens of its 'trainable_token_indices'"),
    ],
)
def test_weights_that_the_settings_leave_out_are_a_warning(
    settings: dict[str, Any], says: str, base: Checkpoint, tmp_path: Path
) -> None:
    modules = [f"model.layers.{n}.self_attn.q_proj" for n in range(6) if n != 1]
    tensors = {key: value for module in modules for key, value in pair(module).items()}
    warned = apply_adapter(base, adapter(tmp_path / "a", tensors, **settings))[1]
    [surplus] = [text for text in warned if "has no delta for" not in text]
    assert says in surplus
    if "leaves out" in surplus:
        assert f"{modules[1]!r}" in surplus


def test_an_adapter_without_used_deltas_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    error = refused(base, adapter(tmp_path / "a", target_modules=["q_proj"], layers_to_transform=1))
    assert (error.code, error.message) == ("C401", "the adapter doesn't change the model")
    assert f"a delta for '{Q}', which its 'layers_to_transform' 1 leaves out" in error.help


def test_slow_target_patterns_match_the_trained_modules(base: Checkpoint, tmp_path: Path) -> None:
    for targets in (
        "all-linear",
        "(a+)+",
        r"(?:.*?(?:q|k).*?(?:_).*?)|(?:a.*b.*(?:c|d)(?:e)(?:f))",
    ):
        made, messages = apply_adapter(base, adapter(tmp_path / "a", target_modules=targets))
        assert changed(base, made) == {f"{Q}.weight"}
        assert messages == []


def test_training_settings_are_ignored(base: Checkpoint, tmp_path: Path) -> None:
    folder = adapter(
        tmp_path / "a",
        lora_dropout=0.1,
        task_type="CAUSAL_LM",
        init_lora_weights="eva",
        eva_config={"rho": 2.0},
        qalora_group_size=16,
        fan_in_fan_out=True,
        lorap_emb_lr=1e-6,
        unsloth_fixed=True,
        use_future=None,
        future_config={},
    )
    made, messages = apply_adapter(base, folder)
    assert messages == []
    assert not delta(made).transposed


def test_no_tensor_library_is_needed() -> None:
    code = "import sys, gptailor.checkpoint.formats.lora; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", "LOHA"),
        ("peft_type", "ADALORA"),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1, 2]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("arrow_config", {"top_k": 3}),
        ("use_bdlora", {"nblocks": 2}),
        ("kasa_config", {"beta": 1.0}),
        ("monteclora_config", {"num_samples": 8}),
        ("velora_config", {"scale": 1.0}),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "novel"),
        ("exclude_modules", "(a+)+$"),
        ("modules_to_save", ["(a+)+b"]),
        ("layers_pattern", "(a+)+b"),
        ("use_something", True),
    ],
)
def test_an_unsupported_setting_is_refused_by_name(
    setting: str, value: object, base: Checkpoint, tmp_path: Path
) -> None:
    error = refused(base, adapter(tmp_path / "a", **{setting: value}))
    assert error.code == "C402"
    named = str(value) if setting == "peft_type" else setting
    assert f"'{named}'" in error.message
    assert error.path.name == "adapter_config.json"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", None),
        ("r", 0),
        ("r", -1),
        ("r", 4.0),
        ("r", True),
        ("lora_alpha", "8"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400),
        ("lora_alpha", 1e41),
        ("lora_alpha", -1e300),
        ("use_rslora", 1),
        ("use_dora", "yes"),
        ("bias", "some"),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"(": 4}),
        ("rank_pattern", []),
        ("alpha_pattern", ""),
        ("alpha_pattern", {"(": 4}),
        ("alpha_pattern", {"q_proj": None}),
        ("modules_to_save", [""]),
        ("modules_to_save", 3),
        ("modules_to_save", ["("]),
        ("modules_to_save", {}),
        ("exclude_modules", "("),
        ("exclude_modules", 0),
        ("layers_pattern", ["("]),
        ("layers_pattern", {"layers": 1}),
        ("layers_to_transform", 1),  # with a pattern as target_modules
        ("layers_to_transform", "0"),
        ("layers_to_transform", [-1]),
        ("trainable_token_indices", [1, 1]),
        ("trainable_token_indices", [-1]),
        ("trainable_token_indices", {"embed_tokens": 3}),
        ("trainable_token_indices", "3"),
        ("base_model_name_or_path", 7),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", "("),
        ("target_modules", {}),
        ("use_dora", 0),
    ],
)
def test_a_wrong_setting_is_named(
    setting: str, value: object, base: Checkpoint, tmp_path: Path
) -> None:
    error = refused(base, adapter(tmp_path / "a", **{setting: value}))
    assert error.code == "C401"
    assert f"'{setting}'" in error.message


A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"
ROWS = f"base_model.model.{EMBED}.token_adapter.trainable_tokens_delta"
SAVED = "base_model.model.lm_head.weight"
MAGNITUDE = f"base_model.model.{Q}.lora_magnitude_vector"
EMBEDDED = f"base_model.model.{EMBED}.lora_embedding_"


def embedded(out: int = HIDDEN, into: int = VOCAB) -> dict[str, Tensor]:
    return {EMBEDDED + "A": torch.zeros(4, into), EMBEDDED + "B": torch.zeros(out, 4)}


@pytest.mark.parametrize(
    ("code", "message", "tensors", "config"),
    [
        ("C401", "doesn't change the model", {}, {}),
        ("C401", "doesn't change the model", pair(Q), {"lora_alpha": 0}),
        ("C402", "expected a float dtype", pair(Q) | {A: torch.zeros(4, 16, dtype=torch.int8)}, {}),
        ("C403", "layers.9", pair("model.layers.9.self_attn.q_proj"), {}),
        ("C403", "experts", pair("model.layers.0.mlp.experts.base_layer"), {}),
        ("C403", "score", pair(Q) | {"base_model.model.score.weight": torch.zeros(2)}, {}),
        ("C403", "lora_diag", pair(Q) | {f"base_model.model.{Q}.lora_diag": torch.ones(4)}, {}),
        ("C403", "same module", pair(Q) | {A.replace("_A.", "_A.x."): torch.zeros(4, 16)}, {}),
        ("C404", "rank 8", pair(Q), {"r": 8}),
        ("C404", "rank 2", pair(Q), {"rank_pattern": {"q_proj": 2}}),
        ("C404", "[4, 16]", pair(Q, into=32), {}),
        ("C404", "[16, 4]", pair(Q, out=32), {}),
        ("C404", "[16, 4]", pair(Q) | {B: torch.zeros(16, 3)}, {}),
        ("C404", "has the shape []", pair(Q) | {A: torch.zeros(())}, {}),
        ("C404", "has the shape [64]", pair(Q) | {B: torch.zeros(64)}, {}),
        ("C404", "dimensions", pair("model.norm"), {}),
        ("C404", "[8, 4]", pair(V), {}),
        ("C404", "[64, 16]", {SAVED: torch.zeros(70, HIDDEN)}, {}),
        ("C404", "[16]", pair(Q) | {MAGNITUDE: torch.ones(1, 16)}, {"use_dora": True}),
        ("C404", "[4, 64]", embedded(out=64, into=16), {}),
        ("C404", "[2, 16]", {ROWS: torch.zeros(3, 16)}, {"trainable_token_indices": [1, 2]}),
        ("C404", "64 tokens", {ROWS: torch.zeros(1, 16)}, {"trainable_token_indices": [64]}),
        ("C405", "lora_B", {A: torch.zeros(4, 16)}, {}),
        ("C405", "lora_A", {B: torch.zeros(16, 4)}, {}),
        ("C405", "lora_embedding_B", {EMBEDDED + "A": torch.zeros(4, 64)}, {}),
        ("C405", "use_dora", pair(Q), {"use_dora": True}),
        ("C405", "lora_bias", pair(Q), {"lora_bias": True}),
        ("C405", "lm_head", pair(Q), {"modules_to_save": ["lm_head"]}),
        ("C405", "row numbers", {ROWS: torch.zeros(1, 16)}, {}),
        ("C402", "use_dora", pair(Q) | {MAGNITUDE: torch.ones(16)}, {}),
        ("C402", "lora_bias", pair(Q) | {f"base_model.model.{Q}.lora_B.bias": torch.ones(16)}, {}),
        (
            "C402",
            "together",
            embedded() | {ROWS: torch.zeros(1, 16)},
            {"trainable_token_indices": [1]},
        ),
        (
            "C403",
            "lora_B.bias",
            pair(Q) | {f"base_model.model.{Q}.lora_B.bias": torch.ones(16)},
            {"lora_bias": True},
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_faults(
    code: str,
    message: str,
    tensors: dict[str, Tensor],
    config: dict[str, Any],
    base: Checkpoint,
    tmp_path: Path,
) -> None:
    error = refused(base, adapter(tmp_path / "a", tensors, **config))
    assert (error.code, message in error.message) == (code, True), error.message
    assert error.path == tmp_path / "a/adapter_model.safetensors"


def test_an_adapter_of_another_model_is_a_fault(family: Path, tmp_path: Path) -> None:
    error = refused(open_checkpoint(family / "wide"), adapter(tmp_path / "a"))
    assert error.code == "C404"
    assert f"'{Q}.weight'" in error.message
    assert error.help == "use the model that the adapter was trained on"


def test_an_adapter_of_another_vocabulary_is_refused_with_this_reason(
    base: Checkpoint, tmp_path: Path
) -> None:
    tensors = pair(Q) | {"base_model.model.model.embed_tokens.weight": torch.zeros(70, HIDDEN)}
    assert (
        refused(base, adapter(tmp_path / "a", tensors)).help
        == "the adapter has another vocabulary; use the model that it was trained on"
    )


def test_a_quantised_tensor_takes_no_delta(family: Path, tmp_path: Path) -> None:
    module = "model.layers.1.mlp.down_proj"
    folder = adapter(tmp_path / "a", pair(module, into=24))
    error = refused(open_checkpoint(family / "integers"), folder)
    assert error.code == "C402"
    assert "I8" in error.message


def test_a_delta_on_both_ends_of_a_tied_model_is_refused(family: Path, tmp_path: Path) -> None:
    both = pair(HEAD, out=VOCAB)
    error = refused(open_checkpoint(family / "tied"), adapter(tmp_path / "a", both | embedded()))
    assert error.code == "C402"
    assert "one tensor" in error.message


def test_invalid_adapter_folders_are_refused(
    base: Checkpoint, family: Path, tmp_path: Path
) -> None:
    assert refused(base, tmp_path / "none").code == "C101"
    whole = refused(base, family / "math")
    assert whole.code == "C401"
    assert "whole model" in whole.help
    folder = adapter(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-1])
    assert refused(base, folder).code == "C208"
    weights.unlink()
    assert refused(base, folder).code == "C401"
    (folder / "adapter_model.bin").write_bytes(b"")
    assert refused(base, folder).path.name == "adapter_model.bin"
    weights.write_bytes(raw)
    for text in ("", "[]", "{", '{"peft_type": 3}'):
        (folder / "adapter_config.json").write_text(text)
        assert refused(base, folder).code == "C401"


def test_an_adapter_in_pytorchs_format_gives_the_same_tensors(
    base: Checkpoint, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tensors = {name: torch.randn_like(tensor) for name, tensor in pair(Q).items()}
    new, old = adapter(tmp_path / "new", tensors), adapter(tmp_path / "old")
    (old / "adapter_model.safetensors").unlink()
    torch.save(tensors, old / "adapter_model.bin")
    made = [
        load_tensor(apply_adapter(base, folder)[0].tensors[f"{Q}.weight"]) for folder in (new, old)
    ]
    assert torch.equal(*made)
    assert not torch.equal(made[1], load_tensor(base.tensors[f"{Q}.weight"]))


def test_a_pickle_that_calls_something_isnt_an_adapter(base: Checkpoint, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"key": Path("/")}, folder / "adapter_model.bin")
    assert refused(base, folder).code == "C108"


def test_a_pattern_that_names_nothing_leaves_the_usual_rank(tmp_path: Path) -> None:
    folder = adapter(
        tmp_path / "a",
        rank_pattern={"k_proj": 2, "1.self_attn.q_proj": 16},
        alpha_pattern={"q_proj": 3, "layers.1.self_attn.q_proj": 5},
        use_rslora=True,
    )
    settings = read_settings(folder)
    assert settings.rank_of(Q) == 4
    assert settings.rank_of("model.layers.1.self_attn.q_proj") == 16
    assert settings.rank_of("model.layers.11.self_attn.q_proj") == 4
    assert settings.scale_of("model.layers.1.self_attn.q_proj") == 3 / 4


# ----------------------------------------------------------------------------------------- in plans


def plan(family: Path, **models: Model) -> Plan:
    models = {"base": Model(source=str(family / "base")), **models}
    layers = (Layer(position=1, recipe=Take(take=LayerOf(model="code", layer=1))),)
    return Plan(models=models, layers=layers)


def test_a_plan_opens_adapters_and_the_models_that_they_are_on(
    family: Path, tmp_path: Path
) -> None:
    one = adapter(tmp_path / "one")
    two = adapter(tmp_path / "two", base_model_name_or_path="other")
    opened, faults = open_all_models(
        plan(
            family,
            math=Model(source=str(family / "math")),
            first=Model(on="math", source=str(one)),
            code=Model(on="first", source=str(two)),
        )
    )
    assert opened.keys() == {"base", "code"}
    assert [(f.code, f.severity, f.at) for f in faults] == [
        ("M305", "warning", ("models", "code", "source"))
    ]
    form = opened["code"].checkpoint.tensors[f"{Q}.weight"].form
    assert isinstance(form, Adapted)
    assert [d.a.file.parent.name for d in form.deltas if isinstance(d, LowRank)] == ["one", "two"]
    assert form.base.file.parent.name == "math"


def test_another_base_is_reported_once_of_several_adapters(family: Path, tmp_path: Path) -> None:
    folders = [
        adapter(tmp_path / name, base_model_name_or_path=f"they/{base}")
        for name, base in (("one", "theirs"), ("two", "theirs"), ("three", "others"))
    ]
    models = {folder.name: Model(on="base", source=str(folder)) for folder in folders}
    wanted = {"base": Model(source=str(family / "base")), **models}
    layers = [Take(take=LayerOf(model=name, layer=at)) for at, name in enumerate(models)]
    made = tuple(Layer(position=at, recipe=recipe) for at, recipe in enumerate(layers))
    faults = open_all_models(Plan(models=wanted, layers=made))[1]
    assert len(faults) == 2
    assert all("is a copy of it" in fault.help for fault in faults)
    assert {f.message.rpartition(", ")[2] for f in faults} == {"'they/theirs'", "'they/others'"}


def test_a_bad_adapter_is_a_fault_of_its_model(family: Path, tmp_path: Path) -> None:
    bad = adapter(tmp_path / "bad", r=8)
    opened, faults = open_all_models(plan(family, code=Model(on="base", source=str(bad))))
    assert opened.keys() == {"base"}
    assert [(f.code, f.at) for f in faults] == [("C404", ("models", "code", "source"))]


def test_a_missing_model_is_one_fault(family: Path, tmp_path: Path) -> None:
    lost = plan(
        family,
        gone=Model(source=str(tmp_path / "gone")),
        code=Model(on="gone", source=str(adapter(tmp_path / "a"))),
    )
    opened, faults = open_all_models(lost)
    assert opened.keys() == {"base"}
    assert [(f.code, f.at) for f in faults] == [("C101", ("models", "gone", "source"))]


def test_an_adapter_bound_in_an_adapters_place_is_on_the_same_model(
    family: Path, tmp_path: Path
) -> None:
    first, second = adapter(tmp_path / "first"), adapter(tmp_path / "second")
    given = plan(family, code=Model(on="base", source=str(first)))

    bound, faults = rebind(given, {"code": second})
    assert faults == []
    assert bound.models["code"] == Model(on="base", source=str(second))

    whole, _ = rebind(given, {"code": family / "math"})
    assert whole.models["code"] == Model(source=str(family / "math"))


def test_a_bound_base_gives_no_warning_about_the_adapters_base(
    family: Path, tmp_path: Path
) -> None:
    on_another = adapter(tmp_path / "a", base_model_name_or_path="they/elsewhere")
    given = plan(family, code=Model(on="base", source=str(on_another)))
    assert [fault.code for fault in open_all_models(given)[1]] == ["M305"]

    bound, _ = rebind(given, {"base": family / "math"})
    assert open_all_models(bound, given.models)[1] == []

    other, _ = rebind(given, {"code": on_another})
    assert [fault.code for fault in open_all_models(other, given.models)[1]] == ["M305"]
