"""The language server: it answers an editor's requests with the modules of this package.

A text is read anew for each version, at most ten times a second. Its models are looked at in a
thread once typing rests. The text in the editor takes precedence over the file on disk.
"""

import asyncio
import logging
import sys
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, final

from lsprotocol import types
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol
from pygls.uris import from_fs_path, to_fs_path

from gptailor.checkpoint.files import CheckpointError, open_regular, quoted
from gptailor.checkpoint.folder import CONFIG
from gptailor.plan.bounds import MOST_BYTES
from gptailor.plan.fault_pages import fault_pages
from gptailor.plan.faults import Fault
from gptailor.plugins.lsp.complete import completions, signature_help
from gptailor.plugins.lsp.edits import RenameError, canonical_edits, nameable, renamed
from gptailor.plugins.lsp.hover import diagnostic, hovered
from gptailor.plugins.lsp.names import Occurrence
from gptailor.plugins.lsp.remedies import Edit, remedies
from gptailor.plugins.lsp.text import (
    LEGEND,
    NOT_SEEN,
    EditedText,
    SeenModels,
    folds,
    seen_models,
    semantic_tokens,
    symbols,
)

_READ_AFTER = 0.1
_LOOK_AFTER = 0.4
"""The seconds without typing before a text is read, and before its models are looked at."""

_MOST_MENDED = 20
"""The most faults of a stretch that get quick fixes; each fix reads the text again."""

_log = logging.getLogger("gptailor.lsp")


@final
class OpenFile:
    """A text that an editor holds, with its models as far as they were looked at."""

    def __init__(self, text: EditedText, version: int | None) -> None:
        self.text = text
        self.version = version
        self.seen: SeenModels = NOT_SEEN
        self.model_faults: tuple[Fault, ...] = ()  # of this version
        self.waiting: list[asyncio.TimerHandle] = []

    @property
    def faults(self) -> list[Fault]:
        """All known faults of this version."""
        return [*self.text.faults, *self.model_faults]

    def faults_at(self, start: int, end: int) -> list[Fault]:
        """Return this text's faults that touch a stretch, without faults of its models' plans."""
        own = (f for f in self.faults if f.source is None or f.source.name == self.text.source.name)
        return [f for f in own if f.span and f.span.start <= end and start <= f.span.end]

    def rest(self) -> None:
        """Cancel the work that waits for an earlier version."""
        for handle in self.waiting:
            handle.cancel()
        self.waiting.clear()


@final
class _Protocol(LanguageServerProtocol):
    """The protocol, which also answers malformed requests."""

    def structure_message(self, data: dict[str, Any]) -> Any:
        """Return a message as its type; answer a malformed request with an error."""
        try:
            return super().structure_message(data)
        except JsonRpcException as error:
            if "id" in data and "method" in data:
                self._send_response(data["id"], None, error.to_response_error())
            raise

    def handle_message(self, message: Any) -> None:
        """Pass a message to its handler; log anything that isn't a JSON-RPC message."""
        if not hasattr(message, "jsonrpc"):
            _log.warning("expected a JSON-RPC message, got %s", type(message).__name__)
            return
        super().handle_message(message)


@final
class OneLine(logging.Formatter):
    """A record on one line; an exception has its type, its text and the place that raised it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the level, the message without a traceback, and the exception."""
        lines = record.getMessage().strip().splitlines() or [""]
        words = [record.levelname, *dict.fromkeys((lines[0], lines[-1]))]
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            words.append(f"{type(error).__name__}: {error}")
        if error is not None and not isinstance(error, JsonRpcException):
            place = traceback.extract_tb(error.__traceback__)[-1:]
            words += (f"{frame.filename}:{frame.lineno}" for frame in place)
        return " ".join(": ".join(words).split())


@final
class TailorServer(LanguageServer):
    """The server, with the texts that are open; `hub` is whether the Hub is asked for models."""

    def __init__(self, *, hub: bool = False) -> None:
        super().__init__(
            "gptailor",
            metadata.version("gptailor"),
            text_document_sync_kind=types.TextDocumentSyncKind.Full,
            protocol_cls=_Protocol,
        )
        self.files: dict[str, OpenFile] = {}
        self.looks = True  # whether models are looked at
        self.hub = hub
        self.tasks: set[asyncio.Task[None]] = set()
        self.looking = ThreadPoolExecutor(max_workers=1)  # one after the other

    def open_file(self, uri: str) -> OpenFile:
        """Return the file of a request; a file that isn't open is read from disk."""
        if (file := self.files.get(uri)) is not None:
            return file
        return OpenFile(self._text(uri), None)

    def _text(self, uri: str) -> EditedText:
        document = self.workspace.get_text_document(uri)
        held = uri in self.workspace.text_documents
        source = document.source if held else _text_on_disk(uri)
        return EditedText(uri, source, types.PositionEncodingKind(self.workspace.position_encoding))

    def changed(self, uri: str, version: int | None, *, after: float) -> None:
        """Read a text's new version, and look at its models once typing rests."""
        file = self.files.setdefault(uri, OpenFile(self._text(uri), version))
        file.rest()
        file.text, file.version, file.model_faults = self._text(uri), version, ()
        loop = asyncio.get_running_loop()
        file.waiting.append(loop.call_later(min(after, _READ_AFTER), self.publish, uri))
        if self.looks:
            file.waiting.append(loop.call_later(after, self.look, uri))

    def publish(self, uri: str) -> None:
        """Send a text's faults to the editor."""
        if (file := self.files.get(uri)) is not None:
            diagnostics = [diagnostic(file.text, fault) for fault in file.faults]
            self.text_document_publish_diagnostics(
                types.PublishDiagnosticsParams(uri, diagnostics, file.version)
            )

    def look(self, uri: str) -> None:
        """Look at a text's models in a thread, then send the new faults."""
        task = asyncio.ensure_future(self._looked(uri))
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    async def _looked(self, uri: str) -> None:
        file = self.files.get(uri)
        if file is None:
            return
        text = file.text

        def looked() -> SeenModels:
            if file.text is not text:  # typed on meanwhile
                return NOT_SEEN
            return seen_models(text, hub=self.hub)

        loop = asyncio.get_running_loop()
        seen = await loop.run_in_executor(self.looking, looked)
        if file.text is text and self.files.get(uri) is file:
            file.seen, file.model_faults = seen, seen.faults
            if seen.faults:
                self.publish(uri)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("models could not be looked at", exc_info=error)


def _text_on_disk(uri: str) -> str:
    """Return the text of a document that no editor holds; raise JsonRpcInvalidParams without it."""
    try:
        with open_regular(Path(to_fs_path(uri) or uri)) as file:
            return file.read(MOST_BYTES + 1).decode("utf-8")
    except (CheckpointError, OSError, ValueError) as error:
        message = f"expected an open document or a file of UTF-8 text, got {quoted(uri)}"
        raise JsonRpcInvalidParams(message) from error


# --------------------------------------------------------------------------------------- requests


def _opened(server: TailorServer, params: types.DidOpenTextDocumentParams) -> None:
    server.changed(params.text_document.uri, params.text_document.version, after=0)


def _edited(server: TailorServer, params: types.DidChangeTextDocumentParams) -> None:
    server.changed(params.text_document.uri, params.text_document.version, after=_LOOK_AFTER)


def _saved(server: TailorServer, params: types.DidSaveTextDocumentParams) -> None:
    for uri in {params.text_document.uri, *server.files}:  # one may be a model of another
        if (file := server.files.get(uri)) is not None:
            server.changed(uri, file.version, after=0)


def _closed(server: TailorServer, params: types.DidCloseTextDocumentParams) -> None:
    uri = params.text_document.uri
    if (file := server.files.pop(uri, None)) is not None:
        file.rest()
        server.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, []))


def _where(server: TailorServer, params: Any) -> tuple[OpenFile, EditedText, int]:
    file = server.open_file(params.text_document.uri)
    return file, file.text, file.text.lines.offset(params.position)


def _hover(server: TailorServer, params: types.HoverParams) -> types.Hover | None:
    file, text, offset = _where(server, params)
    described = hovered(text, offset, file.seen)
    paragraphs = [described[0]] if described is not None else []
    for fault in file.faults_at(offset, offset):
        if (page := fault_pages().get(fault.code)) is not None:
            paragraphs.append(f"**{fault.code}** {page.title}\n\n{page.words}")
    if not paragraphs:
        return None
    shown = types.MarkupContent(types.MarkupKind.Markdown, "\n\n---\n\n".join(paragraphs))
    return types.Hover(
        shown, text.lines.range(described[1].span) if described is not None else None
    )


def _completion(server: TailorServer, params: types.CompletionParams) -> types.CompletionList:
    file, text, offset = _where(server, params)
    client = server.client_capabilities.text_document
    item = client.completion.completion_item if client and client.completion else None
    snippets = bool(item and item.snippet_support)
    return types.CompletionList(
        is_incomplete=False, items=completions(text, offset, file.seen, snippets=snippets)
    )


def _signature(
    server: TailorServer, params: types.SignatureHelpParams
) -> types.SignatureHelp | None:
    _, text, offset = _where(server, params)
    return signature_help(text, offset)


def _definition(server: TailorServer, params: types.DefinitionParams) -> types.Location | None:
    _, text, offset = _where(server, params)
    word = text.word_at(offset)
    if word is not None and word.named and (declared := text.declaration(word)) is not None:
        return types.Location(text.uri, text.lines.range(declared.span))
    if word is None or word.kind not in ("source", "file", "template"):
        return None
    path = text.named(word.text)
    path = path / CONFIG if path.is_dir() else path
    start = types.Position(0, 0)
    uri = from_fs_path(str(path.resolve())) if path.is_file() else None
    return types.Location(uri, types.Range(start, start)) if uri else None


def _references(server: TailorServer, params: types.ReferenceParams) -> list[types.Location]:
    _, text, offset = _where(server, params)
    with_declaration = params.context.include_declaration
    return [
        types.Location(text.uri, text.lines.range(use.span))
        for use in _uses(text, offset)
        if with_declaration or not use.declares
    ]


def _highlights(
    server: TailorServer, params: types.DocumentHighlightParams
) -> list[types.DocumentHighlight]:
    _, text, offset = _where(server, params)
    kinds = types.DocumentHighlightKind
    return [
        types.DocumentHighlight(
            text.lines.range(use.span), kinds.Write if use.declares else kinds.Read
        )
        for use in _uses(text, offset)
    ]


def _uses(text: EditedText, offset: int) -> list[Occurrence]:
    word = text.word_at(offset)
    return text.uses(word) if word is not None and word.named else []


_REQUEST_FAILED = -32803


def _prepare_rename(
    server: TailorServer, params: types.PrepareRenameParams
) -> types.PrepareRenamePlaceholder:
    _, text, offset = _where(server, params)
    try:
        word = nameable(text, offset)
    except RenameError as error:
        raise JsonRpcException(str(error), code=_REQUEST_FAILED) from error
    return types.PrepareRenamePlaceholder(text.lines.range(word.span), word.text)


def _rename(server: TailorServer, params: types.RenameParams) -> types.WorkspaceEdit:
    _, text, offset = _where(server, params)
    try:
        edits = renamed(text, offset, params.new_name)
    except RenameError as error:
        raise JsonRpcException(str(error), code=_REQUEST_FAILED) from error
    return types.WorkspaceEdit(changes={text.uri: _text_edits(text, edits)})


def _formatting(
    server: TailorServer, params: types.DocumentFormattingParams
) -> list[types.TextEdit]:
    text = server.open_file(params.text_document.uri).text
    return _text_edits(text, canonical_edits(text))


def _text_edits(text: EditedText, edits: Iterable[Edit]) -> list[types.TextEdit]:
    return [types.TextEdit(text.lines.range(edit.span), edit.words) for edit in edits]


def _code_actions(server: TailorServer, params: types.CodeActionParams) -> list[types.CodeAction]:
    file = server.open_file(params.text_document.uri)
    text = file.text
    start, end = text.lines.offset(params.range.start), text.lines.offset(params.range.end)
    return [
        types.CodeAction(
            remedy.title,
            kind=types.CodeActionKind.QuickFix,
            diagnostics=[diagnostic(text, remedy.fault)],
            is_preferred=remedy.sure,
            edit=types.WorkspaceEdit(changes={text.uri: _text_edits(text, remedy.edits)}),
        )
        for remedy in remedies(text, file.faults_at(start, end)[:_MOST_MENDED])
    ]


def _symbols(
    server: TailorServer, params: types.DocumentSymbolParams
) -> list[types.DocumentSymbol]:
    return symbols(server.open_file(params.text_document.uri).text)


def _folds(server: TailorServer, params: types.FoldingRangeParams) -> list[types.FoldingRange]:
    return folds(server.open_file(params.text_document.uri).text)


def _tokens(server: TailorServer, params: types.SemanticTokensParams) -> types.SemanticTokens:
    return semantic_tokens(server.open_file(params.text_document.uri).text)


# ------------------------------------------------------------------------------------- the server

_FEATURES: tuple[tuple[str, Callable[[TailorServer, Any], Any], Any], ...] = (
    (types.TEXT_DOCUMENT_DID_OPEN, _opened, None),
    (types.TEXT_DOCUMENT_DID_CHANGE, _edited, None),
    (types.TEXT_DOCUMENT_DID_SAVE, _saved, None),
    (types.TEXT_DOCUMENT_DID_CLOSE, _closed, None),
    (types.TEXT_DOCUMENT_HOVER, _hover, None),
    (types.TEXT_DOCUMENT_COMPLETION, _completion,
     types.CompletionOptions(trigger_characters=['"', "/", ".", "(", "="])),
    (types.TEXT_DOCUMENT_SIGNATURE_HELP, _signature,
     types.SignatureHelpOptions(trigger_characters=["(", ","])),
    (types.TEXT_DOCUMENT_DEFINITION, _definition, None),
    (types.TEXT_DOCUMENT_REFERENCES, _references, None),
    (types.TEXT_DOCUMENT_DOCUMENT_HIGHLIGHT, _highlights, None),
    (types.TEXT_DOCUMENT_PREPARE_RENAME, _prepare_rename, None),
    (types.TEXT_DOCUMENT_RENAME, _rename, types.RenameOptions(prepare_provider=True)),
    (types.TEXT_DOCUMENT_FORMATTING, _formatting, None),
    (types.TEXT_DOCUMENT_CODE_ACTION, _code_actions,
     types.CodeActionOptions([types.CodeActionKind.QuickFix])),
    (types.TEXT_DOCUMENT_DOCUMENT_SYMBOL, _symbols, None),
    (types.TEXT_DOCUMENT_FOLDING_RANGE, _folds, None),
    (types.TEXT_DOCUMENT_SEMANTIC_TOKENS_FULL, _tokens, LEGEND),
)  # fmt: skip


def tailor_server(*, hub: bool = False) -> TailorServer:
    """Return a server that answers all requests above."""
    server = TailorServer(hub=hub)
    for name, answer, options in _FEATURES:
        server.feature(name, options)(partial(answer, server))
    server.feature(types.INITIALIZE)(partial(_initialized, server))
    return server


def _initialized(server: TailorServer, params: types.InitializeParams) -> None:
    options = params.initialization_options
    check = options.get("checkModels", True) if isinstance(options, dict) else True
    server.looks = check is not False


def serve(*, hub: bool = False) -> None:
    """Serve an editor over standard input and output, until it ends; log on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    tailor_server(hub=hub).start_io()
