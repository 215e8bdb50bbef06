"""What is known about a run: its folder, how each task went, what they have shown, and summary.json for machines.

A run's folder states what was asked for, so that the same command continues an interrupted run.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, Literal

from multimodal_gemma import files, locks
from multimodal_gemma.reporting.run_page import NAMES, SETTINGS, refusals
from multimodal_gemma.stages.component import ERROR_MARK

SUMMARY = "summary.json"  # of a run that has ended
_ASKED = "run.json"  # what was asked for: preset, overrides and the digest of the compiled pipeline
_LATEST = "latest"
Status = Literal["waiting", "succeeded", "reused", "failed", "skipped"]
_KEPT = 50  # lines
_ARTIFACTS = {
    "model": ("train-model", "model"),
    "dataset": ("preprocess-dataset", "dataset"),
    "benchmarks": ("download-benchmarks", "benchmarks"),
    "evaluation": ("evaluate-model", "evaluation"),
    "registration": ("register-model", "registration"),
    "export": ("export-model", "export"),
}


@dataclasses.dataclass
class Record:
    """One task.

    Attributes:
        name: its name in the pipeline.
        status: "reused" is a result of an earlier run that was found in the cache; "skipped" did not run, because a
            condition did not hold or something before it failed.
        seconds: wall time.
        exit_code: of its process; None if it had none.
        log: everything that it wrote; None if it did not run.
        outputs: parameters by name, artifacts as paths by name.
        said: the last lines that it wrote for people, without those of the machinery around it.
    """

    name: str
    status: Status = "waiting"
    seconds: float = 0.0
    exit_code: int | None = None
    log: Path | None = None
    outputs: dict[str, Any] = dataclasses.field(default_factory=dict)
    said: collections.deque[str] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=_KEPT))

    @property
    def sentence(self) -> str:
        """The sentence with which it refused its input, or ""."""
        marked = [line for line in self.said if line.startswith(ERROR_MARK)]
        return marked[-1].removeprefix(ERROR_MARK) if marked else ""

    def last_lines(self, count: int = 15) -> list[str]:
        """Return the last lines that it wrote for people."""
        return list(self.said)[-count:]


@dataclasses.dataclass(frozen=True)
class Results:
    """What the finished tasks of a run have shown; an absent part was not reached.

    Attributes:
        metrics: metrics.json of the evaluation.
        registration: registration.json of the registry.
        folders: artifact paths: "model", "dataset", "benchmarks", "evaluation", "registration", "export".
    """

    metrics: dict[str, Any]
    registration: dict[str, Any]
    folders: dict[str, Path]

    @property
    def refused(self) -> str:
        """Why the gate refused the version; "" if it did not."""
        if self.registration.get("gate", "passed") == "passed":
            return ""
        return refusals(self.registration.get("rules", [])).replace("\n", " ")

    @property
    def pope(self) -> dict[str, dict[str, Any]]:
        """Scores by POPE setting, from the easiest to the hardest."""
        scores = self.metrics.get("pope") or {}
        return {name: scores[name] for name in SETTINGS if name in scores}

    @property
    def vqa(self) -> dict[str, Any]:
        """Scores of the open questions."""
        return self.metrics.get("vqa") or {}

    @property
    def names(self) -> dict[str, str]:
        """What the questions of "pope" and "vqa" are called."""
        return NAMES | (self.metrics.get("names") or {})


def gather(records: dict[str, Record]) -> Results:
    """Read the results of the tasks that ended well."""
    made = {name: records[task].outputs.get(output) for name, (task, output) in _ARTIFACTS.items() if task in records}
    folders = {name: path for name, path in made.items() if isinstance(path, Path)}

    def stated(folder: str, name: str) -> dict[str, Any]:
        return files.read_json(folders[folder] / name, folder) if folder in folders else {}

    return Results(stated("evaluation", "metrics.json"), stated("registration", "registration.json"), folders)


def write(
    folder: Path, records: dict[str, Record], results: Results, mlflow_uri: str, status: str, preset: str
) -> None:
    """Write summary.json of a run that is "succeeded", "failed" or "interrupted"."""
    scores = {"pope": results.pope, "pope_mean": results.metrics.get("pope_mean") or {}, "vqa": results.vqa}
    if told := results.metrics.get("chair"):
        scores["chair"] = told
    registered = results.registration
    value = {
        "status": status,
        "preset": preset,
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "stages": [
            {
                "name": record.name,
                "status": record.status,
                "seconds": round(record.seconds, 3),
                "cached": record.status == "reused",
                "log": str(record.log) if record.log else None,
            }
            for record in records.values()
        ],
        "scores": scores,
        "names": results.names,
        "registry": {key: registered.get(key) for key in ("name", "version", "alias", "gate")} if registered else {},
        **{name: str(results.folders[name]) if name in results.folders else None for name in ("model", "export")},
        "report": str(folder / "report.html"),
        "mlflow_uri": mlflow_uri,
    }
    files.write_json(folder / SUMMARY, value)


def choose(runs: Path, preset: str) -> Path:
    """Make a folder for a new run, named by time and preset, that no other run has.

    Raises:
        InputError: it cannot be made.
    """
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{preset}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for name in itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2))):
            with contextlib.suppress(FileExistsError):  # another run of this very second has it
                (runs / name).mkdir()
                return runs / name
    except OSError as error:
        raise files.unwritable(runs, error) from error
    raise AssertionError("numbers do not end")


def unfinished(runs: Path, asked: dict[str, Any]) -> Path | None:
    """Return the latest run that was asked for the same, if it was interrupted or killed, and is not at work."""
    for folder in newest(runs):
        if _read(folder / _ASKED) != asked:
            continue
        return folder if state(folder) == "interrupted" else None
    return None


def newest(runs: Path) -> list[Path]:
    """Return the folders of all runs, the latest first."""
    return sorted((path.parent for path in runs.glob(f"*/{_ASKED}") if not path.parent.is_symlink()), reverse=True)


def state(folder: Path) -> str:
    """Return "succeeded", "failed", "interrupted" (killed ones too) or "running"."""
    stated = _read(folder / SUMMARY)
    if stated is not None:
        return str(stated.get("status", "interrupted"))
    return "running" if locks.held(folder) else "interrupted"


def begin(folder: Path, asked: dict[str, Any]) -> None:
    """Note in a run's folder what was asked for, and that it has not ended."""
    files.write_json(folder / _ASKED, asked)
    (folder / SUMMARY).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def point_latest(runs: Path, folder: Path) -> None:
    """Make runs/latest point at a run."""
    temporary = runs / f".{_LATEST}.{os.getpid()}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(folder, runs))
        temporary.replace(runs / _LATEST)
    except OSError as error:
        raise files.unwritable(runs / _LATEST, error) from error
