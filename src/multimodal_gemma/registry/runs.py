"""One parent run in MLflow for each run of the pipeline, and what it is given to remember.

Training and registration happen in different processes, on a cluster on different machines. Both find the same run: the
one that the platform made for the pipeline, else the one that carries this pipeline run's name as a tag. It stays
RUNNING until registration ends it, or whoever sees the pipeline run end without one. What it is told may be told twice
and stays as it was, so a registration that was killed is simply run again.
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
from multimodal_gemma.errors import InputError
from multimodal_gemma.manifest import Manifest
from multimodal_gemma.registry import server
from multimodal_gemma.reporting import run_page

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from multimodal_gemma.config.schema import RegistryConfig

_PARENT = "mlflow.parentRunId"  # MLflow's own tag of a nested run
PIPELINE_RUN = "mmgemma.pipeline_run"  # the tag that ties a run to its pipeline run
_LONGEST_PARAMETER = 6000  # MLflow's limits
_DIGEST_LENGTH = 36
_BATCH = 100
TABLE = "evaluation/predictions_table.json"  # artifact of a run
_TABLE_COLUMNS = ("benchmark", "question_id", "image", "question", "prediction", "score", "p_yes")
_SPACE = "\N{NO-BREAK SPACE}"
_PRIVATE = ("registry.tracking_uri",)  # may hold a password
# Tags from the environment that images and pipelines set.
_FROM_ENVIRONMENT = {"mmgemma.image": "MMGEMMA_IMAGE", "mmgemma.pipeline_digest": "MMGEMMA_PIPELINE_DIGEST"}


def injected_run() -> str:
    """Return the id of the run that the platform made for this task or pipeline run, or "".

    The platform ends what it has made: nothing here does.
    """
    return os.environ.get("MLFLOW_RUN_ID", "")


def open_run(registry: RegistryConfig, pipeline_run: str, name: str) -> str:
    """See to it that a pipeline run, which people call `name`, has its run in MLflow; return the page of it.

    Raises:
        InputError: MLflow cannot be reached or refuses.
    """
    with server.connected(registry) as client:
        return page(registry, client.get_run(run_in(client, registry, pipeline_run, name=name)))


def page(registry: RegistryConfig, run: Run) -> str:
    """Return the address of a run's page; "" where MLflow is a database, which has none."""
    uri = server.shown(server.tracking_uri(registry)).rstrip("/")
    there = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return there if uri.startswith("http") else ""


def page_of(registry: RegistryConfig, pipeline_run: str) -> str:
    """Return the page of the run that a pipeline run has; "" where it has none, or MLflow does not say."""
    if not server.tracking_uri(registry).startswith("http"):
        return ""
    try:
        with server.connected(registry) as client:
            found = find(client, registry, pipeline_run)
            return page(registry, found) if found is not None else ""
    except (InputError, ModuleNotFoundError):  # a link is not worth a training
        return ""


def run_in(client: MlflowClient, registry: RegistryConfig, pipeline_run: str, *, name: str = "") -> str:
    """Return the id of the run of a pipeline run, found or made (without an id always made); it is RUNNING.

    One that is made is called `name`, else like the pipeline run's id.

    Raises:
        InputError: the run or its experiment was deleted, or no experiment is named.
    """
    injected = injected_run()
    if injected:
        # Its experiment is the platform's choice: none is set or made here. KFP's plugin makes a nested run for each
        # task; what belongs together goes into the one that they have in common.
        run = _parent(client, injected)
        _refuse_deleted(run)
        if pipeline_run:
            client.set_tag(run.info.run_id, PIPELINE_RUN, pipeline_run)
        return str(run.info.run_id)
    experiment = _experiment(client, registry)
    if not pipeline_run:
        return str(client.create_run(experiment).info.run_id)
    first = _oldest(client, experiment, pipeline_run)
    if first is None:
        made = client.create_run(experiment, run_name=name or pipeline_run, tags={PIPELINE_RUN: pipeline_run})
        # Two processes may have made one at the same time: the oldest is the run, the other goes.
        first = _oldest(client, experiment, pipeline_run) or made
        if first.info.run_id != made.info.run_id:
            client.delete_run(made.info.run_id)
    _refuse_deleted(first)
    if first.info.status != "RUNNING":
        client.update_run(first.info.run_id, status="RUNNING")
    return str(first.info.run_id)


def find(client: MlflowClient, registry: RegistryConfig, pipeline_run: str) -> Run | None:
    """Return the run in MLflow that a pipeline run has; None if it has none."""
    if injected := injected_run():
        return _parent(client, injected)
    experiment = client.get_experiment_by_name(registry.experiment)
    return _oldest(client, experiment.experiment_id, pipeline_run) if experiment is not None and pipeline_run else None


def _parent(client: MlflowClient, run_id: str) -> Run:
    run = client.get_run(run_id)
    parent = run.data.tags.get(_PARENT)
    return client.get_run(parent) if parent else run


def end(registry: RegistryConfig, pipeline_run: str, status: str) -> str:
    """End the MLflow run of a pipeline run that came to its end without registration, if one is still RUNNING.

    Its status becomes "FAILED", or "KILLED" if somebody interrupted it. A run that the platform injected is the
    platform's to end.

    Returns:
        MLflow's run id; "" if there was nothing to end, or MLflow could not be asked, which is said in a line: the
        pipeline run has ended in any case.
    """
    try:
        with server.connected(registry) as client:
            ended = end_in(client, registry, pipeline_run, status)
    except InputError as error:
        logs.get("registry").info(f"the run in MLflow was not ended. {error}")
        return ""
    if ended:
        logs.get("registry").info(f"the run {ended} in MLflow is marked as {status.lower()}")
    return ended


def end_in(client: MlflowClient, registry: RegistryConfig, pipeline_run: str, status: str) -> str:
    """As `end`, with a client at hand."""
    if injected_run() or not pipeline_run:
        return ""
    run = find(client, registry, pipeline_run)
    if run is None or run.info.status != "RUNNING":
        return ""
    client.set_terminated(run.info.run_id, status=status)
    return str(run.info.run_id)


def _refuse_deleted(run: Run) -> None:
    if run.info.lifecycle_stage == "deleted":
        raise InputError(
            f"registry: the run {run.info.run_id} was deleted in MLflow. Restore it there, or start a new pipeline run."
        )


def _oldest(client: MlflowClient, experiment: str, pipeline_run: str) -> Run | None:
    runs = client.search_runs([experiment], f"tags.`{PIPELINE_RUN}` = {server.quoted(pipeline_run)}", max_results=50)
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def _experiment(client: MlflowClient, registry: RegistryConfig) -> str:
    """Return the experiment's id, found or made; on a database the artifacts lie beside it."""
    if not registry.experiment.strip():
        raise InputError("registry: registry.experiment is empty. Name the experiment that runs belong to.")
    found = client.get_experiment_by_name(registry.experiment)
    if found is None:
        with server.tolerating(server.TAKEN):  # another process was faster
            place = _artifact_location(server.tracking_uri(registry))
            return str(client.create_experiment(registry.experiment, artifact_location=place))
        found = client.get_experiment_by_name(registry.experiment)
        assert found is not None
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"registry: the experiment {registry.experiment!r} was deleted in MLflow. "
            "Restore it there, or name another with registry.experiment."
        )
    return str(found.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """A sqlite database has no artifact store, and MLflow's default is relative to the folder that a process is in."""
    path = server.sqlite_file(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None


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
    if named := os.environ.get("MMGEMMA_GIT_COMMIT", ""):
        return named
    here = Path(__file__)
    # An installed package may lie in a virtual environment inside some checkout: the commit has to hold this file.
    command = ["git", "-C", str(here.parent), "rev-parse", "HEAD", f"HEAD:./{here.name}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.split()[0] if answer.returncode == 0 else ""


def dataset(
    client: MlflowClient,
    run_id: str,
    name: str,
    digest: str,
    context: str,
    profile: Mapping[str, Any],
    source: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """Log a dataset of "training" or "evaluation" with where it came from and its counts.

    Returns:
        Its name and digest as MLflow knows them: the first 36 characters of the manifest's; the source has all of it.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=name,
        digest=digest[:_DIGEST_LENGTH],
        source_type="multimodal-gemma",
        source=json.dumps({"digest": digest, **(source or {})}, sort_keys=True),
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
    scores = run_page.scores(metrics, {})
    rows = ["| questions | accuracy | interval | majority answer | F1 |"]
    for row in scores:
        interval = "{:.3f}-{:.3f}".format(*row.interval) if row.interval else "-"
        majority, f1 = ("" if value is None else f"{value:.3f}" for value in (row.majority, row.f1))
        rows.append(f"| {row.name} | {row.value:.3f} | {interval} | {majority} | {f1} |")
    # MLflow's pages set no space between cells, and trim every space but this one.
    head, *told = [row.replace(" |", f" {_SPACE}|") for row in rows]
    asked = f"On {'; '.join(dict.fromkeys(row.asked for row in scores))}."
    return "\n".join([head, "| --- | ---: | ---: | ---: | ---: |", *told, "", asked])


def predictions(client: MlflowClient, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Log the answers as a table, by which MLflow's own view compares runs question by question."""
    if TABLE in (entry.path for entry in client.list_artifacts(run_id, TABLE.partition("/")[0])):
        return  # log_table would add the rows once more
    import pandas

    listed = list(rows)
    table = pandas.DataFrame(listed).reindex(columns=list(_TABLE_COLUMNS))
    table["truth"] = [row.get("label") or ", ".join(sorted(set(row.get("answers", ())))) for row in listed]
    client.log_table(run_id, data=table, artifact_file=TABLE)


def folder_files(client: MlflowClient, run_id: str, folder: Path, names: Iterable[str], destination: str) -> None:
    """Upload those of the named files that the folder has."""
    for name in names:
        if (folder / name).is_file():
            client.log_artifact(run_id, str(folder / name), destination)
