"""How a KFP 2.17 server tells the course of a run: as the nodes of its Argo workflow.

A story says when each task begins and ends; `details` turns it into what the server answers at some moment. The shapes
are those of a real server's answers (shared/kfp-2.17, which the tests also read as they are): every template is wrapped
in a retry, so a node `NAME` has a child `NAME(0)`; a task is `NAME-driver`, `NAME` and an `executor` with the pods
`executor(0)`, `executor(1)` of its tries; a cached executor is SKIPPED and has no pod; children are named by Argo's
hashed ids and nothing else says what belongs to what; what was never reached has no state; a time that has not come is
year 1; no node carries an error.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any

NEVER = "0001-01-01T00:00:00Z"
HANDLER = "exit-handler-1"
TASKS = {
    "preflight": (2, 14),
    "download-models": (16, 55),
    "download-dataset": (16, 390),
    "download-benchmarks": (16, 16),
    "preprocess-dataset": (392, 980),
    "train-model": (985, 5_885),
    "evaluate-model": (5_890, 6_610),
    "register-model": (6_615, 6_640),
    "export-model": (6_645, 6_698),
}
MISTAKE = """\
I1125 23:49:33.827860      15 main.go:67] Setting log level to: '1'
[KFP Executor 2026-11-25 23:49:33,920 INFO]: Got executor_input:
{{
    "inputs": {{}}
}}
error: {}
E1125 23:49:34.698086      15 launcher_v2.go:449] Component failed to execute successfully: exit status 2
F1125 23:49:34.751028      15 main.go:59] failed to execute component: exit status 2
"""


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a story; times in seconds after the run was created."""

    name: str
    begin: float
    end: float
    state: str = "SUCCEEDED"  # "" for one that was never reached
    failures: tuple[str, ...] = ()  # logs of the tries before the last
    log: str = ""  # of its last try
    cached: bool = False
    final: bool = False  # it runs when the handler ends


def hashed(text: str) -> int:
    """Return FNV-1a, 32 bits: what Argo makes a node's id from."""
    value = 2_166_136_261
    for byte in text.encode():
        value = (value ^ byte) * 16_777_619 % 2**32
    return value


def identity(path: str) -> str:
    """Return the id of the node with this full name."""
    workflow = path.split("(")[0].split(".")[0]
    return f"{workflow}-{hashed(path)}"


def details(workflow: str, story: list[Task], elapsed: float, now: datetime.datetime) -> list[dict[str, Any]]:
    """Return task_details at `elapsed` seconds, with times such that this moment is `now`."""
    zero = now - datetime.timedelta(seconds=elapsed)

    def stamp(seconds: float) -> str:
        return NEVER if seconds > elapsed else f"{zero + datetime.timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}"

    def node(path: str, begin: float, end: float, state: str, children: list[str]) -> Iterator[dict[str, Any]]:
        if begin > elapsed:
            return
        entry: dict[str, Any] = {
            "display_name": path.rpartition(".")[2],
            "task_id": f"task-{hashed(path)}",
            "create_time": stamp(0),
            "start_time": stamp(begin),
            "end_time": stamp(end),
        }
        if state:
            shown = state if end <= elapsed else "RUNNING"
            entry |= {"state": shown, "state_history": [{"update_time": stamp(begin), "state": shown}]}
        if children:
            entry["child_tasks"] = [{"pod_name": identity(child)} for child in children]
        yield entry

    def wrapped(path: str, begin: float, end: float, state: str, children: list[str]) -> Iterator[dict[str, Any]]:
        yield from node(path, begin, end, state, [f"{path}(0)"])
        yield from node(f"{path}(0)", begin, end, state, children)

    def told(task: Task, within: str) -> Iterator[dict[str, Any]]:
        path = f"{within}.{task.name}"
        if not task.state:
            yield from node(f"{path}-driver", task.begin, task.end, "", [path])
            yield from node(path, task.begin, task.end, "", [])
            return
        if task.state == "SKIPPED":
            yield from node(path, task.begin, task.end, "SKIPPED", [])
            return
        yield from wrapped(f"{path}-driver", task.begin, task.begin, "SUCCEEDED", [])
        yield from wrapped(path, task.begin, task.end, task.state, [f"{path}(0).executor"])
        executor, length = f"{path}(0).executor", task.end - task.begin
        if task.cached:
            yield from node(executor, task.begin, task.end, "SKIPPED", [])
            return
        count = len(task.failures) + 1
        spans = [(task.begin + length * number / count, length / count) for number in range(count)]
        begun = [f"{executor}({number})" for number, (begin, _) in enumerate(spans) if begin <= elapsed]
        yield from node(executor, task.begin, task.end, task.state, begun)
        for number, (begin, lasted) in enumerate(spans):
            last = number == count - 1
            yield from node(
                f"{executor}({number})",
                begin,
                task.end if last else begin + lasted,
                task.state if last else "FAILED",
                [],
            )

    inside = [task for task in story if not task.final]
    final = [task for task in story if task.final]
    end = max((task.end for task in inside), default=elapsed + 1)
    over = max((task.end for task in story), default=elapsed + 1)
    state = "FAILED" if any(task.state == "FAILED" for task in inside) else "SUCCEEDED"
    root, handler = f"{workflow}(0).root", f"{workflow}(0).root(0).{HANDLER}"
    found = [
        *wrapped(workflow, 0, over, state, [f"{workflow}(0).root-driver", root]),
        *wrapped(f"{workflow}(0).root-driver", 0, 1, "SUCCEEDED", []),
        *wrapped(root, 1, over, state, [f"{handler}-driver", handler, f"{handler}.onExit"]),
        *wrapped(f"{handler}-driver", 1, 1, "SUCCEEDED", []),
    ]
    for group, tasks, close in ((handler, inside, end), (f"{handler}.onExit", final, over)):
        children = [f"{group}(0).{task.name}{part}" for task in tasks for part in ("-driver", "")]
        found += wrapped(group, min((task.begin for task in tasks), default=over + 1), close, state, children)
        found += [entry for task in tasks for entry in told(task, f"{group}(0)")]
    return found


def logs(workflow: str, story: list[Task]) -> dict[str, str]:
    """Return the log of each pod by the id of its node."""
    within = {True: f"{workflow}(0).root(0).{HANDLER}.onExit(0)", False: f"{workflow}(0).root(0).{HANDLER}(0)"}
    return {
        identity(f"{within[task.final]}.{task.name}(0).executor({number})"): log
        for task in story
        if task.state and not task.cached
        for number, log in enumerate((*task.failures, task.log))
    }


def training(
    *, gate: str = "passed", failing: str = "", message: str = "", tried: dict[str, tuple[str, ...]] | None = None
) -> list[Task]:
    """Return the story of the training pipeline.

    Args:
        gate: "passed", "refused", or "" for a registration that says nothing.
        failing: name of the task at which it ends badly; "" for none.
        message: the sentence of the mistake.
        tried: logs of failed tries by task.
    """
    words = {"passed": "champion: gate passed (all rules)", "refused": "challenger: gate failed (below the floor)"}
    told = {"register-model": f"12:00:01 register: sample version 3 is {words[gate]}\n"} if gate else {}
    story: list[Task] = []
    for name, (begin, end) in TASKS.items():
        failures = (tried or {}).get(name, ())
        if name == "export-model" and gate != "passed":
            story += [Task(name, begin, begin, "SKIPPED")] if gate else []
        elif story and story[-1].state != "SUCCEEDED":
            story.append(Task(name, story[-1].end, story[-1].end, ""))
        elif name == failing:
            story.append(Task(name, begin, end, "FAILED", failures, MISTAKE.format(message)))
        else:
            story.append(Task(name, begin, end, "SUCCEEDED", failures, told.get(name, ""), cached=begin == end))
    end = story[-1].end
    return [*story, Task("report-run", end + 1, end + 10, final=True)]


def stopped(story: list[Task], elapsed: float) -> list[Task]:
    """Return what becomes of a story that is stopped at some moment: what runs fails, the last word is had."""
    left = [task for task in story if not task.final]
    changed = [
        task
        if task.end <= elapsed
        else dataclasses.replace(task, end=elapsed, state="FAILED")
        if task.begin <= elapsed
        else dataclasses.replace(task, begin=elapsed, end=elapsed, state="")
        for task in left
    ]
    return [*changed, Task("report-run", elapsed + 1, elapsed + 10, final=True)]
