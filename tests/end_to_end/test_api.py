"""The Python verbs: plans from text, from JSON and from Python go through the same checks."""

import os
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest

import gptailor
from gptailor.checks.rule import Rule
from gptailor.cli.main import _COMMANDS, COMMANDS
from gptailor.plan.plan import Drop, Layer, LayerOf, Merge, MethodCall, Model, Plan, Scale, Take
from tests.support.preloaded import Preloaded

TEXT = """\
tailor 1
model base = "./base"
model math = "./math"
L0..L1 from math
merge(L2 base, L2 math, 0.25)
L3 = merge(L4 base, L5 math) by slerp(0.3)
drop L4
scale L5 by 0.9
"""


def take(model: str, layer: int) -> Take:
    return Take(take=LayerOf(model=model, layer=layer))


def merge(*sources: tuple[str, int], **how: object) -> Merge:
    return Merge(merge=tuple(LayerOf(model=m, layer=n) for m, n in sources), **how)


IN_PYTHON = Plan(
    models={"base": Model(source="./base"), "math": Model(source="./math")},
    layers=(
        Layer(
            position=3,
            recipe=merge(
                ("base", 4), ("math", 5), by=MethodCall(name="slerp", arguments={"t": 0.3})
            ),
        ),
        Layer(position=2, recipe=merge(("base", 2), ("math", 2), share=0.25)),
        Layer(position=0, recipe=take("math", 0)),
        Layer(position=1, recipe=take("math", 1)),
    ),
    drops=(Drop(position=4),),
    scales=(Scale(position=5, factor=0.9),),
)


def codes(error: pytest.ExceptionInfo[gptailor.PlanError]) -> list[str]:
    return [fault.code for fault in error.value.faults]


def test_text_json_and_python_make_one_plan(family: Path) -> None:
    (family / "api.tailor").write_text(TEXT)
    (family / "api.json").write_text(IN_PYTHON.model_dump_json(exclude_defaults=True))
    try:
        plans = [gptailor.load(family / "api.tailor"), gptailor.load(str(family / "api.json"))]
    finally:
        (family / "api.tailor").unlink()
        (family / "api.json").unlink()
    assert plans == [IN_PYTHON, IN_PYTHON]
    assert gptailor.loads(TEXT) == IN_PYTHON == gptailor.loads(IN_PYTHON.model_dump_json())
    assert gptailor.loads(gptailor.format(IN_PYTHON)) == IN_PYTHON
    assert gptailor.format(gptailor.format(TEXT)) == gptailor.format(TEXT)
    assert [gptailor.check(plan) for plan in plans] == [[], []]


def test_each_function_of_a_plan_takes_the_path_of_its_file(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.tailor").write_text(TEXT.replace('"./', f'"{family}/'))
    for path in (tmp_path / "p.tailor", str(tmp_path / "p.tailor")):
        plan = gptailor.load(path)
        assert gptailor.check(path) == []
        assert gptailor.format(path) == gptailor.format(plan)
        assert gptailor.lock(path).tensors == gptailor.lock(plan).tensors
        gptailor.stitch(path)
        assert gptailor.compile(path, tmp_path / "out", dry_run=True).layers == 5
        with pytest.raises(gptailor.TailorError, match="has no open choices"):
            gptailor.search(path, tmp_path / "run")
    (tmp_path / "m.tailor").write_text(f'tailor 1\nmodel base = "{family}/base"\ndrop L1\n')
    yaml = gptailor.export_mergekit(tmp_path / "m.tailor", layers=6)
    assert yaml == gptailor.export_mergekit(gptailor.load(tmp_path / "m.tailor"), layers=6)


def test_a_file_is_formatted_with_its_comments(tmp_path: Path) -> None:
    (tmp_path / "p.tailor").write_text("# mine\n" + TEXT)
    assert gptailor.format(tmp_path / "p.tailor") == gptailor.format("# mine\n" + TEXT)
    assert gptailor.format(tmp_path / "p.tailor").startswith("# mine")


def has_home(name: str) -> bool:
    """Return whether a name of the package is available: its plugin may be removed."""
    kind, *rest = gptailor._HOMES.get(name, "").split(".")
    return kind != "plugins" or (Path(gptailor.__file__).parent / kind / rest[0]).exists()


def test_each_command_in_the_table_is_in_python() -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    table = page.partition("| command | in Python |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([\w.-]+)`", half) for line in table.splitlines()[2:]
            for half in line.strip("|").split("|")]  # fmt: skip
    commands, functions = rows[::2], rows[1::2]
    named = {name for row in commands for name in row}
    only = {"completion", "explain", "family", "lsp"}
    assert named | only == {*_COMMANDS, *COMMANDS.installed()}
    for names, targets in zip(commands, functions, strict=True):
        for target in filter(has_home, targets or names):
            assert callable(attrgetter(target)(gptailor))


def test_relative_paths_start_at_the_file(family: Path, tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    path = tmp_path / "plans" / "p.tailor"
    near = os.path.relpath(family / "base", path.parent)
    path.write_text(f'tailor 1\nmodel base = "./{near}"\ndrop L0\n')
    assert gptailor.check(gptailor.load(path)) == []
    assert gptailor.check(gptailor.loads(path.read_text(), folder=path.parent)) == []
    assert [f.code for f in gptailor.check(gptailor.loads(path.read_text()))] != []


def test_a_plan_in_python_is_relative_to_the_current_folder(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(family)
    assert gptailor.check(IN_PYTHON) == []


BROKEN = {
    "P207": {"layers": [{"position": 0, "recipe": {"take": {"model": "base", "layer": 1}}}] * 2},
    "P106": {"layers": [{"position": 0, "recipe": {"take": {"model": "mth", "layer": 1}}}]},
    "P405": {"scales": [{"position": 0, "factor": -1.0}]},
    "P209": {"scales": [{"position": 0, "factor": 0.5}, {"position": 0, "factor": 2.0}]},
    "P403": {"dtype": "float8"},
}


@pytest.mark.parametrize("code", BROKEN)
def test_faults_are_the_same_from_everywhere(family: Path, tmp_path: Path, code: str) -> None:
    models = {name: {"source": str(family / name)} for name in ("base", "math")}
    plan = Plan.model_validate({"models": models, **BROKEN[code]})
    (result,) = (f for f in gptailor.check(plan) if f.severity == "error")
    assert result.code == code
    for text in (plan.model_dump_json(), gptailor.format(plan)):
        with pytest.raises(gptailor.PlanError) as error:
            gptailor.loads(text)
        assert code in codes(error)
        assert result.message in str(error.value)
    with pytest.raises(gptailor.PlanError) as error:
        gptailor.compile(plan, tmp_path / "out")
    assert code in codes(error)
    assert list(tmp_path.iterdir()) == []


def test_an_error_carries_all_faults() -> None:
    with pytest.raises(gptailor.PlanError) as error:
        gptailor.loads(TEXT + "drop L4\nscale L0 by -1\nL5 from mth\nmerge(L0 base, L0 math, =)\n")
    assert sorted(codes(error)) == ["P106", "P210", "P405", "S101"]
    assert all(f"error[{code}]" in str(error.value) for code in codes(error))
    assert isinstance(error.value, gptailor.TailorError)


def test_faults_against_the_models_stop_a_compilation(family: Path, tmp_path: Path) -> None:
    plan = gptailor.loads(TEXT + "drop L6\n", folder=family)
    (fault,) = gptailor.check(plan)
    assert fault.code == "M201"
    with pytest.raises(gptailor.PlanError, match="L6 is beyond the base, which has 6 layers"):
        gptailor.compile(plan, tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_choices_are_counted(family: Path, tmp_path: Path) -> None:
    text = TEXT.replace("0.25", "0.0..1.0").replace("drop L4", "maybe drop L4")
    plan = gptailor.loads(text, folder=family)
    assert gptailor.check(plan) == []
    with pytest.raises(gptailor.PlanError, match="got 2 open choices") as error:
        gptailor.compile(plan, tmp_path / "out")
    assert codes(error) == ["P801"]
    assert "search" in error.value.faults[0].help


def test_names_are_bound_to_other_folders(family: Path, tmp_path: Path) -> None:
    plan = gptailor.loads(TEXT)
    folders = {"base": family / "base", "math": str(family / "math")}
    assert gptailor.check(plan, models=folders) == []
    a = gptailor.compile(plan, tmp_path / "a", models=folders)
    b = gptailor.compile(gptailor.loads(TEXT, folder=family), tmp_path / "b")
    assert (a.layers, a.parameters, a.size) == (b.layers, b.parameters, b.size)
    weights = "model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    swapped = {"base": family / "base", "math": family / "code"}
    gptailor.compile(plan, tmp_path / "c", models=swapped)
    assert (tmp_path / "c" / weights).read_bytes() != (tmp_path / "b" / weights).read_bytes()
    with pytest.raises(gptailor.PlanError, match="the plan has no model 'mat'") as error:
        gptailor.compile(plan, tmp_path / "d", models={"mat": family / "code"})
    assert codes(error)[0] == "M105", "what lies here by the other names comes after it"
    assert not (tmp_path / "d").exists()


def test_the_result_of_compile_describes_the_written_folder(family: Path, tmp_path: Path) -> None:
    written = gptailor.compile(gptailor.loads(TEXT, folder=family), tmp_path / "out")
    assert written.folder == tmp_path / "out"
    assert written.layers == 5
    assert written.shards == ("model.safetensors",)
    assert 0 < (tmp_path / "out" / written.shards[0]).stat().st_size - written.size < 20_000
    again = gptailor.load(tmp_path / "out" / "plan.tailor")
    assert again.dtype == "float32"
    assert again.layers == IN_PYTHON.layers
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merge(L2 base, L2 math, 0.25)" in card
    assert str(family) not in card.split("## Models")[0]


def test_an_existing_target_is_kept(family: Path, tmp_path: Path) -> None:
    plan = gptailor.loads(TEXT, folder=family)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("dear")
    with pytest.raises(gptailor.TailorError, match="exists already"):
        gptailor.compile(plan, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(
        gptailor.TailorError, match="expected a model to replace, got a folder without a model"
    ):
        gptailor.compile(plan, tmp_path / "out", force=True)
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(gptailor.TailorError, match="got a folder that also contains mine"):
        gptailor.compile(plan, tmp_path / "out", force=True)
    (tmp_path / "out" / "mine").rename(tmp_path / "mine")
    gptailor.compile(plan, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "plan.tailor").exists()


def test_a_raising_event_receiver_leaves_no_files(family: Path, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gptailor.compile(gptailor.loads(TEXT, folder=family), tmp_path / "a" / "o", on_event=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [
        {"layer": []},
        {"drops": [{"position": -1}]},
        {"drops": [{"position": "1"}]},
        {"scales": [{"position": 1, "factor": float("nan")}]},
        {"layers": [{"position": 1, "part": "head", "recipe": {}}]},
    ],
)
def test_unknown_data_isnt_a_plan(body: dict[str, object]) -> None:
    with pytest.raises(gptailor.PlanError) as error:
        Plan.model_validate(body)
    assert codes(error)[0] == "S107"


def test_json_of_the_wrong_shape_is_a_fault() -> None:
    with pytest.raises(gptailor.PlanError) as error:
        gptailor.loads('{"drops": [{"position": -1}], "layer": []}')
    assert codes(error) == ["S107", "S107"]
    with pytest.raises(gptailor.PlanError) as error:
        gptailor.loads("{")
    assert codes(error) == ["S107"]


def test_fields_that_arent_plans_are_faults() -> None:
    with pytest.raises(gptailor.PlanError, match=r"unknown field\n --> layer") as error:
        gptailor.Plan(layer=[], models={"base": "./base"})
    assert [(fault.code, fault.at) for fault in error.value.faults] == [
        ("S107", ("models", "base")),
        ("S107", ("layer",)),
    ]
    with pytest.raises(TypeError, match=r"expects fields by name.*gptailor\.load reads"):
        gptailor.Plan("cut.tailor")


def test_a_plan_is_frozen() -> None:
    with pytest.raises(AttributeError, match=r"a plan is frozen; .*\*\*dict\(plan\), 'dtype': …"):
        IN_PYTHON.dtype = "float16"
    assert Plan(**{**dict(IN_PYTHON), "dtype": "float16"}).dtype == "float16"


@pytest.mark.parametrize(
    ("update", "at"),
    [
        ({"dropz": 5}, ("dropz",)),
        ({"drops": (99,)}, ("drops", 0)),
        ({"drops": 99}, ("drops",)),
        ({"models": {"base": "./base"}}, ("models", "base")),
    ],
)
def test_a_copy_has_the_fields_of_a_plan(update: dict[str, object], at: tuple[object, ...]) -> None:
    with pytest.raises(gptailor.PlanError) as error:
        IN_PYTHON.model_copy(update=update)
    assert [(fault.code, fault.at) for fault in error.value.faults] == [("S107", at)]


def test_the_entries_of_a_copy_are_sorted_if_they_are_a_list() -> None:
    copy = IN_PYTHON.model_copy(update={"drops": [Drop(position=4), {"position": 1}]})
    assert copy.drops == (Drop(position=1), Drop(position=4))


@pytest.mark.parametrize("text", [TEXT, TEXT * 40, "tailor 1; drop L3", '{"drops": []}'])
def test_a_text_in_the_place_of_a_file_is_reported(text: str) -> None:
    read = (gptailor.load, gptailor.check, lambda plan: gptailor.generate(plan, "the cat"))
    for verb in read:
        with pytest.raises(FileNotFoundError, match="got a plan's text") as error:
            verb(text)
        assert "use gptailor.loads" in str(error.value)
        assert "model" not in str(error.value)


def test_a_file_in_the_place_of_a_text_is_reported() -> None:
    for file in ("small.tailor", "my plans/small.json"):
        with pytest.raises(gptailor.PlanError, match=r"got a file's name[\s\S]*gptailor\.load$"):
            gptailor.loads(file)


def test_an_objective_in_the_place_of_a_target_is_reported() -> None:
    with pytest.raises(gptailor.TailorError, match="it is an objective, and targets come first"):
        gptailor.evaluate('nll("x.jsonl")', "tiny/base")


@pytest.mark.parametrize(
    "name",
    [
        "CalibrationError", "CheckpointError", "ConversionError", "ConversionWarning",
        "MissingPackageError", "SearchError", "WishError",
    ],
)  # fmt: skip
def test_errors_are_names_of_the_package(name: str) -> None:
    assert issubclass(getattr(gptailor, name), gptailor.TailorError | Warning)


def test_format_reports_a_syntax_fault() -> None:
    with pytest.raises(gptailor.PlanError) as error:
        gptailor.format("tailor 1\nL0 frm base\n")
    assert error.value.faults[0].code.startswith("S")


def test_a_missing_file_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "cut.tailor").write_text("tailor 1\n")
    for kind in (FileNotFoundError, gptailor.TailorError):
        with pytest.raises(kind, match=r"cuts.tailor' is missing[\s\S]*did you mean .*cut.tailor'"):
            gptailor.load(tmp_path / "cuts.tailor")
    plan = gptailor.loads('tailor 1\nmodel base = "./none"\n', folder=tmp_path)
    assert [fault.code for fault in gptailor.check(plan)] != []


def test_the_package_names_its_verbs() -> None:
    assert all(hasattr(gptailor, name) for name in filter(has_home, gptailor.__all__))
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        gptailor.frobnicate  # noqa: B018
    for former in gptailor._FORMER:
        with pytest.raises(AttributeError, match=f"no attribute '{former}': it is named") as caught:
            getattr(gptailor, former)
        assert str(caught.value).rpartition(" ")[2] in gptailor.__all__


def test_a_verb_of_a_plugin_that_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gptailor._HOMES, "verify", "plugins.gone.verify")
    monkeypatch.delitem(vars(gptailor), "verify", raising=False)  # it was used before
    with pytest.raises(AttributeError, match=r"gptailor\.verify needs the plugin 'gone'"):
        gptailor.verify  # noqa: B018


@pytest.mark.slow
def test_no_module_replaces_a_function_of_the_package(preloaded: Preloaded) -> None:
    """One module needs lm-eval, and one file is C that ctypes loads."""
    script = (
        "import importlib, pkgutil, gptailor\n"
        "for module in pkgutil.walk_packages(gptailor.__path__, 'gptailor.'):\n"
        "    if not module.name.endswith(('.lm_eval.model', '.libnative')):\n"
        "        importlib.import_module(module.name)\n"
        "for verb in ('load', 'loads', 'check', 'compile', 'format', 'lock', 'verify', 'search'):\n"
        "    assert callable(getattr(gptailor, verb)), verb\n"
    )
    child = preloaded.start(script, cwd=Path("/"))
    assert child.communicate()[1] == ""
    assert child.returncode == 0


def test_the_stub_lists_each_public_name() -> None:
    stub = Path(gptailor.__file__).with_suffix(".pyi").read_text()
    names = {line.split()[-1] for line in stub.splitlines() if line.startswith("from ")}
    assert names | {"__version__"} == set(gptailor.__all__) == set(dir(gptailor))
    assert "\n__version__: str" in stub


def test_the_rules_of_a_plan_run_once(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Plan] = []

    def check(plan: Plan) -> Iterator[gptailor.Fault]:
        seen.append(plan)
        yield from ()

    monkeypatch.setattr("gptailor.checks.plan.PLAN_RULES", (Rule((), check),))
    plan = gptailor.loads(TEXT, folder=family)
    assert gptailor.check(plan) == []
    gptailor.compile(plan, tmp_path / "out")
    assert len(seen) == 1
    gptailor.compile(plan, tmp_path / "half", dtype="float16")
    assert [item.dtype for item in seen] == [None, "float16"], "another plan"
