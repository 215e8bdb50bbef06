"""report.html of a run: what ran, what came of it, pictures behind the numbers, and the way to each stage's page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from multimodal_gemma import config as configuration
from multimodal_gemma import files
from multimodal_gemma.config import Config, flat
from multimodal_gemma.evaluation import questions
from multimodal_gemma.local import graph
from multimodal_gemma.local.graph import Task
from multimodal_gemma.local.results import Record, Results
from multimodal_gemma.reporting import charts, run_page
from multimodal_gemma.reporting.page import Link, Page
from multimodal_gemma.reporting.run_page import RunPage, Step
from multimodal_gemma.stages import run_report

_EXAMPLES = 12
_ANSWERS = ("yes", "no")
_SHOWN = ("model", "export")  # folders that people go to
_COMPARISON = "comparison with the champion"
_PAGES = {  # of the stages, with the artifact that each lies in
    "evaluation": ("evaluation", "report.html"),
    _COMPARISON: ("registration", "comparison.html"),
    "training curves": ("model", "curves.html"),
    "dataset": ("dataset", "report.html"),
}


def render(
    status: str,
    records: Mapping[str, Record],
    tasks: Sequence[Task],
    results: Results,
    config: Config,
    folder: Path,
    mlflow_uri: str,
) -> str:
    """Return the page of a run: "succeeded", "failed" or "interrupted"; sections without results are left out."""
    steps = [_step(record) for record in records.values()]
    failed = next((record for record in records.values() if record.status == "failed"), None)
    outcome, verdict, reason = _judge(status, failed, results)
    links = _links(results, folder, mlflow_uri)
    if failed is not None and failed.log is not None:
        links["log"] = _link(failed.log, folder)
    page = RunPage(
        name=folder.name,
        outcome=outcome,
        verdict=verdict,
        reason=reason,
        advice=_ADVICE.get(outcome, ""),
        scores=run_page.scores(results.metrics, {}),
        contamination=questions.seen(results.metrics) if results.metrics else "",
        facts=run_report.facts(config),
        graph=graph.svg(tasks, {step.name: step for step in steps}),
        steps=steps,
        links=links,
        commands=_commands(results, mlflow_uri),
        said=[] if failed is None or failed.sentence else failed.last_lines(30) or ["It wrote nothing."],
        details=_details(results, config),
    )
    return run_page.render(page)


_ADVICE = {
    "refused": run_report.ADVICE["refused"],
    "failed": "Mend it; the same command then continues this run, and another one reuses what is still right.",
    "stopped": "The same command continues this run.",
}


def _links(results: Results, folder: Path, mlflow_uri: str) -> dict[str, str | Link]:
    """Return the pages of the stages, then places."""
    links: dict[str, str | Link] = {}
    for name, (artifact, page) in _PAGES.items():
        if artifact in results.folders and (results.folders[artifact] / page).is_file():
            links[name] = _link(results.folders[artifact] / page, folder)
    if not any(rule["name"].startswith("champion in") for rule in results.registration.get("rules", [])):
        links.pop(_COMPARISON, None)  # there was nothing to be held against
    if not _in_a_file(mlflow_uri):
        links["MLflow"] = mlflow_uri
    return links | {key: str(results.folders[key]) for key in _SHOWN if key in results.folders}


def _in_a_file(mlflow_uri: str) -> bool:
    return mlflow_uri.startswith("sqlite:")


def _link(path: Path, folder: Path) -> Link:
    place = Path(os.path.relpath(path, folder)).as_posix()
    return Link(place, quote(place))


def _step(record: Record) -> Step:
    return Step(record.name, record.status, record.seconds if record.status not in ("skipped", "waiting") else None)


def _judge(status: str, failed: Record | None, results: Results) -> tuple[str, str, str]:
    """Return outcome, verdict and reason."""
    if failed is not None:
        return "failed", f"{failed.name} failed.", failed.sentence or f"It ended with exit code {failed.exit_code}."
    if status == "interrupted":
        return "stopped", "The run was interrupted.", ""
    if not (registered := results.registration):
        return "done", "The run succeeded.", ""
    return run_page.judged(*(registered[key] for key in ("name", "version", "alias", "rules")))


def _commands(results: Results, mlflow_uri: str) -> dict[str, str]:
    serve = f"mlflow server --backend-store-uri {mlflow_uri}"
    browse = {"browse MLflow": serve} if _in_a_file(mlflow_uri) else {}
    model = results.folders.get("export") or results.folders.get("model")
    if model is None:
        return browse
    place = model / "model" if "export" in results.folders else model
    return {"ask the model": f"mmgemma ask PICTURE 'What is this?' --model {place}", "try it": "make demo", **browse}


def _details(results: Results, config: Config) -> Page:
    """Return the sections behind the numbers."""
    page = Page("", "")
    _scores(page, results)
    _curves(page, results)
    _examples(page, results)
    _dataset(page, results)
    _decision(page, results)
    _configuration(page, config)
    return page


def _scores(page: Page, results: Results) -> None:
    if not results.pope:
        return
    page.section("Scores in pictures", "Rows are the truth, columns what the model answered.")
    page.figures(
        [
            (charts.confusion([[score["tp"], score["fn"]], [score["fp"], score["tn"]]], _ANSWERS, f"POPE {name}"), "")
            for name, score in results.pope.items()
        ]
    )


def _curves(page: Page, results: Results) -> None:
    model = results.folders.get("model")
    if model is None or not (model / "curves.jsonl").is_file():
        return
    from multimodal_gemma.training import curves

    page.section("Training", curves.LOSSES)
    page.figure(curves.losses(files.read_jsonl(model / "curves.jsonl", "curves")))


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


def _decision(page: Page, results: Results) -> None:
    if not results.registration:
        return
    registered = results.registration
    page.section(
        "The gate's decision", f"Version {registered['version']} of {registered['name']}, held against these rules."
    )
    page.table(
        ("rule", "result", "reason"),
        [(rule["name"], "passed" if rule["passed"] else "failed", rule["reason"]) for rule in registered["rules"]],
    )


def _configuration(page: Page, config: Config) -> None:
    whole, differs = json.loads(configuration.to_json(config)), configuration.differences(config)
    for value in (whole, differs):
        value.get("registry", {}).pop("tracking_uri", None)  # it may hold a password
    page.section("Configuration", "What differs from the defaults.")
    page.table(("key", "value"), [(key, Link(text)) for key, text in flat.flatten(differs).items()])
    page.pre(json.dumps(whole, indent=1), summary="Every key, as the stages received it")
