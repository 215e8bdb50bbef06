"""Calls to a KFP server that survive its weather.

The generated client of KFP (`kfp_server_api`, v2beta1) knows the paths and the shapes. What a person needs on top is
here: a lost connection, 429, 5xx and an expired token are tried again; a login page is recognised for what it is; and
what remains is one sentence.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from multimodal_gemma import logs
from multimodal_gemma.cluster.kfp.tokens import Tokens
from multimodal_gemma.errors import InputError

_log = logs.get("submit")
_TIMEOUT = (10, 60)  # seconds to connect, and to the answer
_LONGEST_PAUSE = 30.0  # seconds between two tries
_LOG_BYTES = 65_536  # of a log's end
_ERROR_CHARACTERS = 40  # at the beginning of a log that is none
_TRIED_AGAIN = {408, 429, 500, 502, 503, 504}


class Refused(Exception):
    """The server understood and refused.

    Attributes:
        status: HTTP status.
        message: what the server said.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Unanswered(Exception):
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


class Api:
    """A connection to one KFP server.

    Args:
        host: address of the API, e.g. https://kubeflow.example.com/pipeline.
        tokens: where the bearer token comes from.
        patience: how long a request is tried; `follow` asks for more.
        ca_file: certificates to trust instead of the system's.
        moved: called after a lost connection; returns the address from now on (a port-forward may have to be renewed).
    """

    def __init__(
        self,
        host: str,
        tokens: Tokens,
        *,
        patience: Patience | None = None,
        ca_file: str | None = None,
        moved: Callable[[], str] | None = None,
    ) -> None:
        try:
            import kfp_server_api as generated
        except ImportError:
            raise InputError(
                "kfp: its client is not installed. Install it: pip install 'multimodal-gemma[pipeline]'."
            ) from None
        self.host, self.patience = host.rstrip("/"), patience or Patience()
        self.troubled: Callable[[str], None] = lambda trouble: _log.warning(trouble)
        self._tokens, self._moved = tokens, moved
        self._settings = generated.Configuration(host=self.host)
        self._settings.retries = False  # this class decides what is tried again
        if ca_file:
            self._settings.ssl_ca_cert = ca_file
        self._authorise()
        self._client = generated.ApiClient(self._settings)
        self.pipelines = generated.PipelineServiceApi(self._client)
        self.uploads = generated.PipelineUploadServiceApi(self._client)
        self.experiments = generated.ExperimentServiceApi(self._client)
        self.runs = generated.RunServiceApi(self._client)
        self.recurring = generated.RecurringRunServiceApi(self._client)
        self.health = generated.HealthzServiceApi(self._client)

    def call(self, function: Callable[..., Any], *args: Any, once: bool = False, **options: Any) -> Any:
        """Call a function of the generated client and return its answer.

        Args:
            function: e.g. `api.runs.run_service_get_run`.
            args: its arguments.
            once: never send the request again once it may have reached the server.
            options: its named arguments.

        Raises:
            Refused: the server said no for a reason that trying again does not change.
            Unanswered: `once`, and the connection broke or the server failed.
            InputError: the host cannot be reached, answers with a web page, or the token is not accepted.
        """
        from kfp_server_api.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        deadline, pause, renewed = time.monotonic() + self.patience.seconds, self.patience.pause, False
        while True:
            wait: float | None = None
            try:
                answer = function(*args, _request_timeout=_TIMEOUT, **options)
                if function != self._tail:
                    self._require_json(self._client.last_response.data)
                return answer
            except HTTPError as error:
                trouble = _broken(error)
                if once and not _never_sent(error):
                    raise Unanswered(trouble) from None
            except AttributeError as error:
                # The generated client stumbles over its own report of an untrusted certificate, which has no body.
                if not isinstance(error.__context__, ApiException):
                    raise
                raise self._refusal(0, "", str(error.__context__.reason)) from None
            except ApiException as error:
                status, body = int(error.status or 0), error.body or ""
                if status == 401 and self._tokens.renewable and not renewed:
                    renewed = True
                    self._authorise()
                    continue
                if status not in _TRIED_AGAIN:
                    raise self._refusal(status, body, str(error.reason)) from None
                if once and status != 429:
                    raise Unanswered(f"{status}: {_message(body) or error.reason}") from None
                trouble, wait = f"it answers {status} {error.reason}", _retry_after(error.headers)
            if time.monotonic() >= deadline:
                raise InputError(
                    f"kfp: {self.host} could not be reached: {trouble}. Check --host, the network and the port-forward."
                )
            self.troubled(f"{trouble}; trying again")
            time.sleep(min(pause if wait is None else wait, _LONGEST_PAUSE))
            pause = min(pause * 2, _LONGEST_PAUSE)
            self._reconnect()

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
        if token := self._tokens.get():
            self._settings.api_key = {"authorization": token}
            self._settings.api_key_prefix = {"authorization": "Bearer"}

    def _reconnect(self) -> None:
        if self._moved is not None:
            self.host = self._settings.host = self._moved()
        if self._tokens.renewable:
            self._authorise()  # it may have expired meanwhile

    def _require_json(self, data: str | bytes) -> None:
        try:
            json.loads(data)
        except ValueError:
            raise self._web_page() from None

    def _refusal(self, status: int, body: str, reason: str) -> Exception:
        if status == 401:
            remedy = (
                "A renewed token is refused too: check what --token-file or --token-command gives, and its audience."
                if self._tokens.renewable
                else "It may have expired: give one that can be renewed by --token-file or --token-command."
            )
            return InputError(f"kfp: {self.host} does not accept the token (401). {remedy}")
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


def _retry_after(headers: Any) -> float | None:
    try:
        return float((headers or {})["Retry-After"])
    except (KeyError, TypeError, ValueError):
        return None


def _never_sent(error: Exception) -> bool:
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    return isinstance(error, NewConnectionError | ConnectTimeoutError)


def _broken(error: Exception) -> str:
    """Name a network failure in a few words; urllib3's own text shows memory addresses."""
    from urllib3.exceptions import NameResolutionError, NewConnectionError, SSLError, TimeoutError

    kinds: list[tuple[type[Exception], str]] = [
        (NameResolutionError, "its name is not known"),
        (NewConnectionError, "nothing listens there"),
        (TimeoutError, "it does not answer in time"),
        (SSLError, "its certificate is not trusted"),
    ]
    for kind, words in kinds:
        if isinstance(error, kind):
            return words
    return "the connection was lost"
