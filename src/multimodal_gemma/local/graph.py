"""The tasks of a compiled pipeline: as a plain list, and as a picture with an arrow where one waits for another.

A compiled file nests: the exit handler holds a pipeline, which holds a condition, which holds a task. People think of
stages and arrows, so the nesting is resolved here: what a group needs, its first tasks need.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from multimodal_gemma.config.flat import bare
from multimodal_gemma.errors import InputError
from multimodal_gemma.reporting.run_page import Step, duration

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where PyYAML was built with it
_WIDTH, _HEIGHT = 152, 48  # of a box, in pixels
_ACROSS, _DOWN = 10, 28  # between boxes
_COLOURS = {"succeeded": "--good", "reused": "--accent", "failed": "--bad"}  # the page's own, light or dark
_IDLE = "--soft"  # what did not run, or not to its end


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
    tasks = _tasks(spec["root"]["dag"], spec["components"], needs=(), conditional=False)
    return sorted(tasks, key=lambda task: task.final)


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


def svg(tasks: Sequence[Task], steps: Mapping[str, Step]) -> str:
    """Draw the graph from top to bottom.

    Args:
        tasks: of the pipeline, each after those that it needs.
        steps: how each went, by name.

    Returns:
        An inline <svg>; arrows that follow from others are left out.
    """
    places = _places(tasks)
    width = max(x for x, _ in places.values()) + _WIDTH + 2
    height = max(y for _, y in places.values()) + _HEIGHT + 2
    arrows = "".join(
        _arrow(places[need], places[task.name], dashed=task.conditional or task.final)
        for task in tasks
        for need in _direct(task, tasks)
    )
    boxes = "".join(_box(places[task.name], steps[task.name]) for task in tasks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'style="width:100%;max-width:{width * 1.2:.0f}px" '
        'role="img" aria-label="graph of the run" font-family="sans-serif">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#868e96"/></marker></defs>'
        f"{arrows}{boxes}</svg>"
    )


def _direct(task: Task, tasks: Sequence[Task]) -> list[str]:
    """Return what a task needs, less what one of its other needs already waits for."""
    by_name = {other.name: other for other in tasks}

    def before(name: str) -> set[str]:
        return set(by_name[name].needs).union(*(before(need) for need in by_name[name].needs))

    implied = set().union(*(before(need) for need in task.needs)) if task.needs else set()
    return [need for need in task.needs if need not in implied]


def _places(tasks: Sequence[Task]) -> dict[str, tuple[int, int]]:
    """Return the upper left corner of each box: a row by how many tasks come before, centred in the picture."""
    depth: dict[str, int] = {}
    for task in tasks:
        depth[task.name] = max((depth[need] + 1 for need in task.needs), default=0)
    rows: dict[int, list[str]] = {}
    for name, row in depth.items():
        rows.setdefault(row, []).append(name)
    widest = max(len(names) for names in rows.values())
    places = {}
    for row, names in rows.items():
        left = (widest - len(names)) * (_WIDTH + _ACROSS) // 2
        for column, name in enumerate(names):
            places[name] = (1 + left + column * (_WIDTH + _ACROSS), 1 + row * (_HEIGHT + _DOWN))
    return places


def _box(place: tuple[int, int], step: Step) -> str:
    colour = f"var({_COLOURS.get(step.status, _IDLE)})"
    x, y = place
    told = step.status if step.seconds is None else f"{step.status}, {duration(step.seconds)}"
    dash = "" if step.status in _COLOURS else ' stroke-dasharray="4 3"'
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{colour}" '
        f'fill-opacity=".09" stroke="{colour}" stroke-width="1.5"{dash}/>'
        f'<text x="{x + 10}" y="{y + 20}" font-size="13" fill="currentColor">{html.escape(step.name)}</text>'
        f'<text x="{x + 10}" y="{y + 38}" font-size="12" fill="{colour}">{html.escape(told)}</text>'
    )


def _arrow(start: tuple[int, int], end: tuple[int, int], *, dashed: bool) -> str:
    x1, y1, x2, y2 = start[0] + _WIDTH // 2, start[1] + _HEIGHT, end[0] + _WIDTH // 2, end[1] - 2
    bend = (y1 + y2) // 2
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    path = f"M{x1} {y1}C{x1} {bend} {x2} {bend} {x2} {y2}"
    return f'<path d="{path}" fill="none" stroke="#868e96" stroke-width="1.3"{dash} marker-end="url(#tip)"/>'
