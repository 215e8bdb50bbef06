"""Write the folders that are shipped."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import component_of


@component_of("pipeline")
def export_model(
    plan: str,
    model: Input[Model],
    evaluation: Input[Artifact],
    registration: Input[Artifact],
    benchmarks: Input[Dataset],
    export: Output[Model],
):
    """Write a model in the layouts that others load, with its card and licences."""
    from multimodal_gemma.stages import component

    inputs = {"model": model.path, "evaluation": evaluation.path, "registration": registration.path}
    component.work("export", plan, output=export.path, benchmarks=benchmarks.path, **inputs).describe(export)
