"""Write how a run ended, whether it succeeded or not."""

from kfp.dsl import Markdown, Output, PipelineTaskFinalStatus

from components.images import component_of


@component_of("pipeline")
def report_run(
    preset: str,
    overrides: list,
    registry_tracking_uri: str,
    run_id: str,
    run_name: str,
    status: PipelineTaskFinalStatus,
    report: Output[Markdown],
):
    """Write how a run ended and what it was asked for, and tidy up what it left."""
    from dataclasses import asdict

    from multimodal_gemma.stages import component, run_report

    with component.guarded():
        ended = asdict(status)
        component.write(run_report.markdown(ended, preset, overrides), report.path)
        run_report.end_run(ended, preset, overrides, run_id, registry_tracking_uri)
        run_report.clean_up(run_id)
