"""Write the page of a run, whether it succeeded or not."""

from kfp.dsl import HTML, Output, PipelineTaskFinalStatus

from components.images import component_of


@component_of("pipeline")
def report_run(
    preset: str,
    overrides: list,
    registry_tracking_uri: str,
    run_id: str,
    run_name: str,
    status: PipelineTaskFinalStatus,
    report: Output[HTML],
):
    """Write the page of a run, and tidy up what the run left."""
    asked = {**locals()}
    from multimodal_gemma.stages import component

    component.report(asked)
