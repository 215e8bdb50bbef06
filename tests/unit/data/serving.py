"""A web server on this machine that serves given files, and misbehaves when told to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from multimodal_gemma.data.sources import retrying


class Clock:
    """Time that passes when somebody waits: ten minutes are over at once.

    Attributes:
        waits: seconds of each wait.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._now = 1000.0
        self._lock = threading.Lock()
        self.waits: list[float] = []
        patch.setattr(retrying, "now", lambda: self._now)
        patch.setattr(retrying, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
            self._now += seconds


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """What is served, what was asked for.

    Attributes:
        url: where it listens.
        files: content by path, e.g. {"/images/a.jpg": b"…"}.
        faults: by path, what the next answers are instead: a status (429 asks to wait a second), "cut" (half the body,
            then the connection closes), "reset" (half the body, then the connection is reset), "slow" (a byte every
            20 ms), "html" (a page with status 200), "wrong" (other bytes), or "-> URL" (a redirect).
        latency: seconds before every answer.
        retry_after: seconds that a 429 asks to wait.
        knows_ranges: whether a part of a file can be asked for.
        ranges: the Range header of each request that had one, with its path.
        errors: by path, the error code that the hub or S3 answers with instead, e.g. "GatedRepo", "AccessDenied".
        asked: how often each (method, path) was asked for.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.errors: dict[str, str] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.latency = 0.0
        self.retry_after = 1
        self.knows_ranges = True
        self.ranges: list[tuple[str, str]] = []

    def add_folder(self, folder: Path, base: str) -> None:
        """Serve every file of a folder below `base`."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"{base}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def add_hub_repository(
        self, kind: str, name: str, revision: str, content: dict[str, bytes], licence: str = "", commit: str = COMMIT
    ) -> None:
        """Serve a repository as the hub's API does. `kind` is "models" or "datasets"; its card states the licence."""
        facts = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in content]}
        facts |= {"cardData": {"license": licence}} if licence else {}
        tree = [
            {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
            for path, body in content.items()
        ]
        for wanted in (revision, commit):
            self.files[f"/api/{kind}/{name}/revision/{wanted}"] = json.dumps(facts).encode()
            self.files[f"/api/{kind}/{name}/tree/{wanted}"] = json.dumps(tree).encode()
        prefix = "/datasets" if kind == "datasets" else ""
        for path, body in content.items():
            self.files[f"{prefix}/{name}/resolve/{commit}/{path}"] = body


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Serve on a free port of the loopback address until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(body_wanted=False)

        def do_GET(self) -> None:
            self._answer(body_wanted=True)

        def do_PUT(self) -> None:
            """Keep an object, as S3 does."""
            path = unquote(urlsplit(self.path).path)
            server.asked["PUT", path] += 1
            server.files[path] = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(b"")

        def _answer(self, *, body_wanted: bool) -> None:
            split = urlsplit(self.path)
            path = unquote(split.path)
            server.asked[self.command, path] += 1
            time.sleep(server.latency)
            fault = server.faults[path].pop(0) if server.faults.get(path) else None
            if isinstance(fault, str) and fault.startswith("-> "):
                self._head(302, 0, Location=fault.removeprefix("-> "))
            elif isinstance(fault, int):
                self._head(fault, 0, **{"Retry-After": str(server.retry_after) if fault == 429 else "0"})
            elif path in server.errors:
                code = server.errors[path]
                self._send(_s3_error(code, path), 403, body_wanted, **{"X-Error-Code": code})
            elif "list-type" in parse_qs(split.query):
                self._send(_s3_listing(server.files, path.strip("/"), parse_qs(split.query)["prefix"][0]))
            elif path not in server.files:
                absent = _s3_error("NoSuchKey", path) if path.startswith("/bucket/") else b"absent"
                self._send(absent, 404, body_wanted, **{"X-Error-Code": "EntryNotFound"})
            else:
                self._send_file(path, fault, body_wanted)

        def _send_file(self, path: str, fault: int | str | None, body_wanted: bool) -> None:
            body = server.files[path]
            if fault == "html":
                body = b"<!DOCTYPE html><title>Sign in</title>" + b" " * 1000
            elif fault == "wrong":
                body = bytes(byte ^ 1 for byte in body)
            tag = f'"{hashlib.md5(body).hexdigest()}"'
            wanted = self.headers.get("Range")
            if wanted:
                server.ranges.append((path, wanted))
            same = self.headers.get("If-Range", tag) == tag
            if wanted and not server.knows_ranges:
                wanted = None
            if self.headers.get("If-Match", tag) != tag:
                self._send(_s3_error("PreconditionFailed", path), 412, body_wanted)
            elif wanted and same:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                told = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
                self._send(body[start:], 206, body_wanted, fault=fault, tag=tag, **told)
            else:
                self._send(body, 200, body_wanted, fault=fault)

        def _send(
            self,
            body: bytes,
            status: int = 200,
            body_wanted: bool = True,
            fault: int | str | None = None,
            tag: str = "",
            **more: str,
        ) -> None:
            tag = tag or f'"{hashlib.md5(body).hexdigest()}"'
            commit = urlsplit(self.path).path.partition("/resolve/")[2].partition("/")[0] or COMMIT
            extra = {"ETag": tag, "X-Repo-Commit": commit, "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
            kind = "application/xml" if body.startswith(b"<?xml") else "application/json"
            self._head(status, len(body), **extra, **more, **{"Content-Type": kind})
            if not body_wanted:
                return
            if fault == "slow":
                with contextlib.suppress(OSError):  # the other side may give up
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.02)
            elif fault in ("cut", "reset"):
                self.wfile.write(body[: len(body) // 2])
                if fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                self.close_connection = True
            else:
                self.wfile.write(body)

        def _head(self, status: int, size: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(size)}.items():
                self.send_header(name, value)
            self.end_headers()

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None: ...  # a client that hangs up is what some tests want

    listener = Listener(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def _s3_error(code: str, path: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Resource>{path}</Resource></Error>'.encode()


def _s3_listing(content: dict[str, bytes], bucket: str, prefix: str) -> bytes:
    keys = sorted(path.removeprefix(f"/{bucket}/") for path in content if path.startswith(f"/{bucket}/{prefix}"))
    rows = "".join(
        f"<Contents><Key>{key}</Key><ETag>&quot;{hashlib.md5(content[f'/{bucket}/{key}']).hexdigest()}&quot;</ETag>"
        f"<Size>{len(content[f'/{bucket}/{key}'])}</Size></Contents>"
        for key in keys
    )
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>"
    ).encode()
