"""A real client and `gptailor lsp` over standard input and output: one process for all of it."""

import asyncio
import json
import sys
import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException, JsonRpcMethodNotFound
from pygls.lsp.client import LanguageClient

from tests.support.hollow import SMALL, llama, write_hollow

HEAD = """tailor 1
model base = "./base"
model math = "./math"  # 😀 the better one
"""
PATIENCE = 30


class Editor:
    """A client that waits for answers to its requests, and records notifications."""

    def __init__(self, folder):
        self.folder = folder
        self.told = {}
        self.count = 0
        self.loop = asyncio.new_event_loop()
        self.news = threading.Condition()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.client = LanguageClient("tests", "1")
        told = types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS
        self.client.feature(told)(partial(Editor._note, self))
        self.client.feature(types.WINDOW_SHOW_MESSAGE)(lambda _: None)
        self.wait(self.client.start_io(sys.executable, "-m", "gptailor", "lsp"))
        snippets = types.ClientCompletionItemOptions(snippet_support=True)
        text_document = types.TextDocumentClientCapabilities(
            completion=types.CompletionClientCapabilities(completion_item=snippets),
            rename=types.RenameClientCapabilities(prepare_support=True),
        )
        asked = types.InitializeParams(
            capabilities=types.ClientCapabilities(text_document=text_document),
            root_uri=folder.as_uri(),
        )
        self.capabilities = self.wait(self.client.initialize_async(asked)).capabilities
        self.do(self.client.initialized, types.InitializedParams())

    def wait(self, asked):
        return asyncio.run_coroutine_threadsafe(asked, self.loop).result(PATIENCE)

    def do(self, notify, params):
        async def noted():
            notify(params)

        self.wait(noted())

    def ask(self, name, params):
        async def answered():
            return await self.client.protocol.send_request_async(name, params)

        return self.wait(answered())

    def _note(self, params):
        with self.news:
            self.told[params.uri] = params
            self.news.notify_all()

    def open(self, text):
        """The name of a new text."""
        self.count += 1
        uri = (self.folder / f"plan{self.count}.tailor").as_uri()
        item = types.TextDocumentItem(uri, "tailor", 1, text)
        self.do(self.client.text_document_did_open, types.DidOpenTextDocumentParams(item))
        return uri

    def change(self, uri, version, text):
        named = types.VersionedTextDocumentIdentifier(version, uri)
        whole = [types.TextDocumentContentChangeWholeDocument(text)]
        params = types.DidChangeTextDocumentParams(named, whole)
        self.do(self.client.text_document_did_change, params)

    def faults(self, uri, until=lambda result: True, version=None):
        """Return the faults that the editor received for a text, once `until` holds."""

        def there():
            published = self.told.get(uri)
            if not published or version not in (None, published.version):
                return False
            return until([item.code for item in published.diagnostics])

        with self.news:
            assert self.news.wait_for(there, PATIENCE), self.told.get(uri)
            return list(self.told[uri].diagnostics)

    def at(self, uri, line, column):
        return {
            "text_document": types.TextDocumentIdentifier(uri),
            "position": types.Position(line, column),
        }


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edited")
    for name in ("base", "math"):
        write_hollow(folder / name, *llama(**SMALL))
    editor = Editor(folder)
    yield editor
    process = editor.client._server
    editor.wait(editor.client.shutdown_async(None))
    editor.do(editor.client.exit, None)
    editor.wait(editor.client.stop())
    editor.loop.call_soon_threadsafe(editor.loop.stop)
    assert process.returncode == 0


def changed(uri, text, edits):
    """A text after the edits of a client, which counts in UTF-16."""
    lines = text.split("\n")

    def offset(at):
        units = lines[at.line].encode("utf-16-le")[: 2 * at.character]
        return sum(len(line) + 1 for line in lines[: at.line]) + len(units.decode("utf-16-le"))

    for edit in sorted(edits, key=lambda e: (e.range.start.line, e.range.start.character))[::-1]:
        start, end = offset(edit.range.start), offset(edit.range.end)
        text = text[:start] + edit.new_text + text[end:]
    return text


def test_the_server_lists_its_capabilities(editor):
    can = editor.capabilities
    assert can.position_encoding == "utf-16"
    assert can.rename_provider.prepare_provider
    assert can.completion_provider
    assert can.hover_provider
    assert can.document_formatting_provider
    assert can.semantic_tokens_provider


def test_faults_come_as_one_types_and_go_again(editor):
    uri = editor.open(f"{HEAD}L1 frm math\ndrop L2\nL2 from math\n")
    first, second = editor.faults(uri)
    assert (first.code, second.code) == ("S101", "P208")
    assert first.range == types.Range(types.Position(3, 3), types.Position(3, 6))
    assert "faults.md#L" in first.code_description.href
    assert second.related_information[0].location.range.start == types.Position(4, 5)
    editor.change(uri, 2, f"{HEAD}L1 from math\ndrop L2\n")
    assert editor.faults(uri, version=2) == []


def test_faults_against_the_models_come_after_the_others(editor):
    uri = editor.open(f"{HEAD}L9 from math\nlet mix = 0.5\n")
    result = editor.faults(uri, until=lambda codes: len(codes) > 1)
    assert {item.code[0] for item in result} == {"P", "M"}
    assert {item.severity for item in result} == {
        types.DiagnosticSeverity.Error,
        types.DiagnosticSeverity.Warning,
    }


def test_an_unsaved_text_wins_over_the_file(editor):
    path = editor.folder / "saved.tailor"
    path.write_text("no plan at all\n")
    item = types.TextDocumentItem(path.as_uri(), "tailor", 1, f"{HEAD}L1 from math\n")
    editor.do(editor.client.text_document_did_open, types.DidOpenTextDocumentParams(item))
    assert editor.faults(path.as_uri()) == []


def test_a_fault_in_a_plan_that_is_a_model_is_reported_at_the_model(editor):
    (editor.folder / "cut.tailor").write_text('tailor 1\nmodel base = "./base"\ndrop L9\n')
    uri = editor.open(f'{HEAD}model cut = "./cut.tailor"\nL1 from cut\n')
    (fault,) = editor.faults(uri, until=len)
    assert fault.range.start == types.Position(3, 12)
    assert fault.message.startswith("cut.tailor: ")
    there = fault.related_information[0].location
    assert there.uri.endswith("cut.tailor")
    assert there.range.start.line == 2


def test_hover_names_the_layer_and_the_faults_page(editor):
    uri = editor.open(f"{HEAD}drop L0\nL3 from math\n")
    hover = editor.ask(types.TEXT_DOCUMENT_HOVER, types.HoverParams(**editor.at(uri, 4, 1)))
    assert "L2 of the output's" in hover.contents.value
    assert hover.range == types.Range(types.Position(4, 0), types.Position(4, 2))
    uri = editor.open(f"{HEAD}L1 from moth\n")
    hover = editor.ask(types.TEXT_DOCUMENT_HOVER, types.HoverParams(**editor.at(uri, 3, 9)))
    assert "a model that isn't declared" in hover.contents.value
    uri = editor.open(HEAD)
    where = editor.at(uri, 9, 9)
    assert editor.ask(types.TEXT_DOCUMENT_HOVER, types.HoverParams(**where)) is None


def test_completion_depends_on_the_position(editor):
    uri = editor.open(f"{HEAD}L1 from base, math by s\n")
    where = editor.at(uri, 3, 23)
    result = editor.ask(types.TEXT_DOCUMENT_COMPLETION, types.CompletionParams(**where))
    slerp = next(item for item in result.items if item.label == "slerp")
    assert slerp.text_edit.new_text == "slerp($1)$0"
    assert slerp.text_edit.range.start == types.Position(3, 22)


def test_a_name_is_found_listed_and_changed_everywhere(editor):
    text = f"{HEAD}L1 from math; L2 = L3 math  # math 😀\nL4 from base\n"
    uri = editor.open(text)
    where = editor.at(uri, 3, 9)
    result = editor.ask(types.TEXT_DOCUMENT_DEFINITION, types.DefinitionParams(**where))
    assert result.range.start == types.Position(2, 6)
    context = types.ReferenceContext(include_declaration=False)
    uses = editor.ask(
        types.TEXT_DOCUMENT_REFERENCES, types.ReferenceParams(context=context, **where)
    )
    assert [use.range.start.character for use in uses] == [8, 22]
    asked = types.RenameParams(new_name="maths", **where)
    edits = editor.ask(types.TEXT_DOCUMENT_RENAME, asked).changes[uri]
    renamed = changed(uri, text, edits)
    assert renamed.count("maths") == 3
    assert "# math 😀" in renamed


def test_definition_opens_a_file_and_ignores_unknown_users(editor):
    for name, there in (("./text.txt", True), ("~no-such-user/text.txt", False)):
        (editor.folder / "text.txt").write_text("some text\n")
        uri = editor.open(f'{HEAD}search {{ minimize nll("{name}") }}\n')
        where = types.DefinitionParams(**editor.at(uri, 3, 26))
        result = editor.ask(types.TEXT_DOCUMENT_DEFINITION, where)
        assert (result is not None) == there


def test_a_rename_that_would_collide_is_refused_with_its_reason(editor):
    uri = editor.open(f"{HEAD}L1 from math\n")
    asked = types.RenameParams(new_name="base", **editor.at(uri, 3, 9))
    with pytest.raises(JsonRpcException, match="there is a model 'base' already"):
        editor.ask(types.TEXT_DOCUMENT_RENAME, asked)
    asked = types.PrepareRenameParams(**editor.at(uri, 1, 7))
    with pytest.raises(JsonRpcException, match="always named 'base'"):
        editor.ask(types.TEXT_DOCUMENT_PREPARE_RENAME, asked)


def test_the_canonical_form_and_a_quick_fix_count_as_the_client_does(editor):
    text = f"{HEAD}drop L3, L2  # 😀\nL1 from base, maths by slerp(0.5)  # why\n"
    uri = editor.open(text)
    options = types.FormattingOptions(tab_size=2, insert_spaces=True)
    named = types.TextDocumentIdentifier(uri)
    edits = editor.ask(
        types.TEXT_DOCUMENT_FORMATTING, types.DocumentFormattingParams(named, options)
    )
    assert "\n\ndrop L2..L3  # 😀\n" in changed(uri, text, edits)
    (fault,) = editor.faults(uri)
    context = types.CodeActionContext(diagnostics=[fault])
    actions = editor.ask(
        types.TEXT_DOCUMENT_CODE_ACTION, types.CodeActionParams(named, fault.range, context)
    )
    assert [action.title for action in actions] == ["change 'maths' to 'math'"]
    assert "base, math by" in changed(uri, text, actions[0].edit.changes[uri])


def test_outlines_are_reported(editor):
    uri = editor.open(f"# a\n# b\n{HEAD}stack {{\n  L0 base\n}}\n")
    named = types.TextDocumentIdentifier(uri)
    symbols = editor.ask(types.TEXT_DOCUMENT_DOCUMENT_SYMBOL, types.DocumentSymbolParams(named))
    assert [item.name for item in symbols] == ["tailor 1", "base", "math", "stack"]
    folds = editor.ask(types.TEXT_DOCUMENT_FOLDING_RANGE, types.FoldingRangeParams(named))
    assert {(fold.start_line, fold.end_line) for fold in folds} == {(0, 1), (5, 7)}
    asked = types.SemanticTokensParams(named)
    result = editor.ask(types.TEXT_DOCUMENT_SEMANTIC_TOKENS_FULL, asked).data
    assert list(result[:5]) == [3, 6, 4, 4, 1]


def test_the_server_answers_invalid_requests_and_continues(editor):
    with pytest.raises(JsonRpcMethodNotFound):
        editor.ask("textDocument/nonsense", {})
    sent = {"jsonrpc": "2.0", "id": "bad", "method": "textDocument/hover", "params": {"no": 1}}
    body = json.dumps(sent).encode()

    async def answered():
        answer = editor.client.protocol._request_futures["bad"] = Future()
        editor.client._server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return await asyncio.wrap_future(answer)

    with pytest.raises(JsonRpcException):
        editor.wait(answered())
    uri = (editor.folder / "never-opened.tailor").as_uri()
    with pytest.raises(JsonRpcException):  # the file is missing
        editor.ask(types.TEXT_DOCUMENT_HOVER, types.HoverParams(**editor.at(uri, 0, 0)))
    uri = editor.open(f"{HEAD}L1 from math\n")
    hover = editor.ask(types.TEXT_DOCUMENT_HOVER, types.HoverParams(**editor.at(uri, 3, 9)))
    assert "llama, 6 layers" in hover.contents.value or "./math" in hover.contents.value


def test_a_closed_text_has_no_faults(editor):
    uri = editor.open("L1 frm math\n")
    assert editor.faults(uri)
    named = types.TextDocumentIdentifier(uri)
    editor.do(editor.client.text_document_did_close, types.DidCloseTextDocumentParams(named))
    assert editor.faults(uri, until=lambda codes: not codes) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc")
def test_the_process_has_neither_torch_nor_jax(editor):
    maps = Path(f"/proc/{editor.client._server.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "jaxlib" not in maps
    assert "numpy" not in maps
