"""Every plan in the documentation is read; those that are to be refused, are.

A block marked `tailor`, or `tailor FILE`, has no faults by itself, one marked `tailor refuse` has
some. A block that doesn't start with `tailor` stands below `tailor 1` and the models `base`,
`math`, `code` and `chat`, but for those that it declares. So do the statements in tables of
statements, each by itself; statements with `…` in them aren't whole.
"""

import doctest
import re
import runpy
from pathlib import Path

import click
import pytest
import torch
import transformers

import gptailor
from gptailor.checkpoint.families import FAMILY_OF
from gptailor.checkpoint.families.vision import WRAPPERS
from gptailor.cli.main import COMMANDS, cli
from gptailor.lang.parse import read_text
from gptailor.plan.fault_pages import FAULTS_FILE
from gptailor.plan.faults import Fault, Source, errors, listed, to_text
from gptailor.plan.registry import METHODS, OBJECTIVES
from tests.support.pages import Block, blocks, needs_missing_plugin, pages
from tests.support.preloaded import Preloaded

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/language.md")
MODELS = ("base", "math", "code", "chat")
LANGUAGE = (ROOT / "docs/language.md").read_text(encoding="utf-8")
FORMULAS = (ROOT / "docs/merge_methods.md").read_text(encoding="utf-8")
CELLS = {"statement": "{}", "line": "search {{ {} }}"}
"""Tables by the heading of their first column, and how what stands there is made a statement."""


def examples() -> list[Block]:
    """Each block of Tailor but those that other tests run: recipes and faults."""
    run = ("docs/cookbook.md", "gptailor/plan/faults.md")
    return [
        b
        for page in pages()
        if page not in run
        for b in blocks(page)
        if b.language == "tailor" and not needs_missing_plugin(b.text)
    ]


def statements() -> list[tuple[str, str]]:
    """Place and text of each statement in a table of statements."""
    results = []
    for page in PAGES:
        form = None
        for number, line in enumerate((ROOT / page).read_text("utf-8").splitlines(), 1):
            first = line.split("|")[1].strip() if line.startswith("|") else None
            form = CELLS.get(first, form) if first is not None else None
            for text in re.findall(r"`([^`]+)`", first or "") if form else ():
                if "…" not in text and not needs_missing_plugin(text):
                    results.append((f"{page}:{number}", form.format(text)))
    return results


def faults_of(text: str) -> list[Fault]:
    if not text.startswith("tailor"):
        missing = [
            name for name in MODELS if not re.search(rf"^model {name} =", text, re.MULTILINE)
        ]
        text = "tailor 1\n" + "".join(f'model {n} = "./{n}"\n' for n in missing) + text
    return errors(read_text(Source("example.tailor", text), ROOT)[1])


@pytest.mark.parametrize("block", examples(), ids=lambda block: block.place)
def test_an_example_is_valid_or_refused_as_marked(block: Block) -> None:
    faults = faults_of(block.text)
    assert re.fullmatch(r"(\S+\.tailor)?", block.marks) or block.marks == "refuse"
    assert bool(faults) == (block.marks == "refuse"), "\n".join(to_text(fault) for fault in faults)


@pytest.mark.parametrize(("place", "text"), statements(), ids=[s[0] for s in statements()])
def test_a_statement_in_a_table_reads(place: str, text: str) -> None:
    faults = faults_of(text)
    assert not faults, place + "\n".join(to_text(fault) for fault in faults)


def test_the_pages_have_examples_and_statements() -> None:
    assert len(examples()) >= 25
    assert len(statements()) >= 25


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_a_method_is_documented_as_the_registry_has_it(method) -> None:
    row = re.search(rf"^\| `{method.name}` \|(.*)\|(.*)\|(.*)\|$", FORMULAS, re.MULTILINE)
    assert row, f"no row for '{method.name}'"
    parameters, sources, needs = (cell.strip() for cell in row.groups())
    assert re.findall(r"`(\w+)`(?= in|:| whole| \()", parameters) == [
        parameter.name for parameter in method.parameters
    ]
    for parameter in method.parameters:
        if parameter.words:
            named = listed(parameter.words, "or")
            assert f"`{parameter.name}`: {named} ({parameter.default})" in parameters
        elif parameter.default is not None:
            assert f"({parameter.default!r})" in parameters
        if "∞" not in parameter.bounds and not parameter.words and not parameter.integer:
            assert f"`{parameter.name}` in {parameter.bounds}" in parameters
    most = "" if method.most == method.least else " or more"
    assert sources == f"{method.least}{most}"
    assert (needs == "yes") == method.needs_base
    assert f"\n## {method.name}\n" in FORMULAS


def test_every_objective_is_documented() -> None:
    wished = r"^\| `(?:(?:minimize|maximize) (\w+)\(.*\)|(\w+)\(\))`"  # a size has no arguments
    named = {a or b for a, b in re.findall(wished, LANGUAGE, re.MULTILINE)} - METHODS.keys()
    assert named == set(OBJECTIVES.names())


def test_the_codes_that_the_page_names_are_explained() -> None:
    faults = FAULTS_FILE.read_text(encoding="utf-8")
    for code in re.findall(r"\b[SPMC]\d{3}\b", LANGUAGE):
        assert f"### {code} " in faults or f"\n| {code} | " in faults


def test_the_page_of_commands_is_current() -> None:
    page = ROOT / "docs" / "commands.md"
    text = page.read_text("utf-8")
    pasted = runpy.run_path(str(page.with_suffix(".py")))["pasted"]
    assert text == pasted(text), "python docs/commands.py writes it"
    named = set(re.findall(r"^### `gptailor ([\w-]+)", text, re.MULTILINE))
    assert named == set(cli.list_commands(click.Context(cli)))


def test_the_page_of_models_names_every_type_and_is_current(preloaded: Preloaded) -> None:
    page = ROOT / "docs" / "models.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in (*FAMILY_OF, *WRAPPERS) if f"`{name}`" not in text] == []
    version = ".".join(transformers.__version__.split(".")[:2])
    if f"types of transformers {version} " not in text:
        pytest.skip(f"the page's list is of another release than {version}")
    code, _, errors = preloaded.run(page.with_suffix(".py"), "--check")
    assert code == 0, f"python docs/models.py pastes it\n{errors}"


def test_the_list_of_commands_has_their_first_sentences() -> None:
    context = cli.make_context("gptailor", [], resilient_parsing=True, terminal_width=100)
    text = cli.get_help(context) + "\n"
    for name in cli.list_commands(context):
        if COMMANDS.problem(name):
            continue  # the plugin's folder was removed
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        line = re.escape(command.get_short_help_str(100))
        assert re.search(rf"^  {name}  +{line}$", text, re.MULTILINE), name


def test_the_page_of_the_api_is_current_and_has_every_name() -> None:
    page = ROOT / "docs/api.md"
    text = page.read_text("utf-8")
    script = runpy.run_path(str(page.with_suffix(".py")))
    assert text == script["pasted"](text), "python docs/api.py writes it"
    shown = dict(
        re.findall(r"^<!-- ([a-z ]+) -->\n\n```python\n((?s:.*?))^```", text, re.MULTILINE)
    )
    groups = {group: (place, names.split()) for group, (place, names) in script["GROUPS"].items()}
    assert shown.keys() == groups.keys()
    for group, (_, names) in groups.items():
        for name in names:
            line = rf"^(def {name}\(|class {name}\b|{name} = )"
            assert re.search(line, shown[group], re.MULTILINE), name
    named = [f"{place}.{name}" for place, names in groups.values() for name in names]
    verbs = {f"gptailor.{name}" for name in gptailor.__all__ if name != "__version__"}
    assert verbs <= set(named)
    assert len(named) == len(set(named))
    assert max(map(len, re.findall(r"^    on_event: .*$", text, re.MULTILINE))) < 60


@pytest.mark.parametrize("page", [p for p in pages() if ">>> " in (ROOT / p).read_text("utf-8")])
def test_python_examples_of_a_page_are_correct(page: str) -> None:
    text = "".join(block.text for block in blocks(page) if block.language == "python")
    examples = doctest.DocTestParser().get_doctest(text, {}, page, None, 0)
    assert examples.examples
    messages: list[str] = []
    with torch.random.fork_rng(devices=[]):
        result = doctest.DocTestRunner(verbose=False).run(examples, out=messages.append)
    assert not result.failed, "".join(messages)
