"""The part of a Hugging Face hub that takes uploads, on the loopback interface: repositories, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 1000  # bytes from which a file is kept by its sha256


class HubServer:
    """The server; a context manager.

    Attributes:
        token: what writers must show.
        commits: files by path, for each commit of each repository in order.
        private: whether each repository was made private.
        spoiled: paths whose bytes are kept wrongly.
        requests: (method, path) of every request.
    """

    def __init__(self) -> None:
        self.token = "hf_good"
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.spoiled: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.large: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}

    def __enter__(self) -> HubServer:
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._listener.daemon_threads = True
        threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.server_port}"

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> str:
        """Keep a commit, and return its id."""
        content = dict(self.commits[repository][-1]) if self.commits[repository] else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                content[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del content[value["path"]]
        for path in self.spoiled & content.keys():
            content[path] += b"!"
        self.commits[repository].append(content)
        return commit_id(repository, len(self.commits[repository]))

    def files(self, repository: str, revision: str) -> dict[str, bytes]:
        """Return the files of a commit."""
        for number, content in enumerate(self.commits[repository], start=1):
            if commit_id(repository, number) == revision:
                return content
        return self.commits[repository][-1]


def commit_id(repository: str, number: int) -> str:
    """Return the id of a repository's n-th commit."""
    return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if len(content) >= LARGE:
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return found


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            server.requests.append((self.command, self.path))
            if self.headers.get("Authorization") != f"Bearer {server.token}":
                return self._send(401, {"error": "Invalid credentials"})
            _, _, _, organisation, name, *_ = self.path.split("/")
            commits = server.commits[f"{organisation}/{name}"]
            return self._send(200, [_entry(*pair) for pair in commits[-1].items()] if commits else [])

        def do_PUT(self) -> None:
            content = self._body()
            oid = self.path.rpartition("/")[2]
            if hashlib.sha256(content).hexdigest() != oid:
                return self._send(400, {"error": "other bytes"})
            server.large[oid] = content
            return self._send(200, {})

        def do_POST(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != f"Bearer {server.token}":
                return self._send(401, {"error": "Invalid credentials"})
            path = urllib.parse.unquote(self.path)
            if path == "/api/validate-yaml":
                return self._send(200, {"errors": [], "warnings": []})
            if path == "/api/repos/create":
                return self._create(json.loads(body))
            if path.endswith("/info/lfs/objects/batch"):
                return self._batch(json.loads(body))
            _, _, _, organisation, name, verb, revision = path.split("/", 6)
            repository = f"{organisation}/{name}"
            if verb == "preupload":
                modes = [
                    {"path": item["path"], "uploadMode": "lfs" if item["size"] >= LARGE else "regular"}
                    for item in json.loads(body)["files"]
                ]
                return self._send(200, {"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            if verb == "commit":
                oid = server.commit(repository, [json.loads(line) for line in body.splitlines()])
                return self._send(200, {"commitOid": oid, "commitUrl": f"{server.url}/{repository}/commit/{oid}"})
            content = server.files(repository, revision)
            wanted = urllib.parse.parse_qs(body.decode()).get("paths") or json.loads(body)["paths"]
            return self._send(200, [_entry(path, content[path]) for path in wanted if path in content])

        def _create(self, asked: dict[str, Any]) -> None:
            repository = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if repository in server.commits:
                return self._send(
                    409, {"error": "You already created this model repo", "url": f"{server.url}/{repository}"}
                )
            server.commits[repository] = []
            server.private[repository] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return self._send(200, {"url": f"{server.url}/{repository}", "name": repository})

        def _batch(self, asked: dict[str, Any]) -> None:
            objects = [
                {**item, **({} if item["oid"] in server.large else self._where(item["oid"]))}
                for item in asked["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})

        def _where(self, oid: str) -> dict[str, Any]:
            return {"actions": {"upload": {"href": f"{server.url}/large/{oid}"}}}

        def _body(self) -> bytes:
            server.requests.append((self.command, self.path))
            if self.headers.get("Transfer-Encoding") == "chunked":
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _send(self, status: int, content: Any) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler
