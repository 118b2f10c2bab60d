"""Writes the grammar's table, which the package reads at start: `python grammar/make_table.py`."""

import json
from pathlib import Path
from typing import Any

from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

from gptailor.lang import parse

TABLE = Path(parse.__file__).with_name("tailor.json")
UNSERIALIZED = ("transformer", "postlex", "lexer_callbacks", "edit_terminals", "_plugins")
SHIFT = 0
"""The number of lark's action that goes to another state."""


def table_of(parser: Lark) -> str:
    """Return the table of a parser of the grammar as JSON; each run returns the same."""
    data, memo = parser.memo_serialize([TerminalDef, Rule])
    options = data["options"].items()  # the parser's own
    data["options"] = {name: value for name, value in options if name not in UNSERIALIZED}
    data["parser"]["parser"] = renumbered(**data["parser"]["parser"])
    table = {"made_of": parse.table_key(), "data": data, "memo": memo}
    return json.dumps(table, separators=(",", ":")) + "\n"


def renumbered(
    tokens: dict[int, str],
    states: dict[int, dict[int, tuple[int, Any]]],
    start_states: dict[str, int],
    end_states: dict[str, int],
) -> dict[str, Any]:
    """Return tokens numbered by name, and states as they are reached from the starts.

    lark numbers both in the order of sets, which differs from run to run.
    """
    rows = {
        state: sorted((tokens[token], *action) for token, action in row.items())
        for state, row in states.items()
    }
    order = list(start_states.values())
    for state in order:  # it grows
        shifts = (to for _, action, to in rows[state] if action == SHIFT)
        order += dict.fromkeys(to for to in shifts if to not in order)
    new = {state: number for number, state in enumerate(order)}
    names = sorted(tokens.values())
    token = {name: number for number, name in enumerate(names)}
    return {
        "tokens": dict(enumerate(names)),
        "states": {
            new[state]: {
                token[name]: (action, new[to] if action == SHIFT else to)
                for name, action, to in rows[state]
            }
            for state in order
        },
        "start_states": {start: new[state] for start, state in start_states.items()},
        "end_states": {start: new[end_states[start]] for start in start_states},
    }


if __name__ == "__main__":
    if not TABLE.samefile(Path(__file__).parents[1] / "gptailor" / "lang" / TABLE.name):
        raise SystemExit(f"this would write '{TABLE}', of another copy: set PYTHONPATH=.")
    TABLE.write_text(table_of(parse.parser_from_grammar(*parse.STARTS)), encoding="utf-8")
