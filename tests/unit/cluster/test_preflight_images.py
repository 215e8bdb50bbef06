"""Whether a registry has what the pods run is asked as a node would ask."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from multimodal_gemma.cluster import client
from multimodal_gemma.cluster.checks import images
from multimodal_gemma.cluster.needs import Needs
from multimodal_gemma.cluster.train_job_api import Namespace
from tests.servers.kubernetes_api import KubernetesServer

DIGEST = "sha256:" + "a" * 64


@contextlib.contextmanager
def registry(*, private: bool) -> Iterator[str]:
    """A registry with one image, team/pipeline:1.0; a private one wants the token that its realm gives to "me"."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            realm = f'Bearer realm="http://{self.headers["Host"]}/token",service="here",scope="repository:team:pull"'
            if private and self.headers.get("Authorization") != "Bearer open":
                self.send_response(401)
                self.send_header("WWW-Authenticate", realm)
            else:
                known = self.path in ("/v2/team/pipeline/manifests/1.0", f"/v2/team/pipeline/manifests/{DIGEST}")
                self.send_response(200 if known else 404)
            self.end_headers()

        def do_GET(self) -> None:
            mine = base64.b64encode(b"me:secret").decode()
            token = "open" if self.headers.get("Authorization") == f"Basic {mine}" else "shut"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"token": token}).encode())

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()


@pytest.fixture
def cluster(tmp_path) -> Iterator[tuple[KubernetesServer, Namespace]]:
    with KubernetesServer() as server:
        path = server.kubeconfig(tmp_path / "kubeconfig")
        yield server, Namespace(lambda: client.connect(path), "ml", patience=2.0)


def test_an_image_that_is_there_and_one_that_cannot_be_pulled(cluster) -> None:
    with registry(private=False) as host:
        names = [f"{host}/team/pipeline:1.0", f"{host}/team/pipeline@{DIGEST}", f"{host}/team/trainer:1.0"]
        found = images.images(cluster[1], Needs("ml", images=names))
    assert [finding.state for finding in found] == ["ok", "ok", "failed"]
    assert "has no image team/trainer 1.0, so it cannot be pulled" in found[2].told
    assert "make images push" in found[2].remedy


def test_a_private_registry_opens_with_the_service_accounts_pull_secret(cluster) -> None:
    server, namespace = cluster
    with registry(private=True) as host:
        needs = Needs("ml", images=[f"{host}/team/pipeline:1.0"])
        (shut,) = images.images(namespace, needs)
        entry = {"auths": {host: {"auth": base64.b64encode(b"me:secret").decode()}}}
        data = {".dockerconfigjson": base64.b64encode(json.dumps(entry).encode()).decode()}
        server.put("/api/v1/namespaces/ml/secrets/registry", {"data": data})
        account = {"imagePullSecrets": [{"name": "registry"}]}
        server.put("/api/v1/namespaces/ml/serviceaccounts/multimodal-gemma", account)
        (opened,) = images.images(namespace, needs)
    assert (shut.state, opened.state) == ("unknown", "ok")
    assert "no pull secret names it" in shut.told


def test_a_registry_that_cannot_be_reached_from_here_proves_nothing(cluster) -> None:
    (found,) = images.images(cluster[1], Needs("ml", images=["127.0.0.1:9/team/pipeline:1.0"]))
    assert found.state == "unknown"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ghcr.io/team/pipeline:0.1.0", ("ghcr.io", "team/pipeline", "0.1.0")),
        (f"ghcr.io/team/pipeline@{DIGEST}", ("ghcr.io", "team/pipeline", DIGEST)),
        ("localhost:5000/pipeline", ("localhost:5000", "pipeline", "latest")),
        ("python:3.11", ("registry-1.docker.io", "library/python", "3.11")),
        ("bitnami/redis:7", ("registry-1.docker.io", "bitnami/redis", "7")),
    ],
)
def test_names_are_completed_as_docker_does(name, expected) -> None:
    assert images.parts(name) == expected
