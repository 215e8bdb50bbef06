"""report.html: the scores with their intervals beside what a blind model gets, and the pictures behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from multimodal_gemma.evaluation.examples import gallery
from multimodal_gemma.evaluation.predictions import Row
from multimodal_gemma.reporting import charts
from multimodal_gemma.reporting.page import Page

if TYPE_CHECKING:
    from multimodal_gemma.data.shards import ImageShards

_MOST_OBJECTS = 25
_MOST_TYPES = 30
_PER_GALLERY = 9
_ANSWERS = ("yes", "no")
_VQA_COLUMNS = ("accuracy", "interval", "majority", "majority answer", "questions")


def render(
    rows: Sequence[Row], metrics: dict[str, Any], shards: ImageShards, contamination: str, *, confidence: float
) -> str:
    """Return the page, self-contained and below 3 MB.

    Args:
        rows: scored rows of all questions.
        metrics: what metrics.json holds.
        shards: the benchmark's images.
        contamination: the sentence on training images among them.
        confidence: of the intervals, for their caption.
    """
    questions, images = len(rows), len({row["image_id"] for row in rows})
    lead = (
        f"{questions:,} questions about {images:,} images. Intervals cover {confidence:.0%}, clustered by image. "
        f"{contamination}"
    )
    page = Page("Evaluation", lead).cards(_cards(metrics))
    if metrics["pope"]:
        _pope(page, metrics)
    if metrics["vqa"]:
        _vqa(page, metrics["vqa"])
    _examples(page, rows, shards)
    return page.html()


def _cards(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    cards = []
    if mean := metrics["pope_mean"]:
        blind = sum(section["majority_baseline"] for section in metrics["pope"].values()) / len(metrics["pope"])
        cards.append(
            (
                "POPE accuracy",
                _share(mean["accuracy"]),
                f"{_span(mean['interval'])}; always one answer: {_share(blind)}",
            )
        )
        ratio = metrics["metrics"]["pope_yes_ratio"]
        cards.append(
            (
                "POPE says yes",
                _share(ratio),
                "of the questions; half of them are yes" if blind == 0.5 else "of the questions",
            )
        )
        if known := mean["calibration"]:
            rank = "-" if known["auroc"] is None else f"{known['auroc']:.3f}"
            cards.append(("AUROC of P(yes)", rank, f"0.5 is chance; calibration error {known['ece']:.3f}"))
    if vqa := metrics["vqa"]:
        blind_answer = f"always {vqa['majority_answer']!r}: {_share(vqa['majority_baseline'])}"
        cards.append(("VQA v2 accuracy", _share(vqa["accuracy"]), f"{_span(vqa['interval'])}; {blind_answer}"))
    if found := metrics["validation"]:
        source = (
            f"{found['conversations']:,} held-out conversations" if "conversations" in found else "as training left it"
        )
        cards.append(("Validation loss", f"{found['loss']:.3f}", f"perplexity {found['perplexity']:.2f}; {source}"))
    return cards


def _pope(page: Page, metrics: dict[str, Any]) -> None:
    pope = metrics["pope"]
    page.section(
        "POPE: are objects seen that are not there?",
        "Half of the questions ask for an object that is absent: drawn at random, a frequent one, or one that keeps "
        "company with what is there. A model that always says yes scores half of the accuracy but two thirds of F1, "
        "so look at the yes-ratio first.",
    )
    rows = [
        (
            setting,
            _share(section["accuracy"]),
            _span(section["interval"]),
            _share(section["majority_baseline"]),
            _share(section["yes_ratio"]),
            _share(section["f1"]),
            _share(section["always_yes_f1"]),
            section["count"],
        )
        for setting, section in pope.items()
    ]
    page.table(("setting", "accuracy", "interval", "one answer", "says yes", "F1", "F1 of all yes", "questions"), rows)
    parsed = [
        (
            setting,
            _share(section["precision"]),
            _share(section["recall"]),
            _share(section["strict"]["accuracy"]),
            _share(section["strict"]["invalid_rate"]),
        )
        for setting, section in pope.items()
    ]
    page.table(
        ("setting", "precision", "recall", "strict accuracy", "invalid"),
        parsed,
        "Official parsing reads whatever does not say no as yes; strict counts an answer that is neither as wrong "
        "(invalid).",
    )
    page.figures(
        [
            (charts.confusion([[entry["tp"], entry["fn"]], [entry["fp"], entry["tn"]]], _ANSWERS, setting), "")
            for setting, entry in pope.items()
        ]
    )
    if known := metrics["pope_mean"]["calibration"]:
        _calibration(page, known, _tuned(metrics))
    _objects(page, metrics["objects"])


def _tuned(metrics: dict[str, Any]) -> str:
    """Say what the threshold of the validation data would make of POPE."""
    tuned = metrics["pope_mean"]["at_threshold"]
    if tuned is None:
        return ""
    found = metrics["validation"]["threshold"]
    return (
        f" If P(yes) of at least {tuned['threshold']:.2f} counted as yes, which separates {found['questions']:,} yes "
        f"and no answers of the validation data best, accuracy would be {_share(tuned['accuracy'])} "
        f"({_span(tuned['interval'])}) and the yes-ratio {_share(tuned['yes_ratio'])}."
    )


def _calibration(page: Page, known: dict[str, Any], tuned: str) -> None:
    bins = known["bins"]
    page.section(
        "Calibration",
        "Of the questions that the model holds to be yes with some probability, that share should be yes: the nearer "
        f"to the diagonal, the better it knows what it knows. Expected calibration error: {known['ece']:.3f}.{tuned}",
    )
    observed = ([entry[0] for entry in bins], [entry[1] for entry in bins])
    page.figure(charts.lines({"observed": observed, "perfect": ([0.0, 1.0], [0.0, 1.0])}, "P(yes)", "share of yes"))
    page.table(("mean P(yes)", "share of yes", "questions"), [tuple(entry) for entry in bins])


def _objects(page: Page, objects: Sequence[dict[str, Any]]) -> None:
    shown = objects[:_MOST_OBJECTS]
    rest = f" The worst {len(shown)} of {len(objects):,}." if len(objects) > len(shown) else ""
    page.section(
        "Objects, worst first",
        f"Which things are overlooked, and which are imagined: compare the last two columns.{rest}",
    )
    page.table(
        ("object", "accuracy", "questions", "says yes", "is yes"),
        [
            (
                entry["object"],
                _share(entry["accuracy"]),
                entry["count"],
                _share(entry["yes_ratio"]),
                _share(entry["label_ratio"]),
            )
            for entry in shown
        ],
    )


def _vqa(page: Page, vqa: dict[str, Any]) -> None:
    page.section(
        "VQA v2: open questions",
        "Bars are official accuracy with its interval; the tick is what the most frequent answer of that kind of "
        "question gets, which needs no image.",
    )
    kinds = sorted(vqa["by_answer_type"].items(), key=lambda item: -item[1]["count"])
    page.figure(
        charts.bars(
            [name for name, _ in kinds],
            [100 * entry["accuracy"] for _, entry in kinds],
            "accuracy, %",
            intervals=[(100 * entry["interval"][0], 100 * entry["interval"][1]) for _, entry in kinds],
            baselines=[100 * entry["majority_baseline"] for _, entry in kinds],
        )
    )
    few = vqa["fewer_than_ten_answers"]
    said = f" {few:,} questions have fewer than ten answers; they are scored by the same rule." if few else ""
    page.table(
        ("answers", *_VQA_COLUMNS),
        [_vqa_row(name, entry) for name, entry in [("all", vqa), *kinds]],
        f"Always normalised (strict): {_share(vqa['strict_accuracy'])}. The most frequent answer of each question "
        f"type, known without the image: {_share(vqa['question_type_baseline'])}.{said}",
    )
    types = sorted(vqa["by_question_type"].items(), key=lambda item: (-item[1]["count"], item[0]))
    page.section("By question type", f"The {min(len(types), _MOST_TYPES)} most frequent of {len(types)} types.")
    page.table(("question begins", *_VQA_COLUMNS), [_vqa_row(name, entry) for name, entry in types[:_MOST_TYPES]])


def _vqa_row(name: str, entry: dict[str, Any]) -> tuple[str | int, ...]:
    interval = _span(entry["interval"]) if entry["images"] > 1 else "-"
    baseline = _share(entry["majority_baseline"])
    return (name, _share(entry["accuracy"]), interval, baseline, entry["majority_answer"], entry["count"])


def _examples(page: Page, rows: Sequence[Row], shards: ImageShards) -> None:
    wrong = [row for row in rows if row["score"] < 0.5]
    right = [row for row in rows if row["score"] >= 0.5]
    if wrong:
        page.section("Wrong answers", f"Drawn evenly from the {len(wrong):,} that score below a half.")
        page.gallery(gallery(wrong, shards, _PER_GALLERY))
    if right:
        page.section("Right answers", f"Drawn evenly from {len(right):,}.")
        page.gallery(gallery(right, shards, _PER_GALLERY))


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _span(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}%"
