"""An interrupt ends a command, also where a library made another exception of it."""

import click
import pytest
from pydantic_core import SchemaError

from gptailor.cli import main
from gptailor.searching.run import origin, records


def test_an_interrupt_while_pydantic_builds_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command("check")
    def building() -> None:
        raise SchemaError("Error building `model` serializer:\n  KeyboardInterrupt: ")

    monkeypatch.setattr(main.cli, "get_command", lambda *_: building)
    assert main.run(["check"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize("model", [origin.BestWindow, records.ResultNote])
def test_data_that_a_search_makes_is_built_on_import(model: type) -> None:
    assert model.__pydantic_complete__  # type: ignore[attr-defined]
    assert "Mock" not in type(model.__pydantic_validator__).__name__  # type: ignore[attr-defined]
