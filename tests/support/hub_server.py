"""A small Hugging Face Hub: folders served as repositories, and uploads taken as commits.

It has the part of the Hub's API that `huggingface_hub` uses for both, without Xet.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/(?P<repo>.+?)(/(?P<what>revision|tree)/(?P<revision>[^/]+))?/?")
FILE = re.compile(r"/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass(frozen=True)
class Repository:
    """Commits, each a folder; the branches and tags that name them; who may read."""

    commits: Mapping[str, Path]
    refs: Mapping[str, str]
    token: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Request:
    """A request, and the number of content bytes that were sent for it."""

    method: str
    path: str
    range: str | None
    sent: int

    @property
    def whole(self) -> bool:
        """True for a request of a whole file."""
        return self.method == "GET" and "/resolve/" in self.path and self.range is None


@dataclass
class Hub:
    """The repositories by their ids, and the requests so far."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""
    broken: bool = False
    writer: str = "hf_writer"
    """The token that may write."""
    uploads: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """The files of uploaded repositories by their ids."""
    private: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, repo: str, *folders: Path, token: str | None = None, gated: bool = False) -> str:
        """Publish folders as the commits of a repository, `main` the last; its commit."""
        commits = {commit_of(repo, n): folder for n, folder in enumerate(folders)}
        last = list(commits)[-1]
        refs = {"main": last, "v1": next(iter(commits)), "pr/one": next(iter(commits))}
        self.repositories[repo] = Repository(commits, refs, token, gated)
        return last

    def whole(self) -> list[str]:
        """The names of the files that were fetched whole."""
        return sorted(r.path.rpartition("/")[2] for r in self.requests if r.whole)


def commit_of(repo: str, number: int = 0) -> str:
    """The id of a repository's commit."""
    return hashlib.sha1(f"{repo}@{number}".encode()).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _RefusedError(Exception):
    """A status, and the Hub's word for it."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = urlsplit(self.path).path
        try:
            self._answer(json.dumps(self._posted(path, body)).encode())
        except _RefusedError as refused:
            self._answer(b"{}", {"X-Error-Code": refused.code}, status=refused.status)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.hub.blobs[urlsplit(self.path).path.rpartition("/")[2]] = body
        self._answer(b"")

    def _posted(self, path: str, body: bytes) -> object:
        if self.headers["Authorization"] != f"Bearer {self.hub.writer}":
            raise _RefusedError(401, "Unauthorized")
        if path.endswith("/validate-yaml"):
            return {"errors": [], "warnings": []}
        if path.endswith("/repos/create"):
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            self.hub.uploads.setdefault(repo, {})
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.private |= {repo} if private else set()
            return {"url": f"{self.hub.endpoint}/{repo}"}
        if "/preupload/" in path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
            return {
                "files": [
                    {"path": name, "uploadMode": mode, "shouldIgnore": False}
                    for name, mode in zip(names, modes, strict=True)
                ]
            }
        if path.endswith("/objects/batch"):
            put = f"{self.hub.endpoint}/put/"
            return {
                "transfer": "basic",
                "objects": [
                    o | {"actions": {"upload": {"href": put + o["oid"]}}}
                    for o in json.loads(body)["objects"]
                ],
            }
        if result := re.fullmatch(r"/api/models/(.+?)/commit/main", path):
            files = self.hub.uploads[result[1]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
            commit = commit_of(result[1])
            url = f"{self.hub.endpoint}/{result[1]}/commit/{commit}"
            return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}
        raise _RefusedError(404, "EntryNotFound")

    def _serve(self) -> None:
        try:
            self._dispatch(urlsplit(self.path).path)
        except _RefusedError as refused:
            self._answer(b"{}", {"X-Error-Code": refused.code}, status=refused.status)

    def _dispatch(self, path: str) -> None:
        if self.hub.broken:
            raise _RefusedError(500, "Internal")
        if result := API.fullmatch(path):
            self._answer(self._described(**result.groupdict()))
        elif result := FILE.fullmatch(path):
            self._file(**result.groupdict())
        else:
            raise _RefusedError(404, "EntryNotFound")

    def _commit(self, repo: str, revision: str | None) -> tuple[Repository, str]:
        result = self.hub.repositories.get(repo)
        if result is None:
            raise _RefusedError(401, "RepoNotFound")
        if result.token and self.headers["Authorization"] != f"Bearer {result.token}":
            raise _RefusedError(401, "RepoNotFound")
        name = unquote(revision or "main")
        commit = result.refs.get(name, name)
        if commit not in result.commits:
            raise _RefusedError(404, "RevisionNotFound")
        return result, commit

    def _described(self, repo: str, what: str | None, revision: str | None) -> bytes:
        repository, commit = self._commit(repo, revision)
        folder = repository.commits[commit]
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [str(path.relative_to(folder)) for path in files]
        if what == "tree":
            pairs = zip(names, files, strict=True)
            return json.dumps([_entry(name, path) for name, path in pairs]).encode()
        siblings = [{"rfilename": name} for name in names]
        return json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()

    def _file(self, repo: str, revision: str, name: str) -> None:
        repository, commit = self._commit(repo, revision)
        if repository.gated:
            raise _RefusedError(403, "GatedRepo")
        path = repository.commits[commit] / unquote(name)
        if not path.is_file():
            raise _RefusedError(404, "EntryNotFound")
        body = path.read_bytes()
        headers = {"ETag": f'"{_etag(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted := RANGE.fullmatch(self.headers["Range"] or ""):
            first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            self._answer(body[first : last + 1], headers, status=206)
        else:
            self._answer(body, headers)

    def _answer(
        self, body: bytes, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> None:
        sent = 0 if self.command == "HEAD" else len(body)
        path = urlsplit(self.path).path
        self.hub.requests.append(Request(self.command, path, self.headers["Range"], sent))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if sent:
            self.wfile.write(body)


def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _entry(name: str, path: Path) -> dict[str, object]:
    body = path.read_bytes()
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(body)}
    entry["oid"] = hashlib.sha1(body).hexdigest()
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": _etag(body), "size": len(body), "pointerSize": 134}
    return entry
