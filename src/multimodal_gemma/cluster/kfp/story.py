"""What a run's answer says about its tasks and its gate.

A KFP server (2.x) lists the nodes of the Argo workflow under their display names: `train-model-driver` decides,
`train-model` is the task, `executor` (or `executor(0)`, `executor(1)` where tries are counted) is its pod. A time that
has not come yet is given as year 1 or 1970. Which pod belongs to which task is only said by servers that fill
`pod_name`; otherwise a pod is ascribed to the one task during which it began, and to none where several could be meant.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Sequence
from typing import Any

from multimodal_gemma.cluster.kfp.pipeline import gated
from multimodal_gemma.local import graph

ENDED = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}
_WORDS = {
    "RUNNING": "running",
    "PENDING": "pending",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "SKIPPED": "skipped",
    "CANCELING": "stopping",
    "CANCELED": "stopped",
    "PAUSED": "paused",
}
_EXECUTOR = re.compile(r"executor(?:\((\d+)\))?")


@dataclasses.dataclass(frozen=True)
class Row:
    """One task.

    Attributes:
        name: of the task.
        state: waiting, pending, running, succeeded, reused, failed, skipped, stopping, stopped, paused or "not run".
        seconds: since it began, or how long it took; None before.
        tries: pods that were started for it; None where the server does not say.
        reason: why it, or its latest try, failed, in the server's words; "" where it says nothing.
    """

    name: str
    state: str
    seconds: float | None = None
    tries: int | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        state: of the run, in KFP's words.
        rows: its tasks, in the order of the pipeline.
        gate: passed, refused, undecided (not reached) or unknown; "none" for a pipeline that has no gate.
        reason: what the server says about the run's failure.
    """

    state: str
    rows: tuple[Row, ...]
    gate: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED

    @property
    def failed(self) -> list[Row]:
        """The tasks that failed."""
        return [row for row in self.rows if row.state == "failed"]


def snapshot(run: Any, spec: dict[str, Any], now: datetime.datetime) -> Snapshot:
    """Read a run.

    Args:
        run: a `V2beta1Run`.
        spec: the specification of its pipeline.
        now: the time, for what is still running.
    """
    details = list((run.run_details.task_details if run.run_details else None) or [])
    named = {_named(detail): detail for detail in sorted(details, key=_began_or_never)}
    state = run.state or "PENDING"
    # What a task was when the run ended may never have been reported.
    left = {"SUCCEEDED": "succeeded"}.get(state, "stopped") if state in ENDED else None
    tasks = graph.of_spec(spec)
    ascribed = _ascribed({task.name: named[task.name] for task in tasks if task.name in named}, details, now)
    rows = [_row(task.name, named.get(task.name), ascribed.get(task.name, []), left, now) for task in tasks]
    gate, behind = _gate(spec, named, rows, state)
    if gate == "refused":  # KFP lists the group as skipped, and its tasks not at all
        rows = [dataclasses.replace(row, state="skipped") if row.name in behind else row for row in rows]
    return Snapshot(state, tuple(rows), gate, _one_line((run.error.message if run.error else "") or ""))


def _row(name: str, detail: Any, pods: Sequence[Any], left: str | None, now: datetime.datetime) -> Row:
    """Return the row of a task; `left` is the state of one that was not reported as ended, once the run has ended."""
    if detail is None or not detail.state or detail.state == "RUNTIME_STATE_UNSPECIFIED":
        return Row(name, "not run" if left else "waiting")
    state = _WORDS.get(detail.state, str(detail.state).lower())
    if left and detail.state not in ENDED:
        return Row(name, left)
    began, ended = _moment(detail.start_time), _moment(detail.end_time)
    seconds = max(((ended or now) - began).total_seconds(), 0.0) if began and state != "skipped" else None
    if state == "succeeded" and pods and all(pod.state == "SKIPPED" for pod in pods):
        return Row(name, "reused", seconds)
    numbered = [pod for pod in pods if _EXECUTOR.fullmatch(_named(pod)).group(1)]  # type: ignore[union-attr]
    tries = len(numbered) or (1 if pods else None)
    return Row(name, state, seconds, tries, _reason(detail, pods))


def _reason(detail: Any, pods: Sequence[Any]) -> str:
    for source in (*sorted(pods, key=_began_or_never, reverse=True), detail):
        if source.error and source.error.message:
            return _one_line(source.error.message)
        for status in reversed(source.state_history or []):
            if status.error and status.error.message:
                return _one_line(status.error.message)
    return ""


def _ascribed(tasks: dict[str, Any], details: Sequence[Any], now: datetime.datetime) -> dict[str, list[Any]]:
    """Return the pods of each task, as far as they can be told."""
    parents: dict[str, str] = {}
    for name, detail in tasks.items():
        for child in detail.child_tasks or []:
            parents[child.pod_name or child.task_id or ""] = name
    found: dict[str, list[Any]] = {}
    for pod in sorted(details, key=_began_or_never):
        if not _EXECUTOR.fullmatch(_named(pod)):
            continue
        owner = parents.get(pod.pod_name or "") or parents.get(pod.task_id or "")
        if owner is None and (began := _moment(pod.start_time)):
            during = [name for name, task in tasks.items() if _lasted(task, began, now)]
            owner = during[0] if len(during) == 1 else None
        if owner is not None:
            found.setdefault(owner, []).append(pod)
            for child in pod.child_tasks or []:  # the node that holds the tries of a task
                parents.setdefault(child.pod_name or child.task_id or "", owner)
    return found


def _lasted(task: Any, moment: datetime.datetime, now: datetime.datetime) -> bool:
    began = _moment(task.start_time)
    return began is not None and began <= moment <= (_moment(task.end_time) or now)


def _gate(spec: dict[str, Any], named: dict[str, Any], rows: Sequence[Row], state: str) -> tuple[str, tuple[str, ...]]:
    """Judge by what ran: only a passed gate lets its tasks run, and a refused one leaves their group skipped.

    Returns:
        The gate's decision, and the names of the tasks behind it.
    """
    gate = gated(spec)
    if gate is None:
        return "none", ()
    group, members = gate
    states = {row.name: row.state for row in rows}
    if any(states[member] in ("succeeded", "reused", "failed", "running", "pending") for member in members):
        return "passed", members
    condition = named.get(group)
    if (condition and condition.state == "SKIPPED") or all(states[member] == "skipped" for member in members):
        return "refused", members
    return "unknown" if state == "SUCCEEDED" else "undecided", members


def _named(detail: Any) -> str:
    return str(detail.display_name or "")


def _began_or_never(detail: Any) -> float:
    began = _moment(detail.start_time)
    return began.timestamp() if began else float("inf")


def _moment(value: datetime.datetime | None) -> datetime.datetime | None:
    if value is None or value.year < 2000:
        return None
    return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
