"""Requests to the Kubernetes API about one namespace's objects, that survive the API's weather.

A training takes days. In that time connections break, tokens expire, and the API is busy or restarted; a follower that
ends with the first of these would end the training. What the API refuses for good becomes `Refused`, what it never
answers an `InputError`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Object = dict[str, Any]

TRAINJOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs"
RUNTIMES = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainingruntimes"
WORKLOADS = "/apis/kueue.x-k8s.io/v1beta2/namespaces/{namespace}/workloads"
PODS = "/api/v1/namespaces/{namespace}/pods"

_TIMEOUT = (10, 60)  # seconds to connect, and to the answer
_LONGEST_PAUSE = 30.0  # seconds between two tries
_TRIED_AGAIN = {408, 429, 500, 502, 503, 504}


class Refused(Exception):
    """The API understood and refused.

    Attributes:
        status: HTTP status.
        message: what the API said.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


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
        self._connect, self._client, self._lock = connect, connect(), threading.Lock()

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
        """Yield changes after a revision as {"type", "object"}, for some seconds or until the connection breaks."""
        import urllib3
        from kubernetes.watch.watch import iter_resp_lines

        query = {**selector, "watch": "true", "resourceVersion": revision, "timeoutSeconds": str(seconds)}
        with self._lock:
            client = self._client
        answer = None
        try:
            answer = self._send(client, "GET", self._at(collection), query, None, (_TIMEOUT[0], seconds + 30))
            for line in iter_resp_lines(answer):
                yield json.loads(line)
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            return
        finally:
            if answer is not None:
                answer.close()

    def _at(self, collection: str) -> str:
        return collection.format(namespace=self.name)

    def _object(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> Object:
        return dict(json.loads(self._ask(method, path, query, body)))

    def _ask(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> bytes:
        """Return the answer's bytes; a busy or silent API is asked again, an expired token renewed once."""
        import urllib3
        from kubernetes.client import ApiException

        begun, pause, renewed = time.monotonic(), self.pause, False
        while True:
            with self._lock:
                client = self._client
            try:
                answer = self._send(client, method, path, query, body, _TIMEOUT)
                return bytes(answer.data)
            except ApiException as error:
                status, wait = error.status, _retry_after(error)
                if status == 401 and not renewed:
                    renewed = True
                    with self._lock:  # unless another thread has just done so
                        if client is self._client:
                            self._client = self._connect()
                    continue
                if status == 401:
                    raise InputError(
                        "cluster: the API refuses the token even after it was renewed. Log in again, or check the "
                        "service account of the run."
                    ) from None
                if status not in _TRIED_AGAIN:
                    raise Refused(status, _message(error)) from None
                trouble = f"it answers {status}"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                wait, trouble = None, type(error).__name__
            if time.monotonic() - begun > self.patience:
                raise InputError(
                    f"cluster: the Kubernetes API has not answered for {self.patience:.0f} s ({trouble}). Check the "
                    "cluster, and run again: what runs there is found again."
                )
            logs.get("train").debug(f"the Kubernetes API is asked again ({trouble})")
            time.sleep(min(wait if wait is not None else pause, _LONGEST_PAUSE))
            pause = min(pause * 2, _LONGEST_PAUSE)

    @staticmethod
    def _send(
        client: ApiClient,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        timeout: tuple[float, float],
    ) -> Any:
        headers = {"Accept": "*/*", "Content-Type": "application/json"}
        return client.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params=headers,
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


def _retry_after(error: Any) -> float | None:
    value = (error.headers or {}).get("Retry-After", "")
    return float(value) if str(value).isdecimal() else None
