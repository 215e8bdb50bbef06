"""Slices: the files that a processed dataset is made of, each by one worker process, and found again by their name.

A slice is named by the digest of everything that shaped it, so one that is there already has the bytes that would be
made again: a killed attempt goes on with its whole slices, a dataset that grew makes the new ones, and another machine
takes them from `data.work_uri`. A worker reads its own input and writes its own file; the parent only counts.
"""

from __future__ import annotations

import abc
import ctypes
import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from multimodal_gemma import files, logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.progress import Progress

if TYPE_CHECKING:
    from multimodal_gemma.data.delivery import WorkStore

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container (cgroup v2): microseconds of work and of time, or "max"
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of Linux' prctl


def available_cores() -> int:
    """Return how many cores this process may use; a container's share is often smaller than its machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    work, _, period = _QUOTA.read_text().partition(" ") if _QUOTA.is_file() else ("max", "", "")
    return cores if work == "max" else max(min(cores, round(int(work) / int(period))), 1)


class Job(abc.ABC):
    """Makes one slice; picklable."""

    name: str  # the slice's place in the dataset, e.g. "pixels/0a1b….arrow", by the digest of all that shapes it

    @property
    def digest(self) -> str:
        """The digest in its name."""
        return Path(self.name).stem

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """How many items it makes, for the progress line."""

    @abc.abstractmethod
    def __call__(self, path: Path, tell: Callable[[str], None]) -> None:
        """Write the slice to `path`; a `DeadlyJob` tells what is in hand before anything that may end the process."""


class DeadlyJob(Job):
    """A job with an item that may end the process that makes it."""

    @abc.abstractmethod
    def only(self, item: str) -> DeadlyJob:
        """Return the part of the job that makes one item that it told."""

    @abc.abstractmethod
    def without(self, item: str, reason: str) -> DeadlyJob:
        """Return the job that leaves such an item out, for a reason that the slice records."""


@dataclasses.dataclass
class Slices:
    """Makes the slices of one dataset's folder, or finds them; what differs from a trusted sha256 is made again."""

    folder: Path  # the dataset's
    workers: int | None = None  # processes; None: one a core
    store: WorkStore | None = None  # where else slices may lie, and where new ones are kept as well
    trusted: dict[str, str] = dataclasses.field(default_factory=dict)  # sha256 by name, of a finished dataset
    made: int = 0  # items that were made
    found: int = 0  # items that lay there, or in the store

    def ensure(self, place: str, jobs: Sequence[Job], unit: str, *, at_once: int = 0) -> None:
        """Have these slices in a folder of the dataset, and nothing else.

        Args:
            place: the folder's name.
            jobs: one a slice.
            unit: what is counted, e.g. "image".
            at_once: where no more items than this are to be made, they are made in this process.

        Raises:
            InputError: a slice cannot be written, or workers die of something else than an item.
        """
        self._clear(place, jobs)
        with ThreadPoolExecutor(available_cores()) as pool:
            there = list(pool.map(self._find, jobs))
        missing = [job for job, whole in zip(jobs, there, strict=True) if not whole]
        size = sum(job.size for job in missing)
        self.made += size
        self.found += sum(job.size for job in jobs) - size
        if not missing:
            return
        with Progress("preprocess", size, unit) as progress, ThreadPoolExecutor(4) as keeping:
            kept: list[Future[None]] = []
            done = map(self._here, missing) if size <= at_once else self._by_workers(missing)
            for job in done:
                progress.advance(job.size)
                if self.store is not None:
                    kept.append(keeping.submit(self.store.put, job.digest, self.folder / job.name))
            for future in kept:
                future.result()

    def _clear(self, place: str, jobs: Sequence[Job]) -> None:
        """Remove the slices of other datasets, and what a killed worker left half written."""
        wanted = {self.folder / job.name for job in jobs}
        for path in (self.folder / place).glob("*"):
            if path in wanted:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _find(self, job: Job) -> bool:
        path, digest = self.folder / job.name, self.trusted.get(job.name)
        if path.is_file() and (digest is None or files.sha256_file(path) == digest):
            return True
        return self.store is not None and self.store.get(job.digest, path)

    def _here(self, job: Job) -> Job:
        _make(job, self.folder / job.name, None)
        return job

    def _by_workers(self, jobs: Sequence[Job]) -> Iterable[Job]:
        """Yield the jobs as they are done, by processes; one that dies is started again without what it died of."""
        left: dict[str, Job] = {job.name: job for job in jobs}
        workers = min(self.workers or available_cores(), len(jobs))
        while left:
            with tempfile.TemporaryDirectory() as folder:
                notes = {name: Path(folder) / str(number) for number, name in enumerate(left)}
                pool = _pool(workers)
                try:
                    futures = {pool.submit(_make, left[name], self.folder / name, notes[name]): name for name in left}
                    for future in as_completed(futures):
                        future.result()
                        yield left.pop(futures[future])
                    continue
                except BrokenProcessPool:
                    pass
                finally:
                    pool.shutdown(cancel_futures=True)
                for place in {(self.folder / name).parent for name in left}:
                    for half in place.glob(".*.tmp"):
                        half.unlink()
                told = {name: notes[name].read_text(encoding="utf-8") for name in left if notes[name].is_file()}
            suspects = ((left[name], item) for name, item in told.items() if item)
            left.update(_survivors([(job, item) for job, item in suspects if isinstance(job, DeadlyJob)], workers))


def _pool(workers: int) -> ProcessPoolExecutor:
    # Fresh processes: a fork would copy the locks of whatever threads the caller's libraries have started.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with, initargs=(os.getpid(),))


def _die_with(parent: int) -> None:
    """Let the kernel end this worker with its parent, so that it writes into no folder that another run took."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it was asked about
        os._exit(1)


def _make(job: Job, path: Path, note: Path | None) -> None:
    with files.atomic_path(path) as temporary:
        if note is None:
            job(temporary, lambda _: None)
            return
        with note.open("wb", buffering=0) as stream:

            def tell(item: str) -> None:
                stream.seek(0)
                stream.truncate()
                stream.write(item.encode())

            job(temporary, tell)


def _survivors(suspects: list[tuple[DeadlyJob, str]], workers: int) -> dict[str, Job]:
    """Return the jobs without the items that end a process of their own, by name.

    Raises:
        InputError: none of them does, so that the workers died of something else.
    """
    found: dict[str, Job] = {}
    for job, item in suspects:
        with tempfile.TemporaryDirectory() as folder, _pool(1) as alone:
            try:
                alone.submit(_make, job.only(item), Path(folder) / "alone.arrow", None).result()
            except BrokenProcessPool:
                logs.get("preprocess").warning(f"{item} ends the process that decodes it: it is left out")
                found[job.name] = job.without(item, "decoding it ends the process: the decoder crashes on it")
    if not found:
        raise InputError(
            f"preprocess: one of {workers} worker processes died, most likely for memory. "
            f"Give fewer with data.workers={max(workers // 2, 1)}. "
            "(A script that starts workers must keep its own work below `if __name__ == '__main__':`.)"
        )
    return found
