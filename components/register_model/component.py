"""Record a model in MLflow and decide whether it becomes the champion."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.images import component_of


@component_of("pipeline")
def register_model(
    plan: str,
    dataset: Input[Dataset],
    model: Input[Model],
    evaluation: Input[Artifact],
    benchmarks: Input[Dataset],
    registration: Output[Artifact],
    comparison: Output[HTML],
) -> str:
    """Log a model with its scores, create its version, and return the gate's word: passed or failed."""
    from multimodal_gemma.stages import component

    inputs = {"model": model.path, "evaluation": evaluation.path, "output": registration.path}
    beside = {"dataset": dataset.path, "benchmarks": benchmarks.path}
    summary = component.work("register", plan, **inputs, **beside)
    summary.describe(registration)
    component.publish(registration.path, "comparison.html", comparison.path)
    return summary.facts["gate"]
