"""The last word of a pipeline run, written whether it succeeded or not.

The exit handler knows the final status and what was asked for; which scores a run reached is in the evaluation's and
the registration's own pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from multimodal_gemma import logs
from multimodal_gemma.errors import InputError

_PATIENCE = 60.0  # seconds for which a silent cluster is asked before the report goes out without it


def markdown(status: Mapping[str, Any], preset: str, overrides: Sequence[str]) -> str:
    """Return the report of a run.

    Args:
        status: the fields of KFP's `PipelineTaskFinalStatus`: state, pipeline_job_resource_name, pipeline_task_name,
            error_code, error_message.
        preset: the preset that was run.
        overrides: the overrides that were given.
    """
    succeeded = _succeeded(status)
    lines = [
        f"# Run {'succeeded' if succeeded else 'failed'}",
        "",
        "| | |",
        "| --- | --- |",
        f"| state | {status.get('state')} |",
        f"| run | {status.get('pipeline_job_resource_name')} |",
        f"| preset | {preset} |",
        f"| overrides | {', '.join(f'`{item}`' for item in overrides) or 'none'} |",
    ]
    if not succeeded:
        lines += [
            f"| error | {status.get('error_code')}: {status.get('error_message')} |",
            "",
            "The task that failed says why in the last lines of its log. "
            "Finished downloads and preprocessing are reused by the next run.",
        ]
    else:
        lines += ["", "Scores: the summary of evaluate-model. Version and alias: the decision of register-model."]
    return "\n".join([*lines, ""])


def end_run(status: Mapping[str, Any], preset: str, overrides: Sequence[str], run_id: str, tracking_uri: str) -> str:
    """End the MLflow run of a pipeline run that failed; training has begun it, and registration never came to end it.

    Args:
        status: as in `markdown`.
        preset: the preset that was run.
        overrides: the overrides that were given.
        run_id: the pipeline run.
        tracking_uri: the parameter registry_tracking_uri; "" leaves the preset's or the platform's.

    Returns:
        MLflow's run id; "" if there was nothing to end, or MLflow could not be asked.
    """
    if _succeeded(status):
        return ""
    from multimodal_gemma import config as configuration
    from multimodal_gemma.config.flat import as_overrides
    from multimodal_gemma.registry import runs

    log = logs.get("report")
    try:
        config = configuration.compose(preset, [*as_overrides({"registry_tracking_uri": tracking_uri}), *overrides])
        ended = runs.end(config.registry, run_id, "FAILED")
    except InputError as error:  # a report that fails would hide how the run ended
        log.info(f"the run in MLflow was not ended. {error}")
        return ""
    if ended:
        log.info(f"the run {ended} in MLflow is marked as failed")
    return ended


def _succeeded(status: Mapping[str, Any]) -> bool:
    return status.get("state") in {"SUCCEEDED", "COMPLETE"}


def clean_up(run_id: str) -> list[str]:
    """Delete the TrainJobs that a run has left: one that is terminated does not take them along.

    Args:
        run_id: the pipeline run.

    Returns:
        Names of what was deleted; nothing where there is no cluster, or the run may not see TrainJobs.
    """
    from multimodal_gemma.cluster.kube import client
    from multimodal_gemma.cluster.trainjob import job

    if not client.in_cluster():
        return []
    log = logs.get("report")
    try:
        namespace = job.here()
        namespace.patience = min(namespace.patience, _PATIENCE)
        gone = job.delete_all(namespace, run_id)
    except InputError as error:  # a report that fails would hide how the run ended
        log.info(f"TrainJobs were not looked for. {error}")
        return []
    if gone:
        log.info(f"deleted what the run had left: {', '.join(gone)}")
    return gone
