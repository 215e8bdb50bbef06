"""What a pod's object says about it, in words for the person who waits for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

Object = dict[str, Any]

CONTAINER = "node"  # that trains, in every pod of a TrainJob
_INDEX = "batch.kubernetes.io/job-completion-index"
_RESTART = "jobset.sigs.k8s.io/restart-attempt"
_STARTING = {"ContainerCreating", "PodInitializing"}  # not worth a word
_PROGRESS = re.compile(r"\btrain: (\d[\d,]* of [\d,]+ samples, .*)$")
_RESUMED = re.compile(r"\btrain: (continuing from the checkpoint of step .*)$")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A pod that ended before its work was done.

    Attributes:
        pod: its name.
        code: exit code of the container; None where the node went with it.
        reason: what the cluster says.
        restart: how often the job had begun again before.
        message: last lines of the log as the cluster kept them; "" where it did not.
    """

    pod: str
    code: int | None
    reason: str
    restart: int
    message: str


def requested(pod: Object) -> dict[str, Decimal]:
    """Return what a pod takes of its node, by resource, as the scheduler counts it.

    Containers run side by side, init containers one after another, and an init container that restarts always (a
    sidecar) beside all that follow it.
    """
    spec = pod.get("spec") or {}
    beside: dict[str, Decimal] = {}
    before: dict[str, Decimal] = {}
    for container in spec.get("initContainers") or []:
        asked = _amounts((container.get("resources") or {}).get("requests"))
        if container.get("restartPolicy") == "Always":
            beside = _sum(beside, asked)
            asked = beside
        else:
            asked = _sum(beside, asked)
        before = {key: max(before.get(key, Decimal()), asked.get(key, Decimal())) for key in before | asked}
    running = beside
    for container in spec.get("containers") or []:
        running = _sum(running, _amounts((container.get("resources") or {}).get("requests")))
    most = {key: max(before.get(key, Decimal()), running.get(key, Decimal())) for key in before | running}
    return _sum(most, _amounts(spec.get("overhead")))


def stays(pod: Object) -> bool:
    """Whether a pod is of a service, and not of work that ends: what ends is never restarted for ever."""
    return (pod.get("spec") or {}).get("restartPolicy", "Always") == "Always"


def name_of(pod: Object) -> str:
    """Return a pod's name."""
    return str(pod["metadata"]["name"])


def phase_of(pod: Object) -> str:
    """Return Pending, Running, Succeeded, Failed or Unknown."""
    return str((pod.get("status") or {}).get("phase") or "Pending")


def leads(pod: Object) -> bool:
    """Whether the first process of all runs in this pod; it is the one that speaks."""
    metadata = pod["metadata"]
    both = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    return both.get(_INDEX, "0") == "0"


def restarts(pod: Object) -> int:
    """Return how often the whole job had begun again when this pod was made."""
    both = {**(pod["metadata"].get("annotations") or {}), **(pod["metadata"].get("labels") or {})}
    text = str(both.get(_RESTART, "0"))
    return int(text) if text.isdecimal() else 0


def waiting_for(pod: Object) -> str:
    """Return why a pod does not run yet; "" where that is only a matter of seconds."""
    for container in _containers(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") and waiting["reason"] not in _STARTING:
            return _sentence(waiting["reason"], waiting.get("message"))
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _sentence(condition.get("reason") or "Unschedulable", condition.get("message"))
    return ""


def loss_of(pod: Object) -> Loss | None:
    """Return how a failed pod ended; None while it has not."""
    status = pod.get("status") or {}
    if phase_of(pod) != "Failed":
        return None
    code, message, kind = None, "", ""
    for container in _containers(pod):
        ended = (container.get("state") or {}).get("terminated")
        if ended and container.get("name") == CONTAINER:
            code, message = ended.get("exitCode"), ended.get("message") or ""
            kind = "OOMKilled, " if ended.get("reason") == "OOMKilled" else ""
    reasons = [
        _sentence(condition.get("reason") or "disrupted", condition.get("message"))
        for condition in status.get("conditions") or []
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True"
    ]
    if status.get("reason"):
        reasons.append(_sentence(status["reason"], status.get("message")))
    told = reasons[0] if reasons else "no exit code" if code is None else f"{kind}exit code {code}"
    return Loss(name_of(pod), code, told, restarts(pod), message)


def progress_in(log: str) -> str:
    """Return the last line of progress in a log, without its time; "" where there is none."""
    for line in reversed(log.splitlines()):
        if found := _PROGRESS.search(line) or _RESUMED.search(line):
            return found[1].strip()
    return ""


def last_lines(text: str, count: int) -> list[str]:
    """Return the last lines of a text that are not empty."""
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def _amounts(stated: Mapping[str, str] | None) -> dict[str, Decimal]:
    from kubernetes.utils.quantity import parse_quantity

    return {name: parse_quantity(amount) for name, amount in (stated or {}).items()}


def _sum(first: dict[str, Decimal], second: dict[str, Decimal]) -> dict[str, Decimal]:
    return {key: first.get(key, Decimal()) + second.get(key, Decimal()) for key in first | second}


def _containers(pod: Object) -> Iterator[Object]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _sentence(reason: str, message: str | None) -> str:
    return f"{reason}: {message.strip()}" if message and message.strip() else reason
