"""The candidate held against the champion on the same questions.

The champion's predictions lie with its run. Answers to one question are paired, so what both find hard cancels out, and
questions on one image count as one draw.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import files
from multimodal_gemma.errors import InputError
from multimodal_gemma.evaluation import statistics
from multimodal_gemma.registry import comparison_report, gate, versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREDICTIONS = "evaluation/predictions.jsonl"  # artifact of a run
_SMALLEST_SHARE = 0.5  # of the candidate's questions; with fewer in common, hardly anything could be found worse

Row = dict[str, Any]


def check_compared(metrics: Sequence[str]) -> None:
    """Refuse metrics that are no mean of scores of single questions, and so cannot be paired.

    Raises:
        InputError: naming the metric and what is possible.
    """
    for metric in metrics:
        if _benchmark(metric) is None:
            raise InputError(
                f"config: registry.compared names {metric!r}, which cannot be compared question by question. "
                "Choose from pope_accuracy, pope_SETTING_accuracy, vqa_accuracy."
            )


def against(
    client: MlflowClient,
    name: str,
    version: str,
    candidate: Sequence[Row],
    metrics: Sequence[str],
    confidence: float,
    benchmarks: str,
) -> gate.Champion:
    """Return the paired differences to a version of the model.

    Args:
        client: MLflow's.
        name: the registered model.
        version: the champion's number.
        candidate: rows of the candidate's predictions.jsonl.
        metrics: what to compare; see `check_compared`.
        confidence: of the intervals.
        benchmarks: digest of what the candidate was scored on.

    Returns:
        The champion with differences, or with the reason why there can be none.
    """
    rows, problem = _predictions(client, name, version)
    if problem:
        return gate.Champion(
            version,
            problem=f"{problem}, so nothing shows that this version is not worse; promote it by hand if it is right",
        )
    differences = {}
    for metric in metrics:
        ours, theirs = _scores(candidate, metric), _scores(rows, metric)
        common = [key for key in ours if key in theirs]
        if not ours:
            continue
        if len(common) < _SMALLEST_SHARE * len(ours):
            return gate.Champion(
                version,
                problem=f"version {version} has answered {len(common):,} of the {len(ours):,} questions of {metric}: "
                "evaluate it on the same benchmarks, or promote this version by hand",
            )
        differences[metric] = _difference(
            [ours[key] for key in common], [theirs[key] for key in common], common, confidence
        )
    page = comparison_report.render(name, version, candidate, rows, confidence=confidence) or ""
    return gate.Champion(version, differences, best(client, name, version, benchmarks), page=page)


def best(client: MlflowClient, name: str, champion: str, benchmarks: str) -> dict[str, gate.Best]:
    """Return the highest score by metric of the champion and those before it, as far as they answered the same.

    A version that a person promoted against the gate's word ends the search: that level was accepted.
    """
    found: dict[str, gate.Best] = {}
    seen: set[str] = set()
    number = champion
    while number and number not in seen:
        seen.add(number)
        tags = versions.tags(client, name, number)
        if tags.get(versions.BENCHMARKS) == benchmarks:
            for metric, value in json.loads(tags.get(versions.SCORES, "{}")).items():
                if metric not in found or value > found[metric].value:
                    found[metric] = gate.Best(value, number)
        number = "" if versions.BY_HAND in tags else tags.get(versions.PREVIOUS_OF, "")
    return found


def _difference(
    ours: Sequence[Row], theirs: Sequence[Row], keys: Sequence[tuple[str, str]], confidence: float
) -> gate.Difference:
    """Pair the scores; each POPE setting weighs the same, as in their mean."""
    sizes: dict[str, int] = {}
    for benchmark, _ in keys:
        sizes[benchmark] = sizes.get(benchmark, 0) + 1
    estimate = statistics.clustered_mean(
        [float(a["score"]) - float(b["score"]) for a, b in zip(ours, theirs, strict=True)],
        [str(row["image"]) for row in ours],
        confidence=confidence,
        weights=[1 / sizes[benchmark] for benchmark, _ in keys],
        bounds=(-1.0, 1.0),
    )
    return gate.Difference(estimate.mean, *estimate.interval, len(keys))


def _scores(rows: Sequence[Row], metric: str) -> dict[tuple[str, str], Row]:
    """Return the rows that a metric is the mean of, by benchmark, question and what was asked."""
    benchmark = _benchmark(metric) or ""
    chosen = {}
    for row in rows:
        if row["benchmark"] == benchmark or (benchmark == "pope/" and row["benchmark"].startswith("pope/")):
            # Identifiers are only unique within a benchmark's file: another file may reuse them for other questions.
            chosen[(row["benchmark"], f"{row['question_id']} {row['image']} {row['question']}")] = row
    return chosen


def _benchmark(metric: str) -> str | None:
    if metric == "vqa_accuracy":
        return "vqa"
    if metric == "pope_accuracy":
        return "pope/"
    middle = metric.removeprefix("pope_").removesuffix("_accuracy")
    return f"pope/{middle}" if metric == f"pope_{middle}_accuracy" and "_" not in middle else None


def _predictions(client: MlflowClient, name: str, version: str) -> tuple[list[Row], str]:
    """Return the rows that a version was scored by, or why they cannot be had."""
    from mlflow.exceptions import MlflowException

    champion = client.get_model_version(name, version)
    tags: Mapping[str, str] = champion.tags
    run = f"the predictions of version {version} (run {champion.run_id or 'unknown'})"
    # Only what is known to be absent is gone. A server that fails for a moment must not cost a candidate its promotion.
    try:
        listed = client.list_artifacts(champion.run_id, PREDICTIONS.partition("/")[0]) if champion.run_id else []
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        listed = []
    if PREDICTIONS not in (entry.path for entry in listed):
        return [], f"{run} are gone"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(client.download_artifacts(champion.run_id, PREDICTIONS, scratch))
        if tags.get(versions.PREDICTIONS) not in (None, files.sha256_file(path)):
            return [], f"{run} were overwritten by another evaluation"
        try:
            rows = files.read_jsonl(path, "predictions")
        except InputError:
            return [], f"{run} are broken"
    missing = {"benchmark", "question_id", "image", "question", "score"}
    if not all(missing <= row.keys() for row in rows):
        return [], f"{run} are of another format"
    return rows, ""
