"""How a KFP 2.x server tells the course of a run: as the nodes of its Argo workflow.

A story says when each task begins and ends; `details` turns it into what the server answers at some moment. The shapes
follow the server's source (api_converter.go, workflow.go, argocompiler): a task is `NAME-driver`, `NAME` and an
`executor`; a counted try is `executor(N)`; a time that has not come is year 1; `error` and `pod_name` stay empty unless
`told` (kubeflow/pipelines#14007).
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

NEVER = "0001-01-01T00:00:00Z"


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a story; times in seconds after the run was created."""

    name: str
    begin: float
    end: float
    state: str = "SUCCEEDED"
    failures: tuple[str, ...] = ()  # reasons of the tries before the last
    message: str = ""  # why it failed in the end
    cached: bool = False
    group: bool = False  # a condition or an exit handler: no pod of its own


def details(
    run_id: str, story: list[Task], elapsed: float, now: datetime.datetime, *, told: bool
) -> list[dict[str, Any]]:
    """Return task_details at `elapsed` seconds, with times such that this moment is `now`."""
    found: list[dict[str, Any]] = []
    zero = now - datetime.timedelta(seconds=elapsed)

    def stamp(seconds: float) -> str:
        return NEVER if seconds > elapsed else f"{zero + datetime.timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"

    def node(name: str, begin: float, end: float, state: str, key: str, children: list[str], message: str) -> None:
        if begin > elapsed:
            return
        shown = state if end <= elapsed else "RUNNING"
        entry: dict[str, Any] = {
            "run_id": run_id,
            "task_id": f"task-{key}",
            "display_name": name,
            "create_time": stamp(0),
            "start_time": stamp(begin),
            "end_time": stamp(end),
            "state": shown,
            "state_history": [{"update_time": stamp(begin), "state": "RUNNING"}]
            + ([{"update_time": stamp(end), "state": shown}] if end <= elapsed else []),
        }
        if children:
            entry["child_tasks"] = [{"pod_name": f"wf-{child}"} for child in children]
        if told:
            entry["pod_name"] = f"wf-{key}"
            if message and end <= elapsed:
                entry["error"] = {"code": 13, "message": message}
        found.append(entry)

    node("root-driver", 0, 1, "SUCCEEDED", "root-driver", ["root"], "")
    for task in story:
        key, length = task.name, task.end - task.begin
        if task.group or task.state == "SKIPPED":
            node(task.name, task.begin, task.end, task.state, key, [], task.message)
            continue
        node(f"{key}-driver", task.begin, task.begin, "SUCCEEDED", f"{key}-driver", [key], "")
        node(key, task.begin, task.end, task.state, key, [f"{key}-executor"], task.message)
        if task.cached:
            node("executor", task.begin, task.end, "SKIPPED", f"{key}-executor", [], "")
            continue
        tries = [f"{key}-executor-{number}" for number in range(len(task.failures) + 1)] if task.failures else []
        node("executor", task.begin, task.end, task.state, f"{key}-executor", tries, "")
        for number, name in enumerate(tries):
            last = number == len(task.failures)
            begin = task.begin + length * number / len(tries)
            end = task.end if last else task.begin + length * (number + 1) / len(tries)
            reason = task.message if last else task.failures[number]
            node(f"executor({number})", begin, end, task.state if last else "FAILED", name, [], reason)
    return found


def training(
    *, gate: str = "passed", failing: str = "", message: str = "", tried: dict[str, tuple[str, ...]] | None = None
) -> list[Task]:
    """Return the story of the training pipeline.

    Args:
        gate: "passed" or "refused".
        failing: name of the task at which it ends badly; "" for none.
        message: why.
        tried: reasons of failed tries by task.
    """
    times = {
        "preflight": (2, 14),
        "download-models": (16, 55),
        "download-dataset": (16, 390),
        "download-benchmarks": (16, 16),
        "preprocess-dataset": (392, 980),
        "train-model": (985, 5_885),
        "evaluate-model": (5_890, 6_610),
        "register-model": (6_615, 6_640),
    }
    story: list[Task] = []
    for name, (begin, end) in times.items():
        failures = (tried or {}).get(name, ())
        if name == failing:
            story.append(Task(name, begin, end, "FAILED", failures, message))
            return [*story, Task("exit-handler-1", 1, end, "FAILED", group=True), Task("report-run", end, end + 10)]
        story.append(Task(name, begin, end, failures=failures, cached=name == "download-benchmarks"))
    if gate == "passed":
        story += [Task("condition-1", 6_642, 6_700, group=True), Task("export-model", 6_645, 6_698)]
    else:
        story += [Task("condition-1", 6_642, 6_642, "SKIPPED", group=True)]
    return [*story, Task("exit-handler-1", 1, 6_702, group=True), Task("report-run", 6_703, 6_712)]
