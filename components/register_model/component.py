"""Record a model in MLflow and decide whether it becomes the champion."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Model, Output

from components.images import component_of


@component_of("pipeline")
def register_model(
    config: str,
    run_id: str,
    dataset: Input[Dataset],
    model: Input[Model],
    evaluation: Input[Artifact],
    registration: Output[Artifact],
    decision: Output[Markdown],
    comparison: Output[HTML],
) -> str:
    """Log a model with its scores, create its version, and return the gate's word: passed or failed."""
    from pathlib import Path

    from multimodal_gemma import config as configuration
    from multimodal_gemma.stages import component, register

    with component.guarded():
        settings, folder = configuration.from_json(config), Path(registration.path)
        inputs = (Path(model.path), Path(evaluation.path))
        summary = register.run(settings, *inputs, folder, dataset=Path(dataset.path), run_id=run_id)
    summary.describe(registration)
    component.publish(registration.path, "decision.md", decision.path)
    component.publish(registration.path, "comparison.html", comparison.path)
    return summary.facts["gate"]
