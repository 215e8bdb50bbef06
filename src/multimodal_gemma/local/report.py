"""report.html of a run: what ran, what came of it, and the pictures behind the numbers, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from multimodal_gemma import config as configuration
from multimodal_gemma import files
from multimodal_gemma.config import Config
from multimodal_gemma.local import graph
from multimodal_gemma.local.graph import Task
from multimodal_gemma.local.results import Record, Results
from multimodal_gemma.reporting import charts, run_page
from multimodal_gemma.reporting.page import Page
from multimodal_gemma.reporting.run_page import RunPage, Step
from multimodal_gemma.stages import run_report

_EXAMPLES = 12
_TYPES = 12  # of questions, the commonest ones
_ANSWERS = ("yes", "no")
_SHOWN = ("model", "export")  # folders that people go to


def render(
    status: str,
    records: Mapping[str, Record],
    tasks: Sequence[Task],
    results: Results,
    config: Config,
    folder: Path,
    mlflow_uri: str,
) -> str:
    """Return the page.

    Args:
        status: "succeeded", "failed" or "interrupted".
        records: the tasks of the run.
        tasks: the graph that they belong to.
        results: what the finished ones have shown; sections without results are left out.
        config: the whole configuration.
        folder: of the run.
        mlflow_uri: where its MLflow run is.
    """
    steps = [_step(record) for record in records.values()]
    failed = next((record for record in records.values() if record.status == "failed"), None)
    outcome, verdict, reason = _judge(status, failed, results)
    links = {"MLflow": mlflow_uri, **{str(name): str(path) for name, path in results.folders.items() if name in _SHOWN}}
    if failed is not None:
        links["log"] = str(failed.log)
    page = RunPage(
        name=folder.name,
        outcome=outcome,
        verdict=verdict,
        reason=reason,
        advice="" if outcome in ("passed", "done", "refused") else "The same command continues this run.",
        scores=run_page.scores(results.metrics, {}),
        contamination=(results.metrics.get("contamination") or {}).get("status", ""),
        facts=run_report.facts(config),
        graph=graph.svg(tasks, {step.name: step for step in steps}),
        steps=steps,
        links=links,
        commands=_commands(results),
        said=[] if failed is None or failed.sentence else failed.last_lines(30) or ["It wrote nothing."],
        details=_details(results, config),
    )
    return run_page.render(page)


def _step(record: Record) -> Step:
    return Step(record.name, record.status, record.seconds if record.status not in ("skipped", "waiting") else None)


def _judge(status: str, failed: Record | None, results: Results) -> tuple[str, str, str]:
    """Return outcome, verdict and reason."""
    if failed is not None:
        return "failed", f"{failed.name} failed.", failed.sentence or f"It ended with exit code {failed.exit_code}."
    if status == "interrupted":
        return "stopped", "The run was interrupted.", ""
    registered = results.registration
    if not registered:
        return "done", "The run succeeded.", ""
    version = f"version {registered['version']} of {registered['name']}"
    if registered["gate"] == "passed":
        return "passed", f"The model passed the gate: {version} is {registered.get('alias') or 'registered'}.", ""
    return "refused", f"The gate refused the model: {version} is no champion.", run_page.refusals(registered["rules"])


def _commands(results: Results) -> dict[str, str]:
    model = results.folders.get("export") or results.folders.get("model")
    if model is None:
        return {}
    place = model / "model" if "export" in results.folders else model
    return {"ask the model": f"mmgemma ask PICTURE 'What is this?' --model {place}", "try it": "make demo"}


def _details(results: Results, config: Config) -> Page:
    """Return the sections behind the numbers."""
    page = Page("", "")
    _scores(page, results)
    _curves(page, results)
    _examples(page, results)
    _dataset(page, results)
    _decision(page, results)
    page.section("Configuration", "Every key of this run, as its stages received it.").pre(_indented(config))
    return page


def _scores(page: Page, results: Results) -> None:
    if not results.metrics:
        return
    page.section("Scores in pictures", "Rows are the truth, columns what the model answered.")
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


def _indented(config: Config) -> str:
    import json

    value = json.loads(configuration.to_json(config))
    value["registry"].pop("tracking_uri")  # it may hold a password
    return json.dumps(value, indent=1)
