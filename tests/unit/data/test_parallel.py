from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from multimodal_gemma.data import parallel
from multimodal_gemma.data.parallel import ordered_map
from multimodal_gemma.errors import InputError


def doubled(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


def die(numbers: list[int]) -> list[int]:
    os._exit(9)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    assert list(ordered_map(doubled, iter(range(101)), workers=workers, chunk=10)) == [2 * n for n in range(101)]


def test_no_items_no_results() -> None:
    assert list(ordered_map(doubled, [], workers=1, chunk=10)) == []


def test_items_are_read_no_further_than_the_work_in_flight() -> None:
    """Memory stays flat however many images there are."""
    read = itertools.count()
    results = ordered_map(doubled, (next(read) for _ in range(10_000)), workers=2, chunk=5)
    for _ in range(50):
        next(results)
    results.close()
    assert next(read) <= 50 + 2 * 2 * 5 + 5


@pytest.mark.parametrize(("quota", "cores"), [("max 100000\n", 64), ("250000 100000\n", 2), ("50000 100000\n", 1)])
def test_a_container_starts_no_more_workers_than_it_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(parallel, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert parallel.available_cores() == cores


def test_a_worker_that_dies_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"data\.workers=1"):
        list(ordered_map(die, range(100), workers=2, chunk=10))
