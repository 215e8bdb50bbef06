"""Download the base models."""

from kfp.dsl import Model, Output

from components.images import component_of


@component_of("pipeline")
def download_models(plan: str, models: Output[Model]):
    """Download the base models, each file pinned and checked."""
    from multimodal_gemma.stages import component

    component.work("download", plan, what="models", output=models.path).describe(models)
