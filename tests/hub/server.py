"""The server: how it answers, with the faults that a test plants, and what it answers to reads."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.hub import access
from tests.hub.access import TOKEN
from tests.hub.body import Body, StruckError
from tests.hub.hub import Fault, Hub, Request
from tests.hub.repos import Blob, Commit, Repo

__all__ = ["NAME", "READS", "REVISION", "TOKEN", "Handler", "Hub", "Request", "serving"]

CHUNK = 65536


@contextmanager
def serving(store: Path, port: int = 0) -> Iterator[Hub]:
    """Run a Hub, and its storage at another origin, while the block lasts; port 0 takes any."""
    hub = Hub(store)
    servers = [_Server(hub, port), _Server(hub)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    # Two names, for older clients take hosts that differ in the port only for the same.
    hub.url, hub.storage = (
        f"http://{name}:{server.server_port}" for name, server in zip(("127.0.0.1", "localhost"), servers, strict=True)
    )
    try:
        yield hub
    finally:
        hub.closing.set()
        for server in servers:
            server.shutdown()
            server.server_close()
    assert hub.errors == []


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, port: int = 0) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        import sys

        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.hub.errors.append(error)


class Handler(BaseHTTPRequestHandler):
    """One connection; every answer has a length, so that it stays open for the next request."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `Hub.log` has it."""

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def _answer(self) -> None:
        split = urlsplit(self.path)
        self.route, self.query = split.path, parse_qs(split.query)
        self.record = Request(
            self.command, self.route, self.server.server_port, self.headers.get("Range"),
            "Authorization" in self.headers,
        )  # fmt: skip
        self.hub.log.append(self.record)
        self.upload = Body(self.rfile, self.headers, self.record)
        self.fault = self.hub.fault(f"{self.command} {self.route}", self.upload.length)
        self.upload.stop = self.fault.upload_after if self.fault else None
        try:
            self._receive()
        except StruckError:
            self._strike()

    def _receive(self) -> None:
        """Read the body, but for one that goes to disk, and answer."""
        fault = self.fault if self.fault and self.fault.upload_after is None and self.fault.status else None
        to_disk = self.command == "PUT" or self.route.startswith("/v1/xorbs/")
        self.body = b"".join(self.upload) if fault or not to_disk else b""
        if fault:
            self.send_blob(Blob(fault.body), fault.status, {"Content-Type": "application/json", **fault.headers})
            return
        self._dispatch(f"{self.command} {self.route}")
        for _ in self.upload:  # what the answer did not need
            pass

    def _dispatch(self, line: str) -> None:
        for pattern, function in self._routes():
            if found := re.fullmatch(pattern, line):
                function(self, *(unquote(group or "") for group in found.groups()))
                return
        self.refuse(404, "", "no such route")

    def _strike(self) -> None:
        """End a request in the middle of its body, by an answer or by a reset."""
        fault = self.fault
        assert fault is not None
        fault.reached.set()
        self.close_connection = True
        if fault.status:
            self.send_json({"error": "planted"}, fault.status, {**fault.headers, "Connection": "close"})
            self.upload.drain()  # or the client would be cut off before it reads the answer
            return
        if fault.hold:
            self.hub.closing.wait(60)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    @staticmethod
    def _routes() -> list[tuple[str, Callable[..., None]]]:
        from tests.hub.cas import CAS
        from tests.hub.objects import OBJECTS
        from tests.hub.pulls import PULLS
        from tests.hub.references import REFERENCES
        from tests.hub.uploads import WRITES

        return READS + WRITES + OBJECTS + CAS + REFERENCES + PULLS

    def repo(self, name: str) -> Repo | None:
        """Return a repository, or answer that there is none for this client."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.access == "private" and not self.has_token()):
            self.refuse(404 if self.has_token() else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def has_token(self) -> bool:
        return access.role(self) is not None

    def commit(self, name: str, revision: str) -> tuple[Repo, Commit] | None:
        """Return a repository and a commit of it, or answer why not."""
        repo = self.repo(name)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit

    # -- answers ------------------------------------------------------------------------------------------------------

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self.send_json({"error": message}, status, {**headers, "X-Error-Message": message})

    def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        head = {"Content-Type": "application/json", **(headers or {})}
        self.send_blob(Blob(json.dumps(value).encode()), status, head)

    def send_blob(self, blob: Blob, status: int, headers: dict[str, str], start: int = 0, stop: int = -1) -> None:
        """Send a part of a blob, as far as a planted fault lets it."""
        stop = blob.size if stop < 0 else stop
        self.record.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(stop - start)}.items():
            self.send_header(name, value)
        self.record.sent += len(b"".join(self._headers_buffer))  # type: ignore[attr-defined]
        self.end_headers()
        if self.command == "HEAD":
            return
        fault = self.fault if self.fault and self.fault.after is not None else None
        end = stop if fault is None else min(stop, start + (fault.after or 0))
        while start < end:
            data = blob.read(start, min(CHUNK, end - start))
            self.wfile.write(data)
            self.record.sent += len(data)
            start += len(data)
        if fault is not None and end < stop:
            self.break_off(fault)

    def break_off(self, fault: Fault) -> None:
        fault.reached.set()
        if fault.hold:
            self.hub.closing.wait(60)
        self.close_connection = True

    # -- reads --------------------------------------------------------------------------------------------------------

    def model_info(self, name: str, revision: str) -> None:
        if found := self.commit(name, revision or "main"):
            self.send_json(found[0].info(found[1], blobs="blobs" in self.query))

    def tree(self, name: str, revision: str, folder: str) -> None:
        recursive = self.query.get("recursive", ["false"])[0].lower() in {"true", "1"}
        if found := self.commit(name, revision):
            self.send_json(found[0].tree(found[1], folder, recursive=recursive))

    def paths_info(self, name: str, revision: str) -> None:
        sent = self.body.decode()
        form = "json" not in self.headers.get("Content-Type", "")
        paths = parse_qs(sent).get("paths", []) if form else json.loads(sent)["paths"]
        if found := self.commit(name, revision):
            self.send_json(found[0].entries(found[1], paths))

    def xet_token(self, name: str, kind: str, revision: str) -> None:
        if access.writable(self, name, revision) if kind == "write" else self.repo(name):
            url, expiry, token = self.hub.cas_url, int(time.time()) + 3600, f"xet-{kind}"
            self.send_json(
                {"casUrl": url, "exp": expiry, "accessToken": token},
                headers={"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)},
            )

    def resolve(self, name: str, revision: str, path: str) -> None:
        found = self.commit(name, revision)
        if found is None:
            return
        repo, commit = found
        if repo.access == "gated" and not self.has_token():
            self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo", f"{name} is gated")
        elif path not in commit.files:
            self.send_json({"error": "none"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.id})
        else:
            self._send_file(repo, commit, path, commit.files[path])

    def _send_file(self, repo: Repo, commit: Commit, path: str, blob: Blob) -> None:
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes", "ETag": f'"{blob.git_id}"'}
        if not blob.is_lfs(path):
            self.send_range(blob, headers)
            return
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "ETag": f'"{blob.sha256}"'}
        if blob.sha256 in repo.xet:
            token = f"{self.hub.url}/api/models/{repo.name}/xet-read-token/{commit.id}"
            headers |= {"X-Xet-Hash": repo.xet[blob.sha256], "Link": f'<{token}>; rel="xet-auth"'}
        location = f"{self.hub.storage}/storage/{repo.name}/{commit.id}/{quote(path)}"
        self.send_blob(Blob(b"Found"), 302, {**headers, "Location": location})

    def stored(self, name: str, commit: str, path: str) -> None:
        """A large file at the other origin, which wants no token."""
        self.send_range(self.hub.repos[name].commits[commit].files[path], {"Accept-Ranges": "bytes"})

    def send_range(self, blob: Blob, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or not self.hub.ranges:
            self.send_blob(blob, 200, headers)
            return
        start, stop = int(asked[1]), min(int(asked[2] or blob.size) + 1, blob.size)
        if start >= blob.size:
            self.send_blob(Blob(b""), 416, {"Content-Range": f"bytes */{blob.size}"})
        else:
            span = {"Content-Range": f"bytes {start}-{stop - 1}/{blob.size}"}
            self.send_blob(blob, 206, headers | span, start, stop)


NAME, REVISION = r"((?:[^/]+/)?[^/]+)", r"(refs/pr/\d+|[^/]+)"

READS: list[tuple[str, Callable[..., None]]] = [
    (rf"GET /api/models/{NAME}/xet-(read|write)-token/{REVISION}", Handler.xet_token),
    (rf"POST /api/models/{NAME}/paths-info/{REVISION}", Handler.paths_info),
    (rf"GET /api/models/{NAME}/tree/{REVISION}(?:/(.*))?", Handler.tree),
    (rf"GET /api/models/{NAME}/revision/{REVISION}", Handler.model_info),
    (rf"GET /api/models/{NAME}()", Handler.model_info),
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REVISION}/(.+)", Handler.resolve),
    (rf"(?:GET|HEAD) /storage/{NAME}/{REVISION}/(.+)", Handler.stored),
]
"""Method and path -> what answers."""
