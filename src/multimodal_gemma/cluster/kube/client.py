"""The Kubernetes API: a way in, from a pod or by a kubeconfig, and the objects of one namespace.

A training takes days. In that time connections break, tokens expire, and the API is busy or restarted; a follower that
ends with the first of these would end the training. What the API refuses for good becomes `Refused`, what it never
answers an `InputError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import logs
from multimodal_gemma.cluster.patience import TIMEOUT, Refused, Unanswered, persist
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Object = dict[str, Any]

TRAINJOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs"
RUNTIMES = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainingruntimes"
WORKLOADS = "/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/workloads"
WORKFLOWS = "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
PODS = "/api/v1/namespaces/{namespace}/pods"

_MOUNTED = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where a pod finds its token and namespace


def in_cluster() -> bool:
    """Tell whether this process runs in a pod that may speak to the API."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (_MOUNTED / "token").is_file()


def connect(kubeconfig: Path | None = None, context: str | None = None) -> ApiClient:
    """Return a client of the Kubernetes API with the credentials of the moment.

    Args:
        kubeconfig: file to read; None: in a pod its own token, else KUBECONFIG or ~/.kube/config.
        context: of the kubeconfig; None: its current one.

    Raises:
        InputError: there is no kubeconfig, it cannot be read, or it has no such context.
    """
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    settings = client.Configuration()
    settings.retries = False  # what is asked again, and for how long, is decided where it is asked
    if kubeconfig is None and context is None and in_cluster():
        config.load_incluster_config(client_configuration=settings)
        return client.ApiClient(settings)
    path = _kubeconfig(kubeconfig)
    try:
        config.load_kube_config(str(path), context=context, client_configuration=settings)
    except ConfigException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        known = ", ".join(sorted(_contexts(path))) or "none"
        raise InputError(
            f"cluster: {path} gives no way into a cluster ({reason}). Its contexts: {known}. Choose one with "
            "--context, or log in again."
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"cluster: {path} is no kubeconfig ({type(error).__name__}). Log in again.") from None
    return client.ApiClient(settings)


def current_namespace(kubeconfig: Path | None = None, context: str | None = None) -> str:
    """Return the namespace that a pod is in or that a kubeconfig's context names; "default" where neither does."""
    if kubeconfig is None and context is None and in_cluster():
        return (_MOUNTED / "namespace").read_text(encoding="utf-8").strip()
    contexts = _contexts(_kubeconfig(kubeconfig))
    chosen = context or next((name for name, found in contexts.items() if found["current"]), "")
    return contexts.get(chosen, {}).get("namespace") or "default"


def _kubeconfig(given: Path | None) -> Path:
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    path = given or Path(named or "~/.kube/config").expanduser()
    if not path.is_file():
        raise InputError(
            f"cluster: there is no kubeconfig at {path}, and this is no pod. Log in to the cluster (gcloud container "
            "clusters get-credentials NAME, or kind export kubeconfig), or name the file with --kubeconfig."
        )
    return path


def _contexts(path: Path) -> dict[str, dict[str, str]]:
    """Return namespace and whether it is current, by name of the context; {} where the file has none."""
    from kubernetes import config
    from kubernetes.config.config_exception import ConfigException

    try:
        every, current = config.list_kube_config_contexts(str(path))
    except (ConfigException, TypeError, KeyError):
        return {}
    return {
        item["name"]: {
            "namespace": item["context"].get("namespace", ""),
            "current": "yes" if current and item["name"] == current["name"] else "",
        }
        for item in every
    }


class Namespace:
    """The objects of one namespace.

    Args:
        connect: returns a client with the credentials of the moment; called again when a token has expired.
        name: the namespace.
        patience: seconds without any answer before giving up.
        pause: seconds before the first new try; it doubles from try to try.
    """

    def __init__(
        self, connect: Callable[[], ApiClient], name: str, *, patience: float = 600.0, pause: float = 1.0
    ) -> None:
        self.name, self.patience, self.pause = name, patience, pause
        self._connect, self._client = connect, connect()

    def get(self, collection: str, name: str) -> Object | None:
        """Return an object, or None where there is no such."""
        try:
            return self._object("GET", f"{self._at(collection)}/{name}")
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def list(self, collection: str, selector: Mapping[str, str]) -> tuple[list[Object], str]:
        """Return the objects that a selector picks (labelSelector=…, fieldSelector=…), and the revision of the list."""
        found = self._object("GET", self._at(collection), dict(selector))
        return list(found.get("items") or []), str(found["metadata"].get("resourceVersion", ""))

    def create(self, collection: str, content: Object) -> Object:
        """Create an object; `Refused` with status 409 where its name is taken."""
        return self._object("POST", self._at(collection), body=content)

    def delete(self, collection: str, name: str) -> bool:
        """Ask for the deletion of an object and what it owns; False where there is no such."""
        try:
            self._object("DELETE", f"{self._at(collection)}/{name}", {"propagationPolicy": "Foreground"})
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        return True

    def log(self, pod: str, container: str, lines: int) -> str:
        """Return the last lines of a container's log; "" where it has none to give."""
        query = {"container": container, "tailLines": str(lines)}
        try:
            return self._ask("GET", f"{self._at(PODS)}/{pod}/log", query).decode("utf-8", errors="replace")
        except Refused:  # not started yet, or gone with its node
            return ""

    def watch(self, collection: str, selector: Mapping[str, str], revision: str, seconds: int) -> Iterator[Object]:
        """Yield changes after a revision as {"type", "object"}, for some seconds.

        Raises:
            Exception: whatever ends the watch before: a lost connection, or 410 for a revision that is forgotten.
        """
        from kubernetes.watch import Watch

        def opened(**_: Any) -> Any:
            query = {**selector, "watch": "true", "resourceVersion": revision, "timeoutSeconds": str(seconds)}
            return self._send("GET", self._at(collection), query, None, (TIMEOUT[0], seconds + 30))

        yield from Watch().stream(opened, timeout_seconds=seconds)

    def _at(self, collection: str) -> str:
        return collection.format(namespace=self.name)

    def _object(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> Object:
        return dict(json.loads(self._ask(method, path, query, body)))

    def _ask(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> bytes:
        """Return the answer's bytes."""
        from kubernetes.client import ApiException

        told = logs.get("cluster").debug
        try:
            return persist(
                lambda: bytes(self._send(method, path, query, body, TIMEOUT).data),
                ApiException,
                seconds=self.patience,
                pause=self.pause,
                renew=self._renew,
                told=lambda trouble: told(f"the Kubernetes API is asked again ({trouble})"),
            )
        except ApiException as error:
            if error.status == 401:
                raise InputError(
                    "cluster: the API refuses the token even after it was renewed. Log in again, or check the service "
                    "account of the run."
                ) from None
            raise Refused(error.status, _message(error)) from None
        except Unanswered as trouble:
            raise InputError(
                f"cluster: the Kubernetes API has not answered for {self.patience:.0f} s ({trouble}). Check the "
                "cluster, and run again: what runs there is found again."
            ) from None

    def _renew(self) -> None:
        self._client = self._connect()

    def _send(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, timeout: tuple[float, float]
    ) -> Any:
        return self._client.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params={"Accept": "*/*", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=timeout,
        )


def _message(error: Any) -> str:
    """Return what the API said, without the rest of its answer."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or "no reason given")
