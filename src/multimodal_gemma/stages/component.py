"""What the body of a pipeline component calls besides its stage.

A component is a label on a door. Behind it three things are the same for every stage: a user's mistake ends as one
sentence and exit code 2, pages are put where the pipelines UI shows them, and scores are logged in the UI's own
kinds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multimodal_gemma import environment, files, logs
from multimodal_gemma.errors import InputError

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
    environment.prepare()
    logs.setup()
    try:
        yield
    except InputError as error:
        sys.stderr.write(f"{ERROR_MARK}{error}\n")
        raise SystemExit(INPUT_ERROR) from None


def publish(folder: str, name: str, destination: str) -> None:
    """Copy a page of an artifact to the path of the HTML or Markdown artifact that the UI shows.

    Args:
        folder: path of the artifact.
        name: the page in it, e.g. "report.html".
        destination: path of the UI's artifact.
    """
    Path(destination).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(folder) / name, destination)


def write(text: str, destination: str) -> None:
    """Write a text to the path of an artifact that the UI shows."""
    files.write_text(Path(destination), text)


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


def scores_markdown(evaluation: str) -> str:
    """Return the scores of an evaluation as a Markdown table, each beside what a constant answer would score."""
    metrics = files.read_json(Path(evaluation) / "metrics.json", "evaluation")
    rows = [
        "| benchmark | accuracy | majority answer | F1 | answers yes | questions |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for setting, score in (metrics.get("pope") or {}).items():
        rows.append(
            f"| POPE {setting} | {score['accuracy']:.3f} | {score['majority_baseline']:.3f} | {score['f1']:.3f} "
            f"| {score['yes_ratio']:.3f} | {score['count']:,} |"
        )
    if vqa := metrics.get("vqa"):
        rows.append(f"| VQA v2 | {vqa['accuracy']:.3f} | {vqa['majority_baseline']:.3f} | | | {vqa['count']:,} |")
    contamination = metrics.get("contamination", {}).get("status", "unknown")
    return "\n".join(["# Scores", "", *rows, "", f"Training images in the benchmarks: {contamination}.", ""])
