"""One parent run in MLflow for each run of the pipeline.

Training and registration happen in different processes, on a cluster on different machines. Both find the same run: the
one that the platform made for the pipeline, else the one that carries this pipeline run's name as a tag. It stays
RUNNING until registration ends it, or whoever sees the pipeline run end without one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError
from multimodal_gemma.registry import server
from multimodal_gemma.registry.server import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from multimodal_gemma.config.schema import RegistryConfig

__all__ = [
    "PIPELINE_RUN",
    "end",
    "ensure_run",
    "find",
    "injected_run",
    "open_run",
    "page",
    "page_of",
    "run_in",
    "tracking_uri",
]

_PARENT = "mlflow.parentRunId"  # MLflow's own tag of a nested run
PIPELINE_RUN = "mmgemma.pipeline_run"  # the tag that ties a run to its pipeline run


def injected_run() -> str:
    """Return the id of the run that the platform made for this task or pipeline run, or "".

    The platform ends what it has made: nothing here does.
    """
    return os.environ.get("MLFLOW_RUN_ID", "")


def open_run(registry: RegistryConfig, pipeline_run: str, name: str) -> str:
    """See to it that a pipeline run has its run in MLflow; return the page of it, "" where MLflow is no server.

    Args:
        registry: the configuration's section.
        pipeline_run: the pipeline run's id.
        name: what people call the pipeline run.

    Raises:
        InputError: MLflow cannot be reached or refuses.
    """
    with server.connected(registry) as client:
        return page(registry, client.get_run(run_in(client, registry, pipeline_run, name=name)))


def page(registry: RegistryConfig, run: Run) -> str:
    """Return the address of a run's page; "" where MLflow is a database, which has none."""
    uri = server.shown(tracking_uri(registry)).rstrip("/")
    there = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return there if uri.startswith("http") else ""


def page_of(registry: RegistryConfig, pipeline_run: str) -> str:
    """Return the page of the run that a pipeline run has; "" where it has none, or MLflow does not say."""
    if not tracking_uri(registry).startswith("http"):
        return ""
    try:
        with server.connected(registry) as client:
            found = find(client, registry, pipeline_run)
            return page(registry, found) if found is not None else ""
    except (InputError, ModuleNotFoundError):  # a link is not worth a training
        return ""


def ensure_run(registry: RegistryConfig, pipeline_run: str) -> str:
    """Return the id of the parent run, found or made.

    Args:
        registry: the configuration's section.
        pipeline_run: the pipeline run's id; "" always makes a new run.

    Returns:
        MLflow's run id; the run is RUNNING.

    Raises:
        InputError: MLflow cannot be reached or refuses.
    """
    with server.connected(registry) as client:
        return run_in(client, registry, pipeline_run)


def run_in(client: MlflowClient, registry: RegistryConfig, pipeline_run: str, *, name: str = "") -> str:
    """As `ensure_run`, with a client at hand; a run that is made is called `name`, else like the pipeline run's id."""
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
    _resume(client, first)
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

    Args:
        registry: the configuration's section.
        pipeline_run: the pipeline run's id.
        status: "FAILED", or "KILLED" if somebody interrupted it.

    Returns:
        MLflow's run id; "" if there was nothing to end, or MLflow could not be asked, which is said in a line: the
        pipeline run has ended in any case. A run that the platform injected is the platform's to end.
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


def _resume(client: MlflowClient, run: Run) -> None:
    _refuse_deleted(run)
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")


def _oldest(client: MlflowClient, experiment: str, pipeline_run: str) -> Run | None:
    runs = client.search_runs([experiment], f"tags.`{PIPELINE_RUN}` = {server.quoted(pipeline_run)}", max_results=50)
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def _experiment(client: MlflowClient, registry: RegistryConfig) -> str:
    """Return the experiment's id, found or made; on a database the artifacts lie beside it."""
    from mlflow.exceptions import MlflowException

    if not registry.experiment.strip():
        raise InputError("registry: registry.experiment is empty. Name the experiment that runs belong to.")
    found = client.get_experiment_by_name(registry.experiment)
    if found is None:
        try:
            return str(
                client.create_experiment(
                    registry.experiment, artifact_location=_artifact_location(tracking_uri(registry))
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(registry.experiment)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"registry: the experiment {registry.experiment!r} was deleted in MLflow. "
            "Restore it there, or name another with registry.experiment."
        )
    logs.get("registry").debug("experiment %s", found.experiment_id)
    return str(found.experiment_id)


def _artifact_location(uri: str) -> str | None:
    """A sqlite database has no artifact store, and MLflow's default is relative to the folder that a process is in."""
    path = server.sqlite_file(uri)
    return (path.parent / "mlartifacts").as_uri() if path else None
