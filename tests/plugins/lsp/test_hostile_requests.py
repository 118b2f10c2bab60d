"""Random requests over random texts: each is answered, without a traceback."""

import asyncio
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptailor.plugins.lsp.server import _FEATURES, OneLine, TailorServer, tailor_server

WORDS = (
    "tailor 1\n", 'model base = "./base"\n', "L0..L3 from math\n", "drop L1", "\n", "# c\n", "😀",
    "\u2028", "\r", '"', "(", ")", "{", "}", "search {", 'minimize nll("t")\n', "let a = 0.5\n",
    "others from base, math by linear(0.5)\n", " ", "a", "L99999999999999999999", "\ufeff", "\0",
    "\ud800", "é", "stack {\n L0 base\n}\n", '{"models":', "[]", "by ties(den", '"./', "curve(",
)  # fmt: skip
METHODS = [name for name, _, _ in _FEATURES if "/did" not in name]
NUMBERS = (0, 1, 2, 5, 1000, 2**31 - 1)
ANSWERED = {-32600, -32601, -32602, -32803, -32800}
"""Codes of errors that are a request's, not the server's."""


class Sent:
    """Messages of a server."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        self.messages.append(json.loads(data.partition(b"\r\n\r\n")[2]))

    def close(self) -> None:
        pass


class Asking:
    """A client of a server in this process."""

    def __init__(self, server: TailorServer, draw: random.Random, folder: Path) -> None:
        self.protocol, self.draw, self.sent = server.protocol, draw, Sent()
        self.protocol.set_writer(self.sent)
        self.asked = 0
        (folder / "latin.tailor").write_bytes(b"\xe9")
        known = [(folder / name).as_uri() for name in ("a.tailor", "b.tailor")]
        self.opened = [*known, "untitled:Untitled-1"]
        unknown = ["file:///nowhere/x", "http://x/y", "", "%", folder.as_uri(), "file:///a%00b"]
        self.uris = [*self.opened, (folder / "latin.tailor").as_uri(), "file:///dev/zero", *unknown]

    def send(self, message: object) -> None:
        try:
            structured = json.loads(
                json.dumps(message), object_hook=self.protocol.structure_message
            )
            self.protocol.handle_message(structured)
        except Exception:  # as in pygls' loop
            logging.getLogger("pygls").exception("Unable to handle message")

    def ask(self, method: str, params: object) -> None:
        self.asked += 1
        self.send({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params})

    def note(self, method: str, params: object) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    def text(self) -> str:
        return "".join(self.draw.choice(WORDS) for _ in range(self.draw.randrange(30)))

    def open(self, uri: str) -> None:
        item = {"uri": uri, "languageId": "tailor", "version": 1, "text": self.text()}
        self.note("textDocument/didOpen", {"textDocument": item})

    def change(self, uri: str, version: int) -> None:
        named = {"uri": uri, "version": version}
        changes = [{"text": self.text()}]
        self.note("textDocument/didChange", {"textDocument": named, "contentChanges": changes})

    def at(self) -> dict[str, int]:
        return {"line": self.draw.choice(NUMBERS), "character": self.draw.choice(NUMBERS)}

    def anything(self, number: int) -> None:
        draw, uri = self.draw, self.draw.choice(self.uris)
        document = {"uri": uri}
        kind = draw.random()
        if kind < 0.1:
            self.change(draw.choice(self.opened), number)
        elif kind < 0.15:
            self.note(
                f"textDocument/did{draw.choice(['Save', 'Close'])}", {"textDocument": document}
            )
        elif kind < 0.2:
            self.open(draw.choice(self.opened))
        elif kind < 0.25:
            self.ask(draw.choice(METHODS), draw.choice([None, {}, [], {"textDocument": document}]))
        elif kind < 0.28:
            self.ask(draw.choice(["foo/bar", "$/x"]), {})
        elif kind < 0.3:
            self.note("$/cancelRequest", {"id": self.asked})
        elif kind < 0.33:
            self.send(
                draw.choice([{"jsonrpc": "2.0"}, {"id": 1}, [], 5, {"jsonrpc": "1", "id": 3}])
            )
        else:
            asked = {
                "textDocument": document,
                "position": self.at(),
                "newName": draw.choice("x🎉 "),
            }
            asked |= {"range": {"start": self.at(), "end": self.at()}}
            asked |= {"context": {"includeDeclaration": True, "diagnostics": []}}
            self.ask(draw.choice(METHODS), asked)


async def answers(asking: Asking, encoding: str) -> list[dict[str, Any]]:
    client = {"general": {"positionEncodings": [encoding]}}
    asking.ask("initialize", {"processId": None, "rootUri": None, "capabilities": client})
    asking.note("initialized", {})
    for uri in asking.opened:
        asking.open(uri)
    for number in range(200):
        asking.anything(number)
        if number % 20 == 0:
            await asyncio.sleep(0)
    for uri in asking.opened:
        asking.change(uri, 1000)
    asking.ask("shutdown", None)
    await asyncio.sleep(0.05)
    return [message for message in asking.sent.messages if "id" in message]


class Records(logging.Handler):
    """Keep all records."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.kept.append(record)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """The records that are logged during a test."""
    handler = Records()
    logging.getLogger().addHandler(handler)
    yield handler.kept
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize(("seed", "encoding"), [(1, "utf-8"), (2, "utf-16"), (3, "utf-32")])
def test_each_request_is_answered_and_no_traceback_shown(
    seed: int, encoding: str, tmp_path: Path, logged: list[logging.LogRecord]
) -> None:
    server = tailor_server()
    asking = Asking(server, random.Random(seed), tmp_path)
    answered = asyncio.run(answers(asking, encoding))
    errors = {m["id"]: m["error"] for m in answered if "error" in m}
    assert {error["code"] for error in errors.values()} <= ANSWERED, errors
    assert {message["id"] for message in answered} >= set(range(1, asking.asked + 1))
    shown = [OneLine().format(record) for record in logged]
    assert shown
    assert not [line for line in shown if "Traceback" in line or "\n" in line]


def test_an_error_is_shown_on_one_line_with_its_place() -> None:
    with pytest.raises(KeyError) as raised:
        {}["x\ny"]
    kind = (KeyError, raised.value, raised.tb)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "no answer\nTraceback\n  …", (), kind)
    line = OneLine().format(record)
    assert line.startswith("ERROR: no answer")
    assert __file__ in line
    assert "\n" not in line
