"""What a KFP server's answer says about a run: its tasks, their tries, its gate, and how it ended.

A KFP server (2.x) lists the nodes of the run's Argo workflow by their display names: `train-model-driver` decides,
`train-model` is the task, `executor` its work, `executor(0)`, `executor(1)` the pods of its tries; where the platform
puts a retry around every template, each of them comes once more as `NAME(0)`. Which node belongs to which task is not
said. But a node lists the ids of its children, and Argo makes an id from the workflow's name and a hash of the node's
full name, e.g. `wf-3508742075` for `wf(0).root(0).train-model(0).executor(0)`: so the tree is found again by hashing.

A time that has not come yet is given as year 1 or 1970; a node that was never reached has no state; a run that was
stopped ends as FAILED, and only its history says CANCELING.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from multimodal_gemma.local import graph

ENDED = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}
REGISTRATION = "register-model"  # the task whose last word is the gate's
REPORT = "report-run"  # runs whatever happened, and is nobody's reason
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
_BLUR = datetime.timedelta(seconds=2)  # between the end of a task and of its executor
_MOST_TRIES = 30  # of one node; more are not looked for


@dataclasses.dataclass(frozen=True)
class Row:
    """One task.

    Attributes:
        name: of the task.
        state: waiting, pending, running, succeeded, reused, failed, skipped, stopping, stopped, paused or "not run".
        seconds: since it began, or how long it took; None before.
        tries: pods that were started for it; None where the server does not say.
        pods: ids of their nodes, by which the server gives their logs; the latest is the last.
        started: its driver let it begin; a task that failed otherwise never had a pod.
        began: when it began; None before.
        reason: why it, or its latest try but one, failed, or why it waits; "" where nobody says.
    """

    name: str
    state: str
    seconds: float | None = None
    tries: int | None = None
    pods: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    started: bool = True
    began: datetime.datetime | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        state: of the run, in KFP's words.
        rows: its tasks, in the order of the pipeline.
        gate: passed, refused, undecided (not reached) or unknown; "none" for a pipeline that has no gate.
        reason: what the server says about the run's failure.
        stopped: somebody stopped it; it may not have ended yet.
        retried: how often it went on after it had ended (KFP's own retry).
        told: the server lists its tasks.
        changes: how often its state has changed.
        workflow: name of its Argo workflow; "" where the server lists no tasks.
    """

    state: str
    rows: tuple[Row, ...]
    gate: str
    reason: str = ""
    stopped: bool = False
    retried: int = 0
    told: bool = True
    changes: int = 0
    workflow: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED

    @property
    def failed(self) -> Row | None:
        """The task that the run failed by; None where none did."""
        return next((row for row in self.rows if row.state == "failed" and row.name != REPORT), None)

    def row(self, name: str) -> Row | None:
        """Return the row of a task, where the pipeline has it."""
        return next((row for row in self.rows if row.name == name), None)


def snapshot(run: Any, spec: dict[str, Any], now: datetime.datetime) -> Snapshot:
    """Read a run.

    Args:
        run: a `V2beta1Run`.
        spec: the specification of its pipeline.
        now: the time, for what is still running.
    """
    nodes = _Nodes((run.run_details.task_details if run.run_details else None) or [])
    history = [(status.state, _moment(status.update_time)) for status in run.state_history or []]
    state = run.state or "PENDING"
    stopped_at = _stopped_at(state, history)
    tasks = graph.of_spec(spec)
    names = [task.name for task in tasks]
    rows = [_row(name, nodes, state, stopped_at, now) for name in names]
    rows += [Row(group, "failed", pods=nodes.tries(f"{group}-driver"), started=False) for group in nodes.broken(names)]
    behind = [task.name for task in tasks if task.conditional]
    gate = _gate(behind, nodes, rows, state)
    if gate == "refused":  # a group may be listed as skipped, and its tasks not at all
        rows = [dataclasses.replace(row, state="skipped") if row.name in behind else row for row in rows]
    return Snapshot(
        state,
        tuple(rows),
        gate,
        one_line((run.error.message if run.error else "") or ""),
        stopped=state in ("CANCELING", "CANCELED") or stopped_at is not None,
        retried=sum(before in ENDED and after not in ENDED for (before, _), (after, _) in itertools.pairwise(history)),
        told=bool(nodes.named) or state == "PENDING",
        changes=len(history),
        workflow=nodes.workflow,
    )


def one_line(text: str) -> str:
    """Return a text in one line of bearable length."""
    words = " ".join(text.split())
    return words if len(words) <= 500 else f"{words[:499]}…"


def _row(name: str, nodes: _Nodes, state: str, stopped_at: datetime.datetime | None, now: datetime.datetime) -> Row:
    ended = state in ENDED
    detail, driver = nodes.named.get(name), nodes.named.get(f"{name}-driver")
    if detail is None or not _state(detail):
        if driver is not None and _state(driver) == "FAILED":
            return Row(name, "failed", pods=nodes.tries(f"{name}-driver"), started=False)
        return Row(name, "not run" if ended else "waiting")
    word = _WORDS.get(_state(detail), _state(detail).lower())
    if ended and _state(detail) not in ENDED:  # how it ended was never reported
        return Row(name, "succeeded" if state == "SUCCEEDED" else "stopped")
    began, end = _moment(detail.start_time), _moment(detail.end_time)
    seconds = max(((end or now) - began).total_seconds(), 0.0) if began and word != "skipped" else None
    if word == "failed" and stopped_at and end and end >= stopped_at:
        word = "stopped"
    pods = nodes.tries(name)
    if word == "succeeded" and not pods and nodes.skipped(detail):
        return Row(name, "reused", seconds, began=began)
    return Row(name, word, seconds, len(pods) or None, pods, began=began)


class _Nodes:
    """The nodes of a workflow.

    Args:
        details: what the server lists.

    Attributes:
        named: the latest of each display name.
        workflow: name of the workflow; "" where no node has a child.
    """

    def __init__(self, details: Sequence[Any]) -> None:
        self._details = details
        self.named: dict[str, Any] = {
            detail.display_name: detail for detail in sorted(details, key=_began) if detail.display_name
        }
        ids = {child.pod_name for detail in details for child in detail.child_tasks or [] if child.pod_name}
        self.workflow = next(iter(ids)).rpartition("-")[0] if ids else ""
        self._paths = dict(self._found(ids))

    @property
    def condition_failed(self) -> bool:
        """Whether a group of tasks was skipped because its condition did not hold."""
        groups = (detail for name, detail in self.named.items() if re.fullmatch(r"condition-\d+", name))
        return any(detail.state == "SKIPPED" for detail in groups)

    def broken(self, tasks: Sequence[str]) -> list[str]:
        """Return the groups that could not be started: the root, an exit handler, a condition."""
        drivers = [name for name, detail in self.named.items() if detail.state == "FAILED" and name.endswith("-driver")]
        return [name.removesuffix("-driver") for name in drivers if name.removesuffix("-driver") not in tasks]

    def tries(self, name: str) -> tuple[str, ...]:
        """Return the ids of the pods of a task, or of a driver, in the order of its tries; none for a cached result."""
        inner = "" if name.endswith("-driver") else r"(?:\(\d+\))?\.executor"
        wanted = re.compile(rf".*\.{re.escape(name)}{inner}(?:\((\d+)\))?")
        found = {path: match for path in self._paths if (match := wanted.fullmatch(path))}
        if counted := {path: int(match[1]) for path, match in found.items() if match[1]}:
            return tuple(self._paths[path] for path in sorted(counted, key=lambda path: counted[path]))
        return () if self.skipped(self.named[name]) else tuple(self._paths[path] for path in found)

    def skipped(self, task: Any) -> bool:
        """Whether an executor was skipped when this task ended: its result came from the cache."""
        end = _moment(task.end_time)
        moments = [
            _moment(detail.end_time)
            for detail in self._details
            if detail.display_name == "executor" and detail.state == "SKIPPED"
        ]
        return any(end and moment and abs(end - moment) <= _BLUR for moment in moments)

    def _found(self, ids: set[str]) -> Iterator[tuple[str, str]]:
        """Yield full names with their ids: each is another's, and a child's name or a try's number after it."""
        left, tops = set(ids), [self.workflow]
        while tops:
            top = tops.pop()
            names = (f"{top}.{name}" for name in self.named)
            for path in (*names, *(f"{top}({number})" for number in range(_MOST_TRIES))):
                identity = f"{self.workflow}-{_fnv32a(path)}"
                if identity in left:
                    left.discard(identity)
                    tops.append(path)
                    yield path, identity


def _fnv32a(text: str) -> int:
    """Return the FNV-1a hash of a text, as Argo's `NodeID` takes it."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def _gate(behind: Sequence[str], nodes: _Nodes, rows: Sequence[Row], state: str) -> str:
    """Judge by what ran.

    Only a passed gate lets the tasks behind it run, and a refused one leaves them, or their group, skipped. Where the
    nodes do not tell, the registration has the last word, which is in its log: unknown here.

    Args:
        behind: names of the tasks that run only if a condition holds.
        nodes: of the run.
        rows: of the run.
        state: of the run.
    """
    states = {row.name: row.state for row in rows}
    if REGISTRATION not in states and not behind:
        return "none"
    if any(states[name] in ("succeeded", "reused", "failed", "running", "pending") for name in behind):
        return "passed"
    if behind and (nodes.condition_failed or all(states[name] == "skipped" for name in behind)):
        return "refused"
    registered = states.get(REGISTRATION) in ("succeeded", "reused")
    return "unknown" if state == "SUCCEEDED" or registered else "undecided"


def _stopped_at(state: str, history: Sequence[tuple[str | None, datetime.datetime | None]]) -> datetime.datetime | None:
    """Return when the run was stopped; None where it was not, or went on afterwards."""
    moment = None
    for known, when in history:
        if known == "CANCELING":
            moment = when
        elif known == "RUNNING":
            moment = None
    return moment if state == "CANCELING" or state in ENDED - {"SUCCEEDED"} else None


def _state(detail: Any) -> str:
    """Return a node's state; "" for one that was never reached."""
    return "" if detail.state in (None, "RUNTIME_STATE_UNSPECIFIED") else str(detail.state)


def _began(detail: Any) -> float:
    began = _moment(detail.start_time)
    return began.timestamp() if began else float("inf")


def _moment(value: datetime.datetime | None) -> datetime.datetime | None:
    if value is None or value.year < 2000:
        return None
    return value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
