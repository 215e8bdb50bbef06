"""Calls to a KFP server that survive its weather.

The generated client of KFP (`kfp_server_api`, v2beta1) knows the paths and the shapes. What a person needs on top is
here: what `patience` tries again is tried again, but never a request that may have made something; a login page is
recognised for what it is; and what remains is one sentence.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from multimodal_gemma import logs
from multimodal_gemma.cluster.patience import TIMEOUT, TRIED_AGAIN, Refused, Unanswered, broken, persist
from multimodal_gemma.errors import InputError

if TYPE_CHECKING:
    from multimodal_gemma.cluster.kube.client import Namespace

_log = logs.get("submit")
_LOG_BYTES = 65_536  # of a log's end
_ERROR_CHARACTERS = 40  # at the beginning of a log that is none


class Doubtful(Exception):
    """A request was sent and it is not known whether the server acted on it."""


@dataclasses.dataclass
class Patience:
    """How long to try again.

    Attributes:
        seconds: without any answer, before giving up.
        pause: seconds before the first new try; it doubles from try to try.
    """

    seconds: float = 20.0
    pause: float = 1.0


@dataclasses.dataclass(frozen=True)
class Door:
    """The way to a server.

    Attributes:
        host: address of the API, e.g. https://kubeflow.example.com/pipeline.
        token: gives the bearer token of the moment; "" where none is used.
        renewable: another token can be had when one is refused.
        settings: TLS settings of the generated client, by name.
        cluster: the namespace of the runs in Kubernetes, for whoever has a kubeconfig.
    """

    host: str
    token: Callable[[], str] = dataclasses.field(default=lambda: "", repr=False)
    renewable: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cluster: Namespace | None = None


class Api:
    """A connection to one KFP server.

    Args:
        door: the way to it.
        patience: how long a request is tried; `follow` asks for more.
    """

    def __init__(self, door: Door, patience: Patience | None = None) -> None:
        try:
            import kfp_server_api as generated
        except ImportError:
            raise InputError(
                "kfp: its client is not installed. Install it: pip install 'multimodal-gemma[pipeline]'."
            ) from None
        self.host, self.cluster = door.host.rstrip("/"), door.cluster
        self.patience = patience or Patience()
        self.troubled: Callable[[str], None] = lambda trouble: _log.warning(trouble)
        self._door = door
        self._settings = generated.Configuration(host=self.host)
        self._settings.retries = False  # `persist` decides what is tried again
        for name, value in door.settings.items():
            setattr(self._settings, name, value)
        self._authorise()
        self._client = generated.ApiClient(self._settings)
        self.pipelines = generated.PipelineServiceApi(self._client)
        self.uploads = generated.PipelineUploadServiceApi(self._client)
        self.experiments = generated.ExperimentServiceApi(self._client)
        self.runs = generated.RunServiceApi(self._client)
        self.recurring = generated.RecurringRunServiceApi(self._client)

    def call(self, function: Callable[..., Any], *args: Any, once: bool = False, **options: Any) -> Any:
        """Call a function of the generated client and return its answer.

        Args:
            function: e.g. `api.runs.run_service_get_run`.
            args: its arguments.
            once: never send the request again once it may have reached the server.
            options: its named arguments.

        Raises:
            Refused: the server said no for a reason that trying again does not change.
            Doubtful: `once`, and the connection broke or the server failed.
            InputError: the host cannot be reached, answers with a web page, or the token is not accepted.
        """
        from kfp_server_api.exceptions import ApiException

        def send() -> Any:
            try:
                answer = function(*args, _request_timeout=TIMEOUT, **options)
            except AttributeError as error:
                # The generated client stumbles over its own report of an untrusted certificate, which has no body.
                if not isinstance(error.__context__, ApiException):
                    raise
                raise self._refusal(0, "", str(error.__context__.reason)) from None
            if function != self._tail:
                self._require_json(self._client.last_response.data)
            return answer

        try:
            return persist(
                (lambda: _undoubted(send)) if once else send,
                ApiException,
                seconds=self.patience.seconds,
                pause=self.patience.pause,
                renew=self._authorise,
                told=lambda trouble: self.troubled(f"{trouble}; trying again"),
            )
        except ApiException as error:
            raise self._refusal(int(error.status or 0), error.body or "", str(error.reason)) from None
        except Unanswered as trouble:
            raise InputError(
                f"kfp: {self.host} could not be reached: {trouble}. Check --host, the network and the kubeconfig."
            ) from None

    def log(self, run_id: str, node: str) -> str | None:
        """Return the end of a node's log, "" for a pod that has said nothing; None where the server cannot give it.

        Args:
            run_id: the run.
            node: id of the node in the run's workflow, or the name of a pod.
        """
        try:
            end = self.call(self._tail, f"/apis/v1alpha1/runs/{run_id}/nodes/{node}/log")
        except Refused:
            return None
        text = str(end.decode("utf-8", errors="replace"))
        return None if '"error_message":' in text[:_ERROR_CHARACTERS] else text  # the status is 200 all the same

    def _tail(self, path: str, *, _request_timeout: tuple[float, float]) -> bytes:
        """Return the last bytes of a stream; the generated client knows no path of KFP that is one."""
        from kfp_server_api.exceptions import ApiException
        from urllib3 import Timeout

        headers: dict[str, str] = {}
        self._client.update_params_for_auth(headers, [], ["Bearer"])
        answer = self._client.rest_client.pool_manager.request(
            "GET",
            f"{self.host}{path}",
            headers=headers,
            preload_content=False,
            timeout=Timeout(*_request_timeout),
        )
        end = b""
        for part in answer.stream(_LOG_BYTES):
            end = (end + part)[-_LOG_BYTES:]
        answer.release_conn()
        if answer.status >= 400:
            refusal = ApiException(status=answer.status, reason=answer.reason)
            refusal.body, refusal.headers = end.decode("utf-8", errors="replace"), answer.headers
            raise refusal
        return end

    def _authorise(self) -> None:
        if token := self._door.token():
            self._settings.api_key = {"authorization": token}
            self._settings.api_key_prefix = {"authorization": "Bearer"}

    def _require_json(self, data: str | bytes) -> None:
        try:
            json.loads(data)
        except ValueError:
            raise self._web_page() from None

    def _refusal(self, status: int, body: str, reason: str) -> Exception:
        if status == 401:
            remedy = (
                "A renewed token is refused too: check what --token-file or --token-command gives, and its audience."
                if self._door.renewable
                else "It may have expired: give one that can be renewed by --token-file or --token-command."
            )
            return InputError(f"kfp: {self.host} does not accept the token (401). {remedy}")
        if of_kubernetes := _kubernetes(body):
            return InputError(
                f"cluster: the API server gives no way to KFP ({status}): {of_kubernetes.rstrip('.')}. It takes the "
                "right to services/proxy; or forward a port yourself (kubectl port-forward) and give --host."
            )
        if status == 0:
            return InputError(
                f"kfp: {self.host} could not be reached: {reason.splitlines()[-1]}. Check --host and --ca."
            )
        if 300 <= status < 400 or body.lstrip().startswith("<"):
            return self._web_page()
        message = _message(body) or reason
        if status == 403:
            return InputError(
                f"kfp: {self.host} forbids this (403): {message.rstrip('.')}. "
                "Ask for the role kubeflow-edit in the namespace, and give --namespace on a multi-user Kubeflow."
            )
        return Refused(status, message)

    def _web_page(self) -> InputError:
        return InputError(
            f"kfp: {self.host} answers with a web page, not with the API (a login page, or the UI's address without "
            "its path). On Kubeflow the address ends in /pipeline; with a login in front, use --port-forward."
        )


def _message(body: str) -> str:
    try:
        said = json.loads(body)
    except ValueError:
        return body.strip()[:300]
    if not isinstance(said, Mapping):
        return ""
    # The first two are of the upload handler, which is none of the generated services.
    text = said.get("error_message") or said.get("error_details") or said.get("message") or said.get("error") or ""
    return " ".join(str(text).split())[:300]


def _kubernetes(body: str) -> str:
    """Return what Kubernetes' API server says for itself, where KFP stands behind it; "" where KFP has answered."""
    try:
        said = json.loads(body)
    except ValueError:
        return ""
    return str(said.get("message", "")) if isinstance(said, Mapping) and said.get("kind") == "Status" else ""


def _undoubted(send: Callable[[], Any]) -> Any:
    """Send what must not be sent twice: what leaves it open whether the server has acted is no matter of patience."""
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

    try:
        return send()
    except (ConnectTimeoutError, NewConnectionError):
        raise
    except HTTPError as error:
        raise Doubtful(broken(error)) from None
    except ApiException as error:
        if error.status in TRIED_AGAIN - {429}:
            raise Doubtful(f"{error.status}: {_message(error.body or '') or error.reason}") from None
        raise
