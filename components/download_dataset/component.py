"""Download conversations and their images."""

from kfp.dsl import Dataset, Output

from components.images import component_of


@component_of("pipeline")
def download_dataset(plan: str, dataset: Output[Dataset]):
    """Download conversations and their images, each file pinned and checked."""
    from pathlib import Path

    from multimodal_gemma.stages import download, preflight
    from multimodal_gemma.stages.component import guarded

    with guarded():
        summary = download.run(preflight.planned(plan), "dataset", Path(dataset.path))
    summary.describe(dataset)
