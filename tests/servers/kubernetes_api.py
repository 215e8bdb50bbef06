"""A Kubernetes API server on the loopback interface, as much of it as a client sees.

It keeps any kind of object by its path, numbers every change, and lets clients list, watch, create, patch and delete
over real HTTP. It can be told to misbehave as real ones do: refuse tokens and rights, answer 409, 410, 429 or 5xx,
and drop connections in the middle of a watch.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.servers.kubernetes_objects import Object, Place, kind_of, merged, now, refusal, same_collection, selected

_REVIEWS = tuple(f"/apis/authorization.k8s.io/v1/{who}subjectaccessreviews" for who in ("", "self"))


@dataclasses.dataclass
class Fault:
    """An answer given instead of the right one, `times` times, to requests whose path contains `contains`."""

    status: int
    times: int
    contains: str
    method: str | None
    headers: dict[str, str]
    body: str | None


class KubernetesServer:
    """The server; a context manager.

    Attributes:
        tokens: bearer tokens that are accepted; empty: none is asked for.
        denied: (verb, group, resource) that access reviews and requests are refused.
        logs: text of a pod's log by (namespace, pod).
        groups: versions that an API group is served in, for its discovery.
        requests: (method, path with query) of every request, in order.
    """

    def __init__(self) -> None:
        self.tokens: set[str] = {"good"}
        self.denied: set[tuple[str, str, str]] = set()
        self.logs: dict[tuple[str, str], str] = {}
        self.groups: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str]] = []
        self._objects: dict[str, dict[str, Object]] = {}  # by collection, then by name
        self._events: list[tuple[int, str, str, Object]] = []  # revision, collection, type, object
        self._faults: list[Fault] = []
        self._created: dict[str, Callable[[Object], None]] = {}
        self._revisions = itertools.count(1000)
        self._cuts = self._goners = 0
        self._changed = threading.Condition(threading.RLock())
        self._stopped = False

    def __enter__(self) -> KubernetesServer:
        self._listener = _Listener(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._listener.shutdown()
        self._listener.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.server_port}"

    def kubeconfig(self, path: Path, token: str = "good", namespace: str = "ml") -> Path:
        """Write a kubeconfig with one context `test` to `path`, and return it."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "someone", "user": {"token": token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "someone", "namespace": namespace}},
            ],
        }
        path.write_text(json.dumps(config))
        return path

    # What a test does behind the client's back.

    def put(self, path: str, content: Object) -> Object:
        """Create or replace the object at `path`; watchers see it."""
        place = Place.of(path)
        assert place is not None
        assert place.name, f"{path} names no object"
        with self._changed:
            known = self._objects.setdefault(place.collection, {}).get(place.name)
            kept = known["metadata"] if known else {}
            made = {"apiVersion": place.version, "kind": kind_of(place.plural), **copy.deepcopy(content)}
            names = {"name": place.name, **({"namespace": place.namespace} if place.namespace else {})}
            birth = {"uid": f"uid-{next(self._revisions)}", "creationTimestamp": now()}
            made["metadata"] = {**birth, **{key: kept[key] for key in birth if key in kept}, **made.get("metadata", {})}
            made["metadata"] |= names
            return self._keep(place.collection, place.name, made, "MODIFIED" if known else "ADDED")

    def get(self, path: str) -> Object | None:
        """Return the object at `path`, or None."""
        place = Place.of(path)
        assert place is not None
        with self._changed:
            return copy.deepcopy(self._objects.get(place.collection, {}).get(place.name))

    def names(self, collection: str) -> list[str]:
        """Return the names in a collection, in the order of their making."""
        with self._changed:
            return list(self._objects.get(collection, {}))

    def patch(self, path: str, change: Object) -> Object:
        """Merge `change` into the object at `path` (RFC 7396)."""
        known = self.get(path)
        assert known is not None, f"nothing at {path}"
        return self.put(path, merged(known, change))

    def remove(self, path: str) -> None:
        """Delete the object at `path` and, as garbage collection does, what it owns."""
        place = Place.of(path)
        assert place is not None
        with self._changed:
            gone = self._objects.get(place.collection, {}).pop(place.name, None)
            if gone is None:
                return
            self._event(place.collection, "DELETED", gone)
            owned = [
                f"{collection}/{name}"
                for collection, content in self._objects.items()
                for name, item in content.items()
                if any(o.get("uid") == gone["metadata"]["uid"] for o in item["metadata"].get("ownerReferences", []))
            ]
        for path_of_owned in owned:
            self.remove(path_of_owned)

    def on_create(self, collection: str, callback: Callable[[Object], None]) -> None:
        """Call `callback` with each object that a client creates in a collection, as a controller would see it."""
        self._created[collection] = callback

    def fail_next(
        self,
        status: int,
        times: int = 1,
        contains: str = "",
        method: str | None = None,
        headers: dict[str, str] | None = None,
        body: str | None = None,
    ) -> None:
        """Answer the next `times` fitting requests with `status`; 0 drops the connection without an answer."""
        self._faults.append(Fault(status, times, contains, method, headers or {}, body))

    def cut_watches(self, times: int = 1) -> None:
        """Drop the connections of running watches, or of the next one."""
        self._interrupt("_cuts", times)

    def gone_watches(self, times: int = 1) -> None:
        """End watches by 410 Gone: the revision they ask from is too old."""
        self._interrupt("_goners", times)

    # What the handler asks for.

    def revision(self) -> int:
        """Return the number of the last change."""
        return self._events[-1][0] if self._events else 999

    def listed(self, place: Place, query: dict[str, str]) -> list[Object]:
        """Return the objects of a collection, of all namespaces where none is named, that the selectors let pass."""
        with self._changed:
            found = [
                item
                for collection, content in self._objects.items()
                if same_collection(collection, place)
                for item in content.values()
            ]
            return copy.deepcopy([item for item in found if selected(item, query)])

    def create(self, place: Place, content: Object) -> Object | None:
        """Keep a new object, or return None where its name is taken."""
        metadata = content.setdefault("metadata", {})
        if "name" not in metadata:
            metadata["name"] = f"{metadata['generateName']}{next(self._revisions):x}"
        path = f"{place.collection}/{metadata['name']}"
        with self._changed:
            if self.get(path) is not None:
                return None
            made = self.put(path, content)
        if callback := self._created.get(place.collection):
            callback(copy.deepcopy(made))
        return made

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Return the fault that this request meets, and use it up."""
        with self._changed:
            for fault in self._faults:
                if fault.times and fault.contains in path and fault.method in (None, method):
                    fault.times -= 1
                    return fault
        return None

    def events(self, place: Place, query: dict[str, str], since: int, until: float) -> Any:
        """Yield (type, object) of changes after revision `since`; up to the time `until`; None means a dropped line."""
        while True:
            with self._changed:
                if self._goners:
                    self._goners -= 1
                    yield "ERROR", refusal(410, "too old resource version")
                    return
                if self._cuts:
                    self._cuts -= 1
                    yield None
                    return
                news = [event for event in self._events if event[0] > since and same_collection(event[1], place)]
                if not news:
                    left = until - time.monotonic()
                    if self._stopped or left <= 0:
                        return
                    self._changed.wait(min(left, 0.5))
                    continue
                since = news[-1][0]
            yield from ((kind, item) for _, _, kind, item in news if selected(item, query))

    def _interrupt(self, name: str, times: int) -> None:
        with self._changed:
            setattr(self, name, getattr(self, name) + times)
            self._changed.notify_all()

    def _keep(self, collection: str, name: str, item: Object, kind: str) -> Object:
        self._objects[collection][name] = item
        self._event(collection, kind, item)
        return copy.deepcopy(item)

    def _event(self, collection: str, kind: str, item: Object) -> None:
        number = next(self._revisions)
        item["metadata"]["resourceVersion"] = str(number)
        self._events.append((number, collection, kind, copy.deepcopy(item)))
        self._changed.notify_all()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None: ...  # a client that hangs up is what some tests want


def _group(name: str, versions: list[str]) -> Object:
    served = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"apiVersion": "v1", "kind": "APIGroup", "name": name, "versions": served, "preferredVersion": served[0]}


def _handler(server: KubernetesServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self._answer("get")

        def do_POST(self) -> None:
            self._answer("create")

        def do_PUT(self) -> None:
            self._answer("update")

        def do_PATCH(self) -> None:
            self._answer("patch")

        def do_DELETE(self) -> None:
            self._answer("delete")

        def _answer(self, verb: str) -> None:
            split = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(split.query))
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            server.requests.append((self.command, self.path))
            fault = server.fault_for(self.command, self.path)
            if fault is not None:
                return self._misbehave(fault)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if server.tokens and token not in server.tokens:
                return self._fail(401, "Unauthorized")
            if split.path == "/version":
                return self._send(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.1"})
            if split.path in _REVIEWS:
                return self._review(body)
            group = split.path.removeprefix("/apis/")
            if group in server.groups:
                return self._send(200, _group(group, server.groups[group]))
            place = Place.of(split.path)
            if place is None or not place.plural:
                return self._fail(404, f"the server could not find {split.path}")
            if verb == "get" and not place.name:
                verb = "watch" if query.get("watch") in ("true", "True", "1") else "list"
            if (verb, place.group, place.plural) in server.denied:
                return self._fail(403, f'{place.plural} is forbidden: User "someone" cannot {verb} resource')
            return getattr(self, f"_{verb}")(place, query, body)

        def _misbehave(self, fault: Fault) -> None:
            if fault.status == 0:
                self.close_connection = True
                self.connection.close()
            elif fault.body is not None:
                self._send_bytes(fault.status, fault.body.encode(), {"Content-Type": "text/html", **fault.headers})
            else:
                self._fail(fault.status, "the server was told to fail", fault.headers)

        def _review(self, body: Object) -> None:
            wanted = body["spec"]["resourceAttributes"]
            key = (wanted.get("verb", ""), wanted.get("group") or "", wanted.get("resource", ""))
            self._send(201, {**body, "status": {"allowed": key not in server.denied}})

        def _get(self, place: Place, query: dict[str, str], _: Object) -> None:
            item = server.get(f"{place.collection}/{place.name}")
            if item is None:
                return self._fail(404, f'{place.plural} "{place.name}" not found')
            if place.subresource == "log":
                text = server.logs.get((place.namespace, place.name), "")
                if tail := int(query.get("tailLines") or 0):
                    text = "".join(text.splitlines(keepends=True)[-tail:])
                return self._send_bytes(200, text.encode(), {"Content-Type": "text/plain"})
            return self._send(200, item)

        def _list(self, place: Place, query: dict[str, str], _: Object) -> None:
            revision = str(server.revision())
            items = server.listed(place, query)
            head = {"apiVersion": place.version, "kind": f"{kind_of(place.plural)}List"}
            self._send(200, {**head, "metadata": {"resourceVersion": revision}, "items": items})

        def _watch(self, place: Place, query: dict[str, str], _: Object) -> None:
            since = int(query.get("resourceVersion") or 0)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with contextlib.suppress(OSError):
                for event in server.events(
                    place, query, since, time.monotonic() + float(query.get("timeoutSeconds") or 60)
                ):
                    if event is None:
                        self.close_connection = True
                        self.connection.close()
                        return
                    line = json.dumps({"type": event[0], "object": event[1]}).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

        def _create(self, place: Place, query: dict[str, str], body: Object) -> None:
            made = server.create(place, body)
            if made is None:
                return self._fail(409, f'{place.plural} "{body["metadata"]["name"]}" already exists')
            return self._send(201, made)

        def _update(self, place: Place, query: dict[str, str], body: Object) -> None:
            path = f"{place.collection}/{place.name}"
            known = server.get(path)
            if known is None:
                return self._fail(404, f'{place.plural} "{place.name}" not found')
            asked = body.get("metadata", {}).get("resourceVersion")
            if asked and asked != known["metadata"]["resourceVersion"]:
                return self._fail(409, "the object has been modified", reason="Conflict")
            return self._send(200, server.put(path, body))

        def _patch(self, place: Place, query: dict[str, str], body: Object) -> None:
            path = f"{place.collection}/{place.name}"
            if server.get(path) is None:
                return self._fail(404, f'{place.plural} "{place.name}" not found')
            return self._send(200, server.patch(path, body))

        def _delete(self, place: Place, query: dict[str, str], _: Object) -> None:
            path = f"{place.collection}/{place.name}"
            if server.get(path) is None:
                return self._fail(404, f'{place.plural} "{place.name}" not found')
            server.remove(path)
            return self._send(200, {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"})

        def _fail(
            self, status: int, message: str, headers: dict[str, str] | None = None, reason: str | None = None
        ) -> None:
            self._send(status, refusal(status, message, reason), headers)

        def _send(self, status: int, content: Object, headers: dict[str, str] | None = None) -> None:
            self._send_bytes(
                status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})}
            )

        def _send_bytes(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler
