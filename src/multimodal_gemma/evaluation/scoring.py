"""From scored rows to metrics.json: every number with its interval, beside what a model that cannot see would get."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multimodal_gemma.evaluation import chair
from multimodal_gemma.evaluation.pope import pope_metrics
from multimodal_gemma.evaluation.questions import Row
from multimodal_gemma.evaluation.statistics import calibration, clustered_mean, perplexity
from multimodal_gemma.evaluation.vqa import majority_answer, vqa_accuracy

if TYPE_CHECKING:
    from multimodal_gemma.evaluation.validation import Validation

SCHEMA_VERSION = 2
Metrics = dict[str, Any]


def score(
    rows: Sequence[Row],
    captions: Sequence[Row] = (),
    *,
    confidence: float = 0.95,
    validation: Metrics | None = None,
) -> Metrics:
    """Return the sections of metrics.json and the flat metrics (see docs/evaluation.md).

    Args:
        rows: what `questions.rows` made.
        captions: what `chair.rows` made.
        confidence: probability that the intervals cover.
        validation: what `validation_section` made; None or {} if nothing is known.
    """
    by_setting = _grouped([row for row in rows if row["benchmark"] != "vqa"], lambda row: row["benchmark"][5:])
    vqa_rows = [row for row in rows if row["benchmark"] == "vqa"]
    pope = {setting: pope_setting(asked, confidence) for setting, asked in by_setting.items()}
    scored: Metrics = {
        "pope": pope,
        "pope_mean": pope_mean(by_setting, confidence) if pope else {},
        "objects": objects([row for asked in by_setting.values() for row in asked]),
        "vqa": vqa_section(vqa_rows, confidence) if vqa_rows else {},
        "chair": chair.score(captions, confidence) if captions else {},
        "validation": validation or {},
    }
    if pope:
        scored["pope_mean"]["at_threshold"] = at_threshold(rows, scored["validation"], confidence)
    return scored | {"metrics": flat(scored)}


def validation_section(found: Validation | None, recorded: float | None) -> Metrics:
    """Return what held-out conversations say of a model.

    Args:
        found: measured here; None if it was not.
        recorded: the loss that training left with the model, used where nothing was measured.
    """
    if found is not None:
        threshold = dataclasses.asdict(found.threshold) if found.threshold else None
        return {
            "source": "measured",
            "loss": found.loss,
            "perplexity": found.perplexity,
            "tokens": found.tokens,
            "conversations": found.conversations,
            "yes_answers": found.yes,
            "no_answers": found.no,
            "threshold": threshold,
        }
    if recorded is not None:
        return {"source": "training", "loss": recorded, "perplexity": perplexity(recorded), "threshold": None}
    return {}


def at_threshold(rows: Sequence[Row], validation: Metrics, confidence: float) -> Metrics | None:
    """Return POPE's accuracy if P(yes) decides, from the threshold that validation data gave; None without one."""
    asked = [row for row in rows if row["benchmark"] != "vqa"]
    threshold = validation.get("threshold")
    if not asked or not threshold or any(row["p_yes"] is None for row in asked):
        return None
    said = [row["p_yes"] >= threshold["value"] for row in asked]
    right = [float(yes == (row["label"] == "yes")) for yes, row in zip(said, asked, strict=True)]
    sizes = Counter(row["benchmark"] for row in asked)
    weights = [1 / sizes[row["benchmark"]] for row in asked]
    images = [row["image_id"] for row in asked]
    estimate = clustered_mean(right, images, confidence=confidence, weights=weights)
    ratio = sum(weight for weight, yes in zip(weights, said, strict=True) if yes) / sum(weights)
    accuracy, interval = estimate.mean, estimate.interval
    return {"threshold": threshold["value"], "accuracy": accuracy, "interval": interval, "yes_ratio": ratio}


def pope_setting(rows: Sequence[Row], confidence: float) -> Metrics:
    """Return the section of one POPE setting."""
    answers, labels = [row["prediction"] for row in rows], [row["label"] for row in rows]
    images = [row["image_id"] for row in rows]
    estimate = clustered_mean([row["score"] for row in rows], images, confidence=confidence)
    yes = labels.count("yes")
    strict = pope_metrics(answers, labels, mode="strict")
    return {
        **pope_metrics(answers, labels),
        "interval": estimate.interval,
        "majority_baseline": max(yes, len(labels) - yes) / len(labels),
        "always_yes_f1": 2 * yes / (yes + len(labels)),
        "images": estimate.clusters,
        "strict": strict,
        "calibration": _calibration(rows),
    }


def pope_mean(by_setting: dict[str, list[Row]], confidence: float) -> Metrics:
    """Return the mean of the settings' accuracies, every setting weighted alike, and the calibration over all."""
    rows = [row for asked in by_setting.values() for row in asked]
    weights = [1 / len(asked) for asked in by_setting.values() for _ in asked]
    images = [row["image_id"] for row in rows]
    estimate = clustered_mean([row["score"] for row in rows], images, confidence=confidence, weights=weights)
    return {
        "accuracy": estimate.mean,
        "interval": estimate.interval,
        "count": len(rows),
        "images": estimate.clusters,
        "calibration": _calibration(rows),
    }


def objects(rows: Sequence[Row]) -> list[Metrics]:
    """Return accuracy and yes-ratio by object over all settings, worst first."""
    table = [
        {
            "object": name,
            "count": len(asked),
            "accuracy": _mean(row["score"] for row in asked),
            "yes_ratio": _mean(row["parsed"] == "yes" for row in asked),
            "label_ratio": _mean(row["label"] == "yes" for row in asked),
        }
        for name, asked in _grouped(rows, lambda row: row["object"]).items()
    ]
    return sorted(table, key=lambda entry: (entry["accuracy"], -entry["count"], entry["object"]))


def vqa_section(rows: Sequence[Row], confidence: float) -> Metrics:
    """Return the section of VQA."""
    by_type = {name: _vqa(asked, confidence) for name, asked in _grouped(rows, lambda row: row["answer_type"]).items()}
    by_question = {
        name: _vqa(asked, confidence) for name, asked in _grouped(rows, lambda row: row["question_type"]).items()
    }
    return {
        **_vqa(rows, confidence),
        "strict_accuracy": _mean(row["strict_score"] for row in rows),
        "question_type_baseline": sum(entry["majority_baseline"] * entry["count"] for entry in by_question.values())
        / len(rows),
        "fewer_than_ten_answers": sum(len(row["answers"]) < 10 for row in rows),
        "by_answer_type": by_type,
        "by_question_type": by_question,
    }


def flat(scored: Metrics) -> dict[str, float]:
    """Return the metrics by flat name, for MLflow, KFP and the gate."""
    metrics: dict[str, float] = {}
    for setting, section in scored["pope"].items():
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            metrics[f"pope_{setting}_{name}"] = section[name]
        metrics[f"pope_{setting}_strict_accuracy"] = section["strict"]["accuracy"]
        metrics[f"pope_{setting}_invalid_rate"] = section["strict"]["invalid_rate"]
    if mean := scored["pope_mean"]:
        metrics["pope_accuracy"] = mean["accuracy"]
        metrics["pope_f1"] = _mean(section["f1"] for section in scored["pope"].values())
        metrics["pope_yes_ratio"] = _mean(section["yes_ratio"] for section in scored["pope"].values())
        known = mean["calibration"] or {}
        metrics |= {f"pope_{name}": known[name] for name in ("auroc", "ece") if known.get(name) is not None}
        if tuned := mean["at_threshold"]:
            metrics |= {"pope_threshold": tuned["threshold"], "pope_threshold_accuracy": tuned["accuracy"]}
    if vqa := scored["vqa"]:
        metrics |= {f"vqa_{name}": vqa[name] for name in ("accuracy", "strict_accuracy", "majority_baseline")}
        metrics["vqa_question_type_baseline"] = vqa["question_type_baseline"]
        metrics["vqa_over_baseline"] = vqa["accuracy"] - vqa["majority_baseline"]
    if told := scored["chair"]:
        shares = {"chair_i": told["chair_i"], "chair_s": told["chair_s"], "chair_recall": told["recall"]}
        metrics |= {name: share["value"] for name, share in shares.items() if share["value"] is not None}
        metrics["chair_mentions"] = told["mentions_per_caption"]
    if found := scored["validation"]:
        metrics |= {"validation_loss": found["loss"], "validation_perplexity": found["perplexity"]}
    return {name: float(value) for name, value in metrics.items()}


def _vqa(rows: Sequence[Row], confidence: float) -> Metrics:
    estimate = clustered_mean([row["score"] for row in rows], [row["image_id"] for row in rows], confidence=confidence)
    constant = majority_answer(row["answers"] for row in rows)
    return {
        "accuracy": estimate.mean,
        "interval": estimate.interval,
        "count": len(rows),
        "images": estimate.clusters,
        "majority_answer": constant,
        "majority_baseline": _mean(vqa_accuracy(constant, row["answers"]) for row in rows),
    }


def _calibration(rows: Sequence[Row]) -> Metrics | None:
    """Return AUROC and calibration error of P(yes); None where the vocabulary has no yes or no."""
    if any(row["p_yes"] is None for row in rows):
        return None
    found = calibration(np.array([row["p_yes"] for row in rows]), np.array([row["label"] == "yes" for row in rows]))
    return {"auroc": found.auroc, "ece": found.ece, "bins": [list(entry) for entry in found.bins]}


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def _mean(values: Any) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)
