"""The tasks of a compiled pipeline, as a plain list.

A compiled file nests: the exit handler holds a pipeline, which holds a condition, which holds a task. People think of
stages and arrows, so the nesting is resolved here: what a group needs, its first tasks need.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from multimodal_gemma.config.flat import bare
from multimodal_gemma.errors import InputError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where PyYAML was built with it


@dataclasses.dataclass(frozen=True)
class Task:
    """One step that runs code.

    Attributes:
        name: its name in the pipeline, e.g. "train-model".
        needs: names of the steps whose results it takes or waits for.
        conditional: it runs only if a condition holds.
        final: it runs at the very end, whatever happened before.
    """

    name: str
    needs: tuple[str, ...]
    conditional: bool = False
    final: bool = False


def read(path: Path) -> list[Task]:
    """Read the tasks of a compiled pipeline, each after those that it needs.

    Raises:
        InputError: the file is absent or no compiled pipeline.
    """
    return of_spec(documents(path)[0])


def documents(path: Path) -> list[dict[str, Any]]:
    """Read a compiled pipeline: its specification and, where it has one, that of its platform.

    Raises:
        InputError: the file is absent or no compiled pipeline.
    """
    try:
        found = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_LOADER))
    except FileNotFoundError:
        raise InputError(f"run: {path} does not exist. Write it with make compile-pipeline.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"run: {path} cannot be read as YAML ({type(error).__name__}). Write it with make compile-pipeline."
        ) from None
    spec = found[0] if found else None
    if not isinstance(spec, dict) or not {"root", "components"} <= spec.keys():
        raise InputError(f"run: {path} is no compiled pipeline. Write one with make compile-pipeline.")
    return found


def arguments(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return those parameters that a compiled pipeline has, under its names for them: p01_preset for preset."""
    declared = documents(path)[0]["root"].get("inputDefinitions", {}).get("parameters", {})
    names = {bare(name): name for name in declared}
    return {names[name]: value for name, value in asked.items() if name in names}


def of_spec(spec: dict[str, Any]) -> list[Task]:
    """Return the tasks of a pipeline specification, each after those that it needs."""
    return _sorted(_tasks(spec["root"]["dag"], spec["components"], needs=(), conditional=False))


def _tasks(dag: dict[str, Any], components: dict[str, Any], *, needs: tuple[str, ...], conditional: bool) -> list[Task]:
    """List the steps of a group; `needs` are the steps that the group itself waits for."""
    members: dict[str, list[Task]] = {}  # by the name that this group knows them by
    for name in _order(dag["tasks"]):
        task = dag["tasks"][name]
        inherited = [step.name for other in task.get("dependentTasks", ()) for step in _ends(members[other])]
        waits = tuple(dict.fromkeys([*needs, *inherited]))
        policy = task.get("triggerPolicy", {})
        held = conditional or bool(policy.get("condition"))
        component = components[task["componentRef"]["name"]]
        if "dag" in component:
            members[name] = _tasks(component["dag"], components, needs=waits, conditional=held)
        else:
            final = policy.get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"
            members[name] = [Task(name, waits, held, final)]
    return [step for steps in members.values() for step in steps]


def _ends(steps: list[Task]) -> list[Task]:
    """Return the steps that no other step of the group needs."""
    needed = {name for step in steps for name in step.needs}
    return [step for step in steps if step.name not in needed]


def _order(tasks: dict[str, Any]) -> list[str]:
    """Return names so that each comes after those that it depends on, alphabetically among equals."""
    ordered: list[str] = []
    left = sorted(tasks)
    while left:
        ready = next(name for name in left if set(tasks[name].get("dependentTasks", ())) <= set(ordered))
        left.remove(ready)
        ordered.append(ready)
    return ordered


def _sorted(tasks: list[Task]) -> list[Task]:
    return [task for task in tasks if not task.final] + [task for task in tasks if task.final]
