"""The graph of a run as a picture: a box a task with its status and time, an arrow where one waits for another."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from multimodal_gemma.local.graph import Task
from multimodal_gemma.reporting.run_page import Step, duration

_WIDTH, _HEIGHT = 172, 48  # of a box, in pixels
_ACROSS, _DOWN = 18, 28  # between boxes
_COLOURS = {"succeeded": "--good", "reused": "--accent", "failed": "--bad"}  # the page's own, light or dark
_IDLE = "--soft"  # what did not run, or not to its end


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
        f'style="width:100%;max-width:{width * 1.1:.0f}px" '
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
