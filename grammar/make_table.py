"""Writes the grammar's table, which the package reads at start: `python grammar/make_table.py`."""

import json
from pathlib import Path

from lark.grammar import Rule
from lark.lexer import TerminalDef

from gptailor.lang import parse

TABLE = Path(parse.__file__).with_name("tailor.json")

if __name__ == "__main__":
    if not TABLE.samefile(Path(__file__).parents[1] / "gptailor" / "lang" / TABLE.name):
        raise SystemExit(f"this would write '{TABLE}', of another copy: set PYTHONPATH=.")
    made = parse.parser_from_grammar(*parse.STARTS)
    data, memo = made.memo_serialize([TerminalDef, Rule])
    for name in ("transformer", "postlex", "lexer_callbacks", "edit_terminals", "_plugins"):
        del data["options"][name]
    table = {"made_of": parse.table_key(), "data": data, "memo": memo}
    TABLE.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")
