"""What a run in MLflow is given to remember: parameters, tags, datasets, metrics, pages.

Writing it twice leaves it as it was, so a registration that was killed is simply run again.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multimodal_gemma import logs
from multimodal_gemma.config.flat import flatten
from multimodal_gemma.manifest import Manifest
from multimodal_gemma.reporting.run_page import SETTINGS

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LONGEST_PARAMETER = 6000  # MLflow's limits
_DIGEST_LENGTH = 36
_BATCH = 100
TABLE = "evaluation/predictions_table.json"  # artifact of a run
_TABLE_COLUMNS = ("benchmark", "question_id", "image", "question", "prediction", "score", "p_yes")
_SPACE = "\N{NO-BREAK SPACE}"
_PRIVATE = ("registry.tracking_uri",)  # may hold a password
# Tags from the environment that images and pipelines set.
_FROM_ENVIRONMENT = {"mmgemma.image": "MMGEMMA_IMAGE", "mmgemma.pipeline_digest": "MMGEMMA_PIPELINE_DIGEST"}


def parameters(client: MlflowClient, run_id: str, config: Mapping[str, Any]) -> None:
    """Log the whole configuration, one parameter a key; what the run holds already stays (MLflow lets none change)."""
    from mlflow.entities import Param

    flat = {key: value[:_LONGEST_PARAMETER] for key, value in flatten(config).items() if key not in _PRIVATE}
    held = client.get_run(run_id).data.params
    changed = sorted(key for key, value in flat.items() if key in held and held[key] != value)
    if changed:
        logs.get("registry").warning(
            "the run %s keeps its first value of %s; it was logged with another configuration before",
            run_id,
            ", ".join(changed),
        )
    new = [Param(key, value) for key, value in flat.items() if key not in held]
    for start in range(0, len(new), _BATCH):
        client.log_batch(run_id, params=new[start : start + _BATCH])


def tags(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Set tags of the run; empty ones are left out."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items() if value])


def lineage(model: Manifest, dataset_digest: str) -> dict[str, str]:
    """Return the tags that say where a run came from: commit, image, compiled pipeline, data, model."""
    commit = git_commit()
    found = {
        "mmgemma.git_commit": commit,
        "mlflow.source.git.commit": commit,  # the name under which MLflow's pages show it
        "mmgemma.dataset_digest": dataset_digest,
        "mmgemma.model_digest": model.digest,
    }
    found.update({tag: os.environ.get(variable, "") for tag, variable in _FROM_ENVIRONMENT.items()})
    return {tag: value for tag, value in found.items() if value}


def git_commit() -> str:
    """Return the commit of this code: MMGEMMA_GIT_COMMIT, else that of the checkout it lies in, else ""."""
    named = os.environ.get("MMGEMMA_GIT_COMMIT", "")
    if named:
        return named
    here = Path(__file__)
    try:
        # An installed package may lie in a virtual environment inside some checkout: only a tracked file counts.
        tracked = subprocess.run(
            ["git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name], capture_output=True, timeout=10
        )
        if tracked.returncode:
            return ""
        answer = subprocess.run(
            ["git", "-C", str(here.parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def dataset(
    client: MlflowClient,
    run_id: str,
    name: str,
    digest: str,
    *,
    context: str,
    source: Mapping[str, Any],
    profile: Mapping[str, Any],
) -> tuple[str, str]:
    """Log a dataset by its manifest digest, and return the name and the digest under which MLflow knows it.

    Args:
        client: MLflow's.
        run_id: the run.
        name: what to call it.
        digest: the manifest's; MLflow keeps the first 36 characters as its own, the source the whole of it.
        context: "training" or "evaluation".
        source: where it came from.
        profile: its counts.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=name,
        digest=digest[:_DIGEST_LENGTH],
        source_type="multimodal-gemma",
        source=json.dumps({"digest": digest, **source}, sort_keys=True),
        profile=json.dumps(dict(profile), sort_keys=True),
    )
    client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])
    return entity.name, entity.digest


def metrics(
    client: MlflowClient,
    run_id: str,
    values: Mapping[str, Any],
    *,
    model_id: str | None = None,
    dataset: tuple[str, str] | None = None,
) -> None:
    """Log the finite metrics, tied to the logged model and to the dataset that they were measured on.

    MLflow stores +inf as a large number that passes any comparison, so what is not finite stands in the gate's decision
    alone.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    name, digest = dataset or (None, None)
    held = client.get_run(run_id).data.metrics
    batch = [
        Metric(key, float(value), now, 0, model_id=model_id, dataset_name=name, dataset_digest=digest, run_id=run_id)
        for key, value in sorted(values.items())
        if isinstance(value, int | float) and math.isfinite(value) and held.get(key) != float(value)
    ]
    for start in range(0, len(batch), _BATCH):
        client.log_batch(run_id, metrics=batch[start : start + _BATCH])


def scores_markdown(metrics: Mapping[str, Any]) -> str:
    """Return the scores of a metrics.json as a Markdown table, each beside what the majority answer would score."""
    called, pope = metrics["names"], metrics.get("pope") or {}
    rows = ["| questions | accuracy | interval | majority answer | F1 |"]
    for setting in (name for name in SETTINGS if name in pope):
        score = pope[setting]
        constant = max(score["tp"] + score["fn"], score["tn"] + score["fp"]) / max(score["count"], 1)
        head = f"| {called['pope']}, {setting} | {score['accuracy']:.3f} | {_interval(score)} "
        rows.append(f"{head}| {constant:.3f} | {score['f1']:.3f} |")
    if vqa := metrics.get("vqa"):
        head = f"| {called['vqa']} | {vqa['accuracy']:.3f} | {_interval(vqa)} "
        rows.append(f"{head}| {vqa['majority_baseline']:.3f} | |")
    told = metrics.get("chair") or {}
    if told and told["chair_i"]["value"] is not None:
        named = f"{told['mentions_per_caption']:.1f} a description"
        head = f"| objects invented (CHAIRi, lower is better; {named}) | {told['chair_i']['value']:.3f} "
        rows.append(f"{head}| {_interval(told['chair_i'])} | | |")
    # MLflow's pages set no space between cells, and trim every space but this one.
    head, *told_rows = [row.replace(" |", f" {_SPACE}|") for row in rows]
    return "\n".join([head, "| --- | ---: | ---: | ---: | ---: |", *told_rows])


def _interval(score: Mapping[str, Any]) -> str:
    interval = score.get("interval")
    return f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else "-"


def predictions(client: MlflowClient, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Log the answers as a table, by which MLflow's own view compares runs question by question."""
    if TABLE in (entry.path for entry in client.list_artifacts(run_id, TABLE.partition("/")[0])):
        return  # log_table would add the rows once more
    columns: dict[str, list[Any]] = {name: [] for name in (*_TABLE_COLUMNS, "truth")}
    for row in rows:
        for name in _TABLE_COLUMNS:
            columns[name].append(row.get(name))
        columns["truth"].append(row.get("label") or ", ".join(sorted(set(row.get("answers", ())))))
    client.log_table(run_id, data=columns, artifact_file=TABLE)


def folder_files(client: MlflowClient, run_id: str, folder: Path, names: Iterable[str], destination: str) -> None:
    """Upload those of the named files that the folder has."""
    for name in names:
        if (folder / name).is_file():
            client.log_artifact(run_id, str(folder / name), destination)
