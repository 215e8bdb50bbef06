"""From scored rows to metrics.json: every number with its interval, beside what a model that cannot see would get."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from multimodal_gemma.evaluation import chair, lmms
from multimodal_gemma.evaluation.pope import pope_metrics
from multimodal_gemma.evaluation.questions import Row
from multimodal_gemma.evaluation.statistics import calibration, clustered_mean
from multimodal_gemma.evaluation.vqa import majority_answer, vqa_accuracy

SCHEMA_VERSION = 2
Metrics = dict[str, Any]


def score(
    rows: Sequence[Row],
    captions: Sequence[Row] = (),
    *,
    confidence: float = 0.95,
    validation: Metrics | None = None,
    others: Metrics | None = None,
) -> Metrics:
    """Return the sections of metrics.json and the flat metrics (see docs/evaluation.md).

    Args:
        rows: what `questions.rows` made.
        captions: what `chair.rows` made.
        confidence: probability that the intervals cover.
        validation: what `validation.section` made; None or {} if nothing is known.
        others: `version` of lmms-eval, and `tasks` as `lmms.run` found them; None or {} if it was not asked.
    """
    asked, vqa = [row for row in rows if row["benchmark"] != "vqa"], [row for row in rows if row["benchmark"] == "vqa"]
    scored: Metrics = {
        "pope": {
            name.removeprefix("pope/"): _pope(setting, confidence)
            for name, setting in _grouped(asked, "benchmark").items()
        },
        "pope_mean": {},
        "objects": _objects(asked),
        "vqa": _vqa_by_type(vqa, confidence) if vqa else {},
        "chair": chair.score(captions, confidence) if captions else {},
        "validation": validation or {},
        "lmms": others or {},
    }
    if asked:
        scored["pope_mean"] = {
            **_mean([row["score"] for row in asked], asked, confidence),
            "count": len(asked),
            "calibration": _calibration(asked),
            "at_threshold": at_threshold(asked, scored["validation"], confidence),
        }
    return scored | {"metrics": _flat(scored)}


def at_threshold(asked: Sequence[Row], validation: Metrics, confidence: float) -> Metrics | None:
    """Return POPE's accuracy if P(yes) decides, from the threshold that validation data gave; None without one."""
    threshold = validation.get("threshold")
    if not threshold or any(row["p_yes"] is None for row in asked):
        return None
    said = [row["p_yes"] >= threshold["value"] for row in asked]
    right = [float(yes == (row["label"] == "yes")) for yes, row in zip(said, asked, strict=True)]
    found = _mean(right, asked, confidence)
    ratio = float(np.average(said, weights=_weights(asked)))
    accuracy, interval = found["accuracy"], found["interval"]
    return {"threshold": threshold["value"], "accuracy": accuracy, "interval": interval, "yes_ratio": ratio}


def _mean(scores: Sequence[float], rows: Sequence[Row], confidence: float) -> Metrics:
    """Return the mean of some rows' scores, every benchmark weighted alike, with its interval over images."""
    images = [row["image_id"] for row in rows]
    found = clustered_mean(scores, images, confidence=confidence, weights=_weights(rows))
    return {"accuracy": found.mean, "interval": found.interval, "images": found.clusters}


def _weights(rows: Sequence[Row]) -> list[float] | None:
    sizes = Counter(row["benchmark"] for row in rows)
    return [1 / sizes[row["benchmark"]] for row in rows] if len(sizes) > 1 else None


def _pope(rows: Sequence[Row], confidence: float) -> Metrics:
    """Return the section of one POPE setting."""
    answers, labels = [row["prediction"] for row in rows], [row["label"] for row in rows]
    yes = labels.count("yes")
    return {
        **_mean([row["score"] for row in rows], rows, confidence),
        **pope_metrics(answers, labels),
        "majority_baseline": max(yes, len(labels) - yes) / len(labels),
        "always_yes_f1": 2 * yes / (yes + len(labels)),
        "strict": pope_metrics(answers, labels, mode="strict"),
        "calibration": _calibration(rows),
    }


def _objects(rows: Sequence[Row]) -> list[Metrics]:
    """Return accuracy and yes-ratio by object over all settings, worst first."""
    table = [
        {
            "object": name,
            "count": len(asked),
            "accuracy": fmean(row["score"] for row in asked),
            "yes_ratio": fmean(row["parsed"] == "yes" for row in asked),
            "label_ratio": fmean(row["label"] == "yes" for row in asked),
        }
        for name, asked in _grouped(rows, "object").items()
    ]
    return sorted(table, key=lambda entry: (entry["accuracy"], -entry["count"], entry["object"]))


def _vqa_by_type(rows: Sequence[Row], confidence: float) -> Metrics:
    """Return the section of VQA, with the same for each type of answer and of question."""
    by_answer, by_question = (
        {name: _vqa(asked, confidence) for name, asked in _grouped(rows, key).items()}
        for key in ("answer_type", "question_type")
    )
    blind = sum(entry["majority_baseline"] * entry["count"] for entry in by_question.values())
    return {
        **_vqa(rows, confidence),
        "strict_accuracy": fmean(row["strict_score"] for row in rows),
        "question_type_baseline": blind / len(rows),
        "fewer_than_ten_answers": sum(len(row["answers"]) < 10 for row in rows),
        "by_answer_type": by_answer,
        "by_question_type": by_question,
    }


def _vqa(rows: Sequence[Row], confidence: float) -> Metrics:
    constant = majority_answer(row["answers"] for row in rows)
    return {
        **_mean([row["score"] for row in rows], rows, confidence),
        "count": len(rows),
        "majority_answer": constant,
        "majority_baseline": fmean(vqa_accuracy(constant, row["answers"]) for row in rows),
    }


def _calibration(rows: Sequence[Row]) -> Metrics | None:
    """Return AUROC and calibration error of P(yes); None where the vocabulary has no yes or no."""
    if any(row["p_yes"] is None for row in rows):
        return None
    p_yes, is_yes = np.array([row["p_yes"] for row in rows]), np.array([row["label"] == "yes" for row in rows])
    return dataclasses.asdict(calibration(p_yes, is_yes))


def _flat(scored: Metrics) -> dict[str, float]:
    """Return the metrics by flat name, for MLflow, KFP and the gate."""
    metrics: dict[str, float] = {}
    for setting, section in scored["pope"].items():
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            metrics[f"pope_{setting}_{name}"] = section[name]
        metrics[f"pope_{setting}_strict_accuracy"] = section["strict"]["accuracy"]
        metrics[f"pope_{setting}_invalid_rate"] = section["strict"]["invalid_rate"]
    if mean := scored["pope_mean"]:
        metrics["pope_accuracy"] = mean["accuracy"]
        metrics["pope_f1"] = fmean(section["f1"] for section in scored["pope"].values())
        metrics["pope_yes_ratio"] = fmean(section["yes_ratio"] for section in scored["pope"].values())
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
    if asked := scored["lmms"]:
        metrics |= lmms.flat(asked["tasks"])
    return {name: float(value) for name, value in metrics.items()}


def _grouped(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return dict(groups)
