"""Write the folders that are shipped."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import component_of


@component_of("pipeline")
def export_model(
    config: str,
    model: Input[Model],
    evaluation: Input[Artifact],
    registration: Input[Artifact],
    benchmarks: Input[Dataset],
    export: Output[Model],
):
    """Write a model in the layouts that others load, with its card and licences."""
    from pathlib import Path

    from multimodal_gemma import config as configuration
    from multimodal_gemma.stages import export as stage
    from multimodal_gemma.stages.component import guarded

    with guarded():
        settings = configuration.from_json(config)
        inputs = (Path(model.path), Path(evaluation.path), Path(registration.path))
        summary = stage.run(settings, *inputs, Path(export.path), benchmarks=Path(benchmarks.path))
    summary.describe(export)
