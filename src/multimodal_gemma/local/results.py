"""What is known about a run: how each task went, what they have shown, and summary.json, which says so to machines."""

from __future__ import annotations

import collections
import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from multimodal_gemma import files
from multimodal_gemma.local.folder import SUMMARY
from multimodal_gemma.stages.component import ERROR_MARK

Status = Literal["waiting", "succeeded", "reused", "failed", "skipped"]
_KEPT = 50  # lines
_SETTINGS = ("random", "popular", "adversarial")


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

    def folder(self, output: str) -> Path | None:
        """Return the path of an artifact that the task made, or None."""
        value = self.outputs.get(output)
        return value if isinstance(value, Path) else None

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
        failed = [rule for rule in self.registration.get("rules", []) if not rule["passed"]]
        return "; ".join(f"{rule['name']}: {rule['reason']}" for rule in failed)

    @property
    def pope(self) -> dict[str, dict[str, Any]]:
        """Scores by POPE setting, from the easiest to the hardest."""
        scores = self.metrics.get("pope") or {}
        return {name: scores[name] for name in _SETTINGS if name in scores}

    @property
    def vqa(self) -> dict[str, Any]:
        """Scores of the open questions."""
        return self.metrics.get("vqa") or {}

    @property
    def names(self) -> dict[str, str]:
        """What the questions of "pope" and "vqa" are called."""
        return dict(self.metrics.get("names") or {"pope": "POPE-format questions", "vqa": "VQA-format questions"})


_ARTIFACTS = {
    "model": ("train-model", "model"),
    "dataset": ("preprocess-dataset", "dataset"),
    "benchmarks": ("download-benchmarks", "benchmarks"),
    "evaluation": ("evaluate-model", "evaluation"),
    "registration": ("register-model", "registration"),
    "export": ("export-model", "export"),
}


def gather(records: dict[str, Record]) -> Results:
    """Read the results of the tasks that ended well."""
    folders = {}
    for name, (task, output) in _ARTIFACTS.items():
        path = records[task].folder(output) if task in records else None
        if path is not None:
            folders[name] = path
    metrics = files.read_json(folders["evaluation"] / "metrics.json", "evaluation") if "evaluation" in folders else {}
    registered = (
        files.read_json(folders["registration"] / "registration.json", "registration")
        if "registration" in folders
        else {}
    )
    return Results(metrics, registered, folders)


def status_of(records: dict[str, Record]) -> str:
    """Return "succeeded" if no task failed, else "failed"."""
    return "failed" if any(record.status == "failed" for record in records.values()) else "succeeded"


def write(
    folder: Path, records: dict[str, Record], results: Results, mlflow_uri: str, status: str, preset: str
) -> None:
    """Write summary.json of a run.

    Args:
        folder: of the run.
        records: its tasks.
        results: what they have shown.
        mlflow_uri: where its MLflow run is.
        status: "succeeded", "failed" or "interrupted".
        preset: that was run.
    """
    registration = results.registration
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
        "scores": {"pope": results.pope, "pope_mean": results.metrics.get("pope_mean") or {}, "vqa": results.vqa}
        | ({"chair": results.metrics["chair"]} if results.metrics.get("chair") else {}),
        "names": results.names,
        "registry": {key: registration.get(key) for key in ("name", "version", "alias", "gate")}
        if registration
        else {},
        "model": _text(results.folders.get("model")),
        "export": _text(results.folders.get("export")),
        "report": str(folder / "report.html"),
        "mlflow_uri": mlflow_uri,
    }
    files.write_json(folder / SUMMARY, value)


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
