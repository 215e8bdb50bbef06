"""Record new scores of a registered model in MLflow."""

from kfp.dsl import Artifact, Input, Model, Output

from components.images import component_of


@component_of("pipeline")
def record_evaluation(
    config: str,
    run_id: str,
    name: str,
    model: Input[Model],
    evaluation: Input[Artifact],
    record: Output[Artifact],
):
    """Log an evaluation as a run of its own, and tag the versions that it scored."""
    from pathlib import Path

    from multimodal_gemma import config as configuration
    from multimodal_gemma.stages import record as stage
    from multimodal_gemma.stages.component import guarded

    with guarded():
        settings, inputs = configuration.from_json(config), (Path(model.path), Path(evaluation.path))
        summary = stage.run(settings, name, *inputs, Path(record.path), run_id=run_id)
    summary.describe(record)
