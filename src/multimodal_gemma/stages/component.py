"""What the body of a pipeline component calls besides its stage.

A component is a label on a door. Behind it four things are the same for every stage: its work is done in a process
of its own and tried again there, a user's mistake ends as one sentence and exit code 2, pages are put where the
pipelines UI shows them, and scores are logged in the UI's own kinds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multimodal_gemma import environment, files, logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.stages.summary import Summary

INPUT_ERROR = 2  # exit code of a user's mistake; any other failure ends with 1
_QUIET = {  # what libraries do on their own account
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ERROR_MARK = "error: "  # what the sentence's line begins with, for whoever reads the log


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Start log lines, and end a user's mistake as one sentence on standard error and exit code 2."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logs.setup()
    try:
        environment.prepare()
        yield
    except InputError as error:
        sys.stderr.write(f"{ERROR_MARK}{error}\n")
        raise SystemExit(INPUT_ERROR) from None


def work(stage: str, plan: str, **arguments: Any) -> Summary:
    """Do a stage's work as `tries.run` does; return what it tells."""
    from multimodal_gemma.stages import tries

    found = tries.run(stage, plan, **arguments)
    return Summary(**{**found, "folder": Path(found["folder"])})


def check(asked: Mapping[str, Any]) -> tuple[Any, ...]:
    """Do the preflight's work; return its plans in the order of their fields."""
    from multimodal_gemma.stages import tries

    return tuple(tries.run("preflight", asked=dict(asked)).values())


def publish(folder: str, name: str, destination: str) -> None:
    """Copy a page of an artifact to the path of the HTML or Markdown artifact that the UI shows.

    Args:
        folder: path of the artifact.
        name: the page in it, e.g. "report.html".
        destination: path of the UI's artifact.
    """
    Path(destination).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(folder) / name, destination)


def report(asked: dict[str, Any]) -> None:
    """Write the page of a run to the path of the artifact among the component's inputs."""
    from multimodal_gemma.stages import run_report

    page, status = asked.pop("report"), dataclasses.asdict(asked.pop("status"))
    with guarded():
        run_report.run(asked, status, Path(page.path))


# What "Compare runs" of the UI shows side by side, most telling first; everything else is in MLflow.
_HEADLINE = (
    *("pope_accuracy", "vqa_accuracy", "vqa_over_baseline", "pope_f1", "pope_yes_ratio", "pope_adversarial_accuracy"),
    *("pope_popular_accuracy", "pope_random_accuracy", "pope_majority_baseline", "validation_loss"),
)


def headline(summary: Summary) -> Summary:
    """Return a summary of an evaluation with the ten scores that runs are compared by, numbered: the UI sorts names."""
    known = summary.numbers
    numbers = {f"{place:02d}_{name}": known[name] for place, name in enumerate(_HEADLINE, 1) if name in known}
    return dataclasses.replace(summary, numbers=numbers)


def log_confusion(evaluation: str, matrices: Mapping[str, Any]) -> None:
    """Log one confusion matrix a POPE setting, rows the truth and columns the answer.

    Args:
        evaluation: path of an evaluation artifact.
        matrices: KFP `ClassificationMetrics` by POPE setting; a setting that was not asked stays empty.
    """
    scores = files.read_json(Path(evaluation) / "metrics.json", "evaluation").get("pope") or {}
    for setting, artifact in matrices.items():
        if setting in scores:
            counts = scores[setting]
            rows = [[counts["tp"], counts["fn"]], [counts["fp"], counts["tn"]]]
            artifact.log_confusion_matrix(["yes", "no"], rows)
