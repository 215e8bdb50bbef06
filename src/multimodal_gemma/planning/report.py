"""The table that `mmgemma plan` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma.planning import estimate, room, sources
from multimodal_gemma.planning.devices import PRICES

if TYPE_CHECKING:
    from multimodal_gemma.config.schema import Config

_HEAD = ("GPU", "positions a pass", "memory GB", "minutes", "cost $", "$ an hour")


def text(
    config: Config, *, models: Path | None = None, dataset: Path | None = None, benchmark: Path | None = None
) -> str:
    """Return the plan of a configuration as a Markdown table, with the sentence that says what it rests on.

    Args:
        config: the configuration.
        models: a base-models folder, for models that are not known here.
        dataset: a processed dataset, for its lengths.
        benchmark: a result of benchmarks/gpu.py on a GPU.

    Raises:
        InputError: a model or the data are not known and no folder is given, or the benchmark is no such result.
    """
    shapes = sources.shapes_of(config, models)
    load = sources.load_of(config, shapes, dataset)
    found = estimate.table(config, shapes, load, benchmark)
    low, high = estimate.ASSUMED_MFU
    share = "the benchmark's share" if found[0].measured else f"{low:.0%} to {high:.0%} (assumed, not measured)"
    each = estimate.step_operations(shapes, config, load) / load.samples
    lines = [
        f"{load.samples:,} samples of {load.positions:,.0f} positions, {load.images:,} images, "
        f"{estimate.trainable(shapes, config):,} parameters learn, {each / 1e9:,.0f} GFLOP a sample where an image's "
        f"conversations read it once. Arithmetic at {share} of each GPU's bf16 peak; an hour's price is a round "
        f"figure of {PRICES}, not looked up.",
        "",
        f"| {' | '.join(_HEAD)} |",
        "| --- " + "| ---: " * (len(_HEAD) - 1) + "|",
    ]
    for row in found:
        held = (f"{row.budget:,}", f"{row.memory_gb:.0f}") if row.budget else ("does not fit", "")
        minutes, dollars = (_range(*of) for of in ((*row.minutes, 0), (*row.dollars, 2)))
        figures = (row.device.name, *held, minutes, dollars, f"{row.device.dollars:.2f}")
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join([*lines, "", *_room(config, models, dataset)])


def _room(config: Config, models: Path | None, dataset: Path | None) -> list[str]:
    """Return what a run takes on disks, as a second table."""
    train_job = config.training.nodes > 1 or bool(config.nodes.work_uri)
    found = sources.room_of(config, models, dataset, train_job=train_job)
    rows = [
        ("object store of the pipelines, a run that reuses nothing", found.store),
        ("and each further run on the same data", found.again),
        ("under nodes.work_uri", found.work),
        ("under data.work_uri", found.slices),
        *((f"disk of {task}", size) for task, size in found.tasks.items()),
        ("scratch of a TrainJob's node", found.node),
    ]
    return [
        f"Room, a fifth above the arithmetic, with COCO's mean photograph ({room.PHOTO / 1e3:.0f} KB) for every image.",
        "",
        "| where | GiB |",
        "| --- | ---: |",
        *(f"| {where} | {room.gib(size).removesuffix('Gi')} |" for where, size in rows if size),
    ]


def _range(least: float, most: float, digits: int) -> str:
    """Return both ends of a range, or one number where they are the same."""
    low, high = f"{least:,.{digits}f}", f"{most:,.{digits}f}"
    return low if low == high else f"{low} to {high}"
