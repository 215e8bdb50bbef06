"""The last word of a pipeline run, written whether it succeeded or not.

The exit handler knows the final status and what was asked for; which scores a run reached is in the evaluation's and
the registration's own pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(status: Mapping[str, Any], preset: str, overrides: Sequence[str]) -> str:
    """Return the report of a run.

    Args:
        status: the fields of KFP's `PipelineTaskFinalStatus`: state, pipeline_job_resource_name, pipeline_task_name,
            error_code, error_message.
        preset: the preset that was run.
        overrides: the overrides that were given.
    """
    succeeded = status.get("state") in {"SUCCEEDED", "COMPLETE"}
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
