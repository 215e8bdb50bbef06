"""Write how a run ended, whether it succeeded or not."""

from kfp.dsl import Markdown, Output, PipelineTaskFinalStatus

from components.images import component_of


@component_of("pipeline")
def report_run(preset: str, overrides: list, status: PipelineTaskFinalStatus, report: Output[Markdown]):
    """Write how a run ended and what it was asked for."""
    from dataclasses import asdict

    from multimodal_gemma.stages import component, run_report

    with component.guarded():
        component.write(run_report.markdown(asdict(status), preset, overrides), report.path)
