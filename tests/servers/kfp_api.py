"""A KFP API server (v2beta1) on the loopback interface, as much of it as a client sees.

It keeps pipelines, versions (uploaded as multipart forms), experiments, runs whose tasks advance from question to
question, and recurring runs. It can be told to misbehave as real ones do: refuse tokens, answer 409, 429 or 5xx, show a
web page, and drop connections before or after it has acted.
"""

from __future__ import annotations

import dataclasses
import datetime
import email.parser
import email.policy
import itertools
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.servers.kfp_nodes import Task, details, logs, stopped, training

Object = dict[str, Any]
_LIMIT = 10_000  # bytes of parameters
PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:8888/proxy"


@dataclasses.dataclass
class Fault:
    """What happens instead of (or after) the right answer, `times` times, where method and path match."""

    times: int
    contains: str
    method: str
    status: int
    headers: dict[str, str]
    body: str
    cut: str  # "", "before" (the request is lost) or "after" (it is acted on, and the answer is lost)


class Failure(Exception):
    """An answer that is an error, in the shape of google.rpc.Status as the gateway writes it."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class KfpServer:
    """The server; a context manager.

    Attributes:
        tokens: bearer tokens that are accepted; empty: none is asked for.
        requests: (method, path without query) of every request, in order.
        story: what the next runs will go through.
        step: seconds of the story between two questions after a run.
        logs: what nodes and pods say, by their names, besides what the stories tell.
        objects: of Kubernetes, by path: it stands behind an API server's proxy too, with the same tokens.
        drops_platform: it keeps no platform specification, as servers before 2.17.
        compressed: it lists no tasks, as where the workflow's status is compressed.
    """

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.story: list[Task] = training()
        self.step = 2_500.0
        self.logs: dict[str, str] = {}
        self.objects: dict[str, Object] = {}
        self.drops_platform = self.compressed = False
        self.pipelines: dict[str, Object] = {}
        self.versions: dict[str, Object] = {}
        self.experiments: dict[str, Object] = {}
        self.runs: dict[str, Object] = {}
        self.recurring: dict[str, Object] = {}
        self.killed: list[str] = []  # recurring runs whose Workflows were deleted with them
        self.stories: dict[str, list[Task]] = {}
        self.elapsed: dict[str, float] = {}
        self.past: dict[str, list[str]] = {}  # states of runs before the last attempt
        self.stops: dict[str, float] = {}  # when a run was stopped, in seconds of its story
        self._faults: list[Fault] = []
        self._ids = itertools.count(1)
        self._lock = threading.RLock()

    def __enter__(self) -> KfpServer:
        self._listener = _Listener(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._listener.server_port}"

    def kubeconfig(self, path: Path, token: str = "kube") -> Path:
        """Write a kubeconfig whose API server stands before this server, and return it."""
        named = {"cluster": "c", "user": "u", "namespace": "kubeflow"}
        config = {
            "current-context": "x",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": named}],
        }
        path.write_text(json.dumps(config))
        return path

    def misbehave(
        self,
        status: int = 0,
        *,
        times: int = 1,
        contains: str = "",
        method: str = "",
        headers: dict[str, str] | None = None,
        body: str = "",
        cut: str = "",
    ) -> None:
        """Answer `status`, or cut the connection, for the next `times` requests that match."""
        self._faults.append(Fault(times, contains, method, status, headers or {}, body, cut))

    def count(self, method: str, ending: str) -> int:
        """Return how many requests had this method and a path with this ending."""
        return sum(made == method and path.endswith(ending) for made, path in self.requests)

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Return, and use up once, the first fault that matches."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.contains in path and fault.method in ("", method):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, method: str, path: str, query: dict[str, str], body: Object, upload: str) -> Object:
        """Do what a request asks; return the answer."""
        with self._lock:
            for pattern, verb, function in _ROUTES:
                match = re.fullmatch(f"/apis/v2beta1{pattern}", path)
                if match and verb == method:
                    call = {"query": query, "body": body, "upload": upload}
                    return dict(getattr(self, function)(*match.groups(), **call))
        raise Failure(404, 5, "Not Found")

    # Pipelines.

    def _healthz(self, **_: Any) -> Object:
        return {"multi_user": False, "pipeline_store": "database"}

    def _list_pipelines(self, *, query: dict[str, str], **_: Any) -> Object:
        return _page("pipelines", list(self.pipelines.values()), query)

    def _create_pipeline(self, *, body: Object, **_: Any) -> Object:
        if any(known["display_name"] == body["display_name"] for known in self.pipelines.values()):
            raise Failure(409, 6, f"The name {body['display_name']} already exists. Please specify a new name")
        made = {"pipeline_id": self._new("pipeline"), "created_at": _now(), **body}
        self.pipelines[made["pipeline_id"]] = made
        return made

    def _list_versions(self, pipeline: str, *, query: dict[str, str], **_: Any) -> Object:
        return _page("pipeline_versions", [v for v in self.versions.values() if v["pipeline_id"] == pipeline], query)

    def _get_version(self, pipeline: str, version: str, **_: Any) -> Object:
        return dict(_known(self.versions, version, "PipelineVersion"))

    def _upload_version(self, *, query: dict[str, str], upload: str, **_: Any) -> Object:
        _known(self.pipelines, query["pipelineid"], "Pipeline")
        documents = list(yaml.load_all(upload, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        if "pipelineInfo" not in documents[0]:
            raise Failure(400, 3, "Invalid input error: unknown template format")
        if any(v["name"] == query["name"] for v in self.versions.values()):
            raise Failure(409, 6, f"The name {query['name']} already exists. Please specify a new name")
        spec = documents[0]
        if len(documents) > 1 and not self.drops_platform:
            spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        made = {
            "pipeline_id": query["pipelineid"],
            "pipeline_version_id": self._new("version"),
            "display_name": query.get("display_name") or query["name"],
            "name": query["name"],
            "description": query.get("description", ""),
            "created_at": _now(),
            "pipeline_spec": spec,
        }
        self.versions[made["pipeline_version_id"]] = made
        return made

    # Experiments.

    def _list_experiments(self, *, query: dict[str, str], **_: Any) -> Object:
        return _page("experiments", list(self.experiments.values()), query)

    def _create_experiment(self, *, body: Object, **_: Any) -> Object:
        if any(known["display_name"] == body["display_name"] for known in self.experiments.values()):
            raise Failure(409, 6, f"Already exist error: an experiment called {body['display_name']}")
        made = {"experiment_id": self._new("experiment"), "created_at": _now(), "storage_state": "AVAILABLE", **body}
        self.experiments[made["experiment_id"]] = made
        return made

    # Runs.

    def _create_run(self, *, body: Object, **_: Any) -> Object:
        _known(self.experiments, body["experiment_id"], "Experiment")
        _known(self.versions, body["pipeline_version_reference"]["pipeline_version_id"], "PipelineVersion")
        if len(json.dumps(body["runtime_config"].get("parameters", {})).encode()) > _LIMIT:
            raise Failure(400, 3, "The input parameter length exceed maximum size of 10000.")
        identity = self._new("run")
        self.runs[identity] = {"run_id": identity, "created_at": _now(), "storage_state": "AVAILABLE", **body}
        self.stories[identity], self.elapsed[identity] = list(self.story), -self.step
        return self._run(identity)

    def _get_run(self, identity: str, **_: Any) -> Object:
        _known(self.runs, identity, "Run")
        if identity in self.elapsed:
            self.elapsed[identity] += self.step
        return self._run(identity)

    def _list_runs(self, *, query: dict[str, str], **_: Any) -> Object:
        found = [self._run(key) for key, run in self.runs.items() if run["experiment_id"] == query.get("experiment_id")]
        return _page("runs", found[::-1] if query.get("sort_by") == "created_at desc" else found, query)

    def _terminate(self, identity: str, **_: Any) -> Object:
        _known(self.runs, identity, "Run")
        self.stories[identity] = stopped(self.stories[identity], max(self.elapsed[identity], 0.0))
        self.stops[identity] = max(self.elapsed[identity], 0.0)
        return {}

    def _retry(self, identity: str, **_: Any) -> Object:
        run = self._run(identity)
        if run["state"] not in ("FAILED", "CANCELED"):
            raise Failure(400, 3, f"Failed to retry run {identity}: it has not failed")
        self.past[identity] = [entry["state"] for entry in run["state_history"]]
        self.stops.pop(identity, None)
        begun = min(task.begin for task in self.stories[identity] if task.state == "FAILED")
        self.stories[identity], self.elapsed[identity] = list(self.story), begun
        return {}

    def replay(self, answer: Object, spec: Object, said: dict[str, str]) -> str:
        """Keep a real server's answer to a run, a specification of its pipeline and the logs of its nodes."""
        identity, version = answer["run_id"], answer["pipeline_version_reference"]["pipeline_version_id"]
        self.runs[identity] = {**answer, "replayed": True}
        self.versions[version] = {"pipeline_version_id": version, "display_name": "that day's", "pipeline_spec": spec}
        self.logs |= said
        return str(identity)

    def log(self, identity: str, node: str) -> str:
        """Return a log as the server streams it; where it has none, an error that follows status 200."""
        told = dict(self.logs)
        if identity in self.stories and self.elapsed[identity] >= 0:
            told |= logs(f"multimodal-gemma-training-{identity[-4:]}", self.stories[identity])
        if node in told:
            return told[node]
        message = f"Failed to read logs for run {identity}"
        return json.dumps({"error_message": message, "error_details": f"{message}: not found"})

    def _run(self, identity: str) -> Object:
        if self.runs[identity].get("replayed"):
            return {key: value for key, value in self.runs[identity].items() if key != "replayed"}
        story, elapsed = self.stories[identity], max(self.elapsed[identity], 0.0)
        run = dict(self.runs[identity])
        over = all(task.end <= elapsed for task in story)
        bad = identity in self.stops or any(task.state == "FAILED" for task in story)
        begun = elapsed > 0 or identity in self.past
        states = [*self.past.get(identity, ["PENDING"]), *(["RUNNING"] if begun else [])]
        states += ["CANCELING"] if identity in self.stops else []
        states += [("FAILED" if bad else "SUCCEEDED")] if over else []
        now = datetime.datetime.now(datetime.UTC)
        stop = now - datetime.timedelta(seconds=elapsed - self.stops.get(identity, elapsed) + 1)
        run["state"] = states[-1]
        run["state_history"] = [
            {"state": state, "update_time": f"{stop if state == 'CANCELING' else now:%Y-%m-%dT%H:%M:%SZ}"}
            for state in states
        ]
        if begun and not self.compressed:
            name = f"multimodal-gemma-training-{identity[-4:]}"
            run["run_details"] = {"task_details": details(name, story, elapsed, now)}
        return run

    # Recurring runs.

    def _list_recurring(self, *, query: dict[str, str], **_: Any) -> Object:
        return _page("recurringRuns", list(self.recurring.values()), query)

    def _create_recurring(self, *, body: Object, **_: Any) -> Object:
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
            raise Failure(400, 3, "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron).")
        if not 1 <= int(body["max_concurrency"]) <= 10:
            raise Failure(400, 3, "Max concurrency of a recurring run must be at least 1 and at most 10.")
        status = "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"
        made = {"recurring_run_id": self._new("recurring"), "created_at": _now(), **body, "status": status}
        self.recurring[made["recurring_run_id"]] = made
        return made

    def _switch(self, identity: str, switch: str, **_: Any) -> Object:
        entry = _known(self.recurring, identity, "RecurringRun")
        entry["status"], entry["mode"] = ("ENABLED", "ENABLE") if switch == "enable" else ("DISABLED", "DISABLE")
        return {}

    def _delete_recurring(self, identity: str, *, query: dict[str, str], **_: Any) -> Object:
        _known(self.recurring, identity, "RecurringRun")
        del self.recurring[identity]
        if query.get("propagation_policy") != "ORPHAN":  # its Workflows go with it, and their runs never end
            self.killed.append(identity)
        return {}

    def _new(self, kind: str) -> str:
        return f"{kind}-{next(self._ids):04d}"


_ROUTES = [
    ("/healthz", "GET", "_healthz"),
    ("/pipelines", "GET", "_list_pipelines"),
    ("/pipelines", "POST", "_create_pipeline"),
    ("/pipelines/upload_version", "POST", "_upload_version"),
    ("/pipelines/([^/]+)/versions", "GET", "_list_versions"),
    ("/pipelines/([^/]+)/versions/([^/]+)", "GET", "_get_version"),
    ("/experiments", "GET", "_list_experiments"),
    ("/experiments", "POST", "_create_experiment"),
    ("/runs", "GET", "_list_runs"),
    ("/runs", "POST", "_create_run"),
    ("/runs/([^/:]+)", "GET", "_get_run"),
    ("/runs/([^/:]+):terminate", "POST", "_terminate"),
    ("/runs/([^/:]+):retry", "POST", "_retry"),
    ("/recurringruns", "GET", "_list_recurring"),
    ("/recurringruns", "POST", "_create_recurring"),
    ("/recurringruns/([^/:]+)", "DELETE", "_delete_recurring"),
    ("/recurringruns/([^/:]+):(enable|disable)", "POST", "_switch"),
]


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _known(records: dict[str, Object], identity: str, kind: str) -> Object:
    if identity not in records:
        raise Failure(404, 5, f"{kind} {identity} not found.")
    return records[identity]


def _page(field: str, records: list[Object], query: dict[str, str]) -> Object:
    for wanted in json.loads(query.get("filter") or "{}").get("predicates", []):
        assert wanted["operation"] == "EQUALS", wanted
        records = [record for record in records if record.get(wanted["key"]) == wanted["stringValue"]]
    start, size = int(query.get("page_token") or 0), int(query.get("page_size") or 10)
    shown: Object = {"total_size": len(records)}
    if records[start : start + size]:
        shown[field] = records[start : start + size]
    if start + size < len(records):
        shown["next_page_token"] = str(start + size)
    return shown


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None: ...  # a client that hangs up is what some tests want


def _handler(server: KfpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self._do()

        def do_POST(self) -> None:
            self._do()

        def do_DELETE(self) -> None:
            self._do()

        def _do(self) -> None:
            split = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(split.query))
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.requests.append((self.command, split.path))
            fault = server.fault_for(self.command, split.path)
            if fault and fault.status:
                return self._send(fault.status, fault.body or json.dumps({"message": "fault"}), fault.headers)
            if fault and fault.cut == "before":
                return self._hang_up()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if server.tokens and token not in server.tokens:
                return self._fail(Failure(401, 16, "Request header error: there is no valid token"))
            path = split.path.removeprefix(PROXY)
            if not path.startswith(("/apis/v2beta1", "/apis/v1alpha1")):
                return self._of_kubernetes(path)
            if asked := re.fullmatch("/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path):
                return self._send(200, server.log(*asked.groups()), {"Content-Type": "text/plain"})
            try:
                made = server.answer(self.command, path, query, *self._read(content))
            except Failure as failure:
                return self._fail(failure)
            if fault and fault.cut == "after":
                return self._hang_up()
            return self._send(200, json.dumps(made), {})

        def _of_kubernetes(self, path: str) -> None:
            found = server.objects.get(path)
            missing = {"kind": "Status", "status": "Failure", "message": f"{path} not found", "code": 404}
            return self._send(200 if found else 404, json.dumps(found or missing), {})

        def _read(self, content: bytes) -> tuple[Object, str]:
            kind = self.headers.get("Content-Type") or ""
            if kind.startswith("multipart/form-data"):
                message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
                    b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content
                )
                parts = [part for part in message.iter_parts() if part.get_filename()]
                return {}, parts[0].get_payload(decode=True).decode()  # type: ignore[union-attr]
            return (json.loads(content) if content else {}), ""

        def _fail(self, failure: Failure) -> None:
            body: Object = {"error": failure.message, "code": failure.code, "message": failure.message, "details": []}
            if "upload" in self.path:  # its handler is none of the gateway's
                body = {"error_message": failure.message, "error_details": failure.message}
            self._send(failure.status, json.dumps(body), {})

        def _send(self, status: int, body: str, headers: dict[str, str]) -> None:
            content = body.encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _hang_up(self) -> None:
            self.close_connection = True

    return Handler
