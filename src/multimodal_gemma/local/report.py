"""report.html of a run: what ran, what came of it, and the pictures behind the numbers, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multimodal_gemma import config as configuration
from multimodal_gemma import files
from multimodal_gemma.config import Config
from multimodal_gemma.local import drawing
from multimodal_gemma.local.graph import Task
from multimodal_gemma.local.records import Record
from multimodal_gemma.local.summary import Results
from multimodal_gemma.local.terminal import duration
from multimodal_gemma.reporting import charts
from multimodal_gemma.reporting.page import Page

_EXAMPLES = 12
_TYPES = 12  # of questions, the commonest ones
_ANSWERS = ("yes", "no")


def render(
    status: str,
    records: Mapping[str, Record],
    tasks: Sequence[Task],
    results: Results,
    config: Config,
    name: str,
) -> str:
    """Return the page.

    Args:
        status: "succeeded", "failed" or "interrupted".
        records: the tasks of the run.
        tasks: the graph that they belong to.
        results: what the finished ones have shown; sections without results are left out.
        config: the whole configuration.
        name: of the run.
    """
    total = sum(record.seconds for record in records.values())
    page = Page(f"Run {name}", f"Preset {config.preset}; {status} after {duration(total)}.")
    cards = _cards(status, results)
    page.cards([card for card, _ in cards], classes=[mark for _, mark in cards])
    _graph(page, records, tasks)
    _failures(page, records)
    _scores(page, results)
    _curves(page, results)
    _examples(page, results)
    _dataset(page, results)
    _decision(page, results)
    page.section("Configuration", "Every key of this run, as its stages received it.").pre(_indented(config))
    return page.html()


def _cards(status: str, results: Results) -> list[tuple[tuple[str, str, str], str]]:
    cards = [(("run", status, ""), "good" if status == "succeeded" else "bad")]
    if results.pope:
        scores = list(results.pope.values())
        accuracy = sum(score["accuracy"] for score in scores) / len(scores)
        constant = sum(score["majority_baseline"] for score in scores) / len(scores)
        cards.append((("POPE accuracy", f"{accuracy:.3f}", f"majority answer {constant:.3f}"), ""))
    if vqa := results.vqa:
        cards.append(
            (("VQA accuracy", f"{vqa['accuracy']:.3f}", f"majority answer {vqa['majority_baseline']:.3f}"), "")
        )
    if registered := results.registration:
        alias = registered.get("alias") or "no alias"
        passed = registered["gate"] == "passed"
        cards.append(
            (
                (f"{registered['name']}", f"version {registered['version']}", f"{alias}, gate {registered['gate']}"),
                "good" if passed else "",
            )
        )
    return cards


def _graph(page: Page, records: Mapping[str, Record], tasks: Sequence[Task]) -> None:
    page.section("Stages", "A reused stage took its result from an earlier run; a skipped one had nothing to do.")
    page.raw(f"<div class='scroll'>{drawing.svg(tasks, records)}</div>")
    rows = [
        (record.name, record.status, duration(record.seconds) if record.status != "skipped" else "-")
        for record in records.values()
    ]
    page.table(("stage", "status", "time"), rows)


def _failures(page: Page, records: Mapping[str, Record]) -> None:
    for record in records.values():
        if record.status != "failed":
            continue
        page.section(
            f"{record.name} failed", record.sentence or f"Exit code {record.exit_code}. The last lines of its log:"
        )
        page.pre("\n".join(record.last_lines(30)) or "It wrote nothing.").paragraph(f"The whole log: {record.log}")


def _scores(page: Page, results: Results) -> None:
    if not results.metrics:
        return
    rows = [
        (
            f"POPE {name}",
            score["accuracy"],
            _span(score),
            score["majority_baseline"],
            f"{score['f1']:.3f}",
            f"{score['yes_ratio']:.3f}",
            score["count"],
        )
        for name, score in results.pope.items()
    ]
    if vqa := results.vqa:
        rows.append(
            (results.names["vqa"], vqa["accuracy"], _span(vqa), vqa["majority_baseline"], "-", "-", vqa["count"])
        )
    contamination = results.metrics["contamination"]["status"]
    page.section(
        "Scores",
        "Beside each accuracy, what always giving the commonest answer would score. "
        f"Training images in the benchmarks: {contamination}.",
    )
    page.table(("benchmark", "accuracy", "interval", "majority answer", "F1", "answers yes", "questions"), rows)
    page.figures(
        [
            (charts.confusion([[score["tp"], score["fn"]], [score["fp"], score["tn"]]], _ANSWERS, f"POPE {name}"), "")
            for name, score in results.pope.items()
        ]
    )
    for title, key in (("answer type", "by_answer_type"), ("question type", "by_question_type")):
        types = sorted((results.vqa.get(key) or {}).items(), key=lambda item: -item[1]["count"])[:_TYPES]
        if types:
            chart = charts.bars(
                [f"{name} ({entry['count']:,})" for name, entry in types],
                [entry["accuracy"] for _, entry in types],
                "VQA accuracy",
                intervals=[entry["interval"] for _, entry in types],
                baselines=[entry["majority_baseline"] for _, entry in types],
            )
            page.figure(
                chart,
                f"Open questions by {title}, with their number; the tick is the majority answer's score.",
            )


def _curves(page: Page, results: Results) -> None:
    model = results.folders.get("model")
    if model is None or not (model / "curves.jsonl").is_file():
        return
    from multimodal_gemma.training.curves import smoothed

    rows = files.read_jsonl(model / "curves.jsonl", "curves")
    steps = [row["step"] for row in rows]
    series = {"training (smoothed)": (steps, smoothed([row["loss"] for row in rows]))}
    validated = [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]
    if validated:
        series["validation"] = ([step for step, _ in validated], [loss for _, loss in validated])
    page.section(
        "Training", "Both losses fall together while the model learns; validation that turns up again is memorising."
    )
    page.figure(charts.lines(series, "step", "loss (nats a token)"))


def _examples(page: Page, results: Results) -> None:
    evaluation, benchmarks = results.folders.get("evaluation"), results.folders.get("benchmarks")
    if evaluation is None or benchmarks is None:
        return
    from multimodal_gemma.data.shards import ImageShards
    from multimodal_gemma.evaluation import report as evaluation_report

    rows = files.read_jsonl(evaluation / "predictions.jsonl", "predictions")
    page.section("Examples", "Drawn by a hash from every benchmark and kind of truth, right and wrong as they come.")
    shards, chosen = ImageShards(benchmarks), evaluation_report.draw(rows, _EXAMPLES)
    page.gallery([evaluation_report.item(row, shards, [evaluation_report.answered(row)]) for row in chosen])


def _dataset(page: Page, results: Results) -> None:
    dataset = results.folders.get("dataset")
    if dataset is None:
        return
    value = files.read_json(dataset / "statistics.json", "statistics")
    rows = [
        (
            split,
            entry["conversations"],
            entry["images"],
            entry["text_only"],
            entry["text_tokens"].get("sum", 0),
            entry["supervised_tokens"].get("sum", 0),
        )
        for split, entry in value["splits"].items()
    ]
    dropped = sum(group["count"] for group in value["dropped"])
    page.section(
        "Dataset",
        f"Split by image, so no image of the validation split was trained on. Left out or shortened: {dropped:,}.",
    )
    page.table(("split", "conversations", "images", "text only", "text tokens", "supervised tokens"), rows)
    if value["dropped"]:
        page.table(
            ("what", "why", "count"), [(group["what"], group["kind"], group["count"]) for group in value["dropped"]]
        )
    frequent = value["answers"]["most_frequent"][:12]
    if frequent:
        page.figure(
            charts.bars([text for text, _ in frequent], [count for _, count in frequent], "answers"),
            "The most frequent answers.",
        )


def _decision(page: Page, results: Results) -> None:
    if not results.registration:
        return
    registered = results.registration
    page.section(
        "Registry decision", f"Version {registered['version']} of {registered['name']}: gate {registered['gate']}."
    )
    page.table(
        ("rule", "result", "reason"),
        [(rule["name"], "passed" if rule["passed"] else "failed", rule["reason"]) for rule in registered["rules"]],
    )


def _span(score: Mapping[str, Any]) -> str:
    interval = score["interval"]
    return f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else "-"


def _indented(config: Config) -> str:
    import json

    value = json.loads(configuration.to_json(config))
    value["registry"].pop("tracking_uri")  # it may hold a password
    return json.dumps(value, indent=1)
