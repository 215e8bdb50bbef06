"""What every pipeline begins and ends with: preflight, which plans it, and report-run, whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineParameterChannel

from components.preflight.component import preflight
from components.report_run.component import report_run
from pipelines.resources import light, with_hub_token, with_object_store, with_registry


@contextlib.contextmanager
def planned(
    asked: Mapping[str, Any], name: str, needed: Sequence[str]
) -> Iterator[dict[str, PipelineParameterChannel]]:
    """Hold the tasks of a pipeline between preflight and report-run.

    Args:
        asked: the parameters of the form by name.
        name: of the group that the tasks stand in.
        needed: the cached stages that the pipeline has.

    Yields:
        Preflight's plans by name.
    """
    given = {**asked, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "run_name": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
    takes = report_run.component_spec.inputs
    ended = report_run(**{key: value for key, value in given.items() if key in takes})
    ended.set_caching_options(False)
    with_registry(light(ended), asked["secret_registry"])
    with dsl.ExitHandler(ended, name=name):
        checked = preflight(**given, needed=list(needed))
        checked.set_caching_options(False)
        with_object_store(with_hub_token(light(checked), asked["secret_hub"]), asked["secret_store"])
        with_registry(checked, asked["secret_registry"])
        yield checked.outputs
