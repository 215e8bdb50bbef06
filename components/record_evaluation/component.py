"""Record new scores of a registered model in MLflow."""

from kfp.dsl import Artifact, Input, Model, Output

from components.images import component_of


@component_of("pipeline")
def record_evaluation(plan: str, name: str, model: Input[Model], evaluation: Input[Artifact], record: Output[Artifact]):
    """Log an evaluation as a run of its own, and tag the versions that it scored."""
    from multimodal_gemma.stages import component

    inputs = {"model": model.path, "evaluation": evaluation.path}
    component.work("record", plan, name=name, output=record.path, **inputs).describe(record)
