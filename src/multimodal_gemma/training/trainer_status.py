"""Tells Kubeflow Trainer how far a training is, which shows it as `status.trainerStatus` of its TrainJob.

Kubeflow Trainer 2.2 or newer with the alpha feature gate TrainJobStatus (proposals/2779-trainjob-progress and
pkg/statusserver of kubeflow/trainer) gives a node's container three variables: the address to POST to, and the files
with the authority that signed its certificate and with a token for this one TrainJob. Both files change while a
training runs, so they are read each time. Without the variables there is nobody to tell.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

_VARIABLES = ("KUBEFLOW_TRAINER_SERVER_URL", "KUBEFLOW_TRAINER_SERVER_CA_CERT", "KUBEFLOW_TRAINER_SERVER_TOKEN")
_EVERY = 5.0  # seconds between two messages at least: each becomes a write to the Kubernetes API
_PATIENCE = 5.0  # seconds
_MOST, _LONGEST = 256, 64  # metrics; characters of a name or a value


class TrainerStatus:
    """The TrainJob that this process trains for, if Kubeflow Trainer wants to hear of it."""

    def __init__(self) -> None:
        self._url, self._authority, self._token = (os.environ.get(name, "") for name in _VARIABLES)
        self._told = -_EVERY

    @property
    def wanted(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._url and self._authority and self._token)

    @property
    def due(self) -> float:
        """Seconds until the next message may be sent; 0: now."""
        return max(self._told + _EVERY - time.monotonic(), 0.0)

    def tell(self, share: float, seconds_left: float | None, metrics: Mapping[str, float]) -> None:
        """Send one message.

        Args:
            share: of the training that is done, 0 to 1.
            seconds_left: until its end, as far as one can tell; None: nobody knows.
            metrics: what is known of the last step.

        Raises:
            OSError: nobody answers, a file cannot be read, or the answer is no 200.
        """
        self._told = time.monotonic()
        status: dict[str, object] = {
            "progressPercentage": min(max(int(100 * share), 0), 100),
            "metrics": [
                {"name": name[:_LONGEST], "value": f"{value:.6g}"} for name, value in list(metrics.items())[:_MOST]
            ],
            "lastUpdatedTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if seconds_left is not None:
            status["estimatedRemainingSeconds"] = max(int(seconds_left), 0)
        body = json.dumps({"trainerStatus": status}).encode()
        token = Path(self._token).read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        there = urlsplit(self._url)
        # No proxy and no redirect: the token is for this server alone.
        trusted = ssl.create_default_context(cafile=self._authority)
        server = http.client.HTTPSConnection(there.netloc, timeout=_PATIENCE, context=trusted)
        try:
            server.request("POST", there.path, body, headers)
            answer = server.getresponse()
            said = answer.read(1000).decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(f"{there.netloc} does not speak HTTP: {error}") from error
        finally:
            server.close()
        if answer.status != http.client.OK:
            raise OSError(f"{there.netloc} answers {answer.status}: {said.strip()}")
