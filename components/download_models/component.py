"""Download the base models."""

from kfp.dsl import Model, Output

from components.images import component_of


@component_of("pipeline")
def download_models(plan: str, models: Output[Model]):
    """Download the base models, each file pinned and checked."""
    from pathlib import Path

    from multimodal_gemma.stages import download, preflight
    from multimodal_gemma.stages.component import guarded

    with guarded():
        summary = download.run(preflight.planned(plan), "models", Path(models.path))
    summary.describe(models)
